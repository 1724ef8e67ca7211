//! The command `leakscope run`: statuses, streams, signals, refusals.

use std::path::Path;

use leakscope_e2e::report::functions;
use leakscope_e2e::run::{Done, Job};
use leakscope_e2e::{Fixture, Outcome, Section, build};
use leakscope_testkit::{Need, Target, need};
use libtest_mimic::Trial;

use crate::programs::{can_record, folder};
use crate::trial;

/// A test that needs nothing but what every recorded run needs.
type Case = (&'static str, fn() -> Outcome);

const CASES: [Case; 20] = [
    ("not_found", not_found),
    ("not_executable", not_executable),
    ("bad_option", bad_option),
    ("fail_on", fail_on),
    ("text_report", text_report),
    ("report_to_stdout", report_to_stdout),
    ("streams_pass_through", streams_pass_through),
    ("environment_options", environment_options),
    ("suppressions_round_trip", suppressions_round_trip),
    ("no_follow", no_follow),
    ("unasked_records", unasked_records),
    ("sampled", sampled),
    ("sampled_among_others", sampled_among_others),
    ("sampled_growing", sampled_growing),
    ("sampled_short_threads", sampled_short_threads),
    ("sampled_forks", sampled_forks),
    ("sampled_counts", sampled_counts),
    ("ids_are_stable", ids_are_stable),
    ("interrupt", interrupt),
    ("deleted_executable", deleted_executable),
];

pub fn trials() -> Vec<Trial> {
    CASES
        .into_iter()
        .map(|(name, test)| {
            trial(format!("command::{name}"), move || {
                if can_record() { test() } else { Ok(()) }
            })
        })
        .collect()
}

/// A fixture program, built.
fn program(name: &str) -> Result<Job, String> {
    let fixture = Fixture::read(&build::programs().join(name))?;
    let folder = folder();
    std::fs::create_dir_all(&folder).map_err(|e| format!("create {folder:?}: {e}"))?;
    Ok(Job::new([build::build(&fixture, &folder)?.path]))
}

/// `leakscope run OPTIONS -- …`, as a user calls it.
fn leakscope(options: &[&str], job: &Job) -> Result<Done, String> {
    let argv = job.leakscope_argv(options, None)?;
    Job {
        argv,
        ..job.clone()
    }
    .run()
}

fn ensure(good: bool, what: impl FnOnce() -> String) -> Outcome {
    if good { Ok(()) } else { Err(what()) }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// One sentence on stderr, with that status and word, and nothing on stdout.
fn refused(done: &Done, status: i32, word: &str) -> Outcome {
    let stderr = text(&done.stderr);
    ensure(
        done.code() == status && done.stdout.is_empty() && stderr.contains(word),
        || {
            format!(
                "status {}, not {status}, or no '{word}' in: {stderr}",
                done.code()
            )
        },
    )
}

fn not_found() -> Outcome {
    let missing = leakscope(&[], &Job::new(["no-such-program-anywhere"]))?;
    refused(&missing, 127, "no-such-program-anywhere")?;
    let missing = leakscope(&[], &Job::new(["/no/such/program"]))?;
    refused(&missing, 127, "/no/such/program")
}

fn not_executable() -> Outcome {
    refused(
        &leakscope(&[], &Job::new(["/etc/passwd"]))?,
        126,
        "/etc/passwd",
    )?;
    refused(&leakscope(&[], &Job::new(["/"]))?, 126, "/")
}

fn bad_option() -> Outcome {
    let job = Job::new(["true"]);
    refused(
        &leakscope(&["--no-such-option"], &job)?,
        125,
        "--no-such-option",
    )?;
    refused(
        &leakscope(&["--fail-on", "nonsense"], &job)?,
        125,
        "nonsense",
    )?;
    refused(
        &leakscope(&["--suppressions", "/no/such/file"], &job)?,
        125,
        "/no/such/file",
    )?;
    let nowhere = leakscope(&["-o", "/no/such/folder/x.json"], &job)?;
    ensure(nowhere.code() == 125, || {
        format!("status {}", nowhere.code())
    })
}

fn fail_on() -> Outcome {
    let job = program("end_return.c")?; // loses blocks, ends with 7
    for (options, status) in [
        (&["--fail-on", "definite"][..], 23),
        (&["--fail-on", "possible"], 7),
        (&["--fail-on", "possible,definite"], 23),
        (&["--fail-on", "definite", "--error-exitcode", "41"], 41),
        (&[], 7),
    ] {
        let done = leakscope(options, &job)?;
        ensure(done.code() == status, || {
            format!("{options:?}: status {}, not {status}", done.code())
        })?;
    }
    Ok(())
}

fn text_report() -> Outcome {
    let done = leakscope(&[], &program("site_free_site.c")?)?;
    let stderr = text(&done.stderr);
    ensure(done.stdout.is_empty(), || text(&done.stdout))?;
    for part in [
        "1,751 bytes in 17 blocks",
        "acquire_request",
        "site_free_site.c:",
        "release_request",
        "definitely lost",
        "never freed",
    ] {
        // The last is not said here, the others are.
        let wanted = part != "never freed";
        ensure(stderr.contains(part) == wanted, || {
            format!(
                "'{part}' is {}expected in:\n{stderr}",
                if wanted { "" } else { "not " }
            )
        })?;
    }
    let first = stderr.lines().next().unwrap_or_default();
    ensure(
        first.contains("Leaking") && first.contains("17 blocks"),
        || format!("the first line is no verdict: {first}"),
    )
}

fn report_to_stdout() -> Outcome {
    let done = leakscope(&["-o", "json=-", "--quiet"], &program("chain_4.c")?)?;
    let sections = Section::all(&text(&done.stdout))?;
    let loss = sections.first().map(|s| s.loss("definite"));
    ensure(loss == Some((287, 7)), || format!("{loss:?}"))
}

fn streams_pass_through() -> Outcome {
    let job = Job::new(["sh", "-c", "cat; echo error >&2; exit 11"]).stdin("line 1\nline 2\0end");
    let done = leakscope(&["--quiet"], &job)?;
    ensure(
        done.code() == 11
            && done.stdout == b"line 1\nline 2\0end"
            && text(&done.stderr).contains("error\n"),
        || {
            format!(
                "{} {:?} {}",
                done.code(),
                text(&done.stdout),
                text(&done.stderr)
            )
        },
    )
}

fn environment_options() -> Outcome {
    let job = program("end_return.c")?.env("LEAKSCOPE_OPTIONS", "--fail-on definite --quiet");
    let done = leakscope(&[], &job)?;
    let lines = text(&done.stderr).lines().count();
    ensure(done.code() == 23 && lines == 1, || {
        format!(
            "status {}, {lines} lines: {}",
            done.code(),
            text(&done.stderr)
        )
    })?;
    let done = leakscope(&["--error-exitcode", "29"], &job)?;
    ensure(done.code() == 29, || format!("status {}", done.code()))
}

/// What `--gen-suppressions` prints hides exactly what it was printed for.
fn suppressions_round_trip() -> Outcome {
    let job = program("site_two_sites.c")?;
    let done = leakscope(&["--gen-suppressions"], &job)?;
    let printed = text(&done.stderr);
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let file = folder.path().join("generated.supp");
    let blocks: Vec<&str> = printed
        .split_inclusive("\n}\n")
        .filter_map(|part| part.rfind("\n{\n").map(|at| &part[at + 1..]))
        .collect();
    ensure(blocks.len() == 2, || {
        format!("{} suppressions in:\n{printed}", blocks.len())
    })?;
    std::fs::write(&file, blocks.concat()).map_err(|e| e.to_string())?;
    let path = file.to_string_lossy();
    let recorded = job.run_recorded(&["--quiet", "--suppressions", &path, "--fail-on", "all"])?;
    let section = recorded.sections.first().ok_or("no section")?;
    ensure(
        section.loss("definite") == (0, 0) && section.loss("suppressed") == (940, 24),
        || section.shown(),
    )?;
    ensure(recorded.done.code() == 0, || {
        "a suppressed leak fails".to_owned()
    })
}

fn no_follow() -> Outcome {
    let recorded = program("end_fork.c")?.run_recorded(&["--quiet", "--follow", "none"])?;
    ensure(
        recorded.sections.len() == 1 && recorded.sections[0].loss("definite") == (301, 7),
        || format!("{} sections", recorded.sections.len()),
    )
}

/// Sampled estimates are near the truth (which the exact mode tests give),
/// and say that they are estimates.
/// Of kinds that nobody asked for, the largest records are listed; the sums
/// are of all.
fn unasked_records() -> Outcome {
    let job = program("stack_many_kept.c")?;
    for (options, all) in [(&["--quiet"][..], false), (&["--show", "all"], true)] {
        let recorded = job.run_recorded(options)?;
        let section = recorded.sections.first().ok_or("no section")?;
        ensure(section.loss("reachable") == (94_277, 4099), || {
            section.summary()
        })?;
        let listed: u64 = section
            .leaks()
            .iter()
            .filter_map(|l| l["blocks"].as_u64())
            .sum();
        let told = section
            .array("/notices")
            .iter()
            .any(|notice| notice["code"] == "records-not-listed");
        ensure(
            told != all && (listed == 4099) == all && listed >= 1000,
            || format!("{options:?}: {listed} blocks listed, notice: {told}"),
        )?;
    }
    Ok(())
}

fn sampled() -> Outcome {
    let recorded =
        program("hostile_many_blocks.c")?.run_recorded(&["--quiet", "--sample", "4096"])?;
    let section = recorded.sections.first().ok_or("no section")?;
    let every = section.number("/coverage/sampled_every_bytes");
    ensure(every == 4096, || format!("sampled every {every} bytes"))?;
    // About 7 800 samples: 6 standard errors are 7 % of the 32 MB.
    let (bytes, _) = section.loss("reachable");
    ensure((29_700_000..34_300_000).contains(&bytes), || {
        format!("{bytes} reachable bytes estimated, 31 999 400 in truth")
    })?;
    let peak = section.number("/heap/peak_bytes");
    ensure((29_700_000..34_300_000).contains(&peak), || {
        format!("a peak of {peak} bytes estimated, 31 999 400 in truth")
    })
}

/// A block that grows in place is drawn again, not twice.
fn sampled_growing() -> Outcome {
    let recorded = program("sampled_growing.c")?.run_recorded(&["--quiet", "--sample", "4096"])?;
    let section = recorded.sections.first().ok_or("no section")?;
    let (bytes, _) = section.loss("reachable");
    // About 3 900 samples: 6 standard errors are 10 % of the 16 MB.
    ensure((14_300_000..17_600_000).contains(&bytes), || {
        format!("{bytes} reachable bytes estimated, 15 930 000 in truth")
    })?;
    let (allocations, frees) = (
        section.number("/heap/allocations"),
        section.number("/heap/frees"),
    );
    ensure(allocations - frees == 30_001, || {
        format!("{allocations} allocations and {frees} frees leave 30 001")
    })
}

/// Threads that end before their first sample are in it all the same.
fn sampled_short_threads() -> Outcome {
    let recorded =
        program("sampled_short_threads.c")?.run_recorded(&["--quiet", "--sample", "64K"])?;
    let section = recorded.sections.first().ok_or("no section")?;
    // About 246 samples: 6 standard errors are 38 % of the 16 MB.
    let (bytes, _) = section.loss("definite");
    ensure((10_000_000..22_200_000).contains(&bytes), || {
        format!("{bytes} lost bytes estimated, 16 120 144 in truth")
    })
}

/// Children of one process do not all take the same sample.
fn sampled_forks() -> Outcome {
    let recorded = program("sampled_forks.c")?.run_recorded(&["--quiet", "--sample", "4K"])?;
    let mut estimates: Vec<u64> = recorded
        .sections
        .iter()
        .map(|s| s.loss("definite").0)
        .collect();
    ensure(estimates.len() == 32, || {
        format!("{} sections", estimates.len())
    })?;
    // About 310 samples: 6 standard errors are 34 % of the 1.26 MB.
    let all: u64 = estimates.iter().sum();
    ensure((830_000..1_690_000).contains(&all), || {
        format!("{all} lost bytes estimated, 1 261 793 in truth")
    })?;
    estimates.sort_unstable();
    estimates.dedup();
    ensure(estimates.len() > 3, || {
        format!("all estimate one of {estimates:?}")
    })
}

/// What is not in the sample is counted like the rest.
fn sampled_counts() -> Outcome {
    for name in [
        "alloc_realloc.c",
        "alloc_threads.c",
        "new_all_forms.cc",
        "new_containers.cc",
        "new_replaced.cc",
    ] {
        let job = program(name)?;
        let mut counts = Vec::new();
        for options in [&["--quiet"][..], &["--quiet", "--sample", "1G"]] {
            let recorded = job.run_recorded(options)?;
            let section = recorded.sections.first().ok_or("no section")?;
            let heap = ["allocations", "frees"];
            counts.push(heap.map(|what| section.number(&format!("/heap/{what}"))));
        }
        ensure(counts[0] == counts[1], || {
            format!("{name}: allocations and frees: {counts:?}")
        })?;
    }
    Ok(())
}

/// What blocks hold that were not sampled is not lost.
fn sampled_among_others() -> Outcome {
    let recorded = program("sampled_held.c")?.run_recorded(&["--quiet", "--sample", "4096"])?;
    let section = recorded.sections.first().ok_or("no section")?;
    let bytes = |kind: &str| section.loss(kind).0;
    let lost = bytes("definite") + bytes("indirect");
    // 6 standard errors, as above, of 3 700 and 8 160 samples.
    ensure((13_600_000..16_700_000).contains(&lost), || {
        format!("{lost} lost bytes estimated, 15 149 084 in truth")
    })?;
    let reachable = bytes("reachable");
    ensure((31_200_000..35_700_000).contains(&reachable), || {
        format!("{reachable} reachable bytes estimated, 33 432 254 in truth")
    })?;
    ensure(bytes("possible") < 100_000, || {
        format!("{} bytes possibly lost, none in truth", bytes("possible"))
    })
}

fn ids_are_stable() -> Outcome {
    let job = program("site_two_sites.c")?;
    let ids = |job: &Job| -> Result<Vec<String>, String> {
        let recorded = job.run_recorded(&["--quiet"])?;
        let leaks = recorded
            .sections
            .first()
            .ok_or("no section")?
            .leaks()
            .to_vec();
        Ok(leaks.iter().map(|l| l["id"].to_string()).collect())
    };
    let (first, second) = (ids(&job)?, ids(&job)?);
    ensure(first.len() == 2 && first == second, || {
        format!("{first:?} and {second:?}")
    })
}

/// Takes the signal where it waits for one, and nowhere else.
const INTERRUPTED: &str = r#"
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
static void handle(int number) { (void)number; }
int main(void) {
    sigset_t blocked, before;
    sigemptyset(&blocked);
    sigaddset(&blocked, SIGINT);
    sigprocmask(SIG_BLOCK, &blocked, &before);
    signal(SIGINT, handle);
    puts("ready");
    fflush(stdout);
    sigsuspend(&before);
    puts("got it");
    return 33;
}
"#;

/// Ctrl-C reaches the program once, which ends by it; the report comes.
fn interrupt() -> Outcome {
    if !need(Need::Compiler) {
        return Ok(());
    }
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let json = folder.path().join("report.json");
    let program = leakscope_testkit::compile_c(INTERRUPTED, &[]);
    let argv = Job::new([program.path()]).leakscope_argv(&["--quiet"], Some(&json))?;
    // A shell starts what runs in the background with SIGINT ignored, and so
    // everything below it.
    let mut command = std::process::Command::new("env");
    command.arg("--default-signal=INT").args(&argv);
    let mut target = Target::spawn(&mut command);
    target.expect_line("ready");
    target.signal(2);
    let line = target.line().unwrap_or_default();
    let status = target.wait();
    ensure(line == "got it" && status.code() == Some(33), || {
        format!("'{line}', {status}")
    })?;
    Section::all(&std::fs::read_to_string(&json).map_err(|e| format!("no report: {e}"))?)?;
    Ok(())
}

/// The executable is gone when names are looked for: they come from what is
/// still mapped, or a notice says why there are none.
fn deleted_executable() -> Outcome {
    let job = program("end_unlinks.c")?;
    let folder = tempfile::tempdir().map_err(|e| e.to_string())?;
    let copy = folder.path().join("copy");
    std::fs::copy(Path::new(&job.argv[0]), &copy).map_err(|e| e.to_string())?;
    let recorded = Job::new([&copy, &copy]).run_recorded(&["--quiet", "--show", "all"])?;
    let section = recorded.sections.first().ok_or("no section")?;
    ensure(section.loss("definite") == (713, 23), || section.shown())?;
    let named = section
        .leaks()
        .iter()
        .any(|l| functions(&l["stack"]).iter().any(|f| f == "lose"));
    ensure(named || !section.array("/notices").is_empty(), || {
        section.shown()
    })
}
