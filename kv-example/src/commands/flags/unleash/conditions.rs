//! Strategies, constraints and segments of Unleash as conditions.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Notes, list};

/// Attributes that programs need not give to clients of Unleash.
const CLIENT_ATTRIBUTES: [&str; 4] = ["appName", "environment", "sessionId", "remoteAddress"];

/// The conditions of segments, by their ids. An export of one environment has the names alone.
pub(super) struct Segments<'a> {
    by_id: BTreeMap<i64, &'a Value>,
    /// Tables of older exports: which strategy has which segments.
    of_strategies: Vec<&'a Value>,
}

impl<'a> Segments<'a> {
    pub(super) fn of(file: &'a Value) -> Self {
        let rows = list(file, "segments").into_iter();
        let by_id = rows.filter_map(|segment| Some((segment["id"].as_i64()?, segment))).collect();
        Self { by_id, of_strategies: list(file, "featureStrategySegments") }
    }

    fn ids(&self, strategy: &Value) -> Vec<i64> {
        let own = list(strategy, "segments").into_iter().filter_map(Value::as_i64);
        let rows = self
            .of_strategies
            .iter()
            .filter(|row| !strategy["id"].is_null() && row["featureStrategyId"] == strategy["id"]);
        own.chain(rows.filter_map(|row| row["segmentId"].as_i64())).collect()
    }
}

/// The condition under which a strategy turns its feature on; none if it never does, or has no counterpart.
pub(super) fn condition_of(
    feature: &str,
    strategy: &Value,
    segments: &Segments<'_>,
    notes: &mut Notes<'_>,
) -> Option<Value> {
    let name = strategy["name"].as_str().or(strategy["strategyName"].as_str()).unwrap_or_default();
    if strategy["disabled"] == true {
        notes.note(format!("a strategy \"{name}\" is disabled, and left out"));
        return None;
    }
    if !strategy["milestoneId"].is_null() {
        left_out(notes, name, "it belongs to a milestone of a release plan, which may not be reached");
        return None;
    }
    if let Some(title) = strategy["title"].as_str().filter(|title| !title.is_empty()) {
        notes.note(format!(
            "a strategy \"{name}\" has the title \"{title}\", for which conditions have no place"
        ));
    }
    let mut all = Vec::new();
    for constraint in list(strategy, "constraints") {
        all.push(constraint_of(constraint, notes).map_err(|why| left_out(notes, name, &why)).ok()?);
    }
    for id in segments.ids(strategy) {
        let segment = segments.by_id.get(&id);
        let Some(constraints) = segment.and_then(|segment| segment["constraints"].as_array()) else {
            left_out(notes, name, &format!("the file has no conditions of the segment {id}"));
            return None;
        };
        for constraint in constraints {
            all.push(constraint_of(constraint, notes).map_err(|why| left_out(notes, name, &why)).ok()?);
        }
    }
    let own = own_condition(feature, name, &strategy["parameters"], notes);
    all.extend(own.map_err(|why| left_out(notes, name, &why)).ok()?);
    Some(match all.as_slice() {
        [] => json!(true),
        [one] => one.clone(),
        _ => json!({ "and": all }),
    })
}

fn left_out(notes: &mut Notes<'_>, strategy: &str, why: &str) {
    notes.lost(format!("a strategy \"{strategy}\" is left out: {why}"));
}

/// What a strategy asks for beside its constraints.
fn own_condition(
    feature: &str,
    name: &str,
    parameters: &Value,
    notes: &mut Notes<'_>,
) -> Result<Option<Value>, String> {
    let text = |field: &str| match &parameters[field] {
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    };
    let items = |field: &str| -> Vec<String> {
        let text = text(field);
        text.split(',').map(str::trim).filter(|item| !item.is_empty()).map(str::to_owned).collect()
    };
    let group = Some(text("groupId")).filter(|group| !group.is_empty()).unwrap_or_else(|| feature.to_owned());
    match name {
        "default" => Ok(None),
        "userWithId" => Ok(Some(json!({ "in": [{ "var": "targetingKey" }, items("userIds")] }))),
        "flexibleRollout" => {
            let stickiness = Some(text("stickiness")).filter(|text| !text.is_empty());
            share(&text("rollout"), &group, stickiness.as_deref().unwrap_or("default"), notes)
        }
        "gradualRolloutUserId" => share(&text("percentage"), &group, "userId", notes),
        "gradualRolloutSessionId" => share(&text("percentage"), &group, "sessionId", notes),
        "gradualRolloutRandom" => share(&text("percentage"), &group, "random", notes),
        "remoteAddress" => {
            let addresses = items("IPs");
            if addresses.iter().any(|address| address.contains('/')) {
                return Err("flagd has no condition for networks such as 10.0.0.0/8".to_owned());
            }
            notes.note("programs have to give the attribute remoteAddress");
            Ok(Some(json!({ "in": [{ "var": "remoteAddress" }, addresses] })))
        }
        "applicationHostname" => {
            notes.note("programs have to give the attribute hostname");
            Ok(Some(json!({ "in": [{ "var": "hostname" }, items("hostNames")] })))
        }
        _ => Err("it is not one of the strategies that Unleash brings with it".to_owned()),
    }
}

/// A share of the users, as a condition.
fn share(
    percent: &str,
    group: &str,
    stickiness: &str,
    notes: &mut Notes<'_>,
) -> Result<Option<Value>, String> {
    let share: u32 = percent.trim().parse().map_err(|_| format!("\"{percent}\" is no share"))?;
    let attribute = json!({ "var": sticky_attribute(stickiness) });
    // An empty one counts as none.
    let has_attribute = json!({ "!!": [attribute] });
    match share {
        0 => Ok(Some(json!(false))),
        // These two draw for users without an attribute, and at 100 % it does not matter what they draw.
        100 if matches!(stickiness, "default" | "random") => Ok(None),
        100 => Ok(Some(has_attribute)),
        1..100 => {
            let seed = seed(group, stickiness, notes).ok_or("users who are drawn by lot each time")?;
            notes.note("users are assigned to shares by another hash than in Unleash: some change sides");
            if stickiness == "default" {
                notes.note("users without a targeting key are in no share; in Unleash each evaluation draws for them");
            }
            let drawn = json!({ "fractional": [seed, ["in", share], ["out", 100 - share]] });
            // All who lack the attribute would have one hash, and be in the share together.
            Ok(Some(json!({ "and": [has_attribute, { "==": [drawn, "in"] }] })))
        }
        _ => Err(format!("\"{percent}\" is no share")),
    }
}

/// What is hashed. None: nothing, each evaluation is another draw.
pub(super) fn seed(group: &str, stickiness: &str, notes: &mut Notes<'_>) -> Option<Value> {
    if stickiness == "random" {
        notes.lost(
            "who gets it is drawn by lot at each evaluation (stickiness random), which flagd does not do",
        );
        return None;
    }
    Some(json!({ "cat": [group, ":", { "var": sticky_attribute(stickiness) }] }))
}

/// The attribute that says in which share a user is.
fn sticky_attribute(stickiness: &str) -> &str {
    if matches!(stickiness, "default" | "userId") { "targetingKey" } else { stickiness }
}

/// Compares a version. `sem_ver` completes `1.2` to 1.2.0 and leaves out a leading `v`; to Unleash neither is a version,
/// and both fit no constraint. An incomplete version is a number, and a complete one is none.
fn version(attribute: &Value, relation: &str, value: &str) -> Value {
    let begins = |with: &str| json!({ "starts_with": [attribute, with] });
    let other = json!({ "or": [{ ">=": [attribute, 0] }, begins("v"), begins("V")] });
    json!({ "and": [{ "!": [other] }, { "sem_ver": [attribute, relation, value] }] })
}

/// The rule of one constraint.
fn constraint_of(constraint: &Value, notes: &mut Notes<'_>) -> Result<Value, String> {
    let name = constraint["contextName"].as_str().unwrap_or_default();
    if CLIENT_ATTRIBUTES.contains(&name) {
        notes.note(format!(
            "programs have to give the attribute {name}, which clients of Unleash give by themselves"
        ));
    }
    let operator = constraint["operator"].as_str().unwrap_or_default();
    let attribute = json!({ "var": if name == "userId" { "targetingKey" } else { name } });
    let values = list(constraint, "values");
    let value = constraint["value"].as_str().unwrap_or_default();
    if constraint["caseInsensitive"] == true && operator.starts_with("STR_") {
        return Err(format!("the condition on \"{name}\" ignores upper and lower case, which flagd cannot"));
    }
    let each = |rule: &dyn Fn(&Value) -> Value| -> Value {
        let rules: Vec<Value> = values.iter().map(|value| rule(value)).collect();
        json!({ "or": rules })
    };
    let number =
        || value.trim().parse::<serde_json::Number>().map_err(|_| format!("\"{value}\" is no number"));
    let rule = match operator {
        "IN" => json!({ "in": [attribute, values] }),
        "NOT_IN" => json!({ "!": [{ "in": [attribute, values] }] }),
        "STR_CONTAINS" => each(&|value| json!({ "in": [value, attribute] })),
        "STR_STARTS_WITH" => each(&|value| json!({ "starts_with": [attribute, value] })),
        "STR_ENDS_WITH" => each(&|value| json!({ "ends_with": [attribute, value] })),
        // Without the attribute Unleash says no, where null would be 0 and less than 1. Not "!=", to which 0 is null.
        "NUM_EQ" | "NUM_GT" | "NUM_GTE" | "NUM_LT" | "NUM_LTE" => {
            let relation = match operator {
                "NUM_GT" => ">",
                "NUM_GTE" => ">=",
                "NUM_LT" => "<",
                "NUM_LTE" => "<=",
                _ => "==",
            };
            json!({ "and": [{ "!==": [attribute, null] }, { relation: [attribute, number()?] }] })
        }
        "SEMVER_EQ" => version(&attribute, "=", value),
        "SEMVER_GT" => version(&attribute, ">", value),
        "SEMVER_GTE" => version(&attribute, ">=", value),
        "SEMVER_LT" => version(&attribute, "<", value),
        "SEMVER_LTE" => version(&attribute, "<=", value),
        "DATE_AFTER" | "DATE_BEFORE" if name == "currentTime" => {
            let time =
                OffsetDateTime::parse(value, &Rfc3339).map_err(|_| format!("\"{value}\" is no time"))?;
            let relation = if operator == "DATE_AFTER" { ">" } else { "<" };
            json!({ relation: [{ "var": "$flagd.timestamp" }, time.unix_timestamp()] })
        }
        _ => return Err(format!("flagd has no condition {operator} on \"{name}\"")),
    };
    Ok(if constraint["inverted"] == true { json!({ "!": [rule] }) } else { rule })
}
