//! Backups of a running cluster, in a directory or an object store.
//!
//! A store holds `backups/<id>/manifest.json`, the files of each backup that are its own beside it, and
//! `files/<database>/<name>`, the table files that backups of one database share: those never change, so a backup
//! writes only what is new since the last. The manifest is written last. What has no manifest is no backup.
//!
//! - **Invariant:** a file that a manifest names is in the store, whole, before the manifest is.
//! - **Absent:** how files come out of a node ([`Source`]), Raft.

mod manifest;
mod restore;
mod store;

use std::collections::BTreeSet;

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};

pub use consensus::Pace;
pub use manifest::{FORMAT, File, Manifest, Shard};
pub use restore::{Verified, found, verify};
pub use store::Store;

/// Why a backup was not made, or can not be used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The place that was named is none.
    #[error("{url}: {reason}: name a directory, or s3://bucket/prefix")]
    Place {
        /// What was named.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// The store refuses.
    #[error("the store of backups: {0}")]
    Store(#[from] object_store::Error),
    /// The node from which files come.
    #[error("read {name} from the node: {reason}")]
    Source {
        /// The file.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// A file in the store is not what it was.
    #[error("{path} in the store of backups is damaged: {reason}")]
    Damaged {
        /// The file.
        path: String,
        /// What is wrong with it.
        reason: String,
    },
    /// There is no such backup.
    #[error("there is no backup {0} in the store; `backup list` shows those that are")]
    NoBackup(String),
    /// The manifest is of a newer version.
    #[error("backup {id} has format {found}; this version knows up to {known}")]
    Newer {
        /// The backup.
        id: String,
        /// Its format.
        found: u32,
        /// What this version knows.
        known: u32,
    },
    /// The databases that were restored.
    #[error(transparent)]
    Consensus(#[from] consensus::backup::Error),
    /// The system.
    #[error("{what}: {source}")]
    Io {
        /// What was done.
        what: String,
        /// What it says.
        source: std::io::Error,
    },
}

impl Error {
    pub(crate) fn io(what: impl std::fmt::Display) -> impl FnOnce(std::io::Error) -> Self {
        let what = what.to_string();
        move |source| Self::Io { what, source }
    }
}

/// Where the files of a new backup come from.
pub trait Source {
    /// The bytes of a file of the checkpoint, in order.
    fn open(
        &self,
        name: &str,
    ) -> impl Future<Output = Result<impl Stream<Item = Result<Bytes, String>> + Send + Unpin, String>> + Send;
}

/// What was done for a backup.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Written {
    /// Files that were in the store already.
    pub shared_files: usize,
    /// Files that were written.
    pub new_files: usize,
    /// Their bytes.
    pub new_bytes: u64,
}

/// Writes a backup: the files that the store has not, at this pace, then the manifest, whose files get their places and
/// checksums here.
///
/// # Errors
///
/// The source or the store refuses. What was written is not a backup, and is used by the next one.
pub async fn create(
    store: &Store,
    source: &impl Source,
    mut manifest: Manifest,
    pace: &Pace,
) -> Result<(Manifest, Written), Error> {
    let known = store.known_files().await?;
    let mut written = Written::default();
    for file in &mut manifest.files {
        file.path = if file.shared {
            format!("files/{}/{}", manifest.database, file.name)
        } else {
            format!("backups/{}/{}", manifest.id, file.name)
        };
        if let Some(sha256) = known.get(&(file.path.clone(), file.bytes)) {
            file.sha256.clone_from(sha256);
            written.shared_files += 1;
            continue;
        }
        let failed = |reason: String| Error::Source { name: file.name.clone(), reason };
        let bytes = source.open(&file.name).await.map_err(failed)?;
        let (length, sha256) = store.write(&file.path, bytes.map(|part| part.map_err(failed)), pace).await?;
        if length != file.bytes {
            return Err(failed(format!("{length} bytes came, not {}", file.bytes)));
        }
        file.sha256 = sha256;
        written.new_files += 1;
        written.new_bytes += length;
    }
    store.write_manifest(&manifest).await?;
    Ok((manifest, written))
}

/// Deletes all but the newest backups, and the files that no backup needs any more; the backups that were deleted.
///
/// # Errors
///
/// The store refuses.
pub async fn keep_newest(store: &Store, keep: usize) -> Result<Vec<String>, Error> {
    let manifests = store.manifests().await?;
    let (old, kept) = manifests.split_at(manifests.len().saturating_sub(keep.max(1)));
    // The manifest first: what is half deleted is no backup.
    for manifest in old {
        store.delete_manifest(&manifest.id).await?;
    }
    let needed: BTreeSet<&str> =
        kept.iter().flat_map(|manifest| &manifest.files).map(|file| file.path.as_str()).collect();
    for manifest in old {
        for file in manifest.files.iter().filter(|file| !needed.contains(file.path.as_str())) {
            store.delete(&file.path).await?;
        }
    }
    Ok(old.iter().map(|manifest| manifest.id.clone()).collect())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use std::time::Duration;

    use futures_util::stream;
    use tokio::time::Instant;

    use super::*;

    struct Parts;

    impl Source for Parts {
        async fn open(
            &self,
            _: &str,
        ) -> Result<impl Stream<Item = Result<Bytes, String>> + Send + Unpin, String> {
            Ok(stream::iter(vec![Ok(Bytes::from_static(&[7; 500])); 4]))
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_backup_is_copied_at_its_pace() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(temp.path().to_str().unwrap()).unwrap();
        let file = |name: &str| File {
            name: name.to_owned(),
            bytes: 2_000,
            shared: true,
            path: String::new(),
            sha256: String::new(),
        };
        let manifest = |id: &str| Manifest {
            format: FORMAT,
            id: id.to_owned(),
            created_at: String::new(),
            version: String::new(),
            cluster: String::new(),
            region: 0,
            database: "d".to_owned(),
            shards: Vec::new(),
            files: vec![file("a.sst"), file("b.sst")],
            config: serde_json::Value::Null,
        };
        let began = Instant::now();
        let (_, written) = create(&store, &Parts, manifest("1"), &Pace::new(1_000)).await.unwrap();
        assert_eq!((written.new_files, written.new_bytes), (2, 4_000));
        // The first part does not wait.
        assert!(began.elapsed() >= Duration::from_millis(3_500), "{:?}", began.elapsed());
        let began = Instant::now();
        let (_, written) = create(&store, &Parts, manifest("2"), &Pace::new(1_000)).await.unwrap();
        assert_eq!((written.shared_files, written.new_bytes), (2, 0));
        assert!(began.elapsed() < Duration::from_millis(500), "what is there is not copied again");
    }
}
