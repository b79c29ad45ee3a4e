//! Files that are replaced as a whole.
//!
//! A temporary file is locked until it was renamed. One that is not locked was left by a process that was killed; the
//! next write to the same path removes it.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Numbers the temporary files: several files may be written at the same time, even to one path.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// Writes a file, accessible to the process's own user alone, in the place of another one. `write` has to sync it. It is
/// written under a temporary name beside the path and then renamed, so that a file that was there before is complete or
/// replaced whatever happens.
pub(in crate::node) fn replace_file(
    path: &Path,
    write: impl FnOnce(File) -> io::Result<()>,
) -> io::Result<()> {
    remove_leftovers(path);
    let (temporary, file) = begin(path)?;
    // A second handle keeps the lock until the file has its name.
    let locked = file.try_clone()?;
    let written = write(file).and_then(|()| fs::rename(&temporary, path));
    written.inspect_err(|_| _ = fs::remove_file(&temporary))?;
    drop(locked);
    File::open(folder(path))?.sync_all()
}

fn folder(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The name of a temporary file. Processes in several containers may have one id, and their numbers begin at zero.
fn temporary(path: &Path, number: u64) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(format!(".{:x}-{number}.tmp", std::process::id()));
    name.into()
}

/// Creates a temporary file under a name that nobody else uses, and locks it.
fn begin(path: &Path) -> io::Result<(PathBuf, File)> {
    loop {
        let temporary = temporary(path, BEGUN.fetch_add(1, Ordering::Relaxed));
        let created = super::private(File::options().write(true).create_new(true)).open(&temporary);
        let file = match created {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            created => created?,
        };
        // Where files cannot be locked nobody takes it for a leftover either.
        _ = file.lock();
        // Before it was locked another writer may have removed it.
        if temporary.exists() {
            return Ok((temporary, file));
        }
    }
}

/// Removes temporary files of the path whose writers have ended. What cannot be read or removed stays.
fn remove_leftovers(path: &Path) {
    let Some(name) = path.file_name() else { return };
    for entry in fs::read_dir(folder(path)).into_iter().flatten().flatten() {
        if is_temporary(&entry.file_name(), name)
            && entry.file_type().is_ok_and(|kind| kind.is_file())
            && let Ok(file) = File::open(entry.path())
            && file.try_lock().is_ok()
        {
            _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether `name` is that of a temporary file for a file of the name `of`.
fn is_temporary(name: &OsStr, of: &OsStr) -> bool {
    let rest = name.to_str().zip(of.to_str()).and_then(|(name, of)| name.strip_prefix(of));
    let numbers = rest.and_then(|rest| rest.strip_prefix('.')?.strip_suffix(".tmp")?.split_once('-'));
    numbers.is_some_and(|(id, number)| u32::from_str_radix(id, 16).is_ok() && number.parse::<u64>().is_ok())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// How many names of the process are taken by leftovers: other tests take some as well.
    const LEFTOVERS: u64 = 1_000;

    #[test]
    fn leftovers_of_killed_writers_block_nothing_and_go() {
        let folder = std::env::temp_dir().join(format!("tidings-replace-{}", std::process::id()));
        fs::create_dir(&folder).unwrap();
        let path = folder.join("file");
        let others = ["file.old.tmp", "file.1-x.tmp", "other.1-2.tmp"].map(|name| folder.join(name));
        let begun = BEGUN.load(Ordering::Relaxed);
        let leftovers = (begun..begun + LEFTOVERS).map(|number| temporary(&path, number));
        for left in leftovers.chain(others.clone()) {
            fs::write(left, "a part").unwrap();
        }
        // One of them belongs to a writer that goes on.
        let (living, _file) = begin(&path).unwrap();
        replace_file(&path, |mut file| file.write_all(b"whole")).unwrap();
        let mut there: Vec<PathBuf> =
            fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().path()).collect();
        there.sort();
        let mut expected: Vec<PathBuf> = others.into_iter().chain([path.clone(), living]).collect();
        expected.sort();
        assert_eq!(there, expected);
        assert_eq!(fs::read(&path).unwrap(), b"whole");
        fs::remove_dir_all(&folder).unwrap();
    }
}
