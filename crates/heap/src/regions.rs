//! What each mapping is, as far as its line in the map tells.

use leakscope_memory::{MemoryMap, Region};
use leakscope_model::{Addr, Range};

/// The nature of a mapping that may hold roots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Data of an executable or library, from its file: writable, or made
    /// read-only when it had been written.
    Data,
    /// The anonymous mappings directly behind a module's data: its zeroed
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
pub struct Classified {
    /// Its addresses.
    pub range: Range,
    /// What it is.
    pub class: Class,
}

/// All readable and writable mappings but those of devices and the kernel's
/// own pages. Reading a device's memory may have effects.
///
/// Besides, what of a module's data is read-only now: the loader protects
/// relocated data, and a program may protect pages of its own. The map does
/// not tell such a page from a constant, but it touches the writable rest.
pub fn classify(map: &MemoryMap) -> Vec<Classified> {
    let regions = map.regions();
    let mut out: Vec<Classified> = Vec::new();
    // Ends of the last private mapping of a module's file, of the data that
    // runs on from there without a gap, and of its last piece if protected.
    let mut file_end: Option<Addr> = None;
    let mut data_end: Option<Addr> = None;
    let mut protected_end: Option<Addr> = None;
    for (i, region) in regions.iter().enumerate() {
        let (start, end) = (region.range.start, region.range.end);
        let from_module = region.inode != 0 && !region.shared && is_module(regions, region);
        if from_module {
            file_end = Some(end);
        }
        if !region.read || is_special(&region.path) {
            continue;
        }
        let nameless = region.inode == 0 && !region.shared && region.path.is_empty();
        let class = if from_module && region.write {
            Class::Data
        } else if nameless
            && region.write
            && (file_end == Some(start) || protected_end == Some(start))
        {
            Class::Bss
        } else if !region.write {
            let beside = [i.checked_sub(1), i.checked_add(1)];
            let mut beside = beside.iter().flatten().filter_map(|i| regions.get(*i));
            if region.exec {
                continue;
            } else if from_module && beside.any(|other| is_writable_rest(region, other)) {
                Class::Data
            } else if nameless && data_end == Some(start) {
                Class::Bss
            } else {
                continue;
            }
        } else if region.path == b"[stack]" {
            Class::Stack
        } else if region.path == b"[heap]" {
            Class::Heap
        } else if region.inode != 0 || region.shared {
            Class::Other
        } else {
            Class::Anonymous
        };
        if matches!(class, Class::Data | Class::Bss) {
            data_end = Some(end);
            protected_end = data_end.filter(|_| !region.write);
        }
        out.push(Classified {
            range: region.range,
            class,
        });
    }
    out
}

/// True for a mapping of a file that is also mapped to be executed.
fn is_module(regions: &[Region], region: &Region) -> bool {
    regions
        .iter()
        .any(|r| r.exec && r.inode == region.inode && r.device == region.device)
}

/// True when `other` is writable data of the same file, and touches `region`.
fn is_writable_rest(region: &Region, other: &Region) -> bool {
    let (range, beside) = (region.range, other.range);
    (beside.start == range.end || beside.end == range.start)
        && other.inode == region.inode
        && other.device == region.device
        && other.write
        && !other.shared
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

    #[test]
    fn protected_pages_of_a_modules_data_are_data() {
        let mut memory = FakeMemory::new();
        memory
            .region(0x1000, 0x1000, "r--p", "/bin/p")
            .region(0x2000, 0x1000, "r-xp", "/bin/p")
            .region(0x3000, 0x1000, "r--p", "/bin/p") // constants
            .region(0x5000, 0x1000, "r--p", "/bin/p") // relocated
            .region(0x6000, 0x1000, "rw-p", "/bin/p")
            .region(0x7000, 0x1000, "r--p", "/bin/p")
            .region(0x8000, 0x1000, "rw-p", "")
            .region(0x9000, 0x1000, "r--p", "")
            .region(0xa000, 0x1000, "rw-p", "")
            .region(0xb000, 0x1000, "r--p", "/lib/l") // touches that
            .region(0xc000, 0x800, "r-xp", "/lib/l")
            .region(0xc800, 0x800, "r--p", "")
            .region(0xd000, 0x1000, "r--p", "/data")
            .region(0xe000, 0x1000, "rw-p", "/data")
            .region(0xf000, 0x1000, "r--p", "");
        let classes: Vec<_> = classify(memory.map())
            .into_iter()
            .map(|c| (c.range.start.0, c.class))
            .collect();
        use Class::{Bss, Data, Other};
        assert_eq!(
            classes,
            [
                (0x5000, Data),
                (0x6000, Data),
                (0x7000, Data),
                (0x8000, Bss),
                (0x9000, Bss),
                (0xa000, Bss),
                (0xe000, Other),
            ]
        );
    }
}
