//! A core file from anywhere: any bytes, then every byte that it says it has.
#![no_main]
use leakscope_memory::MemoryReader;
use leakscope_tracee::CoreFile;
use libfuzzer_sys::fuzz_target;
use std::io::Write;

fuzz_target!(|data: &[u8]| {
    let mut file = tempfile::NamedTempFile::new().expect("a temporary file");
    file.write_all(data).expect("written");
    let core = file.reopen().expect("opened again");
    // The mapped files are as hostile.
    let Ok(core) = CoreFile::read(core, &mut |_, _| file.reopen().ok()) else {
        return;
    };
    let mut page = [0; 4096];
    for region in core.map().regions().iter().take(1024) {
        core.read_some(region.range.start, &mut page);
    }
});
