//! Damaged files: whatever they say, the lookup ends and does not panic.

use leakscope_symbols::lookup_everything;

use crate::fixture::Fixture;

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
