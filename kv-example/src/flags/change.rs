//! Changes of definitions: checked, and written in one batch with the list of earlier versions.
//!
//! Invariants: a definition that is malformed, or that flagd's schema does not allow, is never written. A flag and its
//! history change in one batch or not at all. A history that two sides of a partition wrote keeps the items of both.
//! The plan of a flag that is deleted ends in the same batch: it must not change the next flag of that name.

use std::collections::BTreeSet;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tidings::flags::DEFINITION_DEPTH_MAX;
use tidings::{Entry, OnlyIf, PutOptions, Store, WriteBatch, WriteError};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::plan::Plan;
use super::{Names, SET_METADATA, SHARED_RULES, now_ms};
use crate::schema::Fault;

/// Items of a history, and its size.
pub(crate) const HISTORY_ITEMS_MAX: usize = 20;
const HISTORY_BYTES_MAX: usize = 256 << 10;
/// The largest definition: a history has to hold it.
pub(crate) const DEFINITION_BYTES_MAX: usize = 128 << 10;
/// For how long the history and the plan of a deleted flag are kept.
pub(crate) const DELETED_TTL: Duration = Duration::from_secs(90 * 86_400);
/// Characters of a note, and of the name of an author.
const NOTE_CHARS_MAX: usize = 500;
/// Flags that are named when other shared rules would break them.
const BROKEN_TOLD_MAX: usize = 16;
/// A batch is made anew when another request has changed the history meanwhile; that often.
const ATTEMPTS_MAX: usize = 16;

/// A new definition of a flag, or of what the flags of a set share; `None` deletes it.
#[derive(Clone, Debug)]
pub(crate) struct Change {
    pub(crate) flag: String,
    pub(crate) definition: Option<Value>,
    pub(crate) only_if: Option<OnlyIf>,
}

/// Who changes a flag, and why.
#[derive(Clone, Debug, Default)]
pub(crate) struct Author {
    pub(crate) by: String,
    pub(crate) note: String,
}

impl Author {
    /// Cuts both after [`NOTE_CHARS_MAX`] characters.
    pub(crate) fn new(by: &str, note: &str) -> Self {
        let short = |text: &str| text.chars().take(NOTE_CHARS_MAX).collect();
        Self { by: short(by), note: short(note) }
    }
}

/// One item of a history: what was put, and by whom.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Past {
    pub(crate) time: String,
    pub(crate) by: String,
    pub(crate) note: String,
    /// Null: it was deleted.
    pub(crate) definition: Value,
}

/// A write of something else in the same batch.
#[derive(Clone, Debug)]
pub(crate) struct Write {
    pub(crate) key: String,
    /// `None` deletes it.
    pub(crate) value: Option<Vec<u8>>,
    pub(crate) only_if: Option<OnlyIf>,
    /// A value that is put expires after this time.
    pub(crate) ttl: Option<Duration>,
}

/// What is wrong with a definition, on its own and with the shared rules that it refers to.
pub(crate) fn faults(flag: &str, definition: &Value, shared_rules: Option<&Value>) -> Vec<Fault> {
    let text = definition.to_string();
    if text.len() > DEFINITION_BYTES_MAX {
        let message = format!("it has {} bytes, permitted: {DEFINITION_BYTES_MAX}", text.len());
        return vec![Fault { path: String::new(), message }];
    }
    let mut file = json!({ "flags": {} });
    match flag {
        SHARED_RULES => file["$evaluators"] = definition.clone(),
        SET_METADATA => file["metadata"] = definition.clone(),
        _ => {
            file["flags"][flag] = definition.clone();
            if let Some(rules) = shared_rules {
                file["$evaluators"] = rules.clone();
            }
        }
    }
    let found = tidings::flags::check_file(&file.to_string());
    let of_rules = |name: &str| name == SHARED_RULES && flag != SHARED_RULES;
    let own = found.into_iter().filter(|fault| !of_rules(&fault.flag));
    own.map(|fault| Fault { path: String::new(), message: fault.error.to_string() }).collect()
}

/// The flags that other shared rules would break: their definitions are in order with the rules of before, and are
/// malformed with those of after.
pub(crate) fn broken(
    flags: &Map<String, Value>,
    before: Option<&Value>,
    after: Option<&Value>,
) -> Vec<Fault> {
    let malformed = |rules: Option<&Value>| {
        let mut file = json!({ "flags": flags });
        if let Some(rules) = rules {
            file["$evaluators"] = rules.clone();
        }
        let found = tidings::flags::check_file(&file.to_string()).into_iter();
        found.filter(|fault| fault.is_malformed && fault.flag != SHARED_RULES)
    };
    let already: BTreeSet<String> = malformed(before).map(|fault| fault.flag).collect();
    let new = malformed(after).filter(|fault| !already.contains(&fault.flag)).take(BROKEN_TOLD_MAX);
    new.map(|fault| Fault { path: format!("/{}", fault.flag), message: fault.error.to_string() }).collect()
}

/// The definition that a store holds; `None` also if it is not JSON, or is nested deeper than a definition may be: answers
/// hold it some levels deeper, and their readers have a limit as well.
pub(crate) fn definition_of(entry: &Entry) -> Option<Value> {
    let definition = serde_json::from_slice(entry.value()).ok()?;
    is_within(&definition, DEFINITION_DEPTH_MAX).then_some(definition)
}

fn is_within(value: &Value, depth: usize) -> bool {
    match value {
        Value::Array(items) => depth > 0 && items.iter().all(|item| is_within(item, depth - 1)),
        Value::Object(fields) => depth > 0 && fields.values().all(|field| is_within(field, depth - 1)),
        _ => true,
    }
}

/// The history of a flag, newest first.
pub(crate) fn history(entry: Option<&Entry>) -> Vec<Past> {
    let Some(entry) = entry else { return Vec::new() };
    let items = |entry: &Entry| serde_json::from_slice::<Vec<Past>>(entry.value()).unwrap_or_default();
    let mut all = items(entry);
    for concurrent in entry.conflicts() {
        // What only the concurrent version has stands before what both have and was put earlier, also in one second.
        let mut before = all.len();
        for item in items(&concurrent).into_iter().rev() {
            match all.iter().position(|known| *known == item) {
                Some(known) => before = known,
                None => all.insert(before, item),
            }
        }
    }
    // Stable: items of one second stay in this order.
    all.sort_by(|a, b| b.time.cmp(&a.time));
    all.truncate(HISTORY_ITEMS_MAX);
    all
}

/// A time as histories have it.
pub(crate) fn time_text(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1_000).unwrap_or_default();
    let time = OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    time.format(&Rfc3339).unwrap_or_default()
}

/// The time of a new item: that of the newest one where this node's clock is behind, so that the order of times is that
/// of changes.
fn time_after(newest: Option<&Past>, now_ms: u64) -> String {
    let now = time_text(now_ms);
    let is_time = |past: &&Past| OffsetDateTime::parse(&past.time, &Rfc3339).is_ok();
    let newest = newest.filter(is_time).map(|past| past.time.clone());
    newest.map_or(now.clone(), |newest| newest.max(now))
}

/// Writes changes of one set, their histories, the ends of the plans of deleted flags and `more` in one batch, or
/// nothing. The definitions were checked.
pub(crate) fn commit<S: Store>(
    store: &S,
    names: Names<'_>,
    set: &str,
    changes: &[Change],
    author: &Author,
    more: Option<&Write>,
) -> Result<S::Receipt, WriteError> {
    let days = changes.iter().filter_map(|change| day_write(store, names, set, change));
    // A change stands last, so that the receipt has the stamp of its definition.
    let definitions = changes.iter().map(|change| own_write(names, set, change));
    let own: Vec<Write> = more.cloned().into_iter().chain(days).chain(definitions).collect();
    let mut attempts_left = ATTEMPTS_MAX;
    loop {
        let histories = changes.iter().map(|change| history_write(store, names, set, change, author));
        let plans = changes.iter().filter_map(|change| plan_write(store, names, set, change, author));
        let batch = histories.chain(plans).fold(store.batch(), |batch, write| added(batch, &write));
        let batch = own.iter().fold(batch, added);
        attempts_left -= 1;
        match batch.commit() {
            // A condition of the caller fails for good; that of a history or of the plan of a deleted flag means that
            // another request or a step was faster.
            Err(WriteError::Condition { .. })
                if attempts_left > 0
                    && own.iter().all(|write| holds(write.only_if, store.get(&write.key).as_ref())) => {}
            done => return done,
        }
    }
}

fn own_write(names: Names<'_>, set: &str, change: &Change) -> Write {
    Write {
        key: names.flag(set, &change.flag),
        value: change.definition.as_ref().map(|definition| definition.to_string().into_bytes()),
        only_if: change.only_if,
        ttl: None,
    }
}

/// A flag that is deleted takes the day of its last evaluation along: another flag of its name was not evaluated then.
fn day_write(store: &impl Store, names: Names<'_>, set: &str, change: &Change) -> Option<Write> {
    let key = names.usage_day(set, &change.flag);
    let is_due = change.definition.is_none() && store.get(&key).is_some();
    is_due.then_some(Write { key, value: None, only_if: None, ttl: None })
}

/// A flag that is deleted ends its plan. One that no program understands is deleted with it.
fn plan_write(
    store: &impl Store,
    names: Names<'_>,
    set: &str,
    change: &Change,
    author: &Author,
) -> Option<Write> {
    let key = names.plan(set, &change.flag);
    let entry = store.get(&key).filter(|_| change.definition.is_none())?;
    let only_if = Some(OnlyIf::Revision(entry.revision()));
    let value = Plan::without_flag(&entry, &author.by).map(|plan| plan.value());
    Some(Write { key, value, only_if, ttl: Some(DELETED_TTL) })
}

/// The note of a change: of a delete also that it ends a plan.
fn note_of(store: &impl Store, names: Names<'_>, set: &str, change: &Change, note: &str) -> String {
    let plan = || Plan::of_entry(&store.get(&names.plan(set, &change.flag))?);
    if change.definition.is_some() || !plan().is_some_and(|plan| plan.state.is_open()) {
        return note.to_owned();
    }
    let parts = [note, "its plan was cancelled"].into_iter().filter(|part| !part.is_empty());
    parts.collect::<Vec<_>>().join("; ")
}

/// The history with one item more.
fn history_write(store: &impl Store, names: Names<'_>, set: &str, change: &Change, author: &Author) -> Write {
    let key = names.history(set, &change.flag);
    let entry = store.get(&key);
    let only_if = entry.as_ref().map_or(OnlyIf::Absent, |entry| OnlyIf::Revision(entry.revision()));
    let mut items = history(entry.as_ref());
    let (by, note) = (author.by.clone(), note_of(store, names, set, change, &author.note));
    let ttl = change.definition.is_none().then_some(DELETED_TTL);
    let definition = change.definition.clone().unwrap_or_default();
    let time = time_after(items.first(), now_ms(store));
    items.insert(0, Past { time, by, note, definition });
    items.truncate(HISTORY_ITEMS_MAX);
    let mut value = serde_json::to_vec(&items).expect("it consists of texts and JSON");
    while value.len() > HISTORY_BYTES_MAX && items.len() > 1 {
        items.pop();
        value = serde_json::to_vec(&items).expect("it consists of texts and JSON");
    }
    Write { key, value: Some(value), only_if: Some(only_if), ttl }
}

fn added<S: Store>(batch: WriteBatch<S>, write: &Write) -> WriteBatch<S> {
    match (&write.value, write.only_if) {
        (Some(value), only_if) => {
            let options = write.ttl.map_or(PutOptions::new(), |ttl| PutOptions::new().ttl(ttl));
            let options = only_if.map_or(options, |only_if| options.only_if(only_if));
            batch.put_with(&write.key, value, options)
        }
        (None, Some(only_if)) => batch.delete_if(&write.key, only_if),
        (None, None) => batch.delete(&write.key),
    }
}

/// Whether a condition holds for what a key holds.
pub(crate) fn holds(only_if: Option<OnlyIf>, entry: Option<&Entry>) -> bool {
    match only_if {
        None => true,
        Some(OnlyIf::Absent) => entry.is_none(),
        Some(OnlyIf::Stamp(stamp)) => entry.is_some_and(|entry| entry.stamp() == stamp),
        Some(OnlyIf::Revision(revision)) => entry.is_some_and(|entry| entry.revision() == revision),
        Some(_) => false,
    }
}

/// The object of fields that a definition is; an empty one if it is something else.
pub(crate) fn fields(definition: &Value) -> Map<String, Value> {
    definition.as_object().cloned().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use tidings::sim::Sim;

    use super::*;

    const NAMES: Names<'_> = Names("flags/");

    fn definition(default: &str) -> Value {
        json!({ "state": "ENABLED", "variants": { "on": true, "off": false }, "defaultVariant": default })
    }

    fn change(default: &str, only_if: Option<OnlyIf>) -> Change {
        Change { flag: "a".to_owned(), definition: Some(definition(default)), only_if }
    }

    fn by(name: &str) -> Author {
        Author::new(name, "")
    }

    #[test]
    fn flag_and_history_change_together_or_not_at_all() {
        let sim = Sim::new(1).nodes(1);
        let node = sim.node(0);
        commit(&node, NAMES, "s", &[change("on", Some(OnlyIf::Absent))], &by("x"), None).unwrap();
        let refused = commit(&node, NAMES, "s", &[change("off", Some(OnlyIf::Absent))], &by("y"), None);
        assert!(matches!(refused, Err(WriteError::Condition { .. })));
        let stamp = node.get("flags/s/a").unwrap().stamp();
        commit(&node, NAMES, "s", &[change("off", Some(OnlyIf::Stamp(stamp)))], &by("z"), None).unwrap();
        let past = history(node.get("flags-history/s/a").as_ref());
        let told: Vec<_> =
            past.iter().map(|item| (item.by.as_str(), &item.definition["defaultVariant"])).collect();
        assert_eq!(told, [("z", &json!("off")), ("x", &json!("on"))]);
        for flag in ["a", "b"] {
            node.put(format!("flags-usage/day/s/{flag}"), b"\"2026-12-01\"").unwrap();
        }
        let delete = Change { definition: None, ..change("on", None) };
        commit(&node, NAMES, "s", &[delete], &by("w"), None).unwrap();
        assert!(node.get("flags/s/a").is_none());
        assert!(node.get("flags-usage/day/s/a").is_none(), "another flag of the name begins anew");
        assert!(node.get("flags-usage/day/s/b").is_some(), "the control");
        assert_eq!(history(node.get("flags-history/s/a").as_ref())[0].definition, Value::Null);
    }

    #[test]
    fn history_is_bounded_in_items_and_bytes() {
        let sim = Sim::new(1).nodes(1);
        let node = sim.node(0);
        for _ in 0..HISTORY_ITEMS_MAX + 5 {
            commit(&node, NAMES, "s", &[change("on", None)], &by("x"), None).unwrap();
        }
        assert_eq!(history(node.get("flags-history/s/a").as_ref()).len(), HISTORY_ITEMS_MAX);
        let mut large = change("on", None);
        large.definition.as_mut().unwrap()["metadata"] =
            json!({ "text": "x".repeat(DEFINITION_BYTES_MAX - 200) });
        for _ in 0..4 {
            commit(&node, NAMES, "s", &[large.clone()], &by("x"), None).unwrap();
        }
        let entry = node.get("flags-history/s/a").unwrap();
        assert!(entry.value().len() <= HISTORY_BYTES_MAX, "{}", entry.value().len());
        assert_eq!(history(Some(&entry)).len(), 2);
    }

    #[test]
    fn histories_of_two_sides_are_merged() {
        let mut sim = Sim::new(1).nodes(2);
        commit(&sim.node(0), NAMES, "s", &[change("on", None)], &by("first"), None).unwrap();
        sim.assert_converged();
        sim.partition(&[0], &[1]);
        commit(&sim.node(0), NAMES, "s", &[change("on", None)], &by("left"), None).unwrap();
        commit(&sim.node(1), NAMES, "s", &[change("off", None)], &by("right"), None).unwrap();
        sim.heal();
        sim.assert_converged();
        commit(&sim.node(0), NAMES, "s", &[change("on", None)], &by("later"), None).unwrap();
        let past = history(sim.node(0).get("flags-history/s/a").as_ref());
        let mut told: Vec<&str> = past.iter().map(|item| item.by.as_str()).collect();
        // All in one second, or nearly so: what both have seen stays the oldest.
        assert_eq!((told[0], told[3]), ("later", "first"));
        told.sort_unstable();
        assert_eq!(told, ["first", "later", "left", "right"]);
    }

    #[test]
    fn history_is_in_order_where_a_clock_is_behind() {
        let mut sim = Sim::new(1).nodes(2);
        sim.skew(1, -3_000);
        for (at, name) in [(0, "first"), (1, "second"), (0, "third")] {
            commit(&sim.node(at), NAMES, "s", &[change("on", None)], &by(name), None).unwrap();
            sim.assert_converged();
        }
        let past = history(sim.node(1).get("flags-history/s/a").as_ref());
        let told: Vec<&str> = past.iter().map(|item| item.by.as_str()).collect();
        assert_eq!(told, ["third", "second", "first"]);
    }

    #[test]
    fn what_the_schema_does_not_allow_is_a_fault() {
        let fault = |definition: &Value| faults("a", definition, None);
        assert!(fault(&definition("on")).is_empty());
        assert!(!fault(&definition("gone")).is_empty());
        let mut mixed = definition("on");
        mixed["variants"]["text"] = json!("x");
        assert!(!fault(&mixed).is_empty());
        let mut refers = definition("on");
        refers["targeting"] = json!({ "if": [{ "$ref": "staff" }, "on"] });
        assert!(!fault(&refers).is_empty());
        let staff = json!({ "staff": { "ends_with": [{ "var": "email" }, "@example.com"] } });
        assert!(faults("a", &refers, Some(&staff)).is_empty());
        assert!(faults(SHARED_RULES, &staff, None).is_empty());
        assert!(!faults(SHARED_RULES, &json!([]), None).is_empty());
        assert!(!faults(SET_METADATA, &json!({ "fractional": 4 }), None).is_empty());
        assert!(!fault(&json!({ "state": "x".repeat(DEFINITION_BYTES_MAX) })).is_empty());
    }
}
