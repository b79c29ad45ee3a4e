//! What the tail and a repair have in common about rows.

use crate::controls::Control;
use crate::store::coverage::{Clocks, Coverage, Vector, VectorNews};
use crate::store::entry::{self, DotSet, readable_key};
use crate::store::{LocalStore, Refusal};
use crate::wire::WireError;

/// What the store covers at a key beyond its vector, as far as peers are sent it. `None` if that is nothing.
pub(crate) fn context_of(store: &LocalStore, dot_set: &DotSet) -> Option<Clocks> {
    if store.coverage.extra_count() == 0 || store.controls.has(Control::NoContext) {
        return None;
    }
    let context = store.coverage.context(dot_set.key(), store.hash_key.place(dot_set.key()))?;
    let context = store.coverage.told_to_peers(&context);
    (!context.is_empty()).then_some(context)
}

/// Raises `vector`, what a peer told of its own, by the news of a frame.
pub(crate) fn take_news(
    coverage: &Coverage,
    vector: &mut Vector,
    news: &VectorNews,
) -> Result<(), WireError> {
    if coverage.take_news(vector, news) { Ok(()) } else { Err(WireError::OldPart) }
}

/// A row that was refused: its readable key and the reason.
pub(crate) type RefusedRow = (String, Refusal);

pub(crate) fn refused_row(key: &[u8], why: Refusal) -> RefusedRow {
    let readable = entry::key_is_well_formed(key);
    (if readable { readable_key(key).to_owned() } else { String::from_utf8_lossy(key).into_owned() }, why)
}
