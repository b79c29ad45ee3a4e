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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::sync::{Mutex, mpsc};
    use std::time::Duration;

    use super::*;
    use crate::{Live, Node, Security};

    /// A disk that hangs until the other end of the channel is dropped.
    struct HangingDisk(Mutex<mpsc::Receiver<()>>);

    impl LastGood for HangingDisk {
        fn path(&self) -> String {
            "hanging".to_owned()
        }

        fn read(&self) -> Result<Option<Vec<u8>>, BoxedError> {
            Ok(None)
        }

        fn write(&self, _: &[u8]) -> Result<(), BoxedError> {
            Ok(self.0.lock().expect("nobody panics").recv()?)
        }
    }

    #[tokio::test]
    async fn disk_that_hangs_holds_no_value_back() {
        let security = Security::secret(&Security::generate_secret()).expect("it is strong");
        let node = Node::builder("a").security(security).start().await.expect("it starts");
        node.put("limits/a", "1").expect("acceptable");
        let (let_go, hanging) = mpsc::channel();
        let disk = HangingDisk(Mutex::new(hanging));
        let start = Live::<BTreeMap<String, u32>>::builder(&node, "limits/").keep_in(disk).start();
        let started = tokio::time::timeout(Duration::from_secs(60), start).await;
        let mut live = started.expect("it does not wait").expect("it is good");
        for value in 2..5 {
            node.put("limits/a", value.to_string()).expect("acceptable");
            while live.load()["a"] != value {
                tokio::time::timeout(Duration::from_secs(60), live.changed()).await.expect("it comes");
            }
        }
        assert!(live.rejected().is_empty(), "the disk has not failed yet");
        drop(let_go);
        let has_failed = async {
            while live.rejected().is_empty() {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), has_failed).await.expect("it is told");
        node.shutdown().await;
    }
}
