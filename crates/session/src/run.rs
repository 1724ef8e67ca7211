//! The recipe of `leakscope run`.

use std::collections::HashSet;
use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use leakscope_analysis::suppressions::{Suppression, parse};
use leakscope_analysis::verdict;
use leakscope_model::{
    Command as Kind, ExitKind, Notice, ProcessReport, Report, ThreadState, VerdictStatus, quantity,
};
use leakscope_tracee::{LiveMemory, spawn_watched};
use leakscope_wire::hello::ENV_SOCKET;
use leakscope_wire::layout::state;
use rustix::process::{Pid, Signal, kill_process};

use crate::assemble::{Unrecorded, replaced_notice, unrecorded};
use crate::clock::Clock;
use crate::examine;
use crate::image::{not_loaded, serve};
use crate::limits::Limits;
use crate::listen::Listener;
use crate::options::{Follow, RunError, RunErrorKind, RunOptions, RunOutcome};
use crate::place::Place;
use crate::program;
use crate::reaper::{self, Child};
use crate::signals::{Arrival, Catcher, asks_to_end};
use crate::supervisor::{Ended, Event, Supervisor};

/// How long the main thread sleeps when nobody tells it anything.
const LOOK: Duration = Duration::from_millis(100);
/// Waiting for others than the program this long is worth a line.
const LASTING: Duration = Duration::from_secs(1);
/// A check that takes longer is worth a word.
const WORTH_A_WORD: Duration = Duration::from_secs(2);
/// Orphans that have not said hello get this long to do so: a daemon's parent
/// ends as soon as it has forked.
const HELLO_GRACE: Duration = Duration::from_millis(300);
/// A second request to end within this time, with the program still running,
/// ends the measurement instead.
const IMPATIENCE: Duration = Duration::from_secs(2);
/// A signal sent to a whole group reaches the program too: only if it lives
/// on after this is it sent on.
const FORWARD_DELAY: Duration = Duration::from_millis(20);
/// Process ids that a message lists.
const LISTED: usize = 8;

/// One run at a time: signal handlers, children and the subreaper's role
/// belong to the whole process.
static ONE_RUN: Mutex<()> = Mutex::new(());

/// A word on what takes long: one clause without a final dot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word<'a> {
    /// The clause.
    pub text: &'a str,
    /// True when the user should read it wherever the output goes: the run
    /// may go on like this for ever.
    pub is_lasting: bool,
}

/// Runs a program under the recorder, waits for it and everything it starts,
/// and judges what each of them leaked. `progress` is told what takes long.
///
/// While it runs, it takes the exit status of every child of this process,
/// and SIGINT, SIGTERM, SIGHUP, SIGQUIT, SIGUSR1 and SIGUSR2 do not end this
/// process; sent to it alone they are passed on to the program.
///
/// # Errors
/// When the program cannot be found or executed, a suppression file cannot be
/// understood, or the recorder cannot be set up. The program has not run then.
pub fn run(
    options: &RunOptions,
    progress: &mut dyn FnMut(Word<'_>),
) -> Result<RunOutcome, RunError> {
    let _one = ONE_RUN.lock().unwrap_or_else(PoisonError::into_inner);
    let name = options
        .argv
        .first()
        .ok_or_else(|| own("no program was named"))?;
    let path = std::env::var_os("PATH");
    let file = program::find(name, path.as_deref())?;
    let obstacle = foreign_proc().or_else(|| program::obstacle(&file));
    let suppressions = suppressions(options)?;

    let limits = Limits::raised().map_err(|text| own(&text))?;
    let (events, arrivals) = channel();
    // First: setting up may exceed a limit whose signal would end us.
    let _catcher = Catcher::install(events.clone())
        .map_err(|e| own(&format!("cannot install signal handlers: {e}")))?;
    let mut place = Place::create(&directories(), leakscope_preload_embed::object())
        .map_err(|e| own(&format!("cannot set up the recorder: {e}")))?;
    let listener = Listener::open(&place.socket())
        .map_err(|e| own(&format!("cannot open a socket for the recorder: {e}")))?;
    let address = listener.address().to_owned();
    let clock = Arc::new(Clock::default());
    let supervisor = Arc::new(Supervisor::new(
        options.clone(),
        suppressions,
        Arc::clone(&clock),
        events,
    ));
    let _over = Over(Arc::clone(&supervisor));
    // Orphans come to us, so they stay our descendants: without that yama
    // would forbid to stop them. A kernel without it loses only those.
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));

    // The program inherits the limits that it would have had. Threads come
    // after it: their stacks and heaps may exceed those. A hello that comes
    // meanwhile waits in the socket's queue.
    limits.restore();
    let watched = obstacle
        .as_ref()
        .is_some_and(|o| o.code == "static-executable" && program::may_be_traced(&file));
    let (main, watch) = start(&file, options, &place.object(), &address, watched)?;
    supervisor.roster().main = Some(main);
    limits.raise();
    clock
        .run()
        .and_then(|()| listen(&supervisor, listener))
        .map_err(|e| own(&format!("cannot start a thread: {e}")))?;

    let mut wait = Wait {
        supervisor: &supervisor,
        main,
        main_ended: None,
        progress,
        asked: None,
        forward: None,
        waiting_since: None,
        told: HashSet::new(),
        told_lasting: false,
        gave_up: false,
        orphans_since: None,
    };
    wait.until_done(&arrivals);
    let ended = wait.main_ended.take();
    let gave_up = wait.gave_up;
    if gave_up || !reaper::children().is_empty() {
        place.keep();
    }
    let ended = ended.unwrap_or_else(|| Ended {
        // Still running: the user asked twice to end.
        exit: ExitKind::Signal("SIGINT".to_owned()),
        status: 2,
    });
    let mut unrecorded = Unseen {
        file: &file,
        obstacle,
        looked_at: None,
    };
    // Its thread ends with the program, which may go on without us.
    if let Some(watch) = watch.filter(|watch| !gave_up || watch.is_finished()) {
        unrecorded.looked_at = watch.join().ok().flatten();
    }
    Ok(outcome(&supervisor, main, ended, unrecorded))
}

/// What is known of the program itself when it was not recorded.
struct Unseen<'a> {
    file: &'a Path,
    obstacle: Option<Notice>,
    /// What a look at its end has found.
    looked_at: Option<ProcessReport>,
}

/// The thread that looks at a program when that is about to end.
type Watch = JoinHandle<Option<ProcessReport>>;

/// Ends the threads however the run ends.
struct Over(Arc<Supervisor>);

impl Drop for Over {
    fn drop(&mut self) {
        self.0.end();
    }
}

fn own(text: &str) -> RunError {
    RunError {
        kind: RunErrorKind::Own,
        text: text.to_owned(),
    }
}

/// Without our own process in /proc nobody can be recognised.
fn foreign_proc() -> Option<Notice> {
    let shown = std::fs::read_link("/proc/self").ok();
    let own = std::process::id().to_string();
    (shown.as_deref() != Some(Path::new(&own))).then(|| Notice {
        code: "foreign-proc",
        message: "/proc is missing or belongs to another process namespace, so processes cannot \
                  be recognised and nothing was recorded; mount it (`unshare --mount-proc`, \
                  `mount -t proc proc /proc`)"
            .to_owned(),
    })
}

fn suppressions(options: &RunOptions) -> Result<Vec<Suppression>, RunError> {
    let mut all = Vec::new();
    for (origin, bytes) in &options.suppressions {
        let read = parse(bytes, origin);
        all.extend(read.map_err(|e| own(&format!("cannot {e}")))?);
    }
    Ok(all)
}

/// Where the recorder object may be put, in this order.
fn directories() -> Vec<PathBuf> {
    let mut all = vec![PathBuf::from("/dev/shm"), std::env::temp_dir()];
    all.extend(["/tmp", "/var/tmp", "/run/user"].map(PathBuf::from));
    all.dedup();
    all
}

fn listen(supervisor: &Arc<Supervisor>, listener: Listener) -> std::io::Result<()> {
    let supervisor = Arc::clone(supervisor);
    std::thread::Builder::new()
        .name("listen".to_owned())
        .spawn(move || {
            while !supervisor.is_over() {
                for stream in listener.accept() {
                    let shared = Arc::clone(&supervisor);
                    // Without a thread the connection is dropped, and the
                    // recorder goes on without recording.
                    let _ = std::thread::Builder::new()
                        .name("image".to_owned())
                        .spawn(move || serve(&shared, stream));
                }
            }
        })?;
    Ok(())
}

/// Starts the program; its process id. One that no recorder can enter is
/// `watched` for its end.
fn start(
    file: &Path,
    options: &RunOptions,
    object: &Path,
    address: &str,
    watched: bool,
) -> Result<(u32, Option<Watch>), RunError> {
    let mut preload = object.as_os_str().to_owned();
    if let Some(previous) = std::env::var_os("LD_PRELOAD").filter(|v| !v.is_empty()) {
        preload.push(":");
        preload.push(previous);
    }
    let prepared = |file: &Path, arguments: &[OsString]| {
        let mut command = Command::new(file);
        command
            .args(arguments)
            .env("LD_PRELOAD", &preload)
            .env(ENV_SOCKET, address);
        command
    };
    let (name, arguments) = options
        .argv
        .split_first()
        .ok_or_else(|| own("no program was named"))?;
    // A path without a slash would be looked up again.
    let direct = if file.components().count() == 1 && file.is_relative() {
        Path::new(".").join(file)
    } else {
        file.to_owned()
    };
    let mut command = prepared(&direct, arguments);
    command.arg0(name);
    if watched {
        let heuristics = options.heuristics;
        let look = move |memory: &LiveMemory, threads: &[ThreadState]| {
            examine::at_end(&heuristics, memory, threads)
        };
        return match spawn_watched(command, Box::new(look)) {
            Ok((pid, watch)) => Ok((pid, Some(watch))),
            Err(error) => Err(program::start_refusal(file, &error)),
        };
    }
    let started = match command.spawn() {
        // As execvp(3) does with a text that names no interpreter.
        Err(error)
            if rustix::io::Errno::from_io_error(&error) == Some(rustix::io::Errno::NOEXEC)
                && program::is_plain_script(file) =>
        {
            let mut all = vec![direct.into_os_string()];
            all.extend_from_slice(arguments);
            prepared(Path::new("/bin/sh"), &all).spawn()
        }
        other => other,
    };
    match started {
        // The handle only waits, and waiting is the reaper's business.
        Ok(child) => Ok((child.id(), None)),
        Err(error) => Err(program::start_refusal(file, &error)),
    }
}

/// The main thread's wait for everybody.
struct Wait<'a> {
    supervisor: &'a Arc<Supervisor>,
    main: u32,
    main_ended: Option<Ended>,
    progress: &'a mut dyn FnMut(Word<'_>),
    /// The last request to end.
    asked: Option<Instant>,
    /// A signal to be sent on, and when.
    forward: Option<(Instant, i32)>,
    /// Since when only others run.
    waiting_since: Option<Instant>,
    /// Sets of processes whose waiting has been told.
    told: HashSet<Vec<u32>>,
    /// The first word on waiting was said.
    told_lasting: bool,
    /// The user would wait no longer.
    gave_up: bool,
    orphans_since: Option<Instant>,
}

impl Wait<'_> {
    fn until_done(&mut self, arrivals: &Receiver<Event>) {
        while !self.is_done() {
            let patience = match self.forward {
                Some((at, _)) => at.saturating_duration_since(Instant::now()).min(LOOK),
                None => LOOK,
            };
            match arrivals.recv_timeout(patience) {
                Ok(event) => {
                    self.take(event);
                    // One look for many arrivals.
                    while let Ok(event) = arrivals.try_recv() {
                        self.take(event);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {}
                // Cannot be: the supervisor holds a sender.
                Err(RecvTimeoutError::Disconnected) => std::thread::sleep(LOOK),
            }
            self.reap();
            self.send_on();
            self.tell();
        }
    }

    fn take(&mut self, event: Event) {
        match event {
            Event::Changed | Event::Signal(Arrival::Child) => {}
            Event::Signal(Arrival::Ask { signal, sent }) => self.asked_to_end(signal, sent),
        }
    }

    fn asked_to_end(&mut self, signal: i32, sent: bool) {
        if sent && self.main_ended.is_none() {
            self.forward = Some((Instant::now() + FORWARD_DELAY, signal));
        }
        if !asks_to_end(signal) {
            return;
        }
        let impatient = self.asked.is_some_and(|last| last.elapsed() < IMPATIENCE);
        self.asked = Some(Instant::now());
        if self.main_ended.is_some() || (impatient && !self.main_is_leaving()) {
            self.gave_up = true;
            self.supervisor.finish();
        }
    }

    /// True when the program is on its way out and only our check takes time.
    fn main_is_leaving(&self) -> bool {
        let roster = self.supervisor.roster();
        roster.open.values().any(|image| {
            image.pid == self.main
                && matches!(
                    image.state(),
                    state::ASK_EXIT | state::ASK_FAST_EXIT | state::LEAVING
                )
        })
    }

    fn send_on(&mut self) {
        let Some((at, signal)) = self.forward else {
            return;
        };
        if Instant::now() < at {
            return;
        }
        self.forward = None;
        let pid = i32::try_from(self.main).ok().and_then(Pid::from_raw);
        let signal = Signal::from_named_raw(signal);
        if let (None, Some(pid), Some(signal)) = (&self.main_ended, pid, signal) {
            // It may just have ended.
            let _ = kill_process(pid, signal);
        }
    }

    /// Takes the status of everybody who ended.
    fn reap(&mut self) {
        let mut pids = reaper::children();
        if self.main_ended.is_none() && !pids.contains(&self.main) {
            pids.push(self.main);
        }
        let mut ended = Vec::new();
        for pid in pids {
            if let Child::Ended(status) = reaper::look(pid) {
                ended.push((pid, status));
            }
        }
        if ended.is_empty() {
            return;
        }
        let mut roster = self.supervisor.roster();
        for (pid, status) in ended {
            if pid == self.main {
                self.main_ended = Some(status.clone());
                self.waiting_since = Some(Instant::now());
            }
            roster.ended.insert(pid, status);
            for image in roster.open.values().filter(|image| image.pid == pid) {
                image.rouse();
            }
        }
        drop(roster);
        self.supervisor.notify();
    }

    fn is_done(&mut self) -> bool {
        let roster = self.supervisor.roster();
        if !roster.open.is_empty() {
            let all = self.supervisor.options.follow == Follow::Children || self.gave_up;
            return !all
                && self.main_ended.is_some()
                && roster.open.values().all(|image| image.pid != self.main);
        }
        drop(roster);
        if self.gave_up {
            return true;
        }
        if self.main_ended.is_none() {
            return false;
        }
        if self.supervisor.options.follow == Follow::None || reaper::children().is_empty() {
            return true;
        }
        let since = *self.orphans_since.get_or_insert_with(Instant::now);
        since.elapsed() >= HELLO_GRACE
    }

    /// Says what takes long, each thing once.
    fn tell(&mut self) {
        let mut roster = self.supervisor.roster();
        let mut lines = Vec::new();
        let mut lasting = None;
        for (since, pid, told) in roster.checking.values_mut() {
            if !*told && since.elapsed() >= WORTH_A_WORD {
                *told = true;
                lines.push(format!("checking the memory of process {pid} for leaks"));
            }
        }
        if self.waiting_since.is_some_and(|s| s.elapsed() >= LASTING) {
            let mut pids: Vec<u32> = roster.open.values().map(|image| image.pid).collect();
            pids.sort_unstable();
            pids.dedup();
            if !pids.is_empty() && self.told.insert(pids.clone()) {
                lasting = Some(waiting(&pids));
                self.waiting_since = Some(Instant::now());
            }
        }
        drop(roster);
        for text in &lines {
            (self.progress)(Word {
                text,
                is_lasting: false,
            });
        }
        if let Some(text) = lasting {
            (self.progress)(Word {
                text: &text,
                // Once: who waits for many does not want a line for each.
                is_lasting: !std::mem::replace(&mut self.told_lasting, true),
            });
        }
    }
}

fn waiting(pids: &[u32]) -> String {
    let listed: Vec<String> = pids.iter().take(LISTED).map(u32::to_string).collect();
    let more = if pids.len() > LISTED { ", …" } else { "" };
    let (noun, s) = match pids.len() {
        1 => ("process", ""),
        _ => ("processes", "s"),
    };
    format!(
        "the program has ended; waiting for {} {noun} still running (pid{s} {}{more}); Ctrl-C to \
         report now",
        quantity::count(pids.len() as u64),
        listed.join(", ")
    )
}

fn outcome(supervisor: &Supervisor, main: u32, ended: Ended, unseen: Unseen<'_>) -> RunOutcome {
    let Unseen {
        file,
        obstacle,
        looked_at,
    } = unseen;
    let mut roster = supervisor.roster();
    let mut sections = std::mem::take(&mut roster.sections);
    // The program first, then in the order of hellos; `sort_by_key` is stable,
    // so a successor stays behind its image.
    sections.sort_by_key(|(order, section)| (section.pid != main, *order));
    let mut processes: Vec<ProcessReport> = sections.into_iter().map(|(_, s)| s).collect();
    let is_known = processes.iter().any(|section| section.pid == main);
    if let Some(mut section) = looked_at.filter(|_| !is_known) {
        section.exit = Some(ended.exit.clone());
        section.notices.insert(0, program::looked_at(file));
        processes.insert(0, section);
    } else if !is_known {
        let exe = file.display().to_string();
        let reason = roster.not_recorded.remove(&main).or(obstacle);
        let mut notices = vec![reason.unwrap_or_else(|| not_loaded(&exe))];
        let before = roster.replaced.remove(&main).unwrap_or_default();
        notices.extend(replaced_notice(&before));
        let argv = &supervisor.options.argv;
        let section = unrecorded(Unrecorded {
            pid: main,
            parent: supervisor.own,
            exe,
            argv: argv
                .iter()
                .map(|a| a.to_string_lossy().into_owned())
                .collect(),
            exit: Some(ended.exit.clone()),
            notices,
        });
        processes.insert(0, section);
    }
    if roster.refused > 0
        && let Some(first) = processes.first_mut()
    {
        first.notices.push(Notice {
            code: "processes-refused",
            message: format!(
                "{} could not be recorded for lack of room",
                quantity::counted(roster.refused, "process image")
            ),
        });
    }
    let mut verdict = verdict::overall(&processes);
    if verdict.status == VerdictStatus::Inconclusive
        && let Some(why) = why_unrecorded(&processes)
    {
        verdict.sentence = format!("Inconclusive: {why}.");
    }
    RunOutcome {
        report: Report {
            command: Kind::Run,
            verdict,
            processes,
        },
        exit: ended.exit,
        wait_status: ended.status,
    }
}

/// Why nothing is known of the program itself, where that is so: a better
/// sentence than how it ended.
fn why_unrecorded(processes: &[ProcessReport]) -> Option<&str> {
    const REASONS: [&str; 6] = [
        "own-allocator",
        "foreign-machine",
        "foreign-proc",
        "not-recorded",
        "setuid-program",
        "static-executable",
    ];
    let program = processes.first()?;
    let mut notices = program.notices.iter();
    let reason = notices.find(|notice| REASONS.contains(&notice.code))?;
    Some(&reason.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn says_whom_it_waits_for() {
        assert_eq!(
            waiting(&[31]),
            "the program has ended; waiting for 1 process still running (pid 31); Ctrl-C to \
             report now"
        );
        let many: Vec<u32> = (100..113).collect();
        let text = waiting(&many);
        assert!(text.contains("13 processes"), "{text}");
        assert!(
            text.contains("(pids 100, 101, 102, 103, 104, 105, 106, 107, …)"),
            "{text}"
        );
    }
}
