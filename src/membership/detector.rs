//! Connects `foca` with the members: packets in and out, and what its notifications change.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use foca::OwnedNotification;

use super::foca_codec::{self, FocaEffects, SwimId, SwimPacket};
use super::{
    KnownMember, LOCAL_HEALTH_MAX, Member, MemberEffect, MemberEvent, MemberState, Members, Probe,
    UPDATES_MAX, roster, times,
};
use crate::controls::Control;
use crate::id::RunId;
use crate::store::RunLife;
use crate::time::Time;
use crate::wire::{Kind, Reader, WireError, Writer};

impl Members {
    /// Takes in an unlinked member before its first message is handled.
    pub(crate) fn note_unlinked(&mut self, now: Time, who: &Member) {
        self.now = now;
        self.remember_proven(who);
    }

    /// Handles a packet of the failure detector from an identified member.
    pub(crate) fn handle_packet(
        &mut self,
        now: Time,
        from: RunId,
        mut reader: Reader<'_>,
    ) -> Result<(), WireError> {
        self.now = now;
        let body = reader.bytes()?;
        let mut bytes = [from.number().to_le_bytes(), self.own.run.number().to_le_bytes()].concat();
        bytes.extend_from_slice(body);
        while !reader.is_at_end() {
            if let Some(contact) = roster::read_contact(&mut reader)? {
                self.add_by_hearsay(&contact);
            }
        }
        let packet = SwimPacket::read(&bytes).ok_or(WireError::Form)?;
        if self.own.state == MemberState::Left {
            // This node has left. If `foca` learned that it is down, this node would come back under a new generation.
            return Ok(());
        }
        self.outrank(SwimId { run: self.own.run, generation: packet.receiver_generation() });
        packet.updates().for_each(|update| self.outrank(update.id));
        self.on_probe_answer(from, &packet);
        if self.known.get(&from).is_some_and(|known| known.member.state == MemberState::Suspect) {
            self.runs_to_check.push(from);
        }
        for update in packet.updates() {
            self.runs_to_check.push(update.id.run);
            if update.id == *self.detector.identity() && update.state == foca_codec::SUSPECT {
                // Somebody gets no answers from this node.
                self.degrade();
            }
            if update.state == foca_codec::LEFT {
                self.heard_left(update.id);
            }
        }
        let own = self.own.run;
        if !self.known.contains_key(&from) {
            return Ok(());
        }
        let knows = |run| self.known.contains_key(&run) && self.spreads_updates(run);
        // News of members whose address is not known is left out: the roster will bring it. So is what would not be
        // spread.
        let plain = |state: u8| if state == foca_codec::LEFT { foca_codec::DOWN } else { state };
        let heard = packet.with_updates(|update| {
            (update.id.run == own || knows(update.id.run))
                .then_some((update.id.generation, plain(update.state)))
        });
        // A packet that `foca` refuses (one for another run of this node, for example) changes nothing.
        _ = self.detector.handle_data(&heard, &mut self.wishes);
        self.drain_foca();
        Ok(())
    }

    /// Whether an update about a known run is spread further. Those about proven members always are.
    pub(super) fn spreads_updates(&self, run: RunId) -> bool {
        self.detector.updates_backlog() < UPDATES_MAX
            || self.known.get(&run).is_some_and(|known| known.is_proven)
    }

    /// Records an answer to this node's own probe.
    fn on_probe_answer(&mut self, from: RunId, packet: &SwimPacket<'_>) {
        let Some(probe) = self.probe.as_mut().filter(|probe| probe.number == packet.probe_id()) else {
            return;
        };
        let answers = match packet.tag() {
            foca_codec::ACK => probe.run == from,
            foca_codec::FORWARDED_ACK => packet.other() == Some(probe.run),
            _ => false,
        };
        if !answers || probe.is_answered {
            return;
        }
        probe.is_answered = true;
        if packet.tag() == foca_codec::ACK
            && let Some(known) = self.known.get_mut(&from)
        {
            let rtt = self.now.mono.saturating_sub(probe.sent);
            let smooth = |old: Duration| (old * 7 + rtt) / 8;
            known.member.rtt = Some(known.member.rtt.map_or(rtt, smooth));
        }
    }

    pub(super) fn degrade(&mut self) {
        if !self.controls.has(Control::NoLocalHealth) {
            self.local_health = (self.local_health + 1).min(LOCAL_HEALTH_MAX);
        }
    }

    fn send(&mut self, to: SwimId, bytes: &[u8]) {
        let Some(packet) = SwimPacket::read(bytes) else { return };
        self.incarnation = packet.incarnation();
        if packet.tag() == foca_codec::PING {
            match self.probe.take() {
                Some(probe) if probe.is_answered => self.local_health = self.local_health.saturating_sub(1),
                Some(probe) if !probe.is_suspected => self.degrade(),
                _ => {}
            }
            let (number, sent) = (packet.probe_id(), self.now.mono);
            let state = self.known.get(&to.run).map(|known| known.member.state);
            let is_suspected = state == Some(MemberState::Suspect);
            self.probe = Some(Probe { run: to.run, number, sent, is_answered: false, is_suspected });
        }
        self.deliver(to, &packet);
    }

    /// Sends a packet, with the addresses of the members that it names.
    pub(super) fn deliver(&mut self, to: SwimId, packet: &SwimPacket<'_>) {
        let Some(known) = self.known.get(&to.run) else { return };
        let has_left = |run: RunId| {
            let own = run == self.own.run && self.own.state == MemberState::Left;
            own || self.known.get(&run).is_some_and(|known| known.has_left)
        };
        let own = *self.detector.identity();
        let oldest = self.now.mono.saturating_sub(times(self.suspicion_time(), 2));
        let is_old = |run: RunId| self.known.get(&run).is_some_and(|known| known.down_at < oldest);
        let body = packet.with_updates(|update| {
            let id = update.id;
            Some(match update.state {
                foca_codec::DOWN if has_left(id.run) => (id.generation, foca_codec::LEFT),
                // A node that was cut off still has old accusations to spread when it is back. They are not news then.
                foca_codec::DOWN if is_old(id.run) => return None,
                // A node that comes back spreads that its own earlier generation is down. A receiver that learns this
                // first would call the node lost. That the present generation is alive says the same.
                foca_codec::DOWN if id.run == own.run => (own.generation, foca_codec::ALIVE),
                state => (id.generation, state),
            })
        });
        let mut writer = Writer::new(Kind::Swim);
        writer.bytes(&body[foca_codec::RUNS_BYTES..]);
        let alive =
            packet.updates().filter(|update| update.state < foca_codec::DOWN).map(|update| update.id.run);
        for run in packet.other().into_iter().chain(alive) {
            let whole = writer.len();
            if let Some(other) = self.known.get(&run).filter(|_| run != to.run) {
                roster::write_contact(&mut writer, &other.member);
            }
            if writer.len() > known.packet_bytes_max {
                writer.truncate(whole);
                break;
            }
        }
        self.effects.push_back(MemberEffect::Packet(known.member.contact(), writer.finish_datagram()));
    }

    // What the failure detector reports.

    /// Carries out the effects of `foca`, and updates the members that it dealt with.
    pub(super) fn drain_foca(&mut self) {
        loop {
            let FocaEffects { packets, timers, notes } = std::mem::take(&mut self.wishes);
            if packets.is_empty() && timers.is_empty() && notes.is_empty() && self.runs_to_check.is_empty() {
                return;
            }
            for (after, timer) in timers {
                let at = self.now.mono + self.timer_time(&timer, after);
                self.plan(at, timer, self.now.mono);
            }
            notes.iter().for_each(|note| self.handle_notification(note));
            self.look_at_touched();
            packets.into_iter().for_each(|(to, bytes)| self.send(to, &bytes));
        }
    }

    fn look_at_touched(&mut self) {
        let touched = std::mem::take(&mut self.runs_to_check);
        if touched.is_empty() {
            return;
        }
        let lives = |member: &&foca::Member<SwimId>| {
            member.state() != foca::State::Down && touched.contains(&member.id().run)
        };
        let living = self.detector.iter_membership_state().filter(lives);
        let state = |member: &foca::Member<SwimId>| match member.state() {
            foca::State::Suspect => MemberState::Suspect,
            foca::State::Alive | foca::State::Down => MemberState::Alive,
        };
        let states: Vec<(SwimId, MemberState)> = living.map(|member| (*member.id(), state(member))).collect();
        for (id, state) in states {
            if self.known.get(&id.run).is_some_and(|known| !known.member.state.is_alive()) {
                // It is gone or was forgotten here, and the failure detector knows that it lives.
                self.on_member_up(id);
            }
            self.on_suspicion(id.run, state);
        }
    }

    fn handle_notification(&mut self, note: &OwnedNotification<SwimId>) {
        match note {
            OwnedNotification::MemberUp(id) => self.on_member_up(*id),
            OwnedNotification::MemberDown(id) => self.on_member_down(id.run),
            OwnedNotification::Rename(_, id) => {
                if let Some(known) = self.known.get_mut(&id.run) {
                    known.generation = id.generation;
                    self.buckets = None;
                    self.runs_to_check.push(id.run);
                }
            }
            OwnedNotification::Rejoin(_) => self.announce_return(),
            _ => {}
        }
    }

    /// This node has a new generation. Announces it to linked members that believed it down, and are perhaps still
    /// believed down here.
    fn announce_return(&mut self) {
        self.buckets = None;
        let linked = self.known.values().filter(|known| known.links > 0);
        let ids: Vec<SwimId> = linked.filter(|k| !k.member.state.is_alive()).map(KnownMember::id).collect();
        for id in ids {
            _ = self.detector.announce(id, &mut self.wishes);
        }
    }

    /// Takes the generation after that of `id`, if `id` is this node under a later generation than its own. Only a node
    /// itself raises its generation, so somebody made this one up. Peers that believe it ignore this node until it has a
    /// later one.
    pub(super) fn outrank(&mut self, id: SwimId) {
        if id.run == self.own.run
            && id.is_after(*self.detector.identity())
            && self.own.state != MemberState::Left
            && !self.controls.has(Control::NotOutranked)
        {
            _ = self.detector.change_identity(id.next(), &mut self.wishes);
            self.announce_return();
        }
    }

    /// The later identity under which the failure detector remembers the run of `id`, if there is one.
    pub(super) fn remembered_after(&self, id: SwimId) -> Option<SwimId> {
        let mut remembered = self.detector.iter_membership_state().map(|member| *member.id());
        remembered.find(|held| held.run == id.run && held.is_after(id))
    }

    fn on_member_up(&mut self, id: SwimId) {
        let Some(known) = self.known.get_mut(&id.run) else { return };
        known.generation = id.generation;
        known.has_left = false;
        known.dials = 0;
        known.enter(MemberState::Alive, self.now);
        self.effects.push_back(MemberEffect::RunLife(id.run, RunLife::Alive));
        self.resize();
        if self.known[&id.run].is_announced {
            self.push_event(id.run, MemberEvent::Recovered);
        } else {
            self.push_joined(id.run);
        }
        self.note_namesakes(id.run);
        self.forget_predecessors(id.run);
    }

    /// Reports that another living member has the address of this one. If another one lives under its name, that is
    /// checked in a while, and reported if both still do.
    pub(super) fn note_namesakes(&mut self, run: RunId) {
        let Member { name, addr, .. } = &self.known[&run].member;
        let others = self.known.values().map(|known| &known.member);
        let alive = || others.clone().filter(|member| member.run != run && member.state.is_alive());
        let shared = alive().find(|member| member.addr == *addr && member.name != *name).cloned();
        let has_namesake = *name == self.own.name || alive().any(|member| member.name == *name);
        let later = self.now.mono + times(self.suspicion_time(), 2);
        self.effects.extend(shared.map(MemberEffect::AddressTwice));
        if let Some(known) = self.known.get_mut(&run).filter(|_| has_namesake) {
            known.namesakes_at.get_or_insert(later);
        }
    }

    /// Reports each name under which several members live, once, if one of them is due to be checked.
    pub(super) fn report_namesakes(&mut self) {
        let (now, again) = (self.now.mono, self.now.mono + self.suspicion_time());
        let is_due = |known: &&KnownMember| known.namesakes_at.is_some_and(|at| at <= now);
        if !self.known.values().any(|known| is_due(&known)) {
            return;
        }
        // Under each name: the members that live, and those of them that are not suspected.
        let mut living = BTreeMap::<&str, (usize, usize)>::new();
        let members = self.known.values().map(|known| &known.member).chain([&self.own]);
        for member in members.filter(|member| member.state.is_alive()) {
            let (all, unsuspected) = living.entry(&member.name).or_default();
            *all += 1;
            *unsuspected += usize::from(member.state == MemberState::Alive);
        }
        let (mut reported, mut checked) = (BTreeSet::new(), Vec::new());
        for member in self.known.values().filter(is_due).map(|known| &known.member) {
            let (all, unsuspected) = living.get(&*member.name).copied().unwrap_or_default();
            let is_twice = member.state == MemberState::Alive && unsuspected > 1;
            if is_twice && reported.insert(&member.name) {
                self.effects.push_back(MemberEffect::NameTwice(member.clone()));
            }
            // While it or the others are suspected, whether two live is not decided yet.
            let is_open = !is_twice && member.state.is_alive() && all > 1;
            checked.push((member.run, is_open.then_some(again)));
        }
        for (run, again) in checked {
            self.known.get_mut(&run).expect("it was checked").namesakes_at = again;
        }
    }

    pub(super) fn on_member_down(&mut self, run: RunId) {
        let Some(known) = self.known.get_mut(&run) else { return };
        let has_left = known.has_left;
        known.enter(if has_left { MemberState::Left } else { MemberState::Down }, self.now);
        known.down_at = self.now.mono;
        self.resize();
        self.effects.push_back(MemberEffect::Break(run));
        let life = if has_left { RunLife::Ended } else { RunLife::Away };
        self.effects.push_back(MemberEffect::RunLife(run, life));
        if self.known[&run].is_announced {
            self.push_event(run, if has_left { MemberEvent::Left } else { MemberEvent::Down });
        }
        if self.has_successor(run) {
            self.replace(run);
        }
    }

    /// A living member is suspected, or its suspicion was refuted.
    fn on_suspicion(&mut self, run: RunId, state: MemberState) {
        let Some(known) = self.known.get_mut(&run) else { return };
        if known.member.state == state {
            return;
        }
        known.enter(state, self.now);
        if known.is_announced {
            let is_suspect = state == MemberState::Suspect;
            self.push_event(run, if is_suspect { MemberEvent::Suspect } else { MemberEvent::Recovered });
        }
    }

    /// Emits [`MemberEvent::Joined`] once a new member is alive and its metadata has arrived.
    pub(super) fn push_joined(&mut self, run: RunId) {
        let Some(known) = self.known.get_mut(&run) else { return };
        if known.member.state.is_alive() && known.member.meta_version > 0 && !known.is_announced {
            known.is_announced = true;
            self.push_event(run, MemberEvent::Joined);
        }
    }

    pub(super) fn push_event(&mut self, run: RunId, event: impl Fn(Member) -> MemberEvent) {
        let known = &self.known[&run];
        if known.is_announced {
            self.effects.push_back(MemberEffect::Event(event(known.member.clone())));
        }
    }
}
