//! The disk of a node: a follower of the change log, on a thread of its own.
//!
//! The thread takes the changes in parts and holds the lock for one part at a time. It writes and syncs them without
//! the lock, and then tells the replica. Changes made meanwhile go into the next transaction, so all who wait for
//! [`Receipt::durable`](crate::Receipt::durable) share one sync. A writer that does not wait only sets a flag.
//!
//! Between a write and the news that it is synced there are two thread switches: to this thread and back. To avoid
//! further ones, the thread calls the replica itself, and not through the driver.

#[cfg(feature = "durable")]
mod engine;
#[cfg(feature = "durable")]
mod follow;
#[cfg(feature = "durable")]
mod snapshot;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Thread;

#[cfg(feature = "durable")]
pub(super) use follow::{attach, open};
#[cfg(feature = "durable")]
pub(super) use snapshot::write as write_snapshot;

/// Creates a folder and its missing parents, accessible to the node's own user alone: it holds the application's data.
#[cfg(feature = "durable")]
fn create_private_folder(folder: &std::path::Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)
}

/// Makes a file that these options create accessible to the node's own user alone.
#[cfg(feature = "durable")]
fn private(options: &mut std::fs::OpenOptions) -> &mut std::fs::OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

/// The flags that a node and its disk thread share. Without a data directory there is no thread.
#[derive(Debug, Default)]
pub(super) struct DiskLink {
    thread: OnceLock<Thread>,
    /// There is something to write.
    has_work: AtomicBool,
    /// Somebody waits for the sync.
    is_wanted: AtomicBool,
    /// The thread has ended.
    has_ended: AtomicBool,
    /// Why the disk accepts no transaction at present, if it does not.
    failure: Mutex<Option<String>>,
    #[cfg(all(feature = "durable", feature = "__controls"))]
    pub(super) fault: OnceLock<std::sync::Arc<Mutex<Option<std::io::ErrorKind>>>>,
}

impl DiskLink {
    pub(super) fn is_there(&self) -> bool {
        self.thread.get().is_some()
    }

    /// Tells the thread that there is something to write.
    pub(super) fn wake_disk(&self) {
        if let Some(thread) = self.thread.get()
            && !self.has_work.load(Ordering::Relaxed)
            && !self.has_work.swap(true, Ordering::AcqRel)
        {
            thread.unpark();
        }
    }

    /// Tells the thread that somebody waits for the sync, or for its end.
    pub(super) fn request_sync(&self) {
        let Some(thread) = self.thread.get() else { return };
        let had_work = self.has_work.swap(true, Ordering::AcqRel);
        let was_wanted = self.is_wanted.swap(true, Ordering::AcqRel);
        // The thread may have seen only one of the flags that an earlier call has set.
        if !(had_work && was_wanted) {
            thread.unpark();
        }
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the directory is free for others, or there is none.
    pub(super) fn has_ended(&self) -> bool {
        !self.is_there() || self.has_ended.load(Ordering::Acquire)
    }
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn sync_request_during_another_wakes_the_disk_thread() {
        let link = DiskLink::default();
        link.thread.set(std::thread::current()).unwrap();
        // A sync was requested when the thread had checked `is_wanted` and not yet cleared `has_work`.
        link.request_sync();
        std::thread::park();
        link.has_work.store(false, Ordering::Release);
        link.request_sync();
        let (began, patience) = (Instant::now(), Duration::from_secs(60));
        std::thread::park_timeout(patience);
        assert!(began.elapsed() < patience, "the thread was not woken");
    }
}
