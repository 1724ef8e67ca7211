//! Ways to write debug information.

use std::process::Command;

use leakscope_symbols::Options;

use crate::fixture::{Fixture, codes, run};

#[test]
fn dwarf_versions_and_compression() {
    for flags in [
        &["-gdwarf-4", "-O2"][..],
        &["-gdwarf-5", "-O2"],
        &["-gdwarf-5", "-O0"],
        &["-gdwarf-5", "-O2", "-no-pie"],
        &["-gdwarf-5", "-O2", "-flto"],
        &["-gdwarf-4", "-O2", "-gz"],
        &["-gdwarf-5", "-O2", "-gz"],
        &["-gdwarf-4", "-O2", "-fdebug-types-section"],
        &[
            "-gdwarf-5",
            "-O2",
            "-ffunction-sections",
            "-Wl,--gc-sections",
        ],
        &["-gdwarf-5", "-O2", "-static"],
    ] {
        let fixture = Fixture::c(flags);
        let (frames, symbolizer) = fixture.resolve(Options::default());
        fixture.assert_inlined(&frames, &flags.join(" "));
        assert_eq!(codes(&symbolizer), [""; 0], "{flags:?}");
    }
}

#[test]
fn sections_compressed_by_other_methods() {
    for method in ["zlib-gnu", "zlib-gabi", "zstd"] {
        let fixture = Fixture::c(&["-g", "-O2"]);
        let out = Command::new("objcopy")
            .arg(format!("--compress-debug-sections={method}"))
            .arg(&fixture.program)
            .output()
            .unwrap();
        if !out.status.success() {
            println!("skipped: this objcopy does not know {method}");
            continue;
        }
        fixture.assert_inlined(&fixture.resolve(Options::default()).0, method);
    }
}

#[test]
fn split_units_beside_the_object_and_packed() {
    for version in ["-gdwarf-4", "-gdwarf-5"] {
        let fixture = Fixture::c(&[version, "-O2", "-gsplit-dwarf"]);
        let (frames, _) = fixture.resolve(Options::default());
        fixture.assert_inlined(&frames, version);

        // A package beside the program, the .dwo gone. Binutils 2.40 packs
        // only DWARF 4 (it crashes on 5).
        let tool = if version == "-gdwarf-4" {
            "dwp"
        } else {
            "llvm-dwp"
        };
        if Command::new(tool).arg("--version").output().is_err() {
            println!("skipped: {tool} is not installed");
            continue;
        }
        run(Command::new(tool).current_dir(fixture.dir.path()).args([
            "-e",
            "program",
            "-o",
            "program.dwp",
        ]));
        let dwo = std::fs::read_dir(fixture.dir.path())
            .unwrap()
            .map(|e| e.unwrap().path())
            .find(|p| p.extension().is_some_and(|e| e == "dwo"))
            .unwrap();
        std::fs::remove_file(dwo).unwrap();
        let (frames, _) = fixture.resolve(Options::default());
        fixture.assert_inlined(&frames, &format!("{version}, packed"));

        // Nothing left: the function's symbol and the innermost line.
        std::fs::remove_file(fixture.dir.path().join("program.dwp")).unwrap();
        let (frames, _) = fixture.resolve(Options::default());
        assert_eq!(frames.len(), 1);
        assert_eq!(frames[0].function.as_deref(), Some("work"));
        assert_eq!(frames[0].line, Some(fixture.line("in inner")));
    }
}

#[test]
fn cpp_names_have_no_parameters() {
    let source = r#"
#include <cstdio>
extern "C" __attribute__((noinline)) void *here() { return __builtin_return_address(0); }
namespace ns {
template <class T> struct Cache {
    __attribute__((noinline)) void *put(T, const char *) {
        auto add = [](int) __attribute__((noinline)) {
            void *at = here(); // in lambda
            asm volatile("" : "+r"(at));
            return at;
        };
        void *at = add(7);
        asm volatile("" : "+r"(at));
        return at;
    }
};
}
int main() {
    ns::Cache<long> cache;
    printf("%p %p\n", cache.put(3, ""), (void *)main);
}
"#;
    for flags in [
        &["-g", "-O2"][..],
        &["-g0", "-O2"],
        &["-g", "-O2", "-gsplit-dwarf"],
    ] {
        let fixture = Fixture::build("g++", "fixture.cc", source, flags);
        let (frames, _) = fixture.resolve(Options::default());
        let last = frames.last().unwrap();
        assert_eq!(
            last.function.as_deref(),
            Some("ns::Cache<long>::put(long, char const*)::{lambda(int)#1}::operator()"),
            "{flags:?}"
        );
        assert!(
            last.linkage_name
                .as_deref()
                .unwrap()
                .starts_with("_ZZN2ns5Cache")
        );
        if flags[0] == "-g" {
            assert_eq!(last.line, Some(fixture.line("in lambda")));
        }
    }
}

#[test]
fn rust_names_have_no_hash() {
    let source = r#"
use std::arch::asm;
#[inline(never)]
fn here() -> usize {
    let at: usize;
    unsafe { asm!("mov {}, [rbp + 8]", out(reg) at) };
    at
}
mod cache {
    #[inline(always)]
    fn grow<T>(_: T) -> usize {
        std::hint::black_box(super::here()) // in grow
    }
    pub struct Map;
    impl Map {
        #[inline(never)]
        pub fn put(&self) -> usize {
            std::hint::black_box(grow(7u8)) // in put
        }
    }
}
#[unsafe(no_mangle)]
extern "C" fn mark() {}
fn main() {
    println!("{:#x} {:#x}", cache::Map.put(), mark as extern "C" fn() as usize);
}
"#;
    for mangling in ["legacy", "v0"] {
        let flag = format!("-Csymbol-mangling-version={mangling}");
        let mut flags = vec!["-g", "-O", "--edition=2024", "-Cforce-frame-pointers=yes"];
        if mangling == "v0" {
            flags.push(&flag);
        }
        let fixture = Fixture::build("rustc", "fixture.rs", source, &flags);
        let (frames, _) = fixture.resolve(Options::default());
        let got: Vec<_> = frames
            .iter()
            .map(|f| (f.function.as_deref().unwrap(), f.line.unwrap(), f.inlined))
            .collect();
        let want = [
            ("fixture::cache::grow::<u8>", fixture.line("in grow"), true),
            ("<fixture::cache::Map>::put", fixture.line("in put"), false),
        ];
        let plain = [
            ("fixture::cache::grow", want[0].1, true),
            ("fixture::cache::Map::put", want[1].1, false),
        ];
        assert!(got == want || got == plain, "{mangling}: {got:?}");
    }
}

/// As in a C library: `DW_AT_linkage_name` is a hidden alias.
const INTERNAL: &str = r#"
#include <stdio.h>
__attribute__((noinline)) void *here(void) { return __builtin_return_address(0); }
__attribute__((noinline, visibility("hidden"))) void *__twice(void) __asm__("__GI___twice");
void *__twice(void) {
    void *at = here();
    __asm__ volatile("" : "+r"(at));
    return at;
}
#ifdef PUBLIC
void *__twice_name(void) __attribute__((alias("__GI___twice")));
void *twice(void) __attribute__((weak, alias("__GI___twice")));
#endif
int main(void) {
    printf("%p %p\n", __twice(), (void *)main);
    return 0;
}
"#;

#[test]
fn a_library_function_has_the_name_that_programs_call() {
    for (flags, want) in [
        (&["-g", "-O2", "-DPUBLIC"][..], "twice"),
        (&["-O2", "-DPUBLIC"], "twice"),
        (&["-g", "-O2"], "__twice"),
        (&["-O2"], "__twice"),
    ] {
        let fixture = Fixture::build("cc", "internal.c", INTERNAL, flags);
        let (frames, _) = fixture.resolve(Options::default());
        let names = (
            frames[0].function.as_deref(),
            frames[0].linkage_name.as_deref(),
        );
        assert_eq!(names, (Some(want), Some(want)), "{flags:?}");
    }
}
