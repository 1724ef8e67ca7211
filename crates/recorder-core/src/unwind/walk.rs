//! One step outwards: from the state in a function to the state in its caller.
#![allow(unsafe_code)]

use super::host::Host;
use super::mapped::word;
use super::region::Region;
use super::row::{BpRule, Kind, Row};
use super::x86_64::{RED_ZONE, USER_BEGIN, USER_END, WORD, signal_frame};

/// A word of stack and the value it had.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Slot {
    pub(crate) addr: u64,
    pub(crate) value: u64,
}

/// Most slots that one step reads.
pub(crate) const SLOTS: usize = 3;

/// The slots that one step read.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Slots {
    slots: [Slot; SLOTS],
    count: u64,
}

impl Slots {
    /// None.
    pub(crate) const EMPTY: Slots = Slots {
        slots: [Slot { addr: 0, value: 0 }; SLOTS],
        count: 0,
    };

    /// These; what does not fit is left out.
    pub(crate) fn of(slots: &[Slot]) -> Slots {
        let mut copy = Slots::EMPTY;
        for slot in slots {
            let _ = copy.add(slot.addr, slot.value);
        }
        copy
    }

    /// Adds one; a step that needed more than there is room for would be
    /// reused wrongly, so the caller must stop on `None`.
    #[inline]
    pub(crate) fn add(&mut self, addr: u64, value: u64) -> Option<()> {
        *self.slots.get_mut(self.count as usize)? = Slot { addr, value };
        self.count = self.count.wrapping_add(1);
        Some(())
    }

    #[inline]
    pub(crate) fn as_slice(&self) -> &[Slot] {
        self.slots.get(..self.count as usize).unwrap_or(&[])
    }
}

/// The registers in a frame, and the slots of the inner frame they came from.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub(crate) struct State {
    /// Return address into the function (after a signal: the exact one + 1).
    pub(crate) ip: u64,
    pub(crate) sp: u64,
    pub(crate) bp: u64,
    /// Where rbp was read; 0 if it is the inner frame's or unknown. Not among
    /// `slots`, because it mostly does not matter.
    pub(crate) bp_at: u64,
    pub(crate) slots: Slots,
}

/// What lies outwards.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outward {
    /// A caller.
    Frame,
    /// Nothing: this frame is the outermost, says the unwind information, the
    /// return address is 0, or the stack begins here.
    End,
    /// Unknown.
    Cut,
}

/// Reads a stack slot and notes it.
#[inline]
fn fetch<H: Host>(region: &mut Region<'_, H>, addr: u64, slots: &mut Slots) -> Option<u64> {
    let value = read(region, addr)?;
    slots.add(addr, value)?;
    Some(value)
}

/// Reads a stack slot.
#[inline]
fn read<H: Host>(region: &mut Region<'_, H>, addr: u64) -> Option<u64> {
    if !region.reach(addr) {
        return None;
    }
    // SAFETY: `reach` holds only for aligned words of memory that is mapped:
    // the thread's own stack above its live sp (callers check that side), or
    // pages that were probed.
    Some(unsafe { word(addr) })
}

/// The caller's registers.
struct Next {
    ip: u64,
    sp: u64,
    bp: u64,
    bp_at: u64,
}

/// Steps outwards from `state` by `row` and writes the caller's state, or at
/// least the slots that were read, to `caller` (in place: a returned state
/// would be copied in wide words right after it was written in narrow ones,
/// which stalls). `rbx` searches for rbx; `is_code` judges a return address
/// found by frame pointer.
#[inline]
pub(crate) fn outward<H: Host>(
    state: &State,
    caller: &mut State,
    row: Row,
    region: &mut Region<'_, H>,
    rbx: impl FnOnce(&mut Region<'_, H>) -> Option<u64>,
    is_code: impl FnOnce(u64, bool) -> bool,
) -> Outward {
    let slots = &mut caller.slots;
    slots.count = 0;
    let next = match row.kind() {
        Kind::End => return Outward::End,
        Kind::Stop => None,
        Kind::Signal => interrupted(state, region, slots),
        Kind::FramePointer => framed(state, region, slots, is_code),
        _ => called(state, row, region, slots, rbx),
    };
    caller.bp_at = 0;
    match next {
        Some(Next { ip: 0, .. }) => Outward::End,
        Some(next) if (USER_BEGIN..USER_END).contains(&next.ip) => {
            caller.ip = next.ip;
            caller.sp = next.sp;
            caller.bp = next.bp;
            caller.bp_at = next.bp_at;
            Outward::Frame
        }
        None if region.is_first_frame(state.sp) => Outward::End,
        _ => Outward::Cut,
    }
}

/// The caller by call-frame information.
#[inline]
fn called<H: Host>(
    state: &State,
    row: Row,
    region: &mut Region<'_, H>,
    slots: &mut Slots,
    rbx: impl FnOnce(&mut Region<'_, H>) -> Option<u64>,
) -> Option<Next> {
    let floor = state.sp.wrapping_sub(RED_ZONE);
    let cfa = match row.kind() {
        Kind::Sp => state.sp.wrapping_add_signed(row.cfa()),
        Kind::Bp => state.bp.wrapping_add_signed(row.cfa()),
        Kind::Bx => rbx(region)?.wrapping_add_signed(row.cfa()),
        kind => {
            let base = if kind == Kind::SpLoad {
                state.sp
            } else {
                state.bp
            };
            let at = base.wrapping_add_signed(row.load_at());
            if at < floor {
                return None;
            }
            fetch(region, at, slots)?.wrapping_add_signed(row.load_add())
        }
    };
    let return_slot = cfa.wrapping_sub(WORD);
    let bp_slot = match row.bp_rule() {
        BpRule::AtCfa => cfa.wrapping_add_signed(row.bp()),
        BpRule::AtBp => state.bp.wrapping_add_signed(row.bp()),
        BpRule::Same | BpRule::Lost => return_slot,
    };
    let lowest = bp_slot.min(return_slot);
    if region.reach(return_slot) {
        // The same stack: only upwards.
        if return_slot < state.sp || lowest < floor {
            return None;
        }
    } else if row.kind() == Kind::Sp || !region.enter(lowest) {
        // Code that switches stacks finds its way back through a register
        // other than sp.
        return None;
    }
    let ip = fetch(region, return_slot, slots)?;
    let (bp, bp_at) = match row.bp_rule() {
        BpRule::Same => (state.bp, 0),
        BpRule::Lost => (0, 0),
        BpRule::AtCfa | BpRule::AtBp => (read(region, bp_slot)?, bp_slot),
    };
    if row.kind() == Kind::Bx {
        // rbx came from an inner frame whose slot is not among the kept ones:
        // a slot that never holds its value has this step repeated each time.
        slots.add(return_slot, !ip)?;
    }
    Some(Next {
        ip,
        sp: cfa,
        bp,
        bp_at,
    })
}

/// The state that a signal interrupted.
#[cold]
#[inline(never)]
fn interrupted<H: Host>(
    state: &State,
    region: &mut Region<'_, H>,
    slots: &mut Slots,
) -> Option<Next> {
    let ip = fetch(region, state.sp.wrapping_add(signal_frame::IP), slots)?;
    let sp = fetch(region, state.sp.wrapping_add(signal_frame::SP), slots)?;
    let bp_at = state.sp.wrapping_add(signal_frame::BP);
    let bp = read(region, bp_at)?;
    let upwards = if region.is_here(sp) {
        sp > state.sp
    } else {
        region.enter(sp)
    };
    // The exact address: one more, so that looking one byte back, as for
    // return addresses, finds the interrupted instruction.
    (upwards && ip != 0).then_some(Next {
        ip: ip.wrapping_add(1),
        sp,
        bp,
        bp_at,
    })
}

/// The caller by frame pointer.
#[cold]
#[inline(never)]
fn framed<H: Host>(
    state: &State,
    region: &mut Region<'_, H>,
    slots: &mut Slots,
    is_code: impl FnOnce(u64, bool) -> bool,
) -> Option<Next> {
    if state.bp < state.sp {
        return None;
    }
    let bp_at = state.bp;
    let bp = read(region, bp_at)?;
    let ip = fetch(region, bp_at.wrapping_add(WORD), slots)?;
    let chained = bp > state.bp && region.is_here(bp);
    if ip != 0 && (region.is_here(ip & !7) || !is_code(ip, chained)) {
        return None;
    }
    Some(Next {
        ip,
        sp: state.bp.wrapping_add(WORD.wrapping_mul(2)),
        bp,
        bp_at,
    })
}
