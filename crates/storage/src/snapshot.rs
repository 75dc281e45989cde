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
        let (snapshot, incarnation) = self.snapshot(shard)?;
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

    /// Begins to write a shard's rows into an incarnation of its own. Imports of a shard do not know of each other: one
    /// may begin while another is put into force, as its sender has given up and sends again.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn import(self: &Arc<Self>, shard: ShardId, applied: Bytes) -> Result<Import, Error> {
        let incarnation = {
            let mut begun = self.begun.lock();
            let last = begun.entry(shard).or_insert(0);
            *last = self.incarnation(shard).max(*last) + 1;
            *last
        };
        let (db, digest) = (Arc::clone(self), RowDigest::default());
        Ok(Import { db, shard, incarnation, applied, rows: 0, crc32c: 0, digest, installed: false })
    }

    /// Removes what interrupted imports have left, and incarnations that are not in force any more.
    pub(crate) fn sweep(&self) -> Result<(), Error> {
        let in_force = self.incarnations.lock().clone();
        let mut batch = WriteBatch::default();
        let mut next: Vec<u8> = Vec::new();
        let mut keys = self.db.raw_iterator();
        // From incarnation to incarnation: one seek each.
        loop {
            keys.seek(&next);
            let Some(key) = keys.key().filter(|key| key.len() >= 6 && key[0] != 0xff) else { break };
            let (shard, incarnation) = keys::read_prefix(key)?;
            let after = keys::after(shard, incarnation);
            if in_force.get(&shard).copied().unwrap_or(0) != incarnation {
                batch.delete_range(&keys::prefix(shard, incarnation)[..], &after[..]);
                batch.delete(applied_key(shard, incarnation));
                batch.delete(digest_key(shard, incarnation));
            }
            next = after.to_vec();
        }
        keys.status()?;
        if batch.is_empty() { Ok(()) } else { self.write(batch) }
    }

    fn remove(&self, shard: ShardId, incarnation: u32) -> Result<(), Error> {
        let mut batch = WriteBatch::default();
        batch.delete_range(&keys::prefix(shard, incarnation)[..], &keys::after(shard, incarnation)[..]);
        batch.delete(applied_key(shard, incarnation));
        batch.delete(digest_key(shard, incarnation));
        self.write(batch)
    }
}

/// A shard's state that is not in force yet. Dropped before it is, it leaves nothing.
#[derive(Debug)]
pub struct Import {
    db: Arc<StateDb>,
    shard: ShardId,
    incarnation: u32,
    applied: Bytes,
    rows: u64,
    crc32c: u32,
    digest: RowDigest,
    installed: bool,
}

impl Drop for Import {
    fn drop(&mut self) {
        if !self.installed {
            // If not now, then when the database is opened.
            let _ = self.db.remove(self.shard, self.incarnation);
        }
    }
}

impl Import {
    /// Writes rows. Each is read first, so that what is not a row never gets in.
    ///
    /// # Errors
    ///
    /// Not rows, or the disk refuses.
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
        self.db.write(batch)
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
    /// The disk refuses. The old rows stay in force, and this may be tried again.
    pub fn install(&mut self) -> Result<(), Error> {
        let (db, shard, incarnation) = (Arc::clone(&self.db), self.shard, self.incarnation);
        let mut batch = WriteBatch::default();
        batch.put(applied_key(shard, incarnation), &self.applied);
        batch.put(digest_key(shard, incarnation), self.digest.0.to_be_bytes());
        db.write(batch)?;
        db.flush()?;
        let point = |to: u32| {
            let mut pointer = WriteBatch::default();
            pointer.put(incarnation_key(shard), to.to_be_bytes());
            db.write(pointer)
        };
        point(incarnation)?;
        // From here on the pointer may come to the disk: its rows must be there.
        self.installed = true;
        if let Err(error) = db.flush() {
            self.installed = point(db.incarnation(shard)).is_err();
            return Err(error);
        }
        let memory = db.memory(shard);
        let old = {
            // Together: a view has rows of one incarnation.
            let mut memory = memory.lock();
            memory.clear();
            db.incarnations.lock().insert(shard, incarnation).unwrap_or(0)
        };
        db.remove(shard, old)
    }
}

/// The checksum of rows: of one, after those before it.
#[must_use]
pub fn row_checksum(before: u32, key: &[u8], value: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(before, key), value)
}
