//! Opens a node's directory, and follows the change log into it.
//!
//! Nothing that was acknowledged as durable may be lost: the replica is told that a transaction is persisted only after
//! its sync. After a failure the journals are rewritten before anything is acknowledged again. A damaged directory is
//! refused, or moved aside as a whole; no part of it is used.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Waker;
use std::time::{Duration, Instant};

use super::engine::{Engine, Failure};
use super::snapshot;
use crate::config::{Durability, OnCorruption};
use crate::error::{Cause, StartError};
use crate::node::disk::link::DiskLink;
use crate::node::net::peers::NodeEvent;
use crate::node::net::sender::CLOSE_ENDED;
use crate::node::runtime::shared::Shared;
use crate::node::runtime::spans::disk_span;
use crate::replica::saved::Saved;
use crate::replica::{Input, Persist, Replica, Setup};
use crate::text::Span;

/// How often a disk that has failed is tried again.
const RETRY_INTERVAL: Duration = Duration::from_millis(500);

/// With [`Durability::Immediate`] the thread stays awake for this time after a sync that somebody waited for: often the
/// next write follows at once, and waking the thread costs nearly as much as the sync.
const LINGER_TIME: Duration = Duration::from_micros(100);

/// With [`Durability::Immediate`], if nobody waits for a sync, the thread rests for as long as its last transaction
/// took, at most this time. That leaves the processor to the writers, and a key overwritten meanwhile is written once.
const REST_TIME_MAX: Duration = Duration::from_millis(50);

/// An open directory, if there is one, and the event to report about it.
pub(in crate::node) struct Opened {
    engine: Option<Engine>,
    event: Option<NodeEvent>,
}

/// Makes a replica from the content of a directory or a snapshot. It reads the disk and may take seconds.
pub(in crate::node) fn open(
    setup: Setup,
    dir: Option<&Path>,
    snapshot: Option<&PathBuf>,
) -> Result<(Replica, Opened), StartError> {
    let restored = || snapshot.map_or_else(|| Ok(Saved::default()), |path| snapshot::read(path));
    let opened = |engine, event| Opened { engine, event };
    let Some(dir) = dir else { return Ok((replica(setup, restored()?, snapshot)?.0, opened(None, None))) };
    let setup = Setup { has_disk: true, ..setup };
    let _span = tracing::info_span!("loading", dir = %dir.display()).entered();
    let began = Instant::now();
    let mut engine = Engine::new(dir)?;
    let damage = match engine.load() {
        Ok(saved) => {
            let saved = if saved.is_blank() { restored()? } else { saved };
            match replica(setup.clone(), saved, snapshot) {
                Ok((replica, false)) => {
                    tracing::info!(entries = replica.len(), took = %Span(began.elapsed()), "data directory loaded");
                    return Ok((replica, opened(Some(engine), None)));
                }
                Ok((_, true)) => engine.damaged(),
                Err(error) => error,
            }
        }
        Err(error) => error,
    };
    let StartError::Damaged { path, reason } = &damage else { return Err(damage) };
    if setup.config.on_corruption == OnCorruption::Refuse {
        return Err(damage);
    }
    let event = Some(NodeEvent::DiskDamaged { path: path.clone(), reason: reason.to_string() });
    engine.set_aside_and_reset()?;
    let (replica, _) = replica(setup, restored()?, snapshot)?;
    Ok((replica, opened(Some(engine), event)))
}

/// Makes a replica from saved state, and returns whether that state was damaged: its entries do not add up to its
/// digest.
fn replica(
    mut setup: Setup,
    saved: Saved,
    snapshot: Option<&PathBuf>,
) -> Result<(Replica, bool), StartError> {
    let (is_copy, has_state) = (saved.is_copy, !saved.is_blank());
    setup.saved = has_state.then_some(saved);
    let replica = Replica::new(setup);
    let is_damaged = replica.found_damage();
    if is_damaged && let Some(path) = snapshot.filter(|_| is_copy) {
        let reason = Cause::new("its entries do not match the digest that was written with them");
        return Err(StartError::Snapshot { path: path.display().to_string(), reason });
    }
    Ok((replica, is_damaged))
}

/// Makes the loaded state readable through the index, and starts the disk thread.
pub(in crate::node) fn attach(shared: &Arc<Shared>, opened: Opened) {
    let Opened { engine, event } = opened;
    let Some(mut core) = shared.lock() else { return };
    _ = shared.follow(&mut core, shared.now());
    let durability = core.replica.config().durability;
    drop(core);
    let Some(engine) = engine else { return };
    event.into_iter().for_each(|event| shared.report(event));
    #[cfg(feature = "__controls")]
    shared.disk.fault.set(engine.fault.clone()).expect("a node has one disk");
    let following = shared.clone();
    let thread = std::thread::Builder::new().name("tidings-disk".to_owned());
    let thread = thread.spawn(move || {
        let follow = AssertUnwindSafe(|| Follower { shared: &following, engine, durability }.follow());
        if catch_unwind(follow).is_err() {
            tracing::error!(node = %following.name, "the disk thread panicked; the node is closed: restart it");
            // It did not leave: it is expected back.
            following.close_code.store(CLOSE_ENDED, Ordering::Relaxed);
            following.close();
        }
        following.disk.has_ended.store(true, Ordering::Release);
        following.progress.notify_waiters();
    });
    let thread = thread.expect("the system has room for a thread").thread().clone();
    shared.disk.thread.set(thread).expect("a node has one disk");
    shared.disk.request_sync();
}

struct Follower<'a> {
    shared: &'a Shared,
    engine: Engine,
    durability: Durability,
}

impl Follower<'_> {
    fn follow(mut self) {
        let mut until = Instant::now();
        loop {
            self.shared.disk.wait(self.shared, until, self.durability);
            let began = Instant::now();
            // Checked before the transaction, so that the last one contains everything written before the node was
            // closed.
            let is_closed = self.shared.is_closed();
            if is_closed && let Some(mut core) = self.shared.lock_closed() {
                core.replica.note_last_members();
            }
            if let Err(failure) = self.transaction()
                && !self.retry_disk(failure)
            {
                return;
            }
            if is_closed {
                return;
            }
            until = match self.durability {
                Durability::Immediate => Instant::now() + began.elapsed().min(REST_TIME_MAX),
                Durability::Interval(interval) => began + interval,
            };
        }
    }

    /// Writes all changes since the last transaction in one transaction, and tells the replica after the sync.
    fn transaction(&mut self) -> Result<(), Failure> {
        let mut parts: Vec<Persist> = Vec::new();
        while !parts.last().is_some_and(Persist::ends) {
            let part = self.shared.lock_closed().and_then(|mut core| {
                // Also where nothing is to be written: the next write waits for the present interval.
                self.durability = core.replica.config().durability;
                core.replica.persist()
            });
            let Some(part) = part else { return Ok(()) };
            if part.begins() {
                parts.clear();
            }
            parts.push(part);
        }
        let rows: usize = parts.iter().map(|part| part.rows().len()).sum();
        disk_span(&self.shared.name, rows).in_scope(|| self.engine.commit(&parts))?;
        self.input(Input::Persisted);
        self.engine.note_transaction();
        Ok(())
    }

    fn input(&mut self, input: Input<'_>) {
        let Some(mut core) = self.shared.lock_closed() else { return };
        let now = self.shared.now();
        let has_waiting = core.replica.awaits_disk();
        core.replica.handle(now, input);
        let wakers = self.shared.follow(&mut core, now);
        drop(core);
        // Those who wait for this sync come before the driver.
        self.shared.progress.notify_waiters();
        if has_waiting {
            self.shared.wake_driver.notify_one();
        }
        wakers.into_iter().for_each(Waker::wake);
    }

    /// After a failure: reports it, and tries again every [`RETRY_INTERVAL`] if it may pass. Returns `true` when the
    /// disk is back and everything is on it, `false` when the node was closed before that.
    fn retry_disk(&mut self, mut failure: Failure) -> bool {
        loop {
            self.shared.disk.set_failure(Some(failure.reason.clone()));
            self.input(Input::PersistFailed);
            let event =
                NodeEvent::DiskFailed { reason: failure.reason.to_string(), may_pass: failure.may_pass };
            self.shared.report(event);
            self.shared.progress.notify_waiters();
            loop {
                if self.shared.is_closed() {
                    return false;
                }
                std::thread::park_timeout(RETRY_INTERVAL);
                if failure.may_pass && self.engine.reopen().is_ok() {
                    break;
                }
            }
            self.input(Input::DiskBack);
            match self.transaction() {
                Ok(()) => break,
                Err(again) => failure = again,
            }
        }
        self.shared.disk.set_failure(None);
        self.shared.report(NodeEvent::DiskBack);
        self.shared.progress.notify_waiters();
        true
    }
}

impl DiskLink {
    /// Waits until there is something to write, and until `until` has passed or somebody waits for the sync.
    fn wait(&self, shared: &Shared, until: Instant, durability: Durability) {
        let lingers = durability == Durability::Immediate && self.is_wanted.swap(false, Ordering::AcqRel);
        let awake_until = Instant::now() + LINGER_TIME;
        while !self.has_work.swap(false, Ordering::AcqRel) && !shared.is_closed() {
            if lingers && Instant::now() < awake_until {
                std::thread::yield_now();
            } else {
                std::thread::park();
            }
        }
        // After a sync that somebody waited for, this one starts at once: it is probably waited for as well.
        while !lingers && !self.is_wanted.swap(false, Ordering::AcqRel) && !shared.is_closed() {
            let rest = until.saturating_duration_since(Instant::now());
            if rest.is_zero() {
                break;
            }
            std::thread::park_timeout(rest);
        }
        // Wake-ups until here are covered by the transaction that begins now.
        self.has_work.store(false, Ordering::Release);
    }

    fn set_failure(&self, failure: Option<Cause>) {
        *self.failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = failure;
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::Config;
    use crate::membership::tests::member;
    use crate::replica::{Output, ReplicaEvent, VOTER_MEMO};

    #[test]
    fn what_a_start_finds_is_told_to_the_user() {
        let setup = || Setup { member: Some(member(1)), has_disk: true, ..Setup::new(Config::lan(), 1) };
        let empty = Replica::new(setup());
        let memos = BTreeMap::from([(VOTER_MEMO.to_owned(), b"of a later program".to_vec())]);
        let saved = Saved { memos, ..Saved::of(&empty.store) };
        let (mut replica, is_damaged) = replica(setup(), saved, None).unwrap();
        assert!(!is_damaged);
        let mut told = std::iter::from_fn(|| replica.poll());
        assert!(told.any(|output| matches!(output, Output::Event(ReplicaEvent::VoterSilent))));
    }
}
