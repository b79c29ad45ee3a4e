//! A correct copy of some keys: the initial values, every change, and a new start where deletes may have been missed.

use std::collections::BTreeMap;
use std::error::Error;
use std::sync::Arc;

use tidings::{Config, MapEvent, Node, Security};

async fn run() -> Result<BTreeMap<String, Arc<u32>>, Box<dyn Error>> {
    let security = Security::secret(&Security::generate_secret())?;
    let node = Node::builder("a").listen("127.0.0.1:0".parse()?).security(security);
    let node = node.config(Config::local()).start().await?;
    let limits = node.map::<u32>("limits/");
    limits.put("api", &100)?;
    limits.put("web", &50)?;

    // Some other part of the program, or another node, changes the limits.
    let writer = limits.clone();
    tokio::spawn(async move {
        writer.update("api", |old| old.map_or(1, |old| old * 2))?;
        writer.delete("web")?;
        writer.put("end", &0)
    });

    let (mut copy, mut fresh) = (BTreeMap::new(), Some(BTreeMap::new()));
    let mut watch = limits.watch();
    while let Some(event) = watch.next().await {
        // Until `Current` the copy is incomplete, so it is made beside the one that is in use.
        let filled = fresh.as_mut().unwrap_or(&mut copy);
        match event {
            MapEvent::Put { key, .. } if key == "end" => break,
            MapEvent::Put { key, value: limit, .. } => _ = filled.insert(key, limit),
            MapEvent::Delete { key, .. } | MapEvent::Expired { key, .. } => _ = filled.remove(&key),
            MapEvent::Invalid { error, .. } => eprintln!("{error}"),
            MapEvent::Resync => fresh = Some(BTreeMap::new()),
            MapEvent::Current => copy = fresh.take().unwrap_or(copy),
            _ => {}
        }
        println!("{copy:?}");
    }
    node.shutdown().await;
    Ok(copy)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    run().await.map(drop)
}

#[cfg(test)]
#[tokio::test]
async fn copy_holds_what_the_store_holds() {
    assert_eq!(run().await.unwrap(), BTreeMap::from([("api".to_owned(), Arc::new(200))]));
}
