//! The disk of a node: one more follower of the change log, on a thread of its own.
//!
//! The thread takes what has changed in parts, under the lock only for a part at a time, writes and syncs it without
//! the lock, and then says so. What is written meanwhile goes in the next transaction, so however many wait for
//! [`Receipt::durable`](crate::Receipt::durable), they share one sync. A writer who does not wait pays for a flag.
//!
//! There are two thread changes between a write and the knowledge that it is safe: to this thread and back. That is why
//! it asks the replica itself, instead of being handed something by the driver.

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

/// Makes a folder, and those above it that are missing, for the node's own user alone: it holds the application's data.
#[cfg(feature = "durable")]
fn create_private_folder(folder: &std::path::Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)
}

/// Has a file that is made be for the node's own user alone.
#[cfg(feature = "durable")]
fn private(options: &mut std::fs::OpenOptions) -> &mut std::fs::OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}

/// What a node and the thread of its disk know of each other.
#[derive(Debug, Default)]
pub(super) struct DiskLink {
    thread: OnceLock<Thread>,
    has_work: AtomicBool,
    is_wanted: AtomicBool,
    has_ended: AtomicBool,
    /// Why the disk takes nothing, if it does not.
    failure: Mutex<Option<String>>,
    #[cfg(all(feature = "durable", feature = "__controls"))]
    pub(super) fault: OnceLock<std::sync::Arc<Mutex<Option<std::io::ErrorKind>>>>,
}

impl DiskLink {
    pub(super) fn is_there(&self) -> bool {
        self.thread.get().is_some()
    }

    /// Something has changed.
    pub(super) fn wake_disk(&self) {
        if let Some(thread) = self.thread.get()
            && !self.has_work.load(Ordering::Relaxed)
            && !self.has_work.swap(true, Ordering::AcqRel)
        {
            thread.unpark();
        }
    }

    /// Somebody waits until it is safe, or for the end.
    pub(super) fn request_sync(&self) {
        let Some(thread) = self.thread.get() else { return };
        let had_work = self.has_work.swap(true, Ordering::AcqRel);
        let was_wanted = self.is_wanted.swap(true, Ordering::AcqRel);
        // What somebody said before may have been heard only in part.
        if !(had_work && was_wanted) {
            thread.unpark();
        }
    }

    pub(super) fn failure(&self) -> Option<String> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The directory is free for others, or there is none.
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
        // Somebody wished for a sync just as the thread had looked for wishes, and not yet for work.
        link.request_sync();
        std::thread::park();
        link.has_work.store(false, Ordering::Release);
        link.request_sync();
        let (began, patience) = (Instant::now(), Duration::from_secs(60));
        std::thread::park_timeout(patience);
        assert!(began.elapsed() < patience, "the thread sleeps on");
    }
}
