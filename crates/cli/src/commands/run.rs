//! `leakscope run`: from options to a recipe, from its outcome to reports and
//! an exit status.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;

use leakscope_analysis::suppressions::{self, Candidate};
use leakscope_model::Report;
use leakscope_report::{Kinds, Options, selected};
use leakscope_session::{RunErrorKind, RunOptions, SymbolOptions};

use crate::args::{self, Follow, Format};
use crate::commands::delivery::{Delivery, Stream};
use crate::failure::{self, Failure};
use crate::progress::Progress;

/// Runs the program and reports.
///
/// # Errors
/// When leakscope itself failed, or the program could not be started.
pub fn run(args: args::Run) -> Result<u8, Failure> {
    let plan = Plan::new(args)?;
    let mut progress = Progress::new(plan.delivery.progress, plan.delivery.view.quiet);
    let outcome = leakscope_session::run(&plan.options, &mut |what| progress.show(what));
    progress.clear();
    let outcome = outcome.map_err(|error| Failure {
        status: match error.kind {
            RunErrorKind::NotFound => failure::NOT_FOUND,
            RunErrorKind::NotExecutable => failure::NOT_EXECUTABLE,
            RunErrorKind::Own => failure::OWN,
        },
        text: error.text,
    })?;
    let delivery = &plan.delivery;
    let suppressions = match plan.gen_suppressions {
        true => ready_suppressions(&outcome.report, &delivery.view),
        false => String::new(),
    };
    delivery.deliver(&outcome.report, &suppressions)?;
    let status = delivery
        .found(&outcome.report)
        .unwrap_or_else(|| own_status(outcome.wait_status));
    // The process ends here, and taking millions of names apart one by one
    // would make the user wait for nothing.
    std::mem::forget(outcome);
    Ok(status)
}

/// The program's status as a shell gives it: its exit status, or 128+N when
/// signal N killed it.
fn own_status(wait_status: i32) -> u8 {
    // wait(2): the low seven bits are the signal, the next byte the status.
    let signal = wait_status & 0x7f;
    let status = if signal != 0 {
        128 + signal
    } else {
        (wait_status >> 8) & 0xff
    };
    u8::try_from(status).unwrap_or(u8::MAX)
}

/// Everything that is decided before the program starts.
struct Plan {
    options: RunOptions,
    delivery: Delivery,
    gen_suppressions: bool,
}

impl Plan {
    fn new(args: args::Run) -> Result<Plan, Failure> {
        let argv = args.argv;
        let args = args.options;
        if args.gen_suppressions && args.report.format != Format::Text {
            return Err(Failure::own(
                "--gen-suppressions needs --format text; write JSON to a file with -o",
            ));
        }
        let show = args.report.show;
        let delivery = Delivery::new(args.report, Stream::Stderr)?;
        let delivery = delivery.showing(args.fds, !args.no_free_sites, &args.source_root);
        // Other formats carry every record, so every record wants its names.
        let named = if delivery.writes_everything() {
            Kinds::ALL
        } else {
            show
        };
        Ok(Plan {
            options: RunOptions {
                argv,
                follow: match args.follow {
                    Follow::Children => leakscope_session::Follow::Children,
                    Follow::None => leakscope_session::Follow::None,
                },
                max_depth: args.max_depth,
                sample: args.sample,
                mmap_min: (!args.no_mmap).then_some(args.mmap_min),
                at_exec: args.at_exec,
                free_sites: !args.no_free_sites,
                resolution: args.leak_resolution,
                heuristics: args.interior_heuristics,
                suppressions: read_suppressions(&args.suppressions)?,
                builtin_suppressions: !args.no_builtin_suppressions,
                symbols: SymbolOptions {
                    no_symbols: args.no_symbols,
                    debug_dirs: args.debug_dir,
                    source_root: args.source_root,
                    debuginfod_urls: text_variable("DEBUGINFOD_URLS"),
                    debuginfod_cache: debuginfod_cache(|name| std::env::var_os(name)),
                },
                show: show.list(),
                symbolise: named.list(),
            },
            delivery,
            gen_suppressions: args.gen_suppressions,
        })
    }
}

/// Reads the files and checks that they can be understood, before anything
/// runs.
fn read_suppressions(files: &[PathBuf]) -> Result<Vec<(String, Vec<u8>)>, Failure> {
    files
        .iter()
        .map(|path| {
            let name = path.display().to_string();
            let bytes = std::fs::read(path)
                .map_err(|e| Failure::own(format!("cannot read suppressions {name}: {e}")))?;
            suppressions::parse(&bytes, &name).map_err(|e| Failure::own(format!("cannot {e}")))?;
            Ok((name, bytes))
        })
        .collect()
}

/// A suppression for each record that is shown, without repetitions.
fn ready_suppressions(report: &Report, view: &Options) -> String {
    let mut seen = BTreeSet::new();
    let mut out = String::new();
    for process in &report.processes {
        let shown = view.top.unwrap_or(usize::MAX);
        for leak in selected(process, view).take(shown) {
            let record = Candidate {
                frames: &leak.stack,
                kind: leak.kind,
                family: leak.family,
            };
            let name = format!("leakscope-{}", leak.id);
            if let Some(text) = suppressions::generate(&record, &name)
                && seen.insert(text.clone())
            {
                out.push('\n');
                out.push_str(&text);
            }
        }
    }
    out
}

fn text_variable(name: &str) -> String {
    std::env::var_os(name).map_or(String::new(), |v| v.to_string_lossy().into_owned())
}

/// Where elfutils' client keeps what it downloaded, so that it is shared.
fn debuginfod_cache(variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let set = |name| variable(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("DEBUGINFOD_CACHE_PATH")
        .or_else(|| Some(set("XDG_CACHE_HOME")?.join("debuginfod_client")))
        .or_else(|| Some(set("HOME")?.join(".cache/debuginfod_client")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_programs_status_is_passed_on() {
        let table = [
            (0, 0),
            (3 << 8, 3),
            (255 << 8, 255),
            (11, 139),
            (9, 137),
            (0x80 | 6, 134),
        ];
        for (wait_status, status) in table {
            assert_eq!(own_status(wait_status), status, "{wait_status:#x}");
        }
    }

    #[test]
    fn the_cache_is_the_one_of_elfutils() {
        let cache = |set: &'static [(&str, &str)]| {
            debuginfod_cache(|name| {
                let found = set.iter().find(|(n, _)| *n == name);
                found.map(|(_, v)| OsString::from(v))
            })
        };
        assert_eq!(cache(&[]), None);
        assert_eq!(
            cache(&[("HOME", "/home/ada"), ("XDG_CACHE_HOME", "")]),
            Some("/home/ada/.cache/debuginfod_client".into())
        );
        assert_eq!(
            cache(&[("HOME", "/home/ada"), ("XDG_CACHE_HOME", "/c")]),
            Some("/c/debuginfod_client".into())
        );
        assert_eq!(
            cache(&[("DEBUGINFOD_CACHE_PATH", "/d"), ("HOME", "/h")]),
            Some("/d".into())
        );
    }
}
