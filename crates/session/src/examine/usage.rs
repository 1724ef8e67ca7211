//! Which pages are in RAM, and what for.

use std::cell::Cell;

use leakscope_analysis::residence::{Mapped, Use};
use leakscope_memory::{MemoryMap, MemoryReader};
use leakscope_model::{Range, ThreadState};
use leakscope_proc::{MappedUsage, Pagemap, Process};

use super::sparse::{Sparse, Touched};

/// What is in RAM, as it was before any memory was read: reading a page that
/// nobody has touched maps the kernel's page of zeros there, which counts as
/// present.
pub(super) struct Usage {
    /// Every mapping and how much of it is in RAM.
    pub mapped: Vec<Mapped>,
    /// Pages of private anonymous mappings that were touched, ascending.
    touched: Vec<(Range, Touched)>,
    last: Cell<usize>,
}

impl Usage {
    /// `None` when the kernel does not tell.
    pub(super) fn of(process: &Process, map: &MemoryMap, threads: &[ThreadState]) -> Option<Usage> {
        let usage = process.smaps().ok()?;
        let pagemap = process.pagemap().ok()?;
        Some(Usage::new(map, threads, &usage, |mapped| {
            touched(&pagemap, mapped)
        }))
    }

    /// Of a process that was copied: `copy` has what was private to it, and the
    /// process itself what it shares with others, and what is not copied.
    pub(super) fn of_copy(
        process: &Process,
        copy: &Process,
        map: &MemoryMap,
        threads: &[ThreadState],
    ) -> Option<Usage> {
        let of_copy = copy.smaps().ok()?;
        let pages = copy.pagemap().ok()?;
        // It may have ended meanwhile.
        let own = process.smaps().unwrap_or_default();
        let own_pages = process.pagemap().ok();
        let find = |all: &[MappedUsage], range: Range| {
            let at = all.binary_search_by_key(&range.start, |usage| usage.range.start);
            let found = at.ok().and_then(|at| all.get(at)).copied();
            found.filter(|usage| usage.range == range)
        };
        let is_kept = |usage: &MappedUsage| usage.flags.not_forked || usage.flags.wiped_on_fork;
        let usage = map.regions().iter().filter_map(|region| {
            let now = find(&own, region.range);
            let then = find(&of_copy, region.range);
            let private = PRIVATE.contains(&used_as(map, threads, region.range));
            match now.filter(|now| !private || is_kept(now)) {
                Some(now) => Some(now),
                None => then.or(now),
            }
        });
        let usage: Vec<MappedUsage> = usage.collect();
        Some(Usage::new(map, threads, &usage, |mapped| {
            let is_kept = find(&own, mapped.range).is_some_and(|usage| is_kept(&usage));
            match own_pages.as_ref().filter(|_| is_kept) {
                Some(pages) => touched(pages, mapped),
                None => touched(&pages, mapped),
            }
        }))
    }

    fn new(
        map: &MemoryMap,
        threads: &[ThreadState],
        usage: &[MappedUsage],
        touched: impl Fn(&Mapped) -> Option<Touched>,
    ) -> Usage {
        let mapped = usage.iter().map(|usage| Mapped {
            range: usage.range,
            used_as: used_as(map, threads, usage.range),
            rss: usage.rss,
            swap: usage.swap,
        });
        let mapped: Vec<Mapped> = mapped.collect();
        let touched = mapped
            .iter()
            .filter(|m| PRIVATE.contains(&m.used_as))
            .filter_map(|m| Some((m.range, touched(m)?)))
            .collect();
        Usage {
            mapped,
            touched,
            last: Cell::new(0),
        }
    }

    /// Reads only what was touched.
    pub(super) fn reader<'a>(&'a self, memory: &'a dyn MemoryReader) -> Sparse<'a> {
        Sparse::new(memory, &self.touched)
    }

    /// Bytes of mappings that are too large to know what of them was touched.
    pub(super) fn unknown(&self) -> u64 {
        let unknown = self
            .touched
            .iter()
            .filter(|(_, t)| matches!(t, Touched::Unknown));
        unknown
            .map(|(range, _)| range.len())
            .fold(0, u64::saturating_add)
    }

    /// Bytes of `range` that are in RAM; of anonymous mappings only.
    pub(super) fn resident(&self, range: Range) -> u64 {
        // Chunks come one after the other.
        let last = self.touched.get(self.last.get());
        if let Some((_, touched)) =
            last.filter(|(r, _)| r.start <= range.start && range.end <= r.end)
        {
            return touched.resident(range);
        }
        let first = self.touched.partition_point(|(r, _)| r.end <= range.start);
        self.last.set(first);
        let parts = self.touched.get(first..).unwrap_or_default().iter();
        parts
            .take_while(|(r, _)| r.start < range.end)
            .map(|(_, touched)| touched.resident(range))
            .fold(0, u64::saturating_add)
    }
}

/// What no other process sees.
const PRIVATE: [Use; 2] = [Use::Anonymous, Use::Stack];

/// Larger mappings are not asked for page by page, which takes 2 MiB for each
/// GiB.
const ASKED: u64 = 64 << 30;

/// `None` when the kernel does not tell: then all of it is read.
fn touched(pagemap: &Pagemap, mapped: &Mapped) -> Option<Touched> {
    if mapped.rss == 0 && mapped.swap == 0 {
        return Some(Touched::Nothing);
    }
    if mapped.range.len() > ASKED {
        return Some(Touched::Unknown);
    }
    let present = || pagemap.present(mapped.range).ok();
    Some(Touched::Pages {
        touched: pagemap.touched(mapped.range).ok()?,
        present: if mapped.swap > 0 { present() } else { None },
    })
}

impl Touched {
    fn resident(&self, range: Range) -> u64 {
        match self {
            Touched::Pages { touched, present } => {
                let pages = present.as_ref().unwrap_or(touched);
                pages.overlap(range.start.0, range.end.0)
            }
            Touched::Nothing | Touched::Unknown => 0,
        }
    }
}

fn used_as(map: &MemoryMap, threads: &[ThreadState], range: Range) -> Use {
    let Some(region) = map.find(range.start) else {
        return Use::Anonymous;
    };
    let shared_memory: [&[u8]; 4] = [b"/memfd:", b"/dev/shm/", b"/SYSV", b"/dev/zero"];
    if region.path == b"[stack]" {
        Use::Stack
    } else if shared_memory.iter().any(|p| region.path.starts_with(p)) {
        Use::Shared
    } else if region.inode != 0 || region.path == b"[vdso]" {
        Use::File
    } else if region.shared {
        Use::Shared
    } else if region.path != b"[heap]" && threads.iter().any(|t| region.range.contains(t.sp)) {
        Use::Stack
    } else {
        Use::Anonymous
    }
}
