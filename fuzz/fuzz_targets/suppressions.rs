//! Suppression files.
#![no_main]
use leakscope_analysis::suppressions;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = suppressions::parse(data, "fuzz");
});
