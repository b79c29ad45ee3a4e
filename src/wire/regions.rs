//! Coverage by region, as a repair and a disk write it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::codec::{Reader, Writer};
use super::frame::WireError;
use crate::store::coverage::{HashIntervals, LEFTOVER_ITEMS_MAX, LEFTOVERS_MAX, PeerRegions, RegionCoverage};
use crate::store::digest::{FAN, HashKey};

/// How a context is told: by places under the session's hash key, under others as well, or as one told before. Or not at
/// all, where there are more than a session tells: then nothing may be concluded for the range from what is told.
const HERE: u8 = 0;
const LEFTOVER: u8 = 1;
const AGAIN: u8 = 2;
const UNTOLD: u8 = 3;

/// Contexts that are told along with one range, or with one more for the children of a digest. Writers keep within that:
/// they divide a range that has more than a few contexts of its own, and tell each leftover once for each child.
const LIST_MAX: usize = 2 * FAN * LEFTOVERS_MAX;

/// The leftovers that one direction of a session has told, in their order. Both ends keep the same.
#[derive(Debug, Default)]
pub(crate) struct LeftoverTable {
    all: Vec<RegionCoverage>,
    items: usize,
    is_unlimited: bool,
}

/// How a writer tells one context.
enum Telling {
    Here,
    New,
    Again(usize),
}

impl LeftoverTable {
    /// For a disk, which names every hash key: there all contexts beyond the vector look like leftovers.
    pub(crate) fn unlimited() -> Self {
        Self { is_unlimited: true, ..Self::default() }
    }

    /// False if it has no room: more than [`LEFTOVERS_MAX`] with [`LEFTOVER_ITEMS_MAX`] items are neither told nor taken.
    fn remember(&mut self, region: &RegionCoverage) -> bool {
        let items = self.items + region.items();
        let has_room = self.all.len() < LEFTOVERS_MAX && items <= LEFTOVER_ITEMS_MAX;
        if has_room || self.is_unlimited {
            self.all.push(region.clone());
            self.items = items;
            return true;
        }
        false
    }

    /// How a context is told next; `None` if it cannot be.
    fn telling(&mut self, region: &RegionCoverage, hash_key: HashKey) -> Option<Telling> {
        if region.regions.len() == 1 && region.regions.contains_key(&hash_key) {
            return Some(Telling::Here);
        }
        let known = self.all.iter().position(|known| known == region);
        known.map(Telling::Again).or_else(|| self.remember(region).then_some(Telling::New))
    }
}

impl Writer {
    /// Contexts by region. One that other hash keys restrict concerns many ranges: it is told once in a stream, and by
    /// its number after that. Where the table has no room for one, the reader learns that it was not told.
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

    /// The same for the disk: each is told once, with every hash key.
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
        let (mut regions, mut is_whole) = (Vec::new(), true);
        for _ in 0..count {
            let one = self.region(hash_key, told)?;
            is_whole &= one.is_some();
            regions.extend(one);
        }
        Ok(PeerRegions { regions, is_whole })
    }

    /// `None` stands for those that are not told.
    fn region(
        &mut self,
        hash_key: HashKey,
        told: &mut LeftoverTable,
    ) -> Result<Option<RegionCoverage>, WireError> {
        let tag = self.byte()?;
        let mut regions = BTreeMap::new();
        match tag {
            UNTOLD => return Ok(None),
            AGAIN => {
                let at = usize::try_from(self.varint()?).map_err(|_| WireError::Form)?;
                return told.all.get(at).cloned().map(Some).ok_or(WireError::Form);
            }
            HERE => _ = regions.insert(hash_key, self.intervals()?),
            LEFTOVER => {
                for _ in 0..self.count(16)? {
                    regions.insert(self.hash_key()?, self.intervals()?);
                }
            }
            _ => return Err(WireError::Form),
        }
        let context = self.clocks()?.filter(|_| !regions.is_empty()).ok_or(WireError::Form)?;
        let region = RegionCoverage { regions: Arc::new(regions), clocks: context };
        if tag == LEFTOVER && !told.remember(&region) {
            return Err(WireError::TooMany);
        }
        Ok(Some(region))
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
