//! Poisson sampling by bytes, as tcmalloc and jemalloc do it, and the short way
//! past the recorder for what is not in the sample: nearly everything.

use crate::cell::{self, Quick};
use core::sync::atomic::Ordering::Relaxed;
use leakscope_recorder_core::counters::{Row, count_allocation, count_release};
use leakscope_recorder_core::filter::Filter;

/// Addresses of the live blocks in the sample.
pub static SAMPLE: Filter = Filter::new();

/// The thread's cell, if its process is sampled, with the row it counts in.
#[inline(always)]
fn sampled() -> Option<(&'static Quick, &'static Row)> {
    let quick = cell::quick()?;
    Some((quick, quick.row()?))
}

/// Sampled mode: counts an allocation that is not in the sample. False if it
/// is, or if more has to be done about it.
#[inline(always)]
pub fn passes_over(addr: u64, size: u64) -> bool {
    let Some((quick, row)) = sampled() else {
        return false;
    };
    let left = quick
        .sample_left
        .load(Relaxed)
        .saturating_sub_unsigned(size);
    if left <= 0 {
        return false;
    }
    quick.sample_left.store(left, Relaxed);
    quick.last_alloc.store(addr, Relaxed);
    if quick.just_freed.load(Relaxed) == addr {
        quick.just_freed.store(0, Relaxed);
    }
    count_allocation(row, size);
    true
}

/// Sampled mode: the same for a block at `addr` that is certainly not in the
/// sample.
#[inline(always)]
pub fn outside(addr: u64) -> Option<(&'static Quick, &'static Row)> {
    sampled().filter(|_| !SAMPLE.may_hold(addr))
}

/// Sampled mode: counts the release of a block that is not in the sample.
/// False if it may be, or if more has to be done about it.
#[inline(always)]
pub fn passes_over_free(addr: u64) -> bool {
    let Some((quick, row)) = outside(addr) else {
        return false;
    };
    if quick.just_freed.load(Relaxed) == addr {
        quick.just_freed.store(0, Relaxed);
    } else {
        count_release(row);
    }
    true
}

/// As `passes_over_free`, in an operator delete, after which free may follow.
#[inline(always)]
pub fn passes_over_delete(addr: u64) -> bool {
    let Some((quick, row)) = outside(addr) else {
        return false;
    };
    if quick.just_freed.load(Relaxed) != addr {
        count_release(row);
        quick.just_freed.store(addr, Relaxed);
    }
    true
}

/// Sampled mode: true if the block at `addr`, which operator new returned, was
/// passed over, by its malloc or now.
#[inline(always)]
pub fn passes_over_new(addr: u64, size: u64) -> bool {
    let Some((quick, _)) = sampled() else {
        return false;
    };
    if quick.last_alloc.load(Relaxed) == addr {
        return !SAMPLE.may_hold(addr);
    }
    passes_over(addr, size)
}

/// Bytes until the next sample: exponential with mean `mean`, from the 32
/// random bits `lot`. Integers only, because the program's floating-point
/// state is not ours to touch.
///
/// -ln(u) = (32 - log2(lot + 1)) * ln 2. For m = 1 + f, 0 <= f < 1, log2 m is
/// f + f (1 - f) (a + b f + c f (1 - f)): a and b give it the true slopes at both
/// ends, where a wrong one would make short gaps too likely, c the true value in
/// the middle; elsewhere it is within 0.0005.
pub fn gap(mean: u64, lot: u32) -> i64 {
    // a, -b, -c in 1/2^16.
    const A: u64 = 29_012;
    const B: u64 = 10_751;
    const C: u64 = 5_458;
    let u = u64::from(lot) + 1;
    let whole = 63 - u.leading_zeros();
    // The fraction m - 1 in 1/2^16.
    let fraction = ((u << 16) >> whole) & 0xffff;
    let bow = (fraction * (0x10000 - fraction)) >> 16;
    let shape = A - ((B * fraction) >> 16) - ((C * bow) >> 16);
    let log2 = (u64::from(whole) << 16) + fraction + ((bow * shape) >> 16);
    let distance = (32u64 << 16).saturating_sub(log2);
    // ln 2 in 1/2^16.
    let ln = distance * 45426 / 0x10000;
    let bytes = u128::from(mean) * u128::from(ln) / 0x10000;
    i64::try_from(bytes).unwrap_or(i64::MAX).max(1)
}

/// Bytes that a sampled block of `size` stands for: size / (1 - exp(-size / mean)),
/// by the first terms of its series, within 1 % up to twice the mean and 9 %
/// beyond.
pub fn stands_for(size: u64, mean: u64) -> u64 {
    if mean == 0 || size / 5 >= mean / 2 {
        return size;
    }
    let square = u128::from(size) * u128::from(size) / (12 * u128::from(mean));
    mean + size / 2 + square as u64
}
