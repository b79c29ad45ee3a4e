//! A struct of settings that follows the store: whole, checked, with layers, and with the reason of what is not applied.

use std::{collections::BTreeMap, time::Duration};

use tidings::live::{LiveState, Values};
use tidings::{Live, Node, Security};

#[derive(serde::Deserialize)]
struct App {
    name: String,
    pool: u32,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let security = Security::secret(&Security::generate_secret())?;
    let node = Node::builder("a").listen("127.0.0.1:0".parse()?).security(security).start().await?;
    let file = std::env::temp_dir().join(format!("app-{}.lastgood", std::process::id()));
    node.put("app/pool", "4")?; // `app/pool` is the field `pool`; other fields come from the layers
    let mut config: Live<App> = Live::builder(&node, "app/")
        .under(Values::new("defaults", BTreeMap::from([("name", "shop")])))
        .validate(|app: &App| if app.pool > 0 { Ok(()) } else { Err("pool must be at least 1") })
        .debounce(Duration::from_millis(1))
        .last_good(&file)
        .start()
        .await?;
    assert_eq!((config.load().name.as_str(), config.load().pool), ("shop", 4));
    let mut pool = config.select(|app| &app.pool);

    node.batch().put("app/pool", "8").put("app/name", "\"store\"").commit()?;
    let app = config.changed().await.ok_or("the node is closed")?;
    assert_eq!((app.name.as_str(), app.pool, pool.changed().await), ("store", 8, Some(8))); // both, or none
    assert!(config.why("pool")[0].to_string().starts_with("the key \"app/pool\" (written by a, "));

    node.put("app/pool", "0")?; // not acceptable: the last good value stays
    while config.state() != LiveState::Rejected {
        tokio::task::yield_now().await;
    }
    assert_eq!(config.load().pool, 8);
    assert!(config.rejected()[0].to_string().ends_with("pool must be at least 1"));
    assert!(std::fs::read_to_string(&file)?.contains("app/pool")); // for a start without peers
    std::fs::remove_file(file)?;
    node.shutdown().await;
    Ok(())
}
