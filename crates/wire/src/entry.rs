//! Packed entries: live blocks and stack nodes.
//!
//! ```text
//! live block, 16 bytes
//!   word 0   address >> 3 (45 bits) << 19 | birth (19 bits)
//!   word 1   stack (28 bits) << 36 | flags (4 bits) << 32 | size (32 bits)
//! stack node, 16 bytes
//!   word 0   module (16 bits) << 48 | return address (48 bits)
//!   word 1   next node in its hash chain (32 bits) << 32 | parent (32 bits)
//! ```
//! Word 0 of an unused table slot is 0. A size of [`SIZE_BIG`] means: look in
//! the table of big blocks.

/// Largest stack id.
pub const MAX_STACK: u32 = (1 << 28) - 1;
/// Marks a size that is in the table of big blocks.
pub const SIZE_BIG: u32 = u32::MAX;
/// Addresses at or above this are not recorded (47-bit user space).
pub const ADDR_LIMIT: u64 = 1 << 48;

/// Flag bits 0 and 1: allocating family (0 malloc, 1 new, 2 new[]).
pub const FAMILY_MASK: u32 = 3;
/// Family: malloc.
pub const FAMILY_MALLOC: u32 = 0;
/// Family: operator new.
pub const FAMILY_NEW: u32 = 1;
/// Family: operator new[].
pub const FAMILY_NEW_ARRAY: u32 = 2;
/// Flag bit 2: the program declared the block harmless.
pub const IGNORED: u32 = 4;
/// Flag bit 3: a realloc of the block is under way; the birth field then
/// holds the thread slot that does it.
pub const MOVING: u32 = 8;

/// Word 0 of a live block.
pub const fn key(addr: u64, birth: u32) -> u64 {
    (addr >> 3) << 19 | (birth & 0x7ffff) as u64
}

/// Address in word 0.
pub const fn addr(word0: u64) -> u64 {
    (word0 >> 19) << 3
}

/// Birth field of word 0.
pub const fn birth(word0: u64) -> u32 {
    (word0 & 0x7ffff) as u32
}

/// Word 1 of a live block.
pub const fn value(stack: u32, flags: u32, size: u32) -> u64 {
    ((stack & MAX_STACK) as u64) << 36 | ((flags & 15) as u64) << 32 | size as u64
}

/// Stack in word 1.
pub const fn stack(word1: u64) -> u32 {
    (word1 >> 36) as u32
}

/// Flags in word 1.
pub const fn flags(word1: u64) -> u32 {
    (word1 >> 32) as u32 & 15
}

/// Size in word 1.
pub const fn size(word1: u64) -> u32 {
    word1 as u32
}

/// Recorder time as a 19-bit birth: centiseconds below 2^18 (43 minutes),
/// then units of 1024 centiseconds (31 days), then the last value.
pub const fn birth_of(clock_cs: u64) -> u32 {
    const HALF: u64 = 1 << 18;
    if clock_cs < HALF {
        clock_cs as u32
    } else {
        let late = (clock_cs - HALF) >> 10;
        if late < HALF {
            (HALF + late) as u32
        } else {
            0x7ffff
        }
    }
}

/// The (rounded down) recorder time of a birth, centiseconds.
pub const fn clock_of(birth: u32) -> u64 {
    const HALF: u64 = 1 << 18;
    let birth = birth as u64;
    if birth < HALF {
        birth
    } else {
        HALF + ((birth - HALF) << 10)
    }
}

/// Hash of an address.
pub const fn hash(addr: u64) -> u64 {
    // Fibonacci hashing (Knuth, The Art of Computer Programming 3, 6.4).
    (addr >> 3).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

/// Stack nodes.
pub mod node {
    /// Module value for "no module".
    pub const NO_MODULE: u16 = 0xffff;
    /// Return address 0: outer frames are missing here.
    pub const CUT: u64 = (NO_MODULE as u64) << 48;

    /// Word 0.
    pub const fn frame(module: u16, pc: u64) -> u64 {
        (module as u64) << 48 | (pc & 0xffff_ffff_ffff)
    }

    /// Module in word 0.
    pub const fn module(frame: u64) -> u16 {
        (frame >> 48) as u16
    }

    /// Return address in word 0.
    pub const fn pc(frame: u64) -> u64 {
        frame & 0xffff_ffff_ffff
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn packs_and_unpacks() {
        for a in [0x10u64, 0x7fff_ffff_fff8, 0x5555_0000_1238] {
            let k = key(a, 0x71234);
            assert_eq!((addr(k), birth(k)), (a, 0x71234));
        }
        let v = value(MAX_STACK, 15, 0xdead_beef);
        assert_eq!((stack(v), flags(v), size(v)), (MAX_STACK, 15, 0xdead_beef));
        for t in [0, 5, (1 << 18) - 1, 1 << 18, (1 << 18) + 1024, 1 << 40] {
            let back = clock_of(birth_of(t));
            assert!(back <= t);
            assert!(t > 1 << 28 || t - back < 1024);
        }
    }
}
