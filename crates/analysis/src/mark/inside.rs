//! Pointers into blocks of which more is known than an idiom tells.

use leakscope_model::Addr;

/// What is known of pointers into blocks; without it, only idioms count.
#[derive(Clone, Copy, Debug, Default)]
pub struct Inside<'a> {
    /// For each block: where its object begins, in words from its start. A
    /// pointer there counts as one to the start.
    pub offsets: &'a [u8],
    /// Ascending: words that count as pointers to the start of the block that
    /// they lie in.
    pub words: &'a [u64],
}

impl Inside<'_> {
    /// `word` lies in the block with this number, which begins at `addr`.
    #[inline]
    pub(super) fn is_start(&self, number: u32, addr: Addr, word: u64) -> bool {
        let offset = self.offsets.get(number as usize);
        offset.is_some_and(|offset| {
            *offset != 0 && word.wrapping_sub(addr.0) == 8 * u64::from(*offset)
        }) || (!self.words.is_empty() && self.words.binary_search(&word).is_ok())
    }
}
