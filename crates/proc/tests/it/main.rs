//! Fixture trees, hostile bytes, and our own process.

use leakscope_model::{Addr, Range};
use leakscope_proc::{
    DescriptorKind, ErrorKind, PageSet, ProcRoot, Process, Syscall, auxv, cmdline, descriptor,
    maps, pagemap, smaps, stat, status, syscall,
};
use proptest::prelude::*;
use std::fs;
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

/// Runs `test` on a process, 4711, that has one file.
fn with_file<T>(file: &str, text: &[u8], test: impl FnOnce(&Process) -> T) -> T {
    let name = format!("leakscope-proc-{}-{file}", std::process::id());
    let root = std::env::temp_dir().join(name);
    let process = ProcRoot::new(&root).process(4711);
    fs::create_dir_all(process.dir()).unwrap();
    fs::write(process.file(file), text).unwrap();
    let result = test(&process);
    fs::remove_dir_all(root).unwrap();
    result
}

#[test]
fn usage() {
    let text = b"1000-2000 rw-p 0 00:00 0\nRss: 3 kB\n";
    let found = with_file("smaps", text, |process| process.smaps().unwrap());
    let found: Vec<_> = found.iter().map(|u| (u.range, u.rss)).collect();
    assert_eq!(found, [(Range::new(0x1000, 0x2000), 3 << 10)]);
}

#[test]
fn swapped_pages_are_touched_and_not_present() {
    let bits = [0u64, 1 << 63, 1 << 62, 1 << 61, 3 << 62];
    let text: Vec<u8> = bits.into_iter().flat_map(u64::to_le_bytes).collect();
    let pagemap = with_file("pagemap", &text, |process| process.pagemap().unwrap());
    let range = Range::new(0, 5 * 4096);
    let pages = |set: PageSet| {
        (0..5)
            .filter(|i| set.contains(i * 4096))
            .collect::<Vec<u64>>()
    };
    assert_eq!(pages(pagemap.present(range).unwrap()), [1, 4]);
    assert_eq!(pages(pagemap.touched(range).unwrap()), [1, 2, 4]);
}

#[test]
fn present_pages() {
    // More than two pieces of 8192 pages; each 13th is present, and each
    // 7th is swapped.
    const PAGES: u64 = 2 * 8192 + 37;
    let word = |page: u64| {
        let present = u64::from(page.is_multiple_of(13)) << 63;
        present | u64::from(page.is_multiple_of(7)) << 62
    };
    let text: Vec<u8> = (0..PAGES).flat_map(|p| word(p).to_le_bytes()).collect();
    let pagemap = with_file("pagemap", &text, |process| process.pagemap().unwrap());

    // Whole pieces, parts of pages, behind the end of the file, empty.
    for (start, end) in [
        (0, PAGES << 12),
        (0, 8192 << 12),
        (5 << 12, 8197 << 12),
        ((13 << 12) + 31, (13 << 12) + 37),
        ((12 << 12) + 4095, (13 << 12) + 1),
        ((PAGES - 100) << 12, (PAGES + 100_000) << 12),
        ((PAGES + 1) << 12, (PAGES + 3) << 12),
        (0, 1 << 44),
        (31, 31),
    ] {
        let set = pagemap.present(Range::new(start, end)).unwrap();
        let read = start >> 12..end.div_ceil(4096).min(PAGES);
        let read = if start == end { 0..0 } else { read };
        let held = read.clone().filter(|page| page.is_multiple_of(13)).count();
        assert_eq!(set.count(), held as u64, "{start:#x}-{end:#x}");
        for page in 0..PAGES + 5 {
            let want = read.contains(&page) && page.is_multiple_of(13);
            assert_eq!(set.contains(page << 12), want, "page {page}");
        }
    }

    let error = pagemap.present(Range::new(0, (1 << 44) + 1)).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Malformed);
    assert!(
        error
            .to_string()
            .contains("a range of 17592186044417 bytes")
    );
    let top = pagemap
        .present(Range::new(u64::MAX - 31, u64::MAX))
        .unwrap();
    assert_eq!(top.count(), 0);
    let error = root("zombie").process(99).pagemap().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Gone);
}

#[test]
fn our_own_pages() {
    const PAGE: usize = 4096;
    let me = ProcRoot::default().process(std::process::id());
    let mut memory = vec![0u8; 31 * PAGE];
    let start = memory.as_ptr() as u64;
    let end = start + memory.len() as u64;
    let pagemap = me.pagemap().unwrap();
    let mut present = || {
        memory.iter_mut().step_by(7).for_each(|byte| *byte += 1);
        std::hint::black_box(&mut memory);
        pagemap.present(Range::new(start, end)).unwrap()
    };
    // Again, as the kernel may swap out or move a page right after the write.
    let set = (0..100).map(|_| present());
    let mut set = set.filter(|set| set.overlap(start, end) == end - start);
    let set = set.next().expect("all pages present once");
    assert_eq!(set.overlap(0, u64::MAX), set.count() * PAGE as u64);
    assert!((31..=32).contains(&set.count()));

    let usage = me.smaps().unwrap();
    let mine = usage.iter().find(|u| u.range.contains(Addr(start)));
    assert!(mine.is_some_and(|u| u.rss + u.swap >= 29 * PAGE as u64));
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
        "(r--p|rw-s|00:00|\\)|\\(|0x|-1|kB|Rss:|Uid:|SigPnd:|\\\\012)".prop_map(String::into_bytes),
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
        let mut end = Addr(0);
        for usage in smaps::parse(&text) {
            prop_assert!(usage.range.start >= end && !usage.range.is_empty());
            end = usage.range.end;
        }
        let pages = pagemap::parse(Addr(u64::MAX), &text);
        prop_assert!(pages.count() <= text.len() as u64 / 8);
        let _ = (cmdline::parse(&text), auxv::parse(&text), descriptor::classify(&text));
    }
}
