//! Snapshots: everything that a node holds and covers, as of one instant, in one file.
//!
//! A file consists of the magic bytes with a version, then records of changes, each with its length, its number and its
//! checksum. The last record is empty, so that a truncated file is detected. The content must pass the same check as
//! the content of a data directory. Memos (a voter's promises, known members) are left out: they concern only the node
//! that wrote them.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::path::Path;
use std::sync::PoisonError;

use crate::error::{BoxedError, Cause, SnapshotError, StartError};
use crate::node::runtime::shared::Shared;
use crate::replica::SnapshotCursor;
use crate::replica::saved::{self, DiskChange, RECORD_HEADER_BYTES, Saved};

const MAGIC: &[u8; 8] = b"tidings\x01";
/// The size of a record in bytes, above which the next one begins.
const RECORD_BYTES_TARGET: usize = 1 << 20;
/// Rows taken under one lock.
const SNAPSHOT_PART_ROWS: usize = 4_096;
/// A copy in parts starts over if rows were forgotten between parts. After this many failures, everything is copied
/// under one lock.
const TRIES: usize = 3;

/// The latest change of each key.
type DiskChanges = BTreeMap<Vec<u8>, Option<Vec<u8>>>;

/// Takes a snapshot, once no other one is being written. It is written to a temporary file, synced, and then renamed to
/// its path.
pub(in crate::node) fn write(shared: &Shared, path: &Path) -> Result<(), SnapshotError> {
    let _alone = shared.disk.snapshot.lock().unwrap_or_else(PoisonError::into_inner);
    let changes = collect(shared).ok_or(SnapshotError::Failed)?;
    super::replace_file(path, |file| write_file(file, changes))
        .map_err(|error| SnapshotError::File { path: path.display().to_string(), reason: Cause::new(error) })
}

/// Everything that the replica holds, as of the instant of the last part. `None` if the replica has panicked.
fn collect(shared: &Shared) -> Option<DiskChanges> {
    let (mut copy, mut changes, mut tries) = (SnapshotCursor::default(), DiskChanges::new(), 0);
    loop {
        let rows_max = if tries < TRIES { SNAPSHOT_PART_ROWS } else { usize::MAX };
        let part = shared.lock_closed()?.replica.copy(&mut copy, rows_max);
        let Some(part) = part else {
            tries += 1;
            continue;
        };
        if part.begins() {
            changes.clear();
        }
        changes.extend(part.changes().filter(|(key, _)| !saved::is_memo(key)));
        if part.ends() {
            return Some(changes);
        }
    }
}

fn write_file(file: File, changes: DiskChanges) -> io::Result<()> {
    let mut file = BufWriter::new(file);
    file.write_all(MAGIC)?;
    let (mut record, mut bytes, mut sequence): (Vec<DiskChange>, _, _) = (Vec::new(), 0, 0);
    for (key, value) in changes {
        bytes += key.len() + value.as_ref().map_or(0, Vec::len);
        record.push((key, value));
        if bytes >= RECORD_BYTES_TARGET {
            file.write_all(&saved::seal_changes(sequence, &record))?;
            (bytes, sequence) = (0, sequence + 1);
            record.clear();
        }
    }
    if !record.is_empty() {
        file.write_all(&saved::seal_changes(sequence, &record))?;
        sequence += 1;
    }
    file.write_all(&saved::seal_changes(sequence, &[]))?;
    file.into_inner()?.sync_all()
}

/// Reads a snapshot and checks its form. Whether its entries add up is checked when a replica is made of it.
pub(in crate::node) fn read(path: &Path) -> Result<Saved, StartError> {
    let unusable = |error: BoxedError| StartError::Snapshot {
        path: path.display().to_string(),
        reason: Cause::new(error),
    };
    let file = File::open(path).map_err(|error| unusable(error.into()))?;
    let mut records =
        SnapshotRecords { file: BufReader::new(file), sequence: 0, rest: Vec::new().into_iter() };
    records.read_magic().map_err(unusable)?;
    let saved = Saved::read(records).map_err(unusable)?;
    Ok(Saved { is_copy: true, ..saved })
}

/// Reads a snapshot record by record, and iterates over its keys and values.
struct SnapshotRecords {
    file: BufReader<File>,
    sequence: u64,
    rest: std::vec::IntoIter<DiskChange>,
}

impl SnapshotRecords {
    fn read_magic(&mut self) -> Result<(), BoxedError> {
        let mut mark = [0; MAGIC.len()];
        self.file.read_exact(&mut mark)?;
        match mark {
            _ if mark == *MAGIC => Ok(()),
            [.., version] if mark[..7] == MAGIC[..7] => {
                Err(format!("it has format version {version} of a later release of this library").into())
            }
            _ => Err("it is not a snapshot of this library".into()),
        }
    }

    fn next_record(&mut self) -> Option<Vec<DiskChange>> {
        let mut record = vec![0; RECORD_HEADER_BYTES];
        self.file.read_exact(&mut record).ok()?;
        let bytes = saved::record_body_bytes(&record)?;
        // Reads only what the file has: the length in the header may be false, and must not cause a large allocation.
        let read = self.file.by_ref().take(bytes as u64).read_to_end(&mut record).ok()?;
        let (sequence, changes) = saved::unseal_changes(&record)?;
        (read == bytes && sequence == self.sequence).then_some(changes)
    }
}

impl Iterator for SnapshotRecords {
    type Item = Result<(Vec<u8>, Vec<u8>), BoxedError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, value)) = self.rest.next() {
                match value {
                    Some(value) => return Some(Ok((key, value))),
                    None => continue,
                }
            }
            let Some(changes) = self.next_record() else {
                return Some(Err(format!("record {} is damaged or missing", self.sequence).into()));
            };
            if changes.is_empty() {
                return None;
            }
            self.sequence += 1;
            self.rest = changes.into_iter();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::node::runtime::shared::tests::shared;

    #[test]
    fn snapshot_waits_while_another_one_is_written() {
        let shared = shared();
        let path = std::env::temp_dir().join(format!("tidings-snapshot-{}", std::process::id()));
        std::thread::scope(|scope| {
            let first = shared.disk.snapshot.lock().unwrap();
            let second = scope.spawn(|| write(&shared, &path));
            // What it would do if it did not wait.
            (0..100).for_each(|_| assert!(collect(&shared).is_some()));
            assert!(!second.is_finished() && !path.exists());
            drop(first);
            assert!(second.join().unwrap().is_ok());
        });
        assert!(path.exists());
        std::fs::remove_file(path).unwrap();
    }
}
