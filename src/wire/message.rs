//! The decoded message that handlers match, and the layouts of small bodies.
//!
//! A body that is decoded here must be decoded completely: bytes left over are a [`WireError`]. Bodies whose meaning
//! depends on the state of a link or a session stay a [`Reader`] and must not be interpreted here.

use super::codec::{Reader, Writer};
use super::frame::{Kind, WireError};
use crate::id::{LogId, RunId, SessionId};
use crate::store::coverage::ClocksSum;
use crate::time::Stamp;

/// One message of a peer.
pub(crate) enum Message<'a> {
    /// Read by [`Hello::read`], which needs to know whether members are kept.
    Hello(Reader<'a>),
    Ack(Ack),
    /// Read by `TailReceiver::handle_frame`: rows name contexts of earlier frames.
    Tail(Reader<'a>),
    Start {
        session: SessionId,
        body: Reader<'a>,
    },
    /// Read by `RepairSession::items`: ranges name leftovers that were sent before.
    Items {
        session: SessionId,
        body: Reader<'a>,
    },
    /// Read by [`Check::read`], which needs to know whether members are kept.
    Check(Reader<'a>),
    Swim(Reader<'a>),
    Roster(Reader<'a>),
    /// Read by `LargeRowReceiver::handle_piece`.
    Piece(Piece<'a>),
    Election(Reader<'a>),
    /// The next session of the link has this number. Everything of an earlier one is void.
    Deferred(SessionId),
    Partial(Reader<'a>),
    /// The sum of the old part of the sender's vector, which has changed since its `Hello`.
    OldPart(ClocksSum),
    /// Read by `OldParts::on_sums`.
    OldPartSums(Reader<'a>),
    /// Read by `OldParts::on_shared`.
    OldPartShared(Reader<'a>),
    /// The sender has caught up, and this is a hash of its vector, as in [`Hello`].
    CaughtUp(u64),
}

impl<'a> Message<'a> {
    pub(crate) fn read(kind: Kind, mut body: Reader<'a>) -> Result<Self, WireError> {
        Ok(match kind {
            Kind::Hello => Self::Hello(body),
            Kind::Ack => Self::Ack(Ack::read(body)?),
            Kind::Tail => Self::Tail(body),
            Kind::Start => Self::Start { session: body.session()?, body },
            Kind::Items => Self::Items { session: body.session()?, body },
            Kind::Check => Self::Check(body),
            Kind::Swim => Self::Swim(body),
            Kind::Roster => Self::Roster(body),
            Kind::Piece => Self::Piece(Piece::read(body)?),
            Kind::Election => Self::Election(body),
            Kind::Deferred => {
                let next = body.session()?;
                body.end()?;
                Self::Deferred(next)
            }
            Kind::Partial => Self::Partial(body),
            Kind::OldPart => {
                let sum = body.clocks_sum()?;
                body.end()?;
                Self::OldPart(sum)
            }
            Kind::OldPartSums => Self::OldPartSums(body),
            Kind::OldPartShared => Self::OldPartShared(body),
            Kind::CaughtUp => {
                let vector_hash = body.u64_le()?;
                body.end()?;
                Self::CaughtUp(vector_hash)
            }
        })
    }
}

/// Begins a link, in both directions.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Hello {
    /// How often the sender's process has given up its claims. With the run of its handshake this says as which run it
    /// writes, and which log it has.
    pub(crate) generation: u64,
    /// The run with which the sender's process began, present if members are not kept: no handshake has proven it.
    pub(crate) first_run: Option<RunId>,
    /// Equal on both sides: neither has merged anything that the other has not.
    pub(crate) vector_hash: u64,
    /// The sum of the old part of the sender's vector.
    pub(crate) old_sum: ClocksSum,
}

impl Hello {
    pub(crate) fn frame(self) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Hello);
        writer.varint(self.generation);
        if let Some(run) = self.first_run {
            writer.run(run);
        }
        writer.u64_le(self.vector_hash);
        writer.clocks_sum(self.old_sum);
        writer.finish()
    }

    pub(crate) fn read(mut body: Reader<'_>, has_members: bool) -> Result<Self, WireError> {
        let hello = Self {
            generation: body.varint()?,
            first_run: (!has_members).then(|| body.run()).transpose()?,
            vector_hash: body.u64_le()?,
            old_sum: body.clocks_sum()?,
        };
        body.end()?;
        Ok(hello)
    }
}

/// How many members cover an event: those of the sender's group if the event's origin is in another one, otherwise the
/// sender alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Seen {
    pub(crate) stamp: Stamp,
    pub(crate) count: u64,
}

/// The most answers in one acknowledgement.
const SEEN_MAX: usize = 4_096;

/// Everything up to this position of the receiver's log is merged by the sender.
#[derive(Debug)]
pub(crate) struct Ack {
    pub(crate) log: LogId,
    pub(crate) position: u64,
    /// The answers to what the receiver asked about.
    pub(crate) seen: Vec<Seen>,
}

impl Ack {
    pub(crate) fn frame(self) -> Vec<u8> {
        let mut writer = Writer::new(Kind::Ack);
        writer.log(self.log);
        writer.varint(self.position);
        for Seen { stamp, count } in self.seen {
            writer.run(stamp.origin);
            writer.u64_le(stamp.clock);
            writer.varint(count);
        }
        writer.finish()
    }

    fn read(mut body: Reader<'_>) -> Result<Self, WireError> {
        let (log, position) = (body.log()?, body.varint()?);
        let mut seen = Vec::new();
        while !body.is_at_end() {
            if seen.len() == SEEN_MAX {
                return Err(WireError::TooMany);
            }
            seen.push(Seen { stamp: body.clock_entry()?, count: body.varint()? });
        }
        Ok(Self { log, position, seen })
    }
}

/// Which of a link's two streams of large rows a piece belongs to. Both travel on the bulk lane.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LargeRowStream {
    Tail,
    Repair(SessionId),
}

const PIECE_FIRST: u8 = 1;
const PIECE_REPAIR: u8 = 2;

impl LargeRowStream {
    /// Begins a frame with a piece of a row.
    pub(crate) fn begin_piece(self, is_first: bool) -> Writer {
        let mut writer = Writer::new(Kind::Piece);
        let first = if is_first { PIECE_FIRST } else { 0 };
        match self {
            Self::Tail => writer.byte(first),
            Self::Repair(session) => {
                writer.byte(first | PIECE_REPAIR);
                writer.session(session);
            }
        }
        writer
    }
}

/// A piece of a large row.
pub(crate) struct Piece<'a> {
    pub(crate) stream: LargeRowStream,
    /// It begins a row.
    pub(crate) is_first: bool,
    pub(crate) body: Reader<'a>,
}

impl<'a> Piece<'a> {
    pub(crate) fn read(mut body: Reader<'a>) -> Result<Self, WireError> {
        let tag = body.byte()?;
        if tag & !(PIECE_FIRST | PIECE_REPAIR) != 0 {
            return Err(WireError::Form);
        }
        let stream = match tag & PIECE_REPAIR {
            0 => LargeRowStream::Tail,
            _ => LargeRowStream::Repair(body.session()?),
        };
        Ok(Self { stream, is_first: tag & PIECE_FIRST != 0, body })
    }
}

/// What a node would like to write and is allowed to, in bytes a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Rates {
    pub(crate) wanted: u64,
    pub(crate) allowed: u64,
}

/// Flags of a check.
const CHECK_REPLY: u8 = 1;
const CHECK_IN_FLUX: u8 = 2;
const CHECK_RATES: u8 = 4;
const CHECK_CLOCK: u8 = 8;
const CHECK_INCOMPARABLE: u8 = 16;

/// Compares what two replicas hold, and their members.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Check {
    pub(crate) is_reply: bool,
    /// A difference may vanish without a repair: the sender's tail has rows left for the receiver, or a flush is
    /// arriving.
    pub(crate) in_flux: bool,
    /// The vector alone says what the sender holds: equal vectors and different roots are a fault.
    pub(crate) is_comparable: bool,
    pub(crate) root: u128,
    pub(crate) vector_hash: u64,
    /// Present if members are kept. Both ends keep them, or neither does.
    pub(crate) roster_hash: Option<u64>,
    /// Present while the sender's writes are limited.
    pub(crate) rates: Option<Rates>,
    /// The sender's wall clock, in replies only, where the time of the question bounds when it was read. `None` if the
    /// sender does not trust its clock.
    pub(crate) wall_ms: Option<u64>,
}

impl Check {
    pub(crate) fn datagram(self) -> Vec<u8> {
        let flags = [
            (self.is_reply, CHECK_REPLY),
            (self.in_flux, CHECK_IN_FLUX),
            (self.rates.is_some(), CHECK_RATES),
            (self.wall_ms.is_some(), CHECK_CLOCK),
            (!self.is_comparable, CHECK_INCOMPARABLE),
        ];
        let mut writer = Writer::new(Kind::Check);
        writer.byte(flags.iter().filter(|(is_set, _)| *is_set).map(|(_, flag)| flag).sum());
        writer.u128_le(self.root);
        writer.u64_le(self.vector_hash);
        if let Some(hash) = self.roster_hash {
            writer.u64_le(hash);
        }
        if let Some(rates) = self.rates {
            writer.varint(rates.wanted);
            writer.varint(rates.allowed);
        }
        if let Some(wall_ms) = self.wall_ms {
            writer.u64_le(wall_ms);
        }
        writer.finish_datagram()
    }

    pub(crate) fn read(mut body: Reader<'_>, has_members: bool) -> Result<Self, WireError> {
        let flags = body.byte()?;
        let check = Self {
            is_reply: flags & CHECK_REPLY != 0,
            in_flux: flags & CHECK_IN_FLUX != 0,
            is_comparable: flags & CHECK_INCOMPARABLE == 0,
            root: body.u128_le()?,
            vector_hash: body.u64_le()?,
            roster_hash: has_members.then(|| body.u64_le()).transpose()?,
            rates: match flags & CHECK_RATES {
                0 => None,
                _ => Some(Rates { wanted: body.varint()?, allowed: body.varint()? }),
            },
            wall_ms: (flags & CHECK_CLOCK != 0).then(|| body.u64_le()).transpose()?,
        };
        body.end()?;
        Ok(check)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RunId;

    #[test]
    fn acknowledgement_with_too_many_answers_is_refused() {
        let read = |answers: usize| {
            let seen = |i| Seen { stamp: Stamp { clock: 1, origin: RunId::new(i) }, count: 1 };
            let seen = (0..answers as u64).map(seen).collect();
            let frame = Ack { log: LogId::new(1), position: 2, seen }.frame();
            let (_, reader) = Reader::new(&frame[4..]).unwrap();
            Ack::read(reader).map(|ack| ack.seen.len())
        };
        assert_eq!(read(SEEN_MAX), Ok(SEEN_MAX));
        assert_eq!(read(SEEN_MAX + 1), Err(WireError::TooMany));
    }
}
