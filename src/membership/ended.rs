//! Runs that have ended and whose place another run of their name has taken.
//!
//! They are no members any more: they are not listed, dialled, counted or told of. What they wrote stays, though, and
//! people want to know who that was. So their names are kept for as long as members that are gone are remembered. The
//! failure detector remembers their ends for as long, so that hearsay does not bring them back.
//!
//! A run that was proven stays with its name here as well: nobody can take it under another one afterwards
//! ([`Members::is_of_other`]).

use std::time::Duration;

use super::{Contact, KnownMember, MemberState, Members, times};
use crate::id::RunId;
use crate::membership::Member;

/// The most ended runs whose names are kept. Beyond it those go first that were only heard of, and of the others the
/// one that ended first.
pub(super) const ENDED_RUNS_MAX: usize = 1_024;
/// A run that has ended is told of it at most once in this many probe intervals, however often others say that it lives,
/// and at whatever addresses.
const END_PAUSE_INTERVALS: u32 = 2;

/// A run that has ended.
#[derive(Debug)]
pub(super) struct EndedRun {
    /// Without its metadata.
    member: Member,
    is_proven: bool,
    /// When its place was taken, by the monotonic clock.
    at: Duration,
    /// From when on it may be told of its end, if somebody says that it lives.
    tell_at: Duration,
}

impl EndedRun {
    pub(super) fn is_of_other(&self, name: &str) -> bool {
        self.is_proven && self.member.name != name
    }
}

impl Members {
    /// The member that is, or was, this run.
    pub(crate) fn of_run_ever(&self, run: RunId) -> Option<&Member> {
        self.of_run(run).or_else(|| self.ended.get(&run).map(|ended| &ended.member))
    }

    /// Where to tell a run that has ended here of its end, because somebody says that it lives. `None` if it was told
    /// less than [`END_PAUSE_INTERVALS`] ago. One that was proven is told at the address where it was proven.
    pub(super) fn where_to_tell(&mut self, who: &Member) -> Option<Contact> {
        let pause = times(self.config.probe_interval, END_PAUSE_INTERVALS);
        let ended = self.ended.get_mut(&who.run).filter(|ended| ended.tell_at <= self.now.mono)?;
        ended.tell_at = self.now.mono + pause;
        Some(if ended.is_proven { ended.member.contact() } else { who.contact() })
    }

    /// Keeps the name of a run whose place another one has taken.
    pub(super) fn remember_ended(&mut self, known: &KnownMember) {
        let KnownMember { member, is_proven, .. } = known;
        if self.ended.get(&member.run).is_some_and(|ended| ended.is_proven && !is_proven) {
            return;
        }
        let state = if member.state.is_alive() { MemberState::Down } else { member.state };
        let gone =
            Member { state, since: member.since, ..Member::new(&*member.name, member.run, member.addr) };
        let tell_at = self.ended.get(&member.run).map_or(Duration::ZERO, |ended| ended.tell_at);
        let ended = EndedRun { member: gone, is_proven: *is_proven, at: self.now.mono, tell_at };
        self.ended.insert(member.run, ended);
        if self.ended.len() > ENDED_RUNS_MAX {
            let first = self.ended.iter().min_by_key(|(_, ended)| (ended.is_proven, ended.at));
            first.map(|(run, _)| *run).into_iter().for_each(|run| self.forget_end(run));
        }
    }

    fn forget_end(&mut self, run: RunId) {
        self.ended.remove(&run);
        // It may have come back.
        if !self.known.contains_key(&run) {
            self.forget_in_detector(run);
        }
    }

    /// Forgets the runs that ended too long ago.
    pub(super) fn forget_ended(&mut self) {
        let (now, forget_after) = (self.now.mono, self.config.forget_after);
        let due = self.ended.iter().filter(|(_, ended)| ended.at + forget_after <= now);
        let due: Vec<RunId> = due.map(|(run, _)| *run).collect();
        due.into_iter().for_each(|run| self.forget_end(run));
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use rand_chacha::ChaCha8Rng;
    use rand_core::SeedableRng;

    use super::super::tests::{frame_of, member, members, tell, tell_frame};
    use super::super::{MemberEffect, PeerExit};
    use super::*;
    use crate::controls::Controls;
    use crate::time::Time;
    use crate::wire::Reader;

    fn at(secs: u64) -> Time {
        Time { mono: Duration::from_secs(secs), wall: Duration::from_secs(secs) }
    }

    fn named(run: u64, name: &str) -> Member {
        Member { name: name.to_owned(), ..member(run) }
    }

    /// A cluster in which the run 2 of `n2` was proven and then replaced by the run 3.
    fn replaced() -> Members {
        let mut own = members();
        own.on_link_member(at(1), &named(2, "n2"), 0);
        own.unlinked(RunId::new(2));
        own.on_link_member(at(2), &named(3, "n2"), 0);
        assert!(own.others().all(|member| member.run == RunId::new(3)));
        own
    }

    fn name_of(own: &Members, run: u64) -> Option<&str> {
        own.of_run_ever(RunId::new(run)).map(|member| &*member.name)
    }

    #[test]
    fn replaced_run_keeps_its_name_until_it_is_forgotten() {
        let mut own = replaced();
        assert_eq!((name_of(&own, 2), name_of(&own, 3)), (Some("n2"), Some("n2")));
        assert!(!own.of_run_ever(RunId::new(2)).unwrap().state.is_alive());
        assert!(own.of_run(RunId::new(2)).is_none(), "it is no member");
        let forget_after = own.config.forget_after.as_secs();
        own.forget_due(at(forget_after), &BTreeSet::new());
        assert_eq!(name_of(&own, 2), Some("n2"));
        own.forget_due(at(forget_after + 3), &BTreeSet::new());
        assert_eq!(name_of(&own, 2), None);
    }

    #[test]
    fn replaced_run_that_was_proven_gets_no_other_name() {
        let mut own = replaced();
        assert!(own.is_of_other(RunId::new(2), "thief") && !own.is_of_other(RunId::new(2), "n2"));
        own.on_link_member(at(3), &named(2, "thief"), 0);
        assert!(!own.add_by_hearsay(&named(2, "thief")));
        assert_eq!(name_of(&own, 2), Some("n2"));
    }

    #[test]
    fn run_whose_end_was_made_up_is_told_and_comes_back() {
        let (mut own, run) = (replaced(), RunId::new(2));
        own.on_link_member(at(3), &named(4, "n4"), 0);
        own.effects.clear();
        tell(&mut own, 4, [named(2, "n2")]);
        assert!(own.of_run(run).is_none(), "under the identity that has ended it stays away");
        let packet = own.effects.iter().find_map(|effect| match effect {
            MemberEffect::Packet(to, bytes) if *to == named(2, "n2").contact() => Some(bytes),
            _ => None,
        });
        let (_, packet) = Reader::new(packet.expect("it is told")).unwrap();
        let random = &mut ChaCha8Rng::seed_from_u64(2);
        let mut told = Members::new(named(2, "n2"), &own.config, Controls::default(), random);
        told.on_link_member(at(3), &own.own, 0);
        told.handle_packet(at(3), own.own.run, packet).unwrap();
        let frame = told.tell_own();
        let (_, record) = Reader::new(&frame[4..]).unwrap();
        own.roster(at(4), Some(RunId::new(4)), record).unwrap();
        assert!(own.of_run(run).is_some_and(|member| member.state.is_alive()));
    }

    /// The addresses at which this run is told something.
    fn told_at(own: &mut Members, run: u64) -> Vec<std::net::SocketAddr> {
        let told = own.effects.drain(..).filter_map(|effect| match effect {
            MemberEffect::Packet(to, _) if to.run == RunId::new(run) => Some(to.addr),
            _ => None,
        });
        told.collect()
    }

    #[test]
    fn end_is_told_once_in_a_pause_whatever_addresses_are_named() {
        let mut own = replaced();
        tell(&mut own, 3, [named(20, "heard"), named(21, "heard")]);
        own.on_process_end(at(3), RunId::new(20), PeerExit::Ends);
        assert!(own.of_run(RunId::new(20)).is_none() && own.ended(RunId::new(20)).is_some());
        let elsewhere = |n: u32| Member { addr: (n.to_be_bytes(), 7_400).into(), ..named(20, "heard") };
        for secs in [4, 9] {
            own.effects.clear();
            let mut told = Vec::new();
            for frame in 0..1_000 {
                let records = (0..40).map(|n| (elsewhere(frame * 40 + n), 0, false));
                tell_frame(&mut own, at(secs), 3, &frame_of(records));
                told.extend(told_at(&mut own, 20));
            }
            assert_eq!(told.len(), 1, "{told:?}");
        }
        // One that was proven is told where it was proven.
        tell_frame(
            &mut own,
            at(9),
            3,
            &frame_of([(Member { run: RunId::new(2), ..elsewhere(7) }, 0, false)]),
        );
        assert_eq!(told_at(&mut own, 2), [named(2, "n2").addr]);
    }

    #[test]
    fn detector_forgets_ended_runs_with_their_names() {
        let mut own = replaced();
        for first in (1..11).map(|n| n * 10_000) {
            tell_frame(
                &mut own,
                at(3),
                3,
                &frame_of((first..=first + 1_000).map(|run| (named(run, "x"), 0, false))),
            );
            for run in first..first + 1_000 {
                own.on_process_end(at(3), RunId::new(run), PeerExit::Ends);
            }
        }
        assert!(own.known.len() < 20, "they are replaced");
        assert!(own.detector.iter_membership_state().len() <= ENDED_RUNS_MAX + own.known.len() + 1);
        // The failure detector remembers one whose name is kept, until that is forgotten.
        assert!(own.ended(RunId::new(2)).is_some());
        own.forget_due(at(own.config.forget_after.as_secs() + 4), &BTreeSet::new());
        assert!(own.ended.is_empty());
        assert!(own.detector.iter_membership_state().len() <= own.known.len() + 1);
    }

    #[test]
    fn names_of_ended_runs_are_bounded_and_proven_ones_stay() {
        let mut own = replaced();
        for run in 10..10 + 2 * ENDED_RUNS_MAX as u64 {
            own.remember_ended(&KnownMember::new(named(run, "heard"), at(3), Duration::ZERO));
        }
        assert_eq!(own.ended.len(), ENDED_RUNS_MAX);
        assert_eq!((name_of(&own, 2), name_of(&own, 10)), (Some("n2"), None));
    }
}
