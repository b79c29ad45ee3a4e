//! Watches of simulated nodes.

use std::collections::VecDeque;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};

use futures_core::Stream;

use super::World;
use super::handle::SharedWorld;
use crate::store::watch::{WatchEvent, WatchId, WatchOptions};
use crate::typed;

/// A watch on one node of a [`Sim`](super::Sim). As a watch of `Node` it begins when it is made, not at the first
/// `next`, and ends when its node stops. It does not go on after a restart.
#[derive(Debug)]
pub struct SimWatch {
    world: SharedWorld,
    i: usize,
    /// The start of the node to which the watch belongs.
    starts: u64,
    /// `None`: the node was down when the watch was made.
    id: Option<WatchId>,
    events: VecDeque<WatchEvent>,
}

impl SimWatch {
    /// Begins a watch of a prefix of stored keys.
    pub(super) fn new(shared: &SharedWorld, i: usize, prefix: Vec<u8>, options: WatchOptions) -> Self {
        let mut world = shared.lock();
        let id = world.replica(i).map(|(replica, _)| replica.watch(prefix, options));
        let starts = world.nodes[i].starts;
        drop(world);
        Self { world: shared.clone(), i, starts, id, events: VecDeque::new() }
    }

    /// The watch's number, unless it has ended.
    fn id_in(&self, world: &World) -> Option<WatchId> {
        let is_over = world.nodes[self.i].starts != self.starts || !world.is_up(self.i);
        self.id.filter(|_| !is_over)
    }

    /// Whether the watch has ended because its node has stopped since.
    pub fn is_over(&self) -> bool {
        self.id_in(&self.world.lock()).is_none()
    }

    /// Waits for the next event. `None` once the node has stopped. A `next` that is dropped while it waits loses no
    /// event.
    pub async fn next(&mut self) -> Option<WatchEvent> {
        typed::next(self).await
    }

    /// The next event, if there is one by now, for tests without tasks. `None` also once the node has stopped.
    pub fn try_next(&mut self) -> Option<WatchEvent> {
        match self.poll(None) {
            Poll::Ready(event) => event,
            Poll::Pending => None,
        }
    }

    /// The next event. If there is none yet, the waker is kept.
    fn poll(&mut self, waker: Option<&Waker>) -> Poll<Option<WatchEvent>> {
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(Some(event));
        }
        let mut world = self.world.lock();
        let Some(id) = self.id_in(&world) else { return Poll::Ready(None) };
        let (replica, now) = world.replica(self.i).expect("the watch is not over");
        loop {
            let (events, is_done) = replica.watched(now, id);
            self.events.extend(events);
            if is_done || !self.events.is_empty() {
                break;
            }
        }
        for event in &mut self.events {
            // Where the nodes are no members, the simulator knows.
            if let WatchEvent::Delete { stamp: Some(stamp), writer, .. } = event {
                *writer = world.member_of(*stamp, self.i).map(|member| member.name);
            }
        }
        if let Some(event) = self.events.pop_front() {
            return Poll::Ready(Some(event));
        }
        let replaced = waker.and_then(|waker| world.nodes[self.i].wakers.insert(id, waker.clone()));
        // To drop a waker may drop a task with its handles, which lock the world.
        drop(world);
        drop(replaced);
        Poll::Pending
    }
}

impl Stream for SimWatch {
    type Item = WatchEvent;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<WatchEvent>> {
        self.get_mut().poll(Some(cx.waker()))
    }
}

impl Drop for SimWatch {
    fn drop(&mut self) {
        let mut world = self.world.lock();
        let Some(id) = self.id_in(&world) else { return };
        let (replica, _) = world.replica(self.i).expect("the watch is not over");
        replica.unwatch(id);
        let waker = world.nodes[self.i].wakers.remove(&id);
        drop(world);
        drop(waker);
    }
}
