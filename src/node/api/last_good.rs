//! The file in which a live value keeps its last good values for the next start.

use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::BoxedError;
#[cfg(feature = "flags")]
use crate::flags::FlagsBuilder;
use crate::node::disk::{read_file, replace_file};
use crate::typed::{LastGood, LiveBuilder, Store};

/// The size above which the last good values are neither written nor read.
const LAST_GOOD_BYTES_MAX: usize = 64 << 20;

/// A file for the last good values. It is replaced as a whole.
struct LastGoodFile(PathBuf);

impl LastGood for LastGoodFile {
    fn path(&self) -> String {
        self.0.display().to_string()
    }

    fn read(&self) -> Result<Option<Vec<u8>>, BoxedError> {
        match read_file(&self.0, LAST_GOOD_BYTES_MAX) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            read => Ok(Some(read?)),
        }
    }

    fn write(&self, bytes: &[u8]) -> Result<(), BoxedError> {
        if bytes.len() > LAST_GOOD_BYTES_MAX {
            return Err(format!("they have more than {LAST_GOOD_BYTES_MAX} bytes, and are not kept").into());
        }
        Ok(replace_file(&self.0, |mut file| {
            file.write_all(bytes)?;
            file.sync_all()
        })?)
    }
}

#[cfg(feature = "flags")]
impl<S: Store> FlagsBuilder<S> {
    /// Keeps the definitions that are in force in this file, for a start at which no peer can be reached.
    ///
    /// The file is written to a temporary file beside it, synced and renamed, and is accessible to its own user alone.
    /// No two `Flags` may share one. It has at most 64 MiB. If it cannot be read or written, or is no regular file,
    /// [`Flags::rejected`](crate::flags::Flags::rejected) says so, and the flags go on without it.
    pub fn last_good(self, path: impl AsRef<Path>) -> Self {
        self.keep_in(LastGoodFile(path.as_ref().to_owned()))
    }
}

impl<T, S: Store> LiveBuilder<T, S> {
    /// Keeps the keys of the last good value in this file, for a start at which no peer can be reached, or at which the
    /// store holds something that is not acceptable. The layers are not kept: they are read anew.
    ///
    /// The file is written to a temporary file beside it, synced and renamed, and is accessible to its own user alone.
    /// No two live values may share one. It has at most 64 MiB. If it cannot be read or written, or is no regular file,
    /// [`Live::rejected`](crate::Live::rejected) says so, and the live value goes on without it.
    pub fn last_good(self, path: impl AsRef<Path>) -> Self {
        self.keep_in(LastGoodFile(path.as_ref().to_owned()))
    }
}
