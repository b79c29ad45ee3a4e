//! Whether the command has still to be run for what is rendered.
//!
//! A file says so, from before a state is put in force until the command has succeeded. A process that ends in between
//! leaves it, and the next one runs the command although it finds no byte changed. Never remove the file for another
//! reason: nothing else knows that the readers of the files have not been told.

use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::PathBuf;

use crate::commands::whole::sync_parent;

/// The file. `None`: there is no command.
#[derive(Debug, Default)]
pub(super) struct Due(Option<PathBuf>);

impl Due {
    pub(super) fn at(path: PathBuf) -> Self {
        Self(Some(path))
    }

    /// Notes it on the disk.
    pub(super) fn note(&self) -> io::Result<()> {
        let Some(path) = &self.0 else { return Ok(()) };
        match OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
            Ok(file) => file.sync_all().and_then(|()| sync_parent(path)),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn is_noted(&self) -> bool {
        self.0.as_ref().is_some_and(|path| fs::symlink_metadata(path).is_ok())
    }

    /// The command has succeeded.
    pub(super) fn clear(&self) -> io::Result<()> {
        match self.0.as_ref().map(fs::remove_file) {
            Some(Err(error)) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }
}
