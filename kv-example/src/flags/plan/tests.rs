//! Plans: what is decided, and what becomes of them with two runners under faults.

use std::slice::from_ref;
use std::time::Duration;

use serde_json::{Value, json};
use tidings::Store;
use tidings::sim::Sim;

use super::*;
use crate::flags::edit::Rollout;
use crate::flags::metrics::{MISSING_MS_MIN, RATE_MS_MIN, Readings};
use crate::flags::now_ms;

const NAMES: Names<'_> = Names("flags/");
const WAIT_MS: u64 = 1_000;

fn flag() -> Value {
    json!({ "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": "off" })
}

fn plan(shares: &[f64]) -> Plan {
    let step = |percent: &f64| Step {
        wait_ms: WAIT_MS,
        edit: Edit::Rollout(Rollout { variant: "on".to_owned(), percent: *percent, rest: None }),
    };
    Plan {
        id: "1".to_owned(),
        by: "ann".to_owned(),
        note: String::new(),
        steps: shares.iter().map(step).collect(),
        state: State::Running,
        done: 0,
        next_ms: 0,
        base: None,
        stop_if: None,
        stop_if_missing: false,
        watch_ms: None,
        on_stop: OnStop::Hold,
        reason: String::new(),
        token: String::new(),
    }
}

fn seen(current: &Value) -> FlagSeen {
    FlagSeen { current: Some(current.clone()), others: Vec::new() }
}

/// A plan that has taken so many steps, and what it has made of the flag.
fn begun(plan: &Plan, steps: usize) -> (Plan, Value) {
    let (mut plan, mut definition) = (plan.clone(), flag());
    for _ in 0..steps {
        let next = decide(from_ref(&plan), &seen(&definition), None, plan.next_ms, "1").unwrap();
        definition = next.definition.unwrap();
        plan = next.plan;
    }
    (plan, definition)
}

fn share(definition: &Value) -> &Value {
    &definition["targeting"]["fractional"][0][1]
}

#[test]
fn steps_are_taken_when_they_are_due() {
    let plan = Plan { next_ms: 500, ..plan(&[5.0, 25.0, 100.0]) };
    assert_eq!(decide(from_ref(&plan), &seen(&flag()), None, 499, "1"), None);
    let first = decide(from_ref(&plan), &seen(&flag()), None, 500, "1").unwrap();
    assert_eq!((first.plan.done, first.plan.next_ms), (1, 500 + WAIT_MS));
    assert_eq!(share(first.definition.as_ref().unwrap()), 5);
    let (last, definition) = begun(&first.plan, 0);
    assert_eq!((last.state, share(&definition)), (State::Running, &Value::Null));
    let (done, definition) = begun(&super::tests::plan(&[5.0, 25.0, 100.0]), 3);
    assert_eq!((done.state, share(&definition)), (State::Done, &json!(100)));
    assert_eq!(decide(from_ref(&done), &seen(&definition), None, u64::MAX, "1"), None);
}

#[test]
fn change_by_hand_stops_a_plan() {
    let (plan, definition) = begun(&plan(&[5.0, 25.0]), 1);
    let mut changed = definition.clone();
    changed["defaultVariant"] = json!("on");
    let stop = decide(from_ref(&plan), &seen(&changed), None, 0, "1").unwrap();
    assert_eq!((stop.plan.state, stop.definition), (State::Stopped, None));
    // On the other side of a partition, where it lost.
    let lost = FlagSeen { current: Some(definition.clone()), others: vec![Some(changed)] };
    assert_eq!(decide(from_ref(&plan), &lost, None, 0, "1").unwrap().plan.state, State::Stopped);
    // The control: what the plan made itself stops nothing.
    let own = FlagSeen { current: Some(definition), others: vec![Some(flag())] };
    assert_eq!(decide(from_ref(&plan), &own, None, 0, "1"), None);
    assert_eq!(
        decide(from_ref(&plan), &FlagSeen::default(), None, 0, "1").unwrap().plan.state,
        State::Stopped
    );
}

#[test]
fn threshold_stops_and_takes_back_as_asked() {
    for (on_stop, expected) in
        [(OnStop::Hold, None), (OnStop::StepBack, Some(json!(5))), (OnStop::RollBack, Some(Value::Null))]
    {
        let (plan, definition) = begun(&Plan { on_stop, ..plan(&[5.0, 25.0, 100.0]) }, 2);
        assert_eq!(decide(from_ref(&plan), &seen(&definition), None, 0, "1"), None, "the control");
        let stop = decide(from_ref(&plan), &seen(&definition), Some("errors is 9"), 0, "1").unwrap();
        assert_eq!((stop.plan.state, stop.plan.reason.as_str()), (State::Stopped, "errors is 9"));
        assert_eq!(stop.definition.as_ref().map(|flag| share(flag).clone()), expected);
    }
    let watching = Plan { stop_if: "errors>1".parse().ok(), ..plan(&[5.0, 100.0]) };
    let (plan, definition) = begun(&watching, 2);
    assert_eq!(plan.state, State::Running, "the last step is watched as well");
    assert_eq!(
        decide(from_ref(&plan), &seen(&definition), None, plan.next_ms, "1").unwrap().plan.state,
        State::Done
    );
}

#[test]
fn last_step_is_watched_for_at_least_15_s() {
    let stop_if: Option<Threshold> = "errors > 1".parse().ok();
    let ends = |plan: &Plan| begun(plan, plan.steps.len()).0.next_ms;
    let one = Plan { stop_if: stop_if.clone(), ..plan(&[100.0]) };
    assert_eq!(ends(&one), WATCH_MS_MIN, "it waited for less");
    assert_eq!(ends(&Plan { watch_ms: Some(60_000), ..one.clone() }), 60_000);
    assert_eq!(ends(&Plan { watch_ms: Some(1_000), ..one.clone() }), WATCH_MS_MIN);
    let mut slow = one.clone();
    slow.steps[0].wait_ms = 60_000;
    assert_eq!(ends(&slow), 60_000, "as long as the last step waited for");
    assert_eq!(begun(&plan(&[100.0]), 1).0.state, State::Done, "without a condition nothing is watched");
    // As programs before this field stored it.
    let stored: Plan = serde_json::from_slice(&one.value()).unwrap();
    assert!(stored == one && !String::from_utf8(one.value()).unwrap().contains("watch_ms"));
}

#[test]
fn plan_of_one_step_stops_by_its_condition() {
    for (stop_if, stop_if_missing) in [("rate(errors) > 2", false), ("errors > 1e9", true)] {
        let sim = &mut Sim::new(1).nodes(1);
        let node = sim.node(0);
        node.put("flags/s/a", flag().to_string().as_bytes()).unwrap();
        let one = Plan {
            stop_if: stop_if.parse().ok(),
            stop_if_missing,
            on_stop: OnStop::RollBack,
            steps: vec![Step { wait_ms: 0, edit: Edit::Disable }],
            ..plan(&[])
        };
        node.put("flags-plans/s/a", one.value()).unwrap();
        let mut readings = Readings::default();
        for second in 0..=WATCH_MS_MIN / 1_000 {
            if !stop_if_missing {
                node.put("flags-metrics/errors/app", (second * 10).to_string().as_bytes()).unwrap();
            }
            run_with(&mut readings, &node, "1");
            sim.run_for(Duration::from_secs(1));
        }
        let plan = Plan::of_entry(&node.get("flags-plans/s/a").unwrap()).unwrap();
        assert_eq!(plan.state, State::Stopped, "{stop_if}: {}", plan.reason);
        assert_eq!(change::definition_of(&node.get("flags/s/a").unwrap()), Some(flag()), "{stop_if}");
    }
}

#[test]
fn lower_token_takes_no_step() {
    let plan = Plan { token: "2".to_owned(), ..plan(&[5.0]) };
    assert_eq!(decide(from_ref(&plan), &seen(&flag()), None, 0, "1"), None);
    assert!(decide(from_ref(&plan), &seen(&flag()), None, 0, "2").is_some());
}

#[test]
fn pause_on_one_side_of_a_partition_counts() {
    let (running, definition) = begun(&plan(&[5.0, 25.0]), 1);
    let paused = Plan { state: State::Paused, ..running.clone() };
    for versions in [[running.clone(), paused.clone()], [paused, running.clone()]] {
        let settled = decide(&versions, &seen(&definition), None, 0, "1").unwrap();
        assert_eq!((settled.plan.state, settled.definition), (State::Paused, None));
    }
    // The most steps under the greatest token count, and the flag follows.
    let ahead = Plan { done: 2, token: "2".to_owned(), ..running.clone() };
    let flag = FlagSeen { current: Some(definition), others: Vec::new() };
    let settled = decide(&[running, ahead], &flag, None, 0, "2").unwrap();
    assert_eq!((settled.plan.done, share(&settled.definition.unwrap())), (2, &json!(25)));
}

/// What a client writes where no step has arrived yet.
fn acted_before_the_first_step(state: State) -> Plan {
    Plan { state, ..plan(&[5.0, 25.0]) }
}

#[test]
fn act_beside_the_first_step_keeps_the_way_back() {
    let (running, definition) = begun(&plan(&[5.0, 25.0]), 1);
    for state in [State::Paused, State::Cancelled, State::RolledBack] {
        let acted = acted_before_the_first_step(state);
        for versions in [[running.clone(), acted.clone()], [acted, running.clone()]] {
            let settled = decide(&versions, &seen(&definition), None, 0, "1").unwrap();
            assert_eq!((settled.plan.state, settled.plan.done), (state, 0));
            assert_eq!(settled.definition, Some(flag()), "the flag is as where it was asked for");
            assert_eq!(settled.plan.base, Some(flag()));
            // A change by hand is left alone, and does not lose the way back either.
            let mut changed = definition.clone();
            changed["defaultVariant"] = json!("on");
            let settled = decide(&versions, &seen(&changed), None, 0, "1").unwrap();
            assert_eq!((settled.definition, settled.plan.base), (None, Some(flag())));
        }
    }
}

#[test]
fn act_that_crosses_the_first_step_can_be_taken_back() {
    for state in [State::Paused, State::Cancelled, State::RolledBack] {
        let mut sim = Sim::new(1).nodes(2);
        sim.node(0).put("flags/s/a", flag().to_string().as_bytes()).unwrap();
        sim.node(0).put("flags-plans/s/a", plan(&[5.0, 25.0]).value()).unwrap();
        sim.run_for(Duration::from_secs(1));
        sim.partition(&[0], &[1]);
        assert!(run_on(&sim.node(0), "1"), "the first step");
        sim.node(1).put("flags-plans/s/a", acted_before_the_first_step(state).value()).unwrap();
        sim.heal();
        sim.assert_converged();
        assert!(run_on(&sim.node(0), "1"));
        let node = sim.node(0);
        let entry = node.get("flags-plans/s/a").unwrap();
        let [plan] = &versions(&entry)[..] else { panic!("the versions were settled") };
        let flag_entry = node.get("flags/s/a");
        assert_eq!(flag_entry.as_ref().and_then(change::definition_of), Some(flag()), "{state:?}");
        assert_eq!((plan.state, &plan.base), (state, &Some(flag())));
        if state == State::Paused {
            // It goes on from the beginning.
            node.put("flags-plans/s/a", Plan { state: State::Running, ..plan.clone() }.value()).unwrap();
            assert!(run_on(&node, "1"));
            let (plan, now) =
                (Plan::of_entry(&node.get("flags-plans/s/a").unwrap()).unwrap(), node.get("flags/s/a"));
            let (back, definition) = plan.taken_back(&FlagSeen::of_entry(now.as_ref()), 0).unwrap();
            assert_eq!((plan.done, back.done, definition), (1, 0, Some(flag())));
        }
    }
}

#[test]
fn step_that_cannot_be_taken_stops_a_plan() {
    let mut other = flag();
    other["targeting"] = json!({ "var": "x" });
    let stop = decide(&[plan(&[5.0])], &seen(&other), None, 0, "1").unwrap();
    assert_eq!((stop.plan.state, stop.definition), (State::Stopped, None));
    let split = FlagSeen { current: Some(flag()), others: vec![Some(other)] };
    assert_eq!(decide(&[plan(&[5.0])], &split, None, 0, "1").unwrap().plan.state, State::Stopped);
}

/// What a change by a program or a person makes of the flag; `None` deletes it.
fn change_flag(node: &impl Store, definition: Option<Value>) {
    let change = Change { flag: "a".to_owned(), definition, only_if: None };
    change::commit(node, NAMES, "s", &[change], &Author::new("ann", "old"), None).unwrap();
}

#[test]
fn deleting_a_flag_cancels_its_plan() {
    for steps in [0, 1] {
        let sim = Sim::new(1).nodes(1);
        let node = sim.node(0);
        let expires = |key: &str| node.get(key).unwrap().expires_at();
        let (plan, definition) = begun(&Plan { next_ms: u64::MAX, ..plan(&[5.0, 25.0]) }, steps);
        change_flag(&node, Some(definition));
        node.put("flags-plans/s/a", plan.value()).unwrap();
        change_flag(&node, None);
        let ended = Plan::of_entry(&node.get("flags-plans/s/a").unwrap()).unwrap();
        assert_eq!((ended.state, &ended.reason[..]), (State::Cancelled, "the flag was deleted by ann"));
        let past = change::history(node.get("flags-history/s/a").as_ref());
        assert_eq!((&past[0].note[..], &past[1].note[..]), ("old; its plan was cancelled", "old"));
        let later = Some(node.now() + change::DELETED_TTL);
        assert_eq!((expires("flags-plans/s/a"), expires("flags-history/s/a")), (later, later));
        // The next flag of the name is left alone, and keeps the history.
        change_flag(&node, Some(flag()));
        assert!(!run_on(&node, "1"));
        assert_eq!(node.get("flags/s/a").as_ref().and_then(change::definition_of), Some(flag()));
        assert_eq!((expires("flags-plans/s/a"), expires("flags-history/s/a")), (later, None));
    }
}

#[test]
fn plan_that_no_program_understands_is_deleted_with_its_flag() {
    let sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    for name in ["a", "b"] {
        node.put(format!("flags-plans/s/{name}"), b"{}").unwrap();
    }
    change_flag(&node, Some(flag()));
    assert!(node.get("flags-plans/s/a").is_some(), "the control");
    change_flag(&node, None);
    assert!(node.get("flags-plans/s/a").is_none() && node.get("flags-plans/s/b").is_some());
}

#[test]
fn key_deleted_for_10_s_stops_a_plan_that_has_not_begun() {
    for (gone_ms, expected) in [(MISSING_MS_MIN - 1, State::Done), (MISSING_MS_MIN, State::Stopped)] {
        let mut sim = Sim::new(1).nodes(1);
        let (node, mut readings) = (sim.node(0), Readings::default());
        let later = now_ms(&node) + 60_000;
        let plan = Plan { next_ms: later, ..plan(&[5.0]) };
        node.put("flags/s/a", flag().to_string().as_bytes()).unwrap();
        node.put("flags-plans/s/a", plan.value()).unwrap();
        assert!(!run_with(&mut readings, &node, "1"));
        node.delete("flags/s/a").unwrap();
        assert!(!run_with(&mut readings, &node, "1"), "it may be on its way");
        sim.run_for(Duration::from_millis(gone_ms));
        let node = sim.node(0);
        run_with(&mut readings, &node, "1");
        node.put("flags/s/a", flag().to_string().as_bytes()).unwrap();
        sim.run_for(Duration::from_secs(60));
        let node = sim.node(0);
        run_with(&mut readings, &node, "1");
        let plan = Plan::of_entry(&node.get("flags-plans/s/a").unwrap()).unwrap();
        assert_eq!(plan.state, expected, "{gone_ms}: {}", plan.reason);
    }
}

/// Both nodes run the plan at once, as holders of leases never do, the second one under the greater token.
fn run_on(node: &impl Store, token: &str) -> bool {
    run_with(&mut Readings::default(), node, token)
}

fn run_with(readings: &mut Readings, node: &impl Store, token: &str) -> bool {
    let crossed = |plan: &Plan| readings.crossed(node, NAMES, "s", "a", plan);
    run(node, NAMES, "s", "a", crossed, token).unwrap().is_some()
}

#[test]
fn two_runners_in_any_partition_do_no_harm() {
    let mut overlaps = 0;
    for seed in 0..200 {
        let mut sim = Sim::new(seed).nodes(2);
        let plan = plan(&[5.0, 25.0, 50.0, 100.0]);
        sim.node(0).put("flags/s/a", flag().to_string().as_bytes()).unwrap();
        sim.node(0).put("flags-plans/s/a", plan.value()).unwrap();
        sim.run_for(Duration::from_secs(1));
        let mut is_cut = false;
        for turn in 0..30 {
            // Bits of the seed decide who acts, and when the network is cut.
            let dice = (seed + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(turn * 7);
            if dice.trailing_zeros() >= 3 {
                is_cut = !is_cut;
                if is_cut { sim.partition(&[0], &[1]) } else { sim.heal() }
            }
            let first = dice & 8 != 0 && run_on(&sim.node(0), "1");
            let second = dice & 16 != 0 && run_on(&sim.node(1), "2");
            overlaps += u32::from(is_cut && first && second);
            sim.run_for(Duration::from_millis(300 + (dice >> 40 & 511)));
        }
        sim.heal();
        sim.assert_converged();
        for _ in 0..40 {
            run_on(&sim.node(1), "2");
            sim.run_for(Duration::from_millis(400));
        }
        sim.assert_converged();
        let done = Plan::of_entry(&sim.node(0).get("flags-plans/s/a").unwrap()).unwrap();
        assert_eq!((done.state, done.done), (State::Done, 4), "seed {seed}: {}", done.reason);
        let made = change::definition_of(&sim.node(0).get("flags/s/a").unwrap()).unwrap();
        assert_eq!(Ok(&made), plan.definition_after(&flag(), 4).as_ref(), "seed {seed}");
    }
    assert!(overlaps > 20, "both sides took steps in a partition: {overlaps}");
}

#[test]
fn second_run_at_the_same_time_takes_no_second_step() {
    let sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    node.put("flags/s/a", flag().to_string().as_bytes()).unwrap();
    node.put("flags-plans/s/a", plan(&[5.0, 25.0]).value()).unwrap();
    let entry = node.get("flags-plans/s/a").unwrap();
    let flag_entry = node.get("flags/s/a");
    let decision =
        decide(&versions(&entry), &FlagSeen::of_entry(flag_entry.as_ref()), None, u64::MAX, "1").unwrap();
    let once = |only_if| {
        let write = Write {
            key: "flags-plans/s/a".to_owned(),
            value: Some(decision.plan.value()),
            only_if,
            ttl: None,
        };
        super::write(&node, NAMES, "s", "a", flag_entry.as_ref(), &decision, &write)
    };
    let condition = Some(OnlyIf::Revision(entry.revision()));
    assert!(once(condition).is_ok());
    assert!(matches!(once(condition), Err(tidings::WriteError::Condition { .. })));
    let past = change::history(node.get("flags-history/s/a").as_ref());
    assert_eq!(past.len(), 1, "a step has one item of the history");
}

#[test]
fn metric_above_its_limit_at_any_source_stops() {
    let sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    let stop_if = "errors > 10".parse().ok();
    node.put("flags/s/a", flag().to_string().as_bytes()).unwrap();
    node.put("flags-plans/s/a", Plan { stop_if, on_stop: OnStop::RollBack, ..plan(&[5.0, 100.0]) }.value())
        .unwrap();
    for (source, value) in [("app-1", "10"), ("app-2", "\"no number\""), ("app-3", "1e400")] {
        node.put(format!("flags-metrics/errors/{source}"), value.as_bytes()).unwrap();
    }
    node.put("flags-metrics/errors-2/app", b"99").unwrap();
    assert!(run_on(&node, "1"), "the first step: nothing is above the limit");
    assert!(!run_on(&node, "1"));
    node.put("flags-metrics/errors/app-1", b"10.5").unwrap();
    assert!(run_on(&node, "1"));
    let plan = Plan::of_entry(&node.get("flags-plans/s/a").unwrap()).unwrap();
    assert!(plan.state == State::Stopped && plan.reason.contains("app-1"), "{}", plan.reason);
    assert_eq!(change::definition_of(&node.get("flags/s/a").unwrap()), Some(flag()));
}

/// A node with a plan that stops at a rate over 2 a second, and what reads it so long after the last reading.
struct Watched {
    sim: Sim,
    readings: Readings,
}

impl Watched {
    fn new(on_stop: OnStop) -> Self {
        let sim = Sim::new(1).nodes(1);
        sim.node(0).put("flags/s/a", flag().to_string().as_bytes()).unwrap();
        let mut steps = plan(&[5.0, 100.0]).steps;
        steps[1].wait_ms = 3_600_000;
        let stop_if = "rate(errors) > 2".parse().ok();
        sim.node(0).put("flags-plans/s/a", Plan { steps, stop_if, on_stop, ..plan(&[]) }.value()).unwrap();
        Self { sim, readings: Readings::default() }
    }

    /// The state of the plan after a reading of these values, by source, so many milliseconds after the one before.
    fn reads(&mut self, after_ms: u64, values: &[(&str, f64)]) -> (State, String) {
        self.sim.run_for(Duration::from_millis(after_ms));
        let node = self.sim.node(0);
        for (source, value) in values {
            node.put(format!("flags-metrics/errors/{source}"), value.to_string().as_bytes()).unwrap();
        }
        run_with(&mut self.readings, &node, "1");
        let plan = Plan::of_entry(&node.get("flags-plans/s/a").unwrap()).unwrap();
        (plan.state, plan.reason)
    }
}

#[test]
fn rate_above_its_limit_stops_at_the_second_reading() {
    let mut node = Watched::new(OnStop::RollBack);
    let running = (State::Running, String::new());
    assert_eq!(node.reads(0, &[("a", 1e6), ("b", 5.0)]), running, "its total alone says nothing");
    assert_eq!(node.reads(RATE_MS_MIN - 1_000, &[("a", 2e6)]), running, "too early for a rate");
    assert_eq!(node.reads(1_000, &[("a", 1e6 + 10.0), ("b", 5.0)]), running, "2 a second is not above 2");
    let (state, reason) = node.reads(2 * RATE_MS_MIN, &[("a", 1e6 + 30.0), ("b", 26.0)]);
    assert_eq!(state, State::Stopped);
    assert_eq!(reason, "rate(errors) is 2.1 at \"b\", and the limit is 2");
    assert_eq!(change::definition_of(&node.sim.node(0).get("flags/s/a").unwrap()), Some(flag()));
}

#[test]
fn rate_is_over_the_time_between_reports() {
    // Every 30 s, by how much in all.
    for (stop_if, grown, expected) in [
        ("rate(errors) > 0.5", 6.0, State::Running),
        ("rate(errors) > 0.5", 16.0, State::Stopped),
        ("rate(errors) < 1", 300.0, State::Running),
        ("rate(errors) < 1", 29.0, State::Stopped),
    ] {
        let mut node = Watched::new(OnStop::Hold);
        let entry = node.sim.node(0).get("flags-plans/s/a").unwrap();
        let plan = Plan { stop_if: stop_if.parse().ok(), ..Plan::of_entry(&entry).unwrap() };
        node.sim.node(0).put("flags-plans/s/a", plan.value()).unwrap();
        let mut told = State::Running;
        for second in 0_u32..=90 {
            let total = f64::from(second / 30) * grown;
            let reported = [("app", total)];
            let reported = if second % 30 == 0 { &reported[..] } else { &[] };
            told = node.reads(1_000, reported).0;
            assert!(second < 30 || told == expected, "{stop_if} of {grown} at {second}");
        }
        assert_eq!(told, expected, "{stop_if} of {grown}");
    }
}

#[test]
fn readings_begin_anew_when_the_clock_is_set_back() {
    let mut node = Watched::new(OnStop::Hold);
    let entry = node.sim.node(0).get("flags-plans/s/a").unwrap();
    let plan = Plan { base: Some(flag()), stop_if_missing: true, ..Plan::of_entry(&entry).unwrap() };
    for set_back_ms in [0, 3_600_000] {
        node.sim.skew(0, -set_back_ms);
        let told = [0, MISSING_MS_MIN - 1, 1].map(|after_ms| {
            node.sim.run_for(Duration::from_millis(after_ms));
            node.readings.crossed(&node.sim.node(0), NAMES, "s", "a", &plan)
        });
        assert_eq!(told, [None, None, Some("nobody reports errors".to_owned())], "{set_back_ms}");
    }
}

#[test]
fn counter_that_went_down_counts_from_zero() {
    for (after, expected) in [(10.0, State::Running), (11.0, State::Stopped)] {
        let mut node = Watched::new(OnStop::Hold);
        node.reads(0, &[("a", 1e6)]);
        assert_eq!(node.reads(RATE_MS_MIN, &[("a", after)]).0, expected, "{after} in 5 s");
    }
}

#[test]
fn rate_is_of_one_plan_and_of_a_source_that_stays() {
    let mut node = Watched::new(OnStop::Hold);
    node.reads(0, &[("a", 0.0)]);
    node.sim.node(0).delete("flags-metrics/errors/a").unwrap();
    node.reads(RATE_MS_MIN, &[]);
    assert_eq!(node.reads(RATE_MS_MIN, &[("a", 1e6)]).0, State::Running, "it is new");
    // Another plan of the flag begins with its own first reading.
    let entry = node.sim.node(0).get("flags-plans/s/a").unwrap();
    let next = Plan { id: "2".to_owned(), ..Plan::of_entry(&entry).unwrap() };
    node.sim.node(0).put("flags-plans/s/a", next.value()).unwrap();
    assert_eq!(node.reads(RATE_MS_MIN, &[("a", 2e6)]).0, State::Running);
    // So does one that was not open meanwhile.
    node.readings.retain(&[]);
    assert_eq!(node.reads(RATE_MS_MIN, &[("a", 3e6)]).0, State::Running);
    assert_eq!(node.reads(RATE_MS_MIN, &[("a", 4e6)]).0, State::Stopped, "the control");
}

/// A plan of two steps with an hour between them, and what its states are as its metric is reported or not.
struct Missing {
    sim: Sim,
    readings: Readings,
}

impl Missing {
    fn new(stop_if_missing: bool) -> Self {
        let sim = Sim::new(1).nodes(1);
        sim.node(0).put("flags/s/a", flag().to_string().as_bytes()).unwrap();
        let mut steps = plan(&[5.0, 100.0]).steps;
        steps[1].wait_ms = 3_600_000;
        let stop_if = "errors > 2".parse().ok();
        let plan = Plan { steps, stop_if, stop_if_missing, on_stop: OnStop::RollBack, ..plan(&[]) };
        sim.node(0).put("flags-plans/s/a", plan.value()).unwrap();
        Self { sim, readings: Readings::default() }
    }

    /// What a source reports; `None`: it is gone.
    fn reports(&self, source: &str, value: Option<&str>) {
        let key = format!("flags-metrics/errors/{source}");
        match value {
            Some(value) => _ = self.sim.node(0).put(key, value.as_bytes()).unwrap(),
            None => _ = self.sim.node(0).delete(key).unwrap(),
        }
    }

    fn state(&mut self, after_ms: u64) -> (State, String) {
        self.sim.run_for(Duration::from_millis(after_ms));
        let node = self.sim.node(0);
        run_with(&mut self.readings, &node, "1");
        let plan = Plan::of_entry(&node.get("flags-plans/s/a").unwrap()).unwrap();
        (plan.state, plan.reason)
    }
}

#[test]
fn source_that_is_gone_stops_a_plan_that_asks_for_it() {
    for stop_if_missing in [false, true] {
        let mut node = Missing::new(stop_if_missing);
        ["a", "b"].iter().for_each(|source| node.reports(source, Some("1")));
        assert_eq!(node.state(0).0, State::Running, "the first step");
        assert_eq!(node.state(1_000).0, State::Running);
        node.reports("b", None);
        assert_eq!(node.state(MISSING_MS_MIN - 2_000).0, State::Running, "it may come back");
        ["a", "b"].iter().for_each(|source| node.reports(source, Some("1")));
        assert_eq!(node.state(1_000).0, State::Running, "it is back");
        node.reports("b", None);
        assert_eq!(node.state(MISSING_MS_MIN - 1_000).0, State::Running);
        node.reports("a", Some("1"));
        let expected = if stop_if_missing {
            (State::Stopped, "\"b\" does not report errors any more".to_owned())
        } else {
            (State::Running, String::new())
        };
        assert_eq!(node.state(1_000), expected);
        let current = change::definition_of(&node.sim.node(0).get("flags/s/a").unwrap());
        assert_eq!(current == Some(flag()), stop_if_missing, "it is rolled back");
    }
}

#[test]
fn source_that_hangs_stops_a_plan_though_its_value_stays() {
    let mut node = Missing::new(true);
    for _ in 0..6 {
        node.reports("a", Some("1"));
        assert_eq!(node.state(RATE_MS_MIN).0, State::Running, "it reports, though nothing new");
    }
    assert_eq!(node.state(MISSING_MS_MIN - 1).0, State::Running);
    assert_eq!(node.state(1), (State::Stopped, "\"a\" does not report errors any more".to_owned()));
}

#[test]
fn metric_that_nobody_reports_stops_a_plan_that_asks_for_it() {
    for (value, expected) in
        [(None, State::Stopped), (Some("\"x\""), State::Stopped), (Some("1"), State::Running)]
    {
        let mut node = Missing::new(true);
        node.reports("a", value.or(Some("1")));
        if value.is_none() {
            node.reports("a", None);
        }
        assert_eq!(node.state(2 * MISSING_MS_MIN).0, State::Running, "the first step, however late it is");
        assert_eq!(node.state(500).0, State::Running, "nobody can have reported it yet");
        if let Some(value) = value {
            node.reports("a", Some(value));
        }
        let (state, reason) = node.state(MISSING_MS_MIN);
        assert_eq!(state, expected, "{value:?}");
        assert_eq!(reason == "nobody reports errors", expected == State::Stopped);
    }
}

#[test]
fn value_below_its_limit_stops() {
    for (value, expected) in [("99.5", State::Running), ("99.4", State::Stopped)] {
        let sim = Sim::new(1).nodes(1);
        let node = sim.node(0);
        node.put("flags/s/a", flag().to_string().as_bytes()).unwrap();
        let stop_if = "success < 99.5".parse().ok();
        node.put("flags-plans/s/a", Plan { stop_if, ..plan(&[5.0, 100.0]) }.value()).unwrap();
        node.put("flags-metrics/success/app", value.as_bytes()).unwrap();
        assert!(run_on(&node, "1"));
        let plan = Plan::of_entry(&node.get("flags-plans/s/a").unwrap()).unwrap();
        assert_eq!(plan.state, expected, "{value}");
    }
}

#[test]
fn plan_that_no_program_wrote_is_not_run() {
    let sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    node.put("flags/s/a", flag().to_string().as_bytes()).unwrap();
    let steps = vec![plan(&[5.0]).steps[0].clone(); STEPS_MAX + 1];
    let large = Plan { note: "x".repeat(PLAN_BYTES_MAX), ..plan(&[5.0]) };
    for wrong in [Plan { done: 2, ..plan(&[5.0]) }, Plan { steps, ..plan(&[5.0]) }, large] {
        node.put("flags-plans/s/a", wrong.value()).unwrap();
        assert!(!run_on(&node, "1"));
    }
    node.put("flags-plans/s/a", b"{}").unwrap();
    assert!(!run_on(&node, "1"));
    node.put("flags-plans/s/a", plan(&[5.0]).value()).unwrap();
    assert!(run_on(&node, "1"), "the control");
}
