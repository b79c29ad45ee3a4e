//! Frames: the wire version, the kinds of messages, and the assembly of frames from a stream.
//!
//! A frame is rejected by its first bytes: a length over [`FRAME_BYTES_MAX`] or a foreign version must never cause the
//! rest of it to be buffered.

use serde::{Deserialize, Serialize};

/// The version of everything on the wire.
pub(crate) const WIRE_VERSION: u8 = 2;

/// The largest frame that is accepted: a row with several values of the greatest size.
pub const FRAME_BYTES_MAX: usize = 68 << 20;

/// Frames are cut at about this size. A receiver merges one in about a tenth of a millisecond, during which it does
/// nothing else. With 64 KiB, round trips under load took nearly twice as long, and the writers were no faster.
pub(crate) const FRAME_BYTES_TARGET: usize = 16 << 10;

/// Initial capacity of a frame, enough for most.
pub(super) const USUAL_BYTES: usize = 256;

/// Bytes of length, version and kind.
pub(super) const FRAME_HEADER_BYTES: usize = 6;

/// An error in the bytes of a peer. The rest of the frame is not used, and the link is closed: at once, or after a
/// delay for a [`WireError::Claim`] or [`WireError::OwnClaim`] on a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum WireError {
    /// The frame does not have the form of its kind.
    #[error("malformed frame")]
    Form,
    /// The frame has a version that this library does not support.
    #[error("unknown wire version {0}")]
    Version(u8),
    /// A frame of this kind is unknown or not expected here.
    #[error("unexpected frame of kind {0}")]
    Kind(u8),
    /// The frame is larger than [`FRAME_BYTES_MAX`].
    #[error("frame of {0} bytes is over the limit")]
    TooLarge(usize),
    /// The peer sent more of something than a named limit permits.
    #[error("more items than the limit permits")]
    TooMany,
    /// The peer claims what it cannot know of: writes further in the future than clocks may differ, another run or log
    /// than its own, or an acknowledgement beyond what it was sent.
    #[error("a claim beyond what the peer can know")]
    Claim,
    /// The peer claims writes of this replica's own run up to this clock, beyond what this replica has written. It may
    /// have been told so by another peer.
    #[error("a claim about this replica's own writes, beyond what it has written")]
    OwnClaim(u64),
    /// The peer names an old part of this replica's vector that is no longer kept. Over a new link it is offered the
    /// present one.
    #[error("the peer names an old part of the vector that is no longer kept")]
    OldPart,
}

/// One of the two streams of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Lane {
    /// Live writes.
    Live,
    /// Repair and joining, at lower priority.
    Bulk,
}

/// Declares [`Kind`], its lanes and its decoding in one place, so that no kind can be missing in one of them.
macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $byte:literal on $lane:expr,)+) => {
        /// The kind of a frame.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[repr(u8)]
        pub(crate) enum Kind {
            $($(#[$doc])* $kind = $byte,)+
        }

        impl Kind {
            #[cfg(test)]
            pub(crate) const ALL: &[Self] = &[$(Self::$kind),+];

            /// The stream that frames of this kind travel on; `None` for datagrams.
            pub(crate) fn lane(self) -> Option<Lane> {
                match self {
                    $(Self::$kind => $lane,)+
                }
            }

            pub(super) fn from_byte(byte: u8) -> Result<Self, WireError> {
                match byte {
                    $($byte => Ok(Self::$kind),)+
                    _ => Err(WireError::Kind(byte)),
                }
            }
        }
    };
}

const LIVE: Option<Lane> = Some(Lane::Live);
const BULK: Option<Lane> = Some(Lane::Bulk);
const DATAGRAM: Option<Lane> = None;

kinds! {
    /// Begins a link: names the sender's log, which positions refer to.
    Hello = 1 on LIVE,
    /// Everything up to this position of the receiver's log is merged.
    Ack = 2 on LIVE,
    /// Rows of the change log, in order.
    Tail = 3 on LIVE,
    /// Begins a repair.
    Start = 4 on BULK,
    /// Asks, answers and rows of a repair.
    Items = 5 on BULK,
    /// Compares digests.
    Check = 6 on DATAGRAM,
    /// A packet of the failure detector.
    Swim = 8 on DATAGRAM,
    /// The members that are believed to be alive, in part or as hashes.
    Roster = 9 on LIVE,
    /// A piece of a large row.
    Piece = 11 on BULK,
    /// Between a voter and a node that campaigns, leads or observes.
    Election = 12 on DATAGRAM,
    /// The sender defers the session, and will begin a new one.
    Deferred = 13 on BULK,
    /// How much of a large row its receiver kept when the transfer was interrupted.
    Partial = 14 on LIVE,
    /// The sum of the old part of the sender's vector has changed.
    OldPart = 15 on LIVE,
    /// The sums of the buckets of the sender's old part, which differs from the receiver's.
    OldPartSums = 16 on LIVE,
    /// Which of these buckets are equal.
    OldPartShared = 17 on LIVE,
    /// The sender has caught up with its cluster.
    CaughtUp = 18 on LIVE,
}

/// Assembles frames from the bytes of a stream.
#[derive(Debug, Default)]
pub(crate) struct Assembler {
    buffer: Vec<u8>,
    read: usize,
}

impl Assembler {
    #[cfg(feature = "__controls")]
    pub(crate) fn kept_bytes(&self) -> usize {
        self.buffer.len() - self.read
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.buffer.drain(..self.read);
        self.read = 0;
        // The capacity of an unusually large frame is released.
        if self.buffer.is_empty() && self.buffer.capacity() > 16 * FRAME_BYTES_TARGET {
            self.buffer = Vec::new();
        }
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete frame, beginning with its version.
    pub(crate) fn next(&mut self) -> Result<Option<&[u8]>, WireError> {
        let Some((len, rest)) = self.buffer[self.read..].split_first_chunk::<4>() else { return Ok(None) };
        let len = u32::from_le_bytes(*len) as usize;
        if len > FRAME_BYTES_MAX {
            return Err(WireError::TooLarge(len));
        }
        // A foreign version is reported before the frame is complete: its length may mean something else.
        if rest.first().is_some_and(|version| *version != WIRE_VERSION) {
            return Err(WireError::Version(rest[0]));
        }
        if len + 4 < FRAME_HEADER_BYTES {
            return Err(WireError::Form);
        }
        if rest.len() < len {
            return Ok(None);
        }
        let from = self.read + 4;
        self.read = from + len;
        Ok(Some(&self.buffer[from..from + len]))
    }
}
