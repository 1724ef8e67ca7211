//! The crate's error.

use std::fmt;
use std::io;
use std::path::Path;

/// What a caller may decide on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    /// The process (or thread) does not exist, or ended while it was read.
    Gone,
    /// The kernel refused.
    Denied,
    /// The text is not what the kernel documents.
    Malformed,
    /// Any other failure to read.
    Io,
}

/// A failure to read or understand kernel text. Its text is a fragment that
/// fits after "failed to".
#[derive(Debug)]
pub struct ProcError {
    kind: ErrorKind,
    text: String,
    source: Option<io::Error>,
}

/// `ESRCH`, which reads below `/proc/PID` give once the process has ended
/// (`include/uapi/asm-generic/errno-base.h`).
const ESRCH: i32 = 3;

/// Bytes of a bad line that an error repeats.
const SHOWN_BYTES: usize = 160;

impl ProcError {
    /// The coarse kind.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// An error about `component` (such as "end address") of `line`.
    pub(crate) fn malformed(component: &str, line: &[u8]) -> ProcError {
        let shown = line.get(..SHOWN_BYTES).unwrap_or(line);
        let dots = if shown.len() < line.len() { "…" } else { "" };
        ProcError {
            kind: ErrorKind::Malformed,
            text: format!("find the {component} in \"{}{dots}\"", shown.escape_ascii()),
            source: None,
        }
    }

    pub(crate) fn too_long(path: &Path, limit: u64) -> ProcError {
        ProcError {
            kind: ErrorKind::Malformed,
            text: format!("read {}: longer than {limit} bytes", path.display()),
            source: None,
        }
    }

    /// A range of `length` bytes was asked of `path`.
    pub(crate) fn range_too_long(path: &Path, length: u64, limit: u64) -> ProcError {
        ProcError {
            kind: ErrorKind::Malformed,
            text: format!(
                "read {}: a range of {length} bytes is longer than {limit} bytes",
                path.display()
            ),
            source: None,
        }
    }

    /// A failed system call on `path`.
    pub(crate) fn io(path: &Path, source: io::Error) -> ProcError {
        let kind = match source.kind() {
            io::ErrorKind::NotFound => ErrorKind::Gone,
            io::ErrorKind::PermissionDenied => ErrorKind::Denied,
            _ if source.raw_os_error() == Some(ESRCH) => ErrorKind::Gone,
            _ => ErrorKind::Io,
        };
        ProcError {
            kind,
            text: format!("read {}", path.display()),
            source: Some(source),
        }
    }

    /// The same error, saying in which file.
    pub(crate) fn inside(mut self, path: &Path) -> ProcError {
        self.text = format!("read {}: no {}", path.display(), {
            let text = self.text.as_str();
            text.strip_prefix("find the ").unwrap_or(text)
        });
        self
    }
}

impl fmt::Display for ProcError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)?;
        match &self.source {
            None => Ok(()),
            Some(_) if self.kind == ErrorKind::Gone => f.write_str(": no such process"),
            Some(_) if self.kind == ErrorKind::Denied => f.write_str(": permission denied"),
            Some(source) => write!(f, ": {source}"),
        }
    }
}

impl std::error::Error for ProcError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_ref().map(|e| e as _)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_follow_the_system_error() {
        let at = Path::new("/proc/7/maps");
        let gone = ProcError::io(at, io::Error::from_raw_os_error(ESRCH));
        assert_eq!(gone.kind(), ErrorKind::Gone);
        assert_eq!(gone.to_string(), "read /proc/7/maps: no such process");
        let denied = ProcError::io(at, io::Error::from_raw_os_error(13));
        assert_eq!(denied.kind(), ErrorKind::Denied);
        assert_eq!(denied.to_string(), "read /proc/7/maps: permission denied");
        let other = ProcError::io(at, io::Error::from_raw_os_error(5));
        assert_eq!(other.kind(), ErrorKind::Io);
    }

    #[test]
    fn a_bad_line_is_shown_bounded_and_escaped() {
        let bad = ProcError::malformed("offset", &[b'\n'; 4000]);
        assert!(bad.to_string().len() < 400);
        let bad = ProcError::malformed("offset", b"a\xffb").inside(Path::new("/p"));
        assert_eq!(bad.to_string(), r#"read /p: no offset in "a\xffb""#);
    }
}
