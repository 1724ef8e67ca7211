//! JSON, schema `leakscope-report/1`.
//!
//! A promise: fields are added, never renamed or retyped. Every field is
//! always there; what is unknown is `null`. The shapes below are private to
//! this file and borrow from the report, so nothing is copied: the writer
//! receives the bytes as they are made.

mod holders;
mod layout;

use std::io::{self, Write as _};

use leakscope_model::{
    Command, Consistency, Content, Coverage, ErrorCode, ErrorRecord, ExitKind, Family, Find, Frame,
    FreeSiteLine, Growth, HeapCheck, HeapSummary, KindTotals, Leak, LossKind, LossSummary,
    MappingLeak, Notice, OtherHeap, ProcessReport, Report, Residence, RootCounts, SampleEstimate,
    SuppressionUse, Verdict, VerdictStatus, Watched,
};
use serde::ser::{Serialize, Serializer};

use crate::{Options, Sink};
use holders::{FindShape, HolderShape, LargestShape};
use layout::Layout;

/// The name of the schema.
pub const SCHEMA: &str = "leakscope-report/1";

/// The format `json`.
#[derive(Clone, Copy, Debug)]
pub struct Json;

impl Sink for Json {
    fn name(&self) -> &'static str {
        "json"
    }

    fn extension(&self) -> &'static str {
        ".json"
    }

    fn write(&self, report: &Report, _: &Options, out: &mut dyn io::Write) -> io::Result<()> {
        let mut pieces = Pieces {
            gathered: Vec::with_capacity(2 * PIECE),
            out,
        };
        let mut serializer = serde_json::Serializer::with_formatter(&mut pieces, Layout::default());
        ReportShape::from(report)
            .serialize(&mut serializer)
            .map_err(io::Error::from)?;
        pieces.write_all(b"\n")?;
        pieces.hand_over()
    }
}

/// Bytes gathered before they are handed on.
const PIECE: usize = 64 << 10;

/// Gathers the serialiser's many small parts without a dynamic call each.
struct Pieces<'a> {
    gathered: Vec<u8>,
    out: &'a mut dyn io::Write,
}

impl Pieces<'_> {
    fn hand_over(&mut self) -> io::Result<()> {
        self.out.write_all(&self.gathered)?;
        self.gathered.clear();
        Ok(())
    }
}

impl io::Write for Pieces<'_> {
    #[inline]
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    #[inline]
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.gathered.extend_from_slice(bytes);
        if self.gathered.len() >= PIECE {
            return self.hand_over();
        }
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.hand_over()?;
        self.out.flush()
    }
}

#[derive(serde::Serialize)]
struct ReportShape<'a> {
    schema: &'static str,
    tool: ToolShape,
    command: &'static str,
    verdict: VerdictShape<'a>,
    processes: List<'a, ProcessReport, ProcessShape<'a>>,
}

impl<'a> From<&'a Report> for ReportShape<'a> {
    fn from(r: &'a Report) -> Self {
        ReportShape {
            schema: SCHEMA,
            tool: ToolShape {
                name: "leakscope",
                version: env!("CARGO_PKG_VERSION"),
            },
            command: match r.command {
                Command::Run => "run",
                Command::Check => "check",
            },
            verdict: (&r.verdict).into(),
            processes: list(&r.processes),
        }
    }
}

#[derive(serde::Serialize)]
struct ToolShape {
    name: &'static str,
    version: &'static str,
}

#[derive(serde::Serialize)]
struct VerdictShape<'a> {
    status: &'static str,
    sentence: &'a str,
    rate_bytes_per_second: Option<f64>,
    rate_interval: Option<(f64, f64)>,
    detectable_bytes_per_second: Option<f64>,
}

impl<'a> From<&'a Verdict> for VerdictShape<'a> {
    fn from(v: &'a Verdict) -> Self {
        VerdictShape {
            status: match v.status {
                VerdictStatus::Leaking => "leaking",
                VerdictStatus::Growing => "growing",
                VerdictStatus::Retained => "retained",
                VerdictStatus::Clean => "clean",
                VerdictStatus::Inconclusive => "inconclusive",
            },
            sentence: &v.sentence,
            rate_bytes_per_second: v.rate_bytes_per_second,
            rate_interval: v.rate_interval,
            detectable_bytes_per_second: v.detectable_bytes_per_second,
        }
    }
}

#[derive(serde::Serialize)]
struct ProcessShape<'a> {
    pid: u32,
    parent_pid: u32,
    exe: &'a str,
    argv: &'a [String],
    exit: Option<ExitShape<'a>>,
    heap: HeapShape,
    residence: Option<ResidenceShape>,
    watched: Option<WatchedShape>,
    loss: LossShape,
    leaks: List<'a, Leak, LeakShape<'a>>,
    largest: Option<LargestShape<'a>>,
    find: List<'a, Find, FindShape<'a>>,
    mappings: List<'a, MappingLeak, MappingShape<'a>>,
    errors: List<'a, ErrorRecord, ErrorShape<'a>>,
    coverage: CoverageShape<'a>,
    suppressions: List<'a, SuppressionUse, SuppressionShape<'a>>,
    notices: List<'a, Notice, NoticeShape<'a>>,
}

impl<'a> From<&'a ProcessReport> for ProcessShape<'a> {
    fn from(p: &'a ProcessReport) -> Self {
        ProcessShape {
            pid: p.pid,
            parent_pid: p.parent_pid,
            exe: &p.exe,
            argv: &p.argv,
            exit: p.exit.as_ref().map(|e| match e {
                ExitKind::Code(code) => ExitShape::Code(*code),
                ExitKind::Signal(name) => ExitShape::Signal(name),
            }),
            heap: (&p.heap).into(),
            residence: p.residence.as_ref().map(ResidenceShape::from),
            watched: p.watched.map(WatchedShape::from),
            loss: (&p.loss).into(),
            leaks: list(&p.leaks),
            largest: p.largest.as_ref().map(LargestShape::from),
            find: list(&p.found),
            mappings: list(&p.mappings),
            errors: list(&p.errors),
            coverage: (&p.coverage).into(),
            suppressions: list(&p.suppressions),
            notices: list(&p.notices),
        }
    }
}

/// `{"code": 0}` or `{"signal": "SIGSEGV"}`.
#[derive(serde::Serialize)]
#[serde(rename_all = "lowercase")]
enum ExitShape<'a> {
    Code(i32),
    Signal(&'a str),
}

#[derive(serde::Serialize)]
struct HeapShape {
    live_bytes: u64,
    live_blocks: u64,
    allocations: Option<u64>,
    frees: Option<u64>,
    allocated_bytes: Option<u64>,
    peak_bytes: Option<u64>,
}

impl From<&HeapSummary> for HeapShape {
    fn from(h: &HeapSummary) -> Self {
        let counted = |n: u64| (!h.uncounted).then_some(n);
        HeapShape {
            live_bytes: h.live_bytes,
            live_blocks: h.live_blocks,
            allocations: counted(h.allocations),
            frees: counted(h.frees),
            allocated_bytes: counted(h.allocated_bytes),
            peak_bytes: counted(h.peak_bytes),
        }
    }
}

/// Resident bytes; all but `swap` and `trimmable` add up to `rss`.
#[derive(serde::Serialize)]
struct ResidenceShape {
    rss: u64,
    reachable: u64,
    definite: u64,
    indirect: u64,
    possible: u64,
    retained: RetainedShape,
    allocator: u64,
    other_anonymous: u64,
    stacks: u64,
    files: u64,
    shared: u64,
    swap: u64,
    trimmable: u64,
}

#[derive(serde::Serialize)]
struct RetainedShape {
    caches: u64,
    fastbins: u64,
    bins: u64,
    top: u64,
    pools: u64,
}

impl From<&Residence> for ResidenceShape {
    fn from(r: &Residence) -> Self {
        ResidenceShape {
            rss: r.rss,
            reachable: r.reachable,
            definite: r.definite,
            indirect: r.indirect,
            possible: r.possible,
            retained: RetainedShape {
                caches: r.retained.caches,
                fastbins: r.retained.fastbins,
                bins: r.retained.bins,
                top: r.retained.top,
                pools: r.retained.pools,
            },
            allocator: r.allocator,
            other_anonymous: r.other_anonymous,
            stacks: r.stacks,
            files: r.files,
            shared: r.shared,
            swap: r.swap,
            trimmable: r.trimmable,
        }
    }
}

#[derive(serde::Serialize)]
struct TotalsShape {
    bytes: u64,
    blocks: u64,
}

impl From<KindTotals> for TotalsShape {
    fn from(t: KindTotals) -> Self {
        TotalsShape {
            bytes: t.bytes,
            blocks: t.blocks,
        }
    }
}

#[derive(serde::Serialize)]
struct LossShape {
    definite: TotalsShape,
    indirect: TotalsShape,
    possible: TotalsShape,
    reachable: TotalsShape,
    suppressed: TotalsShape,
}

impl From<&LossSummary> for LossShape {
    fn from(l: &LossSummary) -> Self {
        LossShape {
            definite: l.definite.into(),
            indirect: l.indirect.into(),
            possible: l.possible.into(),
            reachable: l.reachable.into(),
            suppressed: l.suppressed.into(),
        }
    }
}

#[derive(serde::Serialize)]
struct LeakShape<'a> {
    id: &'a str,
    kind: &'static str,
    family: &'static str,
    bytes: u64,
    blocks: u64,
    indirect: TotalsShape,
    #[serde(rename = "type")]
    type_name: Option<&'a str>,
    cycle: bool,
    cycle_members: &'a [String],
    addresses: Addresses<'a>,
    stack: List<'a, Frame, FrameShape<'a>>,
    free_sites: List<'a, FreeSiteLine, FreeSiteShape<'a>>,
    lifetime_seconds: Option<f64>,
    lifetime_samples: u64,
    estimate: Option<EstimateShape>,
    content: Option<ContentShape<'a>>,
    growth: Option<GrowthShape>,
    holder: Option<HolderShape<'a>>,
}

impl<'a> From<&'a Leak> for LeakShape<'a> {
    fn from(l: &'a Leak) -> Self {
        LeakShape {
            id: &l.id,
            kind: kind(l.kind),
            family: match l.family {
                Family::Malloc => "malloc",
                Family::New => "new",
                Family::NewArray => "new[]",
            },
            bytes: l.bytes,
            blocks: l.blocks,
            indirect: l.indirect.into(),
            type_name: l.type_name.as_deref(),
            cycle: l.cycle,
            cycle_members: &l.cycle_members,
            addresses: Addresses(&l.addresses),
            stack: list(&l.stack),
            free_sites: list(&l.free_sites),
            lifetime_seconds: l.lifetime.map(|t| t.mean_seconds),
            lifetime_samples: l.lifetime.map_or(0, |t| t.samples),
            estimate: l.estimate.as_ref().map(EstimateShape::from),
            content: l.content.as_ref().map(ContentShape::from),
            growth: l.growth.map(GrowthShape::from),
            holder: l.holder.as_ref().map(HolderShape::from),
        }
    }
}

#[derive(serde::Serialize)]
struct GrowthShape {
    bytes: i64,
    blocks: i64,
    rising: bool,
}

impl From<Growth> for GrowthShape {
    fn from(g: Growth) -> Self {
        GrowthShape {
            bytes: g.bytes,
            blocks: g.blocks,
            rising: g.rising,
        }
    }
}

#[derive(serde::Serialize)]
struct WatchedShape {
    looks: u64,
    seconds: f64,
    bytes: i64,
}

impl From<Watched> for WatchedShape {
    fn from(w: Watched) -> Self {
        WatchedShape {
            looks: w.looks,
            seconds: w.seconds,
            bytes: w.bytes,
        }
    }
}

#[derive(serde::Serialize)]
struct ContentShape<'a> {
    shape: &'a str,
    preview_hex: String,
}

impl<'a> From<&'a Content> for ContentShape<'a> {
    fn from(c: &'a Content) -> Self {
        ContentShape {
            shape: &c.shape,
            preview_hex: c.preview.iter().map(|b| format!("{b:02x}")).collect(),
        }
    }
}

#[derive(serde::Serialize)]
struct EstimateShape {
    bytes_standard_error: f64,
    samples: u64,
}

impl From<&SampleEstimate> for EstimateShape {
    fn from(e: &SampleEstimate) -> Self {
        EstimateShape {
            bytes_standard_error: e.bytes_standard_error,
            samples: e.samples,
        }
    }
}

#[derive(serde::Serialize)]
struct FreeSiteShape<'a> {
    share: f64,
    count: u64,
    stack: List<'a, Frame, FrameShape<'a>>,
}

impl<'a> From<&'a FreeSiteLine> for FreeSiteShape<'a> {
    fn from(f: &'a FreeSiteLine) -> Self {
        FreeSiteShape {
            share: f.share,
            count: f.count,
            stack: list(&f.stack),
        }
    }
}

#[derive(serde::Serialize)]
struct FrameShape<'a> {
    function: Option<&'a str>,
    linkage_name: Option<&'a str>,
    file: Option<&'a str>,
    line: Option<u32>,
    module: Option<&'a str>,
    module_offset: Option<u64>,
    inlined: bool,
    cut: bool,
}

impl<'a> From<&'a Frame> for FrameShape<'a> {
    fn from(f: &'a Frame) -> Self {
        FrameShape {
            function: f.function.as_deref(),
            linkage_name: f.linkage_name.as_deref(),
            file: f.file.as_deref(),
            line: f.line,
            module: f.module.as_deref(),
            module_offset: f.module_offset,
            inlined: f.inlined,
            cut: f.cut,
        }
    }
}

#[derive(serde::Serialize)]
struct MappingShape<'a> {
    kind: &'static str,
    bytes: u64,
    count: u64,
    stack: List<'a, Frame, FrameShape<'a>>,
}

impl<'a> From<&'a MappingLeak> for MappingShape<'a> {
    fn from(m: &'a MappingLeak) -> Self {
        MappingShape {
            kind: kind(m.kind),
            bytes: m.bytes,
            count: m.count,
            stack: list(&m.stack),
        }
    }
}

#[derive(serde::Serialize)]
struct ErrorShape<'a> {
    code: &'static str,
    message: &'a str,
    count: u64,
    stack: List<'a, Frame, FrameShape<'a>>,
    allocated: List<'a, Frame, FrameShape<'a>>,
    freed: List<'a, Frame, FrameShape<'a>>,
}

impl<'a> From<&'a ErrorRecord> for ErrorShape<'a> {
    fn from(e: &'a ErrorRecord) -> Self {
        ErrorShape {
            code: match e.code {
                ErrorCode::DoubleFree => "double-free",
                ErrorCode::InvalidFree => "invalid-free",
                ErrorCode::MismatchedFree => "mismatched-free",
                ErrorCode::FdLeak => "fd-leak",
            },
            message: &e.message,
            count: e.count,
            stack: list(&e.stack),
            allocated: list(&e.allocated),
            freed: list(&e.freed),
        }
    }
}

#[derive(serde::Serialize)]
struct CoverageShape<'a> {
    consistency: &'static str,
    pause_seconds: f64,
    sampled_every_bytes: Option<u64>,
    dropped_events: u64,
    unreadable_bytes: u64,
    scanned_block_bytes: u64,
    roots: RootsShape,
    reachability: bool,
    heap_check: Option<HeapCheckShape<'a>>,
}

#[derive(serde::Serialize)]
struct HeapCheckShape<'a> {
    arenas: u64,
    heaps: u64,
    mapped_blocks: u64,
    unwalked_bytes: u64,
    agrees: bool,
    looks: u64,
    others: List<'a, OtherHeap, OtherHeapShape>,
}

#[derive(serde::Serialize)]
struct OtherHeapShape {
    allocator: &'static str,
    pieces: u64,
    blocks: u64,
    block_bytes: u64,
    free_bytes: u64,
    unwalked_bytes: u64,
}

impl From<&OtherHeap> for OtherHeapShape {
    fn from(o: &OtherHeap) -> Self {
        OtherHeapShape {
            allocator: o.allocator,
            pieces: o.pieces,
            blocks: o.blocks,
            block_bytes: o.block_bytes,
            free_bytes: o.free_bytes,
            unwalked_bytes: o.unwalked_bytes,
        }
    }
}

impl<'a> From<&'a HeapCheck> for HeapCheckShape<'a> {
    fn from(c: &'a HeapCheck) -> Self {
        HeapCheckShape {
            arenas: c.arenas,
            heaps: c.heaps,
            mapped_blocks: c.mapped_blocks,
            unwalked_bytes: c.unwalked_bytes,
            agrees: c.agrees,
            looks: c.looks,
            others: list(&c.others),
        }
    }
}

impl<'a> From<&'a Coverage> for CoverageShape<'a> {
    fn from(c: &'a Coverage) -> Self {
        CoverageShape {
            consistency: match c.consistency {
                Consistency::Stopped => "stopped",
                Consistency::Forked => "forked",
                Consistency::Racing => "racing",
                Consistency::Dead => "dead",
            },
            pause_seconds: c.pause_seconds,
            sampled_every_bytes: c.sampled_every_bytes,
            dropped_events: c.dropped_events,
            unreadable_bytes: c.unreadable_bytes,
            scanned_block_bytes: c.scanned_block_bytes,
            roots: (&c.roots).into(),
            reachability: c.reachability,
            heap_check: c.heap_check.as_ref().map(HeapCheckShape::from),
        }
    }
}

/// Bytes scanned as roots, by kind; `threads` is a number of threads.
#[derive(serde::Serialize)]
struct RootsShape {
    globals: u64,
    stacks: u64,
    registers: u64,
    mappings: u64,
    declared: u64,
    threads: u64,
}

impl From<&RootCounts> for RootsShape {
    fn from(r: &RootCounts) -> Self {
        RootsShape {
            globals: r.globals,
            stacks: r.stacks,
            registers: r.registers,
            mappings: r.mappings,
            declared: r.declared,
            threads: r.threads,
        }
    }
}

#[derive(serde::Serialize)]
struct SuppressionShape<'a> {
    name: &'a str,
    origin: &'a str,
    bytes: u64,
    blocks: u64,
}

impl<'a> From<&'a SuppressionUse> for SuppressionShape<'a> {
    fn from(s: &'a SuppressionUse) -> Self {
        SuppressionShape {
            name: &s.name,
            origin: &s.origin,
            bytes: s.hidden.bytes,
            blocks: s.hidden.blocks,
        }
    }
}

#[derive(serde::Serialize)]
struct NoticeShape<'a> {
    code: &'static str,
    message: &'a str,
}

impl<'a> From<&'a Notice> for NoticeShape<'a> {
    fn from(n: &'a Notice) -> Self {
        NoticeShape {
            code: n.code,
            message: &n.message,
        }
    }
}

fn kind(kind: LossKind) -> &'static str {
    match kind {
        LossKind::Definite => "definite",
        LossKind::Indirect => "indirect",
        LossKind::Possible => "possible",
        LossKind::Reachable => "reachable",
    }
}

/// Addresses as `0x…` strings: above 2^53 a JSON number would lose bits in
/// many readers.
struct Addresses<'a>(&'a [leakscope_model::Addr]);

impl Serialize for Addresses<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.0.iter().map(|a| format!("{a}")))
    }
}

/// Model items, each turned into its shape only when its turn comes.
struct List<'a, T, Shape> {
    items: &'a [T],
    shape: std::marker::PhantomData<Shape>,
}

fn list<T, Shape>(items: &[T]) -> List<'_, T, Shape> {
    List {
        items,
        shape: std::marker::PhantomData,
    }
}

impl<'a, T, Shape: From<&'a T> + Serialize> Serialize for List<'a, T, Shape> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_seq(self.items.iter().map(Shape::from))
    }
}
