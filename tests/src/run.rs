//! Running a command to its end, with and without leakscope.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::io::Read;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::channel;
use std::time::Duration;

use crate::report::Section;

/// When a run is called hung. Nothing depends on it but the end of a test
/// that would never end.
const HUNG: Duration = Duration::from_secs(240);

/// A command to run.
#[derive(Clone, Debug)]
pub struct Job {
    /// Program and arguments.
    pub argv: Vec<OsString>,
    /// Bytes for its standard input.
    pub stdin: Vec<u8>,
    /// Variables to set.
    pub env: Vec<(String, OsString)>,
}

impl Job {
    /// A program with arguments, an empty input and our environment.
    pub fn new<A: AsRef<OsStr>>(argv: impl IntoIterator<Item = A>) -> Job {
        Job {
            argv: argv.into_iter().map(|a| a.as_ref().to_owned()).collect(),
            stdin: Vec::new(),
            env: Vec::new(),
        }
    }

    /// The same with an input.
    pub fn stdin(mut self, bytes: impl Into<Vec<u8>>) -> Job {
        self.stdin = bytes.into();
        self
    }

    /// The same with a variable.
    pub fn env(mut self, name: &str, value: impl Into<OsString>) -> Job {
        self.env.push((name.to_owned(), value.into()));
        self
    }

    /// Runs it in an empty folder of its own.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn run(&self) -> Result<Done, String> {
        let folder = tempfile::tempdir().map_err(|e| format!("make a folder: {e}"))?;
        self.run_in(folder.path())
    }

    /// Runs it in `folder`.
    ///
    /// # Errors
    /// When it cannot be started or does not end.
    pub fn run_in(&self, folder: &Path) -> Result<Done, String> {
        let program = self.argv.first().ok_or("no program")?;
        // Files of no name, not pipes: a program that outlives its parent
        // must not keep us from reading what was written.
        let input = folder.join(".stdin");
        fs::write(&input, &self.stdin).map_err(|e| format!("write {input:?}: {e}"))?;
        let open = fs::File::open(&input).map_err(|e| format!("open {input:?}: {e}"))?;
        fs::remove_file(&input).map_err(|e| format!("remove {input:?}: {e}"))?;
        let mut command = Command::new(program);
        command
            .args(&self.argv[1..])
            .envs(self.env.iter().map(|(k, v)| (k, v)))
            .current_dir(folder)
            .stdin(open)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0);
        let child = command
            .spawn()
            .map_err(|e| format!("start {program:?}: {e}"))?;
        finish(child).map_err(|e| format!("{e}: {}", self.shown()))
    }

    /// Runs it under leakscope with further `options`.
    ///
    /// # Errors
    /// When it cannot be started, does not end, or leaves no report.
    pub fn run_recorded(&self, options: &[&str]) -> Result<Recorded, String> {
        let folder = tempfile::tempdir().map_err(|e| format!("make a folder: {e}"))?;
        let json = tempfile::tempdir().map_err(|e| format!("make a folder: {e}"))?;
        let path = json.path().join("report.json");
        let job = Job {
            argv: self.leakscope_argv(options, Some(&path))?,
            ..self.clone()
        };
        let done = job.run_in(folder.path())?;
        let text = fs::read_to_string(&path).map_err(|e| {
            let stderr = String::from_utf8_lossy(&done.stderr);
            format!("no report ({e}); status {}; stderr:\n{stderr}", done.status)
        })?;
        Ok(Recorded {
            sections: Section::all(&text)?,
            done,
            again: job.shown(),
            json: text,
        })
    }

    /// The arguments of a run under leakscope.
    ///
    /// # Errors
    /// When leakscope cannot be built.
    pub fn leakscope_argv(
        &self,
        options: &[&str],
        json: Option<&PathBuf>,
    ) -> Result<Vec<OsString>, String> {
        let mut argv: Vec<OsString> = vec![crate::build::leakscope()?.into(), "run".into()];
        argv.extend(options.iter().map(OsString::from));
        if let Some(json) = json {
            argv.extend(["-o".into(), json.into()]);
        }
        argv.push("--".into());
        argv.extend(self.argv.iter().cloned());
        Ok(argv)
    }

    /// The command as a shell would take it (roughly).
    pub fn shown(&self) -> String {
        let words: Vec<_> = self.argv.iter().map(|a| a.to_string_lossy()).collect();
        words.join(" ")
    }
}

/// How a run ended.
#[derive(Clone, Debug)]
pub struct Done {
    /// As wait(2) said.
    pub status: ExitStatus,
    /// All of its standard output.
    pub stdout: Vec<u8>,
    /// All of its standard error.
    pub stderr: Vec<u8>,
}

impl Done {
    /// The status as a shell shows it: 128+N for signal N.
    pub fn code(&self) -> i32 {
        self.status
            .code()
            .unwrap_or_else(|| 128 + self.status.signal().unwrap_or(0))
    }
}

/// A run under leakscope.
#[derive(Clone, Debug)]
pub struct Recorded {
    /// How leakscope ended.
    pub done: Done,
    /// The report's sections.
    pub sections: Vec<Section>,
    /// The command, for messages.
    pub again: String,
    /// The report itself.
    pub json: String,
}

fn finish(mut child: Child) -> Result<Done, String> {
    let (sender, receiver) = channel();
    let streams: [(usize, Option<Box<dyn Read + Send>>); 2] = [
        (0, child.stdout.take().map(|s| Box::new(s) as _)),
        (1, child.stderr.take().map(|s| Box::new(s) as _)),
    ];
    for (which, stream) in streams {
        let sender = sender.clone();
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            if let Some(mut stream) = stream {
                let _ = stream.read_to_end(&mut bytes);
            }
            let _ = sender.send((which, bytes));
        });
    }
    let mut outputs = [Vec::new(), Vec::new()];
    for _ in 0..2 {
        let Ok((which, bytes)) = receiver.recv_timeout(HUNG) else {
            let group = format!("-{}", child.id());
            let _ = Command::new("kill").args(["-KILL", "--", &group]).status();
            let _ = child.wait();
            return Err("did not end".to_owned());
        };
        outputs[which] = bytes;
    }
    let status = child.wait().map_err(|e| format!("wait: {e}"))?;
    let [stdout, stderr] = outputs;
    Ok(Done {
        status,
        stdout,
        stderr,
    })
}
