//! One look at the keys below a prefix that shows each batch of another node as a whole or not at all.

use std::time::Duration;

use crate::store::entry::Entry;
use crate::typed::Store;

/// How long a view waits for the rest of a change of which it has seen a part. A writer that is cut off in the middle of
/// a batch, or whose claims are held up, must not keep a view from all later changes.
pub(crate) const WHOLE_TIME_MAX: Duration = Duration::from_secs(2);

/// The first pause before the store is looked at again. It doubles up to [`PAUSE_MAX`]: what is awaited usually comes
/// with the same packets.
const PAUSE_MIN: Duration = Duration::from_micros(500);
const PAUSE_MAX: Duration = Duration::from_millis(50);

/// Everything below a prefix as it is at one instant. If a batch is arriving, it waits for the rest of it, at most for
/// [`WHOLE_TIME_MAX`]. `gone` are keys that were deleted since the last look.
pub(crate) async fn whole_scan<S: Store>(store: &S, prefix: &str, gone: &[String]) -> Vec<Entry> {
    let (mut pause, mut waited) = (PAUSE_MIN, Duration::ZERO);
    loop {
        let (entries, is_whole) = store.scan_whole(prefix, gone);
        if is_whole || waited >= WHOLE_TIME_MAX {
            return entries;
        }
        store.sleep(pause).await;
        waited += pause;
        pause = (pause * 2).min(PAUSE_MAX);
    }
}
