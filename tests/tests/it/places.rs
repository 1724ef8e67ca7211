//! `leakscope check` on what is elsewhere: packed core files, core files of
//! other machines.

use std::path::{Path, PathBuf};
use std::process::Command;

use leakscope_e2e::{Outcome, Section};
use leakscope_testkit::{Need, Target, need};
use libtest_mimic::Trial;

use crate::check::{can_examine, check, ensure, named};
use crate::trial;

type Case = (&'static str, fn() -> Outcome);

const CASES: [Case; 4] = [
    ("packed_core_files", packed_core_files),
    ("a_packed_core_file_is_cut", a_packed_core_file_is_cut),
    ("there_is_no_room_to_unpack", there_is_no_room_to_unpack),
    ("a_core_file_from_elsewhere", a_core_file_from_elsewhere),
];

pub fn trials() -> Vec<Trial> {
    let cases = CASES.into_iter().map(|(name, test)| {
        trial(format!("places::{name}"), move || {
            if can_examine() && need(Need::Program("gdb")) {
                test()
            } else {
                Ok(())
            }
        })
    });
    cases.collect()
}

fn failed(what: &str) -> impl Fn(std::io::Error) -> String {
    move |e| format!("{what}: {e}")
}

/// A core file of the program, and the files that it has mapped.
fn saved(name: &str, place: &Path) -> Result<(PathBuf, Vec<PathBuf>), String> {
    let target = named(name)?;
    let core = place.join("core");
    let save = format!("gcore {}", core.display());
    let pid = target.pid().to_string();
    let gdb = Command::new("gdb")
        .args(["-nx", "-batch", "-p", &pid, "-ex", &save])
        .output()
        .map_err(failed("start gdb"))?;
    ensure(core.exists(), || {
        String::from_utf8_lossy(&gdb.stderr).into_owned()
    })?;
    Ok((core, mapped(&target)?))
}

fn mapped(target: &Target) -> Result<Vec<PathBuf>, String> {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", target.pid()));
    let maps = maps.map_err(failed("read the map"))?;
    let paths = maps.lines().filter_map(|line| line.split_once('/'));
    let mut files: Vec<PathBuf> = paths.map(|(_, path)| format!("/{path}").into()).collect();
    files.dedup();
    Ok(files)
}

fn judged(options: &[&str]) -> Result<Section, String> {
    let mut all = vec!["--format", "json"];
    all.extend(options);
    let done = check(&all)?;
    let stderr = String::from_utf8_lossy(&done.stderr);
    ensure(done.code() == 0 && done.stderr.is_empty(), || {
        format!("status {}, stderr {stderr}", done.code())
    })?;
    let mut sections = Section::all(&String::from_utf8_lossy(&done.stdout))?;
    sections.pop().ok_or_else(|| "no section".to_owned())
}

fn has(section: &Section, code: &str) -> bool {
    let mut notices = section.array("/notices").iter();
    notices.any(|notice| notice["code"] == code)
}

/// Packs `core` with the program `with`.
fn pack(core: &Path, with: &str) -> Result<PathBuf, String> {
    let packed = core.with_extension(with);
    let out = std::fs::File::create(&packed).map_err(failed("make a file"))?;
    let packing = Command::new(with).arg("-c").arg(core).stdout(out).status();
    let packing = packing.map_err(failed(with))?;
    ensure(packing.success(), || format!("{with}: {packing}"))?;
    Ok(packed)
}

fn packed_core_files() -> Outcome {
    let place = tempfile::tempdir().map_err(failed("make a folder"))?;
    let (core, _) = saved("type_objects.cc", place.path())?;
    let plain = judged(&[&core.to_string_lossy()])?;
    for with in ["zstd", "gzip", "xz"] {
        if !need(Need::Program(with)) {
            continue;
        }
        let packed = pack(&core, with)?;
        let section = judged(&[&packed.to_string_lossy()])?;
        ensure(
            section.summary() == plain.summary() && !has(&section, "core-damaged"),
            || format!("{with}: {}", section.shown()),
        )?;
    }
    Ok(())
}

fn a_packed_core_file_is_cut() -> Outcome {
    let place = tempfile::tempdir().map_err(failed("make a folder"))?;
    let (core, _) = saved("type_objects.cc", place.path())?;
    let packed = pack(&core, "gzip")?;
    let bytes = std::fs::read(&packed).map_err(failed("read"))?;
    // gdb writes the threads' registers behind the memory.
    std::fs::write(&packed, &bytes[..bytes.len() - 7]).map_err(failed("write"))?;
    let section = judged(&[&packed.to_string_lossy()])?;
    ensure(
        has(&section, "core-damaged") && section.loss("definite").1 == 28,
        || section.shown(),
    )?;
    std::fs::write(&packed, &bytes[..bytes.len() / 2]).map_err(failed("write"))?;
    let done = check(&[&packed.to_string_lossy()])?;
    let stderr = String::from_utf8_lossy(&done.stderr);
    ensure(done.code() == 125 && stderr.contains("was cut off"), || {
        format!("status {}: {stderr}", done.code())
    })
}

/// One sentence that names the remedy, and nothing stays behind.
fn there_is_no_room_to_unpack() -> Outcome {
    let place = tempfile::tempdir().map_err(failed("make a folder"))?;
    let (core, _) = saved("type_objects.cc", place.path())?;
    let packed = pack(&core, "gzip")?;
    let leakscope = leakscope_e2e::build::leakscope()?;
    let done =
        leakscope_e2e::run::Job::new([leakscope.as_os_str(), "check".as_ref(), packed.as_os_str()])
            .env("TMPDIR", "/no/such/folder")
            .run()?;
    let stderr = String::from_utf8_lossy(&done.stderr);
    ensure(
        done.code() == 125
            && done.stdout.is_empty()
            && stderr.lines().count() == 1
            && stderr.contains("TMPDIR"),
        || format!("status {}: {stderr}", done.code()),
    )
}

/// Its files lie below another folder; one of them is of another build, or
/// gone.
fn a_core_file_from_elsewhere() -> Outcome {
    let place = tempfile::tempdir().map_err(failed("make a folder"))?;
    let (core, files) = saved("type_objects.cc", place.path())?;
    let root = place.path().join("root");
    let below = |file: &Path| root.join(file.strip_prefix("/").unwrap_or(file));
    for file in &files {
        let copy = below(file);
        let folder = copy.parent().unwrap_or(&root);
        std::fs::create_dir_all(folder).map_err(failed("make a folder"))?;
        std::fs::copy(file, &copy).map_err(failed("copy"))?;
    }
    let core = core.to_string_lossy().into_owned();
    let sysroot = format!("--sysroot={}", root.display());
    let named_types = |section: &Section| {
        let leaks = section.leaks().iter();
        leaks.filter(|leak| leak["type"].is_string()).count()
    };
    let here = judged(&[&core])?;
    let there = judged(&[&sysroot, &core])?;
    ensure(
        there.summary() == here.summary()
            && named_types(&there) > 0
            && !has(&there, "core-missing-files")
            && !has(&there, "core-other-files"),
        || there.shown(),
    )?;

    // Another program in its place, and a link that leads out of the folder.
    let program = files
        .iter()
        .find(|f| f.ends_with("type_objects"))
        .ok_or("no program")?;
    let moved = place.path().join("moved");
    std::fs::rename(below(program), &moved).map_err(failed("move"))?;
    std::fs::copy("/bin/sh", below(program)).map_err(failed("copy"))?;
    let other = judged(&[&sysroot, &core])?;
    ensure(
        has(&other, "core-other-files") && named_types(&other) == 0,
        || other.shown(),
    )?;
    std::fs::remove_file(below(program)).map_err(failed("remove"))?;
    std::os::unix::fs::symlink(&moved, below(program)).map_err(failed("link"))?;
    let missing = judged(&[&sysroot, &core])?;
    ensure(
        has(&missing, "core-missing-files") && missing.loss("definite").1 == 28,
        || missing.shown(),
    )?;
    let exe = format!("--exe={}", moved.display());
    let again = judged(&[&sysroot, &exe, &core])?;
    ensure(
        again.summary() == here.summary() && named_types(&again) == named_types(&here),
        || again.shown(),
    )
}
