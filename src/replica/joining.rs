//! Joining: until a replica has caught up with one peer, only one peer at a time feeds it.
//!
//! A replica that enters a cluster is linked with many peers at once, and each of them holds everything that it lacks.
//! So it repairs with one of them, its *donor*, and defers the others: a peer that has begun a session already gets
//! [`Kind::Deferred`](crate::wire::Kind::Deferred), aborts it, and is asked again when the donor has finished. By then
//! little differs, and those repairs are short.
//!
//! A donor is a peer that holds more than this replica, or one whose log an earlier run of it has followed. Where there
//! is no such peer, as in a cluster that starts, nobody is deferred.
//!
//! A replica that starts with a disk has caught up with a peer at once only if the two have merged the same. That it
//! knows a position in the peer's log is not enough: the tail would bring what that peer has written since, not what
//! others have, and nothing would say when it has come. It cannot do without a repair in any case, because its own log
//! is new to the peer.
//!
//! Two replicas that join at the same time may have merged the same and lack the same. So each replica says when it has
//! caught up ([`Kind::CaughtUp`](crate::wire::Kind::CaughtUp)), and one that joins has caught up once it has everything
//! that a peer had when that said so. A founder says so from the start: a node without seeds that remembers no member.
//!
//! Where all start at once nobody says so. There a replica has caught up once it has everything of one peer, no peer
//! feeds it, and one probe interval has passed in which a peer that has caught up could have been linked. If one was
//! linked, or a peer feeds it, it waits longer, but never for ever: that peer may be dead, or lie.
//!
//! A replica that had caught up in an earlier run is ready with what its disk holds once it has been linked with nobody
//! for a while. One that never caught up waits for a peer, because it may hold a part of the data only.
//!
//! A donor is replaced when its link is gone, when it has brought nothing for a while and another peer could, or when
//! it takes long while others wait: no rate tells a slow link from a peer that occupies the place of the donor and
//! feeds nothing. What a donor brought is settled, so the next one brings only the rest.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::link::{Link, PeerStage};
use super::{Output, Replica, ReplicaEvent};
use crate::controls::Control;
use crate::id::LinkId;
use crate::replication::repair::RepairSession;
use crate::wire::Abilities;

/// A donor that has brought nothing for this part of [`Config::sync_timeout`](crate::Config::sync_timeout) is replaced.
const DONOR_STALL_DIVISOR: u32 = 4;

/// While other peers wait, a donor has `DONOR_TIME_FACTOR × Config::sync_timeout` to finish. The time doubles each time
/// the peer is replaced as donor, at most `DONOR_TIME_DOUBLINGS_MAX` times. Little is sent twice: settled ranges stay
/// settled, and a large row in transfer is kept for the next session.
const DONOR_TIME_FACTOR: u32 = 12;
const DONOR_TIME_DOUBLINGS_MAX: u32 = 8;

/// A peer that was deferred and is not asked begins again by itself, at the earliest after this many sync intervals.
const DEFERRED_INTERVALS: u32 = 8;

/// A member that has caught up waits at most this many probe intervals for links to all members that it should be
/// linked with. One that cannot be reached must not keep it from being ready.
const LINKS_INTERVALS_MAX: u32 = 1;

/// A member that has everything of a peer that joins too waits this many probe intervals for a link to one that has
/// caught up. If it has heard of one since its start, or is fed, it waits as long as for a donor while others wait:
/// `DONOR_TIME_FACTOR × Config::sync_timeout`.
const JOINERS_INTERVALS: u32 = 1;

/// The name of the memo that says that a run had caught up: its disk holds the whole data of some time, not a part.
const CAUGHT_UP_MEMO: &str = "caught up";

/// Whether a node is to be used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum Readiness {
    /// It has not caught up with its cluster since its start. What it holds may be old, or a part only.
    #[default]
    Joining,
    /// It is ready with what it holds, although it has not caught up with anybody since its start: it has no seeds, or it
    /// had caught up in an earlier run and has reached nobody for [`Config::alone_after`](crate::Config::alone_after).
    Alone,
    /// It has caught up with a peer, and its writes go at once to all members that can be reached.
    Joined,
}

impl Readiness {
    /// Whether it is ready, alone or with others.
    pub fn is_ready(self) -> bool {
        self != Self::Joining
    }
}

/// Whether there is a cluster whose data a replica that joins has to get.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum ClusterAround {
    /// No peer has said since the start that it has caught up.
    #[default]
    Unknown,
    /// The same, and this replica is a founder: it has no seeds and remembers no member. What it holds is the data of
    /// its cluster.
    Founded,
    /// A peer has said that it has caught up, or its program never does.
    Met,
}

/// Whether this replica has caught up since its start, and which peer is its donor.
#[derive(Debug, Default)]
pub(super) struct JoinState {
    has_caught_up: bool,
    donor: Option<LinkId>,
    cluster: ClusterAround,
    /// Since when it has everything of a peer, which may join too.
    equal_since: Option<Duration>,
    /// It has caught up, and until then it waits for links.
    links_until: Option<Duration>,
    /// An earlier run had caught up, and its disk holds what it had.
    had_caught_up: bool,
    /// When it is ready alone, while it may be, and is linked with nobody.
    alone_at: Option<Duration>,
    readiness: Readiness,
}

impl JoinState {
    pub(super) fn has_caught_up(&self) -> bool {
        self.has_caught_up
    }
}

/// How far a node is in catching up with its cluster.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct JoinProgress {
    /// Who feeds it; nobody while it looks for somebody, and when it has caught up.
    pub donor: Option<String>,
    /// Entries held here, those of sets and counters included.
    pub entries_done: u64,
    /// Entries that its donor held when it began; as many as are held here when nobody has told, and in the end.
    pub entries_expected: u64,
    /// Bytes of the keys and values held here.
    pub bytes_done: u64,
    /// The same at its donor.
    pub bytes_expected: u64,
    /// It has caught up, and is linked with the members that it knows of, as far as they can be reached; or it is ready
    /// alone ([`Readiness::Alone`]).
    pub is_ready: bool,
}

impl Replica {
    /// Whether this replica has not caught up with its cluster since its start.
    pub fn is_joining(&self) -> bool {
        !self.joining.has_caught_up
    }

    /// Whether this replica has caught up with a peer since its start and, where it is a member, its writes go at once
    /// to all members that it knows of and wants to be linked with. Of those that cannot be reached it waits for none
    /// longer than one [`Config::probe_interval`](crate::Config::probe_interval).
    ///
    /// It is ready as well if an earlier run had caught up, and it has been linked with nobody for
    /// [`Config::alone_after`](crate::Config::alone_after).
    pub fn is_ready(&self) -> bool {
        self.joining.readiness.is_ready()
    }

    /// Whether it is ready, and whether that is so because it has caught up. It does not know of seeds.
    pub fn readiness(&self) -> Readiness {
        self.joining.readiness
    }

    /// What an earlier run has left on the disk was loaded, if it has left anything.
    pub(super) fn begin_joining(&mut self, is_founder: bool) {
        let remembers_none = self.members.as_ref().is_some_and(|members| members.others().next().is_none());
        if is_founder && remembers_none {
            self.joining.cluster = ClusterAround::Founded;
        }
        self.joining.had_caught_up = self.memo(CAUGHT_UP_MEMO).is_some() && self.has_disk();
    }

    /// When the wait for peers that have caught up, or then for links, ends, while it lasts.
    pub(super) fn joining_deadline(&self) -> Option<Duration> {
        let links_until = self.joining.links_until.filter(|_| self.joining.readiness != Readiness::Joined);
        links_until.or(self.joining.equal_since.map(|since| since + self.joiners_patience()))
    }

    /// A link that has just been made.
    pub(super) fn new_link(&mut self, abilities: Abilities) -> Link {
        let mut link = Link::new(self.route(None), abilities);
        if self.joining.has_caught_up || self.joining.cluster == ClusterAround::Founded {
            link.owe_notice();
        }
        if link.peer_stage != PeerStage::Joining {
            self.joining.cluster = ClusterAround::Met;
        }
        link
    }

    /// Looks whether it is ready.
    pub(super) fn advance_readiness(&mut self) {
        let now = self.now.mono;
        if !self.joining.has_caught_up {
            self.advance_alone(now);
            return;
        }
        if self.joining.readiness == Readiness::Joined {
            return;
        }
        let patience = self.config.probe_interval.saturating_mul(LINKS_INTERVALS_MAX);
        let until = *self.joining.links_until.get_or_insert(now + patience);
        if now < until && !self.is_linked() {
            return;
        }
        self.joining.readiness = Readiness::Joined;
    }

    /// Looks whether it is ready without having caught up with anybody. Asked in every sync interval at least.
    fn advance_alone(&mut self, now: Duration) {
        let may_be = self.joining.had_caught_up || self.store.controls.has(Control::AloneUnready);
        if self.joining.readiness.is_ready() || !may_be {
            return;
        }
        if self.links.len() > 0 {
            self.joining.alone_at = None;
            return;
        }
        let waited = self.config.alone_after;
        if now >= *self.joining.alone_at.get_or_insert(now + waited) {
            self.joining.readiness = Readiness::Alone;
            self.outputs.push_back(Output::Event(ReplicaEvent::ReadyAlone { waited }));
        }
    }

    /// Whether a write of this replica goes at once to all members to which it has to send its writes.
    fn is_linked(&self) -> bool {
        let Some(members) = &self.members else { return true };
        let mut fed = self.links.values().filter(|link| link.route.feeds);
        !members.lacks_links() && fed.all(|link| link.tail_sender.is_running())
    }

    /// The link to the peer that this replica catches up with.
    pub fn donor(&self) -> Option<LinkId> {
        self.joining.donor.filter(|id| self.is_fed_by(*id))
    }

    /// How far this replica is in catching up. It knows its donor by name where it is a member.
    pub fn join_progress(&self) -> JoinProgress {
        let donor = self.donor();
        let link = donor.and_then(|id| self.links.get(id));
        let (entries, bytes) = link
            .and_then(|link| link.repair.session.as_ref()?.peer_totals())
            .filter(|_| self.is_joining())
            .unwrap_or_default();
        let run = link.and_then(|link| link.run);
        let (entries_done, bytes_done) = (self.store.len() as u64, self.store.bytes());
        JoinProgress {
            donor: self.members().find(|member| Some(member.run) == run).map(|member| member.name.clone()),
            entries_done,
            entries_expected: entries.max(entries_done),
            bytes_done,
            bytes_expected: bytes.max(bytes_done),
            is_ready: self.is_ready(),
        }
    }

    /// Begins to join again, as after damage.
    pub(super) fn join_anew(&mut self) {
        self.joining = JoinState::default();
        self.note_memo(CAUGHT_UP_MEMO, None);
    }

    /// Looks whether it is over, and otherwise that there is a donor.
    pub(super) fn advance_joining(&mut self) {
        if self.joining.has_caught_up {
            return;
        }
        if self.catches_up() {
            let readiness = self.joining.readiness;
            self.joining = JoinState { has_caught_up: true, readiness, ..JoinState::default() };
            if self.has_disk() && self.members.is_some() {
                self.note_memo(CAUGHT_UP_MEMO, Some(&[]));
            }
            self.links.values_mut().for_each(Link::owe_notice);
            self.advance_readiness();
            return;
        }
        let is_busy = |id: LinkId| {
            self.links.get(id).is_some_and(|link| link.repair.session.is_some() || link.repair.is_wanted)
        };
        if !self.joining.donor.is_some_and(is_busy) {
            self.joining.donor = self.next_donor();
            if let Some(donor) = self.joining.donor {
                _ = self.links.get_mut(donor);
            }
        }
    }

    /// Whether this replica has caught up now: with a peer that has caught up itself, or after some time with one that
    /// joins too.
    fn catches_up(&mut self) -> bool {
        let counts_all = self.store.controls.has(Control::JoinersCaughtUp);
        let is_merged =
            |link: &Link| link.peer_stage == PeerStage::Merged || (counts_all && link.has_all_of_peer());
        if self.links.values().any(is_merged) {
            return true;
        }
        if !self.links.values().any(Link::has_all_of_peer) {
            self.joining.equal_since = None;
            return false;
        }
        let since = *self.joining.equal_since.get_or_insert(self.now.mono);
        self.now.mono >= since + self.joiners_patience()
    }

    /// How long it waits for a peer that has caught up while it has everything of another one.
    fn joiners_patience(&self) -> Duration {
        let feeds = |link: &Link| link.repair.session.as_ref().is_some_and(RepairSession::feeds);
        if self.joining.cluster == ClusterAround::Met || self.links.values().any(feeds) {
            return self.config.sync_timeout * DONOR_TIME_FACTOR;
        }
        // Without members all links are made from outside, and no other peer is looked for.
        let has_members = u32::from(self.members.is_some());
        self.config.probe_interval * JOINERS_INTERVALS * has_members
    }

    /// The peer has caught up. If both joined at the same time, it may have got more since the two were compared.
    pub(super) fn on_caught_up(&mut self, id: LinkId, vector_hash: u64) {
        self.joining.cluster = ClusterAround::Met;
        let is_same = vector_hash == self.store.coverage.vector_hash();
        let is_joining = self.is_joining();
        let Some(link) = self.links.get_mut(id) else { return };
        if link.peer_stage != PeerStage::Joining {
            return;
        }
        // Before its `Hello` nothing was compared: the `Hello` decides, and a session that has begun brings all.
        let has_begun = link.repair.session.is_some() && link.peer.is_some();
        let from = if has_begun { link.repair.id.next() } else { link.repair.id };
        let is_merged = is_same && link.peer.is_some();
        link.peer_stage = if is_merged { PeerStage::Merged } else { PeerStage::CaughtUp { from } };
        link.repair.is_wanted |= is_joining && link.peer.is_some() && !is_merged;
    }

    /// The peer to begin with: of those that stalled least often the one that has been linked longest.
    fn next_donor(&self) -> Option<LinkId> {
        let waits = self.links.iter().filter(|(_, link)| {
            link.peer.is_some() && link.repair.session.is_none() && link.repair.is_wanted
        });
        waits.min_by_key(|(id, link)| (link.repair.stalls, *id)).map(|(id, _)| id)
    }

    /// Whether this replica may begin a session over a link now.
    pub(super) fn may_begin(&self, id: LinkId) -> bool {
        !self.wants_one_donor() || self.joining.donor == Some(id)
    }

    /// Whether one peer alone, the donor, is to send this replica what it lacks.
    fn wants_one_donor(&self) -> bool {
        !self.joining.has_caught_up && !self.store.controls.has(Control::ManyDonors)
    }

    fn is_fed_by(&self, id: LinkId) -> bool {
        let session = self.links.get(id).and_then(|link| link.repair.session.as_ref());
        session.is_some_and(RepairSession::feeds)
    }

    /// Whether this peer is to be deferred, because another one is feeding this replica already.
    pub(super) fn is_fed_by_other(&self, id: LinkId) -> bool {
        self.wants_one_donor() && self.joining.donor.is_some_and(|donor| donor != id && self.is_fed_by(donor))
    }

    /// A peer has begun a session. If it holds more than this replica it becomes the donor: it was the first to answer.
    pub(super) fn begun(&mut self, id: LinkId) {
        if !self.wants_one_donor() || !self.is_fed_by(id) {
            return;
        }
        let before = self.joining.donor.replace(id).filter(|before| *before != id);
        if let Some(before) = before
            && self.links.get(before).is_some_and(|link| link.repair.session.is_some())
        {
            self.defer_session(before);
        }
    }

    /// Aborts a session and defers the peer, which waits until it is asked.
    pub(super) fn defer_session(&mut self, id: LinkId) {
        self.abort_session(id);
        let Some(link) = self.links.get_mut(id) else { return };
        link.repair.defer();
    }

    /// The peer deferred this session: it is fed by another peer, and will begin a new session later.
    pub(super) fn on_deferred(&mut self, id: LinkId) {
        self.abort_session(id);
        let Some(link) = self.links.get_mut(id) else { return };
        link.repair.id = link.repair.id.next();
        link.repair.not_before = self.now.mono + self.config.sync_interval * DEFERRED_INTERVALS;
    }

    /// Replaces the donor if it has stalled, or if its time is over while others wait.
    pub(super) fn replace_donor(&mut self) {
        let patience = match self.store.controls {
            controls if controls.has(Control::DonorKept) => Duration::MAX,
            _ => self.config.sync_timeout / DONOR_STALL_DIVISOR,
        };
        let Some(id) = self.joining.donor.filter(|_| !self.joining.has_caught_up) else { return };
        let Some(link) = self.links.get(id) else { return };
        let Some(session) = &link.repair.session else { return };
        let turn = self.config.sync_timeout
            * (DONOR_TIME_FACTOR << link.repair.stalls.min(DONOR_TIME_DOUBLINGS_MAX));
        let has_stalled = self.now.mono.saturating_sub(session.last_progress) > patience;
        let is_over = self.now.mono.saturating_sub(session.outcome().0.mono) > turn;
        if (has_stalled || is_over)
            && let Some(next) = self.next_donor()
        {
            self.defer_session(id);
            self.links.get_mut(id).expect("it has a session").repair.stalls += 1;
            self.joining.donor = Some(next);
        }
    }
}
