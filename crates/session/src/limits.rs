//! Our own resource limits: lifted for us, as they were for the program.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Least address space, bytes, in which symbol tables and segments fit.
const LEAST_ADDRESS_SPACE: u64 = 512 << 20;
/// Least descriptors: the standard streams, the signal pipe, two sockets, and
/// a few for the process at hand.
const LEAST_DESCRIPTORS: u64 = 16;
/// Descriptors that are plenty: each hello costs a few for a moment.
const DESCRIPTORS: u64 = 1 << 16;

/// The limits as they were, and how they were lifted.
pub(crate) struct Limits {
    /// Resource, as it was, as it is for us.
    changed: Vec<(Resource, Rlimit, Rlimit)>,
}

impl Limits {
    /// Lifts what would hinder us, as far as we may: beyond the hard limit
    /// only with privilege.
    ///
    /// # Errors
    /// Says which limit leaves no room for leakscope itself.
    pub(crate) fn raised() -> Result<Limits, String> {
        let mut changed = Vec::new();
        for (resource, wanted) in [(Resource::As, None), (Resource::Nofile, Some(DESCRIPTORS))] {
            let before = getrlimit(resource);
            let enough = match (before.current, wanted) {
                (None, _) => true,
                (Some(current), Some(wanted)) => current >= wanted,
                (Some(_), None) => false,
            };
            if enough {
                continue;
            }
            let lifted = Rlimit {
                current: wanted,
                maximum: before
                    .maximum
                    .zip(wanted)
                    .map(|(hard, most)| hard.max(most)),
            };
            let to_the_hard = Rlimit {
                current: before.maximum,
                maximum: before.maximum,
            };
            for attempt in [lifted, to_the_hard] {
                if setrlimit(resource, attempt).is_ok() {
                    changed.push((resource, before, getrlimit(resource)));
                    break;
                }
            }
        }
        let space = getrlimit(Resource::As).current;
        if let Some(bytes) = space.filter(|bytes| *bytes < LEAST_ADDRESS_SPACE) {
            return Err(format!(
                "an address-space limit of {} is too small for leakscope itself (at least {}; \
                 see `ulimit -v`)",
                leakscope_model::quantity::bytes(bytes),
                leakscope_model::quantity::bytes(LEAST_ADDRESS_SPACE),
            ));
        }
        let most = getrlimit(Resource::Nofile).current;
        if let Some(most) = most.filter(|most| *most < LEAST_DESCRIPTORS) {
            return Err(format!(
                "a limit of {most} open files is too small for leakscope itself (at least \
                 {LEAST_DESCRIPTORS}; see `ulimit -n`)"
            ));
        }
        Ok(Limits { changed })
    }

    /// Puts them back, for the program to inherit.
    pub(crate) fn restore(&self) {
        for (resource, before, _) in &self.changed {
            // Lowering is always allowed.
            let _ = setrlimit(*resource, *before);
        }
    }

    /// Lifts them again, as far as before.
    pub(crate) fn raise(&self) {
        for (resource, _, ours) in &self.changed {
            // What succeeded once does again, unless privilege was lost.
            let _ = setrlimit(*resource, *ours);
        }
    }
}

impl Drop for Limits {
    fn drop(&mut self) {
        self.restore();
    }
}
