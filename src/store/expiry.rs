//! Expiry: a dot is hidden at its expiry, and dropped once all clocks within the permitted skew agree that it has
//! passed.
//!
//! A dropped dot is covered and not held, which to other nodes looks like a delete: a repair spreads it. So a dot is
//! dropped only [`2 × clock_skew_max`](LocalStore::drop_delay_ms) after its expiry, and only while the wall clock is
//! trusted (see [`crate::replica::wall_clock`], also for the risks that remain). Hiding changes only what is read on
//! this node; if the clock goes back, hidden dots are visible again.
//!
//! Dots that are bound to the life of a run are hidden and dropped here too; [`bound`](super::bound) says when.
//!
//! A drop is no event and has no revision. It must happen nowhere but in [`LocalStore::expire`]. A merge does not take
//! a dot that may be dropped, but covers it.

use std::num::NonZeroU64;

use super::{DiskFollower, LocalStore};
use crate::id::RowId;
use crate::store::entry::{Dot, DotSet, Removal};
use crate::store::slab::ChangeOrigin;
use crate::time::{Lifetime, Stamp, Time};

/// The most keys of dropped dots that are noted for the disk. While the disk has failed it takes none.
pub(crate) const DROPPED_MAX: usize = 1 << 18;

/// The keys of dots that were dropped since the last transaction for the disk. Dropping a dot has no revision, so the
/// disk does not find these keys in the log.
#[derive(Clone, Debug)]
pub(crate) enum ExpiredKeys {
    Listed(Vec<Vec<u8>>),
    /// There were more than [`DROPPED_MAX`]: the next transaction writes everything.
    TooMany,
}

impl ExpiredKeys {
    /// Whether no transaction is needed for their sake.
    pub(crate) fn is_empty(&self) -> bool {
        matches!(self, Self::Listed(keys) if keys.is_empty())
    }

    /// The keys for a transaction. What is dropped later is for the next one.
    pub(crate) fn take(&mut self) -> Vec<Vec<u8>> {
        match std::mem::replace(self, Self::Listed(Vec::new())) {
            Self::Listed(keys) => keys,
            Self::TooMany => Vec::new(),
        }
    }
}

impl LocalStore {
    /// Notes dots of a row that end by themselves (`on`), or that they are gone.
    pub(super) fn schedule(&mut self, id: RowId, dots: Vec<(Lifetime, Stamp)>, on: bool) {
        for (Lifetime { expires, run }, stamp) in dots {
            let expiry = expires.map(|expires| (expires.get(), id, stamp));
            if on {
                self.expiries.extend(expiry);
                run.into_iter().for_each(|run| self.bound.add(run, id, stamp));
            } else {
                if let Some(dot) = expiry {
                    self.expiries.remove(&dot);
                    self.hidden.remove(&dot);
                }
                run.into_iter().for_each(|run| self.bound.remove(run, id, stamp));
            }
        }
    }

    /// How long after its expiry a dot is dropped: twice the permitted skew. Once would do for clocks that keep within
    /// it; a clock may be off by as much again before it is in doubt.
    fn drop_delay_ms(&self) -> u64 {
        self.skew_max.saturating_mul(2).as_millis() as u64
    }

    /// Whether every clock within the permitted skew agrees that this dot has expired, so that it may be dropped.
    pub(super) fn may_be_dropped(&self, now: Time, dot: &Dot) -> bool {
        let is_past = |ms: NonZeroU64| ms.get().saturating_add(self.drop_delay_ms()) <= now.wall_ms();
        self.may_drop && dot.lifetime().expires.is_some_and(is_past)
    }

    /// When the next dot is to be hidden or dropped, in wall-clock milliseconds.
    pub(crate) fn next_expiry(&self) -> Option<u64> {
        if self.bound.has_work() {
            return Some(0);
        }
        let drop = self.hidden.first().filter(|_| self.may_drop);
        let drop = drop.map(|(ms, ..)| ms.saturating_add(self.drop_delay_ms()));
        self.expiries.first().map(|(ms, ..)| *ms).into_iter().chain(drop).min()
    }

    /// Whether followers of the log have seen, or can see, that a dot is hidden: its row has moved since.
    pub(super) fn is_hidden_in_log(&self, id: RowId, dot: &Dot) -> bool {
        let (Lifetime { expires, run }, stamp) = (dot.lifetime(), dot.stamp());
        expires.is_some_and(|ms| !self.expiries.contains(&(ms.get(), id, stamp)))
            || run.is_some_and(|run| self.bound.is_hidden_in_log(run, id, stamp))
    }

    /// The number of held dots that end by themselves.
    pub(crate) fn limited_dots(&self) -> usize {
        self.expiries.len() + self.hidden.len() + self.bound.len()
    }

    /// Hides dots that have expired by now, for which followers see their rows again, and drops those that may be
    /// dropped. Does the same for dots whose run is gone. At most `limit` dots.
    pub(crate) fn expire(&mut self, now: Time, limit: usize) {
        if now.wall_ms() < self.expired_to {
            self.show_again(now);
        }
        self.expired_to = now.wall_ms();
        let delay = self.drop_delay_ms();
        let is_past = |ms: u64| ms <= now.wall_ms();
        for _ in 0..limit {
            if let Some(id) = self.bound.next_changed() {
                self.bump(id);
                continue;
            }
            if let Some((id, stamp)) = self.bound.next_ended() {
                self.drop_expired(id, stamp);
                continue;
            }
            let drop = self.hidden.first().copied().filter(|_| self.may_drop);
            if let Some((_, id, stamp)) = drop.filter(|(ms, ..)| is_past(ms.saturating_add(delay))) {
                self.hidden.pop_first();
                self.drop_expired(id, stamp);
            } else if let Some((ms, id, stamp)) =
                self.expiries.first().copied().filter(|(ms, ..)| is_past(*ms))
            {
                self.expiries.pop_first();
                self.hidden.insert((ms, id, stamp));
                self.bump(id);
            } else {
                return;
            }
        }
    }

    /// The clock went back: dots that are hidden too early by the new time are scheduled again.
    fn show_again(&mut self, now: Time) {
        let later = self.hidden.split_off(&(now.wall_ms().saturating_add(1), RowId::FIRST, Stamp::default()));
        for (ms, id, stamp) in later {
            self.expiries.insert((ms, id, stamp));
            self.bump(id);
        }
    }

    /// Moves a row to the end of the log unchanged, so that followers look at it again.
    fn bump(&mut self, id: RowId) {
        let dot_set = self.slab.at(id).dot_set.clone();
        self.apply(Some(id), self.hash_key.place(dot_set.key()), dot_set, ChangeOrigin::Learned);
    }

    /// Takes an expired dot out of its key, without an event and without a revision. It stays covered.
    fn drop_expired(&mut self, id: RowId, stamp: Stamp) {
        let dot_set = self.slab.at(id).dot_set.clone();
        let rest: Vec<Dot> = dot_set.dots().iter().filter(|dot| dot.stamp() != stamp).cloned().collect();
        let is_removal = rest.is_empty();
        let rest = if is_removal {
            DotSet::empty(dot_set.key(), Removal::Expired)
        } else {
            DotSet::from_dots(dot_set.key(), rest)
        };
        self.replace(id, self.hash_key.place(dot_set.key()), rest);
        if is_removal {
            self.log.mark_removal(self.slab.at(id).revision);
        }
        self.expiry_count += 1;
        if self.disk != DiskFollower::NoDisk
            && let ExpiredKeys::Listed(keys) = &mut self.expired_keys
        {
            keys.push(dot_set.key().to_vec());
            if keys.len() > DROPPED_MAX {
                self.expired_keys = ExpiredKeys::TooMany;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::id::RunId;
    use crate::store::PeerRow;
    use crate::store::coverage::Vector;
    use crate::store::watch::{WatchEvent, WatchOptions, Watches};

    #[test]
    fn expiry_is_told_once_also_if_read_before_it_is_noted() {
        let mut key = Vec::new();
        crate::store::key::register_key("k", &mut key);
        let run = RunId::new(2);
        let lifetime = Lifetime { expires: std::num::NonZeroU64::new(2_000), run: None };
        let text = [&key[..], b"v"].concat();
        let dot =
            Dot::new(Stamp { clock: 1 << 20, origin: run }, lifetime, key.len(), &text, &mut Vec::new());
        let row = PeerRow { dot_set: DotSet::One(dot), vector: Vector::default(), context: None };
        let at = |seconds| Time { mono: Duration::ZERO, wall: Duration::from_secs(seconds) };
        let mut store = LocalStore::of_run(1);
        let mut watches = Watches::default();
        let id = watches.open(&store, key, WatchOptions::new().without_current());
        // Merged and read after its end, before the timer has noted that.
        store.merge_rows(at(3), &[row], ChangeOrigin::Learned, |_| ());
        let mut events = watches.next(id, at(3), &store).0;
        assert!(store.iter_from(&[]).all(|(dot_set, _)| !store.is_visible(at(3), dot_set)));
        store.expire(at(3), 8);
        events.extend(watches.next(id, at(3), &store).0);
        store.expire(at(60), 8);
        events.extend(watches.next(id, at(60), &store).0);
        assert!(matches!(&events[..], [WatchEvent::Put(_), WatchEvent::Expired { .. }]), "{events:?}");
    }

    #[test]
    fn later_lifetime_of_the_same_stamp_is_scheduled() {
        let mut key = Vec::new();
        crate::store::key::register_key("k", &mut key);
        let stamp = Stamp { clock: 1 << 20, origin: RunId::new(2) };
        let row = |lifetime| {
            let text = [&key[..], b"v"].concat();
            let dot = Dot::new(stamp, lifetime, key.len(), &text, &mut Vec::new());
            PeerRow { dot_set: DotSet::One(dot), vector: Vector::default(), context: None }
        };
        let now = Time { mono: Duration::ZERO, wall: Duration::from_secs(1) };
        let at = |ms: u64| std::num::NonZeroU64::new(ms);
        for run in [None, Some(RunId::new(2))] {
            let mut store = LocalStore::of_run(1);
            for ms in [2_000, 3_000] {
                let row = row(Lifetime { expires: at(ms), run });
                store.merge_rows(now, &[row], ChangeOrigin::Learned, |_| ());
                assert_eq!(store.expiries.first().map(|(expiry, ..)| *expiry), Some(ms));
                assert_eq!(store.limited_dots(), 1 + usize::from(run.is_some()));
            }
            // Hidden by the first lifetime, and visible again by the second.
            store.expire(Time { wall: Duration::from_secs(4), ..now }, 8);
            let row = row(Lifetime { expires: at(9_000), run });
            store.merge_rows(now, &[row], ChangeOrigin::Learned, |_| ());
            assert_eq!((store.expiries.len(), store.hidden.len()), (1, 0));
        }
    }
}
