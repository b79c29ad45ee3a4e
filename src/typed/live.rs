//! Live values: typed configuration that follows the store.
//!
//! A live value is made of one snapshot of the store, with layers under and over it. It is replaced as a whole by the
//! next one that is acceptable, so a reader never sees a mixture of two. What is not acceptable is not applied, and is
//! named with its key and its writer.
//!
//! One task per live value makes it ([`task`]). The handles read the latest one without a lock ([`shared`]). How it is
//! made is in [`plan`], of which pieces in [`pieces`].

mod builder;
mod keys;
mod last_good;
mod layer;
mod part;
mod pieces;
mod plan;
mod schema_put;
mod shared;
#[cfg(any(feature = "config", feature = "figment"))]
mod source;
mod task;

use std::ops::Deref;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;

pub use builder::LiveBuilder;
pub use layer::{Layer, Values};
pub use part::LivePart;
pub use shared::LiveState;
use shared::{LiveFollower, LiveRequest, LiveShared};
#[cfg(any(feature = "config", feature = "figment"))]
pub use source::StoreSource;

use super::Store;
use crate::error::{LiveSource, Rejected};

/// One typed value, usually a struct of settings, that follows the store.
///
/// It is made of the keys with a prefix: their parts between `/` are the fields, and their values are JSON, so that the
/// key `app/db/pool` with the value `5` is the field `db.pool` of the prefix `app/`. Keys that end in `$schema` hold JSON
/// Schemas ([`SCHEMA_SUFFIX`](crate::map::SCHEMA_SUFFIX)) and are no fields. With
/// [`exact`](LiveBuilder::exact) it is the JSON value of one key. Layers under and over the store add what other sources
/// give, such as files and environment variables.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let node = tidings::sim::Sim::new(1).nodes(1);
/// # let mut sim = node;
/// # let node = sim.node(0);
/// use tidings::Live;
/// use tidings::live::LiveState;
///
/// #[derive(serde::Deserialize)]
/// struct App { db: Db }
/// #[derive(serde::Deserialize)]
/// struct Db { pool: u32 }
///
/// fn check(app: &App) -> Result<(), String> {
///     if app.db.pool == 0 { Err("db.pool must be at least 1".into()) } else { Ok(()) }
/// }
///
/// node.put("app/db/pool", "5")?;
/// let mut config: Live<App> = Live::builder(&node, "app/").validate(check).start().await?;
/// assert_eq!(config.load().db.pool, 5);
///
/// node.put("app/db/pool", "6")?;
/// # sim.run_for(std::time::Duration::from_millis(1));
/// assert_eq!(config.changed().await.unwrap().db.pool, 6);
///
/// node.put("app/db/pool", "0")?; // not acceptable: the last good value stays
/// # sim.run_for(std::time::Duration::from_millis(1));
/// # assert_eq!(config.state(), LiveState::Rejected);
/// assert_eq!(config.load().db.pool, 6);
/// println!("{}", config.rejected()[0]); // the key "app/db/pool" (written by ..): db.pool must be at least 1
/// # assert!(config.rejected()[0].to_string().contains("app/db/pool"));
/// # Ok(()) }
/// ```
///
/// # What is promised
///
/// * **Whole.** A value is made of one snapshot. A batch is in it as a whole or not at all, also one of
///   another node; the part that is there is taken only if the rest cannot be expected, see
///   [the guide](crate::guide::live#limits).
/// * **Never silently stale.** Every change under the prefix leads to a new value or to a rejection. While the rest of
///   a batch is awaited for more than 2 s the state is [`LiveState::Stale`]. When the node is closed,
///   [`changed`](Self::changed) answers `None` and [`state`](Self::state) is [`LiveState::Ended`].
/// * **Never invalid.** What does not decode, or is refused by [`validate`](LiveBuilder::validate), is not applied.
///   [`rejected`](Self::rejected) names it; a node also logs it, reports `NodeEvent::Rejected`, shows it in
///   `NodeStatus::rejected` and records the metric `tidings_live_rejected`.
///
/// A `Live` is cheap to clone. A clone has seen what the original has seen, and then follows by itself. The task behind
/// it ends when the last clone is dropped. It does not keep its node alive. It is also a stream of its values.
pub struct Live<T> {
    shared: Arc<LiveShared<T>>,
    life: Arc<LiveGuard<T>>,
    /// The version that this handle has given out last.
    seen: u64,
    /// Made when this handle first waits.
    follower: Option<Arc<LiveFollower<T>>>,
}

/// Ends the task when the last handle is dropped.
struct LiveGuard<T>(Arc<LiveShared<T>>);

impl<T> Drop for LiveGuard<T> {
    fn drop(&mut self) {
        self.0.request(&LiveRequest::End);
    }
}

impl<T> Clone for Live<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), life: self.life.clone(), seen: self.seen, follower: None }
    }
}

impl<T> std::fmt::Debug for Live<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Live").field("state", &self.state()).finish_non_exhaustive()
    }
}

impl<T> Live<T> {
    /// A live value of the keys that begin with `prefix`, or with [`exact`](LiveBuilder::exact) of one key. Nothing
    /// begins before [`LiveBuilder::start`].
    pub fn builder<S: Store>(store: &S, prefix: impl Into<String>) -> LiveBuilder<T, S> {
        LiveBuilder::new(store.view(), prefix.into())
    }

    fn new(shared: Arc<LiveShared<T>>) -> Self {
        Self { life: Arc::new(LiveGuard(shared.clone())), seen: shared.version(), shared, follower: None }
    }

    /// The present value. It costs about as much as an atomic load, never waits, and allocates nothing. Two loads may
    /// give different values: load once for what belongs together.
    pub fn load(&self) -> Loaded<T> {
        Loaded(self.shared.current().load())
    }

    /// The present value, to be kept for long.
    pub fn load_full(&self) -> Arc<T> {
        self.shared.current().load_full()
    }

    /// Waits for a value that this handle has not seen: that is later than the one at its start, or than the last one
    /// that `changed` gave. Several changes since then are one. `None` once the node is closed and the last value was
    /// seen. A `changed` that is dropped while it waits loses nothing.
    pub async fn changed(&mut self) -> Option<Arc<T>> {
        super::next(self).await
    }

    /// A part of the value. It wakes only if that part changes.
    ///
    /// ```
    /// # #[tokio::main(flavor = "current_thread")] async fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # let mut sim = tidings::sim::Sim::new(1).nodes(1);
    /// # let node = sim.node(0);
    /// use std::collections::BTreeMap;
    /// use tidings::Live;
    ///
    /// node.batch().put("app/name", "\"shop\"").put("app/port", "80").commit()?;
    /// let config: Live<BTreeMap<String, serde_json::Value>> = Live::builder(&node, "app/").start().await?;
    /// let mut port = config.select(|app| &app["port"]);
    /// node.put("app/name", "\"store\"")?; // wakes nobody
    /// # sim.run_for(std::time::Duration::from_millis(1));
    /// node.put("app/port", "81")?;
    /// # sim.run_for(std::time::Duration::from_millis(1));
    /// assert_eq!(port.changed().await, Some(81.into()));
    /// # Ok(()) }
    /// ```
    pub fn select<U: Clone + PartialEq + 'static>(
        &self,
        part: impl Fn(&T) -> &U + Send + Sync + 'static,
    ) -> LivePart<T, U>
    where
        T: 'static,
    {
        LivePart::new(self.clone(), part)
    }

    /// Whether the value follows the store.
    pub fn state(&self) -> LiveState {
        self.shared.state()
    }

    /// What is not applied now, and why. Empty while all is well.
    pub fn rejected(&self) -> Arc<[Rejected]> {
        self.shared.rejected()
    }

    /// Where a field of the present value comes from, as `db.pool`: all layers and keys that set it or something within
    /// it, the one in force first. An empty path asks for the whole value. Empty if the value has no such field.
    pub fn why(&self, path: impl AsRef<str>) -> Vec<LiveSource> {
        self.shared.tree().why(path.as_ref())
    }

    /// Makes the value anew although nothing in the store has changed, for instance because a file of a layer has.
    pub fn reload(&self) {
        self.shared.request(&LiveRequest::Reload);
    }

    fn poll_changed(&mut self, cx: &mut Context<'_>) -> Poll<Option<()>> {
        let follower = self.follower.get_or_insert_with(|| self.shared.follow(None));
        follower.poll(&mut self.seen, cx)
    }
}

impl<T> Stream for Live<T> {
    type Item = Arc<T>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Arc<T>>> {
        let live = self.get_mut();
        let news = ready!(live.poll_changed(cx));
        Poll::Ready(news.map(|()| live.load_full()))
    }
}

/// A value that [`Live::load`] gave. It stays as it is; the next load may give another one.
pub struct Loaded<T>(arc_swap::Guard<Arc<T>>);

impl<T> Deref for Loaded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: std::fmt::Debug> std::fmt::Debug for Loaded<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        (**self).fmt(f)
    }
}
