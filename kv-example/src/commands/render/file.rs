//! One file, of which one state takes the place of another in one step.

use std::ffi::OsString;
use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use super::due::Due;
use super::tree::is_content;
use crate::commands::whole::put_in_place;
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
        let mut name = OsString::from(".");
        name.push(self.out.file_name().unwrap_or_default());
        name.push(".command_due");
        self.due = Due::at(self.out.with_file_name(name));
        self
    }

    /// Makes the file this content. Returns whether a byte of it has changed.
    pub(super) fn write(&self, content: &[u8]) -> Result<bool, Failure> {
        let is_mode =
            fs::metadata(&self.out).is_ok_and(|file| file.permissions().mode() & 0o777 == self.mode);
        if is_mode && is_content(&self.out, content).unwrap_or(false) {
            return Ok(false);
        }
        let failed = |error| Failure::file(&self.out, &error);
        self.due.note().map_err(failed)?;
        let mode = Permissions::from_mode(self.mode);
        put_in_place(&self.out, Some(mode), |out| out.write_all(content).map_err(failed))?;
        Ok(true)
    }
}
