//! A hostile member: a real replica with a valid identity whose frames pass through a liar.
//!
//! The liar replaces frames, adds others, and leaves some out. Nearly all of its frames are well formed: what no reader
//! can find out by the form of a frame is what the bounds on claims, the limits on what is kept for a peer, and the
//! repair between honest nodes have to make up for. The simulator tells the liar everything that a member could know.

use std::time::Duration;

use rand_chacha::ChaCha8Rng;
use rand_core::SeedableRng;

use super::{Sim, SimEvent, World};
use crate::election::VoterList;
use crate::id::LinkId;
use crate::replica::{Input, Lane, Replica};

mod crowd;
mod liar;

use liar::Truth;
pub(super) use liar::{Liar, Told};

/// One kind of lie that a member can tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Lie {
    /// Flush ends: claims of its own run too far, of honest, ended and made-up runs, with asks; positions in its log.
    FlushEnds,
    /// Vectors in front of its frames: raised clocks of honest runs, thousands of made-up ones.
    News,
    /// Contexts of rows about honest runs, and giant ones.
    Contexts,
    /// Digests, verdicts and confirmations of repairs that do not hold.
    Digests,
    /// Lists and answers of repairs that are repeated, too long, or leave rows out.
    Listings,
    /// Questions of repairs without end, whose answers are not read.
    Asks,
    /// Starts in the middle of sessions, with other hash keys, logs, heads and vectors.
    Starts,
    /// Acknowledgements behind and beyond what was sent, with false answers about thousands of origins.
    Acks,
    /// Greetings of links with odd values.
    Hellos,
    /// Old parts of vectors that nobody offered, and offers of old parts that it does not have.
    OldParts,
    /// Sums of the buckets of old parts, asked and answered falsely.
    Buckets,
    /// Rosters: made-up members, sometimes more than may be told at once, honest members at other addresses and under
    /// other runs, and gone.
    Rosters,
    /// Rosters of as many records as may be told at once, about made-up runs: under one name, at one address, replaced,
    /// gone under ever later generations, and ended and at ever other addresses. Not one of [`Lie::ALL`]: honest nodes
    /// take long to find out that nobody of such a crowd lives.
    Crowds,
    /// Checks with false roots, hashes, rates and clocks.
    Checks,
    /// Large rows that begin and never end.
    LargeRows,
    /// Whole rows of the largest size, and of one byte more.
    LargestRows,
    /// Names of thousands of large rows that never arrive.
    LargeRowNames,
    /// Rows with clocks at the edge of what is permitted.
    EdgeClocks,
    /// Thousands of rows in one frame that are refused.
    RefusedRows,
    /// Frames of its replica that are cut off or have one bit changed.
    Bent,
    /// That it has caught up, again and again, with the reader's vector or another one.
    CaughtUps,
}

impl Lie {
    /// All of them but [`Lie::Crowds`].
    pub const ALL: [Self; 20] = [
        Self::FlushEnds,
        Self::News,
        Self::Contexts,
        Self::Digests,
        Self::Listings,
        Self::Asks,
        Self::Starts,
        Self::Acks,
        Self::Hellos,
        Self::OldParts,
        Self::Buckets,
        Self::Rosters,
        Self::Checks,
        Self::LargeRows,
        Self::LargestRows,
        Self::LargeRowNames,
        Self::EdgeClocks,
        Self::RefusedRows,
        Self::Bent,
        Self::CaughtUps,
    ];
}

/// What a liar leaves alone. Whatever it spares, its replica tells what an honest one would between its lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Spared {
    /// Nothing.
    Nothing,
    /// Rows of others: it makes up rows at keys of its own alone. A row at the key of another node is a delete or a
    /// write, which every member may make.
    Rows,
    /// Rows of others, and the runs of third nodes: it makes up claims about its own run, its reader's, and runs that
    /// nobody has.
    RowsAndRuns,
}

/// Frames that are kept while what nodes send is recorded.
const RECORDED_MAX: usize = 4_096;

/// The frames that follow one another in bytes of a stream.
fn frames(mut bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    std::iter::from_fn(move || {
        let (len, _) = bytes.split_first_chunk::<4>()?;
        let (frame, rest) = bytes.split_at(4 + u32::from_le_bytes(*len) as usize);
        bytes = rest;
        Some(frame)
    })
}

impl Sim {
    /// Makes a node with [`Sim::seeds`] tell these kinds of lies from now on, about so many in a frame or step, 0 to 1.
    /// Without any it is honest again. The oracle cannot judge what a liar writes: use [`Sim::without_checks`].
    #[doc(hidden)]
    pub fn lie(&mut self, i: usize, lies: &[Lie], share: f64) {
        self.lie_sparing(i, lies, share, Spared::Nothing);
    }

    /// The same for a liar that leaves something alone.
    #[doc(hidden)]
    pub fn lie_sparing(&mut self, i: usize, lies: &[Lie], share: f64, spared: Spared) {
        let world = &mut *self.world();
        let random = ChaCha8Rng::seed_from_u64(world.seed);
        let liar = || Liar { lies: lies.to_vec(), share, spared, random };
        world.nodes[i].liar = (!lies.is_empty()).then(liar);
    }

    /// Records what all nodes send from now on: 4,096 frames at most.
    #[doc(hidden)]
    pub fn record_sent(&mut self) {
        self.world().recorded = Some(Vec::new());
    }

    /// What was recorded: frames with their lane, and datagrams.
    #[doc(hidden)]
    pub fn take_recorded(&mut self) -> Vec<(Option<Lane>, Vec<u8>)> {
        self.world().recorded.take().unwrap_or_default()
    }

    /// Lets a node write a list of voters that nobody has decided, with this epoch and term floor.
    #[doc(hidden)]
    pub fn forge_voters(&mut self, i: usize, epoch: u64, term_floor: u64, voters: Vec<String>) {
        let world = &mut *self.world();
        let list = VoterList { epoch, voters, term_floor, ..VoterList::default() };
        if let Some((replica, now)) = world.replica(i) {
            replica.forge_voters(now, &list);
            world.drain(i);
        }
    }

    /// Lets a node write the shared settings as if they had been changed so often.
    #[doc(hidden)]
    pub fn forge_settings(&mut self, i: usize, number: u64) {
        let world = &mut *self.world();
        if let Some((replica, now)) = world.replica(i) {
            replica.forge_settings(now, number);
            world.drain(i);
        }
    }

    /// Hands bytes to a node at once, as if another one had sent them over a lane of the link between them, or in a
    /// datagram. False if there is no link.
    #[doc(hidden)]
    pub fn inject(&mut self, from: usize, to: usize, lane: Option<Lane>, bytes: &[u8]) -> bool {
        let world = &mut *self.world();
        let Some(id) = world.between(from, to).first().copied() else { return false };
        world.input(to, lane.map_or(Input::Datagram(id, bytes), |lane| Input::Stream(id, lane, bytes)));
        true
    }
}

impl World {
    /// What a node sends over a lane: its frames, or what a liar makes of them.
    pub(super) fn lied(&mut self, i: usize, id: LinkId, lane: Lane, bytes: Vec<u8>) -> Vec<u8> {
        let Some(mut liar) = self.nodes[i].liar.take() else { return bytes };
        let told = self.truth(i, id).map(|truth| {
            frames(&bytes).flat_map(|frame| liar.instead_of(frame, &truth)).collect::<Vec<u8>>()
        });
        self.nodes[i].liar = Some(liar);
        let told = told.unwrap_or_else(|| bytes.clone());
        if let Some(left_out) = bytes.len().checked_sub(told.len()).filter(|bytes| *bytes > 0) {
            // Its replica must not wait for the connection to take what was left out.
            self.schedule(Duration::ZERO, SimEvent::Drained(id, i, lane, left_out));
        }
        told
    }

    pub(super) fn record_sent(&mut self, lane: Option<Lane>, bytes: &[u8]) {
        let Some(recorded) = self.recorded.as_mut().filter(|recorded| recorded.len() < RECORDED_MAX) else {
            return;
        };
        match lane {
            Some(_) => recorded.extend(frames(bytes).map(|frame| (lane, frame.to_vec()))),
            None => recorded.push((lane, bytes.to_vec())),
        }
    }

    /// A liar has woken: it tells something over its links.
    pub(super) fn add_lies(&mut self, i: usize) {
        let Some(mut liar) = self.nodes[i].liar.take() else { return };
        let own: Vec<LinkId> =
            self.links.iter().filter(|(_, link)| link.ends.contains(&i)).map(|(id, _)| *id).collect();
        for id in own {
            let Some((lie, truth)) = liar.pick().zip(self.truth(i, id)) else { continue };
            for (lane, bytes) in liar.tell(lie, &truth) {
                match lane {
                    Some(lane) => self.send(i, id, lane, &bytes),
                    None => self.send_datagram(i, id, bytes),
                }
            }
        }
        self.nodes[i].liar = Some(liar);
    }

    /// Whether a liar does not read what it is sent over this link's bulk lane: over every second one, if it asks
    /// without end.
    pub(super) fn is_deaf(&self, i: usize, id: LinkId, lane: Lane) -> bool {
        let asks = self.nodes[i].liar.as_ref().is_some_and(|liar| liar.lies.contains(&Lie::Asks));
        asks && lane == Lane::Bulk && id.number().is_multiple_of(2)
    }

    fn truth(&self, i: usize, id: LinkId) -> Option<Truth> {
        let own = self.nodes[i].replica.as_ref()?;
        let at = self.other_end(id, i)?;
        let peer = self.nodes[at].replica.as_ref()?;
        let session = peer.session_over(id)?;
        let others = || self.live().filter(|replica| replica.store.run != own.store.run);
        let store = &peer.store;
        Some(Truth {
            now: self.time(at),
            skew_max: self.nodes[i].config.clock_skew_max,
            own: (own.store.log.id, own.store.run),
            peer: (store.log.id, store.run),
            peer_head: store.log.head(),
            peer_hash_key: store.hash_key,
            peer_vector_hash: store.coverage.vector_hash(),
            peer_old_sum: store.coverage.old_sum(),
            peer_root: store.root().sum(),
            session: session.0,
            has_session: session.1,
            others: others().map(|replica| replica.store.run).filter(|run| *run != store.run).collect(),
            members: others().filter_map(Replica::own_member).cloned().collect(),
            keys: store.iter_from(&[]).take(16).map(|(dot_set, _)| dot_set.key().to_vec()).collect(),
        })
    }
}
