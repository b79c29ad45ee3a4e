//! The crates `figment` and `config` read their settings from a store, and their sources are layers of live values.

use std::fs;
use std::sync::{Arc, Mutex};

use config::builder::AsyncState;
use config::{ConfigBuilder, ConfigError};
use figment::Figment;
use figment::providers::{Env, Format, Serialized, Toml};
use serde::Deserialize;
use tidings::Live;
use tidings::live::{LiveSource, StoreSource};
use tidings::sim::Sim;
use tidings_proptest::{Folder, ms, nodes};

#[derive(Debug, Deserialize, PartialEq)]
struct App {
    name: String,
    db: Db,
}

#[derive(Debug, Deserialize, PartialEq)]
struct Db {
    pool: u32,
    hosts: Vec<String>,
    factor: f64,
    limit: Option<i64>,
}

/// The part `db` of [`right`] as one value.
const DB: &str = r#"{"pool": 5, "hosts": ["a", "b"], "factor": 0.5, "limit": null}"#;

fn right() -> App {
    let hosts = vec!["a".to_owned(), "b".to_owned()];
    App { name: "shop".to_owned(), db: Db { pool: 5, hosts, factor: 0.5, limit: None } }
}

/// A node with settings, beside others that do not belong to them.
fn settings() -> Sim {
    let sim = Sim::new(1).nodes(1);
    let batch = sim.node(0).batch().put("app/name", "\"shop\"").put("app/db/pool", "5").put("other", "{");
    let batch =
        batch.put("app/db/hosts", "[\"a\", \"b\"]").put("app/db/factor", "0.5").put("app/db/limit", "null");
    batch.commit().unwrap();
    sim
}

#[test]
fn figment_extracts_settings_from_a_store() {
    let sim = settings();
    let source = StoreSource::new(&sim.node(0), "app/");
    assert_eq!(Figment::from(&source).extract::<App>().unwrap(), right());
    let over = Figment::from(Serialized::default("db.pool", 1))
        .merge(&source)
        .merge(Serialized::default("name", "x"));
    assert_eq!(over.extract::<App>().unwrap(), App { name: "x".to_owned(), ..right() });
    assert_eq!(over.find_metadata("db.pool").unwrap().name, "store app/*");
    sim.node(0).put("app/db/pool", "{").unwrap();
    let error = Figment::from(&source).extract::<App>().unwrap_err().to_string();
    assert!(error.contains("app/db/pool") && error.contains("written by n0"), "{error}");
}

#[tokio::test]
async fn config_extracts_settings_from_a_store() {
    let sim = settings();
    let source = StoreSource::new(&sim.node(0), "app/");
    let built = config::Config::builder().add_source(source.clone()).build().unwrap();
    assert_eq!(built.try_deserialize::<App>().unwrap(), right());
    let builder = ConfigBuilder::<AsyncState>::default().add_source(source.clone());
    assert_eq!(builder.build().await.unwrap().try_deserialize::<App>().unwrap(), right());
    sim.node(0).put("app/db", "{}").unwrap();
    let error = config::Config::builder().add_source(source).build().unwrap_err().to_string();
    assert!(error.contains("the prefix of db/"), "{error}");
}

/// What config-rs's asynchronous builder makes of the settings on a node, once it is done.
fn begin_build(sim: &mut Sim, i: usize) -> Arc<Mutex<Option<Result<App, ConfigError>>>> {
    let slot = Arc::new(Mutex::new(None));
    let (given, source) = (slot.clone(), StoreSource::new(&sim.node(i), "app/"));
    sim.spawn(async move {
        let builder = ConfigBuilder::<AsyncState>::default().add_async_source(source);
        let built = builder.build().await.and_then(config::Config::try_deserialize);
        *given.lock().unwrap() = Some(built);
    });
    slot
}

#[test]
fn asynchronous_source_waits_until_the_node_has_caught_up() {
    let mut sim = Sim::new(1).nodes(2);
    sim.partition(&[0], &[1]);
    sim.node(0).batch().put("app/name", "\"shop\"").put("app/db", DB).commit().unwrap();
    // The control: what does not wait reads an empty store.
    let source = StoreSource::new(&sim.node(1), "app/");
    assert!(config::Config::builder().add_source(source).build().unwrap().try_deserialize::<App>().is_err());
    let late = begin_build(&mut sim, 1);
    sim.run_for(ms(4_900));
    assert!(late.lock().unwrap().is_none(), "it waits");
    sim.run_for(ms(200));
    let error = late.lock().unwrap().take().unwrap().unwrap_err().to_string();
    assert!(error.contains("store app/*: the node has not caught up with a peer within 5 s"), "{error}");

    let built = begin_build(&mut sim, 1);
    sim.run_for(ms(10));
    sim.heal();
    sim.run_for(ms(4_000));
    assert_eq!(built.lock().unwrap().take().unwrap().unwrap(), right());
    sim.crash(1);
    let closed = begin_build(&mut sim, 1);
    sim.run_for(ms(1));
    assert!(closed.lock().unwrap().take().unwrap().unwrap_err().to_string().contains("the node is closed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn figment_and_its_providers_are_layers_of_a_live_value() {
    let (node, folder) = (nodes::start("a", &[]).await, Folder::new());
    let file = folder.at("app.toml");
    fs::write(&file, "name = \"file\"\n[db]\npool = 1\nhosts = []\nfactor = 1.0\n").unwrap();
    node.put("app/db/pool", "5").unwrap();
    let live = Live::<App>::builder(&node, "app/")
        .under(Figment::from(("name", "low")).merge(("limit", 1)))
        .under(Toml::file(&file))
        .over(Figment::from(Env::prefixed("TIDINGS_TEST_SURELY_NOT_SET_")))
        .over(("db.factor", 2.5))
        .start()
        .await
        .unwrap();
    let app = live.load_full();
    assert_eq!((app.name.as_str(), app.db.pool, app.db.factor), ("file", 5, 2.5));
    let LiveSource::Layer { name } = &live.why("name")[0] else { panic!("{:?}", live.why("name")) };
    assert!(name.contains("TOML file") && name.contains("app.toml"), "{name}");
    fs::write(&file, "name = \"again\"\n[db]\nhosts = []\n").unwrap();
    live.reload();
    nodes::until(|| live.load().name == "again").await;
    fs::write(&file, "name = [").unwrap();
    live.reload();
    nodes::until(|| !live.rejected().is_empty()).await;
    assert!(live.rejected()[0].to_string().contains("app.toml"), "{}", live.rejected()[0]);
    assert_eq!(live.load().name, "again");
    node.shutdown().await;
}
