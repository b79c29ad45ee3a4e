//! Dots, and the one merge law.
//!
//! Registers, set elements and counter shares are all *entries*: a key that holds a small set of dots, the writes
//! that no known event has replaced. Usually there is one. A [`Dot`] keeps its key and value in a single shared
//! allocation, so that handing a value out costs one reference count.
//!
//! [`merge_dots`] is the only place that decides which dots a merge keeps. Replicas converge because it is commutative,
//! associative and idempotent.

use std::fmt;
use std::num::NonZeroU64;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::Serialize;
use triomphe::ThinArc;

use crate::config::VALUE_BYTES_CEILING;
use crate::form::{self, text_form};
use crate::id::{LogId, RunId};
use crate::store::digest::{self, HashKey, Place};
use crate::store::key::{CounterPart, STORED_KEY_BYTES_MAX, Space, readable_key, space_of};
use crate::time::{Lifetime, ParseError, Stamp, parse_pair};

/// The earliest expiry, in milliseconds since the Unix epoch. The numbers below it mean something else on the wire.
pub(crate) const EXPIRY_MS_MIN: u64 = 2;

/// Concurrent dots that one key may hold. A row with more is refused.
pub(crate) const DOTS_MAX: usize = 1_024;

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
struct DotHeader {
    clock: u64,
    origin: RunId,
    checksum: u32,
    key_len: u16,
    form: DotForm,
}

/// What stands behind the key of a dot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum DotForm {
    /// A value that never expires.
    Value,
    /// Eight bytes with the expiry, then the value.
    ExpiringValue,
    /// Eight bytes with the run to whose life the value is bound, then the value.
    BoundValue,
    /// Both: expiry, run, value.
    BoundExpiringValue,
    /// Nothing, and the dot has no stamp: the key holds nothing.
    KeyOnly,
    /// The same, because the key was deleted. The stamp is that of the delete.
    DeletedKey,
    /// The same, because the last value of the key expired.
    ExpiredKey,
}

impl DotForm {
    fn of(lifetime: Lifetime) -> Self {
        match (lifetime.expires, lifetime.run) {
            (None, None) => Self::Value,
            (Some(_), None) => Self::ExpiringValue,
            (None, Some(_)) => Self::BoundValue,
            (Some(_), Some(_)) => Self::BoundExpiringValue,
        }
    }

    /// Bytes between the key and the value.
    fn lifetime_bytes(self) -> usize {
        match self {
            Self::Value | Self::KeyOnly | Self::DeletedKey | Self::ExpiredKey => 0,
            Self::ExpiringValue | Self::BoundValue => 8,
            Self::BoundExpiringValue => 16,
        }
    }
}

/// Why a key holds nothing, as far as this node knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Removal {
    /// Not known. A repair tells that a value was removed, not how.
    Unknown,
    /// It was deleted by the event with this stamp.
    Deleted(Stamp),
    /// Its last value expired.
    Expired,
}

/// One dot with its key and value, immutable and shared. It may be only a key, see [`DotSet::empty`].
#[derive(Clone)]
pub(crate) struct Dot(ThinArc<DotHeader, u8>);

impl Dot {
    /// `text` is the key directly followed by the value.
    pub(crate) fn new(
        stamp: Stamp,
        lifetime: Lifetime,
        key_len: usize,
        text: &[u8],
        room: &mut Vec<u8>,
    ) -> Self {
        debug_assert!(key_len <= STORED_KEY_BYTES_MAX && key_len <= text.len());
        let head = DotHeader {
            clock: stamp.clock,
            origin: stamp.origin,
            checksum: digest::checksum(&text[key_len..]),
            key_len: key_len as u16,
            form: DotForm::of(lifetime),
        };
        if !lifetime.is_limited() {
            return Self(ThinArc::from_header_and_slice(head, text));
        }
        room.clear();
        room.extend_from_slice(&text[..key_len]);
        let words = [lifetime.expires.map(NonZeroU64::get), lifetime.run.map(RunId::number)];
        words.into_iter().flatten().for_each(|word| room.extend_from_slice(&word.to_le_bytes()));
        room.extend_from_slice(&text[key_len..]);
        Self(ThinArc::from_header_and_slice(head, room))
    }

    /// A key that holds nothing, for the row of a removal in the log.
    fn key_only(key: &[u8], removal: Removal) -> Self {
        let (form, Stamp { clock, origin }) = match removal {
            Removal::Unknown => (DotForm::KeyOnly, Stamp::default()),
            Removal::Deleted(stamp) => (DotForm::DeletedKey, stamp),
            Removal::Expired => (DotForm::ExpiredKey, Stamp::default()),
        };
        let head = DotHeader { clock, origin, checksum: 0, key_len: key.len() as u16, form };
        Self(ThinArc::from_header_and_slice(head, key))
    }

    #[inline]
    pub(crate) fn key(&self) -> &[u8] {
        &self.0.slice[..usize::from(self.0.header.header.key_len)]
    }

    #[inline]
    pub(crate) fn value(&self) -> &[u8] {
        let head = &self.0.header.header;
        &self.0.slice[usize::from(head.key_len) + head.form.lifetime_bytes()..]
    }

    /// Where it is in memory. No two dots that exist at the same time have the same address.
    #[cfg(feature = "json")]
    #[inline]
    fn address(&self) -> usize {
        std::ptr::from_ref(&*self.0).addr()
    }

    #[inline]
    pub(crate) fn stamp(&self) -> Stamp {
        Stamp { clock: self.0.header.header.clock, origin: self.0.header.header.origin }
    }

    /// What ends it by itself.
    #[inline]
    pub(crate) fn lifetime(&self) -> Lifetime {
        let head = &self.0.header.header;
        let word = |at: usize| {
            let from = usize::from(head.key_len) + at;
            u64::from_le_bytes(self.0.slice[from..from + 8].try_into().expect("eight bytes follow the key"))
        };
        let expires = |at| NonZeroU64::new(word(at));
        let run = |at| Some(RunId::new(word(at)));
        match head.form {
            DotForm::ExpiringValue => Lifetime { expires: expires(0), run: None },
            DotForm::BoundValue => Lifetime { expires: None, run: run(0) },
            DotForm::BoundExpiringValue => Lifetime { expires: expires(0), run: run(8) },
            _ => Lifetime::default(),
        }
    }

    /// The same as a moment.
    fn expires_at(&self) -> Option<SystemTime> {
        self.lifetime().expires.map(|ms| UNIX_EPOCH + Duration::from_millis(ms.get()))
    }

    /// Whether the dot has expired by this wall clock. It is still held until it is dropped.
    pub(crate) fn has_expired(&self, wall_ms: u64) -> bool {
        self.lifetime().expires.is_some_and(|expires| expires.get() <= wall_ms)
    }

    /// The checksum of the value, computed when this dot was made.
    pub(crate) fn checksum(&self) -> u32 {
        self.0.header.header.checksum
    }

    /// Lifetime and checksum, which the digest hashes beside key and stamp. A writer never gives one stamp to two values.
    /// If a faulty member changed a value on its way, the greater content wins, so that replicas agree again once that
    /// member is gone.
    fn content(&self) -> (Lifetime, u32) {
        (self.lifetime(), self.checksum())
    }

    /// Whether the value still has its checksum.
    pub(crate) fn is_intact(&self) -> bool {
        digest::checksum(self.value()) == self.checksum()
    }

    /// A copy with one bit of its value flipped, or of its stamp if the value is empty.
    #[cfg(feature = "__controls")]
    pub(crate) fn damaged(&self) -> Self {
        let mut head = self.0.header.header;
        let mut bytes = self.0.slice.to_vec();
        if self.value().is_empty() {
            head.clock ^= 1;
        } else {
            *bytes.last_mut().expect("not empty") ^= 1;
        }
        Self(ThinArc::from_header_and_slice(head, &bytes))
    }
}

/// What a key holds: its dots, ascending by stamp. An empty set keeps the key, for the log.
#[derive(Clone)]
#[expect(clippy::box_collection, reason = "one word instead of three, in every row, for the rare case")]
pub(crate) enum DotSet {
    Empty(Dot),
    One(Dot),
    Many(Box<Vec<Dot>>),
}

impl DotSet {
    /// A key that holds nothing.
    pub(crate) fn empty(key: &[u8], removal: Removal) -> Self {
        Self::Empty(Dot::key_only(key, removal))
    }

    /// A set of these dots, which may be in any order. The key is used when there are none.
    pub(crate) fn from_dots(key: &[u8], mut dots: Vec<Dot>) -> Self {
        dots.sort_unstable_by_key(Dot::stamp);
        dots.dedup_by_key(|dot| dot.stamp());
        match dots.len() {
            0 => Self::empty(key, Removal::Unknown),
            1 => Self::One(dots.pop().expect("one dot")),
            _ => Self::Many(Box::new(dots)),
        }
    }

    pub(crate) fn key(&self) -> &[u8] {
        match self {
            Self::Empty(dot) | Self::One(dot) => dot.key(),
            Self::Many(dots) => dots[0].key(),
        }
    }

    /// The stamps of its dots, in order.
    pub(crate) fn stamps(&self) -> impl Iterator<Item = Stamp> {
        self.dots().iter().map(Dot::stamp)
    }

    pub(crate) fn dots(&self) -> &[Dot] {
        match self {
            Self::Empty(_) => &[],
            Self::One(dot) => std::slice::from_ref(dot),
            Self::Many(dots) => dots,
        }
    }

    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty(_))
    }

    /// The number of references to the memory of its dots.
    #[cfg(all(test, feature = "node"))]
    pub(crate) fn owners(&self) -> usize {
        self.dots().iter().map(|dot| ThinArc::strong_count(&dot.0)).sum()
    }

    /// Bytes of the keys and values of its dots.
    pub(crate) fn bytes(&self) -> u64 {
        self.dots().iter().map(|dot| (dot.key().len() + dot.value().len()) as u64).sum()
    }

    /// Why nothing is held. `None` if something is.
    pub(crate) fn removal(&self) -> Option<Removal> {
        let Self::Empty(dot) = self else { return None };
        Some(match dot.0.header.header.form {
            DotForm::DeletedKey => Removal::Deleted(dot.stamp()),
            DotForm::ExpiredKey => Removal::Expired,
            _ => Removal::Unknown,
        })
    }

    pub(crate) fn holds(&self, stamp: Stamp) -> bool {
        self.dots().iter().any(|dot| dot.stamp() == stamp)
    }

    /// Whether a held dot shows that this event of the key is merged: each write of an origin has observed the earlier
    /// dots of that origin at the key, so holding a later one covers the earlier ones.
    pub(crate) fn covers_by_held(&self, stamp: Stamp) -> bool {
        self.dots().iter().any(|dot| dot.stamp().origin == stamp.origin && dot.stamp().clock >= stamp.clock)
    }

    /// The value that `get` answers with: the greatest stamp among those that are not hidden.
    pub(crate) fn winner(&self, is_hidden: impl Fn(&Dot) -> bool) -> Option<&Dot> {
        self.dots().iter().rev().find(|dot| !is_hidden(dot))
    }

    /// The entry's share of the digest: the sum of the hashes of its dots.
    pub(crate) fn digest_share(&self, hash_key: HashKey, place: Place) -> u128 {
        let hash = |dot: &Dot| hash_key.hash_dot(place, dot.stamp(), dot.lifetime(), dot.checksum());
        self.dots().iter().map(hash).fold(0, u128::wrapping_add)
    }
}

impl PartialEq for DotSet {
    fn eq(&self, other: &Self) -> bool {
        let same = |(a, b): (&Dot, &Dot)| a.stamp() == b.stamp() && a.content() == b.content();
        self.key() == other.key()
            && self.dots().len() == other.dots().len()
            && self.dots().iter().zip(other.dots()).all(same)
    }
}

impl fmt::Debug for DotSet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}=", String::from_utf8_lossy(self.key()))?;
        f.debug_set().entries(self.stamps()).finish()
    }
}

/// The one merge law: a dot stays if both sides hold it, or if the side that does not hold it does not cover it. A dot
/// that a side covers and does not hold was removed, for ever.
///
/// `mine` is `None` if there is no row of the key yet. Returns `None` if nothing changes.
pub(crate) fn merge_dots(
    mine: Option<&DotSet>,
    theirs: &DotSet,
    mine_covers: impl Fn(Stamp) -> bool,
    theirs_covers: impl Fn(Stamp) -> bool,
) -> Option<DotSet> {
    let dot_set = mine.map_or(&[][..], DotSet::dots);
    let twin = |of: &Dot, among: &[Dot]| among.iter().find(|it| it.stamp() == of.stamp()).map(Dot::content);
    let stays = |dot: &Dot| match twin(dot, theirs.dots()) {
        Some(content) => dot.content() >= content,
        None => !theirs_covers(dot.stamp()),
    };
    let comes = |dot: &Dot| match twin(dot, dot_set) {
        Some(content) => dot.content() > content,
        None => !mine_covers(dot.stamp()),
    };
    if !theirs.dots().iter().any(comes) && dot_set.iter().all(stays) {
        return None;
    }
    if theirs.dots().iter().all(comes) && !dot_set.iter().any(stays) {
        return Some(theirs.clone());
    }
    let kept = dot_set.iter().filter(|dot| stays(dot));
    let added = theirs.dots().iter().filter(|dot| comes(dot));
    Some(DotSet::from_dots(theirs.key(), kept.chain(added).cloned().collect()))
}

/// A key with its value, as [`Store::get`](crate::Store::get) and [`Store::scan`](crate::Store::scan) return it. Cheap to
/// clone.
#[derive(Clone)]
pub struct Entry {
    dot: Dot,
    losers: Vec<Dot>,
    revision: Revision,
}

impl Entry {
    pub(crate) fn new(
        dot_set: &DotSet,
        revision: Revision,
        is_hidden: impl Fn(&Dot) -> bool,
    ) -> Option<Self> {
        let mut visible = dot_set.dots().iter().rev().filter(|dot| !is_hidden(dot));
        let dot = visible.next()?.clone();
        Some(Self { dot, losers: visible.cloned().collect(), revision })
    }

    /// The key: a register's name, or a set's element.
    pub fn key(&self) -> &str {
        readable_key(self.dot.key())
    }

    /// The value.
    #[inline]
    pub fn value(&self) -> &[u8] {
        self.dot.value()
    }

    /// The stamp of the write that put this value here.
    #[inline]
    pub fn stamp(&self) -> Stamp {
        self.dot.stamp()
    }

    /// The key as it is stored, without its space.
    #[cfg(feature = "json")]
    #[inline]
    pub(crate) fn name(&self) -> &[u8] {
        &self.dot.key()[1..]
    }

    /// Whether the values of both are the same memory, and so of one write.
    #[cfg(feature = "json")]
    #[inline]
    pub(crate) fn is_same_write(&self, other: &Self) -> bool {
        self.dot.address() == other.dot.address()
    }

    /// Whether a key with these dots holds the very write of this entry and nothing else.
    #[cfg(all(feature = "json", feature = "node"))]
    #[inline]
    pub(crate) fn is_only_of(&self, dot_set: &DotSet, is_hidden: impl Fn(&Dot) -> bool) -> bool {
        matches!(dot_set, DotSet::One(dot) if dot.address() == self.dot.address() && !is_hidden(dot))
    }

    /// The run of the node that wrote the value; [`Member::run`](crate::Member::run) shows which member that is. A node
    /// that began anew after damage writes under a further run, which is not the run of any member.
    pub fn origin(&self) -> RunId {
        self.dot.stamp().origin
    }

    /// When the value expires, if it does.
    pub fn expires_at(&self) -> Option<SystemTime> {
        self.dot.expires_at()
    }

    /// Whether the value is bound to the life of the run that wrote it
    /// ([`PutOptions::ephemeral`](crate::PutOptions::ephemeral)).
    pub fn is_ephemeral(&self) -> bool {
        self.dot.lifetime().run.is_some()
    }

    /// Where this node's change log last recorded a change of the key.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The concurrent writes with lesser stamps, greatest first. They stay until the next write of the key.
    pub fn conflicts(&self) -> impl Iterator<Item = Self> {
        let entry = |dot: &Dot| Self { dot: dot.clone(), losers: Vec::new(), revision: self.revision };
        self.losers.iter().map(entry)
    }
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key())
            .field("value", &String::from_utf8_lossy(self.value()))
            .field("stamp", &self.stamp())
            .field("conflicts", &self.losers.len())
            .finish_non_exhaustive()
    }
}

/// A value of a key, as it is serialized.
#[derive(Serialize)]
struct ConflictForm<'a> {
    #[serde(serialize_with = "form::bytes::serialize")]
    value: &'a [u8],
    stamp: Stamp,
    #[serde(serialize_with = "form::write_moment")]
    expires_at: Option<SystemTime>,
}

impl<'a> ConflictForm<'a> {
    fn of(dot: &'a Dot) -> Self {
        Self { value: dot.value(), stamp: dot.stamp(), expires_at: dot.expires_at() }
    }
}

/// An entry, as it is serialized.
#[derive(Serialize)]
struct EntryForm<'a> {
    key: &'a str,
    #[serde(serialize_with = "form::bytes::serialize")]
    value: &'a [u8],
    stamp: Stamp,
    #[serde(serialize_with = "form::write_moment")]
    expires_at: Option<SystemTime>,
    revision: Revision,
    conflicts: Vec<ConflictForm<'a>>,
}

impl Serialize for Entry {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let form = EntryForm {
            key: self.key(),
            value: self.value(),
            stamp: self.stamp(),
            expires_at: self.expires_at(),
            revision: self.revision,
            conflicts: self.losers.iter().map(ConflictForm::of).collect(),
        };
        form.serialize(serializer)
    }
}

impl PartialEq for Entry {
    fn eq(&self, other: &Self) -> bool {
        self.key() == other.key() && self.stamp() == other.stamp()
    }
}

/// A position in one node's change log, from which a watch can resume. Opaque: it is valid only in the run of the node
/// that gave it. Any other run answers with [`WatchEvent::Resync`](crate::WatchEvent::Resync).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Revision {
    pub(crate) log: LogId,
    pub(crate) number: u64,
}

impl fmt::Display for Revision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}-{:016x}", self.log, self.number)
    }
}

impl std::str::FromStr for Revision {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        parse_pair(text).map(|(log, number)| Self { log: LogId::new(log), number })
    }
}

text_form!(
    Revision,
    "a revision: two times 16 hexadecimal digits, with a hyphen between them",
    |text| text.parse().ok(),
    Revision::to_string
);

/// Whether the value of a dot from a peer has a form that a node may have written. The key is well-formed.
pub(crate) fn value_is_acceptable(key: &[u8], value: &[u8]) -> bool {
    match space_of(key) {
        Some(Space::Set) => value.is_empty(),
        Some(Space::Counter) if matches!(CounterPart::of_key(key), CounterPart::Share(_)) => value.len() == 8,
        _ => value.len() <= VALUE_BYTES_CEILING,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn dot_keeps_key_value_and_lifetime_apart() {
        let stamp = Stamp { clock: 9, origin: RunId::new(4) };
        for (expires, run) in [(None, None), (Some(77), None), (None, Some(5)), (Some(77), Some(5))] {
            let lifetime = Lifetime { expires: expires.and_then(NonZeroU64::new), run: run.map(RunId::new) };
            let dot = Dot::new(stamp, lifetime, 3, b"\0abvalue", &mut Vec::new());
            assert_eq!((dot.key(), dot.value()), (&b"\0ab"[..], &b"value"[..]));
            assert_eq!((dot.stamp(), dot.lifetime()), (stamp, lifetime));
            assert!(dot.is_intact());
            assert_eq!(dot.has_expired(77), expires.is_some());
        }
    }

    /// What one replica knows of a key: the dots that it holds, and the events that it covers, which include them.
    #[derive(Clone, Debug, PartialEq)]
    struct State {
        dot_set: DotSet,
        covered: BTreeSet<Stamp>,
    }

    const KEY: &[u8] = b"\0k";

    impl State {
        fn dots(&self) -> BTreeSet<Stamp> {
            self.dot_set.stamps().collect()
        }

        fn merged(&self, other: &Self) -> Self {
            let (mine, theirs) = (&self.covered, &other.covered);
            let dot_set = merge_dots(
                Some(&self.dot_set),
                &other.dot_set,
                |dot| mine.contains(&dot),
                |dot| theirs.contains(&dot),
            );
            Self { dot_set: dot_set.unwrap_or_else(|| self.dot_set.clone()), covered: mine | theirs }
        }
    }

    /// Some of all possible events: unknown, removed, or held.
    fn states() -> impl Strategy<Value = State> {
        prop::collection::vec(0..3_u8, 12).prop_map(|fates| {
            let stamps = (0..12).map(|i| Stamp { clock: 1 + i / 3, origin: RunId::new(i % 3) });
            let known: Vec<(Stamp, u8)> = stamps.zip(fates).filter(|(_, fate)| *fate > 0).collect();
            let dot_set = known.iter().filter(|(_, fate)| *fate == 2);
            let dots = dot_set
                .map(|(stamp, _)| Dot::new(*stamp, Lifetime::default(), KEY.len(), KEY, &mut Vec::new()))
                .collect();
            let covered = known.iter().map(|(stamp, _)| *stamp).collect();
            State { dot_set: DotSet::from_dots(KEY, dots), covered }
        })
    }

    proptest! {
        #[test]
        fn merging_is_commutative_associative_and_idempotent(a in states(), b in states(), c in states()) {
            prop_assert_eq!(a.merged(&b), b.merged(&a));
            prop_assert_eq!(a.merged(&b).merged(&c), a.merged(&b.merged(&c)));
            prop_assert_eq!(&a.merged(&a), &a);
            prop_assert_eq!(a.merged(&b).merged(&b), a.merged(&b));
        }

        #[test]
        fn merge_agrees_with_plain_sets_and_reports_no_change(a in states(), b in states()) {
            let both = &a.dots() & &b.dots();
            let unseen_there = &a.dots() - &b.covered;
            let unseen_here = &b.dots() - &a.covered;
            let expected: BTreeSet<Stamp> = &(&both | &unseen_there) | &unseen_here;
            prop_assert_eq!(a.merged(&b).dots(), expected.clone());
            let (mine, theirs) = (&a.covered, &b.covered);
            let change = merge_dots(Some(&a.dot_set), &b.dot_set, |dot| mine.contains(&dot), |dot| theirs.contains(&dot));
            prop_assert_eq!(change.is_none(), expected == a.dots());
        }
    }
}
