//! Why a process could not be examined. All texts are fragments that fit
//! after "failed to".

use crate::refusal::Refusal;
use leakscope_proc::{ErrorKind, ProcError};
use std::fmt;
use std::io;

/// Why [`LiveMemory::open`](crate::LiveMemory::open) failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum OpenError {
    /// There is no such process, or it has ended.
    Gone(u32),
    /// The kernel refused; says why, and what would help.
    NotPermitted(Box<Refusal>),
    /// Anything else.
    Io(String, io::Error),
}

/// Why [`stop`](crate::stop) failed. The process runs on unharmed.
#[derive(Debug)]
#[non_exhaustive]
pub enum StopError {
    /// There is no such process, or it ended meanwhile.
    Gone(u32),
    /// The kernel refused; says why, and what would help.
    NotPermitted(Box<Refusal>),
    /// No thread could be stopped in time, or threads were born faster than
    /// they could be stopped.
    TimedOut(u32),
    /// Anything else.
    Io(String, io::Error),
    /// The same, told by the process that tried it for us.
    Told(String),
}

impl OpenError {
    pub(crate) fn from_proc(pid: u32, error: ProcError) -> OpenError {
        match error.kind() {
            ErrorKind::Gone => OpenError::Gone(pid),
            ErrorKind::Denied => OpenError::NotPermitted(Box::new(Refusal::explain(pid, pid))),
            _ => OpenError::Io(format!("examine process {pid}"), io::Error::other(error)),
        }
    }
}

impl From<OpenError> for StopError {
    fn from(error: OpenError) -> StopError {
        match error {
            OpenError::Gone(pid) => StopError::Gone(pid),
            OpenError::NotPermitted(refusal) => StopError::NotPermitted(refusal),
            OpenError::Io(text, source) => StopError::Io(text, source),
        }
    }
}

impl fmt::Display for OpenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OpenError::Gone(pid) => write!(f, "examine process {pid}: it is gone"),
            OpenError::NotPermitted(refusal) => refusal.fmt(f),
            OpenError::Io(text, source) => write!(f, "{text}: {source}"),
        }
    }
}

impl fmt::Display for StopError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StopError::Gone(pid) => write!(f, "stop process {pid}: it is gone"),
            StopError::NotPermitted(refusal) => refusal.fmt(f),
            StopError::TimedOut(pid) => {
                write!(f, "stop process {pid}: its threads did not stop in time")
            }
            StopError::Io(text, source) => write!(f, "{text}: {source}"),
            StopError::Told(text) => f.write_str(text),
        }
    }
}

impl std::error::Error for OpenError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            OpenError::Io(_, source) => Some(source),
            _ => None,
        }
    }
}

impl std::error::Error for StopError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            StopError::Io(_, source) => Some(source),
            _ => None,
        }
    }
}
