//! The driver: one task that hands inputs to the replica and carries out its outputs. It decides nothing.
//!
//! A step runs under the lock that local writers take, and on a thread of the runtime. So it is bounded by a number of
//! inputs and outputs and by a time, and it must never wait for anything else than that lock. The driver closes the
//! node when the replica panics.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use crate::node::net::peers::NodeEvent;
use crate::node::net::sender::LinkEvent;
use crate::node::runtime::shared::{Core, Shared};
use crate::replica::{Input, Lane};
use crate::text::Span;
use crate::time::Time;

/// The most link events handed in, and the most outputs carried out, in one step. It bounds how long a writer waits.
const BATCH_MAX: usize = 64;
/// No further event or output of a step is begun after this time. Other tasks of the runtime wait as long too.
const STEP_TIME_MAX: Duration = Duration::from_micros(200);

/// A step that takes longer than this is logged.
const STEP_TIME_WARNED: Duration = Duration::from_millis(20);

/// The node is *crowded* when so many more steps had to wait for the lock than did not: a writer is writing in a loop.
const CROWDED_STEPS: u32 = 8;
/// While crowded, the driver is not woken by writes: it steps after at most this time.
const GATHERING_TIME: Duration = Duration::from_millis(1);

/// Runs until the node is closed, or closes it if the replica panics.
pub(in crate::node) async fn drive(shared: Arc<Shared>, mut events: mpsc::Receiver<LinkEvent>) {
    let mut received = Vec::with_capacity(BATCH_MAX);
    let mut batch = VecDeque::with_capacity(BATCH_MAX);
    let mut deadline = Duration::ZERO;
    let mut crowded = 0;
    #[cfg(feature = "metrics")]
    let mut recorder = crate::node::api::metrics::Recorder::default();
    loop {
        let now = shared.now().mono;
        let wait = deadline.saturating_sub(now);
        #[cfg(feature = "metrics")]
        let wait = wait.min(recorder.wait(now));
        let is_crowded = crowded >= CROWDED_STEPS;
        let wait = if is_crowded { wait.min(GATHERING_TIME) } else { wait };
        tokio::select! {
            _ = events.recv_many(&mut received, BATCH_MAX), if batch.is_empty() => {}
            () = shared.wake_driver.notified(), if !is_crowded => {}
            () = tokio::time::sleep(wait), if !wait.is_zero() => {}
            () = std::future::ready(()), if wait.is_zero() => {}
        }
        batch.extend(received.drain(..));
        let step = catch_unwind(AssertUnwindSafe(|| step(&shared, &mut batch)));
        let Ok(step) = step else {
            tracing::error!(node = %shared.name, "the replica panicked; the node is closed: restart it");
            break;
        };
        let Some((next, had_to_wait)) = step else { break };
        deadline = next;
        crowded = if had_to_wait { (crowded + 1).min(2 * CROWDED_STEPS) } else { crowded.saturating_sub(1) };
        // A metrics recorder that panics must not end the node.
        #[cfg(feature = "metrics")]
        let _ = catch_unwind(AssertUnwindSafe(|| recorder.record(&shared)));
        if next.is_zero() {
            // There is more to do; the links' tasks run first.
            tokio::task::yield_now().await;
        }
    }
    shared.close();
    #[cfg(feature = "metrics")]
    let _ = catch_unwind(AssertUnwindSafe(|| crate::node::api::metrics::record_closed(&shared.name)));
}

/// One step under the lock. Returns the deadline of the next step, zero for at once, and whether this one had to wait
/// for the lock; `None` if the node is closed.
fn step(shared: &Shared, batch: &mut VecDeque<LinkEvent>) -> Option<(Duration, bool)> {
    let (mut core_guard, had_to_wait) = if shared.is_closed() { None } else { shared.lock_first() }?;
    let core = &mut *core_guard;
    let now = shared.now();
    let was_ready = core.replica.is_ready();
    // Before the wake-up, in which the replica checks for links and sessions without progress.
    hand_drained(shared, core, now);
    if core.replica.deadline().mono <= now.mono {
        core.replica.handle(now, Input::Wake);
    }
    let in_time = || shared.now().mono < now.mono + STEP_TIME_MAX;
    let (mut events, mut news) = (0, Vec::new());
    while (events == 0 || in_time())
        && let Some(event) = batch.pop_front()
    {
        events += 1;
        #[cfg(feature = "metrics")]
        shared.meter.count_received(&event);
        news.extend(take_in(shared, core, now, event));
    }
    core.arrivals.follow(now, &mut core.replica);
    // Before any acknowledgement is sent: what is acknowledged to a peer must be readable here.
    let mut wakers = shared.follow(core, now);
    let mut outputs = 0;
    while outputs < BATCH_MAX
        && (outputs == 0 || in_time())
        && let Some(output) = core.replica.poll()
    {
        outputs += 1;
        news.extend(shared.dispatch(core, output));
    }
    if core.replica.awaits_disk() {
        shared.disk.request_sync();
    }
    let busy = core.replica.is_busy(now);
    let was_busy = shared.is_busy.swap(busy, Ordering::Relaxed);
    wakers.extend(shared.follow(core, now));
    news.extend(shared.join_board.follow(&shared.name, &core.replica, now));
    let has_more = outputs == BATCH_MAX || !batch.is_empty() || !in_time();
    let becomes_ready = !was_ready && core.replica.is_ready();
    let deadline = if has_more { Duration::ZERO } else { core.replica.deadline().mono };
    drop(core_guard);
    wakers.into_iter().for_each(Waker::wake);
    news.iter().for_each(|readers| readers.notify_waiters());
    let took = shared.now().mono - now.mono;
    if took > STEP_TIME_WARNED {
        tracing::warn!(node = %shared.name, took = %Span(took), events, outputs, "long step under the lock");
    }
    if events > 0 || was_busy != busy || becomes_ready || !news.is_empty() {
        shared.progress.notify_waiters();
    }
    Some((deadline, had_to_wait))
}

/// Tells the replica how many of its bytes the connections have taken.
fn hand_drained(shared: &Shared, core: &mut Core, now: Time) {
    let drained = std::mem::take(&mut *shared.drained());
    for id in drained {
        let Some(wire) = core.senders.get(&id) else { continue };
        for (lane, bytes) in [Lane::Live, Lane::Bulk].into_iter().zip(wire.drained()) {
            if bytes > 0 {
                core.replica.handle(now, Input::Drained(id, lane, bytes));
            }
        }
    }
}

/// Hands one event in. If it returns a [`Notify`], the caller must trigger it once it has released the lock.
fn take_in(shared: &Shared, core: &mut Core, now: Time, event: LinkEvent) -> Option<Arc<Notify>> {
    match event {
        LinkEvent::Stream(id, lane, bytes, place) => {
            core.replica.handle(now, Input::Stream(id, lane, &bytes));
            drop(place);
        }
        LinkEvent::Datagram(id, bytes) => core.replica.handle(now, Input::Datagram(id, &bytes)),
        LinkEvent::Down(id, ending) => {
            let own_code = core.senders.remove(&id).map_or(0, |wire| wire.closed_with());
            let peer = core.peers.remove_link(id);
            if let Some(exit) = ending.exit() {
                core.replica.handle(now, Input::PeerClosing { link: id, exit });
            }
            core.replica.handle(now, Input::LinkDown(id));
            // A link that this node broke was reported then.
            let (peer, addr) = peer?;
            let end = ending.link_end(own_code);
            return Some(shared.add_event(NodeEvent::LinkEnded { peer, addr, end }));
        }
    }
    None
}
