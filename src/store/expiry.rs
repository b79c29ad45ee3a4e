//! Expiry: hidden at its time, dropped once every clock must agree.

use super::Store;
use crate::entry::{Held, Record};
use crate::rows::Source;
use crate::time::{Stamp, Time};

/// So many expired keys are noted for the disk. One that has failed takes none.
pub(crate) const DROPPED_MAX: usize = 1 << 18;

impl Store {
    /// Notes when dots expire, or that they are gone.
    pub(super) fn schedule(&mut self, at: u32, dots: Vec<(u64, Stamp)>, on: bool) {
        for (expires, stamp) in dots {
            let hide = (expires, false, at, stamp);
            if on {
                self.expiries.insert(hide);
            } else {
                self.expiries.remove(&hide);
                self.expiries.remove(&(expires.saturating_add(self.skew_ms()), true, at, stamp));
            }
        }
    }

    fn skew_ms(&self) -> u64 {
        self.skew_max.as_millis() as u64
    }

    /// Whether every clock within the permitted skew agrees that this dot has expired.
    pub(super) fn is_due(&self, now: Time, dot: &Record) -> bool {
        dot.expires() != 0 && dot.expires().saturating_add(self.skew_ms()) <= now.wall_ms()
    }

    /// When the next entry expires, in wall-clock milliseconds.
    pub(crate) fn next_expiry(&self) -> Option<u64> {
        self.expiries.first().map(|(ms, ..)| *ms)
    }

    pub(crate) fn expiries(&self) -> usize {
        self.expiries.len()
    }

    /// Lets followers see what has expired by now, and drops what every clock must agree on. At most `limit` steps.
    pub(crate) fn expire(&mut self, now: Time, limit: usize) {
        if now.wall_ms() < self.expired_to {
            self.show_again(now);
        }
        self.expired_to = now.wall_ms();
        for _ in 0..limit {
            let Some(&(ms, is_hidden, at, stamp)) =
                self.expiries.first().filter(|(ms, ..)| *ms <= now.wall_ms())
            else {
                return;
            };
            self.expiries.pop_first();
            if is_hidden {
                self.drop_expired(at, stamp);
            } else {
                self.expiries.insert((ms.saturating_add(self.skew_ms()), true, at, stamp));
                self.touch(at);
            }
        }
    }

    /// The clock went back: what it had hidden is visible for a while again.
    fn show_again(&mut self, now: Time) {
        let skew = self.skew_ms();
        let later =
            self.expiries.iter().filter(|(ms, is_hidden, ..)| *is_hidden && *ms > now.wall_ms() + skew);
        for (ms, _, at, stamp) in later.copied().collect::<Vec<_>>() {
            self.expiries.remove(&(ms, true, at, stamp));
            self.expiries.insert((ms - skew, false, at, stamp));
            self.touch(at);
        }
    }

    /// Moves a row to the end of the log as it is.
    fn touch(&mut self, at: u32) {
        let held = self.slab.at(at).held.clone();
        self.apply(Some(at), self.hash_key.place(held.key()), held, Source::Elsewhere);
    }

    fn drop_expired(&mut self, at: u32, stamp: Stamp) {
        let held = self.slab.at(at).held.clone();
        let rest: Vec<Record> = held.dots().iter().filter(|dot| dot.stamp() != stamp).cloned().collect();
        let is_removal = rest.is_empty();
        let rest = if is_removal {
            Held::Nothing(Record::expired(held.key()))
        } else {
            Held::from_records(held.key(), rest)
        };
        self.replace(at, self.hash_key.place(held.key()), rest);
        if is_removal {
            self.log.mark_removal(self.slab.at(at).revision);
        }
        self.drops += 1;
        if self.disk.is_some()
            && let Some(dropped) = &mut self.dropped
        {
            dropped.push(held.key().to_vec());
            if dropped.len() > DROPPED_MAX {
                self.dropped = None;
            }
        }
    }
}
