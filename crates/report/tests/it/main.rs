//! Every format, from the same sample reports, against golden files.
//!
//! `LEAKSCOPE_GOLDEN=write cargo test -p leakscope-report` rewrites them; a
//! missing one is written, and fails once so that somebody looks at it.

// The rule is for views; tests read golden files.
#![allow(clippy::disallowed_methods)]

#[path = "../samples/mod.rs"]
mod samples;

mod json;
mod text;

use std::path::Path;

use leakscope_model::Report;
use leakscope_report::{Options, sink_named};

/// What the format called `format` makes of a report.
fn render(format: &str, report: &Report, options: &Options) -> String {
    let sink = sink_named(format).expect("a format of SINKS");
    let mut out = Vec::new();
    sink.write(report, options, &mut out)
        .expect("a Vec takes everything");
    String::from_utf8(out).expect("reports are UTF-8")
}

/// Options as in a terminal-less run in the sample's directory.
fn options() -> Options {
    Options {
        roots: vec![samples::ROOT.to_owned()],
        own_frame: samples::own_frame,
        ..Options::default()
    }
}

/// Compares with `tests/golden/NAME`, the version redacted.
fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/golden")
        .join(name);
    let version = concat!("\"version\": \"", env!("CARGO_PKG_VERSION"), "\"");
    let text = text.replace(version, "\"version\": \"VERSION\"");
    let rewrite = std::env::var_os("LEAKSCOPE_GOLDEN").is_some_and(|v| v == "write");
    let expected = std::fs::read_to_string(&path).ok();
    if rewrite || expected.is_none() {
        std::fs::write(&path, &text).expect("the golden folder is writable");
    }
    if rewrite {
        return;
    }
    let Some(expected) = expected else {
        panic!("{name} was missing and is written now: look at it, then commit it")
    };
    assert!(
        expected == text,
        "{name} differs; LEAKSCOPE_GOLDEN=write rewrites it\n--- expected\n{expected}\n--- got\n{text}"
    );
}

#[test]
fn every_format_has_its_own_name_and_ending() {
    for (i, a) in leakscope_report::SINKS.iter().enumerate() {
        for b in &leakscope_report::SINKS[i + 1..] {
            assert!(a.name() < b.name(), "SINKS is sorted by name");
            assert_ne!(a.extension(), b.extension());
        }
        let file = format!("x{}", a.extension());
        let found = leakscope_report::sink_for_file(&file).map(|s| s.name());
        assert_eq!(found, Some(a.name()));
    }
    assert!(leakscope_report::sink_for_file("x.html").is_none());
}

#[test]
fn the_same_report_gives_the_same_bytes() {
    for (name, report) in samples::all() {
        for sink in leakscope_report::SINKS {
            let once = render(sink.name(), &report, &options());
            assert_eq!(
                once,
                render(sink.name(), &report.clone(), &options()),
                "{name}"
            );
        }
    }
}

#[test]
fn a_writers_error_comes_back_unchanged() {
    struct Full(usize);
    impl std::io::Write for Full {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            let taken = bytes.len().min(self.0);
            self.0 -= taken;
            if taken == 0 {
                return Err(std::io::Error::from_raw_os_error(28)); // ENOSPC
            }
            Ok(taken)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    for sink in leakscope_report::SINKS {
        for room in [0, 7, 97, 997] {
            let error = sink
                .write(&samples::leaking(), &options(), &mut Full(room))
                .expect_err("the disk is full");
            assert_eq!(error.raw_os_error(), Some(28), "{}", sink.name());
        }
    }
}
