//! What a backup holds.

use serde::{Deserialize, Serialize};

/// The format of manifests. A newer one is refused.
pub const FORMAT: u32 = 1;

/// What a backup holds. Unknown fields are those of a later version with the same format.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The format of this.
    pub format: u32,
    /// The backup. Later backups have greater ids.
    pub id: String,
    /// When it was begun: it has everything that was acknowledged before. RFC 3339.
    pub created_at: String,
    /// The version of the node that it is of.
    pub version: String,
    /// The cluster.
    pub cluster: String,
    /// Its region.
    pub region: u16,
    /// The database that the shared files are of.
    pub database: String,
    /// Every shard.
    pub shards: Vec<Shard>,
    /// Every file.
    pub files: Vec<File>,
    /// The configuration of the node, without its secrets, which are never part of one.
    pub config: serde_json::Value,
}

/// A shard in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// Its number.
    pub shard: u16,
    /// How far it was.
    pub position: u64,
    /// The digest of its rows, as hexadecimal digits.
    pub digest: String,
}

/// A file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its name in the database's directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Whether it may be part of other backups as well.
    pub shared: bool,
    /// Where it is in the store.
    #[serde(default)]
    pub path: String,
    /// Its checksum, as hexadecimal digits.
    #[serde(default)]
    pub sha256: String,
}

impl Manifest {
    /// The bytes of all its files.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }
}
