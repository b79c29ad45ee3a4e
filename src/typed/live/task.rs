//! The task of a live value: it waits for a change, and makes the value anew.
//!
//! Events of the watch say that something has changed. The value is made of one look at the store that comes after
//! them, so that a watch that starts over, or that is slow, can never lead to an old or a mixed value. While that look
//! waits for the rest of a batch, everything else goes on. The task ends when the node is closed or the last handle is
//! dropped, and however it ends, the handles learn of it.

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use serde::de::DeserializeOwned;

use super::plan::{LiveBase, LivePlan, Made};
use super::shared::{LiveRequest, LiveShared, LiveState};
use crate::error::{LiveError, Rejected};
use crate::typed::kept::Keeper;
use crate::typed::whole::{WholeView, drain};
use crate::typed::{EndGuard, Store, boxed, yield_once};

/// What the task has to do next.
enum LiveCue {
    /// To look at the store and make the value anew.
    Changed,
    /// To look again for the rest of a batch.
    Again,
    /// To make the value anew, whether the store has changed or not.
    Reload,
    /// To make the value anew, of the store alone: the node has caught up.
    Joined,
    /// To say what became of the file for the next start.
    Kept,
    /// Nothing any more.
    End,
}

/// A live value that has begun.
pub(super) struct LiveTask<T, S: Store> {
    plan: LivePlan<T, S>,
    watch: S::Watch,
    /// The watch had an event while the value was being made.
    has_news: bool,
    /// What the store held at the last look.
    view: WholeView,
    /// Until the next look, while the rest of a batch is awaited.
    pause: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    shared: Arc<LiveShared<T>>,
    /// What the value is made of until the node has caught up and the view shows something. `None`: it is made of that.
    instead: Option<LiveBase>,
    has_joined: bool,
    keeper: Keeper,
    /// The state, and what is not applied, beside what the keeper has to say.
    noted: (LiveState, Vec<Rejected>),
    /// Also if the task is dropped before it has run.
    end: EndGuard<S>,
}

impl<T: DeserializeOwned + Send + Sync + 'static, S: Store> LiveTask<T, S> {
    /// Makes the first value: of the store, or of what an earlier run has kept, or of what the node holds itself.
    pub(super) async fn begin(plan: LivePlan<T, S>) -> Result<Self, LiveError> {
        // Before the first look at the store, so that no change after it is missed.
        let watch = plan.watch();
        let joined = first_of(plan.store.joined(), plan.store.sleep(plan.joined_timeout)).await;
        if joined == Some(false) {
            return Err(LiveError::Closed);
        }
        let has_joined = joined.is_some();
        let (mut rejected, mut view) = (Vec::new(), WholeView::new(plan.keys.name()));
        if has_joined {
            while !plan.keys.seek(&plan.store, &mut view).ok_or(LiveError::Closed)? {
                plan.store.sleep(view.pause().unwrap_or_default()).await;
            }
            match plan.make(&LiveBase::Store, None, Some(&view)).await {
                Ok(made) => {
                    let kept = made.kept.clone();
                    let mut task = Self::new(plan, watch, view, made, LiveState::Current, None, rejected);
                    task.keep(kept);
                    return Ok(task);
                }
                Err(errors) => rejected = errors,
            }
        }
        let kept = plan.read_kept().await.unwrap_or_else(|unreadable| {
            rejected.push(unreadable);
            None
        });
        if let Some(pieces) = kept {
            let base = LiveBase::Kept { pieces, with_own: !has_joined };
            match plan.make_of_kept(&base).await {
                Ok((made, wrong)) => {
                    rejected.extend(wrong);
                    let (state, instead) =
                        if has_joined { (LiveState::Rejected, None) } else { (LiveState::Stale, Some(base)) };
                    return Ok(Self::new(plan, watch, view, made, state, instead, rejected));
                }
                Err(errors) => rejected.extend(errors),
            }
        }
        if has_joined {
            return Err(LiveError::Rejected(rejected));
        }
        match plan.make(&LiveBase::Store, None, None).await {
            Ok(made) => {
                let base = Some(LiveBase::Store);
                Ok(Self::new(plan, watch, view, made, LiveState::Stale, base, rejected))
            }
            Err(errors) => {
                rejected.extend(errors);
                Err(LiveError::Alone(rejected))
            }
        }
    }

    fn new(
        plan: LivePlan<T, S>,
        watch: S::Watch,
        view: WholeView,
        made: Made<T>,
        state: LiveState,
        instead: Option<LiveBase>,
        rejected: Vec<Rejected>,
    ) -> Self {
        let value = made.value.expect("the first value equals no earlier one");
        let shared = Arc::new(LiveShared::new(value, made.tree, state));
        let ended = shared.clone();
        let end = EndGuard::new(plan.store.clone(), plan.keys.name(), move || ended.end());
        let keeper = Keeper::new(plan.last_good.clone(), None);
        let (has_news, has_joined, noted) = (false, false, (state, rejected));
        let pause = view.pause().map(|pause| boxed(plan.store.sleep(pause)));
        let task =
            Self { plan, watch, has_news, view, pause, shared, instead, has_joined, keeper, noted, end };
        task.tell();
        task
    }

    pub(super) fn shared(&self) -> &Arc<LiveShared<T>> {
        &self.shared
    }

    /// Follows the store until the node is closed or no handle is left.
    pub(super) async fn run(mut self) {
        let mut joined = pin!(self.plan.store.joined());
        loop {
            let cue = poll_fn(|cx| self.poll_cue(joined.as_mut(), cx)).await;
            match cue {
                LiveCue::End => break,
                LiveCue::Kept => {
                    self.tell();
                    continue;
                }
                LiveCue::Joined => self.has_joined = true,
                LiveCue::Changed | LiveCue::Reload if !self.plan.debounce.is_zero() => {
                    self.plan.store.sleep(self.plan.debounce).await;
                }
                LiveCue::Changed | LiveCue::Reload | LiveCue::Again => {}
            }
            let Some(shows_more) = self.look().await else { break };
            if !shows_more && !matches!(cue, LiveCue::Reload) {
                self.tell();
            } else if self.make_anew().await.is_none() {
                break;
            }
            // Under a steady stream of writes nothing above need wait; other tasks of the runtime must run as well.
            yield_once().await;
        }
        // The handles need not wait for the disk.
        drop(self.end);
        self.keeper.finish(&self.plan.store).await;
    }

    fn poll_cue(
        &mut self,
        joined: Pin<&mut impl Future<Output = bool>>,
        cx: &mut Context<'_>,
    ) -> Poll<LiveCue> {
        match self.shared.poll_request(cx) {
            Poll::Ready(LiveRequest::End) => return Poll::Ready(LiveCue::End),
            Poll::Ready(LiveRequest::Reload) => return Poll::Ready(LiveCue::Reload),
            Poll::Pending => {}
        }
        if self.keeper.poll(&self.plan.store, cx).is_ready() {
            return Poll::Ready(LiveCue::Kept);
        }
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
            return Poll::Ready(LiveCue::Again);
        }
        if std::mem::take(&mut self.has_news) {
            return Poll::Ready(LiveCue::Changed);
        }
        match Pin::new(&mut self.watch).poll_next(cx) {
            Poll::Ready(Some(_)) => return Poll::Ready(LiveCue::Changed),
            Poll::Ready(None) => return Poll::Ready(LiveCue::End),
            Poll::Pending => {}
        }
        if self.instead.is_none() || self.has_joined {
            return Poll::Pending;
        }
        joined.poll(cx).map(|has_joined| if has_joined { LiveCue::Joined } else { LiveCue::End })
    }

    /// Looks at the store, unless a pause is running. Returns whether the value is to be made anew; not while the rest
    /// of a batch is awaited. `None`: the node is closed.
    async fn look(&mut self) -> Option<bool> {
        drain(&mut self.watch).await?;
        if self.instead.is_some() && !self.has_joined {
            return Some(true);
        }
        if self.pause.is_some() {
            return Some(false);
        }
        let shows_more = self.plan.keys.seek(&self.plan.store, &mut self.view)?;
        self.pause = self.view.pause().map(|pause| boxed(self.plan.store.sleep(pause)));
        self.instead.take_if(|_| shows_more);
        Some(shows_more)
    }

    /// Makes the value anew and publishes it if it is acceptable. `None` if the node was closed meanwhile: then what
    /// was read of it counts for nothing.
    async fn make_anew(&mut self) -> Option<()> {
        let good = self.shared.tree();
        let made = match &self.instead {
            Some(base) => self.plan.make(base, Some(&good), None).await,
            None => self.plan.make(&LiveBase::Store, Some(&good), Some(&self.view)).await,
        };
        self.has_news |= drain(&mut self.watch).await?;
        let state = match (&self.instead, &made) {
            (Some(_), _) => LiveState::Stale,
            (None, Ok(_)) => LiveState::Current,
            (None, Err(_)) => LiveState::Rejected,
        };
        match made {
            Ok(Made { value, tree, kept }) => {
                self.shared.publish(value, tree);
                if state == LiveState::Current {
                    self.keep(kept);
                }
                self.noted = (state, Vec::new());
            }
            Err(rejected) => self.noted = (state, rejected),
        }
        self.tell();
        Some(())
    }

    /// Keeps a good value for the next start, but not one that may be made of a part of a batch.
    fn keep(&mut self, kept: Vec<u8>) {
        if !self.view.is_late() {
            self.keeper.keep(&self.plan.store, kept);
        }
    }

    /// Tells the handles the state and what is not applied, and the node if the latter has changed.
    fn tell(&self) {
        let (mut state, mut rejected) = self.noted.clone();
        if self.view.is_late() {
            state = LiveState::Stale;
        }
        rejected.extend(self.keeper.fault().cloned());
        if let Some(before) = self.shared.note_state(state, &rejected) {
            self.plan.store.note_rejected(self.plan.keys.name(), &before, &rejected);
        }
    }
}

/// What the first future gives; `None` if the other one has ended before.
pub(super) async fn first_of<T>(
    first: impl Future<Output = T>,
    other: impl Future<Output = ()>,
) -> Option<T> {
    let (mut first, mut other) = (pin!(first), pin!(other));
    poll_fn(|cx| match first.as_mut().poll(cx) {
        Poll::Ready(value) => Poll::Ready(Some(value)),
        Poll::Pending => other.as_mut().poll(cx).map(|()| None),
    })
    .await
}
