//! The test of one fixture program: run it without and with leakscope, and
//! compare everything that its header promises.

use std::path::Path;

use serde_json::Value;

use crate::expect::{Fixture, Loss};
use crate::report::{functions, stack_fits};
use crate::run::{Done, Job, Recorded};
use crate::{Outcome, Section, build};

/// Options that name every record.
const ALL: [&str; 5] = ["--quiet", "--show", "all", "--top", "0"];

/// Builds the program in `folder`, runs it natively and recorded, compares.
///
/// # Errors
/// Everything that differs, with the command to see it again.
pub fn fixture(fixture: &Fixture, folder: &Path) -> Outcome {
    let built = build::build(fixture, folder)?;
    let job = Job::new([&built.path]);
    let native = job.run()?;
    let exit = native_exit(&native);
    let wanted = fixture.get("expect-exit").unwrap_or("0");
    if exit != wanted {
        return Err(format!(
            "the program itself ended by {exit}, not {wanted}: the fixture is wrong here"
        ));
    }
    let recorded = job.run_recorded(&ALL)?;
    let mut wrong = differences(fixture, &native, &recorded);
    let mut again = recorded.again.clone();
    for (options, loss) in &fixture.with_options {
        let mut all = ALL.to_vec();
        all.extend(options.split_whitespace());
        let other = job.run_recorded(&all)?;
        match other.sections.first() {
            Some(section) => {
                let before = wrong.len();
                compare_loss(section, loss, options, &mut wrong);
                if wrong.len() > before {
                    again = other.again.clone();
                }
            }
            None => wrong.push(format!("no section with {options}")),
        }
    }
    if wrong.is_empty() {
        return Ok(());
    }
    let shown: Vec<String> = recorded
        .sections
        .iter()
        .take(4)
        .enumerate()
        .map(|(i, s)| format!("section {i}:\n{}", s.shown()))
        .collect();
    let stderr = String::from_utf8_lossy(&recorded.done.stderr);
    Err(format!(
        "{}\n{}stderr: {}\nagain: {again}",
        wrong.join("\n"),
        shown.concat(),
        stderr.trim_end()
    ))
}

fn native_exit(done: &Done) -> String {
    use std::os::unix::process::ExitStatusExt;
    match done.status.signal() {
        Some(number) => format!("signal {}", signal_name(number)),
        None => done.code().to_string(),
    }
}

/// Names of the signals that fixtures end by (numbers from signal(7)).
fn signal_name(number: i32) -> String {
    match number {
        6 => "SIGABRT".to_owned(),
        9 => "SIGKILL".to_owned(),
        11 => "SIGSEGV".to_owned(),
        15 => "SIGTERM".to_owned(),
        31 => "SIGSYS".to_owned(),
        other => other.to_string(),
    }
}

/// Compares what the header says of the first run.
fn differences(fixture: &Fixture, native: &Done, recorded: &Recorded) -> Vec<String> {
    let mut wrong = Vec::new();
    if recorded.done.code() != native.code() {
        wrong.push(format!(
            "exit status is {}, without leakscope {}",
            recorded.done.code(),
            native.code()
        ));
    }
    let stdout = match fixture.get("expect-stdout") {
        Some(text) => text.replace("\\n", "\n").into_bytes(),
        None => native.stdout.clone(),
    };
    if recorded.done.stdout != stdout {
        wrong.push(format!(
            "stdout is {:?}, not {:?}",
            String::from_utf8_lossy(&recorded.done.stdout),
            String::from_utf8_lossy(&stdout)
        ));
    }
    let sections = &recorded.sections;
    for (index, loss) in &fixture.sections {
        match sections.get(*index) {
            Some(section) => {
                compare_loss(section, loss, &format!("section {index}"), &mut wrong);
            }
            None => wrong.push(format!("no section {index}")),
        }
    }
    if let Some(loss) = &fixture.any {
        let fits = |section: &Section| {
            let mut misses = Vec::new();
            compare_loss(section, loss, "", &mut misses);
            misses.is_empty()
        };
        if !sections.iter().any(fits) {
            wrong.push(format!("no section is {loss:?}"));
        }
    }
    if let Some(count) = number(fixture.get("expect-processes"))
        && sections.len() as u64 != count
    {
        wrong.push(format!("{} sections, not {count}", sections.len()));
    }
    if let Some(section) = sections.first() {
        section_details(fixture, section, &mut wrong);
    }
    if let Some(word) = fixture.get("expect-notice") {
        let named = |notice: &Value| {
            let says = |key: &str| notice[key].as_str().is_some_and(|t| t.contains(word));
            says("code") || says("message")
        };
        if !sections
            .iter()
            .any(|s| s.array("/notices").iter().any(named))
        {
            wrong.push(format!("no notice speaks of '{word}'"));
        }
    }
    wrong
}

fn section_details(fixture: &Fixture, section: &Section, wrong: &mut Vec<String>) {
    // With a pattern, some record of the worst kind must have the stack.
    let worst = |kind: &str| section.leaks().iter().find(|l| l["kind"] == kind);
    let record = ["definite", "possible", "indirect", "reachable"]
        .into_iter()
        .find_map(worst)
        .unwrap_or(&Value::Null);
    if let Some(pattern) = fixture.get("expect-stack")
        && !section
            .leaks()
            .iter()
            .any(|l| l["kind"] == record["kind"] && stack_fits(&l["stack"], pattern))
    {
        wrong.push(format!("no {} stack is {pattern}", record["kind"]));
    }
    if fixture.get("expect-cut").is_some()
        && !record["stack"]
            .as_array()
            .is_some_and(|s| s.iter().any(|f| f["cut"] == true))
    {
        wrong.push("the stack is not marked as cut".to_owned());
    }
    if fixture.get("expect-cycle").is_some() && !section.leaks().iter().any(|l| l["cycle"] == true)
    {
        wrong.push("no record leads a cycle".to_owned());
    }
    if let Some(function) = fixture.get("expect-free-site") {
        let site = &record["free_sites"][0]["stack"];
        let found = functions(site).into_iter().next();
        let found = found.as_deref().unwrap_or("none");
        if found != function {
            wrong.push(format!("the usual free site is {found}, not {function}"));
        }
    }
    if let Some(consistency) = fixture.get("expect-consistency")
        && section.at("/coverage/consistency") != consistency
    {
        let found = section.at("/coverage/consistency");
        wrong.push(format!("the picture is {found}, not {consistency}"));
    }
    for (name, count) in pairs(fixture.get("expect-totals")) {
        let found = section.number(&format!("/heap/{name}"));
        if Ok(found) != count.parse() {
            wrong.push(format!("{found} {name}, not {count}"));
        }
    }
    compare_errors(fixture, section, wrong);
    if let Some(count) = number(fixture.get("expect-fds")) {
        compare_fds(section, count, wrong);
    }
    if let Some(pattern) = fixture.get("expect-fd-stack")
        && !section
            .errors("fd-leak")
            .any(|e| stack_fits(&e["stack"], pattern))
    {
        wrong.push(format!("no descriptor's stack is {pattern}"));
    }
    for (kind, amount) in pairs(fixture.get("expect-mappings")) {
        let of_kind = section
            .array("/mappings")
            .iter()
            .filter(|m| m["kind"] == kind);
        let found = of_kind.fold((0, 0), |sum, m| {
            let number = |name: &str| m[name].as_u64().unwrap_or(0);
            (sum.0 + number("bytes"), sum.1 + number("count"))
        });
        if format!("{}/{}", found.0, found.1) != amount {
            wrong.push(format!(
                "{kind} mappings are {}/{}, not {amount}",
                found.0, found.1
            ));
        }
    }
    if let Some(text) = fixture.get("expect-records") {
        let records = section.leaks();
        let good = match text.split_once('=') {
            Some((">", least)) => least.parse().is_ok_and(|n| records.len() >= n),
            Some((kind, count)) => {
                let of_kind = records.iter().filter(|r| r["kind"] == kind).count();
                count.parse() == Ok(of_kind)
            }
            None => false,
        };
        if !good {
            wrong.push(format!("{} records, not {text}", records.len()));
        }
    }
}

/// Wrong releases: exactly those named.
fn compare_errors(fixture: &Fixture, section: &Section, wrong: &mut Vec<String>) {
    let expected: Vec<(&str, &str)> = pairs(fixture.get("expect-errors")).collect();
    for code in ["double-free", "invalid-free", "mismatched-free"] {
        let wanted = expected.iter().find(|(c, _)| *c == code);
        let wanted: u64 = wanted.and_then(|(_, n)| n.parse().ok()).unwrap_or(0);
        let found: u64 = section
            .errors(code)
            .map(|e| e["count"].as_u64().unwrap_or(0))
            .sum();
        if found != wanted {
            wrong.push(format!("{found} {code}, not {wanted}"));
        }
    }
}

fn compare_fds(section: &Section, wanted: u64, wrong: &mut Vec<String>) {
    let found: u64 = section
        .errors("fd-leak")
        .map(|e| e["count"].as_u64().unwrap_or(0))
        .sum();
    if found != wanted {
        wrong.push(format!("{found} open descriptors, not {wanted}"));
    }
}

fn compare_loss(section: &Section, loss: &Loss, what: &str, wrong: &mut Vec<String>) {
    for (kind, amount) in &loss.0 {
        let (bytes, blocks) = section.loss(kind);
        if !amount.fits(bytes, blocks) {
            wrong.push(format!(
                "{what}: {kind} is {bytes}/{blocks}, not {amount:?}"
            ));
        }
    }
}

fn number(text: Option<&str>) -> Option<u64> {
    text.and_then(|t| t.parse().ok())
}

fn pairs(text: Option<&str>) -> impl Iterator<Item = (&str, &str)> {
    text.unwrap_or_default()
        .split_whitespace()
        .filter_map(|w| w.split_once('='))
}
