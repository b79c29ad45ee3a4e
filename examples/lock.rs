//! A lock that all nodes share, around something that is not in the store: here a ledger that is read, then written. It
//! refuses tokens below the greatest it has seen, because a process may be suspended while it holds the lock.

use std::error::Error;
use std::sync::Mutex;

use tidings::{Config, Node, Security, Stamp};

#[derive(Default)]
struct Ledger(Mutex<(Stamp, u64)>);

impl Ledger {
    fn write(&self, token: Stamp, amount: u64) -> Result<(), String> {
        let mut held = self.0.lock().expect("no holder has panicked");
        if token < held.0 {
            return Err(format!("{token} is below {}: the lock was lost; nothing was written", held.0));
        }
        *held = (token, amount);
        Ok(())
    }
}

/// Books on any node: nobody else is between the reading and the writing.
async fn book(node: &Node, ledger: &Ledger, amount: u64) -> Result<(), Box<dyn Error>> {
    let lock = node.lock("ledger").await?;
    let before = ledger.0.lock().expect("no holder has panicked").1;
    tokio::task::yield_now().await;
    ledger.write(lock.token(), before + amount)?;
    lock.resign().await; // or drop it; after a crash the next one has it when the lease has ended
    Ok(())
}

async fn run() -> Result<u64, Box<dyn Error>> {
    let security = Security::secret(&Security::generate_secret())?;
    let mut config = Config::local();
    config.voters = vec!["a".to_owned()]; // in production three or five, the same list on all nodes
    let start = |name| Node::builder(name).security(security.clone()).config(config.clone());
    let a = start("a").start().await?;
    let b = start("b").seeds([a.addr().to_string()]).start().await?;
    let ledger = Ledger::default();
    for _ in 0..5 {
        tokio::try_join!(book(&a, &ledger, 1), book(&b, &ledger, 10), book(&b, &ledger, 100))?;
    }
    Ok(ledger.0.into_inner()?.1)
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    println!("{} in the ledger", run().await?);
    Ok(())
}

#[cfg(test)]
#[tokio::test]
async fn no_booking_is_lost() {
    assert_eq!(run().await.unwrap(), 555);
}
