//! ELF and DWARF files of the target.
#![no_main]
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| leakscope_symbols::lookup_everything(data));
