//! Values that are bound to the life of a run: what membership says of these runs is told to the store.

use std::collections::BTreeSet;

use super::Replica;
use crate::id::RunId;
use crate::membership::Members;
use crate::store::RunLife;
use crate::time::Time;

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
        for (run, since) in self.store.away_runs() {
            let is_over = since + self.config.forget_after <= now.mono;
            if is_over || asked.contains(&run) || self.life_of(run) == RunLife::Ended {
                self.store.set_run_life(now, run, RunLife::Ended);
            }
        }
    }
}
