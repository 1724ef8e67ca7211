//! Where the siblings of leaked blocks were freed.

use super::RawRecord;
use super::stack_key::{Keyed, LONGEST_PREFIX, StackKey, StackKeys};
use leakscope_model::{FreeSite, Lifetime, LiveTable, StackId};
use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};

/// How many free sites are named.
const SHOWN: usize = 3;

/// Frames that two releases must share to count as one free site: the caller
/// of the releasing function and its caller.
const RELEASE_FRAMES: usize = 2;

/// How many innermost frames of the allocation are compared, one attempt
/// after the other, until siblings are found: all, then fewer. A leaking path
/// often differs from the healthy one only in its outer frames.
const ATTEMPTS: [Option<usize>; 4] = [None, Some(LONGEST_PREFIX), Some(2), Some(1)];

/// The usual free sites of a record.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FreeSites {
    /// Stacks that freed, with the sampled frees counted there; most first,
    /// at most three.
    pub top: Vec<(StackId, u64)>,
    /// All sampled frees of siblings; zero means "never freed anywhere" as
    /// far as was seen.
    pub samples: u64,
    /// Typical lifetime of the freed siblings; `None` without samples.
    pub lifetime: Option<Lifetime>,
    /// How many innermost frames of the allocation the siblings share with
    /// the record; `None` when all.
    pub shared_frames: Option<usize>,
}

/// Looks up free sites by allocating stack. Build once for all records.
pub struct FreeSiteIndex<'a> {
    table: &'a LiveTable,
    keys: StackKeys<'a>,
    /// Indexes into `free_sites` for each key of a record; see [`Key`].
    by_key: HashMap<Key, Vec<usize>, Keyed>,
    /// Answers by key: thousands of records may share a short prefix, each
    /// with thousands of free sites.
    answers: HashMap<Key, FreeSites, Keyed>,
}

/// A short stack has the same key at several lengths, so the length (one of
/// [`ATTEMPTS`]) belongs to it.
type Key = (Option<usize>, StackKey);

impl<'a> FreeSiteIndex<'a> {
    /// Indexes what `table.free_sites` says about stacks like those of
    /// `records`, the only ones to ask about.
    pub fn new<'r>(
        table: &'a LiveTable,
        records: impl IntoIterator<Item = &'r RawRecord>,
    ) -> FreeSiteIndex<'a> {
        let mut keys = StackKeys::new(&table.stacks);
        let mut by_key: HashMap<Key, Vec<usize>, Keyed> = HashMap::default();
        for stack in records.into_iter().flat_map(|record| &record.stacks) {
            for frames in ATTEMPTS {
                by_key
                    .entry((frames, keys.key(*stack, frames)))
                    .or_default();
            }
        }
        let sites: &[FreeSite] = if by_key.is_empty() {
            &[]
        } else {
            &table.free_sites
        };
        for (i, site) in sites.iter().enumerate() {
            // The empty stack is unknown, not a site.
            if site.count == 0 || table.stacks.frames(site.allocated).next().is_none() {
                continue;
            }
            // Stacks that differ in one frame differ in more.
            for frames in ATTEMPTS.into_iter().rev() {
                let key = (frames, keys.key(site.allocated, frames));
                match by_key.get_mut(&key) {
                    Some(sites) => sites.push(i),
                    None => break,
                }
            }
        }
        FreeSiteIndex {
            table,
            keys,
            by_key,
            answers: HashMap::default(),
        }
    }

    /// The free sites of blocks allocated where `record`'s were. Siblings
    /// that share one frame only count when most of them were freed at one
    /// place: otherwise that frame is likely an allocation wrapper, whose
    /// other callers say nothing.
    pub fn of(&mut self, record: &RawRecord) -> FreeSites {
        for frames in ATTEMPTS {
            let mut seen: HashSet<StackKey> = HashSet::new();
            let mut keys: Vec<StackKey> = Vec::new();
            for &stack in &record.stacks {
                if self.table.stacks.frames(stack).next().is_none() {
                    continue;
                }
                let key = self.keys.key(stack, frames);
                if seen.insert(key) {
                    keys.push(key);
                }
            }
            let found = self.answer(&keys, frames);
            let biggest = found.top.first().map_or(0, |(_, count)| *count);
            let telling = frames != Some(1) || biggest.saturating_mul(2) > found.samples;
            if found.samples > 0 && telling {
                return found;
            }
        }
        FreeSites::default()
    }

    fn answer(&mut self, keys: &[StackKey], frames: Option<usize>) -> FreeSites {
        let [key] = keys else {
            let mut sites: Vec<usize> = Vec::new();
            for key in keys {
                sites.extend(self.by_key.get(&(frames, *key)).into_iter().flatten());
            }
            sites.sort_unstable();
            sites.dedup();
            return self.summarise(&sites, frames);
        };
        let key = (frames, *key);
        if let Some(known) = self.answers.get(&key) {
            return known.clone();
        }
        let sites = self.by_key.get(&key).cloned().unwrap_or_default();
        let found = self.summarise(&sites, frames);
        self.answers.insert(key, found.clone());
        found
    }

    fn summarise(&mut self, sites: &[usize], frames: Option<usize>) -> FreeSites {
        let mut merged: HashMap<StackKey, usize, Keyed> = HashMap::default();
        // Per free site: its stack with the most frees, that number, and all.
        let mut places: Vec<(StackId, u64, u64)> = Vec::new();
        let (mut samples, mut lifetimes) = (0_u64, 0_u64);
        for site in sites.iter().filter_map(|i| self.table.free_sites.get(*i)) {
            let FreeSite { freed, count, .. } = *site;
            samples = samples.saturating_add(count);
            lifetimes = lifetimes.saturating_add(site.lifetime_sum_cs);
            let key = self.keys.key(freed, Some(RELEASE_FRAMES));
            let place = *merged.entry(key).or_insert(places.len());
            match places.get_mut(place) {
                Some((stack, most, all)) => {
                    *all = all.saturating_add(count);
                    if count > *most {
                        (*stack, *most) = (freed, count);
                    }
                }
                None => places.push((freed, count, count)),
            }
        }
        places.sort_by_key(|(stack, _, all)| (Reverse(*all), *stack));
        places.truncate(SHOWN);
        FreeSites {
            top: places
                .iter()
                .map(|(stack, _, all)| (*stack, *all))
                .collect(),
            samples,
            lifetime: (samples > 0).then(|| Lifetime {
                mean_seconds: lifetimes as f64 / 100.0 / samples as f64,
                samples,
            }),
            shared_frames: frames,
        }
    }
}
