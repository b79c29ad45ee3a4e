//! Files that are replaced as a whole: what a path held stays until all that takes its place is safe on the disk.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::exit::Failure;

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
    let next = beside(&place);
    _ = fs::remove_file(&next);
    let file = crate::private(File::options().write(true).create_new(true)).open(&next).map_err(failed)?;
    let mut out = BufWriter::new(file);
    let placed = write(&mut out).and_then(|()| {
        out.flush().map_err(failed)?;
        let file = out.get_ref();
        there.map_or(Ok(()), |there| file.set_permissions(there.permissions())).map_err(failed)?;
        file.sync_all().and_then(|()| fs::rename(&next, &place)).map_err(failed)
    });
    if placed.is_err() {
        _ = fs::remove_file(&next);
    }
    placed.and_then(|()| sync_parent(&place).map_err(failed))
}

/// The name under which the next content of a file is written. The same each time, so that what a killed process left is
/// replaced.
fn beside(path: &Path) -> PathBuf {
    let mut name = OsString::from(".");
    name.push(path.file_name().unwrap_or_default());
    name.push(".tidings");
    path.with_file_name(name)
}

/// Makes what was created or renamed in a directory last.
pub(super) fn sync_parent(path: &Path) -> std::io::Result<()> {
    match path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        Some(parent) if cfg!(unix) => File::open(parent)?.sync_all(),
        _ => Ok(()),
    }
}
