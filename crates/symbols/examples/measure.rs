//! Symbolises made-up stacks of one file and prints time and memory:
//!
//! ```text
//! cargo run --release -p leakscope-symbols --example measure -- FILE [STACKS] [DEPTH]
//! ```
//!
//! Every frame is another place in the file's functions, drawn with a fixed
//! seed: no two stacks share a frame, which is worse than any real program.

use std::time::Instant;

use leakscope_model::{Addr, ModuleId, RawFrame, RecordedModule};
use leakscope_symbols::{Options, Symbolizer};
use object::{Object, ObjectSymbol, SymbolKind};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let path = args.next().ok_or("which file?")?;
    let stacks: usize = args.next().map_or(Ok(1000), |n| n.parse())?;
    let depth: usize = args.next().map_or(Ok(31), |n| n.parse())?;
    let functions = functions(&path)?;
    if functions.is_empty() {
        return Err("the file has no functions".into());
    }

    let module = RecordedModule {
        path: std::fs::canonicalize(&path)?
            .to_string_lossy()
            .into_owned()
            .into(),
        start: Addr(0),
        end: Addr(u64::MAX),
        bias: 0,
        build_id: None,
        loaded: true,
    };
    let mut seed = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    // 5: forget the highest memory so far, which the reading above caused.
    std::fs::write("/proc/self/clear_refs", "5")?;
    let begun = Instant::now();
    let mut symbolizer = Symbolizer::new(Options::default(), &[module]);
    let (mut frames, mut named, mut with_line) = (0, 0, 0);
    for _ in 0..stacks {
        let raw: Vec<RawFrame> = (0..depth)
            .map(|_| {
                let (start, size) = functions[random(functions.len() as u64) as usize];
                RawFrame {
                    module: ModuleId(0),
                    pc: Addr(start + 1 + random(size)),
                }
            })
            .collect();
        for frame in symbolizer.resolve_stack(raw.into_iter()) {
            frames += 1;
            named += usize::from(frame.function.is_some());
            with_line += usize::from(frame.line.is_some());
        }
    }
    println!(
        "{stacks} stacks of {depth} frames: {:.2} s; {frames} functions with inlined ones, \
         {named} named, {with_line} with line; peak memory {}",
        begun.elapsed().as_secs_f64(),
        peak()
    );
    for notice in symbolizer.notices() {
        println!("{}: {}", notice.code, notice.message);
    }
    Ok(())
}

/// Address and size of all functions, read before the clock starts.
fn functions(path: &str) -> Result<Vec<(u64, u64)>, Box<dyn std::error::Error>> {
    let bytes = std::fs::read(path)?;
    let elf = object::File::parse(&*bytes)?;
    Ok(elf
        .symbols()
        .filter(|s| s.kind() == SymbolKind::Text && s.size() > 0 && s.address() > 0)
        .map(|s| (s.address(), s.size()))
        .collect())
}

/// Anonymous and file memory at its highest, as the kernel counts it.
fn peak() -> String {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    status
        .lines()
        .filter(|l| {
            ["VmHWM", "RssAnon", "RssFile"]
                .iter()
                .any(|k| l.starts_with(k))
        })
        .map(|l| l.split_whitespace().collect::<Vec<_>>().join(" "))
        .collect::<Vec<_>>()
        .join(", ")
}
