//! The verbs of the trait [`Store`] on a node.

use std::time::{Duration, SystemTime};

#[cfg(feature = "json")]
use crate::error::Rejected;
use crate::error::WriteError;
use crate::membership::Member;
use crate::node::Node;
use crate::node::api::receipt::Receipt;
use crate::node::api::scan;
use crate::node::api::watch::Watch;
#[cfg(feature = "json")]
use crate::node::net::peers::NodeEvent;
#[cfg(feature = "json")]
use crate::node::runtime::log::log_late_batch;
use crate::node::runtime::shared::{Shared, wall_ms};
use crate::replica::{Batch, PutOptions};
use crate::store::OnlyIf;
#[cfg(feature = "json")]
use crate::store::WholeLook;
use crate::store::entry::{Entry, Revision};
use crate::store::key::{Space, counter_prefix, element_key, register};
use crate::store::watch::WatchOptions;
use crate::time::Stamp;
#[cfg(feature = "json")]
use crate::typed::LateBatch;
use crate::typed::{Store, WriteReceipt};

impl Store for Node {
    type Receipt = Receipt;
    type Watch = Watch;

    fn name(&self) -> &str {
        &self.shared.name
    }

    fn view(&self) -> Self {
        Self { shared: self.shared.clone(), _life: None }
    }

    fn put_with(&self, key: &str, value: &[u8], options: PutOptions) -> Result<Receipt, WriteError> {
        self.put_with(key, value, options)
    }

    fn delete(&self, key: &str) -> Result<Receipt, WriteError> {
        self.delete(key)
    }

    fn delete_if(&self, key: &str, only_if: OnlyIf) -> Result<Receipt, WriteError> {
        self.delete_if(key, only_if)
    }

    fn commit(&self, batch: &Batch) -> Result<Receipt, WriteError> {
        self.write(|replica, now| Ok(replica.commit(now, batch)?.into_iter().rev().flatten().next()))
    }

    #[inline]
    fn get(&self, key: &str) -> Option<Entry> {
        self.get(key)
    }

    #[cfg(feature = "json")]
    fn is_current(&self, entry: &Entry) -> bool {
        self.shared.index.is_current(entry, wall_ms)
    }

    #[cfg(feature = "json")]
    fn changes(&self, entry: &Entry) -> Option<u64> {
        self.shared.index.changes(entry)
    }

    fn scan(&self, prefix: &str) -> Vec<Entry> {
        self.scan(prefix)
    }

    #[cfg(feature = "json")]
    fn scan_whole(&self, prefix: &str, held: &[String]) -> Option<WholeLook> {
        scan::scan_whole(&self.shared, &register(prefix), held)
    }

    #[cfg(feature = "json")]
    fn changes_whole(&self, prefix: &str, since: Revision) -> Option<WholeLook> {
        let core = self.shared.lock_closed()?;
        core.replica.changes_whole(self.shared.now(), prefix, since)
    }

    fn scan_page(&self, prefix: &str, after: Option<&str>, rows: usize) -> Vec<Entry> {
        self.scan_page(prefix, after, rows)
    }

    fn len(&self) -> usize {
        self.len()
    }

    fn watch_with(&self, prefix: &str, options: WatchOptions) -> Watch {
        self.watch_with(prefix, options)
    }

    fn set_add_with(&self, set: &str, element: &str, options: PutOptions) -> Result<Receipt, WriteError> {
        self.write(|replica, now| replica.set_add_with(now, set, element, &options).map(Some))
    }

    fn set_remove(&self, set: &str, element: &str) -> Result<Receipt, WriteError> {
        self.write(|replica, now| replica.set_remove(now, set, element))
    }

    fn set_contains(&self, set: &str, element: &str) -> bool {
        self.shared.index.has(&element_key(set, element), wall_ms)
    }

    fn set_entry(&self, set: &str, element: &str) -> Option<Entry> {
        // An element comes before all longer ones that begin with it.
        let first = scan::page(&self.shared, &element_key(set, element), None, 1).pop();
        first.filter(|entry| entry.key() == element)
    }

    fn set_iter(&self, set: &str) -> impl Iterator<Item = String> + use<> {
        let elements = scan::scan(&self.shared, &element_key(set, ""));
        elements.into_iter().map(|entry| entry.key().to_owned())
    }

    fn set_entries(&self, set: &str, after: Option<&str>, rows: usize) -> Vec<Entry> {
        let after = after.map(|after| element_key(set, after));
        scan::page(&self.shared, &element_key(set, ""), after.as_deref(), rows)
    }

    fn set_len(&self, set: &str) -> usize {
        self.shared.lock_closed().map_or(0, |core| core.replica.set_len(self.shared.now(), set))
    }

    fn set_watch(&self, set: &str, options: WatchOptions) -> Watch {
        Watch::new(&self.shared, element_key(set, ""), options.inexact())
    }

    fn counter_add(&self, counter: &str, by: i64) -> Result<Receipt, WriteError> {
        self.write(|replica, now| replica.counter_add(now, counter, by).map(Some))
    }

    fn counter_value(&self, counter: &str) -> i64 {
        self.shared.lock_closed().map_or(0, |core| core.replica.counter_value(counter))
    }

    fn counter_changes(&self, counter: &str) -> Watch {
        Watch::new(&self.shared, counter_prefix(counter), WatchOptions::new())
    }

    fn sets(&self, prefix: &str) -> Vec<String> {
        scan::names(&self.shared, Space::Set, prefix)
    }

    fn counters(&self, prefix: &str) -> Vec<String> {
        scan::names(&self.shared, Space::Counter, prefix)
    }

    fn now(&self) -> SystemTime {
        SystemTime::now()
    }

    fn sleep(&self, time: Duration) -> impl Future<Output = ()> + Send + use<> {
        let _runtime = self.shared.runtime.enter();
        tokio::time::sleep(time)
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        self.shared.runtime.spawn(task);
    }

    fn blocking<R, W>(&self, work: W) -> impl Future<Output = Option<R>> + Send + use<R, W>
    where
        R: Send + 'static,
        W: FnOnce() -> R + Send + 'static,
    {
        let work = self.shared.runtime.spawn_blocking(work);
        async { work.await.ok() }
    }

    fn joined(&self) -> impl Future<Output = bool> + Send + use<> {
        let node = self.view();
        async move { node.ready().await.is_ok() }
    }

    fn caught_up(&self) -> impl Future<Output = bool> + Send + use<> {
        let node = self.view();
        async move {
            let caught_up = |shared: &Shared| {
                let Some(core) = shared.lock() else { return Some(false) };
                shared.join_board.has_caught_up(&core.replica).then_some(true)
            };
            node.shared.wait_for(caught_up).await
        }
    }

    fn has_merged(&self, key: &str, stamp: Stamp) -> bool {
        let core = self.shared.lock_closed();
        core.is_some_and(|core| core.replica.store.covers(&register(key), stamp))
    }

    fn member_of(&self, stamp: Stamp) -> Option<Member> {
        self.member_of(stamp)
    }

    #[cfg(feature = "json")]
    fn note_rejected(&self, live: &str, before: &[Rejected], now: &[Rejected]) {
        self.shared.rejections.replace(live, before, now);
        for rejected in now.iter().filter(|rejected| !before.contains(rejected)) {
            self.shared.report(NodeEvent::Rejected { live: live.to_owned(), rejected: rejected.clone() });
        }
    }

    #[cfg(feature = "json")]
    fn note_late(&self, prefix: &str, batch: &LateBatch) {
        log_late_batch(&self.shared.name, prefix, batch);
    }
}

impl WriteReceipt for Receipt {
    fn stamp(&self) -> Option<Stamp> {
        self.stamp()
    }

    fn revision(&self) -> Revision {
        self.revision()
    }
}
