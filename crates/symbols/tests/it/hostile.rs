//! Damaged files: whatever they say, the lookup ends and does not panic.

use std::io::Write;
use std::process::Command;

use leakscope_model::{Addr, Frame, ModuleId, RawFrame, RecordedModule};
use leakscope_symbols::{Options, Symbolizer, lookup_everything};
use object::{Object, ObjectSymbol};

use crate::fixture::{Fixture, run};

/// A small generator, so that a failure can be repeated.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }
}

#[test]
fn damaged_files() {
    for flags in [
        &["-gdwarf-4", "-O2"][..],
        &["-gdwarf-5", "-O2"],
        &["-gdwarf-5", "-O2", "-gz"],
    ] {
        let fixture = Fixture::c(flags);
        let good = std::fs::read(&fixture.program).unwrap();
        let mut random = Random(0x2545_f491_4f6c_dd1d);
        for _ in 0..199 {
            let mut bytes = good.clone();
            for _ in 0..1 + random.next() % 13 {
                let at = (random.next() % bytes.len() as u64) as usize;
                bytes[at] = random.next() as u8;
            }
            lookup_everything(&bytes);
        }
        for cut in (0..good.len()).step_by(997) {
            lookup_everything(&good[..cut]);
        }
    }
}

/// Assembles debug information by hand: `abbrevs` and `units` go into their
/// sections, behind them is a function `work` of 16 bytes.
fn assemble(abbrevs: &str, units: &str) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let source = format!(
        ".globl work\n.type work, @function\nwork: .fill 16, 1, 0x90\n.size work, 16\n\
         .section .debug_abbrev,\"\",@progbits\n{abbrevs}\n\
         .section .debug_info,\"\",@progbits\n{units}\n"
    );
    std::fs::write(dir.path().join("a.s"), source).unwrap();
    run(Command::new("cc").current_dir(dir.path()).args([
        "-shared",
        "-nostdlib",
        "a.s",
        "-o",
        "a.so",
        "-Wl,--build-id=none",
    ]));
    std::fs::read(dir.path().join("a.so")).unwrap()
}

/// Resolves the last byte of `work`.
fn resolve(elf: &[u8]) -> (Vec<Frame>, Symbolizer) {
    let file = object::File::parse(elf).unwrap();
    let work = file.symbols().find(|s| s.name() == Ok("work")).unwrap();
    let mut path = tempfile::NamedTempFile::new().unwrap();
    path.write_all(elf).unwrap();
    let module = RecordedModule {
        path: path.path().to_string_lossy().into_owned().into_bytes(),
        start: Addr(0),
        end: Addr(0x10_0000),
        bias: 0,
        build_id: None,
        loaded: true,
    };
    let mut symbolizer = Symbolizer::new(Options::default(), &[module]);
    let frames = symbolizer.resolve(RawFrame {
        module: ModuleId(0),
        pc: Addr(work.address() + 16),
    });
    (frames, symbolizer)
}

/// A unit header of DWARF 4 with the abbreviations at `abbrev`, closed by
/// label `end`.
fn header(end: &str, abbrev: &str) -> String {
    format!(".long {end} - 1f\n1: .short 4\n.long {abbrev}\n.byte 8\n")
}

/// Abbreviations 1 (unit), 2 (function), 3 (inlined call), all with address
/// and length, 4 (inlined call without attributes); all have children.
const NESTED: &str = "
.byte 1, 0x11, 1, 0x11, 1, 0x12, 7, 0, 0
.byte 2, 0x2e, 1, 0x11, 1, 0x12, 7, 0, 0
.byte 3, 0x1d, 1, 0x11, 1, 0x12, 7, 0, 0
.byte 4, 0x1d, 1, 0, 0
.byte 0";

#[test]
fn inlined_calls_nested_without_end() {
    for (entry, frames_wanted) in [(".byte 3\n.quad work\n.quad 16\n", 252), (".byte 4\n", 1)] {
        let units = format!(
            "{}.byte 1\n.quad work\n.quad 16\n.byte 2\n.quad work\n.quad 16\n\
             .rept 500009\n{entry}.endr\n9:\n",
            header("9f", "0")
        );
        let (frames, _) = resolve(&assemble(NESTED, &units));
        assert_eq!(frames.len(), frames_wanted);
        assert_eq!(frames.last().unwrap().function.as_deref(), Some("work"));
    }
}

#[test]
fn many_units_with_one_huge_table() {
    // Each unit's table begins at another declaration of the same long list.
    let abbrevs = ".set n, 2\n.rept 70001\n.uleb128 n\n.byte 0x11, 1, 0, 0\n\
                   .set n, n + 1\n.endr\n.byte 0";
    let units = format!(
        ".set m, 0\n.rept 4001\n{}.byte 2, 0\n9:\n.set m, m + 5\n.endr\n",
        header("9f", "m")
    );
    let (frames, symbolizer) = resolve(&assemble(abbrevs, &units));
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].function.as_deref(), Some("work"));
    let codes: Vec<_> = symbolizer.notices().iter().map(|n| n.code).collect();
    assert_eq!(codes, ["symbols-limited"]);
}

#[test]
fn a_name_that_refers_to_itself() {
    // Function 5 has its abstract origin (ref4) in itself.
    let abbrevs = "
.byte 1, 0x11, 1, 0x11, 1, 0x12, 7, 0, 0
.byte 5, 0x2e, 0, 0x11, 1, 0x12, 7, 0x31, 0x13, 0, 0
.byte 0";
    let units = format!(
        "8: {}.byte 1\n.quad work\n.quad 16\n7: .byte 5\n.quad work\n.quad 16\n\
         .long 7b - 8b\n.byte 0\n9:\n",
        header("9f", "0")
    );
    let (frames, _) = resolve(&assemble(abbrevs, &units));
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].function.as_deref(), Some("work"));
}
