//! Why the kernel refuses to let one process examine another
//! (`__ptrace_may_access` in `kernel/ptrace.c`, yama in `security/yama`), and
//! what would help.

use crate::sys::ptrace;
use leakscope_proc::ProcRoot;
use std::fmt;

/// `CAP_SYS_PTRACE` (`include/uapi/linux/capability.h`).
const CAP_SYS_PTRACE: u64 = 19;

/// The reason for a refusal.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum RefusalCause {
    /// Another process traces it already (a debugger, strace).
    Traced {
        /// Thread id of the tracer.
        by: u32,
        /// Its name.
        name: String,
    },
    /// It belongs to another user.
    OtherUser(u32),
    /// It asked not to be examined (`PR_SET_DUMPABLE`), or it changed its
    /// user or capabilities since it started.
    NotDumpable,
    /// It has capabilities that we lack, as root's processes have for a root
    /// without CAP_SYS_PTRACE: the usual one in a container.
    Capabilities,
    /// yama's `ptrace_scope` forbids it (1 to 3).
    PtraceScope(u32),
    /// A seccomp filter keeps us from the calls that it takes, as some
    /// container profiles do.
    Seccomp,
    /// A thread of the kernel.
    KernelThread,
    /// The process is ours.
    OwnProcess,
    /// None of these: a security module or a user namespace, most likely.
    Unknown,
}

/// A refusal that names its remedy. Its text fits after "failed to".
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// The process that could not be examined.
    pub pid: u32,
    /// Why.
    pub cause: RefusalCause,
}

impl Refusal {
    /// Finds out why thread `tid` of `pid` was refused.
    pub(crate) fn explain(pid: u32, tid: u32) -> Refusal {
        Refusal {
            pid,
            cause: Facts::gather(&ProcRoot::default(), pid, tid).cause(),
        }
    }

    /// What the user can do about it: one sentence without a final dot.
    pub fn remedy(&self) -> String {
        match &self.cause {
            RefusalCause::Traced { by, .. } => {
                format!("end or detach process {by} first; a process has one tracer at most")
            }
            RefusalCause::OtherUser(0) => "run leakscope as root".to_owned(),
            RefusalCause::OtherUser(user) => {
                format!("run leakscope as user {user} or as root")
            }
            RefusalCause::NotDumpable => {
                "run leakscope as root (it needs CAP_SYS_PTRACE)".to_owned()
            }
            RefusalCause::Capabilities => "give leakscope CAP_SYS_PTRACE: start the container \
                 with `--cap-add=SYS_PTRACE`, or run leakscope as root outside of it"
                .to_owned(),
            RefusalCause::PtraceScope(1) => {
                "start the program with `leakscope run`, or run leakscope as root, or allow it \
                 with `sudo sysctl kernel.yama.ptrace_scope=0`"
                    .to_owned()
            }
            RefusalCause::PtraceScope(2) => "run leakscope as root (it needs CAP_SYS_PTRACE), or \
                 allow it with `sudo sysctl kernel.yama.ptrace_scope=0`"
                .to_owned(),
            RefusalCause::PtraceScope(_) => {
                "nobody may trace until the machine starts again with a lower \
                 kernel.yama.ptrace_scope"
                    .to_owned()
            }
            RefusalCause::Seccomp => "start the container with `--cap-add=SYS_PTRACE` or \
                 `--security-opt seccomp=unconfined`, or run leakscope outside of it"
                .to_owned(),
            RefusalCause::KernelThread => {
                "threads of the kernel have no memory of their own".to_owned()
            }
            RefusalCause::OwnProcess => "examine it from another process".to_owned(),
            RefusalCause::Unknown => "run leakscope as root, outside of containers, and look in \
                 the system log for a security module (AppArmor, SELinux) that denies ptrace"
                .to_owned(),
        }
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "examine process {}: ", self.pid)?;
        match &self.cause {
            RefusalCause::Traced { by, name } => {
                write!(f, "it is already traced by process {by} ({name})")
            }
            RefusalCause::OtherUser(user) => write!(f, "it belongs to user {user}"),
            RefusalCause::NotDumpable => f.write_str("it does not let itself be examined"),
            RefusalCause::Capabilities => f.write_str("it has capabilities that leakscope has not"),
            RefusalCause::PtraceScope(scope) => {
                write!(f, "kernel.yama.ptrace_scope is {scope}")
            }
            RefusalCause::Seccomp => f.write_str("a seccomp filter forbids ptrace here"),
            RefusalCause::KernelThread => f.write_str("it is a thread of the kernel"),
            RefusalCause::OwnProcess => f.write_str("it is leakscope itself"),
            RefusalCause::Unknown => f.write_str("the kernel does not permit it"),
        }?;
        write!(f, "; {}", self.remedy())
    }
}

/// What the decision rests on.
#[derive(Clone, Debug, Default)]
struct Facts {
    own_process: bool,
    kernel_thread: bool,
    tracer: Option<(u32, String)>,
    /// Our capabilities.
    own_capabilities: u64,
    target_capabilities: u64,
    own_user: Option<u32>,
    target_users: Option<[u32; 4]>,
    file_owner: Option<u32>,
    scope: Option<u32>,
    filtered: bool,
}

impl Facts {
    fn gather(root: &ProcRoot, pid: u32, tid: u32) -> Facts {
        let target = root.process(pid);
        let status = target.task(tid).status().unwrap_or_default();
        let own = root.process(std::process::id()).status();
        let own = own.unwrap_or_default();
        let tracer = status.tracer.filter(|&by| by != 0).map(|by| {
            let name = root.process(by).stat().map(|s| s.comm).unwrap_or_default();
            (by, String::from_utf8_lossy(&name).into_owned())
        });
        Facts {
            own_process: pid == std::process::id(),
            kernel_thread: target.stat().is_ok_and(|s| s.is_kernel_thread()),
            tracer,
            own_capabilities: own.capabilities.unwrap_or(0),
            target_capabilities: status.capabilities.unwrap_or(0),
            own_user: own.uids.map(|[real, ..]| real),
            target_users: status.uids,
            file_owner: target.file_owner().ok(),
            scope: root.ptrace_scope(),
            filtered: ptrace::is_filtered(),
        }
    }

    /// The first of the kernel's own checks that fails.
    fn cause(self) -> RefusalCause {
        let capable = self.own_capabilities >> CAP_SYS_PTRACE & 1 == 1;
        if self.own_process {
            return RefusalCause::OwnProcess;
        }
        if self.kernel_thread {
            return RefusalCause::KernelThread;
        }
        if self.filtered {
            return RefusalCause::Seccomp;
        }
        if let Some((by, name)) = self.tracer {
            return RefusalCause::Traced { by, name };
        }
        if !capable
            && let Some(own) = self.own_user
            && let Some([real, effective, saved, _]) = self.target_users
        {
            let other = [effective, real, saved].into_iter().find(|&u| u != own);
            if let Some(other) = other {
                return RefusalCause::OtherUser(other);
            }
            // Its files belong to the effective user, or to root when the
            // process is not dumpable.
            if self.file_owner.is_some_and(|owner| owner != effective) {
                return RefusalCause::NotDumpable;
            }
        }
        if !capable && self.target_capabilities & !self.own_capabilities != 0 {
            return RefusalCause::Capabilities;
        }
        match self.scope {
            Some(3..) => RefusalCause::PtraceScope(3),
            Some(scope @ 1..) if !capable => RefusalCause::PtraceScope(scope),
            _ => RefusalCause::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ordinary() -> Facts {
        Facts {
            own_user: Some(1000),
            target_users: Some([1000; 4]),
            file_owner: Some(1000),
            ..Facts::default()
        }
    }

    #[test]
    fn each_cause() {
        let rows = [
            (ordinary(), RefusalCause::Unknown),
            (
                Facts {
                    own_process: true,
                    ..ordinary()
                },
                RefusalCause::OwnProcess,
            ),
            (
                Facts {
                    kernel_thread: true,
                    ..ordinary()
                },
                RefusalCause::KernelThread,
            ),
            (
                Facts {
                    filtered: true,
                    ..ordinary()
                },
                RefusalCause::Seccomp,
            ),
            (
                Facts {
                    tracer: Some((41, "gdb".to_owned())),
                    scope: Some(1),
                    ..ordinary()
                },
                RefusalCause::Traced {
                    by: 41,
                    name: "gdb".to_owned(),
                },
            ),
            (
                Facts {
                    target_users: Some([0; 4]),
                    file_owner: Some(0),
                    scope: Some(1),
                    ..ordinary()
                },
                RefusalCause::OtherUser(0),
            ),
            (
                // A setuid program that dropped its privilege for a moment.
                Facts {
                    target_users: Some([1000, 1000, 0, 1000]),
                    ..ordinary()
                },
                RefusalCause::OtherUser(0),
            ),
            (
                Facts {
                    file_owner: Some(0),
                    scope: Some(1),
                    ..ordinary()
                },
                RefusalCause::NotDumpable,
            ),
            (
                // Root in a container, who examines root there.
                Facts {
                    own_user: Some(0),
                    target_users: Some([0; 4]),
                    file_owner: Some(0),
                    own_capabilities: 0b1101,
                    target_capabilities: 0b1111,
                    scope: Some(1),
                    ..ordinary()
                },
                RefusalCause::Capabilities,
            ),
            (
                Facts {
                    scope: Some(1),
                    ..ordinary()
                },
                RefusalCause::PtraceScope(1),
            ),
            (
                Facts {
                    scope: Some(0),
                    ..ordinary()
                },
                RefusalCause::Unknown,
            ),
            (
                Facts {
                    scope: Some(2),
                    own_capabilities: 1 << CAP_SYS_PTRACE,
                    ..ordinary()
                },
                RefusalCause::Unknown,
            ),
            (
                Facts {
                    scope: Some(3),
                    own_capabilities: 1 << CAP_SYS_PTRACE,
                    ..ordinary()
                },
                RefusalCause::PtraceScope(3),
            ),
        ];
        for (facts, want) in rows {
            let shown = format!("{facts:?}");
            assert_eq!(facts.cause(), want, "{shown}");
        }
    }

    #[test]
    fn the_text_names_cause_and_remedy() {
        let refusal = Refusal {
            pid: 4711,
            cause: RefusalCause::Traced {
                by: 41,
                name: "gdb".to_owned(),
            },
        };
        assert_eq!(
            refusal.to_string(),
            "examine process 4711: it is already traced by process 41 (gdb); end or detach \
             process 41 first; a process has one tracer at most"
        );
    }
}
