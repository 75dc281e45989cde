//! The state database as it was at one moment, as files beside it: table files are shared with it by hard links, and
//! never change.

use std::{fs, path::Path};

use bytes::Bytes;
use ids::ShardId;
use rocksdb::checkpoint::Checkpoint;

use crate::{Error, StateDb, state::applied_key};

/// A file of a checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointFile {
    /// Its name in the directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Whether it never changes, and no other file of this database ever has its name.
    pub immutable: bool,
}

impl StateDb {
    /// Makes everything applied so far durable, and a copy of it in a new directory on the same disk.
    ///
    /// # Errors
    ///
    /// The directory exists, or the disk refuses.
    pub fn checkpoint(&self, to: &Path) -> Result<Vec<CheckpointFile>, Error> {
        self.flush()?;
        Checkpoint::new(&self.db)?.create_checkpoint(to)?;
        let mut files = Vec::new();
        for entry in fs::read_dir(to).map_err(Error::io(to))? {
            let entry = entry.map_err(Error::io(to))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let bytes = entry.metadata().map_err(Error::io(to))?.len();
            let immutable = Path::new(&name).extension().is_some_and(|extension| extension == "sst");
            files.push(CheckpointFile { name, bytes, immutable });
        }
        files.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(files)
    }

    /// What tells this database from every other: no two have the same.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn database_id(&self) -> Result<String, Error> {
        let path = self.db.path().join("IDENTITY");
        Ok(fs::read_to_string(&path).map_err(Error::io(&path))?.trim().to_owned())
    }

    /// Says that the rows of a shard are the result of something else: of the beginning of a new log. On disk when this
    /// returns.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn rebase(&self, shard: ShardId, applied: &Bytes) -> Result<(), Error> {
        self.write_out(shard)?;
        let mut batch = rocksdb::WriteBatch::default();
        batch.put(applied_key(shard, self.incarnation(shard)), applied);
        self.write(batch)?;
        self.flush()
    }
}
