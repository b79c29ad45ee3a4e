//! Files that are replaced as a whole.

use std::fs::{self, File};
use std::io;
use std::path::Path;
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
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{:x}-{}.tmp", std::process::id(), BEGUN.fetch_add(1, Ordering::Relaxed)));
    let file = super::private(File::options().write(true).create_new(true)).open(&temporary)?;
    let written = write(file).and_then(|()| fs::rename(&temporary, path));
    written.inspect_err(|_| _ = fs::remove_file(&temporary))?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}
