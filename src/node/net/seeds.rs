//! The seeds of a node: where other nodes may be.
//!
//! Seeds can be added while the node runs. They are never removed: one that leads nowhere costs an attempt now and then.

use std::collections::BTreeSet;
use std::net::Ipv6Addr;
use std::sync::{Mutex, PoisonError};

use tokio::sync::mpsc;

use crate::error::SeedError;
use crate::node::net::peers::DialRequest;

/// The port of a seed that names none.
pub(in crate::node) const SEED_PORT: u16 = 7_400;

/// What begins a seed that is named by SRV records.
const SRV_PREFIX: &str = "srv+";

/// The most seeds of a node.
const SEEDS_MAX: usize = 1_024;

/// What a node dials: the members and seeds that its core asks for.
#[derive(Debug)]
pub(in crate::node) struct DialTargets {
    /// To the network's task.
    pub(in crate::node) requests: mpsc::UnboundedSender<DialRequest>,
    pub(in crate::node) seeds: Seeds,
}

/// A seed, as its text says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::node) enum Seed<'a> {
    /// A host name or an address, and a port.
    Host(&'a str, u16),
    /// A service that SRV records name.
    Srv(&'a str),
}

impl<'a> Seed<'a> {
    /// `None` if the text names no seed.
    pub(in crate::node) fn read(text: &'a str) -> Option<Self> {
        if let Some(service) = text.strip_prefix(SRV_PREFIX) {
            let is_name = !service.is_empty() && !service.contains([':', '/']);
            return (is_name && cfg!(feature = "srv")).then_some(Self::Srv(service));
        }
        host_and_port(text, SEED_PORT).map(|(host, port)| Self::Host(host, port))
    }
}

/// The parts of `host`, `host:port`, an IPv6 address, `[IPv6]` or `[IPv6]:port`. `None`: it is none of these.
pub(in crate::node) fn host_and_port(text: &str, default_port: u16) -> Option<(&str, u16)> {
    if text.parse::<Ipv6Addr>().is_ok() {
        return Some((text, default_port));
    }
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !text.ends_with(']') => (host, port.parse().ok().filter(|port| *port > 0)?),
        _ => (text, default_port),
    };
    if let Some(inner) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return inner.parse::<Ipv6Addr>().is_ok().then_some((inner, port));
    }
    let is_host = !host.is_empty() && !host.contains([':', '[', ']', '/', ' ', '+']);
    is_host.then_some((host, port))
}

/// Where other nodes may be, in the forms of [`Seed`].
#[derive(Debug, Default)]
pub(in crate::node) struct Seeds(Mutex<BTreeSet<String>>);

impl Seeds {
    pub(in crate::node) fn new(seeds: impl IntoIterator<Item = String>) -> Result<Self, SeedError> {
        let all = Self::default();
        seeds.into_iter().try_for_each(|seed| all.add(seed))?;
        Ok(all)
    }

    pub(in crate::node) fn add(&self, seed: String) -> Result<(), SeedError> {
        if Seed::read(&seed).is_none() {
            return Err(SeedError::Form { seed });
        }
        let mut seeds = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seeds.len() >= SEEDS_MAX && !seeds.contains(&seed) {
            return Err(SeedError::TooMany { seed, limit: SEEDS_MAX });
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
    fn seeds_are_hosts_or_addresses_with_or_without_a_port() {
        let seeds = Seeds::default();
        let forms = [
            ("10.0.0.7:7401", "10.0.0.7", 7_401),
            ("10.0.0.7", "10.0.0.7", SEED_PORT),
            ("[::1]:1", "::1", 1),
            ("[::1]", "::1", SEED_PORT),
            ("::1", "::1", SEED_PORT),
            ("node-1.example:1", "node-1.example", 1),
            ("node-1.example", "node-1.example", SEED_PORT),
        ];
        for (seed, host, port) in forms {
            assert_eq!(Seed::read(seed), Some(Seed::Host(host, port)), "{seed}");
            assert_eq!(seeds.add(seed.to_owned()), Ok(()));
        }
        let wrong =
            ["", "host:", ":7400", "host:0", "host:65536", "host:x", "[host]:1", "a:b:1", "srv+", "srv+a:1"];
        for seed in wrong {
            assert_eq!(seeds.add(seed.to_owned()), Err(SeedError::Form { seed: seed.to_owned() }));
        }
        assert_eq!(seeds.all().len(), forms.len());
        let srv = Seed::read("srv+_gossip._udp.tidings.svc");
        assert_eq!(srv, cfg!(feature = "srv").then_some(Seed::Srv("_gossip._udp.tidings.svc")));
    }

    #[test]
    fn a_node_has_only_so_many_seeds() {
        let seeds = Seeds::new((0..SEEDS_MAX).map(|i| format!("h{i}:1"))).expect("it is the limit");
        assert_eq!(seeds.add("h0:1".to_owned()), Ok(()), "it is known");
        let refused = seeds.add("one-more:1".to_owned()).unwrap_err();
        assert_eq!(refused, SeedError::TooMany { seed: "one-more:1".to_owned(), limit: SEEDS_MAX });
        assert!(refused.to_string().starts_with("the seed \"one-more:1\" was not added"), "{refused}");
    }
}
