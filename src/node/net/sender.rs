//! What passes between the links and the driver: bytes to be sent, and what arrived.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use bytes::Bytes;
use quinn::Connection;
use tokio::sync::OwnedSemaphorePermit;
use tokio::sync::mpsc::UnboundedSender;

use crate::id::LinkId;
use crate::membership::PeerExit;
use crate::node::net::congestion::close;
use crate::node::net::peers::LinkEnd;
use crate::replica::Lane;

/// The process ends and may come back. Not 0, with which a connection is closed whose handle is merely dropped.
pub(in crate::node) const CLOSE_ENDED: u32 = 6;
/// The node leaves the cluster.
pub(in crate::node) const CLOSE_LEFT: u32 = 1;
/// Another link to the same run is kept, or the holder of a name did not answer.
pub(in crate::node) const CLOSE_DUPLICATE: u32 = 2;
/// The greeting was refused, or too many greetings are in progress.
pub(in crate::node) const CLOSE_REFUSED: u32 = 3;
/// A lane broke, or the replica wants the link broken.
pub(in crate::node) const CLOSE_BROKEN: u32 = 4;
/// The peer's certificate is no longer accepted.
pub(in crate::node) const CLOSE_SECURITY: u32 = 5;

/// What a link reports to the driver.
#[derive(Debug)]
pub(in crate::node) enum LinkEvent {
    /// Bytes of a stream, and the permit that counts them against what its reader may have ahead.
    Stream(LinkId, Lane, Bytes, OwnedSemaphorePermit),
    /// A datagram that is not empty.
    Datagram(LinkId, Bytes),
    /// The link is down, and why.
    Down(LinkId, Ending),
}

/// How a connection ended, as far as it shows.
#[derive(Debug)]
pub(in crate::node) enum Ending {
    /// The peer closed it, with this code.
    ByPeer(u32),
    /// This node closed it. [`LinkSender::closed_with`] says why.
    ByUs,
    /// The transport gave it up; the text says why.
    Lost(String),
}

impl Ending {
    /// What the peer's close code says of its process.
    pub(in crate::node) fn exit(&self) -> Option<PeerExit> {
        match self {
            Self::ByPeer(CLOSE_LEFT) => Some(PeerExit::Leaves),
            Self::ByPeer(CLOSE_ENDED) => Some(PeerExit::Ends),
            _ => None,
        }
    }

    /// Why the link ended, to be reported. `own_code`: with what this node closed it.
    pub(in crate::node) fn link_end(self, own_code: u32) -> LinkEnd {
        match (self.exit(), self) {
            (Some(exit), _) => LinkEnd::PeerExit(exit),
            (None, Self::Lost(reason)) => LinkEnd::Lost { reason },
            (None, Self::ByPeer(CLOSE_DUPLICATE)) => LinkEnd::Replaced,
            (None, Self::ByPeer(_)) => LinkEnd::ByPeer,
            (None, Self::ByUs) => match own_code {
                CLOSE_DUPLICATE => LinkEnd::Replaced,
                CLOSE_SECURITY => LinkEnd::NotAccepted,
                _ => LinkEnd::Unusable,
            },
        }
    }
}

/// The sending side of a link. What is queued here is bounded by the replica's window, [`WINDOW_BYTES`].
#[derive(Debug)]
pub(in crate::node) struct LinkSender {
    connection: Connection,
    lanes: [LaneSender; 2],
    /// The code with which this node closed the connection; 0 until then.
    closed_with: AtomicU32,
}

/// The sending side of one lane.
#[derive(Debug)]
pub(in crate::node) struct LaneSender {
    pub(in crate::node) frames: UnboundedSender<Vec<u8>>,
    pub(in crate::node) flow: Arc<LaneBytes>,
}

/// The bytes of a lane that wait for the connection, and those that it has taken since the driver last collected them.
/// The driver collects them in every step, from the links in [`Shared::drained`]. It is woken for that only if the
/// replica may be waiting for room in the window.
#[derive(Debug, Default)]
pub(in crate::node) struct LaneBytes {
    pub(in crate::node) queued: AtomicUsize,
    pub(in crate::node) drained: AtomicUsize,
}

impl LinkSender {
    pub(in crate::node) fn new(connection: Connection, lanes: [LaneSender; 2]) -> Self {
        Self { connection, lanes, closed_with: AtomicU32::new(0) }
    }

    pub(in crate::node) fn send(&self, lane: Lane, bytes: Vec<u8>) {
        let lane = &self.lanes[lane as usize];
        lane.flow.queued.fetch_add(bytes.len(), Ordering::Relaxed);
        // If the writing task has ended, so has the connection, and the reading task reports that the link is down.
        _ = lane.frames.send(bytes);
    }

    /// The bytes that the connection has taken since the last call, by lane.
    pub(in crate::node) fn drained(&self) -> [usize; 2] {
        [&self.lanes[0], &self.lanes[1]].map(|lane| lane.flow.drained.swap(0, Ordering::Relaxed))
    }

    pub(in crate::node) fn send_datagram(&self, bytes: Vec<u8>) {
        _ = self.connection.send_datagram(bytes.into());
    }

    pub(in crate::node) fn closed_with(&self) -> u32 {
        self.closed_with.load(Ordering::Relaxed)
    }

    pub(in crate::node) fn close(&self, code: u32) {
        self.closed_with.store(code, Ordering::Relaxed);
        close(&self.connection, code);
    }

    pub(in crate::node) fn connection(&self) -> &Connection {
        &self.connection
    }
}
