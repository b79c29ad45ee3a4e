//! What a node and the thread of its disk know of each other.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::thread::Thread;

use crate::error::Cause;

/// The flags that a node and its disk thread share. Without a data directory there is no thread.
#[derive(Debug, Default)]
pub(in crate::node) struct DiskLink {
    pub(super) thread: OnceLock<Thread>,
    /// There is something to write.
    pub(super) has_work: AtomicBool,
    /// Somebody waits for the sync.
    pub(super) is_wanted: AtomicBool,
    /// The thread has ended.
    pub(super) has_ended: AtomicBool,
    /// Why the disk accepts no transaction at present, if it does not.
    pub(super) failure: Mutex<Option<Cause>>,
    /// Held while a snapshot is written: each takes a second copy of the store in memory.
    #[cfg(feature = "durable")]
    pub(super) snapshot: Mutex<()>,
    #[cfg(all(feature = "durable", feature = "__controls"))]
    pub(in crate::node) fault: OnceLock<std::sync::Arc<Mutex<Option<std::io::ErrorKind>>>>,
}

impl DiskLink {
    pub(in crate::node) fn is_there(&self) -> bool {
        self.thread.get().is_some()
    }

    /// Tells the thread that there is something to write.
    pub(in crate::node) fn wake_disk(&self) {
        if let Some(thread) = self.thread.get()
            && !self.has_work.load(Ordering::Relaxed)
            && !self.has_work.swap(true, Ordering::AcqRel)
        {
            thread.unpark();
        }
    }

    /// Tells the thread that somebody waits for the sync, or for its end.
    pub(in crate::node) fn request_sync(&self) {
        let Some(thread) = self.thread.get() else { return };
        let had_work = self.has_work.swap(true, Ordering::AcqRel);
        let was_wanted = self.is_wanted.swap(true, Ordering::AcqRel);
        // The thread may have seen only one of the flags that an earlier call has set.
        if !(had_work && was_wanted) {
            thread.unpark();
        }
    }

    pub(in crate::node) fn failure(&self) -> Option<Cause> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether the directory is free for others, or there is none.
    pub(in crate::node) fn has_ended(&self) -> bool {
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
