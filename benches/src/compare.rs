//! The table: every workload under every tool, in turns.

use crate::options::Options;
use crate::place::Place;
use crate::run::{self, End, Run};
use crate::statistics::median;
use crate::tools::{self, Facts, Tool};
use crate::workloads::{self, Kind, Workload};
use std::fs::File;
use std::process::Stdio;
use std::time::Duration;

/// Seconds of one line after which a peer takes no further turn; leakscope and
/// native take all of them.
const PATIENCE: f64 = 10.0;

/// One workload, measured.
pub struct Measured {
    /// As `--only` knows it.
    pub name: &'static str,
    /// What it does, or why it could not be measured.
    pub what: Result<String, String>,
    /// Which bound holds.
    pub kind: Kind,
    /// One row for each tool, native first.
    pub rows: Vec<Row>,
}

/// One tool's row.
pub struct Row {
    /// The tool.
    pub tool: Tool,
    /// How often it ran to its proper end.
    pub runs: usize,
    /// Median seconds.
    pub wall: Option<f64>,
    /// Median of the rounds' ratios of wall time to native.
    pub wall_ratio: Option<f64>,
    /// Least and greatest of them.
    pub wall_range: Option<(f64, f64)>,
    /// Likewise of processor time.
    pub cpu_ratio: Option<f64>,
    /// Likewise of the program's peak memory.
    pub peak_ratio: Option<f64>,
    /// Peak bytes of the program itself.
    pub peak: Option<f64>,
    /// Peak bytes of the largest process beside it.
    pub beside: Option<f64>,
    /// Nanoseconds more for each allocation, on the thread that makes it; of
    /// the native run, from one allocation to the next.
    pub nanoseconds: Option<f64>,
    /// Bytes of files left behind.
    pub kept: u64,
    /// Allocations, for leakscope's exact row.
    pub facts: Option<Facts>,
    /// What went wrong, in the order in which it did.
    pub remarks: Vec<String>,
}

/// A tool's runs; none for a round that it did not take part in.
struct Turns {
    tool: Tool,
    runs: Vec<Option<Run>>,
    kept: u64,
    facts: Option<Facts>,
    remarks: Vec<String>,
    spent: f64,
    /// A run had to be ended: the next would too.
    hopeless: bool,
}

/// Measures all lines that were asked for.
///
/// # Errors
/// Nothing that concerns one line only: that is in the line.
pub fn all(options: &Options, place: &Place) -> Result<Vec<Measured>, String> {
    let names = workloads::NAMES.into_iter();
    let names = names.filter(|name| options.wants(name));
    Ok(names.map(|name| one(name, options, place)).collect())
}

fn one(name: &'static str, options: &Options, place: &Place) -> Measured {
    eprint!("{name}:");
    let made = workloads::make(name, options, place);
    let measured = match made {
        Ok(workload) => Measured {
            name,
            rows: rows(&workload, options, place),
            kind: workload.kind,
            what: Ok(workload.what),
        },
        Err(why) => Measured {
            name,
            what: Err(why),
            kind: Kind::Real,
            rows: Vec::new(),
        },
    };
    eprintln!();
    measured
}

fn rows(workload: &Workload, options: &Options, place: &Place) -> Vec<Row> {
    let mut tools = vec![Tool::Native];
    tools.extend(options.tools.iter().filter(|tool| **tool != Tool::Native));
    let mut turns: Vec<Turns> = tools.into_iter().map(Turns::new).collect();
    // One run that does not count brings files into memory and shows what is
    // to be expected.
    let (first, expected) = once(workload, Tool::Native, options, place);
    for round in 0..options.runs {
        for turn in &mut turns {
            turn.take(round, workload, options, place, (&first.end, &expected));
        }
    }
    let natives = turns.first().map(|turn| turn.runs.clone());
    let natives = natives.unwrap_or_default();
    let exact = turns.iter().find_map(|turn| turn.facts);
    let allocations = exact.map(|facts| facts.allocations);
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let parallel = workload.threads.min(cores) as f64;
    turns
        .into_iter()
        .map(|turn| turn.row(&natives, allocations.map(|n| n / parallel)))
        .collect()
}

impl Turns {
    fn new(tool: Tool) -> Turns {
        Turns {
            tool,
            runs: Vec::new(),
            kept: 0,
            facts: None,
            remarks: Vec::new(),
            spent: 0.0,
            hopeless: false,
        }
    }

    fn take(
        &mut self,
        round: usize,
        workload: &Workload,
        options: &Options,
        place: &Place,
        expected: (&End, &[u8]),
    ) {
        let always = self.tool == Tool::Native || self.tool.ours();
        let tired = !always && (self.spent > PATIENCE || round >= 2);
        if self.hopeless || round > 0 && tired {
            self.runs.push(None);
            return;
        }
        eprint!(" {}", self.tool.name());
        tools::sweep(place);
        let (run, output) = once(workload, self.tool, options, place);
        if let Some(remark) = remark(&run.end, expected.0) {
            self.note(remark);
        } else if self.tool.quiet() && output != expected.1 {
            self.note("changed the program's output".into());
        }
        if self.tool.ours() {
            match tools::facts(place) {
                Ok(facts) if facts.dropped > 0.0 => {
                    self.note(format!("{} events dropped", facts.dropped));
                    self.facts = Some(facts);
                }
                Ok(facts) => self.facts = Some(facts),
                Err(why) => self.note(why),
            }
        }
        self.hopeless = matches!(run.end, End::TooLong(_) | End::TooMuch);
        self.kept = tools::sweep(place);
        self.spent += if run.wall.is_finite() { run.wall } else { 0.0 };
        self.runs.push(Some(run));
    }

    fn note(&mut self, remark: String) {
        if !self.remarks.contains(&remark) {
            self.remarks.push(remark);
        }
    }

    fn row(self, natives: &[Option<Run>], allocations: Option<f64>) -> Row {
        // A run that crashed early is no fast one.
        let good = |run: &Run| matches!(run.end, End::Status(status) if status < 128);
        let pairs: Vec<(&Run, &Run)> = natives
            .iter()
            .zip(&self.runs)
            .filter_map(|(native, run)| Some((native.as_ref()?, run.as_ref()?)))
            .filter(|(native, run)| good(native) && good(run))
            .collect();
        let ratio = |of: fn(&Run) -> f64| median(pairs.iter().map(|(n, r)| of(r) / of(n)));
        let each = |of: fn(&Run) -> f64| median(pairs.iter().map(|(_, r)| of(r)));
        let walls = pairs.iter().map(|(n, r)| r.wall / n.wall);
        let range = walls.fold(None, |range: Option<(f64, f64)>, wall| {
            let (least, most) = range.unwrap_or((wall, wall));
            Some((least.min(wall), most.max(wall)))
        });
        let native = self.tool == Tool::Native;
        let more = median(pairs.iter().map(|(n, r)| match native {
            true => n.wall,
            false => r.wall - n.wall,
        }));
        Row {
            tool: self.tool,
            runs: pairs.len(),
            wall: each(|run| run.wall),
            wall_ratio: ratio(|run| run.wall),
            wall_range: range,
            cpu_ratio: ratio(|run| run.cpu),
            peak_ratio: ratio(|run| run.peak as f64),
            peak: each(|run| run.peak as f64),
            beside: each(|run| run.beside as f64).filter(|bytes| *bytes > 0.0),
            nanoseconds: (more.zip(allocations))
                .filter(|(_, n)| *n > 0.0)
                .map(|(more, n)| more * 1e9 / n),
            kept: self.kept,
            facts: self.facts,
            remarks: self.remarks,
        }
    }
}

/// What is to be said about an end; nothing when it is as native.
fn remark(end: &End, expected: &End) -> Option<String> {
    match end {
        end if end == expected => None,
        End::TooLong(limit) => Some(format!("> {limit} s, ended")),
        End::TooMuch => Some("more than 10 GiB, ended".into()),
        End::Failed(why) => Some(why.clone()),
        End::Status(status) => Some(match status {
            132 => "crashed: SIGILL".into(),
            134 => "crashed: SIGABRT".into(),
            135 => "crashed: SIGBUS".into(),
            137 => "killed: SIGKILL".into(),
            139 => "crashed: SIGSEGV".into(),
            status if *status > 128 => format!("crashed: signal {}", status - 128),
            status => format!("status {status} instead of the program's"),
        }),
    }
}

/// One run and what the program printed.
fn once(workload: &Workload, tool: Tool, options: &Options, place: &Place) -> (Run, Vec<u8>) {
    let line = tool.wrap(&workload.line, place);
    let (output, errors) = (place.file("output"), place.file("errors"));
    let stdout = match (&workload.client, File::create(&output)) {
        // A server's output has times in it.
        (Some(_), _) => Stdio::null(),
        (None, Ok(file)) => file.into(),
        (None, Err(e)) => {
            return (
                Run::failed(format!("failed to make a file: {e}")),
                Vec::new(),
            );
        }
    };
    let running = match run::start(&line, stdout, &errors, options.limit) {
        Ok(running) => running,
        Err(why) => return (Run::failed(why), Vec::new()),
    };
    let driven = match &workload.client {
        Some(client) => client.drive(running.child.id(), Duration::from_secs(options.limit)),
        None => Ok(()),
    };
    let mut run = running.wait(tool.direct());
    if let (Err(why), End::Status(0)) = (driven, &run.end) {
        run.end = End::Failed(why);
    }
    let printed = match workload.client {
        Some(_) => Vec::new(),
        None => std::fs::read(&output).unwrap_or_default(),
    };
    (run, printed)
}
