//! Memory of a process that never ran.

use leakscope_memory::{Fault, FaultReason, MemoryMap, MemoryReader, Region};
use leakscope_model::{Addr, Range};
use std::collections::BTreeMap;

/// A [`MemoryReader`] over regions that the test writes itself.
///
/// Regions start zeroed. Like the kernel's cross-process read, it reads
/// across the border of two adjacent readable regions and faults on regions
/// without read permission.
#[derive(Clone, Debug, Default)]
pub struct FakeMemory {
    map: MemoryMap,
    contents: BTreeMap<u64, Vec<u8>>,
    holes: Vec<Range>,
}

impl FakeMemory {
    /// Memory without any region.
    pub fn new() -> FakeMemory {
        FakeMemory::default()
    }

    /// Maps `len` zero bytes at `start`. `permissions` is written as in
    /// `/proc/PID/maps` (`rw-p`); a `path` that begins with `/` makes the
    /// region file-backed, with an inode derived from the path.
    ///
    /// # Panics
    /// When the region overlaps one that is there already.
    pub fn region(
        &mut self,
        start: u64,
        len: u64,
        permissions: &str,
        path: &str,
    ) -> &mut FakeMemory {
        let flags = permissions.as_bytes();
        let has = |at: usize, letter: u8| flags.get(at) == Some(&letter);
        let inode = if path.starts_with('/') {
            path.bytes()
                .fold(1, |sum: u64, b| (sum * 31 + u64::from(b)) % 1_000_003)
                + 1
        } else {
            0
        };
        let region = Region {
            range: Range::new(start, start + len),
            read: has(0, b'r'),
            write: has(1, b'w'),
            exec: has(2, b'x'),
            shared: has(3, b's'),
            inode,
            path: path.as_bytes().to_vec(),
            ..Region::default()
        };
        let mut regions = self.map.regions().to_vec();
        assert!(
            regions
                .iter()
                .all(|r| r.range.intersect(&region.range).is_none()),
            "region at {start:#x} overlaps another"
        );
        regions.push(region);
        self.map = MemoryMap::new(regions);
        self.contents.insert(start, vec![0; len as usize]);
        self
    }

    /// Makes `[start, start + len)` unreadable although the map says
    /// otherwise (a page that is gone by the time it is read).
    pub fn hole(&mut self, start: u64, len: u64) -> &mut FakeMemory {
        self.holes.push(Range::new(start, start + len));
        self
    }

    /// Writes `bytes` at `at`, inside one region.
    ///
    /// # Panics
    /// When the bytes do not fit into one region.
    pub fn write(&mut self, at: u64, bytes: &[u8]) -> &mut FakeMemory {
        let (start, contents) = self
            .contents
            .range_mut(..=at)
            .next_back()
            .unwrap_or_else(|| panic!("no region at {at:#x}"));
        let from = (at - start) as usize;
        contents
            .get_mut(from..from + bytes.len())
            .unwrap_or_else(|| panic!("no region for {} bytes at {at:#x}", bytes.len()))
            .copy_from_slice(bytes);
        self
    }

    /// Writes a little-endian word at `at`.
    ///
    /// # Panics
    /// When no region holds it.
    pub fn word(&mut self, at: u64, word: u64) -> &mut FakeMemory {
        self.write(at, &word.to_le_bytes())
    }

    /// Writes consecutive words from `at`.
    ///
    /// # Panics
    /// When no region holds them.
    pub fn words(&mut self, at: u64, words: &[u64]) -> &mut FakeMemory {
        for (i, word) in words.iter().enumerate() {
            self.word(at + 8 * i as u64, *word);
        }
        self
    }

    fn first_hole(&self, from: u64) -> u64 {
        self.holes
            .iter()
            .filter(|h| h.end.0 > from)
            .map(|h| h.start.0.max(from))
            .min()
            .unwrap_or(u64::MAX)
    }
}

impl MemoryReader for FakeMemory {
    fn map(&self) -> &MemoryMap {
        &self.map
    }

    fn read(&self, at: Addr, into: &mut [u8]) -> Result<(), Fault> {
        let done = self.read_some(at, into);
        if done == into.len() {
            return Ok(());
        }
        Err(Fault {
            at: Addr(at.0.saturating_add(done as u64)),
            reason: FaultReason::Unmapped,
        })
    }

    fn read_some(&self, at: Addr, into: &mut [u8]) -> usize {
        let hole = self.first_hole(at.0);
        let mut done = 0;
        while done < into.len() {
            let Some(here) = at.checked_add(done as u64) else {
                break;
            };
            let Some(region) = self.map.find(here).filter(|r| r.read) else {
                break;
            };
            let end = region.range.end.0.min(hole);
            if end <= here.0 {
                break;
            }
            let Some(contents) = self.contents.get(&region.range.start.0) else {
                break;
            };
            let from = (here.0 - region.range.start.0) as usize;
            let n = ((end - here.0) as usize).min(into.len() - done);
            into[done..done + n].copy_from_slice(&contents[from..from + n]);
            done += n;
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_across_neighbours_and_stops_at_gaps() {
        let mut memory = FakeMemory::new();
        memory
            .region(0x1000, 0x1000, "rw-p", "")
            .region(0x2000, 0x1000, "r--p", "/lib/a.so")
            .region(0x3000, 0x1000, "---p", "")
            .words(0x1ff8, &[7])
            .words(0x2000, &[11]);
        assert_eq!(memory.read_u64(Addr(0x1ff8)), Ok(7));
        let mut two = [0; 16];
        assert!(memory.read(Addr(0x1ff8), &mut two).is_ok());
        assert_eq!(two[8], 11);
        let mut many = vec![0; 0x4000];
        assert_eq!(memory.read_some(Addr(0x1800), &mut many), 0x1800);
        assert_eq!(
            memory.read(Addr(0x2ff8), &mut two).map_err(|f| f.at),
            Err(Addr(0x3000))
        );
        memory.hole(0x1100, 0x100);
        assert_eq!(memory.read_some(Addr(0x1000), &mut many), 0x100);
        assert_eq!(memory.read_some(Addr(0x1180), &mut many), 0);
        assert_eq!(memory.read_some(Addr(0x1200), &mut many), 0x1e00);
    }
}
