//! What can go wrong with a disk.

use std::{io, path::PathBuf};

/// Why data can not be opened, read or written.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The system refuses.
    #[error("{path}: {source}")]
    Io {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Another process has the directory.
    #[error("{0} is in use by another process: stop it, or choose another data directory")]
    InUse(PathBuf),
    /// The directory holds what must not count any more.
    #[error(
        "{path} must not be used any more: {reason}. Remove its node from the cluster, and add one with an empty directory"
    )]
    Condemned {
        /// The directory.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// The directory holds something else.
    #[error("{path} is not a data directory of this system: {reason}")]
    Foreign {
        /// The directory.
        path: PathBuf,
        /// How it was told.
        reason: String,
    },
    /// The directory belongs to another node or cluster.
    #[error("{path} belongs to {found}, not to {expected}")]
    Identity {
        /// The directory.
        path: PathBuf,
        /// Whom it belongs to.
        found: String,
        /// Who asked.
        expected: String,
    },
    /// Written by a newer version.
    #[error(
        "{path}: data format {found} is newer than {known}, the newest this version reads: upgrade this node"
    )]
    Newer {
        /// The directory.
        path: PathBuf,
        /// The format found.
        found: u32,
        /// The newest known.
        known: u32,
    },
    /// A record changed since it was written, or is missing.
    #[error("corrupt data at {place}: {reason}")]
    Corrupt {
        /// The key, in words.
        place: String,
        /// What is wrong.
        reason: String,
    },
    /// RocksDB refuses.
    #[error("database: {0}")]
    Database(#[from] rocksdb::Error),
}

impl Error {
    pub(crate) fn io(path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { path, source }
    }

    pub(crate) fn corrupt(place: impl Into<String>, reason: impl ToString) -> Self {
        Self::Corrupt { place: place.into(), reason: reason.to_string() }
    }

    /// Whether the disk is full. RocksDB gives its text only, and this text is its own constant.
    #[must_use]
    pub fn is_no_space(&self) -> bool {
        match self {
            Self::Io { source, .. } => source.kind() == io::ErrorKind::StorageFull,
            Self::Database(error) => {
                let text = error.as_ref();
                text.contains("No space left on device") || text.contains("NoSpace")
            }
            _ => false,
        }
    }
}

impl From<Error> for io::Error {
    fn from(error: Error) -> Self {
        match error {
            Error::Io { source, .. } => source,
            Error::Corrupt { .. } => Self::new(io::ErrorKind::InvalidData, error),
            other => Self::other(other),
        }
    }
}
