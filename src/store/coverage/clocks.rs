//! A clock for each origin, as a map whose copies share what they have in common.
//!
//! Vectors and contexts have one entry for every process start that ever wrote. There are many copies of them: what each
//! peer is known to have, what a range was settled with, what lies beyond another one. These differ in a few entries. So
//! the map is a persistent radix tree over the bits of the origins, which are random: a copy costs one reference, a
//! change copies one path, and two maps are merged or compared in the time that their differences take, because a part
//! that both share is recognised by its address.
//!
//! Two maps with the same entries may have different trees, so an unequal address means nothing.

use std::convert::Infallible;
use std::sync::Arc;

use crdts::CvRDT;

use crate::id::RunId;
use crate::time::Stamp;

/// Entries of a leaf above which it is divided.
const LEAF_MAX: usize = 32;
/// A branch of at most this many entries becomes a leaf again.
const LEAF_AGAIN: usize = LEAF_MAX / 2;
/// A map that is more than this many times longer than another one is compared with it by looking up the entries of the
/// shorter one, not by walking both.
const MUCH_LONGER: usize = 8;
const FAN_BITS: u32 = 4;
const FAN: usize = 1 << FAN_BITS;

type ClockEntry = (RunId, u64);

#[derive(Clone, Debug)]
enum ClockTree {
    /// Sorted by origin, and never empty.
    Leaf(Vec<ClockEntry>),
    /// By the next bits of the origin, the greatest first. Never all empty.
    Branch { len: usize, children: Box<Subtrees> },
}

type Subtrees = [Option<Arc<ClockTree>>; FAN];

fn child_of(origin: RunId, depth: u32) -> usize {
    (origin.number() << (FAN_BITS * depth) >> (u64::BITS - FAN_BITS)) as usize
}

impl ClockTree {
    fn len(&self) -> usize {
        match self {
            Self::Leaf(entries) => entries.len(),
            Self::Branch { len, .. } => *len,
        }
    }

    fn branch(children: Subtrees) -> Self {
        let len = children.iter().flatten().map(|child| child.len()).sum();
        Self::Branch { len, children: Box::new(children) }
    }

    /// A leaf, or a branch if there are too many entries for one. `None` without entries.
    fn of(entries: &[ClockEntry], depth: u32) -> Option<Arc<Self>> {
        if entries.len() <= LEAF_MAX {
            return (!entries.is_empty()).then(|| Arc::new(Self::Leaf(entries.to_vec())));
        }
        let mut children = Subtrees::default();
        let parts = entries.chunk_by(|a, b| child_of(a.0, depth) == child_of(b.0, depth));
        parts.for_each(|part| children[child_of(part[0].0, depth)] = Self::of(part, depth + 1));
        Some(Arc::new(Self::branch(children)))
    }

    fn get(&self, origin: RunId, mut depth: u32) -> Option<u64> {
        let mut node = self;
        loop {
            match node {
                Self::Leaf(entries) => {
                    let at = entries.binary_search_by_key(&origin, |entry| entry.0).ok()?;
                    return Some(entries[at].1);
                }
                Self::Branch { children, .. } => node = children[child_of(origin, depth)].as_deref()?,
            }
            depth += 1;
        }
    }

    fn insert(&mut self, origin: RunId, clock: u64, depth: u32) -> Option<u64> {
        match self {
            Self::Leaf(entries) => match entries.binary_search_by_key(&origin, |entry| entry.0) {
                Ok(at) => Some(std::mem::replace(&mut entries[at].1, clock)),
                Err(at) => {
                    entries.insert(at, (origin, clock));
                    if entries.len() > LEAF_MAX
                        && let Some(divided) = Self::of(entries, depth)
                    {
                        *self = Arc::unwrap_or_clone(divided);
                    }
                    None
                }
            },
            Self::Branch { len, children } => {
                let before = match &mut children[child_of(origin, depth)] {
                    Some(child) => Arc::make_mut(child).insert(origin, clock, depth + 1),
                    empty => {
                        *empty = Some(Arc::new(Self::Leaf(vec![(origin, clock)])));
                        None
                    }
                };
                *len += usize::from(before.is_none());
                before
            }
        }
    }

    /// Removes an entry that is there. The node may be without entries afterwards.
    fn remove(&mut self, origin: RunId, depth: u32) {
        match self {
            Self::Leaf(entries) => entries.retain(|entry| entry.0 != origin),
            Self::Branch { len, children } => {
                *len -= 1;
                let child = &mut children[child_of(origin, depth)];
                if let Some(node) = child {
                    Arc::make_mut(node).remove(origin, depth + 1);
                    child.take_if(|node| node.len() == 0);
                }
                if *len <= LEAF_AGAIN {
                    let entries = ClockIter::over(children.iter().flatten()).collect();
                    *self = Self::Leaf(entries);
                }
            }
        }
    }
}

/// A branch whose children are `combined` from those of the branch `a`. If all stay the same, it is `a` itself.
fn combine(
    a: &Arc<ClockTree>,
    children: &Subtrees,
    combined: impl Fn(usize, Option<&Arc<ClockTree>>) -> Option<Arc<ClockTree>>,
) -> Option<Arc<ClockTree>> {
    let mut result = Subtrees::default();
    let mut is_same = true;
    for (at, child) in children.iter().enumerate() {
        result[at] = combined(at, child.as_ref());
        is_same &= match (child, &result[at]) {
            (Some(child), Some(result)) => Arc::ptr_eq(child, result),
            (None, None) => true,
            _ => false,
        };
    }
    if is_same {
        return Some(a.clone());
    }
    let node = ClockTree::branch(result);
    match node.len() {
        0 => None,
        1..=LEAF_AGAIN => Some(Arc::new(ClockTree::Leaf(ClockIter::over([&Arc::new(node)]).collect()))),
        _ => Some(Arc::new(node)),
    }
}

/// The greater clock of each origin.
fn merged(a: &Arc<ClockTree>, b: &Arc<ClockTree>, depth: u32) -> Arc<ClockTree> {
    if Arc::ptr_eq(a, b) {
        return a.clone();
    }
    match (&**a, &**b) {
        (ClockTree::Branch { children, .. }, ClockTree::Branch { children: others, .. }) => {
            let both = |at: usize, child: Option<&Arc<ClockTree>>| match (child, &others[at]) {
                (Some(a), Some(b)) => Some(merged(a, b, depth + 1)),
                (child, other) => child.or(other.as_ref()).cloned(),
            };
            combine(a, children, both).expect("neither is empty")
        }
        (ClockTree::Leaf(_), ClockTree::Branch { .. }) => merged(b, a, depth),
        (_, ClockTree::Leaf(entries)) => {
            let mut node = a.clone();
            for (origin, clock) in entries {
                if a.get(*origin, depth).is_none_or(|known| known < *clock) {
                    Arc::make_mut(&mut node).insert(*origin, *clock, depth);
                }
            }
            node
        }
    }
}

/// The part of `b` that is to be compared with a child of another tree's branch.
fn beside(b: &Arc<ClockTree>, at: usize) -> Option<&Arc<ClockTree>> {
    match &**b {
        ClockTree::Branch { children, .. } => children[at].as_ref(),
        ClockTree::Leaf(_) => Some(b),
    }
}

/// The entries of `a` for which `keep` holds: it is asked with the clock in `a` and the one in `b`. It must hold for an
/// entry that `b` lacks, and must not hold for one that `b` has with the same clock.
fn filtered(
    a: &Arc<ClockTree>,
    b: Option<&Arc<ClockTree>>,
    depth: u32,
    keep: &impl Fn(u64, Option<u64>) -> bool,
) -> Option<Arc<ClockTree>> {
    let Some(b) = b else { return Some(a.clone()) };
    if Arc::ptr_eq(a, b) {
        return None;
    }
    if b.len() * MUCH_LONGER < a.len() {
        let mut node = a.clone();
        for (origin, known) in ClockIter::over([b]) {
            if a.get(origin, depth).is_some_and(|clock| !keep(clock, Some(known))) {
                Arc::make_mut(&mut node).remove(origin, depth);
            }
        }
        return Some(node);
    }
    match &**a {
        ClockTree::Leaf(entries) => {
            let is_kept = |entry: &ClockEntry| keep(entry.1, b.get(entry.0, depth));
            if entries.iter().all(is_kept) {
                return Some(a.clone());
            }
            let kept: Vec<ClockEntry> = entries.iter().filter(|entry| is_kept(entry)).copied().collect();
            ClockTree::of(&kept, depth)
        }
        ClockTree::Branch { children, .. } => {
            combine(a, children, |at, child| filtered(child?, beside(b, at), depth + 1, keep))
        }
    }
}

fn is_covered(a: &Arc<ClockTree>, b: Option<&Arc<ClockTree>>, depth: u32) -> bool {
    let Some(b) = b else { return false };
    if Arc::ptr_eq(a, b) {
        return true;
    }
    match &**a {
        ClockTree::Leaf(entries) => {
            entries.iter().all(|(origin, clock)| b.get(*origin, depth).is_some_and(|known| *clock <= known))
        }
        ClockTree::Branch { children, .. } => children.iter().enumerate().all(|(at, child)| {
            child.as_ref().is_none_or(|child| is_covered(child, beside(b, at), depth + 1))
        }),
    }
}

/// The number of buckets that origins are divided into, by their first eight bits.
pub(crate) const BUCKETS: usize = 1 << (2 * FAN_BITS);

pub(super) fn bucket_of(origin: RunId) -> usize {
    (origin.number() >> (u64::BITS - 2 * FAN_BITS)) as usize
}

/// The entries whose bucket is in `buckets`. `before`: the bits of the origins that led to this node.
fn within(node: &Arc<ClockTree>, depth: u32, before: usize, buckets: &BucketMask) -> Option<Arc<ClockTree>> {
    match &**node {
        ClockTree::Leaf(entries) => {
            let kept = entries.iter().filter(|entry| buckets.has(bucket_of(entry.0)));
            ClockTree::of(&kept.copied().collect::<Vec<_>>(), depth)
        }
        ClockTree::Branch { children, .. } => combine(node, children, |at, child| {
            let bits = before << FAN_BITS | at;
            match (child?, depth) {
                (child, 0) => within(child, 1, bits, buckets),
                (child, _) => buckets.has(bits).then(|| child.clone()),
            }
        }),
    }
}

/// Some of the buckets.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct BucketMask {
    words: [u64; BUCKETS / 64],
}

impl BucketMask {
    pub(crate) fn from_words(words: [u64; BUCKETS / 64]) -> Self {
        Self { words }
    }

    pub(crate) fn words(self) -> [u64; BUCKETS / 64] {
        self.words
    }

    /// The buckets at which two lists agree.
    pub(crate) fn of_equal(a: &[u64; BUCKETS], b: &[u64; BUCKETS]) -> Self {
        let mut mask = Self::default();
        let equal = (0..BUCKETS).filter(|bucket| a[*bucket] == b[*bucket]);
        equal.for_each(|bucket| mask.words[bucket / 64] |= 1 << (bucket % 64));
        mask
    }

    fn has(&self, bucket: usize) -> bool {
        self.words[bucket / 64] >> (bucket % 64) & 1 == 1
    }
}

/// For each origin the greatest clock: a vector, or a context. An origin without an entry has the clock 0.
#[derive(Clone, Debug, Default)]
pub(crate) struct Clocks {
    root: Option<Arc<ClockTree>>,
}

impl Clocks {
    pub(crate) fn len(&self) -> usize {
        self.root.as_ref().map_or(0, |root| root.len())
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.root.is_none()
    }

    pub(crate) fn clock(&self, origin: RunId) -> Option<u64> {
        self.root.as_ref()?.get(origin, 0)
    }

    /// The clock of an origin, 0 if it has no entry.
    pub(crate) fn get(&self, origin: RunId) -> u64 {
        self.clock(origin).unwrap_or(0)
    }

    pub(crate) fn covers(&self, stamp: Stamp) -> bool {
        self.get(stamp.origin) >= stamp.clock
    }

    /// Sets a clock, which may be less than before. Returns the one before.
    pub(crate) fn insert(&mut self, origin: RunId, clock: u64) -> Option<u64> {
        match &mut self.root {
            Some(root) => Arc::make_mut(root).insert(origin, clock, 0),
            empty => {
                *empty = Some(Arc::new(ClockTree::Leaf(vec![(origin, clock)])));
                None
            }
        }
    }

    /// Raises a clock to that of a stamp. Returns whether it was less.
    pub(crate) fn raise(&mut self, stamp: Stamp) -> bool {
        let is_beyond = !self.covers(stamp);
        if is_beyond {
            self.insert(stamp.origin, stamp.clock);
        }
        is_beyond
    }

    pub(crate) fn remove(&mut self, origin: RunId) {
        if let Some(root) = self.root.as_mut().filter(|root| root.get(origin, 0).is_some()) {
            Arc::make_mut(root).remove(origin, 0);
            self.root.take_if(|root| root.len() == 0);
        }
    }

    /// The entries with a greater clock than in `other`.
    #[must_use]
    pub(crate) fn beyond(&self, other: &Self) -> Self {
        self.filtered(other, |clock, known| known.is_none_or(|known| known < clock))
    }

    /// The entries that `other` lacks or has with another clock.
    #[must_use]
    pub(crate) fn unlike(&self, other: &Self) -> Self {
        self.filtered(other, |clock, known| known != Some(clock))
    }

    /// The entries of origins that `other` lacks.
    #[must_use]
    pub(crate) fn without(&self, other: &Self) -> Self {
        self.filtered(other, |_, known| known.is_none())
    }

    /// The entries of some buckets.
    #[must_use]
    pub(crate) fn within(&self, buckets: &BucketMask) -> Self {
        Self { root: self.root.as_ref().and_then(|root| within(root, 0, 0, buckets)) }
    }

    fn filtered(&self, other: &Self, keep: impl Fn(u64, Option<u64>) -> bool) -> Self {
        Self { root: self.root.as_ref().and_then(|root| filtered(root, other.root.as_ref(), 0, &keep)) }
    }

    /// Whether no clock is greater than in `other`.
    pub(crate) fn is_covered_by(&self, other: &Self) -> bool {
        self.root.as_ref().is_none_or(|root| is_covered(root, other.root.as_ref(), 0))
    }

    /// Whether both are one and the same map, so that nothing need be compared. Equal maps may be separate ones.
    pub(crate) fn is_shared_with(&self, other: &Self) -> bool {
        match (&self.root, &other.root) {
            (Some(a), Some(b)) => Arc::ptr_eq(a, b),
            (None, None) => true,
            _ => false,
        }
    }

    /// All entries, in the order of the origins.
    pub(crate) fn iter(&self) -> ClockIter<'_> {
        ClockIter::over(self.root.iter())
    }
}

impl CvRDT for Clocks {
    type Validation = Infallible;

    fn validate_merge(&self, _: &Self) -> Result<(), Infallible> {
        Ok(())
    }

    /// Takes the greater clock for each origin.
    fn merge(&mut self, other: Self) {
        self.root = match (self.root.take(), other.root) {
            (Some(a), Some(b)) => Some(merged(&a, &b, 0)),
            (own, other) => own.or(other),
        };
    }
}

impl PartialEq for Clocks {
    fn eq(&self, other: &Self) -> bool {
        self.len() == other.len() && self.is_covered_by(other) && other.is_covered_by(self)
    }
}

impl FromIterator<(RunId, u64)> for Clocks {
    /// Of several entries of an origin the last one counts.
    fn from_iter<I: IntoIterator<Item = (RunId, u64)>>(entries: I) -> Self {
        let mut entries: Vec<ClockEntry> = entries.into_iter().collect();
        if entries.is_sorted_by(|a, b| a.0 < b.0) {
            return Self { root: ClockTree::of(&entries, 0) };
        }
        let mut clocks = Self::default();
        entries.drain(..).for_each(|(origin, clock)| _ = clocks.insert(origin, clock));
        clocks
    }
}

/// The entries of a map in the order of the origins.
#[derive(Debug)]
pub(crate) struct ClockIter<'a> {
    /// The nodes that come later, the next one last.
    nodes: Vec<&'a ClockTree>,
    entries: std::slice::Iter<'a, ClockEntry>,
}

impl<'a> ClockIter<'a> {
    fn over(nodes: impl IntoIterator<Item = &'a Arc<ClockTree>>) -> Self {
        let mut nodes: Vec<&ClockTree> = nodes.into_iter().map(|node| &**node).collect();
        nodes.reverse();
        Self { nodes, entries: [].iter() }
    }
}

impl Iterator for ClockIter<'_> {
    type Item = (RunId, u64);

    fn next(&mut self) -> Option<(RunId, u64)> {
        loop {
            if let Some(entry) = self.entries.next() {
                return Some(*entry);
            }
            match self.nodes.pop()? {
                ClockTree::Leaf(entries) => self.entries = entries.iter(),
                ClockTree::Branch { children, .. } => {
                    self.nodes.extend(children.iter().rev().flatten().map(|child| &**child));
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use crdts::VClock;
    use proptest::prelude::*;

    use super::*;

    /// The model: the vector clock of the crate `crdts`.
    type Model = VClock<RunId>;

    /// Origins near to each other and far apart, so that trees have leaves at all depths.
    fn models() -> impl Strategy<Value = Model> {
        let origin = prop_oneof![0..200_u64, any::<u64>(), (0..200_u64).prop_map(|low| low << 56)];
        prop::collection::btree_map(origin.prop_map(RunId::new), 1..4_u64, 0..300)
            .prop_map(|dots| Model { dots })
    }

    fn clocks(model: &Model) -> Clocks {
        model.dots.iter().rev().map(|(origin, clock)| (*origin, *clock)).collect()
    }

    fn model(clocks: &Clocks) -> Model {
        let entries: Vec<_> = clocks.iter().collect();
        assert!(entries.is_sorted_by(|a, b| a.0 < b.0), "in the order of the origins");
        assert_eq!(entries.len(), clocks.len());
        Model { dots: entries.into_iter().collect() }
    }

    proptest! {
        #[test]
        fn clocks_agree_with_a_plain_map(a in models(), b in models(), is_copy in any::<bool>()) {
            let mut ours = clocks(&a);
            let copy = ours.clone();
            let mut theirs = if is_copy { copy.clone() } else { Clocks::default() };
            let mut their_model = if is_copy { a.clone() } else { Model::new() };
            for (origin, clock) in &b.dots {
                theirs.raise(Stamp { clock: *clock, origin: *origin });
            }
            their_model.merge(b.clone());
            prop_assert_eq!(&model(&theirs), &their_model);
            prop_assert_eq!(&model(&copy), &a);
            let is_beyond = |(origin, clock): &(&RunId, &u64)| their_model.get(origin) < **clock;
            let beyond = a.dots.iter().filter(is_beyond).map(|(origin, clock)| (*origin, *clock)).collect();
            prop_assert_eq!(model(&ours.beyond(&theirs)), Model { dots: beyond });
            let is_unlike = |(origin, clock): &(&RunId, &u64)| their_model.dots.get(origin) != Some(*clock);
            let unlike = a.dots.iter().filter(is_unlike).map(|(origin, clock)| (*origin, *clock)).collect();
            prop_assert_eq!(model(&ours.unlike(&theirs)), Model { dots: unlike });
            let is_missing = |(origin, _): &(&RunId, &u64)| !their_model.dots.contains_key(origin);
            let missing = a.dots.iter().filter(is_missing).map(|(origin, clock)| (*origin, *clock)).collect();
            prop_assert_eq!(model(&ours.without(&theirs)), Model { dots: missing });
            let half = |bucket: usize| bucket * 7 % 16 < 8;
            let mut sums = [[0; BUCKETS]; 2];
            (0..BUCKETS).for_each(|bucket| sums[1][bucket] = u64::from(!half(bucket)));
            let inside = |(origin, _): &(&RunId, &u64)| half(bucket_of(**origin));
            let inside = a.dots.iter().filter(inside).map(|(origin, clock)| (*origin, *clock)).collect();
            let mask = BucketMask::of_equal(&sums[0], &sums[1]);
            prop_assert_eq!(model(&ours.within(&mask)), Model { dots: inside });
            prop_assert_eq!(ours.is_covered_by(&theirs), a <= their_model);
            prop_assert_eq!(ours == theirs, a == their_model);
            let mut all = a.clone();
            all.merge(their_model);
            ours.merge(theirs);
            prop_assert_eq!(&model(&ours), &all);
            for origin in b.dots.keys() {
                ours.remove(*origin);
                all.dots.remove(origin);
            }
            prop_assert_eq!(&model(&ours), &all);
            prop_assert_eq!(&model(&copy), &a);
        }
    }

    #[test]
    fn merging_what_is_known_copies_nothing() {
        let spread = |i: u64| RunId::new(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        let all: Clocks = (0..10_000).map(|i| (spread(i), 1)).collect();
        let part: Clocks = all.iter().step_by(7).collect();
        let mut merged = all.clone();
        merged.merge(part.clone());
        assert!(merged.is_shared_with(&all));
        let mut grown = part;
        grown.merge(all.clone());
        assert!(grown == all && !grown.is_shared_with(&all));
    }
}
