//! The text report.

use leakscope_report::{Kinds, Options};

use crate::{golden, options, render, samples};

#[test]
fn samples_as_plain_text() {
    for (name, report) in samples::all() {
        golden(&format!("{name}.txt"), &render("text", &report, &options()));
    }
}

#[test]
fn everything_in_colour_at_eighty_columns() {
    let options = Options {
        kinds: Kinds::ALL,
        fds: true,
        colour: true,
        width: Some(80),
        ..options()
    };
    golden(
        "leaking-80-colour.txt",
        &render("text", &samples::leaking(), &options),
    );
    golden(
        "sampled-80-colour.txt",
        &render("text", &samples::sampled(), &options),
    );
}

#[test]
fn quiet_is_the_verdict_alone() {
    let options = Options {
        quiet: true,
        ..options()
    };
    for (name, report) in samples::all() {
        let text = render("text", &report, &options);
        assert_eq!(text.lines().count(), 1, "{name}");
    }
}

#[test]
fn nothing_hostile_reaches_the_terminal() {
    for colour in [false, true] {
        let options = Options {
            kinds: Kinds::ALL,
            fds: true,
            colour,
            width: Some(80),
            ..options()
        };
        let text = render("text", &samples::hostile(), &options);
        let mut rest = text.as_str();
        while let Some(at) = rest.find('\u{1b}') {
            assert!(colour, "an escape without colours: {rest:?}");
            let tail = &rest[at + 1..];
            let end = tail.find('m').expect("colours end with m");
            let code = tail[..end].strip_prefix('[').expect("colours begin with [");
            let known = ["0", "1", "2", "33", "1;31", "1;32", "1;36"];
            assert!(known.contains(&code), "{code:?}");
            rest = &tail[end..];
        }
        let hostile = |c: char| c.is_control() && !matches!(c, '\n' | '\u{1b}');
        assert!(!text.contains(hostile));
        assert!(!text.contains(['\u{202e}', '\u{200b}']));
    }
}

#[test]
fn what_is_left_out_is_counted() {
    let report = samples::leaking();
    let top = Options {
        top: Some(1),
        ..options()
    };
    let text = render("text", &report, &top);
    assert!(text.contains("1 of 3:"), "{text}");
    assert!(!text.contains("2 of 3:"), "{text}");
    assert!(
        text.contains("… 2 more records not shown (181 bytes in 4 blocks); --top 0 shows all"),
        "{text}"
    );
    let large = Options {
        min_bytes: 149,
        ..options()
    };
    assert!(render("text", &report, &large).contains("1 of 1:"));
    let none = Options {
        min_bytes: u64::MAX,
        ..options()
    };
    let mut report = report;
    report.processes[0].errors.clear();
    report.processes[0].mappings.clear();
    let text = render("text", &report, &none);
    assert!(
        text.contains("next: re-run with --show all --min-bytes 0 to see the losses"),
        "{text}"
    );
}

#[test]
fn never_freed_is_not_claimed_when_frees_were_not_watched() {
    let report = samples::family();
    assert!(render("text", &report, &options()).contains("never freed anywhere"));
    let blind = Options {
        free_sites: false,
        ..options()
    };
    assert!(!render("text", &report, &blind).contains("freed"));
}

#[test]
fn advice_names_the_most_urgent_thing() {
    let mut report = samples::leaking();
    let last = |report: &leakscope_model::Report, options: &Options| -> String {
        let text = render("text", report, options);
        text.lines().last().unwrap_or_default().to_owned()
    };
    assert!(last(&report, &options()).contains("fix the double free at drop_header"));
    report.processes[0]
        .errors
        .retain(|e| e.allocated.is_empty());
    assert_eq!(
        last(&report, &options()),
        "next: look at copy_value (src/http.c:203): nothing points to what it allocated any \
         more; its other blocks are freed by drop_header (src/http.c:260)"
    );
    report.processes[0].leaks.clear();
    assert!(last(&report, &options()).contains("map_page (src/cache.c:83)"));
    report.processes[0].mappings.clear();
    report.processes[0].loss.definite = Default::default();
    report.processes[0].loss.possible = Default::default();
    assert!(last(&report, &options()).contains("re-run with --fds"));
    report.processes[0].errors.clear();
    assert!(last(&report, &options()).contains("nothing to fix; re-run with --show all"));
}
