//! The roster: who is believed to live, compared in buckets and completed where two nodes differ.
//!
//! A frame holds the sender's buckets, member records, or both. The receiver of buckets answers with its records of the
//! buckets that differ, and with its own buckets if they were asked for. So the node that began knows what to send in
//! turn.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use foca::Timer;
use rand_core::Rng;

use super::foca_codec::SwimId;
use super::proof::is_later;
use super::{
    MEMBERS_MAX, META_BYTES_MAX, META_ENTRIES_MAX, Member, MemberEffect, MemberState, Members,
    NAME_BYTES_MAX, RECHECKS_MAX,
};
use crate::controls::Control;
use crate::id::RunId;
use crate::store::digest::fingerprint;
use crate::time::Time;
use crate::wire::{FRAME_BYTES_TARGET, Kind, Reader, WireError, Writer};

/// The number of buckets in which rosters are compared.
pub(super) const ROSTER_BUCKETS: usize = 64;

/// The first byte of a frame: no buckets follow; buckets that ask for the receiver's; buckets that do not.
const RECORDS: u8 = 0;
const ASKING: u8 = 1;
const ANSWERING: u8 = 2;

/// Records of one frame. A correct node knows no more members, and itself.
const RECORDS_MAX: usize = MEMBERS_MAX + 1;

/// The state in a record: the member lives, or has left.
const IS_ALIVE: u8 = 0;
const HAS_LEFT: u8 = 1;

pub(super) fn write_contact(writer: &mut Writer, member: &Member) {
    writer.run(member.run);
    writer.bytes(member.name.as_bytes());
    match member.addr.ip() {
        IpAddr::V4(ip) => writer.bytes(&ip.octets()),
        IpAddr::V6(ip) => writer.bytes(&ip.octets()),
    }
    writer.u16_le(member.addr.port());
}

/// Writes into a memo how long a member has been down. It is a contact without a name, whose address no address has the
/// length of: programs from before it skip that.
pub(super) fn write_down_time(writer: &mut Writer, run: RunId, down_for: Duration) {
    writer.run(run);
    writer.bytes(&[]);
    writer.bytes(&(down_for.as_millis() as u64).to_le_bytes());
    writer.u16_le(0);
}

/// A part of a memo.
pub(super) enum Remembered {
    Member(Member),
    DownFor(RunId, Duration),
}

/// Reads a part of a memo. `Ok(None)` if it is not acceptable.
pub(super) fn read_remembered(reader: &mut Reader<'_>) -> Result<Option<Remembered>, WireError> {
    let fields = ContactFields::read(reader)?;
    let down_ms = <[u8; 8]>::try_from(fields.ip).ok().filter(|_| fields.name.is_empty());
    let down_for = down_ms.map(|ms| Duration::from_millis(u64::from_le_bytes(ms)));
    Ok(match down_for {
        Some(down_for) => Some(Remembered::DownFor(fields.run, down_for)),
        None => fields.member().map(Remembered::Member),
    })
}

/// Reads a member without its metadata. `Ok(None)` if it can be read but is not acceptable, so that reading goes on
/// behind it.
pub(super) fn read_contact(reader: &mut Reader<'_>) -> Result<Option<Member>, WireError> {
    Ok(ContactFields::read(reader)?.member())
}

/// The contact of a member as it was written.
struct ContactFields<'a> {
    run: RunId,
    name: &'a [u8],
    ip: &'a [u8],
    port: u16,
}

impl<'a> ContactFields<'a> {
    fn read(reader: &mut Reader<'a>) -> Result<Self, WireError> {
        Ok(Self { run: reader.run()?, name: reader.bytes()?, ip: reader.bytes()?, port: reader.u16_le()? })
    }

    /// `None` if it is not acceptable.
    fn member(&self) -> Option<Member> {
        let v4 = <[u8; 4]>::try_from(self.ip).map(IpAddr::from);
        let v6 = <[u8; 16]>::try_from(self.ip).map(IpAddr::from);
        let (Ok(ip), Ok(name)) = (v4.or(v6), std::str::from_utf8(self.name)) else { return None };
        let fits = (1..=NAME_BYTES_MAX).contains(&name.len());
        fits.then(|| Member::new(name, self.run, SocketAddr::new(ip, self.port)))
    }
}

fn write_record(writer: &mut Writer, member: &Member, id: SwimId, incarnation: u16, state: u8) {
    write_contact(writer, member);
    writer.u16_le(id.generation);
    writer.u16_le(incarnation);
    writer.byte(state);
    writer.varint(member.meta_version);
    if member.meta_version > 0 {
        writer.bytes(member.app_version.as_bytes());
        writer.varint(member.meta.len() as u64);
        for (key, value) in &member.meta {
            writer.bytes(key.as_bytes());
            writer.bytes(value.as_bytes());
        }
    }
}

/// The frame that tells a member which version of its metadata somebody claims. It takes nothing else of it.
fn claimed_version(who: &Member) -> Vec<u8> {
    let mut writer = Writer::new(Kind::Roster);
    writer.byte(RECORDS);
    let version = Member { meta_version: who.meta_version, ..Member::new(&*who.name, who.run, who.addr) };
    write_record(&mut writer, &version, SwimId { run: who.run, generation: 0 }, 0, IS_ALIVE);
    writer.finish()
}

/// A member, as another node's roster shows it.
struct RosterEntry {
    member: Member,
    generation: u16,
    incarnation: u16,
    has_left: bool,
}

/// Reads a record. `Ok(None)` if it can be read but is not acceptable: a correct peer may forward what another one has
/// taken in, so one bad record says nothing about the link or about the records behind it.
fn read_record(reader: &mut Reader<'_>) -> Result<Option<RosterEntry>, WireError> {
    let contact = read_contact(reader)?;
    let (generation, incarnation) = (reader.u16_le()?, reader.u16_le()?);
    let has_left = reader.byte()? == HAS_LEFT;
    let meta_version = reader.varint()?;
    let mut about = None;
    if meta_version > 0 {
        let app_version = reader.bytes()?;
        let entries = reader.count(2)?;
        let mut meta = Vec::new();
        for i in 0..entries {
            let entry = (reader.bytes()?, reader.bytes()?);
            if i < META_ENTRIES_MAX {
                meta.push(entry);
            }
        }
        about = Some((app_version, meta, entries <= META_ENTRIES_MAX));
    }
    let Some(mut member) = contact else { return Ok(None) };
    member.meta_version = meta_version;
    if let Some((app_version, meta, is_whole)) = about {
        // Measured before any of it is copied.
        let bytes = meta.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
        let text = |bytes| std::str::from_utf8(bytes).map(str::to_owned);
        let meta: Result<_, _> = match bytes + app_version.len() {
            0..=META_BYTES_MAX if is_whole => {
                meta.into_iter().map(|(key, value)| Ok((text(key)?, text(value)?))).collect()
            }
            _ => return Ok(None),
        };
        let read = text(app_version).and_then(|app_version| Ok((app_version, meta?)));
        let Ok(read) = read else { return Ok(None) };
        (member.app_version, member.meta) = read;
    }
    Ok(Some(RosterEntry { member, generation, incarnation, has_left }))
}

fn bucket(run: RunId) -> usize {
    run.number() as usize % ROSTER_BUCKETS
}

impl Members {
    fn buckets(&mut self) -> [u32; ROSTER_BUCKETS] {
        if let Some(buckets) = self.buckets {
            return buckets;
        }
        let mut buckets = [0_u32; ROSTER_BUCKETS];
        let own = (&self.own, self.detector.identity().generation);
        let alive = self.known.values().filter(|known| known.member.state.is_alive());
        let others = alive.map(|known| (&known.member, known.generation));
        for (member, generation) in others.chain([own]) {
            let mut bytes = [0; 18];
            bytes[..8].copy_from_slice(&member.run.number().to_le_bytes());
            bytes[8..16].copy_from_slice(&member.meta_version.to_le_bytes());
            bytes[16..].copy_from_slice(&generation.to_le_bytes());
            let sum = &mut buckets[bucket(member.run)];
            *sum = sum.wrapping_add(fingerprint(0, &bytes) as u32);
        }
        *self.buckets.insert(buckets)
    }

    /// A fingerprint of all members that are believed to live.
    pub(crate) fn roster_hash(&mut self) -> u64 {
        let bytes: Vec<u8> = self.buckets().iter().flat_map(|bucket| bucket.to_le_bytes()).collect();
        fingerprint(1, &bytes)
    }

    /// The frame that begins a comparison of rosters.
    pub(crate) fn compare_rosters(&mut self) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Roster);
        self.write_buckets(&mut writer, ASKING);
        writer.finish()
    }

    /// The frame with this node's own record alone.
    pub(super) fn tell_own(&mut self) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Roster);
        writer.byte(RECORDS);
        let state = if self.own.state == MemberState::Left { HAS_LEFT } else { IS_ALIVE };
        write_record(&mut writer, &self.own, *self.detector.identity(), 0, state);
        writer.finish()
    }

    fn write_buckets(&mut self, writer: &mut Writer, kind: u8) {
        writer.byte(kind);
        self.buckets().iter().for_each(|bucket| writer.varint(u64::from(*bucket)));
    }

    /// Handles a roster frame of a peer whose run is `from`. Returns the frames to answer with.
    pub(crate) fn roster(
        &mut self,
        now: Time,
        from: Option<RunId>,
        mut reader: Reader<'_>,
    ) -> Result<Vec<Vec<u8>>, WireError> {
        self.now = now;
        let kind = reader.byte()?;
        let mut theirs = None;
        if kind != RECORDS {
            let mut buckets = [0; ROSTER_BUCKETS];
            for bucket in &mut buckets {
                *bucket = u32::try_from(reader.varint()?).map_err(|_| WireError::Form)?;
            }
            theirs = Some(buckets);
        }
        let (mut records, mut count) = (Vec::new(), 0);
        while !reader.is_at_end() {
            count += 1;
            if count > RECORDS_MAX {
                return Err(WireError::TooMany);
            }
            records.extend(read_record(&mut reader)?);
        }
        self.apply_roster(from, records);
        let Some(theirs) = theirs else { return Ok(Vec::new()) };
        let ours = self.buckets();
        if ours == theirs {
            return Ok(Vec::new());
        }
        let differs = |run: RunId| ours[bucket(run)] != theirs[bucket(run)];
        Ok(self.tell_of(differs, kind == ASKING))
    }

    pub(super) fn tell_of(&mut self, concerns: impl Fn(RunId) -> bool, asks: bool) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        let mut writer = Writer::new(Kind::Roster);
        if asks {
            self.write_buckets(&mut writer, ANSWERING);
        } else {
            writer.byte(RECORDS);
        }
        let alive = self.detector.iter_members().filter(|member| concerns(member.id().run));
        let alive = alive.filter_map(|member| Some((member, &self.known.get(&member.id().run)?.member)));
        for (member, about) in alive {
            if writer.len() > FRAME_BYTES_TARGET {
                let full = std::mem::replace(&mut writer, Writer::new(Kind::Roster));
                frames.push(full.finish());
                writer.byte(RECORDS);
            }
            write_record(&mut writer, about, *member.id(), member.incarnation(), IS_ALIVE);
        }
        if concerns(self.own.run) && self.own.state.is_alive() {
            write_record(&mut writer, &self.own, *self.detector.identity(), 0, IS_ALIVE);
        }
        let left = self.known.values().filter(|known| known.has_left && concerns(known.member.run));
        for known in left {
            write_record(&mut writer, &known.member, known.id(), 0, HAS_LEFT);
        }
        frames.push(writer.finish());
        frames
    }

    /// Takes in a peer's records. A record may call a member gone only if that member said itself that it leaves. All
    /// other failures have to be found by the failure detector; otherwise, when a partition heals, each side would call
    /// the other down once more.
    fn apply_roster(&mut self, from: Option<RunId>, records: Vec<RosterEntry>) {
        let (mut doubts, mut returns) = (Vec::new(), Vec::new());
        for record in records {
            let run = record.member.run;
            self.outrank(SwimId { run, generation: record.generation });
            self.outrank_meta(&record.member);
            if record.has_left && !self.known.contains_key(&run) {
                continue;
            }
            if let Some(ended) = self.ended(run) {
                if self.controls.has(Control::EndIsFinal) {
                    continue;
                }
                if !(SwimId { run, generation: record.generation }).is_after(ended) {
                    returns.push((record.member, ended));
                    continue;
                }
                // It lives under a later identity than the one that has ended.
                _ = self.detector.handle_timer(Timer::RemoveDown(ended), &mut self.wishes);
            }
            if !self.add_told(&record.member) {
                continue;
            }
            let (version, known) = (record.member.meta_version, &self.known[&run]);
            if from == Some(run) && known.member.meta_version != version {
                // It tells of itself, so this replaces whatever others said, even under a later version.
                self.take_meta(&record.member);
            } else if known.links > 0 && is_later(version, known.member.meta_version) {
                self.effects.push_back(MemberEffect::ToldOf(run, claimed_version(&record.member)));
            }
            self.runs_to_check.push(run);
            let id = SwimId { run, generation: record.generation };
            let known = self.known.get_mut(&run).expect("just learned");
            let update = if record.has_left {
                if known.id().is_after(id) {
                    continue;
                }
                self.heard_left(id);
                foca::Member::down(id)
            } else {
                foca::Member::new(id, record.incarnation, foca::State::Alive)
            };
            let spreads = self.spreads_updates(run);
            _ = self.detector.apply_many(std::iter::once(update), spreads, &mut self.wishes);
            if !record.has_left {
                doubts.push(id);
            }
        }
        self.drain_foca();
        // A peer says that these members live, and the failure detector here remembers them as down: they are asked
        // themselves.
        doubts.retain(|id| self.known.get(&id.run).is_some_and(|known| !known.member.state.is_alive()));
        self.draw_rechecks(&mut doubts);
        self.draw_rechecks(&mut returns);
        returns.iter().for_each(|(who, ended)| self.tell_of_end(who, *ended));
        for id in doubts {
            _ = self.detector.announce(id, &mut self.wishes);
            // If it is remembered under a generation that it does not have, somebody made that one up. News of it may be
            // lost, so the member is told with every roster until it has taken a later one.
            if let Some(held) = self.remembered_after(id) {
                self.accuse(held, 0);
            }
        }
        self.drain_foca();
    }

    fn draw_rechecks<T>(&mut self, among: &mut Vec<T>) {
        while among.len() > RECHECKS_MAX {
            let at = self.random.next_u64() as usize % among.len();
            among.swap_remove(at);
        }
    }
}
