//! The programs of the table.

use crate::command::Line;
use crate::inputs;
use crate::options::Options;
use crate::place::Place;
use crate::{records, redis};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

/// What `--only` may name.
pub const NAMES: [&str; 14] = [
    "churn-1",
    "churn-2",
    "churn-4",
    "depth-60",
    "depth-60-tiny",
    "sqlite3",
    "jq",
    "cc1plus",
    "python3",
    "redis",
    "xmllint",
    "serde_json",
    "xmllint-parse",
    "serde_json-tree",
];

/// What the bound of a line is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing but allocations.
    Churn,
    /// Deep stacks.
    Depth,
    /// A program that people run, at an ordinary job.
    Real,
    /// A program that does little but allocate: nothing costs more.
    Dense,
}

impl Kind {
    /// The most that exact recording may cost, as a ratio of wall time, where
    /// there is a bound.
    pub fn bound(self) -> Option<f64> {
        match self {
            Kind::Churn => Some(2.2),
            Kind::Depth => Some(1.6),
            Kind::Real => Some(2.0),
            Kind::Dense => None,
        }
    }
}

/// One program with its input.
pub struct Workload {
    /// What it does, for the page.
    pub what: String,
    /// How to run it.
    pub line: Line,
    /// Which bound holds.
    pub kind: Kind,
    /// Threads that allocate at the same time, for the cost of one allocation.
    pub threads: usize,
    /// Who sends it work, for a server.
    pub client: Option<redis::Client>,
}

/// Builds one, input included.
///
/// # Errors
/// When a compiler, a program or the disk refuses: the line is then reported
/// as not measured.
pub fn make(name: &'static str, options: &Options, place: &Place) -> Result<Workload, String> {
    let pick = |full: u64, quick: u64| if options.quick { quick } else { full };
    let io = |result: std::io::Result<()>| result.map_err(|e| format!("failed to make input: {e}"));
    let mut kind = Kind::Real;
    let mut threads = 1;
    let mut client = None;
    let (what, line) = match name {
        "churn-1" | "churn-2" | "churn-4" => {
            let asked: usize = name[6..].parse().unwrap_or(1);
            kind = if asked > 2 { Kind::Dense } else { Kind::Churn };
            threads = asked;
            let pairs = pick(5_000_000, 1_000_000) / asked as u64;
            let program = place.build("churn.c", &["-pthread"])?;
            (
                format!("malloc/free churn, {pairs} pairs in each of {asked} thread(s), depth 10"),
                Line::new(program, [asked.to_string(), pairs.to_string()])?,
            )
        }
        // A map that lies in the caches, where an allocation costs least, and
        // one that does not.
        "depth-60" | "depth-60-tiny" => {
            let strings;
            let rounds;
            (kind, strings, rounds) = match name {
                "depth-60" => (Kind::Depth, 200_003, pick(5, 2)),
                _ => (Kind::Dense, 1000, pick(1500, 300)),
            };
            let program = place.build("depth.cc", &[])?;
            (
                format!("std::map of {strings} strings built {rounds} times, depth 60"),
                Line::new(program, [rounds.to_string(), strings.to_string()])?,
            )
        }
        "sqlite3" => {
            let rows = pick(300_000, 100_000);
            let script = place.file("rows.sql");
            io(inputs::sql(&script, rows))?;
            let line = Line::new(find("sqlite3")?, [":memory:"])?.reading(script);
            (format!("sqlite3, {rows} rows in memory"), line)
        }
        "jq" => {
            let (file, text) = json(place, pick(100_000_000, 15_000_000))?;
            let filter = "[.[] | select(.id % 7 == 0) | .name | length] | add";
            let line = Line::new(find("jq")?, [filter.into(), file.into_os_string()])?;
            (format!("jq over {text} of JSON"), line)
        }
        "cc1plus" => {
            let types = 2;
            let file = preprocessed(place, types)?;
            let arguments = [
                "-quiet",
                "-fpreprocessed",
                "-std=c++17",
                "-O1",
                "-o",
                "/dev/null",
            ];
            let mut line = Line::new(compiler()?, arguments)?;
            line.words.push(file.into_os_string());
            (
                format!("cc1plus -O1, every standard header and {types} types"),
                line,
            )
        }
        "python3" => {
            let rounds = pick(8, 4);
            let script = place.file("report.py");
            io(inputs::python(&script, rounds))?;
            let line = Line::new("/usr/bin/python3", [script])?
                .with("PYTHONMALLOC", "malloc")
                .with("PYTHONHASHSEED", "1");
            (
                "python3 with PYTHONMALLOC=malloc: json, objects, text".into(),
                line,
            )
        }
        "redis" => {
            let requests = pick(40_000, 20_000);
            let made = redis::Client::new(requests)?;
            let line = Line::new(find("redis-server")?, made.server_arguments(&place.folder))?;
            client = Some(made);
            (
                format!(
                    "redis-server (jemalloc), {requests} requests of each of 6 kinds, not pipelined"
                ),
                line,
            )
        }
        "xmllint" => {
            let bytes = pick(30_000_000, 10_000_000);
            let (file, schema) = (catalogue(place, bytes)?, place.file("catalogue.xsd"));
            io(inputs::schema(&schema))?;
            let arguments: [OsString; 4] = [
                "--noout".into(),
                "--schema".into(),
                schema.into_os_string(),
                file.into_os_string(),
            ];
            (
                format!("xmllint, {} MB against a schema", bytes / 1_000_000),
                Line::new(find("xmllint")?, arguments)?,
            )
        }
        "xmllint-parse" => {
            kind = Kind::Dense;
            let bytes = pick(60_000_000, 10_000_000);
            let file = catalogue(place, bytes)?;
            (
                format!("xmllint, {} MB, parsed only", bytes / 1_000_000),
                Line::new(find("xmllint")?, ["--noout".into(), file.into_os_string()])?,
            )
        }
        "serde_json" | "serde_json-tree" => {
            let (file, text) = json(place, pick(100_000_000, 15_000_000))?;
            let own = std::env::current_exe().map_err(|e| format!("failed to find myself: {e}"))?;
            let (mode, what) = match name {
                "serde_json" => (records::MODE, "read as records, sorted, written"),
                _ => {
                    kind = Kind::Dense;
                    (records::TREE_MODE, "read as a tree, dropped")
                }
            };
            (
                format!("Rust with serde_json, {text}, {what}"),
                Line::new(own, [mode.into(), file.into_os_string()])?,
            )
        }
        _ => return Err(format!("no workload {name}")),
    };
    Ok(Workload {
        what,
        line,
        kind,
        threads,
        client,
    })
}

/// The JSON file; jq and serde_json read the same.
fn json(place: &Place, bytes: u64) -> Result<(PathBuf, String), String> {
    let file = place.file("records.json");
    if !file.exists() {
        inputs::json(&file, bytes).map_err(|e| format!("failed to make input: {e}"))?;
    }
    Ok((file, format!("{} MB", bytes / 1_000_000)))
}

/// The XML file of this many bytes.
fn catalogue(place: &Place, bytes: u64) -> Result<PathBuf, String> {
    let file = place.file(&format!("catalogue-{bytes}.xml"));
    if !file.exists() {
        inputs::xml(&file, bytes).map_err(|e| format!("failed to make input: {e}"))?;
    }
    Ok(file)
}

/// A program of the search path.
fn find(name: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join(name))
        .find(|file| file.is_file())
        .ok_or(format!("{name} is not installed"))
}

fn compiler() -> Result<PathBuf, String> {
    let output = Command::new("c++")
        .arg("-print-prog-name=cc1plus")
        .output()
        .map_err(|e| format!("failed to run c++: {e}"))?;
    let path = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    match Path::new(&path).is_absolute() {
        true => Ok(path.into()),
        false => Err("c++ has no cc1plus".into()),
    }
}

fn preprocessed(place: &Place, types: u64) -> Result<PathBuf, String> {
    let (source, file) = (place.file("types.cc"), place.file("types.ii"));
    inputs::cpp(&source, types).map_err(|e| format!("failed to make input: {e}"))?;
    let status = Command::new("c++")
        .args(["-E", "-std=c++17", "-o"])
        .args([&file, &source])
        .status();
    match status {
        Ok(status) if status.success() => Ok(file),
        _ => Err("c++ -E failed".into()),
    }
}
