//! Dots that are bound to the life of a run, and how these runs stand.
//!
//! A dot is hidden while its run is not believed alive, and dropped once the run has ended, as if it had expired:
//! without an event, and covered from then on. Whether a run lives is for membership to say
//! ([`LocalStore::set_run_life`]). That a run does not answer must never drop a dot: after a partition the run is back,
//! and a drop spreads. `docs/replication.md` says why nodes agree in the end.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::LocalStore;
use crate::controls::Control;
use crate::id::{RowId, RunId};
use crate::time::{Stamp, Time};

/// How a run stands, for the dots that are bound to its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RunLife {
    /// It is believed alive: its dots are visible.
    Alive,
    /// It is down, or was never heard of. It may come back: its dots are hidden.
    Away,
    /// It has left, was replaced, or was gone for too long: its dots are dropped.
    Ended,
}

/// The same, as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RunStanding {
    /// Its first dot has just come. Membership is asked before the step ends, so nobody reads this.
    Unjudged {
        /// For how long earlier processes of this node had found it away.
        earlier: Duration,
    },
    Alive,
    Away {
        /// Since when, by the monotonic clock.
        since: Duration,
        earlier: Duration,
    },
    Ended,
}

#[derive(Clone, Debug)]
struct BoundRun {
    standing: RunStanding,
    dots: BTreeSet<(RowId, Stamp)>,
}

/// All held dots that are bound to the life of a run. Runs without such dots are not kept.
#[derive(Clone, Debug, Default)]
pub(super) struct BoundRuns {
    runs: BTreeMap<RunId, BoundRun>,
    unjudged: Vec<RunId>,
    /// Those of `runs` that have ended.
    ended: BTreeSet<RunId>,
    /// Dots that were hidden or shown, and whose rows have not moved to the end of the log since.
    changed: BTreeSet<(RowId, Stamp)>,
}

impl BoundRuns {
    pub(super) fn add(&mut self, run: RunId, id: RowId, stamp: Stamp) {
        let bound = self.runs.entry(run).or_insert_with(|| {
            self.unjudged.push(run);
            BoundRun { standing: RunStanding::Unjudged { earlier: Duration::ZERO }, dots: BTreeSet::new() }
        });
        bound.dots.insert((id, stamp));
    }

    pub(super) fn remove(&mut self, run: RunId, id: RowId, stamp: Stamp) {
        self.changed.remove(&(id, stamp));
        let Some(bound) = self.runs.get_mut(&run) else { return };
        bound.dots.remove(&(id, stamp));
        if bound.dots.is_empty() {
            self.runs.remove(&run);
            self.ended.remove(&run);
        }
    }

    pub(super) fn is_alive(&self, run: RunId) -> bool {
        self.runs.get(&run).is_some_and(|bound| bound.standing == RunStanding::Alive)
    }

    /// Whether a dot is hidden, and its row has moved to the end of the log since.
    pub(super) fn is_hidden_in_log(&self, run: RunId, id: RowId, stamp: Stamp) -> bool {
        !self.is_alive(run) && !self.changed.contains(&(id, stamp))
    }

    pub(super) fn len(&self) -> usize {
        self.runs.values().map(|bound| bound.dots.len()).sum()
    }

    /// Whether dots wait to be dropped, or for their rows to move.
    pub(super) fn has_work(&self) -> bool {
        !self.ended.is_empty() || !self.changed.is_empty()
    }

    /// The next row to be moved to the end of the log.
    pub(super) fn next_changed(&mut self) -> Option<RowId> {
        self.changed.pop_first().map(|(id, _)| id)
    }

    /// The next dot to be dropped.
    pub(super) fn next_ended(&self) -> Option<(RowId, Stamp)> {
        self.runs[self.ended.first()?].dots.first().copied()
    }

    fn set(&mut self, now: Duration, run: RunId, life: RunLife) {
        let Some(bound) = self.runs.get_mut(&run) else { return };
        let before = bound.standing;
        let away = |earlier| RunStanding::Away { since: now, earlier };
        bound.standing = match (life, before) {
            (RunLife::Alive, _) => RunStanding::Alive,
            (RunLife::Ended, _) => RunStanding::Ended,
            (RunLife::Away, RunStanding::Away { .. } | RunStanding::Ended) => before,
            (RunLife::Away, RunStanding::Alive) => away(Duration::ZERO),
            (RunLife::Away, RunStanding::Unjudged { earlier }) => away(earlier),
        };
        let was_judged = !matches!(before, RunStanding::Unjudged { .. });
        let is_alive = bound.standing == RunStanding::Alive;
        if was_judged && (before == RunStanding::Alive) != is_alive {
            self.changed.extend(bound.dots.iter().copied());
        }
        if bound.standing == RunStanding::Ended {
            self.ended.insert(run);
        } else {
            self.ended.remove(&run);
        }
    }
}

impl LocalStore {
    /// The runs of which the first dot has come since the last call. Before the step ends, each must be judged with
    /// [`LocalStore::set_run_life`].
    pub(crate) fn take_unjudged_runs(&mut self) -> Vec<RunId> {
        std::mem::take(&mut self.bound.unjudged)
    }

    /// Hides or shows the dots that are bound to the life of a run, or begins to drop them.
    pub(crate) fn set_run_life(&mut self, now: Time, run: RunId, life: RunLife) {
        let ends_early = life == RunLife::Away && self.controls.has(Control::AwayEndsRuns);
        self.bound.set(now.mono, run, if ends_early { RunLife::Ended } else { life });
    }

    /// Earlier processes of this node had found a run away for so long. Must be called before the run is judged.
    pub(crate) fn remember_away(&mut self, run: RunId, away_for: Duration) {
        if let Some(bound) = self.bound.runs.get_mut(&run)
            && let RunStanding::Unjudged { earlier } = &mut bound.standing
        {
            *earlier = away_for;
        }
    }

    /// The runs with dots that are away, and for how long, those times added in which earlier processes of this node
    /// have found them away.
    pub(crate) fn away_runs(&self, now: Time) -> Vec<(RunId, Duration)> {
        let away = self.bound.runs.iter().filter_map(|(run, bound)| match bound.standing {
            RunStanding::Away { since, earlier } => Some((*run, earlier + now.mono.saturating_sub(since))),
            _ => None,
        });
        away.collect()
    }
}
