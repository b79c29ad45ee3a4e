//! Negative controls: each breaks one rule, so that the tests can show that they would notice.
//!
//! Names in bold are the rules and sections of `docs/replication.md`. The other controls break rules of membership,
//! elections and joining. Without the feature `__controls`, which only the project's own tests use, every question here
//! has the answer "no" at compile time, so the controls cost nothing in normal builds.

/// The rule that a replica breaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "__controls"), expect(unreachable_pub, reason = "public with the feature alone"))]
pub enum Control {
    /// Breaks **Tail**: on a new link the sender goes on from the cursor of the link that ended.
    CursorKept,
    /// Breaks **After a refusal**: a flush end is taken although a row of the same frame was refused.
    ClaimDespiteRefusal,
    /// Breaks **After a refusal**: a flush end is taken although an earlier row of the link was refused.
    DoneAfterRefusal,
    /// Breaks **Flush end**: the receiver takes the sender's whole vector as claimed, not its own run alone.
    TailClaimsAll,
    /// Breaks **Flush end**: a tail that forwards claims the sender's whole vector, not its own run and the forwarded
    /// intervals alone.
    ForwarderClaimsAll,
    /// Breaks **Rows left out**: they are counted from the last frame instead of the last flush end.
    OwnFromFrame,
    /// Breaks **Merging a row**: rows are sent without their context, and the key's context does not grow by S.
    NoContext,
    /// Breaks **Local event**: a restart from a disk goes on writing under its old run.
    OldOrigin,
    /// Breaks **Disk**: the disk keeps the coverage of a transaction before its rows.
    SeenAhead,
    /// Breaks **End of a repair**: the vector is joined with the one that the peer had at the end, not in its `Start`.
    EndVector,
    /// Breaks **End of a repair**: the position becomes the head that the peer had at the end, not in its `Start`.
    EndHead,
    /// Breaks **Repair**: a settled range is not covered by the coverage that came with it.
    SettledUncovered,
    /// Breaks **Repair**: a range is settled as equal by the verdict about an older digest.
    OldDigest,
    /// Breaks **The log**: a tail goes on although the floor has passed its cursor.
    FloorPassed,
    /// Breaks **The log**: a watch reads on although the floor has passed its cursor.
    WatchPastFloor,
    /// Breaks **Integrity**: links stay open when the claims are given up.
    LinksKept,
    /// Breaks **Merging a row** and **Repair**: nothing is covered beyond the vector, at keys or in ranges.
    NoExtraCoverage,
    /// Breaks **covered**: when a dot leaves its key, the key's context does not take up what the held dot covered.
    RemovedUncovered,
    /// Breaks **Merging a row**: the key's context does not take up what a dot removes that had expired when it came.
    DeadUncovered,
    /// Breaks **Merging a row**: of two concurrent writes the one that arrives later replaces the other.
    ArrivalOrder,
    /// Breaks **Integrity**: leaves of the digest are not recomputed before they are listed.
    NoVerify,
    /// Breaks Lifeguard's local health: a node that is itself slow suspects others as fast as a healthy one.
    NoLocalHealth,
    /// Breaks the return after a partition: a node announces itself to a linked member once, not until it is believed
    /// alive.
    AnnouncedOnce,
    /// Breaks **Checks**: a mismatch counts although a side is in flux, so that a tail is about to remove it.
    FluxCounts,
    /// Breaks **Checks**: a mismatch never counts while a side is in flux, instead of for a limited time only.
    FluxForEver,
    /// Breaks **Disk**: writes are acknowledged as durable before the disk was synced.
    EarlyPromise,
    /// Breaks **Disk**: what can be read of a torn transaction is loaded.
    TornTaken,
    /// Breaks **Forwarded intervals**: a delegate forwards a claim although a row of the flush changed nothing there,
    /// and so is not forwarded.
    ForwardedDespiteGap,
    /// Breaks **Forwarded intervals**: the receiver takes one although it does not have everything up to *from*.
    ForwardedUnchecked,
    /// Breaks **Flush end**: it is taken although large rows of the flush have not arrived.
    LargesUnawaited,
    /// Breaks the quarantine: a voter grants leases as soon as it has started.
    NoQuarantine,
    /// Breaks the margin for clock drift: a holder relies on the whole lease time by its own clock, not on nine tenths.
    NoDriftMargin,
    /// Breaks the promise: a voter answers before its promise is on its disk, and does not find it after a restart.
    PromiseNotKept,
    /// Breaks the growth of terms: a candidate campaigns under a term that it had before, and voters accept that.
    TermReused,
    /// Breaks the quarantine: it follows the present `lease_time_max`, whatever an earlier run of the voter promised.
    LeaseMaxForgotten,
    /// Breaks the quarantine: rules that a voter adopts after its start do not prolong it.
    QuarantineKept,
    /// Breaks the memory of voters: a memo that cannot be read counts as if nothing had been promised.
    MemoForgotten,
    /// Breaks the refusal of other clusters: nodes that have changed their settings link, whatever they began with.
    BeginningIgnored,
    /// Breaks the equality of voter rules: nodes do not compare their lists of voters.
    VotersDiffer,
    /// Breaks the change of voters: a list follows another one without a joint list between them.
    JointSkipped,
    /// Breaks the change of voters: the joint list is left as soon as it is adopted, while leases under the list before
    /// it last.
    JointCutShort,
    /// Breaks the change of voters: a voter accepts a ballot although it has promised a greater one.
    BallotIgnored,
    /// Breaks the change of voters: the call ends as soon as its own node has the new list.
    AdoptionUnasked,
    /// Breaks the change of voters: a node in quarantine agrees to become a voter.
    InvitedInQuarantine,
    /// Breaks the change of voters: the voters of a forced list grant leases at once.
    ForcedAtOnce,
    /// Breaks the reading of lists of voters: one counts whatever its epoch is.
    EpochUnbounded,
    /// Breaks the single donor: a joining replica lets every peer send it everything at once.
    ManyDonors,
    /// Breaks catching up: a replica that followed the log of a peer in an earlier run counts as caught up with it.
    KnownIsCaughtUp,
    /// Breaks catching up: a replica counts as caught up with a peer that joins at the same time.
    JoinersCaughtUp,
    /// Breaks the deferral of sessions: a `Start` that the peer sent before it knew of its deferral begins a session.
    OldStart,
    /// Breaks the replacement of a stalled donor: it is waited for as long as any session.
    DonorKept,
    /// Breaks **Merging a row**: an origin that left the context of a row stays in those sent as differences from it.
    GoneIsKept,
    /// Breaks **Bounds on claims**: a claim is merged however far in the future its clock is.
    ClaimsUnbounded,
    /// Breaks **Bounds on claims**: a claim about the receiver's own run is merged although that run has not written so
    /// much.
    OwnClaimTaken,
    /// Breaks **Bounds on claims**: a false claim about the own run, which an honest peer repeats, is refused for ever.
    OwnClaimUnfulfilled,
    /// Breaks **Forwarded intervals**: they are taken from any peer, not from those alone that forward to this node.
    ForwardedFromAnybody,
    /// Breaks the limits of a session: a peer may have this side keep as many tasks as it likes.
    TasksUnlimited,
    /// Breaks the limits of what one frame leads to: each refused row is reported, however many there are.
    RefusalsAllTold,
    /// Breaks the return of members: one whose end another member made up stays away.
    EndIsFinal,
    /// Breaks the metadata of members: one whose metadata another member made up does not tell its own anew.
    MetaNotOutranked,
    /// Breaks the forgetting of members: one that lives is forgotten if somebody asks for it.
    ForgetsLiving,
    /// Breaks the forgetting of members: a member that comes back leaves the request that names it as it is.
    ForgetRequestKept,
    /// Breaks the return of members: a node whose greatest generation a member made up does not raise its own.
    NotOutranked,
    /// Breaks the compaction of counters: a run adds to its share as it is stored, not as the run remembers it.
    ShareReadBack,
    /// Breaks **Bounds on claims**: the log that a peer names in its `Start` is believed to be its own.
    StatedLog,
    /// Breaks **Repair**: a range is settled although large rows of its listing have not arrived.
    RepairUnawaited,
    /// Breaks the timeout of sessions: only whole frames are progress, not the bytes of one that is under way.
    WholeFramesCount,
    /// Breaks **Expiry**: expired dots are dropped while the clock is in doubt.
    DropsInDoubt,
    /// Breaks **Bound to a run**: what is bound to the life of a run is dropped as soon as the run does not answer.
    AwayEndsRuns,
    /// Breaks **Claims from the future**: those made while the clock was ahead are sent to peers before their time.
    FutureTold,
    /// Breaks **Contexts that remain**: leftovers are narrowed to each range of a session, and equal ones are not
    /// joined.
    LeftoversNarrowed,
    /// Breaks **Growth**: a peer is told that the vector includes the old part which it has offered, whether it does or
    /// not.
    OldPartAssumed,
    /// Breaks **Growth**: all buckets of two old parts that differ are taken as equal.
    BucketsAssumed,
    /// Breaks the promise that a node is ready alone only with what it was ready with before: a part of the data will do.
    AloneUnready,
    /// Breaks the limit of the store's size: writes that let it grow are not checked.
    GrowthUnchecked,
    /// Breaks the limits of what one stranger takes: places for handshakes and greetings are limited in total alone.
    #[cfg_attr(not(feature = "node"), allow(dead_code, reason = "nodes alone have connections"))]
    SourcesUnlimited,
    /// Breaks the rule for strangers of several addresses: no handshake or greeting gives way to one of another source.
    #[cfg_attr(not(feature = "node"), allow(dead_code, reason = "nodes alone have connections"))]
    NoneGivesWay,
    /// Breaks the rule that a look at a batch is whole: a claim that waits for large rows counts wherever they belong.
    #[cfg_attr(
        not(any(feature = "json", feature = "node")),
        allow(dead_code, reason = "views alone ask for it")
    )]
    LargesElsewhere,
    /// Breaks the rule that a look at a batch is whole: a part of one counts as whole.
    #[cfg_attr(
        not(any(feature = "json", feature = "node")),
        allow(dead_code, reason = "views alone ask for it")
    )]
    PartIsWhole,
    /// Breaks the rule that a view waits once for a batch whose rest does not come: what has arrived of its origin is
    /// told with ever greater clocks, so that the origin is always awaited anew.
    #[cfg_attr(
        not(any(feature = "json", feature = "node")),
        allow(dead_code, reason = "views alone ask for it")
    )]
    OverdueAnew,
    /// Breaks the rule that a view takes no part of a batch whose rest may come: nothing is known to bring it, so that
    /// the part is taken after a fixed time.
    #[cfg_attr(
        not(any(feature = "json", feature = "node")),
        allow(dead_code, reason = "views alone ask for it")
    )]
    PartAfterTime,
}

#[cfg(feature = "__controls")]
impl Control {
    /// All of them.
    pub const ALL: [Self; 81] = [
        Self::CursorKept,
        Self::ClaimDespiteRefusal,
        Self::DoneAfterRefusal,
        Self::TailClaimsAll,
        Self::ForwarderClaimsAll,
        Self::OwnFromFrame,
        Self::NoContext,
        Self::OldOrigin,
        Self::SeenAhead,
        Self::EndVector,
        Self::EndHead,
        Self::SettledUncovered,
        Self::OldDigest,
        Self::FloorPassed,
        Self::LinksKept,
        Self::NoExtraCoverage,
        Self::RemovedUncovered,
        Self::DeadUncovered,
        Self::ArrivalOrder,
        Self::NoVerify,
        Self::FluxCounts,
        Self::FluxForEver,
        Self::EarlyPromise,
        Self::TornTaken,
        Self::ForwardedDespiteGap,
        Self::ForwardedUnchecked,
        Self::LargesUnawaited,
        Self::NoQuarantine,
        Self::NoDriftMargin,
        Self::PromiseNotKept,
        Self::TermReused,
        Self::VotersDiffer,
        Self::JointSkipped,
        Self::JointCutShort,
        Self::BallotIgnored,
        Self::AdoptionUnasked,
        Self::InvitedInQuarantine,
        Self::ForcedAtOnce,
        Self::EpochUnbounded,
        Self::ManyDonors,
        Self::KnownIsCaughtUp,
        Self::JoinersCaughtUp,
        Self::OldStart,
        Self::DonorKept,
        Self::GoneIsKept,
        Self::ClaimsUnbounded,
        Self::OwnClaimTaken,
        Self::OwnClaimUnfulfilled,
        Self::ForwardedFromAnybody,
        Self::TasksUnlimited,
        Self::RefusalsAllTold,
        Self::MetaNotOutranked,
        Self::EndIsFinal,
        Self::ForgetsLiving,
        Self::ForgetRequestKept,
        Self::NotOutranked,
        Self::ShareReadBack,
        Self::StatedLog,
        Self::RepairUnawaited,
        Self::WholeFramesCount,
        Self::DropsInDoubt,
        Self::AwayEndsRuns,
        Self::FutureTold,
        Self::LeftoversNarrowed,
        Self::WatchPastFloor,
        Self::NoLocalHealth,
        Self::AnnouncedOnce,
        Self::LeaseMaxForgotten,
        Self::QuarantineKept,
        Self::MemoForgotten,
        Self::BeginningIgnored,
        Self::OldPartAssumed,
        Self::BucketsAssumed,
        Self::AloneUnready,
        Self::GrowthUnchecked,
        Self::SourcesUnlimited,
        Self::NoneGivesWay,
        Self::LargesElsewhere,
        Self::PartIsWhole,
        Self::OverdueAnew,
        Self::PartAfterTime,
    ];
}

/// Which rule this replica breaks, if any. None in normal builds.
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
