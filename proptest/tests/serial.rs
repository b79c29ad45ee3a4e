//! Public types in formats of serde: what is written is read back, and errors name the field.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tidings::core::Batch;
use tidings::flags;
use tidings::sim::Sim;
use tidings::{
    Config, Durability, Entry, Leader, MapEvent, Member, MemberEvent, NodeEvent, OnCorruption, OnlyIf,
    PutOptions, Quorum, ReplicaEvent, Revision, RunId, Stamp, Status, WatchEvent, WatchOptions,
};

fn span() -> impl Strategy<Value = Duration> {
    prop_oneof![any::<Duration>(), (0..100_000_u64).prop_map(Duration::from_millis), Just(Duration::ZERO)]
}

prop_compose! {
    fn config()(
        spans in prop::array::uniform10(span()),
        sizes in prop::array::uniform5(any::<usize>()),
        interval in prop::option::of(span()),
        rejoins in any::<bool>(),
        voters in prop::collection::vec(".{0,8}", 0..4),
    ) -> Config {
        let mut config = Config::wan();
        [
            config.sync_interval, config.clock_skew_max, config.sync_timeout, config.probe_interval,
            config.probe_timeout, config.suspicion_time, config.forget_after, config.scrub_interval,
            config.lease_time, config.lease_time_max,
        ] = spans;
        [
            config.value_bytes_max, config.removals_max, config.mesh_members_max, config.lag_bytes_max,
            config.store_bytes_max,
        ] = sizes;
        config.durability = interval.map_or(Durability::Immediate, Durability::Interval);
        config.on_corruption = if rejoins { OnCorruption::Rejoin } else { OnCorruption::Refuse };
        config.voters = voters;
        config
    }
}

/// What is read back from the text of a value.
fn read_back<T: Serialize + DeserializeOwned>(value: &T) -> T {
    let text = serde_json::to_string(value).expect("it can be written");
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"))
}

proptest! {
    #[test]
    fn config_is_read_back_as_it_was_written(config in config()) {
        prop_assert_eq!(read_back(&config), config);
    }

    #[test]
    fn stamps_runs_and_revisions_are_read_back(clock in any::<u64>(), origin in any::<u64>()) {
        let text = format!("{clock:016x}-{origin:016x}");
        let stamp: Stamp = text.parse().expect("it has the form");
        let revision: Revision = text.parse().expect("it has the form");
        prop_assert_eq!(serde_json::to_value(stamp).expect("text"), Value::from(text));
        prop_assert_eq!(read_back(&stamp), stamp);
        prop_assert_eq!(read_back(&revision), revision);
        prop_assert_eq!(read_back(&RunId::new(origin)), RunId::new(origin));
    }
}

/// The error of a config with this field.
fn refused(field: &str, value: &Value) -> String {
    serde_json::from_value::<Config>(json!({ field: value })).expect_err("it is refused").to_string()
}

#[test]
fn wrong_config_field_is_named_with_what_it_has_to_be() {
    let error = refused("probe_intervall", &json!("2s"));
    assert!(
        error.contains("unknown field `probe_intervall`") && error.contains("`probe_interval`"),
        "{error}"
    );
    let error = refused("probe_interval", &json!("soon"));
    assert!(error.starts_with("probe_interval: ") && error.contains("such as \"500ms\""), "{error}");
    let error = refused("probe_interval", &json!(2));
    assert!(error.starts_with("probe_interval: ") && error.contains("such as \"500ms\""), "{error}");
    let error = refused("store_bytes_max", &json!(-1));
    assert!(error.starts_with("store_bytes_max: "), "{error}");
    let error = refused("durability", &json!({ "interval": "x" }));
    assert!(error.starts_with("durability.interval: "), "{error}");
    let error = refused("voters", &json!(["a", 1]));
    assert!(error.starts_with("voters[1]: "), "{error}");
}

#[test]
fn missing_config_fields_are_as_in_lan_and_ranges_are_checked() {
    let read = serde_json::from_str::<Config>("{}").expect("nothing is needed");
    assert_eq!(read, Config::lan());
    let out =
        serde_json::from_str::<Config>(r#"{ "lease_time": "1 day" }"#).expect("the range is not checked");
    let error = out.check().unwrap_err();
    assert_eq!((error.field, error.range), ("lease_time", "100 ms to lease_time_max"));
}

/// Asserts that a value is written as this, and that reading it and writing it again gives the same.
fn is_written_as<T: Serialize + DeserializeOwned>(value: &T, expected: &Value) {
    let written = serde_json::to_value(value).expect("it can be written");
    assert_eq!(&written, expected);
    let again: T = serde_json::from_value(written).expect("it can be read");
    assert_eq!(&serde_json::to_value(again).expect("it can be written"), expected);
}

#[test]
fn public_types_have_the_documented_forms() {
    let mut member = Member::new("a", RunId::new(255), ([127, 0, 0, 1], 7_400).into());
    member.since += Duration::from_secs(1);
    member.rtt = Some(Duration::from_micros(250));
    let form = json!({
        "name": "a", "run": "00000000000000ff", "addr": "127.0.0.1:7400", "state": "alive",
        "since": "1970-01-01T00:00:01Z", "app_version": "", "meta": {}, "meta_version": 0, "rtt": "250us",
    });
    is_written_as(&member, &form);
    is_written_as(&MemberEvent::Joined(member.clone()), &json!({ "joined": form }));
    is_written_as(
        &ReplicaEvent::ClockInDoubt { off: Duration::from_secs(90) },
        &json!({ "clock_in_doubt": { "off": "1m 30s" } }),
    );
    is_written_as(&OnlyIf::Absent, &json!("absent"));
    is_written_as(&Quorum::Count(2), &json!({ "count": 2 }));
    is_written_as(
        &PutOptions::new().ttl(Duration::from_secs(60)),
        &json!({ "ttl": "1m", "is_ephemeral": false, "only_if": null }),
    );
    is_written_as(
        &WatchOptions::new().exact(),
        &json!({ "is_exact": true, "from": null, "skips_current": false }),
    );
    is_written_as(
        &Batch::new().put_with("k", "v", PutOptions::new().ephemeral()).delete("l"),
        &json!({ "writes": [
        { "put": { "key": "k", "value": "dg==", "options": { "ttl": null, "is_ephemeral": true, "only_if": null } } },
        { "delete": { "key": "l", "only_if": null } },
    ], "unchanged": [] }),
    );
    let mut config = Config::lan();
    config.value_bytes_max = 0;
    let error = config.check().unwrap_err();
    assert_eq!(
        serde_json::to_value(error).expect("it can be written"),
        json!({ "field": "value_bytes_max", "value": "0", "range": "1 to 16777216" }),
    );
    let (stamp, revision) =
        (Stamp::default(), format!("{0:016x}-{0:016x}", 1).parse::<Revision>().expect("it has the form"));
    let put = MapEvent::Put { key: "k".to_owned(), value: Arc::new(7), stamp, revision };
    assert_eq!(
        serde_json::to_value(put).expect("it can be written"),
        json!({ "put": { "key": "k", "value": 7, "stamp": stamp.to_string(), "revision": revision.to_string() } })
    );
    let event = NodeEvent::Store(ReplicaEvent::Damaged);
    assert_eq!(serde_json::to_value(event).expect("it can be written"), json!({ "store": "damaged" }));
}

#[test]
fn evaluations_of_flags_are_written_whole() {
    let file = r#"{"metadata": {"team": "a"}, "flags": {"f": {"state": "ENABLED", "variants": {"on": true}, "defaultVariant": "on"}}}"#;
    let snapshot = flags::Snapshot::from_json(file).expect("it is a file of flags").0;
    let anonymous = flags::Context::anonymous();
    let details = serde_json::to_value(snapshot.details("f", false, &anonymous)).expect("it can be written");
    assert_eq!(
        details,
        json!({ "value": true, "variant": "on", "reason": "STATIC", "metadata": { "team": "a" }, "error": null }),
    );
    let missing = serde_json::to_value(snapshot.details("g", 1_i64, &anonymous)).expect("it can be written");
    assert_eq!((&missing["reason"], &missing["variant"]), (&json!("ERROR"), &Value::Null));
    assert_eq!(missing["error"]["not_found"]["flag"], "g");
    let changed = flags::FlagsEvent::Changed(vec!["f".into()]);
    assert_eq!(serde_json::to_value(changed).expect("it can be written"), json!({ "changed": ["f"] }));
    let fault = flags::check("flags/default/a", b"{}").expect_err("it is malformed");
    let form = serde_json::to_value(&fault).expect("it can be written");
    assert_eq!((&form["flag"], &form["is_malformed"]), (&json!("a"), &json!(true)));
    assert!(fault.to_string().ends_with(form["error"].as_str().expect("text")), "{form}");
}

/// Public types that have no form: errors, which tell what to do to whoever called (a value of another type has them as
/// text), and what stays within one process.
const WITHOUT_FORM: [&str; 23] = [
    "core::Input",
    "core::Output",
    "core::SavedError",
    "core::Setup",
    "core::Time",
    "live::LiveError",
    "live::WholeLook",
    "members::ForgetError",
    "members::SeedError",
    "settings::ReconfigureError",
    "settings::SetSettingsError",
    "sim::Disk",
    "sim::DiskFault",
    "sim::PlannedFault",
    "sim::SimFault",
    "voters::SetVotersError",
    "ElectionError",
    "Error",
    "SecurityError",
    "SnapshotError",
    "StartError",
    "WaitError",
    "WriteError",
];

/// Public enums and structs with public fields in the listing of the surface that implement no `Serialize`.
fn without_form(surface: &str) -> BTreeSet<String> {
    let has_impl = |name: &str| {
        let implements = |line: &str| line.starts_with("impl") && line.contains("Serialize for ");
        surface.lines().any(|line| {
            let of = line.rsplit("Serialize for ").next().unwrap_or_default();
            implements(line) && of.split([';', '<', ' ']).next() == Some(name)
        })
    };
    let (mut module, mut derives, mut found) = ("", "", BTreeSet::new());
    let lines: Vec<&str> = surface.lines().collect();
    for (at, line) in lines.iter().enumerate() {
        if let Some(path) = line.strip_prefix("# tidings::") {
            module = path;
        } else if line.starts_with("#[derive") {
            derives = line;
        } else if let Some(item) = line.strip_prefix("pub enum ").or_else(|| line.strip_prefix("pub struct "))
        {
            let name = item.split([' ', '<', '(', ';']).next().unwrap_or_default();
            let is_data = line.starts_with("pub enum") || lines[at + 1].starts_with("    pub ");
            if is_data && !derives.contains("Serialize") && !has_impl(name) {
                found.insert(format!("{module}{name}"));
            }
        } else if line.is_empty() {
            derives = "";
        }
    }
    found
}

#[test]
fn public_data_types_have_a_form() {
    let listing = include_str!("../../docs/surface.txt");
    let expected: BTreeSet<String> = WITHOUT_FORM.into_iter().map(str::to_owned).collect();
    assert_eq!(without_form(listing), expected);
    // The control.
    let more = "# tidings::\n\n#[derive(Clone)]\npub struct Plain {\n    pub field: u8,\n}\n";
    assert_eq!(without_form(more), BTreeSet::from(["Plain".to_owned()]));
}

#[test]
fn status_and_entries_of_a_node_are_written_whole() {
    let mut sim = Sim::new(1).nodes(2);
    sim.partition(&[0], &[1]);
    sim.node(0).put("k", "one").expect("it can be written");
    sim.node(1).put_with("k", [0xff], PutOptions::new().ttl(Duration::MAX)).expect("it can be written");
    sim.heal();
    sim.assert_converged();
    let status = sim.node(0).status();
    assert_eq!(read_back::<Status>(&status), status);
    let entry: Entry = sim.node(0).get("k").expect("it is there");
    let form = serde_json::to_value(&entry).expect("it can be written");
    let values = [&form["value"], &form["conflicts"][0]["value"]];
    assert!(values.contains(&&json!("b25l")) && values.contains(&&json!("/w==")), "{form}");
    assert_eq!((&form["key"], &form["stamp"]), (&json!("k"), &json!(entry.stamp())));
    let put = serde_json::to_value(WatchEvent::Put(entry)).expect("it can be written");
    assert_eq!(put, json!({ "put": form }));
    let leader: Leader =
        serde_json::from_value(json!({ "token": form["stamp"], "value": "dg==" })).expect("its form");
    assert_eq!(leader.value, b"v");
}
