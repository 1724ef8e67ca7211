//! Text that the kernel writes under `/proc`, as values.
//!
//! Each module holds the pure parser of one kernel file: bytes in, value or
//! [`ProcError`] out. Paths and names stay bytes, unknown lines and keys are
//! skipped, absent fields are `Option`: a newer or older kernel must not
//! break us. [`ProcRoot`] reads the files below a root that tests can move.
//!
//! What it never does: sampling, clocks, unsafe code, judging what it read.
//!
//! Begin with [`ProcRoot::process`].

#![forbid(unsafe_code)]

mod error;
mod number;
mod root;

pub mod auxv;
pub mod cgroup;
pub mod cmdline;
pub mod descriptor;
pub mod maps;
pub mod pagemap;
pub mod smaps;
pub mod stat;
pub mod status;
pub mod syscall;

pub use descriptor::{Descriptor, DescriptorKind};
pub use error::{ErrorKind, ProcError};
pub use maps::Maps;
pub use pagemap::{PageSet, Pagemap};
pub use root::{ProcRoot, Process};
pub use smaps::MappedUsage;
pub use stat::Stat;
pub use status::Status;
pub use syscall::Syscall;
