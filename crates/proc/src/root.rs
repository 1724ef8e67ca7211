//! Reading the files, below a root that tests can move.

use crate::descriptor::{Descriptor, classify};
use crate::error::{ErrorKind, ProcError};
use crate::maps::{self, Maps};
use crate::pagemap::Pagemap;
use crate::smaps::{self, MappedUsage};
use crate::stat::{self, Stat};
use crate::status::{self, Status};
use crate::syscall::{self, Syscall};
use crate::{auxv, cgroup, cmdline};
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Longest small file (everything but the maps and the arguments), bytes.
const SMALL: u64 = 1 << 20;
/// Longest map or argument list, bytes: at 65530 mappings (the kernel's
/// default limit) with paths of 4096 bytes, 256 MiB, and 48 MiB more with
/// what each uses; twice the former is a limit against exhaustion, not one
/// that is met.
const LARGE: u64 = 1 << 29;

/// A directory laid out like `/proc`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProcRoot {
    path: PathBuf,
}

impl Default for ProcRoot {
    /// The kernel's own.
    fn default() -> ProcRoot {
        ProcRoot::new("/proc")
    }
}

impl ProcRoot {
    /// The tree below `path`.
    pub fn new(path: impl Into<PathBuf>) -> ProcRoot {
        ProcRoot { path: path.into() }
    }

    /// Its directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The process `pid`, which need not exist: reading tells.
    pub fn process(&self, pid: u32) -> Process {
        Process {
            dir: self.path.join(pid.to_string()),
            id: pid,
        }
    }

    /// Ids of all processes, ascending.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn pids(&self) -> Result<Vec<u32>, ProcError> {
        numbers(&self.path)
    }

    /// yama's `kernel.yama.ptrace_scope` (0 to 3); `None` where the kernel
    /// has no yama.
    pub fn ptrace_scope(&self) -> Option<u32> {
        let path = self.path.join("sys/kernel/yama/ptrace_scope");
        let text = read(&path, SMALL).ok()?;
        crate::number::decimal32(text.trim_ascii())
    }
}

/// A process (or, below `task/`, a thread): its directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Process {
    dir: PathBuf,
    id: u32,
}

impl Process {
    /// Process or thread id.
    pub fn id(&self) -> u32 {
        self.id
    }

    /// Its directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Path of the file `name` in its directory.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Its thread `tid`.
    pub fn task(&self, tid: u32) -> Process {
        Process {
            dir: self.dir.join("task").join(tid.to_string()),
            id: tid,
        }
    }

    /// Ids of its threads, ascending.
    ///
    /// # Errors
    /// Gone, Denied or Io.
    pub fn tasks(&self) -> Result<Vec<u32>, ProcError> {
        numbers(&self.dir.join("task"))
    }

    /// Its map; empty once it is a zombie. Lines that no parser understands
    /// are counted, not fatal.
    ///
    /// # Errors
    /// Gone, Denied or Io.
    pub fn maps(&self) -> Result<Maps, ProcError> {
        let text = read(&self.file("maps"), LARGE)?;
        Ok(maps::parse_lenient(&text))
    }

    /// What its mappings use, ascending; empty once it is a zombie. Lines
    /// that no parser understands are skipped.
    ///
    /// # Errors
    /// Gone (also where the kernel has no such file), Denied or Io.
    pub fn smaps(&self) -> Result<Vec<MappedUsage>, ProcError> {
        Ok(smaps::parse(&read(&self.file("smaps"), LARGE)?))
    }

    /// Its page map, opened: which pages are in memory.
    ///
    /// # Errors
    /// Gone (also where the kernel has no such file), Denied or Io.
    pub fn pagemap(&self) -> Result<Pagemap, ProcError> {
        Pagemap::open(self.file("pagemap"))
    }

    /// Its status.
    ///
    /// # Errors
    /// Gone, Denied or Io.
    pub fn status(&self) -> Result<Status, ProcError> {
        Ok(status::parse(&read(&self.file("status"), SMALL)?))
    }

    /// Its stat line.
    ///
    /// # Errors
    /// Gone, Denied, Malformed or Io.
    pub fn stat(&self) -> Result<Stat, ProcError> {
        let path = self.file("stat");
        stat::parse(&read(&path, SMALL)?).map_err(|e| e.inside(&path))
    }

    /// The system call that it is blocked in.
    ///
    /// # Errors
    /// Gone, Denied, Malformed or Io.
    pub fn syscall(&self) -> Result<Syscall, ProcError> {
        let path = self.file("syscall");
        syscall::parse(&read(&path, SMALL)?).map_err(|e| e.inside(&path))
    }

    /// Its arguments.
    ///
    /// # Errors
    /// Gone, Denied or Io.
    pub fn cmdline(&self) -> Result<Vec<Vec<u8>>, ProcError> {
        Ok(cmdline::parse(&read(&self.file("cmdline"), LARGE)?))
    }

    /// Paths of the control groups that it is in.
    ///
    /// # Errors
    /// Gone, Denied or Io.
    pub fn cgroups(&self) -> Result<Vec<Vec<u8>>, ProcError> {
        Ok(cgroup::paths(&read(&self.file("cgroup"), SMALL)?))
    }

    /// Its auxiliary vector.
    ///
    /// # Errors
    /// Gone, Denied or Io.
    pub fn auxv(&self) -> Result<Vec<(u64, u64)>, ProcError> {
        Ok(auxv::parse(&read(&self.file("auxv"), SMALL)?))
    }

    /// Its executable's path as the kernel tells it, ` (deleted)` included.
    ///
    /// # Errors
    /// Gone (also for kernel threads), Denied or Io.
    pub fn exe(&self) -> Result<Vec<u8>, ProcError> {
        link(&self.file("exe"))
    }

    /// User that owns its files. The kernel gives them to root when the
    /// process is not dumpable, whoever runs it (the directory itself always
    /// belongs to the process's user).
    ///
    /// # Errors
    /// Gone, Denied or Io.
    pub fn file_owner(&self) -> Result<u32, ProcError> {
        let path = self.file("status");
        let meta = fs::metadata(&path).map_err(|e| ProcError::io(&path, e))?;
        Ok(meta.uid())
    }

    /// Its open descriptors, ascending. One that is closed while the list is
    /// read is left out.
    ///
    /// # Errors
    /// Gone, Denied or Io.
    pub fn descriptors(&self) -> Result<Vec<Descriptor>, ProcError> {
        let dir = self.dir.join("fd");
        let mut found = Vec::new();
        for number in numbers(&dir)? {
            match link(&dir.join(number.to_string())) {
                Ok(target) => found.push(Descriptor {
                    number,
                    kind: classify(&target),
                    target,
                }),
                Err(error) if error.kind() == ErrorKind::Gone => {}
                Err(error) => return Err(error),
            }
        }
        Ok(found)
    }
}

/// The whole file, if it is not longer than `limit` bytes.
fn read(path: &Path, limit: u64) -> Result<Vec<u8>, ProcError> {
    let mut text = Vec::new();
    let read = File::open(path).and_then(|f| f.take(limit + 1).read_to_end(&mut text));
    match read {
        Err(error) => Err(ProcError::io(path, error)),
        Ok(length) if length as u64 > limit => Err(ProcError::too_long(path, limit)),
        Ok(_) => Ok(text),
    }
}

/// A small file outside of a process's directory.
pub(crate) fn read_small(path: &Path) -> Result<Vec<u8>, ProcError> {
    read(path, SMALL)
}

fn link(path: &Path) -> Result<Vec<u8>, ProcError> {
    let target = fs::read_link(path).map_err(|e| ProcError::io(path, e))?;
    Ok(target.into_os_string().into_vec())
}

/// The entries of a directory that are numbers, ascending.
fn numbers(dir: &Path) -> Result<Vec<u32>, ProcError> {
    let collect = || -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(dir)? {
            found.extend(number(&entry?.file_name()));
        }
        Ok(found)
    };
    let mut found = collect().map_err(|e| ProcError::io(dir, e))?;
    found.sort_unstable();
    found.dedup();
    Ok(found)
}

fn number(name: &OsStr) -> Option<u32> {
    crate::number::decimal32(name.as_bytes())
}
