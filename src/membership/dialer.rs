//! What membership does by the clock: the failure detector's timers, dials of missing links, and the search for members
//! that are gone.

use std::mem::discriminant;
use std::num::{NonZeroU8, NonZeroUsize};
use std::time::Duration;

use foca::{PeriodicParams, Timer};
use rand_core::Rng;

use super::foca_codec::{self, SwimId, SwimPacket};
use super::{Contact, DETECTOR_BYTES_MAX, KnownMember, Member, MemberEffect, MemberState, Members, times};
use crate::controls::Control;
use crate::time::Time;
use crate::wire::{Kind, Writer};

/// The pause between announcements to a member starts at half a probe interval and doubles at most this many times, up
/// to 4 probe intervals.
const ANNOUNCE_DOUBLINGS_MAX: u32 = 3;
/// The most members of one name that are dialled at a time because a voter of that name is needed and none is proven.
const UNPROVEN_DIALS_MAX: usize = 4;

impl Members {
    /// How long a suspected member has to say that it lives. It grows with the logarithm of the number of living
    /// members, because news passes over more of them.
    pub(super) fn suspicion_time(&self) -> Duration {
        let steps = (self.living() / 10).max(1).ilog2();
        self.config.suspicion_time + self.config.suspicion_time * 3 * steps / 20
    }

    /// How long a timer of the detector runs. The detector's own times cannot all be changed while it runs, so those that
    /// are configured are taken from here.
    pub(super) fn timer_time(&self, timer: &Timer<SwimId>, after: Duration) -> Duration {
        match timer {
            Timer::ProbeRandomMember(_) => times(self.config.probe_interval, 1 + self.local_health),
            Timer::SendIndirectProbe { .. } => times(self.config.probe_timeout, 1 + self.local_health),
            Timer::PeriodicGossip(_) => self.config.probe_interval * 2 / 5,
            // With one other member nobody can tell whose fault it is, so the time is not stretched.
            Timer::ChangeSuspectToDown { .. } => {
                let doubt = self.local_health.min(self.living().saturating_sub(2) as u32);
                times(self.suspicion_time(), 1 + doubt)
            }
            _ => after,
        }
    }

    pub(super) fn plan(&mut self, at: Duration, timer: Timer<SwimId>, since: Duration) {
        if let Timer::ProbeRandomMember(token) = timer {
            self.timer_token = token;
        }
        if matches!(timer, Timer::ProbeRandomMember(_) | Timer::PeriodicGossip(_)) {
            // `foca` begins this cycle anew whenever the first member comes. Only the latest timer counts.
            let kind = discriminant(&timer);
            self.timers.retain(|_, (other, _)| discriminant(other) != kind);
        }
        self.sequence += 1;
        self.timers.insert((at, self.sequence), (timer, since));
    }

    pub(super) fn resize(&mut self) {
        (self.is_stale, self.is_unwritten) = (true, true);
        if self.living() <= self.config.mesh_members_max {
            self.set_topology();
        }
        self.buckets = None;
        let living = self.living();
        _ = self.detector.set_config(settings(living));
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
            // This call is late: the process was suspended or starved, and answers to its probes may have arrived
            // unread. So all timers move by the delay before anybody is accused.
            self.degrade();
            let timers = std::mem::take(&mut self.timers);
            let later = |((at, n), (timer, since))| ((at + late, n), (timer, since + late));
            self.timers = timers.into_iter().map(later).collect();
            self.known
                .values_mut()
                .filter_map(|known| known.namesakes_at.as_mut())
                .for_each(|at| *at += late);
        }
        while let Some(first) = self.timers.first_entry().filter(|first| first.key().0 <= now.mono) {
            let (mut timer, since) = first.remove();
            if let Timer::ChangeSuspectToDown { token, .. } = &mut timer {
                // A suspicion goes on when this node takes a later identity. Nothing else would ever end it: a member
                // that is suspected already is not suspected anew.
                *token = self.timer_token;
                // A node that was degraded since the timer was set waits longer before it calls others down.
                let at = since + self.timer_time(&timer, Duration::ZERO);
                if at > now.mono {
                    self.plan(at, timer, since);
                    continue;
                }
            }
            if matches!(timer, Timer::ProbeRandomMember(_)) {
                // The run that was probed may be suspected now.
                self.runs_to_check.extend(self.probe.as_ref().map(|probe| probe.run));
            }
            _ = self.detector.handle_timer(timer, &mut self.wishes);
            self.drain_foca();
        }
        if self.tend_at <= now.mono {
            self.tend_links();
        }
    }

    /// Dials neighbours that are not linked, and from time to time members that are gone, and the seeds.
    fn tend_links(&mut self) {
        let (now, interval) = (self.now.mono, self.config.probe_interval);
        self.tend_at = now + interval / 2;
        if self.own.state == MemberState::Left {
            return;
        }
        if self.is_stale {
            self.set_topology();
        }
        let mut was_in_vain = false;
        for run in &self.topology.neighbours {
            let Some(known) = self.known.get_mut(run) else { continue };
            if known.links == 0 && known.dial_at <= now {
                was_in_vain |= known.dials > 0;
                self.effects.push_back(MemberEffect::Dial(known.dial(now, interval)));
            }
            if known.links == 0 {
                self.tend_at = self.tend_at.min(known.dial_at);
            }
        }
        if was_in_vain {
            self.choose_delegates();
        }
        self.tell_accused();
        self.reannounce();
        if self.remember_at <= now {
            // A node that is alone dials more often at first, and less and less often later.
            let is_alone = self.living() == 1;
            self.remember_at =
                now + if is_alone { times(interval, 1 << self.seeks) / 8 } else { times(interval, 4) };
            let missed = self.known.values().filter(|known| known.is_missed());
            let gone: Vec<Contact> =
                missed.map(|known| known.member.contact()).chain(self.forgotten.iter().copied()).collect();
            if !gone.is_empty() {
                let at = self.random.next_u64() as usize % gone.len();
                self.effects.push_back(MemberEffect::Dial(gone[at]));
            }
        }
        if self.seek_at <= now {
            let is_alone = self.living() == 1;
            self.seeks = if is_alone { (self.seeks + 1).min(5) } else { 6 };
            self.seek_at = now + times(interval, 1 << self.seeks) / 3;
            self.effects.push_back(MemberEffect::Seek);
        }
        self.report_namesakes();
    }

    /// Living members of this name that are known from hearsay only and are to be dialled now, so that a handshake
    /// proves them: at most [`UNPROVEN_DIALS_MAX`], those that have waited longest.
    pub(crate) fn dial_unproven(&mut self, now: Time, name: &str) -> impl Iterator<Item = Contact> + use<> {
        let (now, interval) = (now.mono, self.config.probe_interval);
        let is_due = |known: &&mut KnownMember| {
            let is_wanted = known.member.name == name && known.member.state.is_alive();
            is_wanted && !known.is_proven && known.links == 0 && known.dial_at <= now
        };
        let mut due: Vec<&mut KnownMember> = self.known.values_mut().filter(is_due).collect();
        due.sort_by_key(|known| known.dial_at);
        let dials = due.into_iter().take(UNPROVEN_DIALS_MAX).map(|known| known.dial(now, interval));
        dials.collect::<Vec<_>>().into_iter()
    }

    /// Announces this node again to every member that is linked and still not believed to live, until it is.
    ///
    /// After a partition both sides have called each other down. Each of them has to learn that before it can come back
    /// under a new generation: three datagrams, each of which may be lost. An announcement that arrives triggers
    /// whichever of them is missing. Nothing else would: such a member is linked, so it is not dialled; and it is sent
    /// no rows, so no check compares the rosters.
    fn reannounce(&mut self) {
        if self.controls.has(Control::AnnouncedOnce) {
            return;
        }
        let (now, interval) = (self.now.mono, self.config.probe_interval);
        let mut due = Vec::new();
        for known in self.known.values_mut().filter(|known| known.is_misjudged() && known.announce_at <= now)
        {
            known.announce_at = now + times(interval, 1 << known.announcements) / 2;
            known.announcements = (known.announcements + 1).min(ANNOUNCE_DOUBLINGS_MAX);
            due.push(known.id());
        }
        for id in due {
            _ = self.detector.announce(id, &mut self.wishes);
        }
        self.drain_foca();
    }

    /// Sends each suspected member the suspicion directly, so that it can refute it; gossip may not reach it.
    fn tell_accused(&mut self) {
        if self.controls.has(Control::NoLocalHealth) {
            return;
        }
        let accused = |(timer, _): &(Timer<SwimId>, Duration)| match timer {
            Timer::ChangeSuspectToDown { member_id, incarnation, .. } => Some((*member_id, *incarnation)),
            _ => None,
        };
        let mut accused: Vec<(SwimId, u16)> = self.timers.values().filter_map(accused).collect();
        accused.dedup();
        for (id, suspected) in accused {
            if self.known.get(&id.run).is_some_and(|known| known.member.state == MemberState::Suspect) {
                self.accuse(id, suspected);
            }
        }
    }

    /// Tells a member that it is suspected under this identity.
    pub(super) fn accuse(&mut self, id: SwimId, suspected: u16) {
        let bytes = self.accusation(id, suspected);
        let packet = SwimPacket::read(&bytes).expect("it was encoded here");
        self.deliver(id, &packet);
    }

    /// A peer says that a run lives which has ended here. If it does live, somebody made up its end: it is told of an
    /// identity after the one that ended, takes the next one, and comes back under that. Peers repeat it until then.
    pub(super) fn tell_of_end(&mut self, who: &Member, ended: SwimId) {
        let Some(to) = self.where_to_tell(who) else { return };
        let bytes = self.accusation(ended.next(), 0);
        let mut writer = Writer::new(Kind::Swim);
        writer.bytes(&bytes[foca_codec::RUNS_BYTES..]);
        self.effects.push_back(MemberEffect::Packet(to, writer.finish_datagram()));
    }

    fn accusation(&self, id: SwimId, suspected: u16) -> Vec<u8> {
        let own = *self.detector.identity();
        // No probe has this number now, so the answer is not counted as the answer to one.
        let number = self.probe.as_ref().map_or(0, |probe| probe.number.wrapping_add(128));
        foca_codec::accusation(own, self.incarnation, id, suspected, number)
    }
}

impl KnownMember {
    /// Plans the next dial, and gives the contact for this one.
    fn dial(&mut self, now: Duration, interval: Duration) -> Contact {
        self.dials = (self.dials + 1).min(5);
        self.dial_at = now + times(interval, 1 << self.dials) / 2;
        self.member.contact()
    }
}

/// The failure detector's settings for a cluster with this many living members. Its times are those of
/// [`Members::timer_time`]; what stands here only has to be valid.
pub(super) fn settings(living: usize) -> foca::Config {
    let three = NonZeroUsize::new(3).expect("three is not zero");
    let sendings = 4 + living.max(1).ilog2() as u8;
    foca::Config {
        probe_period: Duration::from_secs(2),
        probe_rtt: Duration::from_secs(1),
        num_indirect_probes: three,
        max_transmissions: NonZeroU8::new(sendings).expect("at least four"),
        suspect_to_down_after: Duration::from_secs(1),
        // Members that are down are removed with what this node knows of them (`Members::forget_in_detector`). A timer
        // for each would let whoever calls them down under ever later generations fill the memory.
        remove_down_after: None,
        max_packet_size: NonZeroUsize::new(DETECTOR_BYTES_MAX).expect("it is not zero"),
        notify_down_members: true,
        // The roster does the work of these.
        periodic_announce: None,
        periodic_announce_to_down_members: None,
        // Gossip is sent only while there is news.
        periodic_gossip: Some(PeriodicParams { frequency: Duration::from_secs(1), num_members: three }),
    }
}
