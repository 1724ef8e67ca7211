//! Application mappings.

use crate::modules;
use crate::recorder::{self, Access, Place, give_way};
use crate::x86_64::Saved;
use leakscope_recorder_core::rows::{self, Mapped};
use leakscope_wire::layout::{config, mapping, word};

const MAP_FAILED: u64 = u64::MAX;
const MAP_STACK: u64 = 0x20000;

/// mmap returned `addr`.
pub fn mapped(saved: &Saved, addr: u64, place: Place) {
    let [_, len, protection, flags, ..] = saved.args;
    // Never accessible, or a thread's stack: not a block of data.
    if addr == MAP_FAILED || flags & MAP_STACK != 0 {
        return;
    }
    note(addr, len, protection, place);
}

fn note(addr: u64, len: u64, protection: u64, place: Place) {
    let Access::Inside(recorder, mut inside) = recorder::access(place.sp) else {
        return;
    };
    if recorder.config & config::MMAPS != 0 {
        let len = len.saturating_add(4095) & !4095;
        let kind = if modules::is_allocator(place.return_address()) {
            mapping::ALLOCATOR
        } else {
            mapping::APPLICATION
        };
        let small = kind == mapping::APPLICATION && len < recorder.mmap_min;
        if small || protection == 0 && kind == mapping::APPLICATION {
            rows::unmap(&recorder.segment, give_way, addr, len);
        } else {
            let stack = recorder.capture(&mut inside, place).stack;
            if !rows::map(
                &recorder.segment,
                give_way,
                Mapped {
                    addr,
                    len,
                    stack,
                    kind,
                },
            ) {
                recorder.count(word::DROPPED);
            }
        }
    }
    recorder.leave(inside);
}

/// mremap returned `addr`.
pub fn remapped(saved: &Saved, addr: u64, place: Place) {
    let [old, old_len, new_len, ..] = saved.args;
    if addr == MAP_FAILED {
        return;
    }
    unmapped(old, old_len, place);
    note(addr, new_len, 3, place);
}

/// munmap is about to run.
pub fn unmapped(addr: u64, len: u64, place: Place) {
    if let Access::Inside(recorder, inside) = recorder::access(place.sp) {
        if recorder.config & config::MMAPS != 0 {
            let len = len.saturating_add(4095) & !4095;
            rows::unmap(&recorder.segment, give_way, addr, len);
        }
        modules::stacks_changed();
        recorder.leave(inside);
    }
}
