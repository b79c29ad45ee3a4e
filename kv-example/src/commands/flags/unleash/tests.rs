//! Translations, and what they evaluate to.

#![expect(clippy::needless_pass_by_value, reason = "files are written down where they are used")]

use serde_json::{Value, json};
use tidings::flags::{Context, FlagValue, Flags};
use tidings::sim::Sim;

use super::{Translation, translate};
use crate::flags::change;

/// An export of one environment: a feature with these strategies and variants.
fn export(strategies: Value, variants: Value) -> Value {
    let mut strategies = strategies;
    strategies.as_array_mut().unwrap().iter_mut().for_each(|strategy| strategy["featureName"] = json!("f"));
    json!({
        "features": [{ "name": "f", "type": "release", "project": "shop", "description": "new", "stale": true,
                       "impressionData": true, "archived": false }],
        "featureStrategies": strategies,
        "featureEnvironments": [{ "featureName": "f", "environment": "production", "enabled": true,
                                  "variants": variants, "name": "f" }],
        "featureTags": [{ "featureName": "f", "tagType": "simple", "tagValue": "a" }],
        "segments": [{ "id": 1, "name": "staff" }], "contextFields": [], "tagTypes": []
    })
}

fn lost(translation: &Translation) -> Vec<&str> {
    translation.notes.iter().filter(|note| note.is_lost).map(|note| note.text.as_str()).collect()
}

/// What users get: each is given by a key and its attributes.
fn answers(translation: &Translation, flag: &str, users: &[(&str, &[(&str, FlagValue)])]) -> Vec<Value> {
    let mut sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    let flags = Flags::new(&node, "flags/");
    for (name, definition) in &translation.flags {
        assert_eq!(change::faults(name, definition, None), [], "{definition}");
        node.put(format!("flags/default/{name}"), definition.to_string().as_bytes()).unwrap();
    }
    sim.run_for(std::time::Duration::from_millis(10));
    let answer = |(key, attributes): &(&str, &[(&str, FlagValue)])| {
        let context = Context::new(*key);
        let context =
            attributes.iter().fold(context, |context, (name, value)| context.with(*name, value.clone()));
        let told = flags.details(flag, None::<FlagValue>, &context);
        assert_eq!(told.error, None);
        told.value.map_or(Value::Null, |value| serde_json::from_str(&value.to_string()).unwrap())
    };
    users.iter().map(answer).collect()
}

fn constraint(name: &str, operator: &str, value: &str) -> Value {
    json!({ "contextName": name, "operator": operator, "values": [value], "value": value, "inverted": false,
            "caseInsensitive": false })
}

fn strategy(name: &str, parameters: Value, constraints: Vec<Value>) -> Value {
    json!({ "id": "x", "name": name, "parameters": parameters, "constraints": constraints, "segments": [] })
}

#[test]
fn any_strategy_turns_a_feature_on() {
    let staff = constraint("email", "STR_ENDS_WITH", "@example.com");
    let file = export(
        json!([
            strategy("default", json!({}), vec![staff]),
            strategy("userWithId", json!({ "userIds": "u1, u2" }), vec![])
        ]),
        json!([]),
    );
    let translation = translate(&file, None).unwrap();
    assert_eq!(lost(&translation), [""; 0]);
    let metadata = json!({ "description": "new", "project": "shop", "stale": true, "tag.simple": "a", "type": "release" });
    assert_eq!(translation.flags["f"]["metadata"], metadata);
    let users: [(&str, &[(&str, FlagValue)]); 4] =
        [("u0", &[("email", "ann@example.com".into())]), ("u2", &[]), ("u3", &[]), ("", &[])];
    assert_eq!(answers(&translation, "f", &users), [json!(true), json!(true), json!(false), json!(false)]);
}

#[test]
fn constraints_evaluate_as_in_unleash() {
    let yes: [(&str, &str, &str, FlagValue, FlagValue); 14] = [
        ("country", "IN", "de", "de".into(), "at".into()),
        ("country", "NOT_IN", "de", "at".into(), "de".into()),
        ("name", "STR_CONTAINS", "nn", "ann".into(), "bob".into()),
        ("name", "STR_STARTS_WITH", "a", "ann".into(), "bob".into()),
        ("age", "NUM_GTE", "18", 18.into(), 17.into()),
        ("age", "NUM_LT", "18", 17.into(), 18.into()),
        ("age", "NUM_EQ", "18", 18.into(), 19.into()),
        ("age", "NUM_EQ", "0", 0.into(), 1.into()),
        ("age", "NUM_LT", "18", 0.into(), 18.into()),
        ("age", "NUM_LTE", "0", 0.into(), 1.into()),
        ("age", "NUM_GT", "-1", 0.into(), (-1).into()),
        ("member", "NUM_LT", "1", false.into(), true.into()),
        ("version", "SEMVER_GT", "1.2.0", "1.10.0".into(), "1.2.0".into()),
        ("version", "SEMVER_LT", "1.2.0", "1.1.9".into(), "1.2.0".into()),
    ];
    for (name, operator, value, good, bad) in yes {
        for inverted in [false, true] {
            let mut constraint = constraint(name, operator, value);
            constraint["inverted"] = json!(inverted);
            let file = export(json!([strategy("default", json!({}), vec![constraint])]), json!([]));
            let translation = translate(&file, None).unwrap();
            let told =
                answers(&translation, "f", &[("u", &[(name, good.clone())]), ("u", &[(name, bad.clone())])]);
            assert_eq!(told, [json!(!inverted), json!(inverted)], "{operator} {inverted}");
            let is_negative = (operator == "NOT_IN") != inverted;
            assert_eq!(
                answers(&translation, "f", &[("u", &[])]),
                [json!(is_negative)],
                "{operator}, no attribute"
            );
        }
    }
    for (operator, date, on) in
        [("DATE_AFTER", "1970-01-01T00:00:00Z", true), ("DATE_BEFORE", "1970-01-01T00:00:00Z", false)]
    {
        let constraint = constraint("currentTime", operator, date);
        let file = export(json!([strategy("default", json!({}), vec![constraint])]), json!([]));
        assert_eq!(answers(&translate(&file, None).unwrap(), "f", &[("u", &[])]), [json!(on)], "{operator}");
    }
}

#[test]
fn versions_that_unleash_does_not_read_fit_no_constraint() {
    let with = |version: FlagValue| [("version", version)];
    for inverted in [false, true] {
        let mut greater = constraint("version", "SEMVER_GT", "1.0.0");
        greater["inverted"] = json!(inverted);
        let file = export(json!([strategy("default", json!({}), vec![greater])]), json!([]));
        let translation = translate(&file, None).unwrap();
        let on = |version: FlagValue| answers(&translation, "f", &[("u", &with(version))])[0] == true;
        for version in ["1.2", "2", "v1.2.0", "V1.2.0", "v2", "", "new"] {
            assert_eq!(on(version.into()), inverted, "{version}");
        }
        assert_eq!((on(1.2.into()), on(2.into())), (inverted, inverted), "numbers");
        for version in ["1.2.0", "1.2.0-rc.1", "1.2.0+build", "1.2.0-v"] {
            assert_eq!(on(version.into()), !inverted, "{version}");
        }
    }
}

#[test]
fn rollout_gives_its_share() {
    let share = strategy(
        "flexibleRollout",
        json!({ "rollout": "30", "stickiness": "default", "groupId": "g" }),
        vec![],
    );
    let translation = translate(&export(json!([share]), json!([])), None).unwrap();
    let names: Vec<String> = (0..2_000).map(|user| format!("user-{user}")).collect();
    let users: Vec<(&str, &[(&str, FlagValue)])> =
        names.iter().map(|name| (name.as_str(), &[][..])).collect();
    let on = answers(&translation, "f", &users).iter().filter(|told| **told == true).count();
    assert!((500..700).contains(&on), "{on}");
    assert!(translation.notes.iter().any(|note| note.text.contains("another hash")));
}

#[test]
fn variants_are_a_flag_beside() {
    let variants = json!([
        { "name": "a", "weight": 500, "stickiness": "default", "payload": { "type": "json", "value": "{\"size\": 1}" } },
        { "name": "b", "weight": 500, "stickiness": "default", "payload": { "type": "json", "value": "{\"size\": 2}" } }
    ]);
    let staff = strategy("default", json!({}), vec![constraint("email", "STR_ENDS_WITH", "@example.com")]);
    let translation = translate(&export(json!([staff]), variants), None).unwrap();
    let email = [("email", FlagValue::from("ann@example.com"))];
    let told = answers(&translation, "f-variant", &[("u1", &email), ("u1", &[])]);
    assert!(told[0]["size"].is_number(), "{told:?}");
    assert_eq!(told[1], json!({}));
}

#[test]
fn what_has_no_counterpart_is_told_and_left_out() {
    let case = json!({ "contextName": "email", "operator": "STR_ENDS_WITH", "values": ["@X.com"], "caseInsensitive": true });
    for strategy in [
        strategy("default", json!({}), vec![case]),
        strategy("default", json!({}), vec![constraint("email", "REGEX", "a+")]),
        strategy("flexibleRollout", json!({ "rollout": "30", "stickiness": "random" }), vec![]),
        strategy("flexibleRollout", json!({ "rollout": "many" }), vec![]),
        strategy("remoteAddress", json!({ "IPs": "10.0.0.0/8" }), vec![]),
        strategy("ourOwn", json!({}), vec![]),
        json!({ "name": "default", "parameters": {}, "constraints": [], "segments": [1] }),
    ] {
        let translation = translate(&export(json!([strategy]), json!([])), None).unwrap();
        assert!(!lost(&translation).is_empty(), "{strategy}");
        assert_eq!(answers(&translation, "f", &[("u", &[])]), [json!(false)], "nobody has it: {strategy}");
    }
    let mut archived = export(json!([]), json!([]));
    archived["features"][0]["archived"] = json!(true);
    let translation = translate(&archived, None).unwrap();
    assert!(translation.flags.is_empty() && lost(&translation).len() == 1);
    let mut depends = export(json!([]), json!([]));
    depends["dependencies"] = json!([{ "feature": "f", "dependencies": [{ "feature": "g" }] }]);
    assert!(translate(&depends, None).unwrap().flags.is_empty());
}

#[test]
fn answers_for_clients_and_older_exports_are_read() {
    let staff = json!([constraint("email", "STR_ENDS_WITH", "@example.com")]);
    let client = json!({ "version": 2, "segments": [{ "id": 1, "constraints": staff }], "features": [
        { "name": "f", "enabled": true, "strategies": [{ "name": "default", "parameters": {}, "segments": [1] }] }] });
    let mut older = export(
        json!([{ "id": "x", "strategyName": "default", "environment": "production" },
        { "id": "y", "strategyName": "default", "environment": "development" }]),
        json!([]),
    );
    older["segments"] = json!([{ "id": 1, "name": "staff", "constraints": staff }]);
    older["featureStrategySegments"] = json!([{ "featureStrategyId": "x", "segmentId": 1 }]);
    let email = [("email", FlagValue::from("ann@example.com"))];
    for file in [client, older.clone()] {
        let translation = translate(&file, None).unwrap();
        assert_eq!(
            answers(&translation, "f", &[("u", &email), ("u", &[])]),
            [json!(true), json!(false)],
            "{file}"
        );
    }
    let rows = older["featureEnvironments"].as_array_mut().unwrap();
    rows.push(json!({ "featureName": "f", "environment": "development", "enabled": false }));
    assert!(translate(&older, None).is_err(), "two environments");
    assert_eq!(translate(&older, Some("development")).unwrap().flags["f"]["state"], "DISABLED");
    assert!(translate(&older, Some("staging")).is_err());
    assert!(translate(&json!({ "flags": {} }), None).is_err());
}

#[test]
fn users_without_the_sticky_attribute_are_in_no_share() {
    for (stickiness, attribute) in [("default", None), ("userId", None), ("company", Some("company"))] {
        let share = strategy("flexibleRollout", json!({ "rollout": "99", "stickiness": stickiness }), vec![]);
        let translation = translate(&export(json!([share]), json!([])), None).unwrap();
        let mut sim = Sim::new(1).nodes(1);
        let node = sim.node(0);
        let flags = Flags::new(&node, "flags/");
        node.put("flags/default/f", translation.flags["f"].to_string().as_bytes()).unwrap();
        sim.run_for(std::time::Duration::from_millis(10));
        assert!(!flags.bool("f", true, &Context::anonymous()), "{stickiness}");
        let on = (0..200).filter(|user| {
            let who = format!("user-{user}");
            let context = match attribute {
                None => Context::new(who.as_str()),
                Some(name) => Context::anonymous().with(name, who.as_str()),
            };
            flags.bool("f", false, &context)
        });
        assert!(on.count() > 180, "the control: {stickiness}");
    }
}

#[test]
fn share_of_all_is_of_users_with_the_sticky_attribute() {
    let flexible = |stickiness: &str| {
        strategy("flexibleRollout", json!({ "rollout": "100", "stickiness": stickiness }), vec![])
    };
    let gradual = |name: &str| strategy(name, json!({ "percentage": "100" }), vec![]);
    for (strategy, attribute) in [
        (flexible("userId"), Some("targetingKey")),
        (flexible("company"), Some("company")),
        (gradual("gradualRolloutUserId"), Some("targetingKey")),
        (gradual("gradualRolloutSessionId"), Some("sessionId")),
        (flexible("default"), None),
        (flexible("random"), None),
        (gradual("gradualRolloutRandom"), None),
    ] {
        let translation = translate(&export(json!([strategy]), json!([])), None).unwrap();
        assert_eq!(lost(&translation), [""; 0]);
        let mut sim = Sim::new(1).nodes(1);
        let node = sim.node(0);
        let flags = Flags::new(&node, "flags/");
        node.put("flags/default/f", translation.flags["f"].to_string().as_bytes()).unwrap();
        sim.run_for(std::time::Duration::from_millis(10));
        let without = Context::anonymous().with("other", "x");
        assert_eq!(flags.bool("f", false, &without), attribute.is_none(), "{strategy}");
        let with = attribute.map_or(Context::anonymous(), |name| Context::anonymous().with(name, "x"));
        assert!(flags.bool("f", false, &with), "the control: {strategy}");
        let empty = attribute.map_or(Context::anonymous(), |name| Context::anonymous().with(name, ""));
        assert_eq!(flags.bool("f", false, &empty), attribute.is_none(), "empty: {strategy}");
    }
}

/// What `/api/admin/features-batch/export` answers, with every table and field that its schema has for features.
fn export_of_one_environment() -> Value {
    json!({
        "features": [
            { "name": "checkout", "description": "the new one", "type": "release", "project": "shop", "stale": false,
              "impressionData": false, "archived": false, "archivedAt": null, "createdAt": "2026-01-05T10:00:00.000Z",
              "lastSeenAt": null, "createdBy": { "id": 1, "name": "ann", "imageUrl": "" } },
            { "name": "old", "type": "release", "project": "shop", "archivedAt": "2026-02-01T10:00:00.000Z" }
        ],
        "featureStrategies": [
            { "name": "flexibleRollout", "id": "7e0", "featureName": "checkout", "title": "a tenth", "disabled": false,
              "parameters": { "groupId": "checkout", "rollout": "10", "stickiness": "default" },
              "constraints": [{ "contextName": "environment", "operator": "NOT_IN", "values": ["staging"],
                                "caseInsensitive": false, "inverted": false }],
              "variants": [{ "name": "blue", "weight": 1000, "weightType": "variable", "stickiness": "default",
                             "payload": { "type": "csv", "value": "1,2" } }],
              "segments": [], "sortOrder": 0, "milestoneId": null },
            { "name": "default", "id": "7e1", "featureName": "checkout", "parameters": {}, "constraints": [],
              "segments": [3], "sortOrder": 1, "variants": [] },
            { "name": "default", "id": "7e2", "featureName": "checkout", "parameters": {}, "constraints": [],
              "segments": [], "sortOrder": 2, "variants": [], "milestoneId": "01J" }
        ],
        "featureEnvironments": [{ "enabled": true, "featureName": "checkout", "environment": "production",
                                  "variants": [], "name": "checkout" }],
        "contextFields": [{ "name": "environment", "description": "", "legalValues": [], "stickiness": false }],
        "featureTags": [{ "featureName": "checkout", "tagType": "team", "tagValue": "web" }],
        "segments": [{ "id": 3, "name": "staff" }],
        "tagTypes": [{ "name": "team", "description": "", "icon": "" }],
        "dependencies": [],
        "links": [{ "feature": "checkout", "links": [{ "url": "https://wiki.example/checkout", "title": "plan" }] }]
    })
}

#[test]
fn export_of_one_environment_loses_nothing_silently() {
    let translation = translate(&export_of_one_environment(), None).unwrap();
    for (is_lost, told) in [
        (true, "it is archived"),
        (true, "the file has no conditions of the segment 3"),
        (true, "a milestone of a release plan"),
        (false, "has the title \"a tenth\""),
        (false, "programs have to give the attribute environment"),
        (false, "by another hash than in Unleash"),
        (false, "users without a targeting key are in no share"),
        (false, "its variants are the flag \"checkout-variant\""),
        (false, "its links are left out"),
    ] {
        let is_told = |note: &super::Note| note.is_lost == is_lost && note.text.contains(told);
        assert!(translation.notes.iter().any(is_told), "{told}: {:?}", translation.notes);
    }
    assert_eq!(lost(&translation).len(), 3);
    let flags = &translation.flags;
    assert_eq!(flags.keys().collect::<Vec<_>>(), ["checkout", "checkout-variant"]);
    assert_eq!(flags["checkout-variant"]["variants"]["blue"], "1,2");
    assert_eq!(flags["checkout"]["metadata"]["tag.team"], "web");
    // Nobody has it who is in a part that was left out.
    let names: Vec<String> = (0..1_000).map(|user| format!("user-{user}")).collect();
    let users: Vec<(&str, &[(&str, FlagValue)])> =
        names.iter().map(|name| (name.as_str(), &[][..])).collect();
    let on = answers(&translation, "checkout", &users).iter().filter(|told| **told == true).count();
    assert!((50..150).contains(&on), "{on}");
}
