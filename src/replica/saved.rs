//! What a disk holds: an ordered map of byte strings, and how rows and claims are laid out in it.
//!
//! Rows are stored under their own keys, which begin with the number of their keyspace. Everything else is stored under
//! first bytes that no keyspace has: for each origin its clock in the vector, for each peer's log the merged position,
//! the coverage beyond the vector, memos, and the summary, to which all of it must add up.
//!
//! A lost row would spread as a delete, and an origin's clock that is too high would spread as a loss. So nothing may
//! be used before it adds up: rows are checked by the digest's root, each claim by its own checksum, and all claims by
//! counts and a fingerprint in the summary.

use std::collections::BTreeMap;

use crate::id::{LogId, RunId};
use crate::store::coverage::{Clocks, ClocksSum, RegionCoverage};
use crate::store::digest::{HashKey, fingerprint};
use crate::store::entry::DotSet;
use crate::store::key;
use crate::text::Escaped;
use crate::wire::{LeftoverTable, Reader, WireError, Writer};

/// The version of the stored layout. Later versions of this library read all earlier ones.
pub(crate) const DISK_VERSION: u8 = 4;
/// What is written as long as the voter's memo has no lease times. Programs that know this version alone cannot read a
/// memo with times, and would take it for no promise at all.
const DISK_VERSION_WITHOUT_TIMES: u8 = 3;

/// Salt of the checksums of claims on the disk.
const SEAL: u64 = 0x7469_6469_6e67_7332;

const STATE: u8 = 0xf0;
const SEEN: u8 = 0xf1;
const POSITION: u8 = 0xf2;
const EXTRA_REGIONS: u8 = 0xf3;
const MEMO: u8 = 0xf4;

const SEAL_BYTES: usize = 8;

/// Why the contents of a disk cannot be used. None of them are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SavedError {
    /// It was written by a later version of this library.
    #[error("it was written by a later version of this library ({version})")]
    Version {
        /// The version of its layout.
        version: u8,
    },
    /// An entry is not what was written.
    #[error("the entry \"{}\" is damaged", Escaped(key))]
    Entry {
        /// Its key, as far as it is readable.
        key: String,
    },
    /// Entries are missing, or are older than the others.
    #[error("{what} missing or out of date")]
    Incomplete {
        /// The part that does not add up.
        what: &'static str,
    },
}

/// What the entries of the stored vector must add up to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum StoredVectorSum {
    /// In the first version of the format: the wrapping sum of the entries' fingerprints. No replica writes it any more.
    First(u64),
    /// See [`Coverage::sum_with_withheld`](crate::store::coverage::Coverage::sum_with_withheld).
    Second(ClocksSum),
}

impl StoredVectorSum {
    fn is_of(self, vector: &Clocks) -> bool {
        let fingerprint = |(origin, clock): (RunId, u64)| {
            let entry = [origin.number().to_le_bytes(), clock.to_le_bytes()].concat();
            fingerprint(SEAL, &entry)
        };
        match self {
            Self::First(sum) => vector.iter().map(fingerprint).fold(0, u64::wrapping_add) == sum,
            Self::Second(sum) => ClocksSum::of(vector.iter()) == sum,
        }
    }
}

/// What all other stored entries must add up to.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct DiskSummary {
    pub(crate) hash_key: HashKey,
    pub(crate) clock: u64,
    pub(crate) run: RunId,
    pub(crate) root: u128,
    pub(crate) vector_sum: StoredVectorSum,
    pub(crate) extra_regions: u64,
    /// The voter's memo has lease times, or cannot be read.
    pub(crate) has_voter_times: bool,
}

/// The contents of a disk, read and found sound. Pass it to [`Replica::new`](crate::core::Replica::new) in
/// [`Setup::saved`](crate::core::Setup::saved).
#[derive(Clone, Debug, Default)]
pub struct Saved {
    pub(crate) rows: Vec<DotSet>,
    pub(crate) vector: Clocks,
    pub(crate) extra_regions: Vec<RegionCoverage>,
    pub(crate) positions: BTreeMap<LogId, u64>,
    pub(crate) memos: BTreeMap<String, Vec<u8>>,
    pub(crate) state: Option<DiskSummary>,
    /// It was read from elsewhere than the disk that will follow the change log, so that disk has none of it.
    pub(crate) is_copy: bool,
}

impl Saved {
    /// What a disk holds of this store, without memos and positions.
    #[cfg(test)]
    pub(crate) fn of(store: &crate::store::LocalStore) -> Self {
        let state = DiskSummary {
            hash_key: store.hash_key,
            clock: store.clock.last(),
            run: store.run,
            root: store.root().sum(),
            vector_sum: StoredVectorSum::Second(store.coverage.sum_with_withheld()),
            extra_regions: 0,
            has_voter_times: false,
        };
        let rows = store.iter_from(&[]).map(|(row, _)| row.clone()).collect();
        Self { rows, vector: store.coverage.vector_with_withheld(), state: Some(state), ..Self::default() }
    }

    /// Reads everything that a disk holds, in the order of its keys.
    ///
    /// # Errors
    /// [`SavedError`] says what does not add up. The rows are checked against the root by the replica that loads them.
    pub fn read<E: From<SavedError>, B: AsRef<[u8]>>(
        entries: impl IntoIterator<Item = Result<(B, B), E>>,
    ) -> Result<Self, E> {
        let mut saved = Self::default();
        for entry in entries {
            let (key, value) = entry?;
            saved.read_pair(key.as_ref(), value.as_ref())?;
        }
        saved.check()?;
        Ok(saved)
    }

    fn read_pair(&mut self, key: &[u8], value: &[u8]) -> Result<(), SavedError> {
        let damaged = || SavedError::Entry { key: String::from_utf8_lossy(key).into_owned() };
        let Some((kind @ STATE.., name)) = key.split_first() else {
            let dot_set = row_of(key, value).ok_or_else(damaged)?;
            if self.rows.last().is_some_and(|last| last.key() >= key) {
                return Err(damaged());
            }
            self.rows.push(dot_set);
            return Ok(());
        };
        let value = unseal(key, value).ok_or_else(damaged)?;
        if *kind == STATE && value.first().is_some_and(|version| *version > DISK_VERSION) {
            return Err(SavedError::Version { version: value[0] });
        }
        self.read_sealed(*kind, name, value).ok_or_else(damaged)
    }

    fn read_sealed(&mut self, kind: u8, name: &[u8], value: &[u8]) -> Option<()> {
        let mut reader = Reader::plain(value);
        let word = |bytes: &[u8]| bytes.try_into().ok().map(u64::from_be_bytes);
        match kind {
            STATE => self.state = Some(state_of(reader).ok()?),
            SEEN => _ = self.vector.insert(RunId::new(word(name)?), reader.u64_le().ok()?),
            POSITION => _ = self.positions.insert(LogId::new(word(name)?), reader.u64_le().ok()?),
            // Every bound names its hash key, since the summary may be read later than this entry.
            EXTRA_REGIONS => {
                let told = reader.regions(HashKey::default(), &mut LeftoverTable::unlimited());
                self.extra_regions = told.ok().filter(|told| told.is_whole)?.regions;
            }
            MEMO => _ = self.memos.insert(String::from_utf8(name.to_vec()).ok()?, value.to_vec()),
            _ => return None,
        }
        Some(())
    }

    fn check(&self) -> Result<(), SavedError> {
        let incomplete = |what| Err(SavedError::Incomplete { what });
        let Some(state) = &self.state else {
            let is_blank = self.rows.is_empty() && self.vector.is_empty() && self.memos.is_empty();
            return if is_blank { Ok(()) } else { incomplete("the state is") };
        };
        if !state.vector_sum.is_of(&self.vector) {
            return incomplete("what is seen of some origin is");
        }
        if self.extra_regions.len() as u64 != state.extra_regions {
            return incomplete("contexts beyond the vector are");
        }
        Ok(())
    }

    /// Whether the disk held nothing.
    pub fn is_blank(&self) -> bool {
        self.state.is_none()
    }
}

fn row_of(key: &[u8], value: &[u8]) -> Option<DotSet> {
    let mut reader = Reader::plain(value);
    // No limit: a row merged from several peers may be larger than any one peer may send.
    let dot_set = reader.dots(key, usize::MAX).ok()?.ok()?;
    reader.end().ok()?;
    (key::key_is_well_formed(key) && !dot_set.is_empty()).then_some(dot_set)
}

/// One change of what a disk holds: a key, and its value unless it is to be removed.
pub type DiskChange = (Vec<u8>, Option<Vec<u8>>);

pub(crate) fn encode_row(dot_set: &DotSet) -> DiskChange {
    (dot_set.key().to_vec(), row_value(dot_set, Vec::new()))
}

/// The value stored under a row's key, written into a buffer that is reused.
pub(crate) fn row_value(dot_set: &DotSet, room: Vec<u8>) -> Option<Vec<u8>> {
    (!dot_set.is_empty()).then(|| {
        let mut writer = Writer::plain_in(room);
        writer.dots(dot_set);
        writer.into_plain()
    })
}

pub(crate) fn encode_vector_entry(origin: RunId, clock: u64) -> DiskChange {
    sealed(SEEN, &origin.number().to_be_bytes(), clock.to_le_bytes().to_vec())
}

pub(crate) fn encode_position(log: LogId, position: Option<u64>) -> DiskChange {
    let key = [&[POSITION][..], &log.number().to_be_bytes()].concat();
    position
        .map_or((key, None), |at| sealed(POSITION, &log.number().to_be_bytes(), at.to_le_bytes().to_vec()))
}

pub(crate) fn encode_memo(name: &str, memo: Option<&[u8]>) -> DiskChange {
    let key = [&[MEMO][..], name.as_bytes()].concat();
    memo.map_or((key, None), |memo| sealed(MEMO, name.as_bytes(), memo.to_vec()))
}

/// Whether this is the key of a memo.
#[cfg(feature = "durable")]
pub(crate) fn is_memo(key: &[u8]) -> bool {
    key.first() == Some(&MEMO)
}

pub(crate) fn encode_extra_regions(regions: &[RegionCoverage]) -> DiskChange {
    if regions.is_empty() {
        return (vec![EXTRA_REGIONS], None);
    }
    let mut writer = Writer::plain();
    writer.extra_regions(regions);
    sealed(EXTRA_REGIONS, b"", writer.into_plain())
}

pub(crate) fn encode_summary(state: &DiskSummary) -> DiskChange {
    let mut writer = Writer::plain();
    writer.byte(match state.vector_sum {
        StoredVectorSum::First(_) => 1,
        StoredVectorSum::Second(_) if state.has_voter_times => DISK_VERSION,
        StoredVectorSum::Second(_) => DISK_VERSION_WITHOUT_TIMES,
    });
    writer.hash_key(state.hash_key);
    writer.u64_le(state.clock);
    writer.run(state.run);
    writer.u128_le(state.root);
    match state.vector_sum {
        StoredVectorSum::First(sum) => writer.u64_le(sum),
        StoredVectorSum::Second(sum) => writer.clocks_sum(sum),
    }
    writer.u64_le(state.extra_regions);
    sealed(STATE, b"", writer.into_plain())
}

fn state_of(mut reader: Reader<'_>) -> Result<DiskSummary, WireError> {
    let version = reader.byte()?;
    let hash_key = reader.hash_key()?;
    let (clock, run) = (reader.u64_le()?, reader.run()?);
    let root = reader.u128_le()?;
    let vector_sum = match version {
        1 => StoredVectorSum::First(reader.u64_le()?),
        _ => StoredVectorSum::Second(reader.clocks_sum()?),
    };
    let extra_regions = reader.u64_le()?;
    reader.end()?;
    let has_voter_times = version > DISK_VERSION_WITHOUT_TIMES;
    Ok(DiskSummary { hash_key, clock, run, root, vector_sum, extra_regions, has_voter_times })
}

/// A claim with its checksum.
fn sealed(kind: u8, name: &[u8], mut value: Vec<u8>) -> DiskChange {
    let key = [&[kind][..], name].concat();
    let seal = seal(&key, &value);
    value.extend_from_slice(&seal);
    (key, Some(value))
}

fn seal(key: &[u8], value: &[u8]) -> [u8; SEAL_BYTES] {
    fingerprint(fingerprint(SEAL, key), value).to_le_bytes()
}

fn unseal<'a>(key: &[u8], value: &'a [u8]) -> Option<&'a [u8]> {
    let (value, stored) = value.split_last_chunk::<SEAL_BYTES>()?;
    (*stored == seal(key, value)).then_some(value)
}

// Records of changes, for journals and files: a length, a sequence number, a checksum, and the changes themselves.

pub(crate) const RECORD_HEADER_BYTES: usize = 24;

/// Encodes one record of changes, which is read as a whole or not at all.
pub(crate) fn seal_changes<'a>(sequence: u64, changes: impl IntoIterator<Item = &'a DiskChange>) -> Vec<u8> {
    let mut writer = Writer::plain();
    (0..RECORD_HEADER_BYTES).for_each(|_| writer.byte(0));
    for (key, value) in changes {
        writer.bytes(key);
        writer.byte(u8::from(value.is_some()));
        writer.bytes(value.as_deref().unwrap_or_default());
    }
    let mut dot = writer.into_plain();
    let body = (dot.len() - RECORD_HEADER_BYTES) as u64;
    dot[..8].copy_from_slice(&body.to_le_bytes());
    dot[8..16].copy_from_slice(&sequence.to_le_bytes());
    let checksum = record_checksum(&dot);
    dot[16..24].copy_from_slice(&checksum.to_le_bytes());
    dot
}

fn record_checksum(dot: &[u8]) -> u64 {
    fingerprint(fingerprint(SEAL, &dot[..16]), &dot[RECORD_HEADER_BYTES..])
}

/// The length of a record's body, as its header states it.
pub(crate) fn record_body_bytes(header: &[u8]) -> Option<usize> {
    let bytes = u64::from_le_bytes(*header.first_chunk()?);
    usize::try_from(bytes).ok()
}

/// The sequence number and the changes of a record, if it is sound.
pub(crate) fn unseal_changes(dot: &[u8]) -> Option<(u64, Vec<DiskChange>)> {
    let (header, body) = dot.split_first_chunk::<RECORD_HEADER_BYTES>()?;
    let stored = u64::from_le_bytes(*header.last_chunk()?);
    if record_body_bytes(header)? != body.len() || stored != record_checksum(dot) {
        return None;
    }
    let mut reader = Reader::plain(body);
    let mut changes = Vec::new();
    while !reader.is_at_end() {
        changes.push(change_of(&mut reader).ok()?);
    }
    Some((u64::from_le_bytes(header[8..16].try_into().ok()?), changes))
}

fn change_of(reader: &mut Reader<'_>) -> Result<DiskChange, WireError> {
    let (key, is_put, value) = (reader.bytes()?, reader.byte()?, reader.long_bytes()?);
    Ok((key.to_vec(), (is_put == 1).then(|| value.to_vec())))
}

/// What can be read of a record that may not be sound.
#[cfg(feature = "__controls")]
pub(crate) fn torn_changes(dot: &[u8]) -> Vec<DiskChange> {
    let mut reader = Reader::plain(dot.get(RECORD_HEADER_BYTES..).unwrap_or_default());
    std::iter::from_fn(|| change_of(&mut reader).ok().filter(|(key, _)| !key.is_empty())).collect()
}

#[cfg(test)]
mod tests {

    use super::*;
    use crate::store::coverage::{HashIntervals, LEFTOVERS_MAX};
    use crate::store::entry::DOTS_MAX;
    use crate::store::entry::Dot;
    use crate::time::Stamp;
    use crate::wire::FRAME_BYTES_MAX;

    #[test]
    fn contexts_beyond_vector_are_read_however_many_they_are() {
        let context = Clocks::from_iter([(RunId::new(1), 5)]);
        let hash_key = HashKey::from_words(1, 1);
        let extra =
            |at: u64| RegionCoverage::new(hash_key, HashIntervals::between(at * 2, at * 2), context.clone());
        let all: Vec<RegionCoverage> = (0..2 * LEFTOVERS_MAX as u64).map(extra).collect();
        let (key, value) = encode_extra_regions(&all);
        let mut saved = Saved::default();
        saved.read_pair(&key, &value.expect("there are some")).expect("it is sound");
        assert_eq!(saved.extra_regions, all);
    }

    #[test]
    fn state_of_a_later_version_is_named_and_not_read() {
        let later = DISK_VERSION + 1;
        // What follows the version may mean anything in a later one.
        let (key, value) = sealed(STATE, b"", vec![later, 1, 2, 3]);
        let refused = Saved::default().read_pair(&key, &value.expect("it is a value"));
        assert!(matches!(refused, Err(SavedError::Version { version }) if version == later));
    }

    #[test]
    fn stored_rows_are_read_whatever_their_size() {
        let mut key = Vec::new();
        key::register_key("k", &mut key);
        let dot = |origin| {
            let text = [&key[..], b"value"].concat();
            Dot::new(
                Stamp { clock: 1, origin },
                crate::time::Lifetime::default(),
                key.len(),
                &text,
                &mut Vec::new(),
            )
        };
        let dot_set = DotSet::from_dots(&key, (1..=2 * DOTS_MAX as u64).map(RunId::new).map(dot).collect());
        let (key, value) = encode_row(&dot_set);
        let read = row_of(&key, &value.expect("it holds something")).expect("it is sound");
        assert_eq!(read.dots().len(), dot_set.dots().len());

        let changes = [(key, Some(vec![7; FRAME_BYTES_MAX + 1])), (vec![MEMO], None)];
        assert_eq!(unseal_changes(&seal_changes(3, &changes)), Some((3, changes.to_vec())));
    }
}
