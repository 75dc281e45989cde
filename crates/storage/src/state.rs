//! The state database: the rows of all shards, without a write-ahead log.
//!
//! Keys of a shard are prefixed with its number and its incarnation ([`crate::keys`]). Keys of the node begin with
//! `ff`: `ff 'i' ‖ shard` holds the incarnation in force, `ff 'a' ‖ shard ‖ incarnation` what it has applied of the
//! log.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, HashMap},
    fmt,
    path::Path,
    sync::Arc,
};

use bytes::Bytes;
use hashbrown::HashSet;
use ids::ShardId;
use machine::{Key, Read, Row, Tables};
use parking_lot::Mutex;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBCompressionType, FlushOptions, IteratorMode,
    Options, ReadOptions, Snapshot, WriteBatch, WriteOptions,
};

use crate::{
    Error, RowDigest,
    cache::{RowCache, is_hot, is_of_catalog},
    digest::digest_key,
    keys,
};

/// How the state database works.
#[derive(Debug, Clone)]
pub struct StateOptions {
    /// Bytes of blocks kept in memory, all shards together.
    pub block_cache_bytes: usize,
    /// Decoded rows kept in memory, a shard.
    pub cached_rows: usize,
}

/// The state database of a node.
pub struct StateDb {
    pub(crate) db: DB,
    pub(crate) incarnations: Mutex<HashMap<ShardId, u32>>,
    /// The incarnation of the last import of each shard that was begun.
    pub(crate) begun: Mutex<HashMap<ShardId, u32>>,
    caches: Mutex<HashMap<ShardId, Arc<Mutex<RowCache>>>>,
    options: StateOptions,
}

/// Whether a key is put at most once, so that there is no earlier row under it.
fn is_written_once(key: &Key) -> bool {
    matches!(key, Key::Event(..) | Key::Signal(..))
}

impl StateDb {
    /// Opens the database.
    ///
    /// # Errors
    ///
    /// Corrupt, or refused by the system.
    pub fn open(path: &Path, options: StateOptions) -> Result<Self, Error> {
        let db = Self::opened(DB::open(&db_options(&options), path)?, options)?;
        db.sweep()?;
        Ok(db)
    }

    /// Opens the database to be read: nothing in its directory changes.
    ///
    /// # Errors
    ///
    /// Corrupt, or refused by the system.
    pub fn open_read_only(path: &Path, options: StateOptions) -> Result<Self, Error> {
        let db = DB::open_for_read_only(&db_options(&options), path, false)?;
        Self::opened(db, options)
    }

    fn opened(db: DB, options: StateOptions) -> Result<Self, Error> {
        let mut incarnations = HashMap::new();
        for item in db.iterator(IteratorMode::From(b"\xffi", rocksdb::Direction::Forward)) {
            let (key, value) = item?;
            let Some(shard) = key.strip_prefix(b"\xffi").and_then(|shard| <[u8; 2]>::try_from(shard).ok())
            else {
                break;
            };
            let incarnation = <[u8; 4]>::try_from(&*value)
                .map_err(|_| Error::corrupt("state, incarnation of a shard", "not a number"))?;
            incarnations.insert(ShardId(u16::from_be_bytes(shard)), u32::from_be_bytes(incarnation));
        }
        Ok(Self {
            db,
            incarnations: Mutex::new(incarnations),
            begun: Mutex::default(),
            caches: Mutex::default(),
            options,
        })
    }

    pub(crate) fn incarnation(&self, shard: ShardId) -> u32 {
        self.incarnations.lock().get(&shard).copied().unwrap_or(0)
    }

    pub(crate) fn cache(&self, shard: ShardId) -> Arc<Mutex<RowCache>> {
        let mut caches = self.caches.lock();
        let cache = caches
            .entry(shard)
            .or_insert_with(|| Arc::new(Mutex::new(RowCache::new(self.options.cached_rows))));
        Arc::clone(cache)
    }

    /// What a shard has applied of the log: the record that came with its last batch.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn applied(&self, shard: ShardId) -> Result<Option<Bytes>, Error> {
        Ok(self.db.get(applied_key(shard, self.incarnation(shard)))?.map(Bytes::from))
    }

    /// A batch over a shard. There is one at a time.
    #[must_use]
    pub fn batch(&self, shard: ShardId) -> Batch<'_> {
        Batch {
            db: self,
            prefix: keys::prefix(shard, self.incarnation(shard)),
            shard,
            cache: self.cache(shard),
            overlay: RefCell::new(BTreeMap::new()),
            absent: RefCell::default(),
            error: Cell::new(None),
        }
    }

    /// A view of a shard as it is now.
    #[must_use]
    pub fn view(&self, shard: ShardId) -> View<'_> {
        let cache = self.cache(shard);
        let incarnations = self.incarnations.lock();
        // The version first: what comes between it and the snapshot is newer than the version, and so read from the
        // snapshot.
        let version = cache.lock().version();
        let snapshot = self.db.snapshot();
        let prefix = keys::prefix(shard, incarnations.get(&shard).copied().unwrap_or(0));
        drop(incarnations);
        View { snapshot, prefix, cache, version, error: Cell::new(None) }
    }

    /// The rows of a shard, each as it is when it is read. For whoever reads one row, or does not mind that another
    /// has changed since: it costs no snapshot.
    #[must_use]
    pub fn latest(&self, shard: ShardId) -> Latest<'_> {
        Latest { db: self, shard, cache: self.cache(shard), error: Cell::new(None) }
    }

    /// The database as it is now, and the incarnation that is in force in it: no other comes into force, and so none
    /// is removed, between the two.
    pub(crate) fn snapshot(&self, shard: ShardId) -> (Snapshot<'_>, u32) {
        let incarnations = self.incarnations.lock();
        (self.db.snapshot(), incarnations.get(&shard).copied().unwrap_or(0))
    }

    /// Makes everything applied so far durable.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn flush(&self) -> Result<(), Error> {
        let mut options = FlushOptions::default();
        options.set_wait(true);
        Ok(self.db.flush_opt(&options)?)
    }

    /// About how many bytes a crash would have to apply again.
    #[must_use]
    pub fn unflushed_bytes(&self) -> u64 {
        self.db.property_int_value("rocksdb.cur-size-all-mem-tables").ok().flatten().unwrap_or(0)
    }

    /// What `RocksDB` says of the database.
    #[must_use]
    pub fn properties(&self) -> Vec<(&'static str, u64)> {
        crate::properties::of(&self.db)
    }

    /// Bytes of table files.
    #[must_use]
    pub fn disk_bytes(&self) -> u64 {
        self.db.property_int_value("rocksdb.total-sst-files-size").ok().flatten().unwrap_or(0)
    }

    pub(crate) fn write(&self, batch: WriteBatch) -> Result<(), Error> {
        let mut options = WriteOptions::default();
        options.disable_wal(true);
        // Rows of a batch are in order, and many are neighbours.
        options.set_memtable_insert_hint_per_batch(true);
        Ok(self.db.write_opt(batch, &options)?)
    }
}

fn db_options(options: &StateOptions) -> Options {
    let mut db_options = Options::default();
    db_options.create_if_missing(true);
    db_options.set_write_buffer_size(64 << 20);
    db_options.set_max_write_buffer_number(4);
    db_options.set_max_manifest_file_size(32 << 20);
    db_options.set_compression_type(DBCompressionType::Lz4);
    db_options.set_max_background_jobs(2);
    db_options.set_keep_log_file_num(4);
    // Most rows that are asked for and are not there are those of steps that begin.
    db_options.set_memtable_prefix_bloom_ratio(0.05);
    db_options.set_memtable_whole_key_filtering(true);
    let mut table = BlockBasedOptions::default();
    table.set_block_cache(&Cache::new_lru_cache(options.block_cache_bytes));
    table.set_bloom_filter(10.0, false);
    // In parts: one filter of a large table would not fit into a shard of the cache, and be read again for every
    // row.
    table.set_index_type(BlockBasedIndexType::TwoLevelIndexSearch);
    table.set_partition_filters(true);
    table.set_metadata_block_size(4 << 10);
    table.set_cache_index_and_filter_blocks(true);
    table.set_pin_top_level_index_and_filter(true);
    table.set_pin_l0_filter_and_index_blocks_in_cache(true);
    db_options.set_block_based_table_factory(&table);
    db_options
}

impl fmt::Debug for StateDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StateDb").field("path", &self.db.path()).finish_non_exhaustive()
    }
}

pub(crate) fn applied_key(shard: ShardId, incarnation: u32) -> Vec<u8> {
    [b"\xffa".as_slice(), &keys::prefix(shard, incarnation)].concat()
}

pub(crate) fn incarnation_key(shard: ShardId) -> Vec<u8> {
    [b"\xffi".as_slice(), &shard.0.to_be_bytes()].concat()
}

fn decode(key: &Key, bytes: &[u8]) -> Result<Row, Error> {
    proto::record::decode_row(key, bytes).map_err(|error| Error::corrupt(format!("state, {key:?}"), error))
}

/// Reads and writes of one apply. Nothing is written before [`Batch::commit`].
pub struct Batch<'a> {
    db: &'a StateDb,
    prefix: [u8; 6],
    shard: ShardId,
    cache: Arc<Mutex<RowCache>>,
    overlay: RefCell<BTreeMap<Key, Option<Row>>>,
    /// Rows that were looked for, and are not there: whoever puts them need not look again.
    absent: RefCell<HashSet<Key>>,
    error: Cell<Option<Error>>,
}

impl Batch<'_> {
    /// Writes the rows and, with them, what has been applied.
    ///
    /// # Errors
    ///
    /// The first error of a read, or the disk refuses. Nothing is written.
    pub fn commit(self, applied: &[u8]) -> Result<(), (Error, Uncommitted)> {
        let uncommitted = Uncommitted(self.overlay.into_inner());
        if let Some(error) = self.error.take() {
            return Err((error, uncommitted));
        }
        let (db, shard, absent) = (self.db, self.shard, self.absent.into_inner());
        match write_rows(db, self.prefix, shard, &uncommitted, &absent, applied) {
            Ok(hashes) => {
                self.cache.lock().end_write(uncommitted.0.into_iter().zip(hashes));
                Ok(())
            }
            Err(error) => Err((error, uncommitted)),
        }
    }

    fn full_key(&self, key: &Key) -> Vec<u8> {
        [&self.prefix[..], &keys::encode_key(key)].concat()
    }
}

/// Rows that could not be written yet.
#[derive(Debug)]
pub struct Uncommitted(BTreeMap<Key, Option<Row>>);

impl StateDb {
    /// Tries again to write what [`Batch::commit`] could not.
    ///
    /// # Errors
    ///
    /// The disk still refuses.
    pub fn commit_again(
        &self,
        shard: ShardId,
        rows: Uncommitted,
        applied: &[u8],
    ) -> Result<(), (Error, Uncommitted)> {
        let prefix = keys::prefix(shard, self.incarnation(shard));
        match write_rows(self, prefix, shard, &rows, &HashSet::new(), applied) {
            Ok(hashes) => {
                self.cache(shard).lock().end_write(rows.0.into_iter().zip(hashes));
                Ok(())
            }
            Err(error) => Err((error, rows)),
        }
    }
}

/// Writes rows; the part of each in the digest, in their order.
fn write_rows(
    db: &StateDb,
    prefix: [u8; 6],
    shard: ShardId,
    rows: &Uncommitted,
    absent: &HashSet<Key>,
    applied: &[u8],
) -> Result<Vec<u128>, Error> {
    let mut batch = WriteBatch::default();
    let mut digest = db.digest(shard)?;
    let (cache, mut hashes) = (db.cache(shard), Vec::with_capacity(rows.0.len()));
    let mut full = prefix.to_vec();
    cache.lock().begin_write();
    for (key, row) in &rows.0 {
        full.truncate(prefix.len());
        full.extend_from_slice(&keys::encode_key(key));
        if row.is_none() || !is_written_once(key) {
            let cached = if is_hot(key) { cache.lock().hide(key) } else { None };
            if let Some(hash) = cached {
                digest.remove(hash);
            } else if !absent.contains(key)
                && let Some(before) = db.db.get_pinned(&full)?
            {
                digest.remove(RowDigest::row(&full[prefix.len()..], &before));
            }
        }
        match row {
            Some(row) => {
                let value = proto::record::encode_row(row);
                let hash = RowDigest::row(&full[prefix.len()..], &value);
                digest.add(hash);
                hashes.push(hash);
                batch.put(&full, value);
            }
            None => {
                hashes.push(0);
                batch.delete(&full);
            }
        }
    }
    batch.put(digest_key(shard, db.incarnation(shard)), digest.0.to_be_bytes());
    batch.put(applied_key(shard, db.incarnation(shard)), applied);
    db.write(batch)?;
    Ok(hashes)
}

impl Read for Batch<'_> {
    fn get(&self, key: &Key) -> Option<Row> {
        if let Some(row) = self.overlay.borrow().get(key) {
            return row.clone();
        }
        if is_hot(key)
            && let Some(row) = self.cache.lock().get(key)
        {
            return Some(row);
        }
        let full = self.full_key(key);
        let hash = |bytes: &[u8]| RowDigest::row(&full[self.prefix.len()..], bytes);
        let read = match self.db.db.get_pinned(&full) {
            Ok(Some(bytes)) => decode(key, &bytes).map(|row| Some((row, hash(&bytes)))),
            Ok(None) => Ok(None),
            Err(error) => Err(error.into()),
        };
        match read {
            Ok(Some((row, hash))) => {
                if is_hot(key) {
                    self.cache.lock().keep_read(key.clone(), row.clone(), hash);
                }
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
        let overlay = self.overlay.borrow();
        if from >= to {
            return Vec::new();
        }
        let mut ours = overlay.range(from.clone()..to.clone()).peekable();
        let mut stored = scan_db(&self.db.db, &self.prefix, from, to).peekable();
        let mut found = Vec::new();
        while found.len() < limit {
            let take_ours = match (ours.peek(), stored.peek()) {
                (None, None) => break,
                (Some(_), None) => true,
                (None, Some(_)) => false,
                (Some((ours, _)), Some(Ok((stored, _)))) => *ours <= stored,
                (Some(_), Some(Err(_))) => false,
            };
            if take_ours {
                let Some((key, row)) = ours.next() else { break };
                if matches!(stored.peek(), Some(Ok((stored, _))) if stored == key) {
                    stored.next();
                }
                if let Some(row) = row {
                    found.push((key.clone(), row.clone()));
                }
                continue;
            }
            match stored.next() {
                Some(Ok(row)) => found.push(row),
                Some(Err(error)) => {
                    keep_first::<()>(&self.error, error);
                    break;
                }
                None => break,
            }
        }
        found
    }
}

impl Tables for Batch<'_> {
    fn put(&mut self, key: Key, row: Row) {
        self.overlay.get_mut().insert(key, Some(row));
    }

    fn delete(&mut self, key: &Key) {
        self.overlay.get_mut().insert(key.clone(), None);
    }
}

impl fmt::Debug for Batch<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Batch").field("shard", &self.shard).finish_non_exhaustive()
    }
}

/// A shard as it was at one moment.
pub struct View<'a> {
    snapshot: Snapshot<'a>,
    prefix: [u8; 6],
    cache: Arc<Mutex<RowCache>>,
    /// That of the cache when the view was made.
    version: u64,
    error: Cell<Option<Error>>,
}

impl View<'_> {
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
        if is_hot(key)
            && let Some(row) = self.cache.lock().get_at(key, self.version)
        {
            return Some(row);
        }
        let full = [&self.prefix[..], &keys::encode_key(key)].concat();
        match self.snapshot.get_pinned(&full) {
            Ok(Some(bytes)) => match decode(key, &bytes) {
                Ok(row) => {
                    // What is looked at from outside does not push out what sessions are at work on.
                    if is_of_catalog(key) {
                        let hash = RowDigest::row(&full[self.prefix.len()..], &bytes);
                        self.cache.lock().keep_seen(key.clone(), row.clone(), hash, self.version);
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
        if from >= to {
            return Vec::new();
        }
        let rows = scan_db(&self.snapshot, &self.prefix, from, to);
        rows.take(limit)
            .map_while(|row| row.map_err(|error| keep_first::<()>(&self.error, error)).ok())
            .collect()
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
    cache: Arc<Mutex<RowCache>>,
    error: Cell<Option<Error>>,
}

impl Latest<'_> {
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
        if is_hot(key)
            && let Some(row) = self.cache.lock().get(key)
        {
            return Some(row);
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
            let rows = scan_db(&self.db.db, prefix, from, to).take(limit);
            rows.map_while(|row| row.map_err(|error| keep_first::<()>(&self.error, error)).ok()).collect()
        })
    }
}

impl fmt::Debug for Latest<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Latest").field("shard", &self.shard).finish_non_exhaustive()
    }
}

fn keep_first<T>(slot: &Cell<Option<Error>>, error: Error) -> Option<T> {
    slot.set(Some(slot.take().unwrap_or(error)));
    None
}

/// What can be iterated: the database, or a snapshot of it.
trait Iterate {
    fn iterate(&self, from: &[u8], options: ReadOptions) -> rocksdb::DBIterator<'_>;
}

impl Iterate for DB {
    fn iterate(&self, from: &[u8], options: ReadOptions) -> rocksdb::DBIterator<'_> {
        self.iterator_opt(IteratorMode::From(from, rocksdb::Direction::Forward), options)
    }
}

impl Iterate for Snapshot<'_> {
    fn iterate(&self, from: &[u8], options: ReadOptions) -> rocksdb::DBIterator<'_> {
        self.iterator_opt(IteratorMode::From(from, rocksdb::Direction::Forward), options)
    }
}

fn scan_db<'a>(
    source: &'a impl Iterate,
    prefix: &'a [u8; 6],
    from: &Key,
    to: &Key,
) -> impl Iterator<Item = Result<(Key, Row), Error>> + 'a {
    let from = [&prefix[..], &keys::encode_key(from)].concat();
    let to = [&prefix[..], &keys::encode_key(to)].concat();
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(to);
    source.iterate(&from, options).map(move |item| {
        let (bytes, value) = item?;
        let key = keys::decode_key(&bytes[prefix.len()..])
            .ok_or_else(|| Error::corrupt(format!("state, key {bytes:02x?}"), "not a key"))?;
        let row = decode(&key, &value)?;
        Ok((key, row))
    })
}
