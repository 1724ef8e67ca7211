//! Programs that print a return address of theirs.

use std::path::{Path, PathBuf};
use std::process::Command;

use leakscope_model::{Addr, Frame, ModuleId, RawFrame, RecordedModule};
use leakscope_symbols::{Options, Symbolizer};
use object::{Object, ObjectSymbol};

/// `inner`, which calls `here`, is inlined into `outer`, and that into
/// `work`; the lines that call are marked with a comment. The program prints
/// the return address of `here`, and where `main` is, to tell the load bias.
pub const C: &str = r#"
#include <stdio.h>
__attribute__((noinline)) void *here(void) { return __builtin_return_address(0); }
static inline __attribute__((always_inline)) void *inner(void) {
    void *at = here(); /* in inner */
    __asm__ volatile("" : "+r"(at));
    return at;
}
static inline __attribute__((always_inline)) void *outer(void) {
    void *at = inner(); /* in outer */
    __asm__ volatile("" : "+r"(at));
    return at;
}
__attribute__((noinline)) void *work(void) {
    void *at = outer(); /* in work */
    __asm__ volatile("" : "+r"(at));
    return at;
}
int main(void) {
    printf("%p %p\n", work(), (void *)main);
    return 0;
}
"#;

/// A compiled program and the return address that it printed.
pub struct Fixture {
    /// Its folder, with the source.
    pub dir: tempfile::TempDir,
    /// The program.
    pub program: PathBuf,
    /// Return address minus load bias.
    pub pc: u64,
    /// Build id before anything was stripped.
    pub build_id: Option<Vec<u8>>,
    source: String,
}

/// Load bias of the pretended process; any page would do.
pub const BIAS: u64 = 0x5555_0001_3000;

/// Runs a tool and returns what it printed; panics with its complaint.
pub fn run(command: &mut Command) -> String {
    let out = command
        .output()
        .unwrap_or_else(|e| panic!("cannot run {command:?}: {e}"));
    assert!(
        out.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&out.stderr)
    );
    String::from_utf8_lossy(&out.stdout).into_owned()
}

impl Fixture {
    /// Compiles the C program with these flags.
    pub fn c(flags: &[&str]) -> Fixture {
        Fixture::build("cc", "fixture.c", C, flags)
    }

    /// Compiles `source` as `name` with `compiler`, and runs it.
    pub fn build(compiler: &str, name: &str, source: &str, flags: &[&str]) -> Fixture {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join(name), source).unwrap();
        let program = dir.path().join("program");
        run(Command::new(compiler)
            .current_dir(dir.path())
            .args(flags)
            .arg(name)
            .args(["-o", "program"]));
        let printed = run(&mut Command::new(&program));
        let mut numbers = printed
            .split_whitespace()
            .map(|n| u64::from_str_radix(n.trim_start_matches("0x"), 16).unwrap());
        let (pc, main) = (numbers.next().unwrap(), numbers.next().unwrap());
        let bytes = std::fs::read(&program).unwrap();
        let elf = object::File::parse(&*bytes).unwrap();
        // Rust programs have a `main` of their own besides C's: they print
        // where `mark` is.
        let linked = ["mark", "main"]
            .iter()
            .find_map(|name| elf.symbols().find(|s| s.name() == Ok(name)))
            .unwrap()
            .address();
        Fixture {
            pc: pc - (main - linked),
            build_id: elf.build_id().unwrap().map(<[u8]>::to_vec),
            source: source.to_owned(),
            program,
            dir,
        }
    }

    /// Number of the source line that has this text.
    pub fn line(&self, text: &str) -> u32 {
        let at = self.source.lines().position(|l| l.contains(text)).unwrap();
        at as u32 + 1
    }

    /// The program as a recorded module, under this path.
    pub fn module(&self, path: &Path) -> RecordedModule {
        RecordedModule {
            path: path.to_string_lossy().into_owned().into_bytes(),
            start: Addr(BIAS),
            end: Addr(BIAS + 0x10_0000),
            bias: BIAS,
            build_id: self.build_id.clone(),
            loaded: true,
        }
    }

    /// The recorded return address.
    pub fn frame(&self) -> RawFrame {
        RawFrame {
            module: ModuleId(0),
            pc: Addr(self.pc + BIAS),
        }
    }

    /// Resolves the return address with a fresh symboliser.
    pub fn resolve(&self, options: Options) -> (Vec<Frame>, Symbolizer) {
        let mut symbolizer = Symbolizer::new(options, &[self.module(&self.program)]);
        (symbolizer.resolve(self.frame()), symbolizer)
    }

    /// Checks that `frames` are `inner`, `outer`, `work` with their lines.
    pub fn assert_inlined(&self, frames: &[Frame], what: &str) {
        let got: Vec<_> = frames
            .iter()
            .map(|f| {
                (
                    f.function.as_deref().unwrap_or("?"),
                    f.line.unwrap_or(0),
                    f.inlined,
                )
            })
            .collect();
        let want = [
            ("inner", self.line("in inner"), true),
            ("outer", self.line("in outer"), true),
            ("work", self.line("in work"), false),
        ];
        assert_eq!(got, want, "{what}: {frames:#?}");
        for frame in frames {
            let file = frame.file.as_deref().unwrap();
            assert!(
                file.starts_with('/') && file.ends_with("/fixture.c"),
                "{file}"
            );
            assert_eq!(frame.module_offset, Some(self.pc - 1));
            assert_eq!(frame.module.as_deref(), self.program.to_str());
        }
    }
}

/// Codes of the notices.
pub fn codes(symbolizer: &Symbolizer) -> Vec<&'static str> {
    symbolizer.notices().iter().map(|n| n.code).collect()
}
