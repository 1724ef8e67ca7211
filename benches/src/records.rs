//! The Rust programs of the table: the harness itself, called as
//! `leakscope-bench MODE FILE`.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;

/// [`report`].
pub const MODE: &str = "report-json";
/// [`count`].
pub const TREE_MODE: &str = "count-json";

#[derive(Deserialize, Serialize)]
struct Record {
    id: u64,
    name: String,
    price: f64,
    tags: Vec<String>,
    place: Place,
    note: Option<String>,
}

#[derive(Deserialize, Serialize)]
struct Place {
    city: String,
    floor: u32,
    open: bool,
}

/// Reads records, sorts them, and writes them and what each city's cost, as
/// JSON to nowhere.
///
/// # Errors
/// When the file holds something else.
pub fn report(path: &str) -> Result<(), String> {
    let text = std::fs::read(path).map_err(|e| format!("failed to read {path}: {e}"))?;
    let mut records: Vec<Record> =
        serde_json::from_slice(&text).map_err(|e| format!("failed to parse {path}: {e}"))?;
    records.sort_by(|a, b| (&a.place.city, &a.name).cmp(&(&b.place.city, &b.name)));
    let mut cities: BTreeMap<&str, (u64, f64)> = BTreeMap::new();
    for record in &records {
        let (count, sum) = cities.entry(&record.place.city).or_default();
        *count += 1;
        *sum += record.price;
    }
    let mut out = Length(0);
    serde_json::to_writer_pretty(&mut out, &cities)
        .and_then(|()| serde_json::to_writer(&mut out, &records))
        .map_err(|e| format!("failed to write: {e}"))?;
    println!("{} cities, {} bytes", cities.len(), out.0);
    Ok(())
}

/// Counts what is written.
struct Length(usize);

impl Write for Length {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len();
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Reads a file as a tree, counts strings and numbers.
///
/// # Errors
/// When the file is no JSON.
pub fn count(path: &str) -> Result<(), String> {
    let text = std::fs::read(path).map_err(|e| format!("failed to read {path}: {e}"))?;
    let tree: Value =
        serde_json::from_slice(&text).map_err(|e| format!("failed to parse {path}: {e}"))?;
    let (mut strings, mut numbers) = (0_u64, 0_u64);
    let mut next = vec![&tree];
    while let Some(value) = next.pop() {
        match value {
            Value::String(text) => strings += text.len() as u64,
            Value::Number(_) => numbers += 1,
            Value::Array(list) => next.extend(list),
            Value::Object(map) => next.extend(map.values()),
            Value::Null | Value::Bool(_) => {}
        }
    }
    println!("{strings} {numbers}");
    Ok(())
}
