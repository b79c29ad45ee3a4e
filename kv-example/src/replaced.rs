//! Notices that files were written or replaced, by looking at them now and then. Where secrets are mounted (Kubernetes,
//! containers) nobody sends a signal when they change.
//!
//! What is compared is what the system says about a file behind all symbolic links, not what stands in it: a mounted
//! secret is replaced by pointing a link to another folder. A change counts once it is the same at two looks in
//! succession: a file that is being written may hold half a secret.

use std::fs::{self, Metadata};
use std::path::PathBuf;

/// Files, as they were when they were last read, and as they were at the last look.
#[derive(Debug)]
pub(crate) struct Replaced {
    paths: Vec<PathBuf>,
    read: Vec<Option<Mark>>,
    seen: Vec<Option<Mark>>,
}

/// Differs after a file was written, replaced, or given another owner or mode.
type Mark = (u64, u64, i64, i64, u64);

#[cfg(unix)]
fn mark(file: &Metadata) -> Mark {
    use std::os::unix::fs::MetadataExt;
    (file.dev(), file.ino(), file.ctime(), file.ctime_nsec(), file.len())
}

#[cfg(not(unix))]
fn mark(file: &Metadata) -> Mark {
    let modified = file.modified().ok().and_then(|at| at.duration_since(std::time::UNIX_EPOCH).ok());
    let modified = modified.unwrap_or_default();
    (0, 0, modified.as_secs().cast_signed(), modified.subsec_nanos().into(), file.len())
}

impl Replaced {
    /// To be made before the files are read for the first time.
    pub(crate) fn new(paths: Vec<PathBuf>) -> Self {
        let mut new = Self { paths, read: Vec::new(), seen: Vec::new() };
        new.note_read();
        new
    }

    fn look(&self) -> Vec<Option<Mark>> {
        self.paths.iter().map(|path| fs::metadata(path).ok().as_ref().map(mark)).collect()
    }

    /// Notes that the files are about to be read.
    pub(crate) fn note_read(&mut self) {
        self.read = self.look();
        self.seen.clone_from(&self.read);
    }

    /// Looks, and says whether there is a change to be read. It then counts as read.
    pub(crate) fn is_due(&mut self) -> bool {
        let now = self.look();
        let seen = std::mem::replace(&mut self.seen, now);
        let is_due = self.seen == seen && self.seen != self.read;
        if is_due {
            self.read.clone_from(&self.seen);
        }
        is_due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn folder(name: &str) -> PathBuf {
        let folder = std::env::temp_dir().join(format!("tidings-replaced-{name}-{}", std::process::id()));
        _ = fs::remove_dir_all(&folder);
        fs::create_dir_all(&folder).unwrap();
        folder
    }

    #[test]
    fn change_counts_once_when_two_looks_agree() {
        let folder = folder("agree");
        let file = folder.join("secret");
        let mut files = Replaced::new(vec![file.clone(), folder.join("missing")]);
        assert!(!files.is_due() && !files.is_due());
        for text in ["half", "half and half"] {
            fs::write(&file, text).unwrap();
            assert!(!files.is_due(), "it may still be written");
        }
        assert_eq!([(); 3].map(|()| files.is_due()), [true, false, false]);
        fs::write(&file, "other").unwrap();
        files.note_read();
        assert!(!files.is_due() && !files.is_due(), "it was read meanwhile");
        fs::remove_file(&file).unwrap();
        assert_eq!([(); 3].map(|()| files.is_due()), [false, true, false]);
        fs::remove_dir_all(folder).unwrap();
    }

    #[cfg(unix)]
    #[test]
    fn files_behind_a_replaced_link_count_as_changed() {
        use std::os::unix::fs::symlink;
        let folder = folder("link");
        // As secrets are mounted: secret -> ..data/secret, ..data -> a folder that is never changed.
        for version in ["..1", "..2"] {
            fs::create_dir(folder.join(version)).unwrap();
            fs::write(folder.join(version).join("secret"), "the same").unwrap();
        }
        symlink("..1", folder.join("..data")).unwrap();
        symlink("..data/secret", folder.join("secret")).unwrap();
        let mut files = Replaced::new(vec![folder.join("secret")]);
        symlink("..2", folder.join("..next")).unwrap();
        fs::rename(folder.join("..next"), folder.join("..data")).unwrap();
        assert_eq!([(); 3].map(|()| files.is_due()), [false, true, false]);
        fs::remove_dir_all(folder).unwrap();
    }
}
