//! Backups of a running cluster, in a directory or an object store.
//!
//! A store holds `backups/<id>/manifest.json`, the files of each backup that are its own beside it, and
//! `files/<database>/<name>`, the table files that backups of one database share: those never change, so a backup
//! writes only what is new since the last. The manifest is written last. What has no manifest is no backup. While one
//! is written, `backups/<id>/begun` is there: whoever deletes old ones leaves files alone.
//!
//! - **Invariant:** a file that a manifest names is in the store, whole, before the manifest is.
//! - **Absent:** how files come out of a node ([`Source`]), Raft.

mod manifest;
mod restore;
mod store;
mod upload;

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

/// How often files that somebody takes away meanwhile are written again.
const ROUNDS: usize = 5;

/// Writes a backup: the files that the store has not, at this pace, then the manifest, whose files get their places and
/// checksums here. Others may write and delete backups in the same store meanwhile.
///
/// # Errors
///
/// The source or the store refuses. What was written is not a backup, and is deleted with the next old one.
pub async fn create(
    store: &Store,
    source: &impl Source,
    manifest: Manifest,
    pace: &Pace,
) -> Result<(Manifest, Written), Error> {
    let id = manifest.id.clone();
    store.begin(&id).await?;
    let made = write(store, source, manifest, pace).await;
    // What was not finished keeps nobody from deleting files either.
    let ended = store.end(&id).await;
    let made = made?;
    ended?;
    Ok(made)
}

async fn write(
    store: &Store,
    source: &impl Source,
    mut manifest: Manifest,
    pace: &Pace,
) -> Result<(Manifest, Written), Error> {
    let mut written = Written::default();
    let mut known = store.known_files().await?;
    for _ in 0..ROUNDS {
        for file in &mut manifest.files {
            file.path = if file.shared {
                format!("files/{}/{}", manifest.database, file.name)
            } else {
                format!("backups/{}/{}", manifest.id, file.name)
            };
            if let Some(sha256) = known.get(&(file.path.clone(), file.bytes)) {
                file.sha256.clone_from(sha256);
                continue;
            }
            let failed = |reason: String| Error::Source { name: file.name.clone(), reason };
            let bytes = source.open(&file.name).await.map_err(failed)?;
            let (length, sha256) =
                store.write(&file.path, bytes.map(|part| part.map_err(failed)), pace).await?;
            if length != file.bytes {
                return Err(failed(format!("{length} bytes came, not {}", file.bytes)));
            }
            file.sha256 = sha256;
            written.new_files += 1;
            written.new_bytes += length;
        }
        store.write_manifest(&manifest).await?;
        // Whoever deletes a backup keeps the files that manifests name. One that began before this manifest was there
        // may have taken files away that were known.
        let there = store.files().await?;
        known = manifest
            .files
            .iter()
            .map(|file| ((file.path.clone(), file.bytes), file.sha256.clone()))
            .filter(|(at, _)| there.contains(at))
            .collect();
        if known.len() == manifest.files.len() {
            written.shared_files = manifest.files.len().saturating_sub(written.new_files);
            return Ok((manifest, written));
        }
    }
    store.delete_manifest(&manifest.id).await?;
    let gone = manifest.files.iter().find(|file| !known.contains_key(&(file.path.clone(), file.bytes)));
    let path = gone.map(|file| file.path.clone()).unwrap_or_default();
    Err(Error::Damaged { path, reason: "somebody takes it away again and again".into() })
}

/// Deletes all but the newest backups, and the files that no backup needs any more; the backups that were deleted.
/// While somebody writes a backup, files are left for the next time: it may count on them.
///
/// # Errors
///
/// The store refuses.
pub async fn keep_newest(store: &Store, keep: usize) -> Result<Vec<String>, Error> {
    let manifests = store.manifests().await?;
    let (old, _) = manifests.split_at(manifests.len().saturating_sub(keep.max(1)));
    if old.is_empty() {
        return Ok(Vec::new());
    }
    // The manifest first: what is half deleted is no backup, and what is begun from now on counts on none of its files.
    for manifest in old {
        store.delete_manifest(&manifest.id).await?;
    }
    let deleted = old.iter().map(|manifest| manifest.id.clone()).collect();
    let now = store.now().await?;
    if store.is_written_to(now).await? {
        return Ok(deleted);
    }
    store.remove_staged(now).await?;
    let kept = store.manifests().await?;
    let needed: BTreeSet<&str> =
        kept.iter().flat_map(|manifest| &manifest.files).map(|file| file.path.as_str()).collect();
    for (path, _) in store.files().await? {
        if !needed.contains(path.as_str()) {
            store.delete(&path).await?;
        }
    }
    Ok(deleted)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use std::{fs::File, time::Duration};

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

    /// Somebody else deletes old backups in the middle of a new one.
    struct WhileDeleted<'a>(&'a Store);

    impl Source for WhileDeleted<'_> {
        async fn open(
            &self,
            name: &str,
        ) -> Result<impl Stream<Item = Result<Bytes, String>> + Send + Unpin, String> {
            if name == "own" {
                keep_newest(self.0, 1).await.map_err(|error| error.to_string())?;
            }
            Parts.open(name).await
        }
    }

    fn manifest(id: &str, files: &[(&str, bool)]) -> Manifest {
        let file = |(name, shared): &(&str, bool)| manifest::File {
            name: (*name).to_owned(),
            bytes: 2_000,
            shared: *shared,
            path: String::new(),
            sha256: String::new(),
        };
        Manifest {
            format: FORMAT,
            id: id.to_owned(),
            created_at: String::new(),
            version: String::new(),
            cluster: String::new(),
            region: 0,
            database: "d".to_owned(),
            shards: Vec::new(),
            files: files.iter().map(file).collect(),
            config: serde_json::Value::Null,
        }
    }

    async fn paths(store: &Store) -> Vec<String> {
        let mut paths: Vec<String> = store.files().await.unwrap().into_iter().map(|(path, _)| path).collect();
        paths.sort();
        paths
    }

    #[tokio::test]
    async fn old_backups_are_deleted_beside_one_that_is_being_made() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(temp.path().to_str().unwrap()).unwrap();
        let pace = Pace::new(1 << 30);
        create(&store, &Parts, manifest("1", &[("a.sst", true), ("b.sst", true)]), &pace).await.unwrap();
        create(&store, &Parts, manifest("2", &[("b.sst", true)]), &pace).await.unwrap();
        // The third counts on a file that only the first has, which is deleted meanwhile.
        let third = manifest("3", &[("a.sst", true), ("own", false)]);
        let (_, written) = create(&store, &WhileDeleted(&store), third, &pace).await.unwrap();
        assert_eq!((written.shared_files, written.new_files), (1, 1));
        let ids: Vec<String> = store.manifests().await.unwrap().into_iter().map(|of| of.id).collect();
        assert_eq!(ids, ["2", "3"]);
        // Once nobody writes, what nobody needs goes.
        assert_eq!(keep_newest(&store, 1).await.unwrap(), ["2"]);
        assert_eq!(paths(&store).await, ["backups/3/own", "files/d/a.sst"]);
        // What was begun and never ended is no backup, and goes with the next old one once a day has passed.
        store.begin("4").await.unwrap();
        let fourth = manifest("5", &[("c.sst", true)]);
        create(&store, &Parts, fourth, &pace).await.unwrap();
        assert_eq!(keep_newest(&store, 1).await.unwrap(), ["3"]);
        assert_eq!(paths(&store).await, ["backups/3/own", "files/d/a.sst", "files/d/c.sst"]);
        let mark = File::options().write(true).open(temp.path().join("backups/4/begun")).unwrap();
        let begun = mark.metadata().unwrap().modified().unwrap();
        mark.set_modified(begun - Duration::from_hours(25)).unwrap();
        create(&store, &Parts, manifest("6", &[("d.sst", true)]), &pace).await.unwrap();
        assert_eq!(keep_newest(&store, 1).await.unwrap(), ["5"]);
        assert_eq!(paths(&store).await, ["files/d/d.sst"]);
    }

    #[tokio::test]
    async fn a_file_that_was_taken_away_meanwhile_is_written_again() {
        struct TakesAway<'a>(&'a Store);
        impl Source for TakesAway<'_> {
            async fn open(
                &self,
                name: &str,
            ) -> Result<impl Stream<Item = Result<Bytes, String>> + Send + Unpin, String> {
                if name == "own" {
                    self.0.delete("files/d/a.sst").await.map_err(|error| error.to_string())?;
                }
                Parts.open(name).await
            }
        }
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(temp.path().to_str().unwrap()).unwrap();
        let pace = Pace::new(1 << 30);
        create(&store, &Parts, manifest("1", &[("a.sst", true)]), &pace).await.unwrap();
        let second = manifest("2", &[("a.sst", true), ("own", false)]);
        let (_, written) = create(&store, &TakesAway(&store), second, &pace).await.unwrap();
        assert_eq!((written.shared_files, written.new_files), (0, 2));
        assert_eq!(paths(&store).await, ["backups/2/own", "files/d/a.sst"]);
    }

    #[tokio::test]
    async fn a_copy_that_breaks_off_leaves_nothing_of_its_file() {
        struct Breaks;
        impl Source for Breaks {
            async fn open(
                &self,
                _: &str,
            ) -> Result<impl Stream<Item = Result<Bytes, String>> + Send + Unpin, String> {
                let part = Ok(Bytes::from_static(&[7; 500]));
                Ok(stream::iter(vec![part, Err("the node is gone".to_owned())]))
            }
        }
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(temp.path().to_str().unwrap()).unwrap();
        let failed = create(&store, &Breaks, manifest("1", &[("a.sst", true)]), &Pace::new(1 << 30)).await;
        assert!(failed.unwrap_err().to_string().contains("the node is gone"));
        let files = std::fs::read_dir(temp.path().join("files/d")).unwrap().count();
        assert_eq!(files, 0, "not even what was on its way");
    }

    #[tokio::test]
    async fn what_a_crash_left_half_written_is_removed_a_day_later() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(temp.path().to_str().unwrap()).unwrap();
        let pace = Pace::new(1 << 30);
        create(&store, &Parts, manifest("1", &[("a.sst", true)]), &pace).await.unwrap();
        let leave = |name: &str, hours: u64| {
            let left = File::create(temp.path().join("files/d").join(name)).unwrap();
            let written = left.metadata().unwrap().modified().unwrap() - Duration::from_secs(hours * 3_600);
            left.set_modified(written).unwrap();
        };
        leave("b.sst#123", 25);
        leave("c.sst#123", 23);
        create(&store, &Parts, manifest("2", &[("a.sst", true)]), &pace).await.unwrap();
        keep_newest(&store, 1).await.unwrap();
        let files = std::fs::read_dir(temp.path().join("files/d")).unwrap();
        let mut files: Vec<_> = files.map(|of| of.unwrap().file_name().into_string().unwrap()).collect();
        files.sort();
        assert_eq!(files, ["a.sst", "c.sst#123"], "whoever writes c.sst may still be there");
    }

    #[tokio::test(start_paused = true)]
    async fn a_backup_is_copied_at_its_pace() {
        let temp = tempfile::tempdir().unwrap();
        let store = Store::open(temp.path().to_str().unwrap()).unwrap();
        let both = [("a.sst", true), ("b.sst", true)];
        let began = Instant::now();
        let (_, written) = create(&store, &Parts, manifest("1", &both), &Pace::new(1_000)).await.unwrap();
        assert_eq!((written.new_files, written.new_bytes), (2, 4_000));
        // The first part does not wait.
        assert!(began.elapsed() >= Duration::from_millis(3_500), "{:?}", began.elapsed());
        let began = Instant::now();
        let (_, written) = create(&store, &Parts, manifest("2", &both), &Pace::new(1_000)).await.unwrap();
        assert_eq!((written.shared_files, written.new_bytes), (2, 0));
        assert!(began.elapsed() < Duration::from_millis(500), "what is there is not copied again");
    }
}
