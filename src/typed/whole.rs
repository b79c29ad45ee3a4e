//! The keys below a prefix, followed so that each batch of another node is seen as a whole or not at all.
//!
//! A view holds the entries of its last look. A further look reads what has changed since then, in one piece; only after
//! the log has forgotten changes, or after very many of them, it reads everything anew. If a part of a batch has arrived,
//! the view waits for the rest: the look is repeated from the same instant until all that has changed is complete. What a
//! view has waited for in vain it never waits for again.

mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use crdts::CvRDT;
use futures_core::Stream;
pub use watch::WholeWatch;

use crate::store::WholeLook;
use crate::store::coverage::Clocks;
use crate::store::entry::{Entry, Revision};
use crate::store::watch::WatchEvent;
use crate::typed::Store;

/// How long a view waits for the rest of a change of which it has seen a part. A writer that is cut off in the middle of
/// a batch, or whose claims are held up, must not keep a view from all later changes.
const WHOLE_TIME_MAX: Duration = Duration::from_secs(2);

/// The most origins of which a view remembers what it has waited for in vain. With more, what the last look lacked alone
/// is remembered.
const OVERDUE_MAX: usize = 1_024;

/// The first pause before the store is looked at again. It doubles up to [`PAUSE_MAX`]: what is awaited usually comes
/// with the same packets.
const PAUSE_MIN: Duration = Duration::from_micros(500);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// The most events of the watch that are taken before a view looks at the store.
const EVENTS_MAX: usize = 4_096;

/// Takes the events of a watch that have come, and returns whether there were any: they say that something has changed,
/// and what that is, the next look tells. `None`: the watch has ended.
pub(crate) async fn drain(watch: &mut (impl Stream<Item = WatchEvent> + Unpin)) -> Option<bool> {
    let mut has_any = false;
    poll_fn(|cx| {
        for _ in 0..EVENTS_MAX {
            match Pin::new(&mut *watch).poll_next(cx) {
                Poll::Ready(Some(_)) => has_any = true,
                Poll::Ready(None) => return Poll::Ready(None),
                Poll::Pending => break,
            }
        }
        Poll::Ready(Some(has_any))
    })
    .await
}

/// The entries below a prefix, as they were at the last look.
#[derive(Debug)]
pub(crate) struct WholeView {
    prefix: String,
    entries: BTreeMap<String, Entry>,
    /// The instant of the last look. `None`: there was none.
    revision: Option<Revision>,
    /// Claims for which looks have waited in vain, as of a writer that is gone: they count as if they had arrived.
    overdue: Clocks,
}

impl WholeView {
    pub(crate) fn new(prefix: impl Into<String>) -> Self {
        Self { prefix: prefix.into(), entries: BTreeMap::new(), revision: None, overdue: Clocks::default() }
    }

    /// In the order of their keys.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    #[cfg(feature = "flags")]
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Takes a look, whole or not. Returns the keys that have changed.
    #[cfg(feature = "flags")]
    pub(crate) fn look(&mut self, store: &impl Store) -> BTreeSet<String> {
        let Some(look) = self.read(store) else { return BTreeSet::new() };
        let is_whole = look.is_whole;
        let changed = self.take(look);
        // What is still arriving has to count for the next look as well.
        self.revision = self.revision.filter(|_| is_whole);
        changed
    }

    /// Takes a look that is whole. If a batch is arriving, it waits for the rest of it, at most for [`WHOLE_TIME_MAX`].
    /// Returns the keys that have changed.
    pub(crate) async fn look_whole(&mut self, store: &impl Store) -> BTreeSet<String> {
        self.await_whole(store).await.map_or_else(BTreeSet::new, |look| self.take(look))
    }

    /// The next look to take. `None`: the node is closed.
    async fn await_whole(&mut self, store: &impl Store) -> Option<WholeLook> {
        let (mut pause, mut waited) = (PAUSE_MIN, Duration::ZERO);
        loop {
            let mut look = self.read(store)?;
            look.is_whole = look.missing.is_covered_by(&self.overdue);
            if look.is_whole {
                return Some(look);
            }
            if waited >= WHOLE_TIME_MAX {
                self.note_overdue(&look.missing);
                return Some(look);
            }
            store.sleep(pause).await;
            waited += pause;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn note_overdue(&mut self, missing: &Clocks) {
        self.overdue.merge(missing.clone());
        if self.overdue.len() > OVERDUE_MAX {
            self.overdue = missing.clone();
        }
    }

    /// `None`: the node is closed.
    fn read(&self, store: &impl Store) -> Option<WholeLook> {
        if let Some(look) = self.revision.and_then(|since| store.changes_whole(&self.prefix, since)) {
            return Some(look);
        }
        let held: Vec<String> = self.entries.keys().cloned().collect();
        let mut look = store.scan_whole(&self.prefix, &held)?;
        let is_there = |key: &String| look.entries.binary_search_by(|entry| entry.key().cmp(key)).is_ok();
        look.gone = held.into_iter().filter(|key| !is_there(key)).collect();
        Some(look)
    }

    /// Takes a look, and returns what of it is new.
    fn take_news(&mut self, mut look: WholeLook) -> WholeLook {
        let held = |entry: &Entry| self.entries.get(entry.key()).map(Entry::revision);
        look.entries.retain(|entry| held(entry) != Some(entry.revision()));
        look.gone.retain(|key| self.entries.contains_key(key));
        self.take(look.clone());
        look
    }

    fn take(&mut self, look: WholeLook) -> BTreeSet<String> {
        let mut changed = BTreeSet::new();
        self.revision = Some(look.revision);
        for key in look.gone {
            if self.entries.remove(&key).is_some() {
                changed.insert(key);
            }
        }
        for entry in look.entries {
            let key = entry.key().to_owned();
            let stamp = entry.stamp();
            let before = self.entries.insert(key.clone(), entry);
            if before.is_none_or(|before| before.stamp() != stamp) {
                changed.insert(key);
            }
        }
        changed
    }
}
