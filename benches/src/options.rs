//! The harness's own arguments.

use crate::tools::Tool;

const USAGE: &str = "\
usage: leakscope-bench [options]
  --leakscope PATH   the binary to measure (default: LEAKSCOPE, else beside this one)
  --quick            small inputs, two rounds: shows that everything works
  --runs N           rounds (default 5; peers take part only in the first ones)
  --only NAME,...    these workloads and figures only (--list names them)
  --tools NAME,...   of native,exact,sampled,heaptrack,memcheck,lsan,lsan-true
  --limit SECONDS    end a run that takes longer (default 45)
  --markdown FILE    write the page there too
  --list             name all workloads and figures";

/// What is to be measured, and how.
pub struct Options {
    /// The leakscope binary; found beside the harness when not given.
    pub leakscope: Option<String>,
    /// Small inputs.
    pub quick: bool,
    /// Rounds of native and leakscope.
    pub runs: usize,
    /// Names of workloads and figures; empty for all.
    pub only: Vec<String>,
    /// Tools beside native, in the order in which they take turns.
    pub tools: Vec<Tool>,
    /// Seconds after which a run is ended.
    pub limit: u64,
    /// Where the page is written to.
    pub markdown: Option<String>,
    /// The arguments as typed, for the page.
    pub typed: String,
}

impl Options {
    /// Whether this workload or figure was asked for.
    pub fn wants(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|only| only == name)
    }
}

/// Reads the arguments.
///
/// # Errors
/// What to print when they make no sense, or when a list was asked for.
pub fn parse(words: &[String]) -> Result<Options, String> {
    let mut options = Options {
        leakscope: std::env::var("LEAKSCOPE").ok(),
        quick: false,
        runs: 0,
        only: Vec::new(),
        tools: Tool::ALL.to_vec(),
        limit: 45,
        markdown: None,
        typed: words.join(" "),
    };
    let mut words = words.iter();
    while let Some(word) = words.next() {
        let mut value = || words.next().ok_or(format!("{word} needs a value\n{USAGE}"));
        match word.as_str() {
            "--quick" => options.quick = true,
            "--leakscope" => options.leakscope = Some(value()?.clone()),
            "--markdown" => options.markdown = Some(value()?.clone()),
            "--runs" => options.runs = number(word, value()?)?,
            "--limit" => options.limit = number(word, value()?)? as u64,
            "--only" => options.only = names(value()?)?,
            "--tools" => options.tools = tools(value()?)?,
            "--list" => return Err(known().join("\n")),
            _ => return Err(format!("unknown argument {word}\n{USAGE}")),
        }
    }
    if options.runs == 0 {
        options.runs = if options.quick { 2 } else { 5 };
    }
    Ok(options)
}

fn known() -> Vec<&'static str> {
    let workloads = crate::workloads::NAMES.into_iter();
    workloads.chain(crate::micro::NAMES).collect()
}

fn names(list: &str) -> Result<Vec<String>, String> {
    let names: Vec<String> = list.split(',').map(str::to_owned).collect();
    match names.iter().find(|name| !known().contains(&name.as_str())) {
        Some(name) => Err(format!("no workload {name}; --list names them")),
        None => Ok(names),
    }
}

fn tools(list: &str) -> Result<Vec<Tool>, String> {
    list.split(',')
        .map(|name| {
            let mut all = Tool::ALL.iter();
            all.find(|tool| tool.name() == name)
                .copied()
                .ok_or(format!("no tool {name}\n{USAGE}"))
        })
        .collect()
}

fn number(word: &str, text: &str) -> Result<usize, String> {
    match text.parse() {
        Ok(0) | Err(_) => Err(format!("{word} needs a number above zero\n{USAGE}")),
        Ok(number) => Ok(number),
    }
}
