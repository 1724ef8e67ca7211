//! `leakscope check` on what is elsewhere: packed core files, core files of
//! other machines, processes in containers.

use std::collections::BTreeSet;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use leakscope_e2e::{Outcome, Section};
use leakscope_testkit::{Need, Target, need};
use libtest_mimic::Trial;

use crate::check::{can_examine, check, ensure, named};
use crate::trial;

type Case = (&'static str, fn() -> Outcome);

const CASES: [Case; 6] = [
    ("packed_core_files", packed_core_files),
    ("a_packed_core_file_is_cut", a_packed_core_file_is_cut),
    ("there_is_no_room_to_unpack", there_is_no_room_to_unpack),
    ("a_core_file_from_elsewhere", a_core_file_from_elsewhere),
    ("in_other_namespaces", in_other_namespaces),
    ("by_the_name_of_a_group", by_the_name_of_a_group),
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

/// A core file of the process, and the files that it has mapped.
pub fn saved(target: &Target, place: &Path) -> Result<(PathBuf, Vec<PathBuf>), String> {
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
    Ok((core, mapped(target)?))
}

fn mapped(target: &Target) -> Result<Vec<PathBuf>, String> {
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", target.pid()));
    let maps = maps.map_err(failed("read the map"))?;
    let paths = maps.lines().filter_map(|line| line.split_once('/'));
    let mut files: Vec<PathBuf> = paths.map(|(_, path)| format!("/{path}").into()).collect();
    files.dedup();
    Ok(files)
}

pub fn judged(options: &[&str]) -> Result<Section, String> {
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

pub fn has(section: &Section, code: &str) -> bool {
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
    let (core, _) = saved(&named("type_objects.cc")?, place.path())?;
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
    let (core, _) = saved(&named("type_objects.cc")?, place.path())?;
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
    let (core, _) = saved(&named("type_objects.cc")?, place.path())?;
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

fn copy_below(root: &Path, files: &[PathBuf]) -> Outcome {
    for file in files {
        let copy = root.join(file.strip_prefix("/").unwrap_or(file));
        let folder = copy.parent().unwrap_or(root);
        std::fs::create_dir_all(folder).map_err(failed("make a folder"))?;
        std::fs::copy(file, &copy).map_err(failed("copy"))?;
    }
    Ok(())
}

/// Its files lie below another folder; one of them is of another build, or
/// gone.
fn a_core_file_from_elsewhere() -> Outcome {
    let place = tempfile::tempdir().map_err(failed("make a folder"))?;
    let (core, files) = saved(&named("type_objects.cc")?, place.path())?;
    let root = place.path().join("root");
    let below = |file: &Path| root.join(file.strip_prefix("/").unwrap_or(file));
    copy_below(&root, &files)?;
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

/// A process with namespaces of users, processes and mounts of its own, and
/// another root.
fn in_other_namespaces() -> Outcome {
    let into = ["--map-root-user", "--mount", "--pid", "--fork"];
    let can = Command::new("unshare").args(into).arg("true").output();
    if !can.is_ok_and(|done| done.status.success()) {
        eprintln!("skipped: this machine allows no namespaces");
        return Ok(());
    }
    let place = tempfile::tempdir().map_err(failed("make a folder"))?;
    let outside = named("shape_tree.c")?;
    let program = std::fs::read_link(format!("/proc/{}/exe", outside.pid()));
    let program = program.map_err(failed("read the link"))?;
    let files = mapped(&outside)?;
    copy_below(place.path(), &files)?;
    // The loader is found by the name that the program knows it by.
    let libraries = files.iter().filter(|f| f.to_string_lossy().contains(".so"));
    let folders: BTreeSet<_> = libraries.filter_map(|f| f.parent()).collect();
    let folders = std::env::join_paths(folders).map_err(|e| e.to_string())?;
    let known = Path::new("/lib64/ld-linux-x86-64.so.2").to_owned();
    copy_below(place.path(), &[known])?;
    let waiter = files.iter().find(|f| f.ends_with("wait_at_end.so"));
    let mut inside = Target::spawn(
        Command::new("unshare")
            .args(into)
            .arg("chroot")
            .arg(place.path())
            .arg(&program)
            .env("LD_PRELOAD", waiter.ok_or("no library")?)
            .env("LD_LIBRARY_PATH", folders),
    );
    while inside.line().ok_or("the program ended")? != "at the end" {}
    let children = format!("/proc/{0}/task/{0}/children", inside.pid());
    let children = std::fs::read_to_string(children).map_err(failed("read the children"))?;
    let child = children.trim();
    let there = judged(&[child])?;
    let here = judged(&[&outside.pid().to_string()])?;
    ensure(there.summary() == here.summary(), || {
        format!("inside {}, outside {}", there.shown(), here.shown())
    })
}

/// A control group like that of a service; removed when dropped.
struct Group(PathBuf);

impl Group {
    fn with(name: &str, target: &Target) -> Option<Group> {
        let places = ["", "systemd", "unified", "pids"];
        places.into_iter().find_map(|place| {
            let group = Path::new("/sys/fs/cgroup").join(place).join(name);
            std::fs::create_dir(&group).ok()?;
            let group = Group(group);
            group.join(target).ok()?;
            Some(group)
        })
    }

    fn join(&self, target: &Target) -> std::io::Result<()> {
        // Where no hierarchy is mounted, the folder is an ordinary one.
        let mut procs = std::fs::OpenOptions::new();
        let mut procs = procs.write(true).open(self.0.join("cgroup.procs"))?;
        procs.write_all(target.pid().to_string().as_bytes())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // Only when its process has left; that was waited for.
        let _ = std::fs::remove_dir(&self.0);
    }
}

fn by_the_name_of_a_group() -> Outcome {
    let name = format!("leakscope-test-{}", std::process::id());
    let target = named("type_objects.cc")?;
    let Some(group) = Group::with(&format!("{name}.service"), &target) else {
        eprintln!("skipped: no control group can be made here");
        return Ok(());
    };
    let section = judged(&[&name])?;
    ensure(
        section.number("/pid") == u64::from(target.pid()) && section.loss("definite").1 == 28,
        || section.shown(),
    )?;
    let second = named("shape_tree.c")?;
    group.join(&second).map_err(failed("join the group"))?;
    let done = check(&[&name])?;
    let stderr = String::from_utf8_lossy(&done.stderr);
    let listed = [&target, &second].map(|t| stderr.contains(&format!("{} (", t.pid())));
    ensure(
        done.code() == 125 && done.stdout.is_empty() && listed == [true; 2],
        || format!("status {}: {stderr}", done.code()),
    )?;
    drop((target, second));
    drop(group);
    Ok(())
}
