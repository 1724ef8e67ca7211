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
use std::time::{Duration, Instant};

use leakscope_model::{ExitKind, Notice, ProcessReport};
use leakscope_wire::layout::{answer, state, word};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, pidfd_open};

use crate::assemble;
use crate::check::{self, Judgement};
use crate::listen::{self, Hello, Why};
use crate::program;
use crate::segment::SharedSegment;
use crate::supervisor::{Event, MAX_IMAGES, MAX_LIVE, Supervisor};

/// How often a silent image is looked at: its death, unless it is our own
/// child, and a replacement by exec are noticed no sooner.
const SLICE: Duration = Duration::from_millis(100);
/// How long the status of an ended process may take to reach us.
const STATUS_PATIENCE: Duration = Duration::from_secs(2);

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
    pub exe_file: Option<File>,
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
    let sections = watch(supervisor, &image);
    let mut roster = supervisor.roster();
    roster.open.remove(&image.order);
    roster.checking.remove(&image.order);
    for section in sections {
        roster.sections.push((image.order, section));
    }
    drop(roster);
    supervisor.tell(Event::Changed);
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
            supervisor.tell(Event::Progress(format!(
                "process {} is not recorded: {error}",
                hello.pid
            )));
            supervisor.roster().refused += 1;
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
        exe_file: File::open(process.file("exe")).ok(),
        pidfd: id.and_then(|id| pidfd_open(id, PidfdFlags::empty()).ok()),
        superseded: AtomicBool::new(false),
    };
    supervisor.clock.add(&segment);
    Ok((Arc::new(image), file))
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
            break Ending::Ended;
        }
        match seen {
            state::ASK_EXIT | state::ASK_FAST_EXIT => {
                judged = Some(checked(supervisor, image));
                release(image, seen, state::LEAVING, answer::CLEAN);
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
        if seen != state::LEAVING {
            image.segment.wait(word::STATE, seen, SLICE);
        }
    };
    let section = conclude(supervisor, image, ending, judged, notices);
    if let Some(successor) = &mut successor {
        let words = supervisor.roster().inherited.remove(&image.pid);
        successor.notices.extend(words.unwrap_or_default());
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
    while !image.is_dead(SLICE) && !supervisor.finishing() {
        if image.superseded.load(Relaxed) {
            return None;
        }
    }
    Some(assemble::unrecorded(assemble::Unrecorded {
        pid: image.pid,
        parent: image.parent,
        exe,
        argv: argv.into_iter().map(text).collect(),
        exit: exit_of(supervisor, image, false),
        notices,
    }))
}

/// Says that a program ran without the recorder for reasons unknown.
pub(crate) fn not_loaded(exe: &str) -> Notice {
    Notice {
        code: "not-recorded",
        message: format!(
            "the recorder was not loaded into {exe} (was LD_PRELOAD cleared, or the program \
             built for another C library?), so nothing is known about its memory"
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

fn conclude(
    supervisor: &Arc<Supervisor>,
    image: &Arc<Image>,
    ending: Ending,
    judged: Option<Judgement>,
    mut notices: Vec<Notice>,
) -> Option<ProcessReport> {
    let inherited = supervisor.roster().inherited.remove(&image.pid);
    let (judgement, exit) = match ending {
        Ending::Replaced => {
            let Some(judgement) = judged else {
                leave_word(supervisor, image, inherited);
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
            (judgement, None)
        }
        Ending::Ended => {
            let exit = exit_of(supervisor, image, judged.is_some());
            let judgement = judged.unwrap_or_else(|| check::judge_dead(image, exit.as_ref()));
            (judgement, exit)
        }
    };
    let mut section = assemble::section(supervisor, image, judgement, exit);
    section.notices.splice(0..0, inherited.unwrap_or_default());
    section.notices.extend(notices);
    Some(section)
}

/// Says on the next image of the process what became of this one.
fn leave_word(supervisor: &Supervisor, image: &Image, inherited: Option<Vec<Notice>>) {
    let mut words = inherited.unwrap_or_default();
    if image.why == Why::Start {
        let (mut blocks, mut bytes) = (0u64, 0u64);
        for block in image.segment.reader().blocks() {
            blocks += 1;
            bytes = bytes.saturating_add(block.size);
        }
        words.push(Notice {
            code: "exec-replaced",
            message: format!(
                "this process ran {} before, which was replaced by exec with {} in {} live and \
                 not judged (use --at-exec to judge it)",
                image.exe,
                leakscope_model::quantity::bytes(bytes),
                leakscope_model::quantity::counted(blocks, "block"),
            ),
        });
    }
    if !words.is_empty() {
        supervisor.roster().inherited.insert(image.pid, words);
    }
}

/// How the process ended. Exactly known for our child and for orphans; for
/// the children of others by what they passed to exit, if they did.
fn exit_of(supervisor: &Supervisor, image: &Image, asked: bool) -> Option<ExitKind> {
    let own = supervisor.own;
    let ours = || {
        let main = supervisor.roster().main == Some(image.pid);
        let stat = supervisor.proc.process(image.pid).stat();
        main || stat.is_ok_and(|stat| stat.parent == own)
    };
    let limit = if ours() {
        STATUS_PATIENCE
    } else {
        Duration::ZERO
    };
    // The main thread sleeps until it is told: it may be the one to reap.
    supervisor.tell(Event::Changed);
    let waited = supervisor.wait_for(limit, |roster| roster.ended.get(&image.pid).cloned());
    match waited {
        Some(ended) => Some(ended.exit),
        None if asked => {
            let status = image.segment.reader().word(word::ASK_STATUS);
            Some(ExitKind::Code((status & 0xff) as i32))
        }
        None => None,
    }
}
