//! A limit on how much work a module's debug information may cause.
//!
//! Most of it is linear in the file's size by construction. But a hostile
//! file can make many units share one huge table and so ask for quadratic
//! work; everything that is decoded is counted here instead of timed, so that
//! the same file gives the same answer on every machine.

/// Why a lookup ended early.
#[derive(Debug)]
pub(super) enum Stop {
    /// The debug information is malformed, or uses what gimli does not know.
    Malformed,
    /// The limit is reached; further lookups end at once.
    Limit,
}

impl From<gimli::Error> for Stop {
    fn from(_: gimli::Error) -> Stop {
        Stop::Malformed
    }
}

/// Steps left; one step is about one decoded entry, attribute or table row.
#[derive(Debug)]
pub(super) struct Work {
    left: u64,
}

impl Work {
    /// The limit for a file with this many bytes of debug sections. Symbolising
    /// an address in every function of a large program takes about one step
    /// per byte; a second lies between 50 and 100 million steps.
    pub(super) fn for_bytes(bytes: u64) -> Work {
        Work {
            left: (64 << 20) + bytes.saturating_mul(8),
        }
    }

    /// Takes `steps`; an error when they are used up.
    pub(super) fn charge(&mut self, steps: u64) -> Result<(), Stop> {
        match self.left.checked_sub(steps) {
            Some(left) => {
                self.left = left;
                Ok(())
            }
            None => {
                self.left = 0;
                Err(Stop::Limit)
            }
        }
    }

    /// Allows for a file that is read besides.
    pub(super) fn add_bytes(&mut self, bytes: u64) {
        self.left = self.left.saturating_add(bytes.saturating_mul(8));
    }

    /// True when nothing is left.
    pub(super) fn used_up(&self) -> bool {
        self.left == 0
    }
}
