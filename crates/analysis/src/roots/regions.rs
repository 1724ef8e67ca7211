//! What each mapping is, as far as its line in the map tells.

use leakscope_memory::{MemoryMap, Region};
use leakscope_model::Range;

/// The nature of a readable and writable mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Class {
    /// Writable data of an executable or library, from its file.
    Data,
    /// The anonymous mapping directly behind a module's data: its zeroed
    /// data, and whatever the kernel joined to it.
    Bss,
    /// The first thread's stack.
    Stack,
    /// The program break's memory.
    Heap,
    /// Anonymous private memory.
    Anonymous,
    /// Shared memory, and files mapped by the program.
    Other,
}

/// A mapping that may hold roots.
#[derive(Clone, Copy, Debug)]
pub(super) struct Classified {
    pub range: Range,
    pub class: Class,
}

/// All readable and writable mappings but those of devices and the kernel's
/// own pages. Reading a device's memory may have effects.
pub(super) fn classify(map: &MemoryMap) -> Vec<Classified> {
    let regions = map.regions();
    let is_module = |region: &Region| {
        regions
            .iter()
            .any(|r| r.exec && r.inode == region.inode && r.device == region.device)
    };
    let mut out: Vec<Classified> = Vec::new();
    let mut last_data: Option<Range> = None;
    for region in regions {
        if region.inode != 0 && !region.shared && is_module(region) {
            last_data = Some(region.range);
        }
        if !region.read || !region.write || is_special(&region.path) {
            continue;
        }
        let class = if region.path == b"[stack]" {
            Class::Stack
        } else if region.path == b"[heap]" {
            Class::Heap
        } else if region.inode != 0 && !region.shared && last_data == Some(region.range) {
            Class::Data
        } else if region.inode != 0 || region.shared {
            Class::Other
        } else if last_data.is_some_and(|data| data.end == region.range.start)
            && region.path.is_empty()
        {
            Class::Bss
        } else {
            Class::Anonymous
        };
        out.push(Classified {
            range: region.range,
            class,
        });
    }
    out
}

fn is_special(path: &[u8]) -> bool {
    let kernel: [&[u8]; 4] = [b"[vvar]", b"[vvar_vclock]", b"[vdso]", b"[vsyscall]"];
    if kernel.contains(&path) {
        return true;
    }
    let memory: [&[u8]; 3] = [b"/dev/shm/", b"/dev/zero", b"/dev/hugepages/"];
    path.starts_with(b"/dev/") && !memory.iter().any(|m| path.starts_with(m))
}

#[cfg(test)]
mod tests {
    use super::*;
    use leakscope_memory::MemoryReader;
    use leakscope_testkit::FakeMemory;

    #[test]
    fn tells_mappings_apart() {
        let mut memory = FakeMemory::new();
        memory
            .region(0x1000, 0x1000, "r-xp", "/bin/p")
            .region(0x2000, 0x1000, "rw-p", "/bin/p")
            .region(0x3000, 0x1000, "rw-p", "")
            .region(0x4000, 0x1000, "rw-p", "[heap]")
            .region(0x6000, 0x1000, "rw-p", "")
            .region(0x8000, 0x1000, "rw-p", "/data")
            .region(0x9000, 0x1000, "rw-p", "")
            .region(0xb000, 0x1000, "rw-s", "/dev/zero (deleted)")
            .region(0xc000, 0x1000, "rw-s", "/dev/dri/card0")
            .region(0xd000, 0x1000, "---p", "")
            .region(0xe000, 0x1000, "rw-p", "[stack]")
            .region(0xf000, 0x1000, "r--p", "[vvar]");
        let classes: Vec<_> = classify(memory.map())
            .into_iter()
            .map(|c| (c.range.start.0, c.class))
            .collect();
        use Class::{Anonymous, Bss, Data, Heap, Other, Stack};
        assert_eq!(
            classes,
            [
                (0x2000, Data),
                (0x3000, Bss),
                (0x4000, Heap),
                (0x6000, Anonymous),
                (0x8000, Other),
                (0x9000, Anonymous),
                (0xb000, Other),
                (0xe000, Stack),
            ]
        );
    }
}
