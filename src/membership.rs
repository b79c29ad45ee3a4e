//! Members: who belongs to the cluster, who lives, and whom to be linked with.
//!
//! Three things work together, all without clock or network of their own:
//!
//! * The failure detector ([`foca_codec`], [`detector`]): SWIM by the `foca` crate. Its packets are datagrams to any member, linked or
//!   not. Around it lies Lifeguard's local health: a node that misses its own probes, is suspected by others, or
//!   wakes up late probes and accuses more slowly, because the fault is probably its own.
//! * The roster ([`roster`]): gossip alone leaves gaps, and a packet has no room for metadata. So every check carries
//!   a hash of who is believed to live; where it differs, the two nodes compare it in buckets and swap what differs.
//!   A blank node learns of everybody from its first link in the same way.
//! * The shape ([`topology`]): which members to be linked with, and who is sent what.
//! * The tending ([`dialer`]): dialling neighbours that are not linked, and trying for ever to reach seeds and members
//!   that are gone, so that a split never stays.
//!
//! Membership plays no part in the safety of data.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::time::{Duration, SystemTime};

use foca::Timer;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::config::Config;
use crate::controls::Controls;
use crate::time::Time;
use crate::wire::{Reader, Writer};

mod detector;
mod dialer;
mod foca_codec;
mod roster;
mod topology;

use dialer::settings;
use foca_codec::{FocaEffects, SwimCodec, SwimId};
pub(crate) use topology::Route;
use topology::Topology;

/// Members known at a time, gone ones included. Of more, nothing is believed.
pub const MEMBERS_MAX: usize = 4_096;
/// A member's metadata and version of the application together.
pub const META_BYTES_MAX: usize = 16 << 10;
/// Entries of a member's metadata.
pub const META_ENTRIES_MAX: usize = 256;
/// The longest name of a member.
pub(crate) const NAME_BYTES_MAX: usize = 63;
/// A datagram that every connection takes.
pub(crate) const PACKET_BYTES_MIN: usize = 1_150;
/// Of a packet, what the failure detector may fill: the rest is for the addresses of those it speaks of.
const DETECTOR_BYTES_MAX: usize = 364;
/// Of two members that learn of each other, the one with the smaller run dials at once, and the other one after so many
/// probe intervals if there is no link by then.
const DIAL_PATIENCE_INTERVALS: u32 = 2;
/// So many probe intervals after its first link a node counts as new: others may not have heard of it. While it does, the
/// one with the greater run dials after this part of a probe interval, which is long enough for the other's dial.
const NEWCOMER_INTERVALS: u32 = 2;
const NEWCOMER_PATIENCE_PART: u32 = 20;
/// How much slower than healthy a node gets at most.
const LOCAL_HEALTH_MAX: u32 = 8;
/// How long the failure detector remembers the dead.
const DOWN_TIME: Duration = Duration::from_secs(24 * 3_600);
/// Members believed dead of which a peer says that they live, and which are asked themselves at a time.
const RECHECKS_MAX: usize = 32;

/// What is known of a member's life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberState {
    /// It answers.
    Alive,
    /// It did not answer somebody, and has some time left to say that it lives.
    Suspect,
    /// It answers nobody, or its process has ended without leaving. It is looked for as long as this node lives.
    Down,
    /// It said that it leaves.
    Left,
}

impl MemberState {
    /// Whether the member is believed to be there: alive, or suspected only.
    pub fn is_alive(self) -> bool {
        matches!(self, Self::Alive | Self::Suspect)
    }
}

/// A limit that a member exceeds. Such a member is not linked, kept or passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(feature = "node", derive(bincode::Encode, bincode::Decode))]
#[non_exhaustive]
pub enum MemberLimit {
    /// Its name is empty or longer than 63 bytes.
    #[error("a name that has not 1 to {NAME_BYTES_MAX} bytes")]
    NameBytes,
    /// Its version of the application and its metadata have more than [`META_BYTES_MAX`] together.
    #[error("an application version and metadata of more than {META_BYTES_MAX} bytes together")]
    MetaBytes,
    /// Its metadata has more than [`META_ENTRIES_MAX`] entries.
    #[error("metadata of more than {META_ENTRIES_MAX} entries")]
    MetaEntries,
}

/// A node of the cluster, as this node knows it.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct Member {
    /// Its name, unique in the cluster.
    pub name: String,
    /// One start of its process.
    pub run: u64,
    /// Where it can be reached.
    pub addr: SocketAddr,
    /// Whether it is there.
    pub state: MemberState,
    /// Since when it is in that state, by this node's clock.
    pub since: SystemTime,
    /// The version of the application, as its builder was told.
    pub app_version: String,
    /// What it tells about itself.
    pub meta: BTreeMap<String, String>,
    /// Counts the changes of `meta`; 0 as long as nothing of it has arrived here.
    pub meta_version: u64,
    /// The round trip to it, as its answers to this node's probes show. They come seldom in a large cluster.
    pub rtt: Option<Duration>,
}

impl Member {
    /// A member that lives, of which nothing more is known yet.
    pub fn new(name: impl Into<String>, run: u64, addr: SocketAddr) -> Self {
        Self {
            name: name.into(),
            run,
            addr,
            state: MemberState::Alive,
            since: SystemTime::UNIX_EPOCH,
            app_version: String::new(),
            meta: BTreeMap::new(),
            meta_version: 0,
            rtt: None,
        }
    }

    /// How to reach it.
    pub fn contact(&self) -> Contact {
        Contact { run: self.run, addr: self.addr }
    }

    /// The size of what it tells about itself: at most [`META_BYTES_MAX`].
    pub(crate) fn meta_bytes(&self) -> usize {
        self.app_version.len() + self.meta.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>()
    }

    /// The limit that it exceeds, if any.
    pub(crate) fn over_limit(&self) -> Option<MemberLimit> {
        let limits = [
            ((1..=NAME_BYTES_MAX).contains(&self.name.len()), MemberLimit::NameBytes),
            (self.meta_bytes() <= META_BYTES_MAX, MemberLimit::MetaBytes),
            (self.meta.len() <= META_ENTRIES_MAX, MemberLimit::MetaEntries),
        ];
        limits.into_iter().find(|(is_kept, _)| !is_kept).map(|(_, limit)| limit)
    }
}

/// Which run is to be reached, and where.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Contact {
    /// One start of a process.
    pub run: u64,
    /// Where it is said to be.
    pub addr: SocketAddr,
}

/// Something happened to a member.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum MemberEvent {
    /// It is there, for the first time in this run.
    Joined(Member),
    /// What it tells about itself changed.
    Updated(Member),
    /// It did not answer somebody.
    Suspect(Member),
    /// It is gone, without a word.
    Down(Member),
    /// It is there after all, or again: after a suspicion, a long pause or a partition.
    Recovered(Member),
    /// It said that it leaves.
    Left(Member),
}

/// What is to be done about members.
#[derive(Debug)]
pub(crate) enum MemberEffect {
    Packet(Contact, Vec<u8>),
    Dial(Contact),
    Seek,
    Break(u64),
    Event(MemberEvent),
    Full,
    NameTwice(Member),
    AddressTwice(Member),
}

#[derive(Debug)]
struct KnownMember {
    member: Member,
    generation: u16,
    /// It has said that it leaves; what the failure detector says of it means that.
    has_left: bool,
    /// The user was told that it is there.
    is_announced: bool,
    /// It has shown itself to this node; of all others there is only hearsay.
    is_proven: bool,
    down_at: Duration,
    links: u32,
    /// On its present link it has confirmed something, and at present it does not in time.
    acks_on_time: bool,
    is_ack_overdue: bool,
    packet_bytes_max: usize,
    dial_at: Duration,
    dials: u32,
    /// When this node announces itself again, should the member be linked and still not be believed to live.
    announce_at: Duration,
    announcements: u32,
}

/// A probe that this node has sent.
#[derive(Debug)]
struct Probe {
    run: u64,
    number: u8,
    sent: Duration,
    is_answered: bool,
    /// That it does not answer says nothing about this node any more.
    is_suspected: bool,
}

/// See the module.
pub(crate) struct Members {
    own: Member,
    config: Config,
    controls: Controls,
    random: ChaCha8Rng,
    detector: foca::Foca<SwimId, SwimCodec, ChaCha8Rng, foca::NoCustomBroadcast>,
    wishes: FocaEffects,
    /// When they are due, and since when.
    timers: BTreeMap<(Duration, u64), (Timer<SwimId>, Duration)>,
    sequence: u64,
    members: BTreeMap<u64, KnownMember>,
    topology: Topology,
    /// Who lives has changed since the shape was taken.
    is_stale: bool,
    buckets: Option<[u32; roster::ROSTER_BUCKETS]>,
    probe: Option<Probe>,
    /// How often this node had to say that it lives, as it last told.
    incarnation: u16,
    /// How unwell this node itself is. 0 is healthy.
    local_health: u32,
    tend_at: Duration,
    /// Until when this node counts as new. `None`: it has had no link yet.
    newcomer_until: Option<Duration>,
    seek_at: Duration,
    seeks: u32,
    remember_at: Duration,
    /// Two runs under one name, to be looked at again: both may be there for good.
    twins: VecDeque<(Duration, u64, u64)>,
    /// Who is known has changed since it was written down.
    is_unwritten: bool,
    write_at: Duration,
    /// Runs of which the failure detector may think otherwise than is known here.
    runs_to_check: Vec<u64>,
    pub(crate) effects: VecDeque<MemberEffect>,
    now: Time,
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Members")
            .field("own", &self.own)
            .field("known", &self.members)
            .finish_non_exhaustive()
    }
}

fn times(duration: Duration, factor: u32) -> Duration {
    duration.saturating_mul(factor)
}

impl Members {
    pub(crate) fn new(own: Member, config: &Config, controls: Controls, random: &mut ChaCha8Rng) -> Self {
        let mut seed = || ChaCha8Rng::seed_from_u64(random.next_u64());
        let id = SwimId { run: own.run, generation: 0 };
        Self {
            detector: foca::Foca::new(id, settings(config, 1), seed(), SwimCodec),
            random: seed(),
            own: Member { meta_version: 1, ..own },
            config: config.clone(),
            controls,
            wishes: FocaEffects::default(),
            timers: BTreeMap::new(),
            sequence: 0,
            members: BTreeMap::new(),
            topology: Topology::default(),
            is_stale: false,
            buckets: None,
            probe: None,
            incarnation: 0,
            local_health: 0,
            tend_at: Duration::ZERO,
            newcomer_until: None,
            seek_at: Duration::ZERO,
            seeks: 0,
            remember_at: Duration::ZERO,
            twins: VecDeque::new(),
            is_unwritten: false,
            write_at: Duration::ZERO,
            runs_to_check: Vec::new(),
            effects: VecDeque::new(),
            now: Time::default(),
        }
    }

    pub(crate) fn own(&self) -> &Member {
        &self.own
    }

    /// Everybody else.
    pub(crate) fn others(&self) -> impl Iterator<Item = &Member> {
        self.members.values().map(|known| &known.member)
    }

    pub(crate) fn is_alive(&self, run: u64) -> bool {
        self.members.get(&run).is_some_and(|known| known.member.state.is_alive())
    }

    /// How to reach a member.
    pub(crate) fn contact(&self, run: u64) -> Option<Contact> {
        self.members.get(&run).map(|known| known.member.contact())
    }

    fn living(&self) -> usize {
        1 + self.detector.num_members()
    }

    // What outlives the process.

    /// Whom to look for after a restart, if that has changed and it is time to write it down.
    pub(crate) fn memo(&mut self) -> Option<Vec<u8>> {
        if !self.is_unwritten || self.now.mono < self.write_at {
            return None;
        }
        self.is_unwritten = false;
        self.write_at = self.now.mono + times(self.config.probe_interval, 20);
        let mut writer = Writer::plain();
        let present = self.others().filter(|member| member.state != MemberState::Left);
        present.for_each(|member| roster::write_contact(&mut writer, member));
        Some(writer.into_plain())
    }

    /// Looks for those that an earlier run knew. Of a memo that cannot be read no more is believed than can be.
    pub(crate) fn load(&mut self, memo: &[u8]) {
        let mut reader = Reader::plain(memo);
        while !reader.is_at_end()
            && let Ok(who) = roster::read_contact(&mut reader)
        {
            let Some(who) = who else { continue };
            // With the directory of another node, the node may have been its member.
            if who.name != self.own.name
                && self.add_by_hearsay(&who)
                && let Some(known) = self.members.get_mut(&who.run)
            {
                known.down_at = Duration::ZERO;
            }
        }
    }

    // Links.

    /// A link has shown who is at its other end.
    pub(crate) fn on_link_member(&mut self, now: Time, who: &Member, packet_bytes_max: usize) {
        self.now = now;
        let new_for = times(self.config.probe_interval, NEWCOMER_INTERVALS);
        self.newcomer_until.get_or_insert(now.mono + new_for);
        let is_new = !self.members.contains_key(&who.run);
        if !self.remember_proven(who) {
            return;
        }
        let known = self.members.get_mut(&who.run).expect("just learned");
        // Others may see it at another address; this one works.
        if known.links == 0 {
            known.member.addr = who.addr;
        }
        known.links += 1;
        known.dials = 0;
        known.announcements = 0;
        known.announce_at = now.mono + self.config.probe_interval / 2;
        known.packet_bytes_max = packet_bytes_max.max(PACKET_BYTES_MIN);
        let was_left = std::mem::take(&mut known.has_left);
        let id = SwimId { run: who.run, generation: known.generation };
        if is_new {
            self.mark_old_runs_down(who);
        }
        if !self.is_alive(who.run) && !was_left {
            let alive = foca::Member::alive(id);
            _ = self.detector.apply_many(std::iter::once(alive), true, &mut self.wishes);
        }
        _ = self.detector.announce(id, &mut self.wishes);
        self.drain_foca();
        self.choose_delegates();
    }

    /// Whoever made sure that a new run may have its name has made sure that no other run of that name answers.
    fn mark_old_runs_down(&mut self, who: &Member) {
        let same = |known: &&KnownMember| {
            let member = &known.member;
            member.name == who.name && member.run != who.run && member.state.is_alive()
        };
        let old: Vec<foca::Member<SwimId>> =
            self.members.values().filter(same).map(KnownMember::as_down).collect();
        _ = self.detector.apply_many(old.into_iter(), true, &mut self.wishes);
    }

    /// A link to this run is gone.
    pub(crate) fn unlinked(&mut self, run: u64) {
        if let Some(known) = self.members.get_mut(&run) {
            known.links = known.links.saturating_sub(1);
            known.dial_at = self.now.mono;
            (known.acks_on_time, known.is_ack_overdue) = (false, false);
            let is_gone = known.links == 0 && known.is_gone();
            if is_gone && self.has_living_namesake(run) {
                // A new run has taken its place.
                self.members.remove(&run);
            }
            self.choose_delegates();
        }
    }

    /// Whether somebody else lives under the name of a known run.
    fn has_living_namesake(&self, run: u64) -> bool {
        let name = &self.members[&run].member.name;
        let mut others = self.members.values().map(|known| &known.member).chain(std::iter::once(&self.own));
        others.any(|other| other.name == *name && other.run != run && other.state.is_alive())
    }

    /// A process has said that it ends.
    pub(crate) fn on_process_end(&mut self, now: Time, run: u64, has_left: bool) {
        self.now = now;
        let Some(known) = self.members.get_mut(&run) else { return };
        known.has_left |= has_left;
        let down = known.as_down();
        _ = self.detector.apply_many(std::iter::once(down), true, &mut self.wishes);
        self.drain_foca();
    }

    /// This node tells that it leaves. Answers the frame that tells it over links: gossip may be lost.
    pub(crate) fn leave(&mut self, now: Time) -> Vec<u8> {
        self.now = now;
        self.own.state = MemberState::Left;
        _ = self.detector.leave_cluster(&mut self.wishes);
        self.drain_foca();
        self.tell_own()
    }

    /// Somebody says that a member has left. If it was taken for down until now, it has left instead.
    fn heard_left(&mut self, id: SwimId) {
        let Some(known) = self.members.get_mut(&id.run).filter(|known| known.generation <= id.generation)
        else {
            return;
        };
        known.has_left = true;
        if known.member.state == MemberState::Down {
            known.enter(MemberState::Left, self.now);
            self.is_unwritten = true;
            self.push_event(id.run, MemberEvent::Left);
        }
    }

    /// Changes what this node tells about itself. Answers the frame that tells it.
    pub(crate) fn update(&mut self, meta: BTreeMap<String, String>) -> Vec<u8> {
        self.own.meta = meta;
        self.own.meta_version += 1;
        self.buckets = None;
        self.tell_own()
    }

    // Whom to remember.

    /// Remembers that somebody is said to be there. False if that is not believed.
    fn add_by_hearsay(&mut self, who: &Member) -> bool {
        let run = who.run;
        let is_over = |member: &foca::Member<SwimId>| {
            member.id().run == run && member.state() == foca::State::Down && !self.members.contains_key(&run)
        };
        // A run that is over and has been replaced does not come back by hearsay.
        run != self.own.run
            && !self.detector.iter_membership_state().any(is_over)
            && self.add(who, Self::forget_gone)
    }

    /// Remembers somebody who has shown that it is there. False if there are too many already, or it exceeds a limit.
    fn remember_proven(&mut self, who: &Member) -> bool {
        let is_remembered = who.run != self.own.run
            && self.add(who, |members| members.forget_gone() || members.forget_hearsay());
        if let Some(known) = self.members.get_mut(&who.run) {
            known.is_proven = true;
        }
        is_remembered
    }

    /// Nobody is kept who exceeds a limit: every peer that is told of it would refuse it.
    fn add(&mut self, who: &Member, make_room: impl Fn(&mut Self) -> bool) -> bool {
        if who.over_limit().is_some() {
            return false;
        }
        if let Some(known) = self.members.get_mut(&who.run) {
            if who.meta_version > known.member.meta_version {
                known.member.meta_version = who.meta_version;
                known.member.app_version.clone_from(&who.app_version);
                known.member.meta.clone_from(&who.meta);
                self.buckets = None;
                self.push_event(who.run, MemberEvent::Updated);
            }
            self.push_joined(who.run);
            return true;
        }
        if self.members.len() >= MEMBERS_MAX && !make_room(self) {
            self.effects.push_back(MemberEffect::Full);
            return false;
        }
        let dial_at = self.now.mono + self.dial_patience(who.run);
        self.tend_at = self.tend_at.min(dial_at);
        let member = Member { state: MemberState::Down, rtt: None, ..who.clone() };
        self.members.insert(who.run, KnownMember::new(member, dial_at));
        true
    }

    /// How long this node leaves it to a member of which it has just learned to dial first.
    fn dial_patience(&self, run: u64) -> Duration {
        let interval = self.config.probe_interval;
        if self.own.run < run {
            Duration::ZERO
        } else if self.newcomer_until.is_none_or(|until| self.now.mono < until) {
            interval / NEWCOMER_PATIENCE_PART
        } else {
            times(interval, DIAL_PATIENCE_INTERVALS)
        }
    }

    /// Whether this node has no link yet to somebody whom it wants to be linked with.
    pub(crate) fn lacks_links(&self) -> bool {
        let is_unlinked = |run: &u64| self.members.get(run).is_some_and(|known| known.links == 0);
        self.is_stale || self.topology.neighbours.iter().any(is_unlinked)
    }

    /// Makes room: of those that are gone and not linked the one that has been for longest, and rather one that left.
    fn forget_gone(&mut self) -> bool {
        let gone = |known: &&KnownMember| !known.member.state.is_alive() && known.links == 0;
        let oldest = self.members.values().filter(gone).min_by_key(|k| (!k.has_left, k.member.since));
        let Some(id) = oldest.map(KnownMember::id) else { return false };
        self.forget_member(id);
        true
    }

    /// Makes room: of those that nobody but others speak of, any.
    fn forget_hearsay(&mut self) -> bool {
        let hearsay = self.members.values().find(|known| !known.is_proven);
        let Some(id) = hearsay.map(KnownMember::id) else { return false };
        self.forget_member(id);
        true
    }

    fn forget_member(&mut self, id: SwimId) {
        self.members.remove(&id.run);
        // It forgets nobody who is not down.
        _ = self.detector.apply_many(std::iter::once(foca::Member::down(id)), false, &mut self.wishes);
        _ = self.detector.handle_timer(Timer::RemoveDown(id), &mut self.wishes);
    }
}

impl KnownMember {
    fn new(member: Member, dial_at: Duration) -> Self {
        Self {
            member,
            generation: 0,
            has_left: false,
            is_announced: false,
            is_proven: false,
            down_at: Duration::MAX,
            links: 0,
            acks_on_time: false,
            is_ack_overdue: false,
            packet_bytes_max: PACKET_BYTES_MIN,
            dial_at,
            dials: 0,
            announce_at: Duration::ZERO,
            announcements: 0,
        }
    }

    fn id(&self) -> SwimId {
        SwimId { run: self.member.run, generation: self.generation }
    }

    fn enter(&mut self, state: MemberState, now: Time) {
        self.member.state = state;
        self.member.since = SystemTime::UNIX_EPOCH + now.wall;
    }

    fn as_down(&self) -> foca::Member<SwimId> {
        foca::Member::down(self.id())
    }

    /// It was there and is gone.
    fn is_gone(&self) -> bool {
        !self.member.state.is_alive() && self.down_at < Duration::MAX
    }

    /// It is linked, and yet not believed to live. Its link is there, so it does: one of both sides has not heard it yet.
    fn is_misjudged(&self) -> bool {
        self.links > 0 && !self.member.state.is_alive() && !self.has_left
    }

    /// It did not say that it leaves, is not believed alive and is not linked: it is dialled now and then, for as long as
    /// it is known. It may never have been seen by this node, if others or an earlier run told of it.
    fn is_missed(&self) -> bool {
        self.member.state == MemberState::Down && self.links == 0
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use crate::wire::{Kind, WireError};

    pub(super) fn members() -> Members {
        let own = Member::new("own", 1, addr(1));
        Members::new(own, &Config::lan(), Controls::default(), &mut ChaCha8Rng::seed_from_u64(1))
    }

    fn addr(run: u64) -> SocketAddr {
        SocketAddr::from(([10, 0, (run >> 8) as u8, run as u8], 7_400))
    }

    pub(super) fn member(run: u64) -> Member {
        Member { meta_version: 1, ..Member::new(format!("n{run}"), run, addr(run)) }
    }

    fn at(seconds: u64) -> Time {
        Time::default().later_by(Duration::from_secs(seconds))
    }

    /// The frames with which a node of that many members would answer.
    fn invented(count: u64) -> Vec<Vec<u8>> {
        let mut liar = members();
        (2..count + 2)
            .for_each(|run| _ = liar.members.insert(run, KnownMember::new(member(run), Duration::ZERO)));
        let ids = (2..count + 2).map(|run| foca::Member::alive(SwimId { run, generation: 0 }));
        liar.detector.apply_many(ids, false, &mut liar.wishes).unwrap();
        liar.tell_of(|_| true, false)
    }

    #[test]
    fn invented_members_keep_no_real_member_out() {
        let mut members = members();
        let liar = member(90_001);
        members.on_link_member(at(1), &liar, 0);
        for frame in invented(12_000) {
            let (_, reader) = Reader::new(&frame[4..]).unwrap();
            members.roster(at(2), reader).unwrap();
        }
        assert_eq!(members.members.len(), MEMBERS_MAX);
        assert!(members.effects.iter().any(|effect| matches!(effect, MemberEffect::Full)), "it is reported");
        for run in 80_000..80_100 {
            members.on_link_member(at(3), &member(run), 0);
            assert!(members.is_alive(run), "who is really there comes in");
        }
        assert!(members.is_alive(liar.run), "and nobody who was there goes");
        assert_eq!(members.members.len(), MEMBERS_MAX);
        assert!(members.detector.iter_membership_state().len() <= MEMBERS_MAX + 1);
        // Nobody is dialled more often for it than the neighbourhood is large.
        members.effects.clear();
        members.wake(at(4));
        let dials = members.effects.iter().filter(|effect| matches!(effect, MemberEffect::Dial(_))).count();
        assert!(dials <= 400, "{dials}");
    }

    #[test]
    fn two_members_at_one_address_are_reported_and_both_stay() {
        let mut members = members();
        members.on_link_member(at(1), &member(2), 0);
        members.on_link_member(at(1), &Member { addr: addr(2), ..member(3) }, 0);
        let reported =
            |effect: &MemberEffect| matches!(effect, MemberEffect::AddressTwice(who) if who.run == 2);
        assert!(members.effects.iter().any(reported));
        assert!(members.is_alive(2) && members.is_alive(3));
        // A new run of the same node at its old address is nothing strange.
        members.effects.clear();
        members.on_link_member(at(2), &Member { name: "n2".to_owned(), addr: addr(2), ..member(4) }, 0);
        assert!(!members.is_alive(2) && members.is_alive(4));
    }

    #[test]
    fn ended_earlier_run_of_this_node_is_no_member() {
        let mut members = members();
        let earlier = Member { name: "own".to_owned(), ..member(9) };
        let mut memo = Writer::plain();
        [&earlier, &member(2)].into_iter().for_each(|member| roster::write_contact(&mut memo, member));
        members.load(&memo.into_plain());
        assert_eq!(members.others().map(|member| member.run).collect::<Vec<_>>(), [2]);
        // Somebody who has not heard of its end does.
        members.on_link_member(at(1), &earlier, 0);
        assert!(members.is_alive(9));
        members.on_process_end(at(2), 9, false);
        assert!(members.others().all(|member| member.name != "own"));
    }

    /// Members that exceed each limit by one, and the one that exceeds none.
    fn oversized() -> Vec<(Option<MemberLimit>, Member)> {
        let meta = |bytes| BTreeMap::from([("k".to_owned(), "v".repeat(bytes - 1))]);
        let entries = |count| (0..count).map(|i: usize| (i.to_string(), String::new())).collect();
        let named = |run, bytes| Member { name: "n".repeat(bytes), ..member(run) };
        vec![
            (Some(MemberLimit::NameBytes), named(11, NAME_BYTES_MAX + 1)),
            (Some(MemberLimit::NameBytes), named(12, 0)),
            (Some(MemberLimit::MetaBytes), Member { meta: meta(META_BYTES_MAX + 1), ..member(13) }),
            (
                Some(MemberLimit::MetaBytes),
                Member { app_version: "v".repeat(META_BYTES_MAX + 1), ..member(14) },
            ),
            (Some(MemberLimit::MetaEntries), Member { meta: entries(META_ENTRIES_MAX + 1), ..member(15) }),
            (None, Member { meta: entries(META_ENTRIES_MAX), ..named(16, NAME_BYTES_MAX) }),
            (None, Member { meta: meta(META_BYTES_MAX), ..member(17) }),
        ]
    }

    #[test]
    fn members_over_a_limit_are_not_kept_however_they_come() {
        for (limit, who) in oversized() {
            assert_eq!(who.over_limit(), limit);
            let mut members = members();
            members.on_link_member(at(1), &who, 0);
            members.note_unlinked(at(1), &who);
            assert!(members.add_by_hearsay(&who) == limit.is_none());
            assert_eq!(members.others().count(), usize::from(limit.is_none()), "{limit:?}");
            // Nor is what a known one tells of itself.
            let small = member(who.run);
            members.on_link_member(at(2), &small, 0);
            members.add_by_hearsay(&Member { meta_version: 9, ..who.clone() });
            let kept = members.others().find(|known| known.run == who.run).unwrap();
            assert_eq!(kept.meta_version == 9, limit.is_none(), "{limit:?}");
        }
    }

    #[test]
    fn roster_entry_over_a_limit_is_skipped() {
        for (limit, who) in oversized() {
            // As an earlier version took it in.
            let mut careless = members();
            for run in [who.run, 90] {
                let mut about = if run == who.run { who.clone() } else { member(run) };
                about.state = MemberState::Alive;
                careless.members.insert(run, KnownMember::new(about, Duration::ZERO));
            }
            let ids = [who.run, 90].map(|run| foca::Member::alive(SwimId { run, generation: 0 }));
            careless.detector.apply_many(ids.into_iter(), false, &mut careless.wishes).unwrap();
            let mut own = members();
            for frame in careless.tell_of(|run| run != 1, false) {
                let (_, reader) = Reader::new(&frame[4..]).unwrap();
                assert_eq!(own.roster(at(1), reader), Ok(Vec::new()), "{limit:?}");
            }
            assert!(own.is_alive(90), "{limit:?}");
            assert_eq!(own.is_alive(who.run), limit.is_none(), "{limit:?}");
        }
    }

    #[test]
    fn linked_members_with_one_name_are_both_kept() {
        let mut members = members();
        let twin = Member { name: "n2".to_owned(), ..member(3) };
        members.on_link_member(at(1), &member(2), 0);
        members.on_process_end(at(2), 2, false);
        // A partition heals: the other one was there all the time, and so was this one, which links itself again.
        members.unlinked(2);
        members.on_link_member(at(3), &member(2), 0);
        let alive = foca::Member::alive(SwimId { run: 3, generation: 0 });
        assert!(members.add_by_hearsay(&twin));
        members.detector.apply_many(std::iter::once(alive), true, &mut members.wishes).unwrap();
        members.drain_foca();
        assert!(members.members.contains_key(&2), "its packets would be ignored");
        members.effects.clear();
        members.wake(at(5));
        let announced = |effect: &MemberEffect| matches!(effect, MemberEffect::Packet(to, _) if to.run == 2);
        assert!(members.effects.iter().any(announced), "it is told that it was called down");
        members.unlinked(2);
        assert!(!members.members.contains_key(&2), "one life a name once it is gone");
    }

    #[test]
    fn a_down_member_has_left_once_somebody_says_so() {
        let mut own = members();
        own.on_link_member(at(1), &member(2), 0);
        own.on_process_end(at(2), 2, false);
        own.effects.clear();
        let mut leaver =
            Members::new(member(2), &Config::lan(), Controls::default(), &mut own.random.clone());
        let frame = leaver.leave(at(2));
        let (_, reader) = Reader::new(&frame[4..]).unwrap();
        own.roster(at(3), reader).unwrap();
        assert_eq!(own.others().map(|member| member.state).collect::<Vec<_>>(), [MemberState::Left]);
        let left = |effect: &MemberEffect| matches!(effect, MemberEffect::Event(MemberEvent::Left(who)) if who.run == 2);
        assert_eq!(own.effects.iter().filter(|effect| left(effect)).count(), 1);
    }

    #[test]
    fn truncated_packets_and_rosters_change_nothing() {
        let mut members = members();
        members.on_link_member(at(1), &member(2), 0);
        let before: Vec<Member> = members.others().cloned().collect();
        let packets: Vec<Vec<u8>> = members
            .effects
            .drain(..)
            .filter_map(|effect| if let MemberEffect::Packet(_, bytes) = effect { Some(bytes) } else { None })
            .collect();
        let roster = members.compare_rosters();
        for bytes in packets.iter().chain([&roster[4..].to_vec()]) {
            for end in 2..bytes.len() {
                let (kind, reader) = Reader::new(&bytes[..end]).unwrap();
                let taken = match kind {
                    Kind::Swim => members.handle_packet(at(2), 2, reader),
                    _ => members.roster(at(2), reader).map(|_| ()),
                };
                assert_eq!(taken, Err(WireError::Form), "{kind:?} cut at {end} of {}", bytes.len());
            }
        }
        assert_eq!(members.others().cloned().collect::<Vec<_>>(), before);
    }
}
