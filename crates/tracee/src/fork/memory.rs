//! The memory of a copy.

use crate::memory::LiveMemory;
use leakscope_memory::{MemoryMap, MemoryReader};
use leakscope_model::Addr;

/// The memory of a copy, and what of the process it does not have.
#[derive(Debug)]
pub(super) struct ForkedMemory {
    pub map: MemoryMap,
    pub copy: LiveMemory,
    /// Ascending.
    pub saved: Vec<(u64, Vec<u8>)>,
}

impl ForkedMemory {
    /// The saved bytes from `at` on, or how far the next ones are.
    fn saved(&self, at: u64) -> Result<&[u8], u64> {
        let next = self
            .saved
            .partition_point(|(start, bytes)| start.saturating_add(bytes.len() as u64) <= at);
        match self.saved.get(next) {
            Some((start, bytes)) if *start <= at => {
                Ok(bytes.get((at - start) as usize..).unwrap_or_default())
            }
            Some((start, _)) => Err(start - at),
            None => Err(u64::MAX),
        }
    }
}

impl MemoryReader for ForkedMemory {
    fn map(&self) -> &MemoryMap {
        &self.map
    }

    fn read_some(&self, at: Addr, into: &mut [u8]) -> usize {
        let mut done = 0;
        while done < into.len() {
            let Some(here) = at.checked_add(done as u64) else {
                break;
            };
            let rest = into.get_mut(done..).unwrap_or_default();
            let (wanted, got) = match self.saved(here.0) {
                Ok(bytes) => {
                    let length = bytes.len().min(rest.len());
                    rest[..length].copy_from_slice(&bytes[..length]);
                    (length, length)
                }
                Err(room) => {
                    let length = usize::try_from(room).map_or(rest.len(), |r| r.min(rest.len()));
                    let part = rest.get_mut(..length).unwrap_or_default();
                    (length, self.copy.read_some(here, part))
                }
            };
            done += got;
            if got < wanted || got == 0 {
                break;
            }
        }
        done
    }
}
