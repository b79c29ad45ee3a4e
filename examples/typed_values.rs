//! Values of a program's own types: a map of them, a struct that follows the store, and writes that belong together.

use std::time::Duration;

use tidings::{Live, Node, OnlyIf, PutOptions, Security, WatchEvent, WatchOptions};

#[derive(Debug, serde::Deserialize, serde::Serialize)]
struct Limit(u32);
#[derive(Debug, serde::Deserialize)]
struct App {
    name: String,
    pool: u32,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let security = Security::secret(&Security::generate_secret())?;
    let node = Node::builder("a").listen("127.0.0.1:0".parse()?).security(security).start().await?;

    let limits = node.map::<Limit>("limits/"); // each key below `limits/` holds a `Limit`
    limits.put("api", &Limit(100))?;
    limits.update("api", |old| Limit(old.map_or(1, |old| old.0 * 2)))?;
    println!("the limit of api is {:?}", limits.get("api")?);

    // All writes of a batch, or none; a live value never sees a part of it.
    let if_new = PutOptions::new().only_if(OnlyIf::Absent);
    let batch = node.batch().put_with("app/name", "\"shop\"", if_new).put("app/pool", "4");
    batch.counter_add("starts", 1).commit()?;
    let check = |app: &App| if app.pool > 0 { Ok(()) } else { Err("pool must be at least 1") };
    let mut config = Live::builder(&node, "app/").validate(check).start().await?;
    node.put("app/pool", "8")?;
    let app = config.changed().await.ok_or("the node is closed")?;
    println!("{} has {}, of {}", app.name, app.pool, config.why("pool")[0]);

    node.put_with("services/api/a", "10.0.0.7:80", PutOptions::new().ephemeral())?; // while this process lives
    node.set("online").add_with("ann", PutOptions::new().ttl(Duration::from_secs(30)))?;
    println!("starts: {:?}", node.counter("starts").watch().next().await);
    let is_written = node.put_if_changed("app/pool", "8")?.is_some();
    let mut watch = node.watch_with("limits/", WatchOptions::new().without_current());
    let deleted = node.delete_prefix("limits/")?;
    if let Some(WatchEvent::Delete { key, writer, .. }) = watch.next().await {
        println!("written: {is_written}; {deleted} deleted: {key}, by {writer:?}");
    }
    node.shutdown().await;
    Ok(())
}
