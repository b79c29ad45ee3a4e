//! Which instances of a service run, and where: each publishes its address for as long as its process lives. Nothing has
//! to be renewed, and nobody has to clean up behind a process that crashed. The same code runs on nodes and in simulations.

use std::error::Error;

use tidings::{Config, Node, PutOptions, Security, Store, WatchEvent, WriteError};

/// Publishes the address of an instance. The value ends with the process of its node.
fn announce(store: &impl Store, service: &str, address: &str) -> Result<(), WriteError> {
    let key = format!("services/{service}/{}", store.name());
    store.put_with(&key, address.as_bytes(), PutOptions::new().ephemeral()).map(drop)
}

/// The addresses of the instances that are believed alive.
fn instances(store: &impl Store, service: &str) -> Vec<String> {
    let found = store.scan(&format!("services/{service}/"));
    found.iter().map(|entry| String::from_utf8_lossy(entry.value()).into_owned()).collect()
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let secret = Security::generate_secret();
    let start = async |name: &str, seeds: Vec<String>| {
        let node = Node::builder(name).listen("127.0.0.1:0".parse()?).security(Security::secret(&secret)?);
        Ok::<Node, Box<dyn Error>>(node.config(Config::local()).seeds(seeds).start().await?)
    };
    let a = start("a", Vec::new()).await?;
    let b = start("b", vec![a.addr().to_string()]).await?;
    b.ready().await?;
    announce(&a, "web", "10.0.0.1:80")?;
    announce(&b, "web", "10.0.0.2:80")?;
    let mut watch = a.watch("services/web/"); // a balancer reads the list when it changes
    while let Some(event) = watch.next().await {
        println!("{:?}", instances(&a, "web"));
        match event {
            WatchEvent::Put(entry) if entry.key().ends_with("/b") => b.shutdown().await, // or a crash
            WatchEvent::Expired { key, .. } if key.ends_with("/b") => break,
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
#[test]
fn instance_of_a_crashed_process_is_not_listed() {
    let mut sim = tidings::sim::Sim::new(1).config(Config::local()).seeds(&[0]).nodes(2);
    sim.run_for(std::time::Duration::from_secs(1));
    announce(&sim.node(0), "web", "10.0.0.1:80").unwrap();
    announce(&sim.node(1), "web", "10.0.0.2:80").unwrap();
    sim.run_for(std::time::Duration::from_secs(1));
    assert_eq!(instances(&sim.node(0), "web"), ["10.0.0.1:80", "10.0.0.2:80"]);
    sim.crash(1);
    sim.run_for(std::time::Duration::from_secs(30)); // until the failure is found
    assert_eq!(instances(&sim.node(0), "web"), ["10.0.0.1:80"]);
    assert!(main().is_ok()); // and on real nodes
}
