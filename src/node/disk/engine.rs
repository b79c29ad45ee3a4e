//! The engine under a node's disk: one directory, one writer, atomic transactions.
//!
//! The engine is `fjall`, a log-structured tree with a journal, and nothing beside it. Measured against `redb`, a
//! copy-on-write B-tree, in one run on one disk, each transaction being one row of 150 bytes and 100 bytes of metadata:
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
//!
//! A power failure may leave any pages of a transaction unwritten that was not safe yet. One without an end is torn for
//! the engine, which goes on without it; one with a hole before its end is damage to it, and is cut off here.

use std::collections::HashSet;
use std::fs::{self, File, TryLockError};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use fjall::config::FilterPolicy;
use fjall::{AbstractTree, Database, Keyspace, KeyspaceCreateOptions, PersistMode};

use crate::node::error::StartError;
use crate::replica::Persist;
use crate::replica::saved::{self, DiskChange, Saved, SavedError};
use crate::store::digest::fingerprint;
use crate::store::entry::DotSet;

const LOCK_FILE: &str = "lock";
const STORE_FOLDER: &str = "store";
/// The engine's own.
const VERSION_FILE: &str = "version";
/// So ends each transaction in its journal.
const TRANSACTION_END: &[u8] = b"FJL\x03";
const REWRITTEN_FILE: &str = "journal";
/// It is there while a store is made.
const MAKING_FILE: &str = "making";
/// Where a damaged one ends up, and where it is until the lock knows of that.
const DAMAGED_FOLDER: &str = "damaged";
const MOVED_FOLDER: &str = "moved";
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

pub(super) struct Engine {
    dir: PathBuf,
    open: Option<Open>,
    lock: File,
    transaction: u64,
    #[cfg(feature = "__controls")]
    pub(super) fault: std::sync::Arc<std::sync::Mutex<Option<io::ErrorKind>>>,
}

impl Engine {
    /// Takes a directory, or makes it. It belongs to this engine from now on, whatever it holds.
    pub(super) fn new(dir: &Path) -> Result<Self, StartError> {
        let unusable = |error: &dyn std::fmt::Display| StartError::DataDir {
            path: dir.display().to_string(),
            reason: error.to_string(),
        };
        super::create_private_folder(dir).map_err(|error| unusable(&error))?;
        let mut options = File::options();
        options.read(true).write(true).create(true).truncate(false);
        let lock = super::private(&mut options).open(dir.join(LOCK_FILE));
        let lock = lock.map_err(|error| unusable(&error))?;
        lock.try_lock().map_err(|error| match error {
            TryLockError::WouldBlock => StartError::DataDirInUse { path: dir.display().to_string() },
            TryLockError::Error(error) => unusable(&error),
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

    /// Opens the store, and answers what it holds.
    pub(super) fn load(&mut self) -> Result<Saved, StartError> {
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
            tracing::warn!(bytes = used.len() - before, "a torn transaction is left out, which was not safe");
        } else {
            // It was, or the fault lies elsewhere: then all stays as it is.
            self.open = None;
            file.seek(SeekFrom::Start(before as u64))?;
            file.write_all(&used[before..])?;
            file.set_len(bytes.len() as u64)?;
            file.sync_all()?;
        }
        read
    }

    fn read_store(&mut self) -> Result<Saved, Fault> {
        // The engine's own checks of what it reads are not all errors.
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
            write_anew(&copy, &journal, &fs::read(&journal)?)?;
        }
        sync_folder(&self.dir.join(STORE_FOLDER))
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

    /// Sets aside what is there, and begins anew.
    pub(super) fn set_aside_and_reset(&mut self) -> Result<(), StartError> {
        self.open = None;
        let moved = fs::rename(self.dir.join(STORE_FOLDER), self.dir.join(MOVED_FOLDER));
        moved.map_err(|error| self.start_error(error.into()))?;
        self.load().map(|_| ())
    }

    /// Brings a store that was moved where it belongs, once the lock says nothing of it any more: if that is interrupted it
    /// goes on at the next start, and what is made then is not taken for one that has lost everything.
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
        let mut rows: Vec<&DotSet> = last.rows().iter().filter(|row| latest.insert(row.key())).collect();
        rows.extend(earlier.iter().flat_map(Persist::rows).filter(|row| !latest.contains(row.key())));
        // In their order they find their places there in half the time.
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

    /// Notes how far the journal goes. Nothing depends on it, and nobody waits for it: it may stay behind.
    pub(super) fn note_transaction(&mut self) {
        let noted = numbered(self.transaction);
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
        let open = open(&self.dir)?;
        if let Some(number) = open.rows.get(NUMBER_KEY)?.and_then(|bytes| bytes.first_chunk().copied()) {
            self.transaction = u64::from_le_bytes(number);
        }
        self.open = Some(open);
        Ok(())
    }
}

/// Others may have the directory at once. Closing the lock would not be enough: a process that this one is just starting
/// has it for a moment as well.
impl Drop for Engine {
    fn drop(&mut self) {
        self.open = None;
        _ = self.lock.unlock();
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

/// Whether an error says something about what was written, instead of about what can be done at the time.
fn tells_of_damage(error: &io::Error) -> bool {
    use io::ErrorKind::{InvalidData, InvalidInput, NotFound, UnexpectedEof};
    // The device cannot read what it holds.
    let is_unreadable = cfg!(unix) && error.raw_os_error() == Some(5);
    is_unreadable || matches!(error.kind(), InvalidData | InvalidInput | NotFound | UnexpectedEof)
}

/// How long a journal is without the room at its end.
fn used_bytes(journal: &[u8]) -> usize {
    journal.iter().rposition(|byte| *byte != 0).map_or(0, |at| at + 1)
}

/// Puts a journal in the place of another one. The room at its end takes none as long as nobody writes there.
fn write_anew(copy: &Path, journal: &Path, bytes: &[u8]) -> io::Result<()> {
    let written = File::create(copy).and_then(|mut file| {
        file.write_all(&bytes[..used_bytes(bytes)])?;
        file.set_len(bytes.len() as u64)?;
        file.sync_all()?;
        fs::rename(copy, journal)
    });
    written.inspect_err(|_| _ = fs::remove_file(copy))
}

/// What was made or renamed in a folder is there after a power failure as well.
fn sync_folder(folder: &Path) -> io::Result<()> {
    if cfg!(unix) { File::open(folder)?.sync_all() } else { Ok(()) }
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    if folder.exists() { fs::remove_dir_all(folder) } else { Ok(()) }
}

/// Opens the store, or makes it. One that was half made holds nothing, and the engine could not go on with it.
///
/// It is not made elsewhere and renamed: the engine would have to open it again, and whenever it does it gives away the
/// room that it had reserved in its journal. Then each sync writes the file's length as well, and takes a fourth longer,
/// until the next journal begins after 64 MB.
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
    // Whatever the modes of the files in it are: the folder around it may be one that others can read.
    super::create_private_folder(&store)?;
    let open = open_store(&store)?;
    sync_folder(dir)?;
    fs::remove_file(making)?;
    sync_folder(dir)?;
    // Not everybody may read the folder around it.
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

    /// A disk that was full has little room at first.
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
        // Where that is not possible, nothing is left of the try.
        engine.open = None;
        let in_the_way = journal.with_file_name("9.jnl");
        fs::create_dir_all(in_the_way.join("full")).unwrap();
        assert!(write_anew(&copy, &in_the_way, &bytes).is_err() && !copy.exists());
        fs::remove_dir_all(&dir).unwrap();
    }
}
