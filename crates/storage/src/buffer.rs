//! Rows of a shard that are applied and not written yet.
//!
//! Most rows of a session change with every command while it runs, and many are gone when it ends. So what is applied
//! is held in memory until there is much of it, and only what it is by then is written, in one batch with what has
//! been applied by then. A crash loses nothing by it: the state has no write-ahead log, and whatever of it is not on
//! the disk is applied again from the log.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    ops::RangeBounds,
};

use bytes::Bytes;
use hashbrown::HashSet;
use machine::{Key, Row};

use crate::cache::RowCache;

/// Rows that are held, at most, between two batches.
const ROWS_MAX: usize = 1_024;
/// Bytes of values that are held, at most, between two batches.
const BYTES_MAX: usize = 1 << 20;

/// What is in memory of the rows of a shard.
pub(crate) struct Memory {
    pub(crate) cache: RowCache,
    pub(crate) buffer: WriteBuffer,
}

/// Rows by their keys; `None` where a row is deleted. On the heap, as a row is several times as large as its key, and
/// those of a tree are moved whenever one comes between them.
pub(crate) type Rows = BTreeMap<Key, Option<Box<Row>>>;

/// Rows that are applied and not written yet.
#[derive(Default)]
pub(crate) struct WriteBuffer {
    rows: BTreeMap<Key, Buffered>,
    bytes: usize,
    /// What the rows are the result of; `None` while everything is written.
    applied: Option<Bytes>,
}

/// A row that differs from what is stored under its key.
pub(crate) struct Buffered {
    /// `None` if it is deleted.
    pub(crate) row: Option<Box<Row>>,
    pub(crate) before: Before,
}

/// What is stored under a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Before {
    /// Nothing.
    Absent,
    /// A row with this part in the digest.
    Stored(u128),
    /// It was not looked at.
    Unknown,
}

/// Whether a key is put at most once, so that there is no earlier row under it.
fn is_written_once(key: &Key) -> bool {
    matches!(key, Key::Event(..) | Key::Signal(..))
}

fn value_len(row: Option<&Row>) -> usize {
    match row {
        Some(Row::Event(event, _)) => event.data.value().map_or(0, Bytes::len),
        Some(Row::Item(value)) => value.len(),
        _ => 0,
    }
}

impl Memory {
    pub(crate) fn new(cached_rows: usize) -> Self {
        Self { cache: RowCache::new(cached_rows), buffer: WriteBuffer::default() }
    }

    /// Takes the rows of a batch, and what they are the result of. Under the keys in `absent`, nothing is stored.
    pub(crate) fn take(&mut self, rows: Rows, absent: &HashSet<Key>, applied: Bytes) {
        let Self { cache, buffer } = self;
        for (key, row) in rows {
            buffer.put(key, row, |key, row| match cache.hash(key) {
                Some(hash) => Before::Stored(hash),
                None if absent.contains(key) || (row.is_some() && is_written_once(key)) => Before::Absent,
                None => Before::Unknown,
            });
        }
        buffer.applied = Some(applied);
    }

    /// The row as it is, where memory can tell: `Some(None)` if it is deleted.
    pub(crate) fn get(&mut self, key: &Key) -> Option<Option<Row>> {
        match self.buffer.rows.get(key) {
            Some(buffered) => Some(buffered.row.as_deref().cloned()),
            None => self.cache.get(key).map(Some),
        }
    }

    /// The rows of the buffer are stored, each with this part of the digest.
    pub(crate) fn written(&mut self, hashes: impl IntoIterator<Item = u128>) {
        let buffer = std::mem::take(&mut self.buffer);
        self.cache.written(buffer.rows.into_iter().zip(hashes).map(|((key, of), hash)| (key, of.row, hash)));
    }

    /// Other rows are in force: nothing that is here holds.
    pub(crate) fn clear(&mut self) {
        self.cache.clear();
        self.buffer = WriteBuffer::default();
    }
}

impl WriteBuffer {
    fn put(&mut self, key: Key, row: Option<Box<Row>>, before: impl FnOnce(&Key, Option<&Row>) -> Before) {
        self.bytes += value_len(row.as_deref());
        match self.rows.entry(key) {
            Entry::Vacant(slot) => {
                let before = before(slot.key(), row.as_deref());
                if row.is_some() || before != Before::Absent {
                    slot.insert(Buffered { row, before });
                }
            }
            Entry::Occupied(mut slot) => {
                self.bytes -= value_len(slot.get().row.as_deref());
                if row.is_none() && slot.get().before == Before::Absent {
                    // It has come and gone.
                    slot.remove();
                } else {
                    slot.get_mut().row = row;
                }
            }
        }
    }

    pub(crate) fn is_full(&self) -> bool {
        self.rows.len() >= ROWS_MAX || self.bytes >= BYTES_MAX
    }

    /// What was applied and is not written; `None` while everything is.
    pub(crate) fn applied(&self) -> Option<&Bytes> {
        self.applied.as_ref()
    }

    /// The rows, in the order of their keys.
    pub(crate) fn rows(&self) -> &BTreeMap<Key, Buffered> {
        &self.rows
    }

    /// Copies of the rows of a range of keys.
    pub(crate) fn copy(&self, range: impl RangeBounds<Key>) -> Rows {
        self.rows.range(range).map(|(key, buffered)| (key.clone(), buffered.row.clone())).collect()
    }
}
