//! The end of a call that changes the voters: it is told that the change is done when a majority of the voters of the
//! new list have that list on their disks.
//!
//! The node that decides the second step of a change knows the new list before all others. If its call ended then, the
//! caller could stop the old voters while the new ones still have the joint list, which needs a majority of the old
//! ones: should the node that decided be lost or cut off, nothing could be decided any more.
//!
//! The question is a [`Request::Prepare`] under the hash of the new list, with the least of all ballots. It promises
//! nothing. A voter with another list answers [`VoterAnswer::Differs`]; one that has the list answers after its disk
//! has it, too. The question is repeated until a majority has answered: never end the call before. Only a call that has
//! changed nothing, because what it asks for was in force, ends without a majority, in the time of a call that begins.

use std::time::Duration;

use super::driver::{Adoption, Asked, AskedStage};
use super::messages::{Call, Request, VoterAnswer};
use super::{ASK_TIME_MIN, Delivery, ElectionEffect, ElectionMessage, Elections};
use crate::controls::Control;
use crate::error::SetVotersError;
use crate::id::RunId;
use crate::time::{Stamp, Time};

impl Elections {
    /// What was asked for is in force here: begins to ask the other voters for it.
    pub(super) fn await_adoption(&mut self, now: Time) {
        if self.controls.has(Control::AdoptionUnasked) {
            return self.end_asked(Ok(()));
        }
        let epoch = self.list.epoch;
        let is_begun =
            |stage: &AskedStage| matches!(stage, AskedStage::Adopted(adoption) if adoption.epoch == epoch);
        let Some(Asked { stage, .. }) = self.asked.as_ref().filter(|asked| !is_begun(&asked.stage)) else {
            return;
        };
        let until = match stage {
            AskedStage::Preparing { until, .. } => Some(*until),
            AskedStage::Wanted => None,
            AskedStage::Adopted(adoption) => adoption.until,
        };
        let (request_id, has_list) = (self.new_request_id(now.mono), vec![false; self.voters.len()]);
        let adoption = Adoption { epoch, request_id, has_list, until, act_at: now.mono, tries: 0 };
        self.asked.iter_mut().for_each(|asked| asked.stage = AskedStage::Adopted(adoption.clone()));
        self.deadline = Duration::ZERO;
    }

    /// Asks the voters that have not answered, when it is time.
    pub(super) fn adoption_deadline(&mut self, now: Time) {
        let Some(Asked { stage: AskedStage::Adopted(adoption), .. }) = &mut self.asked else { return };
        if adoption.epoch != self.list.epoch {
            return;
        }
        if adoption.until.is_some_and(|until| until <= now.mono) {
            let (reached, needed) = self.quorum.tally(|at| adoption.has_list[at]);
            return self.end_asked(Err(SetVotersError::NoMajority { reached, needed }));
        }
        self.deadline = self.deadline.min(adoption.until.unwrap_or(Duration::MAX));
        if adoption.act_at <= now.mono {
            adoption.act_at = now.mono + (ASK_TIME_MIN * (1 << adoption.tries.min(8))).min(self.lease / 4);
            adoption.tries += 1;
            let silent = self.voters.iter().zip(&adoption.has_list).filter(|(_, has_list)| !**has_list);
            for run in silent.filter_map(|(voter, _)| voter.run) {
                let (hash, request_id, lease) = (self.rules_hash, adoption.request_id, self.lease);
                let call =
                    Call { hash, request_id, lease, request: Request::Prepare { ballot: Stamp::default() } };
                let message = ElectionMessage::Request(call);
                self.effects.push_back(ElectionEffect::Send(run, message, Delivery::AtOnce));
            }
        }
        self.deadline = self.deadline.min(adoption.act_at);
    }

    /// The answer of a node that may be a voter.
    pub(super) fn on_adoption_answer(&mut self, from: RunId, request_id: Option<u64>, answer: &VoterAnswer) {
        let Some(Asked { stage: AskedStage::Adopted(adoption), .. }) = &mut self.asked else { return };
        let has_list = matches!(answer, VoterAnswer::Prepared { .. } | VoterAnswer::NoDisk { .. });
        if !has_list || adoption.epoch != self.list.epoch || request_id != Some(adoption.request_id) {
            return;
        }
        let seat = self.voters.iter().position(|voter| voter.run == Some(from));
        seat.into_iter().for_each(|at| adoption.has_list[at] = true);
        if self.quorum.is_met(|at| adoption.has_list[at]) {
            self.end_asked(Ok(()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::driver::ChangeStage;
    use super::super::{Living, StoredTimes, VoterList, VoterMemo};
    use super::*;
    use crate::config::Config;
    use crate::controls::Controls;

    fn named(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn run(seat: usize) -> RunId {
        RunId::new(seat as u64 + 1)
    }

    /// The node `x`, at the joint list that leads from `a`, `c` and `x` to `d`, `e` and `f`.
    fn driver() -> Elections {
        let list = VoterList {
            epoch: 3,
            voters: named(&["a", "c", "x"]),
            next: Some(named(&["d", "e", "f"])),
            ..VoterList::default()
        };
        let memo = VoterMemo { list: Some(list), ..VoterMemo::default() };
        let mut driver = Elections::new("x", run(5), &Config::lan(), Controls::default(), true, memo);
        driver.voters.iter_mut().enumerate().for_each(|(seat, voter)| voter.run = Some(run(seat)));
        driver
    }

    fn prepared(ballot: Stamp) -> VoterAnswer {
        VoterAnswer::Prepared { ballot, term_max: 0, accepted: None }
    }

    fn answer(driver: &mut Elections, now: Time, seats: &[usize], request_id: u64, told: &VoterAnswer) {
        for seat in seats {
            driver.message(now, run(*seat), ElectionMessage::Answer(Some(request_id), told.clone()));
        }
    }

    /// The id of the latest request.
    fn asked(driver: &Elections) -> u64 {
        *driver.request_times.last_key_value().expect("it has asked").0
    }

    fn stage(driver: &Elections) -> (&ChangeStage, Stamp) {
        driver.change.as_ref().map(|change| (&change.stage, change.ballot)).expect("it drives a change")
    }

    #[test]
    fn late_answer_about_an_earlier_list_is_no_adoption() {
        let (mut driver, mut now) = (driver(), Time::default().later_by(Duration::from_secs(100)));
        driver.wake(now);
        assert_eq!(stage(&driver), (&ChangeStage::Waiting, Stamp::default()));
        // They have answered a question about the list before.
        answer(&mut driver, now, &[0, 1], 1, &prepared(Stamp::default()));
        for _ in 0..1_000 {
            now = now.later_by(Duration::from_millis(100));
            driver.wake(now);
            if *stage(&driver).0 == ChangeStage::Preparing {
                break;
            }
        }
        let (stage_now, ballot) = stage(&driver);
        assert_eq!(*stage_now, ChangeStage::Preparing);
        let id = asked(&driver);
        answer(&mut driver, now, &[2, 3, 4, 5], id, &prepared(ballot));
        now = now.later_by(driver.joint_time() * 2);
        // Only now the old voters have the list, so leases under the one before may last on.
        answer(&mut driver, now, &[0, 1], id, &prepared(ballot));
        assert_eq!(stage(&driver), (&ChangeStage::Preparing, ballot));
        now = now.later_by(driver.joint_time());
        driver.wake(now);
        assert!(matches!(stage(&driver), (ChangeStage::Accepting(_), _)));
    }

    #[test]
    fn answer_to_an_equal_ballot_of_another_list_is_late() {
        let list = VoterList { epoch: 2, voters: named(&["a", "c", "x"]), ..VoterList::default() };
        let memo = VoterMemo { list: Some(list), ..VoterMemo::default() };
        let mut driver = Elections::new("x", run(5), &Config::lan(), Controls::default(), true, memo);
        let seat = |name: &str| "acdefx".find(name).map_or(Living::Nobody, |seat| Living::One(run(seat)));
        let now = Time::default().later_by(Duration::from_secs(100));
        let (wanted, all) = (named(&["d", "e", "f"]), [0, 1, 2, 3, 4, 5]);
        driver.set_voters(now, &wanted).unwrap();
        driver.seat_voters(seat);
        driver.wake(now);
        let (_, ballot) = stage(&driver);
        let first = asked(&driver);
        answer(&mut driver, now, &all, first, &prepared(ballot));
        driver.wake(now);
        let accept = asked(&driver);
        answer(&mut driver, now, &all, accept, &VoterAnswer::Accepted { ballot });
        let decided = driver.effects.drain(..).find_map(|effect| match effect {
            ElectionEffect::Decided(list) => Some(list),
            _ => None,
        });
        driver.learn(now, decided, Some(wanted), StoredTimes::default());
        driver.seat_voters(seat);
        driver.wake(now);
        assert_eq!(stage(&driver), (&ChangeStage::Preparing, ballot), "all this took no millisecond");
        // The first answers come once more. Nobody has adopted the joint list by then.
        answer(&mut driver, now, &all, first, &prepared(ballot));
        let adopted = |driver: &Elections| driver.change.as_ref().and_then(|change| change.adopted_at);
        assert_eq!(adopted(&driver), None);
        let second = asked(&driver);
        answer(&mut driver, now, &all, second, &prepared(ballot));
        assert_eq!(adopted(&driver), Some(now.mono));
    }
}
