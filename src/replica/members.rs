//! The replica's side of membership: which member is at the other end of a link, and what membership asks to be done.

use std::collections::BTreeMap;

#[cfg(feature = "durable")]
use super::MEMBERS_MEMO;
use super::{BreakReason, Output, Replica, ReplicaEvent};
use crate::id::{LinkId, RunId};
#[cfg(feature = "node")]
use crate::membership::Contact;
use crate::membership::{Member, MemberEffect, Members, Route};
use crate::store::change_log::LogFilter;
use crate::time::{Stamp, Time};
use crate::wire::{Kind, Reader};

impl Replica {
    /// This node's own entry in the roster, if it is a member.
    pub fn own_member(&self) -> Option<&Member> {
        self.members.as_ref().map(Members::own)
    }

    /// All other known members, including those that are gone.
    pub fn members(&self) -> impl Iterator<Item = &Member> {
        self.members.iter().flat_map(Members::others)
    }

    /// The member that wrote what has this stamp, living or gone. Where a new run has taken its place since, it is told
    /// without metadata. `None` if its run is not known: it was forgotten, or was replaced before this node started.
    pub fn member_of(&self, stamp: Stamp) -> Option<&Member> {
        self.members.as_ref()?.of_run_ever(self.run_of_origin(stamp.origin))
    }

    /// Whether a run is a member that is believed to be alive.
    pub fn is_living(&self, run: RunId) -> bool {
        self.members.as_ref().is_some_and(|members| members.is_alive(run))
    }

    /// Whether a run is proven under another name than this one.
    #[cfg(feature = "node")]
    pub(crate) fn is_of_other(&self, run: RunId, name: &str) -> bool {
        self.members.as_ref().is_some_and(|members| members.is_of_other(run, name))
    }

    /// Where another run lives under a name, as far as is known: if there are several, one that a handshake has proven.
    #[cfg(feature = "node")]
    pub(crate) fn living_namesake(&self, run: RunId, name: &str) -> Option<Contact> {
        self.members.as_ref()?.living_namesake(run, name)
    }

    /// Changes the metadata that this node publishes. Returns `false`, and changes nothing, if it exceeds
    /// [`META_BYTES_MAX`](crate::limits::META_BYTES_MAX) or [`META_ENTRIES_MAX`](crate::limits::META_ENTRIES_MAX), or if this replica
    /// is no member.
    pub fn set_meta(&mut self, meta: BTreeMap<String, String>) -> bool {
        let Some(members) = &mut self.members else { return false };
        if (Member { meta: meta.clone(), ..members.own().clone() }).over_limit().is_some() {
            return false;
        }
        let frame = members.update(meta);
        self.links.values_mut().for_each(|link| link.push_messages([frame.clone()]));
        true
    }

    /// Announces that this node leaves. Output that is waiting is still sent. A peer that has received the announcement
    /// breaks the link; the process should not end while links remain.
    pub fn leave(&mut self, now: Time) {
        self.now = now;
        self.resign_all(now);
        if let Some(members) = &mut self.members {
            let frame = members.leave(now);
            self.links.values_mut().for_each(|link| link.push_messages([frame.clone()]));
        }
        self.drain_member_effects();
    }

    /// The node was closed: members that wait to be written to the disk go into its last transaction, and the times for
    /// which runs have been away.
    #[cfg(feature = "durable")]
    pub(crate) fn note_last_members(&mut self) {
        if let Some(memo) = self.members.as_mut().and_then(Members::unwritten_memo) {
            self.set_memo(MEMBERS_MEMO, Some(&memo));
        }
        self.note_away_times(self.now, std::time::Duration::ZERO);
    }

    pub(super) fn on_link_member(&mut self, id: LinkId, who: &Member, packet_bytes_max: usize) {
        let (Some(members), Some(link)) = (&mut self.members, self.links.get_mut(id)) else { return };
        if members.is_of_other(who.run, &who.name) {
            self.break_link(id, BreakReason::RunTaken);
            return;
        }
        link.run = Some(who.run);
        members.on_link_member(self.now, who, packet_bytes_max);
        members.note_abilities(who.run, link.abilities);
        // One comparison repairs both sides. A joining node asks in any case: the answer comes before the peer's
        // position, so that it knows which members to be linked with before it is ready.
        if members.own().run < who.run || !self.joining.has_caught_up() {
            link.push_messages([members.compare_rosters()]);
        }
        let route = self.route(Some(who.run));
        self.links.set_route(id, route);
    }

    pub(super) fn stray_packet(&mut self, from: &Member, bytes: &[u8]) {
        let Some(members) =
            self.members.as_mut().filter(|members| !members.is_of_other(from.run, &from.name))
        else {
            return;
        };
        // Anything else is ignored: there is no link to break.
        match Reader::new(bytes) {
            Ok((Kind::Swim, reader)) => {
                members.note_unlinked(self.now, from);
                _ = members.handle_packet(self.now, from.run, reader);
            }
            Ok((Kind::Election, reader)) => {
                members.note_unlinked(self.now, from);
                _ = self.election_message(from.run, reader);
            }
            _ => {}
        }
    }

    /// Which rows a link to a run carries. Without members every link carries this node's own writes.
    pub(super) fn route(&self, run: Option<RunId>) -> Route {
        let everybody = Route { feeds: true, filter: LogFilter::Own, is_other_group: false };
        match (&self.members, run) {
            (Some(members), Some(run)) => members.route(run),
            (Some(_), None) => Route { feeds: false, ..everybody },
            (None, _) => everybody,
        }
    }

    /// Sets the route of a link by hand, where this replica is no member.
    #[cfg(feature = "__controls")]
    pub(crate) fn set_route(&mut self, link: LinkId, route: Route) {
        self.links.set_route(link, route);
    }

    pub(super) fn update_routes(&mut self) {
        let reaches: Vec<(LinkId, Route)> =
            self.links.iter().map(|(id, link)| (id, self.route(link.run))).collect();
        for (id, route) in reaches {
            if self.links[id].route != route {
                self.links.set_route(id, route);
            }
        }
    }

    /// Turns the effects of membership into outputs, and updates routes when the topology has changed.
    pub(super) fn drain_member_effects(&mut self) {
        let mut is_new = false;
        while let Some(effect) = self.members.as_mut().and_then(|members| members.effects.pop_front()) {
            is_new |= matches!(effect, MemberEffect::Event(_) | MemberEffect::Proven);
            let event = match effect {
                MemberEffect::Packet(to, bytes) => Output::MemberDatagram(to, bytes),
                MemberEffect::Dial(to) => Output::Dial(to),
                MemberEffect::Seek => Output::Seek,
                MemberEffect::Event(event) => Output::Member(event),
                MemberEffect::NameTwice(member) => Output::Event(ReplicaEvent::NameTwice(Box::new(member))),
                MemberEffect::AddressTwice(member) => {
                    Output::Event(ReplicaEvent::AddressTwice(Box::new(member)))
                }
                MemberEffect::Proven => continue,
                MemberEffect::RunLife(run, life) => {
                    self.store.set_run_life(self.now, run, life);
                    continue;
                }
                MemberEffect::Full if self.is_full => continue,
                MemberEffect::Full => {
                    self.is_full = true;
                    Output::Event(ReplicaEvent::MembersFull)
                }
                MemberEffect::ToldOf(run, frame) => {
                    let to = self.links.iter().find(|(_, link)| link.run == Some(run)).map(|(id, _)| id);
                    if let Some(link) = to.and_then(|id| self.links.get_mut(id)) {
                        link.push_messages([frame]);
                    }
                    continue;
                }
                MemberEffect::Break(run) => {
                    let to = self.links.iter().filter(|(_, link)| link.run == Some(run));
                    let ids: Vec<LinkId> = to.map(|(id, _)| id).collect();
                    ids.into_iter().for_each(|id| self.break_link(id, BreakReason::MemberGone));
                    continue;
                }
            };
            self.outputs.push_back(event);
        }
        let version = self.members.as_ref().map_or(0, Members::topology_version);
        if version != self.topology_version {
            self.topology_version = version;
            self.update_routes();
        }
        if is_new {
            self.seat_voters();
        }
    }
}
