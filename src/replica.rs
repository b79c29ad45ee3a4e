//! The replica: owns the store and the links, and routes between them and the outside.
//!
//! It follows the polling contract: [`Replica::handle`] takes what happened, [`Replica::poll`] gives what to do
//! until it has nothing more, [`Replica::deadline`] says when to wake it. Draining late only delays. A disk follows
//! by itself: the code that writes to it asks [`Replica::persist`] for as much as it can take. It has no
//! policy of its own: what to send is decided by [`crate::replication::tail`] and [`crate::replication::repair`].

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::config::{ClusterSettings, Config};
use crate::controls::Control;
use crate::election::{Elections, VoterMemo};
use crate::id::{LinkId, LogId, RunId};
use crate::membership::Members;
use crate::replica::wall_clock::WallClock;
use crate::replication::arrived::Arrived;
use crate::replication::claims::ForwardedClaims;
use crate::replication::flow::WriteLimiter;
use crate::store::digest::HashKey;
use crate::store::entry::Revision;
use crate::store::watch::Watches;
use crate::store::{DiskFollower, LocalStore};
use crate::time::Time;
pub use crate::wire::Lane;
use crate::wire::{Kind, WireError, Writer};

/// Bytes in flight on a stream before the next frame is cut: two full frames. Twice as much takes memory with every
/// peer that is behind, and joins nobody sooner.
pub(crate) const WINDOW_BYTES: usize = 32 << 10;

/// Frames of the live stream are gathered until they are so large.
const TOGETHER_BYTES: usize = 1_024;

/// For so many sync intervals, at most, differences do not count while tails are moving: should a cluster never come
/// to rest, real differences are found all the same.
const SUPPRESSED_INTERVALS_MAX: u32 = 64;

/// The name of the memo with the members to look for after a restart.
const MEMBERS_MEMO: &str = "members";
/// The name of the memo with what this voter has promised.
pub(crate) const VOTER_MEMO: &str = "voter";

/// Logs of peers of which it is kept how often something of theirs was refused. Of more, any one is forgotten, and its
/// next link is opened sooner than the last.
const REFUSALS_MAX: usize = 4_096;

/// A link over which something was refused ends after `2^n` sync intervals, where n counts such links, up to this.
const REFUSALS_BACKOFF_MAX: u32 = 5;

/// Expiries worked off at a time.
const EXPIRE_STEPS: usize = 1_024;

/// The parts of [`Config::store_bytes_max`] at which the user is told that the store fills, and that it has room again.
const FILLING_PERCENT: u64 = 80;
const ROOM_PERCENT: u64 = 70;

mod batch;
mod checks;
mod contract;
mod counters;
mod disk;
mod elections;
mod forget;
mod frames;
mod joining;
#[cfg(feature = "__controls")]
mod kept;
mod link;
pub(crate) mod links;
mod lives;
mod members;
mod receipts;
mod repair;
pub(crate) mod saved;
mod schedule;
mod settings;
mod status;
mod timers;
mod validation;
mod verbs;
mod voters;
mod wall_clock;

pub use batch::Batch;
pub use contract::{BreakReason, Input, Output, ReplicaEvent, Setup};
pub use counters::FoldedShares;
use disk::DiskCursor;
pub use disk::Persist;
#[cfg(feature = "durable")]
pub(crate) use disk::SnapshotCursor;
use elections::Promise;
use joining::JoinState;
pub use joining::{JoinProgress, Readiness};
#[cfg(feature = "__controls")]
pub use kept::Kept;
use links::Links;
use receipts::CoverageAnswers;
use repair::PartialRows;
pub use repair::RepairReport;
pub use status::{RepairTraffic, Status};
use validation::Validation;
pub(crate) use validation::Validators;
pub use verbs::PutOptions;

/// One replica of the store, without clock, network or disk. Its driver gives it inputs and the time, carries
/// out its outputs, and writes to the disk what [`Replica::persist`] returns.
#[derive(Debug)]
pub struct Replica {
    pub(crate) store: LocalStore,
    /// What is in force: as configured, but with the cluster's shared settings.
    config: Config,
    /// The shared settings as they were configured.
    configured: ClusterSettings,
    random: ChaCha8Rng,
    links: Links,
    outputs: VecDeque<Output>,
    now: Time,
    next_tick: Duration,
    disk: DiskCursor,
    scrub_at: usize,
    refusals: BTreeMap<Option<LogId>, u32>,
    stale_cursors: BTreeMap<LogId, u64>,
    partials: PartialRows,
    /// What repair sessions and checks have sent so far, for reports.
    traffic: RepairTraffic,
    watches: Watches,
    joining: JoinState,
    /// What arrived by tails and was not taken yet.
    arrived: Vec<Arrived>,
    members: Option<Members>,
    forwarded_claims: ForwardedClaims,
    write_limiter: WriteLimiter,
    wall_clock: WallClock,
    /// The median peer is further behind than [`Config::lag_bytes_max`].
    median_lag_exceeded: bool,
    topology_version: u64,
    /// Links with questions that are not answered.
    coverage_questions: BTreeSet<LinkId>,
    /// Rows that tails brought, and those of them that were news.
    tail_rows: (u64, u64),
    election: Option<Elections>,
    promises: VecDeque<Promise>,
    /// What this run has added to each counter, by the stored key of its share.
    own_shares: BTreeMap<Vec<u8>, i64>,
    /// Whether the user was told that there are too many members.
    is_full: bool,
    /// Whether the user was told that the store fills, and not since then that it has room.
    is_filling: bool,
    validation: Validation,
    /// The most outputs that waited after one input.
    #[cfg(feature = "__controls")]
    outputs_peak: usize,
}

impl Replica {
    /// A replica, blank or with what its disk holds.
    pub fn new(setup: Setup) -> Self {
        let Setup { config, seed, saved, has_disk, is_founder, member, validators, controls } = setup;
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let hash_key = HashKey::from_words(random.next_u64(), random.next_u64());
        // A member's run is the origin of what it writes: so everybody can tell who wrote.
        let run = member.as_ref().map_or_else(|| RunId::new(random.next_u64()), |own| own.run);
        let mut store = LocalStore::new(&config, run, hash_key, controls);
        if has_disk {
            store.disk = DiskFollower::At(0);
        }
        let members = member.map(|own| Members::new(own, &config, controls, &mut random));
        let mut replica = Self {
            store,
            random,
            links: Links::default(),
            outputs: VecDeque::new(),
            now: Time::default(),
            next_tick: Duration::ZERO,
            disk: DiskCursor::default(),
            scrub_at: 0,
            refusals: BTreeMap::new(),
            stale_cursors: BTreeMap::new(),
            partials: PartialRows::default(),
            traffic: RepairTraffic::default(),
            watches: Watches::default(),
            joining: JoinState::default(),
            arrived: Vec::new(),
            members,
            forwarded_claims: ForwardedClaims::default(),
            write_limiter: WriteLimiter::new(&config),
            wall_clock: WallClock::new(config.clock_skew_max, controls),
            median_lag_exceeded: false,
            topology_version: 0,
            coverage_questions: BTreeSet::new(),
            tail_rows: (0, 0),
            election: None,
            promises: VecDeque::new(),
            own_shares: BTreeMap::new(),
            is_full: false,
            is_filling: false,
            validation: Validation::new(validators),
            configured: ClusterSettings::of(&config),
            config,
            #[cfg(feature = "__controls")]
            outputs_peak: 0,
        };
        if let Some(saved) = saved {
            replica.load(saved);
            if let (Some(members), Some(memo)) = (&mut replica.members, replica.disk.memo(MEMBERS_MEMO)) {
                members.load(memo);
            }
        }
        replica.begin_joining(is_founder);
        if let Some(own) = replica.own_member() {
            let memo = VoterMemo::read(replica.memo(VOTER_MEMO));
            let is_unread = memo.is_err() && !controls.has(Control::MemoForgotten);
            let (name, memo) = (&own.name, memo.unwrap_or_default());
            let mut election = Elections::new(name, own.run, &replica.config, controls, has_disk, memo);
            if is_unread {
                election.stop_voting();
                replica.outputs.push_back(Output::Event(ReplicaEvent::VoterSilent));
            }
            replica.election = Some(election);
        }
        replica.read_settings();
        replica.read_voters();
        replica
    }

    /// Builds the digest anew, to be measured.
    #[cfg(feature = "__measures")]
    #[doc(hidden)]
    pub fn rebuild_digest(&mut self) {
        self.store.rekey(self.store.hash_key);
    }

    /// Covers one write each of this many runs, as if they had ended long ago, to be measured.
    #[cfg(feature = "__measures")]
    #[doc(hidden)]
    pub fn cover_dead_runs(&mut self, count: u64) {
        self.store.cover_dead_runs(count);
    }

    /// Changes every row in the digest to what it is, to be measured.
    #[cfg(feature = "__measures")]
    #[doc(hidden)]
    pub fn churn_digest(&mut self) {
        self.store.churn_digest();
    }

    /// Whether all peers that this replica sends its writes to said that they have everything up to this revision.
    pub fn is_acked(&self, revision: Revision) -> bool {
        let mut fed = self.links.values().filter(|link| link.route.feeds);
        fed.all(|link| link.acks.acked() >= revision.number)
    }

    /// Whether this replica has everything that the peer had when the link was made.
    pub fn is_compared(&self, link: LinkId) -> bool {
        self.links.get(link).is_some_and(|link| link.is_compared)
    }

    /// The lag of a peer to which this node sends its writes directly: changes, and about how many bytes they are.
    pub fn lag(&self, link: LinkId) -> (u64, u64) {
        let fed = self.links.get(link).filter(|link| link.route.feeds);
        let changes = fed.map_or(0, |link| link.lag(&self.store));
        let rows = self.store.len().max(1) as u64;
        (changes, changes * (self.store.bytes() / rows))
    }

    /// How long a peer has owed an acknowledgement: the time since the first row that it has not acknowledged was sent,
    /// less the ack delay, within which one acknowledgement serves many writes. Zero if nothing is owed.
    pub fn lag_time(&self, now: Time, link: LinkId) -> Duration {
        let Some(link) = self.links.get(link) else { return Duration::ZERO };
        let owed_since =
            link.acks.unacked_since().map(|since| since + link.ack_delay(self.config.sync_interval));
        owed_since.map_or(Duration::ZERO, |since| now.mono.saturating_sub(since))
    }

    /// Where the change log stands.
    pub fn head(&self) -> Revision {
        Revision { log: self.store.log.id, number: self.store.log.head() }
    }

    /// The lag of the median peer, in bytes.
    pub fn median_lag(&self) -> u64 {
        let fed = self.links.iter().filter(|(_, link)| link.route.feeds);
        let mut lags: Vec<u64> = fed.map(|(id, _)| self.lag(id).1).collect();
        lags.sort_unstable();
        lags.get(lags.len() / 2).copied().unwrap_or(0)
    }

    /// Whether local writes are refused for now because the cluster is behind.
    pub fn is_busy(&self, now: Time) -> bool {
        self.median_lag_exceeded || !self.write_limiter.has_room(now.mono)
    }

    /// Begins a repair with a peer as soon as its `Hello` has arrived, whatever the checks say.
    pub fn want_repair(&mut self, link: LinkId) {
        if let Some(link) = self.links.get_mut(link) {
            link.repair.is_wanted = true;
        }
    }

    // The contract.

    /// Lets the followers in this process see what has changed, then forgets what nobody needs any more.
    fn follow(&mut self) {
        self.follow_validation();
        self.watches.advance(&self.store);
        self.store.trim();
        self.links.step();
        self.report_size();
    }

    /// Tells the user when the store has grown close to its limit, and when it has room again.
    fn report_size(&mut self) {
        let (bytes, limit) = (self.store.size_bytes(), self.store.store_bytes_max());
        let percent = if self.is_filling { ROOM_PERCENT } else { FILLING_PERCENT };
        let is_filling = bytes >= limit / 100 * percent;
        if is_filling == self.is_filling {
            return;
        }
        self.is_filling = is_filling;
        let event = if is_filling {
            ReplicaEvent::StoreFilling { bytes, limit }
        } else {
            ReplicaEvent::StoreHasRoom { bytes, limit }
        };
        self.outputs.push_back(Output::Event(event));
    }

    /// Takes in what happened.
    pub fn handle(&mut self, now: Time, input: Input<'_>) {
        self.now = now;
        self.members.iter_mut().for_each(|members| members.begin(now));
        self.look_at_clock(now);
        match input {
            Input::LinkUp(id, abilities) => {
                self.wall_clock.note_others();
                self.store.may_drop = self.wall_clock.may_drop(now);
                // A new replica has no cut yet, and the vector of its donor may arrive before the first tick.
                self.advance_cut();
                let link = self.new_link(abilities);
                self.links.insert(id, link);
            }
            Input::LinkDown(id) => self.link_down(id),
            Input::Drained(id, lane, bytes) => {
                if let Some(link) = self.links.get_mut(id) {
                    let in_flight = &mut link.lanes.in_flight[lane as usize];
                    *in_flight = in_flight.saturating_sub(bytes);
                    let counts = !self.store.controls.has(Control::WholeFramesCount);
                    match (lane, &mut link.repair.session) {
                        (Lane::Live, _) => link.lanes.sent_at = now.mono,
                        // A peer that is fed has nothing to say meanwhile.
                        (Lane::Bulk, Some(session)) if counts => session.on_bytes_moved(now, bytes),
                        (Lane::Bulk, _) => {}
                    }
                }
            }
            Input::LinkIdentified(id, who, bytes) => self.on_link_member(id, who, bytes),
            Input::MemberDatagram(from, bytes) => self.stray_packet(from, bytes),
            Input::PeerClosing { link, exit } => {
                let run = self.links.get(link).and_then(|link| link.run);
                if let (Some(members), Some(run)) = (&mut self.members, run) {
                    members.on_process_end(now, run, exit);
                }
                if let (Some(election), Some(run)) = (&mut self.election, run) {
                    election.on_process_end(now, run);
                }
            }
            Input::Persisted => self.on_persisted(),
            Input::PersistFailed => self.on_persist_failed(),
            Input::DiskBack => self.on_disk_back(),
            Input::Wake => self.wake(),
            Input::Datagram(id, bytes) => {
                if let Err(error) = self.handle_datagram(id, bytes) {
                    self.break_link(id, BreakReason::Protocol(error));
                }
            }
            Input::Stream(id, lane, bytes) => match self.handle_stream(id, lane, bytes) {
                Ok(()) => {}
                Err(error @ (WireError::Claim | WireError::OwnClaim(_))) => self.distrust(id, error),
                Err(error) => self.break_link(id, BreakReason::Protocol(error)),
            },
        }
        self.recover_from_damage();
        self.drain_member_effects();
        if !self.coverage_questions.is_empty() {
            self.answer_coverage(CoverageAnswers::Decisive);
        }
        self.drain_election_effects();
        if std::mem::take(&mut self.store.has_reserved_news) {
            self.read_settings();
            self.read_voters();
            self.drain_election_effects();
        }
        // Nobody can be behind by more than there is.
        let most = self.config.lag_bytes_max as u64;
        self.median_lag_exceeded = self.store.bytes() > most && self.median_lag() > most;
        self.advance_readiness();
        self.judge_runs(now);
        self.follow();
        #[cfg(feature = "__controls")]
        self.note_outputs();
    }

    /// When to wake it next.
    pub fn deadline(&self) -> Time {
        let members = self.members.as_ref().map_or(Duration::MAX, Members::deadline);
        let elections = self.election.as_ref().map_or(Duration::MAX, Elections::deadline);
        let mut at = self.next_tick.min(members).min(elections);
        at = self.write_limiter.deadline(self.now.mono).map_or(at, |room| at.min(room));
        let interval = self.config.sync_interval;
        at = self.links.deadline(interval).map_or(at, |due| at.min(due));
        at = self.joining_deadline().map_or(at, |due| at.min(due));
        if let Some(ms) = self.store.next_expiry() {
            let left = Duration::from_millis(ms).saturating_sub(self.now.wall);
            at = at.min(self.now.mono + left);
        }
        self.now.later_by(at.saturating_sub(self.now.mono))
    }

    /// The next thing to do, until there is none.
    pub fn poll(&mut self) -> Option<Output> {
        if let Some(output) = self.outputs.pop_front() {
            return Some(output);
        }
        self.advance_joining();
        self.links.follow(&self.store.log);
        while let Some(id) = self.links.next_dirty() {
            if let Some(output) = self.poll_link(id) {
                return Some(output);
            }
            self.links.rest(id, self.config.sync_interval);
            if !self.outputs.is_empty() {
                return self.outputs.pop_front();
            }
        }
        #[cfg(debug_assertions)]
        self.check_that_all_may_rest();
        None
    }

    /// Checks the invariant of [`Schedule`](schedule::Schedule) in debug builds, so that every simulation proves it.
    #[cfg(debug_assertions)]
    fn check_that_all_may_rest(&mut self) {
        for id in self.links.ids() {
            let rests = self.poll_link(id).is_none() && self.outputs.is_empty();
            assert!(rests, "link {id} had something to do");
            self.links.rest(id, self.config.sync_interval);
        }
    }

    fn poll_link(&mut self, id: LinkId) -> Option<Output> {
        let (may_begin, purpose) = (self.may_begin(id), self.repair_purpose());
        let has_members = self.members.is_some();
        let (store, link) = (&mut self.store, self.links.get_mut(id)?);
        // What the last frame settled may finish the comparison.
        link.finish_claim(store);
        if let Some(bytes) = link.checks.outbox.pop_front() {
            self.traffic.bytes += bytes.len() as u64;
            return Some(Output::Datagram(id, bytes));
        }
        let mut bytes = Vec::new();
        // Nothing is sent before the member at the other end is identified: the first packet then has all that is due.
        let is_introduced = link.run.is_some() || !has_members;
        if is_introduced && link.lanes.in_flight[Lane::Live as usize] < WINDOW_BYTES {
            // Frames that fit in one packet are sent together: otherwise a fast transport makes several packets of
            // them.
            while bytes.len() < TOGETHER_BYTES
                && let Some(frame) = link.next_live_frame(store, &mut self.forwarded_claims, self.now.mono)
            {
                if bytes.is_empty() { bytes = frame } else { bytes.extend(frame) }
            }
        }
        if !bytes.is_empty() {
            link.lanes.in_flight[Lane::Live as usize] += bytes.len();
            link.lanes.sent_at = self.now.mono;
            return Some(Output::Stream(id, Lane::Live, bytes));
        }
        if std::mem::take(&mut link.repair.owes_deferral) {
            let mut writer = Writer::new(Kind::Deferred);
            writer.session(link.repair.id);
            let bytes = writer.finish();
            link.lanes.in_flight[Lane::Bulk as usize] += bytes.len();
            return Some(Output::Stream(id, Lane::Bulk, bytes));
        }
        link.repair.is_wanted |= link.tail_sender.take_stranded();
        let may_begin = may_begin && !link.is_distrusted();
        if link.repair.is_wanted && may_begin && link.peer.is_some() && link.repair.session.is_none() {
            link.begin_session(store, self.now, self.random.next_u64(), purpose);
            self.outputs.push_back(Output::RepairBegun(id));
        }
        if link.lanes.in_flight[Lane::Bulk as usize] < WINDOW_BYTES {
            // Large rows of the tail, the repair, and its large rows take turns.
            let first = link.lanes.bulk_next;
            for turn in (first..first + 3).map(|turn| turn % 3) {
                let bytes = match turn {
                    0 => self.large_frame(id),
                    1 => self.session_frame(id),
                    _ => self.session_piece(id),
                };
                if let Some(bytes) = bytes {
                    let link = self.links.get_mut(id)?;
                    link.lanes.bulk_next = turn + 1;
                    link.lanes.in_flight[Lane::Bulk as usize] += bytes.len();
                    return Some(Output::Stream(id, Lane::Bulk, bytes));
                }
            }
        }
        self.recover_from_damage();
        None
    }

    /// The next piece of a large row of the tail.
    fn large_frame(&mut self, id: LinkId) -> Option<Vec<u8>> {
        let link = self.links.get_mut(id)?;
        let bytes = link.tail_sender.next_piece(&mut self.store, &link.old_parts, &mut link.resume.offer)?;
        link.lanes.sent_at = self.now.mono;
        Some(bytes)
    }

    /// The next piece of a large row of a repair.
    fn session_piece(&mut self, id: LinkId) -> Option<Vec<u8>> {
        let link = self.links.get_mut(id)?;
        let session = link.repair.session.as_mut()?;
        let bytes = session.large_piece(&mut self.store, &link.old_parts, &mut link.resume.offer)?;
        self.traffic.rows_bytes += bytes.len() as u64;
        self.traffic.bytes += bytes.len() as u64;
        self.traffic.frames += 1;
        session.bytes += bytes.len() as u64;
        Some(bytes)
    }

    /// The next frame of a repair.
    fn session_frame(&mut self, id: LinkId) -> Option<Vec<u8>> {
        let link = self.links.get_mut(id).filter(|link| !link.old_parts.is_asking())?;
        let session = link.repair.session.as_mut()?;
        let rows_before = session.rows_bytes;
        let bytes = session.next_frame(&mut self.store, self.now, &link.old_parts)?;
        self.traffic.rows_bytes += session.rows_bytes - rows_before;
        self.traffic.bytes += bytes.len() as u64;
        self.traffic.frames += 1;
        session.bytes += bytes.len() as u64;
        if let Some(session) = link.repair.finish(self.now, self.config.sync_interval) {
            self.outputs.push_back(Output::Repair(id, RepairReport::of(&session, self.now)));
        }
        Some(bytes)
    }

    // Links.

    fn link_down(&mut self, id: LinkId) {
        self.abort_session(id);
        self.wall_clock.forget_link(id);
        let Some(link) = self.links.remove(id) else { return };
        if let (Some(members), Some(run)) = (&mut self.members, link.run) {
            members.unlinked(run);
        }
        if self.store.controls.has(Control::CursorKept)
            && let Some((log, _)) = link.peer
        {
            self.stale_cursors.insert(log, link.tail_sender.cursor);
        }
        self.keep_partial(link);
        self.keep_linked_positions();
    }

    /// The positions in the logs of linked peers are not to be forgotten.
    fn keep_linked_positions(&mut self) {
        let linked = self.links.values().filter_map(|link| link.peer).map(|(log, _)| log);
        self.store.peer_positions.set_linked(linked);
    }

    fn break_link(&mut self, id: LinkId, reason: BreakReason) {
        if self.links.contains(id) {
            self.link_down(id);
            self.outputs.push_back(Output::Break(id, reason));
        }
    }

    /// After damage: gives up what this replica claims, and breaks every link before anything is sent.
    fn recover_from_damage(&mut self) {
        if !self.store.is_damaged {
            return;
        }
        if !self.store.controls.has(Control::LinksKept) {
            let ids = self.links.ids();
            ids.into_iter().for_each(|id| self.break_link(id, BreakReason::Damaged));
        }
        self.store.give_up_claims();
        self.judge_runs(self.now);
        self.store.withhold_future(self.now);
        self.forwarded_claims = ForwardedClaims::default();
        self.disk.require_full_write();
        self.outputs.push_back(Output::Event(ReplicaEvent::Damaged));
        self.join_anew();
    }
}
