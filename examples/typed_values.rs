//! A map of values of a program's own type: read, written under conditions, and followed.

use tidings::{MapEvent, Node, OnlyIf, PutOptions, Security, WatchOptions};

#[derive(Debug, PartialEq, serde::Deserialize, serde::Serialize)]
struct Limit(u32);

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let security = Security::secret(&Security::generate_secret())?;
    let node = Node::builder("a").listen("127.0.0.1:0".parse()?).security(security).start().await?;
    let limits = node.map::<Limit>("limits/"); // each key below `limits/` holds a `Limit`
    let mut watch = limits.watch_with("", WatchOptions::new().without_current());

    limits.put("api", &Limit(100))?;
    limits.update("api", |old| Limit(old.map_or(1, |old| old.0 * 2)))?;
    assert_eq!(limits.get("api")?.as_deref(), Some(&Limit(200)));
    let entry = limits.entry("api")?.ok_or("it was put")?;
    assert_eq!((entry.writer.name.as_deref(), entry.conflicts.len()), (Some("a"), 0));
    assert!(limits.put_if("api", &Limit(1), OnlyIf::Absent).is_err());
    limits.put_with("web", &Limit(5), PutOptions::new().only_if(OnlyIf::Absent))?;
    assert!(limits.iter().eq([Ok(("api".into(), Limit(200).into())), Ok(("web".into(), Limit(5).into()))]));
    limits.delete("api")?;
    node.put("limits/bad", "no number")?; // any node may write what is no `Limit`
    assert!(limits.get("bad").unwrap_err().to_string().contains("limits/bad"));

    for expected in ["web is 5", "api was deleted by a", "bad is no limit"] {
        let told = match watch.next().await.ok_or("the node is closed")? {
            MapEvent::Put { key, value, .. } => format!("{key} is {}", value.0),
            MapEvent::Delete { key, writer, .. } => {
                format!("{key} was deleted by {}", writer.unwrap_or_default())
            }
            event => format!("{} is no limit", event.key().unwrap_or_default()),
        };
        assert_eq!(told, expected);
    }
    node.shutdown().await;
    Ok(())
}
