//! The failure detector: `foca` with a packet layout of this library.
//!
//! For `foca` a member is two numbers: its run, and its generation: how often it came back from having been called
//! down. Its name, address and metadata are kept by [`super`]. The fields of a packet have fixed sizes, so that its
//! contents can be read beside `foca`:
//!
//! ```text
//! sender's run 8, receiver's run 8 (both known by the link and not sent), their generations 2 + 2,
//! sender's incarnation 2, tag 1, then by tag a probe's number 1 and another member 10; then a count of updates 2,
//! each run 8, generation 2, incarnation 2, state 1
//! ```

use std::time::Duration;

use bytes::{Buf, BufMut};
use foca::{Header, Member, Message, OwnedNotification, Runtime, Timer};

use crate::id::RunId;

/// A member, as the failure detector identifies it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SwimId {
    pub(super) run: RunId,
    /// How often this run came back from having been called down, modulo 2^16.
    pub(super) generation: u16,
}

impl SwimId {
    /// The identity under which the run comes back.
    pub(super) fn next(self) -> Self {
        Self { run: self.run, generation: self.generation.wrapping_add(1) }
    }

    /// Whether this is the later one of two identities of a run. The order is circular: every identity has a later one,
    /// so that whatever a member says of another run, that run can come back.
    pub(super) fn is_after(self, other: Self) -> bool {
        match self.generation.wrapping_sub(other.generation) {
            0x8000 => self.generation > other.generation,
            ahead => (1..0x8000).contains(&ahead),
        }
    }
}

impl foca::Identity for SwimId {
    type Addr = RunId;

    fn renew(&self) -> Option<Self> {
        Some(self.next())
    }

    fn addr(&self) -> RunId {
        self.run
    }

    fn win_addr_conflict(&self, adversary: &Self) -> bool {
        self.is_after(*adversary)
    }
}

/// The bytes of the two runs at the beginning of a packet.
pub(super) const RUNS_BYTES: usize = 16;
const SWIM_HEADER_BYTES: usize = RUNS_BYTES + 7;
const ID_BYTES: usize = 10;
/// The bytes of one update.
pub(super) const UPDATE_BYTES: usize = 13;
const STATE_AT: usize = UPDATE_BYTES - 1;

pub(super) const ALIVE: u8 = 0;
pub(super) const SUSPECT: u8 = 1;
pub(super) const DOWN: u8 = 2;
/// Only on the wire: down, because the member said that it leaves.
pub(super) const LEFT: u8 = 3;

pub(super) const PING: u8 = 0;
pub(super) const ACK: u8 = 1;
pub(super) const FORWARDED_ACK: u8 = 5;

/// The bytes are not a packet of the failure detector.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("not a packet of the failure detector")]
pub(super) struct Malformed;

/// Encodes and decodes packets in the layout of this module.
#[derive(Clone, Copy, Debug)]
pub(super) struct SwimCodec;

impl foca::Codec<SwimId> for SwimCodec {
    type Error = Malformed;

    fn encode_header(&mut self, header: &Header<SwimId>, mut buf: impl BufMut) -> Result<(), Malformed> {
        let (tag, number, other) = parts(&header.message);
        let bytes = SWIM_HEADER_BYTES + usize::from(number.is_some()) + other.map_or(0, |_| ID_BYTES);
        if buf.remaining_mut() < bytes {
            return Err(Malformed);
        }
        buf.put_u64_le(header.src.run.number());
        buf.put_u64_le(header.dst.run.number());
        buf.put_u16_le(header.src.generation);
        buf.put_u16_le(header.dst.generation);
        buf.put_u16_le(header.src_incarnation);
        buf.put_u8(tag);
        number.into_iter().for_each(|number| buf.put_u8(number));
        if let Some(id) = other {
            buf.put_u64_le(id.run.number());
            buf.put_u16_le(id.generation);
        }
        Ok(())
    }

    fn decode_header(&mut self, mut buf: impl Buf) -> Result<Header<SwimId>, Malformed> {
        if buf.remaining() < SWIM_HEADER_BYTES {
            return Err(Malformed);
        }
        let (src, dst) = (RunId::new(buf.get_u64_le()), RunId::new(buf.get_u64_le()));
        let src = SwimId { run: src, generation: buf.get_u16_le() };
        let dst = SwimId { run: dst, generation: buf.get_u16_le() };
        let src_incarnation = buf.get_u16_le();
        let tag = buf.get_u8();
        if buf.remaining() < body_bytes(tag) {
            return Err(Malformed);
        }
        let message = match tag {
            PING => Message::Ping(buf.get_u8()),
            ACK => Message::Ack(buf.get_u8()),
            2 => {
                let (probe_number, target) = (buf.get_u8(), id(&mut buf));
                Message::PingReq { target, probe_number }
            }
            3 => {
                let (probe_number, origin) = (buf.get_u8(), id(&mut buf));
                Message::IndirectPing { origin, probe_number }
            }
            4 => {
                let (probe_number, target) = (buf.get_u8(), id(&mut buf));
                Message::IndirectAck { target, probe_number }
            }
            FORWARDED_ACK => {
                let (probe_number, origin) = (buf.get_u8(), id(&mut buf));
                Message::ForwardedAck { origin, probe_number }
            }
            6 => Message::Announce,
            7 => Message::Feed,
            8 => Message::Gossip,
            9 => Message::TurnUndead,
            _ => return Err(Malformed),
        };
        Ok(Header { src, src_incarnation, dst, message })
    }

    fn encode_member(&mut self, member: &Member<SwimId>, mut buf: impl BufMut) -> Result<(), Malformed> {
        if buf.remaining_mut() < UPDATE_BYTES {
            return Err(Malformed);
        }
        buf.put_u64_le(member.id().run.number());
        buf.put_u16_le(member.id().generation);
        buf.put_u16_le(member.incarnation());
        buf.put_u8(match member.state() {
            foca::State::Alive => ALIVE,
            foca::State::Suspect => SUSPECT,
            foca::State::Down => DOWN,
        });
        Ok(())
    }

    fn decode_member(&mut self, mut buf: impl Buf) -> Result<Member<SwimId>, Malformed> {
        if buf.remaining() < UPDATE_BYTES {
            return Err(Malformed);
        }
        let (id, incarnation) = (id(&mut buf), buf.get_u16_le());
        let state = match buf.get_u8() {
            ALIVE => foca::State::Alive,
            SUSPECT => foca::State::Suspect,
            DOWN => foca::State::Down,
            _ => return Err(Malformed),
        };
        Ok(Member::new(id, incarnation, state))
    }
}

fn id(buf: &mut impl Buf) -> SwimId {
    SwimId { run: RunId::new(buf.get_u64_le()), generation: buf.get_u16_le() }
}

fn parts(message: &Message<SwimId>) -> (u8, Option<u8>, Option<SwimId>) {
    match message {
        Message::Ping(number) => (PING, Some(*number), None),
        Message::Ack(number) => (ACK, Some(*number), None),
        Message::PingReq { target, probe_number } => (2, Some(*probe_number), Some(*target)),
        Message::IndirectPing { origin, probe_number } => (3, Some(*probe_number), Some(*origin)),
        Message::IndirectAck { target, probe_number } => (4, Some(*probe_number), Some(*target)),
        Message::ForwardedAck { origin, probe_number } => (FORWARDED_ACK, Some(*probe_number), Some(*origin)),
        Message::Announce => (6, None, None),
        Message::Feed => (7, None, None),
        // This library broadcasts nothing of its own through the failure detector.
        Message::Gossip | Message::Broadcast => (8, None, None),
        Message::TurnUndead => (9, None, None),
    }
}

fn body_bytes(tag: u8) -> usize {
    match tag {
        PING | ACK => 1,
        2..=FORWARDED_ACK => 1 + ID_BYTES,
        _ => 0,
    }
}

/// A ping that tells a member that it is suspected. Its answer refutes that, at least for the member that asks.
pub(super) fn accusation(own: SwimId, incarnation: u16, to: SwimId, suspected: u16, number: u8) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(SWIM_HEADER_BYTES + 3 + UPDATE_BYTES);
    let header = Header { src: own, src_incarnation: incarnation, dst: to, message: Message::Ping(number) };
    let told = foca::Codec::encode_header(&mut SwimCodec, &header, &mut bytes);
    bytes.put_u16(1);
    let update = Member::new(to, suspected, foca::State::Suspect);
    let told = told.and_then(|()| foca::Codec::encode_member(&mut SwimCodec, &update, &mut bytes));
    told.expect("a vector has room");
    bytes
}

/// A packet, read independently of `foca`.
#[derive(Debug)]
pub(super) struct SwimPacket<'a> {
    bytes: &'a [u8],
    updates_at: usize,
}

/// What a packet says about one member.
#[derive(Clone, Copy, Debug)]
pub(super) struct SwimUpdate<'a> {
    pub(super) id: SwimId,
    pub(super) state: u8,
    bytes: &'a [u8],
}

impl<'a> SwimPacket<'a> {
    /// `bytes` begin with the two runs and end with the updates. `None` if their length is wrong.
    pub(super) fn read(bytes: &'a [u8]) -> Option<Self> {
        let tag = *bytes.get(SWIM_HEADER_BYTES - 1)?;
        let updates_at = SWIM_HEADER_BYTES + body_bytes(tag);
        let rest = bytes.get(updates_at..)?;
        let whole = match rest {
            [] => true,
            [a, b, updates @ ..] => updates.len() == usize::from(u16::from_be_bytes([*a, *b])) * UPDATE_BYTES,
            [_] => false,
        };
        whole.then_some(Self { bytes, updates_at })
    }

    pub(super) fn tag(&self) -> u8 {
        self.bytes[SWIM_HEADER_BYTES - 1]
    }

    /// The receiver's generation, as the sender knows it.
    pub(super) fn receiver_generation(&self) -> u16 {
        u16::from_le_bytes([self.bytes[RUNS_BYTES + 2], self.bytes[RUNS_BYTES + 3]])
    }

    /// The sender's incarnation: how often it had to say that it lives.
    pub(super) fn incarnation(&self) -> u16 {
        u16::from_le_bytes([self.bytes[RUNS_BYTES + 4], self.bytes[RUNS_BYTES + 5]])
    }

    /// The probe's number. Meaningless for packets that have none.
    pub(super) fn probe_id(&self) -> u8 {
        self.bytes.get(SWIM_HEADER_BYTES).copied().unwrap_or_default()
    }

    /// The run that is probed for another member, or that probes through another.
    pub(super) fn other(&self) -> Option<RunId> {
        let mut rest = &self.bytes[SWIM_HEADER_BYTES..];
        (body_bytes(self.tag()) > 1).then(|| {
            rest.advance(1);
            RunId::new(rest.get_u64_le())
        })
    }

    pub(super) fn updates(&self) -> impl Iterator<Item = SwimUpdate<'a>> + use<'a> {
        let updates = self.bytes.get(self.updates_at + 2..).unwrap_or_default();
        updates.chunks_exact(UPDATE_BYTES).map(|bytes| {
            let mut rest = bytes;
            let id = id(&mut rest);
            SwimUpdate { id, state: bytes[STATE_AT], bytes }
        })
    }

    /// A copy of the packet with the updates for which `keep` returns a generation and a state, which replace their
    /// own.
    pub(super) fn with_updates(&self, keep: impl Fn(&SwimUpdate<'_>) -> Option<(u16, u8)>) -> Vec<u8> {
        let mut bytes = self.bytes[..self.updates_at].to_vec();
        if self.bytes.len() == self.updates_at {
            return bytes;
        }
        bytes.extend_from_slice(&[0, 0]);
        let mut count = 0_u16;
        for update in self.updates() {
            if let Some((generation, state)) = keep(&update) {
                bytes.put_u64_le(update.id.run.number());
                bytes.put_u16_le(generation);
                bytes.extend_from_slice(&update.bytes[ID_BYTES..STATE_AT]);
                bytes.push(state);
                count += 1;
            }
        }
        bytes[self.updates_at..self.updates_at + 2].copy_from_slice(&count.to_be_bytes());
        bytes
    }
}

/// The effects that `foca` asks for.
#[derive(Debug, Default)]
pub(super) struct FocaEffects {
    pub(super) packets: Vec<(SwimId, Vec<u8>)>,
    pub(super) timers: Vec<(Duration, Timer<SwimId>)>,
    pub(super) notes: Vec<OwnedNotification<SwimId>>,
}

impl Runtime<SwimId> for FocaEffects {
    fn notify(&mut self, notification: foca::Notification<'_, SwimId>) {
        self.notes.push(notification.to_owned());
    }

    fn send_to(&mut self, to: SwimId, data: &[u8]) {
        self.packets.push((to, data.to_vec()));
    }

    fn submit_after(&mut self, event: Timer<SwimId>, after: Duration) {
        self.timers.push((after, event));
    }
}
