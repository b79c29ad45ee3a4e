//! The steps of the scenarios.

#![expect(clippy::needless_pass_by_value, reason = "steps are given what their texts hold")]

use std::sync::Arc;

use cucumber::gherkin::Step;
use cucumber::{World, given, then, when};
use tidings::flags::{Context, Details, FlagValue, Metadata, Snapshot};

/// What a scenario has done so far.
#[derive(Debug, Default, World)]
pub(crate) struct FlagWorld {
    pub(crate) flags: Option<Snapshot>,
    kind: String,
    key: String,
    default: String,
    context: Context<'static>,
    told: Option<Told>,
}

/// An evaluation whose value is JSON, whatever its type.
#[derive(Debug)]
struct Told {
    value: FlagValue,
    reason: &'static str,
    code: Option<&'static str>,
    metadata: Metadata,
}

/// A text of a scenario, in which quotes are escaped. Escapes of other characters are no escapes there: the buckets that
/// the scenarios expect are those of the texts as they are written.
fn text(written: &str) -> String {
    written.replace("\\\"", "\"")
}

fn value(kind: &str, written: &str) -> FlagValue {
    match kind {
        "Boolean" => FlagValue::Bool(written.parse().expect("a boolean")),
        "String" => FlagValue::Text(text(written).into()),
        "Integer" => FlagValue::Int(written.parse().expect("an integer")),
        "Float" => FlagValue::Float(written.parse().expect("a number")),
        "Object" => written.parse().or_else(|_| text(written).parse()).expect("JSON"),
        other => panic!("there is no type {other}"),
    }
}

fn told<T>(details: Details<T>, value: impl FnOnce(T) -> FlagValue) -> Told {
    let Details { value: of, reason, metadata, error, .. } = details;
    let code = error.map(|error| error.code());
    Told { value: value(of), reason: reason.name(), code, metadata }
}

#[given("an evaluator")]
#[given("a stable flagd provider")]
#[given(expr = "an option {string} of type {string} with value {string}")]
fn nothing(_world: &mut FlagWorld) {}

#[given(regex = r#"^an? (\w+)-flag with key "([^"]*)" and a (?:fallback|default) value "(.*)"$"#)]
fn flag(world: &mut FlagWorld, kind: String, key: String, default: String) {
    (world.kind, world.key, world.default) = (kind, key, default);
}

#[given(regex = r#"^a context containing a key "([^"]*)", with type "(\w+)" and with value "(.*)"$"#)]
fn attribute(world: &mut FlagWorld, key: String, kind: String, written: String) {
    world.context = std::mem::take(&mut world.context).with(key, value(&kind, &written));
}

#[given(regex = r#"^a context containing a targeting key with value "(.*)"$"#)]
fn targeting_key(world: &mut FlagWorld, key: String) {
    world.context = std::mem::take(&mut world.context).with_targeting_key(key);
}

#[given(
    regex = r#"^a context containing a nested property with outer key "([^"]*)" and inner key "([^"]*)", with value "(.*)"$"#
)]
fn nested(world: &mut FlagWorld, outer: String, inner: String, written: String) {
    let fields = vec![(Arc::from(inner), FlagValue::Text(text(&written).into()))];
    world.context = std::mem::take(&mut world.context).with(outer, FlagValue::Object(fields.into()));
}

#[when("the flag was evaluated with details")]
fn evaluate(world: &mut FlagWorld) {
    let flags = world.flags.as_ref().expect("there are flags");
    let (key, context) = (&*world.key, &world.context);
    let default = value(&world.kind, &world.default);
    world.told = Some(match default {
        FlagValue::Bool(default) => told(flags.details(key, default, context), FlagValue::Bool),
        FlagValue::Text(default) => told(flags.details(key, default, context), FlagValue::Text),
        FlagValue::Int(default) => told(flags.details(key, default, context), FlagValue::Int),
        FlagValue::Float(default) => told(flags.details(key, default, context), FlagValue::Float),
        default => told(flags.details(key, default, context), |value| value),
    });
}

fn answer(world: &FlagWorld) -> &Told {
    world.told.as_ref().expect("the flag was evaluated")
}

#[then(regex = r#"^the resolved details value should be "(.*)"$"#)]
fn value_is(world: &mut FlagWorld, expected: String) {
    assert_eq!(answer(world).value, value(&world.kind, &expected));
}

#[then(regex = r#"^the reason should be "(\w+)"$"#)]
fn reason_is(world: &mut FlagWorld, reason: String) {
    assert_eq!(answer(world).reason, reason);
}

#[then(regex = r#"^the error-code should be "(\w*)"$"#)]
fn code_is(world: &mut FlagWorld, code: String) {
    assert_eq!(answer(world).code.unwrap_or_default(), code);
    assert_eq!(answer(world).reason == "ERROR", !code.is_empty());
}

#[then("the resolved metadata should contain")]
fn metadata_contains(world: &mut FlagWorld, step: &Step) {
    let table = step.table.as_ref().expect("it has a table");
    for row in table.rows.iter().skip(1) {
        assert_eq!(answer(world).metadata.get(&*row[0]), Some(&value(&row[1], &row[2])));
    }
}

/// The version of `fractional` is metadata of the set here, so that it is always there.
#[then("the resolved metadata is empty")]
fn metadata_is_empty(world: &mut FlagWorld) {
    let metadata = &answer(world).metadata;
    assert_eq!(metadata.keys().map(|key| &**key).collect::<Vec<_>>(), ["fractional"]);
}
