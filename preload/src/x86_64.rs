//! What only assembly can do on x86-64: the thread's word, and the entry
//! points of all hooks.
//!
//! Every exported function is a stub that notes where it was called from
//! (stack pointer and rbp at entry; the return address lies on top of the
//! stack) and enters Rust. The stubs that *call* the original have exact
//! unwind information, because C++ exceptions and thread cancellation pass
//! through them.

use core::arch::{asm, global_asm};

// One pointer of thread state in the static TLS block. Stable Rust cannot
// choose the initial-exec model; dynamic TLS may itself call malloc.
global_asm!(
    ".pushsection .tbss,\"awT\",@nobits",
    ".balign 8",
    ".type leakscope_thread_word, @object",
    ".size leakscope_thread_word, 8",
    "leakscope_thread_word:",
    ".zero 8",
    ".popsection",
);

/// The calling thread's word.
#[inline(always)]
pub fn thread_word() -> usize {
    let word: usize;
    // SAFETY: reads the word defined above, of the running thread.
    unsafe {
        asm!(
            "mov {0}, qword ptr [rip + leakscope_thread_word@GOTTPOFF]",
            "mov {0}, qword ptr fs:[{0}]",
            out(reg) word,
            options(nostack, preserves_flags, readonly),
        );
    }
    word
}

/// Sets the calling thread's word.
pub fn set_thread_word(value: usize) {
    // SAFETY: writes the word defined above, of the running thread.
    unsafe {
        asm!(
            "mov {0}, qword ptr [rip + leakscope_thread_word@GOTTPOFF]",
            "mov qword ptr fs:[{0}], {1}",
            out(reg) _,
            in(reg) value,
            options(nostack, preserves_flags),
        );
    }
}

/// The stack pointer of the calling function, about.
#[inline(always)]
pub fn stack_pointer() -> u64 {
    let sp: u64;
    // SAFETY: reads a register.
    unsafe {
        asm!("mov {0}, rsp", out(reg) sp, options(nostack, nomem, preserves_flags));
    }
    sp
}

/// Has the processor fetch the cache line of an address, mapped or not.
#[inline(always)]
pub fn prefetch(at: usize) {
    // SAFETY: a hint, which faults on no address.
    unsafe {
        asm!("prefetcht0 byte ptr [{0}]", in(reg) at, options(nostack, preserves_flags, readonly));
    }
}

/// The thread control block's address (fs:0 holds it on x86-64 glibc).
#[inline(always)]
pub fn thread_control_block() -> u64 {
    let tcb: u64;
    // SAFETY: fs:0 is the TCB's self pointer in the x86-64 TLS ABI.
    unsafe {
        asm!("mov {0}, qword ptr fs:[0]", out(reg) tcb, options(nostack, preserves_flags, readonly));
    }
    tcb
}

/// Registers as the generic stubs save them.
#[repr(C)]
pub struct Saved {
    /// rdi rsi rdx rcx r8 r9: the arguments.
    pub args: [u64; 6],
    /// rbx rbp r12 r13 r14 r15, as the caller has them.
    pub kept: [u64; 6],
}

/// Arguments in rdi, rsi, rdx; the place of the call in rcx, r8 and r9;
/// the body is entered by a jump, so there is no frame.
macro_rules! plain {
    ($($name:ident => $body:path;)*) => { $(
        /// Hook; see the function it forwards to.
        ///
        /// # Safety
        /// As the function of the same name.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                ".cfi_startproc",
                "mov rcx, rbx",
                "mov r8, rsp",
                "mov r9, rbp",
                "jmp {body}",
                ".cfi_endproc",
                body = sym $body,
            )
        }
    )* };
}

/// operator new: calls the original, then tells the recorder. An allocator with
/// an operator of its own may return an address that it had lately, so what the
/// thread allocated last is forgotten first. The stub's return address marks the boundary between the program and the allocator.
macro_rules! new {
    ($($name:ident, $family:literal, $real:path;)*) => {
        $(
            /// Hook of an operator new.
            ///
            /// # Safety
            /// As the operator.
            #[unsafe(no_mangle)]
            #[unsafe(naked)]
            #[allow(non_snake_case)]
            pub unsafe extern "C" fn $name() {
                core::arch::naked_asm!(
                    ".cfi_startproc",
                    "sub rsp, 40",
                    ".cfi_adjust_cfa_offset 40",
                    "mov [rsp], rdi",
                    "mov [rsp + 8], rsi",
                    "mov [rsp + 16], rdx",
                    "mov rax, [rip + {real}]",
                    "test rax, rax",
                    "jnz 2f",
                    "lea rdi, [rip + {real}]",
                    "call {find}",
                    "mov rdi, [rsp]",
                    "mov rsi, [rsp + 8]",
                    "mov rdx, [rsp + 16]",
                    "2:",
                    // Whether a malloc of ours runs inside is seen by this.
                    "mov r11, qword ptr [rip + leakscope_thread_word@GOTTPOFF]",
                    "mov r11, qword ptr fs:[r11]",
                    "cmp r11, {ended}",
                    "jbe 3f",
                    "mov qword ptr [r11 + {last_alloc}], 0",
                    "3:",
                    "call rax",
                    "mov [rsp + 24], rax",
                    "mov rdi, rax",
                    "mov rsi, [rsp]",
                    "mov edx, {family}",
                    "mov rcx, rbx",
                    "lea r8, [rsp + 40]",
                    "mov r9, rbp",
                    "call {done}",
                    "mov rax, [rsp + 24]",
                    "add rsp, 40",
                    ".cfi_adjust_cfa_offset -40",
                    "ret",
                    ".cfi_endproc",
                    real = sym $real,
                    find = sym crate::real::find_operator,
                    family = const $family,
                    ended = const crate::cell::ENDED,
                    last_alloc = const crate::cell::LAST_ALLOC,
                    done = sym crate::hooks::new_done,
                )
            }
        )*
        /// The family whose operator new contains the return address `pc`.
        pub fn new_stub_at(pc: u64) -> Option<u8> {
            const STUB_BYTES: u64 = 128;
            $(
                let start = $name as *const () as u64;
                if pc > start && pc - start < STUB_BYTES {
                    return Some($family);
                }
            )*
            None
        }
    };
}

/// operator delete: tells the recorder, then calls the original, in which free
/// may follow; after it no free of the address is part of this.
macro_rules! delete {
    ($($name:ident, $family:literal, $real:path;)*) => { $(
        /// Hook of an operator delete.
        ///
        /// # Safety
        /// As the operator.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        #[allow(non_snake_case)]
        pub unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                ".cfi_startproc",
                "sub rsp, 40",
                ".cfi_adjust_cfa_offset 40",
                "mov [rsp], rdi",
                "mov [rsp + 8], rsi",
                "mov [rsp + 16], rdx",
                "mov esi, {family}",
                "mov rcx, rbx",
                "lea r8, [rsp + 40]",
                "mov r9, rbp",
                "call {begin}",
                "mov rax, [rip + {real}]",
                "test rax, rax",
                "jnz 2f",
                "lea rdi, [rip + {real}]",
                "call {find}",
                "2:",
                "mov rdi, [rsp]",
                "mov rsi, [rsp + 8]",
                "mov rdx, [rsp + 16]",
                "call rax",
                "mov r11, qword ptr [rip + leakscope_thread_word@GOTTPOFF]",
                "mov r11, qword ptr fs:[r11]",
                "cmp r11, {ended}",
                "jbe 3f",
                "mov qword ptr [r11 + {just_freed}], 0",
                "3:",
                "add rsp, 40",
                ".cfi_adjust_cfa_offset -40",
                "ret",
                ".cfi_endproc",
                real = sym $real,
                find = sym crate::real::find_operator,
                family = const $family,
                ended = const crate::cell::ENDED,
                just_freed = const crate::cell::JUST_FREED,
                begin = sym crate::hooks::delete_begin,
            )
        }
    )* };
}

/// Saves all argument and callee-saved registers, calls `before(index, saved,
/// _, bx, sp, bp)`, which returns the original, and jumps to it.
macro_rules! before {
    ($($name:ident => $index:expr;)*) => { $(
        /// Hook; see the function it forwards to.
        ///
        /// # Safety
        /// As the function of the same name.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                ".cfi_startproc",
                "sub rsp, 104",
                ".cfi_adjust_cfa_offset 104",
                "mov [rsp], rdi",
                "mov [rsp + 8], rsi",
                "mov [rsp + 16], rdx",
                "mov [rsp + 24], rcx",
                "mov [rsp + 32], r8",
                "mov [rsp + 40], r9",
                "mov [rsp + 48], rbx",
                "mov [rsp + 56], rbp",
                "mov [rsp + 64], r12",
                "mov [rsp + 72], r13",
                "mov [rsp + 80], r14",
                "mov [rsp + 88], r15",
                "mov edi, {index}",
                "mov rsi, rsp",
                "mov rcx, rbx",
                "lea r8, [rsp + 104]",
                "mov r9, rbp",
                "call {body}",
                "mov r11, rax",
                "mov rdi, [rsp]",
                "mov rsi, [rsp + 8]",
                "mov rdx, [rsp + 16]",
                "mov rcx, [rsp + 24]",
                "mov r8, [rsp + 32]",
                "mov r9, [rsp + 40]",
                "add rsp, 104",
                ".cfi_adjust_cfa_offset -104",
                "xor eax, eax",
                "jmp r11",
                ".cfi_endproc",
                index = const $index,
                body = sym crate::hooks::before,
            )
        }
    )* };
}

/// Calls the original with all arguments, then `after(index, saved, result,
/// bx, sp, bp)`, which returns the result.
macro_rules! after {
    ($($name:ident => $index:expr;)*) => { $(
        /// Hook; see the function it forwards to.
        ///
        /// # Safety
        /// As the function of the same name.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                ".cfi_startproc",
                "sub rsp, 104",
                ".cfi_adjust_cfa_offset 104",
                "mov [rsp], rdi",
                "mov [rsp + 8], rsi",
                "mov [rsp + 16], rdx",
                "mov [rsp + 24], rcx",
                "mov [rsp + 32], r8",
                "mov [rsp + 40], r9",
                "mov edi, {index}",
                "call {original}",
                "mov r11, rax",
                "mov rdi, [rsp]",
                "mov rsi, [rsp + 8]",
                "mov rdx, [rsp + 16]",
                "mov rcx, [rsp + 24]",
                "mov r8, [rsp + 32]",
                "mov r9, [rsp + 40]",
                "xor eax, eax",
                "call r11",
                "mov edi, {index}",
                "mov rsi, rsp",
                "mov rdx, rax",
                "mov rcx, rbx",
                "lea r8, [rsp + 104]",
                "mov r9, rbp",
                "call {body}",
                "add rsp, 104",
                ".cfi_adjust_cfa_offset -104",
                "ret",
                ".cfi_endproc",
                index = const $index,
                original = sym crate::real::by_index,
                body = sym crate::hooks::after,
            )
        }
    )* };
}

/// As `before`, but calls the original and then `after`: for functions that
/// return only when they fail.
macro_rules! around {
    ($($name:ident => $index:expr;)*) => { $(
        /// Hook; see the function it forwards to.
        ///
        /// # Safety
        /// As the function of the same name.
        #[unsafe(no_mangle)]
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                ".cfi_startproc",
                "sub rsp, 104",
                ".cfi_adjust_cfa_offset 104",
                "mov [rsp], rdi",
                "mov [rsp + 8], rsi",
                "mov [rsp + 16], rdx",
                "mov [rsp + 24], rcx",
                "mov [rsp + 32], r8",
                "mov [rsp + 40], r9",
                "mov [rsp + 48], rbx",
                "mov [rsp + 56], rbp",
                "mov [rsp + 64], r12",
                "mov [rsp + 72], r13",
                "mov [rsp + 80], r14",
                "mov [rsp + 88], r15",
                "mov edi, {index}",
                "mov rsi, rsp",
                "mov rcx, rbx",
                "lea r8, [rsp + 104]",
                "mov r9, rbp",
                "call {before}",
                "mov r11, rax",
                "mov rdi, [rsp]",
                "mov rsi, [rsp + 8]",
                "mov rdx, [rsp + 16]",
                "mov rcx, [rsp + 24]",
                "mov r8, [rsp + 32]",
                "mov r9, [rsp + 40]",
                "call r11",
                "mov edi, {index}",
                "mov rsi, rsp",
                "mov rdx, rax",
                "mov rcx, rbx",
                "lea r8, [rsp + 104]",
                "mov r9, rbp",
                "call {after}",
                "add rsp, 104",
                ".cfi_adjust_cfa_offset -104",
                "ret",
                ".cfi_endproc",
                index = const $index,
                before = sym crate::hooks::before,
                after = sym crate::hooks::after,
            )
        }
    )* };
}

/// Saves the registers and calls `body(saved, _, _, bx, sp, bp)`, whose result
/// is returned.
macro_rules! whole {
    ($($(#[$meta:meta])* $name:ident => $body:path;)*) => { $(
        /// Entry point of the recorder's own.
        ///
        /// # Safety
        /// Called by the C ABI.
        $(#[$meta])*
        #[unsafe(naked)]
        pub unsafe extern "C" fn $name() {
            core::arch::naked_asm!(
                ".cfi_startproc",
                "sub rsp, 104",
                ".cfi_adjust_cfa_offset 104",
                "mov [rsp], rdi",
                "mov [rsp + 8], rsi",
                "mov [rsp + 16], rdx",
                "mov [rsp + 24], rcx",
                "mov [rsp + 48], rbx",
                "mov [rsp + 56], rbp",
                "mov [rsp + 64], r12",
                "mov [rsp + 72], r13",
                "mov [rsp + 80], r14",
                "mov [rsp + 88], r15",
                "mov rdi, rsp",
                "mov rcx, rbx",
                "lea r8, [rsp + 104]",
                "mov r9, rbp",
                "call {body}",
                "add rsp, 104",
                ".cfi_adjust_cfa_offset -104",
                "ret",
                ".cfi_endproc",
                body = sym $body,
            )
        }
    )* };
}

pub(crate) use {after, around, before, delete, new, plain, whole};
