//! Debug information in files of its own.

use std::path::{Path, PathBuf};
use std::process::Command;

use leakscope_symbols::Options;

use crate::fixture::{Fixture, codes, run};

/// Splits the program into a stripped one and its debug file `to`.
fn separate(fixture: &Fixture, to: &Path) {
    std::fs::create_dir_all(to.parent().unwrap()).unwrap();
    run(Command::new("objcopy")
        .arg("--only-keep-debug")
        .arg(&fixture.program)
        .arg(to));
    run(Command::new("strip").arg(&fixture.program));
}

fn add_link(fixture: &Fixture, debug: &Path) {
    run(Command::new("objcopy")
        .arg(format!("--add-gnu-debuglink={}", debug.display()))
        .arg(&fixture.program));
}

/// Where a debug file with this id is looked for below `dir`.
pub fn by_build_id(dir: &Path, id: &[u8]) -> PathBuf {
    let hex: String = id.iter().map(|b| format!("{b:02x}")).collect();
    dir.join(format!(".build-id/{}/{}.debug", &hex[..2], &hex[2..]))
}

#[test]
fn by_build_id_in_a_debug_dir() {
    let fixture = Fixture::c(&["-g", "-O2"]);
    let dir = fixture.dir.path().join("debug");
    let debug = by_build_id(&dir, fixture.build_id.as_ref().unwrap());
    separate(&fixture, &debug);
    let options = Options {
        debug_dirs: vec![dir],
        ..Options::default()
    };
    let (frames, symbolizer) = fixture.resolve(options.clone());
    fixture.assert_inlined(&frames, "build id");
    assert_eq!(codes(&symbolizer), [""; 0]);

    // The file of another program under that name is refused.
    let other = Fixture::c(&["-g", "-O1"]);
    std::fs::copy(&other.program, &debug).unwrap();
    let (frames, symbolizer) = fixture.resolve(options);
    assert_eq!(frames[0].function, None);
    assert_eq!(frames[0].module_offset, Some(fixture.pc - 1));
    assert_eq!(codes(&symbolizer), ["no-symbols"]);
}

#[test]
fn by_debuglink_with_its_checksum() {
    // Without a build id, the checksum alone tells.
    let flags = ["-g", "-O2", "-Wl,--build-id=none"];
    for place in ["program.debug", ".debug/program.debug"] {
        let fixture = Fixture::c(&flags);
        let debug = fixture.dir.path().join(place);
        separate(&fixture, &debug);
        add_link(&fixture, &debug);
        let (frames, _) = fixture.resolve(Options::default());
        fixture.assert_inlined(&frames, place);

        let mut bytes = std::fs::read(&debug).unwrap();
        bytes.push(0);
        std::fs::write(&debug, bytes).unwrap();
        let (frames, symbolizer) = fixture.resolve(Options::default());
        assert_eq!(frames[0].function, None, "{place}");
        assert_eq!(codes(&symbolizer), ["no-symbols"]);
    }
}

#[test]
fn by_debuglink_below_a_debug_dir() {
    let fixture = Fixture::c(&["-g", "-O2", "-Wl,--build-id=none"]);
    let dir = tempfile::tempdir().unwrap();
    let inside = fixture.dir.path().strip_prefix("/").unwrap();
    let debug = dir.path().join(inside).join("program.debug");
    separate(&fixture, &debug);
    add_link(&fixture, &debug);
    let (frames, _) = fixture.resolve(Options {
        debug_dirs: vec![dir.path().to_owned()],
        ..Options::default()
    });
    fixture.assert_inlined(&frames, "debuglink");
}

#[test]
fn a_supplementary_file_of_dwz() {
    if Command::new("dwz").arg("--version").output().is_err() {
        println!("skipped: dwz is not installed");
        return;
    }
    let fixture = Fixture::c(&["-gdwarf-4", "-O2"]);
    let dir = fixture.dir.path();
    for copy in ["one.debug", "two.debug"] {
        run(Command::new("objcopy")
            .arg("--only-keep-debug")
            .arg(&fixture.program)
            .arg(dir.join(copy)));
    }
    run(Command::new("strip").arg(&fixture.program));
    run(Command::new("dwz").current_dir(dir).args([
        "-m",
        "common.debug",
        "-M",
        "common.debug",
        "one.debug",
        "two.debug",
    ]));
    let debug = by_build_id(&dir.join("debug"), fixture.build_id.as_ref().unwrap());
    std::fs::create_dir_all(debug.parent().unwrap()).unwrap();
    std::fs::copy(dir.join("one.debug"), &debug).unwrap();
    std::fs::copy(
        dir.join("common.debug"),
        debug.with_file_name("common.debug"),
    )
    .unwrap();
    let options = Options {
        debug_dirs: vec![dir.join("debug")],
        ..Options::default()
    };
    let (frames, symbolizer) = fixture.resolve(options.clone());
    fixture.assert_inlined(&frames, "dwz");
    assert_eq!(codes(&symbolizer), [""; 0]);

    // Gone, it is said; lines and the called function are still known.
    std::fs::remove_file(debug.with_file_name("common.debug")).unwrap();
    let (frames, symbolizer) = fixture.resolve(options);
    assert_eq!(frames.last().unwrap().function.as_deref(), Some("work"));
    assert_eq!(codes(&symbolizer), ["symbols-incomplete"]);
}

#[test]
fn packed_symbols_in_the_stripped_file() {
    let fixture = Fixture::c(&["-g", "-O2"]);
    let dir = fixture.dir.path();
    let mini = dir.join("mini");
    separate(&fixture, &dir.join("unused/x.debug"));
    run(Command::new("objcopy")
        .args(["-S", "--remove-section=.gnu.build.attributes"])
        .args(["--remove-section=.debug*", "--strip-debug"])
        .arg(dir.join("unused/x.debug"))
        .arg(&mini));
    // -S took the table too: take it from the debug file, less the lines.
    run(Command::new("objcopy")
        .arg("--strip-debug")
        .arg(dir.join("unused/x.debug"))
        .arg(&mini));
    run(Command::new("xz").arg("-k").arg(&mini));
    run(Command::new("objcopy")
        .arg(format!(
            "--add-section=.gnu_debugdata={}.xz",
            mini.display()
        ))
        .arg(&fixture.program));
    let (frames, symbolizer) = fixture.resolve(Options::default());
    assert_eq!(frames[0].function.as_deref(), Some("work"));
    assert_eq!(frames[0].line, None);
    assert_eq!(codes(&symbolizer), [""; 0]);
}
