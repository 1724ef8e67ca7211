//! Unwind tables written byte by byte, right and wrong, and the cache of rows.

use super::super::RowCache;
use super::super::cfi::{Lookup, Tables};
use super::super::mapped::Mapped;
use super::super::row::{BpRule, Kind, Row};
use super::super::x86_64;
use proptest::prelude::*;
use std::prelude::v1::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Writes `.eh_frame_hdr`, one CIE and FDEs after it, at its own address.
struct Section {
    bytes: Vec<u8>,
}

/// Where the described code is, from the start of the section.
const CODE: u64 = 0x1_0000;

/// CFA at entry is rsp + 8, return address at CFA - 8.
const ENTRY: &[u8] = &[0x0c, 7, 8, 0x90, 1];

fn record(id: impl FnOnce(usize) -> u32, at: usize, body: &[u8]) -> Vec<u8> {
    let mut body = body.to_vec();
    while body.len() % 8 != 4 {
        body.push(0);
    }
    let mut bytes = (body.len() as u32 + 4).to_le_bytes().to_vec();
    bytes.extend(id(at + 4).to_le_bytes());
    bytes.extend(body);
    bytes
}

impl Section {
    /// FDEs of 0x100 bytes of code each, one after the other. The section does
    /// not move, so pointers can be relative to its present address.
    fn new(augmentation: &[u8], table: bool, programs: &[&[u8]]) -> Section {
        let hdr_len = 12 + 8 * programs.len();
        let mut bytes = vec![1, 0x1b, 0x03, if table { 0x3b } else { 0xff }];
        bytes.extend((hdr_len as i32 - 4).to_le_bytes());
        bytes.extend((programs.len() as u32).to_le_bytes());
        bytes.resize(hdr_len, 0);
        let cie = bytes.len();
        let mut body = vec![1];
        body.extend(augmentation);
        // Alignments 1 and -8, column 16; pointers are relative, 4 bytes.
        body.extend([0, 1, 0x78, 16, 1, 0x1b]);
        body.extend(ENTRY);
        bytes.extend(record(|_| 0, cie, &body));
        for (index, program) in programs.iter().enumerate() {
            let at = bytes.len();
            let code = CODE as i32 + 0x100 * index as i32;
            let mut body = (code - (at as i32 + 8)).to_le_bytes().to_vec();
            body.extend(0x100u32.to_le_bytes());
            body.push(0);
            body.extend(*program);
            bytes.extend(record(|id_at| (id_at - cie) as u32, at, &body));
            let entry = 12 + 8 * index;
            bytes[entry..entry + 4].copy_from_slice(&code.to_le_bytes());
            bytes[entry + 4..entry + 8].copy_from_slice(&(at as i32).to_le_bytes());
        }
        bytes.extend([0; 4]);
        Section { bytes }
    }

    fn start(&self) -> u64 {
        self.bytes.as_ptr().expose_provenance() as u64
    }

    fn tables(&self) -> Tables {
        let start = self.start();
        let end = start + self.bytes.len() as u64;
        Tables {
            // SAFETY: the vector, which outlives the tables in each test.
            mem: unsafe { Mapped::new(start, end) },
            hdr: start,
            hdr_len: 12,
        }
    }

    /// The row at an offset into the code.
    fn row(&self, offset: u64) -> Row {
        let tables = Tables {
            hdr_len: self.bytes.len() as u64,
            ..self.tables()
        };
        x86_64::row(&tables, (self.start() + CODE).wrapping_add(offset))
    }
}

fn step(kind: Kind, cfa: i64, rule: BpRule, bp: i64) -> Row {
    Row::new(kind, cfa, rule, bp).unwrap()
}

/// push %rbp; mov %rsp,%rbp; …; and a realigned frame.
const FRAMED: &[u8] = &[0x41, 0x0e, 16, 0x86, 2, 0x43, 0x0d, 6];
const REALIGNED: &[u8] = &[
    0x44, 0x0c, 10, 0, // CFA = r10
    0x44, 0x10, 6, 2, 0x76, 0, // rbp at *(rbp)
    0x44, 0x0f, 3, 0x76, 0x78, 0x06, // CFA = *(rbp - 8)
];
/// The stub of a PLT: CFA = rsp + 8 + ((rip & 15) >= 11) * 8.
const PLT: &[u8] = &[
    0x0f, 11, 0x77, 8, 0x80, 0, 0x3f, 0x1a, 0x3b, 0x2a, 0x33, 0x24, 0x22,
];
const OUTERMOST: &[u8] = &[0x07, 16];

#[test]
fn rows_of_compiled_code() {
    for table in [true, false] {
        let section = Section::new(b"zR", table, &[FRAMED, REALIGNED, PLT, OUTERMOST]);
        assert_eq!(section.row(0), step(Kind::Sp, 8, BpRule::Same, 0));
        assert_eq!(section.row(1), step(Kind::Sp, 16, BpRule::AtCfa, -16));
        assert_eq!(section.row(0xff), step(Kind::Bp, 16, BpRule::AtCfa, -16));
        assert_eq!(section.row(0x103), step(Kind::Sp, 8, BpRule::Same, 0));
        assert_eq!(section.row(0x104), Row::plain(Kind::Stop));
        let realigned = Row::load(Kind::BpLoad, -8, 0, BpRule::AtBp, 0).unwrap();
        assert_eq!(section.row(0x10c), realigned);
        let base = section.start() + CODE;
        for offset in 0x200..0x220 {
            let pushed = if (base + offset) & 15 >= 11 { 16 } else { 8 };
            assert_eq!(section.row(offset), step(Kind::Sp, pushed, BpRule::Same, 0));
        }
        assert_eq!(section.row(0x3ff), Row::plain(Kind::End));
        assert_eq!(section.row(0x400), Row::plain(Kind::FramePointer));
        // One before the first function: a made-up return address.
        assert_eq!(section.row(u64::MAX), Row::plain(Kind::End));
        assert_eq!(section.row(u64::MAX - 1), Row::plain(Kind::FramePointer));
    }
}

#[test]
fn signal_frames_and_unknown_letters() {
    let signal = Section::new(b"zRS", true, &[FRAMED]);
    assert_eq!(signal.row(5).kind(), Kind::Signal);
    let unknown = Section::new(b"eh", true, &[FRAMED]);
    assert_eq!(unknown.row(5), Row::plain(Kind::Stop));
}

#[test]
fn without_room_or_sense() {
    // 7 nested remember_state; restore_state alone; an operation that is none.
    for program in [&[0x0a; 7][..], &[0x0b], &[0x3f]] {
        let section = Section::new(b"zR", true, &[program]);
        assert_eq!(section.row(0), Row::plain(Kind::Stop));
    }
    let section = Section::new(b"zR", true, &[FRAMED]);
    // A header that ends within its table has no entries.
    assert!(matches!(
        section.tables().rules(section.start() + CODE),
        Lookup::Absent
    ));
}

proptest! {
    #[test]
    fn damaged_tables_do_no_harm(
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..9),
        table: bool,
        offset in 0u64..0x480,
    ) {
        let mut section = Section::new(b"zR", table, &[FRAMED, REALIGNED, PLT, OUTERMOST]);
        for (index, value) in damage {
            let at = index.index(section.bytes.len());
            section.bytes[at] = value;
        }
        section.row(offset);
    }

    #[test]
    fn any_program_ends(program in prop::collection::vec(any::<u8>(), 0..200), offset in 0u64..0x100) {
        Section::new(b"zR", true, &[&program]).row(offset);
    }

    #[test]
    fn any_expression_ends(code in prop::collection::vec(any::<u8>(), 0..100), offset in 0u64..0x100) {
        let mut program = vec![0x0f, code.len() as u8];
        program.extend(code);
        Section::new(b"zR", true, &[&program]).row(offset);
    }

    #[test]
    fn rows_keep_their_numbers(
        cfa in -(1i64 << 27)..1 << 27, bp in -(1i64 << 23)..1 << 23,
        at in -(1i64 << 17)..1 << 17, add in -(1i64 << 9)..1 << 9, own in 0u8..64,
    ) {
        let row = step(Kind::Bp, cfa, BpRule::AtBp, bp).with_own(own);
        prop_assert_eq!((row.kind(), row.cfa()), (Kind::Bp, cfa));
        prop_assert_eq!((row.bp_rule(), row.bp(), row.own()), (BpRule::AtBp, bp, own));
        let row = Row::load(Kind::SpLoad, at, add, BpRule::Lost, bp).unwrap();
        prop_assert_eq!((row.load_at(), row.load_add(), row.bp()), (at, add, bp));
    }
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    assert_eq!(Row::new(Kind::Sp, 1 << 27, BpRule::Same, 0), None);
    assert_eq!(Row::new(Kind::Sp, 0, BpRule::AtCfa, -(1 << 23) - 1), None);
    assert_eq!(Row::load(Kind::SpLoad, 0, 1 << 9, BpRule::Same, 0), None);
}

#[test]
fn cache_forgets_with_the_epoch() {
    let entries: Vec<_> = (0..2 * 16 + 3).map(|_| AtomicU64::new(0)).collect();
    let row = step(Kind::Sp, 24, BpRule::Same, 0);
    let before = RowCache::new(&entries, 5);
    before.put(0x5555_0001, 3, row);
    assert_eq!(before.get(0x5555_0001), Some((3, row)));
    assert_eq!(RowCache::new(&entries, 6).get(0x5555_0001), None);
    assert_eq!(before.get(0x5555_0002), None);
    let none = RowCache::new(&[], 5);
    none.put(0x5555_0001, 3, row);
    assert_eq!(none.get(0x5555_0001), None);
}

#[test]
fn a_hit_is_never_of_two_writes() {
    // One entry, for which three writers and a reader contend.
    let entries = [AtomicU64::new(0), AtomicU64::new(0)];
    let row = |pc: u64| step(Kind::Sp, (pc % 4093) as i64 * 8, BpRule::AtCfa, -16);
    let module = |pc: u64| (pc % 251) as u16;
    let done = AtomicBool::new(false);
    let rounds = if cfg!(miri) { 101 } else { 200_003 };
    std::thread::scope(|scope| {
        for writer in 0..3u64 {
            let (entries, done) = (&entries, &done);
            scope.spawn(move || {
                let rows = RowCache::new(entries, 1);
                let mut pc = 0x7f00_0000_0000 + writer;
                while !done.load(Ordering::Relaxed) {
                    pc += 3;
                    rows.put(pc % 17 + 0x7f00_0000_0000, module(pc % 17), row(pc % 17));
                }
            });
        }
        let rows = RowCache::new(&entries, 1);
        let (mut hits, mut turn) = (0, 0);
        // On a busy machine the writers may begin only after many rounds.
        while turn < rounds || (hits == 0 && !cfg!(miri)) {
            turn += 1;
            if turn % 4093 == 0 {
                std::thread::yield_now();
            }
            let pc = turn % 17;
            if let Some(hit) = rows.get(0x7f00_0000_0000 + pc) {
                assert_eq!(hit, (module(pc), row(pc)));
                hits += 1;
            }
        }
        done.store(true, Ordering::Relaxed);
    });
}

#[test]
fn every_interleaving_of_two_writes_and_a_read() {
    // The two stores of each writer and the two loads of a reader, in any
    // order that keeps each one's own: a hit has the row of its pc.
    let pcs = [0x7f12_3456_7890u64, 0x7f12_3456_7891];
    let rows = [
        step(Kind::Sp, 32, BpRule::AtCfa, -16),
        step(Kind::Bp, 16, BpRule::AtCfa, -16),
    ];
    let words: Vec<[u64; 2]> = (0..2)
        .map(|i| {
            let entry = [AtomicU64::new(0), AtomicU64::new(0)];
            RowCache::new(&entry, 9).put(pcs[i], i as u16, rows[i]);
            entry.map(AtomicU64::into_inner)
        })
        .collect();
    let mut hits = 0;
    // Any mix of words that the entry can hold or a reader can see.
    for key in [0, words[0][0], words[1][0]] {
        for row in [0, words[0][1], words[1][1]] {
            let entry = [AtomicU64::new(key), AtomicU64::new(row)];
            for (i, &pc) in pcs.iter().enumerate() {
                if let Some(hit) = RowCache::new(&entry, 9).get(pc) {
                    assert_eq!(hit, (i as u16, rows[i]));
                    hits += 1;
                }
            }
        }
    }
    assert_eq!(hits, 2);
}
