//! `leakscope check` and `snapshot` on a running process, beside gcore: for how
//! long it stands still, how fast it is judged, what that takes.

use crate::micro::Figure;
use crate::options::Options;
use crate::place::Place;
use crate::statistics::median;
use crate::tree;
use serde_json::Value;
use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

/// Bytes asked for each block.
const SIZE: u64 = 100;
/// Between two looks at a tool's memory.
const LOOK: Duration = Duration::from_millis(5);

/// All figures for a heap of so many million blocks.
pub fn figures(million: u64, options: &Options, place: &Place) -> Result<Vec<Figure>, String> {
    let program = place.build("live.c", &[])?;
    let mut target = Command::new(program)
        .args([(million * 1_000_000).to_string(), SIZE.to_string()])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|e| format!("failed to start: {e}"))?;
    let result = Live::new(&mut target).and_then(|live| measured(&live, million, options, place));
    // The end of its input lets it end; killed, it need not free anything.
    let _ = target.kill();
    target.wait().map_err(|e| format!("failed to wait: {e}"))?;
    result
}

/// The program with all its blocks.
struct Live {
    pid: u32,
    resident: f64,
    _input: ChildStdin,
    _output: Lines<BufReader<ChildStdout>>,
}

impl Live {
    fn new(target: &mut Child) -> Result<Live, String> {
        let mut input = target.stdin.take().ok_or("no input")?;
        let mut output = BufReader::new(target.stdout.take().ok_or("no output")?).lines();
        let mut ready = || match output.next() {
            Some(Ok(line)) if line == "ready" => Ok(()),
            _ => Err("the program ended early".to_owned()),
        };
        ready()?;
        writeln!(input).map_err(|e| format!("failed to write: {e}"))?;
        ready()?;
        let memory = tree::memory(target.id()).ok_or("the program is gone")?;
        Ok(Live {
            pid: target.id(),
            resident: memory.now as f64,
            _input: input,
            _output: output,
        })
    }
}

fn measured(
    live: &Live,
    million: u64,
    options: &Options,
    place: &Place,
) -> Result<Vec<Figure>, String> {
    let gib = live.resident / (1u64 << 30) as f64;
    let heap = format!("{million} M blocks of {SIZE} bytes, {gib:.1} GiB");
    let pid = live.pid.to_string();
    let turns = if options.quick { 1 } else { 3 };
    let mut figures = Vec::new();
    let mut add = |what: &str, value: Result<String, String>, bound: String| {
        figures.push(Figure {
            what: format!("{what}, {heap}"),
            value: value.unwrap_or_else(|why| format!("not measured: {why}")),
            bound,
        });
    };
    let gcore = gcore(&pid, place);
    let mut pauses = Vec::new();
    for mode in ["fork", "stop", "racing"] {
        let looks: Result<Vec<Look>, String> =
            (0..turns).map(|_| look(&pid, mode, place)).collect();
        let shown = looks.map(|looks| {
            let pick = |f: fn(&Look) -> f64| {
                median(looks.iter().map(f).collect::<Vec<_>>()).unwrap_or(0.0)
            };
            let (pause, seconds) = (pick(|l| l.pause), pick(|l| l.seconds));
            if mode == "fork" {
                pauses.push(pause);
            }
            format!(
                "paused {:.1} ms; {seconds:.2} s in all, {:.1} M blocks/s; leakscope's own memory \
                 {:.0} MB, {:.0} % of the process's",
                pause * 1e3,
                million as f64 / seconds,
                pick(|l| l.memory) / 1e6,
                pick(|l| l.memory) / live.resident * 100.0,
            )
        });
        let bound = match mode {
            "fork" => format!(
                "≤ {:.0} ms, ≥ 5 M blocks/s, ≤ {:.0} MB",
                25.0 * gib + 2.0,
                live.resident * 0.12 / 1e6 + 100.0
            ),
            "racing" => "0 ms".to_owned(),
            _ => String::new(),
        };
        add(&format!("`check --mode {mode}`"), shown, bound);
    }
    let shown = gcore.map(|seconds| {
        let ratio = pauses.first().map_or(0.0, |pause| seconds / pause);
        format!("{seconds:.2} s, {ratio:.0} times the pause of fork")
    });
    add(
        "gcore stops the process for",
        shown,
        "≥ 40× on 4 GB".to_owned(),
    );
    Ok(figures)
}

/// One check.
struct Look {
    seconds: f64,
    pause: f64,
    memory: f64,
}

fn look(pid: &str, mode: &str, place: &Place) -> Result<Look, String> {
    let report = place.file("check.json");
    let began = Instant::now();
    let mut child = Command::new(&place.leakscope)
        .args(["check", "--quiet", "--mode", mode, "-o"])
        .arg(&report)
        .arg(pid)
        .stdout(Stdio::null())
        .spawn()
        .map_err(|e| format!("failed to start leakscope: {e}"))?;
    let mut peak = 0;
    let status = loop {
        peak = tree::memory(child.id()).map_or(peak, |memory| peak.max(memory.peak));
        match child.try_wait() {
            Ok(None) => std::thread::sleep(LOOK),
            Ok(Some(status)) => break status,
            Err(e) => return Err(format!("failed to wait: {e}")),
        }
    };
    let seconds = began.elapsed().as_secs_f64();
    if !status.success() {
        return Err(format!("leakscope ended with {status}"));
    }
    let text = std::fs::read(&report).map_err(|e| format!("failed to read the report: {e}"))?;
    let report: Value =
        serde_json::from_slice(&text).map_err(|e| format!("failed to parse the report: {e}"))?;
    let pause = report.pointer("/processes/0/coverage/pause_seconds");
    Ok(Look {
        seconds,
        pause: pause
            .and_then(Value::as_f64)
            .ok_or("no pause in the report")?,
        memory: peak as f64,
    })
}

/// Seconds for which gcore stops the process: all of its time but gdb's start,
/// which is too short to matter here.
fn gcore(pid: &str, place: &Place) -> Result<f64, String> {
    let prefix = place.file("core");
    let began = Instant::now();
    let status = Command::new("gcore")
        .arg("-o")
        .arg(&prefix)
        .arg(pid)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .map_err(|e| format!("failed to start gcore: {e}"))?;
    let seconds = began.elapsed().as_secs_f64();
    let mut file = prefix.into_os_string();
    file.push(format!(".{pid}"));
    let _ = std::fs::remove_file(file);
    if status.success() {
        Ok(seconds)
    } else {
        Err(format!("gcore ended with {status}"))
    }
}
