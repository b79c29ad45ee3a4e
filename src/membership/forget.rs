//! Members that are forgotten: those that were gone for too long, those that somebody asked to forget, and those whose
//! place is needed.
//!
//! A forgotten member is not listed, counts in no quorum and is not looked for under its run. Each node forgets for
//! itself; nothing is agreed upon. That is enough because nobody tells others of members that are gone: rosters list
//! the living, and of those that left only runs that the reader knows.
//!
//! A member is never forgotten while it lives or is linked. If a forgotten one comes back, its handshake or a roster
//! makes it known again, as any newcomer.
//!
//! A partition may last longer than members are remembered. So that the two sides find each other afterwards without a
//! common seed, the latest [`FORGOTTEN_MAX`] addresses of forgotten members are still dialled from time to time.

use std::collections::BTreeSet;

use foca::Timer;

use super::{KnownMember, MemberEffect, MemberEvent, MemberState, Members};
use crate::controls::Control;
use crate::id::RunId;
use crate::store::RunLife;
use crate::time::Time;

/// Addresses of forgotten members that are still dialled.
pub(super) const FORGOTTEN_MAX: usize = 64;

impl Members {
    /// Forgets the members that have been gone for too long, and those of `asked` that are gone.
    pub(crate) fn forget_due(&mut self, now: Time, asked: &BTreeSet<RunId>) {
        self.now = now;
        self.begin(now);
        self.forget_ended();
        let is_due = |known: &&KnownMember| {
            let is_over = known.state_time(now) >= self.config.forget_after;
            let is_asked = asked.contains(&known.member.run);
            let is_gone = known.may_be_forgotten() || (is_asked && self.controls.has(Control::ForgetsLiving));
            is_gone && (is_over || is_asked)
        };
        let due: Vec<RunId> = self.known.values().filter(is_due).map(|known| known.member.run).collect();
        for run in due {
            self.push_event(run, MemberEvent::Forgotten);
            let member = &self.known[&run].member;
            if member.state == MemberState::Down && !asked.contains(&run) {
                self.forgotten.push_back(member.contact());
            }
            self.forget_member(run);
            self.effects.push_back(MemberEffect::RunLife(run, RunLife::Ended));
            self.is_unwritten = true;
        }
        while self.forgotten.len() > FORGOTTEN_MAX {
            self.forgotten.pop_front();
        }
    }

    /// The runs of a member of this name. `None` if one of them is not gone.
    pub(crate) fn gone_of_name(&self, name: &str) -> Option<Vec<RunId>> {
        let of_name = self.known.values().filter(|known| known.member.name == name);
        of_name.map(|known| known.may_be_forgotten().then_some(known.member.run)).collect()
    }

    /// Makes room by forgetting one member that is gone and not linked: those that left first, then the one that has
    /// been gone for longest.
    pub(super) fn forget_gone(&mut self) -> bool {
        let gone = self.known.values().filter(|known| known.may_be_forgotten());
        let oldest = gone.min_by_key(|k| (!k.has_left, k.member.since));
        let Some(run) = oldest.map(|known| known.member.run) else { return false };
        self.make_room(run)
    }

    /// Makes room by forgetting any member that is known from hearsay only.
    pub(super) fn forget_hearsay(&mut self) -> bool {
        let hearsay = self.known.values().find(|known| !known.is_proven);
        let Some(run) = hearsay.map(|known| known.member.run) else { return false };
        self.make_room(run)
    }

    /// Forgets a member although it may live. So values that are bound to its life are hidden and not dropped, until it
    /// has been away for [`Config::forget_after`](crate::Config::forget_after).
    fn make_room(&mut self, run: RunId) -> bool {
        self.forget_member(run);
        self.effects.push_back(MemberEffect::RunLife(run, RunLife::Away));
        true
    }

    fn forget_member(&mut self, run: RunId) {
        self.known.remove(&run);
        self.forget_in_detector(run);
    }

    /// Lets the failure detector forget a run, under whatever identity it remembers it. So it remembers no runs but
    /// those that are known here, those that have ended and whose names are kept, and this node's own.
    pub(super) fn forget_in_detector(&mut self, run: RunId) {
        let held = self.detector.iter_membership_state().find(|member| member.id().run == run);
        let Some(id) = held.map(|member| *member.id()) else { return };
        // It forgets only members that are down.
        _ = self.detector.apply_many(std::iter::once(foca::Member::down(id)), false, &mut self.wishes);
        _ = self.detector.handle_timer(Timer::RemoveDown(id), &mut self.wishes);
    }
}

impl KnownMember {
    fn may_be_forgotten(&self) -> bool {
        !self.member.state.is_alive() && self.links == 0
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::super::foca_codec::SwimId;
    use super::super::tests::{member, members};
    use super::*;

    #[test]
    fn members_of_an_earlier_run_are_remembered_from_the_start() {
        let mut own = members();
        let mut memo = crate::wire::Writer::plain();
        crate::membership::roster::write_contact(&mut memo, &member(2));
        own.load(&memo.into_plain());
        // The monotonic clock began long before this process.
        let week = |hours: u64| Time::default().later_by(Duration::from_secs((7 * 24 + hours) * 3_600));
        for (hours, remembered) in [(0, 1), (23, 1), (24, 0)] {
            own.forget_due(week(hours), &BTreeSet::new());
            assert_eq!(own.others().count(), remembered, "after {hours} hours");
        }
    }

    #[test]
    fn restart_goes_on_with_the_time_for_which_a_member_was_down() {
        let at = |hours: u64| Time::default().later_by(Duration::from_secs(hours * 3_600));
        let mut earlier = members();
        earlier.begin(at(1));
        assert!(earlier.add_by_hearsay(&member(2)));
        earlier.known.get_mut(&RunId::new(2)).unwrap().enter(MemberState::Down, at(1));
        earlier.now = at(11);
        let memo = earlier.unwritten_memo().expect("a member is down");
        // The node was off for an hour, and its monotonic clock began anew.
        let mut own = members();
        own.load(&memo);
        let restarted = |hours: u64| Time { wall: at(12 + hours).wall, ..at(hours) };
        for (hours, remembered) in [(0, 1), (13, 1), (14, 0)] {
            own.forget_due(restarted(hours), &BTreeSet::new());
            assert_eq!(own.others().count(), remembered, "after {hours} hours");
            assert!(own.others().all(|member| member.since == std::time::UNIX_EPOCH + at(2).wall));
        }
        // A program from before these times reads the members alone.
        let (mut reader, mut read) = (crate::wire::Reader::plain(&memo), Vec::new());
        while !reader.is_at_end() {
            read.extend(crate::membership::roster::read_contact(&mut reader).unwrap());
        }
        assert_eq!(read.iter().map(|member| member.run).collect::<Vec<_>>(), [RunId::new(2)]);
    }

    #[test]
    fn detector_forgets_a_run_under_any_identity() {
        let mut own = members();
        own.now = Time::default();
        for state in [foca::State::Down, foca::State::Alive] {
            assert!(own.add_by_hearsay(&member(2)));
            // Its generation is not taken in before the effects of `foca` are carried out.
            let told = foca::Member::new(SwimId { run: RunId::new(2), generation: 5 }, 0, state);
            own.detector.apply_many(std::iter::once(told), true, &mut own.wishes).unwrap();
            assert!(own.forget_gone());
            assert_eq!(own.detector.iter_membership_state().len(), 0, "{state:?}");
            own.drain_foca();
        }
    }

    /// Which of two forgotten members are dialled: run 2 was gone for too long, run 3 was asked to be forgotten.
    #[test]
    fn only_members_forgotten_for_their_age_are_still_dialled() {
        let mut own = members();
        let at = |secs| Time { mono: Duration::from_secs(secs), wall: Duration::from_secs(secs) };
        own.now = at(1);
        for run in [2, 3] {
            assert!(own.add_by_hearsay(&member(run)));
        }
        own.forget_due(at(2), &BTreeSet::from([RunId::new(3)]));
        assert_eq!(own.others().count(), 1);
        own.forget_due(at(2 * 24 * 3_600), &BTreeSet::new());
        assert_eq!(own.others().count(), 0);
        let mut dialled = BTreeSet::new();
        for secs in 0..100 {
            own.wake(at(3 * 24 * 3_600 + secs));
            let dials = own.effects.drain(..).filter_map(|effect| match effect {
                MemberEffect::Dial(to) => Some(to.run.number()),
                _ => None,
            });
            dialled.extend(dials);
        }
        assert_eq!(dialled, BTreeSet::from([2]));
    }
}
