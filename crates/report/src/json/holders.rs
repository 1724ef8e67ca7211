//! Who holds a block.

use leakscope_model::{
    Find, Holder, HolderRoot, HolderStep, Largest, Place, PlaceKind, PointedBy, Retaining, RootKind,
};

use super::{List, TotalsShape, kind, list};

#[derive(serde::Serialize)]
pub(super) struct HolderShape<'a> {
    root: RootShape<'a>,
    skipped: u64,
    path: List<'a, HolderStep, StepShape<'a>>,
    share: f64,
}

impl<'a> From<&'a Holder> for HolderShape<'a> {
    fn from(h: &'a Holder) -> Self {
        HolderShape {
            root: (&h.root).into(),
            skipped: h.skipped,
            path: list(&h.path),
            share: h.share,
        }
    }
}

#[derive(serde::Serialize)]
pub(super) struct RootShape<'a> {
    kind: &'static str,
    address: Option<String>,
    variable: Option<&'a str>,
    offset: Option<u64>,
    module: Option<&'a str>,
    module_offset: Option<u64>,
    thread: Option<u32>,
    function: Option<&'a str>,
    mapping: Option<&'a str>,
}

impl<'a> From<&'a HolderRoot> for RootShape<'a> {
    fn from(r: &'a HolderRoot) -> Self {
        RootShape {
            kind: match r.kind {
                RootKind::Global => "global",
                RootKind::Stack => "stack",
                RootKind::ThreadLocal => "thread-local",
                RootKind::Register => "register",
                RootKind::Mapping => "mapping",
                RootKind::Declared => "declared",
            },
            address: r.address.map(|a| a.to_string()),
            variable: r.variable.as_deref(),
            offset: r.offset,
            module: r.module.as_deref(),
            module_offset: r.module_offset,
            thread: r.thread,
            function: r.function.as_deref(),
            mapping: r.mapping.as_deref(),
        }
    }
}

#[derive(serde::Serialize)]
pub(super) struct StepShape<'a> {
    address: String,
    bytes: u64,
    #[serde(rename = "type")]
    type_name: Option<&'a str>,
    shape: &'a str,
    into: u64,
    offset: Option<u64>,
    skipped: u64,
}

impl<'a> From<&'a HolderStep> for StepShape<'a> {
    fn from(s: &'a HolderStep) -> Self {
        StepShape {
            address: s.address.to_string(),
            bytes: s.bytes,
            type_name: s.type_name.as_deref(),
            shape: &s.shape,
            into: s.into,
            offset: s.offset,
            skipped: s.skipped,
        }
    }
}

#[derive(serde::Serialize)]
pub(super) struct LargestShape<'a> {
    kinds: List<'a, Retaining, RetainingShape<'a>>,
    blocks: List<'a, Retaining, RetainingShape<'a>>,
}

impl<'a> From<&'a Largest> for LargestShape<'a> {
    fn from(l: &'a Largest) -> Self {
        LargestShape {
            kinds: list(&l.kinds),
            blocks: list(&l.blocks),
        }
    }
}

#[derive(serde::Serialize)]
pub(super) struct RetainingShape<'a> {
    #[serde(rename = "type")]
    type_name: Option<&'a str>,
    shape: &'a str,
    address: Option<String>,
    bytes: u64,
    blocks: u64,
    retained: TotalsShape,
    holder: Option<HolderShape<'a>>,
}

impl<'a> From<&'a Retaining> for RetainingShape<'a> {
    fn from(r: &'a Retaining) -> Self {
        RetainingShape {
            type_name: r.type_name.as_deref(),
            shape: &r.shape,
            address: r.address.map(|a| a.to_string()),
            bytes: r.own.bytes,
            blocks: r.own.blocks,
            retained: r.retained.into(),
            holder: r.holder.as_ref().map(HolderShape::from),
        }
    }
}

#[derive(serde::Serialize)]
pub(super) struct FindShape<'a> {
    address: String,
    place: PlaceShape<'a>,
    pointers: List<'a, PointedBy, PointedByShape<'a>>,
    pointer_count: u64,
    holder: Option<HolderShape<'a>>,
}

impl<'a> From<&'a Find> for FindShape<'a> {
    fn from(f: &'a Find) -> Self {
        FindShape {
            address: f.address.to_string(),
            place: (&f.place).into(),
            pointers: list(&f.pointers),
            pointer_count: f.pointer_count,
            holder: f.holder.as_ref().map(HolderShape::from),
        }
    }
}

#[derive(serde::Serialize)]
struct PlaceShape<'a> {
    kind: &'static str,
    start: Option<String>,
    bytes: Option<u64>,
    offset: Option<u64>,
    #[serde(rename = "type")]
    type_name: Option<&'a str>,
    shape: Option<&'a str>,
    loss: Option<&'static str>,
    kept: Option<&'static str>,
    variable: Option<&'a str>,
    function: Option<&'a str>,
    module: Option<&'a str>,
    module_offset: Option<u64>,
    thread: Option<u32>,
    left_over: bool,
    mapping: Option<&'a str>,
}

impl<'a> From<&'a Place> for PlaceShape<'a> {
    fn from(p: &'a Place) -> Self {
        PlaceShape {
            kind: match p.kind {
                PlaceKind::Block => "block",
                PlaceKind::Free => "free",
                PlaceKind::Allocator => "allocator",
                PlaceKind::Global => "global",
                PlaceKind::Code => "code",
                PlaceKind::Stack => "stack",
                PlaceKind::ThreadLocal => "thread-local",
                PlaceKind::Mapping => "mapping",
                PlaceKind::Unmapped => "unmapped",
            },
            start: p.start.map(|a| a.to_string()),
            bytes: p.bytes,
            offset: p.offset,
            type_name: p.type_name.as_deref(),
            shape: p.shape.as_deref(),
            loss: p.loss.map(kind),
            kept: p.kept,
            variable: p.variable.as_deref(),
            function: p.function.as_deref(),
            module: p.module.as_deref(),
            module_offset: p.module_offset,
            thread: p.thread,
            left_over: p.left_over,
            mapping: p.mapping.as_deref(),
        }
    }
}

/// Either a root or a block.
#[derive(serde::Serialize)]
struct PointedByShape<'a> {
    root: Option<RootShape<'a>>,
    block: Option<StepShape<'a>>,
    into: u64,
}

impl<'a> From<&'a PointedBy> for PointedByShape<'a> {
    fn from(p: &'a PointedBy) -> Self {
        match p {
            PointedBy::Root { root, into } => PointedByShape {
                root: Some(root.into()),
                block: None,
                into: *into,
            },
            PointedBy::Block(step) => PointedByShape {
                root: None,
                block: Some(step.into()),
                into: step.into,
            },
        }
    }
}
