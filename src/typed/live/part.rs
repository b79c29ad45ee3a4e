//! Parts of a live value.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use futures_core::Stream;

use super::Live;
use super::shared::LiveFollower;
use crate::typed;

/// A part of a [`Live`]; [`Live::select`] makes it. It is a stream of the part's values.
///
/// The comparison of two values is made once, where the value is made, so that a change elsewhere does not wake a task
/// that waits for this part.
pub struct LivePart<T, U> {
    live: Live<T>,
    part: Arc<dyn Fn(&T) -> &U + Send + Sync>,
    follower: Arc<LiveFollower<T>>,
}

impl<T, U> std::fmt::Debug for LivePart<T, U> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("LivePart").field(&self.live).finish()
    }
}

impl<T: 'static, U: Clone + PartialEq + 'static> LivePart<T, U> {
    pub(super) fn new(mut live: Live<T>, part: impl Fn(&T) -> &U + Send + Sync + 'static) -> Self {
        let part: Arc<dyn Fn(&T) -> &U + Send + Sync> = Arc::new(part);
        let of = part.clone();
        let follower = live.shared.follow(Some(Box::new(move |old, new| of(old) != of(new))));
        live.seen = follower.version();
        Self { live, part, follower }
    }

    /// The present value of the part.
    pub fn load(&self) -> U {
        (self.part)(&self.live.load()).clone()
    }

    /// Waits until the part has changed since it was selected, or since the last `changed`. Several changes since then
    /// are one. `None` once the node is closed. A `changed` that is dropped while it waits loses nothing.
    pub async fn changed(&mut self) -> Option<U> {
        typed::next(self).await
    }
}

impl<T: 'static, U: Clone + PartialEq + 'static> Stream for LivePart<T, U> {
    type Item = U;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<U>> {
        let part = self.get_mut();
        let news = ready!(part.follower.poll(&mut part.live.seen, cx));
        Poll::Ready(news.map(|()| part.load()))
    }
}
