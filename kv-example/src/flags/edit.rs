//! Edits of a definition: each makes a new definition of a definition, and leaves everything else in it as it is.
//!
//! `rollout` writes flagd's `fractional` where a rule ends, and nowhere else: the conditions before it stay. A subject
//! is assigned by the hash of the flag's name (or of the seed that the rule names) and its targeting key, and a variant
//! has the range of hashes from one end up to its share. So a share that grows keeps everybody whom it had, and one that
//! shrinks adds nobody, as long as the order of the two variants and the seed stay; both are kept here.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::change::fields;

/// Shares have at most three decimals.
const THOUSANDTHS: f64 = 1_000.0;
/// Rules are nested as deeply as the library evaluates them.
const DEPTH_MAX: usize = tidings::flags::RULE_DEPTH_MAX;

/// A change of a definition.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Edit {
    Enable,
    Disable,
    /// The default variant; null: the program's default.
    Default(Option<String>),
    Rollout(Rollout),
    Target(Target),
}

/// A condition in front of the rule, or one that is taken away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Target {
    pub(crate) variant: String,
    /// `None`, of what is removed: all conditions that give the variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) when: Option<Value>,
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) remove: bool,
}

/// A share of the subjects for a variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Rollout {
    pub(crate) variant: String,
    pub(crate) percent: f64,
    /// What the others get; without it what they get now where the rule ends, or else the default variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) rest: Option<String>,
}

impl Edit {
    pub(crate) fn apply(&self, definition: &Value) -> Result<Value, String> {
        let mut edited = fields(definition);
        match self {
            Self::Enable => _ = edited.insert("state".to_owned(), json!("ENABLED")),
            Self::Disable => _ = edited.insert("state".to_owned(), json!("DISABLED")),
            Self::Default(variant) => {
                if let Some(variant) = variant {
                    check_variant(definition, variant)?;
                }
                edited.insert("defaultVariant".to_owned(), json!(variant));
            }
            Self::Rollout(rollout) => {
                edited.insert("targeting".to_owned(), rollout.targeting(definition)?);
            }
            Self::Target(Target { variant, when, remove: true }) => {
                return without_target(definition, variant, when.as_ref());
            }
            Self::Target(Target { variant, when: Some(when), remove: false }) => {
                return with_target(definition, variant, when);
            }
            Self::Target(Target { when: None, .. }) => return Err("there is no condition".to_owned()),
        }
        Ok(edited.into())
    }

    /// What it does, for people.
    pub(crate) fn text(&self) -> String {
        match self {
            Self::Enable => "enable".to_owned(),
            Self::Disable => "disable".to_owned(),
            Self::Default(Some(variant)) => format!("default {variant}"),
            Self::Default(None) => "no default variant".to_owned(),
            Self::Rollout(rollout) => format!("{} for {} %", rollout.variant, rollout.percent),
            Self::Target(Target { variant, when, remove }) => {
                let what = if *remove { "no target" } else { "target" };
                let when = when.as_ref().map(|when| format!(" when {when}")).unwrap_or_default();
                format!("{what} {variant}{when}")
            }
        }
    }
}

pub(crate) fn check_variant(definition: &Value, variant: &str) -> Result<(), String> {
    let variants = fields(&definition["variants"]);
    if variants.contains_key(variant) {
        return Ok(());
    }
    let known: Vec<&str> = variants.keys().map(String::as_str).collect();
    Err(format!("\"{variant}\" is none of its variants: {}", known.join(", ")))
}

impl Rollout {
    /// The rule with the share where it ends.
    fn targeting(&self, definition: &Value) -> Result<Value, String> {
        check_variant(definition, &self.variant)?;
        let rule = definition.get("targeting").unwrap_or(&Value::Null);
        self.at_end(definition, rule, DEPTH_MAX)
    }

    fn at_end(&self, definition: &Value, rule: &Value, depth_left: usize) -> Result<Value, String> {
        if depth_left == 0 {
            return Err("the rule is nested too deeply".to_owned());
        }
        match rule {
            Value::Null => self.share(definition, None),
            Value::String(variant) => self.share(definition, Some(variant)),
            Value::Object(rule) if rule.is_empty() => self.share(definition, None),
            Value::Object(rule) if rule.len() == 1 => match rule.iter().next() {
                Some((operator, Value::Array(arguments))) if operator == "if" => {
                    // Conditions and results by turns; what is left over is what counts if no condition holds.
                    let mut arguments = arguments.clone();
                    let end = if arguments.len() % 2 == 1 { arguments.pop() } else { None };
                    arguments.push(self.at_end(definition, &end.unwrap_or_default(), depth_left - 1)?);
                    Ok(json!({ "if": arguments }))
                }
                Some((operator, arguments)) if operator == "fractional" => {
                    self.in_place(definition, arguments.as_array().map(Vec::as_slice).unwrap_or_default())
                }
                Some((operator, _)) => Err(no_end(&format!("it ends in the operator \"{operator}\""))),
                None => self.share(definition, None),
            },
            _ => Err(no_end("it does not end in a rule that gives variants")),
        }
    }

    /// A new share, which has the flag's name as its seed.
    fn share(&self, definition: &Value, present: Option<&String>) -> Result<Value, String> {
        let default = || definition["defaultVariant"].as_str().filter(|name| !name.is_empty());
        let rest = self.rest.as_deref().or(present.map(String::as_str)).or_else(default);
        let rest = rest.ok_or(
            "the flag has no default variant, so it is not known what the others get: name their variant",
        )?;
        let [own, others] = self.weights(definition, rest)?;
        Ok(json!({ "fractional": [own, others] }))
    }

    /// Changes the weights of a share, and keeps its seed and the order of its variants.
    fn in_place(&self, definition: &Value, arguments: &[Value]) -> Result<Value, String> {
        let is_bucket = |argument: &Value| argument.is_array();
        let seed = arguments.first().filter(|first| !is_bucket(first));
        let buckets = &arguments[usize::from(seed.is_some())..];
        let names: Option<Vec<&str>> = buckets.iter().map(|bucket| bucket[0].as_str()).collect();
        let names = names.ok_or_else(|| no_end("its shares name variants by rules"))?;
        let at = names.iter().position(|name| *name == self.variant);
        let (Some(at), 1..=2) = (at, names.len()) else {
            let told = format!(
                "its shares are of {}, and not of \"{}\" and one other",
                names.join(", "),
                self.variant
            );
            return Err(no_end(&told));
        };
        let other = names.get(1 - at).copied();
        let rest = self.rest.as_deref().or(other).or_else(|| definition["defaultVariant"].as_str());
        let rest = rest.ok_or("it is not known what the others get: name their variant")?;
        let mut weights = self.weights(definition, rest)?;
        if at == 1 {
            weights.reverse();
        }
        let arguments: Vec<Value> = seed.cloned().into_iter().chain(weights).collect();
        Ok(json!({ "fractional": arguments }))
    }

    /// Both variants with their weights.
    fn weights(&self, definition: &Value, rest: &str) -> Result<[Value; 2], String> {
        check_variant(definition, rest)?;
        if rest == self.variant {
            let told = "is what everybody gets already where the rule ends";
            return Err(format!("\"{rest}\" {told}: name another variant for the others"));
        }
        let (share, whole) = self.share_of()?;
        Ok([json!([self.variant, share]), json!([rest, whole - share])])
    }

    /// The weight of the share and of everybody: whole numbers, which are all that `fractional` takes.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "checked to be within 0 and 100,000"
    )]
    fn share_of(&self) -> Result<(u32, u32), String> {
        let thousandths = self.percent * THOUSANDTHS;
        let is_fine = (thousandths - thousandths.round()).abs() < 1e-6;
        if !(0.0..=100.0).contains(&self.percent) || !is_fine {
            return Err(format!("{} is no share: 0 to 100, with at most three decimals", self.percent));
        }
        let thousandths = thousandths.round() as u32;
        Ok(if thousandths.is_multiple_of(1_000) {
            (thousandths / 1_000, 100)
        } else {
            (thousandths, 100_000)
        })
    }
}

fn no_end(why: &str) -> String {
    format!(
        "the flag's rule leaves no place for a share: {why}; edit the definition, or give it a flag of its own"
    )
}

/// The shares of variants where the rule of a definition ends, in percent and in their order; none if it ends otherwise.
pub(crate) fn shares(definition: &Value) -> Vec<(String, f64)> {
    let mut rule = &definition["targeting"];
    for _ in 0..DEPTH_MAX {
        let Some(arguments) = rule["if"].as_array() else { break };
        let is_open = arguments.len().is_multiple_of(2);
        let Some(end) = arguments.last().filter(|_| !is_open) else { return Vec::new() };
        rule = end;
    }
    let Some(arguments) = rule["fractional"].as_array() else { return Vec::new() };
    let buckets = arguments.iter().filter(|argument| argument.is_array());
    // A share without a weight has the weight 1.
    let weight = |bucket: &Value| bucket.get(1).map_or(Some(1.0), Value::as_f64);
    let buckets = buckets.map(|bucket| Some((bucket[0].as_str()?.to_owned(), weight(bucket)?)));
    let buckets: Vec<(String, f64)> = buckets.collect::<Option<_>>().unwrap_or_default();
    let whole: f64 = buckets.iter().map(|(_, weight)| weight).sum();
    let percent = |(name, weight)| (name, if whole > 0.0 { weight / whole * 100.0 } else { 0.0 });
    buckets.into_iter().map(percent).collect()
}

/// Puts a condition in front of a rule.
fn with_target(definition: &Value, variant: &str, when: &Value) -> Result<Value, String> {
    check_variant(definition, variant)?;
    let mut edited = fields(definition);
    let rest = match edited.get("targeting") {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Object(rule)) if rule.is_empty() => Vec::new(),
        Some(rule) => match rule.get("if").and_then(Value::as_array) {
            Some(arguments) if rule.as_object().is_some_and(|rule| rule.len() == 1) => arguments.clone(),
            _ => vec![rule.clone()],
        },
    };
    let arguments: Vec<Value> = [when.clone(), json!(variant)].into_iter().chain(rest).collect();
    edited.insert("targeting".to_owned(), json!({ "if": arguments }));
    Ok(edited.into())
}

/// Takes the conditions away that give a variant, or the one that is given.
fn without_target(definition: &Value, variant: &str, when: Option<&Value>) -> Result<Value, String> {
    let none = || format!("no condition at the beginning of the rule gives \"{variant}\" like this");
    let arguments = definition["targeting"]["if"].as_array().ok_or_else(none)?;
    let (pairs, end) = arguments.as_chunks::<2>();
    let is_meant =
        |[condition, result]: &&[Value; 2]| result == variant && when.is_none_or(|when| when == condition);
    let kept: Vec<&[Value; 2]> = pairs.iter().filter(|pair| !is_meant(pair)).collect();
    if kept.len() == pairs.len() {
        return Err(none());
    }
    let mut edited = fields(definition);
    let rule = match (kept.is_empty(), end) {
        (true, []) => None,
        (true, [end, ..]) => Some(end.clone()),
        (false, end) => Some(json!({ "if": kept.into_iter().flatten().chain(end).collect::<Vec<_>>() })),
    };
    match rule {
        // A rule that is a variant alone is no rule of flagd's schema.
        Some(end @ Value::String(_)) => _ = edited.insert("targeting".to_owned(), json!({ "if": [end] })),
        Some(rule) => _ = edited.insert("targeting".to_owned(), rule),
        None => _ = edited.remove("targeting"),
    }
    Ok(edited.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn flag(targeting: &Value) -> Value {
        json!({ "state": "ENABLED", "variants": { "on": true, "off": false, "beta": true }, "defaultVariant": "off",
                "targeting": targeting, "metadata": { "owner": "shop" } })
    }

    fn rollout(variant: &str, percent: f64) -> Edit {
        Edit::Rollout(Rollout { variant: variant.to_owned(), percent, rest: None })
    }

    fn rolled(targeting: &Value, percent: f64) -> Result<Value, String> {
        Ok(rollout("on", percent).apply(&flag(targeting))?["targeting"].clone())
    }

    #[test]
    fn rollout_replaces_only_where_a_rule_ends() {
        let share = json!({ "fractional": [["on", 5], ["off", 95]] });
        let staff = json!({ "ends_with": [{ "var": "email" }, "@example.com"] });
        for (before, after) in [
            (json!(null), share.clone()),
            (json!({}), share.clone()),
            (json!({ "if": [staff, "on"] }), json!({ "if": [staff, "on", share] })),
            (json!({ "if": [staff, "on", "off"] }), json!({ "if": [staff, "on", share] })),
            (json!({ "if": [staff, "on", null] }), json!({ "if": [staff, "on", share] })),
            (
                json!({ "if": [staff, "on", { "if": [staff, "beta"] }] }),
                json!({ "if": [staff, "on", { "if": [staff, "beta", share] }] }),
            ),
            (
                json!({ "if": [staff, "on", "beta"] }),
                json!({ "if": [staff, "on", { "fractional": [["on", 5], ["beta", 95]] }] }),
            ),
            (json!({ "fractional": [["on", 80], ["off", 20]] }), share.clone()),
            (
                json!({ "fractional": [["off", 1], ["on", 1]] }),
                json!({ "fractional": [["off", 95], ["on", 5]] }),
            ),
            (
                json!({ "fractional": [{ "var": "email" }, ["on", 1], ["off", 1]] }),
                json!({ "fractional": [{ "var": "email" }, ["on", 5], ["off", 95]] }),
            ),
        ] {
            assert_eq!(rolled(&before, 5.0), Ok(after), "{before}");
        }
        assert_eq!(rolled(&json!(null), 0.125), Ok(json!({ "fractional": [["on", 125], ["off", 99_875]] })));
        let whole = rollout("on", 5.0).apply(&flag(&json!(null))).unwrap();
        assert_eq!(whole["metadata"], json!({ "owner": "shop" }));
    }

    #[test]
    fn shares_are_read_where_a_rule_ends() {
        let named = |shares: &[(&str, f64)]| -> Vec<(String, f64)> {
            shares.iter().map(|(name, percent)| ((*name).to_owned(), *percent)).collect()
        };
        for (rule, expected) in [
            (json!(null), named(&[])),
            (json!({ "var": "x" }), named(&[])),
            (json!({ "if": [true, { "fractional": [["on", 1], ["off", 1]] }] }), named(&[])),
            (json!({ "fractional": [[{ "var": "x" }, 1], ["off", 1]] }), named(&[])),
            (json!({ "fractional": [["on", 0], ["off", 0]] }), named(&[("on", 0.0), ("off", 0.0)])),
            (json!({ "fractional": ["seed", ["on"], ["off", 3]] }), named(&[("on", 25.0), ("off", 75.0)])),
            (
                json!({ "if": [true, "on", { "fractional": [["on", 5], ["off", 95]] }] }),
                named(&[("on", 5.0), ("off", 95.0)]),
            ),
        ] {
            assert_eq!(shares(&flag(&rule)), expected, "{rule}");
        }
        let rolled = rollout("on", 12.5).apply(&flag(&json!({ "if": [true, "beta"] }))).unwrap();
        assert_eq!(shares(&rolled)[0], ("on".to_owned(), 12.5));
    }

    #[test]
    fn rollout_refuses_rules_that_it_would_destroy() {
        for before in [
            json!({ "fractional": [["on", 1], ["off", 1], ["beta", 1]] }),
            json!({ "fractional": [["beta", 1], ["off", 1]] }),
            json!({ "fractional": [[{ "var": "x" }, 1], ["off", 1]] }),
            json!({ "fractional": {} }),
            json!({ "var": "variant" }),
            json!({ "$ref": "shared" }),
            json!({ "if": [true, "on", "on"] }),
            json!({ "if": [true, "on", { "in": ["a", "b"] }] }),
            json!(7),
        ] {
            assert!(rolled(&before, 5.0).is_err(), "{before}");
        }
        assert!(rollout("off", 5.0).apply(&flag(&json!(null))).is_err(), "everybody has it");
        assert!(rollout("gone", 5.0).apply(&flag(&json!(null))).is_err());
        for percent in [-1.0, 100.5, 0.000_1, f64::NAN] {
            assert!(rolled(&json!(null), percent).is_err(), "{percent}");
        }
        let mut open = flag(&json!(null));
        open["defaultVariant"] = json!(null);
        assert!(rollout("on", 5.0).apply(&open).is_err(), "it is not known what the others get");
    }

    #[test]
    fn share_that_grows_keeps_everybody_whom_it_had() {
        use tidings::flags::{Context, Flags};
        for (version, targeting) in [
            (2, json!(null)),
            (3, json!(null)),
            (2, json!({ "fractional": [["off", 1], ["on", 0]] })),
            (3, json!({ "fractional": [{ "var": "email" }, ["on", 0], ["off", 1]] })),
        ] {
            let mut sim = tidings::sim::Sim::new(1).nodes(1);
            let node = sim.node(0);
            let flags = Flags::new(&node, "flags/");
            node.put("flags/default/$metadata", json!({ "fractional": version }).to_string().as_bytes())
                .unwrap();
            let (mut definition, mut before) = (flag(&targeting), Vec::new());
            for percent in [0.0, 0.5, 1.0, 5.0, 12.5, 25.0, 60.0, 99.9, 100.0] {
                definition = rollout("on", percent).apply(&definition).unwrap();
                assert_eq!(super::super::change::faults("a", &definition, None), [], "{definition}");
                node.put("flags/default/a", definition.to_string().as_bytes()).unwrap();
                sim.run_for(std::time::Duration::from_millis(10));
                let names = (0..2_000).map(|user| format!("user-{user}"));
                let is_on = |name: &String| {
                    let context = Context::new(name.as_str()).with("email", name.as_str());
                    flags.bool("a", false, &context)
                };
                let on: Vec<String> = names.filter(is_on).collect();
                assert!(before.iter().all(|name| on.contains(name)), "version {version}, {percent} %");
                let share = f64::from(u32::try_from(on.len()).unwrap()) / 20.0;
                assert!((share - percent).abs() < 3.0, "{share} % instead of {percent} %");
                before = on;
            }
            assert_eq!(before.len(), 2_000);
        }
    }

    #[test]
    fn targets_go_in_front_and_away_again() {
        let (a, b) = (json!({ "==": [{ "var": "a" }, 1] }), json!({ "==": [{ "var": "b" }, 1] }));
        let share = json!({ "fractional": [["on", 5], ["off", 95]] });
        for rule in
            [json!(null), json!({ "if": [a, "beta"] }), json!({ "if": [a, "beta", share] }), share.clone()]
        {
            let before = flag(&rule);
            let with = with_target(&before, "on", &b).unwrap();
            assert_eq!(with["targeting"]["if"][0], b);
            assert_eq!(with["targeting"]["if"][1], "on");
            let without = without_target(&with, "on", Some(&b)).unwrap();
            assert_eq!(without["targeting"], rule, "{with}");
            assert!(without_target(&with, "off", None).is_err());
        }
        let only = flag(&json!({ "if": [a, "on", "off"] }));
        assert_eq!(without_target(&only, "on", None).unwrap()["targeting"], json!({ "if": ["off"] }));
        assert!(with_target(&flag(&json!(null)), "gone", &a).is_err());
    }

    #[test]
    fn targets_are_edits_that_plans_can_keep() {
        let when = json!({ "==": [{ "var": "a" }, 1] });
        let edit = |text: &str| serde_json::from_str::<Edit>(text).unwrap();
        let with = edit(&format!(r#"{{"target": {{"variant": "on", "when": {when}}}}}"#));
        let edited = with.apply(&flag(&json!(null))).unwrap();
        assert_eq!(edited["targeting"], json!({ "if": [when, "on"] }));
        assert_eq!(with.text(), format!("target on when {when}"));
        let without = edit(r#"{"target": {"variant": "on", "remove": true}}"#);
        assert_eq!(without.apply(&edited).unwrap().get("targeting"), None);
        assert_eq!(without.text(), "no target on");
        for kept in [&with, &without] {
            assert_eq!(edit(&serde_json::to_string(kept).unwrap()), *kept);
        }
        assert!(edit(r#"{"target": {"variant": "on"}}"#).apply(&edited).is_err());
    }

    #[test]
    fn edits_change_one_field_alone() {
        let before = flag(&json!({ "if": [true, "on"] }));
        let disabled = Edit::Disable.apply(&before).unwrap();
        assert_eq!(disabled["state"], "DISABLED");
        assert_eq!(Edit::Enable.apply(&disabled), Ok(before.clone()));
        assert_eq!(Edit::Default(Some("on".to_owned())).apply(&before).unwrap()["defaultVariant"], "on");
        assert_eq!(Edit::Default(None).apply(&before).unwrap()["defaultVariant"], Value::Null);
        assert!(Edit::Default(Some("gone".to_owned())).apply(&before).is_err());
    }
}
