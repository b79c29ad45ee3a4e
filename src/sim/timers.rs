//! Timers in virtual time, for the tasks of a simulation.
//!
//! A timer is no event of the simulated cluster: it takes no random draw and no place in the queue of events, so that a
//! history without timers is the same as before there were any. Events of one instant come before its timers.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use super::handle::SharedWorld;

/// The timers that tasks wait for, by their time and number.
#[derive(Debug, Default)]
pub(super) struct SimTimers {
    made: u64,
    waiting: BTreeMap<(Duration, u64), Waker>,
}

impl SimTimers {
    /// The time of the next timer.
    pub(super) fn next(&self) -> Option<Duration> {
        self.waiting.first_key_value().map(|((at, _), _)| *at)
    }

    /// Removes the next timer.
    pub(super) fn take_next(&mut self) -> Option<Waker> {
        self.waiting.pop_first().map(|(_, waker)| waker)
    }
}

/// Ends when virtual time has come to a moment.
pub(super) struct SimSleep {
    world: SharedWorld,
    timer: (Duration, u64),
}

impl SimSleep {
    /// A timer of a node, which runs by the node's monotonic clock.
    pub(super) fn new(world: &SharedWorld, node: usize, time: Duration) -> Self {
        let mut locked = world.lock();
        let at = locked.now + locked.nodes[node].drifting_clock.until(time);
        locked.timers.made += 1;
        let timer = (at, locked.timers.made);
        drop(locked);
        Self { world: world.clone(), timer }
    }
}

impl Future for SimSleep {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let mut world = self.world.lock();
        if world.now >= self.timer.0 {
            return Poll::Ready(());
        }
        let replaced = world.timers.waiting.insert(self.timer, cx.waker().clone());
        // To drop a waker may drop a task with its handles, which lock the world.
        drop(world);
        drop(replaced);
        Poll::Pending
    }
}

impl Drop for SimSleep {
    fn drop(&mut self) {
        let waker = self.world.lock().timers.waiting.remove(&self.timer);
        drop(waker);
    }
}
