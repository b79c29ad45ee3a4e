//! Negative controls: each breaks one rule of the replication, so that the tests can show that they notice.
//!
//! Outside the project's own tests (feature `__controls`) every question here has the answer "no" at compile time.

/// One rule, broken.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "__controls"), expect(unreachable_pub, reason = "public with the feature alone"))]
pub enum Control {
    /// A cursor outlives its link.
    CursorKept,
    /// A `done` is taken although a row of the very flush was refused.
    ClaimDespiteRefusal,
    /// A `done` is taken although an earlier row of the link was refused.
    DoneAfterRefusal,
    /// A tail claims everything that its sender has seen.
    TailClaimsAll,
    /// A tail that passes on the writes of others claims them as well.
    RelayClaimsAll,
    /// The own filter counts from the last frame instead of the last `done`.
    OwnFromFrame,
    /// Rows travel without their context.
    NoContext,
    /// A restart goes on under its old origin.
    OldOrigin,
    /// The disk keeps `Coverage` ahead of the rows.
    SeenAhead,
    /// A reconcile adopts the vector that the peer had at its end.
    EndVector,
    /// A reconcile adopts the log position that the peer had at its end.
    EndHead,
    /// Nothing is covered by settled ranges.
    NoSettled,
    /// A verdict about an older digest counts.
    OldDigest,
    /// A tail goes on although the floor passed its cursor.
    FloorPassed,
    /// A watch reads on although the floor passed its cursor.
    WatchPastFloor,
    /// Links stay after an integrity fault.
    LinksKept,
    /// Nothing is kept beyond the vector.
    NoCloud,
    /// What a dot implied is forgotten when it is held no more.
    NoKeep,
    /// Of two concurrent writes the one that arrives later wins.
    ArrivalOrder,
    /// Leaves are not recomputed before they are listed.
    NoVerify,
    /// A node that is unwell itself accuses others as fast as a healthy one.
    NoLocalHealth,
    /// A node announces itself to a member once, whether or not that arrives.
    AnnouncedOnce,
    /// A difference counts although a tail is about to remove it.
    AmidCounts,
    /// A difference never counts while a tail has anything left to bring.
    AmidForEver,
    /// Writes are acknowledged as durable before the disk was synced.
    EarlyPromise,
    /// A disk takes what it can read of a torn transaction.
    TornTaken,
    /// A delegate passes on a claim although a row of the flush changed nothing here, and so is not passed on.
    ChainDespiteGap,
    /// A claim that was passed on counts although what comes before it is not merged.
    ChainUnchecked,
    /// The end of a flush counts although large rows of it have not arrived.
    LargesUnawaited,
    /// A voter votes as soon as it has started.
    NoQuarantine,
    /// A holder counts the whole lease by its own clock.
    NoDriftMargin,
    /// A voter answers before its promise is on its disk, and does not look for it after a restart.
    PromiseNotKept,
    /// A candidate campaigns under the term that it had, and voters do not mind.
    TermReused,
    /// A voter is silent as its present `lease_time_max` demands, whatever an earlier run has promised.
    LeaseMaxForgotten,
    /// Nobody compares lists of voters.
    VotersDiffer,
    /// A replica that joins lets every peer feed it at once.
    ManyDonors,
    /// What a peer sent before it knew that it was put off begins a session.
    OldStart,
    /// A donor that has stalled is waited for as long as any session.
    DonorKept,
    /// What the context of a row no longer has stays in those that are told by their differences from it.
    GoneIsKept,
    /// A claim is believed whatever its clock.
    ClaimsUnbounded,
    /// A range of a comparison is settled although large rows of its listing have not arrived.
    RepairUnawaited,
    /// Only whole frames are progress of a session.
    WholeFramesCount,
    /// What has expired is dropped while the clock is in doubt.
    DropsInDoubt,
    /// Claims that were made while the clock was ahead are told when it is right again.
    FutureTold,
    /// Each leftover is told with every range, and narrowed to it, and what says the same is not joined.
    LeftoversNarrowed,
}

#[cfg(feature = "__controls")]
impl Control {
    /// All of them.
    pub const ALL: [Self; 45] = [
        Self::CursorKept,
        Self::ClaimDespiteRefusal,
        Self::DoneAfterRefusal,
        Self::TailClaimsAll,
        Self::RelayClaimsAll,
        Self::OwnFromFrame,
        Self::NoContext,
        Self::OldOrigin,
        Self::SeenAhead,
        Self::EndVector,
        Self::EndHead,
        Self::NoSettled,
        Self::OldDigest,
        Self::FloorPassed,
        Self::LinksKept,
        Self::NoCloud,
        Self::NoKeep,
        Self::ArrivalOrder,
        Self::NoVerify,
        Self::AmidCounts,
        Self::AmidForEver,
        Self::EarlyPromise,
        Self::TornTaken,
        Self::ChainDespiteGap,
        Self::ChainUnchecked,
        Self::LargesUnawaited,
        Self::NoQuarantine,
        Self::NoDriftMargin,
        Self::PromiseNotKept,
        Self::TermReused,
        Self::VotersDiffer,
        Self::ManyDonors,
        Self::OldStart,
        Self::DonorKept,
        Self::GoneIsKept,
        Self::ClaimsUnbounded,
        Self::RepairUnawaited,
        Self::WholeFramesCount,
        Self::DropsInDoubt,
        Self::FutureTold,
        Self::LeftoversNarrowed,
        Self::WatchPastFloor,
        Self::NoLocalHealth,
        Self::AnnouncedOnce,
        Self::LeaseMaxForgotten,
    ];
}

/// The rule that this replica breaks, if any.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(crate) struct Controls {
    #[cfg(feature = "__controls")]
    pub(crate) broken: Option<Control>,
}

impl Controls {
    #[cfg(feature = "__controls")]
    pub(crate) fn has(self, control: Control) -> bool {
        self.broken == Some(control)
    }

    #[cfg(not(feature = "__controls"))]
    #[expect(clippy::unused_self, reason = "the same call as with the feature")]
    pub(crate) const fn has(self, _: Control) -> bool {
        false
    }
}
