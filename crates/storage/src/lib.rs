//! RocksDB: the log database, the state database, keys, batches, the data directory.
//!
//! Two databases a node. The **log** ([`LogDb`]) holds the Raft logs of all shards: one writer thread merges
//! everything that is queued into one batch and one fsync, then completes the callbacks. The **state**
//! ([`StateDb`]) has no write-ahead log: every batch carries the id of the entry it applied, and what a crash takes
//! is applied again. So its last rows need not be written at once either.
//!
//! - **Invariant:** a callback of the log runs after its bytes are synced, in the order of the queue.
//! - **Invariant:** rows and the applied id are in one batch of one column family, so a crash keeps a prefix of
//!   applies.
//! - **Absent:** Raft, tokio, what a row means.

mod batch;
mod buffer;
mod cache;
mod checkpoint;
mod digest;
mod directory;
mod error;
mod keys;
mod log;
mod notes;
mod properties;
mod rows;
mod snapshot;
mod state;
mod view;

pub use batch::Batch;
pub use checkpoint::CheckpointFile;
pub use digest::{RowDigest, Scrubbed};
pub use directory::{Directory, Identity};
pub use error::Error;
pub use keys::{decode_key, encode_key};
pub use log::{Done, LogDb, LogOptions, LogState, ShardLog};
pub use notes::Note;
pub use snapshot::{Exported, Import, row_checksum};
pub use state::{StateDb, StateOptions};
pub use view::{Latest, View};

/// Bytes that the file system under `path` can still take.
///
/// # Errors
///
/// What the system says.
pub fn free_bytes(path: &std::path::Path) -> std::io::Result<u64> {
    let stat = rustix::fs::statvfs(path)?;
    Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
}

/// Bytes that a row takes, with its envelope and without its key.
#[must_use]
pub fn row_len(row: &machine::Row) -> usize {
    proto::record::encode_row(row).len()
}
