//! Programs under test: compiled from C, run under a guard.
#![allow(unsafe_code)]

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// How long a test waits for a line before it is called hung. Tests never
/// depend on it: they wait on pipes, and this only ends a broken one.
const HUNG: Duration = Duration::from_secs(120);

/// A compiled program; its folder goes away with it.
#[derive(Debug)]
pub struct Program {
    path: PathBuf,
    _dir: tempfile::TempDir,
}

impl Program {
    /// Path of the executable.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A command that runs it.
    pub fn command(&self) -> Command {
        Command::new(&self.path)
    }
}

/// Compiles one C source text with `cc -g -O0 -pthread` and `flags` behind
/// (so that they win).
///
/// # Panics
/// When the compiler is missing or refuses the source.
pub fn compile_c(source: &str, flags: &[&str]) -> Program {
    let dir = tempfile::tempdir().expect("make a folder");
    let text = dir.path().join("program.c");
    std::fs::write(&text, source).expect("write the source");
    let path = dir.path().join("program");
    let output = Command::new("cc")
        .args(["-g", "-O0", "-pthread", "-o"])
        .arg(&path)
        .arg(&text)
        .args(flags)
        .output()
        .expect("run cc");
    assert!(
        output.status.success(),
        "cc refused the source:\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Program { path, _dir: dir }
}

/// A running program; killed and waited for when dropped.
///
/// Its standard input and output are pipes. A program under test prints what
/// the test must know, then blocks on its input.
#[derive(Debug)]
pub struct Target {
    child: Child,
    stdin: Option<ChildStdin>,
    lines: Receiver<String>,
}

impl Target {
    /// Starts the command.
    ///
    /// # Panics
    /// When it cannot be started.
    pub fn spawn(command: &mut Command) -> Target {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap_or_else(|e| panic!("start {command:?}: {e}"));
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("a piped stdout");
        let (sender, lines) = channel();
        // Reads ahead, so that the program never blocks on a full pipe.
        std::thread::spawn(move || {
            for line in BufReader::new(stdout).lines() {
                let Ok(line) = line else { break };
                if sender.send(line).is_err() {
                    break;
                }
            }
        });
        Target {
            child,
            stdin,
            lines,
        }
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The next line of its output; `None` once the output is closed.
    ///
    /// # Panics
    /// When nothing comes for two minutes.
    pub fn line(&mut self) -> Option<String> {
        match self.lines.recv_timeout(HUNG) {
            Ok(line) => Some(line),
            Err(RecvTimeoutError::Disconnected) => None,
            Err(RecvTimeoutError::Timeout) => panic!("process {} prints nothing", self.pid()),
        }
    }

    /// Takes the next line, which must begin with `prefix`; returns the
    /// trimmed rest.
    ///
    /// # Panics
    /// When another line or the end comes.
    pub fn expect_line(&mut self, prefix: &str) -> String {
        let line = self.line();
        match line.as_deref().and_then(|l| l.strip_prefix(prefix)) {
            Some(rest) => rest.trim().to_owned(),
            None => panic!("want a line beginning with {prefix:?}, have {line:?}"),
        }
    }

    /// The same, for a hexadecimal number (with or without `0x`).
    ///
    /// # Panics
    /// When the rest of the line is no such number.
    pub fn expect_hex(&mut self, prefix: &str) -> u64 {
        let rest = self.expect_line(prefix);
        let digits = rest.strip_prefix("0x").unwrap_or(&rest);
        u64::from_str_radix(digits, 16).unwrap_or_else(|e| panic!("{prefix}{rest}: {e}"))
    }

    /// True when no whole line waits to be read (a line still in the pipe
    /// does not count).
    pub fn is_silent(&mut self) -> bool {
        self.lines.try_recv().is_err()
    }

    /// Writes a line to its input, as a whole: one `read` gets it. A program
    /// that has ended does not mind.
    pub fn send(&mut self, line: &str) {
        if let Some(stdin) = &mut self.stdin {
            let _ = stdin.write_all(format!("{line}\n").as_bytes());
        }
    }

    /// Closes its input: most test programs end then.
    pub fn close(&mut self) {
        self.stdin = None;
    }

    /// Sends a signal by number.
    ///
    /// # Panics
    /// When the process is gone.
    pub fn signal(&self, number: i32) {
        let pid = i32::try_from(self.pid()).expect("a process id");
        // SAFETY: kill takes no pointers; the child is ours and not yet
        // waited for, so the id is still its own.
        let status = unsafe { libc::kill(pid, number) };
        assert_eq!(status, 0, "signal process {pid}");
    }

    /// Closes its input and waits for its end.
    ///
    /// # Panics
    /// When the system refuses.
    pub fn wait(&mut self) -> ExitStatus {
        self.close();
        self.child.wait().expect("wait for the program")
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Tries it on a child of our own.
pub(crate) fn can_trace_children() -> bool {
    let child = Command::new("cat")
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn();
    let Ok(mut child) = child else { return false };
    let pid = child.id();
    // SAFETY: PTRACE_SEIZE with options 0 reads and writes no memory of
    // ours; the child is killed right below, so nothing stays traced.
    let status = unsafe { libc::ptrace(libc::PTRACE_SEIZE, pid, 0usize, 0usize) };
    let _ = child.kill();
    let _ = child.wait();
    status == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_target_talks_and_dies() {
        let mut cat = Target::spawn(&mut Command::new("cat"));
        cat.send("at 0x1f");
        assert_eq!(cat.expect_hex("at "), 0x1f);
        cat.send("last");
        cat.close();
        assert_eq!(cat.expect_line("la"), "st");
        assert_eq!(cat.line(), None);
        assert!(cat.wait().success());
    }

    #[test]
    fn compiled_programs_run() {
        if !crate::need(crate::Need::Compiler) {
            return;
        }
        let program = compile_c("int main(void) { return SEVEN; }", &["-DSEVEN=7"]);
        let status = Target::spawn(&mut program.command()).wait();
        assert_eq!(status.code(), Some(7));
    }
}
