//! A job that runs on one node of the cluster at a time: the leader runs it, and when it ends another node takes over.

use std::error::Error;
use std::time::Duration;

use tidings::{Config, Node, Security, WatchEvent};

/// Leads whenever it can, and runs the job meanwhile: it says under which token, as later leaders have greater ones.
async fn cron(node: Node) -> Result<(), Box<dyn Error + Send + Sync>> {
    loop {
        let lease = node.election("cron").campaign(node.name()).await?;
        while lease.is_valid() {
            node.put("cron/last", format!("{} {}", lease.token(), node.name()))?;
            tokio::select! {
                () = lease.lost() => {}
                () = tokio::time::sleep(Duration::from_millis(20)) => {}
            }
        }
    }
}

/// Who runs the job at first, and who once the first one has ended.
async fn run() -> Result<Vec<String>, Box<dyn Error>> {
    let security = Security::secret(&Security::generate_secret())?;
    let mut config = Config::local();
    config.voters = vec!["voter".to_owned()]; // in production three or five, the same list on all nodes
    let start = |name| Node::builder(name).security(security.clone()).config(config.clone());
    let voter = start("voter").start().await?;
    let mut workers = Vec::new();
    for name in ["a", "b"] {
        let node = start(name).seeds([voter.addr().to_string()]).start().await?;
        tokio::spawn(cron(node.clone()));
        workers.push(node);
    }
    let (mut jobs, mut by) = (voter.watch("cron/last"), Vec::<String>::new());
    while by.len() < 2 {
        let Some(WatchEvent::Put(job)) = jobs.next().await else { continue };
        let name = String::from_utf8_lossy(job.value()).rsplit(' ').next().unwrap_or_default().to_owned();
        if !by.contains(&name) {
            for worker in workers.extract_if(.., |worker| worker.name() == name) {
                worker.shutdown().await;
            }
            by.push(name);
        }
    }
    Ok(by)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    println!("{:?}", run().await?);
    Ok(())
}

#[cfg(test)]
#[tokio::test]
async fn another_node_takes_over() {
    assert_eq!(run().await.unwrap().len(), 2);
}
