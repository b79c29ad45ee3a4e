//! Members: who belongs to the cluster, who lives, and whom to be linked with.
//!
//! Three things work together, all without clock or network of their own:
//!
//! * The failure detector ([`swim`]): SWIM by the `foca` crate. Its packets are datagrams to any member, linked or
//!   not. Around it lies Lifeguard's local health: a node that misses its own probes, is suspected by others, or
//!   wakes up late probes and accuses more slowly, because the fault is probably its own.
//! * The roster ([`roster`]): gossip alone leaves gaps, and a packet has no room for metadata. So every check carries
//!   a hash of who is believed to live; where it differs, the two nodes compare it in buckets and swap what differs.
//!   A blank node learns of everybody from its first link in the same way.
//! * The tending: which members to be linked with ([`Members::is_neighbour`]), dialling those that are not, and
//!   trying for ever to reach seeds and members that are gone, so that a split never stays.
//!
//! Membership plays no part in the safety of data.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::SocketAddr;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::{Duration, SystemTime};

use foca::{OwnedNotification, PeriodicParams, Timer};
use rand_chacha::ChaCha8Rng;
use rand_core::{Rng, SeedableRng};

use crate::config::Config;
use crate::controls::{Control, Controls};
use crate::digest::fingerprint;
use crate::time::Time;
use crate::wire::{Kind, Reader, WireError, Writer};

mod roster;
mod swim;

use swim::{Id, Layout, Packet, Wishes};

/// Members known at a time, gone ones included. Of more, nothing is believed.
pub const MEMBERS_MAX: usize = 4_096;
/// A member's metadata and version of the application together.
pub const META_BYTES_MAX: usize = 16 << 10;
/// Up to so many members, everybody is linked with everybody.
const MESH_MEMBERS_MAX: usize = 128;
/// A datagram that every connection takes.
pub(crate) const PACKET_BYTES_MIN: usize = 1_150;
/// Of a packet, what the failure detector may fill: the rest is for the addresses of those it speaks of.
const DETECTOR_BYTES_MAX: usize = 364;
/// How much slower than healthy a node gets at most.
const HEALTH_MAX: u32 = 8;
/// How long the failure detector remembers the dead.
const DOWN_TIME: Duration = Duration::from_secs(24 * 3_600);
/// Members believed dead of which a peer says that they live, and which are asked themselves at a time.
const DOUBTS_MAX: usize = 32;

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
    /// Its address, version or metadata changed.
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
pub(crate) enum Effect {
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
struct Known {
    member: Member,
    generation: u16,
    /// It has said that it leaves; what the failure detector says of it means that.
    has_left: bool,
    /// The user was told that it is there.
    is_announced: bool,
    links: u32,
    packet_bytes_max: usize,
    dial_at: Duration,
    dials: u32,
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
    detector: foca::Foca<Id, Layout, ChaCha8Rng, foca::NoCustomBroadcast>,
    wishes: Wishes,
    /// When they are due, and since when.
    timers: BTreeMap<(Duration, u64), (Timer<Id>, Duration)>,
    sequence: u64,
    known: BTreeMap<u64, Known>,
    neighbours: BTreeSet<u64>,
    /// Who lives has changed since the neighbours were chosen.
    is_stale: bool,
    buckets: Option<[u32; roster::BUCKETS]>,
    probe: Option<Probe>,
    /// How often this node had to say that it lives, as it last told.
    incarnation: u16,
    /// How unwell this node itself is. 0 is healthy.
    health: u32,
    tend_at: Duration,
    seek_at: Duration,
    seeks: u32,
    remember_at: Duration,
    /// Two runs under one name, to be looked at again: both may be there for good.
    twins: VecDeque<(Duration, u64, u64)>,
    /// Runs of which the failure detector may think otherwise than is known here.
    touched: Vec<u64>,
    pub(crate) effects: VecDeque<Effect>,
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
        let id = Id { run: own.run, generation: 0 };
        Self {
            detector: foca::Foca::new(id, settings(config, 1), seed(), Layout),
            random: seed(),
            own: Member { meta_version: 1, ..own },
            config: config.clone(),
            controls,
            wishes: Wishes::default(),
            timers: BTreeMap::new(),
            sequence: 0,
            known: BTreeMap::new(),
            neighbours: BTreeSet::new(),
            is_stale: false,
            buckets: None,
            probe: None,
            incarnation: 0,
            health: 0,
            tend_at: Duration::ZERO,
            seek_at: Duration::ZERO,
            seeks: 0,
            remember_at: Duration::ZERO,
            twins: VecDeque::new(),
            touched: Vec::new(),
            effects: VecDeque::new(),
            now: Time::default(),
        }
    }

    pub(crate) fn own(&self) -> &Member {
        &self.own
    }

    /// Everybody else.
    pub(crate) fn others(&self) -> impl Iterator<Item = &Member> {
        self.known.values().map(|known| &known.member)
    }

    pub(crate) fn is_alive(&self, run: u64) -> bool {
        self.known.get(&run).is_some_and(|known| known.member.state.is_alive())
    }

    fn living(&self) -> usize {
        1 + self.detector.num_members()
    }

    // Links.

    /// A link has shown who is at its other end.
    pub(crate) fn met(&mut self, now: Time, who: &Member, packet_bytes_max: usize) {
        self.now = now;
        let is_new = !self.known.contains_key(&who.run);
        if who.run == self.own.run || !self.admit(who) {
            return;
        }
        let known = self.known.get_mut(&who.run).expect("just learned");
        known.links += 1;
        known.dials = 0;
        known.packet_bytes_max = packet_bytes_max.max(PACKET_BYTES_MIN);
        let was_left = std::mem::take(&mut known.has_left);
        let id = Id { run: who.run, generation: known.generation };
        if is_new {
            self.supersede(who);
        }
        if !self.is_alive(who.run) && !was_left {
            let alive = foca::Member::alive(id);
            _ = self.detector.apply_many(std::iter::once(alive), true, &mut self.wishes);
        }
        _ = self.detector.announce(id, &mut self.wishes);
        self.settle();
    }

    /// Whoever made sure that a new run may have its name has made sure that no other run of that name answers.
    fn supersede(&mut self, who: &Member) {
        let same = |known: &&Known| {
            let member = &known.member;
            member.name == who.name && member.run != who.run && member.state.is_alive()
        };
        let old: Vec<foca::Member<Id>> = self.known.values().filter(same).map(Known::down).collect();
        _ = self.detector.apply_many(old.into_iter(), true, &mut self.wishes);
    }

    /// A link to this run is gone.
    pub(crate) fn unlinked(&mut self, run: u64) {
        if let Some(known) = self.known.get_mut(&run) {
            known.links = known.links.saturating_sub(1);
            known.dial_at = self.now.mono;
        }
    }

    /// A process has said that it ends.
    pub(crate) fn gone(&mut self, now: Time, run: u64, has_left: bool) {
        self.now = now;
        let Some(known) = self.known.get_mut(&run) else { return };
        known.has_left |= has_left;
        let down = known.down();
        _ = self.detector.apply_many(std::iter::once(down), true, &mut self.wishes);
        self.settle();
    }

    /// This node tells that it leaves.
    pub(crate) fn leave(&mut self, now: Time) {
        self.now = now;
        self.own.state = MemberState::Left;
        _ = self.detector.leave_cluster(&mut self.wishes);
        self.settle();
    }

    /// Changes what this node tells about itself. Answers the frame that tells it.
    pub(crate) fn update(&mut self, meta: BTreeMap<String, String>) -> Vec<u8> {
        self.own.meta = meta;
        self.own.meta_version += 1;
        self.buckets = None;
        self.tell_own()
    }

    // Packets.

    /// Somebody who is not linked is about to be heard.
    pub(crate) fn introduce(&mut self, now: Time, who: &Member) {
        self.now = now;
        if who.run != self.own.run {
            self.admit(who);
        }
    }

    /// A packet of a member that has shown who it is.
    pub(crate) fn packet(&mut self, now: Time, from: u64, mut reader: Reader<'_>) -> Result<(), WireError> {
        self.now = now;
        let body = reader.bytes()?;
        let mut bytes = [from.to_le_bytes(), self.own.run.to_le_bytes()].concat();
        bytes.extend_from_slice(body);
        while !reader.is_at_end() {
            let contact = roster::read_contact(&mut reader)?;
            self.learn(&contact);
        }
        let packet = Packet::read(&bytes).ok_or(WireError::Form)?;
        self.observe(from, &packet);
        if self.known.get(&from).is_some_and(|known| known.member.state == MemberState::Suspect) {
            self.touched.push(from);
        }
        for update in packet.updates() {
            self.touched.push(update.id.run);
            if update.id == *self.detector.identity() && update.state == swim::SUSPECT {
                // Somebody does not hear this node.
                self.unwell();
            }
            if update.state == swim::LEFT
                && let Some(known) = self.known.get_mut(&update.id.run)
                && known.generation <= update.id.generation
            {
                known.has_left = true;
            }
        }
        let own = self.own.run;
        if !self.known.contains_key(&from) {
            return Ok(());
        }
        let knows = |run: u64| run == own || self.known.contains_key(&run);
        // Of whom the address is not known nothing is believed yet: the roster will tell.
        let plain = |state: u8| if state == swim::LEFT { swim::DOWN } else { state };
        let heard = packet.with_updates(|update| knows(update.id.run).then_some(plain(update.state)));
        // What it refuses (a packet for another run of this node, say) changes nothing.
        _ = self.detector.handle_data(&heard, &mut self.wishes);
        self.settle();
        Ok(())
    }

    /// Takes note of an answer to this node's own probe.
    fn observe(&mut self, from: u64, packet: &Packet<'_>) {
        let Some(probe) = self.probe.as_mut().filter(|probe| probe.number == packet.number()) else { return };
        let answers = match packet.tag() {
            swim::ACK => probe.run == from,
            swim::FORWARDED_ACK => packet.other() == Some(probe.run),
            _ => false,
        };
        if !answers || probe.is_answered {
            return;
        }
        probe.is_answered = true;
        if packet.tag() == swim::ACK
            && let Some(known) = self.known.get_mut(&from)
        {
            let rtt = self.now.mono.saturating_sub(probe.sent);
            let smooth = |old: Duration| (old * 7 + rtt) / 8;
            known.member.rtt = Some(known.member.rtt.map_or(rtt, smooth));
        }
    }

    fn unwell(&mut self) {
        if !self.controls.has(Control::NoLocalHealth) {
            self.health = (self.health + 1).min(HEALTH_MAX);
        }
    }

    fn send(&mut self, to: Id, bytes: &[u8]) {
        let Some(packet) = Packet::read(bytes) else { return };
        self.incarnation = packet.incarnation();
        if packet.tag() == swim::PING {
            match self.probe.take() {
                Some(probe) if probe.is_answered => self.health = self.health.saturating_sub(1),
                Some(probe) if !probe.is_suspected => self.unwell(),
                _ => {}
            }
            let (number, sent) = (packet.number(), self.now.mono);
            let state = self.known.get(&to.run).map(|known| known.member.state);
            let is_suspected = state == Some(MemberState::Suspect);
            self.probe = Some(Probe { run: to.run, number, sent, is_answered: false, is_suspected });
        }
        self.deliver(to, &packet);
    }

    /// Sends a packet, with the addresses of those it speaks of.
    fn deliver(&mut self, to: Id, packet: &Packet<'_>) {
        let Some(known) = self.known.get(&to.run) else { return };
        let has_left = |run: u64| {
            let own = run == self.own.run && self.own.state == MemberState::Left;
            own || self.known.get(&run).is_some_and(|known| known.has_left)
        };
        let body = packet.with_updates(|update| {
            let left = update.state == swim::DOWN && has_left(update.id.run);
            Some(if left { swim::LEFT } else { update.state })
        });
        let mut writer = Writer::new(Kind::Packet);
        writer.bytes(&body[swim::RUNS_BYTES..]);
        let alive = packet.updates().filter(|update| update.state < swim::DOWN).map(|update| update.id.run);
        for run in packet.other().into_iter().chain(alive) {
            let whole = writer.len();
            if let Some(other) = self.known.get(&run).filter(|_| run != to.run) {
                roster::write_contact(&mut writer, &other.member);
            }
            if writer.len() > known.packet_bytes_max {
                writer.cut(whole);
                break;
            }
        }
        self.effects.push_back(Effect::Packet(known.member.contact(), writer.finish_datagram()));
    }

    /// Remembers that somebody is said to be there. False if that is not believed.
    fn learn(&mut self, who: &Member) -> bool {
        let run = who.run;
        let is_over = |member: &foca::Member<Id>| {
            member.id().run == run && member.state() == foca::State::Down && !self.known.contains_key(&run)
        };
        // A run that is over and has been replaced does not come back by hearsay.
        run != self.own.run && !self.detector.iter_membership_state().any(is_over) && self.admit(who)
    }

    /// Remembers that somebody is there. False if there are too many already.
    fn admit(&mut self, who: &Member) -> bool {
        if let Some(known) = self.known.get_mut(&who.run) {
            if who.meta_version > known.member.meta_version || who.addr != known.member.addr {
                known.take_news(who);
                self.buckets = None;
                self.tell(who.run, MemberEvent::Updated);
            }
            self.announce(who.run);
            return true;
        }
        if self.known.len() >= MEMBERS_MAX && !self.forget_one() {
            self.effects.push_back(Effect::Full);
            return false;
        }
        // The one with the smaller run dials; the other only if that takes too long.
        let patience = if self.own.run < who.run { 0 } else { 2 };
        let dial_at = self.now.mono + times(self.config.probe_interval, patience);
        let member = Member { state: MemberState::Down, rtt: None, ..who.clone() };
        self.known.insert(who.run, Known::new(member, dial_at));
        true
    }

    /// Makes room: for one that is gone and not linked.
    fn forget_one(&mut self) -> bool {
        let gone = |known: &&Known| !known.member.state.is_alive() && known.links == 0;
        let oldest = self.known.values().filter(gone).min_by_key(|k| (!k.has_left, k.member.since));
        let Some(id) = oldest.map(Known::id) else { return false };
        self.known.remove(&id.run);
        _ = self.detector.handle_timer(Timer::RemoveDown(id), &mut self.wishes);
        true
    }

    // What the failure detector says.

    /// Carries out what the failure detector wants, and looks at what became of the members it dealt with.
    fn settle(&mut self) {
        loop {
            let Wishes { packets, timers, notes } = std::mem::take(&mut self.wishes);
            if packets.is_empty() && timers.is_empty() && notes.is_empty() && self.touched.is_empty() {
                return;
            }
            for (after, timer) in timers {
                let at = self.now.mono + self.stretched(&timer, after);
                self.plan(at, timer, self.now.mono);
            }
            notes.into_iter().for_each(|note| self.note(note));
            self.look_at_touched();
            packets.into_iter().for_each(|(to, bytes)| self.send(to, &bytes));
        }
    }

    fn look_at_touched(&mut self) {
        let touched = std::mem::take(&mut self.touched);
        if touched.is_empty() {
            return;
        }
        let lives = |member: &&foca::Member<Id>| {
            member.state() != foca::State::Down && touched.contains(&member.id().run)
        };
        let living = self.detector.iter_membership_state().filter(lives);
        let states: Vec<(u64, bool)> =
            living.map(|member| (member.id().run, member.state() == foca::State::Suspect)).collect();
        states.into_iter().for_each(|(run, suspect)| self.suspicion(run, suspect));
    }

    fn note(&mut self, note: OwnedNotification<Id>) {
        match note {
            OwnedNotification::MemberUp(id) => self.up(id),
            OwnedNotification::MemberDown(id) => self.down(id.run),
            OwnedNotification::Rename(_, id) => {
                if let Some(known) = self.known.get_mut(&id.run) {
                    known.generation = id.generation;
                    self.buckets = None;
                    self.touched.push(id.run);
                }
            }
            OwnedNotification::Rejoin(_) => {
                self.buckets = None;
                // Those that held this node for dead, and perhaps are still held for dead here.
                let linked = self.known.values().filter(|known| known.links > 0);
                let ids: Vec<Id> = linked.filter(|k| !k.member.state.is_alive()).map(Known::id).collect();
                for id in ids {
                    _ = self.detector.announce(id, &mut self.wishes);
                }
            }
            _ => {}
        }
    }

    fn up(&mut self, id: Id) {
        let since = SystemTime::UNIX_EPOCH + self.now.wall;
        let Some(known) = self.known.get_mut(&id.run) else { return };
        known.generation = id.generation;
        known.has_left = false;
        known.dials = 0;
        known.member.state = MemberState::Alive;
        known.member.since = since;
        self.resize();
        if self.known[&id.run].is_announced {
            self.tell(id.run, MemberEvent::Recovered);
        } else {
            self.announce(id.run);
        }
        let (name, addr) = (&self.known[&id.run].member.name, self.known[&id.run].member.addr);
        let others = || self.known.values().map(|k| &k.member).filter(|member| member.run != id.run);
        let alive = |member: &&Member| member.state.is_alive();
        let same_addr = |member: &&Member| member.addr == addr && member.name != *name;
        let shared = others().filter(alive).find(same_addr).cloned();
        let mut namesakes: Vec<(u64, bool)> =
            others().filter(|member| member.name == *name).map(|m| (m.run, m.state.is_alive())).collect();
        if *name == self.own.name {
            namesakes.push((self.own.run, true));
        }
        self.effects.extend(shared.map(Effect::AddressTwice));
        for (run, is_alive) in namesakes {
            if is_alive {
                let later = self.now.mono + times(self.suspicion_time(), 2);
                self.twins.push_back((later, id.run, run));
            } else {
                // A new run has taken its place.
                self.known.remove(&run);
            }
        }
    }

    fn down(&mut self, run: u64) {
        let since = SystemTime::UNIX_EPOCH + self.now.wall;
        let Some(known) = self.known.get_mut(&run) else { return };
        let has_left = known.has_left;
        known.member.state = if has_left { MemberState::Left } else { MemberState::Down };
        known.member.since = since;
        let name = known.member.name.clone();
        self.resize();
        self.effects.push_back(Effect::Break(run));
        if self.known[&run].is_announced {
            self.tell(run, if has_left { MemberEvent::Left } else { MemberEvent::Down });
        }
        let mut others = self.known.values().map(|known| &known.member);
        if others.any(|other| other.name == name && other.run != run && other.state.is_alive()) {
            self.known.remove(&run);
        }
    }

    fn suspicion(&mut self, run: u64, is_suspect: bool) {
        let since = SystemTime::UNIX_EPOCH + self.now.wall;
        let Some(known) = self.known.get_mut(&run) else { return };
        let state = if is_suspect { MemberState::Suspect } else { MemberState::Alive };
        if known.member.state == state || !known.member.state.is_alive() {
            return;
        }
        known.member.state = state;
        known.member.since = since;
        if known.is_announced {
            self.tell(run, if is_suspect { MemberEvent::Suspect } else { MemberEvent::Recovered });
        }
    }

    /// Tells the user of a new member, once it is there and has told about itself.
    fn announce(&mut self, run: u64) {
        let Some(known) = self.known.get_mut(&run) else { return };
        if known.member.state.is_alive() && known.member.meta_version > 0 && !known.is_announced {
            known.is_announced = true;
            self.tell(run, MemberEvent::Joined);
        }
    }

    fn tell(&mut self, run: u64, event: impl Fn(Member) -> MemberEvent) {
        let known = &self.known[&run];
        if known.is_announced {
            self.effects.push_back(Effect::Event(event(known.member.clone())));
        }
    }

    // Time.

    /// How long a suspected member has to say that it lives: the longer, the more nodes the word has to pass.
    fn suspicion_time(&self) -> Duration {
        let steps = (self.living() / 10).max(1).ilog2();
        self.config.suspicion_time + self.config.suspicion_time * 3 * steps / 20
    }

    fn stretched(&self, timer: &Timer<Id>, after: Duration) -> Duration {
        match timer {
            Timer::ProbeRandomMember(_) | Timer::SendIndirectProbe { .. } => times(after, 1 + self.health),
            // With one other member there is nobody to tell whose fault it is.
            Timer::ChangeSuspectToDown { .. } => {
                let doubt = self.health.min(self.living().saturating_sub(2) as u32);
                times(self.suspicion_time(), 1 + doubt)
            }
            _ => after,
        }
    }

    fn plan(&mut self, at: Duration, timer: Timer<Id>, since: Duration) {
        self.sequence += 1;
        self.timers.insert((at, self.sequence), (timer, since));
    }

    fn resize(&mut self) {
        self.is_stale = true;
        if self.living() <= MESH_MEMBERS_MAX {
            self.choose_neighbours();
        }
        self.buckets = None;
        let living = self.living();
        _ = self.detector.set_config(settings(&self.config, living));
    }

    pub(crate) fn deadline(&self) -> Duration {
        self.timers.first_key_value().map_or(self.tend_at, |((at, _), _)| self.tend_at.min(*at))
    }

    pub(crate) fn wake(&mut self, now: Time) {
        self.now = now;
        let late = now.mono.saturating_sub(self.deadline());
        if late > self.config.probe_timeout
            && self.tend_at > Duration::ZERO
            && !self.controls.has(Control::NoLocalHealth)
        {
            // This process did not run: what it was waiting for may be waiting for it. Nobody is to blame yet.
            self.unwell();
            let timers = std::mem::take(&mut self.timers);
            let later = |((at, n), (timer, since))| ((at + late, n), (timer, since + late));
            self.timers = timers.into_iter().map(later).collect();
        }
        while let Some(first) = self.timers.first_entry().filter(|first| first.key().0 <= now.mono) {
            let (timer, since) = first.remove();
            if matches!(timer, Timer::ChangeSuspectToDown { .. }) {
                // Whoever has become unwell meanwhile waits longer before it calls others dead.
                let at = since + self.stretched(&timer, Duration::ZERO);
                if at > now.mono {
                    self.plan(at, timer, since);
                    continue;
                }
            }
            if matches!(timer, Timer::ProbeRandomMember(_)) {
                // The run that was probed may be suspected now.
                self.touched.extend(self.probe.as_ref().map(|probe| probe.run));
            }
            _ = self.detector.handle_timer(timer, &mut self.wishes);
            self.settle();
        }
        if self.tend_at <= now.mono {
            self.tend();
        }
    }

    /// Sees to the links, and goes on looking for those that are gone.
    fn tend(&mut self) {
        let (now, interval) = (self.now.mono, self.config.probe_interval);
        self.tend_at = now + interval / 2;
        if self.is_stale {
            self.choose_neighbours();
        }
        for run in &self.neighbours {
            let known = self.known.get_mut(run).expect("neighbours are known");
            if known.links == 0 && known.dial_at <= now {
                known.dials = (known.dials + 1).min(5);
                known.dial_at = now + times(interval, 1 << known.dials) / 2;
                self.effects.push_back(Effect::Dial(known.member.contact()));
            }
        }
        self.tell_accused();
        if self.own.state != MemberState::Left && self.remember_at <= now {
            self.remember_at = now + times(interval, 4);
            let gone: Vec<&Known> = self.known.values().filter(|known| known.is_missed()).collect();
            if !gone.is_empty() {
                let at = self.random.next_u64() as usize % gone.len();
                self.effects.push_back(Effect::Dial(gone[at].member.contact()));
            }
        }
        if self.seek_at <= now {
            let is_alone = self.living() == 1;
            self.seeks = if is_alone { (self.seeks + 1).min(5) } else { 6 };
            self.seek_at = now + times(interval, 1 << self.seeks) / 3;
            self.effects.push_back(Effect::Seek);
        }
        while self.twins.front().is_some_and(|(at, ..)| *at <= now) {
            let (_, a, b) = self.twins.pop_front().expect("just seen");
            if self.is_alive(a) && (b == self.own.run || self.is_alive(b)) {
                self.effects.push_back(Effect::NameTwice(self.known[&a].member.clone()));
            }
        }
    }

    /// Tells those that this node suspects that it does: gossip may pass by the one whom it concerns most.
    fn tell_accused(&mut self) {
        if self.controls.has(Control::NoLocalHealth) {
            return;
        }
        let accused = |(timer, _): &(Timer<Id>, Duration)| match timer {
            Timer::ChangeSuspectToDown { member_id, incarnation, .. } => Some((*member_id, *incarnation)),
            _ => None,
        };
        let mut accused: Vec<(Id, u16)> = self.timers.values().filter_map(accused).collect();
        accused.dedup();
        let own = *self.detector.identity();
        // No probe has this number now, so that the answer is taken for none.
        let number = self.probe.as_ref().map_or(0, |probe| probe.number.wrapping_add(128));
        for (id, suspected) in accused {
            if self.known.get(&id.run).is_some_and(|known| known.member.state == MemberState::Suspect) {
                let bytes = swim::accusation(own, self.incarnation, id, suspected, number);
                let packet = Packet::read(&bytes).expect("our own layout");
                self.deliver(id, &packet);
            }
        }
    }

    // The shape of the cluster.

    /// Whether this node is to be linked with a member, and follows and feeds it.
    pub(crate) fn is_neighbour(&self, run: u64) -> bool {
        self.neighbours.contains(&run)
    }

    /// In a small cluster everybody. In a large one those at distances 1, 2, 4, .. in the ring of all members by the
    /// hash of their run: every node comes to the same choice, from both ends, and a path of few hops joins any two.
    fn choose_neighbours(&mut self) {
        self.is_stale = false;
        let alive = self.known.values().filter(|known| known.member.state.is_alive());
        let mut runs: Vec<u64> = alive.map(|known| known.member.run).collect();
        if runs.len() < MESH_MEMBERS_MAX {
            self.neighbours = runs.into_iter().collect();
            return;
        }
        let place = |run: u64| (fingerprint(0, &run.to_le_bytes()), run);
        runs.push(self.own.run);
        runs.sort_unstable_by_key(|run| place(*run));
        let count = runs.len();
        let own = runs.binary_search_by_key(&place(self.own.run), |run| place(*run)).expect("it was added");
        let distances = (0..count.ilog2()).map(|k| 1 << k);
        self.neighbours =
            distances.flat_map(|d| [runs[(own + d) % count], runs[(own + count - d) % count]]).collect();
        self.neighbours.remove(&self.own.run);
    }
}

impl Known {
    fn new(member: Member, dial_at: Duration) -> Self {
        Self {
            member,
            generation: 0,
            has_left: false,
            is_announced: false,
            links: 0,
            packet_bytes_max: PACKET_BYTES_MIN,
            dial_at,
            dials: 0,
        }
    }

    fn id(&self) -> Id {
        Id { run: self.member.run, generation: self.generation }
    }

    fn down(&self) -> foca::Member<Id> {
        foca::Member::down(self.id())
    }

    /// It was there, is gone and is looked for.
    fn is_missed(&self) -> bool {
        self.member.state == MemberState::Down && self.links == 0
    }

    fn take_news(&mut self, who: &Member) {
        self.member.addr = who.addr;
        if who.meta_version > self.member.meta_version {
            self.member.meta_version = who.meta_version;
            self.member.app_version.clone_from(&who.app_version);
            self.member.meta.clone_from(&who.meta);
        }
    }
}

/// The failure detector's settings for a cluster of this size.
fn settings(config: &Config, living: usize) -> foca::Config {
    let one_at_a_time = NonZeroUsize::MIN;
    let three = NonZeroUsize::new(3).expect("three is not zero");
    let sendings = 4 + living.max(1).ilog2() as u8;
    foca::Config {
        probe_period: config.probe_interval,
        probe_rtt: config.probe_timeout,
        num_indirect_probes: three,
        max_transmissions: NonZeroU8::new(sendings).expect("at least four"),
        suspect_to_down_after: config.suspicion_time,
        remove_down_after: Some(DOWN_TIME),
        max_packet_size: NonZeroUsize::new(DETECTOR_BYTES_MAX).unwrap_or(one_at_a_time),
        notify_down_members: true,
        // The roster does these.
        periodic_announce: None,
        periodic_announce_to_down_members: None,
        // Sent only while there is news.
        periodic_gossip: Some(PeriodicParams {
            frequency: config.probe_interval * 2 / 5,
            num_members: three,
        }),
    }
}
