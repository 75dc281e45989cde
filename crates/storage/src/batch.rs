//! What one apply reads and writes.

use std::{
    cell::{Cell, RefCell},
    fmt,
    sync::Arc,
};

use bytes::Bytes;
use hashbrown::HashSet;
use ids::ShardId;
use machine::{Key, Read, Row, Tables};
use parking_lot::Mutex;

use crate::{
    Error, RowDigest, StateDb,
    buffer::{Memory, Rows},
    keys,
    rows::{decode, keep_first, merge, scan_db},
};

/// Reads and writes of one apply. Nothing of it is seen before [`Batch::commit`].
pub struct Batch<'a> {
    db: &'a StateDb,
    prefix: [u8; 6],
    shard: ShardId,
    memory: Arc<Mutex<Memory>>,
    overlay: RefCell<Rows>,
    /// Rows that were looked for, and are not there: whoever puts them need not look again.
    absent: RefCell<HashSet<Key>>,
    error: Cell<Option<Error>>,
}

impl<'a> Batch<'a> {
    pub(crate) fn new(db: &'a StateDb, shard: ShardId) -> Self {
        Self {
            db,
            prefix: keys::prefix(shard, db.incarnation(shard)),
            shard,
            memory: db.memory(shard),
            overlay: RefCell::default(),
            absent: RefCell::default(),
            error: Cell::new(None),
        }
    }

    /// Puts the rows into force and, with them, what has been applied. They are written when there are many.
    ///
    /// # Errors
    ///
    /// The first error of a read: nothing is in force. Or the disk refuses: everything is, and
    /// [`StateDb::write_out`] has to be tried until it does not.
    pub fn commit(self, applied: &[u8]) -> Result<(), Error> {
        if let Some(error) = self.error.take() {
            return Err(error);
        }
        let mut memory = self.memory.lock();
        memory.take(self.overlay.into_inner(), &self.absent.into_inner(), Bytes::copy_from_slice(applied));
        if memory.buffer.is_full() { self.db.write_buffer(self.shard, &mut memory) } else { Ok(()) }
    }
}

impl Read for Batch<'_> {
    fn get(&self, key: &Key) -> Option<Row> {
        if let Some(row) = self.overlay.borrow().get(key) {
            return row.as_deref().cloned();
        }
        if let Some(row) = self.memory.lock().get(key) {
            return row;
        }
        if self.absent.borrow().contains(key) {
            return None;
        }
        // Nobody else puts rows: what is stored is what is in force.
        let full = [&self.prefix[..], &keys::encode_key(key)].concat();
        let hash = |bytes: &[u8]| RowDigest::row(&full[self.prefix.len()..], bytes);
        let read = match self.db.db.get_pinned(&full) {
            Ok(Some(bytes)) => decode(key, &bytes).map(|row| Some((row, hash(&bytes)))),
            Ok(None) => Ok(None),
            Err(error) => Err(error.into()),
        };
        match read {
            Ok(Some((row, hash))) => {
                self.memory.lock().cache.keep_read(key.clone(), row.clone(), hash);
                Some(row)
            }
            Ok(None) => {
                self.absent.borrow_mut().insert(key.clone());
                None
            }
            Err(error) => keep_first(&self.error, error),
        }
    }

    fn scan(&self, from: &Key, to: &Key, limit: usize) -> Vec<(Key, Row)> {
        if from >= to {
            return Vec::new();
        }
        let range = from.clone()..to.clone();
        // Together: a row is written out by whoever makes a view.
        let (mut ours, stored) = {
            let memory = self.memory.lock();
            (memory.buffer.copy(range.clone()), scan_db(&self.db.db, &self.prefix, from, to))
        };
        ours.extend(self.overlay.borrow().range(range).map(|(key, row)| (key.clone(), row.clone())));
        merge(ours, stored, limit, &self.error)
    }
}

impl Tables for Batch<'_> {
    fn put(&mut self, key: Key, row: Row) {
        self.overlay.get_mut().insert(key, Some(Box::new(row)));
    }

    fn delete(&mut self, key: &Key) {
        self.overlay.get_mut().insert(key.clone(), None);
    }

    fn expect_none(&mut self, key: &Key) {
        // One that this batch itself has deleted may be stored.
        if !self.overlay.get_mut().contains_key(key) {
            self.absent.get_mut().insert(key.clone());
        }
    }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("shard", &self.shard).finish_non_exhaustive()
    }
}
