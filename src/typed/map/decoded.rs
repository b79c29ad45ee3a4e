//! Decoded values, so that a value that is read often is decoded once.
//!
//! A place is found by the key without the map's prefix, and is read without a lock. Each key has a few places, which are
//! tried from one on that the key names. A decoded value belongs to the very memory of the write that it was decoded from:
//! as that is kept here, no other write can be there, whatever stamp it has. So a value counts if the store says that the
//! key holds that memory now.
//!
//! Where more values want a place than there are, one of them gives way: one that does not count any more if there is one,
//! and otherwise one that is decoded again when it is read. If that has happened to a few values that counted, a table with
//! four times the places takes over, up to [`DECODED_MAX`]. So the table is as large as the values that count need, and
//! those of keys that were deleted never make it larger.
//!
//! While the key does not change, the store is not asked again.
//!
//! The store is asked with the key of the entry that is kept: to put prefix and key together and read the result takes
//! half as long as reading the value from the node. A general cache costs more than that: one look into moka takes two to
//! three times as long as that read, and it knows a clock.

use std::hash::BuildHasher;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwapOption;
use foldhash::fast::FixedState;

use crate::store::entry::Entry;
use crate::typed::Store;

/// The most values of one map that are kept decoded: the places of the last table.
const DECODED_MAX: usize = 1 << 16;
/// Each table has so many times the places of the one before; the first one has 256.
const GROWTH: usize = 4;
const TABLES: usize = 5;
/// The places of a table are grouped in sets of so many, and each key belongs to one set.
const WAYS: usize = 4;
/// A table with `1 / DISPLACED_SHARE` times as many displaced values as places is replaced by the next one.
const DISPLACED_SHARE: usize = 16;

/// A value and what it was decoded from.
///
/// All readers read it and none writes it, so it has cache lines of its own: beside it lie counts of references, which
/// each read of a value changes.
#[derive(Debug)]
#[repr(align(64))]
struct DecodedValue<T> {
    entry: Entry,
    value: Arc<T>,
    /// The count of changes ([`Store::changes`]) at which the key held the entry; [`u64::MAX`] if that is not known.
    current_at: AtomicU64,
}

impl<T> DecodedValue<T> {
    /// Whether the key holds the entry now and nothing else. As long as the key does not change, it is not looked up again,
    /// unless it may expire.
    fn is_current(&self, store: &impl Store) -> bool {
        let changes = store.changes(&self.entry);
        if changes == Some(self.current_at.load(Ordering::Relaxed)) {
            return true;
        }
        let is_current = store.is_current(&self.entry);
        if let Some(changes) = changes.filter(|_| is_current && self.entry.expires_at().is_none()) {
            self.current_at.store(changes, Ordering::Relaxed);
        }
        is_current
    }
}

type DecodedPlace<T> = ArcSwapOption<DecodedValue<T>>;

/// The values of a map that were decoded last, at most [`DECODED_MAX`].
#[derive(Debug)]
pub(super) struct DecodedValues<T> {
    /// What all keys of the map begin with.
    prefix_bytes: usize,
    /// The first one is made for the first value, so that a map that is made for a single write costs nothing.
    tables: [OnceLock<Box<[DecodedPlace<T>]>>; TABLES],
    /// The table in use. The ones before it are empty.
    table: AtomicUsize,
    /// Values that counted and gave way since the table is in use.
    displaced: AtomicUsize,
}

impl<T> DecodedValues<T> {
    pub(super) fn new(prefix_bytes: usize) -> Self {
        let (table, displaced) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { prefix_bytes, tables: std::array::from_fn(|_| OnceLock::new()), table, displaced }
    }

    /// The value of a key, if it is here and the only one that the key holds now.
    pub(super) fn current(&self, key: &str, store: &impl Store) -> Option<Arc<T>> {
        let value = |place: &DecodedPlace<T>| {
            let held = place.load();
            let found = held.as_ref()?;
            let is_found =
                found.entry.name()[self.prefix_bytes..] == *key.as_bytes() && found.is_current(store);
            is_found.then(|| found.value.clone())
        };
        let places = self.tables[self.table.load(Ordering::Acquire)].get()?;
        places_of(places, key.as_bytes()).find_map(value)
    }

    /// The value of an entry, which is decoded if it is not there, in the place of an earlier value of its key. Without a
    /// store no value counts, and any may give way.
    pub(super) fn of<E>(
        &self,
        entry: &Entry,
        store: Option<&impl Store>,
        decode: impl FnOnce(&Entry) -> Result<T, E>,
    ) -> Result<Arc<T>, E> {
        let number = self.table.load(Ordering::Acquire);
        let table = self.tables[number].get_or_init(|| empty(0));
        let (mut earlier, mut free) = (None, None);
        for place in self.places_of(table, entry) {
            match &*place.load() {
                Some(found) if found.entry.is_same_write(entry) => return Ok(found.value.clone()),
                Some(found) if found.entry.name() == entry.name() => earlier = Some(place),
                Some(_) => {}
                None => free = free.or(Some(place)),
            }
        }
        let value = Arc::new(decode(entry)?);
        let current_at = AtomicU64::new(u64::MAX);
        let decoded = Arc::new(DecodedValue { entry: entry.clone(), value: value.clone(), current_at });
        if let Some(place) = earlier.or(free) {
            place.store(Some(decoded));
        } else {
            self.displace(number, decoded, store);
        }
        Ok(value)
    }

    fn places_of<'p>(
        &self,
        table: &'p [DecodedPlace<T>],
        entry: &Entry,
    ) -> impl Iterator<Item = &'p DecodedPlace<T>> + Clone + use<'p, T> {
        places_of(table, &entry.name()[self.prefix_bytes..])
    }

    /// Puts a value into a set without a free place.
    fn displace(&self, number: usize, decoded: Arc<DecodedValue<T>>, store: Option<&impl Store>) {
        let Some(table) = self.tables[number].get() else { return };
        let mut places = self.places_of(table, &decoded.entry);
        // The last table does not grow: that values of deleted keys give way first is not worth the look at the store.
        let store = store.filter(|_| number + 1 < TABLES);
        let counts = |found: &DecodedValue<T>| store.is_some_and(|store| store.is_current(&found.entry));
        let gone = places.clone().find(|place| place.load().as_deref().is_none_or(|found| !counts(found)));
        let Some(place) = gone.or_else(|| places.next()) else { return };
        place.store(Some(decoded));
        // One thread alone sees this very number.
        if gone.is_none()
            && self.displaced.fetch_add(1, Ordering::Relaxed) + 1 == table.len() / DISPLACED_SHARE
        {
            self.grow(number, table, counts);
        }
    }

    /// Takes the next table into use, with the values that count. What others put into this one meanwhile is lost, and is
    /// decoded again.
    fn grow(&self, number: usize, table: &[DecodedPlace<T>], counts: impl Fn(&DecodedValue<T>) -> bool) {
        let next = empty(number + 1);
        for found in table.iter().filter_map(ArcSwapOption::load_full).filter(|found| counts(found)) {
            let mut places = self.places_of(&next, &found.entry);
            if let Some(place) = places.find(|place| place.load().is_none()) {
                place.store(Some(found));
            }
        }
        // Not if another thread has done so, which was late with its count.
        if self.tables[number + 1].set(next).is_ok() {
            self.displaced.store(0, Ordering::Relaxed);
            self.table.store(number + 1, Ordering::Release);
            table.iter().for_each(|place| place.store(None));
        }
    }
}

fn empty<T>(number: usize) -> Box<[DecodedPlace<T>]> {
    let places = DECODED_MAX / (number + 1..TABLES).map(|_| GROWTH).product::<usize>();
    (0..places).map(|_| ArcSwapOption::empty()).collect()
}

/// The places of a key, in the order in which they are tried.
fn places_of<'p, T>(
    table: &'p [DecodedPlace<T>],
    key: &[u8],
) -> impl Iterator<Item = &'p DecodedPlace<T>> + Clone + use<'p, T> {
    let hash = FixedState::default().hash_one(key);
    // A power of two: of the hash its first bits count.
    let sets = table.len() / WAYS;
    let first = (hash >> (u64::BITS - sets.trailing_zeros())) as usize * WAYS;
    let (before, behind) = table[first..first + WAYS].split_at(hash as usize % WAYS);
    behind.iter().chain(before)
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;
    use std::convert::Infallible;

    use super::*;
    use crate::sim::{Sim, SimNode};

    fn node_of(keys: usize) -> SimNode {
        let sim = Sim::new(1).without_checks().nodes(1);
        let node = sim.node(0);
        (0..keys).for_each(|i| _ = node.put(format!("{i}"), format!("{i}")).unwrap());
        node
    }

    /// Reads so many keys, and counts how often a value had to be decoded.
    fn decoded(values: &DecodedValues<String>, node: &SimNode, keys: usize) -> usize {
        let count = Cell::new(0);
        for i in 0..keys {
            let entry = node.get(format!("{i}")).unwrap();
            let decode = |entry: &Entry| {
                count.set(count.get() + 1);
                Ok::<_, Infallible>(String::from_utf8_lossy(entry.value()).into_owned())
            };
            assert_eq!(*values.of(&entry, Some(node), decode).unwrap(), format!("{i}"));
        }
        count.get()
    }

    fn places(values: &DecodedValues<String>) -> usize {
        values.tables[values.table.load(Ordering::Relaxed)].get().map_or(0, |table| table.len())
    }

    #[test]
    fn table_grows_until_all_values_are_decoded_once() {
        for (keys, places_max) in [(10, 256), (1_000, 16_384), (10_000, 65_536)] {
            let (node, values) = (node_of(keys), DecodedValues::new(0));
            let first = decoded(&values, &node, keys);
            assert_eq!(first, keys);
            (0..5).for_each(|_| _ = decoded(&values, &node, keys));
            // Of more keys than places in one set, some are decoded again.
            let again = decoded(&values, &node, keys);
            assert!(again <= keys / 100, "{again} of {keys} are decoded again");
            assert!(places(&values) <= places_max, "{} places for {keys}", places(&values));
            let mut earlier = values.tables.iter().filter_map(OnceLock::get).rev().skip(1).flatten();
            assert!(earlier.all(|place| place.load().is_none()));
        }
    }

    #[test]
    fn values_of_deleted_keys_let_no_table_grow() {
        let (node, values) = (node_of(0), DecodedValues::new(0));
        for i in 0..20_000 {
            node.put("k", "v").unwrap();
            let entry = node.put(format!("{i}"), "v").map(|_| node.get(format!("{i}")).unwrap()).unwrap();
            values.of(&entry, Some(&node), |_| Ok::<_, Infallible>(String::new())).unwrap();
            node.delete(format!("{i}")).unwrap();
        }
        assert_eq!(places(&values), 256);
        // Nor do those that a watch reads.
        let node = node_of(20_000);
        for i in 0..20_000 {
            let entry = node.get(format!("{i}")).unwrap();
            values.of(&entry, None::<&SimNode>, |_| Ok::<_, Infallible>(String::new())).unwrap();
        }
        assert_eq!(places(&values), 256);
    }

    #[test]
    fn more_values_than_places_are_right_and_decoded_again() {
        let keys = DECODED_MAX + DECODED_MAX / 2;
        let (node, values) = (node_of(keys), DecodedValues::new(0));
        let counts = [(); 2].map(|()| decoded(&values, &node, keys));
        assert!(counts[1] > DECODED_MAX / 2, "{counts:?}");
        assert_eq!(places(&values), DECODED_MAX);
    }

    #[test]
    fn value_of_another_write_is_never_taken() {
        let sim = Sim::new(1).nodes(1);
        let node = sim.node(0);
        let values = DecodedValues::new(0);
        for i in 0..10_u8 {
            node.put("k", [i]).unwrap();
            let entry = node.get("k").unwrap();
            for _ in 0..2 {
                let decode = |entry: &Entry| Ok::<_, Infallible>(entry.value()[0]);
                assert_eq!(*values.of(&entry, Some(&node), decode).unwrap(), i);
            }
        }
    }
}
