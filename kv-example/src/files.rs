//! Reads files as a whole, never more of them than a limit.
//!
//! A file of the program itself, which is read at its start or while it runs, has to be a regular one: a pipe in its place
//! would block the program until somebody writes to it. What a command is told to read may be a pipe as well.

use std::fs::{self, File};
use std::io::{self, Read};
use std::path::Path;

use crate::exit::Failure;

/// The size of a settings file, of one with a secret or a token, of a list of names, and of certificates.
pub(crate) const SETTINGS_BYTES_MAX: u64 = 16 << 20;

/// The content of a regular file.
pub(crate) fn regular(path: &Path, bytes_max: u64) -> Result<Vec<u8>, Failure> {
    open_regular(path).and_then(|file| bounded(file, bytes_max)).map_err(|error| Failure::file(path, &error))
}

/// The text of a regular file.
pub(crate) fn regular_text(path: &Path, bytes_max: u64) -> Result<String, Failure> {
    text(path, regular(path, bytes_max)?)
}

/// The text of a file of any kind.
pub(crate) fn any_text(path: &Path, bytes_max: u64) -> Result<String, Failure> {
    let read = File::open(path).and_then(|file| bounded(file, bytes_max));
    text(path, read.map_err(|error| Failure::file(path, &error))?)
}

/// The same; `-` is the standard input.
pub(crate) fn any_text_or_input(path: &Path, bytes_max: u64) -> Result<String, Failure> {
    if path != Path::new("-") {
        return any_text(path, bytes_max);
    }
    text(path, bounded(io::stdin().lock(), bytes_max).map_err(|error| Failure::file(path, &error))?)
}

fn open_regular(path: &Path) -> io::Result<File> {
    // Before it is opened, which would wait for who writes to a pipe.
    if fs::metadata(path)?.is_file() {
        File::open(path)
    } else {
        Err(io::Error::other("it is no regular file"))
    }
}

fn bounded(input: impl Read, bytes_max: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    input.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > bytes_max {
        return Err(io::Error::other(format!("it has more than {bytes_max} bytes")));
    }
    Ok(bytes)
}

fn text(path: &Path, bytes: Vec<u8>) -> Result<String, Failure> {
    // The error of the conversion would hold the bytes, which may be a secret.
    String::from_utf8(bytes).map_err(|_| Failure::file(path, &io::Error::other("it is not UTF-8")))
}

#[cfg(test)]
mod tests {
    use tidings_proptest::Folder;

    use super::*;

    #[test]
    fn files_are_read_up_to_their_limit() {
        let folder = Folder::new();
        let path = folder.at("file");
        fs::write(&path, "12345").unwrap();
        for read in [regular_text, any_text] {
            assert_eq!(read(&path, 5).unwrap(), "12345");
            let error = read(&path, 4).unwrap_err().to_string();
            assert_eq!(error, format!("{}: it has more than 4 bytes", path.display()));
        }
        fs::write(&path, [0xff]).unwrap();
        assert_eq!(regular(&path, 5).unwrap(), [0xff]);
        assert!(regular_text(&path, 5).unwrap_err().to_string().ends_with("it is not UTF-8"));
    }

    #[cfg(unix)]
    #[test]
    fn pipe_and_device_in_place_of_a_file_are_named() {
        let folder = Folder::new();
        let pipe = folder.at("pipe");
        assert!(std::process::Command::new("mkfifo").arg(&pipe).status().unwrap().success());
        for path in [&*pipe, Path::new("/dev/zero"), &folder.0] {
            let error = regular(path, 5).unwrap_err().to_string();
            assert_eq!(error, format!("{}: it is no regular file", path.display()));
        }
        assert!(any_text(Path::new("/dev/zero"), 5).unwrap_err().to_string().contains("more than 5 bytes"));
        // The control: a command may read a pipe.
        let writer = std::thread::spawn({
            let pipe = pipe.clone();
            move || fs::write(pipe, "through")
        });
        assert_eq!(any_text(&pipe, 10).unwrap(), "through");
        writer.join().unwrap().unwrap();
    }
}
