//! The keys below a prefix, followed so that each batch of another node is seen as a whole or not at all.
//!
//! A view holds the entries of its last look. A further look reads what has changed since then, in one piece; only
//! after the log has forgotten changes, or after very many of them, it reads everything anew. If a part of a batch has
//! arrived, the view waits for the rest ([`wait`]): the look is repeated from the same instant until all that has
//! changed is complete. It takes a part only if the rest cannot be expected, and an origin for which it has waited in
//! vain it does not await again before something of it arrives.
//!
//! A view never sleeps: [`WholeView::seek`] looks once, and its user looks again after [`WholeView::pause`], so that
//! nothing else that the user has to do waits for a batch.

mod wait;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use crdts::CvRDT;
use futures_core::Stream;
use serde::{Deserialize, Serialize};
use wait::BatchWait;
pub use watch::WholeWatch;

use crate::error::Author;
use crate::store::coverage::Clocks;
use crate::store::entry::{Entry, Revision};
use crate::store::watch::WatchEvent;
use crate::store::{MissingOrigin, WholeLook};
use crate::time::Stamp;
use crate::typed::{Store, writer};

/// The most origins of which a view remembers that it has waited for them in vain. With more, those of the last look
/// alone are remembered.
const STUCK_MAX: usize = 1_024;

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

/// A batch of another node of which a view has seen a part, and whose rest has not come for a while;
/// [`Store::note_late`] hears of it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[non_exhaustive]
pub struct LateBatch {
    /// Who writes it; of several writers one.
    pub writer: Author,
    /// How long the view has waited.
    pub waited: Duration,
    /// The part is shown, because the rest is not expected any more, or because there is nothing older to show.
    pub is_part_shown: bool,
}

/// What [`WholeView::seek`] has found.
pub(crate) enum NextLook {
    /// To be shown next: [`WholeView::take`] takes it.
    Show(WholeLook),
    /// The rest of a batch is awaited.
    Wait,
}

/// The entries below a prefix, as they were at the last look.
#[derive(Debug)]
pub(crate) struct WholeView {
    prefix: String,
    entries: BTreeMap<String, Entry>,
    /// The instant from which changes are looked for. `None`: everything is looked at.
    revision: Option<Revision>,
    /// [`WholeView::seek`] has given a look.
    has_begun: bool,
    /// While the rest of a batch is awaited.
    wait: Option<BatchWait>,
    /// What had arrived of origins when they were given up. Until more has, they count as if all had.
    stuck: Clocks,
}

impl WholeView {
    pub(crate) fn new(prefix: impl Into<String>) -> Self {
        Self {
            prefix: prefix.into(),
            entries: BTreeMap::new(),
            revision: None,
            has_begun: false,
            wait: None,
            stuck: Clocks::default(),
        }
    }

    /// In the order of their keys.
    pub(crate) fn entries(&self) -> impl Iterator<Item = &Entry> {
        self.entries.values()
    }

    #[cfg(feature = "flags")]
    pub(crate) fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.get(key)
    }

    /// Takes a look, whole or not, from which the search for a whole one has yet to begin.
    #[cfg(feature = "flags")]
    pub(crate) fn look(&mut self, store: &impl Store) {
        let Some(look) = self.read(store) else { return };
        let is_whole = look.is_whole;
        _ = self.take(look);
        // What is still arriving has to count for the next look as well.
        self.revision = self.revision.filter(|_| is_whole);
    }

    /// The time until the next [`WholeView::seek`], while the rest of a batch is awaited.
    pub(crate) fn pause(&self) -> Option<Duration> {
        self.wait.as_ref().map(|wait| wait.pause)
    }

    /// Whether a batch has been awaited for so long that the view counts as stale.
    pub(crate) fn is_late(&self) -> bool {
        self.wait.as_ref().is_some_and(BatchWait::is_late)
    }

    /// Looks for what to show next. `None`: the node is closed.
    ///
    /// A view that has nothing older to show gives a part once its wait is late, and goes on waiting.
    pub(crate) fn seek(&mut self, store: &impl Store) -> Option<NextLook> {
        let mut look = self.read(store)?;
        look.missing.retain(|missing| !self.is_stuck(missing));
        look.is_whole = look.missing.is_empty();
        let Some(first) = look.missing.first() else {
            self.wait = None;
            self.has_begun = true;
            return Some(NextLook::Show(look));
        };
        let mut wait = self.wait.take().unwrap_or_else(BatchWait::new);
        let is_in_vain = wait.note(&look.missing);
        let is_part_shown = is_in_vain || (wait.is_late() && !self.has_begun);
        if (wait.is_late() && !wait.is_told) || is_in_vain {
            wait.is_told = true;
            let writer = writer(store, Stamp { clock: first.reached, origin: first.origin });
            store.note_late(&self.prefix, &LateBatch { writer, waited: wait.lasted, is_part_shown });
        }
        if is_in_vain {
            self.note_stuck(&look.missing);
        } else {
            self.wait = Some(wait);
        }
        self.has_begun |= is_part_shown;
        Some(if is_part_shown { NextLook::Show(look) } else { NextLook::Wait })
    }

    fn is_stuck(&self, missing: &MissingOrigin) -> bool {
        self.stuck.clock(missing.origin).is_some_and(|reached| missing.reached <= reached)
    }

    fn note_stuck(&mut self, missing: &[MissingOrigin]) {
        let reached: Clocks = missing.iter().map(|missing| (missing.origin, missing.reached)).collect();
        self.stuck.merge(reached.clone());
        if self.stuck.len() > STUCK_MAX {
            self.stuck = reached;
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
        _ = self.take(look.clone());
        look
    }

    /// Takes a look. Returns the keys that have changed.
    pub(crate) fn take(&mut self, look: WholeLook) -> BTreeSet<String> {
        let mut changed = BTreeSet::new();
        // While the search goes on, what is arriving has to count for the next look as well.
        self.revision = Some(look.revision).filter(|_| self.wait.is_none());
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
