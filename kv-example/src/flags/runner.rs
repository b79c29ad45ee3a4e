//! Runs plans on one node of the cluster: the one that holds the lease `flags-plans`.
//!
//! The lease keeps two nodes from working on the same plan at the same time, and the conditions of the writes keep a
//! step from being taken twice on one node. If a holder that was suspended writes after its lease has ended, its token
//! is lower, and the next holder settles the concurrent versions.
//!
//! A node campaigns only while there is a plan to run: without plans there is no traffic for the lease. A holder that
//! cannot write, because its clock is in doubt, its store or disk is full or the cluster does not keep up with it, must not
//! keep the lease: it leaves it to another node, which can still take back what a crossed threshold asks for. A doubt
//! of its clock counts also while there is nothing to write: by a clock that was set back no step is due.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tidings::{ElectionError, Leadership, Node, Status, WatchEvent, WriteError};
use tokio::time::{MissedTickBehavior, interval};

use super::Names;
use super::condition::Threshold;
use super::metrics::{Readings, Reports};
use super::plan::{self, Plan, State};
use crate::api::{App, Monitor};
use crate::span;

/// The name of the election.
pub(crate) const ELECTION: &str = "flags-plans";
/// Plans that are looked at in one round, the first by their keys.
const PLANS_MAX: usize = 1_000;
/// How often plans are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// Rounds in a row in which the holder could not write, before it gives up the lease.
const REFUSED_ROUNDS_MAX: u32 = 6;
/// For how long it leaves the lease to others then. One of them that campaigns has it at once.
const PAUSE: Duration = Duration::from_secs(30);
/// How often a node reports the metrics that plans watch.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// The plans that have something to be done, by key, kept by a watch, so that finished ones cost nothing.
#[derive(Clone, Debug, Default)]
struct OpenPlans(Arc<Mutex<BTreeMap<String, Option<Threshold>>>>);

impl OpenPlans {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Option<Threshold>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(&self, event: WatchEvent) {
        match event {
            WatchEvent::Put(entry) => {
                let is_split = entry.conflicts().next().is_some();
                match Plan::of_entry(&entry) {
                    Some(plan) if is_split || plan.state == State::Running => {
                        self.lock().insert(entry.key().to_owned(), plan.stop_if);
                    }
                    _ => _ = self.lock().remove(entry.key()),
                }
            }
            WatchEvent::Delete { key, .. } | WatchEvent::Expired { key, .. } => _ = self.lock().remove(&key),
            WatchEvent::Resync => self.lock().clear(),
            _ => {}
        }
    }

    fn keys(&self) -> Vec<String> {
        self.lock().keys().take(PLANS_MAX).cloned().collect()
    }

    fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    fn metrics(&self) -> BTreeSet<String> {
        self.lock().values().flatten().map(|threshold| threshold.metric.clone()).collect()
    }
}

/// Runs plans, and reports metrics for them, until the node is closed.
pub(crate) fn start(app: &Arc<App>) {
    let (node, monitor, prefix) = (app.node.clone(), app.monitor.clone(), app.flags_prefix.clone());
    let open = OpenPlans::default();
    let (mut watch, seen) = (node.watch(Names(&prefix).plans()), open.clone());
    tokio::spawn(async move {
        while let Some(event) = watch.next().await {
            seen.take(event);
        }
    });
    tokio::spawn(report(app.clone(), open.clone()));
    tokio::spawn(async move {
        // A node that has not caught up yet knows old states of plans.
        if node.ready().await.is_err() {
            return;
        }
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !node.status().is_closed {
            looks.tick().await;
            if open.is_empty() {
                continue;
            }
            match node.election(ELECTION).campaign(node.name()).await {
                Ok(lease) => {
                    if let Err(error) = hold(&node, &monitor, &open, Names(&prefix), lease).await {
                        let pause = span::show(PAUSE);
                        let told = format!("this node leaves plans to others for {pause}: {error}");
                        monitor.tell("flags", told);
                        tokio::time::sleep(PAUSE).await;
                    }
                }
                // Voters can be named while the cluster runs.
                Err(ElectionError::Closed) => return,
                Err(_) => {}
            }
        }
    });
}

/// Whether a node refuses a write that another node may still accept.
fn is_of_this_node(error: &WriteError) -> bool {
    matches!(error, WriteError::Full { .. } | WriteError::Disk | WriteError::Clock { .. } | WriteError::Busy)
}

/// Rounds in a row in which the holder could not write.
#[derive(Debug, Default)]
struct RefusedRounds(u32);

impl RefusedRounds {
    /// Counts a round with this refusal. If the holder has to give up the lease: why.
    fn add(&mut self, refused: Option<WriteError>, status: Option<&Status>) -> Option<WriteError> {
        // Nothing may have been due by a clock that was set back.
        let doubt = || Some(WriteError::Clock { off: status?.clock_off? });
        let refused = refused.or_else(doubt);
        self.0 = if refused.is_some() { self.0 + 1 } else { 0 };
        refused.filter(|_| self.0 == REFUSED_ROUNDS_MAX)
    }
}

/// Runs all plans while the lease is held and there is something to do. An error: this node could not write for
/// [`REFUSED_ROUNDS_MAX`] rounds, and has given the lease up.
async fn hold(
    node: &Node,
    monitor: &Arc<Monitor>,
    open: &OpenPlans,
    names: Names<'_>,
    lease: Leadership,
) -> Result<(), WriteError> {
    let (mut last_error, mut readings) = (None, Readings::default());
    let mut refused_rounds = RefusedRounds::default();
    // The newer the lease, the greater the text.
    let token = format!("{:032x}", lease.token().as_u128());
    while lease.is_valid() && !open.is_empty() {
        tokio::select! {
            () = lease.lost() => return Ok(()),
            // Also before the first look: so what the holder before has written can arrive.
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
        let keys = open.keys();
        readings.retain(&keys);
        let mut refused = None;
        for key in keys {
            let Some((set, flag)) = key[names.plans().len()..].split_once('/') else { continue };
            if !lease.is_valid() {
                return Ok(());
            }
            let crossed = |plan: &Plan| readings.crossed(node, names, set, flag, plan);
            // Members write plans and definitions: a step may take a while, in which other tasks go on.
            let ran = tokio::task::block_in_place(|| plan::run(node, names, set, flag, crossed, &token));
            match ran {
                Ok(Some(decision)) => {
                    let what = if decision.note.is_empty() { &decision.plan.reason } else { &decision.note };
                    monitor.tell("flags", format!("{set}/{flag}: {what}"));
                }
                Ok(None) => {}
                Err(error) => {
                    if last_error.replace(error.clone()).as_ref() != Some(&error) {
                        monitor.tell("flags", format!("the plan of {set}/{flag} waits: {error}"));
                    }
                    refused = refused.or(Some(error).filter(is_of_this_node));
                }
            }
        }
        if let Some(error) = refused_rounds.add(refused, node.status().store.as_ref()) {
            lease.resign().await;
            return Err(error);
        }
    }
    lease.resign().await;
    Ok(())
}

async fn report(app: Arc<App>, open: OpenPlans) {
    let mut reports = Reports::default();
    let mut ticks = interval(REPORT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !app.node.status().is_closed {
        ticks.tick().await;
        // What could not be reported, or taken away, now is so the next time.
        let text = || app.metrics_text();
        _ = reports.refresh(&app.node, Names(&app.flags_prefix), &open.metrics(), text);
    }
}

#[cfg(test)]
mod tests {
    use tidings::sim::Sim;

    use super::*;

    #[test]
    fn holder_whose_clock_was_set_back_gives_up_its_lease() {
        let mut sim = Sim::new(1).nodes(3);
        let given_up = |sim: &mut Sim| {
            sim.run_for(Duration::from_secs(10));
            let (mut rounds, status) = (RefusedRounds::default(), sim.node(0).status());
            (1..=20).find_map(|round| Some((round, rounds.add(None, Some(&status))?)))
        };
        assert_eq!(given_up(&mut sim), None, "the control");
        sim.skew(0, -3_600_000);
        let (round, error) = given_up(&mut sim).unwrap();
        assert!(matches!(error, WriteError::Clock { .. }), "{error}");
        assert_eq!(round, REFUSED_ROUNDS_MAX);
        sim.skew(0, 0);
        assert_eq!(given_up(&mut sim), None, "its clock is right again");
    }

    #[test]
    fn only_refused_rounds_in_a_row_count() {
        let mut rounds = RefusedRounds::default();
        for refused in 1..REFUSED_ROUNDS_MAX {
            assert_eq!(rounds.add(Some(WriteError::Busy), None), None, "{refused}");
        }
        assert_eq!(rounds.add(None, None), None);
        for refused in 1..REFUSED_ROUNDS_MAX {
            assert_eq!(rounds.add(Some(WriteError::Busy), None), None, "{refused}");
        }
        assert_eq!(rounds.add(Some(WriteError::Disk), None), Some(WriteError::Disk));
    }
}
