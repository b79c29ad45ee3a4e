//! One look at the keys below a prefix that shows each batch of another node as a whole or not at all.

use std::future::poll_fn;
use std::pin::Pin;
use std::task::Poll;
use std::time::Duration;

use futures_core::Stream;

use crate::store::entry::Entry;
use crate::store::watch::WatchEvent;
use crate::typed::Store;

/// How long a view waits for the rest of a change of which it has seen a part. A writer that is cut off in the middle of
/// a batch, or whose claims are held up, must not keep a view from all later changes.
const WHOLE_TIME_MAX: Duration = Duration::from_secs(2);

/// The first pause before the store is looked at again. It doubles up to [`PAUSE_MAX`]: what is awaited usually comes
/// with the same packets.
const PAUSE_MIN: Duration = Duration::from_micros(500);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// The most events of the watch that are taken before a view looks at the store.
const EVENTS_MAX: usize = 4_096;

/// The most deleted keys that are kept for a look. Of more it is not known whether what belongs to them has arrived.
const GONE_MAX: usize = 4_096;

/// The keys that were deleted since the last look.
#[derive(Debug, Default)]
pub(crate) struct GoneKeys(Vec<String>);

impl GoneKeys {
    pub(crate) fn note(&mut self, event: WatchEvent) {
        if let WatchEvent::Delete { key, .. } = event
            && self.0.len() < GONE_MAX
        {
            self.0.push(key);
        }
    }

    /// Takes the events of a watch that have come, and returns whether there were any. `None`: the watch has ended.
    pub(crate) async fn drain(
        &mut self,
        watch: &mut (impl Stream<Item = WatchEvent> + Unpin),
    ) -> Option<bool> {
        let mut has_any = false;
        poll_fn(|cx| {
            for _ in 0..EVENTS_MAX {
                match Pin::new(&mut *watch).poll_next(cx) {
                    Poll::Ready(Some(event)) => {
                        self.note(event);
                        has_any = true;
                    }
                    Poll::Ready(None) => return Poll::Ready(None),
                    Poll::Pending => break,
                }
            }
            Poll::Ready(Some(has_any))
        })
        .await
    }
}

/// Everything below a prefix as it is at one instant. If a batch is arriving, it waits for the rest of it, at most for
/// [`WHOLE_TIME_MAX`].
pub(crate) async fn whole_scan<S: Store>(store: &S, prefix: &str, gone: &GoneKeys) -> Vec<Entry> {
    let (mut pause, mut waited) = (PAUSE_MIN, Duration::ZERO);
    loop {
        let (entries, is_whole) = store.scan_whole(prefix, &gone.0);
        if is_whole || waited >= WHOLE_TIME_MAX {
            return entries;
        }
        store.sleep(pause).await;
        waited += pause;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
