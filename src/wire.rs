//! Messages: how they are laid out, who writes and reads them, and the bounds that decoding keeps.
//!
//! A stream carries frames: four bytes of length, one of version, one of kind, then the body. A datagram is a frame
//! without the length. `bincode` lays out single numbers and byte strings; the order of the fields is ours and is fixed
//! per version. `docs/wire.md` has every layout.
//!
//! [`Message`] is what handlers match. Small bodies are decoded in it. Bodies that depend on the state of a link or a
//! session (rows with contexts sent as differences, leftovers sent by number) stay a [`Reader`].
//!
//! | number | kind | lane | writer | reader | body | answer | older node |
//! | --- | --- | --- | --- | --- | --- | --- | --- |
//! | 1 | `Hello` | live | `Link::next_live_frame` | `Replica::on_hello` | generation, vector hash, old part | `Hello` | since version 1 |
//! | 2 | `Ack` | live | `Link::next_live_frame` | `Replica::on_ack` | log, position, who covers what | `Tail` from there, or a session | since version 1 |
//! | 3 | `Tail` | live | `TailSender::next_frame` | `TailReceiver::handle_frame` | vector changes, rows, flush end | `Ack` | since version 1 |
//! | 4 | `Start` | bulk | `RepairSession::start_frame` | `RepairSession::on_start` | what the side holds, its vector | `Start` or `Deferred` | since version 1 |
//! | 5 | `Items` | bulk | `RepairSession::next_frame` | `RepairSession::items` | asks, answers, rows | `Items` | since version 1 |
//! | 6 | `Check` | datagram | `Replica::check` | `Replica::on_check` | flags, root, vector hash | `Check` as a reply | since version 1 |
//! | 8 | `Swim` | datagram | `Members::deliver` | `Members::handle_packet` | a packet of the failure detector | by its message | since version 1 |
//! | 9 | `Roster` | live | `Members::compare_rosters` | `Members::roster` | hashes or members | `Roster` | since version 1 |
//! | 11 | `Piece` | bulk | `LargeRowSender::next_piece` | `LargeRowReceiver::handle_piece` | a piece of a large row | none | since version 1 |
//! | 12 | `Election` | datagram | `Replica::send_ballot` | `Elections::datagram` | a request or a voter's answer | by its message | since version 1 |
//! | 13 | `Deferred` | bulk | `Replica::poll_link` | `Replica::on_deferred` | nothing | a new `Start` later | since version 1 |
//! | 14 | `Partial` | live | `PartialRow::frame` | `ResumeOffer::read` | what was kept of a large row | `Piece` from there on | since version 1 |
//! | 15 | `OldPart` | live | `OldParts::next_frame` | `OldParts::on_offer` | the sum of an old part | none | since version 1 |
//! | 16 | `OldPartSums` | live | `OldParts::next_frame` | `OldParts::on_sums` | the sums of its buckets | `OldPartShared` | since version 1 |
//! | 17 | `OldPartShared` | live | `OldParts::next_frame` | `OldParts::on_shared` | the buckets that are equal | none | since version 1 |
//! | 18 | `CaughtUp` | live | `Link::next_live_frame` | `Replica::on_caught_up` | vector hash | a session, if the reader joins | is not sent it: the ability |
//!
//! A node that does not know a kind breaks the link ([`WireError::Kind`]). So a new kind must be sent only to peers
//! that have stated that they know it ([`Abilities`]). The layout of a kind must never change within a version.

mod abilities;
mod codec;
mod frame;
mod message;
mod regions;

pub use abilities::Abilities;
pub(crate) use codec::{Reader, Writer};
#[cfg(feature = "node")]
pub(crate) use frame::WIRE_VERSION;
pub(crate) use frame::{Assembler, FRAME_BYTES_TARGET, Kind};
pub use frame::{FRAME_BYTES_MAX, Lane, WireError};
pub(crate) use message::{Ack, Check, Hello, LargeRowStream, Message, Piece, Rates, Seen};
pub(crate) use regions::LeftoverTable;

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;

    use std::collections::BTreeMap;
    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::id::RunId;
    use crate::store::coverage::{
        BucketMask, Clocks, ClocksSum, HashIntervals, LEFTOVER_ITEMS_MAX, LEFTOVERS_MAX, NamedOld,
        RegionCoverage, Vector, VectorNews,
    };
    use crate::store::digest::{DEPTH_MAX, FAN_BITS};
    use crate::store::digest::{HashKey, HashRange};
    use crate::store::entry::{Dot, DotSet, EXPIRY_MS_MIN, Removal};
    use crate::time::{Lifetime, Stamp};

    #[test]
    fn frames_arrive_whole_however_the_stream_is_cut() {
        let mut writer = Writer::new(Kind::Tail);
        writer.bytes(b"hello");
        let frame = writer.finish();
        let stream = frame.repeat(3);
        for size in 1..stream.len() {
            let mut assembler = Assembler::default();
            let mut frames = 0;
            for piece in stream.chunks(size) {
                assembler.feed(piece);
                while let Some(got) = assembler.next().unwrap() {
                    assert_eq!(got, &frame[4..]);
                    frames += 1;
                }
            }
            assert_eq!(frames, 3);
        }
    }

    /// The lines of the table at the top of this module, cell by cell.
    fn table() -> Vec<Vec<&'static str>> {
        let lines = include_str!("wire.rs").lines().filter_map(|line| line.strip_prefix("//! | "));
        let cells = |line: &'static str| line.split('|').map(|cell| cell.trim().trim_matches('`')).collect();
        lines.filter(|line| line.starts_with(|first: char| first.is_ascii_digit())).map(cells).collect()
    }

    #[test]
    fn table_of_messages_is_that_of_the_code() {
        let lanes = |lane| match lane {
            Some(Lane::Live) => "live",
            Some(Lane::Bulk) => "bulk",
            None => "datagram",
        };
        let table = table();
        assert_eq!(table.len(), Kind::ALL.len());
        for (row, kind) in table.iter().zip(Kind::ALL) {
            let (number, name) = ((*kind as u8).to_string(), format!("{kind:?}"));
            assert_eq!(row[..3], [number.as_str(), name.as_str(), lanes(kind.lane())]);
        }
    }

    #[test]
    fn oversized_frame_and_foreign_version_are_refused_at_once() {
        let mut assembler = Assembler::default();
        assembler.feed(&u32::MAX.to_le_bytes());
        assert_eq!(assembler.next(), Err(WireError::TooLarge(u32::MAX as usize)));
        let mut assembler = Assembler::default();
        assembler.feed(&[200, 0, 0, 0, 9]);
        assert_eq!(assembler.next(), Err(WireError::Version(9)));
    }

    #[test]
    fn count_larger_than_its_frame_allocates_nothing() {
        let mut writer = Writer::new(Kind::Tail);
        writer.varint(u64::MAX / 2);
        let frame = writer.finish();
        let (_, mut reader) = Reader::new(&frame[4..]).unwrap();
        assert_eq!(reader.clocks(), Err(WireError::Form));
    }

    #[test]
    fn leftovers_beyond_the_table_are_reported_as_left_out() {
        let (here, old) = (HashKey::from_words(1, 1), HashKey::from_words(2, 2));
        let leftover = |clock, intervals| {
            RegionCoverage::new(old, intervals, Clocks::from_iter([(RunId::new(7), clock)]))
        };
        let small = |clock| leftover(clock, HashIntervals::between(clock, clock));
        let large = |clock: u64, count: usize| {
            let mut intervals = HashIntervals::default();
            (0..count as u64).for_each(|at| intervals.add(3 * at, 3 * at));
            leftover(clock, intervals)
        };
        let many: Vec<RegionCoverage> = (1..=LEFTOVERS_MAX as u64 + 9).map(small).collect();
        // Each hash key counts: a row has to be looked up under all of them.
        let of_keys = |clock, keys: usize| {
            let key = |i| (HashKey::from_words(3, i), HashIntervals::between(clock, clock));
            let regions = std::sync::Arc::new((0..keys as u64).map(key).collect());
            RegionCoverage { regions, ..small(clock) }
        };
        let wide = [of_keys(1, LEFTOVERS_MAX - 1), of_keys(2, 2), of_keys(3, LEFTOVERS_MAX + 1)];
        let long = [large(1, LEFTOVER_ITEMS_MAX - 1), large(2, 8), large(3, LEFTOVER_ITEMS_MAX)];
        let cases =
            [(&many[..], LEFTOVERS_MAX), (&long[..], 1), (&long[2..], 0), (&wide[..], 1), (&wide[2..], 0)];
        for (all, sent_max) in cases {
            let (mut told, mut heard) = (LeftoverTable::default(), LeftoverTable::default());
            for (first, last) in [(0, all.len()), (0, sent_max), (all.len() - 1, all.len()), (0, all.len())] {
                let mut writer = Writer::new(Kind::Items);
                writer.regions(&all[first..last], here, &mut told);
                let frame = writer.finish();
                let (_, mut reader) = Reader::new(&frame[4..]).unwrap();
                let list = reader.regions(here, &mut heard).expect("what is written honestly is read");
                assert!(reader.end().is_ok());
                assert_eq!(list.regions[..], all[first.min(sent_max)..last.min(sent_max)]);
                assert_eq!(list.is_whole, last <= sent_max);
            }
        }
    }

    fn clocks() -> impl Strategy<Value = Clocks> {
        prop::collection::btree_map(any::<u64>().prop_map(RunId::new), 1..u64::MAX, 0..5)
            .prop_map(Clocks::from_iter)
    }

    /// Clock, origin, lifetime and value of a dot.
    type ToldDot = (u64, u64, (Option<u64>, Option<u64>), Vec<u8>);

    fn rows() -> impl Strategy<Value = DotSet> {
        let value = prop::collection::vec(any::<u8>(), 0..300);
        let lifetime = (any::<Option<u64>>(), any::<Option<u64>>());
        let dots = prop::collection::vec((any::<u64>(), any::<u64>(), lifetime, value), 0..4);
        (prop::collection::vec(any::<u8>(), 0..40), dots).prop_map(|(key, dots)| {
            let dot = |(clock, origin, (expires, run), value): &ToldDot| {
                let text = [&key[..], value].concat();
                let stamp = Stamp { clock: *clock, origin: RunId::new(*origin) };
                let expires = expires.and_then(|ms| NonZeroU64::new(ms.max(EXPIRY_MS_MIN)));
                let lifetime = Lifetime { expires, run: run.map(RunId::new) };
                Dot::new(stamp, lifetime, key.len(), &text, &mut Vec::new())
            };
            if dots.is_empty() {
                let deleted = Stamp { clock: key.len() as u64, origin: RunId::new(1) };
                return DotSet::empty(&key, Removal::Deleted(deleted));
            }
            DotSet::from_dots(&key, dots.iter().map(dot).collect())
        })
    }

    fn pendings() -> impl Strategy<Value = Vec<RegionCoverage>> {
        let region = (0..3_u64, any::<u64>(), any::<u64>());
        let context = clocks().prop_filter("a pending says something", |context| !context.is_empty());
        let region = (prop::collection::vec(region, 1..4), context).prop_map(|(regions, context)| {
            let mut by_key: BTreeMap<HashKey, HashIntervals> = BTreeMap::new();
            for (key, a, b) in regions {
                by_key.entry(HashKey::from_words(key, key)).or_default().add(a.min(b), a.max(b));
            }
            RegionCoverage { regions: Arc::new(by_key), clocks: context }
        });
        prop::collection::vec(region, 0..4)
    }

    fn ranges() -> impl Strategy<Value = HashRange> {
        (any::<u64>(), 0..=DEPTH_MAX / FAN_BITS).prop_map(|(at, level)| HashRange::at(at, level * FAN_BITS))
    }

    /// One of everything that a frame may hold.
    type Content = (DotSet, VectorNews, Vec<RegionCoverage>, (u8, HashRange));

    fn read(frame: &[u8]) -> Result<Content, WireError> {
        let (_, mut reader) = Reader::new(frame)?;
        let row = reader.row(&Vector::default())?.expect("a row that is fit to be read");
        let told = reader.regions(HashKey::from_words(1, 1), &mut LeftoverTable::default())?;
        assert!(told.is_whole);
        let range = reader.range()?;
        let news = reader.vector_news()?;
        reader.end()?;
        assert_eq!(row.context.unwrap_or_default(), news.entries);
        Ok((row.dot_set, news, told.regions, range))
    }

    /// Everything that distinguishes two rows for a reader.
    fn told(dot_set: &DotSet) -> (Option<Removal>, Vec<impl PartialEq + std::fmt::Debug>) {
        let dots = dot_set.dots().iter().map(|dot| (dot.stamp(), dot.lifetime(), dot.value()));
        (dot_set.removal(), dots.collect())
    }

    proptest! {
        #[test]
        fn written_frames_are_read_back_and_cut_ones_are_refused(
            dot_set in rows(), context in clocks(), region in pendings(), range in ranges(), tag in 0..16_u8,
            names_old in any::<bool>(),
        ) {
            let mask = BucketMask::from_words([1, 2, 3, u64::from(tag)]);
            let sum = ClocksSum::of(context.iter());
            let old = names_old.then_some(NamedOld { sum, buckets: (tag > 7).then_some(mask) });
            let news = VectorNews { old, entries: context.clone() };
            let mut writer = Writer::new(Kind::Items);
            writer.row(&dot_set, Some(&context));
            writer.regions(&region, HashKey::from_words(1, 1), &mut LeftoverTable::default());
            writer.range(tag, range);
            writer.vector_news(&news);
            let frame = writer.finish();
            let (row, read_news, pendings, tagged) = read(&frame[4..]).unwrap();
            prop_assert_eq!(row.key(), dot_set.key());
            prop_assert_eq!(told(&row), told(&dot_set));
            prop_assert_eq!(read_news, news);
            prop_assert_eq!(pendings, region);
            prop_assert_eq!(tagged, (tag, range));
            for end in 4..frame.len() {
                prop_assert!(read(&frame[4..end]).is_err(), "cut at {} of {}", end, frame.len());
            }
        }
    }
}
