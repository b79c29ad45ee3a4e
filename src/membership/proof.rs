//! What is proven of a member, and what this node has only heard of it.
//!
//! A handshake proves a member's run, name and address to this node: over a link, or over the connection that a
//! datagram comes by. Everything else is hearsay: records of rosters, the addresses in packets of the failure detector,
//! and the memo of an earlier run. Any member can spread it, so it must never override what was proven:
//!
//! * **Name.** A proof replaces a name that was only heard. A run stays with the name that first proved it, for as long
//!   as it is known, and after it was replaced for as long as its name is kept ([`ended`](super::ended)): a handshake
//!   that states the run under another name is refused, and hearsay that does so is ignored.
//! * **Address.** That of a proven run is the one of its latest handshake that began a link. Hearsay gives an address
//!   only to runs that were unknown.
//! * **Metadata.** What a member says of itself over a link, or in a handshake under no earlier version than is known,
//!   replaces what others said. That of a member that is not linked travels from roster to roster, so hearsay of a
//!   later version is believed. A node that is linked with the member tells it of such hearsay, and the member publishes
//!   its metadata anew under a later version (`outrank_meta`): so what a hostile member made up lasts only as long as it
//!   repeats it. Made up under the version that the member has, it lasts until the next change or link.
//! * **State.** Any member may call any run suspect or down; the run refutes that. This is how SWIM works. A run whose
//!   place another one has taken comes back by hearsay only under a later identity than the one that has ended. It is
//!   told of its end when somebody says that it lives (`tell_of_end`).
//! * **Place.** Two runs may live under one name, and then both stay. A run that is gone loses its place to one that
//!   lives under its name (`may_replace`): a proven run only to a proven one, a run that was only heard of to any. A
//!   link to a new run calls the others of its name down, because before that it was made sure that none of them
//!   answers ([`Members::mark_old_runs_down`]). Hearsay calls none of them down.
//! * **Room.** If there are too many members, a newcomer that is heard of takes the place of one that is gone, and one
//!   that is proven also that of one only heard of.
//! * **Votes.** Only a proven member has the seat of a voter ([`Members::proven`]).

use foca::Member as SwimMember;

#[cfg(feature = "node")]
use super::Contact;
use super::foca_codec::SwimId;
use super::{KnownMember, MEMBERS_MAX, Member, MemberEffect, MemberEvent, Members};
use crate::controls::Control;
use crate::id::RunId;
use crate::store::RunLife;
use crate::wire::Abilities;

/// Whether a version of metadata is later than another one. The order is circular, so that no member can make up a last
/// one. 0 stands for none.
pub(super) fn is_later(version: u64, than: u64) -> bool {
    const HALF: u64 = 1 << 63;
    match version.wrapping_sub(than) {
        _ if version == 0 || than == 0 => version > than,
        HALF => version > than,
        ahead => (1..HALF).contains(&ahead),
    }
}

/// The version after this one.
pub(super) fn next_version(version: u64) -> u64 {
    version.wrapping_add(1).max(1)
}

impl Members {
    /// The other members that a handshake with this node has proven.
    pub(crate) fn proven(&self) -> impl Iterator<Item = &Member> {
        self.known.values().filter(|known| known.is_proven).map(|known| &known.member)
    }

    /// The greeting of a link says what a member's program understands.
    pub(crate) fn note_abilities(&mut self, run: RunId, abilities: Abilities) {
        if let Some(known) = self.known.get_mut(&run) {
            known.abilities = Some(abilities);
        }
    }

    /// Whether the program of a run is known to follow shared settings that are changed.
    pub(crate) fn follows_settings(&self, run: RunId) -> bool {
        self.known.get(&run).and_then(|known| known.abilities).is_some_and(Abilities::follows_settings)
    }

    /// The living members whose programs do not follow shared settings that are changed. One that this node was never
    /// linked with counts if it is among `expected`.
    pub(crate) fn without_settings(&self, expected: &[String]) -> impl Iterator<Item = &Member> {
        let lacks = |known: &&KnownMember| match known.abilities {
            Some(abilities) => !abilities.follows_settings(),
            None => expected.contains(&known.member.name),
        };
        let living = self.known.values().filter(|known| known.member.state.is_alive());
        living.filter(lacks).map(|known| &known.member)
    }

    /// Whether a run is proven under another name than this one.
    pub(crate) fn is_of_other(&self, run: RunId, name: &str) -> bool {
        self.known.get(&run).is_some_and(|known| known.is_proven && known.member.name != name)
            || self.ended.get(&run).is_some_and(|ended| ended.is_of_other(name))
    }

    /// The contact of another run that lives under a name; if there are several, of one that is proven.
    #[cfg(feature = "node")]
    pub(crate) fn living_namesake(&self, run: RunId, name: &str) -> Option<Contact> {
        let lives = |other: &&KnownMember| {
            other.member.name == name && other.member.run != run && other.member.state.is_alive()
        };
        let holder = self.known.values().filter(lives).max_by_key(|other| other.is_proven);
        holder.map(|other| other.member.contact())
    }

    /// Calls all other living runs of a name down: before a new run could take the name, it was made sure that no other
    /// run of that name answers.
    pub(super) fn mark_old_runs_down(&mut self, who: &Member) {
        let same = |known: &&KnownMember| {
            let member = &known.member;
            member.name == who.name && member.run != who.run && member.state.is_alive()
        };
        let old: Vec<SwimMember<SwimId>> =
            self.known.values().filter(same).map(KnownMember::as_down).collect();
        _ = self.detector.apply_many(old.into_iter(), true, &mut self.wishes);
    }

    /// Whether another run that lives under the name of a known run may take its place.
    pub(super) fn has_successor(&self, run: RunId) -> bool {
        let old = &self.known[&run];
        let lives = |new: &Member| new.name == old.member.name && new.run != run && new.state.is_alive();
        lives(&self.own) || self.known.values().any(|new| lives(&new.member) && new.may_replace(old))
    }

    /// Removes a run whose place another run of its name has taken. What is bound to its life ends.
    pub(super) fn replace(&mut self, run: RunId) {
        if let Some(known) = self.known.remove(&run) {
            self.remember_ended(&known);
        }
        self.effects.push_back(MemberEffect::RunLife(run, RunLife::Ended));
    }

    /// Forgets the runs that are gone and whose place this one takes, if it lives. One that is linked may live as well:
    /// it is kept until that is known.
    pub(super) fn forget_predecessors(&mut self, run: RunId) {
        let Some(new) = self.known.get(&run).filter(|new| new.member.state.is_alive()) else { return };
        let is_over = |old: &&KnownMember| {
            let is_same = old.member.name == new.member.name && old.member.run != run;
            is_same && old.is_gone() && old.links == 0 && new.may_replace(old)
        };
        let over: Vec<RunId> = self.known.values().filter(is_over).map(|old| old.member.run).collect();
        over.into_iter().for_each(|old| self.replace(old));
    }

    /// Adds a member that others speak of. False if it is not taken in: hearsay never gives a proven run another name.
    /// Nor does it change the address of a known run, or the metadata of one that is linked and tells of itself.
    pub(super) fn add_by_hearsay(&mut self, who: &Member) -> bool {
        // A run that has ended and was replaced comes back by hearsay only under a later identity.
        self.ended(who.run).is_none() && self.add_told(who)
    }

    /// The same of a run that has not ended, or comes back.
    pub(super) fn add_told(&mut self, who: &Member) -> bool {
        let run = who.run;
        let is_added =
            run != self.own.run && !self.is_of_other(run, &who.name) && self.add(who, Self::forget_gone);
        let is_news = |known: &KnownMember| is_later(who.meta_version, known.member.meta_version);
        if is_added && self.known[&run].links == 0 && is_news(&self.known[&run]) {
            self.take_meta(who);
        }
        is_added
    }

    /// The identity under which a run has ended whose place another run has taken. Both may be made up if the run was
    /// never proven here.
    pub(super) fn ended(&self, run: RunId) -> Option<SwimId> {
        let is_over =
            |member: &&SwimMember<SwimId>| member.id().run == run && member.state() == foca::State::Down;
        let ended = || self.detector.iter_membership_state().find(is_over).map(|member| *member.id());
        if self.known.contains_key(&run) { None } else { ended() }
    }

    /// Publishes this node's metadata anew if somebody tells a later version of it. Only a node itself raises its
    /// version, so somebody made this one up, and nodes that are not linked with this one believe it.
    pub(super) fn outrank_meta(&mut self, told: &Member) {
        let is_own = told.run == self.own.run && !self.controls.has(Control::MetaNotOutranked);
        if is_own && is_later(told.meta_version, self.own.meta_version) {
            self.own.meta_version = next_version(told.meta_version);
            self.buckets = None;
        }
    }

    /// Adds a member whose run, name and address a handshake has proven: they replace what others said of it. False if
    /// there are too many members already, it exceeds a limit, or its run is proven under another name.
    pub(super) fn remember_proven(&mut self, who: &Member) -> bool {
        let is_remembered = who.run != self.own.run
            && !self.is_of_other(who.run, &who.name)
            && self.add(who, |members| members.forget_gone() || members.forget_hearsay());
        if !is_remembered {
            return false;
        }
        self.forgotten.retain(|contact| contact.addr != who.addr);
        let known = self.known.get_mut(&who.run).expect("just added");
        // Others may see it at another address; this one works from here.
        if known.links == 0 {
            known.member.addr = who.addr;
        }
        if !std::mem::replace(&mut known.is_proven, true) {
            self.effects.push_back(MemberEffect::Proven);
            self.take_name(who);
            self.forget_predecessors(who.run);
        }
        // An older version is what the member said at an earlier time. The present one may be known from others.
        let known = &self.known[&who.run].member;
        let is_other = (&who.meta, &who.app_version) != (&known.meta, &known.app_version);
        let is_news = is_later(who.meta_version, known.meta_version);
        if is_news || is_other && who.meta_version == known.meta_version {
            self.take_meta(who);
        }
        true
    }

    /// Adds a member. False if there is no room for it, or it exceeds a limit: every peer that is sent it would refuse
    /// it.
    fn add(&mut self, who: &Member, make_room: impl Fn(&mut Self) -> bool) -> bool {
        if who.over_limit().is_some() {
            return false;
        }
        if self.known.contains_key(&who.run) {
            return true;
        }
        if self.known.len() >= MEMBERS_MAX && !make_room(self) {
            self.effects.push_back(MemberEffect::Full);
            return false;
        }
        let dial_at = self.now.mono + self.dial_patience(who.run);
        self.tend_at = self.tend_at.min(dial_at);
        let member = Member { rtt: None, ..who.clone() };
        self.known.insert(who.run, KnownMember::new(member, self.now, dial_at));
        true
    }

    /// Replaces the metadata of a known member.
    pub(super) fn take_meta(&mut self, who: &Member) {
        let Some(known) = self.known.get_mut(&who.run) else { return };
        known.member.meta_version = who.meta_version;
        let member = &mut known.member;
        let is_other = (&who.meta, &who.app_version) != (&member.meta, &member.app_version);
        member.app_version.clone_from(&who.app_version);
        member.meta.clone_from(&who.meta);
        self.buckets = None;
        if is_other {
            self.push_event(who.run, MemberEvent::Updated);
        }
        self.push_joined(who.run);
    }

    /// Replaces a false name that others gave to a member.
    fn take_name(&mut self, who: &Member) {
        let Some(known) = self.known.get_mut(&who.run).filter(|known| known.member.name != who.name) else {
            return;
        };
        known.member.name.clone_from(&who.name);
        self.resize();
        self.push_event(who.run, MemberEvent::Updated);
        if self.is_alive(who.run) {
            self.note_namesakes(who.run);
        }
    }
}

impl KnownMember {
    /// Whether it takes the place of one with the same name that is gone. One that was only heard of takes no place of
    /// one that was proven.
    fn may_replace(&self, old: &Self) -> bool {
        self.is_proven || !old.is_proven
    }
}
