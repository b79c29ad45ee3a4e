//! Places for connections: so many in all, and so many for each address.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// How many connections are served at a time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ConnectionLimits {
    pub(crate) max: usize,
    pub(crate) per_address_max: usize,
}

#[derive(Debug)]
pub(super) struct Places {
    limits: ConnectionLimits,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    total: usize,
    /// An address without connections is removed.
    by_source: BTreeMap<IpAddr, usize>,
}

/// A place that is taken. Dropping it frees it.
#[derive(Debug)]
pub(super) struct Place {
    places: Arc<Places>,
    source: IpAddr,
}

/// An IPv4 address, or the /64 of an IPv6 address, which usually belongs to one host.
fn source_of(addr: IpAddr) -> IpAddr {
    match addr.to_canonical() {
        IpAddr::V6(addr) => IpAddr::V6(Ipv6Addr::from_bits(addr.to_bits() >> 64 << 64)),
        addr @ IpAddr::V4(_) => addr,
    }
}

impl Places {
    pub(super) fn new(limits: ConnectionLimits) -> Arc<Self> {
        Arc::new(Self { limits, taken: Mutex::default() })
    }

    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn take(self: &Arc<Self>, addr: IpAddr) -> Option<Place> {
        let source = source_of(addr);
        let mut taken = self.lock();
        let of_source = taken.by_source.get(&source).copied().unwrap_or_default();
        if taken.total >= self.limits.max || of_source >= self.limits.per_address_max {
            return None;
        }
        taken.total += 1;
        taken.by_source.insert(source, of_source + 1);
        drop(taken);
        Some(Place { places: self.clone(), source })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut taken = self.places.lock();
        taken.total -= 1;
        if let Some(count) = taken.by_source.get_mut(&self.source) {
            *count -= 1;
            if *count == 0 {
                taken.by_source.remove(&self.source);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_cannot_take_the_places_of_others() {
        let places = Places::new(ConnectionLimits { max: 5, per_address_max: 3 });
        let take = |addr: &str, times: usize| -> Vec<Place> {
            (0..times).filter_map(|_| places.take(addr.parse().unwrap())).collect()
        };
        let first = take("2001:db8::1", 9);
        assert_eq!((first.len(), take("2001:db8::ffff:1", 9).len()), (3, 0));
        let second = take("192.0.2.1", 9);
        assert_eq!((second.len(), take("::ffff:192.0.2.2", 9).len()), (2, 0), "five in all");
        drop(first);
        assert_eq!(take("192.0.2.2", 9).len(), 3);
        drop(second);
        assert!(places.lock().by_source.is_empty());
    }
}
