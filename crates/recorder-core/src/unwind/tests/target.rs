//! The test process as target: fixture library, modules, tree, oracle.

use super::super::{
    Boundary, Captured, Context, Host, Module, RowCache, StackBounds, ThreadStacks,
};
use leakscope_wire::entry::node;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::ffi::{CString, c_int, c_void};
use std::prelude::v1::*;
use std::process::Command;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;

/// The fixture library, compiled and loaded once.
pub(super) fn fixture(symbol: &str) -> *mut c_void {
    static LIBRARY: OnceLock<usize> = OnceLock::new();
    let library = *LIBRARY.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join("fixture.c");
        let object = folder.path().join("fixture.so");
        std::fs::write(&source, include_str!("fixture.c")).unwrap();
        let status = Command::new("cc")
            .args(["-O2", "-fomit-frame-pointer", "-fno-optimize-sibling-calls"])
            .args([
                "-fasynchronous-unwind-tables",
                "-shared",
                "-fPIC",
                "-w",
                "-Wl,-z,lazy",
                "-o",
            ])
            .args([&object, &source])
            .status()
            .unwrap();
        assert!(status.success());
        let path = CString::new(object.to_str().unwrap()).unwrap();
        // SAFETY: a library without constructors.
        let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_LAZY) };
        assert!(!handle.is_null());
        handle as usize
    });
    let name = CString::new(symbol).unwrap();
    // SAFETY: a handle of dlopen, never closed.
    let found = unsafe { libc::dlsym(library as *mut c_void, name.as_ptr()) };
    assert!(!found.is_null(), "{symbol}");
    found
}

/// A fixture function of (int, int, event) or fewer integers before the event.
macro_rules! call {
    ($name:literal, $($arg:expr),*) => {{
        let function = $crate::unwind::tests::target::fixture($name);
        // SAFETY: the fixture's functions take integers, then the event.
        unsafe { $crate::unwind::tests::target::apply(function, &[$($arg as usize),*]) }
    }};
}
pub(super) use call;

/// Calls a C function of up to three integer arguments.
pub(super) unsafe fn apply(function: *mut c_void, args: &[usize]) -> c_int {
    let arg = |i: usize| args.get(i).copied().unwrap_or(0);
    // SAFETY: by the caller; surplus arguments are ignored in this ABI.
    unsafe {
        let function: unsafe extern "C" fn(usize, usize, usize) -> c_int =
            std::mem::transmute(function);
        function(arg(0), arg(1), arg(2))
    }
}

/// Address of the function that the fixture calls for a capture.
pub(super) fn event() -> usize {
    stub as *const () as usize
}

/// The same for a capture that is not recorded.
pub(super) fn quick_event() -> usize {
    quick_stub as *const () as usize
}

/// A function that hands its caller's registers to another.
macro_rules! stub {
    ($name:ident, $to:ident) => {
        #[unsafe(naked)]
        unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                ".cfi_startproc",
                "mov rdi, [rsp]",
                "lea rsi, [rsp + 8]",
                "mov rdx, rbp",
                "mov rcx, rbx",
                "push rax",
                ".cfi_adjust_cfa_offset 8",
                "call {to}",
                "pop rcx",
                ".cfi_adjust_cfa_offset -8",
                "ret",
                ".cfi_endproc",
                to = sym $to,
            )
        }
    };
}
stub!(stub, on_event);
stub!(quick_stub, on_quick_event);

extern "C" fn on_quick_event(ip: u64, sp: u64, bp: u64, bx: u64) {
    // SAFETY: as in `on_event`.
    let target = unsafe { &*TARGET.get() };
    target.counted.set(target.counted.get() + 1);
    std::hint::black_box(target.capture(&Context { ip, sp, bp, bx }));
}

extern "C" fn on_event(ip: u64, sp: u64, bp: u64, bx: u64) {
    let target = TARGET.get();
    assert!(!target.is_null());
    // SAFETY: set by `with` for the time of the call, on this thread.
    unsafe { &*target }.event(&Context { ip, sp, bp, bx });
}

std::thread_local! {
    static TARGET: Cell<*const Target> = const { Cell::new(std::ptr::null()) };
}

/// Runs `body` with the thread's events going to `target`.
pub(super) fn with(target: &Target, body: impl FnOnce()) {
    TARGET.set(target);
    body();
    TARGET.set(std::ptr::null());
}

/// What is done at each event.
pub(super) struct Target {
    pub(super) process: Process,
    pub(super) bounds: StackBounds,
    rows: Vec<AtomicU64>,
    kept: RefCell<Box<ThreadStacks>>,
    fresh: RefCell<Box<ThreadStacks>>,
    fresh_rows: Vec<AtomicU64>,
    pub(super) seen: Cell<Seen>,
    pub(super) counted: Cell<u64>,
    checked: Cell<bool>,
    last: Cell<Option<(Context, Captured)>>,
}

/// Counts of what was compared.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Seen {
    pub(super) events: u32,
    pub(super) whole: u32,
    pub(super) cut: u32,
    pub(super) deep: u32,
    pub(super) deepest: u32,
}

impl Target {
    pub(super) fn new(max_depth: u32) -> Target {
        Target {
            process: Process {
                max_depth,
                ..Process::default()
            },
            bounds: own_stack(),
            rows: rows(),
            kept: RefCell::new(ready()),
            fresh: RefCell::new(ready()),
            fresh_rows: rows(),
            seen: Cell::default(),
            counted: Cell::new(0),
            checked: Cell::new(true),
            last: Cell::default(),
        }
    }

    /// One capture, without checks.
    pub(super) fn capture(&self, context: &Context) -> Captured {
        let rows = RowCache::new(&self.rows, 0);
        let mut kept = self.kept.borrow_mut();
        kept.capture(context, self.bounds, &self.process, &rows)
    }

    /// Runs `body` without comparing each capture.
    pub(super) fn unchecked(&self, body: impl FnOnce()) {
        self.checked.set(false);
        body();
        self.checked.set(true);
    }

    /// Frames and slots that are kept.
    pub(super) fn kept_size(&self) -> (usize, usize) {
        self.kept.borrow().size()
    }

    /// The last capture.
    pub(super) fn last(&self) -> Captured {
        self.last.get().unwrap().1
    }

    /// Where that was.
    pub(super) fn last_context(&self) -> Context {
        self.last.get().unwrap().0
    }

    fn event(&self, context: &Context) {
        let kept = self.capture(context);
        self.last.set(Some((*context, kept)));
        if !self.checked.get() {
            return;
        }
        let rows = RowCache::new(&self.fresh_rows, 0);
        let mut fresh = self.fresh.borrow_mut();
        fresh.forget(true);
        let fresh = fresh.capture(context, self.bounds, &self.process, &rows);
        assert_eq!(kept, fresh, "kept and fresh walks differ");
        let path = self.process.path(kept.stack);
        let oracle = oracle(context, self.process.max_depth as usize);
        let mut seen = self.seen.get();
        seen.events += 1;
        seen.deepest = seen.deepest.max(path.len() as u32);
        assert!(!path.is_empty());
        if kept.deep {
            seen.deep += 1;
            assert!(oracle.starts_with(&path), "{path:x?}\n{oracle:x?}");
            assert!(oracle.len() > self.process.max_depth as usize);
        } else if kept.cut {
            seen.cut += 1;

            assert!(oracle.starts_with(&path), "{path:x?}\n{oracle:x?}");
        } else {
            seen.whole += 1;
            assert_eq!(path, oracle);
        }
        self.seen.set(seen);
    }
}

fn rows() -> Vec<AtomicU64> {
    (0..2 * 8192).map(|_| AtomicU64::new(0)).collect()
}

/// Stacks as a thread of the recorder begins with them.
fn ready() -> Box<ThreadStacks> {
    let mut stacks = zeroed();
    stacks.forget(true);
    stacks
}

/// Stacks as the recorder gets them.
fn zeroed() -> Box<ThreadStacks> {
    // SAFETY: documented as valid when all bytes are zero.
    unsafe { Box::new_zeroed().assume_init() }
}

/// A cheap hash, so that measurements are not those of the tree.
#[derive(Clone, Copy, Default)]
pub(super) struct Mixing(u64);

impl std::hash::BuildHasher for Mixing {
    type Hasher = Mixing;
    fn build_hasher(&self) -> Mixing {
        Mixing(0)
    }
}

impl std::hash::Hasher for Mixing {
    fn finish(&self) -> u64 {
        self.0
    }
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|&byte| self.write_u64(byte.into()));
    }
    fn write_u32(&mut self, word: u32) {
        self.write_u64(word.into());
    }
    fn write_u64(&mut self, word: u64) {
        let mixed = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        self.0 = mixed ^ mixed >> 29;
    }
}

/// Modules by the loader's list, the tree as a map.
#[derive(Default)]
pub(super) struct Process {
    pub(super) max_depth: u32,
    children: RefCell<HashMap<(u32, u64), u32, Mixing>>,
    nodes: RefCell<Vec<(u32, u64)>>,
    pub(super) boundaries: RefCell<HashMap<u64, Boundary>>,
    pub(super) room: Cell<Option<u32>>,
    pub(super) memory: Cell<u64>,
    /// Nodes asked for.
    pub(super) interned: Cell<u64>,
}

impl Process {
    /// Return addresses of a stack, innermost first, without the cut node.
    pub(super) fn path(&self, mut stack: u32) -> Vec<u64> {
        let nodes = self.nodes.borrow();
        let mut path = Vec::new();
        while stack != 0 {
            let (parent, frame) = nodes[stack as usize - 1];
            if frame != node::CUT {
                path.push(node::pc(frame));
            }
            stack = parent;
        }
        path
    }

    pub(super) fn nodes(&self) -> usize {
        self.nodes.borrow().len()
    }
}

// SAFETY: modules are never unloaded in the tests, and the loader's ranges are
// what it mapped; pages are probed by a system call.
unsafe impl Host for Process {
    fn module_at(&self, pc: u64) -> Option<Module> {
        struct Search {
            pc: u64,
            index: u16,
            found: Option<Module>,
        }
        unsafe extern "C" fn visit(
            info: *mut libc::dl_phdr_info,
            _: usize,
            data: *mut c_void,
        ) -> c_int {
            // SAFETY: dl_iterate_phdr hands out valid records, and `data` is
            // the `Search` below.
            let (search, info) = unsafe { (&mut *data.cast::<Search>(), &*info) };
            // SAFETY: as above.
            let headers =
                unsafe { std::slice::from_raw_parts(info.dlpi_phdr, info.dlpi_phnum.into()) };
            let covers = |h: &libc::Elf64_Phdr, at: u64| {
                h.p_type == libc::PT_LOAD
                    && at >= info.dlpi_addr + h.p_vaddr
                    && at < info.dlpi_addr + h.p_vaddr + h.p_memsz
            };
            search.index += 1;
            if !headers.iter().any(|h| covers(h, search.pc)) {
                return 0;
            }
            let mut module = Module {
                id: search.index,
                start: 0,
                end: 0,
                eh_frame_hdr: 0,
                eh_frame_hdr_len: 0,
            };
            if let Some(hdr) = headers.iter().find(|h| h.p_type == libc::PT_GNU_EH_FRAME) {
                let at = info.dlpi_addr + hdr.p_vaddr;
                if let Some(load) = headers.iter().find(|h| covers(h, at)) {
                    module.eh_frame_hdr = at;
                    module.eh_frame_hdr_len = hdr.p_memsz;
                    module.start = info.dlpi_addr + load.p_vaddr;
                    module.end = module.start + load.p_memsz;
                }
            }
            search.found = Some(module);
            1
        }
        let mut search = Search {
            pc,
            index: 0,
            found: None,
        };
        // SAFETY: `visit` gets the `Search` it expects.
        unsafe { libc::dl_iterate_phdr(Some(visit), (&raw mut search).cast()) };
        search.found
    }

    fn intern(&self, parent: u32, frame: u64) -> u32 {
        self.interned.set(self.interned.get() + 1);
        let mut nodes = self.nodes.borrow_mut();
        let mut children = self.children.borrow_mut();
        if let Some(&id) = children.get(&(parent, frame)) {
            return id;
        }
        if self.room.get() == Some(nodes.len() as u32) {
            return 0;
        }
        nodes.push((parent, frame));
        let id = nodes.len() as u32;
        children.insert((parent, frame), id);
        id
    }

    fn readable(&self, page: u64) -> bool {
        let mut resident = 0u8;
        // SAFETY: mincore only looks the page up (ENOMEM if it is not mapped).
        unsafe { libc::mincore(page as *mut c_void, 4096, &mut resident) == 0 }
    }

    fn memory_epoch(&self) -> u64 {
        self.memory.get()
    }

    fn boundary(&self, pc: u64) -> Boundary {
        let boundaries = self.boundaries.borrow();
        boundaries.get(&pc).copied().unwrap_or(Boundary::None)
    }

    fn max_depth(&self) -> u32 {
        self.max_depth
    }
}

/// Bounds of the calling thread's stack.
pub(super) fn own_stack() -> StackBounds {
    // SAFETY: plain queries about the calling thread.
    unsafe {
        let mut attributes = std::mem::zeroed();
        assert_eq!(
            libc::pthread_getattr_np(libc::pthread_self(), &mut attributes),
            0
        );
        let (mut lo, mut size) = (std::ptr::null_mut(), 0);
        libc::pthread_attr_getstack(&attributes, &mut lo, &mut size);
        libc::pthread_attr_destroy(&mut attributes);
        StackBounds {
            lo: lo as u64,
            hi: lo as u64 + size as u64,
        }
    }
}

unsafe extern "C" {
    fn _Unwind_Backtrace(
        visit: unsafe extern "C" fn(*mut c_void, *mut c_void) -> c_int,
        data: *mut c_void,
    ) -> c_int;
    fn _Unwind_GetIPInfo(context: *mut c_void, exact: *mut c_int) -> usize;
    fn _Unwind_GetCFA(context: *mut c_void) -> usize;
}

struct Trace {
    context: Context,
    limit: usize,
    begun: bool,
    found: Vec<u64>,
}

/// The stack by libgcc, innermost first, exact addresses one higher; up to one
/// frame more than `limit`.
fn oracle(context: &Context, limit: usize) -> Vec<u64> {
    unsafe extern "C" fn visit(frame: *mut c_void, data: *mut c_void) -> c_int {
        // SAFETY: called by `_Unwind_Backtrace` with the `Trace` below.
        let trace = unsafe { &mut *data.cast::<Trace>() };
        let mut exact = 0;
        // SAFETY: `frame` is libgcc's.
        let (ip, cfa) = unsafe { (_Unwind_GetIPInfo(frame, &mut exact), _Unwind_GetCFA(frame)) };
        trace.begun |= (ip as u64, cfa as u64) == (trace.context.ip, trace.context.sp);
        if trace.begun && ip != 0 {
            trace.found.push(ip as u64 + u64::from(exact != 0));
        }
        if trace.found.len() > trace.limit {
            5
        } else {
            0
        }
    }
    let mut trace = Trace {
        context: *context,
        limit,
        begun: false,
        found: Vec::new(),
    };
    // SAFETY: `visit` gets the `Trace` it expects.
    unsafe { _Unwind_Backtrace(visit, (&raw mut trace).cast()) };
    trace.found
}
