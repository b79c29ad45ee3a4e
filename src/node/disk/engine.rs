//! The storage engine of a node's disk: one directory, one writer, atomic transactions.
//!
//! The engine is `fjall`, a log-structured merge tree with a journal. It was measured against `redb`, a copy-on-write
//! B-tree, in one run on one disk. Each transaction was one row of 150 bytes and 100 bytes of metadata.
//!
//! | | `fjall` | `redb` |
//! |---|---|---|
//! | one synced transaction, relative to a plain append with `fdatasync` | 0.8 to 1.1 | 2.7 to 4.8 |
//! | 100 rows in one transaction | 0.45 ms | 3.2 ms |
//! | filling a million keys, relative time | 0.5 | 1 |
//! | space of a million keys | 57 % | 100 % |
//! | reading a million keys back | 0.95 s | 0.42 s (0.8 s after a crash) |
//! | rows per second while 100,000 keys are overwritten all the time | 1.7 | 1 |
//!
//! The plain append has the same bytes; 2.7 is for an empty store, 4.8 for 100,000 keys. `redb` writes a path of whole
//! pages for each transaction. The time that `fjall` needs for reading back is within the target for opening. While
//! keys are overwritten all the time, the size of both stays within bounds. `redb` would permit replacing the storage
//! beneath it; faulty disks are simulated above the engine instead, in `Sim`.
//!
//! Everything is in one keyspace, so that a transaction is one record of the journal. The only other file is the lock.
//! It also holds the number of the last transaction: a journal that has lost its end looks like a shorter one, and only
//! a number in another file can show the loss. The number is written after the transaction is synced, so it is never
//! ahead of the engine, unless the engine lost what it had synced.
//!
//! A power failure may leave any pages of a transaction unwritten that was not synced yet. If its end is missing, the
//! engine treats it as torn and continues without it. If its end is there and a page before it is missing, the engine
//! reports damage, and the transaction is cut off here. A transaction that was synced must never be cut off.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fjall::config::FilterPolicy;
use fjall::{AbstractTree, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::error::{Cause, StartError};
use crate::replica::Persist;
use crate::replica::saved::{self, DiskChange, Saved, SavedError};
use crate::store::digest::fingerprint;
use crate::store::entry::DotSet;

const LOCK_FILE: &str = "lock";
const STORE_FOLDER: &str = "store";
/// The engine's own file with its version.
const VERSION_FILE: &str = "version";
/// The bytes at the end of each transaction in the engine's journal.
const TRANSACTION_END: &[u8] = b"FJL\x03";
/// The temporary copy of a journal that is rewritten.
const REWRITTEN_FILE: &str = "journal";
/// A file that exists while a store is being created.
const MAKING_FILE: &str = "making";
/// Where a damaged store is kept in the end.
const DAMAGED_FOLDER: &str = "damaged";
/// Where a damaged store is until the number in the lock file is erased.
const MOVED_FOLDER: &str = "moved";
const KEYSPACE: &str = "tidings";

/// The key of the number of the last transaction. No key of a row or of metadata begins with this byte.
const NUMBER_KEY: &[u8] = &[0xff];

/// Limits of the recent data that the engine keeps beside its tables: once in the journal, and once in memory until it
/// is sorted into tables.
const JOURNAL_BYTES_MAX: u64 = 64 << 20;
const MEMTABLE_BYTES_MAX: u64 = 16 << 20;
/// Small, because everything is read only once, at the start.
const CACHE_BYTES: u64 = 1 << 20;

/// Why a transaction was not written.
#[derive(Debug)]
pub(in crate::node) struct Failure {
    pub(in crate::node) reason: Cause,
    /// The cause may go away without a restart, as when somebody makes room on a full disk.
    pub(in crate::node) may_pass: bool,
}

impl From<fjall::Error> for Failure {
    fn from(error: fjall::Error) -> Self {
        let full = |error: &io::Error| {
            use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
            matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
        };
        let may_pass = match &error {
            fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => full(error),
            // A background task failed on files that are written again from the journal.
            fjall::Error::Poisoned => true,
            _ => false,
        };
        Self { reason: cause(error), may_pass }
    }
}

/// An error of the engine in plain words. The engine's own are in Rust's debug form.
#[derive(Debug, thiserror::Error)]
#[error("{words}")]
struct EngineError {
    words: &'static str,
    #[source]
    error: fjall::Error,
}

fn cause(error: fjall::Error) -> Cause {
    let words = match error {
        fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => {
            return Cause::new(error);
        }
        fjall::Error::Storage(_) => "a table or its index is not as it was written",
        fjall::Error::JournalRecovery(_)
        | fjall::Error::Decompress(_)
        | fjall::Error::InvalidTrailer
        | fjall::Error::InvalidTag(_) => "a record of the journal is not as it was written",
        fjall::Error::InvalidVersion(_) => "its version is none that the engine knows",
        fjall::Error::Poisoned => "an earlier write has failed",
        _ => "the engine cannot use it",
    };
    Cause::new(EngineError { words, error })
}

/// Why a directory could not be opened.
enum Fault {
    Engine(fjall::Error),
    Saved(SavedError),
    Panic,
    Lock,
    Short { number: u64, expected: u64 },
}

impl From<fjall::Error> for Fault {
    fn from(error: fjall::Error) -> Self {
        Self::Engine(error)
    }
}

impl From<io::Error> for Fault {
    fn from(error: io::Error) -> Self {
        Self::Engine(fjall::Error::Io(error))
    }
}

impl From<SavedError> for Fault {
    fn from(error: SavedError) -> Self {
        Self::Saved(error)
    }
}

#[derive(Clone)]
struct Open {
    database: Database,
    rows: Keyspace,
}

pub(in crate::node) struct Engine {
    dir: PathBuf,
    open: Option<Open>,
    lock: File,
    transaction: u64,
    #[cfg(feature = "__controls")]
    pub(in crate::node) fault: std::sync::Arc<std::sync::Mutex<Option<io::ErrorKind>>>,
}

impl Engine {
    /// Locks a directory for this engine, and creates it if it does not exist. Its content is not read yet.
    pub(in crate::node) fn new(dir: &Path) -> Result<Self, StartError> {
        let unusable = |error: io::Error| StartError::DataDir {
            path: dir.display().to_string(),
            reason: Cause::new(error),
        };
        super::create_private_folder(dir).map_err(unusable)?;
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let lock = super::private(&mut options).open(dir.join(LOCK_FILE));
        let lock = lock.map_err(unusable)?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StartError::DataDirInUse { path: dir.display().to_string() },
            TryLockError::Error(error) => unusable(error),
        })?;
        Ok(Self {
            dir: dir.to_owned(),
            lock,
            open: None,
            transaction: 0,
            #[cfg(feature = "__controls")]
            fault: std::sync::Arc::default(),
        })
    }

    /// Opens the store and reads everything that it holds.
    pub(in crate::node) fn load(&mut self) -> Result<Saved, StartError> {
        self.read().map_err(|fault| self.start_error(fault))
    }

    fn read(&mut self) -> Result<Saved, Fault> {
        use fjall::{Error::JournalRecovery, JournalRecoveryError::InvalidFileName};
        self.set_aside()?;
        let error = match self.read_store() {
            Err(Fault::Engine(JournalRecovery(error))) if error != InvalidFileName => error,
            read => return read,
        };
        let journal = self.journal().ok_or(io::Error::from(io::ErrorKind::NotFound))?;
        let bytes = fs::read(&journal)?;
        let used = &bytes[..used_bytes(&bytes)];
        let Some(rest) = used.strip_suffix(TRANSACTION_END) else {
            return Err(Fault::Engine(JournalRecovery(error)));
        };
        let before = rest.windows(TRANSACTION_END.len()).rposition(|bytes| bytes == TRANSACTION_END);
        let before = before.map_or(0, |at| at + TRANSACTION_END.len());
        let mut file = File::options().write(true).open(&journal)?;
        file.set_len(before as u64)?;
        file.sync_all()?;
        let read = self.read_store();
        if read.is_ok() {
            tracing::warn!(bytes = used.len() - before, "discarded a torn transaction that was not synced");
        } else {
            // The transaction had been synced, or the damage is elsewhere: restore the journal as it was.
            self.open = None;
            file.seek(SeekFrom::Start(before as u64))?;
            file.write_all(&used[before..])?;
            file.set_len(bytes.len() as u64)?;
            file.sync_all()?;
        }
        read
    }

    fn read_store(&mut self) -> Result<Saved, Fault> {
        // Some of the engine's checks of what it reads panic instead of returning an error.
        let open = catch_unwind(AssertUnwindSafe(|| open(&self.dir)));
        let open = self.open.insert(open.map_err(|_| Fault::Panic)??);
        let mut number = 0;
        let entries = open.rows.iter().filter_map(|guard| match guard.into_inner() {
            Ok((key, value)) if *key == *NUMBER_KEY => {
                number = value.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
                None
            }
            entry => Some(entry.map_err(Fault::from)),
        });
        let saved = catch_unwind(AssertUnwindSafe(|| Saved::read(entries)));
        let saved = saved.map_err(|_| Fault::Panic)??;
        self.transaction = number;
        let mut bytes = Vec::new();
        self.lock.seek(SeekFrom::Start(0))?;
        self.lock.read_to_end(&mut bytes)?;
        let expected = bytes.first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
        match bytes.len() {
            0 => Ok(saved),
            _ if bytes != numbered(expected) => Err(Fault::Lock),
            _ if expected > number => Err(Fault::Short { number, expected }),
            _ => Ok(saved),
        }
    }

    fn start_error(&self, fault: Fault) -> StartError {
        let dir = self.dir.display().to_string();
        let store = self.dir.join(STORE_FOLDER);
        let (path, reason) = match fault {
            Fault::Saved(SavedError::Version { version }) => {
                return StartError::DataDirVersion { path: dir, version };
            }
            Fault::Engine(fjall::Error::Locked) => return StartError::DataDirInUse { path: dir },
            Fault::Engine(fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)))
                if !tells_of_damage(&error) =>
            {
                return StartError::DataDir { path: dir, reason: Cause::new(error) };
            }
            Fault::Engine(fjall::Error::JournalRecovery(error)) => {
                (self.journal().unwrap_or(store), cause(fjall::Error::JournalRecovery(error)))
            }
            Fault::Lock => (self.dir.join(LOCK_FILE), Cause::new("its checksum is wrong")),
            Fault::Engine(error @ fjall::Error::InvalidVersion(_)) => {
                (store.join(VERSION_FILE), cause(error))
            }
            Fault::Engine(error) => (self.damaged_table().unwrap_or(store), cause(error)),
            Fault::Saved(error) => (self.damaged_table().unwrap_or(store), Cause::new(error)),
            Fault::Panic => (self.damaged_table().unwrap_or(store), Cause::new("it cannot be read")),
            Fault::Short { number, expected } => {
                let reason = format!("it ends with transaction {number}, but {expected} was synced");
                (self.journal().unwrap_or(store), Cause::new(reason))
            }
        };
        StartError::Damaged { path: path.display().to_string(), reason }
    }

    fn journals(&self) -> io::Result<Vec<PathBuf>> {
        let files = fs::read_dir(self.dir.join(STORE_FOLDER))?.flatten().map(|entry| entry.path());
        Ok(files.filter(|path| path.extension().is_some_and(|extension| extension == "jnl")).collect())
    }

    /// The journal that is being written to: the one with the greatest number.
    fn journal(&self) -> Option<PathBuf> {
        let age = |path: &PathBuf| path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        self.journals().ok()?.into_iter().max_by_key(age)
    }

    /// Writes all journals again. After a failed sync the operating system may consider pages clean that never reached
    /// the disk, and a later sync would not write them. That would leave a gap before the next acknowledged
    /// transaction.
    fn rewrite_journals(&self) -> io::Result<()> {
        let copy = self.dir.join(REWRITTEN_FILE);
        for journal in self.journals()? {
            write_anew(&copy, &journal, &fs::read(&journal)?)?;
        }
        sync_folder(&self.dir.join(STORE_FOLDER))
    }

    /// The first table that cannot be read.
    fn damaged_table(&self) -> Option<PathBuf> {
        let version = self.open.as_ref()?.rows.tree.current_version();
        let mut tables = version.iter_tables().filter(|table| {
            let read = || table.scan().is_ok_and(|mut entries| entries.all(|entry| entry.is_ok()));
            !catch_unwind(AssertUnwindSafe(read)).unwrap_or(false)
        });
        tables.next().map(|table| table.path.to_path_buf())
    }

    /// The error for entries that do not match the digest that was written with them.
    pub(in crate::node) fn damaged(&self) -> StartError {
        let reason = Cause::new("its entries do not match the digest that was written with them");
        let path = self.damaged_table().unwrap_or_else(|| self.dir.join(STORE_FOLDER));
        StartError::Damaged { path: path.display().to_string(), reason }
    }

    /// Sets the damaged store aside, and creates an empty one.
    pub(in crate::node) fn set_aside_and_reset(&mut self) -> Result<(), StartError> {
        self.open = None;
        let moved = fs::rename(self.dir.join(STORE_FOLDER), self.dir.join(MOVED_FOLDER));
        moved.map_err(|error| self.start_error(error.into()))?;
        self.load().map(|_| ())
    }

    /// Finishes setting a moved store aside: erases the transaction number in the lock file, then renames the folder.
    /// With the old number the new, empty store would be taken for one that has lost everything. If this is
    /// interrupted, the next start continues it.
    fn set_aside(&self) -> io::Result<()> {
        let (moved, damaged) = (self.dir.join(MOVED_FOLDER), self.dir.join(DAMAGED_FOLDER));
        if moved.exists() {
            sync_folder(&self.dir)?;
            self.lock.set_len(0)?;
            self.lock.sync_all()?;
            remove_folder(&damaged)?;
            fs::rename(moved, damaged)?;
        }
        Ok(())
    }

    /// Writes a transaction, given in its parts. When this returns `Ok`, it is synced.
    pub(in crate::node) fn commit(&mut self, parts: &[Persist]) -> Result<(), Failure> {
        #[cfg(feature = "__controls")]
        if let Some(kind) = *self.fault.lock().expect("nobody panics with it") {
            return Err(Failure::from(fjall::Error::Io(kind.into())));
        }
        let open = self.open.as_ref().ok_or(fjall::Error::Poisoned)?;
        let mut batch = open.database.batch().durability(Some(PersistMode::SyncData));
        let mut put = |key: &[u8], value: Option<&[u8]>| match value {
            Some(value) => batch.insert(&open.rows, key, value),
            None => batch.remove(&open.rows, key),
        };
        // The engine takes each key once per transaction. The last part has the latest rows.
        let (last, earlier) = parts.split_last().expect("a transaction ends with a part");
        let mut latest = HashSet::with_capacity(last.rows().len());
        let mut rows: Vec<&DotSet> = last.rows().iter().filter(|row| latest.insert(row.key())).collect();
        rows.extend(earlier.iter().flat_map(Persist::rows).filter(|row| !latest.contains(row.key())));
        // Sorted rows are inserted in half the time.
        rows.sort_unstable_by_key(|row| row.key());
        let mut room = Vec::new();
        for row in rows {
            let value = saved::row_value(row, std::mem::take(&mut room));
            put(row.key(), value.as_deref());
            room = value.unwrap_or(room);
        }
        let metadata: Vec<DiskChange> = last.metadata().collect();
        metadata.iter().for_each(|(key, value)| put(key, value.as_deref()));
        let number = self.transaction + 1;
        put(NUMBER_KEY, Some(&number.to_le_bytes()));
        if parts[0].is_whole() {
            let rows = parts.iter().flat_map(Persist::rows).map(DotSet::key);
            let metadata = metadata.iter().map(|(key, _)| key.as_slice());
            let kept: HashSet<&[u8]> = rows.chain(metadata).chain([NUMBER_KEY]).collect();
            for stored in open.rows.iter() {
                let key = stored.key()?;
                if !kept.contains(&*key) {
                    put(&key, None);
                }
            }
        }
        batch.commit()?;
        self.transaction = number;
        Ok(())
    }

    /// Writes the number of the last transaction to the lock file. It is not synced and errors are ignored: the number
    /// may be behind.
    pub(in crate::node) fn note_transaction(&mut self) {
        let noted = numbered(self.transaction);
        _ = self.lock.seek(SeekFrom::Start(0)).and_then(|_| self.lock.write_all(&noted));
    }

    /// Opens the directory again after a failure. The journals are rewritten first, because it is not known how much of
    /// what was written and not synced is on the disk.
    pub(in crate::node) fn reopen(&mut self) -> Result<(), Failure> {
        #[cfg(feature = "__controls")]
        if let Some(kind) = *self.fault.lock().expect("nobody panics with it") {
            return Err(Failure::from(fjall::Error::Io(kind.into())));
        }
        // The engine must release the directory before it is opened again.
        self.open = None;
        self.rewrite_journals().map_err(fjall::Error::Io)?;
        let open = open(&self.dir)?;
        if let Some(number) = open.rows.get(NUMBER_KEY)?.and_then(|bytes| bytes.first_chunk().copied()) {
            self.transaction = u64::from_le_bytes(number);
        }
        self.open = Some(open);
        Ok(())
    }
}

/// Unlocks the directory, so that others can use it at once. Closing the lock file is not enough: a child process that
/// is being started holds it for a moment as well.
impl Drop for Engine {
    fn drop(&mut self) {
        self.open = None;
        _ = self.lock.unlock();
    }
}

/// The number of a transaction with its checksum, as it is kept in the lock file.
fn numbered(number: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    let checksum = fingerprint(0, &bytes[..8]);
    bytes[8..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

/// Whether an error means that the stored data is damaged, and not that it is inaccessible at present.
fn tells_of_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
    // EIO: the device cannot read its own data.
    let is_unreadable = cfg!(unix) && error.raw_os_error() == Some(5);
    is_unreadable || matches!(error.kind(), InvalidData | InvalidInput | NotFound | UnexpectedEof)
}

/// The length of a journal without the zeros reserved at its end.
fn used_bytes(journal: &[u8]) -> usize {
    journal.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1)
}

/// Replaces a journal by a copy with these bytes. The zeros at its end become a hole that takes no space.
fn write_anew(copy: &Path, journal: &Path, bytes: &[u8]) -> io::Result<()> {
    let written = File::create(copy).and_then(|mut file| {
        file.write_all(&bytes[..used_bytes(bytes)])?;
        file.set_len(bytes.len() as u64)?;
        file.sync_all()?;
        fs::rename(copy, journal)
    });
    written.inspect_err(|_| _ = fs::remove_file(copy))
}

/// Syncs a folder, so that files created or renamed in it survive a power failure.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    if folder.exists() { fs::remove_dir_all(folder) } else { Ok(()) }
}

/// Opens the store, or creates it. One whose creation was interrupted is removed first: it holds nothing, and the
/// engine cannot open it.
///
/// It is not created elsewhere and renamed, because the engine would have to open it again. Whenever it opens a store
/// it gives up the space that it had reserved in its journal. Each sync then writes the file's length as well and takes
/// a quarter longer, until the next journal begins after 64 MB.
fn open(dir: &Path) -> Result<Open, fjall::Error> {
    let (store, making) = (dir.join(STORE_FOLDER), dir.join(MAKING_FILE));
    if making.exists() && fs::metadata(dir.join(LOCK_FILE))?.len() == 0 {
        remove_folder(&store)?;
    }
    if store.symlink_metadata().is_ok() {
        return open_store(&store);
    }
    File::create(&making)?;
    sync_folder(dir)?;
    // The engine chooses the modes of its files, and others may be able to read the data directory.
    super::create_private_folder(&store)?;
    let open = open_store(&store)?;
    sync_folder(dir)?;
    fs::remove_file(making)?;
    sync_folder(dir)?;
    // Best effort: this process may not have the right to read the parent folder.
    _ = dir.canonicalize()?.parent().map(sync_folder);
    Ok(open)
}

fn open_store(store: &Path) -> Result<Open, fjall::Error> {
    let database = Database::builder(store)
        .worker_threads(1)
        .max_journaling_size(JOURNAL_BYTES_MAX)
        .cache_size(CACHE_BYTES)
        .open()?;
    let rows = database.keyspace(KEYSPACE, || {
        KeyspaceCreateOptions::default()
            .max_memtable_size(MEMTABLE_BYTES_MAX)
            .filter_policy(FilterPolicy::disabled())
    })?;
    Ok(Open { database, rows })
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;

    /// A disk that was full has little space at first.
    #[test]
    fn rewritten_journal_takes_only_the_room_of_its_content() {
        let dir = std::env::temp_dir().join(format!("tidings-engine-{}", std::process::id()));
        _ = fs::remove_dir_all(&dir);
        let mut engine = Engine::new(&dir).unwrap();
        assert!(engine.load().unwrap().is_blank());
        engine.open = None;
        let (journal, copy) = (engine.journal().unwrap(), dir.join(REWRITTEN_FILE));
        let bytes = [vec![7; 1_000], vec![0; 8 << 20]].concat();
        fs::write(&journal, &bytes).unwrap();
        engine.rewrite_journals().unwrap();
        assert!(fs::read(&journal).unwrap() == bytes && !copy.exists());
        assert!(fs::metadata(&journal).unwrap().blocks() * 512 < 1 << 20);
        fs::write(&journal, b"").unwrap();
        engine.reopen().unwrap();
        // If it fails, the temporary copy is removed.
        engine.open = None;
        let in_the_way = journal.with_file_name("9.jnl");
        fs::create_dir_all(in_the_way.join("full")).unwrap();
        assert!(write_anew(&copy, &in_the_way, &bytes).is_err() && !copy.exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
