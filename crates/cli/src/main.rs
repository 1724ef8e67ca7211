//! The command `leakscope`: arguments in, one exit status out.
//!
//! It reads the command line and its environment, calls one recipe of
//! `leakscope-session` and hands the report to the views of
//! `leakscope-report`. It never judges and never touches another process.
//!
//! Begin with [`args`] (what can be typed), then `commands` (what it means).
#![forbid(unsafe_code)]

mod args;
mod commands;
mod duration;
mod environment;
mod failure;
mod output;
mod progress;
mod size;
mod terminal;

use std::io::{self, Write};
use std::process::ExitCode;

use clap::Parser;
use clap::error::ErrorKind;

use args::{Cli, Command};
use failure::{Failure, OWN};

fn main() -> ExitCode {
    match outcome() {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            // Without stderr nobody is left to be told.
            _ = writeln!(io::stderr(), "{failure}");
            ExitCode::from(failure.status)
        }
    }
}

fn outcome() -> Result<u8, Failure> {
    let command_line = environment::command_line(std::env::args_os().collect())?;
    let cli = match Cli::try_parse_from(command_line) {
        Ok(cli) => cli,
        Err(error) => return explained(error),
    };
    match cli.command {
        Command::Run(run) => commands::run::run(*run),
        Command::Check(check) => commands::check::check(*check),
        Command::Snapshot(snapshot) => commands::snapshot::snapshot(*snapshot),
        Command::Completions { shell } => commands::generate::completions(shell),
        Command::Man => commands::generate::man(),
    }
}

/// Help and version are answers; the rest are failures.
fn explained(error: clap::Error) -> Result<u8, Failure> {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            output::pipe_may_close(error.print())
                .map_err(|e| Failure::own(format!("cannot write to stdout: {e}")))?;
            Ok(0)
        }
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            _ = error.print();
            Ok(OWN)
        }
        _ => Err(error.into()),
    }
}
