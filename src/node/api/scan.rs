//! Scans of a node: listings of many entries, as they were at one instant.
//!
//! A scan shows one instant without holding the lock throughout. It reads the rows in pieces, notes where the change
//! log stood before the first one, and reads at the end, together with the last piece, the rows that changed since
//! then. The instant is that of the last piece. If the log forgot removals meanwhile, the scan must start over: a
//! deleted entry would stay in the result.

use std::collections::BTreeMap;

use crdts::CvRDT;

use crate::node::runtime::shared::Shared;
use crate::store::MissingOrigin;
#[cfg(feature = "json")]
use crate::store::WholeLook;
use crate::store::coverage::Clocks;
use crate::store::entry::{Entry, Revision};
use crate::store::key::{self, Space};

/// Entries that a scan reads under one lock.
const SCAN_ROWS: usize = 1_024;
/// The last of so many attempts of a scan holds the lock throughout, so that it cannot fail.
const SCAN_TRIES: usize = 3;

/// All entries whose stored key begins with `prefix`, as of the instant of the last piece.
pub(in crate::node) fn scan(shared: &Shared, prefix: &[u8]) -> Vec<Entry> {
    scan_with(shared, prefix, None).map(|scanned| scanned.entries).unwrap_or_default()
}

/// The same with its instant, and the origins of what is missing then at these entries and at the keys `held`, see
/// [`LocalStore::missing`](crate::store::LocalStore::missing). `None`: the node is closed.
#[cfg(feature = "json")]
pub(in crate::node) fn scan_whole(shared: &Shared, prefix: &[u8], held: &[String]) -> Option<WholeLook> {
    let Scanned { entries, revision, missing } = scan_with(shared, prefix, Some(held))?;
    Some(WholeLook::new(entries, Vec::new(), revision, missing))
}

/// The result of a scan.
struct Scanned {
    entries: Vec<Entry>,
    #[cfg_attr(not(feature = "json"), expect(dead_code, reason = "views alone ask for it"))]
    revision: Revision,
    #[cfg_attr(not(feature = "json"), expect(dead_code, reason = "views alone ask for it"))]
    missing: Vec<MissingOrigin>,
}

/// Why an attempt of a scan gave nothing.
enum ScanFailure {
    Closed,
    /// The log was replaced or forgot removals meanwhile.
    LogMoved,
}

/// `None`: the node is closed.
fn scan_with(shared: &Shared, prefix: &[u8], held: Option<&[String]>) -> Option<Scanned> {
    for attempt in 1.. {
        let rows = if attempt < SCAN_TRIES { SCAN_ROWS } else { usize::MAX };
        match try_scan(shared, prefix, held, rows) {
            Ok(scanned) => return Some(scanned),
            Err(ScanFailure::Closed) => return None,
            Err(ScanFailure::LogMoved) => {}
        }
    }
    unreachable!("the log forgets nothing during a scan in one piece")
}

/// One attempt, reading `rows` rows at a time. `held` is `None` if the caller does not ask what is missing.
fn try_scan(
    shared: &Shared,
    prefix: &[u8],
    held: Option<&[String]>,
    rows: usize,
) -> Result<Scanned, ScanFailure> {
    let mut entries = Vec::new();
    // Stored keys that were not complete when they were read. What is complete stays so.
    let mut open: Vec<Vec<u8>> = held.unwrap_or_default().iter().map(|key| key::register(key)).collect();
    let mut next = prefix.to_vec();
    let mut cursor: Option<Revision> = None;
    loop {
        let core = shared.lock_closed().ok_or(ScanFailure::Closed)?;
        let (store, now) = (&core.replica.store, shared.now());
        let claimed = held.map_or_else(Clocks::default, |_| core.replica.claimed_below(prefix));
        let revision = Revision { log: store.log.id, number: store.log.head() };
        let since = *cursor.get_or_insert(revision);
        let mut read = 0;
        let mut last = None;
        for (dot_set, number) in
            store.iter_from(&next).take_while(|(dot_set, _)| dot_set.key().starts_with(prefix)).take(rows)
        {
            read += 1;
            last = Some(dot_set.key());
            if held.is_some() && !store.missing_in_row(dot_set, &claimed).is_empty() {
                open.push(dot_set.key().to_vec());
            }
            entries.extend(store.entry(now, dot_set, number));
        }
        if let Some(last) = last.filter(|_| read == rows) {
            next = [last, &[0]].concat();
            continue;
        }
        if since.log != store.log.id || since.number < store.log.floor() {
            return Err(ScanFailure::LogMoved);
        }
        let changed = store.log.rows_after(since.number).map(|(number, id)| (number, &store.row(id).dot_set));
        let mut changed = changed.filter(|(_, dot_set)| dot_set.key().starts_with(prefix)).peekable();
        let mut missing = Clocks::default();
        open.iter().for_each(|key| missing.merge(store.missing(key, &claimed)));
        if changed.peek().is_none() {
            let missing = core.replica.missing_origins(&missing, &claimed);
            return Ok(Scanned { entries, revision, missing });
        }
        let mut latest: BTreeMap<String, Option<Entry>> = BTreeMap::new();
        for (number, dot_set) in changed {
            let key = key::readable_key(dot_set.key()).to_owned();
            missing.merge(store.missing_in_row(dot_set, &claimed));
            latest.insert(key, store.entry(now, dot_set, number));
        }
        let missing = core.replica.missing_origins(&missing, &claimed);
        drop(core);
        entries.retain(|entry| !latest.contains_key(entry.key()));
        entries.extend(latest.into_values().flatten());
        entries.sort_by(|a, b| a.key().cmp(b.key()));
        return Ok(Scanned { entries, revision, missing });
    }
}

/// At most `rows` entries whose stored key begins with `prefix` and comes behind `after`, as of one instant.
pub(in crate::node) fn page(shared: &Shared, prefix: &[u8], after: Option<&[u8]>, rows: usize) -> Vec<Entry> {
    let core = shared.lock_closed();
    core.map_or_else(Vec::new, |core| core.replica.page(shared.now(), prefix, after, rows))
}

/// The names of all sets or counters that begin with `prefix`, in order. The lock is held for one part at a time.
pub(in crate::node) fn names(shared: &Shared, space: Space, prefix: &str) -> Vec<String> {
    let (mut names, mut from) = (Vec::new(), None);
    loop {
        let Some(core) = shared.lock_closed() else { break };
        let (part, next) = core.replica.names_from(shared.now(), space, from, SCAN_ROWS);
        drop(core);
        names.extend(part.into_iter().filter(|name| name.starts_with(prefix)));
        from = next;
        if from.is_none() {
            break;
        }
    }
    names.sort_unstable();
    names
}
