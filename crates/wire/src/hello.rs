//! The first words between recorder and supervisor, over a Unix socket.
//!
//! ```text
//! recorder → supervisor   HELLO: 8 words (64 bytes)
//!   0 layout::MAGIC   1 layout::VERSION   2 process id   3 parent's id
//!   4 why (WHY_START, WHY_FORK)   5 address-space limit in bytes (or MAX)
//!   6 for WHY_FORK: the parent's id as the parent knows itself   7 zero
//! supervisor → recorder   one byte, with the segment's descriptor attached
//!                         (SCM_RIGHTS), or the byte alone: not recorded
//! ```
//! The supervisor learns the true process id from the socket (SO_PEERCRED).
//! Each connection serves one hello and is then closed.

/// Words of a hello.
pub const HELLO_WORDS: usize = 8;
/// A new process image.
pub const WHY_START: u64 = 1;
/// A forked child that wants a segment of its own.
pub const WHY_FORK: u64 = 2;
/// Reply byte: a segment is attached.
pub const REPLY_SEGMENT: u8 = 1;
/// Reply byte: do not record.
pub const REPLY_REFUSED: u8 = 0;

/// Environment variable naming the supervisor's socket: `@name` for the
/// abstract namespace, otherwise a path; two may be given, separated by `;`.
pub const ENV_SOCKET: &str = "LEAKSCOPE_SOCKET";
