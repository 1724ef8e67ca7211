//! What became of a module's file, and what the caller asked for.

use std::collections::HashMap;
use std::process::Command;

use leakscope_model::{Addr, Frame, ModuleId, RawFrame};
use leakscope_symbols::{Options, Symbolizer};

use crate::fixture::{Fixture, codes, run};

#[test]
fn a_replaced_file_is_not_used() {
    let fixture = Fixture::c(&["-g", "-O2"]);
    let other = Fixture::c(&["-g", "-O0"]);
    let kept = fixture.dir.path().join("kept");
    std::fs::copy(&fixture.program, &kept).unwrap();
    std::fs::copy(&other.program, &fixture.program).unwrap();
    let (frames, symbolizer) = fixture.resolve(Options::default());
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].function, None);
    assert_eq!(codes(&symbolizer), ["module-replaced", "no-symbols"]);

    // As /proc/PID/exe would give it.
    let options = Options {
        alternatives: HashMap::from([(ModuleId(0), kept)]),
        ..Options::default()
    };
    let (frames, symbolizer) = fixture.resolve(options);
    fixture.assert_inlined(&frames, "alternative");
    assert_eq!(codes(&symbolizer), ["module-replaced"]);
}

#[test]
fn a_deleted_file_is_said_so() {
    let fixture = Fixture::c(&["-g", "-O2"]);
    let kept = fixture.dir.path().join("kept");
    std::fs::rename(&fixture.program, &kept).unwrap();
    let mut module = fixture.module(&fixture.program);
    module.path.extend(b" (deleted)");
    let shown = fixture.program.to_str();
    for (alternatives, named, want) in [
        (HashMap::new(), false, &["module-deleted", "no-symbols"][..]),
        (
            HashMap::from([(ModuleId(0), kept.clone())]),
            true,
            &["module-deleted"],
        ),
    ] {
        let options = Options {
            alternatives,
            ..Options::default()
        };
        let mut symbolizer = Symbolizer::new(options, std::slice::from_ref(&module));
        let frames = symbolizer.resolve(fixture.frame());
        assert_eq!(frames.len() == 3, named);
        assert_eq!(frames[0].module.as_deref(), shown);
        assert_eq!(codes(&symbolizer), want);
    }

    // Back again, the same: nothing to say.
    std::fs::rename(&kept, &fixture.program).unwrap();
    let mut symbolizer = Symbolizer::new(Options::default(), std::slice::from_ref(&module));
    fixture.assert_inlined(&symbolizer.resolve(fixture.frame()), "restored");
    assert_eq!(codes(&symbolizer), [""; 0]);

    // Without a build id to compare, a file at that path is its successor.
    module.build_id = None;
    let mut symbolizer = Symbolizer::new(Options::default(), &[module]);
    assert_eq!(symbolizer.resolve(fixture.frame()).len(), 1);
    assert_eq!(codes(&symbolizer), ["module-replaced", "no-symbols"]);
}

#[test]
fn frames_without_a_file() {
    let fixture = Fixture::c(&["-g", "-O2"]);
    let mut vdso = fixture.module(&fixture.program);
    vdso.path = b"[vdso]".to_vec();
    let mut symbolizer = Symbolizer::new(Options::default(), &[vdso]);
    let frames = symbolizer.resolve(fixture.frame());
    assert_eq!(frames[0].module.as_deref(), Some("[vdso]"));
    assert_eq!(frames[0].module_offset, Some(fixture.pc - 1));
    let jit = RawFrame {
        module: ModuleId::NONE,
        pc: Addr(0x1234_5678),
    };
    assert_eq!(symbolizer.resolve(jit), [Frame::default()]);
    let cut = RawFrame {
        module: ModuleId(0),
        pc: Addr(0),
    };
    let frames = symbolizer.resolve_stack([cut, jit].into_iter());
    assert!(frames[0].cut && !frames[1].cut && frames.len() == 2);
    assert_eq!(codes(&symbolizer), [""; 0]);
}

#[test]
fn no_symbols_means_no_file_is_opened() {
    let fixture = Fixture::c(&["-g", "-O2"]);
    let (frames, symbolizer) = fixture.resolve(Options {
        enabled: false,
        ..Options::default()
    });
    let want = Frame {
        module: fixture.program.to_str().map(str::to_owned),
        module_offset: Some(fixture.pc - 1),
        ..Frame::default()
    };
    assert_eq!(frames, [want]);
    assert_eq!(codes(&symbolizer), [""; 0]);
}

#[test]
fn symbols_alone_give_functions() {
    let fixture = Fixture::c(&["-g0", "-O2"]);
    let (frames, symbolizer) = fixture.resolve(Options::default());
    assert_eq!(frames.len(), 1);
    assert_eq!(frames[0].function.as_deref(), Some("work"));
    assert_eq!((&frames[0].file, frames[0].line), (&None, None));
    assert_eq!(codes(&symbolizer), [""; 0]);

    // Stripped, the exported functions are left.
    let fixture = Fixture::c(&["-g0", "-O2", "-rdynamic"]);
    run(Command::new("strip").arg(&fixture.program));
    let (frames, symbolizer) = fixture.resolve(Options::default());
    assert_eq!(frames[0].function.as_deref(), Some("work"));
    assert_eq!(codes(&symbolizer), ["no-symbols"]);
}

#[test]
fn sources_are_found_below_the_source_root() {
    let fixture = Fixture::c(&["-g", "-O2", "-fdebug-prefix-map=/=/build/"]);
    let (frames, _) = fixture.resolve(Options {
        source_root: Some(fixture.dir.path().to_owned()),
        ..Options::default()
    });
    let want = fixture.dir.path().join("fixture.c");
    for frame in frames {
        assert_eq!(frame.file.as_deref(), want.to_str());
    }
}

#[test]
fn paths_are_looked_up_below_the_targets_root() {
    let fixture = Fixture::c(&["-g", "-O2"]);
    let options = Options {
        root: Some(fixture.dir.path().to_owned()),
        ..Options::default()
    };
    let module = fixture.module("/program".as_ref());
    let mut symbolizer = Symbolizer::new(options, &[module]);
    let frames = symbolizer.resolve(fixture.frame());
    assert_eq!(frames.len(), 3);
    assert_eq!(frames[0].module.as_deref(), Some("/program"));

    // A link that leads out of it finds nothing, though the file exists.
    let inner = fixture.dir.path().join("inner");
    std::fs::create_dir(&inner).unwrap();
    std::os::unix::fs::symlink(&fixture.program, inner.join("program")).unwrap();
    let options = Options {
        root: Some(inner),
        ..Options::default()
    };
    let mut symbolizer = Symbolizer::new(options, &[fixture.module("/program".as_ref())]);
    assert_eq!(symbolizer.resolve(fixture.frame()).len(), 1);
    assert_eq!(codes(&symbolizer), ["module-deleted", "no-symbols"]);
}
