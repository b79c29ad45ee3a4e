//! Values that are bound to the life of a run: what membership says of these runs is told to the store.
//!
//! A run that never comes back ends after [`Config::forget_after`](crate::Config::forget_after). A memo keeps for how
//! long each run has been away, so that a node that is restarted often drops its values too. Only times in which a
//! process of this node ran are counted: while none did, the run may have been alive.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::Replica;
use crate::id::RunId;
use crate::membership::Members;
use crate::store::RunLife;
use crate::time::Time;
use crate::wire::{Reader, Writer};

/// The name of the memo with the runs that are away, and for how long.
const AWAY_MEMO: &str = "away runs";

/// The most runs in the memo: those that have been away for longest. For any other a restart begins its time anew.
const AWAY_RUNS_MAX: usize = 4_096;

/// The memo is written when a time in it has grown by this part of
/// [`Config::forget_after`](crate::Config::forget_after), and a crash loses as much. After a start every run has as
/// much time at least to be heard of.
const AWAY_TIMES_DIVISOR: u32 = 64;

impl Replica {
    /// A replica that is no member believes every run alive.
    fn life_of(&self, run: RunId) -> RunLife {
        self.members.as_ref().map_or(RunLife::Alive, |members: &Members| members.life_of(run))
    }

    /// Judges the runs of which the first bound value has just come. Must be called before values are read.
    pub(super) fn judge_runs(&mut self, now: Time) {
        for run in self.store.take_unjudged_runs() {
            self.store.set_run_life(now, run, self.life_of(run));
        }
    }

    /// Ends the runs that have been away for as long as members are remembered, that have left, or that somebody asked
    /// to forget. Membership itself reports the end of a run that it knows; this is for runs that it does not know, and
    /// for values that come after the end.
    pub(super) fn end_away_runs(&mut self, now: Time, asked: &BTreeSet<RunId>) {
        self.judge_runs(now);
        for (run, away_for) in self.store.away_runs(now) {
            let is_over = away_for >= self.config.forget_after;
            if is_over || asked.contains(&run) || self.life_of(run) == RunLife::Ended {
                self.store.set_run_life(now, run, RunLife::Ended);
            }
        }
        self.note_away_times(now, self.away_step());
    }

    fn away_step(&self) -> Duration {
        self.config.forget_after / AWAY_TIMES_DIVISOR
    }

    /// Puts the times of the memo on the runs whose values the disk has brought back.
    pub(super) fn load_away_times(&mut self) {
        let most = self.config.forget_after - self.away_step();
        for (run, away_for) in self.noted_away_times() {
            self.store.remember_away(run, away_for.min(most));
        }
    }

    /// What the memo says, up to the first error.
    fn noted_away_times(&self) -> BTreeMap<RunId, Duration> {
        let mut noted = BTreeMap::new();
        let mut reader = Reader::plain(self.memo(AWAY_MEMO).unwrap_or_default());
        while !reader.is_at_end()
            && let (Ok(run), Ok(ms)) = (reader.run(), reader.varint())
        {
            noted.insert(run, Duration::from_millis(ms));
        }
        noted
    }

    /// Writes the memo if other runs are away than it says, or one for longer by `step`.
    pub(super) fn note_away_times(&mut self, now: Time, step: Duration) {
        if !self.has_disk() {
            return;
        }
        let mut away = self.store.away_runs(now);
        away.sort_by_key(|(run, away_for)| (Reverse(*away_for), *run));
        away.truncate(AWAY_RUNS_MAX);
        let noted = self.noted_away_times();
        let is_noted = |(run, away_for): &(RunId, Duration)| {
            noted.get(run).is_some_and(|noted| noted <= away_for && *away_for - *noted < step)
        };
        if away.len() == noted.len() && away.iter().all(is_noted) {
            return;
        }
        let mut writer = Writer::plain();
        for (run, away_for) in &away {
            writer.run(*run);
            writer.varint(away_for.as_millis() as u64);
        }
        let memo = writer.into_plain();
        self.set_memo(AWAY_MEMO, (!away.is_empty()).then_some(&*memo));
    }
}
