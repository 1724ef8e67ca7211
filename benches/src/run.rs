//! One run of one command, measured.

use crate::command::Line;
use crate::tree::{self, Memory};
use rustix::process::{Pid, Signal, kill_process};
use std::collections::HashMap;
use std::fs::File;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Command, ExitStatus, Stdio};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use wait4::Wait4;

/// How often memory is looked at. A peak that lives shorter than this before
/// the end of a wrapped program may be missed.
const LOOK: Duration = Duration::from_millis(20);

/// The most that all processes of a run may have together. A peer's
/// interpreter is known to grow past 18 GB; the machine must survive that.
const ROOM: u64 = 10 << 30;

/// How a run ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With this status; signals as 128 + N, as a shell says it.
    Status(i32),
    /// Ended by the harness after so many seconds.
    TooLong(u64),
    /// Ended by the harness for its memory.
    TooMuch,
    /// It could not be measured, and why.
    Failed(String),
}

/// What a run took.
#[derive(Clone, Debug)]
pub struct Run {
    /// How it ended.
    pub end: End,
    /// Seconds from the start to the end of all of it.
    pub wall: f64,
    /// Seconds of processor time, user and system, of all its processes.
    pub cpu: f64,
    /// Peak resident bytes of the program itself.
    pub peak: u64,
    /// Peak resident bytes of the largest other process (supervisor,
    /// interpreter); 0 when there is none.
    pub beside: u64,
}

/// A run under way.
pub struct Running {
    /// The process, for pipes.
    pub child: std::process::Child,
    began: Instant,
    stop: Sender<()>,
    watcher: JoinHandle<Watched>,
}

#[derive(Default)]
struct Watched {
    ended: Option<End>,
    peak: u64,
    beside: u64,
}

/// Starts a command, its output going to this file.
///
/// # Errors
/// When it cannot be started.
pub fn start(line: &Line, output: Stdio, errors: &Path, limit: u64) -> Result<Running, String> {
    let (program, arguments) = line.words.split_first().ok_or("an empty command")?;
    let input = match &line.input {
        Some(path) => File::open(path).map(Stdio::from),
        None => File::open("/dev/null").map(Stdio::from),
    };
    let input = input.map_err(|e| format!("failed to open an input: {e}"))?;
    let errors = File::create(errors).map_err(|e| format!("failed to make a file: {e}"))?;
    let mut command = Command::new(program);
    command
        .args(arguments)
        .envs(line.variables.iter().cloned())
        .stdin(input)
        .stdout(output)
        .stderr(errors)
        .process_group(0);
    let began = Instant::now();
    let child = command
        .spawn()
        .map_err(|e| format!("failed to start {}: {e}", program.display()))?;
    let (stop, stopped) = channel();
    let (root, program) = (child.id(), line.program.clone());
    let deadline = Duration::from_secs(limit);
    let watcher = std::thread::spawn(move || {
        let mut watched = Watched::default();
        let mut seen = HashMap::new();
        while stopped.recv_timeout(LOOK) == Err(RecvTimeoutError::Timeout) {
            let total = look(root, &program, &mut seen, &mut watched);
            let end = if began.elapsed() > deadline {
                End::TooLong(limit)
            } else if total > ROOM {
                End::TooMuch
            } else {
                continue;
            };
            watched.ended = Some(end);
            kill(root);
        }
        watched
    });
    Ok(Running {
        child,
        began,
        stop,
        watcher,
    })
}

/// Notes peaks; answers what all have together now.
fn look(root: u32, program: &Path, seen: &mut HashMap<u32, bool>, watched: &mut Watched) -> u64 {
    let mut total = 0;
    for pid in tree::descendants(root) {
        let Some(Memory { now, peak }) = tree::memory(pid) else {
            continue;
        };
        total += now;
        // A process becomes the program by exec: look again until it has.
        let target = seen.entry(pid).or_insert(false);
        *target = *target || tree::runs(pid, program);
        let most = if *target {
            &mut watched.peak
        } else {
            &mut watched.beside
        };
        *most = peak.max(*most);
    }
    total
}

/// Ends a process and everything below it.
fn kill(root: u32) {
    for pid in tree::descendants(root) {
        if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
            // It may have ended by itself in the meantime.
            let _ = kill_process(pid, Signal::KILL);
        }
    }
}

impl Running {
    /// Waits for the end. `direct`: the process itself becomes the program, so
    /// that the kernel's own peak is exact.
    pub fn wait(self, direct: bool) -> Run {
        let used = self.child.wait4();
        let wall = self.began.elapsed().as_secs_f64();
        // The watcher stops when the sender goes.
        drop(self.stop);
        let watched = self.watcher.join().unwrap_or_default();
        let used = match used {
            Ok(used) => used,
            Err(e) => return Run::failed(format!("failed to wait: {e}")),
        };
        let peak = if direct {
            used.rusage.maxrss
        } else {
            watched.peak
        };
        Run {
            end: watched.ended.unwrap_or(End::Status(status(used.status))),
            wall,
            cpu: (used.rusage.utime + used.rusage.stime).as_secs_f64(),
            peak,
            beside: if direct { 0 } else { watched.beside },
        }
    }
}

fn status(status: ExitStatus) -> i32 {
    let signal = status.signal().map(|signal| 128 + signal);
    status.code().or(signal).unwrap_or(-1)
}

impl Run {
    /// A run that was none.
    pub fn failed(why: String) -> Run {
        Run {
            end: End::Failed(why),
            wall: f64::NAN,
            cpu: f64::NAN,
            peak: 0,
            beside: 0,
        }
    }
}
