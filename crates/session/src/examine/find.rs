//! What is at an address, and who points to it.

use leakscope_analysis::holders::{
    HolderInput, Pointing, RootPlace, RootWord, Search, Source, Walker, pointing, thread_of,
};
use leakscope_analysis::roots::RootKind;
use leakscope_heap::glibc::{CHUNK_HEADER, FreePlace, Heaps};
use leakscope_model::{Addr, Find, HolderStep, Place, PlaceKind, PointedBy, Range, RawFrame};

use super::holders::{Grouped, Held, Names, Seat, held, module_path, step};
use super::modules;

/// Words that are listed.
const LISTED: usize = 32;

/// An answer whose roots have no names yet.
pub(super) struct UnnamedFind {
    address: Addr,
    place: Place,
    /// In whose frame it is.
    caller: Option<Addr>,
    pointers: Vec<UnnamedSource>,
    all: u64,
    held: Held,
}

enum UnnamedSource {
    Root(Seat, u64),
    Block(HolderStep),
}

/// Looks at every root and every block once.
pub(super) fn find(
    input: &HolderInput<'_>,
    heaps: &Heaps,
    grouped: &Grouped<'_>,
    search: &Search,
    walker: &mut Walker<'_>,
    address: Addr,
) -> UnnamedFind {
    let (place, block) = place(input, heaps, grouped, address);
    let target = match (place.start, place.bytes) {
        (Some(start), Some(bytes)) if is_heap(place.kind) => {
            Range::new(start.0, start.0.saturating_add(bytes.max(1)))
        }
        _ => Range::new(address.0, address.0.saturating_add(1)),
    };
    let found = match place.kind {
        // What would be found are numbers.
        PlaceKind::Unmapped => Pointing::default(),
        _ => pointing(input, target, LISTED),
    };
    let pointers = found.sources.iter().filter_map(|source| {
        Some(match *source {
            Source::Root(word) => {
                let into = word.value.wrapping_sub(target.start.0);
                UnnamedSource::Root(Seat::new(input, word), into)
            }
            Source::Block {
                block,
                offset,
                value,
            } => UnnamedSource::Block(HolderStep {
                into: value.wrapping_sub(target.start.0),
                offset: Some(offset),
                ..step(input, grouped, block)?
            }),
        })
    });
    let pointers = pointers.collect();
    let block = block.as_slice();
    UnnamedFind {
        address,
        caller: Seat::new(input, word_at(&place, address)).caller,
        place,
        pointers,
        all: found.all,
        held: held(input, grouped, search, walker, block),
    }
}

fn is_heap(kind: PlaceKind) -> bool {
    matches!(kind, PlaceKind::Block | PlaceKind::Free)
}

/// The address as if a word of a root were there.
fn word_at(place: &Place, at: Addr) -> RootWord {
    let kind = match place.kind {
        PlaceKind::Stack if !place.left_over => RootKind::Stack,
        PlaceKind::ThreadLocal => RootKind::Tls,
        _ => RootKind::Mapping,
    };
    RootWord {
        place: RootPlace::Memory(kind),
        at,
        value: 0,
    }
}

fn nowhere() -> Place {
    Place {
        kind: PlaceKind::Unmapped,
        start: None,
        bytes: None,
        offset: None,
        type_name: None,
        shape: None,
        loss: None,
        kept: None,
        variable: None,
        function: None,
        module: None,
        module_offset: None,
        thread: None,
        left_over: false,
        mapping: None,
    }
}

fn around(kind: PlaceKind, range: Range, address: Addr) -> Place {
    Place {
        kind,
        start: Some(range.start),
        bytes: Some(range.len()),
        offset: Some(address.0.saturating_sub(range.start.0)),
        ..nowhere()
    }
}

/// What the address is, and the block around it.
fn place(
    input: &HolderInput<'_>,
    heaps: &Heaps,
    grouped: &Grouped<'_>,
    address: Addr,
) -> (Place, Option<u32>) {
    let next = input.blocks.partition_point(|b| b.addr <= address);
    let before = next
        .checked_sub(1)
        .and_then(|at| Some((at, input.blocks.get(at)?)));
    if let Some((at, block)) = before
        && address.0 - block.addr.0 < block.size.max(1)
    {
        let range = Range::new(block.addr.0, block.addr.0.saturating_add(block.size));
        let like = step(input, grouped, at as u32);
        let (type_name, shape) = like.map(|s| (s.type_name, s.shape)).unzip();
        let place = Place {
            type_name: type_name.flatten(),
            shape,
            loss: input.marked.kinds.get(at).copied(),
            ..around(PlaceKind::Block, range, address)
        };
        return (place, Some(at as u32));
    }
    (elsewhere(input, heaps, address), None)
}

fn elsewhere(input: &HolderInput<'_>, heaps: &Heaps, address: Addr) -> Place {
    if let Some(segment) = heaps.segments.iter().find(|s| s.range.contains(address)) {
        let next = segment.free.partition_point(|f| f.chunk.end <= address);
        let free = segment.free.get(next).filter(|f| f.chunk.contains(address));
        let Some(free) = free else {
            return around(PlaceKind::Allocator, segment.range, address);
        };
        let start = free.chunk.start.0.saturating_add(CHUNK_HEADER);
        let memory = Range::new(start.min(free.chunk.end.0), free.chunk.end.0);
        let kept = match free.place {
            FreePlace::Cache => "a thread's cache",
            FreePlace::Fastbin => "a fastbin",
            FreePlace::Bin => "a bin",
            FreePlace::Top => "the top of its heap",
        };
        return Place {
            kept: Some(kept),
            ..around(PlaceKind::Free, memory, address)
        };
    }
    if heaps
        .mapped
        .iter()
        .any(|(range, _)| range.contains(address))
    {
        return Place {
            kind: PlaceKind::Allocator,
            ..nowhere()
        };
    }
    let Some(region) = input.memory.map().find(address) else {
        return nowhere();
    };
    let ranges = &input.plan.ranges;
    let next = ranges.partition_point(|(range, _)| range.end <= address);
    let root = ranges
        .get(next)
        .filter(|(range, _)| range.contains(address));
    let above = input
        .threads
        .iter()
        .filter(|t| region.range.contains(t.sp) && address < t.sp);
    let above = above.min_by_key(|t| t.sp);
    let kind = match (root.map(|(_, kind)| *kind), above) {
        (Some(RootKind::Stack), _) => PlaceKind::Stack,
        (Some(RootKind::Tls), _) => PlaceKind::ThreadLocal,
        (Some(RootKind::Globals), _) => PlaceKind::Global,
        (None, Some(_)) => PlaceKind::Stack,
        _ if region.inode != 0 && !region.write => PlaceKind::Code,
        _ => PlaceKind::Mapping,
    };
    let place = Place {
        mapping: Some(String::from_utf8_lossy(&region.path).into_owned()).filter(|p| !p.is_empty()),
        left_over: kind == PlaceKind::Stack && root.is_none(),
        ..around(kind, region.range, address)
    };
    let thread = match place.left_over {
        true => above.map(|t| t.tid),
        false => thread_of(input, &word_at(&place, address)),
    };
    Place { thread, ..place }
}

/// Names what was found.
pub(super) fn name(found: UnnamedFind, names: &mut Names) -> Find {
    let mut place = found.place;
    let at = found.address;
    if matches!(place.kind, PlaceKind::Global | PlaceKind::Code)
        && let Some(module) = modules::module_at(&names.modules, at)
    {
        if let Some(own) = names.modules.get(usize::from(module.0)) {
            place.module = Some(module_path(own));
            place.module_offset = Some(at.0.wrapping_sub(own.bias));
        }
        if let Some(variable) = names.symbolizer.variable(module, at) {
            place.variable = Some(variable.name);
            place.offset = Some(variable.inside);
        } else if place.kind == PlaceKind::Code {
            // The look-up is for return addresses: behind the call.
            let pc = Addr(at.0.saturating_add(1));
            let frames = names.symbolizer.resolve(RawFrame { module, pc });
            place.function = frames.into_iter().find_map(|f| f.function);
        }
    } else if place.kind == PlaceKind::Global && !names.modules.is_empty() {
        place.kind = PlaceKind::Mapping;
    }
    if let Some(pc) = found.caller {
        place.function = names.function(pc);
    }
    let pointers = found.pointers.into_iter().map(|source| match source {
        UnnamedSource::Root(seat, into) => PointedBy::Root {
            root: names.root(&seat),
            into,
        },
        UnnamedSource::Block(step) => PointedBy::Block(step),
    });
    let pointers = pointers.collect();
    Find {
        address: at,
        place,
        pointers,
        pointer_count: found.all,
        holder: names.holder(found.held),
    }
}
