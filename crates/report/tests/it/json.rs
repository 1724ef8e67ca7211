//! The JSON report: golden files, and the promise of the schema.

use leakscope_report::Options;
use serde_json::Value;

use crate::{golden, options, render, samples};

#[test]
fn samples_as_json() {
    for (name, report) in samples::all() {
        let text = render("json", &report, &options());
        serde_json::from_str::<Value>(&text).expect("well-formed");
        golden(&format!("{name}.json"), &text);
    }
}

/// Fields and types that were promised; more may be there.
#[test]
fn every_promised_field_is_there() {
    let text = render("json", &samples::leaking(), &options());
    let report: Value = serde_json::from_str(&text).expect("well-formed");
    assert_eq!(report["schema"], "leakscope-report/1");
    assert_eq!(report["tool"]["name"], "leakscope");
    assert_eq!(report["command"], "run");
    assert_eq!(report["verdict"]["status"], "leaking");
    let has = |value: &Value, fields: &[&str]| {
        let object = value.as_object().expect("an object");
        for field in fields {
            assert!(object.contains_key(*field), "{field} in {value}");
        }
    };
    let verdict = &report["verdict"];
    has(
        verdict,
        &[
            "sentence",
            "rate_bytes_per_second",
            "rate_interval",
            "detectable_bytes_per_second",
        ],
    );
    let process = &report["processes"][0];
    has(process, &["pid", "parent_pid", "exe", "argv", "exit"]);
    assert_eq!(process["exit"], serde_json::json!({"code": 3}));
    for field in [
        "live_bytes",
        "live_blocks",
        "allocations",
        "frees",
        "allocated_bytes",
        "peak_bytes",
    ] {
        assert!(process["heap"][field].is_u64(), "{field}");
    }
    for kind in [
        "definite",
        "indirect",
        "possible",
        "reachable",
        "suppressed",
    ] {
        assert!(process["loss"][kind]["bytes"].is_u64(), "{kind}");
        assert!(process["loss"][kind]["blocks"].is_u64(), "{kind}");
    }
    let leak = &process["leaks"][1];
    assert_eq!(leak["kind"], "definite");
    assert_eq!(leak["type"], "struct header");
    assert_eq!(leak["cycle"], false);
    assert_eq!(
        leak["indirect"],
        serde_json::json!({"bytes": 2039, "blocks": 11})
    );
    let frame = &leak["stack"][0];
    assert_eq!(frame["function"], "copy_value");
    assert_eq!(frame["line"], 203);
    assert_eq!(frame["inlined"], true);
    has(frame, &["file", "module", "module_offset"]);
    assert!(process["leaks"][0]["type"].is_null());
    has(
        &process["mappings"][0],
        &["kind", "bytes", "count", "stack"],
    );
    assert_eq!(process["errors"][0]["code"], "double-free");
    assert_eq!(process["errors"][1]["code"], "fd-leak");
    has(
        &process["errors"][0],
        &["message", "count", "stack", "allocated", "freed"],
    );
    let coverage = &process["coverage"];
    assert_eq!(coverage["consistency"], "stopped");
    assert!(coverage["sampled_every_bytes"].is_null());
    has(
        coverage,
        &[
            "pause_seconds",
            "dropped_events",
            "unreadable_bytes",
            "roots",
        ],
    );
    assert_eq!(process["suppressions"][0]["bytes"], 73);
    has(&process["notices"][0], &["code", "message"]);
}

#[test]
fn json_carries_everything_whatever_the_text_shows() {
    let little = Options {
        kinds: leakscope_report::Kinds::NONE,
        top: Some(1),
        min_bytes: u64::MAX,
        quiet: true,
        ..options()
    };
    let report = samples::leaking();
    assert_eq!(
        render("json", &report, &little),
        render("json", &report, &options())
    );
}

#[test]
fn hostile_text_survives_as_data() {
    let report = samples::hostile();
    let text = render("json", &report, &options());
    assert!(!text.contains(|c: char| c != '\n' && c.is_control()));
    assert!(!text.contains('\u{202e}'));
    let value: Value = serde_json::from_str(&text).expect("well-formed");
    assert_eq!(value["verdict"]["sentence"], report.verdict.sentence);
    assert_eq!(value["processes"][0]["argv"][3], "\u{200b}");
    assert!(value["processes"][0]["coverage"]["pause_seconds"].is_null());
}
