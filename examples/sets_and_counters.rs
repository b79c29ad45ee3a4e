//! A queue of jobs in two sets and a counter: all nodes change them at the same time, and nobody asks the others first.

use std::error::Error;
use std::time::Duration;

use tidings::{Config, Node, Quorum, Security, WriteError};

const TIMEOUT: Duration = Duration::from_secs(10);

/// Marks a job as done: it leaves one set, enters another and is counted, all or nothing.
fn finish(node: &Node, job: &str) -> Result<(), WriteError> {
    node.batch().set_remove("waiting", job).set_add("done", job).counter_add("jobs", 1).commit()?;
    Ok(())
}

/// What is waiting, what is done, and how many jobs were counted, on the second of two nodes.
async fn run() -> Result<(Vec<String>, Vec<String>, i64), Box<dyn Error>> {
    let secret = Security::generate_secret();
    let builder = |name: &str| -> Result<_, Box<dyn Error>> {
        let node = Node::builder(name).listen("127.0.0.1:0".parse()?).config(Config::local());
        Ok(node.security(Security::secret(&secret)?))
    };
    let a = builder("a")?.start().await?;
    let b = builder("b")?.seeds([a.addr().to_string()]).start().await?;
    b.ready().await?;

    let waiting = a.set("waiting");
    for job in ["resize", "mail", "report"] {
        waiting.add(job)?;
    }
    // A node that has received all three works on one of them; the other node works on another one meanwhile.
    waiting.add("report")?.seen_by(Quorum::All, TIMEOUT).await?;
    finish(&a, "resize")?;
    finish(&b, "mail")?;
    a.counter("jobs").add(0)?.seen_by(Quorum::All, TIMEOUT).await?;
    b.counter("jobs").add(0)?.seen_by(Quorum::All, TIMEOUT).await?;

    let seen = (b.set("waiting").iter().collect(), b.set("done").iter().collect(), b.counter("jobs").value());
    b.shutdown().await;
    // `b` has ended. What it has counted moves into a table, where it takes less room.
    a.counter("jobs").compact(TIMEOUT).await?;
    assert_eq!(a.counter("jobs").value(), seen.2);
    a.shutdown().await;
    Ok(seen)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    println!("waiting, done, counted: {:?}", run().await?);
    Ok(())
}

#[cfg(test)]
#[tokio::test]
async fn both_nodes_finish_jobs_without_asking_each_other() {
    let expected = (vec!["report".to_owned()], vec!["mail".to_owned(), "resize".to_owned()], 2);
    assert_eq!(run().await.unwrap(), expected);
}
