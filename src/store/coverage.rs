//! What has been merged here: a vector, and a cloud beyond it.
//!
//! The vector says, for each origin, up to which stamp *every* event of it is merged. Beyond the vector, the cloud
//! remembers contexts by the place of a key in hash space: a single key's (a point), or those of a whole range that
//! a reconcile has settled (a span). One structure serves both, because merging all rows of a range at one context
//! *is* merging each of them with it; and because a span stands for a finished merge, it stays true when the
//! session that brought it is aborted. It vanishes as soon as the vector has caught up.
//!
//! What a held dot implies (see [`Held::implies`](crate::store::entry::Held::implies)) need not be in the cloud, as long as
//! it is held. So the rows of a long flush, of which there may be millions before its `done`, leave nothing there.
//!
//! Covered and not held means removed. So nothing may ever be claimed here that was not merged.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::{Arc, Weak};

use crdts::{CvRDT, VClock};

use crate::store::digest::{HashKey, Place, Range};
use crate::time::Stamp;

mod bounds;
mod hash;
mod pending;

pub(crate) use bounds::ClaimBounds;
pub(crate) use hash::{SEAL, VectorHash};
use pending::{LEFTOVER_ITEMS_KEPT_MAX, Leftovers};
pub(crate) use pending::{LEFTOVER_ITEMS_MAX, LEFTOVERS_MAX, Pending, Places, ToldPending};

/// Clocks that a sweep looks at for each change.
const CLOCKS_PER_CHANGE: usize = 32;

/// For each origin the greatest clock.
pub(crate) type Context = VClock<u64>;

pub(crate) fn covers(context: &Context, stamp: Stamp) -> bool {
    context.get(&stamp.origin) >= stamp.clock
}

pub(crate) fn raise(context: &mut Context, stamp: Stamp) {
    if stamp.clock > 0 {
        let clock = context.dots.entry(stamp.origin).or_default();
        *clock = stamp.clock.max(*clock);
    }
}

/// The part of `context` that lies beyond `vector`.
pub(crate) fn beyond(context: &Context, vector: &Context) -> Context {
    // Both are in order: side by side, unless one is much longer than the other.
    if context.dots.len() * 8 < vector.dots.len() {
        let dots = context.dots.iter().filter(|(origin, clock)| vector.get(origin) < **clock);
        return Context { dots: dots.map(|(origin, clock)| (*origin, *clock)).collect() };
    }
    let mut known = vector.dots.iter().peekable();
    let dots = context.dots.iter().filter(|(origin, clock)| {
        while known.next_if(|(other, _)| other < origin).is_some() {}
        known.next_if(|(other, _)| other == origin).is_none_or(|(_, known)| known < *clock)
    });
    Context { dots: dots.map(|(origin, clock)| (*origin, *clock)).collect() }
}

/// A piece of hash space, both ends included, with what is covered there.
#[derive(Clone, Debug)]
struct Span {
    last: u64,
    context: Arc<Context>,
}

/// Contexts by place in hash space. Spans do not overlap.
#[derive(Clone, Debug, Default)]
struct Cloud {
    spans: BTreeMap<u64, Span>,
}

impl Cloud {
    fn at(&self, position: u64) -> Option<&Arc<Context>> {
        let (_, span) = self.spans.range(..=position).next_back()?;
        (position <= span.last).then_some(&span.context)
    }

    /// Adds `context` to everything from `first` to `last`.
    fn cover(&mut self, first: u64, last: u64, context: &Arc<Context>) {
        self.split(first);
        if let Some(next) = last.checked_add(1) {
            self.split(next);
        }
        let mut at = first;
        let inside: Vec<u64> = self.spans.range(first..=last).map(|(start, _)| *start).collect();
        for start in inside {
            if at < start {
                self.place(at, start - 1, context.clone());
            }
            let span = self.spans.get_mut(&start).expect("just listed");
            if !Arc::ptr_eq(&span.context, context) {
                Arc::make_mut(&mut span.context).merge(Context::clone(context));
            }
            match span.last.checked_add(1) {
                Some(next) => at = next,
                None => return,
            }
        }
        if at <= last {
            self.place(at, last, context.clone());
        }
    }

    /// The same for a single place: nearly always there is nothing there yet.
    fn cover_point(&mut self, at: u64, context: &Arc<Context>) {
        match self.spans.range(..=at).next_back() {
            Some((_, span)) if at <= span.last => self.cover(at, at, context),
            _ => _ = self.spans.insert(at, Span { last: at, context: context.clone() }),
        }
    }

    /// Makes sure that no span reaches across `position` from before it.
    fn split(&mut self, position: u64) {
        let Some((_, span)) = self.spans.range_mut(..position).next_back() else { return };
        if span.last < position {
            return;
        }
        let rest = Span { last: span.last, context: span.context.clone() };
        span.last = position - 1;
        self.spans.insert(position, rest);
    }

    /// Puts a span where there is none, joined with the one before it if that has the same context.
    fn place(&mut self, first: u64, last: u64, context: Arc<Context>) {
        if let Some((_, before)) = self.spans.range_mut(..first).next_back()
            && before.last.checked_add(1) == Some(first)
            && (Arc::ptr_eq(&before.context, &context) || before.context == context)
        {
            before.last = last;
            return;
        }
        self.spans.insert(first, Span { last, context });
    }
}

fn spans_of(cloud: &Cloud, hash_key: HashKey) -> impl Iterator<Item = Pending> {
    cloud.spans.iter().map(move |(first, span)| {
        Pending::new(hash_key, Places::between(*first, span.last), span.context.clone())
    })
}

/// What lies beyond the vector of the context that was asked about last. The ranges and rows of a session come with the
/// same vector of the peer, one after the other, and it may have an entry for every process start of the past.
#[derive(Clone, Debug)]
struct Excess {
    /// Compared by address. While this reference exists the address is not used again. It is a weak one, because a
    /// context that is shared has to be copied before it can grow.
    of: Weak<Context>,
    /// The version of the vector for which it was last found right.
    version: u64,
    beyond: Arc<Context>,
}

/// Everything that is merged here.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    hash_key: HashKey,
    vector: Context,
    /// Of the vector: for comparisons with peers, salted by the hash key, and for the disk.
    hash: VectorHash,
    saved_hash: VectorHash,
    excess: Option<Excess>,
    /// For each origin, the `version` at which its entry last grew; and the origins in this order: what a link has not
    /// sent yet are the last of them.
    grown: BTreeMap<u64, u64>,
    latest: BTreeMap<u64, u64>,
    version: u64,
    cloud: Cloud,
    /// For each origin the greatest stamp beyond the vector that a row implied instead of leaving it in the cloud.
    implied: Context,
    /// What was covered under earlier hash keys, until the vector has caught up. Almost always empty: islands
    /// seldom meet.
    leftovers: Leftovers,
    /// Claims that lie in the future: see [`Seen::withhold`].
    withheld: Context,
    /// While there are such claims, the greatest clock of a context that is told.
    told_max: Option<u64>,
    /// Changes since the last sweep, and the changes after which the next one is due: so many that it costs little for
    /// each of them, whatever the number of contexts and of clocks in them.
    unswept: usize,
    sweep_after: usize,
}

impl Seen {
    pub(crate) fn new(hash_key: HashKey) -> Self {
        Self {
            hash_key,
            vector: Context::new(),
            hash: VectorHash::new(hash_key.words().0),
            saved_hash: VectorHash::new(SEAL),
            excess: None,
            grown: BTreeMap::new(),
            latest: BTreeMap::new(),
            version: 0,
            cloud: Cloud::default(),
            implied: Context::new(),
            leftovers: Leftovers::default(),
            withheld: Context::new(),
            told_max: None,
            unswept: 0,
            sweep_after: 0,
        }
    }

    /// Up to which stamp of each origin everything is merged, as far as peers are told.
    pub(crate) fn vector(&self) -> &Context {
        &self.vector
    }

    /// The same with what peers are not told: see [`Seen::withhold`].
    pub(crate) fn known(&self) -> Cow<'_, Context> {
        if self.withheld.dots.is_empty() {
            return Cow::Borrowed(&self.vector);
        }
        let mut known = self.vector.clone();
        known.merge(self.withheld.clone());
        Cow::Owned(known)
    }

    /// The same of one origin.
    pub(crate) fn known_clock(&self, origin: u64) -> u64 {
        self.vector.get(&origin).max(self.withheld.get(&origin))
    }

    /// A fingerprint of [`Seen::known`] that does not depend on the hash key.
    pub(crate) fn known_hash(&self) -> u64 {
        if self.withheld.dots.is_empty() {
            return self.saved_hash.sum();
        }
        VectorHash::of(SEAL, &self.known().dots).sum()
    }

    /// The part of a context that lies beyond the vector. Asked again about the very same one, it costs what the vector
    /// has grown meanwhile.
    pub(crate) fn excess(&mut self, context: &Arc<Context>) -> Arc<Context> {
        if context.dots.is_empty() {
            return Arc::default();
        }
        if let Some(known) = &mut self.excess
            && known.of.as_ptr() == Arc::as_ptr(context)
        {
            let excess = &known.beyond;
            let mut grown = self.latest.range(known.version.saturating_add(1)..);
            let is_caught_up = |(_, origin): (&u64, &u64)| {
                excess.dots.get(origin).is_some_and(|clock| *clock <= self.vector.get(origin))
            };
            if !grown.any(is_caught_up) {
                known.version = self.version;
                return excess.clone();
            }
        }
        let excess = Arc::new(beyond(context, &self.vector));
        self.excess =
            Some(Excess { of: Arc::downgrade(context), version: self.version, beyond: excess.clone() });
        excess
    }

    /// What of a context is told to peers beyond the vector.
    pub(crate) fn told(&self, context: &Context) -> Context {
        let mut told = beyond(context, &self.vector);
        if let Some(max) = self.told_max {
            told.dots.retain(|_, clock| *clock <= max);
        }
        told
    }

    /// Keeps to itself, until their time, the claims whose clock is over `taken_max`. They were made or taken while this
    /// node's clock was wrong, and no peer would take them. They still count here and on the disk, so that no delete of
    /// that time is undone. Peers are told of these origins up to `right_max`, the greatest clock that a right node stamps.
    /// Returns whether something was told that is told no more.
    ///
    /// Rows are told without the contexts that are withheld. So whoever took writes from the future as well goes on
    /// holding what later writes here have removed, until the time of these writes has come.
    pub(crate) fn withhold(&mut self, right_max: u64, taken_max: u64) -> bool {
        let withheld = std::mem::take(&mut self.withheld);
        let (later, now): (Vec<_>, Vec<_>) =
            withheld.dots.into_iter().partition(|(_, clock)| *clock > right_max);
        self.withheld.dots.extend(later);
        now.into_iter().for_each(|(origin, clock)| self.claim(Stamp { clock, origin }));
        let mut is_lowered = false;
        for (origin, clock) in self.vector.dots.iter_mut().filter(|(_, clock)| **clock > taken_max) {
            let stamp = Stamp { clock: std::mem::replace(clock, right_max), origin: *origin };
            self.hash.change(stamp.origin, Some(stamp.clock), right_max);
            self.saved_hash.change(stamp.origin, Some(stamp.clock), right_max);
            raise(&mut self.withheld, stamp);
            raise(&mut self.implied, stamp);
            is_lowered = true;
        }
        if is_lowered {
            // More lies beyond the vector than before.
            self.excess = None;
        }
        let contexts = self.cloud.spans.values().map(|span| &span.context);
        let mut contexts = contexts.chain(self.leftovers.iter().map(|pending| &pending.context));
        let is_ahead = |context: &Arc<Context>| context.dots.values().any(|clock| *clock > taken_max);
        let withholds = !self.withheld.dots.is_empty() || contexts.any(is_ahead);
        self.told_max = withholds.then_some(taken_max);
        is_lowered
    }

    /// Whether there are claims from the future.
    pub(crate) fn withholds(&self) -> bool {
        self.told_max.is_some()
    }

    /// While there are claims from the future: up to which clock contexts are told.
    pub(crate) fn tell_up_to(&mut self, taken_max: u64) {
        if let Some(told_max) = &mut self.told_max {
            *told_max = taken_max;
        }
    }

    /// Grows whenever an entry of the vector does.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The entries of the vector that grew after `version`.
    pub(crate) fn grown_since(&self, version: u64) -> impl Iterator<Item = (u64, u64)> {
        let grown = self.latest.range(version.saturating_add(1)..);
        grown.map(|(_, origin)| (*origin, self.vector.get(origin)))
    }

    /// Records that every event of an origin up to this one is merged.
    pub(crate) fn claim(&mut self, stamp: Stamp) {
        self.raise(stamp);
        if self.unswept > self.sweep_after {
            self.sweep();
        }
    }

    /// The same for many origins at once. The contexts are looked at once for all of them.
    pub(crate) fn claim_all(&mut self, vector: &Context) {
        for (origin, clock) in &vector.dots {
            self.raise(Stamp { clock: *clock, origin: *origin });
        }
        // A session has ended: what it came with takes no more room.
        self.excess = None;
        self.sweep();
    }

    fn raise(&mut self, stamp: Stamp) {
        if covers(&self.vector, stamp) {
            return;
        }
        let before = self.vector.dots.insert(stamp.origin, stamp.clock);
        self.hash.change(stamp.origin, before, stamp.clock);
        self.saved_hash.change(stamp.origin, before, stamp.clock);
        if self.implied.get(&stamp.origin) <= stamp.clock {
            self.implied.dots.remove(&stamp.origin);
        }
        self.version += 1;
        if let Some(before) = self.grown.insert(stamp.origin, self.version) {
            self.latest.remove(&before);
        }
        self.latest.insert(self.version, stamp.origin);
        self.unswept += 1;
    }

    /// Whether this event of this key is merged here.
    pub(crate) fn covers(&self, key: &[u8], place: Place, stamp: Stamp) -> bool {
        covers(&self.vector, stamp)
            || covers(&self.withheld, stamp)
            || self.cloud.at(place.position()).is_some_and(|context| covers(context, stamp))
            || self.leftovers.iter().any(|pending| pending.covers(key, stamp))
    }

    /// What is covered at this key beyond the vector. Usually nothing.
    pub(crate) fn context(&self, key: &[u8], place: Place) -> Option<Arc<Context>> {
        let here = self.leftovers.iter().filter(|pending| pending.is_for(key));
        let mut contexts = self.cloud.at(place.position()).into_iter().chain(here.map(|it| &it.context));
        let mut all = contexts.next()?.clone();
        for context in contexts {
            Arc::make_mut(&mut all).merge(Context::clone(context));
        }
        Some(all)
    }

    /// Records that a row of this key was merged with this context.
    pub(crate) fn cover_key(&mut self, key: &[u8], place: Place, context: &Arc<Context>) {
        // As after the range around it was.
        if self.cloud.at(place.position()).is_some_and(|here| Arc::ptr_eq(here, context)) {
            return;
        }
        let known =
            |(origin, clock): (&u64, &u64)| self.covers(key, place, Stamp { clock: *clock, origin: *origin });
        if !context.dots.iter().all(known) {
            self.cloud.cover_point(place.position(), context);
            self.unswept += 1;
        }
    }

    /// Records that a dot that is held is covered because it is.
    pub(crate) fn imply(&mut self, stamp: Stamp) {
        if !covers(&self.vector, stamp) {
            raise(&mut self.implied, stamp);
        }
    }

    /// Whether a held dot with this stamp is one that implies what it covers.
    pub(crate) fn implies(&self, stamp: Stamp) -> bool {
        covers(&self.implied, stamp)
    }

    /// A dot is about to be held no more: what it implied is recorded.
    pub(crate) fn keep(&mut self, key: &[u8], place: Place, stamp: Stamp) {
        if self.implies(stamp) {
            let mut context = Context::new();
            raise(&mut context, stamp);
            self.cover_key(key, place, &Arc::new(context));
        }
    }

    /// Whether everything that is merged here is in the vector.
    pub(crate) fn is_settled(&self) -> bool {
        self.spans() == 0 && self.implied.dots.is_empty()
    }

    /// Records that all rows of a range were merged with this context.
    pub(crate) fn cover_range(&mut self, range: Range, context: &Arc<Context>) {
        if !context.dots.is_empty() {
            self.cloud.cover(range.first(), range.last(), context);
            self.unswept += 1;
        }
    }

    /// Whether what a peer told can be recorded without keeping more leftovers than permitted.
    pub(crate) fn has_room(&self, pending: &[Pending]) -> bool {
        let is_leftover = |it: &&Pending| it.places_under(self.hash_key).is_none();
        let mut new = pending.iter().filter(is_leftover).peekable();
        // With none to record there is room even where a new hash key has made more than permitted of what was here: how
        // else would they ever be caught up with.
        if new.peek().is_none() {
            return true;
        }
        let (mut count, mut items) = (self.leftovers.len(), self.leftovers.items());
        for new in new {
            count += 1;
            items += new.items();
        }
        count <= LEFTOVERS_MAX && items <= LEFTOVER_ITEMS_KEPT_MAX
    }

    /// Records what a peer told along with a range that is merged.
    pub(crate) fn cover_pending(&mut self, range: Range, pending: &Pending) {
        self.unswept += 1;
        let pending = pending.clone().within(self.hash_key, range.first(), range.last());
        if let Some(pending) = pending
            && let Some(here) = self.leftovers.add(pending, self.hash_key)
        {
            self.cover_places(&here);
        }
    }

    /// The same, but a leftover stands beside those that say the same: the fault of `Control::LeftoversNarrowed`.
    pub(crate) fn cover_narrowed(&mut self, range: Range, pending: &Pending) {
        let narrowed = pending.clone().within(self.hash_key, range.first(), range.last());
        match narrowed {
            Some(leftover) if leftover.places_under(self.hash_key).is_none() => self.leftovers.push(leftover),
            _ => self.cover_pending(range, pending),
        }
    }

    /// Records what no earlier hash key restricts.
    fn cover_places(&mut self, pending: &Pending) {
        let places = pending.places_under(self.hash_key).expect("no other hash key restricts it");
        for (first, last) in places.iter() {
            self.cloud.cover(first, last, &pending.context);
        }
    }

    /// Everything that is covered beyond the vector within a range.
    pub(crate) fn pending(&self, range: Range) -> Vec<Pending> {
        let (first, last) = (range.first(), range.last());
        let here = self.leftovers.iter().filter(|pending| pending.reaches(self.hash_key, first, last));
        let mut pending = Vec::new();
        for leftover in here {
            let context = self.told(&leftover.context);
            if !context.dots.is_empty() {
                pending.push(Pending { regions: leftover.regions.clone(), context: Arc::new(context) });
            }
        }
        let before = self.cloud.spans.range(..first).next_back().filter(|(_, span)| span.last >= first);
        for (start, span) in before.into_iter().chain(self.cloud.spans.range(first..=last)) {
            let context = self.told(&span.context);
            if !context.dots.is_empty() {
                let places = Places::between(first.max(*start), last.min(span.last));
                pending.push(Pending::new(self.hash_key, places, Arc::new(context)));
            }
        }
        pending
    }

    /// Whether more than `limit` contexts would have to be told along with this range.
    pub(crate) fn is_crowded(&self, range: Range, limit: usize) -> bool {
        self.cloud.spans.range(range.first()..=range.last()).nth(limit).is_some()
    }

    /// Forgets what the vector has.
    pub(crate) fn sweep(&mut self) {
        let vector = &self.vector;
        self.cloud.spans.retain(|_, span| !beyond(&span.context, vector).dots.is_empty());
        let here = self.leftovers.sweep(vector, self.hash_key);
        here.iter().for_each(|pending| self.cover_places(pending));
        let cost = |context: &Context| 1 + context.dots.len() / CLOCKS_PER_CHANGE;
        let spans = self.cloud.spans.values().map(|span| cost(&span.context));
        self.sweep_after = spans.chain(self.leftovers.iter().map(|it| cost(&it.context))).sum();
        self.unswept = 0;
    }

    /// From now on places are counted under another hash key. A context that stands at one known key follows it; all
    /// others stay where they are, as leftovers.
    pub(crate) fn rekey<'a>(&mut self, hash_key: HashKey, keys: impl Iterator<Item = &'a [u8]>) {
        self.sweep();
        if hash_key == self.hash_key {
            return;
        }
        let mut before = std::mem::take(&mut self.cloud);
        let old_key = std::mem::replace(&mut self.hash_key, hash_key);
        self.hash = VectorHash::of(hash_key.words().0, &self.vector.dots);
        if !before.spans.is_empty() {
            for key in keys {
                let at = old_key.place(key).position();
                if before.spans.get(&at).is_some_and(|span| span.last == at)
                    && let Some(point) = before.spans.remove(&at)
                {
                    self.cloud.cover_point(hash_key.place(key).position(), &point.context);
                }
            }
        }
        let here: Vec<Pending> = std::mem::take(&mut self.leftovers).iter().cloned().collect();
        for pending in here.into_iter().chain(spans_of(&before, old_key)) {
            if let Some(here) = self.leftovers.add(pending, hash_key) {
                self.cover_places(&here);
            }
        }
    }

    /// How many contexts are kept beyond the vector.
    pub(crate) fn spans(&self) -> usize {
        self.cloud.spans.len() + self.leftovers.len()
    }

    /// All that is covered beyond the vector, for the disk.
    pub(crate) fn clouds(&self) -> Vec<Pending> {
        self.leftovers.iter().cloned().chain(spans_of(&self.cloud, self.hash_key)).collect()
    }

    /// Takes over what a disk holds.
    pub(crate) fn restore(&mut self, vector: BTreeMap<u64, u64>, clouds: &[Pending]) {
        self.claim_all(&Context { dots: vector });
        clouds.iter().for_each(|pending| self.cover_pending(Range::ALL, pending));
    }

    /// A fingerprint of the vector. Digests can be compared under the same hash key alone, so equal fingerprints
    /// mean an equal hash key too.
    pub(crate) fn hash(&self) -> u64 {
        self.hash.salted()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn context(dots: &[(u64, u64)]) -> Arc<Context> {
        Arc::new(Context { dots: dots.iter().copied().collect() })
    }

    #[test]
    fn overlapping_spans_keep_the_join_of_their_contexts_at_every_point() {
        let mut cloud = Cloud::default();
        let mut plain: BTreeMap<u64, Context> = BTreeMap::new();
        let pieces = [(10, 20, 1), (15, 30, 2), (0, 12, 3), (5, 40, 4), (20, 20, 5), (0, 63, 6), (63, 63, 7)];
        for (first, last, clock) in pieces {
            let new = context(&[(clock % 3, clock)]);
            cloud.cover(first, last, &new);
            for point in first..=last {
                plain.entry(point).or_default().merge(Context::clone(&new));
            }
            for point in 0..64 {
                assert_eq!(cloud.at(point).map(|c| Context::clone(c)), plain.get(&point).cloned(), "{point}");
            }
        }
        cloud.cover(u64::MAX - 1, u64::MAX, &context(&[(1, 1)]));
        assert!(cloud.at(u64::MAX).is_some() && cloud.at(u64::MAX - 2).is_none());
    }

    #[test]
    fn neighbours_with_the_same_context_are_one_span() {
        let mut cloud = Cloud::default();
        let same = context(&[(1, 1)]);
        for first in (0..1_000).step_by(10) {
            cloud.cover(first, first + 9, &same);
        }
        assert_eq!(cloud.spans.len(), 1);
    }

    #[test]
    fn the_cloud_is_empty_once_the_vector_has_caught_up() {
        let mut seen = Seen::new(HashKey::default());
        seen.cover_range(Range::ALL, &context(&[(1, 5), (2, 7)]));
        let place = HashKey::default().place(b"k");
        assert!(seen.covers(b"k", place, Stamp { clock: 7, origin: 2 }));
        seen.claim(Stamp { clock: 5, origin: 1 });
        seen.sweep();
        assert_eq!(seen.spans(), 1);
        seen.claim(Stamp { clock: 9, origin: 2 });
        seen.sweep();
        assert_eq!(seen.spans(), 0);
    }

    #[test]
    fn contexts_survive_a_change_of_the_hash_key() {
        let mut seen = Seen::new(HashKey::default());
        let old = HashKey::default().place(b"k");
        seen.cover_key(b"k", old, &context(&[(1, 5)]));
        let other = HashKey::from_words(1, 2);
        seen.rekey(other, std::iter::empty());
        assert!(seen.covers(b"k", other.place(b"k"), Stamp { clock: 5, origin: 1 }));
        assert!(!seen.covers(b"l", other.place(b"l"), Stamp { clock: 5, origin: 1 }));
        seen.cover_key(b"m", other.place(b"m"), &context(&[(1, 6)]));
        assert_eq!((seen.leftovers.len(), seen.cloud.spans.len()), (1, 1));
        // As after each start from a disk: what is in its place stays there, where it is found at once.
        seen.rekey(other, std::iter::empty());
        assert_eq!((seen.leftovers.len(), seen.cloud.spans.len()), (1, 1));
        let mut third = Seen::new(other);
        for range in
            [Range::at(other.place(b"l").position(), 60), Range::at(other.place(b"k").position(), 60)]
        {
            assert!(!third.covers(b"k", other.place(b"k"), Stamp { clock: 5, origin: 1 }));
            seen.pending(range).iter().for_each(|pending| third.cover_pending(range, pending));
        }
        assert!(third.covers(b"k", other.place(b"k"), Stamp { clock: 5, origin: 1 }));
    }

    #[test]
    fn leftover_told_with_every_range_stays_one() {
        let (old, new) = (HashKey::from_words(1, 1), HashKey::from_words(2, 2));
        let mut teller = Seen::new(old);
        for at in 0..100 {
            teller.cover_range(Range::at(at << 50, 20), &context(&[(1, 5)]));
        }
        teller.rekey(new, std::iter::empty());
        assert_eq!(teller.spans(), 1, "what says the same is one");
        let mut hearer = Seen::new(new);
        for _ in 0..3 {
            for child in 0..16 {
                let range = Range::ALL.child(child);
                let told = teller.pending(range);
                told.iter().for_each(|pending| hearer.cover_pending(range, pending));
                assert_eq!(hearer.spans(), 1, "after range {child}");
            }
            assert_eq!(hearer.clouds(), teller.clouds());
        }
        hearer.claim_all(&context(&[(1, 5)]));
        assert_eq!(hearer.spans(), 0);
    }

    #[test]
    fn context_of_a_known_key_follows_it_to_a_new_hash_key() {
        let (old, new) = (HashKey::from_words(1, 1), HashKey::from_words(2, 2));
        let mut seen = Seen::new(old);
        seen.cover_key(b"k", old.place(b"k"), &context(&[(1, 5)]));
        seen.rekey(new, std::iter::once(&b"k"[..]));
        assert!(seen.leftovers.iter().next().is_none());
        assert!(seen.covers(b"k", new.place(b"k"), Stamp { clock: 5, origin: 1 }));
    }

    #[test]
    fn sweeping_costs_no_more_than_what_changes() {
        let mut seen = Seen::new(HashKey::default());
        let vector: Context = Context { dots: (0..50_000).map(|origin| (origin, 7)).collect() };
        seen.cover_range(Range::ALL.child(1), &Arc::new(vector.clone()));
        let mut sweeps = 0;
        for (origin, clock) in &vector.dots {
            seen.claim(Stamp { clock: *clock, origin: *origin });
            sweeps += usize::from(seen.unswept == 0);
        }
        let most = 2 * CLOCKS_PER_CHANGE;
        assert!(sweeps <= most, "{sweeps} sweeps, each of which looks at up to {} clocks", vector.dots.len());
        seen.sweep();
        assert!(seen.is_settled());
    }

    #[test]
    fn excess_follows_vector_and_is_computed_once() {
        let mut seen = Seen::new(HashKey::default());
        let mut theirs = context(&[(1, 5), (2, 7), (3, 9)]);
        let first = seen.excess(&theirs);
        assert_eq!(*first, *theirs);
        seen.claim(Stamp { clock: 4, origin: 1 });
        seen.claim(Stamp { clock: 8, origin: 4 });
        assert!(Arc::ptr_eq(&first, &seen.excess(&theirs)), "what has grown is not in it");
        seen.claim(Stamp { clock: 7, origin: 2 });
        assert_eq!(seen.excess(&theirs), context(&[(1, 5), (3, 9)]));
        raise(Arc::make_mut(&mut theirs), Stamp { clock: 1, origin: 5 });
        assert_eq!(
            seen.excess(&theirs),
            context(&[(1, 5), (3, 9), (5, 1)]),
            "a context that grew is another"
        );
        seen.claim_all(&theirs);
        assert!(seen.excess(&theirs).dots.is_empty());
        assert!(seen.withhold(6, 6));
        assert_eq!(seen.excess(&theirs), context(&[(2, 7), (3, 9)]), "the vector was lowered");
    }

    /// One change of a vector.
    #[derive(Clone, Debug)]
    enum Change {
        Claim(u64, u64),
        ClaimAll(BTreeMap<u64, u64>),
        Withhold(u64),
        Rekey(u64),
        Restore(BTreeMap<u64, u64>),
    }

    fn changes() -> impl Strategy<Value = Change> {
        let vector = || prop::collection::btree_map(0..8_u64, 1..20_u64, 0..6);
        prop_oneof![
            (0..8_u64, 0..20_u64).prop_map(|(origin, clock)| Change::Claim(origin, clock)),
            vector().prop_map(Change::ClaimAll),
            (0..20_u64).prop_map(Change::Withhold),
            (0..3_u64).prop_map(Change::Rekey),
            vector().prop_map(Change::Restore),
        ]
    }

    proptest! {
        #[test]
        fn hash_and_excess_are_those_computed_from_scratch(
            changes in prop::collection::vec(changes(), 0..40),
            theirs in prop::collection::btree_map(0..8_u64, 1..20_u64, 0..6),
        ) {
            let mut seen = Seen::new(HashKey::default());
            let theirs = Arc::new(Context { dots: theirs });
            for change in changes {
                match change {
                    Change::Claim(origin, clock) => seen.claim(Stamp { clock, origin }),
                    Change::ClaimAll(dots) => seen.claim_all(&Context { dots }),
                    Change::Withhold(clock_max) => _ = seen.withhold(clock_max, clock_max),
                    Change::Rekey(word) => seen.rekey(HashKey::from_words(word, word), std::iter::empty()),
                    Change::Restore(vector) => seen.restore(vector, &[]),
                }
                let salt = seen.hash_key.words().0;
                prop_assert_eq!(seen.hash(), VectorHash::of(salt, &seen.vector.dots).salted());
                let known = seen.known().into_owned();
                prop_assert_eq!(seen.known_hash(), VectorHash::of(SEAL, &known.dots).sum());
                prop_assert_eq!(&*seen.excess(&theirs), &beyond(&theirs, &seen.vector));
            }
        }
    }

    #[test]
    fn hash_depends_on_hash_key_even_of_empty_vector() {
        let (one, other) = (HashKey::from_words(1, 1), HashKey::from_words(2, 2));
        assert_ne!(Seen::new(one).hash(), Seen::new(other).hash());
    }
}
