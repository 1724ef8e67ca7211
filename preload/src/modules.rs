//! Which module an address belongs to, found when it is first needed: a
//! program with a thousand libraries starts as fast as one with three.

use crate::recorder::{Recorder, give_way};
use crate::{real, sys, weak, x86_64};
use core::ffi::c_void;
use core::sync::atomic::{AtomicU64, Ordering::Relaxed};
use leakscope_recorder_core::rows::{self, NewModule};
use leakscope_recorder_core::unwind::{self, Boundary};
use leakscope_wire::entry::node;
use leakscope_wire::layout::module;

/// glibc's answer to `_dl_find_object` (dlfcn.h, since 2.35; it takes no
/// lock and may be called in any context).
#[repr(C)]
struct Found {
    flags: u64,
    start: u64,
    end: u64,
    link_map: *const LinkMap,
    eh_frame: u64,
    reserved: [u64; 7],
}

/// The public head of glibc's and musl's `struct link_map` (link.h).
#[repr(C)]
struct LinkMap {
    bias: u64,
    name: *const u8,
}

type FindObject = unsafe extern "C" fn(*const c_void, *mut Found) -> i32;

static OWN: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static ALLOCATOR: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static MEMORY_EPOCH: AtomicU64 = AtomicU64::new(0);
static ROWS_EPOCH: AtomicU64 = AtomicU64::new(1);
static OLD_LIBC_MISSES: AtomicU64 = AtomicU64::new(0);

unsafe extern "C" {
    #[link_name = "__ehdr_start"]
    static IMAGE_START: u8;
    #[link_name = "_end"]
    static IMAGE_END: u8;
}

/// Finds what the rest of this file needs; once, at start.
pub fn start() -> (u64, u64) {
    let own = (&raw const IMAGE_START as u64, &raw const IMAGE_END as u64);
    OWN[0].store(own.0, Relaxed);
    OWN[1].store(own.1, Relaxed);
    own
}

/// Notes which module allocates; its own mappings are its heap. The C
/// library is left out: programs' mappings come through it, its own do not
/// pass the hooks.
pub fn note_allocator() -> bool {
    let malloc = real::get(real::MALLOC) as u64;
    let open = real::get(real::OPEN) as u64;
    match (describe(malloc), describe(open)) {
        (Some(a), Some(c)) if a.start != c.start => {
            ALLOCATOR[0].store(a.start, Relaxed);
            ALLOCATOR[1].store(a.end, Relaxed);
            true
        }
        _ => false,
    }
}

/// True for code of an allocator that is not the C library's.
pub fn is_allocator(pc: u64) -> bool {
    (ALLOCATOR[0].load(Relaxed)..ALLOCATOR[1].load(Relaxed)).contains(&pc)
}

/// Counts unmappings of memory that may have been a stack.
#[inline(always)]
pub fn memory_epoch() -> u64 {
    MEMORY_EPOCH.load(Relaxed)
}

/// Changes with the set of loaded modules; starts at 1, so that an empty
/// stack cache (0) is always out of date.
#[inline(always)]
pub fn rows_epoch() -> u64 {
    ROWS_EPOCH.load(Relaxed)
}

/// Memory that may have been a stack is being unmapped.
pub fn stacks_changed() {
    MEMORY_EPOCH.fetch_add(1, Relaxed);
}

/// A module as its headers in memory describe it.
#[derive(Clone, Copy)]
struct Described {
    start: u64,
    end: u64,
    bias: u64,
    name: *const u8,
    eh_frame_hdr: u64,
    eh_frame_hdr_len: u64,
    /// The loaded segment around `.eh_frame_hdr`.
    unwind: (u64, u64),
    /// Address and length of the build id.
    build_id: (u64, u64),
}

fn find(pc: u64) -> Option<Found> {
    let f = weak::find_object();
    if f == 0 {
        return None;
    }
    // SAFETY: the function found under this name in glibc has this type.
    let f: FindObject = unsafe { core::mem::transmute::<usize, FindObject>(f) };
    let mut found = Found {
        flags: 0,
        start: 0,
        end: 0,
        link_map: core::ptr::null(),
        eh_frame: 0,
        reserved: [0; 7],
    };
    // SAFETY: it writes the structure and reads nothing.
    let ok = unsafe { f(pc as *const c_void, &raw mut found) } == 0;
    (ok && found.start <= pc && pc < found.end && !found.link_map.is_null()).then_some(found)
}

/// A word of a loaded object's headers.
///
/// Read directly, not through the kernel: the loader maps the first segment,
/// which holds them, and a program may have forbidden system calls.
fn word(at: u64, limits: (u64, u64)) -> Option<u64> {
    let inside = at >= limits.0 && at.checked_add(8)? <= limits.1;
    // SAFETY: inside the first mapping of a loaded object, by the callers.
    inside.then(|| unsafe { (at as *const u64).read_unaligned() })
}

fn describe(pc: u64) -> Option<Described> {
    match find(pc) {
        // SAFETY: the link map belongs to a loaded object: the caller runs
        // in it or has its address on the stack.
        Some(found) => unsafe {
            let map = &*found.link_map;
            parse(found.start, Some(map.bias), map.name)
        },
        None if weak::find_object() == 0 => {
            crate::oldlibc::module_start(pc).and_then(|start| parse(start, None, core::ptr::null()))
        }
        None => None,
    }
}

/// Reads the program headers of the object loaded at `start`.
fn parse(start: u64, bias: Option<u64>, name: *const u8) -> Option<Described> {
    const PT_LOAD: u64 = 1;
    const PT_NOTE: u64 = 4;
    const PT_GNU_EH_FRAME: u64 = 0x6474_e550;
    const ELF64: u64 = 0x0002_464c_457f;
    // Nothing is known yet but the page with the ELF header.
    let page = (start, start.checked_add(4096)?);
    if word(start, page)? & 0xff_ffff_ffff != ELF64 {
        return None;
    }
    let headers = start.checked_add(word(start + 32, page)?)?;
    let shape = word(start + 54, page)?;
    let (size, count) = (shape & 0xffff, (shape >> 16) & 0xffff);
    if size != 56 || count == 0 || count > 128 {
        return None;
    }
    let mut d = Described {
        start,
        end: start,
        bias: bias.unwrap_or(0),
        name,
        eh_frame_hdr: 0,
        eh_frame_hdr_len: 0,
        unwind: (0, 0),
        build_id: (0, 0),
    };
    let mut known_bias = bias.is_some();
    // The first segment, which holds headers and notes.
    let mut first = page;
    for round in 0..2 {
        for i in 0..count {
            let at = headers + i * size;
            let kind = word(at, page)? & 0xffff_ffff;
            let (vaddr, length) = (word(at + 16, page)?, word(at + 40, page)?);
            if kind == PT_LOAD && !known_bias {
                d.bias = start.wrapping_sub(vaddr & !4095);
                known_bias = true;
            }
            let from = d.bias.wrapping_add(vaddr);
            let to = from.wrapping_add(length);
            match kind {
                PT_LOAD if round == 0 => {
                    if from == start {
                        first = (from, to);
                    }
                    d.end = d.end.max(to);
                }
                PT_LOAD if d.eh_frame_hdr >= from && d.eh_frame_hdr < to => d.unwind = (from, to),
                PT_GNU_EH_FRAME if round == 0 => {
                    (d.eh_frame_hdr, d.eh_frame_hdr_len) = (from, length);
                }
                PT_NOTE if round == 1 && d.build_id.0 == 0 => {
                    d.build_id = build_id(from, length, first).unwrap_or((0, 0));
                }
                _ => {}
            }
        }
    }
    (d.end > start).then_some(d)
}

/// The GNU build id note among the notes at `at`.
fn build_id(at: u64, length: u64, limits: (u64, u64)) -> Option<(u64, u64)> {
    const NT_GNU_BUILD_ID: u64 = 3;
    const GNU: u64 = 0x0055_4e47;
    const MAX_BYTES: u64 = 64;
    let end = at.checked_add(length)?.min(limits.1);
    let mut here = at;
    for _ in 0..16 {
        let sizes = word(here, limits)?;
        let (name, desc) = (sizes & 0xffff_ffff, sizes >> 32);
        let rest = word(here.checked_add(8)?, limits)?;
        if rest & 0xffff_ffff == NT_GNU_BUILD_ID && name == 4 && rest >> 32 == GNU {
            let inside = desc <= MAX_BYTES && here + 16 + desc <= end;
            return inside.then_some((here + 16, desc));
        }
        here = here
            .checked_add(12)?
            .checked_add((name + 3) & !3)?
            .checked_add((desc + 3) & !3)?;
    }
    None
}

fn add(recorder: &Recorder, d: &Described) -> Option<u16> {
    // SAFETY: the build id lies in the loaded first segment, as `build_id`
    // checked; the name is the loader's C string, or null.
    let path = unsafe { c_string(d.name) };
    let build_id = if d.build_id.0 == 0 {
        &[]
    } else {
        // SAFETY: as above.
        unsafe { core::slice::from_raw_parts(d.build_id.0 as *const u8, d.build_id.1 as usize) }
    };
    rows::add_module(
        &recorder.segment,
        give_way,
        &NewModule {
            start: d.start,
            end: d.end,
            bias: d.bias,
            path,
            build_id,
            eh_frame_hdr: d.eh_frame_hdr,
            eh_frame_hdr_len: d.eh_frame_hdr_len,
        },
    )
}

/// # Safety
/// `text` is null or a C string.
unsafe fn c_string<'a>(text: *const u8) -> &'a [u8] {
    const PATH_MAX: usize = 4096;
    if text.is_null() {
        return &[];
    }
    // SAFETY: by the caller.
    unsafe {
        let len = (0..PATH_MAX).find(|i| *text.add(*i) == 0).unwrap_or(0);
        core::slice::from_raw_parts(text, len)
    }
}

/// Path of this object as it was loaded; empty when it does not fit.
pub fn own_path(into: &mut [u8]) -> &[u8] {
    let Some(found) = find(OWN[0].load(Relaxed) + 64) else {
        return &[];
    };
    // SAFETY: the link map of this very object.
    let path = unsafe { c_string((*found.link_map).name) };
    match into.get_mut(..path.len()) {
        Some(room) => {
            room.copy_from_slice(path);
            room
        }
        None => &[],
    }
}

/// dlclose returned: modules that are gone are marked, and rows that were
/// made for their addresses are dropped.
pub fn closed() {
    let Some(recorder) = crate::recorder::get() else {
        return;
    };
    let gone = |start: u64, bias: u64| match find(start) {
        // SAFETY: as in `describe`.
        Some(f) => f.start != start || unsafe { (*f.link_map).bias } != bias,
        None if weak::find_object() == 0 => crate::oldlibc::module_start(start) != Some(start),
        None => true,
    };
    if rows::unload_modules(&recorder.segment, give_way, gone) {
        ROWS_EPOCH.fetch_add(1, Relaxed);
    }
    stacks_changed();
}

/// True when `addr` cannot have come from any allocator: in a module, on the
/// calling thread's stack, or not mapped at all.
pub fn certainly_not_heap(addr: u64, sp: u64) -> bool {
    // The main thread's stack or a thread's: within 8 MiB above sp and
    // mapped all the way is certain enough for the current frame's locals.
    let on_stack = addr >= sp.saturating_sub(4096) && addr - sp.saturating_sub(4096) < 1 << 16;
    on_stack || find(addr).is_some() || addr & 7 != 0 || !sys::readable(addr)
}

/// The unwinder's view of this process.
pub struct Host(pub &'static Recorder);

// SAFETY: `module_at` answers with loaded segments of modules found by the
// dynamic linker, which are unmapped only by dlclose, after which `closed`
// clears the row cache; `readable` asks the kernel; every hooked unmapping
// and dlclose changes the memory epoch.
unsafe impl unwind::Host for Host {
    fn module_at(&self, pc: u64) -> Option<unwind::Module> {
        let d = describe(pc)?;
        let id = match rows::module_at(&self.0.segment, pc) {
            Some((id, row))
                if row
                    .get(module::BIAS)
                    .is_some_and(|b| b.load(Relaxed) == d.bias) =>
            {
                id
            }
            _ => add(self.0, &d).unwrap_or(node::NO_MODULE),
        };
        Some(unwind::Module {
            id,
            start: d.unwind.0,
            end: d.unwind.1,
            eh_frame_hdr: d.eh_frame_hdr,
            eh_frame_hdr_len: d.eh_frame_hdr_len,
        })
    }

    fn intern(&self, parent: u32, frame: u64) -> u32 {
        leakscope_recorder_core::trie::Trie::new(self.0.segment).intern(parent, frame)
    }

    fn readable(&self, page: u64) -> bool {
        sys::readable(page)
    }

    #[inline(always)]
    fn memory_epoch(&self) -> u64 {
        memory_epoch()
    }

    fn boundary(&self, pc: u64) -> Boundary {
        if !(OWN[0].load(Relaxed)..OWN[1].load(Relaxed)).contains(&pc) {
            return Boundary::None;
        }
        match crate::hooks::new_stub_at(pc) {
            Some(family) if !crate::hooks::looks_through_operators() => Boundary::Allocator(family),
            _ => Boundary::Hidden,
        }
    }

    fn max_depth(&self) -> u32 {
        self.0.max_depth
    }
}

/// Limits the searches that a C library without `_dl_find_object` needs.
pub fn old_libc_may_search() -> bool {
    let n = OLD_LIBC_MISSES.fetch_add(1, Relaxed);
    n < 512 || n.is_power_of_two()
}

/// The thread's known stack: its top is the thread control block for threads
/// of glibc (allocatestack.c puts it there), `__libc_stack_end` for the main
/// thread.
pub fn stack_top(sp: u64) -> u64 {
    const REACH: u64 = 64 << 20;
    let tcb = x86_64::thread_control_block();
    if sp < tcb && tcb - sp < REACH {
        return tcb;
    }
    let end = match weak::stack_end() {
        0 => 0,
        // SAFETY: the loader's variable of this name is a pointer.
        at => unsafe { (at as *const u64).read() },
    };
    if sp < end && end - sp < REACH { end } else { 0 }
}
