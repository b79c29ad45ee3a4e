//! Members: which nodes belong to the cluster, which are alive, and which of them this node is linked with.
//!
//! Five parts work together. None of them reads a clock or uses the network itself:
//!
//! * The failure detector ([`foca_codec`], [`detector`]): SWIM by the `foca` crate. Its packets are datagrams to any
//!   member, linked or not. It is combined with Lifeguard's local health: a node that misses answers to its own probes,
//!   is suspected by others, or wakes up late is *degraded*: it probes and accuses more slowly, because the fault is
//!   probably its own.
//! * The roster ([`roster`]): gossip alone leaves gaps, and a packet has no room for metadata. So every check carries a
//!   hash of who is believed to live. Where it differs, the two nodes compare their rosters in buckets and exchange
//!   what differs. A new node learns of all members from its first link in the same way.
//! * What is proven and what is only heard of ([`proof`]): a handshake overrides hearsay, never the reverse.
//! * The topology ([`topology`]): with which members to be linked, and which rows each of them is sent.
//! * The dialer ([`dialer`]): dials neighbours that are not linked, and never stops trying to reach seeds and members
//!   that are gone, so that no split is permanent.
//!
//! The safety of data does not depend on membership.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, SystemTime};

use foca::Timer;
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::config::Config;
use crate::controls::Controls;
use crate::id::RunId;
use crate::store::RunLife;
use crate::time::Time;
use crate::wire::{Abilities, Reader, Writer};

mod detector;
mod dialer;
mod ended;
mod foca_codec;
mod forget;
mod member;
mod proof;
mod roster;
mod topology;

use dialer::settings;
use ended::EndedRun;
use foca_codec::{FocaEffects, SwimCodec, SwimId};
pub use member::{Contact, Member, MemberEvent, MemberLimit, MemberState, PeerExit};
pub(crate) use topology::Route;
use topology::Topology;

/// The most members that are known at a time, including those that are gone. For a further one, a member that is gone
/// and not linked is forgotten: first those that left, then those that are down for longest. If there is none, a
/// newcomer that contacted this node itself takes the place of a member known only from the reports of others; any other
/// newcomer is ignored.
pub const MEMBERS_MAX: usize = 4_096;
/// The most bytes of a member's metadata and application version together.
pub const META_BYTES_MAX: usize = 16 << 10;
/// The most entries of a member's metadata.
pub const META_ENTRIES_MAX: usize = 256;
/// The longest name of a member, in bytes.
pub(crate) const NAME_BYTES_MAX: usize = 63;
/// A datagram of this size fits every connection.
pub(crate) const PACKET_BYTES_MIN: usize = 1_150;
/// The part of a packet that the failure detector may fill. The rest is for the addresses of the members that it names.
const DETECTOR_BYTES_MAX: usize = 364;
/// When two members learn of each other, the one with the smaller run dials at once. The other one dials after this
/// many probe intervals if there is no link by then.
const DIAL_PATIENCE_INTERVALS: u32 = 2;
/// A node counts as new for this many probe intervals after its first link: others may not have heard of it yet. While
/// it is new, it dials members with smaller runs after the probe interval divided by `NEWCOMER_PATIENCE_PART`, which is
/// long enough for their own dials.
const NEWCOMER_INTERVALS: u32 = 2;
const NEWCOMER_PATIENCE_PART: u32 = 20;
/// The greatest local health multiplier. A degraded node's times are stretched by 1 plus the multiplier.
const LOCAL_HEALTH_MAX: u32 = 8;
/// Members that have changed are written to the disk after this many probe intervals at the earliest. While some are
/// down, the members are written `DOWN_TIMES_DIVISOR` times in [`Config::forget_after`] as well: a crash loses as much
/// of the times for which they have been down.
const MEMO_INTERVALS: u32 = 20;
const DOWN_TIMES_DIVISOR: u32 = 64;
/// The most members per roster frame that are asked themselves, because a peer says that they live while this node
/// believes them dead.
const RECHECKS_MAX: usize = 32;
/// The most members about which the failure detector has updates to spread. Beyond it, what peers tell of members that
/// were only heard of is not spread.
const UPDATES_MAX: usize = MEMBERS_MAX;

/// An effect that membership asks its replica to carry out.
#[derive(Debug)]
pub(crate) enum MemberEffect {
    Packet(Contact, Vec<u8>),
    Dial(Contact),
    Seek,
    Break(RunId),
    /// Somebody tells a version of the metadata of this linked member that it has not: the frame tells it of that.
    ToldOf(RunId, Vec<u8>),
    Event(MemberEvent),
    Full,
    /// A member that was only heard of is proven: it may be a voter.
    Proven,
    /// A run stands otherwise than before, for what is bound to its life.
    RunLife(RunId, RunLife),
    NameTwice(Member),
    AddressTwice(Member),
}

/// What the present links to a member say about its acknowledgements.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum AckState {
    /// Nothing was acknowledged yet.
    None,
    /// The latest one came in time.
    OnTime,
    /// One is overdue now.
    Overdue,
}

#[derive(Debug)]
struct KnownMember {
    member: Member,
    generation: u16,
    /// It has said that it leaves. Where the failure detector calls it down, it has left.
    has_left: bool,
    /// [`MemberEvent::Joined`] was emitted for it.
    is_announced: bool,
    /// A handshake with this node has proven its run, name and address. All others are known from hearsay only.
    is_proven: bool,
    /// What its program understands, as its greeting says. `None`: this node was never linked with it.
    abilities: Option<Abilities>,
    /// When it entered its state, by the monotonic clock.
    entered_at: Duration,
    /// How long it was down before that, in earlier runs of this node.
    down_before: Duration,
    down_at: Duration,
    links: u32,
    acks: AckState,
    packet_bytes_max: usize,
    dial_at: Duration,
    dials: u32,
    /// When this node announces itself again, if the member is linked and still not believed to live.
    announce_at: Duration,
    announcements: u32,
    /// When to check whether it and another member live under its name. `None`: it has not met one there since the last
    /// check.
    namesakes_at: Option<Duration>,
}

/// The latest probe that this node has sent.
#[derive(Debug)]
struct Probe {
    run: RunId,
    number: u8,
    sent: Duration,
    is_answered: bool,
    /// The member was suspected already, so a missing answer says nothing about this node's own health.
    is_suspected: bool,
}

/// All members that this node knows, with the failure detector, roster, topology and dialer that work on them.
pub(crate) struct Members {
    own: Member,
    config: Config,
    controls: Controls,
    random: ChaCha8Rng,
    detector: foca::Foca<SwimId, SwimCodec, ChaCha8Rng, foca::NoCustomBroadcast>,
    wishes: FocaEffects,
    /// The failure detector's timers, by (time, sequence number), each with the time at which it was set.
    timers: BTreeMap<(Duration, u64), (Timer<SwimId>, Duration)>,
    sequence: u64,
    /// The failure detector's present token: it ignores timers with an earlier one.
    timer_token: foca::TimerToken,
    known: BTreeMap<RunId, KnownMember>,
    ended: BTreeMap<RunId, EndedRun>,
    topology: Topology,
    /// The living members have changed since the topology was computed.
    is_stale: bool,
    buckets: Option<[u32; roster::ROSTER_BUCKETS]>,
    probe: Option<Probe>,
    /// This node's SWIM incarnation (how often it had to refute a suspicion), as it was last sent.
    incarnation: u16,
    /// The local health multiplier: 0 is healthy, more is degraded.
    local_health: u32,
    tend_at: Duration,
    /// Until when this node counts as new. `None`: it has not had a link yet.
    newcomer_until: Option<Duration>,
    seek_at: Duration,
    seeks: u32,
    remember_at: Duration,
    /// Whether [`Members::begin`] was called.
    has_begun: bool,
    /// Where members were that are forgotten because they were down for too long. A partition may last as long: then
    /// only these addresses lead to the other side.
    forgotten: VecDeque<Contact>,
    /// The known members have changed since the memo was written.
    is_unwritten: bool,
    write_at: Duration,
    /// When to write anew for how long members have been down.
    down_times_at: Duration,
    /// Runs whose state in the failure detector may differ from the state here.
    runs_to_check: Vec<RunId>,
    pub(crate) effects: VecDeque<MemberEffect>,
    now: Time,
}

impl std::fmt::Debug for Members {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Members").field("own", &self.own).field("known", &self.known).finish_non_exhaustive()
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
            detector: foca::Foca::new(id, settings(1), seed(), SwimCodec),
            random: seed(),
            own: Member { meta_version: 1, ..own },
            config: config.clone(),
            controls,
            wishes: FocaEffects::default(),
            timers: BTreeMap::new(),
            sequence: 0,
            timer_token: foca::TimerToken::default(),
            known: BTreeMap::new(),
            ended: BTreeMap::new(),
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
            has_begun: false,
            forgotten: VecDeque::new(),
            is_unwritten: false,
            write_at: Duration::ZERO,
            down_times_at: Duration::ZERO,
            runs_to_check: Vec::new(),
            effects: VecDeque::new(),
            now: Time::default(),
        }
    }

    /// Works with another configuration from now on. Timers that run keep their times.
    pub(crate) fn reconfigure(&mut self, config: &Config) {
        self.config = config.clone();
        self.resize();
    }

    pub(crate) fn own(&self) -> &Member {
        &self.own
    }

    /// All members except this node.
    pub(crate) fn others(&self) -> impl Iterator<Item = &Member> {
        self.known.values().map(|known| &known.member)
    }

    /// The member of a run, this node included.
    pub(crate) fn of_run(&self, run: RunId) -> Option<&Member> {
        if run == self.own.run { Some(&self.own) } else { self.known.get(&run).map(|known| &known.member) }
    }

    pub(crate) fn is_alive(&self, run: RunId) -> bool {
        self.known.get(&run).is_some_and(|known| known.member.state.is_alive())
    }

    /// How a run stands, for what is bound to its life.
    pub(crate) fn life_of(&self, run: RunId) -> RunLife {
        match self.of_run(run).map(|member| member.state) {
            Some(state) if state.is_alive() => RunLife::Alive,
            Some(MemberState::Left) => RunLife::Ended,
            _ => RunLife::Away,
        }
    }

    /// The run and address of a known member.
    pub(crate) fn contact(&self, run: RunId) -> Option<Contact> {
        self.known.get(&run).map(|known| known.member.contact())
    }

    fn living(&self) -> usize {
        1 + self.detector.num_members()
    }

    /// What peers can make this node keep of members, beside the limit of each.
    #[cfg(feature = "__controls")]
    pub(crate) fn kept(&self) -> [(&'static str, usize, usize); 6] {
        let checks = self.known.values().filter(|known| known.namesakes_at.is_some());
        let detected = self.detector.iter_membership_state().len();
        [
            ("members whose names are to be checked", checks.count(), MEMBERS_MAX),
            ("ended runs", self.ended.len(), ended::ENDED_RUNS_MAX),
            ("addresses of forgotten members", self.forgotten.len(), forget::FORGOTTEN_MAX),
            // With this node's own earlier identity.
            ("runs in the failure detector", detected, MEMBERS_MAX + ended::ENDED_RUNS_MAX + 1),
            ("updates in the failure detector", self.detector.updates_backlog(), UPDATES_MAX + MEMBERS_MAX),
            ("timers of the failure detector", self.timers.len(), MEMBERS_MAX),
        ]
    }

    // What survives a restart.

    /// The members to look for after a restart, if it is time to write them to the disk: they have changed, or the
    /// times for which some have been down have grown.
    pub(crate) fn memo(&mut self) -> Option<Vec<u8>> {
        let now = self.now.mono;
        let has_changed = self.is_unwritten && now >= self.write_at;
        let has_grown = now >= self.down_times_at;
        if has_grown {
            self.down_times_at = now + self.down_times_interval();
        }
        if has_changed || has_grown { self.unwritten_memo() } else { None }
    }

    fn down_times_interval(&self) -> Duration {
        self.config.probe_interval.max(self.config.forget_after / DOWN_TIMES_DIVISOR)
    }

    /// The members to look for after a restart, and for how long those that are down have been down. `None` if the disk
    /// has all that.
    pub(crate) fn unwritten_memo(&mut self) -> Option<Vec<u8>> {
        let is_down = |known: &&KnownMember| known.member.state == MemberState::Down;
        let has_changed = std::mem::take(&mut self.is_unwritten);
        if !has_changed && !self.known.values().any(|known| is_down(&known)) {
            return None;
        }
        self.write_at = self.now.mono + times(self.config.probe_interval, MEMO_INTERVALS);
        let mut writer = Writer::plain();
        let present = self.others().filter(|member| member.state != MemberState::Left);
        present.for_each(|member| roster::write_contact(&mut writer, member));
        for known in self.known.values().filter(is_down) {
            roster::write_down_time(&mut writer, known.member.run, known.state_time(self.now));
        }
        Some(writer.into_plain())
    }

    /// Takes in the members that an earlier run knew, so that they are looked for. A memo that is partly unreadable is
    /// used up to the first error.
    pub(crate) fn load(&mut self, memo: &[u8]) {
        let mut reader = Reader::plain(memo);
        while !reader.is_at_end()
            && let Ok(remembered) = roster::read_remembered(&mut reader)
        {
            let who = match remembered {
                Some(roster::Remembered::Member(who)) => who,
                Some(roster::Remembered::DownFor(run, down_for)) => {
                    self.known.get_mut(&run).into_iter().for_each(|known| known.down_before = down_for);
                    continue;
                }
                None => continue,
            };
            // The directory may be that of another node, which knew this node as a member.
            if who.name != self.own.name
                && self.add_by_hearsay(&who)
                && let Some(known) = self.known.get_mut(&who.run)
            {
                known.down_at = Duration::ZERO;
            }
        }
    }

    /// Must be called before anything else that has a time; later calls do nothing. Members that an earlier run knew are
    /// down since the first call, or for as long before it as the earlier run has found them down.
    pub(crate) fn begin(&mut self, now: Time) {
        if !std::mem::replace(&mut self.has_begun, true) {
            self.known.values_mut().for_each(|known| known.resume_down(now));
            self.down_times_at = now.mono + self.down_times_interval();
        }
    }

    // Links.

    /// A link has shown which member is at its other end. Its run must not be proven under another name.
    pub(crate) fn on_link_member(&mut self, now: Time, who: &Member, packet_bytes_max: usize) {
        self.now = now;
        let new_for = times(self.config.probe_interval, NEWCOMER_INTERVALS);
        self.newcomer_until.get_or_insert(now.mono + new_for);
        let is_new = self.known.get(&who.run).is_none_or(|known| known.member.name != who.name);
        if !self.remember_proven(who) {
            return;
        }
        let known = self.known.get_mut(&who.run).expect("just learned");
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

    /// A link to this run has ended.
    pub(crate) fn unlinked(&mut self, run: RunId) {
        if let Some(known) = self.known.get_mut(&run) {
            known.links = known.links.saturating_sub(1);
            known.dial_at = self.now.mono;
            known.acks = AckState::None;
            let is_gone = known.links == 0 && known.is_gone();
            if is_gone && self.has_successor(run) {
                self.replace(run);
            }
            self.choose_delegates();
        }
    }

    /// Handles the notice of a process that it ends.
    pub(crate) fn on_process_end(&mut self, now: Time, run: RunId, exit: PeerExit) {
        self.now = now;
        let Some(known) = self.known.get_mut(&run) else { return };
        known.has_left |= exit == PeerExit::Leaves;
        let down = known.as_down();
        _ = self.detector.apply_many(std::iter::once(down), true, &mut self.wishes);
        self.drain_foca();
    }

    /// Leaves the cluster. Returns the roster frame that says so over links, because gossip may be lost.
    pub(crate) fn leave(&mut self, now: Time) -> Vec<u8> {
        self.now = now;
        self.own.state = MemberState::Left;
        _ = self.detector.leave_cluster(&mut self.wishes);
        self.drain_foca();
        self.tell_own()
    }

    /// Handles the news that a member has left. If it counted as down until now, it counts as left instead.
    fn heard_left(&mut self, id: SwimId) {
        let Some(known) = self.known.get_mut(&id.run).filter(|known| !known.id().is_after(id)) else {
            return;
        };
        known.has_left = true;
        if known.member.state == MemberState::Down {
            known.enter(MemberState::Left, self.now);
            self.effects.push_back(MemberEffect::RunLife(id.run, RunLife::Ended));
            self.is_unwritten = true;
            self.push_event(id.run, MemberEvent::Left);
        }
    }

    /// Changes this node's metadata. Returns the roster frame that makes it known.
    pub(crate) fn update(&mut self, meta: BTreeMap<String, String>) -> Vec<u8> {
        self.own.meta = meta;
        self.own.meta_version = proof::next_version(self.own.meta_version);
        self.buckets = None;
        self.tell_own()
    }

    /// How long this node waits for a member of which it has just learned to dial first.
    fn dial_patience(&self, run: RunId) -> Duration {
        let interval = self.config.probe_interval;
        if self.own.run < run {
            Duration::ZERO
        } else if self.newcomer_until.is_none_or(|until| self.now.mono < until) {
            interval / NEWCOMER_PATIENCE_PART
        } else {
            times(interval, DIAL_PATIENCE_INTERVALS)
        }
    }

    /// Whether a link may be missing: a neighbour is not linked yet, or the topology is out of date.
    pub(crate) fn lacks_links(&self) -> bool {
        let is_unlinked = |run: &RunId| self.known.get(run).is_some_and(|known| known.links == 0);
        self.is_stale || self.topology.neighbours.iter().any(is_unlinked)
    }
}

impl KnownMember {
    fn new(member: Member, now: Time, dial_at: Duration) -> Self {
        let mut known = Self {
            member,
            generation: 0,
            has_left: false,
            is_announced: false,
            is_proven: false,
            abilities: None,
            entered_at: Duration::ZERO,
            down_before: Duration::ZERO,
            down_at: Duration::MAX,
            links: 0,
            acks: AckState::None,
            packet_bytes_max: PACKET_BYTES_MIN,
            dial_at,
            dials: 0,
            announce_at: Duration::ZERO,
            announcements: 0,
            namesakes_at: None,
        };
        known.enter(MemberState::Down, now);
        known
    }

    fn id(&self) -> SwimId {
        SwimId { run: self.member.run, generation: self.generation }
    }

    fn enter(&mut self, state: MemberState, now: Time) {
        self.member.state = state;
        self.member.since = SystemTime::UNIX_EPOCH + now.wall;
        self.entered_at = now.mono;
        self.down_before = Duration::ZERO;
    }

    /// It is down since before this run, as far as earlier runs can say.
    fn resume_down(&mut self, now: Time) {
        let before = self.down_before;
        self.enter(self.member.state, now);
        self.member.since -= before.min(now.wall);
        self.down_before = before;
    }

    /// How long it has been in its state, earlier runs of this node included.
    fn state_time(&self, now: Time) -> Duration {
        now.mono.saturating_sub(self.entered_at).saturating_add(self.down_before)
    }

    fn as_down(&self) -> foca::Member<SwimId> {
        foca::Member::down(self.id())
    }

    /// Whether it was alive and is gone.
    fn is_gone(&self) -> bool {
        !self.member.state.is_alive() && self.down_at < Duration::MAX
    }

    /// Whether it is linked and yet not believed to live. Its link shows that it lives: one of the two sides has not
    /// learned it yet.
    fn is_misjudged(&self) -> bool {
        self.links > 0 && !self.member.state.is_alive() && !self.has_left
    }

    /// Whether it is down and not linked, and has not said that it leaves: it is dialled from time to time for as long
    /// as it is known. This node may never have seen it, if others or an earlier run told of it.
    fn is_missed(&self) -> bool {
        self.member.state == MemberState::Down && self.links == 0
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::net::SocketAddr;

    use super::*;
    use crate::wire::{Kind, WireError};

    pub(super) fn members() -> Members {
        let own = Member::new("own", RunId::new(1), addr(1));
        Members::new(own, &Config::lan(), Controls::default(), &mut ChaCha8Rng::seed_from_u64(1))
    }

    fn addr(run: u64) -> SocketAddr {
        SocketAddr::from(([10, 0, (run >> 8) as u8, run as u8], 7_400))
    }

    pub(crate) fn member(run: u64) -> Member {
        Member { meta_version: 1, ..Member::new(format!("n{run}"), RunId::new(run), addr(run)) }
    }

    fn at(seconds: u64) -> Time {
        Time::default().later_by(Duration::from_secs(seconds))
    }

    /// The roster frames with which a node that knows these living members would answer.
    pub(crate) fn rosters_of(told: impl IntoIterator<Item = Member>) -> Vec<Vec<u8>> {
        let mut liar = members();
        liar.own.run = RunId::new(99_999);
        for who in told {
            let alive = foca::Member::alive(SwimId { run: who.run, generation: 0 });
            liar.known.insert(who.run, KnownMember::new(who, Time::default(), Duration::ZERO));
            liar.detector.apply_many(std::iter::once(alive), false, &mut liar.wishes).unwrap();
        }
        liar.tell_of(|run| run.number() != 99_999, false)
    }

    /// Lets a peer tell of these members.
    pub(super) fn tell(members: &mut Members, from: u64, told: impl IntoIterator<Item = Member>) {
        for frame in rosters_of(told) {
            let (_, reader) = Reader::new(&frame[4..]).unwrap();
            members.roster(at(2), Some(RunId::new(from)), reader).unwrap();
        }
    }

    /// A roster frame with these records: a member without metadata, its generation, and whether it has left.
    pub(super) fn frame_of(records: impl IntoIterator<Item = (Member, u16, bool)>) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Roster);
        writer.byte(0);
        for (who, generation, has_left) in records {
            roster::write_contact(&mut writer, &who);
            writer.u16_le(generation);
            writer.u16_le(0);
            writer.byte(u8::from(has_left));
            writer.varint(0);
        }
        writer.finish()
    }

    /// Lets a peer tell this frame.
    pub(super) fn tell_frame(members: &mut Members, now: Time, from: u64, frame: &[u8]) {
        let (_, reader) = Reader::new(&frame[4..]).unwrap();
        members.roster(now, Some(RunId::new(from)), reader).unwrap();
    }

    fn named(run: u64, name: &str) -> Member {
        Member { name: name.to_owned(), ..member(run) }
    }

    fn is_event(effect: &MemberEffect, is_told: impl Fn(&MemberEvent) -> bool) -> bool {
        matches!(effect, MemberEffect::Event(event) if is_told(event))
    }

    #[test]
    fn handshake_replaces_name_and_address_of_hearsay() {
        for is_linked in [true, false] {
            let mut own = members();
            own.on_link_member(at(1), &member(2), 0);
            tell(&mut own, 2, [Member { addr: addr(77), ..named(3, "false") }]);
            assert!(own.is_alive(RunId::new(3)), "it is believed at first");
            own.effects.clear();
            if is_linked {
                own.on_link_member(at(3), &member(3), 0);
            } else {
                own.note_unlinked(at(3), &member(3));
            }
            let known = &own.known[&RunId::new(3)].member;
            assert_eq!((known.name.as_str(), known.addr), ("n3", addr(3)));
            let told = |event: &MemberEvent| matches!(event, MemberEvent::Updated(who) if who.name == "n3");
            assert!(own.effects.iter().any(|effect| is_event(effect, told)), "users learn of it");
            assert!(own.effects.iter().any(|effect| matches!(effect, MemberEffect::Proven)));
        }
    }

    #[test]
    fn hearsay_changes_nothing_that_was_proven() {
        let mut own = members();
        own.on_link_member(at(1), &member(2), 0);
        own.on_link_member(at(1), &member(3), 0);
        own.note_unlinked(at(1), &member(4));
        let before: Vec<Member> = own.others().cloned().collect();
        own.effects.clear();
        let meta = BTreeMap::from([("zone".to_owned(), "false".to_owned())]);
        let renamed = Member { addr: addr(77), meta: meta.clone(), meta_version: 9, ..named(3, "false") };
        tell(&mut own, 2, [renamed.clone(), Member { run: RunId::new(4), ..renamed.clone() }]);
        // Under its own name as well: its address, and the metadata of which it tells itself.
        tell(&mut own, 2, [Member { name: "n3".to_owned(), ..renamed.clone() }]);
        let mut memo = Writer::plain();
        roster::write_contact(&mut memo, &renamed);
        own.load(&memo.into_plain());
        assert_eq!(own.others().cloned().collect::<Vec<_>>(), before);
        assert!(!own.effects.iter().any(|effect| is_event(effect, |_| true)));
        // What the member says itself counts, even if others have claimed a greater version before.
        let own_word = Member { meta, ..member(3) };
        own.known.get_mut(&RunId::new(3)).unwrap().member.meta_version = 9;
        tell(&mut own, 3, [own_word.clone()]);
        let known = &own.known[&RunId::new(3)].member;
        assert_eq!((&known.meta, known.meta_version), (&own_word.meta, 1));
    }

    fn with_meta(who: Member, version: u64, zone: &str) -> Member {
        Member { meta_version: version, meta: BTreeMap::from([("zone".into(), zone.into())]), ..who }
    }

    #[test]
    fn member_outranks_metadata_that_others_made_up() {
        for claimed in [2, 1 << 62, u64::MAX] {
            let random = &mut ChaCha8Rng::seed_from_u64(2);
            let mut own = Members::new(member(5), &Config::lan(), Controls::default(), random);
            own.on_link_member(at(1), &member(2), 0);
            let lie = with_meta(member(5), claimed, "false");
            tell(&mut own, 2, [lie.clone()]);
            assert!(own.own.meta.is_empty(), "it knows better");
            // A node that believed the lie believes the truth now.
            let (truth, mut other) = (own.own.clone(), members());
            tell(&mut other, 2, [lie]);
            assert_eq!(other.known[&truth.run].member.meta["zone"], "false");
            tell(&mut other, 2, [truth.clone()]);
            assert_eq!(other.known[&truth.run].member.meta, truth.meta, "{claimed}");
        }
    }

    #[test]
    fn linked_member_is_told_what_others_make_up_of_it() {
        let mut own = members();
        own.on_link_member(at(1), &member(2), 0);
        own.on_link_member(at(1), &with_meta(member(3), 4, "true"), 0);
        let told = |own: &mut Members, from, who: Member| {
            own.effects.clear();
            tell(own, from, [who]);
            own.effects
                .iter()
                .any(|effect| matches!(effect, MemberEffect::ToldOf(run, _) if run.number() == 3))
        };
        assert!(told(&mut own, 2, with_meta(member(3), 9, "false")));
        assert!(!told(&mut own, 2, with_meta(member(3), 3, "earlier")));
        assert!(!told(&mut own, 3, with_meta(member(3), 9, "its own word")), "it knows what it says itself");
        assert_eq!(own.known[&RunId::new(3)].member.meta["zone"], "its own word");
    }

    #[test]
    fn handshake_replaces_metadata_of_hearsay_under_its_version() {
        let mut own = members();
        own.on_link_member(at(1), &member(2), 0);
        let meta = |own: &Members| own.known[&RunId::new(3)].member.meta["zone"].clone();
        tell(&mut own, 2, [with_meta(member(3), 4, "false")]);
        own.note_unlinked(at(2), &with_meta(member(3), 3, "earlier"));
        assert_eq!(meta(&own), "false", "a later version may be true");
        own.note_unlinked(at(2), &with_meta(member(3), 4, "true"));
        assert_eq!(meta(&own), "true");
        tell(&mut own, 2, [with_meta(member(3), 4, "false")]);
        assert_eq!(meta(&own), "true");
    }

    #[test]
    fn hearsay_displaces_no_proven_member_of_a_name() {
        let mut own = members();
        own.on_link_member(at(1), &member(2), 0);
        own.on_link_member(at(1), &member(3), 0);
        tell(&mut own, 2, [named(9, "n3")]);
        assert!(own.is_alive(RunId::new(3)) && own.is_alive(RunId::new(9)), "neither is called down");
        assert_eq!(own.known[&RunId::new(3)].links, 1);
        assert!(!own.effects.iter().any(|effect| matches!(effect, MemberEffect::Break(_))));
        // While it is down, what was only heard of does not take its place either.
        own.on_process_end(at(3), RunId::new(3), PeerExit::Ends);
        own.unlinked(RunId::new(3));
        tell(&mut own, 2, [named(10, "n3")]);
        assert!(own.is_alive(RunId::new(10)));
        assert!(own.others().any(|member| member.run == RunId::new(3)), "it is looked for");
        // A handshake proves that the name has a new run.
        own.note_unlinked(at(4), &named(10, "n3"));
        assert!(own.others().all(|member| member.run != RunId::new(3)));
    }

    #[test]
    fn proven_run_replaces_what_was_heard_of_its_name() {
        let mut own = members();
        own.on_link_member(at(1), &member(2), 0);
        tell(&mut own, 2, [named(9, "n3")]);
        own.on_link_member(at(3), &member(3), 0);
        assert!(own.is_alive(RunId::new(3)));
        assert!(own.others().all(|member| member.run != RunId::new(9)), "nobody answered under the name");
    }

    #[test]
    fn run_stays_with_the_name_that_first_proved_it() {
        let mut own = members();
        own.on_link_member(at(1), &member(2), 0);
        let before = own.known[&RunId::new(2)].member.clone();
        assert!(own.is_of_other(RunId::new(2), "thief") && !own.is_of_other(RunId::new(2), "n2"));
        for is_linked in [true, false] {
            let thief = Member { addr: addr(77), meta_version: 9, ..named(2, "thief") };
            if is_linked {
                own.on_link_member(at(2), &thief, 0);
            } else {
                own.note_unlinked(at(2), &thief);
            }
            assert_eq!(own.known[&RunId::new(2)].member, before);
            assert_eq!(own.known[&RunId::new(2)].links, 1);
        }
        // A name that was only heard binds nothing.
        tell(&mut own, 2, [named(5, "thief")]);
        assert!(!own.is_of_other(RunId::new(5), "n5"));
    }

    #[test]
    fn invented_members_keep_no_real_member_out() {
        let mut members = members();
        let liar = member(90_001);
        members.on_link_member(at(1), &liar, 0);
        tell(&mut members, 90_001, (2..12_002).map(member));
        assert_eq!(members.known.len(), MEMBERS_MAX);
        assert!(members.effects.iter().any(|effect| matches!(effect, MemberEffect::Full)), "it is reported");
        for run in 80_000..80_100 {
            members.on_link_member(at(3), &member(run), 0);
            assert!(members.is_alive(RunId::new(run)), "a real member is taken in");
        }
        assert!(members.is_alive(liar.run), "no real member is forgotten");
        assert_eq!(members.known.len(), MEMBERS_MAX);
        assert!(members.detector.iter_membership_state().len() <= MEMBERS_MAX + 1);
        // The number of dials is limited by the neighbourhood, not by the members known.
        members.effects.clear();
        members.wake(at(4));
        let dials = members.effects.iter().filter(|effect| matches!(effect, MemberEffect::Dial(_))).count();
        assert!(dials <= 400, "{dials}");
    }

    #[test]
    fn crowd_under_one_name_is_reported_once() {
        let mut own = members();
        own.on_link_member(at(1), &member(2), 0);
        tell_frame(&mut own, at(2), 2, &frame_of((1_000..5_000).map(|run| (named(run, "x"), 0, false))));
        assert!((1_000..5_000).all(|run| own.is_alive(RunId::new(run))), "they are believed");
        own.effects.clear();
        for _ in 0..1_000 {
            if own.deadline() > at(30).mono {
                break;
            }
            own.wake(Time::default().later_by(own.deadline()));
        }
        assert!(own.deadline() > at(30).mono, "time has passed");
        let told = |effect: &&MemberEffect| matches!(effect, MemberEffect::NameTwice(who) if who.name == "x");
        assert_eq!(own.effects.iter().filter(told).count(), 1);
    }

    #[test]
    fn rising_generations_of_a_run_leave_no_timers() {
        let mut own = members();
        own.on_link_member(at(1), &member(2), 0);
        for first in [0, 4_000, 8_000] {
            let left = (first..first + 4_000).map(|generation| (member(3), generation, generation > 0));
            tell_frame(&mut own, at(2), 2, &frame_of(left));
        }
        assert!(own.known.contains_key(&RunId::new(3)));
        assert!(own.timers.len() <= own.known.len() + 4, "{} timers", own.timers.len());
        assert_eq!(own.detector.iter_membership_state().len(), 2);
    }

    #[test]
    fn only_other_member_that_comes_and_goes_leaves_no_timers() {
        let mut own = members();
        let flaps = (0..4_000).map(|n| (member(3), n / 2, n % 2 == 1));
        tell_frame(&mut own, at(2), 2, &frame_of(flaps));
        assert!(own.timers.len() <= own.known.len() + 4, "{} timers", own.timers.len());
    }

    #[test]
    fn updates_about_made_up_members_are_limited() {
        let mut own = members();
        own.on_link_member(at(1), &member(2), 0);
        for first in [10_000, 20_000] {
            for has_left in [false, true] {
                let crowd = (first..first + 4_000).map(|run| (member(run), 0, has_left));
                tell_frame(&mut own, at(2), 2, &frame_of(crowd));
            }
        }
        assert!(own.known.contains_key(&RunId::new(23_999)), "they take each other's places");
        assert!(own.detector.updates_backlog() <= UPDATES_MAX, "{}", own.detector.updates_backlog());
        assert!(own.detector.iter_membership_state().len() <= MEMBERS_MAX + 1);
    }

    #[test]
    fn roster_of_more_members_than_are_kept_is_refused() {
        let refused = |records: u64| {
            let mut writer = Writer::new(Kind::Roster);
            writer.byte(0);
            for run in 0..records {
                roster::write_contact(&mut writer, &member(run));
                writer.rest(&[0; 6]);
            }
            let frame = writer.finish();
            let (_, reader) = Reader::new(&frame[4..]).unwrap();
            members().roster(at(1), None, reader).err()
        };
        assert_eq!(refused(MEMBERS_MAX as u64 + 1), None);
        assert_eq!(refused(MEMBERS_MAX as u64 + 2), Some(WireError::TooMany));
    }

    #[test]
    fn two_members_at_one_address_are_reported_and_both_stay() {
        let mut members = members();
        members.on_link_member(at(1), &member(2), 0);
        members.on_link_member(at(1), &Member { addr: addr(2), ..member(3) }, 0);
        let reported = |effect: &MemberEffect| matches!(effect, MemberEffect::AddressTwice(who) if who.run == RunId::new(2));
        assert!(members.effects.iter().any(reported));
        assert!(members.is_alive(RunId::new(2)) && members.is_alive(RunId::new(3)));
        // A new run of the same node at its old address is not reported.
        members.effects.clear();
        members.on_link_member(at(2), &Member { name: "n2".to_owned(), addr: addr(2), ..member(4) }, 0);
        assert!(!members.is_alive(RunId::new(2)) && members.is_alive(RunId::new(4)));
    }

    #[test]
    fn ended_earlier_run_of_this_node_is_no_member() {
        let mut members = members();
        let earlier = Member { name: "own".to_owned(), ..member(9) };
        let mut memo = Writer::plain();
        [&earlier, &member(2)].into_iter().for_each(|member| roster::write_contact(&mut memo, member));
        members.load(&memo.into_plain());
        assert_eq!(members.others().map(|member| member.run).collect::<Vec<_>>(), [RunId::new(2)]);
        // The earlier run is linked because its end was not noticed yet.
        members.on_link_member(at(1), &earlier, 0);
        assert!(members.is_alive(RunId::new(9)));
        members.on_process_end(at(2), RunId::new(9), PeerExit::Ends);
        assert!(members.others().all(|member| member.name != "own"));
    }

    /// Members that exceed each limit by one, and two that exceed none.
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
            // Nor is the oversized metadata of a known member.
            let mut members = self::members();
            let name = if limit == Some(MemberLimit::NameBytes) { "n" } else { who.name.as_str() };
            members.note_unlinked(at(2), &named(who.run.number(), name));
            members.add_by_hearsay(&Member { meta_version: 9, ..who.clone() });
            let kept = members.others().find(|known| known.run == who.run).unwrap();
            assert_eq!(kept.meta_version == 9, limit.is_none(), "{limit:?}");
        }
    }

    #[test]
    fn roster_entry_over_a_limit_is_skipped() {
        for (limit, who) in oversized() {
            // As an earlier version would have taken it in.
            let mut careless = members();
            for run in [who.run, RunId::new(90)] {
                let mut about = if run == who.run { who.clone() } else { member(run.number()) };
                about.state = MemberState::Alive;
                careless.known.insert(run, KnownMember::new(about, Time::default(), Duration::ZERO));
            }
            let ids = [who.run, RunId::new(90)].map(|run| foca::Member::alive(SwimId { run, generation: 0 }));
            careless.detector.apply_many(ids.into_iter(), false, &mut careless.wishes).unwrap();
            let mut own = members();
            for frame in careless.tell_of(|run| run != RunId::new(1), false) {
                let (_, reader) = Reader::new(&frame[4..]).unwrap();
                assert_eq!(own.roster(at(1), None, reader), Ok(Vec::new()), "{limit:?}");
            }
            assert!(own.is_alive(RunId::new(90)), "{limit:?}");
            assert_eq!(own.is_alive(who.run), limit.is_none(), "{limit:?}");
        }
    }

    #[test]
    fn linked_members_with_one_name_are_both_kept() {
        let mut members = members();
        let twin = Member { name: "n2".to_owned(), ..member(3) };
        members.on_link_member(at(1), &member(2), 0);
        members.on_process_end(at(2), RunId::new(2), PeerExit::Ends);
        // A partition heals: the other run was alive all the time; and so was this one, which links itself again.
        members.unlinked(RunId::new(2));
        members.on_link_member(at(3), &member(2), 0);
        let alive = foca::Member::alive(SwimId { run: RunId::new(3), generation: 0 });
        members.note_unlinked(at(3), &twin);
        members.detector.apply_many(std::iter::once(alive), true, &mut members.wishes).unwrap();
        members.drain_foca();
        assert!(members.known.contains_key(&RunId::new(2)), "its packets would be ignored");
        members.effects.clear();
        members.wake(at(5));
        let announced =
            |effect: &MemberEffect| matches!(effect, MemberEffect::Packet(to, _) if to.run == RunId::new(2));
        assert!(members.effects.iter().any(announced), "it learns that it was called down");
        members.unlinked(RunId::new(2));
        assert!(!members.known.contains_key(&RunId::new(2)), "one run per name once it is gone");
    }

    #[test]
    fn a_down_member_has_left_once_somebody_says_so() {
        let mut own = members();
        own.on_link_member(at(1), &member(2), 0);
        own.on_process_end(at(2), RunId::new(2), PeerExit::Ends);
        own.effects.clear();
        let mut leaver =
            Members::new(member(2), &Config::lan(), Controls::default(), &mut own.random.clone());
        let frame = leaver.leave(at(2));
        let (_, reader) = Reader::new(&frame[4..]).unwrap();
        own.roster(at(3), None, reader).unwrap();
        assert_eq!(own.others().map(|member| member.state).collect::<Vec<_>>(), [MemberState::Left]);
        let left = |effect: &MemberEffect| matches!(effect, MemberEffect::Event(MemberEvent::Left(who)) if who.run == RunId::new(2));
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
                    Kind::Swim => members.handle_packet(at(2), RunId::new(2), reader),
                    _ => members.roster(at(2), None, reader).map(|_| ()),
                };
                assert_eq!(taken, Err(WireError::Form), "{kind:?} cut at {end} of {}", bytes.len());
            }
        }
        assert_eq!(members.others().cloned().collect::<Vec<_>>(), before);
    }
}
