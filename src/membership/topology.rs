//! The topology of the cluster: which members are linked with each other, and which rows each link carries.
//!
//! Up to [`Config::mesh_members_max`](crate::Config::mesh_members_max) members everybody sends its writes to everybody.
//! Above that, the cluster is cut into 2^⌊(log2 n) / 2⌋ groups, about √n, by the hash of the members' names: 64 members
//! make 8 groups of 8, 1,000 members 16 groups of about 62. A node is linked with its **mates**, the other members of
//! its own group, and with one **delegate** in every other group. It sends its own writes to all of them, and each
//! delegate forwards them to its mates ([`crate::replication::claims`]): two hops, and every write arrives once. Since
//! the failure detector informs everybody about who lives, every node computes its place by itself: there is no tree to
//! be built, repaired or agreed upon. The members of a group share out the delegates in another group among them
//! ([`preferred`]), so that each delegate has about as much to forward as its mates. While nodes do not agree yet on
//! the number of groups, they miss or repeat some of each other's writes, and the checks repair that.
//!
//! A delegate whose acknowledgements are overdue ([`Members::note_ack`]) gets a substitute: the next linked member of
//! its group is sent the writes as well, until the delegate acknowledges again. The timeout follows the usual round
//! trip of the link on purpose: where links are full all acknowledgements are slow, and sending the writes twice would
//! keep the links full for ever.

use std::collections::BTreeSet;

use super::{AckState, Members};
use crate::id::RunId;
use crate::store::change_log::LogFilter;
use crate::store::digest::fingerprint;

/// The most members of one group that are dialled in the search for a delegate.
const CANDIDATES_MAX: usize = 4;
/// After this many failed dials of one candidate the next one is dialled as well.
const DIALS_IN_VAIN: u32 = 2;

/// Which rows are sent over a link, and what becomes of the rows that arrive there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Route {
    /// This node sends rows over the link as they are written, and sends checks.
    pub(crate) feeds: bool,
    /// Which rows are sent.
    pub(crate) filter: LogFilter,
    /// The peer is in another group: rows that arrive from it are to be forwarded to the mates.
    pub(crate) is_other_group: bool,
}

/// This node's place in the cluster: its group, the other groups, and its delegates there.
#[derive(Debug, Default)]
pub(super) struct Topology {
    mates: BTreeSet<RunId>,
    /// The members of every other group, preferred delegates first.
    groups: Vec<Vec<RunId>>,
    delegates: BTreeSet<RunId>,
    /// The members to be linked with.
    pub(super) neighbours: BTreeSet<RunId>,
    version: u64,
}

/// The number of bits of the name's hash that select the group. 0: there is one group.
fn group_bits(members: usize, mesh_members_max: usize) -> u32 {
    if members <= mesh_members_max { 0 } else { members.ilog2() / 2 }
}

fn group_of(name: &str, bits: u32) -> u64 {
    fingerprint(0, name.as_bytes()).checked_shr(64 - bits).unwrap_or(0)
}

/// How much a writer prefers another run as its delegate. All nodes compute the same. Runs are random already, and this
/// is computed for each pair of them whenever the members change: a hash that resists attackers would cost more.
fn affinity(writer: RunId, delegate: RunId) -> u64 {
    const ODD: u64 = 0x9E37_79B9_7F4A_7C15;
    let mixed = (writer.number() ^ delegate.number().rotate_left(32)).wrapping_mul(ODD);
    (mixed ^ (mixed >> 32)).wrapping_mul(ODD)
}

/// The member of another group that this node prefers as delegate. The members of its own group choose in turn; each
/// takes the one that it prefers among those chosen least often. So every delegate gets as much to forward as its
/// mates, and one member more or less changes few choices.
fn preferred(own: RunId, mates: &BTreeSet<RunId>, group: &[RunId]) -> RunId {
    let mut chosen = vec![0_u32; group.len()];
    let mut choose = |writer: RunId| {
        let liked = |i: &usize| (chosen[*i], !affinity(writer, group[*i]), group[*i]);
        let best = (0..group.len()).min_by_key(liked).expect("no group is empty");
        chosen[best] += 1;
        group[best]
    };
    mates.range(..own).for_each(|mate| _ = choose(*mate));
    choose(own)
}

impl Members {
    /// The route of a link to this run.
    pub(crate) fn route(&self, run: RunId) -> Route {
        let Topology { mates, groups, delegates, .. } = &self.topology;
        let is_one = groups.is_empty();
        if mates.contains(&run) {
            let filter = if is_one { LogFilter::Own } else { LogFilter::Forwarded };
            return Route { feeds: true, filter, is_other_group: false };
        }
        Route { feeds: delegates.contains(&run), filter: LogFilter::Own, is_other_group: !is_one }
    }

    /// Grows whenever [`Members::route`] may return something else.
    pub(crate) fn topology_version(&self) -> u64 {
        self.topology.version
    }

    /// The number of the group that a member belongs to.
    pub(crate) fn group(&self, run: RunId) -> u64 {
        let bits = group_bits(self.living(), self.config.mesh_members_max);
        self.known.get(&run).map_or(0, |known| group_of(&known.member.name, bits))
    }

    /// How many living members, without this node, belong to a group.
    pub(crate) fn group_len(&self, group: u64) -> usize {
        let bits = group_bits(self.living(), self.config.mesh_members_max);
        let alive = self.known.values().filter(|known| known.member.state.is_alive());
        alive.filter(|known| group_of(&known.member.name, bits) == group).count()
    }

    /// How many members this node's own group has, without itself.
    pub(crate) fn mates(&self) -> usize {
        self.topology.mates.len()
    }

    /// Records that a peer has acknowledged rows, or that an acknowledgement is overdue.
    pub(crate) fn note_ack(&mut self, run: RunId, acks: AckState) {
        if let Some(known) = self.known.get_mut(&run)
            && known.acks != acks
        {
            known.acks = acks;
            self.choose_delegates();
        }
    }

    /// Computes this node's place among the living members.
    pub(super) fn set_topology(&mut self) {
        self.is_stale = false;
        let alive = || self.known.values().filter(|known| known.member.state.is_alive());
        let bits = group_bits(1 + alive().count(), self.config.mesh_members_max);
        let own = group_of(&self.own.name, bits);
        let mut groups = vec![Vec::new(); 1 << bits];
        for known in alive() {
            groups[group_of(&known.member.name, bits) as usize].push(known.member.run);
        }
        let mates: BTreeSet<RunId> = std::mem::take(&mut groups[own as usize]).into_iter().collect();
        groups.retain(|group| !group.is_empty());
        for group in &mut groups {
            let first = preferred(self.own.run, &mates, group);
            group.sort_unstable_by_key(|run| (*run != first, !affinity(self.own.run, *run), *run));
        }
        let topology = &mut self.topology;
        if (&mates, groups.is_empty()) != (&topology.mates, topology.groups.is_empty()) {
            topology.version += 1;
        }
        (topology.mates, topology.groups) = (mates, groups);
        self.choose_delegates();
    }

    /// Chooses the delegates: in every other group the linked members up to the first one that acknowledges in time.
    /// Its neighbours there are the candidates up to the first one that is linked and not overdue, or that is not
    /// linked and was dialled less than `DIALS_IN_VAIN` times.
    pub(super) fn choose_delegates(&mut self) {
        let (mut delegates, mut neighbours) = (BTreeSet::new(), self.topology.mates.clone());
        for group in &self.topology.groups {
            // One whose acknowledgements are overdue is still sent everything: only so can it show that it is back.
            for known in group.iter().filter_map(|run| self.known.get(run)).filter(|known| known.links > 0) {
                delegates.insert(known.member.run);
                if known.acks == AckState::OnTime {
                    break;
                }
            }
            for known in group.iter().filter_map(|run| self.known.get(run)).take(CANDIDATES_MAX) {
                neighbours.insert(known.member.run);
                let is_there = if known.links > 0 {
                    known.acks != AckState::Overdue
                } else {
                    known.dials < DIALS_IN_VAIN
                };
                if is_there {
                    break;
                }
            }
        }
        for run in
            neighbours.difference(&self.topology.neighbours).filter(|run| !self.topology.mates.contains(run))
        {
            // The other side does not know of this choice and will not dial.
            if let Some(known) = self.known.get_mut(run) {
                known.dial_at = self.now.mono;
                self.tend_at = self.now.mono;
            }
        }
        self.topology.version += u64::from(self.topology.delegates != delegates);
        (self.topology.delegates, self.topology.neighbours) = (delegates, neighbours);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::super::tests::{member, members};
    use super::super::{KnownMember, MemberState, Members};
    use super::*;
    use crate::time::Time;

    /// The state of every node in a cluster of that many members, where every wanted link exists.
    fn cluster(count: u64) -> BTreeMap<RunId, Members> {
        let one = |own: u64| {
            let mut one = members();
            one.own = member(own);
            for run in (1..=count).filter(|run| *run != own) {
                let mut known = KnownMember::new(member(run), Time::default(), Duration::ZERO);
                (known.member.state, known.links, known.acks) = (MemberState::Alive, 1, AckState::OnTime);
                one.known.insert(RunId::new(run), known);
            }
            one.set_topology();
            (RunId::new(own), one)
        };
        (1..=count).map(one).collect()
    }

    /// How often each node is sent a write, and over how many hops at most.
    fn spread(cluster: &BTreeMap<RunId, Members>, writer: RunId) -> (BTreeMap<RunId, u32>, u32) {
        let (mut sent, mut hops) = (BTreeMap::from([(writer, 1)]), 0);
        let mut wave = vec![(writer, writer)];
        while !wave.is_empty() && hops < 10 {
            let mut next = Vec::new();
            for (from, at) in wave {
                let is_news = at == writer || cluster[&at].route(from).is_other_group;
                for to in cluster.keys().filter(|to| **to != at && is_news) {
                    let route = cluster[&at].route(*to);
                    if route.feeds && (at == writer || route.filter == LogFilter::Forwarded) {
                        *sent.entry(*to).or_default() += 1;
                        next.push((at, *to));
                    }
                }
            }
            wave = next;
            hops += 1;
        }
        (sent, hops - 1)
    }

    #[test]
    fn every_write_reaches_every_member_once_over_at_most_two_hops() {
        for (count, hops_max, links_max) in [(2, 1, 1), (30, 1, 29), (31, 2, 20), (100, 2, 40), (500, 2, 70)]
        {
            let cluster = cluster(count);
            for writer in [1, count / 2, count] {
                let (sent, hops) = spread(&cluster, RunId::new(writer.max(1)));
                assert!(hops <= hops_max, "{hops} hops among {count}");
                assert_eq!(sent.len() as u64, count);
                assert!(sent.values().all(|times| *times == 1), "among {count}: {sent:?}");
            }
            let links = cluster.values().map(|one| one.topology.neighbours.len()).max();
            assert!(links <= Some(links_max), "{links:?} links among {count}");
        }
    }

    #[test]
    fn forwarding_load_is_even_within_a_group() {
        for count in [31, 64, 100, 128, 500] {
            let cluster = cluster(count);
            for group in 0..1 << group_bits(count as usize, 30) {
                let of = |run: &RunId| group_of(&cluster[run].own.name, group_bits(count as usize, 30));
                let (inside, outside): (Vec<RunId>, Vec<RunId>) =
                    cluster.keys().partition(|run| of(run) == group);
                let writers =
                    |run: &RunId| outside.iter().filter(|writer| cluster[writer].route(*run).feeds).count();
                let most = inside.iter().map(writers).max().unwrap_or(0);
                let even = outside.len().div_ceil(inside.len().max(1));
                assert!(
                    most <= even + even.div_ceil(3) + 1,
                    "{most} writers where {even} would be even, of {count}"
                );
            }
        }
    }

    #[test]
    fn late_or_gone_delegate_is_backed_up_by_the_next() {
        let mut cluster = cluster(100);
        let own = cluster.get_mut(&RunId::new(1)).unwrap();
        let group = own.topology.groups[0].clone();
        let sent_to = |own: &Members| -> Vec<RunId> {
            group.iter().copied().filter(|run| own.route(*run).feeds).collect()
        };
        assert_eq!(sent_to(own), group[..1]);
        own.note_ack(group[0], AckState::Overdue);
        assert_eq!(sent_to(own), group[..2], "the overdue one is still sent everything");
        own.note_ack(group[1], AckState::Overdue);
        assert_eq!(sent_to(own), group[..3]);
        own.note_ack(group[0], AckState::OnTime);
        assert_eq!(sent_to(own), group[..1]);
        own.unlinked(group[0]);
        own.note_ack(group[1], AckState::OnTime);
        assert_eq!(sent_to(own), [group[1]]);
        assert!(own.topology.neighbours.contains(&group[0]), "it is dialled again");
    }
}
