//! A segment that a hostile target has written over: words of the input are
//! pairs (where, what).
#![no_main]
use leakscope_wire::layout::MIN_SEGMENT;
use leakscope_wire::{Layout, Reader, Segment};
use libfuzzer_sys::fuzz_target;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

thread_local! {
    static MEMORY: &'static [AtomicU64] = {
        // Page-aligned: a vector of pages.
        #[repr(align(4096))]
        struct Page(#[allow(dead_code)] [u64; 512]);
        let pages: Vec<Page> = (0..MIN_SEGMENT / 4096).map(|_| Page([0; 512])).collect();
        let pages = pages.leak();
        // SAFETY: the pages live forever and hold MIN_SEGMENT / 8 words.
        unsafe {
            std::slice::from_raw_parts(pages.as_ptr().cast(), (MIN_SEGMENT / 8) as usize)
        }
    };
}

fuzz_target!(|data: &[u8]| {
    MEMORY.with(|memory| {
        let mut touched = Vec::new();
        for pair in data.chunks_exact(16) {
            let word = |i: usize| u64::from_le_bytes(pair[i..i + 8].try_into().unwrap());
            let at = (word(0) % (MIN_SEGMENT / 8)) as usize;
            memory[at].store(word(8), Relaxed);
            touched.push(at);
        }
        // SAFETY: MIN_SEGMENT bytes, page-aligned, only accessed atomically.
        let segment =
            unsafe { Segment::new(memory.as_ptr().cast(), Layout::new(MIN_SEGMENT).unwrap()) };
        let reader = Reader::new(segment);
        let mut sum = reader
            .blocks()
            .take(1 << 20)
            .map(|b| b.size)
            .fold(0, u64::wrapping_add);
        for id in (0..reader.node_count()).step_by(97) {
            sum = sum.wrapping_add(reader.node(id).pc);
        }
        for module in reader.modules() {
            sum = sum.wrapping_add(reader.string(module.path).count() as u64);
        }
        sum = sum.wrapping_add(reader.totals().peak);
        sum = sum.wrapping_add(reader.threads().count() as u64);
        sum = sum.wrapping_add(reader.pairs().count() as u64);
        sum = sum.wrapping_add(reader.errors().count() as u64);
        sum = sum.wrapping_add(reader.mappings().count() as u64);
        sum = sum.wrapping_add(reader.roots().count() as u64);
        sum = sum.wrapping_add(reader.own().count() as u64);
        std::hint::black_box(sum);
        for at in touched {
            memory[at].store(0, Relaxed);
        }
    });
});
