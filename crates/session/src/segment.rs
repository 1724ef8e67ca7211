//! The shared memory of one recorded process image: made here, sealed, handed
//! out as a descriptor, and kept mapped.
#![allow(unsafe_code)]

use std::fs::File;
use std::io;

use leakscope_wire::layout::{self, Area, DEFAULT_SEGMENT, MIN_SEGMENT, word};
use leakscope_wire::{Layout, Reader, Segment};
use memmap2::{MmapOptions, MmapRaw};
use rustix::fs::{
    MemfdFlags, SealFlags, fcntl_add_seals, fcntl_get_seals, ftruncate, memfd_create,
};
use rustix::mm::{Advice, madvise};
use rustix::thread::futex;
use std::sync::atomic::Ordering::{Relaxed, Release};

/// What the recorder is told to do; the header words of the same names.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    /// Bits of [`layout::config`].
    pub config: u64,
    /// Deepest stack, frames.
    pub max_depth: u64,
    /// Mean bytes between samples, 0 for every allocation.
    pub sample_bytes: u64,
    /// Smallest application mapping, bytes.
    pub mmap_min: u64,
}

/// A mapped segment. The recorder holds the other end.
#[derive(Debug)]
pub(crate) struct SharedSegment {
    mapping: MmapRaw,
    layout: Layout,
}

impl SharedSegment {
    /// Makes a segment and its descriptor, as large as the target's
    /// address-space limit (bytes; `u64::MAX` for none) and our own allow.
    ///
    /// # Errors
    /// When not even the smallest segment fits, or the kernel refuses one.
    pub(crate) fn create(limit: u64, orders: &Orders) -> io::Result<(SharedSegment, File)> {
        // A segment larger than an eighth of the limit would take address
        // space that the program may come to need; the smallest is worth up
        // to a half.
        let fitting = if MIN_SEGMENT <= limit / 2 {
            (limit / 8).max(MIN_SEGMENT)
        } else {
            limit / 8
        };
        let mut len = DEFAULT_SEGMENT.min(fitting) & !(layout::PAGE - 1);
        loop {
            if len < MIN_SEGMENT {
                return Err(io::Error::other(format!(
                    "an address-space limit of {limit} bytes leaves no room for the recorder"
                )));
            }
            match SharedSegment::of_length(len, orders) {
                Ok(made) => return Ok(made),
                // EFBIG: RLIMIT_FSIZE; ENOMEM: our own RLIMIT_AS.
                Err(error) if is_size(&error) && len / 2 >= MIN_SEGMENT => {
                    len = (len / 2) & !(layout::PAGE - 1);
                }
                Err(error) if is_size(&error) => {
                    return Err(io::Error::other(format!(
                        "a limit of ours (ulimit -f or -v) leaves no room for the recorder: {error}"
                    )));
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Maps a segment that another leakscope made.
    ///
    /// # Errors
    /// When the file is none of this version, or could be shortened under us.
    pub(crate) fn open(file: &File) -> io::Result<SharedSegment> {
        let other = || io::Error::other("it is of another version");
        if !fcntl_get_seals(file)?.contains(SealFlags::SHRINK) {
            return Err(io::Error::other("its file could be shortened"));
        }
        let layout = Layout::new(file.metadata()?.len()).ok_or_else(other)?;
        let len = usize::try_from(layout.len()).map_err(io::Error::other)?;
        let mapping = MmapOptions::new().len(len).map_raw(file)?;
        let found = SharedSegment { mapping, layout };
        let reader = found.reader();
        let said = [word::MAGIC, word::VERSION, word::LEN].map(|index| reader.word(index));
        if said != [layout::MAGIC, layout::VERSION, layout.len()] {
            return Err(other());
        }
        Ok(found)
    }

    fn of_length(len: u64, orders: &Orders) -> io::Result<(SharedSegment, File)> {
        let refuse = || io::Error::other(format!("a segment of {len} bytes cannot be laid out"));
        let layout = Layout::new(len).ok_or_else(refuse)?;
        let usize_len = usize::try_from(len).map_err(io::Error::other)?;
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create(c"leakscope", flags)?);
        ftruncate(&file, len)?;
        // Without these a hostile target could shorten the file, and our next
        // read of the mapping would be a SIGBUS.
        fcntl_add_seals(&file, SealFlags::SHRINK | SealFlags::GROW | SealFlags::SEAL)?;
        let mapping = MmapOptions::new().len(usize_len).map_raw(&file)?;
        let made = SharedSegment { mapping, layout };
        made.write_header(orders);
        Ok((made, file))
    }

    fn write_header(&self, orders: &Orders) {
        let segment = self.segment();
        for (index, value) in [
            (word::VERSION, layout::VERSION),
            (word::LEN, self.layout.len()),
            (word::CONFIG, orders.config),
            (word::MAX_DEPTH, orders.max_depth),
            (word::SAMPLE_BYTES, orders.sample_bytes),
            (word::MMAP_MIN, orders.mmap_min),
            (word::NODE_NEXT, 1),
        ] {
            segment.word(index).store(value, Relaxed);
        }
        segment.word(word::MAGIC).store(layout::MAGIC, Release);
    }

    /// Access to its words.
    pub(crate) fn segment(&self) -> Segment<'_> {
        // SAFETY: the mapping is page-aligned, shared, readable and writable
        // (`map_raw`), exactly `layout.len()` bytes long (`of_length`, `open`),
        // backed by a file that can no longer shrink (sealed, asked in `open`), and lives as long as
        // `self`, which the returned lifetime borrows. Nothing else in this
        // process makes references into it: `mapping` is private and only its
        // address is used.
        unsafe { Segment::new(self.mapping.as_ptr(), self.layout) }
    }

    /// Gives the memory of blocks and stacks back, of which nothing is needed
    /// any more: they read as zero from now on, for the recorder, too. With
    /// millions of blocks that takes as long as the rest of the end.
    pub(crate) fn give_back(&self) {
        for area in [Area::Heap, Area::Nodes] {
            let (at, len) = self.layout.area(area);
            let (Ok(at), Ok(len)) = (usize::try_from(at), usize::try_from(len)) else {
                continue;
            };
            // SAFETY: the area lies inside our mapping (`Layout::area`), whose
            // words are only accessed atomically and may hold anything at any
            // time: the recorder could write the same zeros.
            let done = unsafe {
                let start = self.mapping.as_mut_ptr().add(at);
                madvise(start.cast(), len, Advice::LinuxRemove)
            };
            // A kernel that will not now frees it all at the end.
            if done.is_err() {
                return;
            }
        }
    }

    /// The checked view of what the recorder wrote.
    pub(crate) fn reader(&self) -> Reader<'_> {
        Reader::new(self.segment())
    }

    /// Wakes everybody who waits on a header word, in either process.
    pub(crate) fn wake(&self, index: usize) {
        // Nobody waiting is not an error, and nothing else can fail here.
        let _ = futex::wake(
            self.segment().futex(index),
            futex::Flags::empty(),
            u32::MAX >> 1,
        );
    }

    /// Waits until a header word's low half is no longer `seen`, somebody
    /// wakes it, or `timeout` has passed.
    pub(crate) fn wait(&self, index: usize, seen: u32, timeout: std::time::Duration) {
        let limit = futex::Timespec {
            tv_sec: i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX),
            tv_nsec: futex::Nsecs::from(timeout.subsec_nanos()),
        };
        // A time-out, a changed word and a signal all mean: look again.
        let _ = futex::wait(
            self.segment().futex(index),
            futex::Flags::empty(),
            seen,
            Some(&limit),
        );
    }
}

fn is_size(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::FBIG | Errno::NOMEM)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn orders() -> Orders {
        Orders {
            config: layout::config::FOLLOW,
            max_depth: 61,
            sample_bytes: 0,
            mmap_min: 65536,
        }
    }

    #[test]
    fn header_is_written_and_the_file_cannot_be_cut() {
        let (made, file) = SharedSegment::create(u64::MAX, &orders()).unwrap();
        let reader = made.reader();
        assert_eq!(reader.word(word::MAGIC), layout::MAGIC);
        assert_eq!(reader.word(word::LEN), DEFAULT_SEGMENT);
        assert_eq!(reader.word(word::MAX_DEPTH), 61);
        assert_eq!(reader.node_count(), 1);
        assert_eq!(file.metadata().unwrap().len(), DEFAULT_SEGMENT);
        assert!(file.set_len(4096).is_err());
        assert!(file.set_len(DEFAULT_SEGMENT * 2).is_err());
    }

    #[test]
    fn a_limit_makes_it_smaller_or_impossible() {
        let limit = 8 * 101 * (1 << 20);
        let (made, _) = SharedSegment::create(limit, &orders()).unwrap();
        assert_eq!(made.reader().word(word::LEN), 101 << 20);
        assert!(SharedSegment::create(MIN_SEGMENT, &orders()).is_err());
    }
}
