//! Every program in `fixtures/programs`.

use std::path::{Path, PathBuf};

use leakscope_e2e::{Fixture, Outcome, build, compare, memcheck};
use leakscope_testkit::{Need, need};
use libtest_mimic::Trial;

use crate::trial;

pub fn trials() -> Vec<Trial> {
    let fixtures = match Fixture::all() {
        Ok(fixtures) => fixtures,
        Err(e) => return vec![trial("program".to_owned(), move || Err(e))],
    };
    let mut trials = Vec::new();
    for fixture in fixtures {
        if fixture.get("memcheck").is_none() {
            let fixture = fixture.clone();
            let name = format!("memcheck::{}", fixture.name);
            trials.push(trial(name, move || agrees_with_memcheck(&fixture)));
        }
        let name = format!("program::{}", fixture.name);
        trials.push(trial(name, move || program(&fixture)));
    }
    trials
}

/// Where programs are built: kept between runs, so that only what changed is
/// compiled again.
pub fn folder() -> PathBuf {
    let folder = std::env::var_os("LEAKSCOPE_E2E_DIR")
        .map_or_else(|| env!("CARGO_TARGET_TMPDIR").into(), PathBuf::from);
    folder.join("programs")
}

/// What every program test needs.
pub fn can_record() -> bool {
    need(Need::Preload) && need(Need::Ptrace) && need(Need::Compiler)
}

fn program(fixture: &Fixture) -> Outcome {
    if !can_record() || !needs_are_met(fixture) {
        return Ok(());
    }
    let folder = folder();
    std::fs::create_dir_all(&folder).map_err(|e| format!("create {folder:?}: {e}"))?;
    compare::fixture(fixture, &folder)
}

fn needs_are_met(fixture: &Fixture) -> bool {
    if fixture.get("needs") == Some("root") && !is_root() {
        eprintln!("skipped: {} needs root", fixture.name);
        return false;
    }
    true
}

fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata("/proc/self").is_ok_and(|m| m.uid() == 0)
}

/// The header's numbers are memcheck's own.
fn agrees_with_memcheck(fixture: &Fixture) -> Outcome {
    if !need(Need::Program("valgrind")) || !need(Need::Compiler) || !needs_are_met(fixture) {
        return Ok(());
    }
    let folder = folder();
    std::fs::create_dir_all(&folder).map_err(|e| format!("create {folder:?}: {e}"))?;
    let built = build::build(fixture, &folder)?;
    let argv: [&Path; 1] = [&built.path];
    let summaries = memcheck::summaries(&argv, b"")?;
    for (index, loss) in &fixture.sections {
        let Some(summary) = summaries.get(*index) else {
            return Err(format!(
                "memcheck wrote about {} processes",
                summaries.len()
            ));
        };
        for (kind, amount) in &loss.0 {
            let at = memcheck::KINDS.iter().position(|(name, _)| name == kind);
            if let Some((bytes, blocks)) = at.map(|at| summary.kinds[at])
                && !amount.fits(bytes, blocks)
            {
                return Err(format!(
                    "memcheck finds {kind}={bytes}/{blocks} in process {index}, the header says {amount:?}"
                ));
            }
        }
    }
    Ok(())
}
