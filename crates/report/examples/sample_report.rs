//! Prints a sample report as `leakscope run` would, to see how it looks:
//! `cargo run -p leakscope-report --example sample_report -- leaking 80 colour`.

#[path = "../tests/samples/mod.rs"]
mod samples;

use std::io::Write as _;

use leakscope_report::{Kinds, Options, sink_named};

fn main() -> std::io::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let has = |word: &str| args.iter().any(|a| a == word);
    let options = Options {
        width: args.iter().find_map(|a| a.parse().ok()),
        colour: has("colour"),
        fds: has("fds"),
        quiet: has("quiet"),
        kinds: if has("all") {
            Kinds::ALL
        } else {
            Kinds::default()
        },
        roots: vec![samples::ROOT.to_owned()],
        own_frame: samples::own_frame,
        ..Options::default()
    };
    let sink = sink_named(if has("json") { "json" } else { "text" });
    let mut out = std::io::stdout().lock();
    for (name, report) in samples::all() {
        if let Some(sink) = sink.filter(|_| has(name)) {
            sink.write(&report, &options, &mut out)?;
            out.write_all(b"\n")?;
        }
    }
    Ok(())
}
