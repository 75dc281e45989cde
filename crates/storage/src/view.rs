//! Rows for whoever does not write: as they were at one moment, or as they are.

use std::{cell::Cell, fmt, sync::Arc};

use ids::ShardId;
use machine::{Key, Read, Row};
use parking_lot::Mutex;
use rocksdb::Snapshot;

use crate::{
    Error, RowDigest, StateDb,
    buffer::{Memory, Rows},
    cache::is_of_catalog,
    keys,
    rows::{decode, keep_first, merge, scan_db},
};

/// A shard as it was at one moment.
pub struct View<'a> {
    snapshot: Snapshot<'a>,
    prefix: [u8; 6],
    memory: Arc<Mutex<Memory>>,
    /// That of the cache when the view was made.
    version: u64,
    /// Rows that could not be written for the view, as on a full disk. They hide what is stored.
    unwritten: Rows,
    error: Cell<Option<Error>>,
}

impl<'a> View<'a> {
    pub(crate) fn new(db: &'a StateDb, shard: ShardId) -> Self {
        let of = db.memory(shard);
        let mut memory = of.lock();
        // Reads go on where nothing can be written. Whoever applies is told why.
        let unwritten = match db.write_buffer(shard, &mut memory) {
            Ok(()) => Rows::new(),
            Err(_) => memory.buffer.copy(..),
        };
        let (version, snapshot) = (memory.cache.version(), db.db.snapshot());
        let prefix = keys::prefix(shard, db.incarnation(shard));
        drop(memory);
        View { snapshot, prefix, memory: of, version, unwritten, error: Cell::new(None) }
    }

    fn has_failed(&self) -> bool {
        let error = self.error.take();
        let has_failed = error.is_some();
        self.error.set(error);
        has_failed
    }

    /// The first error of a read. Has to be asked before what was read is used.
    ///
    /// # Errors
    ///
    /// That error.
    pub fn check(&self) -> Result<(), Error> {
        self.error.take().map_or(Ok(()), Err)
    }
}

impl Read for View<'_> {
    fn get(&self, key: &Key) -> Option<Row> {
        if self.has_failed() {
            return None;
        }
        if let Some(row) = self.unwritten.get(key) {
            return row.as_deref().cloned();
        }
        if let Some(row) = self.memory.lock().cache.get_at(key, self.version) {
            return Some(row);
        }
        let full = [&self.prefix[..], &keys::encode_key(key)].concat();
        match self.snapshot.get_pinned(&full) {
            Ok(Some(bytes)) => match decode(key, &bytes) {
                Ok(row) => {
                    // What is looked at from outside does not push out what sessions are at work on.
                    if is_of_catalog(key) {
                        let hash = RowDigest::row(&full[self.prefix.len()..], &bytes);
                        self.memory.lock().cache.keep_seen(key.clone(), row.clone(), hash, self.version);
                    }
                    Some(row)
                }
                Err(error) => keep_first(&self.error, error),
            },
            Ok(None) => None,
            Err(error) => keep_first(&self.error, error.into()),
        }
    }

    fn scan(&self, from: &Key, to: &Key, limit: usize) -> Vec<(Key, Row)> {
        if from >= to || self.has_failed() {
            return Vec::new();
        }
        let unwritten = self.unwritten.range(from.clone()..to.clone());
        let unwritten = unwritten.map(|(key, row)| (key.clone(), row.clone())).collect();
        merge(unwritten, scan_db(&self.snapshot, &self.prefix, from, to), limit, &self.error)
    }
}

impl fmt::Debug for View<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("View").finish_non_exhaustive()
    }
}

/// A shard, row by row as it is: see [`StateDb::latest`].
pub struct Latest<'a> {
    db: &'a StateDb,
    shard: ShardId,
    memory: Arc<Mutex<Memory>>,
    error: Cell<Option<Error>>,
}

impl<'a> Latest<'a> {
    pub(crate) fn new(db: &'a StateDb, shard: ShardId) -> Self {
        Latest { db, shard, memory: db.memory(shard), error: Cell::new(None) }
    }

    /// The first error of a read. Has to be asked before what was read is used.
    ///
    /// # Errors
    ///
    /// That error.
    pub fn check(&self) -> Result<(), Error> {
        self.error.take().map_or(Ok(()), Err)
    }

    /// Reads while one incarnation is in force: those before it are removed.
    fn in_force<T>(&self, read: impl Fn(&[u8; 6]) -> T) -> T {
        loop {
            let incarnation = self.db.incarnation(self.shard);
            let found = read(&keys::prefix(self.shard, incarnation));
            if self.db.incarnation(self.shard) == incarnation {
                return found;
            }
        }
    }
}

impl Read for Latest<'_> {
    fn get(&self, key: &Key) -> Option<Row> {
        if let Some(row) = self.memory.lock().get(key) {
            return row;
        }
        let read =
            self.in_force(|prefix| self.db.db.get_pinned([&prefix[..], &keys::encode_key(key)].concat()));
        match read {
            Ok(Some(bytes)) => match decode(key, &bytes) {
                Ok(row) => Some(row),
                Err(error) => keep_first(&self.error, error),
            },
            Ok(None) => None,
            Err(error) => keep_first(&self.error, error.into()),
        }
    }

    fn scan(&self, from: &Key, to: &Key, limit: usize) -> Vec<(Key, Row)> {
        if from >= to {
            return Vec::new();
        }
        self.in_force(|prefix| {
            // Together: no row is written out between the two.
            let (ours, stored) = {
                let memory = self.memory.lock();
                (memory.buffer.copy(from.clone()..to.clone()), scan_db(&self.db.db, prefix, from, to))
            };
            merge(ours, stored, limit, &self.error)
        })
    }
}

impl fmt::Debug for Latest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latest").field("shard", &self.shard).finish_non_exhaustive()
    }
}
