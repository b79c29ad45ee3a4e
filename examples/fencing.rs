//! What a fencing token is for: a leader that is stopped while it works goes on with old knowledge when it runs again,
//! and the lease can do nothing about that. The resource can, if every request brings the token along.
//!
//! The cluster is simulated, so that the leader can be stopped at the worst moment. On real nodes the same is
//! `node.election("billing").campaign("me").await?` and `lead.token()`.

use std::time::Duration;

use tidings::sim::Sim;
use tidings::{Config, Stamp};

/// Something outside the cluster that only the leader may change: a database, a printer, a bank. All it does for its
/// protection is to remember the greatest token.
#[derive(Debug, Default)]
struct Account {
    balance: u64,
    greatest: Option<Stamp>,
}

/// The request came from a leader that has been followed by another.
#[derive(Debug, PartialEq, Eq)]
struct Stale;

impl Account {
    /// A token that is shown takes effect at once, also by reading: whoever had an older one is done.
    fn admit(&mut self, token: Stamp) -> Result<(), Stale> {
        if self.greatest.is_some_and(|greatest| token < greatest) {
            return Err(Stale);
        }
        self.greatest = Some(token);
        Ok(())
    }

    fn read(&mut self, token: Stamp) -> Result<u64, Stale> {
        self.admit(token)?;
        Ok(self.balance)
    }

    fn write(&mut self, token: Stamp, balance: u64) -> Result<(), Stale> {
        self.admit(token)?;
        self.balance = balance;
        Ok(())
    }
}

/// Waits until a lease has a holder other than `than`.
fn leader(sim: &mut Sim, than: Option<usize>) -> (usize, Stamp) {
    loop {
        if let Some(holder) = sim.holders("billing").into_iter().find(|(i, _)| Some(*i) != than) {
            return holder;
        }
        sim.run_for(Duration::from_millis(10));
    }
}

/// Answers what became of the late write, and the balance.
fn story(seed: u64) -> (Result<(), Stale>, u64) {
    let mut config = Config::lan();
    config.voters = ["n0", "n1", "n2"].map(str::to_owned).to_vec();
    let mut sim = Sim::new(seed).config(config).seeds(&[0]).nodes(3);
    for i in 0..3 {
        sim.node(i).campaign("billing", format!("node {i}")).expect("the name is short enough");
    }
    let mut account = Account::default();

    let (first, token) = leader(&mut sim, None);
    println!("node {first} leads under {token}");
    let read = account.read(token).expect("nobody came before");
    // Between reading and writing its machine stands still: garbage collection, swapping, a moved virtual machine.
    sim.pause(first);

    let (second, newer) = leader(&mut sim, Some(first));
    println!("node {second} leads under {newer}, and books 100");
    assert!(newer > token, "tokens grow");
    let balance = account.read(newer).expect("its token is the greatest");
    account.write(newer, balance + 100).expect("its token is the greatest");

    // No instruction of the first leader's program lies between its look at the lease and this.
    let late = account.write(token, read + 1);
    println!("node {first} runs again; its write: {late:?}");
    sim.resume(first);
    (late, account.balance)
}

fn main() {
    let (_, balance) = story(1);
    println!("balance {balance}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_late_write_of_a_stopped_leader_is_refused() {
        for seed in 0..20 {
            assert_eq!(story(seed), (Err(Stale), 100));
        }
    }
}
