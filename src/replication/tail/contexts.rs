//! The contexts of rows on a tail, each encoded as its difference from the one before.
//!
//! A node that is behind with some origins has these in the context of nearly every row that it forwards. Sent whole,
//! they would make its rows larger than those of other nodes, and over a full link it would fall further behind. But
//! they hardly change from row to row.
//!
//! Both ends must keep the same last context and count the same bytes. So a context must never be written or read out
//! of order, and a change of the counting is a change of the wire format.

use crate::controls::{Control, Controls};
use crate::store::coverage::Clocks;
use crate::time::Stamp;
use crate::wire::{Reader, WireError, Writer};

const NO_CONTEXT: u8 = 0;
const WHOLE: u8 = 1;
const CHANGED: u8 = 2;

/// A frame whose decoded contexts exceed this takes no further context. A few bytes can stand for a whole context, so
/// the length of the frame does not bound what a reader keeps at once.
const WHOLE_BYTES_MAX: usize = 16 << 20;

/// The state that both ends of a stream share.
#[derive(Debug, Default)]
pub(super) struct RowContexts {
    /// The context that was sent last.
    last: Clocks,
    /// Decoded bytes of the contexts of this frame.
    whole: usize,
}

impl RowContexts {
    /// Starts the count of a new frame.
    pub(super) fn begin(&mut self) {
        self.whole = 0;
    }

    pub(super) fn is_full(&self) -> bool {
        self.whole > WHOLE_BYTES_MAX
    }

    pub(super) fn write(&mut self, writer: &mut Writer, context: Option<Clocks>) {
        let Some(context) = context else { return writer.byte(NO_CONTEXT) };
        let (gone, changed) = (self.last.without(&context), context.unlike(&self.last));
        let differences = gone.len() + changed.len();
        // An origin and its clock are twice as long as an origin alone.
        if changed.len() * 2 + gone.len() < context.len() * 2 {
            writer.byte(CHANGED);
            writer.varint(gone.len() as u64);
            gone.iter().for_each(|(origin, _)| writer.run(origin));
            writer.clocks(Some(&changed));
        } else {
            writer.byte(WHOLE);
            writer.clocks(Some(&context));
        }
        self.last = context;
        self.count(differences);
    }

    pub(super) fn read(
        &mut self,
        controls: Controls,
        reader: &mut Reader<'_>,
    ) -> Result<Option<Clocks>, WireError> {
        let mut gone = 0;
        match reader.byte()? {
            NO_CONTEXT => return Ok(None),
            _ if self.is_full() => return Err(WireError::TooLarge(self.whole)),
            WHOLE => self.last = Clocks::default(),
            CHANGED => {
                gone = reader.count(8)?;
                for _ in 0..gone {
                    let origin = reader.run()?;
                    if !controls.has(Control::GoneIsKept) {
                        self.last.remove(origin);
                    }
                }
            }
            _ => return Err(WireError::Form),
        }
        let changed = reader.count(16)?;
        for _ in 0..changed {
            let Stamp { origin, clock } = reader.clock_entry()?;
            self.last.insert(origin, clock);
        }
        self.count(gone + changed);
        Ok(Some(self.last.clone()))
    }

    /// Counts a context that differs from the one before: the reader keeps it separately. Both ends must count alike.
    fn count(&mut self, differences: usize) {
        if differences > 0 {
            self.whole += 16 * self.last.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::id::RunId;
    use crate::wire::Kind;

    proptest! {
        #[test]
        fn every_context_arrives_as_it_was_told(
            contexts in prop::collection::vec(
                prop::option::of(prop::collection::btree_map((0_u64..20).prop_map(RunId::new), 1_u64..4, 1..20)), 1..40,
            ),
        ) {
            let (mut here, mut there) = (RowContexts::default(), RowContexts::default());
            for dots in contexts {
                let context = dots.map(Clocks::from_iter);
                let mut writer = Writer::new(Kind::Tail);
                here.write(&mut writer, context.clone());
                let frame = writer.finish();
                let whole = context.as_ref().map_or(0, Clocks::len);
                prop_assert!(frame.len() <= 4 + 2 + 1 + 1 + 16 * whole, "never longer than told whole");
                let (_, mut reader) = Reader::new(&frame[4..]).unwrap();
                prop_assert_eq!(there.read(Controls::default(), &mut reader).unwrap(), context);
                prop_assert!(reader.end().is_ok());
            }
        }
    }

    #[test]
    fn common_part_of_row_contexts_is_sent_once() {
        let mut contexts = RowContexts::default();
        let mut context: Clocks = (0..100).map(|origin| (RunId::new(origin), 1)).collect();
        let mut told = |context: &Clocks| {
            let mut writer = Writer::new(Kind::Tail);
            contexts.write(&mut writer, Some(context.clone()));
            writer.len()
        };
        assert!(told(&context) > 1_600);
        assert!(told(&context) < 16);
        context.insert(RunId::new(7), 2);
        context.remove(RunId::new(8));
        assert!(told(&context) < 48);
    }

    #[test]
    fn decoded_row_contexts_are_bounded() {
        let (mut here, mut there) = (RowContexts::default(), RowContexts::default());
        let mut writer = Writer::new(Kind::Tail);
        let mut context: Clocks = (0..10_000).map(|origin| (RunId::new(origin), 1)).collect();
        let mut rows = 0;
        while !here.is_full() {
            rows += 1;
            context.insert(RunId::new(0), rows);
            here.write(&mut writer, Some(context.clone()));
        }
        assert_eq!(rows, 105, "16 MiB of 160 KB each");
        context.insert(RunId::new(0), 0);
        here.write(&mut writer, Some(context));
        let frame = writer.finish();
        let (_, mut reader) = Reader::new(&frame[4..]).unwrap();
        let mut read = |_| there.read(Controls::default(), &mut reader).map(drop);
        assert!((0..rows).try_for_each(&mut read).is_ok(), "what is written honestly is read");
        assert!(matches!(read(rows), Err(WireError::TooLarge(_))), "and no further row");
    }
}
