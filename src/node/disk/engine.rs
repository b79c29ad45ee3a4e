//! The engine under a node's disk: one directory, one writer, atomic transactions.
//!
//! The engine is `fjall`, a log-structured tree with a journal, and nothing beside it. Measured against `redb`, a
//! copy-on-write B-tree, in one run on one disk, each transaction being one row of 150 bytes and 100 bytes of claims:
//! a synced transaction costs 0.8 to 1.1 bare appends of the same bytes with `fdatasync` in `fjall`, and 2.7 (empty) to
//! 4.8 (100,000 keys) in `redb`, which writes a path of whole pages each time; 100 rows at once take 0.45 ms against
//! 3.2 ms; filling a million keys takes half the time and 57 % of the room. Reading a million keys back takes 0.95 s
//! against 0.42 s (0.8 s after a crash), which the target for opening permits. Under constant overwriting of 100,000
//! keys both stay within bounds; `fjall` takes 1.7 times as many rows a second. `redb` would offer a replaceable
//! storage beneath it; faulty disks are simulated above the engine instead, in `Sim`.
//!
//! Everything lies in one keyspace, so that a transaction is one record of the journal. Beside the engine there is one
//! file, the lock. It also holds the number of the last transaction: a journal that has lost its end looks like one
//! that was never longer, and only a number kept elsewhere can tell. It is written after the transaction is safe, so it
//! is never ahead of an engine that keeps its word.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fjall::config::FilterPolicy;
use fjall::{AbstractTree, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::digest::fingerprint;
use crate::entry::Held;
use crate::error::StartError;
use crate::replica::Persist;
use crate::saved::{self, Change, Saved, SavedError};

const LOCK_FILE: &str = "lock";
const STORE_FOLDER: &str = "store";
/// The engine's own.
const VERSION_FILE: &str = "version";
const REWRITTEN_FILE: &str = "journal";
const DAMAGED_FOLDER: &str = "damaged";
const KEYSPACE: &str = "tidings";

/// Under which the number of the last transaction is kept; no row and no claim begins like this.
const NUMBER_KEY: &[u8] = &[0xff];

/// What the engine may keep beside the data, twice: in the journal and in memory before it is sorted into tables.
const JOURNAL_BYTES_MAX: u64 = 64 << 20;
const MEMTABLE_BYTES_MAX: u64 = 16 << 20;
/// Everything is read once, at the start; nothing is gained by remembering it.
const CACHE_BYTES: u64 = 1 << 20;

/// Why a transaction was not written.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) reason: String,
    /// It may be mended by itself, as a full disk is by whoever makes room.
    pub(super) may_pass: bool,
}

impl From<fjall::Error> for Failure {
    fn from(error: fjall::Error) -> Self {
        let full = |error: &io::Error| {
            use io::ErrorKind::{FileTooLarge, QuotaExceeded, StorageFull};
            matches!(error.kind(), StorageFull | QuotaExceeded | FileTooLarge)
        };
        let may_pass = match &error {
            fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => full(error),
            // Something failed in the background, on files that are written anew from the journal.
            fjall::Error::Poisoned => true,
            _ => false,
        };
        let reason = match &error {
            fjall::Error::Io(error) | fjall::Error::Storage(fjall::LsmError::Io(error)) => error.to_string(),
            other => other.to_string(),
        };
        Self { reason, may_pass }
    }
}

/// What is wrong with a directory that was to be opened.
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

pub(super) struct Engine {
    dir: PathBuf,
    /// Closed before the lock is.
    open: Option<Open>,
    lock: File,
    number: u64,
    #[cfg(feature = "__controls")]
    pub(super) fault: std::sync::Arc<std::sync::Mutex<Option<io::ErrorKind>>>,
}

impl Engine {
    /// Opens a directory, or makes it. Answers what it holds; a directory that is damaged is left as it is.
    pub(super) fn open(dir: &Path) -> Result<(Self, Saved), StartError> {
        let unusable = |error: &dyn std::fmt::Display| StartError::DataDir {
            path: dir.display().to_string(),
            reason: error.to_string(),
        };
        fs::create_dir_all(dir).map_err(|error| unusable(&error))?;
        let lock =
            File::options().read(true).write(true).create(true).truncate(false).open(dir.join(LOCK_FILE));
        let lock = lock.map_err(|error| unusable(&error))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StartError::DataDirInUse { path: dir.display().to_string() },
            TryLockError::Error(error) => unusable(&error),
        })?;
        let mut engine = Self {
            dir: dir.to_owned(),
            lock,
            open: None,
            number: 0,
            #[cfg(feature = "__controls")]
            fault: std::sync::Arc::default(),
        };
        let saved = engine.load().map_err(|fault| engine.start_error(fault))?;
        Ok((engine, saved))
    }

    fn load(&mut self) -> Result<Saved, Fault> {
        // The engine's own checks of what it reads are not all errors.
        let open = catch_unwind(AssertUnwindSafe(|| open(&self.dir.join(STORE_FOLDER))));
        let open = open.map_err(|_| Fault::Panic)??;
        self.open = Some(open.clone());
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
        self.number = number;
        let mut bytes = Vec::new();
        _ = self.lock.read_to_end(&mut bytes);
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
            Fault::Engine(fjall::Error::Io(error)) if error.kind() != io::ErrorKind::InvalidData => {
                return StartError::DataDir { path: dir, reason: error.to_string() };
            }
            Fault::Engine(fjall::Error::JournalRecovery(error)) => {
                (self.journal().unwrap_or(store), error.to_string())
            }
            Fault::Lock => (self.dir.join(LOCK_FILE), "it is not what was written".to_owned()),
            Fault::Engine(error @ fjall::Error::InvalidVersion(_)) => {
                (store.join(VERSION_FILE), error.to_string())
            }
            Fault::Engine(error) => (self.damaged_table().unwrap_or(store), error.to_string()),
            Fault::Saved(error) => (self.damaged_table().unwrap_or(store), error.to_string()),
            Fault::Panic => (self.damaged_table().unwrap_or(store), "it cannot be read".to_owned()),
            Fault::Short { number, expected } => {
                let reason = format!("it ends with transaction {number}, but {expected} was written");
                (self.journal().unwrap_or(store), reason)
            }
        };
        StartError::Damaged { path: path.display().to_string(), reason }
    }

    fn journals(&self) -> io::Result<Vec<PathBuf>> {
        let files = fs::read_dir(self.dir.join(STORE_FOLDER))?.flatten().map(|entry| entry.path());
        Ok(files.filter(|path| path.extension().is_some_and(|extension| extension == "jnl")).collect())
    }

    /// The journal that is written to.
    fn journal(&self) -> Option<PathBuf> {
        let age = |path: &PathBuf| path.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        self.journals().ok()?.into_iter().max_by_key(age)
    }

    /// After a sync that failed the system may hold for clean what never reached the disk, and a later sync would not
    /// write it. A gap before what is acknowledged next must not stay.
    fn rewrite_journals(&self) -> io::Result<()> {
        let copy = self.dir.join(REWRITTEN_FILE);
        for journal in self.journals()? {
            let mut file = File::create(&copy)?;
            file.write_all(&fs::read(&journal)?)?;
            file.sync_all()?;
            fs::rename(&copy, journal)?;
        }
        File::open(self.dir.join(STORE_FOLDER))?.sync_all()
    }

    /// The table that cannot be read.
    fn damaged_table(&self) -> Option<PathBuf> {
        let version = self.open.as_ref()?.rows.tree.current_version();
        let mut tables = version.iter_tables().filter(|table| {
            let read = || table.scan().is_ok_and(|mut entries| entries.all(|entry| entry.is_ok()));
            !catch_unwind(AssertUnwindSafe(read)).unwrap_or(false)
        });
        tables.next().map(|table| table.path.to_path_buf())
    }

    /// Says that what was read adds up to something else than what was written.
    pub(super) fn damaged(&self) -> StartError {
        let reason = "its entries do not add up to what was written".to_owned();
        let path = self.damaged_table().unwrap_or_else(|| self.dir.join(STORE_FOLDER));
        StartError::Damaged { path: path.display().to_string(), reason }
    }

    /// Moves what a directory holds aside, and begins anew in it.
    pub(super) fn begin_anew(dir: &Path) -> Result<(Self, Saved), StartError> {
        let moved = || {
            let damaged = dir.join(DAMAGED_FOLDER);
            if damaged.exists() {
                fs::remove_dir_all(&damaged)?;
            }
            fs::rename(dir.join(STORE_FOLDER), damaged)?;
            File::options().write(true).open(dir.join(LOCK_FILE))?.set_len(0)
        };
        moved().map_err(|error| StartError::DataDir {
            path: dir.display().to_string(),
            reason: error.to_string(),
        })?;
        Self::open(dir)
    }

    /// Writes a transaction, given in its parts. When this returns it is safe.
    pub(super) fn commit(&mut self, parts: &[Persist]) -> Result<(), Failure> {
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
        // The engine takes each key once, and the last part says what is there now.
        let (last, earlier) = parts.split_last().expect("a transaction ends with a part");
        let mut latest = HashSet::with_capacity(last.rows().len());
        let mut rows: Vec<&Held> = last.rows().iter().filter(|row| latest.insert(row.key())).collect();
        rows.extend(earlier.iter().flat_map(Persist::rows).filter(|row| !latest.contains(row.key())));
        // In their order they find their places there in half the time.
        rows.sort_unstable_by_key(|row| row.key());
        let mut room = Vec::new();
        for row in rows {
            let value = saved::row_value(row, std::mem::take(&mut room));
            put(row.key(), value.as_deref());
            room = value.unwrap_or(room);
        }
        let claims: Vec<Change> = last.claims().collect();
        claims.iter().for_each(|(key, value)| put(key, value.as_deref()));
        let number = self.number + 1;
        put(NUMBER_KEY, Some(&number.to_le_bytes()));
        if parts[0].is_whole() {
            let rows = parts.iter().flat_map(Persist::rows).map(Held::key);
            let claims = claims.iter().map(|(key, _)| key.as_slice());
            let kept: HashSet<&[u8]> = rows.chain(claims).chain([NUMBER_KEY]).collect();
            for stored in open.rows.iter() {
                let key = stored.key()?;
                if !kept.contains(&*key) {
                    put(&key, None);
                }
            }
        }
        batch.commit()?;
        self.number = number;
        Ok(())
    }

    /// Notes how far the journal goes. Nothing depends on it, and nobody waits for it: it may stay behind.
    pub(super) fn note_number(&mut self) {
        let noted = numbered(self.number);
        _ = self.lock.seek(SeekFrom::Start(0)).and_then(|_| self.lock.write_all(&noted));
    }

    /// Opens the directory again after a failure. What was written without being safe is written anew, since nobody
    /// knows what became of it.
    pub(super) fn reopen(&mut self) -> Result<(), Failure> {
        #[cfg(feature = "__controls")]
        if let Some(kind) = *self.fault.lock().expect("nobody panics with it") {
            return Err(Failure::from(fjall::Error::Io(kind.into())));
        }
        // The engine lets go of the directory before it is opened again.
        self.open = None;
        self.rewrite_journals().map_err(fjall::Error::Io)?;
        let open = open(&self.dir.join(STORE_FOLDER))?;
        if let Some(number) = open.rows.get(NUMBER_KEY)?.and_then(|bytes| bytes.first_chunk().copied()) {
            self.number = u64::from_le_bytes(number);
        }
        self.open = Some(open);
        Ok(())
    }
}

/// A number of a transaction with its checksum, for the lock.
fn numbered(number: u64) -> [u8; 16] {
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    let checksum = fingerprint(0, &bytes[..8]);
    bytes[8..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn open(store: &Path) -> Result<Open, fjall::Error> {
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
