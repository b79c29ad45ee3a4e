//! Watches whose items are whole: one for all that a batch has changed below a prefix.
//!
//! A [`Watch`](crate::Watch) reports key by key, so its reader cannot know where a batch ends. This one gives looks at the
//! store ([`WholeView`]). It needs no queue: what has changed since the last look is read when the reader asks for it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use futures_core::Stream;

use super::{WholeView, drain};
use crate::store::WholeLook;
use crate::store::watch::WatchOptions;
use crate::typed::{self, Store, boxed};

/// A watch of all keys below a prefix that gives what each batch has changed at once; [`Store::watch_whole`] makes one.
///
/// The first item is what is there. Each later one holds everything that has changed since the one before, as it was at
/// one instant: a batch, or several of them, but never a part of one. While a batch of another node is arriving the
/// watch waits for the rest, at most 2 s. If the rest does not come in that time, as of a writer that was cut off, it
/// gives the part, and [`WholeLook::is_whole`] is `false`. It does not wait for that rest again.
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
}

type Search<S> = Pin<Box<dyn Future<Output = Option<(WholeFollower<S>, WholeLook)>> + Send>>;

/// What a watch knows of its keys.
struct WholeFollower<S: Store> {
    store: S,
    watch: S::Watch,
    view: WholeView,
    /// It has given an item.
    has_begun: bool,
}

impl<S: Store> WholeFollower<S> {
    /// Looks for the next item. `None`: the node is closed.
    async fn search(mut self) -> Option<(Self, WholeLook)> {
        loop {
            if self.has_begun {
                typed::next(&mut self.watch).await?;
            }
            drain(&mut self.watch).await?;
            let look = self.view.await_whole(&self.store).await?;
            let news = self.view.take_news(look);
            if !self.has_begun || !news.entries.is_empty() || !news.gone.is_empty() {
                self.has_begun = true;
                return Some((self, news));
            }
        }
    }
}

impl<S: Store> WholeWatch<S> {
    pub(in crate::typed) fn new(store: S, prefix: &str) -> Self {
        let watch = store.watch_with(prefix, WatchOptions::new().without_current());
        let follower = WholeFollower { store, watch, view: WholeView::new(prefix), has_begun: false };
        Self { search: Some(boxed(follower.search())) }
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
        f.debug_struct("WholeWatch").field("is_over", &self.search.is_none()).finish()
    }
}
