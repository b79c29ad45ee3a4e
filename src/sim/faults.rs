//! The faults that a simulation can cause: partitions, held-back traffic, crashes, wrong clocks, garbled data and
//! damage.

use std::time::Duration;

use rand_core::Rng;

use super::{Disk, DriftingClock, Sim, SimEvent, World};
use crate::config::Config;
use crate::id::LinkId;
#[cfg(feature = "__controls")]
use crate::membership::Route;
#[cfg(feature = "__controls")]
use crate::store::change_log::LogFilter;
#[cfg(feature = "__controls")]
use crate::store::key;

/// Length, version and kind of a frame. To change these breaks the link and tests nothing else.
const FRAME_HEAD_BYTES: usize = 6;

impl Sim {
    /// Cuts all links between two groups, in both directions.
    pub fn partition(&mut self, a: &[usize], b: &[usize]) {
        let world = &mut *self.world();
        for (x, y) in a.iter().flat_map(|x| b.iter().map(move |y| (*x, *y))) {
            world.cuts.insert((x, y));
            world.cuts.insert((y, x));
            world.break_between(x, y);
        }
    }

    /// Cuts one direction between two nodes. What is sent in it is lost until the link breaks.
    pub fn cut(&mut self, from: usize, to: usize) {
        let world = &mut *self.world();
        world.cuts.insert((from, to));
        let ids: Vec<LinkId> = world.between(from, to);
        for id in ids {
            let later = world.jitter(Duration::from_millis(300));
            world.schedule(later, SimEvent::Down(id));
        }
    }

    /// Ends all cuts.
    pub fn heal(&mut self) {
        self.world().cuts.clear();
    }

    /// Replaces the value of [`Sim::loss`] from now on: the share of all datagrams that is lost, including those to
    /// members that are not linked.
    pub fn set_loss(&mut self, loss: f64) {
        self.world().loss = loss;
    }

    /// Holds back everything on the way from one node to another until [`Sim::resume_traffic`]. Nothing is lost unless
    /// the link breaks meanwhile, and streams stay ordered.
    pub fn delay_traffic(&mut self, from: usize, to: usize) {
        self.world().holds.insert((from, to));
    }

    /// Delivers everything that was held back between two nodes, in its order.
    pub fn resume_traffic(&mut self, from: usize, to: usize) {
        let world = &mut *self.world();
        world.holds.remove(&(from, to));
        world.reawaken();
    }

    /// Divides the nodes into groups by hand, from now on: each list is one group, and a node in no list is alone in its
    /// group. Nodes forward to their group what they receive from other groups. Without any list nobody forwards, as in
    /// the beginning. Nodes with [`Sim::seeds`] find their groups themselves.
    #[cfg(feature = "__controls")]
    #[doc(hidden)]
    pub fn group(&mut self, groups: &[&[usize]]) {
        let world = &mut *self.world();
        world.groups = groups.iter().map(|group| group.to_vec()).collect();
        let links: Vec<LinkId> = world.links.keys().copied().collect();
        links.into_iter().for_each(|id| world.set_routes(id));
        (0..world.nodes.len()).for_each(|i| world.drain(i));
    }

    /// Breaks the links between two nodes. Without [`Sim::seeds`] the simulator makes them again soon.
    pub fn break_between(&mut self, a: usize, b: usize) {
        self.world().break_between(a, b);
    }

    /// Ends a node at once, in the middle of its work.
    pub fn crash(&mut self, i: usize) {
        self.world().crash(i);
    }

    /// Starts a crashed node with what its disk kept, or blank if it has no disk.
    pub fn restart(&mut self, i: usize) {
        self.restart_with(i, Disk::Latest);
    }

    /// Starts a node with the given state of its disk. A running node is crashed first.
    pub fn restart_with(&mut self, i: usize, disk: Disk) {
        let world = &mut *self.world();
        if world.is_up(i) {
            world.crash(i);
        } else if world.seeds.is_some() {
            // The node may have left, and the notice of that may have been lost.
            world.forget_links(i);
        }
        let saved = world.open_disk(i, disk);
        world.start(i, saved);
    }

    /// Gives a node another configuration. It takes effect at its next start.
    pub fn reconfigure(&mut self, i: usize, config: Config) {
        self.world().nodes[i].config = config;
    }

    /// Sets by how many milliseconds a node's wall clock is ahead, or behind if negative.
    pub fn skew(&mut self, i: usize, ms: i64) {
        self.world().nodes[i].skew_ms = ms;
    }

    /// Makes a node's clocks run too fast by this many millionths, or too slow if negative.
    pub fn drift(&mut self, i: usize, ppm: i64) {
        let world = &mut *self.world();
        let node = &mut world.nodes[i];
        node.drifting_clock =
            DriftingClock { since: world.now, own: node.drifting_clock.read(world.now), ppm };
    }

    /// Changes some bytes in this share, 0 to 1, of what a node sends, as a faulty or hostile member would. The result
    /// may be well formed and wrong, and the oracle cannot judge that: use [`Sim::without_checks`].
    pub fn garble(&mut self, i: usize, share: f64) {
        self.world().nodes[i].garbling = share;
    }

    /// Lets a node call its change log by the name of another node's log, as a hostile member would.
    #[cfg(feature = "__controls")]
    #[doc(hidden)]
    pub fn name_log_of(&mut self, i: usize, other: usize) {
        let world = &mut *self.world();
        let log = world.nodes[other].replica.as_ref().map(|replica| replica.store.log.id);
        if let (Some(log), Some(replica)) = (log, &mut world.nodes[i].replica) {
            replica.store.log.id = log;
        }
    }

    /// Multiplies the delay of everything on the way to and from a node by this factor.
    pub fn slow(&mut self, i: usize, factor: u32) {
        self.world().nodes[i].slowness = factor.max(1);
    }

    /// Removes an entry of a register together with its share of the digest, so that the node's own integrity checks
    /// cannot find it.
    #[cfg(feature = "__controls")]
    #[doc(hidden)]
    pub fn misplace(&mut self, i: usize, key: &str) -> bool {
        let mut stored = Vec::new();
        key::register_key(key, &mut stored);
        let world = &mut *self.world();
        world.nodes[i].replica.as_mut().is_some_and(|replica| replica.store.misplace(&stored))
    }

    /// Removes an entry of a register, or changes one bit of its values, without the replica's knowledge.
    #[cfg(feature = "__controls")]
    #[doc(hidden)]
    pub fn damage(&mut self, i: usize, key: &str, flip: bool) -> bool {
        let mut stored = Vec::new();
        key::register_key(key, &mut stored);
        let world = &mut *self.world();
        let node = &mut world.nodes[i];
        let Some(replica) = &mut node.replica else { return false };
        let done = if flip { replica.store.flip(&stored) } else { replica.store.lose(&stored) };
        node.is_tainted |= done;
        done
    }
}

impl World {
    fn break_between(&mut self, a: usize, b: usize) {
        self.between(a, b).into_iter().for_each(|id| self.break_link(id));
    }

    fn crash(&mut self, i: usize) {
        if self.stop(i) {
            self.crash_disk(i);
        }
        self.nodes[i].is_paused = false;
        if self.seeds.is_some() {
            self.forget_links(i);
            return;
        }
        let of_node = self.links.iter().filter(|(_, link)| link.ends.contains(&i));
        let ids: Vec<LinkId> = of_node.map(|(id, _)| *id).collect();
        ids.into_iter().for_each(|id| self.break_link(id));
    }

    pub(super) fn is_held(&self, event: &SimEvent) -> bool {
        if self.is_asleep(event) {
            return true;
        }
        let (from, to) = match event {
            SimEvent::Datagram(id, to, _) | SimEvent::Stream(id, to, ..) => (self.other_end(*id, *to), *to),
            SimEvent::Packet(from, to, ..) => (self.at(from.addr), *to),
            _ => return false,
        };
        from.is_some_and(|from| self.holds.contains(&(from, to)))
    }

    /// Routes a link as the groups of its ends demand.
    #[cfg(feature = "__controls")]
    pub(super) fn set_routes(&mut self, id: LinkId) {
        let [a, b] = self.links[&id].ends;
        let are_mates = self.groups.iter().any(|group| group.contains(&a) && group.contains(&b));
        let route = Route {
            feeds: true,
            filter: if are_mates { LogFilter::Forwarded } else { LogFilter::Own },
            is_other_group: !are_mates && !self.groups.is_empty(),
        };
        for end in [a, b] {
            if let Some(replica) = &mut self.nodes[end].replica {
                replica.set_route(id, route);
            }
        }
    }

    /// Removes the links of a node without telling anybody: to notice that is the failure detector's task.
    fn forget_links(&mut self, i: usize) {
        self.links.retain(|_, link| !link.ends.contains(&i));
    }

    pub(super) fn garbled(&mut self, i: usize, mut bytes: Vec<u8>) -> Vec<u8> {
        if bytes.len() <= FRAME_HEAD_BYTES || !self.chance(self.nodes[i].garbling) {
            return bytes;
        }
        let at = FRAME_HEAD_BYTES + self.random.next_u32() as usize % (bytes.len() - FRAME_HEAD_BYTES);
        match self.random.next_u32() % 3 {
            0 => bytes[at] ^= 1 << (self.random.next_u32() % 8),
            1 => bytes[at..].iter_mut().take(8).for_each(|byte| *byte = 0xff),
            _ => bytes[at..].iter_mut().take(8).for_each(|byte| *byte = self.random.next_u32() as u8),
        }
        bytes
    }
}
