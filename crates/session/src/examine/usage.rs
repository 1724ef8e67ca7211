//! Which pages are in RAM, and what for.

use std::cell::Cell;

use leakscope_analysis::residence::{Mapped, Use};
use leakscope_memory::MemoryMap;
use leakscope_model::{Range, ThreadState};
use leakscope_proc::{PageSet, Process};

/// What is in RAM, as it was before any memory was read: reading a page that
/// nobody has touched maps the kernel's page of zeros there, which counts as
/// present.
pub(super) struct Usage {
    /// Every mapping and how much of it is in RAM.
    pub mapped: Vec<Mapped>,
    /// Pages of anonymous mappings, ascending.
    sets: Vec<(Range, PageSet)>,
    last: Cell<usize>,
}

impl Usage {
    /// `None` when the kernel does not tell.
    pub(super) fn of(process: &Process, map: &MemoryMap, threads: &[ThreadState]) -> Option<Usage> {
        let usage = process.smaps().ok()?;
        let pagemap = process.pagemap().ok()?;
        let mapped = usage.iter().map(|usage| Mapped {
            range: usage.range,
            used_as: used_as(map, threads, usage.range),
            rss: usage.rss,
            swap: usage.swap,
        });
        let mapped: Vec<Mapped> = mapped.collect();
        let sets = mapped
            .iter()
            .filter(|m| m.used_as == Use::Anonymous && m.rss > 0)
            .filter_map(|m| Some((m.range, pagemap.present(m.range).ok()?)))
            .collect();
        Some(Usage {
            mapped,
            sets,
            last: Cell::new(0),
        })
    }

    /// Bytes of `range` that are in RAM; of anonymous mappings only.
    pub(super) fn resident(&self, range: Range) -> u64 {
        // Chunks come one after the other.
        let last = self.sets.get(self.last.get());
        if let Some((_, set)) = last.filter(|(r, _)| r.start <= range.start && range.end <= r.end) {
            return set.overlap(range.start.0, range.end.0);
        }
        let first = self.sets.partition_point(|(r, _)| r.end <= range.start);
        self.last.set(first);
        let sets = self.sets.get(first..).unwrap_or_default().iter();
        sets.take_while(|(r, _)| r.start < range.end)
            .map(|(_, set)| set.overlap(range.start.0, range.end.0))
            .fold(0, u64::saturating_add)
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
