//! Checks of values: they refuse local writes, batches as a whole, and count what others have written without refusing it.

use tidings::sim::{Disk, Sim};
use tidings::{PutOptions, ReplicaEvent, WriteError};
use tidings_proptest::ms;

fn number(key: &str, value: &[u8]) -> Result<(), String> {
    assert_ne!(value, b"panic", "on purpose");
    match std::str::from_utf8(value).map(str::parse::<u32>) {
        Ok(Ok(_)) => Ok(()),
        _ => Err(format!("{key} is no number")),
    }
}

fn refusal(error: WriteError) -> (String, String) {
    match error {
        WriteError::Invalid { key, reason } => (key, reason),
        other => panic!("refused for another reason: {other}"),
    }
}

#[test]
fn local_writes_that_do_not_pass_write_nothing() {
    let sim = Sim::new(1).validate("limits/", number).validate("limits/max", |_, value| match value {
        b"0" => Err("a limit of nothing"),
        _ => Ok(()),
    });
    let sim = sim.nodes(1);
    let node = sim.node(0);
    node.put("limits/max", "100").unwrap();
    node.put("names/max", "anything").unwrap();
    node.set("limits/").add("many").unwrap();
    let text = node.put("limits/max", "many").unwrap_err().to_string();
    assert_eq!(
        text,
        "the value of \"limits/max\" is not valid: limits/max is no number; nothing was written"
    );
    let told = refusal(node.put_with("limits/max", "0", PutOptions::new().ttl(ms(1_000))).unwrap_err());
    assert_eq!(told, ("limits/max".to_owned(), "a limit of nothing".to_owned()));
    let batch =
        node.batch().put("names/min", "x").put("limits/min", "1").put("limits/odd", "x").delete("names/max");
    assert_eq!(refusal(batch.commit().unwrap_err()).0, "limits/odd");
    assert_eq!(node.scan("").len(), 2, "a part of the batch was written");
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(|_| {}));
    assert_eq!(refusal(node.put("limits/max", "panic").unwrap_err()).1, "its check panicked");
    std::panic::set_hook(hook);
    assert_eq!(node.get("limits/max").unwrap().value(), b"100");
    assert_eq!(node.status().invalid_values, 0);
}

#[test]
fn values_of_others_are_kept_counted_and_reported_once() {
    // The first node has no check yet.
    let mut sim = Sim::new(1).seeds(&[0]).nodes(1).validate("limits/", number).nodes_with_disk(1);
    sim.run_for(ms(5_000));
    let invalid = |sim: &mut Sim| -> Vec<String> {
        let events = sim.events().into_iter().filter(|(i, _)| *i == 1);
        events
            .filter(|(_, event)| matches!(event, ReplicaEvent::Invalid { .. }))
            .map(|(_, it)| it.to_string())
            .collect()
    };
    sim.node(0).put("limits/max", "many").unwrap();
    sim.node(0).put("limits/min", "1").unwrap();
    sim.node(0).put_with("limits/late", "soon", PutOptions::new().ttl(ms(2_000))).unwrap();
    sim.run_for(ms(1_000));
    assert_eq!(sim.node(1).get("limits/max").unwrap().value(), b"many", "it was refused");
    assert_eq!(sim.node(1).status().invalid_values, 2);
    let told = invalid(&mut sim);
    let expected = "the value of limits/max, written by n0, is not valid: limits/max is no number; it stays";
    assert!(told.len() == 2 && told.iter().any(|text| text == expected), "{told:#?}");
    sim.run_for(ms(60_000));
    assert_eq!(sim.node(1).status().invalid_values, 1, "what has expired is not counted");
    assert!(invalid(&mut sim).is_empty());
    // A restart with the disk finds it again; a valid value ends it.
    sim.crash(1);
    sim.restart_with(1, Disk::Latest);
    sim.run_for(ms(5_000));
    assert_eq!((sim.node(1).status().invalid_values, invalid(&mut sim).len()), (1, 1));
    sim.node(1).put("limits/max", "7").unwrap();
    assert_eq!(sim.node(1).status().invalid_values, 0);
    sim.assert_converged();
}
