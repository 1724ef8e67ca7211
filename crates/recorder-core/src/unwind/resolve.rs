//! From a return address to its module and row: cache first, then the
//! module's tables.
#![allow(unsafe_code)]

use super::host::{Boundary, Host, Module};
use super::mapped::Mapped;
use super::row::{Kind, OWN_ALLOCATOR, OWN_HIDDEN, OWN_MAX, OWN_PLAIN, OWN_SIGNAL, Row, RowCache};
use super::{cfi, x86_64};
use leakscope_wire::entry::node;

/// Module id and row of a return address.
#[inline]
pub(crate) fn look_up<H: Host>(host: &H, rows: &RowCache<'_>, ip: u64) -> (u16, Row) {
    match rows.get(ip.wrapping_sub(1)) {
        Some(hit) => hit,
        None => resolve(host, rows, ip),
    }
}

#[cold]
#[inline(never)]
fn resolve<H: Host>(host: &H, rows: &RowCache<'_>, ip: u64) -> (u16, Row) {
    let pc = ip.wrapping_sub(1);
    let (module, mut row) = match host.module_at(pc) {
        None => (node::NO_MODULE, Row::plain(Kind::FramePointer)),
        Some(module) => {
            let mut row = match tables(&module) {
                Some(tables) => x86_64::row(&tables, pc),
                None => Row::plain(Kind::FramePointer),
            };
            if matches!(row.kind(), Kind::FramePointer | Kind::End) && is_restorer(ip) {
                row = Row::plain(Kind::Signal).with_own(OWN_SIGNAL);
            }
            (module.id, row)
        }
    };
    if row.own() != OWN_SIGNAL {
        row = row.with_own(match host.boundary(ip) {
            Boundary::None => OWN_PLAIN,
            Boundary::Hidden => OWN_HIDDEN,
            Boundary::Allocator(kind) => kind
                .clamp(1, OWN_MAX.wrapping_sub(OWN_ALLOCATOR))
                .wrapping_add(OWN_ALLOCATOR),
        });
    }
    rows.put(pc, module, row);
    (module, row)
}

/// The unwind tables of a module, if it has any.
pub(crate) fn tables(module: &Module) -> Option<cfi::Tables> {
    if module.eh_frame_hdr == 0 {
        return None;
    }
    Some(cfi::Tables {
        // SAFETY: `Host` vouches that the range is mapped and not written to.
        mem: unsafe { Mapped::new(module.start, module.end) },
        hdr: module.eh_frame_hdr,
        hdr_len: module.eh_frame_hdr_len,
    })
}

/// Whether the code at `ip`, whose predecessor lies in a module, is a signal
/// trampoline without unwind information.
fn is_restorer(ip: u64) -> bool {
    const PAGE: u64 = 4096;
    let page = ip.wrapping_sub(1) & !(PAGE - 1);
    // SAFETY: `Host` vouches that the page of a pc inside a module is mapped
    // and not written to; only that page is read.
    let code = unsafe { Mapped::new(page, page.saturating_add(PAGE)) };
    x86_64::is_restorer(&code, ip)
}

/// Whether a word found by frame pointer may be a return address: inside a
/// module, or part of a chain (`chained`) through code outside all modules.
#[cold]
pub(crate) fn is_code<H: Host>(ip: u64, chained: bool, host: &H, rows: &RowCache<'_>) -> bool {
    if !(x86_64::USER_BEGIN..x86_64::USER_END).contains(&ip) {
        return false;
    }
    let pc = ip.wrapping_sub(1);
    let inside = match rows.get(pc) {
        Some((module, _)) => module != node::NO_MODULE,
        None => host.module_at(pc).is_some(),
    };
    inside || chained
}
