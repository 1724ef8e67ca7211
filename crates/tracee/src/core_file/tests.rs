use super::*;
use proptest::prelude::*;
use std::io::Write;

const TEXT: u64 = 0x40_0000;
const DATA: u64 = 0x40_2000;
const HEAP: u64 = 0x5555_5555_0000;
const STACK: u64 = 0x7fff_0000_0000;

fn note(kind: u32, body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for word in [5u32, body.len() as u32, kind] {
        out.extend(word.to_le_bytes());
    }
    out.extend(b"CORE\0\0\0\0");
    out.extend(body);
    out.resize(out.len().next_multiple_of(4), 0);
    out
}

fn status(tid: u32, signal: u16, sp: u64, tcb: u64) -> Vec<u8> {
    let mut body = vec![0u8; 336];
    body[SIGNAL..SIGNAL + 2].copy_from_slice(&signal.to_le_bytes());
    body[TID..TID + 4].copy_from_slice(&tid.to_le_bytes());
    for (register, value) in [(5, 0xb0b), (15, u64::MAX), (19, sp), (21, tcb)] {
        let at = REGISTERS + 8 * register;
        body[at..at + 8].copy_from_slice(&value.to_le_bytes());
    }
    note(NT_PRSTATUS, &body)
}

fn files(all: &[(u64, u64, u64, &str)]) -> Vec<u8> {
    let mut body = Vec::new();
    body.extend((all.len() as u64).to_le_bytes());
    body.extend(4096u64.to_le_bytes());
    for (start, end, page, _) in all {
        for word in [start, end, page] {
            body.extend(word.to_le_bytes());
        }
    }
    for (.., path) in all {
        body.extend(path.as_bytes());
        body.push(0);
    }
    note(NT_FILE, &body)
}

/// A core file: its notes, and pieces of memory with flags, size and contents.
fn core(notes: &[u8], loads: &[(u64, u32, u64, &[u8])]) -> Vec<u8> {
    let mut out = vec![0u8; 64];
    out[..7].copy_from_slice(b"\x7fELF\x02\x01\x01");
    out[16..20].copy_from_slice(&[4, 0, 62, 0]);
    out[32..40].copy_from_slice(&64u64.to_le_bytes());
    out[56..58].copy_from_slice(&(loads.len() as u16 + 1).to_le_bytes());
    let mut at = 64 + HEADER * (loads.len() as u64 + 1);
    let mut row = |kind: u32, flags: u32, start: u64, filled: u64, size: u64| {
        for word in [kind, flags] {
            out.extend(word.to_le_bytes());
        }
        for word in [at, start, 0, filled, size, 1] {
            out.extend(word.to_le_bytes());
        }
        at += filled;
    };
    row(PT_NOTE, 4, 0, notes.len() as u64, 0);
    for (start, flags, size, bytes) in loads {
        row(PT_LOAD, *flags, *start, bytes.len() as u64, *size);
    }
    out.extend(notes);
    for (.., bytes) in loads {
        out.extend(*bytes);
    }
    out
}

fn example() -> Vec<u8> {
    let mut notes = status(4711, 11, STACK + 0x800, 0x7777);
    notes.extend(status(4713, 0, HEAP + 8, 0));
    let mut names = vec![0u8; 136];
    names[40..45].copy_from_slice(b"httpd");
    names[56..70].copy_from_slice(b"httpd -p 80 -v");
    notes.extend(note(NT_PRPSINFO, &names));
    notes.extend(files(&[
        (TEXT, TEXT + 0x1000, 0, "/bin/httpd"),
        (TEXT + 0x1000, TEXT + 0x2000, 1, "/bin/httpd"),
        (DATA, DATA + 0x1000, 2, "/bin/httpd"),
    ]));
    let loads: [(u64, u32, u64, &[u8]); 4] = [
        // The kernel wrote the beginning of the first, and nothing of the
        // second is even named.
        (TEXT, 5, 0x1000, &[1; 64]),
        (DATA, 6, 0x1000, &[2; 0x1000]),
        (HEAP, 6, 0x2000, &[3; 0x2000]),
        (STACK, 6, 0x1000, &[4; 0x1000]),
    ];
    core(&notes, &loads)
}

struct Machine {
    folder: tempfile::TempDir,
}

impl Machine {
    fn new() -> Machine {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("bin")).unwrap();
        std::fs::write(folder.path().join("bin/httpd"), [9u8; 0x3000]).unwrap();
        Machine { folder }
    }

    fn open(&self, bytes: &[u8]) -> Result<CoreFile, CoreError> {
        let path = self.folder.path().join("core");
        File::create(&path).unwrap().write_all(bytes).unwrap();
        let root = self.folder.path().to_owned();
        CoreFile::read(File::open(path)?, &mut |path, _| {
            let path = String::from_utf8_lossy(path).into_owned();
            File::open(root.join(path.trim_start_matches('/'))).ok()
        })
    }
}

fn byte(core: &CoreFile, at: u64) -> Option<u8> {
    let mut byte = [0];
    core.read(Addr(at), &mut byte).ok().map(|()| byte[0])
}

#[test]
fn threads_names_and_signal() {
    let core = Machine::new().open(&example()).unwrap();
    assert_eq!((core.pid(), core.signal()), (4711, 11));
    assert_eq!(core.name(), b"httpd");
    assert_eq!(core.arguments(), b"httpd -p 80 -v");
    assert_eq!(core.executable(), b"/bin/httpd");
    let [first, second] = core.threads() else {
        panic!("{:?}", core.threads());
    };
    assert_eq!(
        (first.tid, first.sp, first.tcb),
        (4711, Addr(STACK + 0x800), Addr(0x7777))
    );
    assert!(!first.in_syscall, "orig_rax is -1");
    assert!(first.registers.contains(&0xb0b));
    assert_eq!((second.tid, second.in_syscall), (4713, false));
}

#[test]
fn memory_is_the_files_or_what_was_mapped() {
    let core = Machine::new().open(&example()).unwrap();
    let bytes = [
        (TEXT, Some(1)),
        (TEXT + 63, Some(1)),
        (TEXT + 64, Some(9)),
        (TEXT + 0x1000, Some(9)),
        (DATA + 0xfff, Some(2)),
        (DATA + 0x1000, None),
        (HEAP + 0x1fff, Some(3)),
        (HEAP + 0x2000, None),
        (0, None),
        (u64::MAX, None),
    ];
    for (at, wanted) in bytes {
        assert_eq!(byte(&core, at), wanted, "{at:#x}");
    }
    // Across what the core has and what only the file has.
    let mut across = [0; 0x1080];
    assert_eq!(core.read_some(Addr(TEXT), &mut across), across.len());
    assert_eq!((across[63], across[64], across[0x1000]), (1, 9, 9));
    let map = core.map();
    let region = |at: u64| map.find(Addr(at)).unwrap();
    assert!(region(TEXT + 0x1000).exec && region(DATA).write);
    assert_eq!(region(TEXT).inode, region(DATA).inode);
    assert_eq!(region(STACK).path, b"[stack]");
    assert!(region(HEAP).is_anonymous());
}

#[test]
fn the_heap_is_named_by_who_knows_it() {
    let mut core = Machine::new().open(&example()).unwrap();
    core.name_heap(Addr(HEAP + 0x1fff));
    assert_eq!(core.map().find(Addr(HEAP)).unwrap().path, b"[heap]");
    core.name_heap(Addr(DATA));
    assert_eq!(core.map().find(Addr(DATA)).unwrap().path, b"/bin/httpd");
}

#[test]
fn a_file_that_was_cut_tells_how_much_is_missing() {
    let whole = example();
    let core = Machine::new().open(&whole[..whole.len() - 0x1800]).unwrap();
    assert_eq!(core.missing(), 0x1800);
    assert_eq!(byte(&core, HEAP + 0x17ff), Some(3));
    assert_eq!(byte(&core, HEAP + 0x1800), None);
    assert_eq!(byte(&core, STACK), None);
}

#[test]
fn other_files_are_refused() {
    let machine = Machine::new();
    let refused = |bytes: &[u8]| machine.open(bytes).unwrap_err().to_string();
    let with = |at: usize, byte: u8| {
        let mut bytes = example();
        bytes[at] = byte;
        bytes
    };
    for (bytes, word) in [
        (Vec::new(), "no core file"),
        (b"#!/bin/sh\n".to_vec(), "no core file"),
        (with(16, 3), "program or library"),
        (with(18, 183), "not from an x86-64"),
        (with(4, 1), "not from an x86-64"),
    ] {
        let text = refused(&bytes);
        assert!(text.contains(word), "{text}");
    }
    let folder = File::open(machine.folder.path()).unwrap();
    assert!(CoreFile::read(folder, &mut |_, _| None).is_err());
}

/// The beginning of an ELF file with this build id, as it lies in memory.
fn module(id: u8) -> Vec<u8> {
    let mut out = b"\x7fELF\x02\x01".to_vec();
    out.resize(64, 0);
    out[32..40].copy_from_slice(&64u64.to_le_bytes());
    out[54..58].copy_from_slice(&[56, 0, 1, 0]);
    for word in [u64::from(PT_NOTE), 120, 120, 0, 36, 36, 4] {
        out.extend(word.to_le_bytes());
    }
    for word in [4u32, 20, 3] {
        out.extend(word.to_le_bytes());
    }
    out.extend(b"GNU\0");
    out.extend([id; 20]);
    out.resize(0x3000, 9);
    out
}

#[test]
fn a_file_of_another_build_is_not_used() {
    let machine = Machine::new();
    let notes = files(&[
        (TEXT, TEXT + 0x1000, 0, "/bin/httpd"),
        (TEXT + 0x1000, TEXT + 0x2000, 1, "/bin/httpd"),
        (DATA, DATA + 0x1000, 0, "/lib/gone.so"),
    ]);
    let notes = [status(4711, 11, STACK, 0x7777), notes].concat();
    let begin = module(7);
    let loads: [(u64, u32, u64, &[u8]); 3] = [
        (TEXT, 5, 0x1000, &begin[..0x1000]),
        (TEXT + 0x1000, 5, 0x1000, &[]),
        (DATA, 5, 0x1000, &[]),
    ];
    let bytes = core(&notes, &loads);
    let program = machine.folder.path().join("bin/httpd");
    let cut = [&module(7)[..64], &[0; 0x2fc0]].concat();
    for (file, used) in [(module(7), true), (module(8), false), (cut, false)] {
        std::fs::write(&program, file).unwrap();
        let core = machine.open(&bytes).unwrap();
        assert_eq!(byte(&core, TEXT + 0x1000), used.then_some(9));
        let absent = core.absent();
        assert_eq!(absent.last().unwrap().0, b"/lib/gone.so");
        assert_eq!(absent.last().unwrap().1, Absence::Missing);
        let replaced = (b"/bin/httpd".to_vec(), Absence::Replaced);
        assert_eq!(absent.contains(&replaced), !used);
    }
    // Without a build id, the header tells.
    let mut plain = begin.clone();
    plain[56] = 0;
    let bytes = core_with(&notes, &plain);
    for (entry, used) in [(0, true), (1, false)] {
        plain[24] = entry;
        std::fs::write(&program, &plain).unwrap();
        let core = machine.open(&bytes).unwrap();
        assert_eq!(byte(&core, TEXT + 0x1000), used.then_some(9));
    }
}

fn core_with(notes: &[u8], begin: &[u8]) -> Vec<u8> {
    core(
        notes,
        &[
            (TEXT, 5, 0x1000, &begin[..0x1000]),
            (TEXT + 0x1000, 5, 0x1000, &[]),
        ],
    )
}

#[test]
fn the_executable_is_where_its_headers_are() {
    let mut auxv = Vec::new();
    for word in [6u64, 4096, 3, DATA + 0x40, 0, 0] {
        auxv.extend(word.to_le_bytes());
    }
    let mut notes = status(4711, 11, STACK, 0x7777);
    notes.extend(note(NT_AUXV, &auxv));
    notes.extend(files(&[
        (TEXT, TEXT + 0x1000, 0, "/lib/ld.so"),
        (DATA, DATA + 0x1000, 0, "/bin/httpd"),
    ]));
    let core = Machine::new().open(&core(&notes, &[])).unwrap();
    assert_eq!(core.executable(), b"/bin/httpd");
}

proptest! {
    #[test]
    fn any_damage_is_survived(
        changes in proptest::collection::vec((0usize..1500, any::<u8>()), 1..24),
        cut in 0usize..0x6000,
    ) {
        let mut bytes = example();
        for (at, byte) in changes {
            bytes[at] = byte;
        }
        bytes.truncate(bytes.len().saturating_sub(cut));
        if let Ok(core) = Machine::new().open(&bytes) {
            let mut page = [0; 4096];
            for region in core.map().regions().iter().take(64) {
                core.read_some(region.range.start, &mut page);
            }
        }
    }
}
