//! The driver: one task that hands in what happened and carries out what is to be done. It decides nothing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;

use super::shared::Shared;
use crate::replica::{Input, Lane, LinkId};

/// What the links report.
#[derive(Debug)]
pub(super) enum Happening {
    Stream(LinkId, Lane, Bytes),
    Datagram(LinkId, Bytes),
    /// The link is gone, and what the peer said before.
    Down(LinkId, Option<Farewell>),
}

/// The last word of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Farewell {
    /// It ends, and may come back.
    Ended,
    /// It leaves the cluster.
    Left,
}

/// Happenings handed in, and outputs carried out, under one lock: bounds how long a writer waits.
const BATCH_MAX: usize = 64;

/// Runs until the node is closed.
pub(super) async fn drive(
    shared: Arc<Shared>,
    mut happenings: mpsc::Receiver<Happening>,
    lag_bytes_max: u64,
) {
    let mut batch = Vec::with_capacity(BATCH_MAX);
    let mut deadline = Duration::ZERO;
    loop {
        let wait = deadline.saturating_sub(shared.now().mono);
        tokio::select! {
            _ = happenings.recv_many(&mut batch, BATCH_MAX) => {}
            () = shared.poke.notified() => {}
            () = tokio::time::sleep(wait), if !wait.is_zero() => {}
            () = std::future::ready(()), if wait.is_zero() => {}
        }
        let step = catch_unwind(AssertUnwindSafe(|| step(&shared, &mut batch, lag_bytes_max)));
        let Ok(Some(next)) = step else { break };
        deadline = next;
        if next.is_zero() {
            // There is more to do: let the links work meanwhile.
            tokio::task::yield_now().await;
        }
    }
    shared.close();
}

/// One step under the lock. Answers when to come back; zero for at once, nothing when the node is closed.
fn step(shared: &Shared, batch: &mut Vec<Happening>, lag_bytes_max: u64) -> Option<Duration> {
    let mut core_guard = shared.lock()?;
    let core = &mut *core_guard;
    let now = shared.now();
    if core.replica.deadline().mono <= now.mono {
        core.replica.handle(now, Input::Wake);
    }
    let progresses = !batch.is_empty();
    for happening in batch.drain(..) {
        match happening {
            Happening::Stream(id, lane, bytes) => core.replica.handle(now, Input::Stream(id, lane, &bytes)),
            Happening::Datagram(id, bytes) => core.replica.handle(now, Input::Datagram(id, &bytes)),
            Happening::Down(id, farewell) => {
                core.wires.remove(&id);
                core.peers.down(id);
                if let Some(farewell) = farewell {
                    core.replica.handle(now, Input::Farewell(id, farewell == Farewell::Left));
                }
                core.replica.handle(now, Input::LinkDown(id));
            }
        }
    }
    for (id, wire) in &core.wires {
        for (lane, bytes) in [Lane::Live, Lane::Bulk].into_iter().zip(wire.drained()) {
            if bytes > 0 {
                core.replica.handle(now, Input::Drained(*id, lane, bytes));
            }
        }
    }
    let mut outputs = 0;
    while outputs < BATCH_MAX
        && let Some(output) = core.replica.poll()
    {
        outputs += 1;
        shared.dispatch(core, output);
    }
    if core.replica.awaits_disk() {
        shared.disk.want();
    }
    let busy = core.replica.median_lag() > lag_bytes_max;
    let was_busy = shared.is_busy.swap(busy, Ordering::Relaxed);
    let wakers = shared.follow(core, now);
    let deadline = if outputs == BATCH_MAX { Duration::ZERO } else { core.replica.deadline().mono };
    drop(core_guard);
    wakers.into_iter().for_each(Waker::wake);
    if progresses || was_busy != busy {
        shared.progress.notify_waiters();
    }
    Some(deadline)
}
