//! Kernel text: any bytes, every parser.
#![no_main]
use leakscope_model::Addr;
use leakscope_proc::{auxv, cgroup, cmdline, descriptor, maps, pagemap, smaps, stat, status, syscall};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let _ = maps::parse(data);
    let _ = maps::parse_lenient(data);
    let _ = stat::parse(data);
    let _ = status::parse(data);
    let _ = syscall::parse(data);
    let _ = cmdline::parse(data);
    let _ = auxv::parse(data);
    let _ = cgroup::parse(data);
    let _ = descriptor::classify(data);
    let _ = smaps::parse(data);
    let _ = pagemap::parse(Addr(0), data);
});
