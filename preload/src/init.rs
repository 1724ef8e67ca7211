//! Start: find the supervisor, get a segment, begin to record.

use crate::cell::{self, Cell};
use crate::recorder::{self};
use crate::{ask, fork, modules, real, signals, sys, weak};
use core::ffi::{c_int, c_void};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering::Relaxed};
use leakscope_recorder_core::counters::Slot;
use leakscope_wire::hello::{ENV_SOCKET, HELLO_WORDS, REPLY_SEGMENT, WHY_START};
use leakscope_wire::layout::{self, note, state, word};
use leakscope_wire::{Layout, Segment};

/// Largest socket list that is understood, bytes.
const MAX_NAME: usize = 256;

unsafe extern "C" {
    static environ: *const *const u8;
    fn __cxa_atexit(f: unsafe extern "C" fn(), arg: *mut c_void, dso: *mut c_void) -> c_int;
}

/// Runs when the object is loaded, before main.
extern "C" fn constructor() {
    if recorder::fresh() {
        start();
    }
    if recorder::get().is_none() {
        return;
    }
    // The first handler registered runs last: after all handlers, static
    // destructors and destructors of libraries, which the C library
    // registers later. No DSO handle, so that it stays until the exit.
    // SAFETY: the C ABI of these functions; a missing one is skipped.
    unsafe {
        __cxa_atexit(ask::at_exit, core::ptr::null_mut(), core::ptr::null_mut());
        let quick = weak::at_quick_exit();
        if quick != 0 {
            type Quick = extern "C" fn(unsafe extern "C" fn(), *mut c_void) -> c_int;
            let quick = core::mem::transmute::<usize, Quick>(quick);
            quick(ask::at_quick_exit, core::ptr::null_mut());
        }
    }
    fork::register();
    signals::start();
    crate::lsan::take_suppressions();
}

#[used]
#[unsafe(link_section = ".init_array")]
static CONSTRUCTOR: extern "C" fn() = constructor;

/// The supervisor's sockets as the environment names them.
pub struct Address {
    bytes: [u8; MAX_NAME],
    len: usize,
}

impl Address {
    /// The value of the variable.
    pub fn text(&self) -> &[u8] {
        self.bytes.get(..self.len).unwrap_or(&[])
    }
}

static ADDRESS: [AtomicU64; MAX_NAME / 8] = [const { AtomicU64::new(0) }; MAX_NAME / 8];

/// The value of the variable, from the C library's environment or, before
/// that is set up, from the kernel.
fn address() -> Option<Address> {
    let mut found = Address {
        bytes: [0; MAX_NAME],
        len: 0,
    };
    let name = ENV_SOCKET.as_bytes();
    // SAFETY: environ is null or a null-terminated array of C strings.
    unsafe {
        let mut entry = environ;
        for _ in 0..65536 {
            if entry.is_null() || (*entry).is_null() {
                break;
            }
            let text = *entry;
            let matches = name.iter().enumerate().all(|(i, b)| *text.add(i) == *b)
                && *text.add(name.len()) == b'=';
            if matches {
                let value = text.add(name.len() + 1);
                while found.len < MAX_NAME - 1 && *value.add(found.len) != 0 {
                    if let Some(slot) = found.bytes.get_mut(found.len) {
                        *slot = *value.add(found.len);
                    }
                    found.len += 1;
                }
                return Some(found);
            }
            entry = entry.add(1);
        }
        if !environ.is_null() {
            return None;
        }
    }
    from_kernel(&mut found, name).then_some(found)
}

fn from_kernel(found: &mut Address, name: &[u8]) -> bool {
    let Some(fd) = sys::open(b"/proc/self/environ\0") else {
        return false;
    };
    let mut buffer = [0u8; 1024];
    let (mut at, mut column, mut matching, mut inside) = (0u64, 0usize, true, false);
    'read: loop {
        let n = sys::pread(fd, &mut buffer, at);
        if n == 0 {
            break;
        }
        at += n as u64;
        for byte in buffer.iter().take(n) {
            if *byte == 0 {
                if inside {
                    break 'read;
                }
                (column, matching) = (0, true);
                continue;
            }
            if inside {
                if found.len < MAX_NAME - 1
                    && let Some(slot) = found.bytes.get_mut(found.len)
                {
                    *slot = *byte;
                    found.len += 1;
                }
                continue;
            }
            match name.get(column) {
                Some(wanted) => matching &= wanted == byte,
                None => inside = matching && column == name.len() && *byte == b'=',
            }
            column += 1;
        }
    }
    sys::close(fd);
    inside && found.len > 0
}

fn remember(address: &Address) {
    for (slot, bytes) in ADDRESS.iter().zip(address.bytes.chunks_exact(8)) {
        if let Ok(bytes) = bytes.try_into() {
            slot.store(u64::from_le_bytes(bytes), Relaxed);
        }
    }
}

/// The address that `start` used; programs change their environment.
pub fn remembered() -> Address {
    let mut address = Address {
        bytes: [0; MAX_NAME],
        len: 0,
    };
    for (slot, bytes) in ADDRESS.iter().zip(address.bytes.chunks_exact_mut(8)) {
        bytes.copy_from_slice(&slot.load(Relaxed).to_le_bytes());
    }
    address.len = address.bytes.iter().position(|b| *b == 0).unwrap_or(0);
    address
}

/// Sets up recording; once. Afterwards the state is either "recording" or
/// "off".
pub fn start() {
    if !recorder::begin() {
        return;
    }
    match set_up() {
        Some((segment, cache)) => recorder::start(segment, cache),
        None => recorder::turn_off(),
    }
}

fn set_up() -> Option<(Segment<'static>, &'static [AtomicU64])> {
    real::start();
    let address = address()?;
    remember(&address);
    let own = modules::start();
    let (fd, len) = hello(&address, WHY_START, 0)?;
    let segment = attach(fd, len, 0);
    sys::close(fd);
    let segment = segment?;
    let cells = cell::reserve()?;
    let cache_bytes = recorder::ROW_ENTRIES * 16;
    let cache = sys::map_private(cache_bytes)?;
    claim(&segment);
    let base = segment.base() as u64;
    let ranges = [
        own,
        cells,
        (cache as u64, (cache + cache_bytes) as u64),
        (base, base + segment.layout().len()),
    ];
    for (i, (start, end)) in ranges.into_iter().enumerate() {
        segment.word(word::OWN + 2 * i).store(start, Relaxed);
        segment.word(word::OWN + 2 * i + 1).store(end, Relaxed);
    }
    if modules::note_allocator() {
        segment
            .word(word::NOTES)
            .fetch_or(note::FOREIGN_ALLOCATOR, Relaxed);
    }
    // The program's malloc may be defined before ours in the search order:
    // then its calls never come here.
    let first = real::first_malloc() as u64;
    if !(own.0..own.1).contains(&first) {
        segment
            .word(word::NOTES)
            .fetch_or(note::ALLOCATOR_BYPASS, Relaxed);
    }
    crate::hooks::follow_operators(real::operators_are_ours(own));
    // SAFETY: a fresh private mapping of that many zero bytes, kept forever.
    let cache = unsafe { core::slice::from_raw_parts(cache as *const AtomicU64, cache_bytes / 8) };
    Some((segment, cache))
}

/// Marks the segment as taken by this process.
pub fn claim(segment: &Segment<'_>) {
    segment
        .word(word::PID)
        .store(u64::from(sys::getpid()), Relaxed);
    segment.futex(word::STATE).store(state::RUNNING, Relaxed);
    sys::futex_wake(segment.futex(word::STATE));
}

/// Maps a segment that the supervisor sent, at `at` when that is not zero.
pub fn attach(fd: i32, len: u64, at: usize) -> Option<Segment<'static>> {
    let layout = Layout::new(len)?;
    let base = sys::map_shared(at, usize::try_from(len).ok()?, fd)?;
    sys::advise(base, len as usize, sys::MADV_DONTDUMP);
    // SAFETY: `len` bytes of a sealed file of that length, mapped just now
    // and never unmapped.
    let segment = unsafe { Segment::new(base as *const u8, layout) };
    let known = segment.word(word::MAGIC).load(Relaxed) == layout::MAGIC
        && segment.word(word::VERSION).load(Relaxed) == layout::VERSION
        && segment.word(word::LEN).load(Relaxed) == len;
    if !known {
        sys::unmap(base, len as usize);
        return None;
    }
    Some(segment)
}

/// Says hello; the descriptor and length of the segment that came back.
pub fn hello(address: &Address, why: u64, parent: u64) -> Option<(i32, u64)> {
    let text = address.bytes.get(..address.len)?;
    text.split(|b| *b == b';')
        .find_map(|one| hello_at(one, why, parent))
}

fn hello_at(name: &[u8], why: u64, parent: u64) -> Option<(i32, u64)> {
    const AF_UNIX: u16 = 1;
    const STREAM_CLOEXEC: usize = 1 | 0o2000000;
    let mut socket_address = [0u8; 110];
    let room = socket_address.get_mut(2..2 + name.len())?;
    room.copy_from_slice(name);
    // An abstract name is written with a leading zero byte and its exact
    // length (unix(7)).
    let abstract_name = name.first() == Some(&b'@');
    if abstract_name && let Some(first) = room.first_mut() {
        *first = 0;
    }
    let [low, high] = AF_UNIX.to_le_bytes();
    socket_address[0] = low;
    socket_address[1] = high;
    let address_len = 2 + name.len() + usize::from(!abstract_name);
    let fd = sys::call(
        sys::nr::SOCKET,
        [AF_UNIX as usize, STREAM_CLOEXEC, 0, 0, 0, 0],
    );
    if fd < 0 {
        return None;
    }
    let socket = fd as usize;
    let answer = (|| {
        let to = socket_address.as_ptr() as usize;
        if sys::call(sys::nr::CONNECT, [socket, to, address_len, 0, 0, 0]) != 0 {
            return None;
        }
        let words: [u64; HELLO_WORDS] = [
            layout::MAGIC,
            layout::VERSION,
            u64::from(sys::getpid()),
            u64::from(sys::getppid()),
            why,
            sys::address_space_limit(),
            parent,
            0,
        ];
        const NOSIGNAL: usize = 0x4000;
        let sent = sys::call(
            sys::nr::SENDTO,
            [
                socket,
                words.as_ptr() as usize,
                HELLO_WORDS * 8,
                NOSIGNAL,
                0,
                0,
            ],
        );
        if sent != (HELLO_WORDS * 8) as isize {
            return None;
        }
        receive(socket)
    })();
    sys::close(fd as i32);
    answer
}

/// Receives the reply byte and the descriptor with it (recvmsg(2), cmsg(3)).
fn receive(socket: usize) -> Option<(i32, u64)> {
    const CMSG_CLOEXEC: usize = 0x4000_0000;
    const SOL_SOCKET: u64 = 1;
    const SCM_RIGHTS: u64 = 1;
    const EINTR: isize = -4;
    let mut reply = [0u8; 1];
    let mut control = [0u64; 4];
    let mut part = [reply.as_mut_ptr() as usize, 1];
    let mut message = [
        0,
        0,
        part.as_mut_ptr() as usize,
        1,
        control.as_mut_ptr() as usize,
        32,
        0,
    ];
    let mut n = EINTR;
    for _ in 0..100 {
        n = sys::call(
            sys::nr::RECVMSG,
            [socket, message.as_mut_ptr() as usize, CMSG_CLOEXEC, 0, 0, 0],
        );
        if n != EINTR {
            break;
        }
    }
    if n != 1 || reply[0] != REPLY_SEGMENT || control[0] != 20 {
        return None;
    }
    if control[1] != SOL_SOCKET | SCM_RIGHTS << 32 {
        return None;
    }
    let fd = control[2] as u32 as i32;
    Some((fd, file_len(fd)))
}

fn file_len(fd: i32) -> u64 {
    const LSEEK: usize = 8;
    const SEEK_END: usize = 2;
    u64::try_from(sys::call(LSEEK, [fd as usize, 0, SEEK_END, 0, 0, 0])).unwrap_or(0)
}

/// Key whose destructor tells that a thread ends.
static KEY: AtomicU32 = AtomicU32::new(u32::MAX);

/// Rounds of key destructors that pthreads make
/// (PTHREAD_DESTRUCTOR_ITERATIONS); the cell stays to the last, because
/// other destructors free memory.
const ROUNDS: u8 = 4;

extern "C" fn thread_ends(value: *mut c_void) {
    let Some(cell) = cell::current() else { return };
    let Some(mut inside) = cell.enter(crate::x86_64::stack_pointer() as usize) else {
        return;
    };
    inside.fields().rounds += 1;
    if inside.fields().rounds < ROUNDS {
        set_key(value);
        return;
    }
    if let Some(recorder) = recorder::get()
        && let Some(slot) = Slot::at(recorder.segment, inside.fields().slot)
    {
        slot.retire();
    }
    core::mem::forget(inside);
    cell.release();
}

/// Arranges that the cell is given back when the calling thread ends.
pub fn watch_thread_end(cell: &'static Cell) {
    if KEY.load(Relaxed) == u32::MAX {
        // SAFETY: looks up and calls pthread_key_create by its C signature;
        // a program without it has no threads.
        unsafe {
            let create = weak::key_create();
            if create == 0 {
                return;
            }
            type Create = extern "C" fn(*mut u32, extern "C" fn(*mut c_void)) -> c_int;
            let create = core::mem::transmute::<usize, Create>(create);
            let mut key = 0;
            if create(&raw mut key, thread_ends) != 0 {
                return;
            }
            KEY.store(key, Relaxed);
        }
    }
    let cell: *const Cell = cell;
    set_key(cell as *mut c_void);
}

fn set_key(value: *mut c_void) {
    // SAFETY: as above; the key was created. glibc allocates for keys from
    // 32 on: that allocation meets a busy cell and is put off.
    unsafe {
        let set = weak::set_specific();
        if set != 0 {
            type Set = extern "C" fn(u32, *mut c_void) -> c_int;
            core::mem::transmute::<usize, Set>(set)(KEY.load(Relaxed), value);
        }
    }
}
