//! What the tail and a repair have in common about rows.

use crate::controls::Control;
use crate::store::coverage::{Clocks, Coverage, Vector, VectorNews};
use crate::store::entry::DotSet;
use crate::store::key::{self, readable_key};
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

/// Origins in the vector that a peer tells over one stream. A cluster may have a million process starts that wrote.
const ORIGINS_TOLD_MAX: usize = 1 << 21;

/// Raises `vector`, what a peer told of its own, by the news of a frame.
pub(crate) fn take_news(
    coverage: &Coverage,
    vector: &mut Vector,
    news: &VectorNews,
) -> Result<(), WireError> {
    if !coverage.take_news(vector, news) {
        return Err(WireError::OldPart);
    }
    if vector.len() > ORIGINS_TOLD_MAX { Err(WireError::TooMany) } else { Ok(()) }
}

/// A row that was refused: its readable key and the reason.
pub(crate) type RefusedRow = (String, Refusal);

pub(crate) fn refused_row(key: &[u8], why: Refusal) -> RefusedRow {
    let readable = key::key_is_well_formed(key);
    (if readable { readable_key(key).to_owned() } else { String::from_utf8_lossy(key).into_owned() }, why)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::id::RunId;
    use crate::store::digest::HashKey;

    #[test]
    fn peer_may_tell_of_a_million_origins_and_not_of_many_more() {
        let coverage = Coverage::new(HashKey::default());
        let origin = |i: u64| (RunId::new(i.wrapping_mul(0x9E37_79B9_7F4A_7C15)), 1);
        let news =
            |range: std::ops::Range<u64>| VectorNews { old: None, entries: range.map(origin).collect() };
        let most = ORIGINS_TOLD_MAX as u64;
        let mut vector = Vector::default();
        assert!(most >= 1_000_000 && take_news(&coverage, &mut vector, &news(0..most)).is_ok());
        assert_eq!(take_news(&coverage, &mut vector, &news(0..9)), Ok(()), "it tells nothing new");
        assert_eq!(take_news(&coverage, &mut vector, &news(most..most + 1)), Err(WireError::TooMany));
    }
}
