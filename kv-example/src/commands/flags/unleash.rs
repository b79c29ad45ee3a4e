//! Flags of Unleash, translated into flagd's format.
//!
//! A feature becomes a boolean flag with the variants `on` and `off`; its strategies are the conditions of the rule,
//! one after the other, because any of them turns a feature on. Variants become a second flag beside it, called
//! `NAME-variant`, because a flag of flagd has one value.
//!
//! Invariant: a user who does not get a feature from Unleash does not get it from the translation either, the
//! assignment of users to shares aside. A strategy of which a part has no counterpart is left out as a whole, and told
//! as lost. Nothing that a file says of a feature is left out without a note.

mod conditions;

use std::collections::BTreeMap;
use std::fmt;

use serde_json::{Map, Value, json};

use conditions::{Segments, condition_of};

/// Metadata of a translated flag is called like this.
const METADATA_FIELDS: [&str; 3] = ["description", "type", "project"];
/// Weights of variants add up to this in Unleash.
const VARIANT_WEIGHTS: u64 = 1_000;

/// What a translation says of a flag.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Note {
    pub(super) flag: String,
    pub(super) text: String,
    /// Something has no counterpart, and is not in the translation.
    pub(super) is_lost: bool,
}

impl fmt::Display for Note {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = if self.is_lost { "not translated" } else { "note" };
        write!(f, "{kind}: {}: {}", self.flag, self.text)
    }
}

#[derive(Debug, Default)]
pub(super) struct Translation {
    pub(super) flags: Map<String, Value>,
    pub(super) notes: Vec<Note>,
}

/// A feature with what the file says of it in the environment that counts.
struct Feature<'a> {
    name: &'a str,
    own: &'a Value,
    is_enabled: bool,
    strategies: Vec<&'a Value>,
    variants: Vec<&'a Value>,
}

/// What is noted while one feature is translated.
struct Notes<'a> {
    flag: &'a str,
    notes: &'a mut Vec<Note>,
}

impl Notes<'_> {
    fn note(&mut self, text: impl Into<String>) {
        self.push(text.into(), false);
    }

    fn lost(&mut self, text: impl Into<String>) {
        self.push(text.into(), true);
    }

    fn push(&mut self, text: String, is_lost: bool) {
        let note = Note { flag: self.flag.to_owned(), text, is_lost };
        if !self.notes.contains(&note) {
            self.notes.push(note);
        }
    }
}

/// Translates what Unleash exports, or what its clients get.
pub(super) fn translate(file: &Value, environment: Option<&str>) -> Result<Translation, String> {
    let features = list(file, "features");
    if !file["features"].is_array() {
        return Err("it has no list called \"features\", which every export of Unleash has".to_owned());
    }
    let environment = environment_of(file, environment)?;
    let segments = Segments::of(file);
    let mut translation = Translation::default();
    for own in features {
        let name = own["name"].as_str().ok_or("a feature has no name")?;
        let mut notes = Notes { flag: name, notes: &mut translation.notes };
        if own["archived"] == true || own["archivedAt"].is_string() {
            notes.lost("it is archived, and left out");
            continue;
        }
        let feature = feature(file, own, name, environment);
        let flags = feature.translate(file, &segments, &mut notes);
        translation.flags.extend(flags);
    }
    Ok(translation)
}

fn list<'a>(value: &'a Value, field: &str) -> Vec<&'a Value> {
    value[field].as_array().into_iter().flatten().collect()
}

/// The environment that counts, if the file names environments.
fn environment_of<'a>(file: &'a Value, asked: Option<&'a str>) -> Result<Option<&'a str>, String> {
    let named = list(file, "featureEnvironments").into_iter().filter_map(|row| row["environment"].as_str());
    let mut known: Vec<&str> = named.collect();
    known.sort_unstable();
    known.dedup();
    match (asked, known.as_slice()) {
        (Some(asked), _) if known.contains(&asked) => Ok(Some(asked)),
        (Some(asked), _) => Err(format!("it has no environment \"{asked}\", but: {}", known.join(", "))),
        (None, []) => Ok(None),
        (None, [one]) => Ok(Some(one)),
        (None, _) => {
            Err(format!("it has several environments: give --environment, one of {}", known.join(", ")))
        }
    }
}

fn feature<'a>(file: &'a Value, own: &'a Value, name: &'a str, environment: Option<&str>) -> Feature<'a> {
    // Clients get everything of a feature in one place; an export has tables.
    if own["strategies"].is_array() && file["featureStrategies"].is_null() {
        let is_enabled = own["enabled"] == true;
        return Feature {
            name,
            own,
            is_enabled,
            strategies: list(own, "strategies"),
            variants: list(own, "variants"),
        };
    }
    let is_here = |row: &&Value| {
        row["featureName"] == name
            && environment.is_none_or(|here| row["environment"].as_str().is_none_or(|its| its == here))
    };
    let mut strategies: Vec<&Value> = list(file, "featureStrategies").into_iter().filter(is_here).collect();
    strategies.sort_by_key(|strategy| strategy["sortOrder"].as_i64().unwrap_or_default());
    let here = list(file, "featureEnvironments").into_iter().find(|row| is_here(row));
    let variants = here.map(|here| list(here, "variants")).filter(|variants| !variants.is_empty());
    Feature {
        name,
        own,
        is_enabled: here.is_some_and(|here| here["enabled"] == true),
        strategies,
        variants: variants.unwrap_or_else(|| list(own, "variants")),
    }
}

impl Feature<'_> {
    fn translate(&self, file: &Value, segments: &Segments<'_>, notes: &mut Notes<'_>) -> Map<String, Value> {
        let mut flags = Map::new();
        let depends = list(file, "dependencies").into_iter().any(|row| row["feature"] == self.name)
            || !list(self.own, "dependencies").is_empty();
        if depends {
            notes.lost(
                "it depends on other features, and is left out: no flag of flagd depends on another one",
            );
            return flags;
        }
        let (mut rule, mut variant_rule, mut is_varied) = (Vec::new(), Vec::new(), false);
        for strategy in &self.strategies {
            let Some(condition) = condition_of(self.name, strategy, segments, notes) else { continue };
            let own = list(strategy, "variants");
            let variants = if own.is_empty() { &self.variants } else { &own };
            is_varied |= !variants.is_empty();
            rule.extend([condition.clone(), json!("on")]);
            variant_rule.push((condition, variants.clone()));
        }
        // A feature without strategies is on for everybody.
        if self.strategies.is_empty() {
            rule.extend([json!(true), json!("on")]);
            is_varied |= !self.variants.is_empty();
            variant_rule.push((json!(true), self.variants.clone()));
        }
        let mut flag = json!({ "state": if self.is_enabled { "ENABLED" } else { "DISABLED" },
            "variants": { "on": true, "off": false }, "defaultVariant": "off", "metadata": self.metadata(file, notes) });
        if !rule.is_empty() {
            flag["targeting"] = json!({ "if": rule });
        }
        if !self.is_enabled {
            notes.note("it is off in Unleash, and so it is disabled: programs use their own default, which has to be off");
        }
        if is_varied {
            let beside = format!("{}-variant", self.name);
            if let Some(variants) = self.variant_flag(&flag, variant_rule, notes) {
                notes.note(format!("its variants are the flag \"{beside}\""));
                flags.insert(beside, variants);
            }
        }
        flags.insert(self.name.to_owned(), flag);
        flags
    }

    fn metadata(&self, file: &Value, notes: &mut Notes<'_>) -> Value {
        let mut metadata = Map::new();
        for field in METADATA_FIELDS {
            if let Some(text) = self.own[field].as_str().filter(|text| !text.is_empty()) {
                metadata.insert(field.to_owned(), json!(text));
            }
        }
        if self.own["stale"] == true {
            metadata.insert("stale".to_owned(), json!(true));
        }
        let tags = list(file, "featureTags").into_iter().filter(|tag| tag["featureName"] == self.name);
        let mut by_type: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
        for tag in tags {
            let (kind, value) = (tag["tagType"].as_str(), tag["tagValue"].as_str());
            by_type.entry(kind.unwrap_or("simple")).or_default().extend(value);
        }
        for (kind, values) in by_type {
            metadata.insert(format!("tag.{kind}"), json!(values.join(",")));
        }
        let is_own = |row: &&Value| row["feature"] == self.name && !list(row, "links").is_empty();
        if list(file, "links").iter().any(is_own) {
            notes.note("its links are left out: metadata are texts, numbers and booleans");
        }
        if self.own["impressionData"] == true {
            notes.note("impression data are not recorded; evaluations are counted by variant");
        }
        metadata.into()
    }

    /// The flag that gives the variant. Its default is `disabled`, as what clients of Unleash get.
    fn variant_flag(
        &self,
        flag: &Value,
        rules: Vec<(Value, Vec<&Value>)>,
        notes: &mut Notes<'_>,
    ) -> Option<Value> {
        let mut values = Map::new();
        let mut rule = Vec::new();
        for (condition, variants) in rules {
            let shares = self.shares(&variants, &mut values, notes);
            rule.extend([condition, shares.unwrap_or_else(|| json!("disabled"))]);
        }
        if values.is_empty() {
            return None;
        }
        // All values of a flag have one type: if they differ, all are texts.
        let kind = |value: &Value| std::mem::discriminant(value);
        let mut kinds = values.values().map(kind);
        let first = kinds.next();
        if kinds.any(|kind| Some(kind) != first) {
            notes.note("the values of its variants have several types, and all became texts");
            values
                .values_mut()
                .filter(|value| !value.is_string())
                .for_each(|value| *value = json!(value.to_string()));
        }
        let nothing = match values.values().next() {
            Some(Value::Number(_)) => json!(0),
            Some(Value::Object(_)) => json!({}),
            _ => json!("disabled"),
        };
        values.entry("disabled".to_owned()).or_insert(nothing);
        Some(json!({ "state": flag["state"], "variants": values, "defaultVariant": "disabled",
                     "targeting": { "if": rule }, "metadata": flag["metadata"] }))
    }

    /// The shares of variants, and into `values` what they give.
    fn shares(
        &self,
        variants: &[&Value],
        values: &mut Map<String, Value>,
        notes: &mut Notes<'_>,
    ) -> Option<Value> {
        let mut buckets = Vec::new();
        let mut seed = None;
        for variant in variants {
            let Some(name) = variant["name"].as_str() else { continue };
            let value = payload(name, &variant["payload"], notes);
            if values.get(name).is_some_and(|before| *before != value) {
                notes.lost(format!(
                    "its strategies have several variants \"{name}\" with different values; the first counts"
                ));
            } else {
                values.insert(name.to_owned(), value);
            }
            if !list(variant, "overrides").is_empty() {
                notes.lost(format!("the variant \"{name}\" is given to some users in any case (overrides)"));
            }
            seed = seed.or(variant["stickiness"].as_str());
            let weight = variant["weight"].as_u64().unwrap_or_default().min(VARIANT_WEIGHTS);
            buckets.push(json!([name, weight]));
        }
        if buckets.len() < 2 {
            return variants.first().and_then(|variant| variant["name"].as_str()).map(|name| json!(name));
        }
        let seed = conditions::seed(&format!("{}-variant", self.name), seed.unwrap_or("default"), notes)?;
        notes.note("users are assigned to variants by another hash than in Unleash: some get another one than before");
        Some(json!({ "fractional": std::iter::once(seed).chain(buckets).collect::<Vec<_>>() }))
    }
}

/// What a variant gives: its payload, or its name.
fn payload(name: &str, payload: &Value, notes: &mut Notes<'_>) -> Value {
    let Some(text) = payload["value"].as_str() else { return json!(name) };
    match payload["type"].as_str() {
        Some("json" | "number") => {
            let value = serde_json::from_str::<Value>(text).ok();
            let value = value.filter(|value| value.is_object() || value.is_number() || value.is_string());
            value.unwrap_or_else(|| {
                let what = "is neither an object nor a number, and became a text";
                notes.note(format!("the payload of the variant \"{name}\" {what}"));
                json!(text)
            })
        }
        _ => json!(text),
    }
}

#[cfg(test)]
mod tests;
