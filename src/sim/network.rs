//! The simulated network: what nodes send, and when it arrives.

use std::time::Duration;

use rand_core::Rng;

use super::{CHUNK_BYTES_MAX, CHUNK_BYTES_MIN, PARTS_PER_SECOND, SimEvent, SimLink, World, nanos};
use crate::id::LinkId;
use crate::replica::{BreakReason, Input, Lane, Output, ReplicaEvent};
use crate::wire::Abilities;

impl World {
    pub(super) fn output(&mut self, i: usize, output: Output) {
        match output {
            Output::Datagram(id, bytes) => {
                let bytes = self.garbled(i, bytes);
                #[cfg(feature = "__controls")]
                self.record_sent(None, &bytes);
                self.send_datagram(i, id, bytes);
            }
            Output::Stream(id, lane, bytes) => {
                let bytes = self.garbled(i, bytes);
                #[cfg(feature = "__controls")]
                let bytes = self.lied(i, id, lane, bytes);
                #[cfg(feature = "__controls")]
                self.record_sent(Some(lane), &bytes);
                if !bytes.is_empty() {
                    self.send(i, id, lane, &bytes);
                }
            }
            Output::Break(id, reason) => {
                self.timeouts += u64::from(reason == BreakReason::TimedOut);
                self.break_link(id);
            }
            Output::MemberDatagram(..) | Output::Dial(_) | Output::Seek | Output::Member(_) => {
                self.member_output(i, output);
            }
            Output::Lease(id, state) => self.lease_output(i, id, state),
            // Not recorded: callers ask the node.
            Output::Leader(..) | Output::RepairBegun(_) | Output::Repair(..) => {}
            Output::VotersSet(outcome) => self.leaders.voters_set(i, outcome),
            Output::SettingsSet(outcome) => self.leaders.settings_set(i, outcome),
            Output::Event(event) => {
                if let ReplicaEvent::VotersChanged(list) = &event {
                    self.check_voter_list(list);
                }
                if event == ReplicaEvent::Damaged {
                    self.nodes[i].is_tainted = false;
                    self.oracle.has_faults = true;
                    self.void_promises(i);
                }
                self.events.push((i, event));
            }
        }
    }

    pub(super) fn send_datagram(&mut self, i: usize, id: LinkId, bytes: Vec<u8>) {
        let Some(to) = self.other_end(id, i) else { return };
        self.bytes += bytes.len() as u64;
        self.sendings += 1;
        let is_lost = self.chance(self.loss) || self.cuts.contains(&(i, to));
        if !is_lost {
            let later = self.flight(i, to);
            if self.chance(self.loss / 4.0) {
                let again = self.flight(i, to) + later;
                self.schedule(again, SimEvent::Datagram(id, to, bytes.clone()));
            }
            self.schedule(later, SimEvent::Datagram(id, to, bytes));
        }
    }

    pub(super) fn send(&mut self, i: usize, id: LinkId, lane: Lane, bytes: &[u8]) {
        let Some(to) = self.other_end(id, i) else { return };
        self.bytes += bytes.len() as u64;
        self.sendings += 1;
        #[cfg(feature = "__controls")]
        if self.is_deaf(to, id, lane) {
            return;
        }
        let mut later = self.flight(i, to);
        while self.chance(self.loss.min(0.9)) {
            later += self.delay * 3;
        }
        let cut = self.cuts.contains(&(i, to));
        let link = self.links.get_mut(&id).expect("the link is there");
        let end = usize::from(link.ends[1] == to);
        link.has_gap[end] |= cut;
        let cut = link.has_gap[end];
        let busy_until = link.departures[end].iter().take(lane as usize + 1).max().expect("there is a lane");
        let mut departure = self.now.max(*busy_until);
        let mut arrival = link.arrivals[end][lane as usize];
        let part_bytes = self.rate.map_or(bytes.len(), |rate| {
            (rate / PARTS_PER_SECOND).clamp(CHUNK_BYTES_MIN, CHUNK_BYTES_MAX) as usize
        });
        for part in bytes.chunks(part_bytes) {
            let taken = self.rate.map_or(0, |rate| part.len() as u128 * 1_000_000_000 / u128::from(rate));
            departure += nanos(taken);
            arrival = arrival.max(departure + later);
            let in_flight = (arrival - departure) / 2;
            self.schedule(arrival - in_flight - self.now, SimEvent::Drained(id, i, lane, part.len()));
            if !cut {
                self.arrive(id, to, lane, arrival - self.now, part);
            }
        }
        if cut {
            self.schedule(Duration::from_millis(200), SimEvent::Down(id));
        }
        let link = self.links.get_mut(&id).expect("the link is there");
        link.departures[end][lane as usize] = departure;
        link.arrivals[end][lane as usize] = arrival;
    }

    pub(super) fn arrive(&mut self, id: LinkId, to: usize, lane: Lane, later: Duration, bytes: &[u8]) {
        if bytes.len() > 1 && self.chance(0.1) {
            // Streams sometimes deliver data in pieces.
            let (first, rest) = bytes.split_at(1 + self.random.next_u32() as usize % (bytes.len() - 1));
            self.schedule(later, SimEvent::Stream(id, to, lane, first.to_vec()));
            self.schedule(later, SimEvent::Stream(id, to, lane, rest.to_vec()));
        } else {
            self.schedule(later, SimEvent::Stream(id, to, lane, bytes.to_vec()));
        }
    }

    // Links.

    pub(super) fn connect(&mut self, a: usize, b: usize) {
        let is_cut = self.cuts.contains(&(a, b)) || self.cuts.contains(&(b, a));
        if !self.between(a, b).is_empty() {
            return;
        }
        if self.seeds.is_some() && (is_cut || !self.is_up(a) || !self.is_up(b)) {
            return;
        }
        if is_cut || !self.is_up(a) || !self.is_up(b) {
            let later = self.jitter(Duration::from_millis(200));
            self.schedule(later, SimEvent::Connect(a, b));
            return;
        }
        let id = self.next_link;
        self.next_link = LinkId::new(id.number() + 1);
        let now = self.now;
        let link =
            SimLink { ends: [a, b], arrivals: [[now; 2]; 2], departures: [[now; 2]; 2], has_gap: [false; 2] };
        self.links.insert(id, link);
        self.input(a, Input::LinkUp(id, Abilities::OURS));
        self.input(b, Input::LinkUp(id, Abilities::OURS));
        #[cfg(feature = "__controls")]
        if !self.groups.is_empty() {
            self.set_routes(id);
        }
        self.note_unlinked(id, a, b);
    }

    pub(super) fn break_link(&mut self, id: LinkId) {
        let Some(link) = self.links.remove(&id) else { return };
        for i in link.ends {
            self.input(i, Input::LinkDown(id));
        }
        if self.seeds.is_some() {
            return;
        }
        let later = self.jitter(Duration::from_millis(50));
        self.schedule(later, SimEvent::Connect(link.ends[0], link.ends[1]));
    }

    pub(super) fn between(&self, a: usize, b: usize) -> Vec<LinkId> {
        let joins = |link: &SimLink| link.ends.contains(&a) && link.ends.contains(&b);
        self.links.iter().filter(|(_, link)| joins(link)).map(|(id, _)| *id).collect()
    }

    pub(super) fn other_end(&self, id: LinkId, i: usize) -> Option<usize> {
        let [a, b] = self.links.get(&id)?.ends;
        Some(if a == i { b } else { a })
    }

    // Randomness.

    pub(super) fn schedule(&mut self, later: Duration, event: SimEvent) {
        self.sequence += 1;
        self.queue.insert((self.now + later, self.sequence), event);
    }

    pub(super) fn chance(&mut self, share: f64) -> bool {
        share > 0.0 && f64::from(self.random.next_u32()) < share * f64::from(u32::MAX)
    }

    pub(super) fn jitter(&mut self, most: Duration) -> Duration {
        most / 4 + most * (self.random.next_u32() % 768) / 1_024
    }

    pub(super) fn flight(&mut self, from: usize, to: usize) -> Duration {
        let slowness = self.nodes[from].slowness.max(self.nodes[to].slowness);
        self.delay / 2 + self.delay * slowness * (self.random.next_u32() % 1_024) / 1_024
    }
}
