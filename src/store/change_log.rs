//! The change log: every key once, at the revision of its latest change.
//!
//! Everything that needs to know of changes is a follower with a cursor: a peer over the network, a watcher in the
//! process, the disk. A follower that lags finds each changed key once, however often it changed meanwhile. The
//! log is a sequence of short chunks; a row that moves to the end leaves a hole, and a chunk that is mostly holes
//! is compacted by itself, so that no single write pays for many.

use std::collections::{BTreeSet, VecDeque};

use crate::store::slab::ChangeOrigin;

const SEGMENT_ROWS: usize = 1_024;
const HOLE: u32 = u32::MAX;
/// A row is seldom further away from where its revision lets it be expected.
const NEAR_ROWS: usize = 32;

/// Which rows of the log a peer is sent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LogFilter {
    /// Those with an event of this node's own.
    #[default]
    Own,
    /// And those that this node is to pass on.
    Forwarded,
    /// All.
    All,
}

#[derive(Clone, Debug, Default)]
struct LogSegment {
    /// Below or at its first revision, and above all of the chunk before.
    first: u64,
    /// How far beyond `first` each row's revision is, and its slot.
    rows: Vec<(u32, u32)>,
    live: usize,
}

impl LogSegment {
    fn compact(&mut self) {
        self.rows.retain(|(_, slot)| *slot != HOLE);
        self.rows.shrink_to_fit();
    }

    /// Where the row with this offset is. Chunks are compacted when half of them is gone, so the offset tells nearly where.
    fn row(&self, offset: u32) -> Option<usize> {
        let ((first, _), (last, _)) = (*self.rows.first()?, *self.rows.last()?);
        let part = u64::from(offset.checked_sub(first)?) * (self.rows.len() as u64 - 1);
        let guess = (part / u64::from(last - first).max(1)) as usize;
        let near = guess.saturating_sub(NEAR_ROWS)..self.rows.len().min(guess + NEAR_ROWS);
        let find = |rows: &[(u32, u32)]| rows.binary_search_by_key(&offset, |row| row.0).ok();
        let at = self.rows.get(near.clone()).and_then(find).map(|at| near.start + at);
        at.or_else(|| find(&self.rows))
    }

    /// How far a revision is beyond this chunk's first, if that is not too far.
    fn offset(&self, revision: u64) -> Option<u32> {
        u32::try_from(revision - self.first).ok()
    }
}

/// See the module.
#[derive(Clone, Debug)]
pub(crate) struct ChangeLog {
    /// Fresh in every start of a process: positions in other logs mean nothing here.
    pub(crate) id: u64,
    segments: VecDeque<LogSegment>,
    head: u64,
    /// The latest event of this node's own, and the latest that it is to pass on, its own included.
    own: u64,
    forwarded: u64,
    floor: u64,
    /// The rows of keys that hold nothing: what may be forgotten.
    removals: BTreeSet<u64>,
}

impl ChangeLog {
    pub(crate) fn new(id: u64) -> Self {
        Self {
            id,
            segments: VecDeque::new(),
            head: 0,
            own: 0,
            forwarded: 0,
            floor: 0,
            removals: BTreeSet::new(),
        }
    }

    /// The revision of the latest change.
    pub(crate) fn head(&self) -> u64 {
        self.head
    }

    /// The revision of the latest change that a peer is sent.
    pub(crate) fn latest(&self, filter: LogFilter) -> u64 {
        match filter {
            LogFilter::Own => self.own,
            LogFilter::Forwarded => self.forwarded,
            LogFilter::All => self.head,
        }
    }

    /// A follower whose cursor is below this may have missed removals.
    pub(crate) fn floor(&self) -> u64 {
        self.floor
    }

    pub(crate) fn raise_floor(&mut self, to: u64) {
        self.floor = self.floor.max(to);
        self.head = self.head.max(to);
    }

    /// Puts a key at the end. Its earlier row must have been taken out.
    pub(crate) fn append(&mut self, slot: u32, is_removal: bool, source: ChangeOrigin) -> u64 {
        self.head += 1;
        match source {
            ChangeOrigin::Own => (self.own, self.forwarded) = (self.head, self.head),
            ChangeOrigin::Forwarded => self.forwarded = self.head,
            ChangeOrigin::Learned => {}
        }
        let is_full =
            |chunk: &LogSegment| chunk.rows.len() >= SEGMENT_ROWS || chunk.offset(self.head).is_none();
        if self.segments.back().is_none_or(is_full) {
            self.segments.push_back(LogSegment { first: self.head, ..LogSegment::default() });
        }
        let chunk = self.segments.back_mut().expect("just made sure");
        chunk.rows.push((chunk.offset(self.head).expect("just made sure"), slot));
        chunk.live += 1;
        if is_removal {
            self.removals.insert(self.head);
        }
        self.head
    }

    /// Takes a row out.
    pub(crate) fn take_out(&mut self, revision: u64) {
        self.removals.remove(&revision);
        let at = self.segments.partition_point(|chunk| chunk.first <= revision) - 1;
        let chunk = &mut self.segments[at];
        let offset = chunk.offset(revision).expect("the row is in the chunk");
        let row = chunk.row(offset).expect("the row is in the chunk");
        chunk.rows[row].1 = HOLE;
        chunk.live -= 1;
        if chunk.live == 0 {
            self.segments.remove(at);
        } else if chunk.live * 2 < chunk.rows.len() {
            chunk.compact();
            self.join(at);
        }
    }

    /// Joins a chunk with the one before it if both together are small.
    fn join(&mut self, at: usize) {
        if at == 0 || self.segments[at - 1].rows.len() + self.segments[at].rows.len() > SEGMENT_ROWS / 2 {
            return;
        }
        let (chunk, before) = (&self.segments[at], &self.segments[at - 1]);
        let moved =
            |(offset, slot): &(u32, u32)| Some((before.offset(chunk.first + u64::from(*offset))?, *slot));
        let Some(rows) = chunk.rows.iter().map(moved).collect::<Option<Vec<_>>>() else { return };
        let chunk = self.segments.remove(at).expect("it is there");
        let before = &mut self.segments[at - 1];
        before.rows.extend(rows);
        before.live += chunk.live;
    }

    /// Marks a row as one of a key that holds nothing any more.
    pub(crate) fn mark_removal(&mut self, revision: u64) {
        self.removals.insert(revision);
    }

    pub(crate) fn removals(&self) -> usize {
        self.removals.len()
    }

    pub(crate) fn oldest_removal(&self) -> Option<u64> {
        self.removals.first().copied()
    }

    /// The rows after a revision, ascending.
    pub(crate) fn rows_after(&self, revision: u64) -> impl Iterator<Item = (u64, u32)> + '_ {
        let from = self.segments.partition_point(|chunk| chunk.first <= revision).saturating_sub(1);
        let mut chunks = self.segments.range(from.min(self.segments.len())..);
        let first = chunks.next().map(|chunk| {
            let begin =
                chunk.rows.partition_point(|(offset, _)| chunk.first + u64::from(*offset) <= revision);
            (chunk, &chunk.rows[begin..])
        });
        let all = first.into_iter().chain(chunks.map(|chunk| (chunk, &chunk.rows[..])));
        let rows = all.flat_map(|(chunk, rows)| {
            rows.iter().map(|(offset, slot)| (chunk.first + u64::from(*offset), *slot))
        });
        rows.filter(|(_, slot)| *slot != HOLE)
    }

    /// The slot at a revision.
    pub(crate) fn slot(&self, revision: u64) -> Option<u32> {
        self.rows_after(revision - 1).next().filter(|(at, _)| *at == revision).map(|(_, slot)| slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn log_shows_each_changed_key_once_at_its_latest_revision() {
        let mut log = ChangeLog::new(1);
        let mut latest: BTreeMap<u32, u64> = BTreeMap::new();
        let mut random = 7_u64;
        for step in 0..60_000_u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // A few hot keys and many cold ones.
            let slot =
                if random >> 63 == 0 { (random >> 40) as u32 % 5 } else { (random >> 40) as u32 % 5_000 };
            if let Some(revision) = latest.remove(&slot) {
                log.take_out(revision);
            }
            latest.insert(slot, log.append(slot, false, ChangeOrigin::Own));
            if step % 9_999 == 0 {
                for cursor in [0, step / 2, step, step + 1] {
                    let mut expected: Vec<(u64, u32)> =
                        latest.iter().map(|(slot, at)| (*at, *slot)).filter(|(at, _)| *at > cursor).collect();
                    expected.sort_unstable();
                    assert_eq!(log.rows_after(cursor).collect::<Vec<_>>(), expected);
                }
            }
        }
        let rows: usize = log.segments.iter().map(|chunk| chunk.rows.len()).sum();
        assert!(rows <= 2 * latest.len() + SEGMENT_ROWS, "{rows} rows for {} keys", latest.len());
        assert!(log.segments.len() < 64, "{} chunks", log.segments.len());
    }
}
