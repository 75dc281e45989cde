//! A directory or an object store, and what of backups is in it.

use std::{
    collections::{HashMap, HashSet},
    fmt::Write as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use bytes::Bytes;
use consensus::Pace;
use futures_util::{Stream, TryStreamExt as _};
use object_store::{
    ObjectStore, ObjectStoreExt as _, WriteMultipart, aws::AmazonS3Builder, local::LocalFileSystem,
    path::Path as Key, prefix::PrefixStore,
};
use sha2::{Digest as _, Sha256};
use tokio::io::AsyncWriteExt as _;

use crate::{
    Error,
    manifest::{FORMAT, File, Manifest},
    upload::{self, Staged, Upload},
};

const MANIFEST: &str = "manifest.json";
/// There while a backup is written.
const BEGUN: &str = "begun";
/// There while old ones are deleted: its time is that of the store.
const NOW: &str = "backups/now";
/// Whoever has begun a backup longer ago is gone.
const GONE_AFTER_SECONDS: i64 = 24 * 60 * 60;

/// Where backups are.
#[derive(Debug, Clone)]
pub struct Store {
    inner: Arc<dyn ObjectStore>,
    /// Where it is, if that is a directory of this machine.
    directory: Option<PathBuf>,
}

impl Store {
    /// A directory, which is made where it is missing, or `s3://bucket/prefix`. Credentials, endpoint and region of an
    /// object store come from the usual variables (`AWS_ACCESS_KEY_ID`, `AWS_SECRET_ACCESS_KEY`, `AWS_ENDPOINT`,
    /// `AWS_REGION`, `AWS_ALLOW_HTTP`).
    ///
    /// # Errors
    ///
    /// It is neither, or can not be used.
    pub fn open(place: &str) -> Result<Self, Error> {
        let wrong = |reason: String| Error::Place { url: place.to_owned(), reason };
        if let Some(rest) = place.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            let s3 = AmazonS3Builder::from_env().with_bucket_name(bucket).build();
            let s3 = s3.map_err(|error| wrong(error.to_string()))?;
            return Ok(Self { inner: Arc::new(PrefixStore::new(s3, prefix)), directory: None });
        }
        if place.contains("://") && !place.starts_with("file://") {
            return Err(wrong("not a kind of store that is known".into()));
        }
        let path = Path::new(place.strip_prefix("file://").unwrap_or(place));
        std::fs::create_dir_all(path).map_err(|error| wrong(error.to_string()))?;
        let local = LocalFileSystem::new_with_prefix(path).map_err(|error| wrong(error.to_string()))?;
        Ok(Self { inner: Arc::new(local.with_fsync(true)), directory: Some(path.to_owned()) })
    }

    /// Its backups that are whole, from the oldest to the newest.
    ///
    /// # Errors
    ///
    /// The store refuses, or a manifest can not be read.
    pub async fn manifests(&self) -> Result<Vec<Manifest>, Error> {
        let listed = self.inner.list_with_delimiter(Some(&Key::from("backups"))).await?;
        let mut manifests = Vec::new();
        for prefix in listed.common_prefixes {
            let Some(id) = prefix.filename() else { continue };
            match self.manifest(id).await {
                Ok(manifest) => manifests.push(manifest),
                // One that was not finished.
                Err(Error::NoBackup(_)) => {}
                Err(error) => return Err(error),
            }
        }
        manifests.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(manifests)
    }

    /// A backup.
    ///
    /// # Errors
    ///
    /// There is none of this name, it is of a later version, or it can not be read.
    pub async fn manifest(&self, id: &str) -> Result<Manifest, Error> {
        let path = manifest_path(id);
        let read = match self.inner.get(&Key::from(path.as_str())).await {
            Ok(read) => read.bytes().await?,
            Err(object_store::Error::NotFound { .. }) => return Err(Error::NoBackup(id.to_owned())),
            Err(error) => return Err(error.into()),
        };
        let damaged = |error: serde_json::Error| Error::Damaged { path, reason: error.to_string() };
        let value: serde_json::Value = serde_json::from_slice(&read).map_err(damaged)?;
        let found =
            value["format"].as_u64().and_then(|format| u32::try_from(format).ok()).unwrap_or_default();
        if found > FORMAT {
            return Err(Error::Newer { id: id.to_owned(), found, known: FORMAT });
        }
        let path = manifest_path(id);
        serde_json::from_value(value).map_err(|error| Error::Damaged { path, reason: error.to_string() })
    }

    /// The newest backup that is whole, if there is one.
    ///
    /// # Errors
    ///
    /// The store refuses, or its manifest can not be read.
    pub async fn newest(&self) -> Result<Option<Manifest>, Error> {
        let listed = self.inner.list_with_delimiter(Some(&Key::from("backups"))).await?;
        let mut ids: Vec<String> =
            listed.common_prefixes.iter().filter_map(|of| of.filename().map(str::to_owned)).collect();
        ids.sort();
        while let Some(id) = ids.pop() {
            match self.manifest(&id).await {
                // One that was not finished.
                Err(Error::NoBackup(_)) => {}
                found => return found.map(Some),
            }
        }
        Ok(None)
    }

    /// A backup by its id, or the newest.
    ///
    /// # Errors
    ///
    /// There is none.
    pub async fn choose(&self, id: Option<&str>) -> Result<Manifest, Error> {
        match id {
            Some(id) => self.manifest(id).await,
            None => self.newest().await?.ok_or_else(|| Error::NoBackup("at all".into())),
        }
    }

    /// The shared files that backups here have, and that are there, with their checksums, by path and length.
    pub(crate) async fn known_files(&self) -> Result<HashMap<(String, u64), String>, Error> {
        let manifests = self.manifests().await?;
        let files = manifests.into_iter().flat_map(|manifest| manifest.files).filter(|file| file.shared);
        let there = self.files().await?;
        let known = files.map(|file| ((file.path, file.bytes), file.sha256));
        Ok(known.filter(|(at, _)| there.contains(at)).collect())
    }

    /// The files of backups that are there, whole, with their lengths: manifests and marks are none.
    pub(crate) async fn files(&self) -> Result<HashSet<(String, u64)>, Error> {
        let mut files = HashSet::new();
        for below in ["files", "backups"] {
            let mut listed = self.inner.list(Some(&Key::from(below)));
            while let Some(of) = listed.try_next().await? {
                let path = of.location.to_string();
                if path != NOW && ![MANIFEST, BEGUN].contains(&of.location.filename().unwrap_or_default()) {
                    files.insert((path, of.size));
                }
            }
        }
        Ok(files)
    }

    /// From now on until [`Store::end`], nobody deletes files.
    pub(crate) async fn begin(&self, id: &str) -> Result<(), Error> {
        self.inner.put(&Key::from(begun_path(id)), Vec::new().into()).await?;
        Ok(())
    }

    pub(crate) async fn end(&self, id: &str) -> Result<(), Error> {
        self.delete(&begun_path(id)).await
    }

    /// The store's time, in seconds since 1970: what is in it is dated by it.
    pub(crate) async fn now(&self) -> Result<i64, Error> {
        let now = Key::from(NOW);
        self.inner.put(&now, Vec::new().into()).await?;
        let at = self.inner.head(&now).await?.last_modified;
        self.delete(NOW).await?;
        Ok(at.timestamp())
    }

    /// Whether somebody writes a backup.
    pub(crate) async fn is_written_to(&self, now: i64) -> Result<bool, Error> {
        let mut listed = self.inner.list(Some(&Key::from("backups")));
        while let Some(of) = listed.try_next().await? {
            if of.location.filename() != Some(BEGUN) {
                continue;
            }
            if now - of.last_modified.timestamp() < GONE_AFTER_SECONDS {
                return Ok(true);
            }
            self.delete(of.location.as_ref()).await?;
        }
        Ok(false)
    }

    /// Removes the half-written copies of those who broke off and are gone. A directory lists them nowhere; in an
    /// object store, parts of objects are the store's own to remove.
    pub(crate) async fn remove_staged(&self, now: i64) -> Result<(), Error> {
        match &self.directory {
            Some(directory) => upload::remove_staged(directory, now - GONE_AFTER_SECONDS).await,
            None => Ok(()),
        }
    }

    pub(crate) async fn write_manifest(&self, manifest: &Manifest) -> Result<(), Error> {
        let path = manifest_path(&manifest.id);
        let bytes = serde_json::to_vec_pretty(manifest)
            .map_err(|error| Error::Damaged { path: path.clone(), reason: error.to_string() })?;
        self.inner.put(&Key::from(path), bytes.into()).await?;
        Ok(())
    }

    /// Writes a file; its length and checksum. It is there as a whole, or not at all.
    pub(crate) async fn write(
        &self,
        path: &str,
        mut bytes: impl Stream<Item = Result<Bytes, Error>> + Unpin,
        pace: &Pace,
    ) -> Result<(u64, String), Error> {
        let mut upload = match &self.directory {
            Some(directory) => Upload::File(Staged::create(directory, path).await?),
            None => {
                let upload = self.inner.put_multipart(&Key::from(path)).await?;
                Upload::Object(WriteMultipart::new(upload))
            }
        };
        match copy(&mut upload, &mut bytes, pace).await {
            Ok(copied) => upload.finish().await.map(|()| copied),
            Err(error) => {
                // The first error says more than that what was begun can not be removed.
                let _ = upload.abort().await;
                Err(error)
            }
        }
    }

    /// Reads a file into a new one on this machine, and compares its checksum.
    pub(crate) async fn fetch(&self, file: &File, to: &Path) -> Result<(), Error> {
        let mut parts = self.inner.get(&Key::from(file.path.as_str())).await?.into_stream();
        let mut target = tokio::fs::File::create_new(to).await.map_err(Error::io(to.display()))?;
        let mut sha256 = Sha256::new();
        while let Some(part) = parts.try_next().await? {
            sha256.update(&part);
            target.write_all(&part).await.map_err(Error::io(to.display()))?;
        }
        target.sync_all().await.map_err(Error::io(to.display()))?;
        let found = hex(&sha256.finalize());
        if found != file.sha256 {
            let reason = format!("its SHA-256 is {found}, not {}", file.sha256);
            return Err(Error::Damaged { path: file.path.clone(), reason });
        }
        Ok(())
    }

    pub(crate) async fn delete_manifest(&self, id: &str) -> Result<(), Error> {
        self.delete(&manifest_path(id)).await
    }

    pub(crate) async fn delete(&self, path: &str) -> Result<(), Error> {
        match self.inner.delete(&Key::from(path)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// Copies a file; its length and checksum.
async fn copy(
    upload: &mut Upload,
    bytes: &mut (impl Stream<Item = Result<Bytes, Error>> + Unpin),
    pace: &Pace,
) -> Result<(u64, String), Error> {
    let (mut length, mut sha256) = (0, Sha256::new());
    while let Some(part) = bytes.try_next().await? {
        length += part.len() as u64;
        sha256.update(&part);
        // What is copied shares its disk and its network with what clients wait for.
        pace.take(part.len()).await;
        upload.put(part).await?;
    }
    Ok((length, hex(&sha256.finalize())))
}

fn manifest_path(id: &str) -> String {
    format!("backups/{id}/{MANIFEST}")
}

fn begun_path(id: &str) -> String {
    format!("backups/{id}/{BEGUN}")
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing into a string does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
