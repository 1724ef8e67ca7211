//! Fixture trees, hostile bytes, and our own process.

use leakscope_model::Addr;
use leakscope_proc::{
    DescriptorKind, ErrorKind, ProcRoot, Process, Syscall, auxv, cmdline, descriptor, maps, stat,
    status, syscall,
};
use proptest::prelude::*;
use std::path::Path;

fn root(quirk: &str) -> ProcRoot {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../fixtures/proc");
    ProcRoot::new(fixtures.join(quirk))
}

fn process(quirk: &str) -> Process {
    root(quirk).process(4711)
}

#[test]
fn odd_names() {
    let process = process("odd-names");
    let stat = process.stat().unwrap();
    assert_eq!(stat.comm, b"a) R 9 (b (c)");
    assert_eq!(
        (stat.state, stat.parent, stat.start_time),
        (b'S', 31, 884413)
    );

    let maps = process.maps().unwrap();
    assert_eq!(maps.skipped, 0);
    let paths: Vec<_> = maps.map.regions().iter().map(|r| &r.path[..]).collect();
    let want: [&[u8]; 5] = [
        b"/srv/a b/(x) prog (deleted)",
        b"/srv/two\nlines",
        b"[heap]",
        b"[anon:my cache]",
        b"/srv/\xff\xferaw",
    ];
    assert_eq!(paths, want);
}

#[test]
fn zombie() {
    let process = process("zombie");
    assert!(process.stat().unwrap().is_dead());
    assert!(process.maps().unwrap().map.regions().is_empty());
    assert!(process.cmdline().unwrap().is_empty());
    let status = process.status().unwrap();
    assert_eq!(status.state, Some(b'Z'));
    assert_eq!(status.seccomp, None);
}

#[test]
fn rewritten_title() {
    let argv = process("rewritten-title").cmdline().unwrap();
    assert_eq!(argv.first().unwrap(), b"postgres: writer process   ");
}

#[test]
fn odd_map() {
    let process = process("odd-map");
    let maps = process.maps().unwrap();
    assert_eq!((maps.map.regions().len(), maps.skipped), (3, 3));
    assert!(maps.map.find(Addr(0xffff_ffff_ff60_0fff)).is_some());
    let text = std::fs::read(process.file("maps")).unwrap();
    let error = maps::parse(&text).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Malformed);
    assert!(error.to_string().contains("something a later kernel"));
}

#[test]
fn newer_kernel() {
    let root = root("newer-kernel");
    assert_eq!(root.pids().unwrap(), [4711]);
    assert_eq!(root.ptrace_scope(), Some(1));
    let process = root.process(4711);
    let status = process.status().unwrap();
    assert_eq!(status.namespace_pids, [4711, 7]);
    assert_eq!(status.resident_bytes, Some(5821 * 1024));
    assert!(status.has_deliverable_signal());
    assert_eq!(process.stat().unwrap().threads, 2);
    assert_eq!(process.tasks().unwrap(), [4711, 4713]);
    assert_eq!(process.task(4711).syscall().unwrap(), Syscall::Running);
    assert!(matches!(
        process.task(4713).syscall().unwrap(),
        Syscall::Inside {
            number: 58,
            sp: 0x7ffe_92cd_3b88,
            ..
        }
    ));
}

#[test]
fn descriptors() {
    let found = process("descriptors").descriptors().unwrap();
    let found: Vec<_> = found.iter().map(|d| (d.number, d.kind)).collect();
    let want = [
        (0, DescriptorKind::Path),
        (1, DescriptorKind::Pipe(31337)),
        (2, DescriptorKind::Socket(4711)),
        (7, DescriptorKind::Deleted),
        (11, DescriptorKind::Anonymous),
        (13, DescriptorKind::Memory),
    ];
    assert_eq!(found, want);
}

#[test]
fn an_absent_process_is_gone() {
    let error = root("zombie").process(99).stat().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Gone);
    assert!(error.to_string().ends_with("/99/stat: no such process"));
    let error = root("zombie").process(99).tasks().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Gone);
}

#[test]
fn our_own_process() {
    let me = ProcRoot::default().process(std::process::id());
    let stat = me.stat().unwrap();
    assert_eq!(stat.pid, std::process::id());
    assert!(!stat.is_kernel_thread() && stat.threads >= 1);
    let status = me.status().unwrap();
    assert_eq!(status.tgid, Some(stat.pid));
    assert_eq!(status.parent, Some(stat.parent));
    let maps = me.maps().unwrap();
    assert_eq!(maps.skipped, 0);
    let here = Addr(our_own_process as fn() as usize as u64);
    assert!(maps.map.find(here).is_some_and(|r| r.exec));
    assert!(me.tasks().unwrap().contains(&stat.pid));
    assert!(me.descriptors().unwrap().iter().any(|d| d.number == 1));
    assert!(me.auxv().unwrap().iter().any(|&(k, _)| k == auxv::AT_ENTRY));
    assert!(!me.cmdline().unwrap().is_empty());
    assert!(!me.exe().unwrap().is_empty());
}

/// Bytes that look like kernel text often enough to get past the first cut.
fn hostile() -> impl Strategy<Value = Vec<u8>> {
    let piece = prop_oneof![
        any::<Vec<u8>>(),
        "[0-9a-f]{0,18}[-: ()\n\t]".prop_map(String::into_bytes),
        "(r--p|rw-s|00:00|\\)|\\(|0x|-1|Uid:|SigPnd:|\\\\012)".prop_map(String::into_bytes),
    ];
    prop::collection::vec(piece, 0..40).prop_map(|pieces| pieces.concat())
}

proptest! {
    #[test]
    fn hostile_bytes_never_panic(text in hostile()) {
        let maps = maps::parse_lenient(&text);
        let mut end = Addr(0);
        for region in maps.map.regions() {
            prop_assert!(region.range.start >= end && !region.range.is_empty());
            end = region.range.end;
        }
        prop_assert_eq!(maps::parse(&text).is_ok(), maps.skipped == 0);
        let _ = (stat::parse(&text), status::parse(&text), syscall::parse(&text));
        let _ = (cmdline::parse(&text), auxv::parse(&text), descriptor::classify(&text));
    }
}
