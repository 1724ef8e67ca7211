//! Checks of the workspace that no compiler makes, each also a test:
//! `cargo xtask layers | object | sizes | unsafe | all`; and a short name for
//! the benchmarks, `cargo xtask bench [OPTIONS]`.
//!
//! What it never does: change anything, but for `object --bless`, which
//! writes the lists that a changed preload object is then compared with.
#![forbid(unsafe_code)]

mod layers;
mod object;
mod sizes;
mod source;
mod unsafe_files;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

/// What is wrong, one line each; empty when all is well.
type Findings = Result<Vec<String>, String>;

/// A check by name.
type Check = (&'static str, fn() -> Findings);

/// Every check.
const CHECKS: [Check; 4] = [
    ("layers", layers::check),
    ("object", object::check),
    ("sizes", sizes::check),
    ("unsafe", unsafe_files::check),
];

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let chosen: Vec<Check> = match words[..] {
        ["object", "--bless"] => {
            return match object::bless() {
                Ok(()) => ExitCode::SUCCESS,
                Err(e) => complain(&e),
            };
        }
        ["bench", ..] => return bench(&arguments[1..]),
        ["all"] => CHECKS.to_vec(),
        [name] => CHECKS.into_iter().filter(|(n, _)| *n == name).collect(),
        _ => Vec::new(),
    };
    if chosen.is_empty() {
        return complain(
            "usage: cargo xtask layers | object [--bless] | sizes | unsafe | all | bench [OPTIONS]",
        );
    }
    let mut good = true;
    for (name, check) in chosen {
        match check() {
            Ok(findings) if findings.is_empty() => println!("{name}: as it should be"),
            Ok(findings) => {
                good = false;
                findings.iter().for_each(|f| eprintln!("{name}: {f}"));
            }
            Err(e) => {
                good = false;
                eprintln!("{name}: failed to check: {e}");
            }
        }
    }
    if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

/// Builds leakscope and the harness in release mode and runs the harness.
fn bench(options: &[String]) -> ExitCode {
    let cargo = || {
        let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        cargo.current_dir(root());
        cargo
    };
    let built = cargo()
        .args(["build", "--release", "--package", "leakscope-cli"])
        .status();
    if !built.is_ok_and(|status| status.success()) {
        return complain("failed to build leakscope");
    }
    let ran = cargo()
        .args(["run", "--release", "--package", "leakscope-bench", "--"])
        .args(options)
        .status();
    match ran {
        Ok(status) if status.success() => ExitCode::SUCCESS,
        _ => ExitCode::FAILURE,
    }
}

fn complain(text: &str) -> ExitCode {
    eprintln!("{text}");
    ExitCode::from(2)
}

/// The checkout.
fn root() -> PathBuf {
    let own = Path::new(env!("CARGO_MANIFEST_DIR"));
    own.parent().unwrap_or(own).to_owned()
}

#[cfg(test)]
mod tests {
    #[test]
    fn every_check_finds_nothing() {
        for (name, check) in super::CHECKS {
            let findings = check().unwrap_or_else(|e| panic!("{name}: {e}"));
            assert!(findings.is_empty(), "{name}:\n{}", findings.join("\n"));
        }
    }
}
