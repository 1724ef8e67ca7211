//! A process of our own that traces in our stead.
//!
//! Whoever kills leakscope kills its first process: by id, or with its group.
//! The one that holds another process's threads must not die at that moment,
//! or blocked calls could fail that we have woken and not yet put back. So a
//! child of ours in a session of its own does it, which lets go as soon as
//! it hears from us, or that we are no more.
//!
//! The child is a bare `fork`: it runs the same code as a thread would, and
//! tells what it found over a pipe.

use crate::core_write::UserRegisters;
use crate::error::StopError;
use crate::fork::{Ended, ForkError};
use crate::refusal::RefusalCause;
use crate::sys::process;
use leakscope_memory::{MemoryMap, Region};
use leakscope_model::{Addr, Range, ThreadState};
use std::io::{self, BufReader, PipeReader, PipeWriter, Read, Write};
use std::os::fd::AsRawFd;
use std::time::Duration;

/// What our side holds.
#[derive(Debug)]
pub(crate) struct Guard {
    pid: u32,
    control: Option<PipeWriter>,
    reply: BufReader<PipeReader>,
}

/// The guard's side.
pub(crate) struct Line {
    control: PipeReader,
    reply: PipeWriter,
}

/// Why a guard has nothing to show.
#[derive(Debug)]
pub(crate) enum NoReply {
    /// It told why.
    Told(ForkError),
    /// It is not allowed to trace where we may be (yama knows descendants and
    /// their ancestors), or it could not be started or died.
    Unable,
}

/// Longest text, path or list of registers in a message; most elements of a
/// list.
const TEXT: u64 = 1 << 20;
const LISTED: u64 = 1 << 24;

impl Guard {
    /// Starts one that does `work`.
    pub(crate) fn start(work: impl FnOnce(&mut Line)) -> io::Result<Guard> {
        let (control, our_control) = io::pipe()?;
        let (our_reply, reply) = io::pipe()?;
        let line = Line { control, reply };
        match process::fork()? {
            Some(pid) => Ok(Guard {
                pid,
                control: Some(our_control),
                reply: BufReader::new(our_reply),
            }),
            None => {
                // The other ends must not stay open here: their end is what
                // tells that we are no more.
                drop(our_control);
                drop(our_reply);
                let mut line = line;
                let keep = [line.control.as_raw_fd(), line.reply.as_raw_fd()];
                process::become_guard(keep, || work(&mut line))
            }
        }
    }

    /// Reads what was found.
    pub(crate) fn reply<T>(
        &mut self,
        read: impl FnOnce(&mut dyn Read) -> io::Result<T>,
    ) -> Result<T, NoReply> {
        let from: &mut dyn Read = &mut self.reply;
        let unable = |_| NoReply::Unable;
        match word(from).map_err(unable)? {
            FOUND => read(from).map_err(unable),
            UNABLE => Err(NoReply::Unable),
            tag => {
                let pid = word(from).map_err(unable)?;
                let pid = u32::try_from(pid).unwrap_or(0);
                let text = text(from).map_err(unable)?;
                Err(NoReply::Told(match tag {
                    GONE => StopError::Gone(pid).into(),
                    TIMED_OUT => StopError::TimedOut(pid).into(),
                    REFUSED => ForkError::Refused(text),
                    _ => StopError::Told(text).into(),
                }))
            }
        }
    }

    /// Has it let go, and end.
    pub(crate) fn end(&mut self) -> Option<Ended> {
        let mut control = self.control.take()?;
        // A word, not only the end of the pipe: a guard that was started later
        // has that end open, too.
        let _ = control.write_all(&[1]);
        drop(control);
        let from: &mut dyn Read = &mut self.reply;
        let ended = word(from).and_then(|nanos| {
            Ok(Ended {
                pause: Duration::from_nanos(nanos),
                taken: word(from)? == 1,
            })
        });
        process::wait(self.pid);
        ended.ok()
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.end();
    }
}

impl Line {
    /// Says what was found. False when nobody listens any more.
    pub(crate) fn found(&mut self, message: &[u8]) -> bool {
        let tag = FOUND.to_le_bytes();
        let sent = self.reply.write_all(&tag);
        sent.and_then(|()| self.reply.write_all(message)).is_ok()
    }

    /// Says why nothing was.
    pub(crate) fn failed(&mut self, error: &ForkError) {
        let (tag, pid) = match error {
            ForkError::Stop(StopError::Gone(pid)) => (GONE, *pid),
            ForkError::Stop(StopError::TimedOut(pid)) => (TIMED_OUT, *pid),
            ForkError::Stop(StopError::NotPermitted(refusal))
                if matches!(refusal.cause, RefusalCause::PtraceScope(1)) =>
            {
                (UNABLE, 0)
            }
            ForkError::Refused(_) => (REFUSED, 0),
            ForkError::Stop(_) => (TOLD, 0),
        };
        let mut message = Vec::new();
        put(&mut message, tag);
        put(&mut message, u64::from(pid));
        put_text(&mut message, error.to_string().as_bytes());
        let _ = self.reply.write_all(&message);
    }

    /// Returns when it is time to let go.
    pub(crate) fn wait(&mut self) {
        // A word, an end, an error: all mean the same.
        let _ = self.control.read(&mut [0]);
    }

    /// Tells how it went.
    pub(crate) fn ended(&mut self, ended: Ended) {
        let mut message = Vec::new();
        put(&mut message, nanos(ended.pause));
        put(&mut message, u64::from(ended.taken));
        let _ = self.reply.write_all(&message);
    }
}

const FOUND: u64 = 0;
const GONE: u64 = 1;
const TIMED_OUT: u64 = 2;
const REFUSED: u64 = 3;
const TOLD: u64 = 4;
const UNABLE: u64 = 5;

/// As a word.
pub(crate) fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

pub(crate) fn put(into: &mut Vec<u8>, word: u64) {
    into.extend(word.to_le_bytes());
}

pub(crate) fn put_text(into: &mut Vec<u8>, text: &[u8]) {
    put(into, text.len() as u64);
    into.extend(text);
}

pub(crate) fn word(from: &mut dyn Read) -> io::Result<u64> {
    let mut bytes = [0; 8];
    from.read_exact(&mut bytes)?;
    Ok(u64::from_le_bytes(bytes))
}

fn bounded(from: &mut dyn Read, most: u64) -> io::Result<usize> {
    let length = word(from)?;
    if length > most {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    Ok(length as usize)
}

/// As many bytes as the word before says, at most `most`.
pub(crate) fn bytes(from: &mut dyn Read, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = vec![0; bounded(from, most)?];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}

fn text(from: &mut dyn Read) -> io::Result<String> {
    Ok(String::from_utf8_lossy(&bytes(from, TEXT)?).into_owned())
}

/// A list, each element read by `each`.
pub(crate) fn list<T>(
    from: &mut dyn Read,
    mut each: impl FnMut(&mut dyn Read) -> io::Result<T>,
) -> io::Result<Vec<T>> {
    let length = bounded(from, LISTED)?;
    (0..length).map(|_| each(from)).collect()
}

pub(crate) fn put_threads(into: &mut Vec<u8>, threads: &[ThreadState], skipped: &[u32]) {
    put(into, threads.len() as u64);
    for thread in threads {
        put(into, u64::from(thread.tid));
        put(into, thread.sp.0);
        put(into, thread.tcb.0);
        put(into, u64::from(thread.in_syscall));
        put(into, thread.registers.len() as u64);
        for register in &thread.registers {
            put(into, *register);
        }
    }
    put(into, skipped.len() as u64);
    for tid in skipped {
        put(into, u64::from(*tid));
    }
}

pub(crate) fn put_registers(into: &mut Vec<u8>, all: &[(u32, UserRegisters)]) {
    put(into, all.len() as u64);
    for (tid, registers) in all {
        put(into, u64::from(*tid));
        for word in registers {
            put(into, *word);
        }
    }
}

pub(crate) fn registers(from: &mut dyn Read) -> io::Result<Vec<(u32, UserRegisters)>> {
    list(from, |from| {
        let tid = tid(from)?;
        let mut registers = UserRegisters::default();
        for place in &mut registers {
            *place = word(from)?;
        }
        Ok((tid, registers))
    })
}

fn tid(from: &mut dyn Read) -> io::Result<u32> {
    u32::try_from(word(from)?).map_err(io::Error::other)
}

pub(crate) fn threads(from: &mut dyn Read) -> io::Result<(Vec<ThreadState>, Vec<u32>)> {
    let threads = list(from, |from| {
        Ok(ThreadState {
            tid: tid(from)?,
            sp: Addr(word(from)?),
            tcb: Addr(word(from)?),
            in_syscall: word(from)? == 1,
            registers: list(from, word)?,
        })
    })?;
    Ok((threads, list(from, tid)?))
}

pub(crate) fn put_map(into: &mut Vec<u8>, map: &MemoryMap) {
    put(into, map.regions().len() as u64);
    for region in map.regions() {
        let flags = [region.read, region.write, region.exec, region.shared];
        let bits = flags.iter().rev().fold(0, |b, f| b << 1 | u64::from(*f));
        put(into, region.range.start.0);
        put(into, region.range.end.0);
        put(into, bits);
        put(into, region.offset);
        put(
            into,
            u64::from(region.device.0) << 32 | u64::from(region.device.1),
        );
        put(into, region.inode);
        put_text(into, &region.path);
    }
}

pub(crate) fn map(from: &mut dyn Read) -> io::Result<MemoryMap> {
    let regions = list(from, |from| {
        let (start, end, bits) = (word(from)?, word(from)?, word(from)?);
        let (offset, device, inode) = (word(from)?, word(from)?, word(from)?);
        Ok(Region {
            range: Range::new(start, end),
            read: bits & 1 != 0,
            write: bits & 2 != 0,
            exec: bits & 4 != 0,
            shared: bits & 8 != 0,
            offset,
            device: ((device >> 32) as u32, device as u32),
            inode,
            path: bytes(from, TEXT)?,
        })
    })?;
    Ok(MemoryMap::new(regions))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_come_back_as_they_were() {
        let thread = ThreadState {
            tid: 7,
            sp: Addr(0x7000),
            tcb: Addr(0x8000),
            registers: vec![1, u64::MAX],
            in_syscall: true,
        };
        let region = Region {
            range: Range::new(0x1000, 0x3000),
            read: true,
            exec: true,
            offset: 4096,
            device: (254, 1),
            inode: 99,
            path: b"/odd\nname".to_vec(),
            ..Region::default()
        };
        let mut message = Vec::new();
        put_threads(&mut message, std::slice::from_ref(&thread), &[3, 5]);
        put_map(&mut message, &MemoryMap::new(vec![region.clone()]));
        let mut from = &message[..];
        assert_eq!(threads(&mut from).unwrap(), (vec![thread], vec![3, 5]));
        assert_eq!(map(&mut from).unwrap().regions(), [region]);
        assert!(from.is_empty());
        let mut from = &message[..message.len() - 1];
        threads(&mut from).unwrap();
        assert!(map(&mut from).is_err());
        assert!(list(&mut &u64::MAX.to_le_bytes()[..], word).is_err());
    }
}
