//! One file, of which one state takes the place of another in one step.

use std::fs::{self, File, OpenOptions, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use super::tree::is_content;
use crate::exit::Failure;

pub(super) struct OneFile {
    out: PathBuf,
    mode: u32,
}

impl OneFile {
    pub(super) fn new(out: &Path, mode: u32) -> Result<Self, Failure> {
        if out.is_dir() || out.file_name().is_none() {
            let error = format!("{} is a directory; what is rendered here is one file", out.display());
            return Err(Failure::usage(error));
        }
        Ok(Self { out: out.to_owned(), mode })
    }

    /// Makes the file this content. Returns whether a byte of it has changed.
    pub(super) fn write(&self, content: &[u8]) -> Result<bool, Failure> {
        let is_mode =
            fs::metadata(&self.out).is_ok_and(|file| file.permissions().mode() & 0o777 == self.mode);
        if is_mode && is_content(&self.out, content).unwrap_or(false) {
            return Ok(false);
        }
        self.replace(content).map_err(|error| Failure::file(&self.out, &error))?;
        Ok(true)
    }

    fn replace(&self, content: &[u8]) -> io::Result<()> {
        let mut name = std::ffi::OsString::from(".");
        name.push(self.out.file_name().unwrap_or_default());
        name.push(".tidings");
        let next = self.out.with_file_name(name);
        _ = fs::remove_file(&next);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(self.mode).open(&next)?;
        file.write_all(content)?;
        file.set_permissions(Permissions::from_mode(self.mode))?;
        file.sync_all()?;
        fs::rename(&next, &self.out)?;
        match self.out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            Some(parent) => File::open(parent)?.sync_all(),
            None => Ok(()),
        }
    }
}
