//! Memory of which only pages that were ever touched are read.
//!
//! Reading an untouched page maps the kernel's page of zeros into the process
//! that is examined: of terabytes that AddressSanitizer or a Java virtual
//! machine reserves, the page tables alone would fill the machine.

use leakscope_memory::{MemoryMap, MemoryReader};
use leakscope_model::{Addr, Range};
use leakscope_proc::PageSet;

const PAGE: u64 = 4096;

/// Which pages of a mapping were touched.
#[derive(Clone, Debug)]
pub(super) enum Touched {
    /// None.
    Nothing,
    /// These; and those of them that are in RAM, where some are swapped out.
    Pages {
        touched: PageSet,
        present: Option<PageSet>,
    },
    /// Too large a mapping to know: nothing of it is read.
    Unknown,
}

/// See the module's page.
pub(super) struct Sparse<'a> {
    inner: &'a dyn MemoryReader,
    map: MemoryMap,
    /// Of anonymous mappings, ascending; of others every page is read.
    touched: &'a [(Range, Touched)],
}

impl<'a> Sparse<'a> {
    pub(super) fn new(inner: &'a dyn MemoryReader, touched: &'a [(Range, Touched)]) -> Sparse<'a> {
        let mut regions = inner.map().regions().to_vec();
        for region in &mut regions {
            let at = touched.binary_search_by_key(&region.range.start, |(r, _)| r.start);
            if let Some((range, Touched::Unknown)) = at.ok().and_then(|at| touched.get(at)) {
                region.read &= *range != region.range;
            }
        }
        Sparse {
            inner,
            map: MemoryMap::new(regions),
            touched,
        }
    }

    /// How many bytes from `at` on were never touched.
    pub(super) fn untouched(&self, at: Addr) -> u64 {
        let room = self.map.find(at).map_or(0, |r| r.range.end.0 - at.0);
        match self.run(at.0, room) {
            (length, false) => length,
            (_, true) => 0,
        }
    }

    /// How many bytes from `at` on are alike, and whether they are read.
    fn run(&self, at: u64, most: u64) -> (u64, bool) {
        let next = self.touched.partition_point(|(r, _)| r.end.0 <= at);
        let Some((range, touched)) = self.touched.get(next) else {
            return (most, true);
        };
        if range.start.0 > at {
            return (most.min(range.start.0 - at), true);
        }
        let most = most.min(range.end.0 - at);
        let Touched::Pages { touched: pages, .. } = touched else {
            return (most, false);
        };
        let first = pages.contains(at);
        let mut length = PAGE - at % PAGE;
        while length < most && pages.contains(at + length) == first {
            length += PAGE;
        }
        (length.min(most), first)
    }
}

impl MemoryReader for Sparse<'_> {
    fn map(&self) -> &MemoryMap {
        &self.map
    }

    fn read_some(&self, at: Addr, into: &mut [u8]) -> usize {
        let mut done = 0;
        while done < into.len() {
            let Some(here) = at.checked_add(done as u64) else {
                break;
            };
            let rest = into.get_mut(done..).unwrap_or_default();
            let (length, is_read) = self.run(here.0, rest.len() as u64);
            let part = rest.get_mut(..length as usize).unwrap_or_default();
            if part.is_empty() {
                break;
            }
            let got = if is_read {
                self.inner.read_some(here, part)
            } else {
                part.fill(0);
                part.len()
            };
            done += got;
            if got < length as usize {
                break;
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use leakscope_testkit::FakeMemory;

    /// Eight pages, each filled with its number; the second and fifth were
    /// never touched; and a mapping of which nothing was.
    fn memory() -> (FakeMemory, Vec<(Range, Touched)>) {
        let mut memory = FakeMemory::new();
        memory
            .region(0x10000, 0x8000, "rw-p", "")
            .region(0x20000, 0x2000, "rw-p", "")
            .region(0x30000, 0x2000, "rw-p", "")
            .region(0x40000, 0x1000, "rw-p", "/data");
        for page in 0..8 {
            memory.write(0x10000 + page * PAGE, &[page as u8 + 1; PAGE as usize]);
        }
        memory.write(0x20000, &[9; 0x2000]);
        memory.write(0x40000, &[10; 0x1000]);
        let words = (0..8u64).flat_map(|i| (u64::from(i != 1 && i != 4) << 63).to_le_bytes());
        let words: Vec<u8> = words.collect();
        let pages = leakscope_proc::pagemap::parse(Addr(0x10000), &words);
        let touched = vec![
            (
                Range::new(0x10000, 0x18000),
                Touched::Pages {
                    touched: pages,
                    present: None,
                },
            ),
            (Range::new(0x20000, 0x22000), Touched::Nothing),
            (Range::new(0x30000, 0x32000), Touched::Unknown),
        ];
        (memory, touched)
    }

    #[test]
    fn untouched_pages_are_zeros_that_nobody_reads() {
        let (memory, touched) = memory();
        let mut memory = memory;
        // What is not read may as well be gone.
        memory
            .hole(0x11000, 0x1000)
            .hole(0x14000, 0x1000)
            .hole(0x20000, 0x2000);
        let sparse = Sparse::new(&memory, &touched);
        let mut all = vec![0xff; 0x8000];
        sparse.read(Addr(0x10000), &mut all).unwrap();
        let firsts: Vec<u8> = all.chunks(PAGE as usize).map(|p| p[5]).collect();
        assert_eq!(firsts, [1, 0, 3, 4, 0, 6, 7, 8]);
        let mut across = [0xff; 16];
        sparse.read(Addr(0x10ff8), &mut across).unwrap();
        assert_eq!(across, [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(sparse.read_u64(Addr(0x20ff8)), Ok(0));
        assert_eq!(sparse.read_u64(Addr(0x40000)), Ok(0x0a0a_0a0a_0a0a_0a0a));
    }

    #[test]
    fn gaps_end_a_read_and_what_is_not_known_is_not_readable() {
        let (memory, touched) = memory();
        let sparse = Sparse::new(&memory, &touched);
        let mut over = vec![0; 0x9000];
        assert_eq!(sparse.read_some(Addr(0x17000), &mut over), 0x1000);
        assert!(sparse.read(Addr(0x17ffc), &mut [0; 8]).is_err());
        assert_eq!(sparse.read_some(Addr(0x50000), &mut over), 0);
        let readable = |at: u64| sparse.map().find(Addr(at)).map(|r| r.read);
        assert_eq!(readable(0x30000), Some(false));
        assert_eq!(readable(0x20000), Some(true));
    }
}
