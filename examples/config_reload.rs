//! Settings that change while a program runs. A change is applied as a whole, or not at all and with the reason.

use std::error::Error;

use tidings::live::{LiveState, Values};
use tidings::{Config, Live, Node, Security};

#[derive(Debug, serde::Deserialize)]
struct App {
    greeting: String,
    pool: u32,
}

fn check(app: &App) -> Result<(), String> {
    if app.pool == 0 { Err("pool must be at least 1".to_owned()) } else { Ok(()) }
}

/// The greetings that were in force, and why the last change was not applied.
async fn run() -> Result<(Vec<String>, String), Box<dyn Error>> {
    let security = Security::secret(&Security::generate_secret())?;
    let node = Node::builder("a").listen("127.0.0.1:0".parse()?).security(security);
    let node = node.config(Config::local()).start().await?;
    node.put("app/greeting", "\"hello\"")?;
    // `app/greeting` is the field `greeting`. What the store does not have comes from the layer under it.
    let mut config: Live<App> = Live::builder(&node, "app/")
        .under(Values::new("defaults", serde_json::json!({ "pool": 4 })))
        .validate(check)
        .start()
        .await?;
    let mut greetings = vec![config.load().greeting.clone()];
    // Any node of the cluster may write this. It arrives here as one change.
    node.batch().put("app/greeting", "\"good day\"").put("app/pool", "8").commit()?;
    let app = config.changed().await.ok_or("the node is closed")?;
    println!("now {app:?}; the pool comes from {}", config.why("pool")[0]);
    greetings.push(app.greeting.clone());
    // Not acceptable: the last good value stays, and the change is named with its writer.
    node.batch().put("app/greeting", "\"bye\"").put("app/pool", "0").commit()?;
    while config.state() != LiveState::Rejected {
        tokio::task::yield_now().await;
    }
    greetings.push(config.load().greeting.clone());
    node.shutdown().await;
    Ok((greetings, config.rejected()[0].to_string()))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    println!("not applied: {}", run().await?.1);
    Ok(())
}

#[cfg(test)]
#[tokio::test]
async fn bad_change_is_named_and_not_applied() {
    let (greetings, reason) = run().await.unwrap();
    assert_eq!(greetings, ["hello", "good day", "good day"]);
    assert!(reason.contains("written by a") && reason.ends_with("pool must be at least 1"), "{reason}");
}
