//! The contexts of rows, as a stream tells them.
//!
//! A node that is behind with some origins has these in the context of nearly every row that it passes on. Told whole,
//! they would make its rows larger than everybody else's, so that over a full link it would fall further and further
//! behind. But they hardly change from row to row: each is told by how it differs from the one before.

use std::sync::Arc;

use crate::controls::{Control, Controls};
use crate::seen::Context;
use crate::time::Stamp;
use crate::wire::{Reader, WireError, Writer};

const NONE: u8 = 0;
const WHOLE: u8 = 1;
const CHANGED: u8 = 2;

/// What both ends of a stream know: the context that was told last.
#[derive(Debug, Default)]
pub(super) struct Contexts {
    last: Arc<Context>,
}

impl Contexts {
    pub(super) fn write(&mut self, writer: &mut Writer, context: Option<Arc<Context>>) {
        let Some(context) = context else { return writer.byte(NONE) };
        let (old, new) = (&self.last.dots, &context.dots);
        let gone: Vec<u64> = old.keys().filter(|origin| !new.contains_key(origin)).copied().collect();
        let is_changed = |(origin, clock): &(&u64, &u64)| old.get(origin) != Some(*clock);
        let changed: Vec<(u64, u64)> =
            new.iter().filter(is_changed).map(|(origin, clock)| (*origin, *clock)).collect();
        // An origin and its clock are twice as long as an origin alone.
        if changed.len() * 2 + gone.len() < new.len() * 2 {
            writer.byte(CHANGED);
            writer.number(gone.len() as u64);
            gone.into_iter().for_each(|origin| writer.word(origin));
            writer.dots(changed.into_iter());
        } else {
            writer.byte(WHOLE);
            writer.context(Some(&context));
        }
        self.last = context;
    }

    pub(super) fn read(
        &mut self,
        controls: Controls,
        reader: &mut Reader<'_>,
    ) -> Result<Option<Arc<Context>>, WireError> {
        let told = Arc::make_mut(&mut self.last);
        match reader.byte()? {
            NONE => return Ok(None),
            WHOLE => told.dots.clear(),
            CHANGED => {
                for _ in 0..reader.count(8)? {
                    let gone = reader.word()?;
                    if !controls.has(Control::GoneIsKept) {
                        told.dots.remove(&gone);
                    }
                }
            }
            _ => return Err(WireError::Form),
        }
        for _ in 0..reader.count(16)? {
            let Stamp { origin, clock } = reader.dot()?;
            told.dots.insert(origin, clock);
        }
        Ok(Some(self.last.clone()))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::wire::Kind;

    proptest! {
        #[test]
        fn every_context_arrives_as_it_was_told(
            contexts in prop::collection::vec(
                prop::option::of(prop::collection::btree_map(0_u64..20, 1_u64..4, 1..20)), 1..40,
            ),
        ) {
            let (mut here, mut there) = (Contexts::default(), Contexts::default());
            for dots in contexts {
                let context = dots.map(|dots| Arc::new(Context { dots }));
                let mut writer = Writer::new(Kind::Tail);
                here.write(&mut writer, context.clone());
                let frame = writer.finish();
                let whole = context.as_ref().map_or(0, |context| context.dots.len());
                prop_assert!(frame.len() <= 4 + 2 + 1 + 1 + 16 * whole, "never longer than told whole");
                let (_, mut reader) = Reader::new(&frame[4..]).unwrap();
                prop_assert_eq!(there.read(Controls::default(), &mut reader).unwrap(), context);
                prop_assert!(reader.end().is_ok());
            }
        }
    }

    #[test]
    fn what_row_after_row_has_in_common_is_told_once() {
        let mut contexts = Contexts::default();
        let mut context = Context { dots: (0..100).map(|origin| (origin, 1)).collect() };
        let mut told = |context: &Context| {
            let mut writer = Writer::new(Kind::Tail);
            contexts.write(&mut writer, Some(Arc::new(context.clone())));
            writer.len()
        };
        assert!(told(&context) > 1_600);
        assert!(told(&context) < 16);
        context.dots.insert(7, 2);
        context.dots.remove(&8);
        assert!(told(&context) < 48);
    }
}
