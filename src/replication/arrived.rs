//! Writes of other nodes that arrived over a tail, for measuring how long they take ([`crate::arrivals`]).
//!
//! Nothing else may depend on them: beyond [`ARRIVED_MAX`] they are dropped.

use crate::id::RunId;
use crate::store::PeerRow;
use crate::time::Time;

/// Arrivals kept until they are taken. Further ones are not measured; nothing depends on them.
pub(crate) const ARRIVED_MAX: usize = 65_536;

/// A write of another node that arrived over a tail.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Arrived {
    pub(crate) origin: RunId,
    /// This node's wall clock minus the writer's at the time of the write.
    pub(crate) took_ms: u64,
}

impl Arrived {
    /// `None` if the write is older than the link, which was established at `since_ms`, or if the row was deleted: then
    /// it has no stamp.
    pub(crate) fn of(now: Time, row: &PeerRow, since_ms: u64) -> Option<Self> {
        let stamp = row.dot_set.dots().last()?.stamp();
        let took_ms = now.wall_ms().saturating_sub(stamp.wall_ms());
        (stamp.wall_ms() >= since_ms).then_some(Self { origin: stamp.origin, took_ms })
    }
}
