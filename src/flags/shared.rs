//! What the handles of flags and their task share, and the events that are made of it.
//!
//! The compiled flags are read without a lock. Everything else stands behind a lock that is held for a few instructions;
//! wakers are called after it is released.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Waker};

use arc_swap::ArcSwap;
use futures_core::Stream;
use serde::{Serialize, Serializer};

use super::sets::{FlagSet, FlagSets, changed, is_common_changed};
use crate::error::Rejected;
use crate::typed::{self, LiveState};

#[derive(Default)]
struct FlagsWaiter(Mutex<Option<Waker>>);

impl FlagsWaiter {
    fn register(&self, cx: &Context<'_>) {
        let replaced = lock(&self.0).replace(cx.waker().clone());
        drop(replaced);
    }

    fn wake(&self) {
        let waker = lock(&self.0).take();
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

struct FlagsRecord {
    state: LiveState,
    rejected: Arc<[Rejected]>,
    waiters: Vec<Weak<FlagsWaiter>>,
    is_abandoned: bool,
}

pub(super) struct FlagsShared {
    current: ArcSwap<FlagSets>,
    /// Evaluations are counted, because they are reported.
    is_counted: bool,
    record: Mutex<FlagsRecord>,
    /// Wakes the task.
    task: FlagsWaiter,
}

impl FlagsShared {
    pub(super) fn new(sets: Arc<FlagSets>, is_counted: bool) -> Self {
        let (state, rejected, waiters) = (LiveState::Stale, Arc::default(), Vec::new());
        let record = Mutex::new(FlagsRecord { state, rejected, waiters, is_abandoned: false });
        Self { current: ArcSwap::new(sets), is_counted, record, task: FlagsWaiter::default() }
    }

    pub(super) fn current(&self) -> &ArcSwap<FlagSets> {
        &self.current
    }

    pub(super) fn is_counted(&self) -> bool {
        self.is_counted
    }

    pub(super) fn sets(&self) -> Arc<FlagSets> {
        self.current.load_full()
    }

    pub(super) fn state(&self) -> LiveState {
        lock(&self.record).state
    }

    pub(super) fn rejected(&self) -> Arc<[Rejected]> {
        lock(&self.record).rejected.clone()
    }

    /// Puts a new state in the place of the old one and wakes who waits. Returns what was malformed before, if that has
    /// changed.
    pub(super) fn publish(
        &self,
        sets: Option<Arc<FlagSets>>,
        state: LiveState,
        rejected: &[Rejected],
    ) -> Option<Arc<[Rejected]>> {
        if let Some(sets) = sets {
            self.current.store(sets);
        }
        let mut record = lock(&self.record);
        record.state = state;
        let before =
            (*record.rejected != *rejected).then(|| std::mem::replace(&mut record.rejected, rejected.into()));
        record.waiters.retain(|waiter| waiter.strong_count() > 0);
        let waiters: Vec<_> = record.waiters.iter().filter_map(Weak::upgrade).collect();
        drop(record);
        waiters.iter().for_each(|waiter| waiter.wake());
        before
    }

    /// The node is closed or the task was dropped. Returns what is malformed.
    pub(super) fn end(&self) -> Arc<[Rejected]> {
        let rejected = self.rejected();
        self.publish(None, LiveState::Ended, &rejected);
        rejected
    }

    /// The last handle is gone.
    pub(super) fn request_end(&self) {
        lock(&self.record).is_abandoned = true;
        self.task.wake();
    }

    /// Whether the last handle is gone.
    pub(super) fn has_no_handle(&self) -> bool {
        lock(&self.record).is_abandoned
    }

    /// The same; the task is woken when it is.
    pub(super) fn is_abandoned(&self, cx: &Context<'_>) -> bool {
        self.task.register(cx);
        lock(&self.record).is_abandoned
    }

    fn follow(&self) -> Arc<FlagsWaiter> {
        let waiter = Arc::new(FlagsWaiter::default());
        let mut record = lock(&self.record);
        if record.waiters.len() == record.waiters.capacity() {
            record.waiters.retain(|waiter| waiter.strong_count() > 0);
        }
        record.waiters.push(Arc::downgrade(&waiter));
        waiter
    }
}

/// An event of [`FlagsEvents`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[non_exhaustive]
#[serde(rename_all = "snake_case")]
pub enum FlagsEvent {
    /// The flags are those of the store, and follow it.
    Ready,
    /// The node has not caught up with a peer since the flags were started: they come from what this node holds, from
    /// an earlier run or from the program. Or a batch of another node has been arriving for more than 2 s: they are
    /// those before it.
    Stale,
    /// These flags have other definitions now, are new or are gone, in the order of their names. Without a name: only the
    /// metadata of the set, or the rules that its flags share, are others now.
    Changed(#[serde(serialize_with = "write_names")] Vec<Arc<str>>),
    /// The node is closed. The flags stay as they are, and no further event comes.
    Closed,
}

fn write_names<S: Serializer>(names: &[Arc<str>], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(names.iter().map(|name| &**name))
}

/// The events of the flags of one set; [`Flags::events`](super::Flags::events) gives them.
pub struct FlagsEvents {
    shared: Arc<FlagsShared>,
    set: Arc<str>,
    waiter: Arc<FlagsWaiter>,
    seen_state: Option<LiveState>,
    seen: Option<Arc<FlagSet>>,
}

impl std::fmt::Debug for FlagsEvents {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("FlagsEvents").field("set", &self.set).finish_non_exhaustive()
    }
}

impl FlagsEvents {
    pub(super) fn new(shared: Arc<FlagsShared>, set: Arc<str>) -> Self {
        let (waiter, seen) = (shared.follow(), shared.sets().get(&set).cloned());
        Self { shared, set, waiter, seen_state: None, seen }
    }

    /// Waits for the next event. `None` after [`FlagsEvent::Closed`]. A `next` that is dropped while it waits loses
    /// nothing.
    pub async fn next(&mut self) -> Option<FlagsEvent> {
        typed::next(self).await
    }

    fn take(&mut self) -> Option<FlagsEvent> {
        // The state first: what was published before it is seen then.
        let state = match self.shared.state() {
            LiveState::Rejected => LiveState::Current,
            other => other,
        };
        let now = self.shared.sets().get(&self.set).cloned();
        let flags = changed(self.seen.as_ref(), now.as_ref());
        let is_common_changed = is_common_changed(self.seen.as_ref(), now.as_ref());
        self.seen = now;
        if !flags.is_empty() || is_common_changed {
            return Some(FlagsEvent::Changed(flags));
        }
        if self.seen_state == Some(state) {
            return None;
        }
        self.seen_state = Some(state);
        Some(match state {
            LiveState::Stale => FlagsEvent::Stale,
            LiveState::Ended => FlagsEvent::Closed,
            _ => FlagsEvent::Ready,
        })
    }
}

impl Stream for FlagsEvents {
    type Item = FlagsEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<FlagsEvent>> {
        let events = self.get_mut();
        if events.seen_state == Some(LiveState::Ended) {
            return Poll::Ready(None);
        }
        // Before the look, so that no change after it is missed.
        events.waiter.register(cx);
        events.take().map_or(Poll::Pending, |event| Poll::Ready(Some(event)))
    }
}
