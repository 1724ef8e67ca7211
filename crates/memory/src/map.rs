//! The map of an address space.

use leakscope_model::{Addr, Range};

/// One mapping, as a line of `/proc/PID/maps` describes it
/// (`Documentation/filesystems/proc.rst`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// Addresses.
    pub range: Range,
    /// Readable.
    pub read: bool,
    /// Writable.
    pub write: bool,
    /// Executable.
    pub exec: bool,
    /// Shared (`s`), otherwise private (`p`).
    pub shared: bool,
    /// Offset in the file, bytes.
    pub offset: u64,
    /// Device major and minor numbers.
    pub device: (u32, u32),
    /// Inode; 0 for anonymous memory.
    pub inode: u64,
    /// Path or pseudo-path such as `[heap]`; empty for anonymous memory. Any
    /// bytes; `(deleted)` is kept as the kernel writes it.
    pub path: Vec<u8>,
}

impl Region {
    /// Private memory without a file behind it (`[heap]`, `[stack]` and
    /// named anonymous mappings `[anon:…]` included).
    pub fn is_anonymous(&self) -> bool {
        self.inode == 0 && !self.shared
    }
}

/// Regions sorted by address that do not overlap.
#[derive(Clone, Debug, Default)]
pub struct MemoryMap {
    regions: Vec<Region>,
}

impl MemoryMap {
    /// Sorts the regions; of two that overlap the later one is dropped.
    pub fn new(mut regions: Vec<Region>) -> MemoryMap {
        regions.retain(|r| !r.range.is_empty());
        regions.sort_by_key(|r| r.range.start);
        let mut end = Addr(0);
        regions.retain(|r| {
            let keep = r.range.start >= end;
            if keep {
                end = r.range.end;
            }
            keep
        });
        MemoryMap { regions }
    }

    /// All regions in ascending order.
    pub fn regions(&self) -> &[Region] {
        &self.regions
    }

    /// The region that contains `at`.
    pub fn find(&self, at: Addr) -> Option<&Region> {
        let i = self.regions.partition_point(|r| r.range.end <= at);
        self.regions.get(i).filter(|r| r.range.contains(at))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn region(start: u64, end: u64) -> Region {
        Region {
            range: Range::new(start, end),
            ..Region::default()
        }
    }

    #[test]
    fn finds_by_address_and_drops_overlaps() {
        let map = MemoryMap::new(vec![
            region(0x3000, 0x4000),
            region(0x1000, 0x2000),
            region(0x1800, 0x2800),
            region(0x5000, 0x5000),
        ]);
        assert_eq!(map.regions().len(), 2);
        assert_eq!(
            map.find(Addr(0x1fff)).map(|r| r.range.start),
            Some(Addr(0x1000))
        );
        assert!(map.find(Addr(0x2000)).is_none());
        assert!(map.find(Addr(0x3000)).is_some());
        assert!(map.find(Addr(0xffff)).is_none());
    }
}
