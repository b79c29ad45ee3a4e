//! The trait [`Store`], and the views that are written over it: batches, sets, counters, typed maps and live values.
//!
//! The trait exists so that user code runs on a node and in the simulator. Views use its verbs alone, so there is one of
//! each for both. Nothing here may know what is behind the trait; a node is named only as the default of a type
//! parameter.

mod batch;
mod counter;
#[cfg(feature = "json")]
mod end;
#[cfg(feature = "json")]
pub(crate) mod kept;
#[cfg(feature = "json")]
mod live;
#[cfg(feature = "json")]
mod map;
#[cfg(feature = "crdts")]
mod merged;
#[cfg(feature = "json")]
pub(crate) mod schema;
mod set;
#[cfg(feature = "json")]
pub(crate) mod whole;

use std::pin::Pin;
#[cfg(feature = "json")]
use std::task::Poll;
use std::time::{Duration, SystemTime};

use futures_core::Stream;

pub use batch::WriteBatch;
pub use counter::{Counter, CounterWatch};
#[cfg(feature = "json")]
pub(crate) use end::EndGuard;
#[cfg(feature = "json")]
pub(crate) use kept::LastGood;
#[cfg(any(feature = "config", feature = "figment"))]
pub use live::StoreSource;
#[cfg(feature = "json")]
pub use live::{Layer, Live, LiveBuilder, LivePart, LiveState, Loaded, Values};
#[cfg(feature = "json")]
pub use map::{Codec, Json, Map, MapEntry, MapEvent, MapWatch};
#[cfg(feature = "crdts")]
pub use merged::Merged;
#[cfg(feature = "json")]
pub use schema::{SCHEMA_OF_FIELDS, SCHEMA_SUFFIX};
pub use set::Set;
#[cfg(feature = "json")]
pub use whole::{LateBatch, WholeWatch};

use crate::config::BATCH_WRITES_MAX;
use crate::error::WriteError;
#[cfg(feature = "json")]
use crate::error::{Author, Rejected};
use crate::membership::Member;
use crate::replica::{Batch, PutOptions};
use crate::store::OnlyIf;
#[cfg(feature = "json")]
use crate::store::WholeLook;
use crate::store::entry::{Entry, Revision};
use crate::store::watch::{WatchEvent, WatchOptions};
use crate::time::Stamp;

/// The verbs that a `Node` and a node of a simulation ([`SimNode`](crate::sim::SimNode)) have in common, for code that
/// runs on both. Both have the same verbs without this trait; timers, tasks and what else views need are here alone.
///
/// A handle is cheap to clone, and all clones are handles to the same node.
///
/// ```
/// use tidings::{Store, WriteError, sim::Sim};
///
/// /// Renames a key, on a node or in a simulation.
/// fn rename(store: &impl Store, from: &str, to: &str) -> Result<(), WriteError> {
///     if let Some(entry) = store.get(from) {
///         store.batch().put(to, entry.value()).delete(from).commit()?;
///     }
///     Ok(())
/// }
///
/// let sim = Sim::new(1).nodes(1);
/// sim.node(0).put("old", "v")?;
/// rename(&sim.node(0), "old", "new")?;
/// assert_eq!(sim.node(0).get("new").unwrap().value(), b"v");
/// # Ok::<(), WriteError>(())
/// ```
pub trait Store: Clone + Send + Sync + 'static {
    /// What a write returns.
    type Receipt: WriteReceipt;
    /// A watch: first the current values, then [`WatchEvent::Current`], then every change until the node is closed.
    type Watch: Stream<Item = WatchEvent> + Unpin + Send;

    /// The node's name.
    fn name(&self) -> &str;

    /// Another handle to the same node, which does not keep the node alive. Views hold such handles.
    #[must_use]
    fn view(&self) -> Self;

    /// Writes a value under a condition, with a time to live, or both.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    fn put_with(&self, key: &str, value: &[u8], options: PutOptions) -> Result<Self::Receipt, WriteError>;

    /// Deletes a key: what it holds on this node is removed everywhere, for ever.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    fn delete(&self, key: &str) -> Result<Self::Receipt, WriteError>;

    /// Deletes a key under a condition, which is compared with what this node holds.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    fn delete_if(&self, key: &str, only_if: OnlyIf) -> Result<Self::Receipt, WriteError>;

    /// Applies all writes of a batch, or none if one is not acceptable. [`Store::batch`] makes one.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    fn commit(&self, batch: &Batch) -> Result<Self::Receipt, WriteError>;

    /// The value of a key.
    fn get(&self, key: &str) -> Option<Entry>;

    /// Whether the key of an entry, which [`get`](Self::get) gave earlier, still holds exactly that: the same write and no
    /// other beside it. It costs less than to read the key again.
    #[cfg(feature = "json")]
    fn is_current(&self, entry: &Entry) -> bool {
        let now = self.get(entry.key());
        now.is_some_and(|now| now.is_same_write(entry) && now.conflicts().next().is_none())
    }

    /// A number that every change of the key of an entry changes, except the end of a time to live; so do changes of a few
    /// other keys. While it stays the same, what was read of the key is current. `None`: it is not known at this moment.
    #[cfg(feature = "json")]
    fn changes(&self, entry: &Entry) -> Option<u64> {
        _ = entry;
        None
    }

    /// All entries whose key begins with `prefix`, in key order, as they were at one instant.
    fn scan(&self, prefix: &str) -> Vec<Entry>;

    /// What [`scan`](Self::scan) gives, and whether it is whole: a batch of another node that writes some of these keys,
    /// or deletes some of the keys `held`, has arrived. The store knows that a batch has arrived once the writer has said
    /// that it has sent everything up to there. `None`: the node is closed.
    #[cfg(feature = "json")]
    fn scan_whole(&self, prefix: &str, held: &[String]) -> Option<WholeLook>;

    /// What has changed below a prefix since a look that was whole, and whether that is whole as well. `None`: the node
    /// does not know it any more, and [`scan_whole`](Self::scan_whole) tells what is there now.
    #[cfg(feature = "json")]
    fn changes_whole(&self, prefix: &str, since: Revision) -> Option<WholeLook>;

    /// The first `rows` entries (at most 1,024) whose key begins with `prefix` and comes behind `after` in key order, as
    /// they were at one instant.
    fn scan_page(&self, prefix: &str, after: Option<&str>, rows: usize) -> Vec<Entry>;

    /// The number of entries, those of sets and counters included.
    fn len(&self) -> usize;

    /// Watches with options: one key alone, from an earlier position on, or changes only.
    fn watch_with(&self, prefix: &str, options: WatchOptions) -> Self::Watch;

    /// [`Set::add_with`].
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    fn set_add_with(
        &self,
        set: &str,
        element: &str,
        options: PutOptions,
    ) -> Result<Self::Receipt, WriteError>;

    /// [`Set::remove`].
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    fn set_remove(&self, set: &str, element: &str) -> Result<Self::Receipt, WriteError>;

    /// [`Set::contains`].
    fn set_contains(&self, set: &str, element: &str) -> bool;

    /// [`Set::entry`].
    fn set_entry(&self, set: &str, element: &str) -> Option<Entry>;

    /// [`Set::iter`].
    fn set_iter(&self, set: &str) -> impl Iterator<Item = String> + use<Self>;

    /// [`Set::entries`].
    fn set_entries(&self, set: &str, after: Option<&str>, rows: usize) -> Vec<Entry>;

    /// [`Set::len`].
    fn set_len(&self, set: &str) -> usize;

    /// [`Set::watch_with`].
    fn set_watch(&self, set: &str, options: WatchOptions) -> Self::Watch;

    /// [`Counter::add`].
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    fn counter_add(&self, counter: &str, by: i64) -> Result<Self::Receipt, WriteError>;

    /// [`Counter::value`].
    fn counter_value(&self, counter: &str) -> i64;

    /// Watches what a counter is made of. [`Counter::watch`] gives its values instead.
    fn counter_changes(&self, counter: &str) -> Self::Watch;

    /// The names of all sets that begin with `prefix` and have elements, in order. The names are read in parts of 1,024,
    /// so they are not those of one instant.
    fn sets(&self, prefix: &str) -> Vec<String>;

    /// The names of all counters that begin with `prefix`, in order, as [`Store::sets`] reads them. A counter is listed
    /// once somebody has added to it, also where it stands at 0.
    fn counters(&self, prefix: &str) -> Vec<String>;

    /// The time of the node's wall clock; in a simulation virtual time.
    fn now(&self) -> SystemTime;

    /// A timer: on a node of its runtime, in a simulation in virtual time.
    ///
    /// ```
    /// use std::time::Duration;
    /// use tidings::{Store, sim::Sim};
    ///
    /// /// Counts the seconds, on a node or in a simulation.
    /// async fn tick(store: impl Store) {
    ///     loop {
    ///         store.sleep(Duration::from_secs(1)).await;
    ///         store.counter("seconds").add(1).expect("the node accepts writes");
    ///     }
    /// }
    ///
    /// let mut sim = Sim::new(1).nodes(1);
    /// sim.node(0).spawn(tick(sim.node(0)));
    /// sim.run_for(Duration::from_millis(3_500));
    /// assert_eq!(sim.node(0).counter("seconds").value(), 3);
    /// ```
    fn sleep(&self, time: Duration) -> impl Future<Output = ()> + Send + use<Self>;

    /// Runs a task in the background: on a node in its runtime, in a simulation as
    /// [`Sim::spawn`](crate::sim::Sim::spawn) does. A task that is to end with the node must end when its watch ends.
    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static);

    /// Does work that may block, such as reading a file: on a node beside the threads of its runtime, in a simulation
    /// at once. `None` if the work panicked or the runtime ends.
    fn blocking<R, W>(&self, work: W) -> impl Future<Output = Option<R>> + Send + use<Self, R, W>
    where
        R: Send + 'static,
        W: FnOnce() -> R + Send + 'static;

    /// Waits until the node has caught up with one peer; at once where there is no peer to catch up with. A node that had
    /// caught up before it was restarted waits for a peer at most for [`Config::alone_after`](crate::Config::alone_after)
    /// and goes on with what its disk holds, as [`NodeStatus::readiness`](crate::NodeStatus::readiness) tells. `false` if
    /// the node was closed before.
    fn joined(&self) -> impl Future<Output = bool> + Send + use<Self>;

    /// Waits until the node has caught up with one peer since its start; at once where there is no peer to catch up
    /// with. A node that goes on alone with what its disk holds has not: what [`joined`](Self::joined) waits for, and
    /// this does not, is [`Readiness::Alone`](crate::status::Readiness::Alone) of a node with seeds. `false` if the
    /// node was closed before.
    fn caught_up(&self) -> impl Future<Output = bool> + Send + use<Self>;

    /// Whether the node has merged the write of this key that has this stamp: it holds what was written, or knows that
    /// it was replaced, deleted or has expired.
    fn has_merged(&self, key: &str, stamp: Stamp) -> bool;

    /// The member whose run wrote what has this stamp. Known of living members and of those that are gone and not
    /// forgotten yet. Of the earlier runs of a member those are known, without metadata, that were replaced while this
    /// node ran and less than [`Config::forget_after`](crate::Config::forget_after) ago.
    fn member_of(&self, stamp: Stamp) -> Option<Member>;

    /// Hears what a live value called `live` does not apply, whenever that changes, also when the live value ends: what it
    /// was before, and what it is now. Several live values may have one name. A node logs what is new, reports it as
    /// events, and shows what all of them do not apply in its status and as a metric.
    #[cfg(feature = "json")]
    fn note_rejected(&self, live: &str, before: &[Rejected], now: &[Rejected]) {
        _ = (live, before, now);
    }

    /// Hears that a view of the keys below `prefix` waits long for the rest of a batch, or shows a part of one. A node
    /// logs it.
    #[cfg(feature = "json")]
    fn note_late(&self, prefix: &str, batch: &LateBatch) {
        _ = (prefix, batch);
    }

    /// Writes a value.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    fn put(&self, key: &str, value: &[u8]) -> Result<Self::Receipt, WriteError> {
        self.put_with(key, value, PutOptions::new())
    }

    /// Writes a value unless the key holds exactly that: one value with these bytes, which does not expire and has no
    /// conflicts. `None` if there was nothing to do.
    ///
    /// It compares with what this node holds. A node that has just started holds nothing until it has caught up
    /// ([`joined`](Self::joined)): what it writes before is concurrent with the values of the others, also if the bytes
    /// are the same, and stays beside them until the next write of a node that has both.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written then.
    fn put_if_changed(&self, key: &str, value: &[u8]) -> Result<Option<Self::Receipt>, WriteError> {
        let is_same = |entry: &Entry| {
            let is_limited = entry.expires_at().is_some() || entry.is_ephemeral();
            entry.value() == value && !is_limited && entry.conflicts().next().is_none()
        };
        if self.get(key).as_ref().is_some_and(is_same) {
            return Ok(None);
        }
        self.put(key, value).map(Some)
    }

    /// Deletes all keys that begin with `prefix` and have a value now. With more than 65,536 keys
    /// ([`BATCH_WRITES_MAX`]), they are deleted in several steps of so many. Returns how many were deleted.
    ///
    /// # Errors
    /// See [`WriteError`]; nothing is written in that step. Earlier steps stand.
    fn delete_prefix(&self, prefix: &str) -> Result<usize, WriteError> {
        let keys = self.scan(prefix);
        for part in keys.chunks(BATCH_WRITES_MAX) {
            self.commit(&part.iter().fold(Batch::new(), |batch, entry| batch.delete(entry.key())))?;
        }
        Ok(keys.len())
    }

    /// Watches all keys that begin with `prefix`: first the current values, then every change.
    fn watch(&self, prefix: &str) -> Self::Watch {
        self.watch_with(prefix, WatchOptions::new())
    }

    /// Watches all keys that begin with `prefix`, with everything that a batch has changed in one item.
    #[cfg(feature = "json")]
    fn watch_whole(&self, prefix: &str) -> WholeWatch<Self> {
        WholeWatch::new(self.view(), prefix)
    }

    /// Whether the store holds nothing.
    fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An empty batch of writes, which [`WriteBatch::commit`] applies in one local step.
    fn batch(&self) -> WriteBatch<Self> {
        WriteBatch::new(self.view())
    }

    /// The set of this name, whose elements are strings.
    fn set(&self, name: &str) -> Set<Self> {
        Set::new(self.view(), name.to_owned())
    }

    /// The counter of this name.
    fn counter(&self, name: &str) -> Counter<Self> {
        Counter::new(self.view(), name.to_owned())
    }

    /// The keys that begin with `prefix`, as a map of values of type `T`, stored as JSON.
    #[cfg(feature = "json")]
    fn map<T>(&self, prefix: &str) -> Map<T, Self> {
        Map::new(self.view(), prefix.to_owned())
    }

    /// The value of this key, whose concurrent versions are joined by their type, stored as JSON.
    #[cfg(feature = "crdts")]
    fn merged<T: crdts::CvRDT + Clone>(&self, key: &str) -> Merged<T, Self> {
        Merged::new(self.view(), key.to_owned())
    }
}

/// Proof that a write was accepted, by a `Node` or by a node of a simulation.
pub trait WriteReceipt: Clone + std::fmt::Debug + Send + Sync + 'static {
    /// The write's stamp. `None` if there was nothing to do, as when a key is deleted that holds nothing.
    fn stamp(&self) -> Option<Stamp>;

    /// The position of the write in the node's change log.
    fn revision(&self) -> Revision;
}

/// Who wrote what has this stamp.
#[cfg(feature = "json")]
pub(crate) fn writer(store: &impl Store, stamp: Stamp) -> Author {
    Author { run: stamp.origin, name: store.member_of(stamp).map(|member| member.name) }
}

/// A future behind a pointer: then the caller's own future is `Send`, which compilers cannot infer otherwise.
#[cfg(feature = "json")]
pub(crate) fn boxed<T>(
    future: impl Future<Output = T> + Send + 'static,
) -> Pin<Box<dyn Future<Output = T> + Send>> {
    Box::pin(future)
}

/// Lets other tasks run before this one goes on.
#[cfg(feature = "json")]
pub(crate) async fn yield_once() {
    let mut has_yielded = false;
    std::future::poll_fn(|cx| {
        if std::mem::replace(&mut has_yielded, true) {
            return Poll::Ready(());
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    })
    .await;
}

/// Waits for the next item of a stream. A future that is dropped while it waits has taken nothing from the stream.
pub(crate) async fn next<S: Stream + Unpin>(stream: &mut S) -> Option<S::Item> {
    std::future::poll_fn(|cx| Pin::new(&mut *stream).poll_next(cx)).await
}
