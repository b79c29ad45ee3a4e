//! Reads files that are small and that somebody else may have replaced: whatever stands at the path, reading it ends soon
//! and takes a bounded part of the memory.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

/// The content of a regular file of at most so many bytes.
pub(in crate::node) fn read_file(path: &Path, bytes_max: usize) -> io::Result<Vec<u8>> {
    // Before it is opened: that of a pipe waits for somebody who writes to it, and that of a device may have effects.
    if !fs::metadata(path)?.is_file() {
        return Err(io::Error::other("it is no regular file"));
    }
    let mut bytes = Vec::new();
    File::open(path)?.take(bytes_max as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > bytes_max {
        return Err(io::Error::new(
            io::ErrorKind::FileTooLarge,
            format!("it has more than {bytes_max} bytes"),
        ));
    }
    Ok(bytes)
}
