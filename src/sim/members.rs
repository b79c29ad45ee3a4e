//! Simulated nodes that find each other by themselves: addresses, datagrams, dialling, pauses.

use std::net::SocketAddr;
use std::time::Duration;

use super::{Sim, SimEvent, SimNode, SimReceipt, World};
use crate::error::{ForgetError, WriteError};
use crate::id::{LinkId, RunId};
use crate::membership::{Contact, Member, MemberEvent, PACKET_BYTES_MIN, PeerExit};
use crate::replica::{Input, Output, Replica};
use crate::time::Stamp;

/// The address of node `i`. It differs after each move.
pub(super) fn addr(i: usize, moves: u8) -> SocketAddr {
    let [.., a, b] = (i as u32).to_be_bytes();
    SocketAddr::from(([10, moves, a, b], 7_400))
}

pub(super) fn name(i: usize) -> String {
    format!("n{i}")
}

impl Sim {
    /// Lets the nodes that are added after this find each other through these seeds, as real nodes do. The simulator
    /// links none of them.
    #[must_use]
    pub fn seeds(self, seeds: &[usize]) -> Self {
        self.world().seeds = Some(seeds.to_vec());
        self
    }

    /// The member events since the last call: when, at which node, what.
    pub fn member_events(&mut self) -> Vec<(Duration, usize, MemberEvent)> {
        std::mem::take(&mut self.world().member_events)
    }

    /// The number of datagrams and stream frames that all nodes have sent.
    pub fn sendings(&self) -> u64 {
        self.world().sendings
    }

    /// The name of a node as a member.
    pub fn name(&self, i: usize) -> String {
        name(i)
    }

    /// Stops a node's process in the middle of its work, without ending it. What arrives waits.
    pub fn pause(&mut self, i: usize) {
        self.world().nodes[i].is_paused = true;
    }

    /// Lets a stopped process continue.
    pub fn resume(&mut self, i: usize) {
        let world = &mut *self.world();
        world.nodes[i].is_paused = false;
        world.reawaken();
    }

    /// Gives a node the name of another one, under which it runs from its next start on: by mistake, both are twins then.
    pub fn share_name(&mut self, i: usize, other: usize) {
        let world = &mut *self.world();
        world.nodes[i].name = world.nodes[other].name.clone();
    }

    /// Gives a node another address, which it publishes from its next start on. The old address stops working at once.
    pub fn relocate(&mut self, i: usize) {
        let world = &mut *self.world();
        let moves = match world.nodes[i].addr.ip() {
            std::net::IpAddr::V4(ip) => ip.octets()[1].wrapping_add(1),
            std::net::IpAddr::V6(_) => 1,
        };
        world.nodes[i].addr = addr(i, moves);
    }

    /// Ends a node after it has told the others that it leaves.
    pub fn leave(&mut self, i: usize) {
        let world = &mut *self.world();
        let now = world.time(i);
        let Some(replica) = &mut world.nodes[i].replica else { return };
        replica.leave(now);
        world.drain(i);
        let own = world.links.iter().filter(|(_, link)| link.ends.contains(&i));
        let links: Vec<(LinkId, usize)> =
            own.filter_map(|(id, _)| Some((*id, world.other_end(*id, i)?))).collect();
        for (id, to) in links {
            // One packet tells that a connection was closed. The frame that tells it too may arrive without that
            // packet.
            if !world.chance(world.loss) {
                let later = world.flight(i, to);
                world.schedule(later, SimEvent::PeerClosing(id, to, PeerExit::Leaves));
            }
        }
        world.stop(i);
    }
}

impl World {
    pub(super) fn reawaken(&mut self) {
        for (sequence, event) in std::mem::take(&mut self.waiting) {
            if self.is_held(&event) {
                self.waiting.insert(sequence, event);
            } else {
                self.queue.insert((self.now, sequence), event);
            }
        }
    }

    /// Whether an event has to wait because its node's process is stopped.
    pub(super) fn is_asleep(&self, event: &SimEvent) -> bool {
        let to = match event {
            SimEvent::Datagram(_, to, _)
            | SimEvent::Stream(_, to, ..)
            | SimEvent::Drained(_, to, ..)
            | SimEvent::Packet(_, to, ..)
            | SimEvent::Dial(_, to, _)
            | SimEvent::PeerClosing(_, to, _)
            | SimEvent::Wake(to, _)
            | SimEvent::Drain(to, _)
            | SimEvent::Persisted(to, ..) => *to,
            SimEvent::Connect(..) | SimEvent::Down(_) => return false,
        };
        self.nodes[to].is_paused
    }

    pub(super) fn member(&mut self, i: usize) -> Member {
        use rand_core::Rng;
        let mut member =
            Member::new(&*self.nodes[i].name, RunId::new(self.random.next_u64()), self.nodes[i].addr);
        member.meta_version = 1;
        member.meta.insert("zone".to_owned(), format!("z{}", i % 3));
        member
    }

    pub(super) fn run_of(&self, i: usize) -> Option<RunId> {
        let replica = self.nodes[i].replica.as_ref()?;
        replica.own_member().map(|member| member.run)
    }

    /// Whether a node has nobody to catch up with.
    pub(super) fn is_alone(&self, i: usize) -> bool {
        match &self.seeds {
            Some(seeds) => seeds.iter().all(|seed| *seed == i),
            None => self.nodes.len() == 1,
        }
    }

    /// The member that wrote what has this stamp, as node `i` knows it.
    pub(super) fn member_of(&self, stamp: Stamp, i: usize) -> Option<Member> {
        if self.seeds.is_none() {
            let of = |replica: &Replica| replica.store.first_run == stamp.origin;
            let at = self.nodes.iter().position(|node| node.replica.as_ref().is_some_and(of))?;
            return Some(Member::new(name(at), stamp.origin, self.nodes[at].addr));
        }
        self.nodes[i].replica.as_ref()?.member_of(stamp).cloned()
    }

    pub(super) fn note_unlinked(&mut self, id: LinkId, a: usize, b: usize) {
        for (to, who) in [(a, b), (b, a)] {
            let who = self.nodes[who].replica.as_ref().and_then(Replica::own_member).cloned();
            if let Some(who) = who {
                self.input(to, Input::LinkIdentified(id, &who, PACKET_BYTES_MIN));
            }
        }
    }

    pub(super) fn member_output(&mut self, i: usize, output: Output) {
        match output {
            Output::MemberDatagram(to, bytes) => self.packet(i, to, bytes),
            Output::Dial(to) => self.dial(i, to.addr),
            Output::Seek => {
                let seeds = self.seeds.clone().unwrap_or_default();
                for seed in seeds {
                    // The addresses of seeds are looked up at each attempt.
                    self.dial(i, self.nodes.get(seed).map_or(addr(seed, 0), |node| node.addr));
                }
            }
            Output::Member(event) => {
                if let MemberEvent::Forgotten(member) = &event {
                    self.oracle.end_run(member.run);
                }
                self.member_events.push((self.now, i, event));
            }
            _ => unreachable!("only member outputs come here"),
        }
    }

    fn packet(&mut self, from: usize, to: Contact, bytes: Vec<u8>) {
        self.bytes += bytes.len() as u64;
        self.sendings += 1;
        let Some(i) = self.at(to.addr) else { return };
        let own = self.nodes[from].replica.as_ref().and_then(Replica::own_member).cloned();
        if let Some(own) = own
            && !self.chance(self.loss)
            && !self.cuts.contains(&(from, i))
        {
            let later = self.flight(from, i);
            self.schedule(later, SimEvent::Packet(Box::new(own), i, to.run, bytes));
        }
    }

    pub(super) fn at(&self, addr: SocketAddr) -> Option<usize> {
        // Addresses are made from the index, so that a thousand nodes need no search.
        let std::net::IpAddr::V4(ip) = addr.ip() else { return None };
        let [_, _, a, b] = ip.octets();
        let i = usize::from(u16::from_be_bytes([a, b]));
        (self.nodes.get(i)?.addr == addr).then_some(i)
    }

    fn dial(&mut self, from: usize, addr: SocketAddr) {
        if let Some(to) = self.at(addr)
            && to != from
        {
            let later = self.flight(from, to) + self.flight(to, from);
            self.schedule(later, SimEvent::Dial(from, to, addr));
        }
    }

    pub(super) fn dialled(&mut self, from: usize, to: usize, addr: SocketAddr) {
        let is_there = self.nodes[to].addr == addr && self.is_up(from) && !self.nodes[from].is_paused;
        if is_there && !self.chance(self.loss) && self.settings_fit(from, to) {
            self.connect(from, to);
        }
    }

    /// Whether both nodes accept the shared settings with which the other one is configured.
    fn settings_fit(&self, a: usize, b: usize) -> bool {
        let fits = |judge: usize, other: usize| {
            let claim = self.nodes[other].replica.as_ref().map(Replica::settings_claim);
            let judge = self.nodes[judge].replica.as_ref();
            judge.zip(claim).is_none_or(|(judge, claim)| judge.judge_settings(claim).is_ok())
        };
        fits(a, b) && fits(b, a)
    }
}

impl SimNode {
    /// Forgets a member that is gone, as `Node::forget` does.
    ///
    /// # Errors
    /// See [`ForgetError`]; nothing is changed then.
    pub fn forget(&self, name: &str) -> Result<SimReceipt, ForgetError> {
        let mut world = self.world();
        let (replica, now) = world.replica(self.i).ok_or(WriteError::Closed)?;
        let stamp = replica.forget(now, name)?;
        let revision = replica.head();
        world.oracle.note_unrecorded_expiry();
        world.drain(self.i);
        Ok(SimReceipt { stamp: Some(stamp), revision })
    }
}
