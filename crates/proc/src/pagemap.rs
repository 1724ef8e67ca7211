//! `/proc/PID/pagemap`: which pages are in memory.

use crate::error::ProcError;
use leakscope_model::{Addr, Range};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Bytes of a page, on the processors that leakscope runs on.
const PAGE: u64 = 4096;
/// Bytes that the file has for each page: a word, little-endian on the
/// processors that leakscope runs on.
const WORD: usize = 8;
/// Bit of the word: the page is in memory
/// (`Documentation/admin-guide/mm/pagemap.rst`).
const PRESENT: u64 = 1 << 63;
/// Bit of the word: the page is swapped out, or the kernel is just moving it.
const SWAPPED: u64 = 1 << 62;
/// Bytes of the file per read; whole words of a [`PageSet`], and of the
/// file, which refuses any other length.
const PIECE: usize = 1 << 16;
/// Longest range, bytes: 16 TiB, of which the set has 512 MiB of bits.
const LONGEST: u64 = 1 << 44;

/// A set of pages, one bit each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PageSet {
    /// Number of the first page: its address divided by the page size.
    first: u64,
    /// Bit 0 of word 0 is the first page.
    bits: Vec<u64>,
}

impl PageSet {
    /// True when the page of `addr` belongs to it.
    pub fn contains(&self, addr: u64) -> bool {
        let Some(page) = (addr / PAGE).checked_sub(self.first) else {
            return false;
        };
        let word = usize::try_from(page / 64).ok();
        let word = word.and_then(|at| self.bits.get(at));
        word.is_some_and(|word| word >> (page % 64) & 1 != 0)
    }

    /// Number of its pages.
    pub fn count(&self) -> u64 {
        ones(&self.bits)
    }

    /// How many bytes from `start` to `end` (which is not included) lie on
    /// its pages; 0 when `end <= start`.
    pub fn overlap(&self, start: u64, end: u64) -> u64 {
        if end <= start {
            return 0;
        }
        // Not `end`: that of the last page of all is no 64-bit number.
        let last = end - 1;
        let mut bytes = self.pages(start / PAGE, last / PAGE) * PAGE;
        if self.contains(start) {
            bytes -= start % PAGE;
        }
        if self.contains(last) {
            bytes -= PAGE - 1 - last % PAGE;
        }
        bytes
    }

    /// How many pages from number `low` to number `high`, both included.
    fn pages(&self, low: u64, high: u64) -> u64 {
        let Some(covered) = (self.bits.len() as u64 * 64).checked_sub(1) else {
            return 0;
        };
        let Some(high) = high.checked_sub(self.first) else {
            return 0;
        };
        let (low, high) = (low.saturating_sub(self.first), high.min(covered));
        if low > high {
            return 0;
        }
        // Both are indexes into the words, as neither exceeds `covered`.
        let words = (low / 64) as usize..=(high / 64) as usize;
        let words = self.bits.get(words).unwrap_or_default();
        let (Some(front), Some(back)) = (words.first(), words.last()) else {
            return 0;
        };
        let before = front & !(u64::MAX << (low % 64));
        let behind = back & !(u64::MAX >> (63 - high % 64));
        ones(words) - ones(&[before]) - ones(&[behind])
    }

    /// Adds pages behind the last word; what is left of `text` behind its
    /// last whole word of the file is not a page.
    fn extend(&mut self, text: &[u8], wanted: u64) {
        self.bits.extend(text.chunks(64 * WORD).map(|pages| {
            let (words, _) = pages.as_chunks::<WORD>();
            words.iter().enumerate().fold(0, |bits, (at, word)| {
                let present = u64::from_le_bytes(*word) & wanted != 0;
                bits | u64::from(present) << at
            })
        }));
    }
}

fn ones(words: &[u64]) -> u64 {
    words.iter().map(|word| u64::from(word.count_ones())).sum()
}

/// The present pages in a part of the file, of which the first is the page
/// of `start`.
pub fn parse(start: Addr, text: &[u8]) -> PageSet {
    let mut set = PageSet {
        first: start.0 / PAGE,
        bits: Vec::new(),
    };
    set.extend(text, PRESENT);
    set
}

/// The open file. It stays that of the process which had the id when it was
/// opened; once that has ended, no page is present.
#[derive(Debug)]
pub struct Pagemap {
    file: File,
    path: PathBuf,
}

impl Pagemap {
    pub(crate) fn open(path: PathBuf) -> Result<Pagemap, ProcError> {
        match File::open(&path) {
            Ok(file) => Ok(Pagemap { file, path }),
            Err(error) => Err(ProcError::io(&path, error)),
        }
    }

    /// The pages of `range` that are in memory, those that it has a part of
    /// included. A page that is swapped out, or that the kernel is just
    /// moving, is not; one that was read but never written is (the kernel's
    /// page of zeros), though it does not count as resident elsewhere. Reads
    /// 2 MiB for each GiB of `range`.
    ///
    /// # Errors
    /// Malformed when `range` is longer than 16 TiB; Gone, Denied or Io.
    pub fn present(&self, range: Range) -> Result<PageSet, ProcError> {
        self.pages(range, PRESENT)
    }

    /// The pages of `range` that hold anything: those in memory, swapped out,
    /// or on their way from one place to another. Any other page of private
    /// anonymous memory is zeros. For the rest see [`Pagemap::present`].
    ///
    /// # Errors
    /// Those of [`Pagemap::present`].
    pub fn touched(&self, range: Range) -> Result<PageSet, ProcError> {
        self.pages(range, PRESENT | SWAPPED)
    }

    fn pages(&self, range: Range, wanted_bits: u64) -> Result<PageSet, ProcError> {
        if range.len() > LONGEST {
            return Err(ProcError::range_too_long(&self.path, range.len(), LONGEST));
        }
        let mut set = parse(range.start, &[]);
        if range.is_empty() {
            return Ok(set);
        }
        let mut at = set.first * WORD as u64;
        let end = range.end.0.div_ceil(PAGE) * WORD as u64;
        let mut piece = vec![0; PIECE];
        while at < end {
            let wanted = (end - at).min(PIECE as u64) as usize;
            let into = piece.get_mut(..wanted).unwrap_or_default();
            let length = read_at(&self.file, &self.path, into, at)?;
            set.extend(into.get(..length).unwrap_or_default(), wanted_bits);
            // Behind the last address that a process can have.
            if length < wanted {
                break;
            }
            at += wanted as u64;
        }
        Ok(set)
    }
}

fn read_at(file: &File, path: &Path, into: &mut [u8], at: u64) -> Result<usize, ProcError> {
    loop {
        match file.read_at(into, at) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            read => return read.map_err(|e| ProcError::io(path, e)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Numbers that look random and are the same in each run (xorshift).
    struct Random(u64);

    impl Random {
        fn below(&mut self, limit: u64) -> u64 {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            self.0 % limit
        }
    }

    fn words(present: impl IntoIterator<Item = bool>) -> Vec<u8> {
        // The other bits are what the kernel may add: a frame, soft-dirty,
        // exclusive, swapped.
        let word = |present| if present { PRESENT | 0x1_8765 } else { 7 << 55 };
        let words = present.into_iter().map(word);
        words.flat_map(u64::to_le_bytes).collect()
    }

    #[test]
    fn a_page_is_present_by_its_highest_bit() {
        let text = words([true, false, false, true]);
        let set = parse(Addr(0x10_0123), &text);
        assert_eq!(set.count(), 2);
        for (addr, want) in [
            (0, false),
            (0xf_ffff, false),
            (0x10_0000, true),
            (0x10_0fff, true),
            (0x10_1000, false),
            (0x10_2fff, false),
            (0x10_3000, true),
            (0x10_4000, false),
            (u64::MAX, false),
        ] {
            assert_eq!(set.contains(addr), want, "{addr:#x}");
        }
        let torn = parse(Addr(0x10_0000), text.get(..31).unwrap());
        assert_eq!(torn.count(), 1, "the last word has 7 bytes");
    }

    #[test]
    fn overlap_is_in_bytes() {
        let set = parse(Addr(0x3000), &words([true, true, false, true]));
        for (start, end, want) in [
            (0x3000, 0x3000, 0),
            (0x4000, 0x3000, 0),
            (0x3000, 0x3001, 1),
            (0x3007, 0x3018, 17),
            (0x3fff, 0x4001, 2),
            (0x4ff0, 0x6010, 32),
            (0x5000, 0x6000, 0),
            (0x5001, 0x5fff, 0),
            (0, 0x3000, 0),
            (0, 0x3001, 1),
            (0x7000, u64::MAX, 0),
            (0x6fff, u64::MAX, 1),
            (0, u64::MAX, 3 * PAGE),
        ] {
            assert_eq!(set.overlap(start, end), want, "{start:#x}-{end:#x}");
        }
        assert_eq!(PageSet::default().overlap(0, u64::MAX), 0);
        assert!(!PageSet::default().contains(0));
    }

    #[test]
    fn the_last_page_of_all() {
        let set = parse(Addr(u64::MAX - PAGE), &words([false, true]));
        assert!(set.contains(u64::MAX));
        assert_eq!(set.overlap(0, u64::MAX), PAGE - 1);
        assert_eq!(set.overlap(u64::MAX - 5, u64::MAX), 5);
    }

    #[test]
    fn overlap_agrees_with_a_look_at_each_page() {
        let mut random = Random(0x9e37_79b9_7f4a_7c15);
        for pages in [1, 63, 64, 65, 128, 331] {
            let base = 0x7f00_0000_0000 + random.below(64) * PAGE;
            let present: Vec<bool> = (0..pages).map(|_| random.below(3) != 0).collect();
            let set = parse(Addr(base), &words(present.iter().copied()));
            let held = present.iter().filter(|&&p| p).count() as u64;
            assert_eq!(set.count(), held);
            assert_eq!(set.overlap(0, u64::MAX), held * PAGE);

            let naive = |start: u64, end: u64| -> u64 {
                let addresses = (base..).step_by(PAGE as usize);
                let held = addresses.zip(&present).filter(|&(_, &p)| p);
                held.map(|(page, _)| end.min(page + PAGE).saturating_sub(start.max(page)))
                    .sum()
            };
            // From ten pages in front of the set to ten behind it.
            let (from, span) = (base - 10 * PAGE, (pages + 20) * PAGE);
            for round in 0..2000 {
                let start = from + random.below(span);
                let longest = if round % 2 == 0 { 3 * PAGE } else { span };
                let mut end = start + random.below(longest);
                if round % 5 == 0 {
                    end = end.next_multiple_of(PAGE);
                }
                assert_eq!(
                    set.overlap(start, end),
                    naive(start, end),
                    "{start:#x}-{end:#x} of {pages} pages from {base:#x}"
                );
            }
        }
    }
}
