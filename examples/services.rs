//! Which instances of a service run, and where: each publishes its address for as long as its process lives. Nothing has
//! to be renewed, and nobody has to clean up behind a process that crashed.

use std::error::Error;

use tidings::{Config, Node, PutOptions, Security, WatchEvent};

/// Publishes the address of an instance. The value ends with the process of its node.
fn announce(node: &Node, service: &str, address: &str) -> Result<(), tidings::WriteError> {
    let key = format!("services/{service}/{}", node.name());
    node.put_with(key, address, PutOptions::new().ephemeral()).map(drop)
}

/// The addresses of the instances that are held for alive.
fn instances(node: &Node, service: &str) -> Vec<String> {
    let found = node.scan(format!("services/{service}/"));
    found.iter().map(|entry| String::from_utf8_lossy(entry.value()).into_owned()).collect()
}

async fn run() -> Result<Vec<String>, Box<dyn Error>> {
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

    // A balancer reads the list when it changes.
    let mut watch = a.watch("services/web/");
    while let Some(event) = watch.next().await {
        match event {
            WatchEvent::Put(entry) if entry.key().ends_with("/b") => {
                println!("{:?}", instances(&a, "web"));
                b.shutdown().await; // or a crash: then it takes until the failure is found
            }
            WatchEvent::Expired { key, .. } if key.ends_with("/b") => break,
            _ => {}
        }
    }
    Ok(instances(&a, "web"))
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    println!("{:?}", run().await?);
    Ok(())
}

#[cfg(test)]
#[tokio::test]
async fn instance_that_has_left_is_not_listed() {
    assert_eq!(run().await.unwrap(), ["10.0.0.1:80"]);
}
