//! Watches whose items are whole: one for all that a batch has changed below a prefix.
//!
//! A [`Watch`](crate::Watch) reports key by key, so its reader cannot know where a batch ends. This one gives looks at the
//! store ([`WholeView`]). It needs no queue: what has changed since the last look is read when the reader asks for it.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, ready};

use futures_core::Stream;

use super::{NextLook, WholeView, drain};
use crate::store::WholeLook;
use crate::store::watch::WatchOptions;
use crate::typed::{self, Store, boxed};

/// A watch of all keys below a prefix that gives what each batch has changed at once; [`Store::watch_whole`] makes one.
///
/// The first item is what is there. Each later one holds everything that has changed since the one before, as it was at
/// one instant: a batch, or several of them, but never a part of one.
///
/// While a batch of another node is arriving the watch waits for the rest, for as long as it can be expected: the
/// writer is believed alive and sends, or a repair brings it. After 2 s [`is_late`](Self::is_late) says so. Only if
/// nothing that brings the rest is known for 2 s, as of a writer that has died, or nothing of a writer that is believed
/// alive comes for 60 s, the watch gives the part, and [`WholeLook::is_whole`] is `false`. It does not wait for that
/// writer again before something more of it has come.
///
/// The first item, which has nothing before it that could be shown meanwhile, is given after 2 s as it is then, with
/// `is_whole` as `false`; a further item follows as soon as there is a whole one, or the wait is given up.
///
/// It never has to start over: it knows what it has given, so it names each key that is gone since. It ends when the
/// node is closed, and does not keep its node alive.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let sim = tidings::sim::Sim::new(1).nodes(1);
/// # let node = sim.node(0);
/// node.put("app/old", "1")?;
/// let mut watch = node.watch_whole("app/");
/// assert_eq!(watch.next().await.unwrap().entries.len(), 1); // what is there
///
/// node.batch().put("app/host", "db").put("app/port", "5432").delete("app/old").commit()?;
/// let change = watch.next().await.unwrap();
/// let keys: Vec<&str> = change.entries.iter().map(|entry| entry.key()).collect();
/// assert_eq!((keys, change.gone), (vec!["app/host", "app/port"], vec!["app/old".to_owned()]));
/// # Ok(()) }
/// ```
pub struct WholeWatch<#[cfg(feature = "node")] S: Store = crate::Node, #[cfg(not(feature = "node"))] S: Store>
{
    /// The search for the next item. `None`: the node is closed.
    search: Option<Search<S>>,
    is_late: Arc<AtomicBool>,
}

type Search<S> = Pin<Box<dyn Future<Output = Option<(WholeFollower<S>, WholeLook)>> + Send>>;

/// What a watch knows of its keys.
struct WholeFollower<S: Store> {
    store: S,
    watch: S::Watch,
    view: WholeView,
    /// It has given an item.
    has_begun: bool,
    /// What it has given last is a part, and it searches for the rest.
    owes_rest: bool,
    is_late: Arc<AtomicBool>,
}

impl<S: Store> WholeFollower<S> {
    /// Looks for the next item. `None`: the node is closed.
    async fn search(mut self) -> Option<(Self, WholeLook)> {
        loop {
            match self.view.pause() {
                Some(pause) => self.store.sleep(pause).await,
                None if self.has_begun => _ = typed::next(&mut self.watch).await?,
                None => {}
            }
            drain(&mut self.watch).await?;
            let next = self.view.seek(&self.store)?;
            self.is_late.store(self.view.is_late(), Ordering::Relaxed);
            let NextLook::Show(look) = next else { continue };
            let news = self.view.take_news(look);
            // That the part was all there is is news as well.
            let has_rest = self.owes_rest && news.is_whole;
            self.owes_rest = self.view.pause().is_some();
            if !self.has_begun || has_rest || !news.entries.is_empty() || !news.gone.is_empty() {
                self.has_begun = true;
                return Some((self, news));
            }
        }
    }
}

impl<S: Store> WholeWatch<S> {
    pub(in crate::typed) fn new(store: S, prefix: &str) -> Self {
        let watch = store.watch_with(prefix, WatchOptions::new().without_current());
        let (view, is_late) = (WholeView::new(prefix), Arc::new(AtomicBool::default()));
        let (has_begun, owes_rest) = (false, false);
        let follower = WholeFollower { store, watch, view, has_begun, owes_rest, is_late: is_late.clone() };
        Self { search: Some(boxed(follower.search())), is_late }
    }

    /// Whether a batch of another node has been arriving for more than 2 s, so that what was given is older than what
    /// the node holds. It is known once [`next`](Self::next) waits.
    pub fn is_late(&self) -> bool {
        self.is_late.load(Ordering::Relaxed)
    }

    /// Waits for the next item. `None` once the node is closed. A `next` that is dropped while it waits loses nothing.
    pub async fn next(&mut self) -> Option<WholeLook> {
        typed::next(self).await
    }
}

impl<S: Store> Stream for WholeWatch<S> {
    type Item = WholeLook;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<WholeLook>> {
        let Some(search) = &mut self.search else { return Poll::Ready(None) };
        let (follower, item) = ready!(search.as_mut().poll(cx)).unzip();
        self.search = follower.map(|follower| boxed(follower.search()));
        Poll::Ready(item)
    }
}

impl<S: Store> std::fmt::Debug for WholeWatch<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WholeWatch")
            .field("is_over", &self.search.is_none())
            .field("is_late", &self.is_late)
            .finish()
    }
}
