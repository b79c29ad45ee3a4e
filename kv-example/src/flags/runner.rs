//! Runs plans on one node of the cluster: the one that holds the lease `flags-plans`.
//!
//! The lease keeps two nodes from working on the same plan at the same time, and the conditions of the writes keep a
//! step from being taken twice on one node. If a holder that was suspended writes after its lease has ended, its token
//! is lower, and the next holder settles the concurrent versions.
//!
//! A node campaigns only while there is a plan to run: without plans there is no traffic for the lease.

use std::sync::Arc;
use std::time::Duration;

use tidings::{ElectionError, Leadership, Node, Store};
use tokio::time::{MissedTickBehavior, interval};

use super::Names;
use super::metrics::{self, Reports};
use super::plan::{self, Plan, State};
use crate::api::Monitor;

/// The name of the election.
pub(crate) const ELECTION: &str = "flags-plans";
/// How often plans are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How often a node reports the metrics that plans watch.
const REPORT_INTERVAL: Duration = Duration::from_secs(1);

/// Runs plans, and reports metrics for them, until the node is closed.
pub(crate) fn start(node: &Node, monitor: &Arc<Monitor>, prefix: &str, render: fn() -> String) {
    let (node, monitor, prefix) = (node.clone(), monitor.clone(), prefix.to_owned());
    tokio::spawn(report(node.clone(), prefix.clone(), render));
    tokio::spawn(async move {
        // A node that has not caught up yet knows old states of plans.
        if node.ready().await.is_err() {
            return;
        }
        let mut looks = interval(LOOK_INTERVAL);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while !node.status().is_closed {
            looks.tick().await;
            if !has_work(&node, Names(&prefix)) {
                continue;
            }
            match node.election(ELECTION).campaign(node.name()).await {
                Ok(lease) => hold(&node, &monitor, Names(&prefix), lease).await,
                // Voters can be named while the cluster runs.
                Err(ElectionError::Closed) => return,
                Err(_) => {}
            }
        }
    });
}

fn has_work(store: &impl Store, names: Names<'_>) -> bool {
    let plans = store.scan(&names.plans());
    plans.iter().any(|entry| {
        entry.conflicts().next().is_some()
            || Plan::of_entry(entry).is_some_and(|plan| plan.state == State::Running)
    })
}

/// Runs all plans while the lease is held and there is something to do.
async fn hold(node: &Node, monitor: &Arc<Monitor>, names: Names<'_>, lease: Leadership) {
    // The newer the lease, the greater the text.
    let mut last_error = None;
    let token = format!("{:032x}", lease.token().as_u128());
    while lease.is_valid() && has_work(node, names) {
        tokio::select! {
            () = lease.lost() => return,
            // First of all, what the holder before has written arrives.
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
        for entry in node.scan(&names.plans()) {
            let Some((set, flag)) = entry.key()[names.plans().len()..].split_once('/') else { continue };
            if !lease.is_valid() {
                return;
            }
            let crossed = |threshold: &plan::Threshold| metrics::crossed(node, names, threshold);
            match plan::run(node, names, set, flag, crossed, &token) {
                Ok(Some(decision)) => {
                    let what = if decision.note.is_empty() { &decision.plan.reason } else { &decision.note };
                    monitor.tell("flags", format!("{set}/{flag}: {what}"));
                }
                Ok(None) => {}
                Err(error) => {
                    if last_error.replace(error.clone()).as_ref() != Some(&error) {
                        monitor.tell("flags", format!("the plan of {set}/{flag} waits: {error}"));
                    }
                }
            }
        }
    }
    lease.resign().await;
}

async fn report(node: Node, prefix: String, render: fn() -> String) {
    let mut reports = Reports::default();
    let mut ticks = interval(REPORT_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while !node.status().is_closed {
        ticks.tick().await;
        // What could not be reported now is reported the next time.
        _ = reports.refresh(&node, Names(&prefix), render);
    }
}
