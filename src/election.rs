//! Elections: leases that a majority of configured voters grants, with fencing tokens.
//!
//! # What is promised
//!
//! Of one lease, at any instant of true time, at most one run is the holder by its own clock; and the terms of
//! successive holders grow. The term is the token.
//!
//! It rests on this:
//!
//! 1. *One process a name.* At no time do two processes run under the name of one voter.
//! 2. *Drift.* No monotonic clock runs more than 5 % too fast or too slow. Holders count nine tenths of what they were
//!    promised, since before they asked, and 0.9 / 0.95 < 1 / 1.05.
//! 3. *One list.* All nodes have the same list of voters, so that two majorities always share one, and the same
//!    `lease_time_max` and `clock_skew_max`, so that every voter is silent long enough ([`VoterRules`]). Every request
//!    carries a hash of these. Voters with others refuse it, both sides report it, and a candidate claims nothing while a voter of
//!    its own list has another. That finds the mistake wherever lists overlap and nodes are connected; it does not make
//!    mistakes safe in a partition. A list is changed by stopping all nodes first, and starting them with the new one.
//! 4. *Clocks, for voters without a disk alone.* Wall clocks of voters are at most half of `clock_skew_max` off.
//!
//! Nothing is assumed of the network, of how often processes crash or pause, or of wall clocks where voters have a disk
//! that keeps what was synced. Who restores an old copy of a voter's disk has a voter without a disk, in this respect.
//!
//! # Why it holds
//!
//! *One holder.* A voter promises a lease to one run at a time and keeps it until its own clock has run through the whole
//! time, or the holder has given it up. What a restarted voter had promised it may have forgotten, so it grants nothing,
//! not even a lease that is held already, until every promise from before its start is over, whoever counts:
//! [`quarantine`]. No promise is longer than `lease_time_max`; with a disk, that of the run that promised counts too. A lease that a holder could not renew in time has ended for good; whoever wants it again campaigns anew,
//! under a new term.
//!
//! *Growing terms.* A voter grants a term only above all that it has granted, and above its own clock. The first covers
//! everything while it remembers. With a disk it remembers: the greatest term is there before the answer goes out. Without
//! one, let `t` be when a forgotten term was granted: its candidate had taken it from a voter's clock, plus at most
//! `lease_time_max`, so it is at most `t` + half the skew + `lease_time_max`. The voter grants again no sooner than `t` +
//! skew + `lease_time_max`, at a clock that shows at least that minus half the skew: more.
//!
//! # How it goes
//!
//! A candidate *asks* all voters first ([`candidate`]). That promises nothing, disturbs nobody, and brings the clocks and terms
//! above which its own term has to be. When a majority would grant, it *claims*. When a majority has granted, it leads,
//! and *renews* with each voter by one small message however many leases it has. A voter that has forgotten it is claimed
//! again under the same term. [`voter`] is the other side; [`observer`] asks voters whom they have granted a lease, for those
//! who only want to know.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::config::{Config, LEASE_TIME_MAX};
use crate::controls::{Control, Controls};
use crate::error::ElectionError;
use crate::store::digest::fingerprint;
use crate::time::{Stamp, Time};
use crate::wire::{Reader, WireError};

mod candidate;
mod messages;
#[cfg(feature = "__controls")]
pub(crate) mod model;
mod observer;
mod voter;

use candidate::Candidacy;
pub(crate) use messages::Message;
use messages::{Call, Request, VoterAnswer};
use observer::LeaderView;
use voter::Voter;

/// The longest name of an election or a lock, in bytes.
pub const ELECTION_NAME_BYTES_MAX: usize = 256;
/// The largest value of a leader, in bytes.
pub const LEADER_VALUE_BYTES_MAX: usize = 512;
/// Candidates that a voter remembers to tell of one lease; others ask again by themselves.
const WAITING_MAX: usize = 64;
/// Nodes that a voter tells of changes of one lease.
const WATCHERS_MAX: usize = 4_096;
/// A free lease is offered to one candidate for this part of the lease time.
const HANDOVER_SHARE: u32 = 8;
/// Terms further ahead of a voter's clock than this are not granted: they would stand in the way for ever.
const TERM_AHEAD_MAX: Duration = Duration::from_secs(24 * 3_600);
/// Nodes with another list of voters that are remembered, to report each once.
const REPORTED_MAX: usize = 1_024;
/// The first question is repeated after this time, later ones after longer.
const ASK_TIME_MIN: Duration = Duration::from_millis(50);

/// For how long a voter is silent after its start: until the promises of its last run are over, and its clock is past
/// every term that it may have forgotten; by a clock that may run 5 % too fast. `promised` is the longest lease that its
/// disk says it may have promised.
fn quarantine(rules: VoterRules, promised: Duration) -> Duration {
    (rules.lease_time_max.max(promised) + rules.clock_skew_max) * 10 / 9
}

/// What all nodes that take part in elections must have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub struct VoterRules {
    /// A hash of the list of voters, whatever its order.
    pub voters_hash: u64,
    /// [`Config::lease_time_max`].
    pub lease_time_max: Duration,
    /// [`Config::clock_skew_max`].
    pub clock_skew_max: Duration,
}

impl VoterRules {
    fn new(config: &Config) -> Self {
        let mut names = config.voters.clone();
        names.sort_unstable();
        let text: Vec<u8> = names.iter().flat_map(|name| [name.as_bytes(), &[0]].concat()).collect();
        // Messages have milliseconds. Rounded up: a lease is never longer than the bound that is compared.
        let whole = |time: Duration| {
            let ms = time.as_nanos().div_ceil(1_000_000);
            Duration::from_millis(u64::try_from(ms).unwrap_or(u64::MAX))
        };
        Self {
            voters_hash: fingerprint(0, &text),
            lease_time_max: whole(config.lease_time_max),
            clock_skew_max: whole(config.clock_skew_max),
        }
    }

    fn rules_hash(self) -> u64 {
        let [lease, skew] =
            [self.lease_time_max, self.clock_skew_max].map(|time| time.as_millis().to_le_bytes());
        fingerprint(self.voters_hash, &[lease, skew].concat())
    }
}

/// What a voter's disk has kept of its promises.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Promised {
    /// The greatest term.
    pub(crate) term: u64,
    /// The longest lease.
    pub(crate) lease: Duration,
}

impl Promised {
    /// Nothing was promised if there is no memo. In earlier versions, which wrote the term alone, leases were of the
    /// greatest length that is permitted today.
    pub(crate) fn read(memo: Option<&[u8]>) -> Self {
        let Some((term, lease)) = memo.and_then(|memo| memo.split_first_chunk()) else {
            return Self::default();
        };
        let lease =
            lease.try_into().map_or(LEASE_TIME_MAX, |ms| Duration::from_millis(u64::from_le_bytes(ms)));
        Self { term: u64::from_le_bytes(*term), lease: lease.min(LEASE_TIME_MAX) }
    }

    pub(crate) fn write(self) -> [u8; 16] {
        let mut memo = [0; 16];
        memo[..8].copy_from_slice(&self.term.to_le_bytes());
        memo[8..].copy_from_slice(&(self.lease.as_millis() as u64).to_le_bytes());
        memo
    }
}

/// Names one campaign of this node, and the lease that it won.
pub type LeaseId = u64;

/// What has become of a campaign.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseState {
    /// It is not decided.
    Waiting,
    /// This node has the lease, under this term.
    Held(Stamp),
    /// It is over.
    Ended(LeaseEnd),
}

/// Why a campaign or a lease is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeaseEnd {
    /// It was given up.
    Resigned,
    /// It could not be renewed in time.
    Lost,
    /// Somebody else has the lease, and this was only a try.
    Taken,
    /// Too few voters answered or could vote, and this was only a try.
    NoMajority {
        /// How many voters answered.
        reached: usize,
        /// How many are needed.
        needed: usize,
    },
}

/// Who leads, as a majority of voters says.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Leader {
    /// The fencing token, which also names the run that leads: [`Stamp::origin`].
    pub token: Stamp,
    /// What the leader says about itself.
    pub value: Vec<u8>,
}

/// What an observer knows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Sighting {
    /// Too few voters were heard so far.
    #[default]
    Unknown,
    /// Who leads, if anybody does.
    Known(Option<Leader>),
}

/// Who lives under the name of a voter, as far as is known.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Living {
    Nobody,
    One(u64),
    /// A name has one vote: of two that live under it, neither counts.
    Several,
}

/// What is to be done about elections.
#[derive(Debug)]
pub(crate) enum ElectionEffect {
    /// Send a message to a run, this one included; once a promise is on the disk, if there is one.
    Send(u64, Message, Option<u64>),
    Lease(LeaseId, LeaseState),
    Leader(String, Option<Leader>),
    /// This run has another list of voters, or other bounds of time.
    Differs(u64, VoterRules),
}

/// A voter, as this node deals with it.
#[derive(Debug)]
struct PeerVoter {
    name: String,
    /// Who has it, as far as is known.
    run: Option<u64>,
    /// Under which session it promises leases to this node; 0 if it does not. Of the request that last confirmed it.
    session: u64,
    confirmed: u64,
    /// Until when this node counts on what was granted under the session.
    counted_until: Duration,
    renew_at: Duration,
    /// When the last renewal or claim went out that is not answered.
    unanswered: bool,
    /// It grants nothing until then.
    mute_until: Duration,
    /// It has another list of voters, as far as is known, which lasts no longer than this.
    differs_until: Duration,
    is_used: bool,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Elections {
    own: u64,
    rules: VoterRules,
    rules_hash: u64,
    lease: Duration,
    controls: Controls,
    random: ChaCha8Rng,
    voter: Option<Voter>,
    voters: Vec<PeerVoter>,
    candidacies: BTreeMap<String, Candidacy>,
    names: BTreeMap<LeaseId, String>,
    next_id: LeaseId,
    views: BTreeMap<String, LeaderView>,
    /// What was given up and is not confirmed to be, by seat and name.
    releases: BTreeMap<(usize, String), (Stamp, Duration)>,
    repair_at: Duration,
    needs_repair: bool,
    /// When requests were sent, by their number.
    request_times: BTreeMap<u64, Duration>,
    last_term: u64,
    reported: BTreeSet<u64>,
    deadline: Duration,
    pub(crate) effects: VecDeque<ElectionEffect>,
}

impl Elections {
    /// Without voters there is nothing to do. `promised` is what the disk kept.
    pub(crate) fn new(
        name: &str,
        run: u64,
        config: &Config,
        controls: Controls,
        promised: Promised,
    ) -> Option<Self> {
        if config.voters.is_empty() {
            return None;
        }
        // Apart from all other randomness of this replica, and as random as its run.
        let mut random = ChaCha8Rng::seed_from_u64(fingerprint(run, b"election"));
        let mut names = config.voters.clone();
        names.sort_unstable();
        let rules = VoterRules::new(config);
        let hash = if controls.has(Control::VotersDiffer) { 0 } else { rules.rules_hash() };
        let is_voter = names.iter().any(|voter| voter == name);
        let voter = is_voter.then(|| Voter::new(config, controls, promised, random.next_u64()));
        Some(Self {
            own: run,
            rules,
            rules_hash: hash,
            lease: config.lease_time,
            controls,
            random,
            voter,
            voters: names.into_iter().map(PeerVoter::new).collect(),
            candidacies: BTreeMap::new(),
            names: BTreeMap::new(),
            next_id: 1,
            views: BTreeMap::new(),
            releases: BTreeMap::new(),
            repair_at: Duration::ZERO,
            needs_repair: false,
            request_times: BTreeMap::new(),
            last_term: 0,
            reported: BTreeSet::new(),
            deadline: Duration::ZERO,
            effects: VecDeque::new(),
        })
    }

    /// The longest lease that this node grants.
    pub(crate) fn lease_max(&self) -> Duration {
        self.rules.lease_time_max
    }

    /// Says who has the seats, by the names of voters.
    pub(crate) fn seat_voters(&mut self, living: impl Fn(&str) -> Living) {
        for voter in &mut self.voters {
            let run = match living(&voter.name) {
                // A voter that is only believed to be gone may still hear what is sent to it.
                Living::Nobody => voter.run,
                Living::One(run) => Some(run),
                Living::Several => None,
            };
            if run != voter.run {
                *voter = PeerVoter { run, ..PeerVoter::new(std::mem::take(&mut voter.name)) };
                self.deadline = Duration::ZERO;
            }
        }
    }

    /// Whether the disk takes anything.
    pub(crate) fn disk(&mut self, has_failed: bool) {
        if let Some(voter) = &mut self.voter {
            voter.has_disk_failed = has_failed;
        }
    }

    /// A process has said that it ends.
    pub(crate) fn on_process_end(&mut self, now: Time, run: u64) {
        if let Some(voter) = &mut self.voter {
            voter.on_process_end(now, run);
        }
        self.pass_on();
    }

    fn majority(&self) -> usize {
        self.voters.len() / 2 + 1
    }

    /// How much of a promise this node counts on: a voter's clock may run 5 % too fast, and its own 5 % too slow.
    fn counted_time(&self) -> Duration {
        if self.controls.has(Control::NoDriftMargin) { self.lease } else { self.lease * 9 / 10 }
    }

    fn jitter(&mut self, most: Duration) -> Duration {
        most * (self.random.next_u32() % 1_024) / 1_024
    }

    // Messages.

    /// Takes in a datagram of a run.
    pub(crate) fn datagram(&mut self, now: Time, from: u64, reader: Reader<'_>) -> Result<(), WireError> {
        self.message(now, from, Message::decode(reader)?);
        Ok(())
    }

    pub(crate) fn message(&mut self, now: Time, from: u64, message: Message) {
        // A lease that is over stays over, whatever comes now.
        self.wake(now);
        match message {
            Message::Request(call) if call.hash != self.rules_hash || call.lease > self.lease_max() => {
                let answer = Message::Answer(call.request_id, VoterAnswer::Differs(self.rules));
                self.effects.push_back(ElectionEffect::Send(from, answer, None));
            }
            Message::Request(call) => {
                if let Some(voter) = &mut self.voter {
                    voter.handle(now, from, call);
                }
                self.pass_on();
            }
            Message::Answer(number, answer) => {
                if let VoterAnswer::Differs(theirs) = answer {
                    self.differs(from, theirs);
                    if number != 0 {
                        // So that both sides can tell what differs. Repeated as long as requests are.
                        let answer = Message::Answer(0, VoterAnswer::Differs(self.rules));
                        self.effects.push_back(ElectionEffect::Send(from, answer, None));
                    }
                }
                // Whoever has no seat has no vote.
                if let Some(at) = self.voters.iter().position(|voter| voter.run == Some(from)) {
                    self.answered(now, at, number, answer);
                }
            }
        }
    }

    /// The rules of this node.
    pub(crate) fn rules(&self) -> VoterRules {
        self.rules
    }

    fn differs(&mut self, run: u64, theirs: VoterRules) {
        if theirs != self.rules && self.reported.len() < REPORTED_MAX && self.reported.insert(run) {
            self.effects.push_back(ElectionEffect::Differs(run, theirs));
        }
    }

    fn answered(&mut self, now: Time, at: usize, number: u64, answer: VoterAnswer) {
        match answer {
            VoterAnswer::Statement { name, told } => self.on_statement(now, at, number, &name, told),
            VoterAnswer::Granted { name, term, session } => {
                self.on_grant(now, at, number, &name, term, session)
            }
            VoterAnswer::Renewed { session, goes_on } => {
                let asked = self.request_times.get(&number).copied();
                let counted = self.counted_time();
                let voter = &mut self.voters[at];
                if session != voter.session || session == 0 {
                    return;
                }
                voter.unanswered = false;
                if !goes_on {
                    // What it granted has to be granted again.
                    (voter.session, voter.counted_until) = (0, Duration::ZERO);
                    self.deadline = Duration::ZERO;
                } else if let Some(asked) = asked {
                    voter.confirm(number, asked, counted, self.lease);
                }
            }
            VoterAnswer::Released { name, term } => {
                let key = (at, name);
                if self.releases.get(&key).is_some_and(|(released, _)| *released <= term) {
                    self.releases.remove(&key);
                }
            }
            VoterAnswer::Reported { name, grant } => self.on_report(now, at, &name, grant),
            VoterAnswer::Differs(_) => self.voters[at].differs_until = now.mono + self.lease * 2,
        }
    }

    /// Passes on what the voter answers.
    fn pass_on(&mut self) {
        let Some(voter) = &mut self.voter else { return };
        for reply in voter.answers.drain(..) {
            let message = Message::Answer(reply.request_id, reply.answer);
            self.effects.push_back(ElectionEffect::Send(reply.to, message, reply.promised));
        }
        self.deadline = self.deadline.min(voter.deadline());
    }

    /// The number of what is sent now.
    fn next_request_id(&mut self, now: Duration) -> u64 {
        match self.request_times.last_key_value() {
            Some((number, asked)) if *asked == now => *number,
            last => {
                let number = last.map_or(0, |(number, _)| *number) + 1;
                while self
                    .request_times
                    .first_key_value()
                    .is_some_and(|(_, asked)| *asked + self.rules.lease_time_max < now)
                {
                    self.request_times.pop_first();
                }
                self.request_times.insert(number, now);
                number
            }
        }
    }

    fn send(&mut self, now: Duration, at: usize, request: Request) {
        let number = self.next_request_id(now);
        if let Some(run) = self.voters[at].run {
            let call = Call { hash: self.rules_hash, request_id: number, lease: self.lease, request };
            self.effects.push_back(ElectionEffect::Send(run, Message::Request(call), None));
        }
    }

    fn send_all(&mut self, now: Duration, request: &Request) {
        (0..self.voters.len()).for_each(|at| self.send(now, at, request.clone()));
    }

    // Time.

    pub(crate) fn deadline(&self) -> Duration {
        self.deadline
    }

    /// Does what is due.
    pub(crate) fn wake(&mut self, now: Time) {
        if now.mono < self.deadline {
            return;
        }
        self.deadline = Duration::MAX;
        if let Some(voter) = &mut self.voter {
            voter.wake(now);
        }
        self.pass_on();
        self.voters.iter_mut().for_each(|voter| voter.is_used = false);
        self.needs_repair = false;
        let mut repairs = vec![0; self.voters.len()];
        if self.repair_at <= now.mono {
            self.repair_at = now.mono + self.lease / 12;
            self.repeat_releases(now.mono);
            repairs = self.voters.iter().map(|voter| voter.requests_max(now.mono)).collect();
        }
        let names: Vec<String> = self.candidacies.keys().cloned().collect();
        names.iter().for_each(|name| self.candidacy_deadline(now, name, &mut repairs));
        self.renew(now.mono);
        let names: Vec<String> = self.views.keys().cloned().collect();
        names.iter().for_each(|name| self.view_deadline(now.mono, name));
        if !self.releases.is_empty() || self.needs_repair {
            self.deadline = self.deadline.min(self.repair_at);
        }
    }

    /// Renews with every voter that has granted something, all of it at once.
    fn renew(&mut self, now: Duration) {
        for at in 0..self.voters.len() {
            let voter = &mut self.voters[at];
            if !voter.is_used || voter.session == 0 {
                continue;
            }
            if voter.renew_at <= now {
                (voter.renew_at, voter.unanswered) = (now + self.lease / 12, true);
                let session = voter.session;
                self.send(now, at, Request::Renew { session });
            }
            self.deadline = self.deadline.min(self.voters[at].renew_at);
        }
    }

    /// Says again what was given up, until that is confirmed or forgotten there by itself.
    fn repeat_releases(&mut self, now: Duration) {
        let lease_max = self.lease_max();
        let lives = |voter: &PeerVoter| voter.session != 0 && voter.counted_until + lease_max > now;
        let voters = &self.voters;
        self.releases.retain(|(at, _), (_, until)| *until > now || lives(&voters[*at]));
        let releases: Vec<((usize, String), Stamp)> =
            self.releases.iter().take(REQUESTS_MAX).map(|(key, (term, _))| (key.clone(), *term)).collect();
        for ((at, name), term) in releases {
            self.send(now, at, Request::Release { name, term });
        }
    }

    /// Whether something was given up of which a voter that can be reached may not know.
    #[cfg(feature = "node")]
    pub(crate) fn owes_releases(&self) -> bool {
        !self.releases.is_empty()
    }
}

/// Claims and releases that are repeated to one voter at a time.
const REQUESTS_MAX: usize = 64;

impl PeerVoter {
    fn new(name: String) -> Self {
        Self {
            name,
            run: None,
            session: 0,
            confirmed: 0,
            counted_until: Duration::ZERO,
            renew_at: Duration::ZERO,
            unanswered: false,
            mute_until: Duration::ZERO,
            differs_until: Duration::ZERO,
            is_used: false,
        }
    }

    /// The voter has promised everything under its session for a lease since it was asked.
    fn confirm(&mut self, number: u64, asked: Duration, counted: Duration, lease: Duration) {
        self.confirmed = self.confirmed.max(number);
        self.counted_until = self.counted_until.max(asked + counted);
        self.renew_at = self.renew_at.max(asked + lease / 3);
        self.unanswered = false;
    }

    /// How many claims it is worth sending it at a time: one to find out whether it is there at all.
    fn requests_max(&self, now: Duration) -> usize {
        match (self.mute_until > now, self.unanswered) {
            (true, _) => 0,
            (false, true) => 1,
            (false, false) => REQUESTS_MAX,
        }
    }
}

/// A name for an election that is permitted.
fn check_election_name(name: &str) -> Result<(), ElectionError> {
    let fits = (1..=ELECTION_NAME_BYTES_MAX).contains(&name.len());
    if fits { Ok(()) } else { Err(ElectionError::Name { bytes: name.len() }) }
}

fn check_leader_value(value: &[u8]) -> Result<(), ElectionError> {
    let bytes = value.len();
    if bytes <= LEADER_VALUE_BYTES_MAX { Ok(()) } else { Err(ElectionError::Value { bytes }) }
}
