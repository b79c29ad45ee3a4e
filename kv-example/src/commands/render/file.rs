//! One file, of which one state takes the place of another in one step.

use std::ffi::OsString;
use std::fs::{self, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::due::Due;
use super::tree::is_content;
use crate::commands::whole::sync_parent;
use crate::exit::Failure;

pub(super) struct OneFile {
    out: PathBuf,
    mode: u32,
    pub(super) due: Due,
}

impl OneFile {
    pub(super) fn new(out: &Path, mode: u32) -> Result<Self, Failure> {
        if out.is_dir() || out.file_name().is_none() {
            let error = format!("{} is a directory; what is rendered here is one file", out.display());
            return Err(Failure::usage(error));
        }
        Ok(Self { out: out.to_owned(), mode, due: Due::default() })
    }

    /// Remembers beside the file that a command is to be run.
    pub(super) fn with_command(mut self) -> Self {
        self.due = Due::at(self.beside(".command_due"));
        self
    }

    /// A hidden file for the same one.
    fn beside(&self, ending: &str) -> PathBuf {
        let mut name = OsString::from(".");
        name.push(self.out.file_name().unwrap_or_default());
        name.push(ending);
        self.out.with_file_name(name)
    }

    /// Makes the file this content. Returns whether a byte of it has changed.
    pub(super) fn write(&self, content: &[u8]) -> Result<bool, Failure> {
        let is_mode =
            fs::metadata(&self.out).is_ok_and(|file| file.permissions().mode() & 0o777 == self.mode);
        if is_mode && is_content(&self.out, content).unwrap_or(false) {
            return Ok(false);
        }
        let replaced = self.due.note().and_then(|()| self.replace(content));
        replaced.map_err(|error| Failure::file(&self.out, &error))?;
        Ok(true)
    }

    fn replace(&self, content: &[u8]) -> io::Result<()> {
        let next = self.beside(".tidings");
        _ = fs::remove_file(&next);
        let written = self.write_next(&next, content).and_then(|()| fs::rename(&next, &self.out));
        if written.is_err() {
            _ = fs::remove_file(&next);
        }
        written.and_then(|()| sync_parent(&self.out))
    }

    fn write_next(&self, next: &Path, content: &[u8]) -> io::Result<()> {
        let mut file = OpenOptions::new().write(true).create_new(true).mode(self.mode).open(next)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(self.mode))?;
        file.sync_all()
    }
}
