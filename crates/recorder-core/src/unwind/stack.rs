//! The stack of one thread, kept from event to event.
//!
//! ```text
//! frames   outermost first: state (ip, sp, bp) of each frame, its tree node id
//! slots    outermost first: the words of stack that those states were read from
//!
//!   end slots │ slots of frame 0 │ slots of frame 1 │ …      (what frame i was read
//!             └ frames[0].slots  └ frames[1].slots            from while in frame i+1)
//! ```
//! A state follows from the state of the frame inside it and the words of stack
//! read on the way, nothing else. So a kept frame may be reused exactly if its
//! (ip, sp, bp) is met again and every slot outer to it still holds its value;
//! without bp, and the slot it was read from, where no outer state is computed
//! from it ([`BpUse`]): compiled code keeps ordinary values there.
//! That needs no knowledge of what happened in between: `longjmp`, switched
//! stacks and signals all come out as changed slots. Frames inner to the
//! present one are left in place for the same reason: they may come back.
//!
//! A stack of more than `max_depth` frames is shown as its innermost
//! [`DEEP_WINDOW`] frames under a node that says so: always the same nodes for
//! the same stack, at a bounded cost.
#![allow(unsafe_code)]

use super::host::Host;
use super::region::{Probed, Region, StackBounds};
use super::row::{BpUse, OWN_ALLOCATOR, OWN_HIDDEN, OWN_MAX, OWN_PLAIN, OWN_SIGNAL, RowCache};
use super::walk::{Outward, SLOTS, Slot, Slots, State, outward};
use super::{cfi, mapped, resolve, x86_64};
use leakscope_wire::entry::node;

/// Frames kept for each thread.
const CAP: usize = 1024;
/// Frames shown of a stack that is deeper than the limit.
pub const DEEP_WINDOW: usize = 64;

/// Registers at an event, as the function that called the recorder has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(C)]
pub struct Context {
    /// Return address into that function.
    pub ip: u64,
    /// Its stack pointer after the return.
    pub sp: u64,
    /// Its rbp.
    pub bp: u64,
    /// Its rbx; needed in few places of hand-written code (the loader's lazy
    /// binding). A wrong value there cuts the stack.
    pub bx: u64,
}

/// A captured stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Captured {
    /// Id in the stack tree; 0 if there was no room for it.
    pub stack: u32,
    /// Kind of the outermost allocator boundary on the way, 0 if there is none.
    pub boundary: u8,
    /// The outer end was not reached for lack of unwind information.
    pub cut: bool,
    /// The stack is deeper than the limit; its outer frames were left out.
    pub deep: bool,
}

impl Captured {
    /// No stack.
    pub const NONE: Captured = Captured {
        stack: 0,
        boundary: 0,
        cut: true,
        deep: false,
    };
}

/// A kept frame. `state` bits: kind of the outermost boundary (6), [`LOST`], [`LAZY`].
#[derive(Clone, Copy)]
#[repr(C)]
struct Frame {
    /// Module and ip, as in a stack node.
    node: u64,
    sp: u64,
    /// Where nothing outer is computed from it: where it was read, or 0.
    bp: u64,
    id: u32,
    /// Index of its first slot, and [`BP_SLOT`].
    slots: u16,
    /// `OWN_…` of the row, and a [`BpUse`] in the bits from [`BP_USE`] on.
    own: u8,
    state: u8,
}

/// First bit of a frame's [`BpUse`].
const BP_USE: u32 = 6;

/// The last slot of the frame is the one that its rbp was read from.
const BP_SLOT: u16 = 1 << 15;

/// The tree had no room for this frame or one outer to it.
const LOST: u8 = 0x40;
/// `id` is not known yet.
const LAZY: u8 = 0x80;
const KIND: u8 = 0x3f;

impl Frame {
    #[inline]
    fn matches(&self, ip: u64, sp: u64, bp: u64) -> bool {
        node::pc(self.node) == ip && self.sp == sp && (self.bp == bp || self.bp_use().is_idle())
    }

    /// Index of its first slot.
    #[inline]
    fn first_slot(&self) -> usize {
        usize::from(self.slots & !BP_SLOT)
    }

    #[inline]
    fn bp_use(&self) -> BpUse {
        BpUse::of(self.own >> BP_USE)
    }

    #[inline]
    fn own(&self) -> u8 {
        self.own & OWN_MAX
    }
}

/// A frame of the walk under way, innermost first.
#[derive(Clone, Copy)]
#[repr(C)]
struct Step {
    state: State,
    node: u64,
    own: u64,
}

/// The previous stack of one thread. All zero bytes are a valid, empty value.
#[repr(C)]
pub(super) struct StackCache {
    epoch: u64,
    memory_epoch: u64,
    len: usize,
    /// Index of the frame of the last event.
    last: usize,
    slots_len: usize,
    /// `Host::max_depth`, in range.
    limit: usize,
    /// Frames outer to frame 0 exist but are not kept; then only frames with
    /// `limit` kept ones outer to them are used.
    shifted: bool,
    /// The walk ended for lack of unwind information.
    cut: bool,
    /// Some slots lie outside the thread's own stack.
    foreign: bool,
    probed: Probed,
    frames: [Frame; CAP],
    slots: [Slot; CAP * SLOTS + SLOTS],
    steps: [Step; CAP],
}

/// How a walk ended. The slots that this depends on are those of the step after
/// the last one.
enum Reached {
    /// A kept frame, by index: it and all outer ones hold.
    Kept(usize),
    /// The outermost frame.
    End,
    /// No way on.
    Cut,
    /// More frames than there is room for.
    Full,
}

/// What a capture depends on.
pub(super) struct Last<'a> {
    /// The words of stack that must hold.
    pub(super) slots: &'a [Slot],
    /// Whatever rbp is.
    pub(super) any_bp: bool,
    /// Some slots lie outside the thread's own stack.
    pub(super) foreign: bool,
    pub(super) epoch: u64,
    pub(super) memory_epoch: u64,
}

/// Frames left when there are too many.
const HALF: usize = CAP / 2;
/// Largest limit: with the rest of the half, that much recursion returns before
/// the stack is walked anew.
pub const MAX_DEPTH: usize = HALF - DEEP_WINDOW;

impl StackCache {
    /// The stack at `context`, as [`super::ThreadStacks::capture`] says.
    pub(super) fn capture<H: Host>(
        &mut self,
        context: &Context,
        bounds: StackBounds,
        host: &H,
        rows: &RowCache<'_>,
    ) -> Captured {
        if self.epoch != rows.epoch() || (self.foreign && self.memory_epoch != host.memory_epoch())
        {
            self.forget(rows);
        }
        let at = self.seek(context.sp);
        if at < self.len
            && let Some(frame) = self.frames.get(at)
            && frame.matches(context.ip, context.sp, context.bp)
            && frame.state & LAZY == 0
            && last_changed(&self.slots, outer_slots(&self.frames, at, self.limit)).is_none()
        {
            self.last = at;
            return self.captured(at);
        }
        self.walk(context, bounds, host, rows, at)
    }

    /// What the last capture depends on.
    pub(super) fn last(&self) -> Last<'_> {
        let (first, end) = outer_slots(&self.frames, self.last, self.limit);
        let frame = self.frames.get(self.last);
        Last {
            slots: self.slots.get(first..end).unwrap_or(&[]),
            any_bp: frame.is_some_and(|frame| frame.bp_use().is_idle()),
            foreign: self.foreign,
            epoch: self.epoch,
            memory_epoch: self.memory_epoch,
        }
    }

    /// Numbers of kept frames and slots.
    #[cfg(test)]
    pub(super) fn size(&self) -> (usize, usize) {
        (self.len, self.slots_len)
    }

    /// Empties it.
    pub(super) fn clear(&mut self) {
        self.epoch = 0;
        self.memory_epoch = 0;
        self.len = 0;
        self.last = 0;
        self.slots_len = 0;
        self.shifted = false;
        self.foreign = false;
        self.probed = Probed::default();
    }

    /// Drops all frames.
    fn forget(&mut self, rows: &RowCache<'_>) {
        self.epoch = rows.epoch();
        self.len = 0;
        self.last = 0;
        self.slots_len = 0;
        self.shifted = false;
        self.foreign = false;
    }

    /// Index of the innermost frame whose sp is at least `sp`, looking from the
    /// last event's frame. (Only a guess where stacks were switched.)
    #[inline]
    fn seek(&self, sp: u64) -> usize {
        let frames = self.frames.get(..self.len).unwrap_or(&[]);
        let mut at = self.last;
        while at > 0 && frames.get(at).is_none_or(|frame| frame.sp < sp) {
            at = at.wrapping_sub(1);
        }
        while let Some(inner) = frames.get(at.wrapping_add(1))
            && inner.sp >= sp
        {
            at = at.wrapping_add(1);
        }
        at
    }

    fn captured(&self, at: usize) -> Captured {
        let deep = self.shifted || at >= self.limit;
        let (id, state) = match self.frames.get(at) {
            Some(frame) => (frame.id, frame.state),
            None => (0, LOST),
        };
        Captured {
            stack: if state & LOST == 0 { id } else { 0 },
            boundary: state & KIND,
            cut: self.cut && !deep,
            deep,
        }
    }

    fn walk<H: Host>(
        &mut self,
        context: &Context,
        bounds: StackBounds,
        host: &H,
        rows: &RowCache<'_>,
        at: usize,
    ) -> Captured {
        self.limit = (host.max_depth() as usize).clamp(1, MAX_DEPTH);
        let memory_epoch = host.memory_epoch();
        if memory_epoch != self.memory_epoch {
            self.memory_epoch = memory_epoch;
            self.probed = Probed::default();
        }
        let (mut count, reached, foreign) = self.collect(context, bounds, host, rows, at);
        match reached {
            Reached::Kept(at) if count == 0 => {
                self.last = at;
                return self.identify(at, host);
            }
            Reached::Kept(at) => {
                self.len = at.wrapping_add(1);
                self.slots_len = self.frames.get(at).map_or(0, Frame::first_slot);
                self.keep(count);
                self.keep_bp(at, count);
            }
            Reached::Full => {
                self.forget(rows);
                self.shifted = true;
                count = HALF;
            }
            Reached::End | Reached::Cut => {
                self.forget(rows);
                self.cut = matches!(reached, Reached::Cut);
                self.keep(count);
            }
        }
        self.foreign |= foreign;
        while let Some(next) = count.checked_sub(1) {
            count = next;
            self.push(next, host);
        }
        self.last = self.len.saturating_sub(1);
        self.identify(self.last, host)
    }

    /// Walks outwards until a kept frame holds or the stack ends. Leaves the
    /// frames inner to that in `steps` and returns their number, why it
    /// stopped, and whether foreign stacks were met.
    fn collect<H: Host>(
        &mut self,
        context: &Context,
        bounds: StackBounds,
        host: &H,
        rows: &RowCache<'_>,
        at: usize,
    ) -> (usize, Reached, bool) {
        let StackCache {
            probed,
            frames,
            slots,
            steps,
            ..
        } = self;
        let frames = frames.get(..self.len).unwrap_or(&[]);
        let limit = self.limit;
        // Without the outermost frames, those that prove the depth must be there.
        let least = if self.shifted {
            limit.wrapping_add(1)
        } else {
            1
        };
        let mut region = Region::new(host, bounds, probed, context.sp);
        if let Some(first) = steps.first_mut() {
            first.state = State {
                ip: context.ip,
                sp: context.sp,
                bp: context.bp,
                bp_at: 0,
                slots: Slots::EMPTY,
            };
        }
        // Frames that may still be met: those outer to `kept`.
        let mut kept = at.wrapping_add(1).min(frames.len());
        let mut count = 0usize;
        // The walk is at `steps[count]`, whose state alone is set.
        let reached = 'walk: loop {
            let Some(Step { state, .. }) = steps.get(count) else {
                break Reached::Full;
            };
            while let Some(index) = kept.checked_sub(1)
                && frames.get(index).is_some_and(|frame| frame.sp < state.sp)
            {
                kept = index;
            }
            if let Some(index) = kept.checked_sub(1)
                && kept >= least
                && let Some(frame) = frames.get(index)
                && frame.matches(state.ip, state.sp, state.bp)
            {
                let outer = outer_slots(frames, index, limit);
                let Some(changed) = last_changed(slots, outer) else {
                    break Reached::Kept(index);
                };
                // The frames from here to the owner of the changed slot hold,
                // but what is outer to them does not.
                kept = index;
                let mut inner = frame;
                let mut bp = state.bp;
                while let Some(next) = kept.checked_sub(1)
                    && let Some(frame) = frames.get(next)
                    && frame.first_slot() > changed
                {
                    let Some([step, caller]) = pair(steps, count) else {
                        break 'walk Reached::Full;
                    };
                    step.node = inner.node;
                    step.own = u64::from(inner.own);
                    let mut range = frame.first_slot()..inner.first_slot();
                    let mut bp_at = 0;
                    if frame.slots & BP_SLOT != 0 {
                        range.end = range.end.saturating_sub(1);
                        bp_at = slots.get(range.end).map_or(0, |slot| slot.addr);
                        bp = frame.bp;
                    } else if !inner.bp_use().is_passed() {
                        // It did not matter; outer to the changed slot it may.
                        bp_at = frame.bp;
                        // SAFETY: as for `held`: it was read when the frame
                        // was kept, and lies between words that still hold.
                        bp = match bp_at {
                            0 => 0,
                            at => unsafe { mapped::word(at) },
                        };
                    }
                    caller.state = State {
                        ip: node::pc(frame.node),
                        sp: frame.sp,
                        bp,
                        bp_at,
                        slots: Slots::of(slots.get(range).unwrap_or(&[])),
                    };
                    count = count.wrapping_add(1);
                    inner = frame;
                    kept = next;
                }
                kept = kept.saturating_sub(1);
                if !region.is_here(inner.sp) {
                    region.enter(inner.sp);
                }
            }
            let Some((inner, [caller, ..])) = steps.split_at_mut_checked(count.wrapping_add(1))
            else {
                break Reached::Full;
            };
            let Some(step) = inner.last_mut() else {
                break Reached::Full;
            };
            let (module, row) = resolve::look_up(host, rows, step.state.ip);
            step.node = node::frame(module, step.state.ip);
            step.own = u64::from(row.own() | (row.bp_use() as u8) << BP_USE);
            let inner = &*inner;
            let Some(Step { state, .. }) = inner.last() else {
                break Reached::Full;
            };
            count = count.wrapping_add(1);
            match outward(
                state,
                &mut caller.state,
                row,
                &mut region,
                |region| find_rbx(context.bx, inner, host, region),
                |ip, chained| resolve::is_code(ip, chained, host, rows),
            ) {
                Outward::Frame => {}
                Outward::End => break Reached::End,
                Outward::Cut => break Reached::Cut,
            }
        };
        (count, reached, region.met_foreign)
    }

    /// Appends the slots of step `index`.
    fn keep(&mut self, index: usize) {
        let Some(step) = self.steps.get(index) else {
            return;
        };
        for &slot in step.state.slots.as_slice() {
            if let Some(place) = self.slots.get_mut(self.slots_len) {
                *place = slot;
                self.slots_len = self.slots_len.wrapping_add(1);
            }
        }
    }

    /// Completes frame `at`, the last one, whose state was read as step `index`
    /// says: the slot of rbp is among those that must hold where anything is
    /// computed from it.
    fn keep_bp(&mut self, at: usize, index: usize) {
        let (Some(frame), Some(step)) = (self.frames.get_mut(at), self.steps.get(index)) else {
            return;
        };
        let state = &step.state;
        frame.slots &= !BP_SLOT;
        if frame.bp_use().is_idle() {
            frame.bp = state.bp_at;
            return;
        }
        frame.bp = state.bp;
        if state.bp_at != 0
            && let Some(place) = self.slots.get_mut(self.slots_len)
        {
            frame.slots |= BP_SLOT;
            *place = Slot {
                addr: state.bp_at,
                value: state.bp,
            };
            self.slots_len = self.slots_len.wrapping_add(1);
        }
    }

    /// Appends the frame of step `index`.
    fn push<H: Host>(&mut self, index: usize, host: &H) {
        if self.len >= CAP {
            self.shift();
        }
        let Some(step) = self.steps.get(index) else {
            return;
        };
        let own = step.own as u8;
        let outer = self.len.checked_sub(1).and_then(|at| self.frames.get(at));
        let bp_use = BpUse::of(own >> BP_USE).under(outer.is_some_and(|o| o.bp_use().is_idle()));
        let mut frame = Frame {
            node: step.node,
            sp: step.state.sp,
            bp: step.state.bp,
            id: 0,
            slots: self.slots_len as u16,
            own: own & OWN_MAX | (bp_use as u8) << BP_USE,
            state: LAZY,
        };
        if !self.shifted && self.len < self.limit {
            let outer = match self.len.checked_sub(1) {
                Some(outer) => match self.frames.get(outer) {
                    Some(outer) => (outer.id, outer.state),
                    None => (0, LOST),
                },
                None if self.cut => root_of_cut(host),
                None => (0, 0),
            };
            (frame.id, frame.state) = link(outer, &frame, host);
        }
        if let Some(place) = self.frames.get_mut(self.len) {
            *place = frame;
            self.keep(index);
            self.keep_bp(self.len, index);
            self.len = self.len.wrapping_add(1);
        }
    }

    /// Drops the outer half of the frames.
    #[cold]
    #[inline(never)]
    fn shift(&mut self) {
        let Some(base) = self.frames.get(HALF).map(Frame::first_slot) else {
            return;
        };
        for to in 0..HALF {
            let Some(&frame) = self.frames.get(to.wrapping_add(HALF)) else {
                return;
            };
            if let Some(place) = self.frames.get_mut(to) {
                *place = Frame {
                    slots: frame.slots.wrapping_sub(base as u16),
                    // What proves its depth is no longer all there.
                    state: if to < self.limit { LAZY } else { frame.state },
                    ..frame
                };
            }
        }
        for to in 0..self.slots_len.saturating_sub(base) {
            let Some(&slot) = self.slots.get(to.wrapping_add(base)) else {
                return;
            };
            if let Some(place) = self.slots.get_mut(to) {
                *place = slot;
            }
        }
        self.slots_len = self.slots_len.saturating_sub(base);
        self.len = HALF;
        self.shifted = true;
    }

    /// The capture that ends with frame `at`.
    fn identify<H: Host>(&mut self, at: usize, host: &H) -> Captured {
        if self
            .frames
            .get(at)
            .is_some_and(|frame| frame.state & LAZY != 0)
        {
            let window = DEEP_WINDOW.min(self.limit);
            let end = at.wrapping_add(1);
            let mut outer = root_of_cut(host);
            let shown = self.frames.get(end.saturating_sub(window)..end);
            for frame in shown.unwrap_or(&[]) {
                outer = link(outer, frame, host);
            }
            if let Some(frame) = self.frames.get_mut(at) {
                (frame.id, frame.state) = outer;
            }
        }
        self.captured(at)
    }
}

/// Step `at` and the one after it.
fn pair(steps: &mut [Step], at: usize) -> Option<&mut [Step; 2]> {
    steps.get_mut(at..)?.first_chunk_mut()
}

/// Id and state of the node that says that outer frames are missing.
fn root_of_cut<H: Host>(host: &H) -> (u32, u8) {
    match host.intern(0, node::CUT) {
        0 => (0, LOST),
        id => (id, 0),
    }
}

/// Id and state of `frame` under the id and state of the frame outer to it.
fn link<H: Host>((id, state): (u32, u8), frame: &Frame, host: &H) -> (u32, u8) {
    if state & LOST != 0 {
        return (id, state);
    }
    match frame.own() {
        OWN_SIGNAL | OWN_PLAIN if state & KIND == 0 || frame.own() == OWN_SIGNAL => {
            match host.intern(id, frame.node) {
                0 => (id, LOST),
                id => (id, 0),
            }
        }
        OWN_PLAIN | OWN_HIDDEN => (id, state),
        kind if state & KIND == 0 => (id, kind.wrapping_sub(OWN_ALLOCATOR)),
        _ => (id, state),
    }
}

/// Indices of the slots that frame `at` depends on: all that are outer to it,
/// or those of as many frames as show that the stack is deeper than the limit.
#[inline]
fn outer_slots(frames: &[Frame], at: usize, limit: usize) -> (usize, usize) {
    let first = |at: usize| frames.get(at).map_or(0, Frame::first_slot);
    (at.checked_sub(limit).map_or(0, first), first(at))
}

/// Index of the innermost slot of a range that does not hold its value.
#[inline]
pub(super) fn last_changed(slots: &[Slot], (first, end): (usize, usize)) -> Option<usize> {
    let mut rest = slots.get(first..end).unwrap_or(&[]);
    while let Some((outer, chunk)) = rest.split_last_chunk::<4>() {
        let mut difference = 0;
        for slot in chunk {
            difference |= held(slot) ^ slot.value;
        }
        if difference != 0 {
            break;
        }
        rest = outer;
    }
    while let Some((slot, outer)) = rest.split_last() {
        if held(slot) != slot.value {
            return Some(outer.len().wrapping_add(first));
        }
        rest = outer;
    }
    None
}

/// What a slot holds now.
#[inline(always)]
fn held(slot: &Slot) -> u64 {
    // SAFETY: the slot was aligned and readable when it was kept. It lies on
    // the thread's own stack, which stays mapped as long as the thread lives,
    // or on a foreign one: then its keeper drops it before
    // it looks if anything was unmapped since (`Host::memory_epoch`).
    unsafe { mapped::word(slot.addr) }
}

/// rbx in the frame of the last of `steps`: from the innermost frame outwards,
/// each function restores it by its own rules.
#[cold]
#[inline(never)]
fn find_rbx<H: Host>(
    mut rbx: u64,
    steps: &[Step],
    host: &H,
    region: &mut Region<'_, H>,
) -> Option<u64> {
    let (_, outer) = steps.split_first()?;
    for (step, caller) in steps.iter().zip(outer) {
        let rule = if step.own as u8 & OWN_MAX == OWN_SIGNAL {
            let at = step.state.sp.wrapping_add(x86_64::signal_frame::BX);
            cfi::Rule::AtCfa(at.wrapping_sub(caller.state.sp) as i64)
        } else {
            let pc = step.state.ip.wrapping_sub(1);
            x86_64::rbx_rule(&resolve::tables(&host.module_at(pc)?)?, pc)
        };
        match rule {
            cfi::Rule::Same => {}
            cfi::Rule::AtCfa(offset) => {
                let at = caller.state.sp.wrapping_add_signed(offset);
                let floor = step.state.sp.wrapping_sub(x86_64::RED_ZONE);
                if at < floor || !region.is_here(at) {
                    return None;
                }
                // SAFETY: on the present stack, not below the frame whose step
                // was walked: mapped (see `walk::fetch`).
                rbx = unsafe { mapped::word(at) };
            }
            _ => return None,
        }
    }
    Some(rbx)
}
