//! Loss records with names, what suppressions hide of them, and the sums.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeMap, HashMap};
use std::ffi::OsStr;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use leakscope_analysis::records::{Classified, FreeSiteIndex, RawRecord, merge, stable_ids};
use leakscope_analysis::suppressions::{Candidate, SuppressionSet, builtin, parse};
use leakscope_model::{
    Addr, Frame, FreeSiteLine, KindTotals, Leak, LiveTable, LossKind, LossSummary, MappingLeak,
    ModuleId, Notice, StackId, SuppressionUse, quantity,
};
use leakscope_symbols::{Debuginfod, Options, Symbolizer};

use crate::check::Judgement;
use crate::image::Image;
use crate::options::RunOptions;
use crate::pool::{Kept, Pool};
use crate::supervisor::Supervisor;

/// Frames of all listed records together: each takes a few hundred bytes, and
/// a recursion may leave as many stacks as blocks.
const LISTED_FRAMES: usize = 1 << 20;
/// Of these, frames of records whose kind nobody asked to see, as a compiler
/// that exits without freeing leaves a million of.
const UNASKED_FRAMES: usize = 1 << 16;
/// Members of a cycle that are named.
const CYCLE_MEMBERS: usize = 16;

/// Names for the frames of one process: full ones, and bare ones (module and
/// offset) for what will not be shown.
pub(crate) struct Names<'a> {
    table: &'a LiveTable,
    pool: &'a Pool,
    /// `None` only while it is given back.
    full: Option<Kept>,
    bare: Symbolizer,
}

impl Drop for Names<'_> {
    fn drop(&mut self) {
        if let Some(kept) = self.full.take() {
            self.pool.put(kept);
        }
    }
}

impl<'a> Names<'a> {
    pub(crate) fn new(
        supervisor: &'a Supervisor,
        image: &Image,
        table: &'a LiveTable,
    ) -> Names<'a> {
        let bare = Options {
            enabled: false,
            ..Options::default()
        };
        let full = supervisor.names.take(&table.modules, || Kept {
            modules: table.modules.clone(),
            _exe_file: image.exe_file.clone(),
            symbolizer: Symbolizer::new(
                symbol_options(&supervisor.options, image, table),
                &table.modules,
            ),
        });
        Names {
            table,
            pool: &supervisor.names,
            full: Some(full),
            bare: Symbolizer::new(bare, &table.modules),
        }
    }

    fn full(&mut self) -> &mut Symbolizer {
        match &mut self.full {
            Some(kept) => &mut kept.symbolizer,
            None => &mut self.bare,
        }
    }

    pub(crate) fn stack(&mut self, stack: StackId) -> Vec<Frame> {
        let frames = self.table.stacks.frames(stack);
        self.full().resolve_stack(frames)
    }

    fn bare_stack(&mut self, stack: StackId) -> Vec<Frame> {
        self.bare.resolve_stack(self.table.stacks.frames(stack))
    }

    fn innermost_module(&self, stack: StackId) -> Option<Cow<'_, str>> {
        let frame = self.table.stacks.frames(stack).next()?;
        let module = self.table.modules.get(usize::from(frame.module.0))?;
        Some(String::from_utf8_lossy(&module.path))
    }

    /// Where the allocation was, in a few words.
    fn place(&mut self, stack: StackId) -> String {
        let frame = self.table.stacks.frames(stack).next();
        let frame = frame.and_then(|frame| self.full().resolve(frame).into_iter().next());
        match frame {
            Some(Frame {
                function: Some(function),
                ..
            }) => function,
            Some(Frame {
                module: Some(module),
                module_offset: Some(offset),
                ..
            }) => format!("{module}+{offset:#x}"),
            _ => "unknown".to_owned(),
        }
    }

    pub(crate) fn notices(&mut self) -> Vec<Notice> {
        self.full().notices()
    }
}

fn symbol_options(options: &RunOptions, image: &Image, table: &LiveTable) -> Options {
    let wanted = &options.symbols;
    // Through our own descriptors, these paths stay good after its death.
    let own = |file: &std::fs::File| PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()));
    let exe = image.exe.as_bytes();
    let mut alternatives = HashMap::new();
    for (id, module) in (0..).zip(&table.modules) {
        let path = match &image.exe_file {
            Some(file) if module.path == exe => own(file),
            // A child of a program that changed its root was mapped before.
            _ if image.root.is_some() => PathBuf::from(OsStr::from_bytes(&module.path)),
            _ => continue,
        };
        alternatives.insert(ModuleId(id), path);
    }
    Options {
        enabled: !wanted.no_symbols,
        variables: false,
        debug_dirs: wanted.debug_dirs.clone(),
        source_root: wanted.source_root.clone(),
        root: image.root.as_ref().map(own),
        alternatives,
        debuginfod: Debuginfod::from_list(&wanted.debuginfod_urls, wanted.debuginfod_cache.clone()),
    }
}

/// What was found in one process.
pub(crate) struct Found {
    pub leaks: Vec<Leak>,
    pub loss: LossSummary,
    pub suppressions: Vec<SuppressionUse>,
    pub notices: Vec<Notice>,
}

pub(crate) fn find(supervisor: &Supervisor, judgement: &Judgement, names: &mut Names<'_>) -> Found {
    let table = &judgement.table;
    let options = &supervisor.options;
    let classes = judgement
        .marked
        .as_ref()
        .map_or_else(Classified::default, |marked| Classified {
            kinds: &marked.kinds,
            leader: &marked.leader,
            cycle: &marked.cycle,
        });
    let mut records = merge(table, &classes, options.resolution);
    // What was asked for comes first, should there be too many; both parts
    // stay in their order.
    let asked = |kind| judgement.marked.is_none() || options.show.contains(&kind);
    records.sort_by_key(|record| !asked(record.kind));
    let mut notices = Vec::new();
    let mut set = suppressions(supervisor, judgement, &mut notices);
    let mut loss = LossSummary::default();
    let mut kept: Vec<(RawRecord, Vec<Frame>)> = Vec::new();
    let mut room = LISTED_FRAMES;
    let mut unasked_room = UNASKED_FRAMES;
    let (mut unlisted, mut unlisted_totals) = (0u64, KindTotals::default());
    for record in records {
        let direct = KindTotals {
            bytes: record.bytes,
            blocks: record.blocks,
        };
        let may_hide = set.may_hide(record.kind, names.innermost_module(record.stack).as_deref());
        let shown = is_shown(options, judgement, record.kind);
        let asked = asked(record.kind);
        let listed = room > 0 && (asked || unasked_room > 0);
        let frames = if may_hide || (listed && shown) {
            names.stack(record.stack)
        } else if listed {
            names.bare_stack(record.stack)
        } else {
            Vec::new()
        };
        let candidate = Candidate {
            frames: &frames,
            kind: record.kind,
            family: record.family,
        };
        if may_hide && set.suppress(&candidate, direct) {
            add(&mut loss.suppressed, direct);
            continue;
        }
        add(loss.of_mut(record.kind), direct);
        if listed {
            let taken = frames.len().max(1);
            room = room.saturating_sub(taken);
            if !asked {
                unasked_room = unasked_room.saturating_sub(taken);
            }
            kept.push((record, frames));
        } else {
            unlisted += 1;
            add(&mut unlisted_totals, direct);
        }
    }
    if unlisted > 0 {
        notices.push(Notice {
            code: "records-not-listed",
            message: format!(
                "the smallest {} ({} in all) are counted in the summary but not listed: too many \
                 different call stacks; try {}--leak-resolution low",
                quantity::counted(unlisted, "record"),
                quantity::bytes(unlisted_totals.bytes),
                if room > 0 { "--show all or " } else { "" }
            ),
        });
    }
    let ids: Vec<(LossKind, &[Frame])> = kept
        .iter()
        .map(|(record, frames)| (record.kind, frames.as_slice()))
        .collect();
    let ids = stable_ids(&ids);
    let shown = kept.iter().map(|(record, _)| record);
    let shown = shown.filter(|record| is_shown(options, judgement, record.kind));
    let mut sites = FreeSiteIndex::new(table, shown);
    let mut leaks: Vec<Leak> = kept
        .into_iter()
        .zip(ids)
        .map(|((record, stack), id)| leak(options, judgement, names, &mut sites, record, stack, id))
        .collect();
    leaks.sort_by_key(|leak| Reverse(leak.bytes.saturating_add(leak.indirect.bytes)));
    Found {
        leaks,
        loss,
        suppressions: set.uses(),
        notices,
    }
}

/// Without reachability the live blocks are all there is to show.
fn is_shown(options: &RunOptions, judgement: &Judgement, kind: LossKind) -> bool {
    judgement.marked.is_none() || options.symbolise.contains(&kind)
}

fn leak(
    options: &RunOptions,
    judgement: &Judgement,
    names: &mut Names<'_>,
    sites: &mut FreeSiteIndex<'_>,
    record: RawRecord,
    stack: Vec<Frame>,
    id: String,
) -> Leak {
    let blocks = &judgement.table.blocks;
    let shown = is_shown(options, judgement, record.kind);
    let (mut free_sites, mut lifetime) = (Vec::new(), None);
    if shown {
        let found = sites.of(&record);
        lifetime = found.lifetime;
        free_sites = found
            .top
            .iter()
            .map(|(stack, count)| FreeSiteLine {
                stack: names.stack(*stack),
                share: *count as f64 / found.samples.max(1) as f64,
                count: *count,
            })
            .collect();
    }
    let members = record
        .cycle_leader
        .zip(judgement.marked.as_ref())
        .and_then(|(leader, marked)| marked.cycle_members.get(&leader))
        .map(|members| {
            members
                .iter()
                .take(CYCLE_MEMBERS)
                .copied()
                .collect::<Vec<u32>>()
        })
        .unwrap_or_default();
    let cycle_members = members
        .iter()
        .filter_map(|at| blocks.get(*at as usize))
        .map(|block| names.place(block.stack))
        .collect();
    let addresses: Vec<Addr> = record
        .examples
        .iter()
        .filter_map(|at| blocks.get(*at as usize))
        .map(|block| block.addr)
        .collect();
    Leak {
        id,
        kind: record.kind,
        family: record.family,
        bytes: record.bytes,
        blocks: record.blocks,
        indirect: record.indirect,
        type_name: None,
        cycle: record.cycle_leader.is_some(),
        cycle_members,
        addresses,
        stack,
        free_sites,
        lifetime,
        estimate: record.estimate,
        content: None,
        growth: None,
        holder: None,
    }
}

/// The user's suppressions, the program's own, the built-in ones: the first
/// that matches is counted.
fn suppressions(
    supervisor: &Supervisor,
    judgement: &Judgement,
    notices: &mut Vec<Notice>,
) -> SuppressionSet {
    let mut set = SuppressionSet::default();
    set.extend(supervisor.suppressions.iter().cloned());
    match parse(&judgement.suppressions, "__lsan_default_suppressions") {
        Ok(own) => set.extend(own),
        Err(error) => notices.push(Notice {
            code: "bad-suppressions",
            message: format!("the program's own suppressions were left out: failed to {error}"),
        }),
    }
    if supervisor.options.builtin_suppressions {
        set.extend(builtin());
    }
    set
}

fn add(sum: &mut KindTotals, more: KindTotals) {
    sum.bytes = sum.bytes.saturating_add(more.bytes);
    sum.blocks = sum.blocks.saturating_add(more.blocks);
}

/// Application mappings with names, merged by kind and stack, largest first.
pub(crate) fn mappings(judgement: &Judgement, names: &mut Names<'_>) -> Vec<MappingLeak> {
    let mut merged: BTreeMap<(LossKind, StackId), KindTotals> = BTreeMap::new();
    for (mapping, kind) in &judgement.mappings {
        merged
            .entry((*kind, mapping.stack))
            .or_default()
            .add(mapping.len);
    }
    let mut all: Vec<MappingLeak> = merged
        .into_iter()
        .map(|((kind, stack), sum)| MappingLeak {
            kind,
            bytes: sum.bytes,
            count: sum.blocks,
            stack: names.stack(stack),
        })
        .collect();
    all.sort_by_key(|leak| (leak.kind, Reverse(leak.bytes)));
    all
}
