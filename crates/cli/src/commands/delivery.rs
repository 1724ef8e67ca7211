//! Where a command's report goes, and what status it asks for.

use std::io::{self, Write};
use std::path::PathBuf;

use leakscope_analysis::verdict::{self, FailOn};
use leakscope_model::Report;
use leakscope_report::{Options, SINKS, Sink, sink_named};

use crate::args::{Format, ReportOptions};
use crate::failure::Failure;
use crate::output::{self, Output};
use crate::terminal::Terminal;

/// The stream that the report itself goes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// The program owns stdout.
    Stderr,
    /// Nobody else writes there.
    Stdout,
}

/// Everything about the report that is decided before anything happens.
pub struct Delivery {
    /// What is shown.
    pub view: Options,
    /// The terminal for what is going on: stderr's.
    pub progress: Terminal,
    stream: Stream,
    format: &'static dyn Sink,
    outputs: Vec<Output>,
    fail_on: Option<FailOn>,
    error_exitcode: u8,
}

impl Delivery {
    /// From the options, for a report that goes to `stream`.
    ///
    /// # Errors
    /// When an output cannot be written.
    pub fn new(options: ReportOptions, stream: Stream) -> Result<Delivery, Failure> {
        let format = format_named(match options.format {
            Format::Text => "text",
            Format::Json => "json",
        })?;
        let outputs = output::plan(&options.output, format)?;
        let progress = Terminal::of_stderr();
        let terminal = match stream {
            Stream::Stderr => progress,
            Stream::Stdout => Terminal::of_stdout(),
        };
        let view = Options {
            kinds: options.show,
            top: (options.top > 0).then_some(options.top),
            min_bytes: options.min_bytes,
            colour: terminal.colour,
            width: terminal.width,
            fds: false,
            free_sites: false,
            quiet: options.quiet,
            own_frame: verdict::own_frame,
            roots: Vec::new(),
        };
        Ok(Delivery {
            view,
            progress,
            stream,
            format,
            outputs,
            fail_on: options.fail_on,
            error_exitcode: options.error_exitcode,
        })
    }

    /// The same for a command that has call stacks.
    pub fn showing(mut self, fds: bool, free_sites: bool, source_root: &Option<PathBuf>) -> Self {
        let cwd = std::env::current_dir().ok();
        self.view.fds = fds;
        self.view.free_sites = free_sites;
        self.view.roots = cwd
            .iter()
            .chain(source_root)
            .map(|p| p.to_string_lossy().into_owned())
            .collect();
        self
    }

    /// True when some output carries every record, whatever is shown.
    pub fn writes_everything(&self) -> bool {
        self.format.name() != "text" || self.outputs.iter().any(|o| o.format() != "text")
    }

    /// The status of `--fail-on`, when something that it names was found.
    pub fn found(&self, report: &Report) -> Option<u8> {
        let fail_on = self.fail_on.as_ref()?;
        fail_on.found(report).then_some(self.error_exitcode)
    }

    /// Writes every output, even when an earlier one failed; the first
    /// failure is told. `appendix` follows the report itself.
    ///
    /// # Errors
    /// Names what could not be written, and why.
    pub fn deliver(&self, report: &Report, appendix: &str) -> Result<(), Failure> {
        let plain = Options {
            colour: false,
            width: None,
            ..self.view.clone()
        };
        let mut first = Ok(());
        for output in &self.outputs {
            first = first.and(output.write(report, &plain));
        }
        let (name, shown) = match self.stream {
            Stream::Stderr => ("stderr", self.show(report, appendix, io::stderr().lock())),
            Stream::Stdout => ("stdout", self.show(report, appendix, io::stdout().lock())),
        };
        // Nobody could read that stderr cannot be written.
        let shown = output::pipe_may_close(shown)
            .map_err(|e| Failure::own(format!("cannot write the report to {name}: {e}")));
        first.and(shown)
    }

    fn show(&self, report: &Report, appendix: &str, mut out: impl Write) -> io::Result<()> {
        output::write_all(self.format, report, &self.view, &mut out)?;
        out.write_all(appendix.as_bytes())?;
        out.flush()
    }
}

fn format_named(name: &str) -> Result<&'static dyn Sink, Failure> {
    sink_named(name).ok_or_else(|| {
        let all: Vec<&str> = SINKS.iter().map(|s| s.name()).collect();
        Failure::own(format!(
            "there is no format {name}; available: {}",
            all.join(", ")
        ))
    })
}
