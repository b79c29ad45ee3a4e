//! The seeds of a node: where other nodes may be.
//!
//! Seeds can be added while the node runs. They are never removed: one that leads nowhere costs an attempt now and then.

use std::collections::BTreeSet;
use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::error::SeedError;
use crate::node::net::peers::DialRequest;

/// The most seeds of a node.
const SEEDS_MAX: usize = 1_024;

/// What a node dials: the members and seeds that its core asks for.
#[derive(Debug)]
pub(in crate::node) struct DialTargets {
    /// To the network's task.
    pub(in crate::node) requests: mpsc::UnboundedSender<DialRequest>,
    pub(in crate::node) seeds: Seeds,
}

/// Where other nodes may be, as addresses or host names with a port.
#[derive(Debug, Default)]
pub(in crate::node) struct Seeds(Mutex<BTreeSet<String>>);

impl Seeds {
    pub(in crate::node) fn new(seeds: impl IntoIterator<Item = String>) -> Result<Self, SeedError> {
        let all = Self::default();
        seeds.into_iter().try_for_each(|seed| all.add(seed))?;
        Ok(all)
    }

    pub(in crate::node) fn add(&self, seed: String) -> Result<(), SeedError> {
        let is_formed = seed
            .rsplit_once(':')
            .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port > 0));
        if !is_formed {
            return Err(SeedError::Form { seed });
        }
        let mut seeds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seeds.len() >= SEEDS_MAX && !seeds.contains(&seed) {
            return Err(SeedError::TooMany { limit: SEEDS_MAX });
        }
        seeds.insert(seed);
        Ok(())
    }

    pub(in crate::node) fn is_empty(&self) -> bool {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// All seeds, in order.
    pub(in crate::node) fn all(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).iter().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_addresses_or_hosts_with_a_port() {
        let seeds = Seeds::default();
        for seed in ["10.0.0.7:7400", "[::1]:7400", "node-1.example:1"] {
            assert_eq!(seeds.add(seed.to_owned()), Ok(()));
        }
        for seed in ["", "10.0.0.7", "host:", ":7400", "host:0", "host:65536", "host:x"] {
            assert_eq!(seeds.add(seed.to_owned()), Err(SeedError::Form { seed: seed.to_owned() }));
        }
        assert_eq!(seeds.all().len(), 3);
    }

    #[test]
    fn a_node_has_only_so_many_seeds() {
        let seeds = Seeds::new((0..SEEDS_MAX).map(|i| format!("h{i}:1"))).expect("it is the limit");
        assert_eq!(seeds.add("h0:1".to_owned()), Ok(()), "it is known");
        assert_eq!(seeds.add("one-more:1".to_owned()), Err(SeedError::TooMany { limit: SEEDS_MAX }));
    }
}
