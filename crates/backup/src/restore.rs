//! From the store onto a disk.

use std::path::Path;

use consensus::{
    Member,
    backup::{ReadShard, read_through},
};
use ids::RegionId;
use storage::Identity;

use crate::{Error, Manifest, Shard, Store};

/// What reading a backup has shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified {
    /// Rows that were read, all shards together.
    pub rows: u64,
    /// What is wrong. Empty for a backup that can be relied on.
    pub problems: Vec<String>,
}

impl Manifest {
    async fn fetch(&self, store: &Store, to: &Path) -> Result<(), Error> {
        for file in &self.files {
            // A manifest is read from a store that others may write to: a name in it must not lead elsewhere.
            if Path::new(&file.name).file_name() != Some(file.name.as_ref()) {
                let reason = format!("it names {:?}, which is not the name of a file", file.name);
                return Err(Error::Damaged { path: format!("the manifest of backup {}", self.id), reason });
            }
            store.fetch(file, &to.join(&file.name)).await?;
        }
        Ok(())
    }

    fn shard_count(&self) -> u16 {
        u16::try_from(self.shards.len()).unwrap_or(u16::MAX)
    }
}

/// Restores a backup into an empty directory, reads every row, and compares with what the manifest says.
///
/// # Errors
///
/// A file is missing or damaged, or the disk refuses.
pub async fn verify(store: &Store, manifest: &Manifest, scratch: &Path) -> Result<Verified, Error> {
    match manifest.fetch(store, scratch).await {
        Ok(()) => {}
        // That is what was asked.
        Err(error @ (Error::Damaged { .. } | Error::Store(object_store::Error::NotFound { .. }))) => {
            return Ok(Verified { rows: 0, problems: vec![error.to_string()] });
        }
        Err(error) => return Err(error),
    }
    let (path, shards) = (scratch.to_owned(), manifest.shard_count());
    let read = tokio::task::spawn_blocking(move || read_through(&path, shards)).await;
    let read = read.map_err(|_| consensus::backup::Error::Panicked)??;
    let (mut rows, mut problems) = (0, Vec::new());
    for (ReadShard { at, rows: found }, expected) in read.into_iter().zip(&manifest.shards) {
        let shard = at.shard;
        match found {
            Ok(found) => rows += found,
            Err(error) => problems.push(error.to_string()),
        }
        let found = Shard { shard: shard.0, position: at.position.0, digest: at.digest.to_string() };
        if found != *expected {
            problems.push(format!("shard {shard}: the manifest says {expected:?}, and it is {found:?}"));
        }
    }
    Ok(Verified { rows, problems })
}

/// Makes the data directory of a node that founds a new cluster with what a backup holds; who the node is.
///
/// # Errors
///
/// The directory is not empty, a file is missing or damaged, or the disk refuses.
pub async fn found(store: &Store, manifest: &Manifest, path: &Path, name: &str) -> Result<Identity, Error> {
    let identity = Identity {
        cluster: rand::random(),
        node: consensus::new_node_id(),
        region: RegionId(manifest.region),
        shards: manifest.shard_count(),
        joined: false,
    };
    // Its addresses are made known when it starts.
    let member = Member { name: name.to_owned(), ..Member::default() };
    let fill = async |state: &Path| manifest.fetch(store, state).await;
    consensus::backup::found(path, identity.clone(), member, fill).await?;
    Ok(identity)
}
