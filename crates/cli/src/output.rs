//! Where reports go: `-o PATH`, `-o FORMAT=PATH`, `-`.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, BufWriter, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use leakscope_model::Report;
use leakscope_report::{Options, SINKS, Sink, sink_for_file, sink_named};

use crate::failure::Failure;

/// Formats of later versions: their name and the ending of their files.
/// Known, so that the refusal can say so instead of guessing a typing error.
const LATER: &[(&str, &str)] = &[
    ("folded", ".folded"),
    ("html", ".html"),
    ("junit", ".junit.xml"),
    ("leakscope", ".leakscope"),
    ("markdown", ".md"),
    ("pprof", ".pb.gz"),
    ("sarif", ".sarif"),
    ("svg", ".svg"),
    ("xml", ".xml"),
];

/// One `-o`.
pub struct Output {
    sink: &'static dyn Sink,
    to: Destination,
}

enum Destination {
    Stdout,
    File(PathBuf),
}

impl Output {
    /// Reads one value of `-o`; `default` is the format of a bare `-`.
    ///
    /// # Errors
    /// When the format is unknown or not in this version.
    pub fn parse(value: &OsStr, default: &'static dyn Sink) -> Result<Output, Failure> {
        let (forced, path) = split_format(value)?;
        if path.is_empty() {
            return Err(Failure::own("-o needs a file name or - for stdout"));
        }
        if path == "-" {
            return Ok(Output {
                sink: forced.unwrap_or(default),
                to: Destination::Stdout,
            });
        }
        let name = path.to_string_lossy();
        let sink = match forced.or_else(|| sink_for_file(&name)) {
            Some(sink) => sink,
            None => return Err(no_format(&name)),
        };
        Ok(Output {
            sink,
            to: Destination::File(path.into()),
        })
    }

    /// The name of its format.
    pub fn format(&self) -> &'static str {
        self.sink.name()
    }

    /// Fails now where writing would fail later: after a long run is no time
    /// to learn of a missing directory.
    ///
    /// # Errors
    /// When no file can be made there.
    pub fn check(&self) -> Result<(), Failure> {
        let Destination::File(path) = &self.to else {
            return Ok(());
        };
        let tried = match kind(path) {
            Kind::Directory => Err(io::Error::from(io::ErrorKind::IsADirectory)),
            Kind::Special => OpenOptions::new().write(true).open(path).map(drop),
            Kind::Regular => temporary(path, 0o666).map(drop),
        };
        tried.map_err(|e| cannot_write(path, &e))
    }

    /// Writes the report: a file appears whole or not at all. A reader that
    /// closed its end of a pipe has seen enough.
    ///
    /// # Errors
    /// Names the file and why.
    pub fn write(&self, report: &Report, options: &Options) -> Result<(), Failure> {
        match &self.to {
            Destination::Stdout => {
                let written = write_all(self.sink, report, options, io::stdout().lock());
                pipe_may_close(written)
                    .map_err(|e| Failure::own(format!("cannot write the report to stdout: {e}")))
            }
            Destination::File(path) => {
                let written = match kind(path) {
                    Kind::Special => OpenOptions::new()
                        .write(true)
                        .open(path)
                        .and_then(|f| pipe_may_close(write_all(self.sink, report, options, f))),
                    _ => write_file(self.sink, report, options, path),
                };
                written.map_err(|e| cannot_write(path, &e))
            }
        }
    }
}

/// Success when the only thing wrong is that nobody reads on.
pub fn pipe_may_close(result: io::Result<()>) -> io::Result<()> {
    match result {
        Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        other => other,
    }
}

/// Writes one report through a buffer and flushes it.
pub fn write_all(
    sink: &dyn Sink,
    report: &Report,
    options: &Options,
    out: impl Write,
) -> io::Result<()> {
    let mut out = BufWriter::new(out);
    sink.write(report, options, &mut out)?;
    out.flush()
}

fn write_file(sink: &dyn Sink, report: &Report, options: &Options, path: &Path) -> io::Result<()> {
    let mut file = temporary(path, 0o666)?;
    write_all(sink, report, options, file.as_file_mut())?;
    keep(file, path)
}

/// Gives a temporary file its name.
///
/// # Errors
/// When it cannot have it; the file is gone then.
pub fn keep(file: tempfile::NamedTempFile<File>, path: &Path) -> io::Result<()> {
    // A link's target is replaced, not the link.
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    file.persist(target).map(drop).map_err(|e| e.error)
}

/// A nameless-to-be file beside `path`, with these permissions as far as the
/// umask allows.
///
/// # Errors
/// When none can be made there.
pub fn temporary(path: &Path, permissions: u32) -> io::Result<tempfile::NamedTempFile<File>> {
    let target = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    let dir = match target.parent() {
        Some(dir) if dir != Path::new("") => dir,
        _ => Path::new("."),
    };
    // Its error is the plainer one.
    std::fs::metadata(dir)?;
    tempfile::Builder::new()
        .prefix(".leakscope-")
        .permissions(Permissions::from_mode(permissions))
        .tempfile_in(dir)
        // tempfile's message names its own made-up file.
        .map_err(|e| io::Error::from(e.kind()))
}

/// What stands at a path.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// An ordinary file, or none yet.
    Regular,
    /// A folder.
    Directory,
    /// A device or pipe, which a rename would destroy.
    Special,
}

/// What stands at `path`.
pub fn kind(path: &Path) -> Kind {
    match std::fs::metadata(path) {
        Ok(m) if m.is_dir() => Kind::Directory,
        Ok(m) if !m.is_file() => Kind::Special,
        _ => Kind::Regular,
    }
}

/// The sentence for a file that cannot be written.
pub fn cannot_write(path: &Path, error: &io::Error) -> Failure {
    let hint = match error.kind() {
        io::ErrorKind::StorageFull => "; nothing was left half-written",
        io::ErrorKind::NotFound if error.raw_os_error().is_some() => "; create its directory first",
        _ => "",
    };
    Failure::own(format!("cannot write {}: {error}{hint}", path.display()))
}

/// `FORMAT=PATH` when what stands before the first `=` names a format.
fn split_format(value: &OsStr) -> Result<(Option<&'static dyn Sink>, &OsStr), Failure> {
    let bytes = value.as_bytes();
    let Some(at) = bytes.iter().position(|&b| b == b'=') else {
        return Ok((None, value));
    };
    let name = String::from_utf8_lossy(&bytes[..at]);
    let path = OsStr::from_bytes(&bytes[at + 1..]);
    if let Some(sink) = sink_named(&name) {
        return Ok((Some(sink), path));
    }
    if LATER.iter().any(|(later, _)| *later == name) {
        return Err(not_available(&name));
    }
    Ok((None, value))
}

fn no_format(name: &str) -> Failure {
    // The longest ending: `.junit.xml` is not `.xml`.
    let later = LATER
        .iter()
        .filter(|(_, ending)| name.ends_with(ending))
        .max_by_key(|(_, ending)| ending.len());
    match later {
        Some((format, _)) => not_available(format),
        None => Failure::own(format!(
            "cannot tell the format of '{name}' from its name; available: {}, or FORMAT=PATH \
             with FORMAT one of {}",
            endings(),
            names()
        )),
    }
}

fn not_available(format: &str) -> Failure {
    Failure::own(format!(
        "format {format} is not available in this version; available: {}",
        endings()
    ))
}

fn endings() -> String {
    let all: Vec<&str> = SINKS.iter().map(|s| s.extension()).collect();
    all.join(" ")
}

/// The names of all formats, for messages.
pub fn names() -> String {
    let all: Vec<&str> = SINKS.iter().map(|s| s.name()).collect();
    all.join(", ")
}

/// All of `-o`, checked.
///
/// # Errors
/// The first that cannot be honoured.
pub fn plan(values: &[OsString], default: &'static dyn Sink) -> Result<Vec<Output>, Failure> {
    let outputs: Vec<Output> = values
        .iter()
        .map(|v| Output::parse(v, default))
        .collect::<Result<_, _>>()?;
    for output in &outputs {
        output.check()?;
    }
    Ok(outputs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(value: &str) -> Result<(&'static str, Option<String>), String> {
        let text = sink_named("text").expect("text is a format");
        match Output::parse(OsStr::new(value), text) {
            Ok(output) => Ok((
                output.sink.name(),
                match output.to {
                    Destination::Stdout => None,
                    Destination::File(path) => Some(path.display().to_string()),
                },
            )),
            Err(failure) => Err(failure.text),
        }
    }

    #[test]
    fn the_format_follows_the_name_unless_forced() {
        let file = |format, path: &str| Ok((format, Some(path.to_owned())));
        assert_eq!(parsed("x.json"), file("json", "x.json"));
        assert_eq!(parsed("dir.d/x.txt"), file("text", "dir.d/x.txt"));
        assert_eq!(parsed("json=x.log"), file("json", "x.log"));
        assert_eq!(parsed("a=b.json"), file("json", "a=b.json"));
        assert_eq!(parsed("-"), Ok(("text", None)));
        assert_eq!(parsed("json=-"), Ok(("json", None)));
    }

    #[test]
    fn a_format_that_is_not_here_is_refused_by_name() {
        let table = [
            ("x.html", "format html is not available in this version"),
            ("x.junit.xml", "format junit is not"),
            ("sarif=x.json", "format sarif is not"),
            ("x.pb.gz", "format pprof is not"),
            ("x", "cannot tell the format of 'x'"),
            ("x.jsonl", "cannot tell the format of 'x.jsonl'"),
            ("json=", "-o needs a file name"),
            ("", "-o needs a file name"),
        ];
        for (value, reason) in table {
            let text = parsed(value).expect_err(value);
            assert!(text.contains(reason), "{value}: {text}");
        }
        let text = parsed("x.svg").expect_err("later");
        assert!(text.ends_with("available: .json .txt"), "{text}");
    }
}
