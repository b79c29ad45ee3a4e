//! Writes that belong together, values that end by themselves, and who deleted what.

use std::time::Duration;

use tidings::{Node, OnlyIf, PutOptions, Security, WatchEvent, WatchOptions};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let security = Security::secret(&Security::generate_secret())?;
    let node = Node::builder("a").listen("127.0.0.1:0".parse()?).security(security).start().await?;
    let mut whole = node.watch_whole("app/");
    assert!(whole.next().await.ok_or("the node is closed")?.entries.is_empty()); // what is there

    // All writes of a batch, or none; they come as one change.
    let if_new = || PutOptions::new().only_if(OnlyIf::Absent);
    let batch = node.batch().put_with("app/name", "\"shop\"", if_new()).put("app/pool", "4");
    batch.set_add("online", "ann").counter_add("starts", 1).commit()?;
    assert_eq!(whole.next().await.ok_or("the node is closed")?.entries.len(), 2);
    let refused = node.batch().put("app/pool", "8").put_with("app/name", "\"other\"", if_new());
    assert!(refused.commit().is_err());
    assert!(node.put_if_changed("app/pool", "4")?.is_none()); // it is there already

    node.put_with("services/api/a", "10.0.0.7:80", PutOptions::new().ephemeral())?; // while this process lives
    node.set("online").add_with("bob", PutOptions::new().ttl(Duration::from_secs(30)))?;
    assert_eq!((node.set("online").len(), node.counter("starts").watch().next().await), (2, Some(1)));
    assert_eq!((node.sets(""), node.counters("")), (vec!["online".into()], vec!["starts".into()]));

    let mut watch = node.watch_with("app/name", WatchOptions::new().without_current());
    assert_eq!(node.delete_prefix("app/")?, 2);
    let Some(WatchEvent::Delete { stamp: Some(stamp), writer, .. }) = watch.next().await else {
        return Err("the key was deleted".into());
    };
    assert_eq!(
        (writer, node.member_of(stamp).map(|member| member.name)),
        (Some("a".into()), Some("a".into()))
    );
    node.shutdown().await;
    Ok(())
}
