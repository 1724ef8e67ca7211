//! `layers.toml` against `cargo metadata`: who may name whom.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use serde_json::Value;

use crate::Findings;

/// `layers.toml`, read.
#[derive(Debug, Default)]
pub struct Rules {
    /// Crate → crates of this workspace that it may depend on.
    uses: BTreeMap<String, BTreeSet<String>>,
    /// Outside package → crates that may depend on it.
    outside: BTreeMap<String, BTreeSet<String>>,
    /// Crates without input, output, clock and environment.
    pure_crates: BTreeSet<String>,
    /// Files (or folders ending in `/`) that may say `unsafe`.
    pub unsafe_files: Vec<String>,
}

impl Rules {
    /// Reads the checkout's file.
    pub fn read() -> Result<Rules, String> {
        let path = crate::root().join("layers.toml");
        let text = fs::read_to_string(&path).map_err(|e| format!("read {path:?}: {e}"))?;
        Rules::parse(&text)
    }

    fn parse(text: &str) -> Result<Rules, String> {
        let file: toml::Table = text.parse().map_err(|e| format!("layers.toml: {e}"))?;
        Ok(Rules {
            uses: lists(&file, "uses")?,
            outside: lists(&file, "outside")?,
            pure_crates: words(file.get("pure"), "pure")?.into_iter().collect(),
            unsafe_files: words(file.get("unsafe"), "unsafe")?,
        })
    }
}

fn lists(file: &toml::Table, name: &str) -> Result<BTreeMap<String, BTreeSet<String>>, String> {
    let table = file
        .get(name)
        .and_then(toml::Value::as_table)
        .ok_or_else(|| format!("layers.toml has no [{name}]"))?;
    let entry = |(key, value): (&String, &toml::Value)| {
        Ok((key.clone(), words(Some(value), key)?.into_iter().collect()))
    };
    table.iter().map(entry).collect()
}

fn words(value: Option<&toml::Value>, name: &str) -> Result<Vec<String>, String> {
    let wrong = || format!("layers.toml: {name} is no list of words");
    let list = value.and_then(toml::Value::as_array).ok_or_else(wrong)?;
    list.iter()
        .map(|v| v.as_str().map(str::to_owned).ok_or_else(wrong))
        .collect()
}

/// Every dependency that the rules do not allow, and rules for nothing.
pub fn check() -> Findings {
    let rules = Rules::read()?;
    let mut findings = compare(&rules, &metadata("Cargo.toml")?);
    findings.extend(compare_preload(&rules, &metadata("preload/Cargo.toml")?));
    for name in &rules.pure_crates {
        let path = crate::root().join("crates").join(name).join("clippy.toml");
        let text = fs::read_to_string(&path).unwrap_or_default();
        for forbidden in ["std::fs::File", "std::time::Instant::now", "std::env::var"] {
            if !text.contains(forbidden) {
                findings.push(format!(
                    "{name} is pure, but its clippy.toml does not forbid {forbidden}"
                ));
            }
        }
    }
    Ok(findings)
}

/// Dependencies of each package, without the prefix `leakscope-`: crates of
/// ours, and others. Those of tests only are left out.
type Graph = BTreeMap<String, (BTreeSet<String>, BTreeSet<String>)>;

fn metadata(manifest: &str) -> Result<Graph, String> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let output = Command::new(cargo)
        .args([
            "metadata",
            "--format-version=1",
            "--no-deps",
            "--manifest-path",
        ])
        .arg(crate::root().join(manifest))
        .output()
        .map_err(|e| format!("run cargo metadata: {e}"))?;
    if !output.status.success() {
        return Err(String::from_utf8_lossy(&output.stderr).into_owned());
    }
    let data: Value = serde_json::from_slice(&output.stdout).map_err(|e| e.to_string())?;
    let mut graph = Graph::new();
    for package in array(&data["packages"]) {
        let entry = graph.entry(short(&package["name"])).or_default();
        for dependency in array(&package["dependencies"]) {
            if dependency["kind"] == "dev" {
                continue;
            }
            let ours = dependency["path"].is_string();
            let set = if ours { &mut entry.0 } else { &mut entry.1 };
            set.insert(short(&dependency["name"]));
        }
    }
    Ok(graph)
}

fn array(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn short(name: &Value) -> String {
    let name = name.as_str().unwrap_or_default();
    name.strip_prefix("leakscope-").unwrap_or(name).to_owned()
}

fn compare(rules: &Rules, graph: &Graph) -> Vec<String> {
    let mut findings = Vec::new();
    for (name, (ours, others)) in graph {
        match rules.uses.get(name) {
            None => findings.push(format!("{name} has no line in layers.toml")),
            Some(allowed) => findings.extend(
                ours.difference(allowed)
                    .map(|used| format!("{name} depends on {used}, which layers.toml forbids")),
            ),
        }
        for other in others {
            if let Some(allowed) = rules.outside.get(other)
                && !allowed.contains(name)
            {
                findings.push(format!(
                    "{name} depends on {other}, which is for {allowed:?}"
                ));
            }
        }
    }
    for name in rules.uses.keys() {
        if name != "preload" && !graph.contains_key(name) {
            findings.push(format!(
                "layers.toml speaks of {name}, which does not exist"
            ));
        }
    }
    findings
}

/// The preload object has no dependency but those listed, not even outside.
fn compare_preload(rules: &Rules, graph: &Graph) -> Vec<String> {
    let mut findings = Vec::new();
    let empty = BTreeSet::new();
    let allowed = rules.uses.get("preload").unwrap_or(&empty);
    for (name, (ours, others)) in graph {
        for used in ours.union(others).filter(|used| !allowed.contains(*used)) {
            findings.push(format!(
                "{name} depends on {used}, which layers.toml forbids"
            ));
        }
    }
    findings
}

#[cfg(test)]
mod tests {
    use super::*;

    const RULES: &str = r#"
        pure = ["a"]
        unsafe = ["b/src/sys.rs"]
        [uses]
        a = []
        b = ["a"]
        gone = []
        preload = ["a"]
        [outside]
        libc = ["b"]
    "#;

    fn graph(edges: &[(&str, &[&str], &[&str])]) -> Graph {
        let set = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        edges
            .iter()
            .map(|(name, ours, others)| ((*name).to_owned(), (set(ours), set(others))))
            .collect()
    }

    #[test]
    fn arrows_go_down() {
        let rules = Rules::parse(RULES).unwrap();
        let good = graph(&[
            ("a", &[], &["rand"]),
            ("b", &["a"], &["libc"]),
            ("gone", &[], &[]),
        ]);
        assert!(compare(&rules, &good).is_empty());
        let bad = graph(&[("a", &["b"], &["libc"]), ("c", &[], &[])]);
        let findings = compare(&rules, &bad).join("\n");
        for part in [
            "a depends on b",
            "a depends on libc",
            "c has no line",
            "speaks of gone",
        ] {
            assert!(findings.contains(part), "{findings}");
        }
    }

    #[test]
    fn the_preload_has_no_guests() {
        let rules = Rules::parse(RULES).unwrap();
        assert!(compare_preload(&rules, &graph(&[("preload", &["a"], &[])])).is_empty());
        assert_eq!(
            compare_preload(&rules, &graph(&[("preload", &["b"], &["libc"])])).len(),
            2
        );
    }
}
