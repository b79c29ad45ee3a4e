//! The replica's side of elections: which members are the voters, and promises that must be on the disk before they are
//! sent.

use super::{Output, Replica, ReplicaEvent, VOTER_MEMO};
use crate::config::ELECTIONS_MAX;
use crate::election::{Attempts, Delivery, ElectionEffect, ElectionMessage, Elections, Leader, Living};
use crate::error::ElectionError;
use crate::id::{LeaseId, RunId};
use crate::membership::{Member, Members};
use crate::store::digest::fingerprint;
use crate::time::{Stamp, Time};
use crate::wire::{Reader, WireError};

/// Answers that wait for the disk: as many as a voter knows leases.
pub(super) const PROMISES_MAX: usize = ELECTIONS_MAX;

/// A voter's answer that must not be sent before the disk has what it promises.
#[derive(Debug)]
pub(super) struct Promise {
    /// The number of memo changes that the disk must have first.
    memo_count: u64,
    to: RunId,
    message: ElectionMessage,
}

impl Replica {
    /// Begins to campaign for a lease; with `is_once`, tries only once. The outcome comes as [`Output::Lease`].
    ///
    /// # Errors
    /// See [`ElectionError`]; nothing began then.
    pub fn campaign(
        &mut self,
        now: Time,
        name: &str,
        value: &[u8],
        attempts: Attempts,
    ) -> Result<LeaseId, ElectionError> {
        self.in_elections(now, |election| election.campaign(now, name, value, attempts))
    }

    /// Gives up a lease or a campaign.
    pub fn resign(&mut self, now: Time, id: LeaseId) {
        _ = self.in_elections(now, |election| {
            election.resign(now, id);
            Ok(())
        });
    }

    /// Changes the value that a leader publishes. Its term stays.
    ///
    /// # Errors
    /// If the value is too large, or the lease is not held.
    pub fn proclaim(&mut self, now: Time, id: LeaseId, value: &[u8]) -> Result<(), ElectionError> {
        self.in_elections(now, |election| election.proclaim(now, id, value))
    }

    /// The token of a lease that is held, and the time at which it ends by the monotonic clock.
    pub fn lease(&self, now: Time, id: LeaseId) -> Option<(Stamp, Time)> {
        let (term, until) = self.election.as_ref()?.lease(id)?;
        let left = until.checked_sub(now.mono).filter(|left| !left.is_zero())?;
        Some((term, now.later_by(left)))
    }

    /// The token of a lease that this replica holds, by its name.
    pub fn holds(&self, now: Time, name: &str) -> Option<Stamp> {
        let (term, until) = self.election.as_ref()?.holds(name)?;
        (until > now.mono).then_some(term)
    }

    /// Begins to observe who holds a lease. Changes come as [`Output::Leader`].
    ///
    /// # Errors
    /// See [`ElectionError`]; nothing began then.
    pub fn observe(&mut self, now: Time, name: &str) -> Result<(), ElectionError> {
        self.in_elections(now, |election| election.observe(now, name))
    }

    /// Ends one [`Replica::observe`]. Returns whether it was the last of that name.
    pub fn unobserve(&mut self, name: &str) -> bool {
        self.election.as_mut().is_none_or(|election| election.unobserve(name))
    }

    /// Who holds a lease that is observed, as far as that is known.
    pub fn leader(&self, name: &str) -> Option<&Option<Leader>> {
        self.election.as_ref()?.leader(name)
    }

    /// The live member that the lease's name hashes to, as this replica sees the members. Nodes may disagree about it:
    /// it is no election.
    pub fn leader_hint(&self, name: &str) -> Option<&Member> {
        let salt = fingerprint(0, name.as_bytes());
        let living = self.members().filter(|member| member.state.is_alive());
        living.chain(self.own_member()).max_by_key(|member| fingerprint(salt, member.name.as_bytes()))
    }

    /// How many voters have reported on an observed lease, and how many reports are needed.
    #[cfg(feature = "node")]
    pub(crate) fn heard_of_leader(&self, name: &str) -> (usize, usize) {
        self.election.as_ref().map_or((0, 0), |election| election.answered_count(name))
    }

    fn in_elections<T>(
        &mut self,
        now: Time,
        act: impl FnOnce(&mut Elections) -> Result<T, ElectionError>,
    ) -> Result<T, ElectionError> {
        self.now = now;
        self.seat_voters();
        let election = self.election.as_mut().filter(|election| election.has_voters());
        let election = election.ok_or(ElectionError::NoVoters)?;
        election.wake(now);
        let done = act(election);
        election.wake(now);
        self.drain_election_effects();
        done
    }

    /// Assigns the voters' names to the live members that are proven under them. A member that is only heard of has no
    /// seat: it is dialled if this node needs the voter, and nothing is sent to it before its handshake.
    pub(super) fn seat_voters(&mut self) {
        let (Some(election), Some(members)) = (&mut self.election, &mut self.members) else { return };
        election.seat_voters(|name| members.living_named(name));
        for name in election.needed_voters() {
            if let Living::Nobody = members.living_named(name) {
                self.outputs.extend(members.dial_unproven(self.now, name).map(Output::Dial));
            }
        }
    }

    pub(super) fn wake_elections(&mut self) {
        if self.election.as_ref().is_some_and(|election| election.deadline() <= self.now.mono) {
            self.seat_voters();
            self.election.as_mut().expect("just seen").wake(self.now);
        }
    }

    pub(super) fn election_message(&mut self, from: RunId, reader: Reader<'_>) -> Result<(), WireError> {
        let Some(election) = &mut self.election else { return Ok(()) };
        election.datagram(self.now, from, reader)
    }

    /// Gives up all leases.
    pub(crate) fn resign_all(&mut self, now: Time) {
        _ = self.in_elections(now, |election| {
            election.resign_all(now);
            Ok(())
        });
    }

    /// Turns the effects of the elections into outputs. Messages to this node itself are handled here.
    pub(super) fn drain_election_effects(&mut self) {
        while let Some(effect) = self.election.as_mut().and_then(|election| election.effects.pop_front()) {
            match effect {
                ElectionEffect::Send(to, message, Delivery::AtOnce) => self.send_ballot(to, message),
                ElectionEffect::Send(to, message, Delivery::AfterDisk) => {
                    if self.has_disk() {
                        let memo = self.election.as_ref().map(Elections::memo);
                        self.set_memo(VOTER_MEMO, memo.as_deref());
                    }
                    let (mark, _) = self.disk.memo_marks();
                    // A node that gets no answer asks again.
                    if self.promises.len() < PROMISES_MAX {
                        self.promises.push_back(Promise { memo_count: mark, to, message });
                    }
                    self.keep_promises();
                }
                ElectionEffect::Lease(id, state) => self.outputs.push_back(Output::Lease(id, state)),
                ElectionEffect::Leader(name, leader) => self.outputs.push_back(Output::Leader(name, leader)),
                ElectionEffect::Want(ask) => self.want(ask),
                ElectionEffect::Decided(list) => self.on_decided(&list),
                ElectionEffect::Voters(list) => {
                    self.outputs.push_back(Output::Event(ReplicaEvent::VotersChanged(Box::new(list))));
                }
                ElectionEffect::AskEnded(ask, outcome) => self.tell_caller(&ask, outcome),
                ElectionEffect::Differs(run, theirs) => {
                    let member = self.members().find(|member| member.run == run).cloned().map(Box::new);
                    if let (Some(member), Some(election)) = (member, &self.election) {
                        let event = ReplicaEvent::VotersDiffer { member, ours: election.rules(), theirs };
                        self.outputs.push_back(Output::Event(event));
                    }
                }
            }
        }
    }

    /// Sends the answers whose promises the disk has by now.
    pub(super) fn keep_promises(&mut self) {
        let (_, safe) = self.disk.memo_marks();
        let is_safe = |promise: &Promise| !self.has_disk() || promise.memo_count <= safe;
        let count = self.promises.iter().take_while(|promise| is_safe(promise)).count();
        let safe: Vec<Promise> = self.promises.drain(..count).collect();
        safe.into_iter().for_each(|promise| self.send_ballot(promise.to, promise.message));
    }

    fn send_ballot(&mut self, to: RunId, message: ElectionMessage) {
        let (Some(election), Some(members)) = (&mut self.election, &self.members) else { return };
        if to == members.own().run {
            election.message(self.now, to, message);
        } else if message.has_times() && !members.follows_settings(to) {
            // It would break the link.
        } else if let Some(contact) = members.contact(to) {
            self.outputs.push_back(Output::MemberDatagram(contact, message.encode()));
        }
    }

    /// Whether an answer waits for the disk.
    pub fn awaits_disk(&self) -> bool {
        !self.promises.is_empty()
    }

    /// Whether a release is unacknowledged by a voter that may still be reached.
    #[cfg(feature = "node")]
    pub(crate) fn owes_releases(&self) -> bool {
        self.election.as_ref().is_some_and(Elections::owes_releases)
    }
}

impl Members {
    /// The live members that are proven under a name.
    fn living_named(&self, name: &str) -> Living {
        let own = std::iter::once(self.own());
        let mut living =
            own.chain(self.proven()).filter(|member| member.name == name && member.state.is_alive());
        match (living.next(), living.next()) {
            (None, _) => Living::Nobody,
            (Some(member), None) => Living::One(member.run),
            _ => Living::Several,
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::{BreakReason, Input, Lane, Setup};
    use super::*;
    use crate::config::Config;
    use crate::id::LinkId;
    use crate::membership::tests::{member, rosters_of};
    use crate::membership::{Contact, PeerExit};
    use crate::wire::{Abilities, Kind};

    const LIAR: LinkId = LinkId::new(1);
    const VOTER: LinkId = LinkId::new(2);

    fn at(ms: u64) -> Time {
        Time::default().later_by(Duration::from_millis(ms))
    }

    /// A node whose cluster has the voters `n2` and `n3`, linked with `n4`, which is to lie.
    fn candidate() -> Replica {
        let mut config = Config::lan();
        config.voters = ["n2", "n3"].map(str::to_owned).into();
        let own = Member { name: "own".to_owned(), ..member(1) };
        let mut replica = Replica::new(Setup { member: Some(own), ..Setup::new(config, 1) });
        link(&mut replica, LIAR, &member(4));
        replica
    }

    fn link(replica: &mut Replica, id: LinkId, who: &Member) {
        let now = replica.now;
        replica.handle(now, Input::LinkUp(id, Abilities::OURS));
        replica.handle(now, Input::LinkIdentified(id, who, 0));
    }

    /// Lets `n4` tell of another run under a name.
    fn lie(replica: &mut Replica, run: u64, name: &str) {
        let told = Member { name: name.to_owned(), ..member(run) };
        for frame in rosters_of([told]) {
            replica.handle(at(2), Input::Stream(LIAR, Lane::Live, &frame));
        }
    }

    /// What the node sends and dials until then: the runs that are sent ballots, and the contacts that are dialled.
    fn sent(replica: &mut Replica, until_ms: u64) -> (Vec<RunId>, Vec<Contact>) {
        let (mut ballots, mut dials) = (Vec::new(), Vec::new());
        loop {
            while let Some(output) = replica.poll() {
                match output {
                    Output::MemberDatagram(to, bytes)
                        if matches!(Reader::new(&bytes), Ok((Kind::Election, _))) =>
                    {
                        ballots.push(to.run);
                    }
                    Output::Dial(to) => dials.push(to),
                    _ => {}
                }
            }
            let due = replica.deadline();
            if due.mono >= at(until_ms).mono {
                return (ballots, dials);
            }
            replica.handle(due, Input::Wake);
        }
    }

    #[test]
    fn voter_only_heard_of_is_dialled_and_asked_nothing() {
        let mut replica = candidate();
        lie(&mut replica, 77, "n2");
        assert!(replica.is_living(RunId::new(77)), "it is believed to live");
        replica.campaign(at(3), "lease", b"", Attempts::UntilWon).unwrap();
        let (ballots, dials) = sent(&mut replica, 1_500);
        assert_eq!(ballots, []);
        assert!(dials.contains(&member(77).contact()), "a handshake may prove it");
        link(&mut replica, VOTER, &Member { name: "n2".to_owned(), ..member(77) });
        let (ballots, _) = sent(&mut replica, 3_000);
        assert!(ballots.contains(&RunId::new(77)), "now it is proven");
    }

    #[test]
    fn promises_beyond_the_limit_are_not_kept_for_the_disk() {
        let setup = Setup { member: Some(member(1)), has_disk: true, ..Setup::new(Config::lan(), 1) };
        let mut replica = Replica::new(setup);
        let promise = |i: usize| {
            let ballot = Stamp { clock: i as u64, origin: RunId::new(4) };
            let message = ElectionMessage::accepted(ballot);
            ElectionEffect::Send(RunId::new(4), message, Delivery::AfterDisk)
        };
        for i in 0..PROMISES_MAX + 5 {
            replica.election.as_mut().unwrap().effects.push_back(promise(i));
        }
        replica.drain_election_effects();
        assert_eq!(replica.promises.len(), PROMISES_MAX);
        let last = replica.promises.back().unwrap().message.clone();
        let ElectionEffect::Send(_, expected, _) = promise(PROMISES_MAX - 1) else { unreachable!() };
        assert_eq!(last, expected, "those that came first wait for the disk");
        assert!(
            std::iter::from_fn(|| replica.poll()).all(|output| !matches!(output, Output::MemberDatagram(..)))
        );
    }

    #[test]
    fn hearsay_takes_no_seat_of_a_voter() {
        let mut replica = candidate();
        link(&mut replica, VOTER, &member(2));
        lie(&mut replica, 77, "n2");
        replica.campaign(at(3), "lease", b"", Attempts::UntilWon).unwrap();
        let (ballots, _) = sent(&mut replica, 500);
        assert!(ballots.contains(&RunId::new(2)), "it lost its seat");
        assert!(!ballots.contains(&RunId::new(77)));
        // It keeps its seat while it is away.
        replica.handle(at(500), Input::PeerClosing { link: VOTER, exit: PeerExit::Ends });
        lie(&mut replica, 78, "n2");
        let (ballots, _) = sent(&mut replica, 1_500);
        assert!(ballots.iter().all(|run| *run == RunId::new(2)), "{ballots:?}");
    }

    #[test]
    fn link_to_a_proven_run_under_another_name_is_broken() {
        let mut replica = candidate();
        let thief = Member { name: "thief".to_owned(), ..member(4) };
        link(&mut replica, VOTER, &thief);
        let outputs: Vec<Output> = std::iter::from_fn(|| replica.poll()).collect();
        let broken = |output: &Output| matches!(output, Output::Break(VOTER, BreakReason::RunTaken));
        assert!(outputs.iter().any(broken), "{outputs:?}");
        assert!(replica.is_living(RunId::new(4)), "the run lives on under its name");
        // A datagram under the other name is ignored as well.
        let packet = Member { name: "thief".to_owned(), addr: member(9).addr, ..member(4) };
        replica.handle(at(3), Input::MemberDatagram(&packet, &[1, 8]));
        assert!(replica.members().any(|known| known.run == RunId::new(4) && known.addr == member(4).addr));
    }
}
