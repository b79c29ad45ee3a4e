//! Plans of flags: `/v1/flags/SET/FLAG/plan`.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::Deserialize;
use serde_json::{Value, json};
use tidings::{ElectionError, Entry, OnlyIf, WriteError};

use super::flag_changes::{Wants, condition as only_if, no_flag, shared_rules};
use super::{ApiError, App, AppState, Ask, At, view};
use crate::flags::change::{self, Author};
use crate::flags::condition::{Measure, Threshold};
use crate::flags::plan::{
    self, Decision, FlagSeen, NEW_PLAN_BYTES_MAX, OnStop, Plan, STEPS_MAX, Step, WAIT_MS_MAX,
};
use crate::flags::{check_names, metrics, now_ms};

pub(super) fn routes() -> Router<Arc<App>> {
    Router::new()
        .route("/v1/flags/{set}/{flag}/plan", get(read).put(create))
        .route("/v1/flags/{set}/{flag}/plan/{action}", post(act))
}

/// A plan as it is asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    steps: Vec<Step>,
    /// When it begins, in milliseconds since 1970; without it at once. The wait of the first step counts from then.
    begin_ms: Option<u64>,
    /// A condition, as people write it.
    stop_if: Option<String>,
    /// Whether a metric that is missing stops it, too.
    #[serde(default)]
    stop_if_missing: bool,
    /// How long its condition is watched after the last step.
    watch_ms: Option<u64>,
    #[serde(default)]
    on_stop: OnStop,
}

/// A plan with its flag as they are in force.
struct Stored {
    entry: Entry,
    plan: Plan,
    flag: Option<Entry>,
    /// What the flag has to become before anything else, because two sides of a partition wrote the plan.
    made_up: Option<Value>,
}

fn stored(app: &App, set: &str, flag: &str) -> Result<Stored, ApiError> {
    check_names(set, flag).map_err(ApiError::bad_request)?;
    let names = app.flag_names();
    let flag_entry = app.node.get(names.flag(set, flag));
    let entry = app.node.get(names.plan(set, flag));
    let settled = entry.and_then(|entry| {
        let (plan, made_up) =
            plan::settled(&plan::versions(&entry), &FlagSeen::of_entry(flag_entry.as_ref()))?;
        Some(Stored { entry, plan, flag: flag_entry, made_up })
    });
    settled
        .ok_or_else(|| ApiError::not_found(format!("the flag \"{flag}\" of the set \"{set}\" has no plan")))
}

/// Refuses what is asked for if the definition is not the one that it was asked for with.
fn check_definition(wants: &Wants, flag: Option<&Entry>) -> Result<(), ApiError> {
    if change::holds(only_if(wants.only_if.as_deref())?, flag) {
        return Ok(());
    }
    Err(WriteError::Condition { current: flag.map(Entry::stamp) }.into())
}

async fn read(State(app): AppState, At((set, flag)): At<(String, String)>) -> Result<Json<Value>, ApiError> {
    let Stored { entry, plan, .. } = stored(&app, &set, &flag)?;
    Ok(Json(json!({ "set": set, "flag": flag, "stamp": entry.stamp().to_string(), "plan": plan })))
}

/// Stores a plan, if all of its steps can be taken from the definition as it is now.
async fn create(
    State(app): AppState,
    At((set, flag)): At<(String, String)>,
    Ask(wants): Ask<Wants>,
    body: Result<Json<Asked>, axum::extract::rejection::JsonRejection>,
) -> Result<Json<Value>, ApiError> {
    check_names(&set, &flag).map_err(ApiError::bad_request)?;
    let Json(asked) =
        body.map_err(|error| ApiError::bad_request(format!("this is no plan: {}", error.body_text())))?;
    let names = app.flag_names();
    let now = now_ms(&app.node);
    check(&asked, now).map_err(ApiError::bad_request)?;
    let stop_if = asked.stop_if.as_deref().map(|text| condition(&app, text)).transpose();
    let stop_if = stop_if.map_err(ApiError::bad_request)?;
    if app.node.voters().voters.is_empty() {
        return Err(ElectionError::NoVoters.into());
    }
    let entry = app.node.get(names.flag(&set, &flag)).ok_or_else(|| no_flag(&set, &flag))?;
    check_definition(&wants, Some(&entry))?;
    let plan_key = names.plan(&set, &flag);
    let before = app.node.get(&plan_key);
    if before.as_ref().and_then(Plan::of_entry).is_some_and(|plan| plan.state.is_open()) {
        let error = format!("the flag \"{flag}\" has a plan already: cancel it first");
        return Err(ApiError::conflict("plan", error));
    }
    let begin = asked.begin_ms.unwrap_or(now);
    let first_wait = asked.steps.first().map_or(0, |step| step.wait_ms);
    let Author { by, note } = app.author(wants.by.as_deref(), &wants.note);
    let plan = Plan {
        id: format!("{}-{now}", view::run(app.node.status().run)),
        by,
        note,
        steps: asked.steps,
        state: plan::State::Running,
        done: 0,
        next_ms: begin.saturating_add(first_wait),
        base: None,
        stop_if,
        stop_if_missing: asked.stop_if_missing,
        watch_ms: asked.watch_ms,
        on_stop: asked.on_stop,
        reason: String::new(),
        token: String::new(),
    };
    if plan.value().len() > NEW_PLAN_BYTES_MAX {
        return Err(ApiError::bad_request(format!("a plan has at most {NEW_PLAN_BYTES_MAX} bytes")));
    }
    check_steps(&app, &set, &flag, &entry, &plan)?;
    let only_if = before.map_or(OnlyIf::Absent, |entry| OnlyIf::Revision(entry.revision()));
    app.node.put_with(&plan_key, plan.value(), tidings::PutOptions::new().only_if(only_if))?;
    let unreported =
        plan.stop_if.as_ref().filter(|stop| !metrics::is_reported(&app.node, names, &stop.metric));
    let warning = unreported.map(|stop| {
        let then = if plan.stop_if_missing {
            "the plan stops soon after its first step unless somebody does"
        } else {
            "a metric that nobody reports stops no plan (--stop-if-missing)"
        };
        format!("nobody reports \"{}\" yet; {then}", stop.metric)
    });
    Ok(Json(json!({ "set": set, "flag": flag, "plan": plan, "warning": warning })))
}

fn check(asked: &Asked, now: u64) -> Result<(), String> {
    if !(1..=STEPS_MAX).contains(&asked.steps.len()) {
        return Err(format!("a plan has 1 to {STEPS_MAX} steps, and this one {}", asked.steps.len()));
    }
    let begin = asked.begin_ms.unwrap_or(now);
    let mut waits = asked.steps.iter().map(|step| step.wait_ms).chain(asked.watch_ms);
    if waits.any(|wait_ms| wait_ms > WAIT_MS_MAX) || begin > now.saturating_add(WAIT_MS_MAX) {
        return Err("a plan begins within 366 days, and waits no longer before a step or after the last one"
            .to_owned());
    }
    if asked.stop_if_missing && asked.stop_if.is_none() {
        return Err("stop_if_missing is about the metric of stop_if, and there is none".to_owned());
    }
    if asked.watch_ms.is_some() && asked.stop_if.is_none() {
        return Err("watch_ms is about the condition of stop_if, and there is none".to_owned());
    }
    Ok(())
}

/// A rate is one of a counter: what this node knows to be something else is refused.
fn condition(app: &App, text: &str) -> Result<Threshold, String> {
    let stop: Threshold = text.parse()?;
    if stop.measure == Measure::Value {
        return Ok(stop);
    }
    let metric = &stop.metric;
    match metrics::kind(&app.metrics_text(), metric) {
        None | Some("counter") => Ok(stop),
        Some(kind) => Err(format!(
            "rate({metric}) is for counters, and {metric} is a {kind}: compare its value, {metric} > NUMBER"
        )),
    }
}

/// Every definition that the plan would write has to be one that may be written.
fn check_steps(app: &App, set: &str, flag: &str, entry: &Entry, plan: &Plan) -> Result<(), ApiError> {
    let shared = shared_rules(app, set, &[]);
    let key = app.flag_names().flag(set, flag);
    let mut definition = change::definition_of(entry).ok_or_else(|| {
        ApiError::conflict(
            "malformed",
            format!("the definition of \"{flag}\" is not JSON, or nested too deep"),
        )
    })?;
    for (at, step) in plan.steps.iter().enumerate() {
        let edited = step.edit.apply(&definition);
        definition =
            edited.map_err(|error| ApiError::conflict("edit", format!("step {}: {error}", at + 1)))?;
        let (faults, verdict) = app.check_flag(&key, flag, &definition, shared.as_ref());
        if !faults.is_empty() {
            return Err(ApiError::definition(faults));
        }
        if !verdict.is_good() {
            return Err(ApiError::schema(&key, verdict));
        }
    }
    Ok(())
}

/// Pauses, resumes or cancels a plan, or takes back what it did.
async fn act(
    State(app): AppState,
    At((set, flag, action)): At<(String, String, String)>,
    Ask(wants): Ask<Wants>,
) -> Result<Json<Value>, ApiError> {
    let Stored { entry, plan, flag: flag_entry, made_up } = stored(&app, &set, &flag)?;
    check_definition(&wants, flag_entry.as_ref())?;
    let names = app.flag_names();
    let Author { by, note: why } = app.author(wants.by.as_deref(), &wants.note);
    let with_why = |said: &str| if why.is_empty() { said.to_owned() } else { format!("{said}: {why}") };
    let not_now = |what: &str| {
        ApiError::conflict("plan", format!("the plan cannot be {what}: it is {}", plan.state.text()))
    };
    let after =
        |state, done: &str| Plan { state, reason: with_why(&format!("{done} by {by}")), ..plan.clone() };
    let (plan, definition) = match action.as_str() {
        "pause" if plan.state == plan::State::Running => (after(plan::State::Paused, "paused"), None),
        "pause" => return Err(not_now("paused")),
        "resume" if plan.state == plan::State::Paused => {
            (resumed(after(plan::State::Running, "resumed"), now_ms(&app.node)), None)
        }
        "resume" => return Err(not_now("resumed")),
        "cancel" if plan.state.is_open() => (after(plan::State::Cancelled, "cancelled"), None),
        "cancel" => return Err(not_now("cancelled")),
        "roll-back" if plan.state == plan::State::RolledBack => return Err(not_now("rolled back")),
        "roll-back" => {
            let mut seen = FlagSeen::of_entry(flag_entry.as_ref());
            seen.current = made_up.clone().or(seen.current);
            let back = after(plan.state, "rolled back").taken_back(&seen, 0);
            let (back, definition) = back.map_err(|error| ApiError::conflict("changed", error))?;
            (Plan { state: plan::State::RolledBack, ..back }, definition)
        }
        _ => return Err(ApiError::no_such_path()),
    };
    let write = change::Write {
        key: names.plan(&set, &flag),
        value: Some(plan.value()),
        only_if: Some(OnlyIf::Revision(entry.revision())),
        ttl: None,
    };
    let note = match (&definition, &made_up) {
        (Some(_), _) => with_why("a plan was rolled back"),
        (None, Some(_)) => with_why(plan::SETTLED),
        (None, None) => String::new(),
    };
    let definition = definition.or(made_up);
    let decision = Decision { plan: Plan { by, ..plan }, definition, note };
    plan::write(&app.node, names, &set, &flag, flag_entry.as_ref(), &decision, &write)?;
    Ok(Json(json!({ "set": set, "flag": flag, "plan": decision.plan })))
}

/// The wait before the next step begins anew; a plan that has not begun keeps its time.
fn resumed(mut plan: Plan, now: u64) -> Plan {
    if plan.done > 0 {
        plan.next_ms = plan.due_ms(now).unwrap_or(now);
    }
    plan
}
