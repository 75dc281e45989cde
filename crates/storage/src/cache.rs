//! Rows of a shard in memory, decoded, for its batches and its views.
//!
//! A batch reads the rows as they are; a view reads them as they were when it was made. So each cached row knows the
//! version since which it is what it is, and a view is given those that are older than itself. While a batch is being
//! written, a view may be made of the database before or after it: the rows that it changes are hidden from views from
//! before its write until after, and these read them from the database.

use hashbrown::HashMap;
use machine::{EventData, Key, Row};

/// Bytes of an event's value up to which the event is kept: it is read again by the next steps, and is one of many.
const VALUE_BYTES_MAX: usize = 512;

/// Rows as they are after the last batch. Two generations: what is not used while the young one fills is dropped with
/// the old one.
pub(crate) struct RowCache {
    young: HashMap<Key, Cached>,
    old: HashMap<Key, Cached>,
    limit: usize,
    /// Counts batches, and everything else after which rows may be others.
    version: u64,
    /// Whether a batch is being written, or was given up while it was.
    is_writing: bool,
}

/// A row, and its part of the digest: of the bytes that are stored, so that they need not be read again when it
/// changes.
struct Cached {
    row: Row,
    hash: u128,
    since: u64,
}

/// Since when a row is what it is that views must not see.
const HIDDEN: u64 = u64::MAX;

impl RowCache {
    pub(crate) fn new(limit: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), limit, version: 0, is_writing: false }
    }

    /// The version of a view that is made from now on. To be asked for before the view's snapshot is made.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The row as it is after the last batch, where it is cached.
    pub(crate) fn get(&mut self, key: &Key) -> Option<Row> {
        self.with(key, |cached| cached.row.clone())
    }

    /// The row as a view of this version has it, where the cache can tell.
    pub(crate) fn get_at(&mut self, key: &Key, version: u64) -> Option<Row> {
        self.with(key, |cached| (cached.since <= version).then(|| cached.row.clone())).flatten()
    }

    fn with<T>(&mut self, key: &Key, take: impl FnOnce(&Cached) -> T) -> Option<T> {
        if let Some(cached) = self.young.get(key) {
            return Some(take(cached));
        }
        // Both together stay as many as they are.
        let (key, cached) = self.old.remove_entry(key)?;
        let taken = take(&cached);
        self.young.insert(key, cached);
        Some(taken)
    }

    /// Keeps a row that a batch has read.
    pub(crate) fn keep_read(&mut self, key: Key, row: Row, hash: u128) {
        if is_small(&row) {
            let since = self.version;
            self.insert(key, Cached { row, hash, since });
        }
    }

    /// Keeps a row that a view of this version has read, if no batch came in between.
    pub(crate) fn keep_seen(&mut self, key: Key, row: Row, hash: u128, version: u64) {
        if version == self.version && !self.is_writing {
            self.keep_read(key, row, hash);
        }
    }

    /// A batch is about to be written.
    pub(crate) fn begin_write(&mut self) {
        self.is_writing = true;
    }

    /// A row is about to change: views find it in the database. Its part of the digest, where it is cached.
    pub(crate) fn hide(&mut self, key: &Key) -> Option<u128> {
        let cached = match self.young.get_mut(key) {
            Some(cached) => cached,
            None => self.old.get_mut(key)?,
        };
        cached.since = HIDDEN;
        Some(cached.hash)
    }

    /// A batch is written: these are its rows, each with its part of the digest.
    pub(crate) fn end_write(&mut self, rows: impl IntoIterator<Item = ((Key, Option<Row>), u128)>) {
        self.version += 1;
        self.is_writing = false;
        for ((key, row), hash) in rows {
            if !is_hot(&key) {
                continue;
            }
            match row {
                Some(row) if is_small(&row) => {
                    let since = self.version;
                    self.insert(key, Cached { row, hash, since });
                }
                _ => {
                    self.young.remove(&key);
                    self.old.remove(&key);
                }
            }
        }
    }

    /// Other rows are in force: nothing that is cached holds, and no view from before sees what will be.
    pub(crate) fn clear(&mut self) {
        self.version += 1;
        self.young.clear();
        self.old.clear();
    }

    fn insert(&mut self, key: Key, row: Cached) {
        if self.young.len() >= self.limit / 2 {
            self.old.clear();
            std::mem::swap(&mut self.young, &mut self.old);
        }
        self.young.insert(key, row);
    }
}

/// Whether a row is worth keeping: those that are read again by the next commands of their session, and by its next
/// steps.
pub(crate) fn is_hot(key: &Key) -> bool {
    matches!(
        key,
        Key::Shard
            | Key::Definition(_)
            | Key::Workflow(..)
            | Key::Session(_)
            | Key::Scope(..)
            | Key::Step(..)
            | Key::Event(..)
            | Key::Pending(..)
    )
}

/// Whether a row is one that no command changes, or few do.
pub(crate) fn is_of_catalog(key: &Key) -> bool {
    matches!(key, Key::Definition(_) | Key::Workflow(..))
}

fn is_small(row: &Row) -> bool {
    let Row::Event(event, _) = row else { return true };
    match &event.data {
        EventData::StepFailed { .. } | EventData::StepDeferred { .. } | EventData::SessionFailed { .. } => {
            false
        }
        data => data.value().is_none_or(|value| value.len() <= VALUE_BYTES_MAX),
    }
}
