//! The tail: live replication along the change log, one ordered stream per link and direction.
//!
//! The sender keeps a cursor and no queue. The last frame of a flush carries its end, with the claims. Invariants:
//!
//! - A frame's rows, their contexts and its claims are of one instant. Nothing may be merged between writing them.
//! - A tail claims its sender's own origin, only in the frame that reaches the head, and only while every row of the
//!   link was sent and accepted. Under the same conditions it claims intervals of forwarded origins
//!   ([`claims`](super::claims)).
//! - A claim that covers a large row waits for it ([`large`](super::large)). A cursor below the log's floor must never
//!   go on.

mod contexts;
mod receive;
mod send;

pub(crate) use receive::{News, TailOutcome, TailPeer, TailReceiver};
pub(crate) use send::{TailSender, TailWants};

pub(crate) const END: u8 = 0;
pub(crate) const TAIL_ROW: u8 = 1;
pub(crate) const DONE: u8 = 2;
pub(crate) const LARGE_ROW: u8 = 3;

#[cfg(test)]
mod tests {
    use std::num::NonZeroU64;
    use std::time::Duration;

    use super::*;
    use crate::config::Config;
    #[cfg(feature = "__controls")]
    use crate::controls::Control;
    use crate::controls::Controls;
    use crate::id::RunId;
    use crate::replication::claims::ForwardedClaims;
    use crate::replication::vectors::OldParts;
    use crate::store::change_log::LogFilter;
    use crate::store::coverage::Vector;
    use crate::store::digest::HashKey;
    use crate::store::slab::ChangeOrigin;
    use crate::store::{LocalStore, PeerRow};
    use crate::time::{Lifetime, Stamp, Time};
    use crate::wire::{Kind, Piece, Reader};

    const NOW: Time = Time { mono: Duration::ZERO, wall: Duration::from_secs(1) };

    fn key(name: &str) -> Vec<u8> {
        let mut stored = Vec::new();
        crate::store::key::register_key(name, &mut stored);
        stored
    }

    /// Both ends of a link, for one direction.
    struct Tail {
        outgoing: TailSender,
        incoming: TailReceiver,
        sender: TailPeer,
        filter: LogFilter,
        /// Of the sender.
        forwarded_claims: ForwardedClaims,
        /// What the next flush end of the sender asks for.
        ack: Option<u64>,
        names_large_rows: bool,
        /// The receiver's time.
        now: Time,
        /// What flush ends have asked for, as the receiver understood it.
        asked: Vec<Stamp>,
    }

    impl Tail {
        fn new(from: &LocalStore, filter: LogFilter) -> Self {
            let mut outgoing = TailSender::default();
            assert!(outgoing.resume(from, from.log.id, 0));
            let (is_far, passes_on) = (filter == LogFilter::Own, filter == LogFilter::Forwarded);
            let sender =
                TailPeer { log: from.log.id, run: from.run, is_other_group: is_far, forwards: passes_on };
            Self {
                outgoing,
                incoming: TailReceiver::default(),
                sender,
                filter,
                forwarded_claims: ForwardedClaims::default(),
                ack: None,
                names_large_rows: true,
                now: NOW,
                asked: Vec::new(),
            }
        }

        fn frame(&mut self, from: &mut LocalStore) -> Vec<u8> {
            let mut wanted = TailWants {
                filter: self.filter,
                bare_claim: true,
                ack: &mut self.ack,
                old_parts: &OldParts::default(),
                names_large_rows: self.names_large_rows,
            };
            let frame = self.outgoing.next_frame(from, &mut self.forwarded_claims, &mut wanted);
            frame.expect("there is something to send")
        }

        fn pieces(&mut self, from: &mut LocalStore) -> Vec<Vec<u8>> {
            std::iter::from_fn(|| self.outgoing.next_piece(from, &OldParts::default(), &mut None)).collect()
        }

        /// Hands frames and pieces to the other end, which records in `forwarded_claims` what it may claim.
        fn hand(&mut self, to: &mut LocalStore, forwarded_claims: &mut ForwardedClaims, sent: &[Vec<u8>]) {
            for bytes in sent {
                let mut news = News { forwarded_claims: &mut *forwarded_claims, arrived: &mut Vec::new() };
                let mut assembler = crate::wire::Assembler::default();
                assembler.feed(bytes);
                let (kind, reader) = Reader::new(assembler.next().unwrap().unwrap()).unwrap();
                let merged = match kind {
                    Kind::Piece => {
                        let piece = Piece::read(reader).unwrap();
                        self.incoming.handle_piece(to, &mut news, self.now, self.sender, piece, &mut None)
                    }
                    _ => self.incoming.handle_frame(to, &mut news, self.now, self.sender, reader),
                };
                self.asked.extend(merged.unwrap().asked);
            }
        }

        /// Whether the sender has something to send before its next bare claim.
        fn is_idle(&mut self, from: &mut LocalStore) -> bool {
            let mut wanted = TailWants {
                filter: self.filter,
                bare_claim: false,
                ack: &mut self.ack,
                old_parts: &OldParts::default(),
                names_large_rows: self.names_large_rows,
            };
            self.outgoing.next_frame(from, &mut self.forwarded_claims, &mut wanted).is_none()
        }
    }

    #[test]
    fn delegate_passes_asks_on_until_they_are_answered() {
        let (mut writer, mut delegate) = (LocalStore::of_run(1), LocalStore::of_run(2));
        let (mut far, mut near) =
            (Tail::new(&writer, LogFilter::Own), Tail::new(&delegate, LogFilter::Forwarded));
        let (last, revision) =
            (writer.put(NOW, &key("first"), b"v", Lifetime::default()).0, writer.log.head());
        for round in 0..2 {
            // The second time the flush end was sent already: it is sent again, without rows.
            far.ack = Some(revision);
            let frame = far.frame(&mut writer);
            far.hand(&mut delegate, &mut near.forwarded_claims, &[frame]);
            assert_eq!(std::mem::take(&mut far.asked), [last], "in round {round}");
        }
        assert!(far.is_idle(&mut writer), "nothing is asked twice by itself");

        near.forwarded_claims.ask(last.origin, last.clock);
        let mut claims = std::mem::take(&mut near.forwarded_claims);
        // A mate that is linked later is asked as well, even if it can take nothing of the claim.
        for late in 3..5 {
            let mut mate = LocalStore::of_run(late);
            let mut near = Tail { forwarded_claims: claims, ..Tail::new(&delegate, LogFilter::Forwarded) };
            let frame = near.frame(&mut delegate);
            near.hand(&mut mate, &mut ForwardedClaims::default(), &[frame]);
            assert_eq!(near.asked, [last]);
            assert!(near.is_idle(&mut delegate));
            claims = near.forwarded_claims;
        }
        claims.close_ask(last.origin);
        let mut near = Tail { forwarded_claims: claims, ..Tail::new(&delegate, LogFilter::Forwarded) };
        let frame = near.frame(&mut delegate);
        near.hand(&mut LocalStore::of_run(9), &mut ForwardedClaims::default(), &[frame]);
        assert!(near.asked.is_empty());
    }

    #[test]
    fn only_a_peer_that_reads_names_is_told_keys_of_large_rows() {
        for names_large_rows in [false, true] {
            let (mut writer, mut reader) = (LocalStore::of_run(1), LocalStore::of_run(2));
            let mut tail = Tail { names_large_rows, ..Tail::new(&writer, LogFilter::Own) };
            writer.put(NOW, &key("blob"), &vec![b'x'; 70_000], Lifetime::default());
            let small = writer.put(NOW, &key("small"), b"v", Lifetime::default()).0;
            let frame = tail.frame(&mut writer);
            let has_name = frame.windows(4).any(|bytes| bytes == b"blob");
            tail.hand(&mut reader, &mut ForwardedClaims::default(), &[frame]);
            assert_eq!(has_name, names_large_rows);
            let claim = |name| tail.incoming.claim_below(reader.controls, &key(name));
            assert_eq!((claim("small"), claim("bl")), (names_large_rows.then_some(small), None));

            let pieces = tail.pieces(&mut writer);
            tail.hand(&mut reader, &mut ForwardedClaims::default(), &pieces);
            assert_eq!(
                tail.incoming.claim_below(reader.controls, &key("bl")),
                None,
                "nothing waits any more"
            );
            assert!(reader.coverage.vector().covers(small));
        }
    }

    #[test]
    fn row_known_to_a_delegate_ends_its_forwarded_claim() {
        let large = vec![b'x'; 70_000];
        for is_ahead in [false, true] {
            let (mut writer, mut delegate, mut mate) =
                (LocalStore::of_run(1), LocalStore::of_run(2), LocalStore::of_run(3));
            let mut far = Tail::new(&writer, LogFilter::Own);
            let mut near = Tail::new(&delegate, LogFilter::Forwarded);
            writer.put(NOW, &key("first"), b"v", Lifetime::default());
            let first = far.frame(&mut writer);
            far.hand(&mut delegate, &mut near.forwarded_claims, &[first]);
            let passed = near.frame(&mut delegate);
            near.hand(&mut mate, &mut ForwardedClaims::default(), &[passed]);
            // The mate has repaired with the writer, and is sent forwarded rows by the delegate.
            let row = |key: &[u8], from: &LocalStore| {
                let dot_set = from.dot_set(key).expect("it is held").0.clone();
                PeerRow { dot_set, vector: Vector::default(), context: None }
            };
            writer.put(NOW, &key("large"), &large, Lifetime::default());
            mate.merge_rows(NOW, &[row(&key("large"), &writer)], ChangeOrigin::Learned, |_| ());
            mate.coverage.claim_all(writer.coverage.vector());
            let mut live = vec![far.frame(&mut writer)];
            // The delegate learned this row from another peer and does not forward it.
            let known = writer
                .put(NOW, &key("known"), if is_ahead { &large } else { b"small" }, Lifetime::default())
                .0;
            delegate.merge_rows(NOW, &[row(&key("known"), &writer)], ChangeOrigin::Learned, |_| ());
            live.push(far.frame(&mut writer));
            let pieces = far.pieces(&mut writer);
            if is_ahead {
                far.hand(&mut delegate, &mut near.forwarded_claims, &pieces);
            }
            far.hand(&mut delegate, &mut near.forwarded_claims, &live);
            if !is_ahead {
                far.hand(&mut delegate, &mut near.forwarded_claims, &pieces);
            }
            assert!(delegate.coverage.vector().get(RunId::new(1)) >= known.clock);

            let mut passed = vec![near.frame(&mut delegate)];
            passed.extend(near.pieces(&mut delegate));
            near.hand(&mut mate, &mut ForwardedClaims::default(), &passed);
            assert!(mate.dot_set(&key("large")).is_some() && mate.dot_set(&key("known")).is_none());
            assert!(!mate.covers(&key("known"), known), "it claims what it was not sent (ahead: {is_ahead})");

            // Once nothing is on its way, a new interval begins. A mate that has repaired then can take it.
            mate.coverage.claim_all(delegate.coverage.vector());
            let later = writer.put(NOW, &key("later"), b"v", Lifetime::default()).0;
            let frame = far.frame(&mut writer);
            far.hand(&mut delegate, &mut near.forwarded_claims, &[frame]);
            let passed = near.frame(&mut delegate);
            near.hand(&mut mate, &mut ForwardedClaims::default(), &[passed]);
            assert!(
                mate.dot_set(&key("later")).is_some()
                    && mate.coverage.vector().get(RunId::new(1)) >= later.clock
            );
        }
    }

    /// A delegate passes on a row that is dead by the mate's clock, before the end of its flush. Returns how many
    /// values the mate holds at the key once a third node has brought it the overwritten one.
    fn held_behind_a_dead_row(controls: Controls) -> usize {
        let (mut writer, mut delegate) = (LocalStore::of_run(1), LocalStore::of_run(2));
        let mut mate = LocalStore::new(&Config::lan(), RunId::new(3), HashKey::default(), controls);
        let mut far = Tail::new(&writer, LogFilter::Own);
        let mut near = Tail::new(&delegate, LogFilter::Forwarded);
        writer.put(NOW, &key("k"), b"first", Lifetime::default());
        let dot_set = writer.dot_set(&key("k")).expect("it is held").0.clone();
        let overwritten = PeerRow { dot_set, vector: Vector::default(), context: None };
        let lifetime = Lifetime { expires: NonZeroU64::new(2_000), run: None };
        writer.put(NOW, &key("k"), b"second", lifetime);
        for i in 0..100 {
            writer.put(NOW, &key(&format!("other {i}")), &[b'x'; 1_000], Lifetime::default());
        }
        // The delegate has not finished the flush, so its vector has nothing of the writer.
        let part = far.frame(&mut writer);
        far.hand(&mut delegate, &mut near.forwarded_claims, &[part]);
        let passed = near.frame(&mut delegate);
        near.now = NOW.later_by(Duration::from_secs(60));
        near.hand(&mut mate, &mut ForwardedClaims::default(), &[passed]);
        mate.merge_rows(near.now, &[overwritten], ChangeOrigin::Learned, |_| ());
        mate.dot_set(&key("k")).map_or(0, |(dot_set, _)| dot_set.dots().len())
    }

    #[test]
    fn forwarded_row_that_is_dead_covers_what_it_overwrote() {
        assert_eq!(held_behind_a_dead_row(Controls::default()), 0);
        #[cfg(feature = "__controls")]
        assert_eq!(held_behind_a_dead_row(Controls { broken: Some(Control::DeadUncovered) }), 1);
    }

    #[test]
    fn first_flush_of_an_idle_link_needs_no_repair() {
        let (mut writer, mut delegate, mut mate) =
            (LocalStore::of_run(1), LocalStore::of_run(2), LocalStore::of_run(3));
        let mut far = Tail::new(&writer, LogFilter::Own);
        let mut near = Tail::new(&delegate, LogFilter::Forwarded);
        let mut wanted = TailWants {
            filter: near.filter,
            bare_claim: false,
            ack: &mut None,
            old_parts: &OldParts::default(),
            names_large_rows: true,
        };
        let idle = near.outgoing.next_frame(&mut delegate, &mut near.forwarded_claims, &mut wanted);
        assert!(idle.is_none());
        let first = writer.put(NOW, &key("first"), b"v", Lifetime::default()).0;
        let frame = far.frame(&mut writer);
        far.hand(&mut delegate, &mut near.forwarded_claims, &[frame]);
        let passed = near.frame(&mut delegate);
        near.hand(&mut mate, &mut ForwardedClaims::default(), &[passed]);
        assert_eq!(mate.coverage.vector().get(RunId::new(1)), first.clock);
    }

    #[test]
    fn peer_that_missed_forwarded_rows_gets_no_claim_of_them() {
        let (mut writer, mut delegate, mut mate) =
            (LocalStore::of_run(1), LocalStore::of_run(2), LocalStore::of_run(3));
        let mut far = Tail::new(&writer, LogFilter::Own);
        let mut near = Tail::new(&delegate, LogFilter::Forwarded);
        let pass =
            |far: &mut Tail, near: &mut Tail, writer: &mut LocalStore, delegate: &mut LocalStore, name| {
                let stamp = writer.put(NOW, &key(name), b"v", Lifetime::default()).0;
                let frame = far.frame(writer);
                far.hand(delegate, &mut near.forwarded_claims, &[frame]);
                stamp
            };
        pass(&mut far, &mut near, &mut writer, &mut delegate, "first");
        let passed = near.frame(&mut delegate);
        near.hand(&mut mate, &mut ForwardedClaims::default(), &[passed]);
        mate.coverage.claim_all(delegate.coverage.vector());

        near.filter = LogFilter::Own;
        let missed = pass(&mut far, &mut near, &mut writer, &mut delegate, "missed");
        (0..200).for_each(|i| {
            _ = delegate.put(NOW, &key(&format!("own {i}")), &[b'x'; 1_000], Lifetime::default());
        });
        let part = near.frame(&mut delegate);
        near.hand(&mut mate, &mut ForwardedClaims::default(), &[part]);
        near.filter = LogFilter::Forwarded;
        while near.outgoing.cursor < delegate.log.head() {
            let passed = near.frame(&mut delegate);
            near.hand(&mut mate, &mut ForwardedClaims::default(), &[passed]);
        }
        assert!(mate.dot_set(&key("own 199")).is_some() && mate.dot_set(&key("missed")).is_none());
        assert!(!mate.covers(&key("missed"), missed), "it claims what it was not sent");
    }
}
