//! Single figures: memory of the recorder, delay of the start, the check at
//! the end.

use crate::check;
use crate::command::Line;
use crate::options::Options;
use crate::place::Place;
use crate::run::{self, End};
use crate::statistics::median;
use crate::tools::{self, Tool};
use crate::tree;
use rustix::time::{ClockId, clock_gettime};
use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};

/// What `--only` may name.
pub const NAMES: [&str; 6] = [
    "block-memory",
    "stack-memory",
    "start",
    "exit-check",
    "check",
    "mark",
];

/// One figure with its bound.
pub struct Figure {
    /// What was measured.
    pub what: String,
    /// What came out, with its unit.
    pub value: String,
    /// The bound; empty when there is none.
    pub bound: String,
}

/// Measures all figures that were asked for. One that cannot be measured says
/// why in its place.
///
/// # Errors
/// When the programs cannot be built.
pub fn all(options: &Options, place: &Place) -> Result<Vec<Figure>, String> {
    let mut figures = Vec::new();
    for name in NAMES.into_iter().filter(|name| options.wants(name)) {
        eprintln!("{name}");
        match name {
            "block-memory" => {
                let sizes: &[u64] = if options.quick {
                    &[2_000_000]
                } else {
                    &[2_000_000, 20_000_000]
                };
                for &blocks in sizes {
                    figures.extend(block_memory(blocks, place)?);
                }
            }
            "stack-memory" => figures.push(stack_memory(place)?),
            "start" => figures.push(start(options, place)?),
            "exit-check" => {
                let sizes: &[u64] = if options.quick {
                    &[1_000_000]
                } else {
                    &[1_000_000, 10_000_000]
                };
                for &blocks in sizes {
                    figures.push(exit_check(blocks, options, place)?);
                }
            }
            "check" => {
                let sizes: &[u64] = if options.quick { &[1] } else { &[1, 10, 36] };
                for &million in sizes {
                    figures.extend(check::figures(million, options, place)?);
                }
            }
            // Built from source, so only where it is asked for or time is ample.
            _ if options.quick && options.only.is_empty() => {}
            _ => figures.push(mark()),
        }
    }
    Ok(figures)
}

fn figure(what: String, value: Result<String, String>, bound: &'static str) -> Figure {
    let value = value.unwrap_or_else(|why| format!("not measured: {why}"));
    Figure {
        what,
        value,
        bound: bound.to_owned(),
    }
}

/// Resident bytes of a program at its two "ready" lines.
fn stages(line: &Line, tool: Tool, place: &Place) -> Result<[f64; 2], String> {
    let wrapped = tool.wrap(line, place);
    let mut command = Command::new("/bin/true");
    if let Some((program, arguments)) = wrapped.words.split_first() {
        command = Command::new(program);
        command.args(arguments);
    }
    let errors = File::create(place.file("errors")).map_err(|e| format!("failed to write: {e}"))?;
    let mut child = command
        .envs(wrapped.variables)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(errors)
        .spawn()
        .map_err(|e| format!("failed to start: {e}"))?;
    let result = (|| {
        let output = child.stdout.take().ok_or("no output")?;
        let mut input = child.stdin.take().ok_or("no input")?;
        let mut lines = BufReader::new(output).lines();
        let mut sizes = [0.0; 2];
        for size in &mut sizes {
            match lines.next() {
                Some(Ok(line)) if line == "ready" => {}
                _ => return Err(format!("the program ended early under {}", tool.name())),
            }
            *size = resident(child.id(), &line.program)?;
            // A program that has died is found by the next line.
            let _ = writeln!(input);
        }
        Ok(sizes)
    })();
    // Closed pipes let it end.
    let ended = child.wait();
    ended.map_err(|e| format!("failed to wait: {e}"))?;
    result
}

fn resident(root: u32, program: &Path) -> Result<f64, String> {
    let mut all = tree::descendants(root).into_iter();
    let pid = all.find(|pid| tree::runs(*pid, program));
    let memory = pid.and_then(tree::memory).ok_or("the program is gone")?;
    Ok(memory.now as f64)
}

fn block_memory(blocks: u64, place: &Place) -> Result<Vec<Figure>, String> {
    let program = place.build("live.c", &[])?;
    let line = Line::new(program, [blocks.to_string(), "48".into()])?;
    let both = stages(&line, Tool::Native, place)
        .and_then(|native| Ok((native, stages(&line, Tool::Exact, place)?)));
    let million = blocks / 1_000_000;
    let each = both.clone().map(|([none, full], [ours, ours_full])| {
        let bytes = (ours_full - ours - (full - none)) / blocks as f64;
        format!("{bytes:.1} bytes")
    });
    let fixed = both.map(|([none, _], [ours, _])| format!("{:.1} MiB", (ours - none) / MIB));
    Ok(vec![
        figure(
            format!("recorder memory per live block ({million} M blocks of 48 bytes)"),
            each,
            "≤ 48 bytes",
        ),
        figure(
            "recorder memory before the first of them".into(),
            fixed,
            "≤ 64 MiB",
        ),
    ])
}

const MIB: f64 = 1_048_576.0;

fn stack_memory(place: &Place) -> Result<Figure, String> {
    let program = place.build("stacks.c", &[])?;
    let line = Line::new(program, ["19"])?;
    let value = stages(&line, Tool::Exact, place).and_then(|[before, after]| {
        let facts = tools::facts(place)?;
        Ok(format!(
            "{:.1} MiB ({} allocations, {} events dropped)",
            (after - before) / MIB,
            facts.allocations,
            facts.dropped
        ))
    });
    let what = "memory of 1 M distinct frames in 524 288 stacks".into();
    Ok(figure(what, value, "≤ 64 MiB"))
}

fn now() -> f64 {
    let time = clock_gettime(ClockId::Monotonic);
    time.tv_sec as f64 + time.tv_nsec as f64 / 1e9
}

/// Runs a program whose last line is its clock: seconds from the start to that
/// reading, and from there to the end of everything.
fn around(line: &Line, tool: Tool, options: &Options, place: &Place) -> Result<(f64, f64), String> {
    let (output, errors) = (place.file("output"), place.file("errors"));
    let file = File::create(&output).map_err(|e| format!("failed to write: {e}"))?;
    tools::sweep(place);
    let began = now();
    let running = run::start(&tool.wrap(line, place), file.into(), &errors, options.limit)?;
    let run = running.wait(tool.direct());
    let ended = now();
    if run.end != End::Status(0) {
        return Err(format!("ended with {:?} under {}", run.end, tool.name()));
    }
    let text = std::fs::read_to_string(&output).unwrap_or_default();
    let clock: f64 = text
        .lines()
        .last()
        .and_then(|line| line.parse().ok())
        .ok_or("the program printed no clock")?;
    Ok((clock / 1e9 - began, ended - clock / 1e9))
}

fn start(options: &Options, place: &Place) -> Result<Figure, String> {
    let program = place.build("clock.cc", &["-Wl,--no-as-needed", "-lm"])?;
    let line = Line::new(program, [""; 0])?;
    let turns = if options.quick { 7 } else { 31 };
    let mut delays = Vec::new();
    let mut why = String::new();
    for _ in 0..turns {
        let native = around(&line, Tool::Native, options, place);
        let ours = around(&line, Tool::Exact, options, place);
        match (native, ours) {
            (Ok((native, _)), Ok((ours, _))) => delays.push((ours - native) * 1e3),
            (Err(e), _) | (_, Err(e)) => why = e,
        }
    }
    let value = median(delays)
        .map(|delay| format!("{delay:.1} ms"))
        .ok_or(why);
    let what = format!("delay of main's first instruction, 6 modules (median of {turns})");
    Ok(figure(what, value, "≤ 15 ms"))
}

fn exit_check(blocks: u64, options: &Options, place: &Place) -> Result<Figure, String> {
    let program = place.build("live.c", &[])?;
    let line = Line::new(program, [blocks.to_string(), "48".into()])?;
    let value = around(&line, Tool::Native, options, place).and_then(|(_, native)| {
        let (_, ours) = around(&line, Tool::Exact, options, place)?;
        let facts = tools::facts(place)?;
        let all = (ours - native).max(1e-9);
        Ok(format!(
            "{:.1} M blocks/s from main's end to the report written ({:.2} s); the program was stopped for {:.0} ms",
            facts.live / all / 1e6,
            all,
            facts.pause * 1e3
        ))
    });
    let what = format!("check at the end, list of {} M blocks", blocks / 1_000_000);
    Ok(figure(what, value, "≥ 5 M blocks/s"))
}

/// The marker alone: analysis's own example.
fn mark() -> Figure {
    let cargo = std::env::var_os("CARGO").unwrap_or("cargo".into());
    let output = Command::new(cargo)
        .args(["run", "--release", "--quiet", "-p", "leakscope-analysis"])
        .args(["--example", "mark_speed"])
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(Stdio::null())
        .output();
    let value = match output {
        Ok(output) if output.status.success() => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            Ok(text
                .trim()
                .lines()
                .map(str::trim)
                .collect::<Vec<_>>()
                .join("<br>"))
        }
        Ok(output) => Err(format!("mark_speed: {}", output.status)),
        Err(e) => Err(format!("failed to run cargo: {e}")),
    };
    figure(
        "the marker alone, `mark_speed`".into(),
        value,
        "≥ 5 M blocks/s",
    )
}
