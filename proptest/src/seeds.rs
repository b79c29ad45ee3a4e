//! Seeds: of random generators, and of the histories that a test runs.

use std::sync::atomic::{AtomicU64, Ordering};

/// A small random generator, independent of what the replicas draw.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// The same seed always gives the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number below `limit`.
    pub fn below(&mut self, limit: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) as usize % limit
    }
}

/// A number that the environment gives.
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Runs something with every seed below `seeds`, on two threads.
pub fn for_each_seed(seeds: u64, run: impl Fn(u64) + Sync) {
    let next = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= seeds {
                        return;
                    }
                    run(seed);
                }
            });
        }
    });
}

/// Runs a history with the seed that `TIDINGS_SEED` gives; otherwise with as many seeds as `TIDINGS_SEEDS` says, or with
/// `usually` seeds.
pub fn for_chosen_seeds(usually: u64, run: impl Fn(u64) + Sync) {
    match number("TIDINGS_SEED") {
        Some(seed) => run(seed),
        None => for_each_seed(number("TIDINGS_SEEDS").unwrap_or(usually), run),
    }
}
