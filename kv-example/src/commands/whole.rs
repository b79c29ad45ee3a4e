//! Files that are replaced as a whole: what a path held stays until all that takes its place is safe on the disk.
//!
//! Several processes, or several threads of one, may replace one file at the same time: each writes a file of its own
//! beside it, and that of the last one stays. Such a file is locked until it has its place. One that is not locked was
//! left by a process that was killed; the next write to the same path removes it.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Permissions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::exit::Failure;

/// The ending of the names under which next contents are written.
const ENDING: &str = ".tidings";

/// Numbers the next contents of this process.
static BEGUN: AtomicU64 = AtomicU64::new(0);

/// Writes a file beside the one at `path`, and puts it in its place: with the mode of that one, or for its owner only. If
/// that fails, what is there stays. Something that is no file, such as a pipe, is written to.
pub(super) fn replace(
    path: &Path,
    write: impl FnOnce(&mut dyn Write) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed = |error| Failure::file(path, &error);
    let there = fs::metadata(path).ok();
    if there.as_ref().is_some_and(|there| !there.is_file()) {
        let mut out = BufWriter::new(File::options().write(true).open(path).map_err(failed)?);
        return write(&mut out).and_then(|()| out.flush().map_err(failed));
    }
    // Of a link the file that it leads to.
    let place = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
    put_in_place(&place, there.map(|there| there.permissions()), write)
}

/// Writes a file beside the one at `path`, and puts it in its place: with these permissions, or for its owner only. If
/// that fails, what is there stays. A link is replaced itself.
pub(super) fn put_in_place(
    path: &Path,
    permissions: Option<Permissions>,
    write: impl FnOnce(&mut dyn Write) -> Result<(), Failure>,
) -> Result<(), Failure> {
    let failed = |error| Failure::file(path, &error);
    remove_leftovers(path);
    let (next, file) = begin(path).map_err(failed)?;
    let mut out = BufWriter::new(&file);
    let placed = write(&mut out).and_then(|()| {
        out.flush().map_err(failed)?;
        permissions.map_or(Ok(()), |permissions| file.set_permissions(permissions)).map_err(failed)?;
        file.sync_all().and_then(|()| fs::rename(&next, path)).map_err(failed)
    });
    if placed.is_err() {
        _ = fs::remove_file(&next);
    }
    placed.and_then(|()| sync_parent(path).map_err(failed))
}

/// The hidden name beside `path` under which the next content of this number is written. Processes in several
/// containers may have one id, and their numbers begin at zero.
fn beside(path: &Path, number: u64) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(format!(".{:x}-{number}{ENDING}", std::process::id()));
    path.with_file_name(name)
}

/// Creates a file under a name that nobody else uses, and locks it.
fn begin(path: &Path) -> io::Result<(PathBuf, File)> {
    loop {
        let next = beside(path, BEGUN.fetch_add(1, Ordering::Relaxed));
        let file = match crate::private(File::options().write(true).create_new(true)).open(&next) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => continue,
            created => created?,
        };
        // Where files cannot be locked nobody takes it for a leftover either.
        _ = file.lock();
        // Before it was locked another writer may have removed it.
        if next.exists() {
            return Ok((next, file));
        }
    }
}

/// Removes next contents of the path whose writers have ended.
fn remove_leftovers(path: &Path) {
    let Some(name) = path.file_name() else { return };
    let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    remove_unlocked(folder, |next| is_next(next, name));
}

/// Removes files that processes which were killed have left: those of such names that nobody has locked. What cannot be
/// read or removed stays.
pub(crate) fn remove_unlocked(folder: &Path, is_temporary: impl Fn(&OsStr) -> bool) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        if is_temporary(&entry.file_name())
            && entry.file_type().is_ok_and(|kind| kind.is_file())
            && let Ok(file) = File::open(entry.path())
            && file.try_lock().is_ok()
        {
            _ = fs::remove_file(entry.path());
        }
    }
}

/// Whether `name` is that of a next content of a file called `of`.
fn is_next(name: &OsStr, of: &OsStr) -> bool {
    let rest = name.to_str().zip(of.to_str());
    let rest = rest.and_then(|(name, of)| name.strip_prefix('.')?.strip_prefix(of));
    let numbers = rest.and_then(|rest| rest.strip_prefix('.')?.strip_suffix(ENDING)?.split_once('-'));
    numbers.is_some_and(|(id, number)| u32::from_str_radix(id, 16).is_ok() && number.parse::<u64>().is_ok())
}

/// Makes what was created or renamed in a directory last.
pub(super) fn sync_parent(path: &Path) -> std::io::Result<()> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) if cfg!(unix) => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("tidings-whole-{name}-{}", std::process::id()));
        _ = fs::remove_dir_all(&folder);
        fs::create_dir(&folder).unwrap();
        folder
    }

    fn names(folder: &Path) -> Vec<OsString> {
        let mut names: Vec<OsString> =
            fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        names.sort();
        names
    }

    #[test]
    fn two_writers_of_one_file_put_whole_ones_in_place() {
        let folder = folder("two");
        let path = folder.join("dump");
        let all = |text: &'static [u8]| move |out: &mut dyn Write| Ok(out.write_all(text)?);
        replace(&path, |out| {
            out.write_all(b"first ")?;
            replace(&path, all(b"other")).unwrap();
            assert_eq!(fs::read(&path).unwrap(), b"other");
            out.write_all(b"half, second half")?;
            Ok(())
        })
        .unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first half, second half");
        assert_eq!(names(&folder), ["dump"]);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn leftovers_of_killed_writers_go_and_other_files_stay() {
        let folder = folder("left");
        let path = folder.join("dump");
        fs::write(beside(&path, u64::MAX), "half").unwrap();
        let others = [".dump.tidings", ".dump.x-1.tidings", ".other.1-1.tidings"];
        others.iter().for_each(|name| fs::write(folder.join(name), "v").unwrap());
        replace(&path, |out| Ok(out.write_all(b"whole")?)).unwrap();
        assert_eq!(names(&folder), [&others[..], &["dump"]].concat());
        assert!(replace(&path, |_| Err(Failure::usage("on purpose"))).is_err());
        assert_eq!((fs::read(&path).unwrap().as_slice(), names(&folder).len()), (&b"whole"[..], 4));
        fs::remove_dir_all(&folder).unwrap();
    }
}
