//! The programs of the table.

use crate::command::Line;
use crate::inputs;
use crate::options::Options;
use crate::place::Place;
use crate::redis;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The harness itself is the Rust program: `leakscope-bench JSON_MODE FILE`.
pub const JSON_MODE: &str = "count-json";

/// What `--only` may name.
pub const NAMES: [&str; 12] = [
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
];

/// What the bound of a line is.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Nothing but allocations.
    Churn,
    /// Deep stacks.
    Depth,
    /// A program that people run.
    Real,
}

impl Kind {
    /// The most that exact recording may cost, as a ratio of wall time.
    pub fn bound(self) -> f64 {
        match self {
            Kind::Churn => 2.2,
            Kind::Depth => 1.6,
            Kind::Real => 2.0,
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
            kind = Kind::Churn;
            let asked: usize = name[6..].parse().unwrap_or(1);
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
            kind = Kind::Depth;
            let (strings, rounds) = match name {
                "depth-60" => (200_003, pick(5, 2)),
                _ => (1000, pick(1500, 300)),
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
            let script = place.file("dict.py");
            io(inputs::python(&script, rounds))?;
            let line = Line::new("/usr/bin/python3", [script])?
                .with("PYTHONMALLOC", "malloc")
                .with("PYTHONHASHSEED", "1");
            (
                "python3 with PYTHONMALLOC=malloc, dictionaries and strings".into(),
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
            let file = place.file("catalogue.xml");
            let bytes = pick(60_000_000, 15_000_000);
            io(inputs::xml(&file, bytes))?;
            let line = Line::new(find("xmllint")?, ["--noout".into(), file.into_os_string()])?;
            (format!("xmllint, {} MB", bytes / 1_000_000), line)
        }
        "serde_json" => {
            let (file, text) = json(place, pick(100_000_000, 15_000_000))?;
            let own = std::env::current_exe().map_err(|e| format!("failed to find myself: {e}"))?;
            let line = Line::new(own, [JSON_MODE.into(), file.into_os_string()])?;
            (format!("Rust with serde_json, {text} as a tree"), line)
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

/// The Rust program: reads a file as a tree, counts strings and numbers.
///
/// # Errors
/// When the file is no JSON.
pub fn count_json(path: &str) -> Result<(), String> {
    let text = std::fs::read(path).map_err(|e| format!("failed to read {path}: {e}"))?;
    let tree: Value =
        serde_json::from_slice(&text).map_err(|e| format!("failed to parse {path}: {e}"))?;
    let (mut strings, mut numbers) = (0_u64, 0_u64);
    let mut next = vec![&tree];
    while let Some(value) = next.pop() {
        match value {
            Value::String(text) => strings += text.len() as u64,
            Value::Number(_) => numbers += 1,
            Value::Array(list) => next.extend(list),
            Value::Object(map) => next.extend(map.values()),
            Value::Null | Value::Bool(_) => {}
        }
    }
    println!("{strings} {numbers}");
    Ok(())
}

/// The JSON file; jq and serde_json read the same.
fn json(place: &Place, bytes: u64) -> Result<(PathBuf, String), String> {
    let file = place.file("records.json");
    if !file.exists() {
        inputs::json(&file, bytes).map_err(|e| format!("failed to make input: {e}"))?;
    }
    Ok((file, format!("{} MB", bytes / 1_000_000)))
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
