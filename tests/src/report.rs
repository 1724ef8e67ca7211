//! The parts of a JSON report that tests look at.

use serde_json::Value;

/// One process of a report.
#[derive(Clone, Debug)]
pub struct Section(Value);

impl Section {
    /// All sections of a report.
    ///
    /// # Errors
    /// When the text is no report of the schema.
    pub fn all(text: &str) -> Result<Vec<Section>, String> {
        let report: Value = serde_json::from_str(text).map_err(|e| format!("parse: {e}"))?;
        if report["schema"] != "leakscope-report/1" {
            return Err(format!("schema is {}", report["schema"]));
        }
        let processes = report["processes"].as_array().ok_or("no processes")?;
        Ok(processes.iter().cloned().map(Section).collect())
    }

    /// A value by a JSON pointer such as `/heap/frees`; null when absent.
    pub fn at(&self, pointer: &str) -> &Value {
        self.0.pointer(pointer).unwrap_or(&Value::Null)
    }

    /// A number by a JSON pointer; 0 when absent.
    pub fn number(&self, pointer: &str) -> u64 {
        self.at(pointer).as_u64().unwrap_or(0)
    }

    /// Bytes and blocks of a loss kind.
    pub fn loss(&self, kind: &str) -> (u64, u64) {
        (
            self.number(&format!("/loss/{kind}/bytes")),
            self.number(&format!("/loss/{kind}/blocks")),
        )
    }

    /// The summary on one line.
    pub fn summary(&self) -> String {
        let kinds = crate::expect::KINDS.map(|kind| {
            let (bytes, blocks) = self.loss(kind);
            format!("{kind}={bytes}/{blocks}")
        });
        kinds.join(" ")
    }

    /// The loss records.
    pub fn leaks(&self) -> &[Value] {
        self.array("/leaks")
    }

    /// The errors with that code.
    pub fn errors<'a>(&'a self, code: &'a str) -> impl Iterator<Item = &'a Value> {
        let errors = self.array("/errors");
        errors.iter().filter(move |e| e["code"] == code)
    }

    /// An array by a JSON pointer; empty when absent.
    pub fn array(&self, pointer: &str) -> &[Value] {
        self.at(pointer).as_array().map_or(&[], Vec::as_slice)
    }

    /// Records, notices and errors, for a message: enough to see what went
    /// wrong without the report.
    pub fn shown(&self) -> String {
        let mut text = format!("  {}\n", self.summary());
        for leak in self.leaks().iter().take(8) {
            text += &format!(
                "  {} {}/{}: {}\n",
                leak["kind"],
                leak["bytes"],
                leak["blocks"],
                functions(&leak["stack"]).join(" < ")
            );
        }
        for error in self.array("/errors").iter().take(8) {
            text += &format!("  {}: {}\n", error["code"], error["message"]);
        }
        for notice in self.array("/notices") {
            text += &format!("  notice {}: {}\n", notice["code"], notice["message"]);
        }
        let coverage = self.at("/coverage");
        text += &format!(
            "  exit {}, {}, dropped {}, unreadable {}\n",
            self.at("/exit"),
            coverage["consistency"],
            coverage["dropped_events"],
            coverage["unreadable_bytes"]
        );
        text
    }
}

/// Function names of a stack, innermost first; `?` where there is none, and
/// without parameters.
pub fn functions(stack: &Value) -> Vec<String> {
    let frames = stack.as_array().map_or(&[] as &[Value], Vec::as_slice);
    frames
        .iter()
        .map(|frame| match frame["function"].as_str() {
            Some(name) => name.split('(').next().unwrap_or(name).to_owned(),
            None => "?".to_owned(),
        })
        .collect()
}

/// True when `stack` begins with the functions of `pattern`
/// (`make < lose < main`); `*` skips any number of frames.
pub fn stack_fits(stack: &Value, pattern: &str) -> bool {
    let names = functions(stack);
    let wanted: Vec<&str> = pattern.split(" < ").map(str::trim).collect();
    fits(&names, &wanted)
}

fn fits(names: &[String], wanted: &[&str]) -> bool {
    match wanted {
        [] => true,
        ["*", rest @ ..] => (0..=names.len()).any(|skip| fits(&names[skip..], rest)),
        [first, rest @ ..] => names
            .split_first()
            .is_some_and(|(name, names)| name == first && fits(names, rest)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_are_compared_by_their_inner_frames() {
        let stack = serde_json::json!([
            {"function": "make(unsigned long)"}, {"function": null}, {"function": "lose"}, {"function": "main"}
        ]);
        assert!(stack_fits(&stack, "make"));
        assert!(stack_fits(&stack, "make < ? < lose"));
        assert!(stack_fits(&stack, "make < * < main"));
        assert!(stack_fits(&stack, "* < lose"));
        assert!(!stack_fits(&stack, "make < lose"));
        assert!(!stack_fits(&stack, "make < * < _start"));
    }
}
