//! Who is told what a live value does not apply: the status of its node, its events and its log, each with the writer's
//! name, also when the process of the writer has ended since.

use serde_json::Value;
use tidings::live::{LiveSource, Rejected};
use tidings::sim::Sim;
use tidings::{Live, Map, Node, WatchEvent, WatchOptions};
use tidings_proptest::{LogEvent, LogEvents, ms, nodes};
use tracing::Level;

use crate::{Plain, shorts, started};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn log_names_what_is_not_applied_with_its_writer() {
    let events = LogEvents::keep(|metadata| *metadata.level() <= Level::WARN);
    let a = nodes::start("logs-a", &[]).await;
    let b = nodes::start("logs-b", &[&a]).await;
    let live = Live::<Plain>::builder(&a, "l/").start().await.unwrap();
    b.put("l/x", "no number").unwrap();
    let is_of_a = |event: &LogEvent| {
        event.level == Level::WARN && event.fields.get("live").is_some_and(|live| live == "l/")
    };
    let of_a = || events.of(is_of_a);
    nodes::until(|| !of_a().is_empty()).await;
    let fields = &of_a()[0].fields;
    assert_eq!(
        (&*fields["node"], &*fields["message"]),
        ("logs-a", "value not applied; the last good one stays")
    );
    let reason = &fields["reason"];
    assert!(reason.starts_with("the key \"l/x\" (written by logs-b, stamp "), "{reason}");
    assert_eq!(*reason, live.rejected()[0].to_string());
    // What is as before is told once.
    b.put("l/y", "1").unwrap();
    b.put("l/x", "1").unwrap();
    nodes::until(|| live.load().len() == 2).await;
    assert_eq!(of_a().len(), 1);
    tokio::join!(a.shutdown(), b.shutdown());
}

/// A live value that refuses a number above five in one field.
async fn refusing(node: &Node, field: &'static str) -> Live<Plain> {
    let check = move |plain: &Plain| match plain.get(field) {
        Some(number) if *number > 5 => Err(format!("{field} is over 5")),
        _ => Ok(()),
    };
    Live::<Plain>::builder(node, "t/").validate(check).start().await.expect("acceptable")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_adds_up_live_values_of_one_name_until_they_end() {
    let node = nodes::start("a", &[]).await;
    let (a, b) = (refusing(&node, "a").await, refusing(&node, "b").await);
    let told = || node.status().rejected.get("t/").map_or(0, Vec::len);
    assert_eq!(told(), 0);
    node.put("t/a", "6").unwrap();
    nodes::until(|| told() == 1).await;
    let all: Vec<Rejected> = node.status().rejected.into_values().flatten().collect();
    assert_eq!(shorts(&all), ["t/a by a []"]);
    let status = serde_json::to_value(node.status()).unwrap();
    assert_eq!(status["rejected"]["t/"][0]["error"], "a is over 5");
    let read: tidings::NodeStatus = serde_json::from_value(status).unwrap();
    assert_eq!(read.rejected, node.status().rejected);
    node.put("t/b", "6").unwrap();
    // Each names what has changed since its own last good value.
    nodes::until(|| (a.rejected().len(), b.rejected().len()) == (2, 1) && told() == 3).await;
    // One of them accepts the value again, and the other one keeps its own.
    node.put("t/b", "1").unwrap();
    nodes::until(|| b.rejected().is_empty()).await;
    nodes::until(|| told() == a.rejected().len() && told() > 0).await;
    drop(b);
    node.put("t/c", "1").unwrap();
    nodes::until(|| told() == a.rejected().len()).await;
    assert!(told() > 0);
    drop(a);
    nodes::until(|| node.status().rejected.is_empty()).await;
    node.shutdown().await;
}

/// Two nodes know each other. Node 1 has written `wrong` below `p/`, deleted `gone`, and was started anew since.
fn writer_was_restarted() -> (Sim, Live<Plain>, tidings::Revision) {
    let mut sim = Sim::new(29).seeds(&[0]).nodes_with_disk(3);
    sim.run_for(ms(3_000));
    let (a, b) = (sim.node(0), sim.node(1));
    a.put("gone", "v").unwrap();
    let position = a.get("gone").unwrap().revision();
    b.put("p/good", "1").unwrap();
    sim.run_for(ms(1_000));
    let live = started(Live::<Plain>::builder(&a, "p/"), &mut sim).unwrap();
    b.put("p/wrong", "no number").unwrap();
    b.delete("gone").unwrap();
    sim.run_for(ms(1_000));
    sim.crash(1);
    sim.run_for(ms(1_000));
    sim.restart(1);
    sim.run_for(ms(60_000));
    assert_eq!(sim.node(0).members().iter().filter(|member| member.name == "n1").count(), 1);
    (sim, live, position)
}

fn writer(source: Option<&LiveSource>) -> Option<&str> {
    match source {
        Some(LiveSource::Key { writer, .. }) => writer.name.as_deref(),
        _ => None,
    }
}

#[test]
fn writer_that_was_restarted_keeps_its_name() {
    let (mut sim, live, position) = writer_was_restarted();
    let a = sim.node(0);
    // The value is made anew, and all writers are looked up again.
    a.put("p/other", "2").unwrap();
    sim.run_for(ms(10));
    let rejected = live.rejected();
    assert_eq!((rejected.len(), writer(rejected[0].from.as_ref())), (1, Some("n1")), "{rejected:?}");
    let map: Map<Value, _> = a.map("p/");
    assert_eq!(map.entry("good").unwrap().unwrap().writer.name.as_deref(), Some("n1"));
    let mut watch = a.watch_with("gone", WatchOptions::new().resume_from(position));
    let deleted = watch.try_next();
    let Some(WatchEvent::Delete { stamp: Some(stamp), writer, .. }) = deleted else { panic!("{deleted:?}") };
    assert_eq!(writer.as_deref(), Some("n1"));
    let member = a.member_of(stamp).unwrap();
    assert!(!member.state.is_alive() && member.meta.is_empty(), "{member:?}");
    a.put("p/wrong", "3").unwrap();
    sim.run_for(ms(10));
    assert_eq!(writer_of(&live, "good"), Some("n1".to_owned()));
    // A node that has not seen the end of that run does not guess.
    sim.crash(2);
    sim.restart(2);
    sim.run_for(ms(10_000));
    assert_eq!(sim.node(2).member_of(stamp), None);
}

fn writer_of(live: &Live<Plain>, path: &str) -> Option<String> {
    writer(live.why(path).first()).map(str::to_owned)
}
