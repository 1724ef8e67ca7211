//! Words of the target, read a window at a time.

use leakscope_memory::MemoryReader;
use leakscope_model::Addr;

const WINDOW: u64 = 64 << 10;

/// Remembers the last window: for walks that go through memory in order.
pub struct Words<'a> {
    memory: &'a dyn MemoryReader,
    start: u64,
    bytes: Vec<u8>,
}

impl<'a> Words<'a> {
    /// Holds nothing yet.
    pub fn new(memory: &'a dyn MemoryReader) -> Words<'a> {
        Words {
            memory,
            start: 0,
            bytes: Vec::new(),
        }
    }

    /// The word at `at`, or `None` when it cannot be read.
    pub fn at(&mut self, at: u64) -> Option<u64> {
        if let Some(word) = self.held(at) {
            return Some(word);
        }
        // A little before, since walks also look at the word below.
        self.start = at & !63;
        self.bytes.resize(WINDOW as usize, 0);
        let n = self.memory.read_some(Addr(self.start), &mut self.bytes);
        self.bytes.truncate(n);
        self.held(at)
    }

    fn held(&self, at: u64) -> Option<u64> {
        let from = usize::try_from(at.checked_sub(self.start)?).ok()?;
        let word = self.bytes.get(from..from.checked_add(8)?)?;
        Some(u64::from_le_bytes(word.try_into().ok()?))
    }
}

/// All of `[start, start + len)` that can be read from its start, as words.
pub fn read_words(memory: &dyn MemoryReader, start: u64, len: u64) -> Vec<u64> {
    let Ok(len) = usize::try_from(len) else {
        return Vec::new();
    };
    let mut bytes = vec![0; len];
    let n = memory.read_some(Addr(start), &mut bytes);
    bytes[..n.min(len)]
        .as_chunks::<8>()
        .0
        .iter()
        .map(|w| u64::from_le_bytes(*w))
        .collect()
}
