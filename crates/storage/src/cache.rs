//! Rows of a shard in memory, decoded, as they are stored.
//!
//! A view reads the rows as they were stored when it was made. So each cached row knows the version since which it is
//! what it is, and a view is given those that are not newer than itself.

use hashbrown::HashMap;
use machine::{EventData, Key, Row};

/// Bytes of an event's value up to which the event is kept: it is read again by the next steps, and is one of many.
const VALUE_BYTES_MAX: usize = 512;

/// Rows as they are stored. Two generations: what is not used while the young one fills is dropped with
/// the old one.
pub(crate) struct RowCache {
    young: HashMap<Key, Cached>,
    old: HashMap<Key, Cached>,
    limit: usize,
    /// Counts what is written, and everything else after which rows may be others.
    version: u64,
}

/// A row, and its part of the digest: of the bytes that are stored, so that they need not be read again when it
/// changes.
struct Cached {
    row: Box<Row>,
    hash: u128,
    since: u64,
}

impl RowCache {
    pub(crate) fn new(limit: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), limit, version: 0 }
    }

    /// The version of a view that is made now.
    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The row as it is stored, where it is cached.
    pub(crate) fn get(&mut self, key: &Key) -> Option<Row> {
        self.with(key, |cached| Row::clone(&cached.row))
    }

    /// The row as a view of this version has it, where the cache can tell.
    pub(crate) fn get_at(&mut self, key: &Key, version: u64) -> Option<Row> {
        self.with(key, |cached| (cached.since <= version).then(|| Row::clone(&cached.row))).flatten()
    }

    fn with<T>(&mut self, key: &Key, take: impl FnOnce(&Cached) -> T) -> Option<T> {
        if !is_hot(key) {
            return None;
        }
        if let Some(cached) = self.young.get(key) {
            return Some(take(cached));
        }
        // Both together stay as many as they are.
        let (key, cached) = self.old.remove_entry(key)?;
        let taken = take(&cached);
        self.young.insert(key, cached);
        Some(taken)
    }

    /// Keeps a row that was read, and is still what is stored.
    pub(crate) fn keep_read(&mut self, key: Key, row: Row, hash: u128) {
        if is_hot(&key) && is_small(&row) {
            let since = self.version;
            self.insert(key, Cached { row: Box::new(row), hash, since });
        }
    }

    /// Keeps a row that a view of this version has read, if nothing was written since.
    pub(crate) fn keep_seen(&mut self, key: Key, row: Row, hash: u128, version: u64) {
        if version == self.version {
            self.keep_read(key, row, hash);
        }
    }

    /// The part in the digest of what is stored under a key, where it is cached.
    pub(crate) fn hash(&self, key: &Key) -> Option<u128> {
        self.young.get(key).or_else(|| self.old.get(key)).map(|cached| cached.hash)
    }

    /// These rows are stored from now on, each with its part of the digest: newer than every view that is there.
    pub(crate) fn written(&mut self, rows: impl IntoIterator<Item = (Key, Option<Box<Row>>, u128)>) {
        self.version += 1;
        for (key, row, hash) in rows {
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
fn is_hot(key: &Key) -> bool {
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
