//! A shard's state on its way to another node: read from one moment of a database, written into a fresh incarnation
//! of another, which comes into force only when it is whole.

use std::sync::Arc;

use bytes::Bytes;
use ids::ShardId;
use rocksdb::{Direction, IteratorMode, ReadOptions, WriteBatch};

use crate::{
    Error, RowDigest, StateDb,
    digest::digest_key,
    keys,
    state::{applied_key, incarnation_key},
};

/// Bytes of rows handed over at once.
const PART_BYTES: usize = 1 << 20;

/// What [`StateDb::export`] hands over.
#[derive(Debug)]
pub enum Exported {
    /// First: what the shard has applied.
    Applied(Bytes),
    /// Rows as they are stored, without what names their shard; about 1 MiB.
    Rows(Vec<(Bytes, Bytes)>),
}

impl StateDb {
    /// Reads a shard as it is now. Stops at the first error, of the database or of `sink`.
    ///
    /// # Errors
    ///
    /// The disk refuses, the shard has applied nothing, or what `sink` answers.
    pub fn export<E: From<Error>>(
        &self,
        shard: ShardId,
        mut sink: impl FnMut(Exported) -> Result<(), E>,
    ) -> Result<(), E> {
        let snapshot = self.db.snapshot();
        let incarnation = self.incarnation(shard);
        let applied = snapshot.get(applied_key(shard, incarnation)).map_err(Error::from)?;
        let nothing = || Error::corrupt(format!("state of shard {shard}"), "nothing is applied");
        sink(Exported::Applied(applied.ok_or_else(nothing)?.into()))?;
        let from = keys::prefix(shard, incarnation);
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(keys::prefix(shard, incarnation + 1));
        // Read once, on the way out: what others work on stays in the cache.
        options.fill_cache(false);
        let (mut rows, mut bytes) = (Vec::new(), 0);
        for item in snapshot.iterator_opt(IteratorMode::From(&from, Direction::Forward), options) {
            let (key, value) = item.map_err(Error::from)?;
            bytes += key.len() + value.len();
            rows.push((Bytes::copy_from_slice(&key[from.len()..]), value.into()));
            if bytes >= PART_BYTES {
                bytes = 0;
                sink(Exported::Rows(std::mem::take(&mut rows)))?;
            }
        }
        if rows.is_empty() { Ok(()) } else { sink(Exported::Rows(rows)) }
    }

    /// Begins to write a shard's rows into a fresh incarnation. One import of a shard at a time: another makes this
    /// one fail.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn import(self: &Arc<Self>, shard: ShardId, applied: Bytes) -> Result<Import, Error> {
        let mut imports = self.imports.lock();
        let turn = imports.entry(shard).or_insert(0);
        *turn += 1;
        let (turn, incarnation) = (*turn, self.incarnation(shard) + 1);
        // What an interrupted import left.
        self.remove(shard, incarnation)?;
        let (db, digest) = (Arc::clone(self), RowDigest::default());
        Ok(Import { db, shard, incarnation, turn, applied, rows: 0, crc32c: 0, digest })
    }

    fn remove(&self, shard: ShardId, incarnation: u32) -> Result<(), Error> {
        let mut batch = WriteBatch::default();
        batch.delete_range(keys::prefix(shard, incarnation), keys::prefix(shard, incarnation + 1));
        batch.delete(applied_key(shard, incarnation));
        batch.delete(digest_key(shard, incarnation));
        self.write(batch)
    }
}

/// A shard's state that is not in force yet.
#[derive(Debug)]
pub struct Import {
    db: Arc<StateDb>,
    shard: ShardId,
    incarnation: u32,
    turn: u64,
    applied: Bytes,
    rows: u64,
    crc32c: u32,
    digest: RowDigest,
}

impl Import {
    /// Writes rows. Each is read first, so that what is not a row never gets in.
    ///
    /// # Errors
    ///
    /// Not rows, another import began, or the disk refuses.
    pub fn put(&mut self, rows: impl IntoIterator<Item = (Bytes, Bytes)>) -> Result<(), Error> {
        let prefix = keys::prefix(self.shard, self.incarnation);
        let mut batch = WriteBatch::default();
        for (key, value) in rows {
            let decoded = keys::decode_key(&key)
                .ok_or_else(|| Error::corrupt(format!("snapshot, key {key:02x?}"), "not a key"))?;
            proto::record::decode_row(&decoded, &value)
                .map_err(|error| Error::corrupt(format!("snapshot, {decoded:?}"), error))?;
            batch.put([&prefix[..], &key].concat(), &value);
            self.rows += 1;
            self.digest.add(RowDigest::row(&key, &value));
            self.crc32c = row_checksum(self.crc32c, &key, &value);
        }
        self.check_turn()?;
        self.db.write(batch)
    }

    fn check_turn(&self) -> Result<(), Error> {
        if self.db.imports.lock().get(&self.shard) == Some(&self.turn) {
            return Ok(());
        }
        Err(Error::corrupt(format!("snapshot of shard {}", self.shard), "another one has begun"))
    }

    /// How many rows were written, and their checksum.
    #[must_use]
    pub fn sum(&self) -> (u64, u32) {
        (self.rows, self.crc32c)
    }

    /// What the rows are the result of.
    #[must_use]
    pub fn applied(&self) -> &Bytes {
        &self.applied
    }

    /// Puts the rows into force. They are on disk first; the pointer flips last, and is on disk when this returns.
    ///
    /// # Errors
    ///
    /// Another import began, or the disk refuses. The old rows stay in force.
    pub fn install(self) -> Result<(), Error> {
        self.check_turn()?;
        let Self { db, shard, incarnation, applied, digest, .. } = self;
        let old = db.incarnation(shard);
        let mut batch = WriteBatch::default();
        batch.put(applied_key(shard, incarnation), applied);
        batch.put(digest_key(shard, incarnation), digest.0.to_be_bytes());
        db.write(batch)?;
        db.flush()?;
        let mut pointer = WriteBatch::default();
        pointer.put(incarnation_key(shard), incarnation.to_be_bytes());
        db.write(pointer)?;
        db.flush()?;
        db.incarnations.lock().insert(shard, incarnation);
        db.cache(shard).lock().clear();
        db.remove(shard, old)
    }
}

/// The checksum of rows: of one, after those before it.
#[must_use]
pub fn row_checksum(before: u32, key: &[u8], value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(before, key), value)
}
