//! Elections: leases that a majority of configured voters grants, with fencing tokens.
//!
//! # What is promised
//!
//! For each lease, at any instant of true time, at most one run is the holder by its own clock; and the terms of
//! successive holders grow. The term is the token.
//!
//! This rests on four assumptions:
//!
//! 1. *One process per name.* At no time do two processes run under the name of one voter.
//! 2. *Drift.* No monotonic clock runs more than 5 % too fast or too slow. A holder counts on nine tenths of the
//!    promised time, measured from before it sent the request, and 0.9 / 0.95 < 1 / 1.05.
//! 3. *One list.* All nodes begin with the same list of voters, so that any two majorities share a voter, and have the
//!    same `lease_time_max` and `clock_skew_max`, so that every voter's quarantine is long enough ([`VoterRules`]).
//!    Every request carries a hash of these. A voter with other rules refuses the request, and both sides report the
//!    difference. A candidate requests no grants while it knows that a voter of its own list has other rules. This
//!    finds the mistake wherever lists overlap and nodes are connected; it does not make the mistake safe in a
//!    partition. [`change`] says how the list and the two times are changed while leases are held, and what that
//!    assumes.
//! 4. *Wall clocks, only for voters without a disk.* Wall clocks of voters are wrong by at most half of
//!    `clock_skew_max`.
//!
//! Nothing is assumed about the network, about how often processes crash or pause, or about the wall clocks of voters
//! whose disk keeps what was synced. A voter whose disk was replaced by an older copy counts as a voter without a disk
//! here.
//!
//! # Why it holds
//!
//! *One holder.* A voter promises a lease to one run at a time. It keeps the promise until its own clock has run
//! through the whole time, or the holder has released the lease. A restarted voter may have forgotten what it promised.
//! So it is in quarantine: it grants nothing, not even a lease that is held already, until every promise from before
//! its start is over by every clock within the drift limit ([`quarantine`]). No promise is longer than
//! `lease_time_max`; with a disk, the `lease_time_max` of the run that promised counts too. A lease that its holder
//! could not renew in time has ended for good: a node that wants it again campaigns again, under a new term.
//!
//! *Growing terms.* A voter grants a new term only above every term that it has granted for the lease, and above its
//! own clock. The first condition is enough as long as the voter remembers those terms. With a disk it remembers: the
//! greatest term is on the disk before the answer goes out. Without a disk, let `t` be when a forgotten term was
//! granted. Its candidate had taken it from a voter's clock, plus at most `lease_time_max`, so it is at most `t` + half
//! the skew + `lease_time_max`. The voter grants again no sooner than `t` + skew + `lease_time_max`, when its clock
//! shows at least that minus half the skew, which is more.
//!
//! # How it works
//!
//! A candidate first *asks* all voters ([`candidate`]). An answer promises nothing and changes nothing for others; it
//! brings the clocks and terms above which the candidate's own term has to be. When a majority would grant the lease,
//! the candidate *requests grants*. When a majority has granted, it leads, and it *renews* with each voter by one small
//! message, however many leases it holds. A voter that has forgotten the lease is sent the request for a grant again,
//! under the same term. [`voter`] is the other side. [`observer`] follows who holds a lease, without taking part: it
//! asks the voters which run they have granted it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};
use serde::{Deserialize, Serialize};

use crate::config::{ClusterSettings, Config, LeaseTimes};
use crate::controls::{Control, Controls};
use crate::error::{ElectionError, SetVotersError};
use crate::form;
use crate::id::{LeaseId, RunId};
use crate::store::digest::fingerprint;
use crate::time::{Stamp, Time};
use crate::wire::{Reader, WireError};

mod adoption;
mod candidate;
mod change;
mod driver;
mod messages;
#[cfg(feature = "__controls")]
pub(crate) mod model;
mod observer;
mod peer_voter;
mod rules;
mod seats;
mod voter;
mod voter_list;

pub use candidate::Attempts;
use candidate::Candidacy;
pub(crate) use change::StoredTimes;
pub(crate) use driver::Ask;
use driver::{Asked, Change};
pub(crate) use messages::ElectionMessage;
use messages::{Call, Request, VoterAnswer};
use observer::LeaderView;
use peer_voter::{PeerVoter, REQUESTS_MAX};
pub use rules::VoterRules;
pub(crate) use rules::{Promised, VoterMemo};
use voter::Voter;
pub use voter_list::VoterList;
use voter_list::{Ballots, VoterSets};
pub(crate) use voter_list::{read_names, write_names};

/// The longest name of an election or a lock, in bytes.
pub const ELECTION_NAME_BYTES_MAX: usize = 256;
/// The largest value of a leader, in bytes.
pub const LEADER_VALUE_BYTES_MAX: usize = 512;
/// The names of all voters together, in bytes, when they are changed: a list has to fit in a datagram.
pub const VOTERS_BYTES_MAX: usize = 896;
/// Waiting candidates that a voter keeps for one lease, to offer it to them. Candidates beyond this limit are not kept;
/// they ask again by themselves.
const WAITING_MAX: usize = 64;
/// Nodes that a voter informs about changes of one lease.
const WATCHERS_MAX: usize = 4_096;
/// A free lease is offered to one candidate for the lease time divided by this.
const HANDOVER_SHARE: u32 = 8;
/// Terms further ahead of a voter's clock than this are not granted: they would block all lower terms for ever.
const TERM_AHEAD_MAX: Duration = Duration::from_secs(24 * 3_600);
/// A voter whose clock was far ahead, and is not any more, has granted such terms all the same. Above the greatest of
/// them it grants the terms of this much, a millisecond, so that elections go on without letting a member raise terms
/// further.
const CLOCK_STEP_MAX: u64 = 1 << 16;
/// Terms, term floors and ballots further ahead of the wall clock than this never count, whatever was granted before:
/// 1,000 years. No clock is so wrong by mistake. A term floor at this bound ends no elections: the bound moves on with
/// the clock, by 65,536 terms in each millisecond.
const CREDIBLE_AHEAD_MAX: Duration = Duration::from_secs(1_000 * 365 * 24 * 3_600);
/// For how long a node that has no list of voters believes that others have one.
const VOTERS_HEARD_TIME: Duration = Duration::from_secs(60);
/// Nodes with other voter rules that are remembered, so that each is reported once.
const REPORTED_MAX: usize = 1_024;
/// Wait before a question is repeated. It doubles with every repetition, up to a quarter of the lease time.
const ASK_TIME_MIN: Duration = Duration::from_millis(50);

/// How long a voter grants nothing after its start: until the promises of its last run are over, and until its clock is
/// past every term that it may have forgotten. The factor 10/9 allows for a clock that runs 5 % too fast. `promised` is
/// the longest lease that earlier runs may have promised, as kept on the disk.
fn quarantine(rules: VoterRules, promised: Duration) -> Duration {
    (rules.lease_time_max.max(promised) + rules.clock_skew_max) * 10 / 9
}

/// The state of a campaign.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum LeaseState {
    /// Not decided yet.
    Waiting,
    /// This node holds the lease, under this term.
    Held(Stamp),
    /// The campaign or the lease has ended.
    Ended(LeaseEnd),
}

/// Why a campaign or a lease has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum LeaseEnd {
    /// This node gave it up.
    Resigned,
    /// The lease could not be renewed in time.
    Lost,
    /// Another run holds the lease, and the campaign was a single try.
    Taken,
    /// Too few voters answered or could vote, and the campaign was a single try.
    NoMajority {
        /// How many voters answered.
        reached: usize,
        /// How many are needed.
        needed: usize,
    },
}

/// The holder of a lease, as a majority of voters reports it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct Leader {
    /// The fencing token. It also names the run that leads: [`Stamp::origin`].
    pub token: Stamp,
    /// The value that the leader published with its lease.
    #[serde(with = "form::bytes")]
    pub value: Vec<u8>,
}

/// What an observer knows about one lease.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sighting {
    /// Too few voters have answered so far.
    #[default]
    Unknown,
    /// The leader, or `None` if the lease is free.
    Known(Option<Leader>),
}

/// Which runs live under the name of a voter, as far as handshakes with this node have proven. A run that others tell
/// of does not count, so no member can take a voter's seat by hearsay.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Living {
    Nobody,
    One(RunId),
    /// A name has one vote. If two runs live under it, neither counts.
    Several,
}

/// When a message is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Delivery {
    AtOnce,
    /// If the node has a disk: when the disk has the present [`Elections::memo`].
    AfterDisk,
}

/// An effect that the elections ask their replica to carry out.
#[derive(Debug)]
pub(crate) enum ElectionEffect {
    /// Send a message to a run, which may be this node's own.
    Send(RunId, ElectionMessage, Delivery),
    Lease(LeaseId, LeaseState),
    Leader(String, Option<Leader>),
    /// This run has other voter rules.
    Differs(RunId, VoterRules),
    /// Write into the store that the cluster is to have these voters or settings.
    Want(Ask),
    /// Write into the store that this list is decided, unless a later one is there.
    Decided(VoterList),
    /// Another list of voters is in force.
    Voters(VoterList),
    /// The outcome of what a call asked for.
    AskEnded(Ask, Result<(), SetVotersError>),
}

/// A request that was sent.
#[derive(Clone, Copy, Debug)]
struct Sent {
    at: Duration,
    /// How long it asked the voter to promise the lease.
    lease: Duration,
}

/// All elections of one node: its voter if it has one, its candidacies, and the leases that it observes.
#[derive(Debug)]
pub(crate) struct Elections {
    own: RunId,
    name: String,
    has_disk: bool,
    list: VoterList,
    quorum: VoterSets,
    rules: VoterRules,
    rules_hash: u64,
    /// The times of [`Config`] or `initial_times`, which count until they are changed.
    configured: LeaseTimes,
    /// Times that were changed while nobody was a voter.
    initial_times: Option<LeaseTimes>,
    /// [`Config::lease_time`].
    lease_configured: Duration,
    /// The lease time that is asked for: `lease_configured`, but at most what voters grant.
    lease: Duration,
    controls: Controls,
    random: ChaCha8Rng,
    /// Every node has one, because it may become a voter; only nodes of the list are asked.
    voter: Voter,
    ballots: Ballots,
    /// The voters that the store says the cluster is to have.
    wanted: Option<Vec<String>>,
    /// The times that the store says the voters are to share.
    wanted_times: Option<LeaseTimes>,
    asked: Option<Asked>,
    change: Option<Change>,
    /// The voters of the list, sorted by name: their *seats*.
    voters: Vec<PeerVoter>,
    candidacies: BTreeMap<String, Candidacy>,
    names: BTreeMap<LeaseId, String>,
    next_id: LeaseId,
    views: BTreeMap<String, LeaderView>,
    /// Releases that a voter has not confirmed yet, by index of the voter and name of the lease: the term, and the time
    /// until which the release is repeated at least.
    releases: BTreeMap<(usize, String), (Stamp, Duration)>,
    repeat_at: Duration,
    needs_repeat: bool,
    /// When requests were sent and for which lease time, by request id.
    request_times: BTreeMap<u64, Sent>,
    last_term: u64,
    reported: BTreeSet<RunId>,
    /// When this node was last asked as a voter although it knows of none.
    taken_for_voter_at: Option<Duration>,
    deadline: Duration,
    pub(crate) effects: VecDeque<ElectionEffect>,
}

impl Elections {
    /// `memo` is what the disk kept. `has_disk` says whether there is a disk that keeps what was synced.
    pub(crate) fn new(
        name: &str,
        run: RunId,
        config: &Config,
        controls: Controls,
        has_disk: bool,
        memo: VoterMemo,
    ) -> Self {
        // Independent of all other randomness of this replica, and as random as its run.
        let mut random = ChaCha8Rng::seed_from_u64(fingerprint(run.number(), b"election"));
        let list = memo.list.unwrap_or_else(|| VoterList::configured(config.voters.clone()));
        let configured = memo.initial_times.unwrap_or_else(|| ClusterSettings::of(config).lease_times());
        let rules = VoterRules::new(configured, &list);
        let hash = if controls.has(Control::VotersDiffer) { 0 } else { rules.rules_hash() };
        let mut voter = Voter::new(config, controls, memo.promised, random.next_u64());
        voter.adopt(rules, list.lease_bounds(configured).1, list.term_floor);
        Self {
            own: run,
            name: name.to_owned(),
            has_disk,
            quorum: VoterSets::new(&list),
            rules,
            rules_hash: hash,
            configured,
            initial_times: memo.initial_times,
            lease_configured: config.lease_time,
            lease: config.lease_time.min(rules.lease_time_max),
            controls,
            random,
            voter,
            ballots: memo.ballots,
            wanted: None,
            wanted_times: None,
            asked: None,
            change: None,
            voters: list.names().into_iter().map(PeerVoter::new).collect(),
            list,
            candidacies: BTreeMap::new(),
            names: BTreeMap::new(),
            next_id: LeaseId::new(1),
            views: BTreeMap::new(),
            releases: BTreeMap::new(),
            repeat_at: Duration::ZERO,
            needs_repeat: false,
            request_times: BTreeMap::new(),
            last_term: 0,
            reported: BTreeSet::new(),
            taken_for_voter_at: None,
            deadline: Duration::ZERO,
            effects: VecDeque::new(),
        }
    }

    /// What the disk has to have before promises are sent.
    pub(crate) fn memo(&self) -> Vec<u8> {
        let promised = Promised { term: self.voter.granted_term_max(), lease: self.promised_max() };
        let list = (self.list.epoch > 0).then(|| self.list.clone());
        VoterMemo { promised, list, ballots: self.ballots.clone(), initial_times: self.initial_times }.write()
    }

    /// Whether anybody is a voter.
    pub(crate) fn has_voters(&self) -> bool {
        !self.voters.is_empty()
    }

    /// Whether others take this node for a voter, so that it lacks the list that they have.
    pub(crate) fn lacks_voters(&self, now: Time) -> bool {
        let asked = self.taken_for_voter_at.filter(|at| *at + VOTERS_HEARD_TIME > now.mono);
        asked.is_some() && !self.has_voters()
    }

    /// Asks for other lease times from now on. Those that voters share change in `change.rs`.
    pub(crate) fn reconfigure(&mut self, config: &Config) {
        self.lease_configured = config.lease_time;
        self.lease = self.lease_configured.min(self.rules.lease_time_max);
        self.voter.handover = config.lease_time / HANDOVER_SHARE;
    }

    /// The longest lease that may have been promised under the present list or the one before.
    fn promised_max(&self) -> Duration {
        self.list.lease_bounds(self.configured).1
    }

    /// The disk has failed: this node's voter promises nothing new.
    pub(crate) fn on_disk_failed(&mut self) {
        self.voter.has_disk_failed = true;
    }

    /// A disk that had failed works again.
    pub(crate) fn on_disk_back(&mut self) {
        self.voter.has_disk_failed = false;
    }

    /// Handles the notice of a process that it ends: what it held here is free at once.
    pub(crate) fn on_process_end(&mut self, now: Time, run: RunId) {
        self.voter.on_process_end(now, run);
        self.pass_on();
    }

    /// The part of a promised lease time on which this node relies. A voter's clock may run 5 % too fast, and this
    /// node's own 5 % too slow.
    fn counted_time(&self, lease: Duration) -> Duration {
        if self.controls.has(Control::NoDriftMargin) { lease } else { lease * 9 / 10 }
    }

    fn jitter(&mut self, most: Duration) -> Duration {
        most * (self.random.next_u32() % 1_024) / 1_024
    }

    // Messages.

    /// Handles a datagram from a run.
    pub(crate) fn datagram(&mut self, now: Time, from: RunId, reader: Reader<'_>) -> Result<(), WireError> {
        self.message(now, from, ElectionMessage::decode(reader)?);
        Ok(())
    }

    pub(crate) fn message(&mut self, now: Time, from: RunId, message: ElectionMessage) {
        // First ends the leases that have expired, so that no message can extend them.
        self.wake(now);
        match message {
            // This node was not told of any voters.
            ElectionMessage::Request(_) if !self.has_voters() => self.taken_for_voter_at = Some(now.mono),
            ElectionMessage::Request(call)
                if call.hash != self.rules_hash || call.lease > self.rules.lease_time_max =>
            {
                let answer = ElectionMessage::Answer(Some(call.request_id), VoterAnswer::Differs(self.rules));
                self.effects.push_back(ElectionEffect::Send(from, answer, Delivery::AtOnce));
            }
            ElectionMessage::Request(call) => match call.request {
                Request::Prepare { .. } | Request::Accept { .. } => {
                    self.on_ballot(now, from, call.request_id, call.request);
                }
                _ => {
                    self.voter.handle(now, from, call);
                    self.pass_on();
                }
            },
            ElectionMessage::Answer(number, answer) => {
                if let VoterAnswer::Differs(theirs) = answer {
                    self.differs(from, theirs);
                    if number.is_some() {
                        // So that both sides can report the difference. Repeated as long as requests are.
                        let answer = ElectionMessage::Answer(None, VoterAnswer::Differs(self.rules));
                        self.effects.push_back(ElectionEffect::Send(from, answer, Delivery::AtOnce));
                    }
                }
                self.on_ballot_answer(now, from, number, &answer);
                self.on_adoption_answer(from, number, &answer);
                // Answers from runs that are not known as voters are ignored.
                if let Some(at) = self.voters.iter().position(|voter| voter.run == Some(from)) {
                    self.answered(now, at, number, answer);
                }
            }
        }
    }

    /// The voter rules of this node.
    pub(crate) fn rules(&self) -> VoterRules {
        self.rules
    }

    fn differs(&mut self, run: RunId, theirs: VoterRules) {
        if theirs.differs_for_good(&self.rules)
            && self.reported.len() < REPORTED_MAX
            && self.reported.insert(run)
        {
            self.effects.push_back(ElectionEffect::Differs(run, theirs));
        }
    }

    fn answered(&mut self, now: Time, at: usize, number: Option<u64>, answer: VoterAnswer) {
        match answer {
            VoterAnswer::Statement { name, told } => self.on_statement(now, at, number, &name, told),
            VoterAnswer::Granted { name, term, session } => {
                if let Some(number) = number {
                    self.on_grant(now, at, number, &name, term, session);
                }
            }
            VoterAnswer::Renewed { session, goes_on } => {
                let sent = number.and_then(|number| Some((number, *self.request_times.get(&number)?)));
                let voter = &mut self.voters[at];
                if Some(session) != voter.session {
                    return;
                }
                voter.unanswered = false;
                if !goes_on {
                    // The session is gone: its grants have to be requested again.
                    (voter.session, voter.counted_until) = (None, Duration::ZERO);
                    self.deadline = Duration::ZERO;
                } else if let Some((number, Sent { at: asked, lease })) = sent {
                    let counted = self.counted_time(lease);
                    self.voters[at].confirm(number, asked, counted, lease);
                }
            }
            VoterAnswer::Released { name, term } => {
                let key = (at, name);
                if self.releases.get(&key).is_some_and(|(released, _)| *released <= term) {
                    self.releases.remove(&key);
                }
            }
            VoterAnswer::Reported { name, grant } => self.on_report(now, at, &name, grant),
            VoterAnswer::Differs(theirs) if theirs.differs_for_good(&self.rules) => {
                self.voters[at].differs_until = now.mono + self.lease * 2;
            }
            // One of the two is about to learn of a later list.
            VoterAnswer::Differs(_)
            | VoterAnswer::Prepared { .. }
            | VoterAnswer::Accepted { .. }
            | VoterAnswer::NoDisk { .. } => {}
        }
    }

    /// Moves the answers of this node's own voter to the effects.
    fn pass_on(&mut self) {
        for reply in self.voter.answers.drain(..) {
            let message = ElectionMessage::Answer(reply.request_id, reply.answer);
            self.effects.push_back(ElectionEffect::Send(reply.to, message, reply.delivery));
        }
        self.deadline = self.deadline.min(self.voter.deadline());
    }

    /// The request id of what is sent now. All requests of one instant share an id.
    fn next_request_id(&mut self, now: Duration) -> u64 {
        match self.request_times.last_key_value() {
            Some((number, sent)) if sent.at == now && sent.lease == self.lease => *number,
            last => {
                let number = last.map_or(0, |(number, _)| *number) + 1;
                while self
                    .request_times
                    .first_key_value()
                    .is_some_and(|(_, sent)| sent.at + self.rules.lease_time_max < now)
                {
                    self.request_times.pop_first();
                }
                self.request_times.insert(number, Sent { at: now, lease: self.lease });
                number
            }
        }
    }

    /// A request id above those of all earlier requests, also of this instant.
    fn new_request_id(&mut self, now: Duration) -> u64 {
        let number = self.request_times.last_key_value().map_or(0, |(number, _)| *number) + 1;
        self.request_times.insert(number, Sent { at: now, lease: self.lease });
        number
    }

    fn send(&mut self, now: Duration, at: usize, request: Request) {
        let number = self.next_request_id(now);
        if let Some(run) = self.voters[at].run {
            let call = Call { hash: self.rules_hash, request_id: number, lease: self.lease, request };
            self.effects.push_back(ElectionEffect::Send(
                run,
                ElectionMessage::Request(call),
                Delivery::AtOnce,
            ));
        }
    }

    fn send_all(&mut self, now: Duration, request: &Request) {
        (0..self.voters.len()).for_each(|at| self.send(now, at, request.clone()));
    }

    // Time.

    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Carries out everything whose time has come.
    pub(crate) fn wake(&mut self, now: Time) {
        if now.mono < self.deadline {
            return;
        }
        self.deadline = Duration::MAX;
        self.voter.wake(now);
        self.pass_on();
        self.change_deadline(now);
        self.adoption_deadline(now);
        self.voters.iter_mut().for_each(|voter| voter.is_used = false);
        self.needs_repeat = false;
        let mut repeats = vec![0; self.voters.len()];
        if self.repeat_at <= now.mono {
            self.repeat_at = now.mono + self.lease / 12;
            self.repeat_releases(now.mono);
            repeats = self.voters.iter().map(|voter| voter.requests_max(now.mono)).collect();
        }
        let names: Vec<String> = self.candidacies.keys().cloned().collect();
        names.iter().for_each(|name| self.candidacy_deadline(now, name, &mut repeats));
        self.renew(now.mono);
        let names: Vec<String> = self.views.keys().cloned().collect();
        names.iter().for_each(|name| self.view_deadline(now.mono, name));
        if !self.releases.is_empty() || self.needs_repeat {
            self.deadline = self.deadline.min(self.repeat_at);
        }
    }

    /// Renews the session with every voter whose session is in use; one message renews all leases under it.
    fn renew(&mut self, now: Duration) {
        for at in 0..self.voters.len() {
            let voter = &mut self.voters[at];
            let Some(session) = voter.session.filter(|_| voter.is_used) else { continue };
            if voter.renew_at <= now {
                (voter.renew_at, voter.unanswered) = (now + self.lease / 12, true);
                self.send(now, at, Request::Renew { session });
            }
            self.deadline = self.deadline.min(self.voters[at].renew_at);
        }
    }

    /// Repeats the releases that are not confirmed, until they are confirmed or the voter has forgotten the grant by
    /// itself.
    fn repeat_releases(&mut self, now: Duration) {
        let lease_max = self.rules.lease_time_max;
        let lives = |voter: &PeerVoter| voter.session.is_some() && voter.counted_until + lease_max > now;
        let voters = &self.voters;
        self.releases.retain(|(at, _), (_, until)| *until > now || lives(&voters[*at]));
        let releases: Vec<((usize, String), Stamp)> =
            self.releases.iter().take(REQUESTS_MAX).map(|(key, (term, _))| (key.clone(), *term)).collect();
        for ((at, name), term) in releases {
            self.send(now, at, Request::Release { name, term });
        }
    }

    /// Whether a release is unconfirmed by a voter that may still be reached.
    #[cfg(feature = "node")]
    pub(crate) fn owes_releases(&self) -> bool {
        !self.releases.is_empty()
    }
}

/// Checks the length of an election's name.
fn check_election_name(name: &str) -> Result<(), ElectionError> {
    let fits = (1..=ELECTION_NAME_BYTES_MAX).contains(&name.len());
    if fits { Ok(()) } else { Err(ElectionError::Name { bytes: name.len() }) }
}

fn check_leader_value(value: &[u8]) -> Result<(), ElectionError> {
    let bytes = value.len();
    if bytes <= LEADER_VALUE_BYTES_MAX { Ok(()) } else { Err(ElectionError::Value { bytes }) }
}
