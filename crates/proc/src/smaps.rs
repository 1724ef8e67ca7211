//! `/proc/PID/smaps`: what each mapping of an address space uses.

use crate::maps;
use crate::number::{decimal, words};
use leakscope_model::{Addr, Range};

/// What one mapping uses. Everything but the range is in bytes, a multiple
/// of 1024, and 0 where the kernel does not print the key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MappedUsage {
    /// Its addresses; never empty.
    pub range: Range,
    /// Resident.
    pub rss: u64,
    /// Resident, each page divided by the number of its users.
    pub pss: u64,
    /// Resident and not backed by a file.
    pub anonymous: u64,
    /// Swapped out.
    pub swap: u64,
    /// Resident, without other users, unchanged.
    pub private_clean: u64,
    /// Resident, without other users, changed.
    pub private_dirty: u64,
    /// Resident, with other users, unchanged.
    pub shared_clean: u64,
    /// Resident, with other users, changed.
    pub shared_dirty: u64,
    /// What the kernel does with it.
    pub flags: MappedFlags,
}

/// Flags of a mapping (`VmFlags`, `Documentation/filesystems/proc.rst`) that
/// matter when the process is copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MappedFlags {
    /// `dc`: a forked process does not have it (`MADV_DONTFORK`).
    pub not_forked: bool,
    /// `wf`: a forked process finds zeros there (`MADV_WIPEONFORK`).
    pub wiped_on_fork: bool,
    /// `um`, `uw`, `ui`: the program handles faults there itself
    /// (`userfaultfd(2)`).
    pub userfault: bool,
}

/// Takes the mappings and keys it knows; everything else is skipped.
/// Ascending; of two mappings that overlap (the kernel lets go of the map
/// between two reads) the later one is dropped, as in the map.
pub fn parse(text: &[u8]) -> Vec<MappedUsage> {
    // 55ac0ef29000-55ac0ef2c000 r--p 00000000 fe:00 247749      /usr/bin/sed
    // Rss:                  12 kB
    // THPeligible:           0
    // VmFlags: rd mr mw me
    let mut found: Vec<MappedUsage> = Vec::new();
    let mut known = false;
    for line in text.split(|&b| b == b'\n') {
        let mut parts = words(line);
        let Some(first) = parts.next() else {
            continue;
        };
        let Some(key) = first.strip_suffix(b":") else {
            // The keys behind a head that is not understood belong to no
            // mapping, least of all to the one before.
            let head = maps::parse_line(line);
            known = head.is_ok();
            found.extend(head.ok().map(|region| MappedUsage {
                range: region.range,
                ..MappedUsage::default()
            }));
            continue;
        };
        let usage = found.last_mut().filter(|_| known);
        if key == b"VmFlags" {
            if let Some(usage) = usage {
                usage.flags = flags(parts);
            }
            continue;
        }
        let (Some(usage), Some(value), Some(b"kB")) =
            (usage, parts.next().and_then(decimal), parts.next())
        else {
            continue;
        };
        let field = match key {
            b"Rss" => &mut usage.rss,
            b"Pss" => &mut usage.pss,
            b"Anonymous" => &mut usage.anonymous,
            b"Swap" => &mut usage.swap,
            b"Private_Clean" => &mut usage.private_clean,
            b"Private_Dirty" => &mut usage.private_dirty,
            b"Shared_Clean" => &mut usage.shared_clean,
            b"Shared_Dirty" => &mut usage.shared_dirty,
            _ => continue,
        };
        *field = value.saturating_mul(1024);
    }
    ascending(found)
}

fn flags<'a>(names: impl Iterator<Item = &'a [u8]>) -> MappedFlags {
    let mut flags = MappedFlags::default();
    for name in names {
        match name {
            b"dc" => flags.not_forked = true,
            b"wf" => flags.wiped_on_fork = true,
            b"um" | b"uw" | b"ui" => flags.userfault = true,
            _ => {}
        }
    }
    flags
}

fn ascending(mut found: Vec<MappedUsage>) -> Vec<MappedUsage> {
    found.retain(|usage| !usage.range.is_empty());
    found.sort_by_key(|usage| usage.range.start);
    let mut end = Addr(0);
    found.retain(|usage| {
        let keep = usage.range.start >= end;
        if keep {
            end = usage.range.end;
        }
        keep
    });
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    /// From Linux 6.18: a heap with huge pages, a library, a guard page.
    const TEXT: &str = "\
7f3a58000000-7f3a5c000000 rw-p 00000000 00:00 0 
Size:              65536 kB
KernelPageSize:        4 kB
MMUPageSize:           4 kB
Rss:               43612 kB
Pss:               43601 kB
Pss_Dirty:         43597 kB
Shared_Clean:          7 kB
Shared_Dirty:         11 kB
Private_Clean:        13 kB
Private_Dirty:     43581 kB
Referenced:        40960 kB
Anonymous:         43608 kB
KSM:                   0 kB
LazyFree:              0 kB
AnonHugePages:     40960 kB
ShmemPmdMapped:        0 kB
FilePmdMapped:         0 kB
Shared_Hugetlb:        0 kB
Private_Hugetlb:       0 kB
Swap:               1237 kB
SwapPss:            1231 kB
Locked:                0 kB
THPeligible:           1
ProtectionKey:         0
VmFlags: rd wr mr mw me nr sd hg 
7f3a60a28000-7f3a60b7d000 r-xp 00028000 fe:01 1573093                    /usr/lib/a b: 3 kB
Size:               1364 kB
Rss:                1024 kB
Pss:                  37 kB
Shared_Clean:       1024 kB
Anonymous:             0 kB
VmFlags: rd ex mr mw me 
7f3a60b7d000-7f3a60b7e000 ---p 00000000 00:00 0 
Size:                  4 kB
Rss:                   0 kB
VmFlags: mr mw me 
";

    #[test]
    fn flags_that_matter_to_a_copy() {
        let text = "\
7f3a58000000-7f3a5c000000 rw-p 00000000 00:00 0 
VmFlags: rd wr mr wf um 
7f3a60000000-7f3a60001000 rw-p 00000000 00:00 0 
VmFlags: rd wr dc 
";
        let flags: Vec<MappedFlags> = parse(text.as_bytes()).iter().map(|u| u.flags).collect();
        let want = [
            MappedFlags {
                not_forked: false,
                wiped_on_fork: true,
                userfault: true,
            },
            MappedFlags {
                not_forked: true,
                ..MappedFlags::default()
            },
        ];
        assert_eq!(flags, want);
    }

    #[test]
    fn each_mapping_with_its_keys() {
        let want = [
            MappedUsage {
                range: Range::new(0x7f3a_5800_0000, 0x7f3a_5c00_0000),
                rss: 43612 << 10,
                pss: 43601 << 10,
                anonymous: 43608 << 10,
                swap: 1237 << 10,
                private_clean: 13 << 10,
                private_dirty: 43581 << 10,
                shared_clean: 7 << 10,
                shared_dirty: 11 << 10,
                flags: MappedFlags::default(),
            },
            MappedUsage {
                range: Range::new(0x7f3a_60a2_8000, 0x7f3a_60b7_d000),
                rss: 1024 << 10,
                pss: 37 << 10,
                shared_clean: 1024 << 10,
                ..MappedUsage::default()
            },
            MappedUsage {
                range: Range::new(0x7f3a_60b7_d000, 0x7f3a_60b7_e000),
                ..MappedUsage::default()
            },
        ];
        assert_eq!(parse(TEXT.as_bytes()), want);
    }

    #[test]
    fn what_is_not_understood_is_skipped() {
        assert_eq!(parse(b""), []);
        assert_eq!(parse(b"Rss: 3 kB\n\n \nVmFlags:\n"), []);
        let head = "1000-2000 rw-p 0 00:00 0\nRss: 31 kB\n";
        for tail in [
            "Rss:",
            "Rss: kB",
            "Rss: -1 kB",
            "Rss: 3",
            "Rss: 3 MB",
            "Rss 3 kB",
            "Rss:3 kB",
            "rss: 3 kB",
            "RssFuture: 3 kB",
            ": 3 kB",
            "something a later kernel prints",
        ] {
            let found = parse(format!("{head}{tail}\n").as_bytes());
            assert_eq!(found.len(), 1, "{tail}");
            assert!(found.iter().all(|u| u.rss == 31 << 10), "{tail}");
        }
        let huge = parse(format!("{head}Pss: {} kB", u64::MAX).as_bytes());
        assert!(huge.iter().all(|u| u.pss == u64::MAX));
    }

    #[test]
    fn keys_of_an_unknown_head_belong_to_nobody() {
        let found = parse(
            b"1000-2000 rw-p 0 00:00 0\nRss: 3 kB\n2000-3000 rw-p future\nRss: 5 kB\n\
              3000-4000 rw-p 0 00:00 0\nRss: 7 kB\n",
        );
        let rss: Vec<_> = found.iter().map(|u| (u.range.start.0, u.rss)).collect();
        assert_eq!(rss, [(0x1000, 3 << 10), (0x3000, 7 << 10)]);
    }

    #[test]
    fn ascending_without_overlaps() {
        let found = parse(
            b"5000-7000 rw-p 0 00:00 0\nRss: 3 kB\n1000-2000 rw-p 0 00:00 0\nRss: 5 kB\n\
              6000-8000 rw-p 0 00:00 0\nRss: 7 kB\n9000-9000 rw-p 0 00:00 0\nRss: 11 kB\n",
        );
        let rss: Vec<_> = found.iter().map(|u| (u.range.start.0, u.rss)).collect();
        assert_eq!(rss, [(0x1000, 5 << 10), (0x5000, 3 << 10)]);
    }
}
