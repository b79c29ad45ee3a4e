//! JSON Schemas of Rust types beside their values: put once, and no part of what they describe.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures_core::Stream;
use schemars::JsonSchema;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tidings::live::{LiveBuilder, SCHEMA_OF_FIELDS};
use tidings::sim::{Sim, SimNode};
use tidings::{Live, MapEvent};
use tidings_proptest::ms;

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
struct App {
    pool: u32,
    mode: Mode,
    hosts: Vec<Host>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind")]
enum Mode {
    Fast { level: u8 },
    Safe { level: u8, copies: u8 },
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
struct Host {
    name: String,
}

type Hosts = BTreeMap<String, Host>;

fn stored(node: &SimNode, key: &str) -> Value {
    serde_json::from_slice(node.get(key).expect("it is there").value()).expect("it is JSON")
}

/// How often a keyword stands somewhere in a schema.
fn count(schema: &Value, keyword: &str) -> usize {
    match schema {
        Value::Object(fields) => {
            let here = usize::from(fields.contains_key(keyword));
            here + fields.values().map(|field| count(field, keyword)).sum::<usize>()
        }
        Value::Array(items) => items.iter().map(|item| count(item, keyword)).sum(),
        _ => 0,
    }
}

/// Starts a live value; the node has caught up, or does within ten seconds.
fn started<T: DeserializeOwned + Send + Sync + 'static>(
    sim: &mut Sim,
    builder: LiveBuilder<T, SimNode>,
) -> Live<T> {
    let (given, taken) = std::sync::mpsc::channel();
    sim.spawn(async move { _ = given.send(builder.start().await) });
    sim.run_for(ms(10_000));
    taken.recv().unwrap().unwrap()
}

/// Puts the schema of a live value and restarts the node, without a disk, so often. Returns the concurrent values that
/// are left, at the node and at the other one.
fn concurrent_schemas(mut sim: Sim, restarts: usize) -> [usize; 2] {
    let mut live = None;
    for _ in 0..restarts {
        sim.crash(0);
        sim.run_for(ms(10_000));
        sim.restart(0);
        let builder = Live::<Hosts>::builder(&sim.node(0), "hosts/").put_schema();
        live = Some(started(&mut sim, builder));
    }
    drop(live);
    [0, 1].map(|i| sim.node(i).get("hosts/$schema").expect("it was put").conflicts().count())
}

#[test]
fn restarts_without_a_disk_leave_one_schema() {
    assert_eq!(concurrent_schemas(Sim::new(1).nodes(2), 20), [0, 0]);
    // The node has no seeds, so that it cannot know that there is somebody to catch up with.
    assert_eq!(concurrent_schemas(Sim::new(1).seeds(&[0]).nodes(2), 20), [0, 0]);
}

#[test]
fn schemas_put_on_both_sides_become_one() {
    let mut sim = Sim::new(1).nodes(4);
    sim.run_for(ms(5_000));
    sim.partition(&[0, 1], &[2, 3]);
    let builder = |sim: &Sim, i: usize| Live::<Hosts>::builder(&sim.node(i), "hosts/").put_schema();
    let lives: Vec<_> = (0..4)
        .map(|i| {
            let builder = builder(&sim, i);
            started(&mut sim, builder)
        })
        .collect();
    assert_ne!(
        sim.node(0).get("hosts/$schema").unwrap().stamp(),
        sim.node(2).get("hosts/$schema").unwrap().stamp()
    );
    sim.heal();
    sim.assert_converged();
    sim.run_for(ms(5_000));
    assert_eq!(sim.node(0).get("hosts/$schema").unwrap().conflicts().count(), 0);
    assert!(lives.iter().all(|live| live.rejected().is_empty()));
}

#[test]
fn map_puts_its_schema_once_and_does_not_list_it() {
    let node = Sim::new(1).nodes(1).node(0);
    let map = node.map::<Host>("hosts/");
    let mut watch = map.watch();
    let receipt = map.put_schema().unwrap().expect("it was not there");
    assert_eq!(map.put_schema().unwrap().map(|_| ()), None);
    assert_eq!(node.get("hosts/$schema").unwrap().stamp(), receipt.stamp().unwrap());
    let schema = stored(&node, "hosts/$schema");
    assert_eq!(
        (&schema["required"], &schema["$schema"]),
        (&json!(["name"]), &json!("https://json-schema.org/draft/2020-12/schema"))
    );
    let host = Host { name: "a".to_owned() };
    map.put("one", &host).unwrap();
    node.put("hosts/within/$schema", "{}").unwrap();
    assert_eq!(map.keys().collect::<Vec<_>>(), ["one"]);
    assert_eq!(map.iter().map(|row| row.unwrap().0).collect::<Vec<_>>(), ["one"]);
    node.delete("hosts/within/$schema").unwrap();
    let mut events = Vec::new();
    while let Poll::Ready(Some(event)) =
        Pin::new(&mut watch).poll_next(&mut Context::from_waker(Waker::noop()))
    {
        events.push(event);
    }
    let put = |event| match event {
        MapEvent::Put { key, value, .. } => Some((key, value)),
        event => (event != MapEvent::Current).then(|| panic!("{event:?}")),
    };
    let puts: Vec<_> = events.into_iter().filter_map(put).collect();
    assert_eq!(puts, [("one".to_owned(), host.into())]);
}

#[test]
fn live_value_puts_what_its_parts_satisfy_and_does_not_read_it() {
    let mut sim = Sim::new(1).nodes(1);
    let node = sim.node(0);
    let builder = |exact: bool| -> LiveBuilder<App, SimNode> {
        let builder = Live::builder(&node, if exact { "whole" } else { "app/" });
        if exact { builder.exact() } else { builder }
    };
    let app = App { pool: 1, mode: Mode::Fast { level: 1 }, hosts: Vec::new() };
    for (key, value) in [("pool", "1"), ("mode", r#"{"kind":"Fast","level":1}"#), ("hosts", "[]")] {
        node.put(format!("app/{key}"), value).unwrap();
    }
    let live = started(&mut sim, builder(false).put_schema());
    assert!(node.get("whole$schema").is_none());
    node.put("whole", serde_json::to_vec(&app).unwrap()).unwrap();
    let whole = started(&mut sim, builder(true).put_schema());
    let (of_fields, of_whole) = (stored(&node, "app/$schema"), stored(&node, "whole$schema"));
    assert_eq!((&of_fields[SCHEMA_OF_FIELDS], &of_whole[SCHEMA_OF_FIELDS]), (&json!(true), &Value::Null));
    assert_eq!((count(&of_fields, "required"), count(&of_fields, "oneOf")), (0, 0));
    assert!(count(&of_whole, "required") > 1 && count(&of_whole, "oneOf") == 1);
    assert_eq!(of_fields["additionalProperties"], json!(false));
    let before = node.get("app/$schema").unwrap().revision();
    _ = started(&mut sim, builder(false).put_schema());
    assert_eq!(node.get("app/$schema").unwrap().revision(), before, "it is put once");

    // The type has no field for the schema, and denies fields that it does not know.
    assert_eq!((&*live.load_full(), &*whole.load_full()), (&app, &app));
    let mut live = live;
    node.put("app/$schema", "{}").unwrap();
    sim.run_for(ms(100));
    assert!(live.rejected().is_empty());
    let next = Pin::new(&mut live).poll_next(&mut Context::from_waker(Waker::noop()));
    assert!(next.is_pending(), "another schema is no other value");
}
