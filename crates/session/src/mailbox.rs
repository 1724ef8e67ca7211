//! Memory of a process that may not be traced: its own asking thread copies
//! what is wanted into the segment's window.

use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use leakscope_memory::{Fault, FaultReason, MemoryMap, MemoryReader};
use leakscope_model::Addr;
use leakscope_proc::maps;
use leakscope_wire::layout::{Area, WINDOW_BYTES, mail, word};

use crate::segment::SharedSegment;

/// How long one delivery may take: the thread has nothing else to do, so
/// longer means that it is stopped or gone.
const PATIENCE: Duration = Duration::from_secs(5);
/// One look at the mailbox.
const LOOK: Duration = Duration::from_millis(50);
/// Fetched at least, as far as the region goes: a round trip costs as much as
/// copying this.
const READ_AHEAD: u64 = 64 << 10;
/// Longest map that is fetched, bytes: the kernel's default limit of 65530
/// mappings with paths of ordinary length.
const LONGEST_MAP: usize = 16 << 20;

/// See the module's page.
pub(crate) struct MailMemory<'a> {
    segment: &'a SharedSegment,
    map: MemoryMap,
    state: Mutex<State>,
}

struct State {
    /// Set when a delivery failed for good.
    broken: bool,
    /// What was delivered last, and from where.
    at: u64,
    bytes: Vec<u8>,
}

impl<'a> MailMemory<'a> {
    /// Fetches the map; `None` when the process does not answer.
    pub(crate) fn open(segment: &'a SharedSegment) -> Option<MailMemory<'a>> {
        let mut text = Vec::new();
        while text.len() < LONGEST_MAP {
            let part = deliver(segment, mail::MAPS, text.len() as u64, WINDOW_BYTES)?;
            if part.is_empty() {
                break;
            }
            text.extend_from_slice(&part);
        }
        let map = maps::parse_lenient(&text).map;
        if map.regions().is_empty() {
            return None;
        }
        Some(MailMemory {
            segment,
            map,
            state: Mutex::new(State {
                broken: false,
                at: 0,
                bytes: Vec::new(),
            }),
        })
    }

    fn fill(&self, at: Addr, into: &mut [u8]) -> (usize, FaultReason) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut done = 0;
        while let Some(rest) = into.get_mut(done..).filter(|rest| !rest.is_empty()) {
            let Some(from) = at.checked_add(done as u64) else {
                return (done, FaultReason::Unmapped);
            };
            let mut copied = state.copy(from.0, rest);
            if copied == 0 {
                // What is not readable is not asked for: the process would
                // have to survive the attempt.
                let Some(region) = self.map.find(from).filter(|r| r.read) else {
                    return (done, FaultReason::Unmapped);
                };
                if state.broken {
                    return (done, FaultReason::Gone);
                }
                let left = region.range.end.0.saturating_sub(from.0);
                let len = (rest.len() as u64)
                    .max(READ_AHEAD)
                    .min(left)
                    .min(WINDOW_BYTES);
                let Some(bytes) = deliver(self.segment, mail::READ, from.0, len) else {
                    state.broken = true;
                    return (done, FaultReason::Gone);
                };
                state.at = from.0;
                state.bytes = bytes;
                copied = state.copy(from.0, rest);
                if copied == 0 {
                    return (done, FaultReason::Unmapped);
                }
            }
            done += copied;
        }
        (done, FaultReason::Unmapped)
    }
}

impl State {
    /// Copies what is at hand.
    fn copy(&self, from: u64, into: &mut [u8]) -> usize {
        let Some(skip) = from.checked_sub(self.at) else {
            return 0;
        };
        let skip = usize::try_from(skip).unwrap_or(usize::MAX);
        let held = self.bytes.get(skip..).unwrap_or_default();
        let len = held.len().min(into.len());
        if let (Some(to), Some(held)) = (into.get_mut(..len), held.get(..len)) {
            to.copy_from_slice(held);
        }
        len
    }
}

impl MemoryReader for MailMemory<'_> {
    fn map(&self) -> &MemoryMap {
        &self.map
    }

    fn read(&self, at: Addr, into: &mut [u8]) -> Result<(), Fault> {
        match self.fill(at, into) {
            (done, _) if done == into.len() => Ok(()),
            (done, reason) => Err(Fault {
                at: at.checked_add(done as u64).unwrap_or(at),
                reason,
            }),
        }
    }

    fn read_some(&self, at: Addr, into: &mut [u8]) -> usize {
        self.fill(at, into).0
    }
}

/// One delivery; `None` when none came in time.
fn deliver(segment: &SharedSegment, operation: u32, at: u64, len: u64) -> Option<Vec<u8>> {
    let words = segment.segment();
    let box_word = words.futex(word::MAIL_OP);
    words.word(word::MAIL_ADDR).store(at, Relaxed);
    words.word(word::MAIL_LEN).store(len, Relaxed);
    words.word(word::MAIL_DONE).store(0, Relaxed);
    box_word.store(operation, Release);
    segment.wake(word::MAIL_OP);
    segment.wake(word::ANSWER);
    let deadline = Instant::now() + PATIENCE;
    loop {
        let seen = box_word.load(Acquire);
        if seen == mail::NONE {
            break;
        }
        if Instant::now() >= deadline {
            return None;
        }
        segment.wait(word::MAIL_OP, seen, LOOK);
    }
    let done = words.word(word::MAIL_DONE).load(Relaxed).min(len);
    let done = usize::try_from(done.min(WINDOW_BYTES)).ok()?;
    let window = words.words(Area::Window);
    let mut bytes: Vec<u8> = window
        .iter()
        .take(done.div_ceil(8))
        .flat_map(|word| word.load(Relaxed).to_le_bytes())
        .collect();
    bytes.truncate(done);
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::segment::Orders;
    use std::sync::atomic::{AtomicBool, Ordering};

    /// Plays the recorder's waiting thread until told to end.
    fn recorder(segment: &SharedSegment, over: &AtomicBool, maps: &[u8], memory: (u64, &[u8])) {
        let words = segment.segment();
        while !over.load(Ordering::Relaxed) {
            let operation = words.futex(word::MAIL_OP).load(Acquire);
            let at = words.word(word::MAIL_ADDR).load(Relaxed);
            let len = words.word(word::MAIL_LEN).load(Relaxed) as usize;
            let source = match operation {
                mail::READ => {
                    let skip = (at - memory.0) as usize;
                    memory.1.get(skip..).unwrap_or_default()
                }
                // Small pieces, so that the map comes in several.
                mail::MAPS => {
                    let rest = maps.get(at as usize..).unwrap_or_default();
                    &rest[..rest.len().min(41)]
                }
                _ => {
                    segment.wait(word::MAIL_OP, operation, LOOK);
                    continue;
                }
            };
            let done = source.len().min(len);
            for (to, byte) in words.bytes(Area::Window).iter().zip(&source[..done]) {
                to.store(*byte, Relaxed);
            }
            words.word(word::MAIL_DONE).store(done as u64, Relaxed);
            words.futex(word::MAIL_OP).store(mail::NONE, Release);
            segment.wake(word::MAIL_OP);
        }
    }

    #[test]
    fn reads_through_the_window() {
        let (segment, _file) = SharedSegment::create(1 << 30, &Orders::default()).unwrap();
        let maps = b"10000-30000 rw-p 00000000 00:00 0 \n\
            30000-31000 ---p 00000000 00:00 0 \n\
            40000-50000 r--p 00000000 00:00 0 [stack]\n";
        let memory: Vec<u8> = (0..0x40000u32).map(|i| (i % 251) as u8).collect();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| recorder(&segment, &over, maps, (0x10000, &memory)));
            let mail = MailMemory::open(&segment).unwrap();
            assert_eq!(mail.map().regions().len(), 3);
            let mut bytes = vec![0u8; 0x12345];
            mail.read(Addr(0x10001), &mut bytes).unwrap();
            assert_eq!(bytes, memory[1..0x12346]);
            assert_eq!(mail.read_some(Addr(0x2fff0), &mut bytes), 16);
            let fault = mail.read(Addr(0x2fff8), &mut bytes).unwrap_err();
            assert_eq!(fault.at, Addr(0x30000));
            assert_eq!(mail.read_some(Addr(0x30000), &mut bytes), 0);
            assert_eq!(mail.read_some(Addr(u64::MAX - 3), &mut bytes), 0);
            over.store(true, Ordering::Relaxed);
        });
    }
}
