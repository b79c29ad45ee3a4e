//! How two peers find out which part of their vectors is the same, so that it need not be told.
//!
//! The old part of a vector has an entry for every process start that ever wrote, and is the same on nearly all nodes
//! ([`crate::store::coverage::Vector`]). Each side offers the sum of its old part: in its `Hello`, and again when a
//! repair has ended or the cut has moved. A side that was offered the sum of its own old part names that part in its
//! frames instead of sending the entries.
//!
//! Where two large old parts differ, as after a long partition, each side sends the sums of 256 buckets of its own. The
//! peer answers which buckets are equal, and these are named. Until the answer has arrived, the side that asked sends
//! nothing of its vector: neither its tail nor a repair begins.
//!
//! A side must keep what it has offered, because the peer may name it at any time later. It keeps the latest 64 old
//! parts; a peer that names an older one loses its link, and is offered the present one over the next.

use crate::controls::{Control, Controls};
use crate::store::LocalStore;
use crate::store::coverage::{
    BUCKETS, BucketMask, Clocks, ClocksSum, NamedOld, SharedOld, Vector, VectorNews,
};
use crate::wire::{Kind, Reader, WireError, Writer};

/// Which part of this side's old part the peer has as well.
#[derive(Debug, Default)]
enum SharedPart {
    /// All of it if the peer has offered the same sum. Otherwise no part is known to be shared.
    #[default]
    BySum,
    /// The peer is asked which buckets of this old part it has. `sums`: those of the buckets, until they are sent.
    Asked { old: Clocks, sums: Option<Box<[u64; BUCKETS]>> },
    /// These entries, which the peer has in an old part that it offered.
    Buckets(SharedOld),
}

/// What the two ends of a link know of each other's old parts, as seen by one of them.
#[derive(Debug, Default)]
pub(crate) struct OldParts {
    /// The sums that each side has offered last.
    peers: ClocksSum,
    offered: ClocksSum,
    /// The old part is offered again if it has changed.
    pub(crate) may_offer: bool,
    shared: SharedPart,
    /// The peer's sums of buckets, while an answer is owed.
    to_answer: Option<Box<[u64; BUCKETS]>>,
}

impl OldParts {
    /// The sum of the old part, for this side's `Hello`.
    pub(crate) fn offer(&mut self, store: &mut LocalStore) -> ClocksSum {
        self.offered = store.coverage.offer_old();
        self.offered
    }

    /// The peer has sent its `Hello`.
    pub(crate) fn on_hello(&mut self, store: &LocalStore, peers: ClocksSum) {
        self.peers = peers;
        let (own, least) = (store.coverage.old_sum(), store.vector_settings().buckets_min);
        if peers != own && peers.count.min(own.count) >= least {
            let sums = Some(Box::new(*store.coverage.old_buckets()));
            self.shared = SharedPart::Asked { old: store.coverage.vector().old().clone(), sums };
        }
    }

    /// The peer offers another old part.
    pub(crate) fn on_offer(&mut self, peers: ClocksSum) {
        self.peers = peers;
    }

    /// The peer has sent the sums of the buckets of its old part.
    pub(crate) fn on_sums(&mut self, mut reader: Reader<'_>) -> Result<(), WireError> {
        let mut sums = Box::new([0; BUCKETS]);
        for sum in sums.iter_mut() {
            *sum = reader.u64_le()?;
        }
        reader.end()?;
        self.to_answer = Some(sums);
        Ok(())
    }

    /// The peer has answered which buckets are equal, and under which sum it has offered the old part that they are in.
    pub(crate) fn on_shared(&mut self, controls: Controls, mut reader: Reader<'_>) -> Result<(), WireError> {
        let (sum, mut buckets) = (reader.clocks_sum()?, reader.buckets()?);
        reader.end()?;
        if controls.has(Control::BucketsAssumed) {
            buckets = BucketMask::from_words([u64::MAX; BUCKETS / 64]);
        }
        let SharedPart::Asked { old, sums: None } = &self.shared else { return Err(WireError::Form) };
        let name = NamedOld { sum, buckets: Some(buckets) };
        self.shared = SharedPart::Buckets(SharedOld { name, entries: old.within(&buckets) });
        Ok(())
    }

    /// The next frame about old parts, for the live lane.
    pub(crate) fn next_frame(&mut self, store: &mut LocalStore) -> Option<Vec<u8>> {
        if let Some(theirs) = self.to_answer.take() {
            let mut writer = Writer::new(Kind::OldPartShared);
            writer.clocks_sum(self.offer(store));
            writer.buckets(BucketMask::of_equal(store.coverage.old_buckets(), &theirs));
            return Some(writer.finish());
        }
        if let SharedPart::Asked { sums, .. } = &mut self.shared
            && let Some(sums) = sums.take()
        {
            let mut writer = Writer::new(Kind::OldPartSums);
            sums.iter().for_each(|sum| writer.u64_le(*sum));
            return Some(writer.finish());
        }
        if std::mem::take(&mut self.may_offer) && store.coverage.old_sum() != self.offered {
            let mut writer = Writer::new(Kind::OldPart);
            writer.clocks_sum(self.offer(store));
            return Some(writer.finish());
        }
        None
    }

    /// Whether the peer has not answered yet which buckets are equal. Until then this side sends nothing of its vector.
    pub(crate) fn is_asking(&self) -> bool {
        matches!(self.shared, SharedPart::Asked { .. })
    }

    /// What a peer that was told `told` of this side's vector has to be told now.
    pub(crate) fn news(&self, store: &LocalStore, told: &Vector) -> VectorNews {
        let is_same = self.peers == store.coverage.old_sum();
        let is_assumed = store.controls.has(Control::OldPartAssumed) && self.peers.count > 0;
        let shared = match &self.shared {
            SharedPart::Buckets(shared) if !is_same => Some(shared.clone()),
            _ => (is_same || is_assumed).then(|| SharedOld {
                name: NamedOld { sum: self.peers, buckets: None },
                entries: store.coverage.vector().old().clone(),
            }),
        };
        store.coverage.vector().news_since(told, shared)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RunId;
    use crate::wire::Assembler;

    /// A store that covers old runs of these numbers.
    fn store(run: u64, old: impl Iterator<Item = u64>) -> LocalStore {
        let mut store = LocalStore::of_run(run);
        let origin = |i: u64| RunId::new(i.wrapping_mul(0x9E37_79B9_7F4A_7C15));
        store.coverage.load(&old.map(|i| (origin(i), i)).collect(), &[]);
        store
    }

    /// Hands all frames of one side to the other, which answers at once.
    fn exchange(stores: &mut [LocalStore; 2], parts: &mut [OldParts; 2]) {
        let sums = [0, 1].map(|i| parts[i].offer(&mut stores[i]));
        (0..2).for_each(|i| parts[i].on_hello(&stores[i], sums[1 - i]));
        for from in [0, 1, 0, 1] {
            while let Some(frame) = parts[from].next_frame(&mut stores[from]) {
                let mut assembler = Assembler::default();
                assembler.feed(&frame);
                let (kind, reader) = Reader::new(assembler.next().unwrap().unwrap()).unwrap();
                let to = &mut parts[1 - from];
                match kind {
                    Kind::OldPartSums => to.on_sums(reader).unwrap(),
                    Kind::OldPartShared => to.on_shared(Controls::default(), reader).unwrap(),
                    _ => panic!("{kind:?} is not expected"),
                }
            }
        }
        assert!(parts.iter().all(|parts| !parts.is_asking()));
    }

    /// What the first side tells the second one, which must understand it.
    fn told(stores: &[LocalStore; 2], parts: &[OldParts; 2]) -> VectorNews {
        let news = parts[0].news(&stores[0], &Vector::default());
        let mut heard = Vector::default();
        assert!(stores[1].coverage.take_news(&mut heard, &news));
        assert_eq!(heard.clocks(), stores[0].coverage.vector().clocks());
        news
    }

    #[test]
    fn old_part_that_both_have_is_named() {
        let (mut stores, mut parts) = ([store(1, 1..5_000), store(2, 1..5_000)], Default::default());
        exchange(&mut stores, &mut parts);
        assert!(told(&stores, &parts).entries.is_empty());
        // What was offered stays known when it has changed since.
        stores[1].coverage.claim(crate::time::Stamp { clock: 1, origin: RunId::new(7) });
        assert!(told(&stores, &parts).entries.is_empty());
    }

    #[test]
    fn differing_buckets_of_old_parts_are_told() {
        let (mut stores, mut parts) = ([store(1, 1..5_010), store(2, 3..5_000)], Default::default());
        exchange(&mut stores, &mut parts);
        let entries = told(&stores, &parts).entries.len();
        assert!(
            (12..12 * 40).contains(&entries),
            "{entries} of twelve buckets with about twenty entries each"
        );
    }

    #[test]
    fn small_or_unknown_old_parts_are_told_in_full() {
        for theirs in [0, 300] {
            let (mut stores, mut parts) = ([store(1, 1..5_000), store(2, 0..theirs)], Default::default());
            exchange(&mut stores, &mut parts);
            assert_eq!(told(&stores, &parts).entries.len(), 4_999);
        }
        let news = VectorNews {
            old: Some(NamedOld { sum: ClocksSum { count: 1, sum: 1 }, buckets: None }),
            entries: Clocks::default(),
        };
        assert!(!store(1, 0..9).coverage.take_news(&mut Vector::default(), &news), "it was never offered");
    }
}
