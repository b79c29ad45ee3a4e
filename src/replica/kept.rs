//! What a replica keeps because peers told it to, counted beside the limits, for tests with hostile members.

use super::elections::PROMISES_MAX;
use super::link::{Link, MESSAGES_MAX};
use super::links::LINKS_MAX;
use super::{REFUSALS_MAX, Replica};
use crate::id::{LinkId, SessionId};
use crate::membership::{MEMBERS_MAX, Members};
use crate::replication::large::EXPECTED_MAX;
use crate::replication::questions::QUESTIONS_MAX;
use crate::replication::repair::{LIST_BYTES_MAX, RepairSession, TASKS_MAX};
use crate::store::POSITIONS_MAX;
use crate::store::coverage::{LEFTOVERS_MAX, ORIGINS_MAX};
use crate::wire::FRAME_BYTES_MAX;

/// How much a replica keeps of one thing that peers can make it keep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kept {
    /// What is counted.
    pub name: &'static str,
    /// How much there is now. Of what is kept for each link: as much as there is for the link that has most.
    pub count: usize,
    /// The limit. `None`: there is none, because a row is never refused for its context. How many there are follows
    /// from the rows that members write.
    pub limit: Option<usize>,
}

/// Outputs that one input may lead to: a roster of all members, each of which is reported, dialled, sent a packet and
/// judged anew, and something for each link.
const OUTPUTS_MAX: usize = 4 * MEMBERS_MAX + LINKS_MAX;

impl Replica {
    /// The number of the session over a link, or of the next one, and whether it is open: what a liar knows of it.
    pub(crate) fn session_over(&self, id: LinkId) -> Option<(SessionId, bool)> {
        self.links.get(id).map(|link| (link.repair.id, link.repair.session.is_some()))
    }

    pub(super) fn note_outputs(&mut self) {
        self.outputs_peak = self.outputs_peak.max(self.outputs.len());
    }

    /// Everything that peers can make this replica keep, beside the limit of each.
    #[doc(hidden)]
    pub fn kept(&self) -> Vec<Kept> {
        let most = |count: fn(&Link) -> usize| self.links.values().map(count).max().unwrap_or(0);
        let coverage = &self.store.coverage;
        let contexts = coverage.extra_regions();
        let kept = |name, count, limit| Kept { name, count, limit: Some(limit) };
        let unlimited = |name, count| Kept { name, count, limit: None };
        let of_members = self.members.iter().flat_map(Members::kept);
        let mut all = vec![
            unlimited("contexts", contexts.len()),
            unlimited("clocks of contexts", contexts.iter().map(|region| region.clocks.len()).sum()),
            kept("links", self.links.len(), LINKS_MAX),
            kept("outputs of an input", self.outputs_peak, OUTPUTS_MAX),
            kept("origins", coverage.vector().len(), ORIGINS_MAX),
            kept("promises", self.promises.len(), PROMISES_MAX),
            kept("leftovers", coverage.leftovers(), LEFTOVERS_MAX),
            kept("positions", self.store.peer_positions.len(), POSITIONS_MAX),
            kept("refusals", self.refusals.len(), REFUSALS_MAX),
            kept("members", self.members().count(), MEMBERS_MAX),
            kept("questions of a link", most(|link| link.coverage_questions.kept()), QUESTIONS_MAX),
            kept("names of large rows of a link", most(|link| link.tail_receiver.kept_names()), EXPECTED_MAX),
            kept("messages for a link", most(Link::kept_messages), MESSAGES_MAX),
            kept("checks for a link", most(|link| link.checks.outbox.len()), 2),
            kept(
                "tasks of a session",
                most(|link| link.repair.session.as_ref().map_or(0, RepairSession::kept_tasks)),
                TASKS_MAX,
            ),
            kept(
                "bytes of lists in a session",
                most(|link| link.repair.session.as_ref().map_or(0, RepairSession::kept_list_bytes)),
                LIST_BYTES_MAX,
            ),
            kept("bytes of a frame", most(|link| link.lanes.kept_bytes()), 2 * (FRAME_BYTES_MAX + 4)),
        ];
        all.extend(of_members.map(|(name, count, limit)| kept(name, count, limit)));
        all
    }
}
