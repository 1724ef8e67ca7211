//! Speed and memory of `leakscope run`, side by side with its peers.
//!
//! Every line of the table is one program; every round runs it natively and
//! under each tool in turn, so that a busy moment of the machine meets all of
//! them, and what is printed is the median of the rounds' own ratios. A tool
//! that crashes, changes the program's output or takes too long is reported as
//! such, never left out.
//!
//! What it never does: judge by a clock whether a test passes. It writes the
//! bounds beside what was measured.
//!
//! Begin at [`compare`] for the table, [`micro`] for the single figures,
//! [`workloads`] for what is run.
#![forbid(unsafe_code)]

mod check;
mod command;
mod compare;
mod inputs;
mod markdown;
mod micro;
mod options;
mod place;
mod records;
mod redis;
mod run;
mod statistics;
mod tools;
mod tree;
mod workloads;

use std::process::ExitCode;
use std::time::Instant;

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    match words.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [records::MODE, file] => return finish(records::report(file)),
        [records::TREE_MODE, file] => return finish(records::count(file)),
        _ => {}
    }
    match options::parse(&words) {
        Ok(options) => finish(measure(&options)),
        Err(message) => {
            eprintln!("{message}");
            ExitCode::from(2)
        }
    }
}

fn finish(result: Result<(), String>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("leakscope-bench: {message}");
            ExitCode::FAILURE
        }
    }
}

fn measure(options: &options::Options) -> Result<(), String> {
    let began = Instant::now();
    let place = place::Place::new(options)?;
    let lines = compare::all(options, &place)?;
    let figures = micro::all(options, &place)?;
    let text = markdown::page(options, &place, &lines, &figures, began.elapsed());
    print!("{text}");
    if let Some(path) = &options.markdown {
        std::fs::write(path, text).map_err(|e| format!("failed to write {path}: {e}"))?;
    }
    Ok(())
}
