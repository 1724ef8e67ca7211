//! `leakscope check` on programs with other releases of glibc.
//!
//! `LEAKSCOPE_LIBCS` names folders into which the packages libc6 and libc6-dev
//! of a release were unpacked; `.ci/libcs` fetches some. Programs are linked
//! with the library there and started by its own loader.

use std::path::{Path, PathBuf};
use std::process::Command;

use leakscope_e2e::{Fixture, Outcome, build};
use leakscope_testkit::{Need, Target, libcs, need};
use libtest_mimic::Trial;

use crate::check::{at_its_end_with, can_examine, ensure, fits_the_header, is_suitable, section};
use crate::places::{has, judged, saved};
use crate::programs::folder;
use crate::trial;

/// Fixture programs that show what an allocator or the thread library does.
const SHOWING: [&str; 4] = ["alloc_", "nonroot_", "root_", "shape_"];

/// glibc's tunables that change how heaps look, as `GLIBC_TUNABLES`.
const TUNED: [(&str, &str); 7] = [
    ("plain", ""),
    ("no_cache", "glibc.malloc.tcache_count=0"),
    ("large_cache", "glibc.malloc.tcache_max=1048576"),
    ("fastbins", "glibc.malloc.mxfast=160"),
    ("one_arena", "glibc.malloc.arena_max=1"),
    ("mapped", "glibc.malloc.mmap_threshold=8192"),
    ("never_mapped", "glibc.malloc.mmap_max=0"),
];

/// A C library to build with; `None` for the machine's own.
#[derive(Clone, Debug)]
struct Libc(Option<PathBuf>);

pub fn trials() -> Vec<Trial> {
    let mut all = vec![Libc(None)];
    all.extend(libcs().into_iter().map(|folder| Libc(Some(folder))));
    let mut trials = Vec::new();
    if all.len() == 1 {
        trials.push(trial("libcs::others".to_owned(), || {
            need(Need::Libcs);
            Ok(())
        }));
    }
    for libc in all {
        for (name, tunables) in TUNED {
            let name = format!("libcs::{}::truth::{name}", libc.name());
            let libc = libc.clone();
            trials.push(trial(name, move || truth(&libc, tunables)));
        }
        let name = format!("libcs::{}::core_file", libc.name());
        let own = libc.clone();
        trials.push(trial(name, move || core_file(&own)));
        if libc.0.is_none() {
            // check::program runs them.
            continue;
        }
        let fixtures = Fixture::all().unwrap_or_default().into_iter();
        let fixtures = fixtures.filter(|f| is_suitable(f) && libc.can_build(f));
        for fixture in fixtures {
            let name = format!("libcs::{}::program::{}", libc.name(), fixture.name);
            let libc = libc.clone();
            trials.push(trial(name, move || program(&libc, &fixture)));
        }
    }
    trials
}

impl Libc {
    fn name(&self) -> String {
        let name = self.0.as_deref().and_then(Path::file_name);
        name.map_or("own".to_owned(), |n| n.to_string_lossy().into_owned())
    }

    /// Where its programs are built.
    fn folder(&self) -> PathBuf {
        folder().join("libcs").join(self.name())
    }

    /// C programs that need no other library.
    fn can_build(&self, fixture: &Fixture) -> bool {
        let is_c = fixture.source.extension().is_some_and(|e| e == "c");
        let build = fixture.get("build").unwrap_or_default();
        is_c && SHOWING.iter().any(|name| fixture.name.starts_with(name))
            && build.split_whitespace().all(|word| word == "-pthread")
    }

    /// Arguments of the compiler. The library is named file by file: the
    /// links in an unpacked package may lead out of its folder.
    fn arguments(&self) -> Vec<String> {
        let Some(root) = &self.0 else {
            return vec!["-pthread".to_owned()];
        };
        let at = |path: &str| root.join(path).to_string_lossy().into_owned();
        let libraries = at("lib/x86_64-linux-gnu");
        let loader = format!("{libraries}/ld-linux-x86-64.so.2");
        let mut all = vec![
            format!("--sysroot={}", root.display()),
            format!("-B{}", at("usr/lib/x86_64-linux-gnu/")),
            // The kernel's headers.
            "-idirafter/usr/include".to_owned(),
            "-idirafter/usr/include/x86_64-linux-gnu".to_owned(),
            "-nodefaultlibs".to_owned(),
            format!("-Wl,--dynamic-linker={loader}"),
            format!("-Wl,-rpath,{libraries}"),
            "-Wl,--as-needed,--start-group".to_owned(),
        ];
        for name in ["libc.so.6", "libpthread.so.0", "libdl.so.2", "libm.so.6"] {
            all.push(format!("{libraries}/{name}"));
        }
        all.extend([
            loader,
            at("usr/lib/x86_64-linux-gnu/libc_nonshared.a"),
            "-lgcc".to_owned(),
            "-Wl,--end-group".to_owned(),
        ]);
        all
    }
}

/// A fixture program is judged as with the machine's own library.
fn program(libc: &Libc, fixture: &Fixture) -> Outcome {
    if !can_examine() {
        return Ok(());
    }
    let target = at_its_end_with(fixture, &libc.folder(), &libc.arguments())?;
    fits_the_header(fixture, &target.ok_or("the program ended")?)
}

/// The program that counts its blocks itself.
fn counting(libc: &Libc, tunables: &str) -> Result<Target, String> {
    let source = build::root().join("tests/programs/counts_itself.c");
    let folder = libc.folder();
    std::fs::create_dir_all(&folder).map_err(|e| format!("create {folder:?}: {e}"))?;
    let built = build::program(&source, &folder.join("counts_itself"), &libc.arguments())?;
    let mut command = Command::new(built.path);
    Ok(Target::spawn(command.env("GLIBC_TUNABLES", tunables)))
}

/// gdb's core file of it tells the same, or says that it lacks the stacks.
fn core_file(libc: &Libc) -> Outcome {
    if !can_examine() || !need(Need::Program("gdb")) {
        return Ok(());
    }
    let mut target = counting(libc, "")?;
    for _ in 0..3 {
        target.line().ok_or("the program ended")?;
        target.send("");
    }
    target.line().ok_or("the program ended")?;
    let living = section(&target, &[])?;
    let place = tempfile::tempdir().map_err(|e| format!("make a folder: {e}"))?;
    let (core, _) = saved(&target, place.path())?;
    let saved = judged(&[&core.to_string_lossy()])?;
    let (definite, possible) = (saved.loss("definite").1, saved.loss("possible").1);
    let lost = living.loss("definite").1 + living.loss("possible").1;
    let tells_the_same = saved.summary() == living.summary();
    let says_so = has(&saved, "core-bare-threads") && definite == 0 && possible >= lost;
    ensure(
        tells_the_same && !has(&saved, "core-bare-threads") || says_so,
        || format!("living {}saved {}", living.shown(), saved.shown()),
    )
}

/// The blocks of a program that counts them itself, at each of its stages.
fn truth(libc: &Libc, tunables: &str) -> Outcome {
    if !can_examine() {
        return Ok(());
    }
    let mut target = counting(libc, tunables)?;
    let mut own = None;
    let mut stages = 0;
    while let Some(line) = target.line() {
        let numbers: Vec<u64> = line.split(' ').filter_map(|w| w.parse().ok()).collect();
        let &[held, held_bytes, lost, lost_bytes] = numbers.as_slice() else {
            return Err(format!("it wrote '{line}'"));
        };
        let section = section(&target, &[])?;
        let heap = ["live_blocks", "live_bytes"].map(|n| section.number(&format!("/heap/{n}")));
        let own = own.get_or_insert(heap);
        let found = (heap[0] - own[0], heap[1] - own[1]);
        // A word that a stack holds by chance may keep one or another.
        let [(definite, blocks), (kept, by_chance)] =
            ["definite", "possible"].map(|kind| section.loss(kind));
        ensure(
            found == (held + lost, held_bytes + lost_bytes)
                && (blocks + by_chance, definite + kept) == (lost, lost_bytes)
                && by_chance < 7
                && section.number("/loss/indirect/blocks") == 0
                && section.at("/coverage/heap_check/agrees") == true,
            || {
                let shown = section.shown();
                format!("stage {stages}: {line} is true, {found:?} found\n{shown}")
            },
        )?;
        stages += 1;
        target.send("");
    }
    let status = target.wait();
    ensure(stages == 7 && status.success(), || {
        format!("{stages} stages, {status}")
    })
}
