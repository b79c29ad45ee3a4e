//! A test of your own code under partitions, loss and crashes: the same code as on real nodes, in virtual time.

use std::time::Duration;

use tidings::sim::Sim;
use tidings::{OnlyIf, PutOptions, Store, WriteError};

/// The code to be tested: books a seat, unless somebody has it already. Two sides of a partition may both succeed.
fn book(store: &impl Store, seat: &str, name: &str) -> Result<bool, WriteError> {
    let free = PutOptions::new().only_if(OnlyIf::Absent);
    match store.put_with(seat, name.as_bytes(), free) {
        Ok(_) => Ok(true),
        Err(WriteError::Condition { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Who has the seat, and who must be told that somebody else has it.
fn settle(store: &impl Store, seat: &str) -> Option<(Vec<u8>, Vec<Vec<u8>>)> {
    let entry = store.get(seat)?;
    Some((entry.value().to_vec(), entry.conflicts().map(|lost| lost.value().to_vec()).collect()))
}

/// One history: three nodes book the same seat while they are partitioned. Every booking that was confirmed must be
/// found again, as the winner or among those that must be told, on every node.
fn history(seed: u64) {
    let mut sim = Sim::new(seed).nodes(3).loss(0.2);
    let sides: [&[usize]; 2] = if seed.is_multiple_of(2) { [&[0], &[1, 2]] } else { [&[0, 1], &[2]] };
    sim.partition(sides[0], sides[1]);
    let mut booked = Vec::new();
    for i in 0..3 {
        let name = format!("guest {i}");
        if book(&sim.node(i), "seat/1", &name).unwrap() {
            booked.push(name.into_bytes());
        }
        sim.run_for(Duration::from_millis(seed % 500));
    }
    sim.heal();
    sim.assert_converged();
    for i in 0..3 {
        let (winner, mut all) = settle(&sim.node(i), "seat/1").expect("somebody has booked it");
        all.push(winner);
        assert!(booked.iter().all(|name| all.contains(name)), "seed {seed}: node {i} lost a booking");
    }
}

fn main() {
    (0..100).for_each(history);
    println!("100 histories: no booking was lost");
}

#[cfg(test)]
#[test]
fn no_booking_is_lost() {
    (0..300).for_each(history);
}
