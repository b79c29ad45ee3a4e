//! Where the replica meets its members: who is at the end of a link, and what they want done.

use std::collections::BTreeMap;

use super::{BreakReason, Event, LinkId, Output, Replica};
use crate::membership::{Effect, Member, Members, Reach};
use crate::store::change_log::Scope;
use crate::time::Time;
use crate::wire::{Kind, Reader};

impl Replica {
    /// This node as others see it, where it is a member.
    pub fn own_member(&self) -> Option<&Member> {
        self.members.as_ref().map(Members::own)
    }

    /// All other members that are known, those included that are gone.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().flat_map(Members::others)
    }

    /// Whether a run is a member that is believed to live.
    pub fn is_living(&self, run: u64) -> bool {
        self.members.as_ref().is_some_and(|members| members.is_alive(run))
    }

    /// Changes what this node tells about itself. False, and nothing changed, if that is over
    /// [`META_BYTES_MAX`](crate::META_BYTES_MAX) or [`META_ENTRIES_MAX`](crate::META_ENTRIES_MAX), or this replica is no
    /// member.
    pub fn tell(&mut self, meta: BTreeMap<String, String>) -> bool {
        let Some(members) = &mut self.members else { return false };
        if (Member { meta: meta.clone(), ..members.own().clone() }).over_limit().is_some() {
            return false;
        }
        let frame = members.update(meta);
        self.links.values_mut().for_each(|link| link.message([frame.clone()]));
        true
    }

    /// Tells the others that this node leaves. What it still has to send is sent. Whoever has heard it over a link
    /// breaks that link; a process that has any left should not end yet.
    pub fn leave(&mut self, now: Time) {
        self.now = now;
        self.resign_all(now);
        if let Some(members) = &mut self.members {
            let frame = members.leave(now);
            self.links.values_mut().for_each(|link| link.message([frame.clone()]));
        }
        self.see_to_members();
    }

    pub(super) fn met(&mut self, id: LinkId, who: &Member, packet_bytes_max: usize) {
        let (Some(members), Some(link)) = (&mut self.members, self.links.get_mut(id)) else { return };
        link.run = Some(who.run);
        members.met(self.now, who, packet_bytes_max);
        // One comparison mends both sides. A new node asks in any case: the answer comes before the peer's position, so
        // that the node knows whom to be linked with before it is ready.
        if members.own().run < who.run || !self.joining.is_over() {
            link.message([members.compare_rosters()]);
        }
        let reach = self.reach(Some(who.run));
        self.links.take_reach(id, reach);
    }

    pub(super) fn stray_packet(&mut self, from: &Member, bytes: &[u8]) {
        let Some(members) = &mut self.members else { return };
        // There is no link to break for what is not a packet.
        match Reader::new(bytes) {
            Ok((Kind::Packet, reader)) => {
                members.introduce(self.now, from);
                _ = members.packet(self.now, from.run, reader);
            }
            Ok((Kind::Election, reader)) => {
                members.introduce(self.now, from);
                _ = self.election_message(from.run, reader);
            }
            _ => {}
        }
    }

    /// What a link to a run is for. Without members every link is for everything.
    pub(super) fn reach(&self, run: Option<u64>) -> Reach {
        let everybody = Reach { feeds: true, scope: Scope::Own, is_far: false };
        let reach = match (&self.members, run) {
            (Some(members), Some(run)) => members.reach(run),
            (Some(_), None) => Reach { feeds: false, ..everybody },
            (None, _) => everybody,
        };
        Reach { scope: if self.config.relay { Scope::All } else { reach.scope }, ..reach }
    }

    pub(super) fn take_reach(&mut self) {
        let reaches: Vec<(LinkId, Reach)> =
            self.links.iter().map(|(id, link)| (id, self.reach(link.run))).collect();
        for (id, reach) in reaches {
            if self.links[id].reach != reach {
                self.links.take_reach(id, reach);
            }
        }
    }

    /// Passes on what the members want done.
    pub(super) fn see_to_members(&mut self) {
        let mut is_new = false;
        while let Some(effect) = self.members.as_mut().and_then(|members| members.effects.pop_front()) {
            is_new |= matches!(effect, Effect::Event(_));
            let event = match effect {
                Effect::Packet(to, bytes) => Output::Packet(to, bytes),
                Effect::Dial(to) => Output::Dial(to),
                Effect::Seek => Output::Seek,
                Effect::Event(event) => Output::Member(event),
                Effect::NameTwice(member) => Output::Event(Event::NameTwice(Box::new(member))),
                Effect::AddressTwice(member) => Output::Event(Event::AddressTwice(Box::new(member))),
                Effect::Full if self.is_full => continue,
                Effect::Full => {
                    self.is_full = true;
                    Output::Event(Event::MembersFull)
                }
                Effect::Break(run) => {
                    let to = self.links.iter().filter(|(_, link)| link.run == Some(run));
                    let ids: Vec<LinkId> = to.map(|(id, _)| id).collect();
                    ids.into_iter().for_each(|id| self.break_link(id, BreakReason::MemberGone));
                    continue;
                }
            };
            self.outputs.push_back(event);
        }
        let version = self.members.as_ref().map_or(0, Members::shape_version);
        if version != self.shape_version {
            self.shape_version = version;
            self.take_reach();
        }
        if is_new {
            self.seat_voters();
        }
    }
}
