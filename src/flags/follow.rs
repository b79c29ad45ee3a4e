//! How flags follow the store, and how they are started.
//!
//! Events of the watch say that something has changed. What that is tells one look at the store that comes after them and
//! has all of every change, so that a watch that starts over, or that is slow, can never lead to an old or a mixed state.
//! Only what has another stamp is compiled. The task ends when the node is closed or the last handle is dropped, and
//! however it ends, the handles learn of it.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;

use super::Flags;
use super::book::FlagBook;
use super::shared::FlagsShared;
use super::source::{self, FlagName, FlagSource, SourceValue};
use super::usage::UsageReport;
use crate::error::{Author, Cause, LiveError, LiveSource, Rejected};
use crate::id::RunId;
use crate::store::entry::Entry;
use crate::store::watch::WatchOptions;
use crate::typed::kept::{self, Keeper};
use crate::typed::schema::is_schema;
use crate::typed::whole::{NextLook, WholeView, drain};
use crate::typed::{EndGuard, LastGood, LiveState, Store, boxed, writer, yield_once};

/// How flags are to start; [`Flags::builder`] makes it.
#[must_use = "flags begin with `start`"]
pub struct FlagsBuilder<S> {
    store: S,
    prefix: String,
    bundled: Option<String>,
    last_good: Option<Arc<dyn LastGood>>,
    is_reported: bool,
}

impl<S> std::fmt::Debug for FlagsBuilder<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlagsBuilder").field("prefix", &self.prefix).finish_non_exhaustive()
    }
}

impl<S: Store> FlagsBuilder<S> {
    pub(super) fn new(store: S, prefix: String) -> Self {
        Self { store, prefix, bundled: None, last_good: None, is_reported: false }
    }

    /// Definitions that the program brings with it, as a file in flagd's format. They make the set `default`, and count
    /// where neither this node nor an earlier run knows a flag, until the node has caught up with a peer.
    pub fn bundled(mut self, json: impl Into<String>) -> Self {
        self.bundled = Some(json.into());
        self
    }

    /// Counts evaluations, and writes them into the store every 10 s or less often: beside the prefix `flags/`, the key
    /// `flags-usage/day/SET/FLAG` holds the UTC day of the last evaluation on any node, and `flags-usage/node/NODE` the
    /// evaluations on one node since its start, by variant, as long as the node lives. All threads that evaluate one flag
    /// share its counters, so that an evaluation takes longer where many do so at once.
    ///
    /// The prefix has to end with a slash, or [`start`](Self::start) fails: the keys would be taken for flags.
    pub fn report_usage(mut self) -> Self {
        self.is_reported = true;
        self
    }

    /// Keeps the definitions for the next start.
    #[cfg_attr(not(feature = "node"), expect(dead_code, reason = "without a node there are no files"))]
    pub(crate) fn keep_in(mut self, last_good: impl LastGood) -> Self {
        self.last_good = Some(Arc::new(last_good));
        self
    }

    /// Starts. It does not wait for the cluster: until the node has caught up with a peer, the flags are
    /// [`LiveState::Stale`], and of each the newest definition counts that this node, the earlier run or the program has.
    /// What this node knows to be deleted does not count.
    ///
    /// # Errors
    /// [`LiveError::Rejected`] if the bundled definitions are not a file in flagd's format, or one of them is malformed:
    /// that is a fault of the program. A file of an earlier run that cannot be read is only reported.
    pub async fn start(self) -> Result<Flags<S>, LiveError> {
        if self.is_reported && (self.prefix.len() < 2 || !self.prefix.ends_with('/')) {
            let error = Cause::new("usage is reported only of flags whose prefix ends with a slash");
            return Err(LiveError::Rejected(vec![Rejected { from: None, path: String::new(), error }]));
        }
        let mut base = match &self.bundled {
            Some(json) => bundled(json).map_err(LiveError::Rejected)?,
            None => Vec::new(),
        };
        let prefix = self.prefix.clone();
        let decode = move |bytes: &[u8]| source::decode(&prefix, bytes);
        let kept = boxed(kept::read(self.store.view(), self.last_good.clone(), decode));
        let unreadable = match kept.await {
            Ok(kept) => {
                base.extend(kept.unwrap_or_default());
                None
            }
            Err(error) => Some(error),
        };
        Ok(self.begin(base, unreadable))
    }

    pub(super) fn begin(self, base: Vec<FlagSource>, unreadable: Option<Rejected>) -> Flags<S> {
        // Before the first look at the store, so that no change after it is missed.
        let watch = self.store.watch_with(&self.prefix, WatchOptions::new().without_current());
        let mut book = FlagBook::default();
        book.replace(base.clone());
        let shared = Arc::new(FlagsShared::new(book.sets(), self.is_reported));
        let store = self.store.view();
        let ended = shared.clone();
        let end = EndGuard::new(store.view(), &self.prefix, move || ended.end());
        let mut task = FlagsTask {
            store: self.store,
            view: WholeView::new(self.prefix.clone()),
            prefix: self.prefix,
            watch,
            book,
            shared: shared.clone(),
            pause: None,
            base: Some(base),
            has_caught_up: false,
            keeper: Keeper::new(self.last_good, unreadable),
            end,
        };
        task.view.look(&task.store);
        task.replace();
        if self.is_reported {
            store.spawn(UsageReport::new(store.view(), &task.prefix, shared.clone()).run());
        }
        store.spawn(task.run());
        Flags::with_parts(store, shared)
    }
}

/// The bundled definitions, all of which have to be in order.
fn bundled(json: &str) -> Result<Vec<FlagSource>, Vec<Rejected>> {
    const NAME: &str = "bundled";
    let from = Some(LiveSource::Layer { name: NAME.to_owned() });
    let wrong = |error| vec![Rejected { from, path: String::new(), error: Cause::new(error) }];
    let sources = source::of_file(json, NAME).map_err(wrong)?;
    let mut book = FlagBook::default();
    book.replace(sources.clone());
    let rejected = book.rejected();
    if rejected.is_empty() { Ok(sources) } else { Err(rejected) }
}

/// What the task has to do next.
enum FlagsCue {
    /// To look for definitions that have changed.
    Changed,
    /// To read them anew, from the store alone: the node has caught up.
    CaughtUp,
    /// To say what became of the file for the next start.
    Kept,
    /// Nothing any more.
    End,
}

struct FlagsTask<S: Store> {
    store: S,
    prefix: String,
    watch: S::Watch,
    view: WholeView,
    /// Until the next look, while the rest of a batch is awaited.
    pause: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    book: FlagBook,
    shared: Arc<FlagsShared>,
    /// What counts beside the store until the node has caught up and the view shows something. `None`: that alone
    /// counts.
    base: Option<Vec<FlagSource>>,
    has_caught_up: bool,
    keeper: Keeper,
    /// Also if the task is dropped before it has run.
    end: EndGuard<S>,
}

impl<S: Store> FlagsTask<S> {
    /// Follows the store until the node is closed or no handle is left.
    async fn run(mut self) {
        let mut caught_up = pin!(self.store.caught_up());
        loop {
            let cue = poll_fn(|cx| self.poll_cue(caught_up.as_mut(), cx)).await;
            if matches!(cue, FlagsCue::Kept) {
                self.publish();
                continue;
            }
            if matches!(cue, FlagsCue::End) || drain(&mut self.watch).await.is_none() {
                break;
            }
            self.has_caught_up |= matches!(cue, FlagsCue::CaughtUp);
            if self.look().is_none() {
                break;
            }
            self.keep();
            // Under a steady stream of writes nothing above need wait; other tasks of the runtime must run as well.
            yield_once().await;
        }
        // The handles need not wait for the disk.
        drop(self.end);
        self.keeper.finish(&self.store).await;
    }

    fn poll_cue(
        &mut self,
        caught_up: Pin<&mut impl Future<Output = bool>>,
        cx: &mut Context<'_>,
    ) -> Poll<FlagsCue> {
        if self.shared.is_abandoned(cx) {
            return Poll::Ready(FlagsCue::End);
        }
        if self.keeper.poll(&self.store, cx).is_ready() {
            return Poll::Ready(FlagsCue::Kept);
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
            return Poll::Ready(FlagsCue::Changed);
        }
        match Pin::new(&mut self.watch).poll_next(cx) {
            Poll::Ready(Some(_)) => return Poll::Ready(FlagsCue::Changed),
            Poll::Ready(None) => return Poll::Ready(FlagsCue::End),
            Poll::Pending => {}
        }
        if self.base.is_none() || self.has_caught_up {
            return Poll::Pending;
        }
        caught_up.poll(cx).map(|has_caught_up| if has_caught_up { FlagsCue::CaughtUp } else { FlagsCue::End })
    }

    /// Takes in what has changed, unless the rest of a batch is awaited. `None`: the node is closed.
    fn look(&mut self) -> Option<()> {
        if !self.has_caught_up {
            // What is there of the cluster before the node has caught up is a part anyhow.
            self.view.look(&self.store);
            self.replace();
            return Some(());
        }
        let next = self.view.seek(&self.store)?;
        self.pause = self.view.pause().map(|pause| boxed(self.store.sleep(pause)));
        let NextLook::Show(look) = next else {
            if self.view.is_late() && self.shared.state() != LiveState::Stale {
                self.publish();
            }
            return Some(());
        };
        let keys = self.view.take(look);
        if self.base.take().is_some() {
            self.replace();
            return Some(());
        }
        let mut writers = BTreeMap::new();
        let changes = keys.into_iter().filter(|key| !is_schema(key)).map(|key| {
            let source = self.view.entry(&key).map(|entry| self.source(entry, &mut writers));
            (FlagName::of_key(&key[self.prefix.len()..]), source)
        });
        self.book.apply(changes.collect());
        self.publish();
        Some(())
    }

    /// Takes in all definitions, and what counts beside the store.
    fn replace(&mut self) {
        // What the store knows of counts as the store has it: it may have been deleted.
        let is_unknown = |source: &&FlagSource| match &source.from {
            LiveSource::Key { key, stamp, .. } => !self.store.has_merged(key, *stamp),
            _ => true,
        };
        let mut sources: Vec<FlagSource> = self.base.iter().flatten().filter(is_unknown).cloned().collect();
        let mut writers = BTreeMap::new();
        let entries = self.view.entries().filter(|entry| !is_schema(entry.key()));
        sources.extend(entries.map(|entry| self.source(entry, &mut writers)));
        // Of several with one name the last one counts: that with the greatest stamp.
        sources.sort_by_key(FlagSource::stamp);
        self.book.replace(sources);
        self.publish();
    }

    fn source(&self, entry: &Entry, writers: &mut BTreeMap<RunId, Author>) -> FlagSource {
        let (key, stamp) = (entry.key().to_owned(), entry.stamp());
        let writer = writers.entry(entry.origin()).or_insert_with(|| writer(&self.store, stamp)).clone();
        let rest = key[self.prefix.len()..].to_owned();
        FlagSource::of_key(&rest, LiveSource::Key { key, stamp, writer }, SourceValue::Entry(entry.clone()))
    }

    /// Publishes what has changed.
    fn publish(&self) {
        let (sets, mut rejected) = (self.book.sets(), self.book.rejected());
        let state = match (&self.base, rejected.is_empty()) {
            (Some(_), _) => LiveState::Stale,
            _ if self.view.is_late() => LiveState::Stale,
            (None, true) => LiveState::Current,
            (None, false) => LiveState::Rejected,
        };
        rejected.extend(self.keeper.fault().cloned());
        let has_changed = !Arc::ptr_eq(&self.shared.sets(), &sets);
        if let Some(before) = self.shared.publish(has_changed.then_some(sets), state, &rejected) {
            self.store.note_rejected(&self.prefix, &before, &rejected);
        }
    }

    /// Keeps the definitions that are in force for the next start, once they are those of the cluster.
    fn keep(&mut self) {
        if self.base.is_none() && !self.view.is_late() && self.keeper.is_needed() {
            let kept = source::encode(&self.prefix, self.book.kept());
            self.keeper.keep(&self.store, kept);
        }
    }
}
