//! Plans: changes of one flag that are made later, step by step, by whichever node holds the lease.
//!
//! A plan is one value in the store. [`decide`] is pure: what is stored, the metrics, the time and the token of the lease
//! go in, and at most one write comes out, which changes the plan and the flag together under the condition that neither
//! has changed since it was read. So a crash leaves a step done or not done, never half done or done twice.
//!
//! The definition after each step follows from the one before the first step alone. That is how a change by hand is
//! recognised, how a step is taken back, and why a step that a crashed holder did without anybody hearing of it does no
//! harm when it is done again.
//!
//! Invariants: no step is taken while the plan is anything but running, while the flag is not what the plan made of it,
//! or under a token lower than the one that the plan was written under. Of concurrent versions of a plan one that does
//! not run counts; if all run, the one with the greatest token and the most steps. What the flag was before the first step
//! is never lost: a version that does not know it takes it from one that does.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use tidings::{Entry, OnlyIf, Store};

use super::Names;
use super::change::{self, Author, Change, DEFINITION_BYTES_MAX, Write};
use super::condition::Threshold;
use super::edit::Edit;
use super::metrics::{MISSING_MS_MIN, RATE_MS_MIN};

/// Steps of one plan.
pub(crate) const STEPS_MAX: usize = 64;
/// A plan before it has begun, and with the definition that it keeps.
pub(crate) const NEW_PLAN_BYTES_MAX: usize = 64 << 10;
const PLAN_BYTES_MAX: usize = NEW_PLAN_BYTES_MAX + 2 * DEFINITION_BYTES_MAX;
/// The longest wait before a step, and how far ahead a plan may begin.
pub(crate) const WAIT_MS_MAX: u64 = 366 * 86_400_000;

/// The least time for which a plan with a condition is watched after its last step: it takes so long to notice that a
/// metric is missing, and to make a rate of a source that reports late.
pub(crate) const WATCH_MS_MIN: u64 = MISSING_MS_MIN + RATE_MS_MIN;

/// What becomes of a plan. Of two concurrent versions the later one in this order counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    Running,
    Done,
    Paused,
    /// By its threshold, by a change by hand, or because a step cannot be taken.
    Stopped,
    Cancelled,
    RolledBack,
}

impl State {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Done => "done",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
            Self::Cancelled => "cancelled",
            Self::RolledBack => "rolled back",
        }
    }

    /// Whether steps can still follow.
    pub(crate) fn is_open(self) -> bool {
        matches!(self, Self::Running | Self::Paused)
    }
}

/// What a plan does with its flag when its threshold is crossed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum OnStop {
    /// The flag stays as it is
    #[default]
    Hold,
    /// The flag is what it was before the last step
    StepBack,
    /// The flag is what it was before the first step
    RollBack,
}

/// One step: a wait, and then a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Step {
    /// Since the step before; of the first step since the beginning.
    pub(crate) wait_ms: u64,
    pub(crate) edit: Edit,
}

/// A plan as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Differs from that of every other plan of the flag.
    pub(crate) id: String,
    pub(crate) by: String,
    pub(crate) note: String,
    pub(crate) steps: Vec<Step>,
    pub(crate) state: State,
    /// Steps that were taken.
    pub(crate) done: usize,
    /// When the next step is due, or after the last one, until when its threshold counts.
    pub(crate) next_ms: u64,
    /// The definition before the first step, once that is taken.
    pub(crate) base: Option<Value>,
    pub(crate) stop_if: Option<Threshold>,
    /// It also stops when nobody reports the metric, or a source of it is gone.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) stop_if_missing: bool,
    /// How long its condition is watched after the last step, if that is more than [`WATCH_MS_MIN`]; without it as long as
    /// the last step waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) watch_ms: Option<u64>,
    pub(crate) on_stop: OnStop,
    /// Why it is in its state, for people.
    pub(crate) reason: String,
    /// The token of the lease under which it was written last by a runner, in order; empty before.
    pub(crate) token: String,
}

impl Plan {
    /// `None`: it is none, or none that this program writes. Members write plans, too.
    pub(crate) fn of_entry(entry: &Entry) -> Option<Self> {
        let value = Some(entry.value()).filter(|value| value.len() <= PLAN_BYTES_MAX)?;
        let plan: Self = serde_json::from_slice(value).ok()?;
        (plan.steps.len() <= STEPS_MAX && plan.done <= plan.steps.len()).then_some(plan)
    }

    pub(crate) fn value(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("it consists of texts, numbers and JSON")
    }

    /// The definition after so many steps.
    pub(crate) fn definition_after(&self, base: &Value, steps: usize) -> Result<Value, String> {
        self.steps.iter().take(steps).try_fold(base.clone(), |definition, step| step.edit.apply(&definition))
    }

    /// Whether the plan has made this of the flag, at any of its steps.
    fn has_made(&self, definition: Option<&Value>) -> bool {
        let (Some(mut made), Some(definition)) = (self.base.clone(), definition) else { return false };
        for step in &self.steps {
            if made == *definition {
                return true;
            }
            let Ok(next) = step.edit.apply(&made) else { return false };
            made = next;
        }
        made == *definition
    }

    /// The definition that the flag has to have now; none before the first step.
    fn expected(&self) -> Option<Value> {
        let steps = if self.state == State::RolledBack { 0 } else { self.done };
        self.definition_after(self.base.as_ref()?, steps).ok()
    }

    /// Whether the plan has made the definition and all that lost.
    fn has_made_all(&self, flag: &FlagSeen) -> bool {
        self.has_made(flag.current.as_ref()) && flag.others.iter().all(|other| self.has_made(other.as_ref()))
    }

    /// When it is due after its present step, if that was taken now. `None`: nothing follows.
    pub(crate) fn due_ms(&self, now_ms: u64) -> Option<u64> {
        let wait_ms = match (self.steps.get(self.done), &self.stop_if) {
            (Some(next), _) => next.wait_ms,
            (None, None) => return None,
            (None, Some(_)) => {
                let last_wait_ms = self.steps.last().map_or(0, |step| step.wait_ms);
                self.watch_ms.unwrap_or(last_wait_ms).max(WATCH_MS_MIN)
            }
        };
        Some(now_ms.saturating_add(wait_ms))
    }

    /// What becomes of the plan when its flag is deleted.
    pub(crate) fn without_flag(entry: &Entry, by: &str) -> Option<Self> {
        let (plan, _) = settled(&versions(entry), &FlagSeen::default())?;
        let is_open = plan.state.is_open();
        Some(if is_open {
            plan.ended(State::Cancelled, format!("the flag was deleted by {by}"))
        } else {
            plan
        })
    }

    fn ended(&self, state: State, reason: impl Into<String>) -> Self {
        Self { state, reason: reason.into(), ..self.clone() }
    }

    /// The plan and the definition of the flag as before some steps; only if the flag is what the plan made of it.
    pub(crate) fn taken_back(&self, flag: &FlagSeen, steps: usize) -> Result<(Self, Option<Value>), String> {
        let Some(base) = &self.base else { return Ok((self.clone(), None)) };
        if flag.current != self.expected() {
            return Err("the flag was changed since the last step of its plan".to_owned());
        }
        let definition = self.definition_after(base, steps)?;
        Ok((Self { done: steps, ..self.clone() }, Some(definition)))
    }
}

/// What a node knows of a flag.
#[derive(Clone, Debug, Default)]
pub(crate) struct FlagSeen {
    /// `None`: there is none, or it is not JSON.
    pub(crate) current: Option<Value>,
    /// The concurrent versions that lost.
    pub(crate) others: Vec<Option<Value>>,
}

impl FlagSeen {
    pub(crate) fn of_entry(entry: Option<&Entry>) -> Self {
        let others = entry.into_iter().flat_map(Entry::conflicts);
        Self {
            current: entry.and_then(change::definition_of),
            others: others.map(|other| change::definition_of(&other)).collect(),
        }
    }
}

/// What is to be written.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Decision {
    pub(crate) plan: Plan,
    /// `None`: the flag stays as it is.
    pub(crate) definition: Option<Value>,
    /// For the history.
    pub(crate) note: String,
}

/// What the runner does about a plan now; `None`: nothing. `crossed` says which value is over the threshold.
pub(crate) fn decide(
    versions: &[Plan],
    flag: &FlagSeen,
    crossed: Option<&str>,
    now_ms: u64,
    token: &str,
) -> Option<Decision> {
    let (plan, made_up) = settled(versions, flag)?;
    if plan.token.as_str() > token {
        return None;
    }
    let plan = Plan { token: token.to_owned(), ..plan };
    let write =
        |plan: Plan, definition: Option<Value>, note: String| Some(Decision { plan, definition, note });
    if versions.len() > 1 {
        return write(plan, made_up, SETTLED.to_owned());
    }
    if plan.state != State::Running {
        return None;
    }
    let is_begun = plan.base.is_some();
    if is_begun && (flag.current != plan.expected() || !plan.has_made_all(flag)) {
        return write(
            plan.ended(State::Stopped, "the flag was changed by somebody else"),
            None,
            String::new(),
        );
    }
    if let Some(crossed) = crossed {
        return Some(stopped(&plan, flag, crossed));
    }
    if now_ms < plan.next_ms {
        return None;
    }
    let Some(step) = plan.steps.get(plan.done) else {
        return write(plan.ended(State::Done, "all steps were taken"), None, String::new());
    };
    let Some(current) = &flag.current else {
        return write(plan.ended(State::Stopped, "the flag has no definition"), None, String::new());
    };
    if !is_begun && !flag.others.is_empty() {
        let reason = "the flag has concurrent definitions: change it once, so that one counts";
        return write(plan.ended(State::Stopped, reason), None, String::new());
    }
    match step.edit.apply(current).and_then(checked) {
        Err(error) => write(plan.ended(State::Stopped, error), None, String::new()),
        Ok(definition) => {
            let note =
                format!("step {} of {} of a plan: {}", plan.done + 1, plan.steps.len(), step.edit.text());
            write(advanced(plan.clone(), current, now_ms), Some(definition), note)
        }
    }
}

fn checked(definition: Value) -> Result<Value, String> {
    let text = definition.to_string();
    if text.len() > DEFINITION_BYTES_MAX {
        return Err(format!(
            "the definition would have {} bytes, permitted: {DEFINITION_BYTES_MAX}",
            text.len()
        ));
    }
    match tidings::flags::check("", text.as_bytes()) {
        Ok(()) => Ok(definition),
        Err(fault) => Err(fault.error.to_string()),
    }
}

/// For the history: what a write does that replaces concurrent versions by the one that counts.
pub(crate) const SETTLED: &str = "settled concurrent versions of the plan";

/// The plan that counts among its versions, the one in force first, and what the flag has to become if they were
/// concurrent. The definition before the first step is taken from any of them: a version that was paused or ended where
/// the first step had not arrived does not have it.
pub(crate) fn settled(versions: &[Plan], flag: &FlagSeen) -> Option<(Plan, Option<Value>)> {
    let winner = versions.first()?;
    let own = || versions.iter().filter(|version| version.id == winner.id);
    let mut plan = own().max_by_key(|plan| (rank(plan.state), &plan.token, plan.done))?.clone();
    if plan.base.is_none() {
        let begun = own().filter(|plan| plan.base.is_some()).max_by_key(|plan| (&plan.token, plan.done));
        plan.base = begun.and_then(|begun| begun.base.clone());
    }
    let is_ours = versions.len() > 1 && plan.has_made_all(flag);
    let expected = plan.expected().filter(|expected| is_ours && flag.current.as_ref() != Some(expected));
    Some((plan, expected))
}

/// Finished plans do not stop ones that run: a concurrent version that is not done may still have steps to take back.
fn rank(state: State) -> State {
    if state == State::Done { State::Running } else { state }
}

fn advanced(mut plan: Plan, current: &Value, now_ms: u64) -> Plan {
    plan.base.get_or_insert_with(|| current.clone());
    plan.done += 1;
    match plan.due_ms(now_ms) {
        Some(due_ms) => Plan { next_ms: due_ms, ..plan },
        None => plan.ended(State::Done, "all steps were taken"),
    }
}

/// A threshold is crossed.
fn stopped(plan: &Plan, flag: &FlagSeen, crossed: &str) -> Decision {
    let steps = match plan.on_stop {
        OnStop::Hold => plan.done,
        OnStop::StepBack => plan.done.saturating_sub(1),
        OnStop::RollBack => 0,
    };
    let (plan, definition) = plan.taken_back(flag, steps).unwrap_or_else(|_| (plan.clone(), None));
    let definition = definition.filter(|definition| flag.current.as_ref() != Some(definition));
    Decision {
        plan: plan.ended(State::Stopped, crossed),
        definition,
        note: format!("a plan stopped: {crossed}"),
    }
}

/// The state of a plan with its concurrent versions, the one in force first.
pub(crate) fn versions(entry: &Entry) -> Vec<Plan> {
    let concurrent: Vec<Entry> = entry.conflicts().collect();
    [entry].into_iter().chain(&concurrent).filter_map(Plan::of_entry).collect()
}

/// Looks at one plan, and takes the step that is due. Returns what was written, or none if nothing was due or somebody
/// else was faster.
pub(crate) fn run<S: Store>(
    store: &S,
    names: Names<'_>,
    set: &str,
    flag: &str,
    crossed: impl FnOnce(&Plan) -> Option<String>,
    token: &str,
) -> Result<Option<Decision>, tidings::WriteError> {
    let (plan_key, flag_key) = (names.plan(set, flag), names.flag(set, flag));
    let Some(plan_entry) = store.get(&plan_key) else { return Ok(None) };
    let flag_entry = store.get(&flag_key);
    let versions = versions(&plan_entry);
    let crossed = versions.first().and_then(crossed);
    let seen = FlagSeen::of_entry(flag_entry.as_ref());
    let decided = decide(&versions, &seen, crossed.as_deref(), super::now_ms(store), token);
    let Some(decision) = decided else { return Ok(None) };
    let plan = Write {
        key: plan_key,
        value: Some(decision.plan.value()),
        only_if: Some(OnlyIf::Revision(plan_entry.revision())),
        ttl: None,
    };
    match write(store, names, set, flag, flag_entry.as_ref(), &decision, &plan) {
        Ok(_) => Ok(Some(decision)),
        Err(tidings::WriteError::Condition { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes a plan and what it makes of its flag in one batch, if the flag is as it was read.
pub(crate) fn write<S: Store>(
    store: &S,
    names: Names<'_>,
    set: &str,
    flag: &str,
    seen: Option<&Entry>,
    decision: &Decision,
    plan: &Write,
) -> Result<S::Receipt, tidings::WriteError> {
    let only_if = seen.map_or(OnlyIf::Absent, |entry| OnlyIf::Revision(entry.revision()));
    let change = |definition: &Value| Change {
        flag: flag.to_owned(),
        definition: Some(definition.clone()),
        only_if: Some(only_if),
    };
    let changes: Vec<Change> = decision.definition.iter().map(change).collect();
    let author = Author::new(&decision.plan.by, &decision.note);
    change::commit(store, names, set, &changes, &author, Some(plan))
}

#[cfg(test)]
mod tests;
