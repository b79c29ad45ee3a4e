//! The change log: every key once, at the revision of its latest change.
//!
//! Everything that needs to know of changes is a follower with a cursor: a peer over the network, a watch in the
//! process, the disk. A follower that lags finds each changed key once, however often it changed meanwhile; so no queue
//! of changes is needed anywhere. The log is a sequence of short segments. A row that moves to the end leaves a hole,
//! and a segment that is mostly holes is compacted by itself, so that no single write pays for many.
//!
//! A row may leave the log for ever only as a removal, and only together with raising the floor to its revision: a
//! follower whose cursor is below the floor would miss the delete otherwise.

use std::collections::{BTreeSet, VecDeque};

use crate::id::{LogId, RowId};
use crate::store::slab::ChangeOrigin;

const SEGMENT_ROWS: usize = 1_024;
/// A row is seldom further than this from the index that its revision suggests.
const NEAR_ROWS: usize = 32;

/// Which rows of the log are sent to a peer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum LogFilter {
    /// Rows with a local event.
    #[default]
    Own,
    /// Rows with a local event or one that this node forwards.
    Forwarded,
}

/// The disk as a follower of the change log: the log keeps removals until the disk has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DiskFollower {
    /// There is no disk.
    NoDisk,
    /// The disk has everything up to this revision.
    At(u64),
    /// The disk has failed. The log keeps nothing for it.
    Failed,
}

#[derive(Clone, Debug, Default)]
struct LogSegment {
    /// At most the first revision of the segment, and greater than all revisions of the segment before.
    first: u64,
    /// For each row: how far its revision is beyond `first`, and its id. `None`: a hole.
    rows: Vec<(u32, Option<RowId>)>,
    /// How many rows are no holes.
    live: usize,
}

impl LogSegment {
    fn compact(&mut self) {
        self.rows.retain(|(_, id)| id.is_some());
        self.rows.shrink_to_fit();
    }

    /// The index of the row with this offset. A segment is compacted when half of it is holes, so the offset is a good
    /// guess of the index.
    fn row(&self, offset: u32) -> Option<usize> {
        let ((first, _), (last, _)) = (*self.rows.first()?, *self.rows.last()?);
        let part = u64::from(offset.checked_sub(first)?) * (self.rows.len() as u64 - 1);
        let guess = (part / u64::from(last - first).max(1)) as usize;
        let near = guess.saturating_sub(NEAR_ROWS)..self.rows.len().min(guess + NEAR_ROWS);
        let find = |rows: &[(u32, Option<RowId>)]| rows.binary_search_by_key(&offset, |row| row.0).ok();
        let at = self.rows.get(near.clone()).and_then(find).map(|at| near.start + at);
        at.or_else(|| find(&self.rows))
    }

    /// How far a revision is beyond `first`, if that fits.
    fn offset(&self, revision: u64) -> Option<u32> {
        u32::try_from(revision - self.first).ok()
    }
}

/// Every key once, at the revision of its latest change, with what followers have to know: head, floor and removals.
#[derive(Clone, Debug)]
pub(crate) struct ChangeLog {
    /// A fresh random number in every process start: positions in other logs mean nothing here.
    pub(crate) id: LogId,
    segments: VecDeque<LogSegment>,
    head: u64,
    /// Revision of the latest local event.
    own: u64,
    /// Revision of the latest event that is local or forwarded.
    forwarded: u64,
    floor: u64,
    /// Revisions of the keys that hold nothing. These rows may be forgotten.
    removals: BTreeSet<u64>,
}

impl ChangeLog {
    pub(crate) fn new(id: LogId) -> Self {
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

    /// The revision of the latest change that this filter lets through.
    pub(crate) fn latest(&self, filter: LogFilter) -> u64 {
        match filter {
            LogFilter::Own => self.own,
            LogFilter::Forwarded => self.forwarded,
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

    /// Appends a key at the end. Its earlier row must have been taken out before.
    pub(crate) fn append(&mut self, id: RowId, source: ChangeOrigin) -> u64 {
        self.head += 1;
        match source {
            ChangeOrigin::Own => (self.own, self.forwarded) = (self.head, self.head),
            ChangeOrigin::Forwarded => self.forwarded = self.head,
            ChangeOrigin::Learned => {}
        }
        let is_full =
            |segment: &LogSegment| segment.rows.len() >= SEGMENT_ROWS || segment.offset(self.head).is_none();
        if self.segments.back().is_none_or(is_full) {
            self.segments.push_back(LogSegment { first: self.head, ..LogSegment::default() });
        }
        let segment = self.segments.back_mut().expect("just made sure");
        segment.rows.push((segment.offset(self.head).expect("just made sure"), Some(id)));
        segment.live += 1;
        self.head
    }

    /// Takes a row out.
    pub(crate) fn take_out(&mut self, revision: u64) {
        self.removals.remove(&revision);
        let at = self.segments.partition_point(|segment| segment.first <= revision) - 1;
        let segment = &mut self.segments[at];
        let offset = segment.offset(revision).expect("the row is in the segment");
        let row = segment.row(offset).expect("the row is in the segment");
        segment.rows[row].1 = None;
        segment.live -= 1;
        if segment.live == 0 {
            self.segments.remove(at);
        } else if segment.live * 2 < segment.rows.len() {
            segment.compact();
            self.join(at);
        }
    }

    /// Joins a segment with the one before it if both together are small.
    fn join(&mut self, at: usize) {
        if at == 0 || self.segments[at - 1].rows.len() + self.segments[at].rows.len() > SEGMENT_ROWS / 2 {
            return;
        }
        let (segment, before) = (&self.segments[at], &self.segments[at - 1]);
        let moved = |(offset, id): &(u32, Option<RowId>)| {
            Some((before.offset(segment.first + u64::from(*offset))?, *id))
        };
        let Some(rows) = segment.rows.iter().map(moved).collect::<Option<Vec<_>>>() else { return };
        let segment = self.segments.remove(at).expect("it is there");
        let before = &mut self.segments[at - 1];
        before.rows.extend(rows);
        before.live += segment.live;
    }

    /// Marks the row at this revision as a removal: its key holds nothing any more.
    pub(crate) fn mark_removal(&mut self, revision: u64) {
        self.removals.insert(revision);
    }

    pub(crate) fn removals(&self) -> usize {
        self.removals.len()
    }

    pub(crate) fn oldest_removal(&self) -> Option<u64> {
        self.removals.first().copied()
    }

    /// The rows after a revision in ascending order: (revision, row id).
    pub(crate) fn rows_after(&self, revision: u64) -> impl Iterator<Item = (u64, RowId)> + '_ {
        let from = self.segments.partition_point(|segment| segment.first <= revision).saturating_sub(1);
        let mut segments = self.segments.range(from.min(self.segments.len())..);
        let first = segments.next().map(|segment| {
            let begin =
                segment.rows.partition_point(|(offset, _)| segment.first + u64::from(*offset) <= revision);
            (segment, &segment.rows[begin..])
        });
        let all = first.into_iter().chain(segments.map(|segment| (segment, &segment.rows[..])));
        all.flat_map(|(segment, rows)| {
            rows.iter().filter_map(|(offset, id)| Some((segment.first + u64::from(*offset), (*id)?)))
        })
    }

    /// The row at a revision, if there is one.
    pub(crate) fn row_at(&self, revision: u64) -> Option<RowId> {
        self.rows_after(revision - 1).next().filter(|(at, _)| *at == revision).map(|(_, id)| id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn log_shows_each_changed_key_once_at_its_latest_revision() {
        let mut log = ChangeLog::new(LogId::new(1));
        let mut latest: BTreeMap<RowId, u64> = BTreeMap::new();
        let mut random = 7_u64;
        for step in 0..60_000_u64 {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            // A few hot keys and many cold ones.
            let rows = if random >> 63 == 0 { 5 } else { 5_000 };
            let id = RowId::of_index((random >> 40) as usize % rows);
            if let Some(revision) = latest.remove(&id) {
                log.take_out(revision);
            }
            latest.insert(id, log.append(id, ChangeOrigin::Own));
            if step % 9_999 == 0 {
                for cursor in [0, step / 2, step, step + 1] {
                    let mut expected: Vec<(u64, RowId)> =
                        latest.iter().map(|(id, at)| (*at, *id)).filter(|(at, _)| *at > cursor).collect();
                    expected.sort_unstable();
                    assert_eq!(log.rows_after(cursor).collect::<Vec<_>>(), expected);
                }
            }
        }
        let rows: usize = log.segments.iter().map(|segment| segment.rows.len()).sum();
        assert!(rows <= 2 * latest.len() + SEGMENT_ROWS, "{rows} rows for {} keys", latest.len());
        assert!(log.segments.len() < 64, "{} segments", log.segments.len());
    }
}
