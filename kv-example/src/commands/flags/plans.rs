//! `plan`: changes that are made later, and in steps.

use clap::{Args, Subcommand};
use serde_json::Value;

use super::{Flag, InSet, Planned, percent_of, time_of};
use crate::client::{Answer, Target};
use crate::exit::{Exit, Failure};
use crate::flags::condition::Threshold;
use crate::flags::edit::{Edit, Rollout};
use crate::flags::plan::{self, OnStop, Step};
use crate::{span, table};

const RUNNING: &str = "\
Plans are run by one of the nodes that `tidings serve`, which holds a lease for it: the cluster needs voters (--voter). In
a partition they go on where a majority of the voters is. A plan stops by itself when the flag is changed by hand, and when
a metric is above or below a number on any node that is reached: a value under flags-metrics/METRIC/SOURCE, which applications put
(`tidings put flags-metrics/errors/app-1 17 --ephemeral`) and every node of `tidings serve` for its own /metrics.

Conditions of --stop-if:
  'queue_length > 100'        the value of the metric: for gauges, which go up and down
  'rate(errors_total) > 0.5'  its increase in a second, from one report of a source to the next, at least 5 s later: for
                              counters, which only grow. A counter that went down was started anew, and counts from
                              zero. One that stands still has to be reported again.
  'success_ratio < 0.99'      below instead of above, also of a rate
With --stop-if-missing the plan stops as well when nobody reports the metric, or when a source that did so since the plan
is run has not put it anew for 10 s: so does an application that crashes or hangs with the new variant. Sources have to
put it every 5 s then, also a value that stands still. Sources that end in order stop the plan, too.";

/// Roll a variant out in steps; pause, resume, cancel or take back what was planned
#[derive(Debug, Subcommand)]
#[command(after_help = RUNNING)]
pub(crate) enum Plan {
    /// Begin: share after share, with a wait between them
    Start(Start),
    /// How far it is
    Show(Show),
    /// Take no steps for now
    Pause(Flag),
    /// Go on; the wait before the next step begins anew
    Resume(Flag),
    /// Take no more steps; the flag stays as it is
    Cancel(Flag),
    /// Take no more steps, and make the flag what it was before the first one
    RollBack(Flag),
}

#[derive(Args, Debug)]
pub(crate) struct Show {
    flag: String,
    #[command(flatten)]
    place: InSet,
}

#[derive(Args, Debug)]
pub(crate) struct Start {
    #[command(flatten)]
    flag: Flag,
    /// The variant that is rolled out
    #[arg(long, value_name = "VARIANT")]
    variant: String,
    /// Its shares, one after the other
    #[arg(long, value_name = "SHARES", value_delimiter = ',', required = true, value_parser = percent_of)]
    steps: Vec<f64>,
    /// How long to wait between two steps, and with --stop-if to watch its condition after the last one (at least 15 s)
    #[arg(long, value_name = "TIME", value_parser = span::parse)]
    wait: std::time::Duration,
    /// What the others get; without it what they get now, or else the default variant
    #[arg(long = "else", value_name = "VARIANT")]
    rest: Option<String>,
    /// When the first step is taken; without it at once
    #[arg(long, value_name = "TIME", value_parser = time_of)]
    at: Option<u64>,
    /// Stop when a metric is above or below a number on any node: METRIC > NUMBER, or rate(METRIC) > NUMBER for counters
    #[arg(long, value_name = "CONDITION")]
    stop_if: Option<Threshold>,
    /// Stop also when nobody reports the metric of --stop-if, or a source has not done so for 10 s
    #[arg(long, requires = "stop_if")]
    stop_if_missing: bool,
    /// What becomes of the flag then
    #[arg(long, value_enum, default_value = "hold")]
    on_stop: OnStop,
}

impl Plan {
    pub(super) fn run(&self) -> Result<(), Failure> {
        match self {
            Self::Start(start) => start.run(),
            Self::Show(show) => show.run(),
            Self::Pause(flag) => flag.act_on_plan("pause"),
            Self::Resume(flag) => flag.act_on_plan("resume"),
            Self::Cancel(flag) => flag.act_on_plan("cancel"),
            Self::RollBack(flag) => flag.act_on_plan("roll-back"),
        }
    }
}

impl Start {
    fn run(&self) -> Result<(), Failure> {
        let wait_ms = u64::try_from(self.wait.as_millis()).unwrap_or(u64::MAX);
        let step = |(at, percent): (usize, &f64)| Step {
            wait_ms: if at == 0 { 0 } else { wait_ms },
            edit: Edit::Rollout(Rollout {
                variant: self.variant.clone(),
                percent: *percent,
                rest: self.rest.clone(),
            }),
        };
        self.flag.plan(&Planned {
            steps: self.steps.iter().enumerate().map(step).collect(),
            begin_ms: self.at,
            stop_if: self.stop_if.clone(),
            stop_if_missing: self.stop_if_missing,
            watch_ms: self.stop_if.as_ref().map(|_| wait_ms),
            on_stop: self.on_stop,
        })
    }
}

impl Show {
    fn run(&self) -> Result<(), Failure> {
        let answer = self.place.client()?.get(&format!("{}/plan", self.place.path(&self.flag)))?;
        told(&self.place, &self.flag, &answer)
    }
}

impl Flag {
    fn act_on_plan(&self, action: &str) -> Result<(), Failure> {
        let path = format!("{}/plan/{action}{}", self.place.path(&self.name), self.query());
        let answer = self.of_this_stamp(self.place.ready_client()?.ask("POST", &path, &[], &[]))?;
        told(&self.place, &self.name, &answer)
    }
}

fn told(place: &InSet, flag: &str, answer: &Answer) -> Result<(), Failure> {
    if !answer.is_found() {
        let message = format!("the flag \"{flag}\" of the set \"{}\" has no plan", place.set);
        return Err(Failure::new(Exit::No, message));
    }
    print(&place.target, &answer.json()?["plan"])
}

/// A plan for people: its state, and each step with what became of it.
pub(super) fn print(target: &Target, told: &Value) -> Result<(), Failure> {
    if target.json {
        return super::print(told);
    }
    let plan: plan::Plan = serde_json::from_value(told.clone())
        .map_err(|error| Failure::new(Exit::Failed, format!("the plan is not understood: {error}")))?;
    super::print(table::clean(&summary(&plan)))?;
    let row = |(at, step): (usize, &Step)| {
        let wait = match step.wait_ms {
            0 => "-".to_owned(),
            wait => span::show(std::time::Duration::from_millis(wait)),
        };
        let what = if at < plan.done { "taken" } else { "" };
        vec![(at + 1).to_string(), step.edit.text(), wait, what.to_owned()]
    };
    let rows: Vec<Vec<String>> = plan.steps.iter().enumerate().map(row).collect();
    Ok(table::print(&["step", "change", "after", ""], &rows)?)
}

/// One line on a plan.
pub(super) fn summary(plan: &plan::Plan) -> String {
    let (steps, done) = (plan.steps.len(), plan.done);
    let mut text = format!("{}, {done} of {steps} steps taken", plan.state.text());
    if plan.state == plan::State::Running {
        let left = plan.next_ms.saturating_sub(super::now_ms());
        let what = if done < steps { "next one" } else { "watched until done" };
        let when = match left {
            0 => "now".to_owned(),
            left => format!("in {}", span::show(std::time::Duration::from_millis(left))),
        };
        text = format!("{text}, {what} {when}");
    }
    if let Some(stop) = &plan.stop_if {
        let missing = if plan.stop_if_missing { " or it is missing" } else { "" };
        text = format!("{text}, stops if {stop}{missing}");
    }
    if plan.reason.is_empty() { text } else { format!("{text}: {}", plan.reason) }
}
