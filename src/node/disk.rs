//! The disk of a node: a follower of the change log, on a thread of its own.
//!
//! The thread takes the changes in parts and holds the lock for one part at a time. It writes and syncs them without
//! the lock, and then tells the replica. Changes made meanwhile go into the next transaction, so all who wait for
//! [`Receipt::durable`](crate::Receipt::durable) share one sync. A writer that does not wait only sets a flag.
//!
//! Between a write and the news that it is synced there are two thread switches: to this thread and back. To avoid
//! further ones, the thread calls the replica itself, and not through the driver.

#[cfg(feature = "durable")]
mod engine;
#[cfg(feature = "durable")]
mod follow;
pub(in crate::node) mod link;
mod read;
#[cfg(any(feature = "durable", feature = "json"))]
mod replace;
#[cfg(feature = "durable")]
mod snapshot;

#[cfg(feature = "durable")]
pub(in crate::node) use follow::{attach, open};
pub(in crate::node) use read::read_file;
#[cfg(any(feature = "durable", feature = "json"))]
pub(in crate::node) use replace::replace_file;
#[cfg(feature = "durable")]
pub(in crate::node) use snapshot::write as write_snapshot;

/// Creates a folder and its missing parents, accessible to the node's own user alone: it holds the application's data.
#[cfg(feature = "durable")]
fn create_private_folder(folder: &std::path::Path) -> std::io::Result<()> {
    let mut builder = std::fs::DirBuilder::new();
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.recursive(true).create(folder)
}

/// Makes a file that these options create accessible to the node's own user alone.
#[cfg(any(feature = "durable", feature = "json"))]
fn private(options: &mut std::fs::OpenOptions) -> &mut std::fs::OpenOptions {
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(options, 0o600);
    options
}
