//! Coverage by region, as repair sessions send it and the disk keeps it.
//!
//! A *leftover* is a context for intervals of the hash space under an earlier hash key. It concerns many ranges, so a
//! session sends it once and refers to it by its number after that. Both ends must add the same leftovers to their
//! [`LeftoverTable`] in the same order. A context that has no room is left out, and the reader learns that the list is
//! not whole: nothing may be concluded for the range from such a list.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::codec::{Reader, Writer};
use super::frame::WireError;
use crate::store::coverage::{HashIntervals, LEFTOVER_ITEMS_MAX, LEFTOVERS_MAX, PeerRegions, RegionCoverage};
use crate::store::digest::{FAN, HashKey};

/// A context by places under the session's hash key only.
const HERE: u8 = 0;
/// A context by places under other hash keys, sent for the first time.
const LEFTOVER: u8 = 1;
/// A leftover that was sent before, by its number.
const AGAIN: u8 = 2;
/// There are more contexts than a session sends. Nothing may be concluded for the range from those that were sent.
const UNTOLD: u8 = 3;

/// The most contexts in one list, which belongs to one range or to all children of a digest; a reader answers more with
/// [`WireError::TooMany`]. Writers keep within it: they divide a range that has more than a few contexts of its own,
/// and refer to each leftover once, by its number after the first use. Earlier programs do so once for each child.
const LIST_MAX: usize = 2 * FAN * LEFTOVERS_MAX;

/// The leftovers sent in one direction of a session, by number. Both ends keep the same table.
#[derive(Debug, Default)]
pub(crate) struct LeftoverTable {
    all: Vec<RegionCoverage>,
    /// (hash, number in `all`) of each.
    by_hash: BTreeSet<(u64, usize)>,
    hash_keys: usize,
    items: usize,
    is_unlimited: bool,
}

/// The contexts of one list while it is read.
#[derive(Default)]
struct ListedRegions {
    regions: Vec<RegionCoverage>,
    /// The numbers of the leftovers among them. Earlier programs list one once for each child of a digest.
    numbers: BTreeSet<usize>,
}

/// How a writer encodes one context.
enum Telling {
    Here,
    New,
    Again(usize),
}

impl LeftoverTable {
    /// For the disk, where every hash key is named, so that all contexts beyond the vector are written as leftovers.
    pub(crate) fn unlimited() -> Self {
        Self { is_unlimited: true, ..Self::default() }
    }

    /// Adds a leftover. Returns `false` if there is no room: more than [`LEFTOVERS_MAX`], counted by their hash keys, or
    /// more than [`LEFTOVER_ITEMS_MAX`] items, are neither sent nor accepted.
    fn remember(&mut self, region: &RegionCoverage) -> bool {
        let hash_keys = self.hash_keys + region.hash_keys();
        let items = self.items + region.items();
        let has_room = hash_keys <= LEFTOVERS_MAX && items <= LEFTOVER_ITEMS_MAX;
        if has_room || self.is_unlimited {
            if !self.is_unlimited {
                self.by_hash.insert((Self::hash(region), self.all.len()));
            }
            self.all.push(region.clone());
            (self.hash_keys, self.items) = (hash_keys, items);
            return true;
        }
        false
    }

    fn hash(region: &RegionCoverage) -> u64 {
        region.clocks_hash().rotate_left(32) ^ region.regions_hash()
    }

    /// How a context is encoded. `None` if it is left out because the table is full.
    fn telling(&mut self, region: &RegionCoverage, hash_key: HashKey) -> Option<Telling> {
        if region.regions.len() == 1 && region.regions.contains_key(&hash_key) {
            return Some(Telling::Here);
        }
        let hash = Self::hash(region);
        let mut alike = self.by_hash.range((hash, 0)..=(hash, usize::MAX)).map(|(_, number)| *number);
        let known = alike.find(|number| self.all[*number] == *region);
        known.map(Telling::Again).or_else(|| self.remember(region).then_some(Telling::New))
    }
}

impl Writer {
    /// Contexts by region. A leftover is written once per stream, and by its number after that. If the table has no
    /// room for one, the reader learns that the list is not whole.
    pub(crate) fn regions(
        &mut self,
        regions: &[RegionCoverage],
        hash_key: HashKey,
        told: &mut LeftoverTable,
    ) {
        let telling = |region| Some((region, told.telling(region, hash_key)?));
        let tellings: Vec<(&RegionCoverage, Telling)> = regions.iter().filter_map(telling).collect();
        let is_whole = tellings.len() == regions.len();
        self.varint(tellings.len() as u64 + u64::from(!is_whole));
        for (region, telling) in tellings {
            match telling {
                Telling::Here => {
                    self.byte(HERE);
                    self.intervals(&region.regions[&hash_key]);
                    self.clocks(Some(&region.clocks));
                }
                Telling::New => self.leftover(region),
                Telling::Again(at) => {
                    self.byte(AGAIN);
                    self.varint(at as u64);
                }
            }
        }
        if !is_whole {
            self.byte(UNTOLD);
        }
    }

    /// Contexts by region for the disk: each is written once, with every hash key.
    pub(crate) fn extra_regions(&mut self, regions: &[RegionCoverage]) {
        self.varint(regions.len() as u64);
        regions.iter().for_each(|region| self.leftover(region));
    }

    fn leftover(&mut self, region: &RegionCoverage) {
        self.byte(LEFTOVER);
        self.varint(region.regions.len() as u64);
        for (key, intervals) in &*region.regions {
            self.hash_key(*key);
            self.intervals(intervals);
        }
        self.clocks(Some(&region.clocks));
    }

    fn intervals(&mut self, intervals: &HashIntervals) {
        self.varint(intervals.len() as u64);
        for (first, last) in intervals.iter() {
            self.u64_le(first);
            self.varint(last - first);
        }
    }
}

impl Reader<'_> {
    pub(crate) fn regions(
        &mut self,
        hash_key: HashKey,
        told: &mut LeftoverTable,
    ) -> Result<PeerRegions, WireError> {
        let count = self.count(1)?;
        if count > LIST_MAX && !told.is_unlimited {
            return Err(WireError::TooMany);
        }
        let (mut listed, mut is_whole) = (ListedRegions::default(), true);
        for _ in 0..count {
            is_whole &= self.region(hash_key, told, &mut listed)?;
        }
        Ok(PeerRegions { regions: listed.regions, is_whole })
    }

    /// One context, which is added to those of the list. `false`: at least one was left out.
    fn region(
        &mut self,
        hash_key: HashKey,
        told: &mut LeftoverTable,
        listed: &mut ListedRegions,
    ) -> Result<bool, WireError> {
        let tag = self.byte()?;
        let mut regions = BTreeMap::new();
        match tag {
            UNTOLD => return Ok(false),
            AGAIN => {
                let at = usize::try_from(self.varint()?).map_err(|_| WireError::Form)?;
                let again = told.all.get(at).ok_or(WireError::Form)?;
                if listed.numbers.insert(at) {
                    listed.regions.push(again.clone());
                }
                return Ok(true);
            }
            HERE => _ = regions.insert(hash_key, self.intervals()?),
            LEFTOVER => {
                let count = self.count(16)?;
                if count > LEFTOVERS_MAX && !told.is_unlimited {
                    return Err(WireError::TooMany);
                }
                for _ in 0..count {
                    regions.insert(self.hash_key()?, self.intervals()?);
                }
            }
            _ => return Err(WireError::Form),
        }
        let context = self.clocks()?.filter(|_| !regions.is_empty()).ok_or(WireError::Form)?;
        let region = RegionCoverage { regions: Arc::new(regions), clocks: context };
        if tag == LEFTOVER {
            listed.numbers.insert(told.all.len());
            if !told.remember(&region) {
                return Err(WireError::TooMany);
            }
        }
        listed.regions.push(region);
        Ok(true)
    }

    fn intervals(&mut self) -> Result<HashIntervals, WireError> {
        let mut intervals = HashIntervals::default();
        for _ in 0..self.count(9)? {
            let first = self.u64_le()?;
            let last = first.checked_add(self.varint()?).ok_or(WireError::Form)?;
            intervals.add(first, last);
        }
        if intervals.is_empty() { Err(WireError::Form) } else { Ok(intervals) }
    }
}
