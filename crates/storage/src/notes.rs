//! What a node keeps for itself beside the state of its shards: no part of a shard, of its digest or of a snapshot.
//!
//! Notes are written as the state is, and flushed with it: after a crash they are as old as the state is.

use bytes::Bytes;
use rocksdb::{Direction, IteratorMode, WriteBatch};

use crate::{Error, StateDb};

/// Before the keys of notes.
const PREFIX: &[u8] = b"\xffn";

/// A note.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// What it is called.
    pub key: Bytes,
    /// What it says; `None` to delete it.
    pub value: Option<Bytes>,
}

impl StateDb {
    /// Writes and deletes notes, all or none.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn put_notes(&self, notes: Vec<Note>) -> Result<(), Error> {
        if notes.is_empty() {
            return Ok(());
        }
        let mut batch = WriteBatch::default();
        for Note { key, value } in notes {
            let key = [PREFIX, &key].concat();
            match value {
                Some(value) => batch.put(key, value),
                None => batch.delete(key),
            }
        }
        self.write(batch)
    }

    /// All notes.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn notes(&self) -> Result<Vec<Note>, Error> {
        let mut notes = Vec::new();
        for item in self.db.iterator(IteratorMode::From(PREFIX, Direction::Forward)) {
            let (key, value) = item?;
            let Some(key) = key.strip_prefix(PREFIX) else { break };
            notes.push(Note { key: Bytes::copy_from_slice(key), value: Some(Bytes::from(value)) });
        }
        Ok(notes)
    }
}
