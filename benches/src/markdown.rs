//! The page: table, figures, command, date, machine.

use crate::compare::{Measured, Row};
use crate::micro::Figure;
use crate::options::Options;
use crate::place::Place;
use crate::statistics::median;
use crate::tools::Tool;
use crate::workloads::Kind;
use std::fmt::Write;
use std::process::Command;
use std::time::Duration;

const MIB: f64 = 1_048_576.0;

/// The whole page.
pub fn page(
    options: &Options,
    place: &Place,
    lines: &[Measured],
    figures: &[Figure],
    took: Duration,
) -> String {
    let mut page = String::from("# Performance of `leakscope run`\n\n");
    head(&mut page, options, place, took);
    if !lines.is_empty() {
        page.push_str(HOW);
        bounds(&mut page, lines);
        table(&mut page, lines);
    }
    if !figures.is_empty() {
        page.push_str("\n## Single figures\n\n| what | measured | bound |\n|---|---|---|\n");
        for figure in figures {
            add(
                &mut page,
                format_args!(
                    "| {} | {} | {} |\n",
                    figure.what, figure.value, figure.bound
                ),
            );
        }
    }
    page
}

const HOW: &str = "
Each round runs every program natively and under each tool in turn; a ratio is the median of the
rounds' own ratios to native (wall time with its range; CPU is user and system time of all
processes together; peak memory is the program's own resident peak, *beside* the largest other
process: supervisor or interpreter). *ns* is the wall time added for each allocation, on the thread
that makes it; of the native run, the time from one allocation to the next. *kept* is the size of the files left behind. leakscope's runs include the leak check at the end
and a JSON report; heaptrack's record only, its analysis is a second command. LeakSanitizer walks frame
pointers, which distributions' code does not keep, so most of its stacks end after a frame or two; the line
*true stacks* has it unwind as the others do (`fast_unwind_on_malloc=0`).
";

/// Writing to a string cannot fail.
fn add(page: &mut String, text: std::fmt::Arguments) {
    let _ = page.write_fmt(text);
}

fn head(page: &mut String, options: &Options, place: &Place, took: Duration) {
    let typed = match options.typed.is_empty() {
        true => String::new(),
        false => format!(" {}", public(&options.typed)),
    };
    add(
        page,
        format_args!(
            "Command: `cargo xtask bench{typed}`, {} rounds, {} s in all.  \n",
            options.runs,
            took.as_secs()
        ),
    );
    add(page, format_args!("Date: {}.  \n", date()));
    add(page, format_args!("Machine: {}.  \n", machine()));
    let tools = Tool::ALL
        .into_iter()
        .filter(|tool| options.tools.contains(tool));
    let versions: Vec<String> = tools.filter_map(|tool| tool.version(place)).collect();
    add(page, format_args!("Tools: {}.\n", versions.join(", ")));
}

/// Options without the paths of this machine.
fn public(typed: &str) -> String {
    let mut words = Vec::new();
    let mut all = typed.split(' ');
    while let Some(word) = all.next() {
        match word {
            "--leakscope" | "--markdown" => {
                all.next();
            }
            word => words.push(word),
        }
    }
    words.join(" ")
}

fn bounds(page: &mut String, lines: &[Measured]) {
    page.push_str("\n## Bounds\n\n| what | measured | bound |\n|---|---|---|\n");
    let of = |kind: Kind, tool: Tool| {
        let wanted = lines.iter().filter(move |line| line.kind == kind);
        let rows = wanted.flat_map(|line| line.rows.iter().map(move |row| (line.name, row)));
        let rows = rows.filter(move |(_, row)| row.tool == tool);
        rows.filter_map(|(name, row)| Some((name, row.wall_ratio?)))
            .collect::<Vec<_>>()
    };
    let mut say = |what: &str, value: Option<f64>, bound: Option<f64>| {
        let Some(value) = value else { return };
        let over = bound.is_some_and(|bound| value > bound);
        let verdict = if over { " **(above)**" } else { "" };
        let bound = bound.map_or("none".into(), |bound| format!("≤ {bound}×"));
        add(
            page,
            format_args!("| {what} | {value:.2}×{verdict} | {bound} |\n"),
        );
    };
    for (name, ratio) in of(Kind::Churn, Tool::Exact) {
        say(&format!("{name}, exact"), Some(ratio), Kind::Churn.bound());
    }
    for (name, ratio) in of(Kind::Depth, Tool::Exact) {
        say(&format!("{name}, exact"), Some(ratio), Kind::Depth.bound());
    }
    let real = of(Kind::Real, Tool::Exact);
    say(
        "real programs, exact, median",
        median(real.iter().map(|r| r.1)),
        Some(1.3),
    );
    let worst = real.iter().max_by(|a, b| a.1.total_cmp(&b.1));
    if let Some((name, ratio)) = worst {
        say(
            &format!("real programs, exact, slowest ({name})"),
            Some(*ratio),
            Kind::Real.bound(),
        );
    }
    for (name, ratio) in of(Kind::Dense, Tool::Exact) {
        let what = format!("{name}, exact (little but allocations)");
        say(&what, Some(ratio), Kind::Dense.bound());
    }
    let sampled: Vec<_> = [Kind::Churn, Kind::Depth, Kind::Real]
        .into_iter()
        .flat_map(|kind| of(kind, Tool::Sampled))
        .collect();
    say(
        "all of these, sampled, median",
        median(sampled.iter().map(|r| r.1)),
        Some(1.03),
    );
    let worst = sampled.iter().max_by(|a, b| a.1.total_cmp(&b.1));
    if let Some((name, ratio)) = worst {
        let what = format!("all of these, sampled, slowest ({name})");
        say(&what, Some(*ratio), Some(1.03));
    }
}

fn table(page: &mut String, lines: &[Measured]) {
    page.push_str(
        "\n## All tools\n\n| program | tool | wall | range | CPU | peak memory | beside | ns | kept | remarks |\n\
         |---|---|--:|--:|--:|--:|--:|--:|--:|---|\n",
    );
    for line in lines {
        match &line.what {
            Ok(what) => {
                let mut label = what.as_str();
                for row in &line.rows {
                    self::row(page, label, line.kind, row);
                    label = "";
                }
            }
            Err(why) => add(
                page,
                format_args!("| {} | | | | | | | | | not measured: {why} |\n", line.name),
            ),
        }
    }
}

fn row(page: &mut String, label: &str, kind: Kind, row: &Row) {
    let times = |value: Option<f64>| value.map_or("–".into(), |v| format!("{v:.2}×"));
    let mib = |value: Option<f64>| value.map_or(String::new(), |v| format!("{:.0} MiB", v / MIB));
    let native = row.tool == Tool::Native;
    let wall = match native {
        true => row.wall.map_or("–".into(), |wall| format!("{wall:.2} s")),
        false => times(row.wall_ratio),
    };
    let range = match row.wall_range {
        Some((least, most)) if !native && row.runs > 1 => format!("{least:.2}–{most:.2}"),
        _ => String::new(),
    };
    let cpu = if native {
        String::new()
    } else {
        times(row.cpu_ratio)
    };
    let peak = if native {
        mib(row.peak)
    } else {
        times(row.peak_ratio)
    };
    let nanoseconds = row
        .nanoseconds
        .map_or(String::new(), |ns| format!("{ns:.0}"));
    let kept = if native {
        String::new()
    } else {
        size(row.kept)
    };
    let mut remarks = row.remarks.clone();
    if let (Tool::Exact, Some(facts)) = (row.tool, row.facts) {
        remarks.push(format!("{:.2} M allocations", facts.allocations / 1e6));
    }
    if let (Tool::Exact, Some(ratio), Some(bound)) = (row.tool, row.wall_ratio, kind.bound())
        && ratio > bound
    {
        remarks.push(format!("above {bound}×"));
    }
    add(
        page,
        format_args!(
            "| {label} | {} | {wall} | {range} | {cpu} | {peak} | {} | {nanoseconds} | {kept} | {} |\n",
            row.tool.title(),
            mib(row.beside),
            remarks.join("; ")
        ),
    );
}

fn size(bytes: u64) -> String {
    match bytes {
        0..=1_023 => format!("{bytes} B"),
        1_024..=1_048_575 => format!("{} KiB", bytes >> 10),
        _ => format!("{} MiB", bytes >> 20),
    }
}

fn date() -> String {
    let output = Command::new("date").args(["-u", "+%Y-%m-%d"]).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    text.unwrap_or_default()
}

fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let info = read("/proc/cpuinfo");
    let model = info
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown CPU", |rest| {
            rest.trim_start_matches([' ', '\t', ':'])
        });
    let memory = read("/proc/meminfo");
    let kib: f64 = memory
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.split_whitespace().next()?.parse().ok())
        .unwrap_or(0.0);
    let virtual_machine = if info.contains(" hypervisor") {
        ", virtual machine"
    } else {
        ""
    };
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    let load = load.split(' ').next().unwrap_or_default();
    format!(
        "{cores} cores of {model}{virtual_machine}, {:.0} GiB, Linux {}, load at the end {load}",
        kib / MIB,
        kernel.trim()
    )
}
