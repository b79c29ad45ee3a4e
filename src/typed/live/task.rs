//! The task of a live value: it waits for a change, and makes the value anew.
//!
//! Events of the watch say that something has changed. The value is made of one look at the store that comes after
//! them, so that a watch that starts over, or that is slow, can never lead to an old or a mixed value. While that look
//! waits for the rest of a batch, everything else goes on. The task ends when the node is closed or the last handle is
//! dropped, and however it ends, the handles learn of it.

use std::future::{poll_fn, ready};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;
use serde::de::DeserializeOwned;

use super::plan::{KeptBeside, LiveBase, LivePlan, Made};
use super::schema_put::SchemaPut;
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
    CaughtUp,
    /// To make the value anew, of all that the store holds and what was kept: the node goes on alone.
    Alone,
    /// To say what became of the file for the next start, or of the schema.
    Kept,
    /// Nothing any more.
    End,
}

/// What the value is to be made of once the view shows something.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Ahead {
    /// The store alone: the node has caught up.
    Store,
    /// All that the store holds, and what was kept: the node goes on alone.
    StoreAndKept,
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
    /// `None`: nothing else than now.
    ahead: Option<Ahead>,
    keeper: Keeper,
    schema: Option<SchemaPut<S>>,
    /// The state, and what is not applied, beside what the keeper and the schema have to say.
    noted: (LiveState, Vec<Rejected>),
    /// Also if the task is dropped before it has run.
    end: EndGuard<S>,
}

impl<T: DeserializeOwned + Send + Sync + 'static, S: Store> LiveTask<T, S> {
    /// Waits until the node is ready, makes the first value, and puts the schema if the node has caught up.
    pub(super) async fn begin(
        plan: LivePlan<T, S>,
        mut schema: Option<SchemaPut<S>>,
    ) -> Result<Self, LiveError> {
        // Before the first look at the store, so that no change after it is missed.
        let watch = plan.watch();
        let beside = match first_of(plan.store.joined(), plan.store.sleep(plan.joined_timeout)).await {
            None => KeptBeside::Own,
            Some(false) => return Err(LiveError::Closed),
            Some(true) => match first_of(plan.store.caught_up(), ready(())).await {
                None => KeptBeside::All,
                Some(false) => return Err(LiveError::Closed),
                Some(true) => KeptBeside::Nothing,
            },
        };
        if let (KeptBeside::Nothing, Some(schema)) = (beside, &mut schema) {
            // Also if the value is not acceptable: the schema tells those who correct it what is.
            _ = poll_fn(|cx| Poll::Ready(schema.poll(&plan.store, cx))).await;
        }
        let task = Self { schema, ..Self::first(plan, watch, beside).await? };
        task.tell();
        Ok(task)
    }

    /// Makes the first value: of the store, or of what an earlier run has kept, or of what the node holds itself.
    async fn first(plan: LivePlan<T, S>, watch: S::Watch, beside: KeptBeside) -> Result<Self, LiveError> {
        let has_caught_up = beside == KeptBeside::Nothing;
        let (mut rejected, mut view) = (Vec::new(), WholeView::new(plan.keys.name()));
        if has_caught_up {
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
            let base = LiveBase::Kept { pieces, beside };
            match plan.make_of_kept(&base).await {
                Ok((made, wrong)) => {
                    rejected.extend(wrong);
                    let (state, instead) = if has_caught_up {
                        (LiveState::Rejected, None)
                    } else {
                        (LiveState::Stale, Some(base))
                    };
                    return Ok(Self::new(plan, watch, view, made, state, instead, rejected));
                }
                Err(errors) => rejected.extend(errors),
            }
        }
        if has_caught_up {
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
        let (has_news, schema, noted) = (false, None, (state, rejected));
        let pause = view.pause().map(|pause| boxed(plan.store.sleep(pause)));
        let ahead = match instead {
            Some(LiveBase::Kept { beside: KeptBeside::All, .. }) => Some(Ahead::StoreAndKept),
            _ => None,
        };
        Self { plan, watch, has_news, view, pause, shared, instead, ahead, keeper, schema, noted, end }
    }

    pub(super) fn shared(&self) -> &Arc<LiveShared<T>> {
        &self.shared
    }

    /// Follows the store until the node is closed or no handle is left.
    pub(super) async fn run(mut self) {
        let mut joined = pin!(self.plan.store.joined());
        let mut caught_up = pin!(self.plan.store.caught_up());
        loop {
            let cue = poll_fn(|cx| self.poll_cue(joined.as_mut(), caught_up.as_mut(), cx)).await;
            match cue {
                LiveCue::End => break,
                LiveCue::Kept => {
                    self.tell();
                    continue;
                }
                LiveCue::CaughtUp => self.ahead = Some(Ahead::Store),
                LiveCue::Alone => self.ahead = Some(Ahead::StoreAndKept),
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
        caught_up: Pin<&mut impl Future<Output = bool>>,
        cx: &mut Context<'_>,
    ) -> Poll<LiveCue> {
        match self.shared.poll_request(cx) {
            Poll::Ready(LiveRequest::End) => return Poll::Ready(LiveCue::End),
            Poll::Ready(LiveRequest::Reload) => return Poll::Ready(LiveCue::Reload),
            Poll::Pending => {}
        }
        if self.poll_schema(cx).is_ready() || self.keeper.poll(&self.plan.store, cx).is_ready() {
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
        if self.instead.is_none() || self.ahead == Some(Ahead::Store) {
            return Poll::Pending;
        }
        if let Poll::Ready(has_caught_up) = caught_up.poll(cx) {
            return Poll::Ready(if has_caught_up { LiveCue::CaughtUp } else { LiveCue::End });
        }
        match (&self.instead, self.ahead) {
            (Some(LiveBase::Kept { beside: KeptBeside::Own, .. }), None) => {
                joined.poll(cx).map(|is_alone| if is_alone { LiveCue::Alone } else { LiveCue::End })
            }
            _ => Poll::Pending,
        }
    }

    /// Puts the schema if it is due and the node has caught up. Ready when there is something else to say about it.
    fn poll_schema(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        match &mut self.schema {
            Some(schema) if self.instead.is_none() => schema.poll(&self.plan.store, cx),
            _ => Poll::Pending,
        }
    }

    /// Whether the value is made of what the view shows. Before the node is ready, what is there of the cluster is a part
    /// anyhow.
    fn follows_view(&self) -> bool {
        let takes_all = matches!(self.instead, None | Some(LiveBase::Kept { beside: KeptBeside::All, .. }));
        takes_all && self.ahead.is_none()
    }

    /// Looks at the store, unless a pause is running. Returns whether the value is to be made anew; not while the rest
    /// of a batch is awaited. `None`: the node is closed.
    async fn look(&mut self) -> Option<bool> {
        drain(&mut self.watch).await?;
        if self.ahead.is_none() && !self.follows_view() {
            return Some(true);
        }
        if self.pause.is_some() {
            return Some(false);
        }
        let shows_more = self.plan.keys.seek(&self.plan.store, &mut self.view)?;
        self.pause = self.view.pause().map(|pause| boxed(self.plan.store.sleep(pause)));
        match self.ahead.take_if(|_| shows_more) {
            Some(Ahead::Store) => self.instead = None,
            Some(Ahead::StoreAndKept) => self.take_all_beside(),
            None => {}
        }
        Some(shows_more)
    }

    /// From now on everything that the store holds counts beside what was kept.
    fn take_all_beside(&mut self) {
        if let Some(LiveBase::Kept { beside, .. }) = &mut self.instead {
            *beside = KeptBeside::All;
        }
    }

    /// Makes the value anew and publishes it if it is acceptable. `None` if the node was closed meanwhile: then what
    /// was read of it counts for nothing.
    async fn make_anew(&mut self) -> Option<()> {
        let good = self.shared.tree();
        let base = self.instead.as_ref().unwrap_or(&LiveBase::Store);
        let view = self.follows_view().then_some(&self.view);
        let made = self.plan.make(base, Some(&good), view).await;
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
        rejected.extend(self.schema.as_ref().and_then(SchemaPut::fault).cloned());
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
