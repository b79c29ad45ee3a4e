//! What the handles of a live value and its task share: the value, what is said of it, and who waits for a change.
//!
//! The value is read without a lock. Everything else stands behind a lock that is held for a few instructions. No code
//! of the user runs under it: wakers and comparisons are called after it is released.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use arc_swap::ArcSwap;
use serde::{Deserialize, Serialize};

use super::layer::guarded;
use super::pieces::PieceTree;
use crate::error::Rejected;

/// Whether a [`Live`](crate::Live) follows the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum LiveState {
    /// The value is what the store and the layers hold.
    Current,
    /// The store or a layer holds something that is not acceptable. The value is the last good one, and
    /// [`Live::rejected`](crate::Live::rejected) says why.
    Rejected,
    /// The node has not caught up with a peer since its start. The value comes from the last good one of an earlier run
    /// and this node's own writes or, without one, from what this node holds itself. A node that goes on alone with
    /// what its disk holds takes that, and of the last good one what the disk does not know. Or a batch of another node
    /// has been arriving for more than 2 s: the value is the one before it, or at a start without one, what had come of
    /// the batch by then.
    Stale,
    /// The node is closed. The value does not change any more.
    Ended,
}

/// Whether two values differ in what a follower waits for.
pub(super) type Differs<T> = Box<dyn Fn(&T, &T) -> bool + Send + Sync>;

/// One who waits for changes of a live value, or of a part of it.
pub(super) struct LiveFollower<T> {
    /// `None`: every change counts.
    differs: Option<Differs<T>>,
    news: Mutex<LiveNews>,
}

#[derive(Default)]
struct LiveNews {
    /// The latest version in which something changed that the follower waits for.
    version: u64,
    is_over: bool,
    waker: Option<Waker>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl<T> LiveFollower<T> {
    /// Whether there is a version that was not seen, which is then. `None` if there will be no further one.
    pub(super) fn poll(&self, seen: &mut u64, cx: &mut Context<'_>) -> Poll<Option<()>> {
        let mut news = lock(&self.news);
        if news.version > *seen {
            *seen = news.version;
            return Poll::Ready(Some(()));
        }
        if news.is_over {
            return Poll::Ready(None);
        }
        let replaced = news.waker.replace(cx.waker().clone());
        drop(news);
        drop(replaced);
        Poll::Pending
    }

    /// The latest version in which something changed that the follower waits for.
    pub(super) fn version(&self) -> u64 {
        lock(&self.news).version
    }

    fn tell(&self, change: impl FnOnce(&mut LiveNews)) {
        let mut news = lock(&self.news);
        change(&mut news);
        let waker = news.waker.take();
        drop(news);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// What is said of the value.
struct LiveRecord<T> {
    version: u64,
    state: LiveState,
    rejected: Arc<[Rejected]>,
    tree: Arc<PieceTree>,
    followers: Vec<Weak<LiveFollower<T>>>,
}

/// What the handles ask of the task.
#[derive(Default)]
struct LiveRequests {
    waker: Option<Waker>,
    wants_reload: bool,
    has_no_reader: bool,
}

/// What a handle asks of the task.
pub(super) enum LiveRequest {
    Reload,
    /// The last handle is gone.
    End,
}

pub(super) struct LiveShared<T> {
    current: ArcSwap<T>,
    record: Mutex<LiveRecord<T>>,
    requests: Mutex<LiveRequests>,
}

impl<T> LiveShared<T> {
    pub(super) fn new(value: Arc<T>, tree: PieceTree, state: LiveState) -> Self {
        let (rejected, tree) = (Arc::default(), Arc::new(tree));
        Self {
            current: ArcSwap::new(value),
            record: Mutex::new(LiveRecord { version: 0, state, rejected, tree, followers: Vec::new() }),
            requests: Mutex::default(),
        }
    }

    pub(super) fn current(&self) -> &ArcSwap<T> {
        &self.current
    }

    pub(super) fn version(&self) -> u64 {
        lock(&self.record).version
    }

    pub(super) fn state(&self) -> LiveState {
        lock(&self.record).state
    }

    pub(super) fn rejected(&self) -> Arc<[Rejected]> {
        lock(&self.record).rejected.clone()
    }

    pub(super) fn tree(&self) -> Arc<PieceTree> {
        lock(&self.record).tree.clone()
    }

    /// Adds a follower. The changes before count for it as well.
    pub(super) fn follow(&self, differs: Option<Differs<T>>) -> Arc<LiveFollower<T>> {
        let mut record = lock(&self.record);
        let is_over = record.state == LiveState::Ended;
        let news = Mutex::new(LiveNews { version: record.version, is_over, waker: None });
        let follower = Arc::new(LiveFollower { differs, news });
        if record.followers.len() == record.followers.capacity() {
            record.followers.retain(|follower| follower.strong_count() > 0);
        }
        record.followers.push(Arc::downgrade(&follower));
        follower
    }

    /// Puts a new value in the place of the old one and wakes those for whom it differs. `None`: only its sources have
    /// changed.
    pub(super) fn publish(&self, value: Option<Arc<T>>, tree: PieceTree) {
        let mut record = lock(&self.record);
        record.tree = Arc::new(tree);
        let Some(value) = value else { return };
        record.version += 1;
        let version = record.version;
        let old = self.current.swap(value.clone());
        record.followers.retain(|follower| follower.strong_count() > 0);
        let followers: Vec<_> = record.followers.iter().filter_map(Weak::upgrade).collect();
        drop(record);
        for follower in followers {
            // A comparison that panics counts as a difference.
            let differs = |differs: &Differs<T>| guarded(|| Ok(differs(&old, &value))).unwrap_or(true);
            if follower.differs.as_ref().is_none_or(differs) {
                follower.tell(|news| news.version = version);
            }
        }
    }

    /// Notes the state and what is not applied. Returns what was not applied before, if that has changed.
    pub(super) fn note_state(&self, state: LiveState, rejected: &[Rejected]) -> Option<Arc<[Rejected]>> {
        let mut record = lock(&self.record);
        record.state = state;
        let has_changed = *record.rejected != *rejected;
        has_changed.then(|| std::mem::replace(&mut record.rejected, rejected.into()))
    }

    /// Ends the waiting of all followers. Returns what is not applied.
    pub(super) fn end(&self) -> Arc<[Rejected]> {
        let mut record = lock(&self.record);
        record.state = LiveState::Ended;
        let rejected = record.rejected.clone();
        let followers: Vec<_> =
            record.followers.drain(..).filter_map(|follower| follower.upgrade()).collect();
        drop(record);
        followers.iter().for_each(|follower| follower.tell(|news| news.is_over = true));
        rejected
    }

    pub(super) fn request(&self, request: &LiveRequest) {
        let mut requests = lock(&self.requests);
        match request {
            LiveRequest::Reload => requests.wants_reload = true,
            LiveRequest::End => requests.has_no_reader = true,
        }
        let waker = requests.waker.take();
        drop(requests);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// The next request to the task.
    pub(super) fn poll_request(&self, cx: &mut Context<'_>) -> Poll<LiveRequest> {
        let mut requests = lock(&self.requests);
        if requests.has_no_reader {
            return Poll::Ready(LiveRequest::End);
        }
        if std::mem::take(&mut requests.wants_reload) {
            return Poll::Ready(LiveRequest::Reload);
        }
        let replaced = requests.waker.replace(cx.waker().clone());
        drop(requests);
        drop(replaced);
        Poll::Pending
    }
}
