//! valgrind's memcheck, the reference for loss kinds.

use std::path::Path;
use std::process::{Command, Stdio};

/// What memcheck said of one process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Bytes and blocks by kind, in the order definite, indirect, possible,
    /// reachable.
    pub kinds: [(u64, u64); 4],
}

/// Kinds of [`Summary::kinds`], by leakscope's name and memcheck's words.
pub const KINDS: [(&str, &str); 4] = [
    ("definite", "definitely lost: "),
    ("indirect", "indirectly lost: "),
    ("possible", "possibly lost: "),
    ("reachable", "still reachable: "),
];

/// A definite loss record: direct blocks, direct and indirect bytes.
pub type Record = (u64, u64);

/// Runs the command under memcheck; one summary for each process that it
/// wrote about, in order of their start.
///
/// # Errors
/// When valgrind cannot be run.
pub fn summaries(argv: &[&Path], stdin: &[u8]) -> Result<Vec<Summary>, String> {
    let logs = run(argv, stdin, &["--verbose"], "--log-file")?;
    Ok(logs.iter().map(|log| summary(log)).collect())
}

/// Runs the command under memcheck; the definite loss records of its first
/// process, sorted.
///
/// # Errors
/// When valgrind cannot be run.
pub fn definite_records(argv: &[&Path], stdin: &[u8]) -> Result<Vec<Record>, String> {
    let logs = run(argv, stdin, &["--xml=yes"], "--xml-file")?;
    let log = logs.first().ok_or("memcheck wrote nothing")?;
    let mut records: Vec<Record> = log
        .split("<error>")
        .skip(1)
        .filter(|e| e.contains("<kind>Leak_DefinitelyLost</kind>"))
        .map(|e| (tag(e, "leakedblocks"), tag(e, "leakedbytes")))
        .collect();
    records.sort_unstable();
    Ok(records)
}

fn run(argv: &[&Path], stdin: &[u8], how: &[&str], log: &str) -> Result<Vec<String>, String> {
    let folder = tempfile::tempdir().map_err(|e| format!("make a folder: {e}"))?;
    let input = folder.path().join("stdin");
    std::fs::write(&input, stdin).map_err(|e| format!("write {input:?}: {e}"))?;
    let input = std::fs::File::open(&input).map_err(|e| format!("open the input: {e}"))?;
    let valgrind = Command::new("valgrind")
        .args(["--quiet", "--leak-check=full", "--show-leak-kinds=all"])
        // Frees at the end hide what leakscope shows; the stack's jumps of
        // some programs are large on purpose.
        .args(["--run-libc-freeres=no", "--run-cxx-freeres=no"])
        .args(["--max-stackframe=4000000", "--leak-resolution=high"])
        .args(how)
        .arg(format!("{log}={}/log.%p", folder.path().display()))
        .args(argv)
        .current_dir(folder.path())
        .stdin(input)
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|e| format!("run valgrind: {e}"))?;
    // It becomes the program by exec.
    let first = valgrind.id();
    // Reading to the end of stdout waits also for children that outlive
    // their parent.
    let output = valgrind.wait_with_output();
    output.map_err(|e| format!("run valgrind: {e}"))?;
    let mut logs = Vec::new();
    let entries = std::fs::read_dir(folder.path()).map_err(|e| format!("read the logs: {e}"))?;
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if let Some(pid) = name
            .strip_prefix("log.")
            .and_then(|p| p.parse::<u32>().ok())
        {
            let text = std::fs::read(entry.path()).map_err(|e| format!("read {name}: {e}"))?;
            logs.push((
                since(first, pid),
                String::from_utf8_lossy(&text).into_owned(),
            ));
        }
    }
    logs.sort_unstable();
    Ok(logs.into_iter().map(|(_, text)| text).collect())
}

/// Sorts process ids by their start: the kernel hands them out upwards and
/// begins again at the bottom when it has reached `pid_max`.
fn since(first: u32, pid: u32) -> u32 {
    pid.wrapping_sub(first)
}

fn summary(log: &str) -> Summary {
    let mut summary = Summary::default();
    for (slot, (_, words)) in summary.kinds.iter_mut().zip(KINDS) {
        let Some((_, rest)) = log.split_once(words) else {
            continue;
        };
        // `1,204 bytes in 37 blocks`
        let mut numbers = rest
            .split_whitespace()
            .filter_map(|w| w.replace(',', "").parse::<u64>().ok());
        *slot = (
            numbers.next().unwrap_or_default(),
            numbers.next().unwrap_or_default(),
        );
    }
    summary
}

fn tag(text: &str, name: &str) -> u64 {
    let open = format!("<{name}>");
    text.split_once(&open)
        .and_then(|(_, rest)| rest.split('<').next())
        .and_then(|n| n.parse().ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_are_in_order_when_the_ids_begin_again() {
        let mut pids = [301, 32_760, 32_767, 300];
        pids.sort_unstable_by_key(|pid| since(32_760, *pid));
        assert_eq!(pids, [32_760, 32_767, 300, 301]);
    }

    #[test]
    fn the_summary_is_read() {
        let log = "==7== LEAK SUMMARY:\n==7==    definitely lost: 1,713 bytes in 23 blocks\n\
                   ==7==    indirectly lost: 0 bytes in 0 blocks\n==7==      possibly lost: 7 bytes in 1 blocks\n";
        let expected = [(1713, 23), (0, 0), (7, 1), (0, 0)];
        assert_eq!(summary(log).kinds, expected);
        assert_eq!(summary("nothing").kinds, [(0, 0); 4]);
    }
}
