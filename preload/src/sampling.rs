//! Poisson sampling by bytes, as tcmalloc and jemalloc do it.

/// Bytes until the next sample: exponential with mean `mean`, from the 32
/// random bits `lot`. Integers only, because the program's floating-point
/// state is not ours to touch.
///
/// -ln(u) = (32 - log2(lot + 1)) * ln 2, with log2 from a table-free
/// approximation: for 1 <= m < 2, log2 m = (m - 1) + c (m - 1)(2 - m) is
/// within 0.0083 of the truth for c = 0.3465.
pub fn gap(mean: u64, lot: u32) -> i64 {
    let u = u64::from(lot) + 1;
    let whole = 63 - u.leading_zeros();
    // The fraction m - 1 in 1/2^16.
    let fraction = ((u << 16) >> whole) & 0xffff;
    let bend = fraction * (0x10000 - fraction) / 0x10000 * 22708 / 0x10000;
    let log2 = (u64::from(whole) << 16) + fraction + bend;
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
