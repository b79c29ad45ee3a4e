//! How many steps a check may take, known before it begins.
//!
//! A small schema can ask for any number of steps: definitions that use each other twice double them with each level of
//! references, and a schema that uses itself twice with each level of the value. So the steps that one level of a value
//! costs are added up for every depth, as if each branch were taken, and a check is begun only if the value's size times
//! that is permitted.

use std::collections::{BTreeMap, BTreeSet};
use std::ptr;

use serde_json::{Map, Value};

use super::Fault;

/// The deepest value that is checked.
const DEPTH_MAX: usize = 64;
/// References and alternatives between a value and what is said of it.
const CHAIN_MAX: usize = 64;
/// Subschemas in all.
const SUBSCHEMAS_MAX: usize = 8_192;
/// Patterns: each is compiled, and takes memory.
const PATTERNS_MAX: usize = 64;
/// Steps of a check; and those of one that collects what it finds, which takes memory for each.
const STEPS_MAX: u64 = 10_000_000;
const DETAILED_STEPS_MAX: u64 = 300_000;
/// Bytes of text that count as one more value, and what a pattern costs for each.
const TEXT_BYTES: usize = 16;
const PATTERN_STEPS: u64 = 64;
/// `unevaluatedProperties` and `unevaluatedItems` look again at what stands beside them.
const UNEVALUATED_FACTOR: u64 = 4;

/// The steps of a schema for each node of a value, by the depth of the value.
#[derive(Debug)]
pub(super) struct Costs(Vec<u64>);

impl Costs {
    pub(super) fn of(schema: &Value) -> Result<Self, Fault> {
        let mut subschemas = Subschemas { root: schema, found: BTreeMap::new(), patterns: 0 };
        subschemas.find(schema)?;
        let mut by_depth = Vec::with_capacity(DEPTH_MAX + 1);
        let mut below = BTreeMap::new();
        for _ in 0..=DEPTH_MAX {
            let mut known = BTreeMap::new();
            for id in subschemas.found.keys() {
                subschemas.cost(*id, &below, &mut known, 0)?;
            }
            by_depth.push(known[&id_of(schema)].steps);
            below = known;
        }
        Ok(Self(by_depth))
    }

    /// Whether a check of this value may collect what it finds. None: it may not begin.
    pub(super) fn permit(&self, value: &Value) -> Option<bool> {
        let (depth, size) = measure(value);
        let steps = self.0.get(depth)?.saturating_mul(size as u64);
        (steps <= STEPS_MAX).then_some(steps <= DETAILED_STEPS_MAX)
    }
}

/// The depth of a value, and its size in nodes, of which long texts are several.
fn measure(value: &Value) -> (usize, usize) {
    let text = |text: &str| 1 + text.len() / TEXT_BYTES;
    let within = |parts: &mut dyn Iterator<Item = (&str, &Value)>| {
        parts.fold((0, 1), |(depth, size): (usize, usize), (name, part)| {
            let (part_depth, part_size) = measure(part);
            (depth.max(1 + part_depth), size + part_size + name.len() / TEXT_BYTES)
        })
    };
    match value {
        Value::String(value) => (0, text(value)),
        Value::Array(items) => within(&mut items.iter().map(|item| ("", item))),
        Value::Object(fields) => within(&mut fields.iter().map(|(name, field)| (name.as_str(), field))),
        _ => (0, 1),
    }
}

/// A subschema is known by where it stands in memory.
type Id = usize;

fn id_of(schema: &Value) -> Id {
    ptr::from_ref(schema) as usize
}

/// What a subschema leads to.
#[derive(Debug, Default)]
struct Parts {
    own: u64,
    /// Applied to the same value.
    beside: Vec<Id>,
    is_unevaluated: bool,
    /// Applied to what is in the value: all of them, and of each group at most one.
    within: Vec<Id>,
    groups: Vec<Vec<Id>>,
}

/// What a subschema takes.
#[derive(Clone, Copy, Debug, Default)]
struct Cost {
    steps: u64,
    /// The longest chain of subschemas from here that are applied to the same value.
    chain: usize,
}

/// All subschemas that a schema leads to.
struct Subschemas<'a> {
    root: &'a Value,
    found: BTreeMap<Id, Parts>,
    patterns: usize,
}

impl<'a> Subschemas<'a> {
    /// Finds what a schema leads to. What is not of the right form is left to the validator, which refuses it.
    fn find(&mut self, schema: &'a Value) -> Result<(), Fault> {
        let mut waiting = vec![schema];
        let mut seen = BTreeSet::from([id_of(schema)]);
        while let Some(schema) = waiting.pop() {
            let mut next = Vec::new();
            let parts = match schema {
                Value::Object(keywords) => self.parts(keywords, ptr::eq(schema, self.root), &mut next)?,
                _ => Parts { own: 1, ..Parts::default() },
            };
            self.found.insert(id_of(schema), parts);
            if seen.len() > SUBSCHEMAS_MAX {
                return Err(Fault::whole(format!("a schema has at most {SUBSCHEMAS_MAX} subschemas")));
            }
            waiting.extend(next.into_iter().filter(|part| seen.insert(id_of(part))));
        }
        if self.patterns > PATTERNS_MAX {
            return Err(Fault::whole(format!("a schema has at most {PATTERNS_MAX} patterns")));
        }
        Ok(())
    }

    fn parts(
        &mut self,
        keywords: &'a Map<String, Value>,
        is_root: bool,
        next: &mut Vec<&'a Value>,
    ) -> Result<Parts, Fault> {
        let mut parts = Parts { own: 1 + keywords.len() as u64, ..Parts::default() };
        let mut add = |schema: &'a Value| {
            next.push(schema);
            id_of(schema)
        };
        for (keyword, value) in keywords {
            match (keyword.as_str(), value) {
                ("$id" | "$schema", _) => check_identity(keyword, value, is_root)?,
                ("$dynamicRef" | "$recursiveRef", _) => {
                    return Err(Fault::whole(format!("{keyword} is not supported; use $ref")));
                }
                ("$ref", _) => parts.beside.push(add(self.target(value)?)),
                ("allOf" | "anyOf" | "oneOf", Value::Array(list)) => {
                    parts.beside.extend(list.iter().map(&mut add));
                }
                ("not" | "if" | "then" | "else", schema) => parts.beside.push(add(schema)),
                ("dependentSchemas" | "dependencies", Value::Object(map)) => {
                    parts.beside.extend(map.values().map(&mut add));
                }
                ("patternProperties", Value::Object(map)) => {
                    self.patterns += map.len();
                    parts.own += PATTERN_STEPS * map.len() as u64;
                    parts.within.extend(map.values().map(&mut add));
                }
                ("propertyNames" | "contains", schema) => parts.within.push(add(schema)),
                ("unevaluatedProperties" | "unevaluatedItems", schema) => {
                    parts.is_unevaluated = true;
                    parts.within.push(add(schema));
                }
                ("pattern", _) => {
                    self.patterns += 1;
                    parts.own += PATTERN_STEPS;
                }
                // Not applied from here. A reference may lead to what is within.
                ("$defs" | "definitions", Value::Object(map)) => {
                    map.values().for_each(|schema| _ = add(schema));
                }
                ("contentSchema", schema) => _ = add(schema),
                ("enum", Value::Array(list)) => parts.own += list.len() as u64,
                _ => {}
            }
        }
        // A field is one of `properties` or an additional one, an item one of `prefixItems` or a further one.
        for [one_of, other] in [["properties", "additionalProperties"], ["prefixItems", "items"]] {
            let mut group: Vec<Id> = match keywords.get(one_of) {
                Some(Value::Object(map)) => map.values().map(&mut add).collect(),
                Some(Value::Array(list)) => list.iter().map(&mut add).collect(),
                _ => Vec::new(),
            };
            group.extend(keywords.get(other).map(&mut add));
            parts.groups.push(group);
        }
        Ok(parts)
    }

    /// What a reference leads to, which has to be in the same document.
    fn target(&self, reference: &Value) -> Result<&'a Value, Fault> {
        let text = reference.as_str().unwrap_or_default();
        let outside =
            || Fault::whole(format!("$ref is \"{text}\", permitted: # and #/…, within this schema"));
        let pointer = text.strip_prefix('#').ok_or_else(outside)?;
        if pointer.contains('%') || !(pointer.is_empty() || pointer.starts_with('/')) {
            return Err(outside());
        }
        let nothing = || Fault::whole(format!("$ref is \"{text}\", and there is nothing"));
        self.root.pointer(pointer).ok_or_else(nothing)
    }

    /// What a subschema takes for each node of a value, if those below it take `below`. `chain` subschemas that are
    /// applied to the same value lead to it.
    fn cost(
        &self,
        id: Id,
        below: &BTreeMap<Id, Cost>,
        known: &mut BTreeMap<Id, Cost>,
        chain: usize,
    ) -> Result<Cost, Fault> {
        if let Some(cost) = known.get(&id) {
            return Ok(*cost);
        }
        let too_long = || {
            let error =
                format!("a schema uses itself for the same value, or nests more than {CHAIN_MAX} times");
            Err(Fault::whole(error))
        };
        if chain > CHAIN_MAX {
            return too_long();
        }
        let parts = &self.found[&id];
        let mut beside = Cost::default();
        for part in &parts.beside {
            let cost = self.cost(*part, below, known, chain + 1)?;
            beside.steps = beside.steps.saturating_add(cost.steps);
            beside.chain = beside.chain.max(1 + cost.chain);
        }
        if beside.chain > CHAIN_MAX {
            return too_long();
        }
        if parts.is_unevaluated {
            beside.steps = beside.steps.saturating_mul(UNEVALUATED_FACTOR);
        }
        let of = |id: &Id| below.get(id).map_or(0, |cost| cost.steps);
        let groups = parts.groups.iter().map(|group| group.iter().map(of).max().unwrap_or_default());
        let within = parts.within.iter().map(of).chain(groups).fold(0, u64::saturating_add);
        let steps = parts.own.saturating_add(beside.steps).saturating_add(within);
        let cost = Cost { steps, ..beside };
        known.insert(id, cost);
        Ok(cost)
    }
}

/// A name of the whole document changes nothing. Within it, references would mean something else.
fn check_identity(keyword: &str, value: &Value, is_root: bool) -> Result<(), Fault> {
    const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";
    let is_draft = || value.as_str().is_some_and(|text| text.trim_end_matches('#') == DRAFT);
    if keyword == "$schema" && !is_draft() {
        return Err(Fault::whole(format!("$schema is {value}, permitted: \"{DRAFT}\"")));
    }
    if is_root { Ok(()) } else { Err(Fault::whole(format!("{keyword} is permitted at the top alone"))) }
}
