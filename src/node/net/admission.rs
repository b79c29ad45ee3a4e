//! Admission: permits for incoming connections that are not links yet.
//!
//! Anybody can send the first packet of a handshake, with any source address. That must not keep members out, so
//! nothing here waits: a connection gets a permit at once or is turned away. There are three kinds of permits, with
//! separate limits, so that connections of one kind cannot use up those of another:
//!
//! * Handshakes from addresses that are not validated: the sender may not even receive what is sent to it. When these
//!   permits are used up, further senders must first prove that they receive packets at their address (QUIC's Retry),
//!   which costs this node one small packet and no memory.
//! * Handshakes from validated addresses. When these are used up, the connection is refused; a node dials again.
//! * Greetings: the handshake is complete and the certificate is valid. When these are used up, the connection is
//!   closed.
//!
//! Each source address has a limit of its own. A stranger that answers Retry can therefore use up the permits of its
//! own address and no others; a member behind the same address has to wait until one of them is free.
//!
//! Where several sources have used up all permits, a source with fewer takes one over: of the source with the most, the
//! oldest connection *gives way*. So a source without any is always let in, whatever the number of the others. Permits
//! of addresses that are not validated never give way: with forged addresses anybody could end the handshakes of
//! members, and Retry leads to a permit that nobody else can take so.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;

use crate::controls::{Control, Controls};

/// Handshakes in progress from addresses that are not validated; beyond it, Retry.
const UNVALIDATED_MAX: usize = 32;
/// The same for one source; beyond it, Retry.
const UNVALIDATED_PER_SOURCE_MAX: usize = 8;
/// Handshakes in progress from validated addresses; beyond it, one gives way, or the new one is refused.
const VALIDATED_MAX: usize = 64;
/// The same for one source; beyond it, refusal. Several nodes may run on one machine or behind one router.
const VALIDATED_PER_SOURCE_MAX: usize = 32;
/// Greetings in progress; beyond it, one gives way, or the new connection is closed.
const GREETINGS_MAX: usize = 64;
/// The same for one source; beyond it, the connection is closed.
const GREETINGS_PER_SOURCE_MAX: usize = 32;

/// A handshake from an address that is not validated is abandoned after this time. It covers one retransmission of the
/// server's first flight, which QUIC repeats after 1 s.
pub(in crate::node) const UNVALIDATED_TIME_MAX: Duration = Duration::from_secs(2);
/// A handshake from a validated address is abandoned after this time.
pub(in crate::node) const VALIDATED_TIME_MAX: Duration = Duration::from_secs(5);

/// What counts as one source: an IPv4 address, or the /64 of an IPv6 address, which usually belongs to one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::node) enum SourceAddr {
    V4(u32),
    V6(u64),
}

impl From<IpAddr> for SourceAddr {
    fn from(addr: IpAddr) -> Self {
        match addr.to_canonical() {
            IpAddr::V4(addr) => Self::V4(addr.to_bits()),
            IpAddr::V6(addr) => Self::V6((addr.to_bits() >> 64) as u64),
        }
    }
}

/// The permits of one kind, limited in total and per source.
#[derive(Debug)]
struct Permits {
    max: usize,
    per_source_max: usize,
    /// Whether a permit in use gives way to a source that has fewer.
    give_way: bool,
    taken: Mutex<Taken>,
}

#[derive(Debug, Default)]
struct Taken {
    /// Permits given so far. Their numbers are in the order in which they were given.
    given: u64,
    total: usize,
    /// Permits in use by source and number. A source without any is removed, so that strangers cannot make the map grow.
    by_source: BTreeMap<SourceAddr, BTreeMap<u64, Arc<Notify>>>,
}

/// A permit in use. Dropping it frees it.
#[derive(Debug)]
pub(in crate::node) struct Permit {
    places: Arc<Permits>,
    source: SourceAddr,
    number: u64,
    gives_way: Arc<Notify>,
}

impl Permits {
    fn lock(&self) -> MutexGuard<'_, Taken> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn take(self: &Arc<Self>, source: SourceAddr) -> Option<Permit> {
        let mut taken = self.lock();
        let of_source = taken.by_source.get(&source).map_or(0, BTreeMap::len);
        if of_source >= self.per_source_max {
            return None;
        }
        if taken.total >= self.max && !(self.give_way && taken.make_room(of_source)) {
            return None;
        }
        let (number, gives_way) = (taken.given, Arc::<Notify>::default());
        taken.given += 1;
        taken.total += 1;
        taken.by_source.entry(source).or_default().insert(number, gives_way.clone());
        drop(taken);
        Some(Permit { places: self.clone(), source, number, gives_way })
    }
}

impl Taken {
    /// Frees the oldest permit of the source that has the most, if that has more than the newcomer's source. Of several
    /// such sources it is the one whose oldest permit is the oldest. Answers whether there is room now.
    fn make_room(&mut self, of_newcomer: usize) -> bool {
        let rank = |permits: &BTreeMap<u64, _>| (permits.len(), Reverse(permits.keys().next().copied()));
        let most = self.by_source.iter().max_by_key(|(_, permits)| rank(permits));
        let Some((&source, permits)) = most.filter(|(_, permits)| permits.len() > of_newcomer) else {
            return false;
        };
        let Some((&number, gives_way)) = permits.first_key_value() else { return false };
        gives_way.notify_one();
        self.remove(source, number);
        true
    }

    fn remove(&mut self, source: SourceAddr, number: u64) {
        let Some(permits) = self.by_source.get_mut(&source) else { return };
        if permits.remove(&number).is_some() {
            self.total -= 1;
        }
        if permits.is_empty() {
            self.by_source.remove(&source);
        }
    }
}

impl Permit {
    /// Returns when the permit was taken over by another source. The connection has to end then.
    pub(in crate::node) async fn taken_over(&self) {
        self.gives_way.notified().await;
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.places.lock().remove(self.source, self.number);
    }
}

/// What to do with the first packet of a handshake.
#[derive(Debug)]
pub(in crate::node) enum HandshakeVerdict {
    /// Continue the handshake, for at most this time.
    Accept(Permit, Duration),
    /// Make the sender prove that it receives packets at its address.
    Retry,
    /// Refuse the connection.
    Refuse,
}

/// All permits of a node.
#[derive(Debug)]
pub(in crate::node) struct Admission {
    unvalidated: Arc<Permits>,
    validated: Arc<Permits>,
    greetings: Arc<Permits>,
}

impl Admission {
    pub(in crate::node) fn new(controls: Controls) -> Self {
        let permits = |max, per_source_max, give_way: bool| {
            let per_source_max = if controls.has(Control::SourcesUnlimited) { max } else { per_source_max };
            let give_way =
                give_way && !controls.has(Control::SourcesUnlimited) && !controls.has(Control::NoneGivesWay);
            Arc::new(Permits { max, per_source_max, give_way, taken: Mutex::default() })
        };
        Self {
            unvalidated: permits(UNVALIDATED_MAX, UNVALIDATED_PER_SOURCE_MAX, false),
            validated: permits(VALIDATED_MAX, VALIDATED_PER_SOURCE_MAX, true),
            greetings: permits(GREETINGS_MAX, GREETINGS_PER_SOURCE_MAX, true),
        }
    }

    /// Decides about the first packet of a handshake whose sender's address may be forged.
    pub(in crate::node) fn unvalidated(&self, addr: IpAddr) -> HandshakeVerdict {
        let permit = self.unvalidated.take(addr.into());
        permit
            .map_or(HandshakeVerdict::Retry, |permit| HandshakeVerdict::Accept(permit, UNVALIDATED_TIME_MAX))
    }

    /// Decides about the first packet of a handshake whose sender has proved its address.
    pub(in crate::node) fn validated(&self, addr: IpAddr) -> HandshakeVerdict {
        let permit = self.validated.take(addr.into());
        permit.map_or(HandshakeVerdict::Refuse, |permit| HandshakeVerdict::Accept(permit, VALIDATED_TIME_MAX))
    }

    /// A permit for the greeting over a connection whose handshake is complete.
    pub(in crate::node) fn greeting(&self, addr: IpAddr) -> Option<Permit> {
        self.greetings.take(addr.into())
    }
}

#[cfg(test)]
mod tests {
    use std::task::{Context, Waker};

    use super::*;

    fn addr(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    type Decide = fn(&Admission, IpAddr) -> HandshakeVerdict;

    fn fill(admission: &Admission, decide: Decide, sources: u32) -> Vec<Permit> {
        let mut places = Vec::new();
        for source in 0..sources {
            let addr = IpAddr::V4((0x0a00_0000 + source).into());
            while let HandshakeVerdict::Accept(place, _) = decide(admission, addr) {
                places.push(place);
            }
        }
        places
    }

    #[test]
    fn unvalidated_handshakes_leave_the_other_places_free() {
        let admission = Admission::new(Controls::default());
        let held = fill(&admission, Admission::unvalidated, 1_000);
        assert_eq!(held.len(), UNVALIDATED_MAX);
        assert!(matches!(admission.unvalidated(addr("192.0.2.1")), HandshakeVerdict::Retry));
        // Even for a member whose address the strangers forge.
        assert!(matches!(admission.validated(addr("10.0.0.0")), HandshakeVerdict::Accept(..)));
        assert!(admission.greeting(addr("10.0.0.0")).is_some());
        drop(held);
        assert!(matches!(admission.unvalidated(addr("192.0.2.1")), HandshakeVerdict::Accept(..)));
        assert!(admission.unvalidated.lock().by_source.is_empty(), "sources without a permit are removed");
    }

    #[test]
    fn one_source_cannot_take_the_places_of_others() {
        let admission = Admission::new(Controls::default());
        let unvalidated = fill(&admission, Admission::unvalidated, 1);
        let validated = fill(&admission, Admission::validated, 1);
        assert_eq!(unvalidated.len(), UNVALIDATED_PER_SOURCE_MAX);
        assert_eq!(validated.len(), VALIDATED_PER_SOURCE_MAX);
        assert!(matches!(admission.unvalidated(addr("10.0.0.0")), HandshakeVerdict::Retry));
        assert!(matches!(admission.validated(addr("10.0.0.0")), HandshakeVerdict::Refuse));
        for decide in [Admission::unvalidated as Decide, Admission::validated] {
            assert!(matches!(decide(&admission, addr("10.0.0.1")), HandshakeVerdict::Accept(..)));
        }
        let greetings: Vec<Permit> =
            std::iter::from_fn(|| admission.greeting(addr("10.0.0.0"))).take(1_000).collect();
        assert_eq!(greetings.len(), GREETINGS_PER_SOURCE_MAX);
        assert!(admission.greeting(addr("10.0.0.1")).is_some());
    }

    fn is_taken_over(permit: &Permit) -> bool {
        let mut waiting = std::pin::pin!(permit.taken_over());
        waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn oldest_permit_of_the_source_with_the_most_gives_way() {
        let admission = Admission::new(Controls::default());
        let greet = |text| admission.greeting(addr(text));
        let few: Vec<Permit> = (0..20).map(|_| greet("10.0.0.1").unwrap()).collect();
        let most: Vec<Permit> = (0..32).map(|_| greet("10.0.0.2").unwrap()).collect();
        let none: Vec<Permit> = (0..12).map(|_| greet("10.0.0.3").unwrap()).collect();
        // All are in use. One more of the source with the most is refused, all others take them over.
        assert!(greet("10.0.0.2").is_none());
        let own = greet("192.0.2.1").expect("a source without any is let in");
        let over: Vec<bool> = most.iter().map(is_taken_over).collect();
        assert!(over[0] && over[1..].iter().all(|over| !over), "{over:?}");
        assert!(few.iter().chain(&none).chain([&own]).all(|permit| !is_taken_over(permit)));
        drop(most);
        assert_eq!(admission.greetings.lock().total, 33, "dropping one that gave way frees no further one");
    }

    #[test]
    fn sources_with_one_permit_each_give_way_in_order() {
        let admission = Admission::new(Controls::default());
        let one = |source: u32| match admission.validated(IpAddr::V4((0x0a00_0000 + source).into())) {
            HandshakeVerdict::Accept(permit, _) => permit,
            verdict => panic!("{source}: {verdict:?}"),
        };
        let held: Vec<Permit> = (0..64 + 3).map(one).collect();
        let over = held.iter().take_while(|permit| is_taken_over(permit)).count();
        assert_eq!((over, admission.validated.lock().total), (3, VALIDATED_MAX));
    }

    #[test]
    fn a_source_is_an_ipv4_address_or_an_ipv6_prefix() {
        let source = |text| SourceAddr::from(addr(text));
        assert_eq!(source("2001:db8::1"), source("2001:db8::ffff:0:0:1"));
        assert_ne!(source("2001:db8::1"), source("2001:db8:0:1::1"));
        assert_eq!(source("::ffff:192.0.2.1"), source("192.0.2.1"));
        assert_ne!(source("192.0.2.1"), source("192.0.2.2"));
    }
}
