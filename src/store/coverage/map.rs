//! What is covered beyond the vector, by intervals of hash space.
//!
//! One structure serves single keys and settled ranges. Spans never overlap, so that a lookup meets one at most; where
//! two contexts meet, their span has the join of both.

use std::collections::BTreeMap;

use crdts::CvRDT;

use super::{Clocks, HashIntervals, RegionCoverage};
use crate::store::digest::HashKey;

/// An interval of hash space, both ends included, and what is covered there. [`CoverageMap`] has its first position.
#[derive(Clone, Debug)]
pub(super) struct CoverageSpan {
    pub(super) last: u64,
    pub(super) clocks: Clocks,
}

/// Contexts by position in hash space. Spans do not overlap.
#[derive(Clone, Debug, Default)]
pub(super) struct CoverageMap {
    pub(super) spans: BTreeMap<u64, CoverageSpan>,
}

impl CoverageMap {
    pub(super) fn at(&self, position: u64) -> Option<&Clocks> {
        let (_, span) = self.spans.range(..=position).next_back()?;
        (position <= span.last).then_some(&span.clocks)
    }

    /// Adds `context` to everything from `first` to `last`.
    pub(super) fn add(&mut self, first: u64, last: u64, context: &Clocks) {
        self.split(first);
        if let Some(next) = last.checked_add(1) {
            self.split(next);
        }
        let mut at = first;
        let inside: Vec<u64> = self.spans.range(first..=last).map(|(start, _)| *start).collect();
        for start in inside {
            if at < start {
                self.insert(at, start - 1, context.clone());
            }
            let span = self.spans.get_mut(&start).expect("just listed");
            span.clocks.merge(context.clone());
            match span.last.checked_add(1) {
                Some(next) => at = next,
                None => return,
            }
        }
        if at <= last {
            self.insert(at, last, context.clone());
        }
    }

    /// The same for a single position, where nearly always nothing is yet.
    pub(super) fn add_point(&mut self, at: u64, context: &Clocks) {
        match self.spans.range(..=at).next_back() {
            Some((_, span)) if at <= span.last => self.add(at, at, context),
            _ => _ = self.spans.insert(at, CoverageSpan { last: at, clocks: context.clone() }),
        }
    }

    /// Cuts a span that begins before `position` and reaches it.
    fn split(&mut self, position: u64) {
        let Some((_, span)) = self.spans.range_mut(..position).next_back() else { return };
        if span.last < position {
            return;
        }
        let rest = CoverageSpan { last: span.last, clocks: span.clocks.clone() };
        span.last = position - 1;
        self.spans.insert(position, rest);
    }

    /// Inserts a span where there is none. If the span that ends just before it has the same context, that one grows.
    fn insert(&mut self, first: u64, last: u64, context: Clocks) {
        if let Some((_, before)) = self.spans.range_mut(..first).next_back()
            && before.last.checked_add(1) == Some(first)
            && before.clocks == context
        {
            before.last = last;
            return;
        }
        self.spans.insert(first, CoverageSpan { last, clocks: context });
    }
}

/// Everything that a map covers, under its hash key.
pub(super) fn regions_of(extra: &CoverageMap, hash_key: HashKey) -> impl Iterator<Item = RegionCoverage> {
    extra.spans.iter().map(move |(first, span)| {
        RegionCoverage::new(hash_key, HashIntervals::between(*first, span.last), span.clocks.clone())
    })
}
