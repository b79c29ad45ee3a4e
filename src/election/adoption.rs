//! The end of a call that changes the voters: it is told that the change is done when a majority of the voters of the
//! new list have that list on their disks.
//!
//! The node that decides the second step of a change knows the new list before all others. If its call ended then, the
//! caller could stop the old voters while the new ones still have the joint list, which needs a majority of the old
//! ones: should the node that decided be lost or cut off, nothing could be decided any more.
//!
//! The question is a [`Request::Prepare`] under the hash of the new list, with the least of all ballots. It promises
//! nothing. A voter with another list answers [`VoterAnswer::Differs`]; one that has the list answers after its disk
//! has it, too. The question is repeated until a majority has answered: never end the call before.

use std::time::Duration;

use super::change::{Asked, AskedStage};
use super::driver::Adoption;
use super::messages::{Call, Request, VoterAnswer};
use super::{ASK_TIME_MIN, Delivery, ElectionEffect, ElectionMessage, Elections};
use crate::controls::Control;
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
        if self.asked.as_ref().is_none_or(|asked| is_begun(&asked.stage)) {
            return;
        }
        let (request_id, has_list) = (self.new_request_id(now.mono), vec![false; self.voters.len()]);
        let adoption = Adoption { epoch, request_id, has_list, act_at: now.mono, tries: 0 };
        self.asked.iter_mut().for_each(|asked| asked.stage = AskedStage::Adopted(adoption.clone()));
        self.deadline = Duration::ZERO;
    }

    /// Asks the voters that have not answered, when it is time.
    pub(super) fn adoption_deadline(&mut self, now: Time) {
        let Some(Asked { stage: AskedStage::Adopted(adoption), .. }) = &mut self.asked else { return };
        if adoption.epoch != self.list.epoch {
            return;
        }
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
