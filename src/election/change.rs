//! Changing the list of voters, and the times that they share, while leases are held.
//!
//! # What is promised
//!
//! The promises of [`super`] hold through any number of changes, whichever node crashes on the way, if the voters that
//! take part have disks that keep what was synced: at most one holder of a lease, and growing terms. A voter whose disk
//! is lost or replaced by an older copy may believe an earlier list; it must not be started where it reaches only nodes
//! that do the same.
//!
//! # How it works
//!
//! A change takes two steps: from a list to a joint one, which needs a majority of the old voters and one of the next
//! ones; and from there to the next list alone. Each step is one decision of the voters of the present list, made by
//! *ballots* as in Paxos. A node that drives the change sends a ballot to all voters ([`Request::Prepare`]). A voter
//! promises to accept no lesser ballot, and names the step that it accepted last. When a majority has promised, the
//! driver asks them to accept ([`Request::Accept`]) the step of the greatest ballot that one of them had accepted, or
//! its own if there is none. A step that a majority has accepted is decided: every later ballot finds it. The answers
//! wait for the voter's disk. A node of the next list that is in quarantine answers how long that lasts, and promises
//! nothing before: it could not take over the leases that are held. The decided list is written into the store, from
//! where all nodes adopt it. Every request carries the hash of the sender's list, and a voter answers only requests
//! under the list that it has adopted.
//!
//! The times belong to the list: a change of the times alone is one whose next voters are the present ones. Under the
//! joint list no lease is longer than either of the two greatest lease times, and a quarantine is as long as the longer
//! one needs. So under each list the quarantine covers what was promised under it and under the one before.
//!
//! The list that was asked for is an entry of the store, too, and so are the times. Any voter drives the change to
//! them, so it goes on when the node that asked has crashed. Several drivers only delay each other. [`super::adoption`]
//! says when the call has ended.
//!
//! # Why at most one node holds a lease
//!
//! Majorities of one list share a voter, and so do those of a list and of its successor, because the joint list needs a
//! majority of both. A list and the list two steps later, with the joint one between them, need not share a voter. So
//! the second step is only decided when a majority of the joint list has promised a ballot under it, and thereby
//! adopted it, and `lease_time_max` × 10/9 have passed since by the driver's clock. An adopter no longer answers under
//! the earlier list. Every majority of the earlier list contains an adopter, so no promise of such a majority is
//! younger than the adoption, and all of them are over when the second step is decided. A voter keeps its promises when
//! its list changes.
//!
//! A holder whose list changes relies on what the majority of the earlier list had promised until then, and on what the
//! majority of the new list promises from then on.
//!
//! A *forced* list ([`Elections::forced_list`]) follows no joint one, so its voters may know nothing of the promises of
//! the earlier voters. A voter that adopts a list which does not follow its own is in quarantine for `lease_time_max` ×
//! 10/9: by then everything is over that was promised before. A forced list is told by its epoch
//! ([`VoterList::forced_epoch`]), which no other list has: the node that forces it may know less than its voters, and
//! its list may name the voters that a change under way leads to.
//!
//! The quarantine also holds back a voter that has only missed a list. That is harmless: it keeps the sessions that it
//! has, and a majority of the voters of each list misses none. The step to a list was decided by a majority of the one
//! before, so they had that one; and new voters are only taken when they have answered under it.
//!
//! *Growing terms.* The adopters say which terms they have granted at most. The second step carries the greatest, and
//! the voters of the next list grant only above it. Terms that nobody can have granted do not count
//! ([`super::CREDIBLE_AHEAD_MAX`]): neither in an answer nor in a step nor in a list.

use std::time::Duration;

use super::driver::{Ask, Asked, AskedStage, Change, ChangeAnswer, ChangePeer, ChangeStage};
use super::messages::{Call, Request, Standing, VoterAnswer, VoterStatement};
use super::voter::{clock_now, is_possible};
use super::voter_list::{Ballots, Electorate, VoterList, VoterSets, checked_names, credible_max};
use super::{ASK_TIME_MIN, Delivery, ElectionEffect, ElectionMessage, Elections, Living, quarantine};
use crate::config::{ClusterSettings, LEASE_TIME_MAX, LeaseTimes};
use crate::controls::Control;
use crate::error::SetVotersError;
use crate::id::RunId;
use crate::time::{HybridClock, Stamp, Time};

/// What the store says of the times that the voters share.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct StoredTimes {
    /// With which the first voters begin. `None`: as configured.
    pub(crate) initial: Option<LeaseTimes>,
    /// Which they are to have in the end. `None`: as configured.
    pub(crate) wanted: Option<LeaseTimes>,
}

impl Elections {
    // What the user does.

    /// Begins to change the list of voters. The outcome comes as [`ElectionEffect::AskEnded`].
    pub(crate) fn set_voters(&mut self, now: Time, voters: &[String]) -> Result<(), SetVotersError> {
        self.ask(now, Ask::Voters(checked_names(voters)?))
    }

    /// Begins to change the shared settings, because the voters have to take their lease times. The outcome comes as
    /// [`ElectionEffect::AskEnded`].
    pub(crate) fn set_settings(
        &mut self,
        now: Time,
        settings: ClusterSettings,
    ) -> Result<(), SetVotersError> {
        self.ask(now, Ask::Settings(settings))
    }

    fn ask(&mut self, now: Time, ask: Ask) -> Result<(), SetVotersError> {
        if self.list.voters.is_empty() {
            return Err(SetVotersError::NoVoters);
        }
        if self.asked.is_some() {
            return Err(SetVotersError::Busy);
        }
        self.asked = Some(Asked { ask, stage: self.preparing(now) });
        self.change = Some(Change::new(&self.list, self.target(), now.mono));
        self.deadline = Duration::ZERO;
        Ok(())
    }

    /// How long a call that begins now waits for answers.
    fn preparing(&self, now: Time) -> AskedStage {
        let until = now.mono + self.lease * 5 / 4;
        AskedStage::Preparing { until, latest: until + quarantine(self.rules, LEASE_TIME_MAX) }
    }

    /// The list to put in force without asking the present voters, because a majority of them is lost for ever.
    pub(crate) fn forced_list(&self, now: Time, voters: &[String]) -> Result<VoterList, SetVotersError> {
        let ahead = self.promised_max() + self.rules.clock_skew_max;
        Ok(VoterList {
            epoch: self.list.forced_epoch(),
            voters: checked_names(voters)?,
            next: None,
            times: self.wanted_times.or(self.list.times),
            next_times: None,
            // This node does not know what the lost voters have granted; they took no terms far ahead of their clocks.
            term_floor: self.voter.granted_term_max().max(HybridClock::limit(now, ahead)),
        })
    }

    /// Nobody waits for the outcome any more. What was written stays.
    pub(crate) fn forget_asked(&mut self) {
        self.asked = None;
    }

    /// The present list of voters.
    pub(crate) fn list(&self) -> &VoterList {
        &self.list
    }

    /// The voters that the store says the cluster is to have, if that is not so yet.
    pub(crate) fn wanted(&self) -> Option<&[String]> {
        self.wanted.as_deref().filter(|wanted| self.list.next.is_some() || *wanted != self.list.voters)
    }

    // What the store says.

    /// Takes in the list that was decided last, and the wanted voters and times, as the store has them.
    pub(crate) fn learn(
        &mut self,
        now: Time,
        decided: Option<VoterList>,
        wanted: Option<Vec<String>>,
        times: StoredTimes,
    ) {
        (self.wanted, self.wanted_times) = (wanted, times.wanted);
        if self.list.voters.is_empty() {
            // Nobody has promised anything under the configured times.
            self.configured = times.wanted.unwrap_or(self.configured);
        }
        if let Some(initial) = times.initial {
            self.begin_with(initial);
        }
        if let Some(list) = decided.filter(|list| list.epoch > self.list.epoch) {
            self.adopt(now, list);
        }
        let is_wanted = |asked: &&Asked| !matches!(asked.stage, AskedStage::Preparing { .. });
        let Some(Asked { ask, .. }) = self.asked.as_ref().filter(is_wanted) else { return };
        if self.is_in_force(ask) {
            return self.await_adoption(now);
        }
        let by = match ask {
            Ask::Voters(voters) => self.wanted.clone().filter(|wanted| wanted != voters),
            // The replica names the settings, because it has the record of them.
            Ask::Settings(settings) => {
                self.wanted_times.filter(|times| *times != settings.lease_times()).map(|_| Vec::new())
            }
        };
        if let Some(by) = by {
            self.end_asked(Err(SetVotersError::Superseded { by }));
        }
    }

    /// Whether what was asked for is so, and no change is under way.
    fn is_in_force(&self, ask: &Ask) -> bool {
        let is_so = match ask {
            Ask::Voters(voters) => self.list.voters == *voters,
            Ask::Settings(settings) => self.times(self.list.times) == settings.lease_times(),
        };
        self.list.next.is_none() && is_so
    }

    fn times(&self, times: Option<LeaseTimes>) -> LeaseTimes {
        times.unwrap_or(self.configured)
    }

    /// The wait of the second step of a change for leases under the earlier list.
    pub(super) fn joint_time(&self) -> Duration {
        self.promised_max() * 10 / 9
    }

    /// From now on this list is in force here.
    fn adopt(&mut self, now: Time, list: VoterList) {
        let has_decided =
            self.change.take().is_some_and(|change| matches!(change.stage, ChangeStage::Accepting(_)));
        self.reseat(now, &list);
        let (is_decided, promised_before) = (list.follows(&self.list), self.promised_max());
        self.list = list;
        self.quorum = VoterSets::new(&self.list);
        self.follow_rules();
        self.voter.adopt(self.rules, self.promised_max(), self.list.term_floor);
        if !is_decided && self.list.has(&self.name) && !self.controls.has(Control::ForcedAtOnce) {
            let over = now.mono + self.joint_time().max(promised_before * 10 / 9);
            self.voter.prolong_quarantine(over);
        }
        self.ballots = Ballots::default();
        self.reported.clear();
        let preparing = self.preparing(now);
        if let Some(Asked { stage: stage @ AskedStage::Preparing { .. }, .. }) = &mut self.asked {
            *stage = preparing;
        }
        if has_decided && self.needs_change() {
            // Who has decided this step goes on; the others wait for it.
            self.change = Some(Change::new(&self.list, self.target(), now.mono));
        }
        self.effects.push_back(ElectionEffect::Voters(self.list.clone()));
        self.deadline = Duration::ZERO;
    }

    /// The voters and times that the cluster is to have in the end.
    fn target(&self) -> Electorate {
        let Electorate { voters, times } = self.list.following().unwrap_or_else(|| self.list.present());
        let mut target =
            Electorate { voters: self.wanted.clone().unwrap_or(voters), times: self.wanted_times.or(times) };
        match self.asked.as_ref().map(|asked| &asked.ask) {
            Some(Ask::Voters(voters)) => target.voters.clone_from(voters),
            Some(Ask::Settings(settings)) => target.times = Some(settings.lease_times()),
            None => {}
        }
        target
    }

    /// Whether this node has to drive a change.
    fn needs_change(&self) -> bool {
        let target = self.target();
        let is_due = self.list.next.is_some()
            || self.list.voters != target.voters
            || self.times(self.list.times) != self.times(target.times);
        is_due && (self.asked.is_some() || self.list.has(&self.name))
    }

    // The voter.

    /// A driver's ballot about the step after the present list.
    pub(super) fn on_ballot(&mut self, now: Time, from: RunId, request_id: u64, request: Request) {
        let (ballot, step) = match request {
            Request::Prepare { ballot } => (ballot, None),
            Request::Accept { ballot, step } => (ballot, Some(step)),
            _ => return,
        };
        // A ballot that is far ahead would block all others for ever, and a list with such a floor would never count.
        let is_credible = step.as_ref().is_none_or(|step| step.term_floor <= credible_max(clock_now(now)));
        let is_possible = is_possible(now, ballot.clock, self.ballots.promised.clock);
        if !is_possible || !is_credible || self.voter.is_memo_unread {
            return;
        }
        if !self.has_disk {
            let answer = ElectionMessage::Answer(Some(request_id), VoterAnswer::NoDisk { ballot });
            return self.effects.push_back(ElectionEffect::Send(from, answer, Delivery::AtOnce));
        }
        let left_ms = self.voter.quarantine_left_ms(now.mono);
        if left_ms > 0 && !self.list.has(&self.name) && !self.controls.has(Control::InvitedInQuarantine) {
            // As a voter it could not take over the leases that are held, and they would end.
            let standing = Standing::Quarantined(left_ms);
            let told = VoterStatement { clock: clock_now(now), lease_term_max: 0, standing };
            let answer = VoterAnswer::Statement { name: self.name.clone(), told };
            let answer = ElectionMessage::Answer(Some(request_id), answer);
            return self.effects.push_back(ElectionEffect::Send(from, answer, Delivery::AtOnce));
        }
        let is_good = ballot >= self.ballots.promised || self.controls.has(Control::BallotIgnored);
        if is_good {
            self.ballots.promised = ballot;
        }
        let promised = self.ballots.promised;
        if ballot.origin != self.own && self.change.as_ref().is_some_and(|change| change.ballot < ballot) {
            self.yield_to(now, ballot);
        }
        let answer = match step {
            None => VoterAnswer::Prepared {
                ballot: promised,
                term_max: self.voter.granted_term_max(),
                accepted: self.ballots.accepted.clone(),
            },
            Some(step) => {
                if is_good {
                    self.ballots.accepted = Some((ballot, step));
                }
                VoterAnswer::Accepted { ballot: promised }
            }
        };
        let answer = ElectionMessage::Answer(Some(request_id), answer);
        self.effects.push_back(ElectionEffect::Send(from, answer, Delivery::AfterDisk));
    }

    // The driver.

    /// Which runs live under the names of wanted nodes that are no voters yet.
    pub(super) fn seat_invited(&mut self, living: impl Fn(&str) -> Living) {
        let seats = self.voters.len();
        let invited = self.change.iter_mut().flat_map(|change| &mut change.peers[seats..]);
        invited.for_each(|peer| match living(&peer.name) {
            Living::Nobody => {}
            Living::One(run) => peer.run = Some(run),
            Living::Several => peer.run = None,
        });
    }

    pub(super) fn invited(&self) -> impl Iterator<Item = &str> {
        let seats = self.voters.len();
        self.change.iter().flat_map(move |change| &change.peers[seats..]).map(|peer| peer.name.as_str())
    }

    /// The answer of a voter or of a wanted node about a ballot.
    pub(super) fn on_ballot_answer(
        &mut self,
        now: Time,
        from: RunId,
        request_id: Option<u64>,
        answer: &VoterAnswer,
    ) {
        let at = self.voters.iter().position(|voter| voter.run == Some(from));
        let Some(change) = &mut self.change else { return };
        let Some(at) = at.or_else(|| change.peers.iter().position(|peer| peer.run == Some(from))) else {
            return;
        };
        // Rules that differ are also told without a request, and name the list that they are about.
        let is_late = request_id.is_none_or(|id| id < change.request_id_min);
        if is_late && !matches!(answer, VoterAnswer::Differs(_)) {
            return;
        }
        let is_preparing = change.stage == ChangeStage::Preparing;
        let limit = credible_max(clock_now(now));
        let (ballot, answer) = match *answer {
            // A step with such a floor would not be accepted, and its list would not count.
            VoterAnswer::Prepared { term_max, ref accepted, .. }
                if accepted.iter().any(|(_, step)| step.term_floor > limit) || term_max > limit =>
            {
                return;
            }
            VoterAnswer::Prepared { ballot, term_max, ref accepted } => {
                // A waiting driver has sent no ballot under this list, or yields to another driver.
                if ballot == change.ballot && change.stage != ChangeStage::Waiting {
                    change.peers[at].adopted = Some(term_max);
                }
                (ballot, is_preparing.then(|| ChangeAnswer::Prepared(accepted.clone())))
            }
            VoterAnswer::Accepted { ballot } => (ballot, (!is_preparing).then_some(ChangeAnswer::Accepted)),
            VoterAnswer::NoDisk { ballot } => (ballot, Some(ChangeAnswer::NoDisk)),
            VoterAnswer::Differs(theirs) if theirs.differs_for_good(&self.rules) => {
                (change.ballot, Some(ChangeAnswer::Differs(theirs)))
            }
            // Of a node that is no voter yet this answers a ballot.
            VoterAnswer::Statement { told, .. } if at >= self.voters.len() => {
                return self.await_quarantine(now, told.standing);
            }
            _ => return,
        };
        // A ballot beyond the bound would leave none above it.
        if change.stage == ChangeStage::Waiting || ballot < change.ballot || ballot.clock > limit {
            return;
        }
        if ballot > change.ballot {
            return self.yield_to(now, ballot);
        }
        if answer.is_some() {
            change.peers[at].answer = answer;
        }
        self.advance_change(now);
    }

    /// A node of the new list cannot become a voter for so long. The call waits for it, as long as an honest node
    /// needs.
    fn await_quarantine(&mut self, now: Time, standing: Standing) {
        if let Standing::Quarantined(ms) = standing
            && let Some(Asked { stage: AskedStage::Preparing { until, latest }, .. }) = &mut self.asked
        {
            let over = now.mono + Duration::from_millis(ms.into()) + self.lease * 5 / 4;
            *until = over.max(*until).min(*latest);
        }
    }

    /// Goes on as far as the answers permit.
    fn advance_change(&mut self, now: Time) {
        let wait = match self.controls {
            controls if controls.has(Control::JointCutShort) => Duration::ZERO,
            _ => self.joint_time(),
        };
        let Some(change) = &mut self.change else { return };
        match &change.stage {
            ChangeStage::Waiting => {}
            ChangeStage::Preparing => {
                if self.quorum.is_met(|at| change.peers[at].adopted.is_some()) {
                    change.adopted_at.get_or_insert(now.mono);
                }
                let is_ready = match &self.list.next {
                    None => {
                        let wanted = |peer: &ChangePeer| change.wanted.voters.contains(&peer.name);
                        (0..change.peers.len()).all(|at| !wanted(&change.peers[at]) || change.is_prepared(at))
                    }
                    Some(_) => change.adopted_at.is_some_and(|since| since + wait <= now.mono),
                };
                if !is_ready || !self.quorum.is_met(|at| change.is_prepared(at)) {
                    let over = change.adopted_at.map(|since| since + wait).filter(|over| *over > now.mono);
                    self.deadline = self.deadline.min(over.unwrap_or(Duration::MAX));
                    return self.check_asked(now);
                }
                let step = change.step(&self.list);
                change.begin(ChangeStage::Accepting(step));
                change.act_at = now.mono;
                self.deadline = Duration::ZERO;
                if let Some(asked) = &mut self.asked
                    && self.list.next.is_none()
                    && matches!(asked.stage, AskedStage::Preparing { .. })
                {
                    asked.stage = AskedStage::Wanted;
                    self.effects.push_back(ElectionEffect::Want(asked.ask.clone()));
                }
            }
            ChangeStage::Accepting(step) => {
                if self.quorum.is_met(|at| change.is_accepted(at)) {
                    let list = self.list.successor(step, self.controls.has(Control::JointSkipped));
                    self.effects.push_back(ElectionEffect::Decided(list));
                }
            }
        }
    }

    /// Carries out what is due for a change.
    pub(super) fn change_deadline(&mut self, now: Time) {
        self.check_asked(now);
        if !self.needs_change() {
            self.change = None;
            return;
        }
        if self.change.as_ref().is_none_or(|change| change.wanted != self.target()) {
            let delay = if self.asked.is_some() { Duration::ZERO } else { self.driver_delay() };
            self.change = Some(Change::new(&self.list, self.target(), now.mono + delay));
        }
        let jitter = self.jitter(self.lease / 16);
        let is_due = |change: &Change| change.act_at <= now.mono;
        if self.change.as_ref().is_some_and(|change| is_due(change) && change.stage == ChangeStage::Waiting) {
            self.begin_ballot(now);
        }
        let change = self.change.as_mut().expect("it exists");
        if is_due(change) {
            change.act_at =
                now.mono + (ASK_TIME_MIN * (1 << change.tries.min(8))).min(self.lease / 4) + jitter;
            change.tries += 1;
            self.send_ballots(now);
            self.advance_change(now);
        } else if change.stage == ChangeStage::Preparing {
            // The joint list may have been in force long enough.
            self.advance_change(now);
        }
        let act_at = self.change.as_ref().map_or(Duration::MAX, |change| change.act_at);
        self.deadline = self.deadline.min(act_at);
        if let Some(Asked { stage: AskedStage::Preparing { until, .. }, .. }) = &self.asked
            && self.list.next.is_none()
        {
            self.deadline = self.deadline.min(*until);
        }
    }

    /// Begins a ballot above those that this node knows of under the present list.
    fn begin_ballot(&mut self, now: Time) {
        let request_id_min = self.new_request_id(now.mono);
        let Some(change) = &mut self.change else { return };
        let clock = clock_now(now).max(change.ballot.clock + 1).max(self.ballots.promised.clock + 1);
        change.ballot = Stamp { clock, origin: self.own };
        change.request_id_min = request_id_min;
        change.begin(ChangeStage::Preparing);
    }

    /// Sends the present ballot to everybody who has not answered it.
    fn send_ballots(&mut self, now: Time) {
        let request_id = self.next_request_id(now.mono);
        let Some(change) = &self.change else { return };
        let ballot = change.ballot;
        let (request, count) = match &change.stage {
            ChangeStage::Waiting => return,
            ChangeStage::Preparing => (Request::Prepare { ballot }, change.peers.len()),
            ChangeStage::Accepting(step) => {
                (Request::Accept { ballot, step: step.clone() }, self.voters.len())
            }
        };
        for (at, peer) in change.peers[..count].iter().enumerate() {
            let run = self.voters.get(at).map_or(peer.run, |voter| voter.run);
            if let Some(run) = run
                .filter(|_| !matches!(peer.answer, Some(ChangeAnswer::Prepared(_) | ChangeAnswer::Accepted)))
            {
                let call =
                    Call { hash: self.rules_hash, request_id, lease: self.lease, request: request.clone() };
                self.effects.push_back(ElectionEffect::Send(
                    run,
                    ElectionMessage::Request(call),
                    Delivery::AtOnce,
                ));
            }
        }
    }

    /// Another driver has begun a greater ballot: it is left the time that its step takes.
    fn yield_to(&mut self, now: Time, ballot: Stamp) {
        let delay = self.driver_delay();
        let step_time = if self.list.next.is_some() { self.joint_time() } else { Duration::ZERO };
        let Some(change) = &mut self.change else { return };
        change.begin(ChangeStage::Waiting);
        (change.ballot, change.act_at) = (ballot, now.mono + step_time + delay);
        self.deadline = self.deadline.min(change.act_at);
    }

    /// When this node begins to drive a change that nobody asked it for: the voters do so one after another.
    fn driver_delay(&mut self) -> Duration {
        let before = self.voters.iter().take_while(|voter| voter.name != self.name);
        let rank = before.filter(|voter| voter.run.is_some()).count() as u32;
        self.lease / 4 * (rank + 2) + self.jitter(self.lease / 8)
    }

    // The outcome.

    /// Ends what was asked for if it cannot be done, or if the voters do not answer in time. Nothing is written then.
    fn check_asked(&mut self, now: Time) {
        let Some(asked) = &self.asked else { return };
        let AskedStage::Preparing { until, .. } = asked.stage else { return };
        if self.list.next.is_some() {
            // An earlier change goes on.
            return;
        }
        if self.is_in_force(&asked.ask) {
            let is_recorded = match &asked.ask {
                Ask::Voters(_) => self.wanted().is_none(),
                Ask::Settings(settings) => self.wanted_times == Some(settings.lease_times()),
            };
            if is_recorded {
                return self.await_adoption(now);
            }
            let ask = asked.ask.clone();
            self.asked = Some(Asked { ask: ask.clone(), stage: AskedStage::Wanted });
            return self.effects.push_back(ElectionEffect::Want(ask));
        }
        let Some(change) = &self.change else { return };
        let voters = self.target().voters;
        let of_wanted = || change.peers.iter().filter(|peer| voters.contains(&peer.name));
        let refusal = of_wanted().find_map(|peer| match &peer.answer {
            Some(ChangeAnswer::NoDisk) => Some(SetVotersError::NoDisk { name: peer.name.clone() }),
            Some(ChangeAnswer::Differs(theirs)) => {
                let (name, differences) = (peer.name.clone(), self.rules.differences(theirs));
                Some(SetVotersError::Differs { name, differences })
            }
            _ => None,
        });
        let silent = || of_wanted().find(|peer| peer.answer.is_none()).map(|peer| peer.name.clone());
        let error = match refusal {
            Some(error) => error,
            None if now.mono < until => return,
            None if !self.quorum.is_met(|at| change.is_prepared(at)) => {
                let (reached, needed) = self.quorum.tally(|at| change.is_prepared(at));
                SetVotersError::NoMajority { reached, needed }
            }
            None => match silent() {
                Some(name) => SetVotersError::NoAnswer { name },
                // Other drivers were faster again and again.
                None => SetVotersError::Busy,
            },
        };
        self.end_asked(Err(error));
    }

    /// Tells the caller.
    pub(crate) fn end_asked(&mut self, outcome: Result<(), SetVotersError>) {
        if let Some(Asked { ask, .. }) = self.asked.take() {
            self.effects.push_back(ElectionEffect::AskEnded(ask, outcome));
            self.deadline = Duration::ZERO;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::controls::Controls;
    use crate::election::VoterMemo;
    use crate::election::voter_list::{EPOCHS_PER_FORCE, Step};

    fn named(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn at(seconds: u64) -> Time {
        Time::default().later_by(Duration::from_secs(seconds))
    }

    fn elections(name: &str, memo: VoterMemo) -> Elections {
        let config = Config { voters: named(&["a", "b", "c"]), ..Config::lan() };
        let mut elections = Elections::new(name, RunId::new(1), &config, Controls::default(), true, memo);
        elections.wake(at(1_000));
        elections
    }

    #[test]
    fn forced_list_never_passes_for_the_end_of_a_change() {
        // The node that forces the list has missed two changes. One of them is about to end with the same voters.
        let forced =
            elections("x", VoterMemo::default()).forced_list(at(1_000), &named(&["d", "e"])).unwrap();
        let joint = VoterList {
            epoch: 3,
            voters: named(&["a", "b", "x"]),
            next: Some(named(&["d", "e"])),
            ..VoterList::default()
        };
        let decided = joint.successor(
            &Step {
                electorate: Electorate { voters: named(&["d", "e"]), times: None },
                term_floor: forced.term_floor,
            },
            false,
        );
        let wait_ms = |list: VoterList| {
            let mut voter = elections("d", VoterMemo { list: Some(joint.clone()), ..VoterMemo::default() });
            voter.wake(at(2_000));
            assert_eq!(voter.voter.quarantine_left_ms(at(2_000).mono), 0);
            voter.learn(at(2_000), Some(list), None, StoredTimes::default());
            assert_eq!(voter.list.voters, named(&["d", "e"]));
            voter.voter.quarantine_left_ms(at(2_000).mono)
        };
        assert_eq!(wait_ms(decided), 0);
        assert_eq!(wait_ms(forced), (Config::lan().lease_time_max * 10 / 9).as_millis() as u32 + 1);
    }

    #[test]
    fn forced_epoch_is_above_each_step_and_told_apart() {
        for epoch in [0, 1, 3, EPOCHS_PER_FORCE - 1, EPOCHS_PER_FORCE, EPOCHS_PER_FORCE + 1] {
            let list = VoterList { epoch, voters: named(&["a"]), ..VoterList::default() };
            let forced = VoterList { epoch: list.forced_epoch(), ..list.clone() };
            assert!(forced.epoch > epoch && !forced.follows(&list), "{epoch}");
            let next = VoterList { epoch: epoch + 1, ..list.clone() };
            // A list that could have been forced counts as forced.
            assert_eq!(next.follows(&list), next.epoch != EPOCHS_PER_FORCE, "{epoch}");
        }
    }
}
