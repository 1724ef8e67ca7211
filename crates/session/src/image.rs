//! One recorded process image, from its hello to its section.
//!
//! A thread of its own serves each: it answers the hello, watches the state
//! word, checks when asked, notices the end, and writes the section.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::AcqRel, Ordering::Acquire, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use leakscope_model::{ExitKind, Notice, ProcessReport};
use leakscope_proc::Process;
use leakscope_wire::layout::{answer, state, word};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::assemble;
use crate::check::{self, Judgement};
use crate::listen::{self, Hello, Why};
use crate::pidfd;
use crate::program;
use crate::reaper::exit_kind;
use crate::segment::SharedSegment;
use crate::supervisor::{Event, MAX_IMAGES, MAX_LIVE, Replaced, Roster, Supervisor};

/// How often a silent image is looked at: its death, unless it is our own
/// child, and a replacement by exec are noticed no sooner.
const SLICE: Duration = Duration::from_millis(100);
/// The same right after exec was called.
const EXEC_SLICE: Duration = Duration::from_micros(200);
/// How long the status of an ended process may take to reach us.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);
/// How often it is asked for.
const STATUS_SLICE: Duration = Duration::from_millis(10);

/// A process image and how to reach it.
#[derive(Debug)]
pub(crate) struct Image {
    /// Its place in the order of hellos.
    pub order: usize,
    /// Process id, ours.
    pub pid: u32,
    /// Parent at the hello.
    pub parent: u32,
    /// Why it said hello.
    pub why: Why,
    /// Executable.
    pub exe: String,
    /// Arguments.
    pub argv: Vec<String>,
    /// Descriptors open before the program ran, and what they referred to.
    pub inherited_fds: HashMap<u32, Vec<u8>>,
    /// The segment.
    pub segment: Arc<SharedSegment>,
    /// Root directory of its mount namespace, held open so that its files are
    /// found after its death; `None` when it is ours.
    pub root: Option<File>,
    /// Its executable, held open for the same reason.
    pub exe_file: Option<Arc<File>>,
    pidfd: Option<OwnedFd>,
    /// Another image of the same process said hello.
    superseded: AtomicBool,
}

/// How an image came to its end.
enum Ending {
    /// The process ended.
    Ended,
    /// Another image took its place.
    Replaced,
    /// The user would wait no longer.
    StillRunning,
}

impl Image {
    /// Of a process that another supervisor records.
    pub(crate) fn found(
        process: &Process,
        segment: Arc<SharedSegment>,
        parent: u32,
        exe: String,
        argv: Vec<String>,
    ) -> Image {
        let id = i32::try_from(process.id()).ok().and_then(Pid::from_raw);
        Image {
            order: 0,
            pid: process.id(),
            parent,
            why: Why::Start,
            exe,
            argv,
            // What was open before the program ran cannot be known any more.
            inherited_fds: HashMap::new(),
            segment,
            root: foreign_root(process.id()),
            exe_file: File::open(process.file("exe")).ok().map(Arc::new),
            pidfd: id.and_then(|id| pidfd_open(id, PidfdFlags::empty()).ok()),
            superseded: AtomicBool::new(false),
        }
    }

    /// Lets its thread look again at once.
    pub(crate) fn rouse(&self) {
        self.segment.wake(word::STATE);
    }

    /// The recorder's state.
    pub(crate) fn state(&self) -> u32 {
        self.segment.segment().futex(word::STATE).load(Acquire)
    }

    /// True once the process has ended (waited for or not).
    fn is_dead(&self, patience: Duration) -> bool {
        let Some(pidfd) = &self.pidfd else {
            let path = format!("/proc/{}", self.pid);
            return !std::path::Path::new(&path).exists();
        };
        let limit = Timespec {
            tv_sec: 0,
            tv_nsec: i64::from(patience.subsec_nanos()),
        };
        let mut waiting = [PollFd::new(pidfd, PollFlags::IN)];
        matches!(poll(&mut waiting, Some(&limit)), Ok(n) if n > 0)
    }
}

/// Serves one connection: a hello, and then, if it is one of ours, the image
/// behind it until its section is written.
pub(crate) fn serve(supervisor: &Arc<Supervisor>, mut stream: UnixStream) {
    let Ok(hello) = Hello::read(&mut stream) else {
        return;
    };
    let stems_from_us = hello.pid != supervisor.own
        && listen::descends(&supervisor.proc, hello.pid, supervisor.own);
    let image = if stems_from_us && supervisor.follows(hello.pid) {
        admit(supervisor, &hello)
    } else {
        None
    };
    let Some((image, file)) = image else {
        // Without an answer the recorder gives up by itself.
        let _ = listen::reply(&stream, None);
        return;
    };
    // A recorder that died meanwhile is noticed like any other death.
    let _ = listen::reply(&stream, Some(&file));
    drop((stream, file));
    let _open = Open(supervisor, image.order);
    for section in watch(supervisor, &image) {
        supervisor.roster().sections.push((image.order, section));
    }
}

/// Takes an image off the roster, whatever became of its thread: nobody may
/// wait for it for ever.
struct Open<'a>(&'a Supervisor, usize);

impl Drop for Open<'_> {
    fn drop(&mut self) {
        let mut roster = self.0.roster();
        roster.open.remove(&self.1);
        roster.checking.remove(&self.1);
        drop(roster);
        self.0.tell(Event::Changed);
    }
}

fn admit(supervisor: &Arc<Supervisor>, hello: &Hello) -> Option<(Arc<Image>, File)> {
    let order = {
        let mut roster = supervisor.roster();
        if roster.accepted >= MAX_IMAGES || roster.open.len() >= MAX_LIVE || supervisor.is_over() {
            roster.refused += 1;
            return None;
        }
        roster.accepted += 1;
        roster.accepted
    };
    match meet(supervisor, hello, order) {
        Ok((image, file)) => {
            let mut roster = supervisor.roster();
            for older in roster.open.values().filter(|i| i.pid == image.pid) {
                older.superseded.store(true, Relaxed);
                older.rouse();
            }
            roster.open.insert(order, Arc::clone(&image));
            drop(roster);
            supervisor.tell(Event::Changed);
            Some((image, file))
        }
        Err(error) => {
            let notice = Notice {
                code: "not-recorded",
                message: format!("process {} could not be recorded: {error}", hello.pid),
            };
            let mut roster = supervisor.roster();
            roster.not_recorded.insert(hello.pid, notice);
            None
        }
    }
}

/// Learns what must be known before the program runs on.
fn meet(supervisor: &Supervisor, hello: &Hello, order: usize) -> io::Result<(Arc<Image>, File)> {
    let process = supervisor.proc.process(hello.pid);
    let (segment, file) = SharedSegment::create(hello.address_space, &supervisor.orders())?;
    let segment = Arc::new(segment);
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let inherited_fds = process
        .descriptors()
        .unwrap_or_default()
        .into_iter()
        .map(|d| (d.number, d.target))
        .collect();
    let id = i32::try_from(hello.pid).ok().and_then(Pid::from_raw);
    let image = Image {
        order,
        pid: hello.pid,
        parent: process.stat().map_or(0, |stat| stat.parent),
        why: hello.why,
        exe: process.exe().map(text).unwrap_or_default(),
        argv: process
            .cmdline()
            .unwrap_or_default()
            .into_iter()
            .map(text)
            .collect(),
        inherited_fds,
        segment: Arc::clone(&segment),
        root: foreign_root(hello.pid),
        exe_file: File::open(process.file("exe")).ok().map(Arc::new),
        pidfd: id.and_then(|id| pidfd_open(id, PidfdFlags::empty()).ok()),
        superseded: AtomicBool::new(false),
    };
    supervisor.clock.add(&segment);
    Ok((Arc::new(image), file))
}

/// True when the process's root directory is not ours.
pub(crate) fn has_other_root(pid: u32) -> bool {
    foreign_root(pid).is_some()
}

/// The process's root directory, if it is not ours.
fn foreign_root(pid: u32) -> Option<File> {
    use std::os::unix::fs::MetadataExt;
    let theirs = File::open(format!("/proc/{pid}/root")).ok()?;
    let ours = File::open("/proc/self/root").ok()?;
    let id = |file: &File| file.metadata().ok().map(|m| (m.dev(), m.ino()));
    let namespace = |who: &str| std::fs::read_link(format!("/proc/{who}/ns/mnt")).ok();
    let same = id(&theirs) == id(&ours) && namespace(&pid.to_string()) == namespace("self");
    (!same).then_some(theirs)
}

/// Watches an image until its end; its section, unless it is to have none,
/// and that of a successor in which nothing is recorded.
fn watch(supervisor: &Arc<Supervisor>, image: &Arc<Image>) -> Vec<ProcessReport> {
    let mut successor = None;
    let mut judged: Option<Judgement> = None;
    let mut notices: Vec<Notice> = Vec::new();
    let mut executing = 0u32;
    let ending = loop {
        // Superseded and dead are looked at before the state: a picture that
        // was begun is useless then.
        let seen = image.state();
        if image.superseded.load(Relaxed) {
            break Ending::Replaced;
        }
        let patience = if seen == state::LEAVING {
            SLICE
        } else {
            Duration::ZERO
        };
        if image.is_dead(patience) {
            // Asked again: a successor may have come and gone.
            if image.superseded.load(Relaxed) {
                break Ending::Replaced;
            }
            if image.state() == state::EXECUTING {
                successor = Some(unseen(supervisor, image));
                break Ending::Replaced;
            }
            break Ending::Ended;
        }
        match seen {
            state::ASK_EXIT | state::ASK_FAST_EXIT => {
                judged = Some(checked(supervisor, image));
                release(image, seen, state::LEAVING, answer::CLEAN);
                give_back(image);
                continue;
            }
            state::ASK_EXEC => {
                judged = Some(checked(supervisor, image));
                release(image, seen, state::STARTING_ASK, answer::CLEAN);
                continue;
            }
            state::ASK_LSAN | state::ASK_LSAN_RECOVERABLE => {
                let picture = checked(supervisor, image);
                let lost = assemble::losses(supervisor, image, &picture);
                notices.push(assemble::lsan_notice(seen == state::ASK_LSAN, &lost));
                let leaks = lost.definite.blocks + lost.possible.blocks > 0;
                if seen == state::ASK_LSAN && leaks {
                    judged = Some(picture);
                }
                let result = if leaks { answer::LEAKS } else { answer::CLEAN };
                release(image, seen, state::STARTING_ASK, result);
                continue;
            }
            state::EXECUTING if check::was_replaced(image) => {
                successor = follow_unrecorded(supervisor, image);
                break Ending::Replaced;
            }
            _ => {}
        }
        if supervisor.finishing() {
            break Ending::StillRunning;
        }
        match seen {
            state::LEAVING => {}
            // Nobody wakes us when exec has happened, and what it started may
            // be over soon.
            state::EXECUTING => {
                executing += 1;
                let slice = if executing < 100 { EXEC_SLICE } else { SLICE };
                image.segment.wait(word::STATE, seen, slice);
            }
            _ => image.segment.wait(word::STATE, seen, SLICE),
        }
    };
    let section = conclude(supervisor, image, ending, judged, notices);
    if let Some(successor) = &mut successor {
        let before = supervisor.roster().replaced.remove(&image.pid);
        successor
            .notices
            .extend(before.as_deref().and_then(assemble::replaced_notice));
    }
    section.into_iter().chain(successor).collect()
}

/// Waits for the hello of the image that exec put in this one's place. When
/// none comes until the process ends: the section that says so.
fn follow_unrecorded(supervisor: &Supervisor, image: &Image) -> Option<ProcessReport> {
    let process = supervisor.proc.process(image.pid);
    let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
    let exe = process.exe().map(text).unwrap_or_default();
    let argv = process.cmdline().unwrap_or_default();
    let mut notices: Vec<Notice> = program::obstacle(std::path::Path::new(&exe))
        .into_iter()
        .collect();
    if notices.is_empty() {
        notices.push(not_loaded(&exe));
    }
    let superseded = || image.superseded.load(Relaxed);
    while !superseded() && !image.is_dead(SLICE) && !supervisor.finishing() {}
    // Asked once more: a short-lived successor may have come and gone.
    if superseded() {
        return None;
    }
    Some(assemble::unrecorded(assemble::Unrecorded {
        pid: image.pid,
        parent: image.parent,
        exe,
        argv: argv.into_iter().map(text).collect(),
        exit: exit_of(supervisor, image),
        notices,
    }))
}

/// The section of a program that ended before it could be looked at.
fn unseen(supervisor: &Supervisor, image: &Image) -> ProcessReport {
    assemble::unrecorded(assemble::Unrecorded {
        pid: image.pid,
        parent: image.parent,
        exe: "(unknown)".to_owned(),
        argv: Vec::new(),
        exit: exit_of(supervisor, image),
        notices: vec![not_loaded("the program that this process executed")],
    })
}

/// Says that a program ran without the recorder for reasons unknown.
pub(crate) fn not_loaded(exe: &str) -> Notice {
    Notice {
        code: "not-recorded",
        message: format!(
            "the recorder was not loaded into {exe} (is it statically linked or \
             built for another C library, or was LD_PRELOAD cleared?), so nothing is known about its memory"
        ),
    }
}

/// A check, told to the main thread while it goes on.
fn checked(supervisor: &Arc<Supervisor>, image: &Arc<Image>) -> Judgement {
    let started = (Instant::now(), image.pid, false);
    supervisor.roster().checking.insert(image.order, started);
    let judgement = check::judge(supervisor, image);
    supervisor.roster().checking.remove(&image.order);
    judgement
}

/// Answers the asking thread.
fn release(image: &Image, asked: u32, next: u32, result: u64) {
    let segment = image.segment.segment();
    segment.word(word::RESULT).store(result, Relaxed);
    // Changed here, so that a second ask right behind this one cannot be
    // taken for the old one. Not to RUNNING, which is the asking thread's to
    // set: others may ask from then on.
    let _ = segment
        .futex(word::STATE)
        .compare_exchange(asked, next, AcqRel, Relaxed);
    segment.futex(word::ANSWER).fetch_add(1, AcqRel);
    image.segment.wake(word::ANSWER);
    image.segment.wake(word::MAIL_OP);
    image.segment.wake(word::STATE);
}

/// Gives the recorder's memory back while the process, which was judged and
/// will not look at it again, ends, and while its section is written.
fn give_back(image: &Image) {
    let segment = Arc::clone(&image.segment);
    // Without a thread it waits until the image goes.
    let _ = thread::Builder::new()
        .name("give-back".to_owned())
        .spawn(move || segment.give_back());
}

/// Lets a process that will outlive us end without asking us first.
fn dismiss(image: &Image) {
    let segment = image.segment.segment();
    let word = segment.futex(word::STATE);
    // Any other state is that of a thread that is about to ask or was just
    // answered; that one notices the standing clock.
    let _ = word.compare_exchange(state::RUNNING, state::LEAVING, AcqRel, Relaxed);
}

fn conclude(
    supervisor: &Arc<Supervisor>,
    image: &Arc<Image>,
    ending: Ending,
    judged: Option<Judgement>,
    mut notices: Vec<Notice>,
) -> Option<ProcessReport> {
    // The image before this one may still be about to leave a word.
    supervisor.wait_for(STATUS_PATIENCE, |roster| {
        let mut open = roster.open.values();
        let before = open.any(|i| i.pid == image.pid && i.order < image.order);
        (!before).then_some(())
    });
    let before = supervisor
        .roster()
        .replaced
        .remove(&image.pid)
        .unwrap_or_default();
    let (judgement, exit) = match ending {
        Ending::Replaced => {
            let Some(judgement) = judged else {
                leave_word(supervisor, image, before);
                return None;
            };
            notices.push(Notice {
                code: "exec",
                message: "this image was judged when it was about to be replaced by exec"
                    .to_owned(),
            });
            (judgement, None)
        }
        Ending::StillRunning => {
            notices.push(Notice {
                code: "still-running",
                message: "the process still ran when this picture of it was taken".to_owned(),
            });
            let judgement = judged.unwrap_or_else(|| check::judge_running(supervisor, image));
            dismiss(image);
            (judgement, None)
        }
        Ending::Ended => {
            let exit = exit_of(supervisor, image);
            let judgement = judged.unwrap_or_else(|| check::judge_dead(image, exit.as_ref()));
            (judgement, exit)
        }
    };
    let mut section = assemble::section(supervisor, image, judgement, exit);
    section.notices.extend(assemble::replaced_notice(&before));
    section.notices.extend(notices);
    Some(section)
}

/// Remembers for the next image of the process what became of this one.
fn leave_word(supervisor: &Supervisor, image: &Image, mut before: Vec<Replaced>) {
    // A forked copy that executes something is how every program is started.
    if image.why == Why::Start {
        let mut this = Replaced {
            exe: image.exe.clone(),
            bytes: 0,
            blocks: 0,
        };
        for block in image.segment.reader().blocks() {
            this.blocks += 1;
            this.bytes = this.bytes.saturating_add(block.size);
        }
        before.push(this);
    }
    if !before.is_empty() {
        supervisor.roster().replaced.insert(image.pid, before);
    }
}

/// How the process ended, if that can be known: our child and orphans we wait
/// for ourselves; of the children of others the kernel tells once they have
/// been waited for.
fn exit_of(supervisor: &Supervisor, image: &Image) -> Option<ExitKind> {
    let deadline = Instant::now() + STATUS_PATIENCE;
    // The main thread sleeps until it is told: it may be the one to reap.
    supervisor.tell(Event::Changed);
    loop {
        let found = |roster: &mut Roster| roster.ended.get(&image.pid).cloned();
        if let Some(ended) = supervisor.wait_for(STATUS_SLICE, found) {
            return Some(ended.exit);
        }
        let told = image.pidfd.as_ref().and_then(pidfd::wait_status);
        if let Some(status) = told {
            return Some(exit_kind(status));
        }
        // A zombie is still to be waited for; what is gone is past telling.
        let stat = supervisor.proc.process(image.pid).stat();
        let waits = stat.is_ok_and(|stat| stat.is_dead());
        if !waits || Instant::now() >= deadline {
            return None;
        }
    }
}
