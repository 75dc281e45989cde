//! The state database: the rows of all shards, without a write-ahead log. The last rows of a shard are in memory only
//! ([`crate::buffer`]).
//!
//! Keys of a shard are prefixed with its number and its incarnation ([`crate::keys`]). Keys of the node begin with
//! `ff`: `ff 'i' ‖ shard` holds the incarnation in force, `ff 'a' ‖ shard ‖ incarnation` what it has applied of the
//! log.

use std::{collections::HashMap, fmt, path::Path, sync::Arc};

use bytes::Bytes;
use ids::ShardId;
use parking_lot::Mutex;
use rocksdb::{
    BlockBasedIndexType, BlockBasedOptions, Cache, DB, DBCompressionType, FlushOptions, IteratorMode,
    Options, Snapshot, WriteBatch, WriteOptions,
};

use crate::{
    Batch, Error, Latest, RowDigest, View,
    buffer::{Before, Memory},
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
    memories: Mutex<HashMap<ShardId, Arc<Mutex<Memory>>>>,
    options: StateOptions,
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
            memories: Mutex::default(),
            options,
        })
    }

    pub(crate) fn incarnation(&self, shard: ShardId) -> u32 {
        self.incarnations.lock().get(&shard).copied().unwrap_or(0)
    }

    /// What is in memory of a shard. Whoever holds it may ask for the incarnation in force, and not the other way
    /// round.
    pub(crate) fn memory(&self, shard: ShardId) -> Arc<Mutex<Memory>> {
        let mut memories = self.memories.lock();
        let memory = memories
            .entry(shard)
            .or_insert_with(|| Arc::new(Mutex::new(Memory::new(self.options.cached_rows))));
        Arc::clone(memory)
    }

    /// What a shard has applied of the log: the record that came with its last batch.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn applied(&self, shard: ShardId) -> Result<Option<Bytes>, Error> {
        let memory = self.memory(shard);
        let memory = memory.lock();
        if let Some(applied) = memory.buffer.applied() {
            return Ok(Some(applied.clone()));
        }
        Ok(self.db.get(applied_key(shard, self.incarnation(shard)))?.map(Bytes::from))
    }

    /// A batch over a shard. There is one at a time.
    #[must_use]
    pub fn batch(&self, shard: ShardId) -> Batch<'_> {
        Batch::new(self, shard)
    }

    /// A view of a shard as it is now. What is applied is written for it first: for one row or a few,
    /// [`StateDb::latest`] costs less.
    #[must_use]
    pub fn view(&self, shard: ShardId) -> View<'_> {
        View::new(self, shard)
    }

    /// The rows of a shard, each as it is when it is read. For whoever reads one row, or does not mind that another
    /// has changed since.
    #[must_use]
    pub fn latest(&self, shard: ShardId) -> Latest<'_> {
        Latest::new(self, shard)
    }

    /// The database with everything that a shard has applied, and the incarnation that is in force in it: no other
    /// comes into force, and so none is removed, between the two.
    pub(crate) fn snapshot(&self, shard: ShardId) -> Result<(Snapshot<'_>, u32), Error> {
        let memory = self.memory(shard);
        let mut memory = memory.lock();
        self.write_buffer(shard, &mut memory)?;
        Ok((self.db.snapshot(), self.incarnation(shard)))
    }

    /// The database with what a shard has written, and the incarnation that is in force in it.
    pub(crate) fn stored(&self, shard: ShardId) -> (Snapshot<'_>, u32) {
        let memory = self.memory(shard);
        let _memory = memory.lock();
        (self.db.snapshot(), self.incarnation(shard))
    }

    /// Writes what a shard has applied and not written. It is on disk when it is flushed.
    ///
    /// # Errors
    ///
    /// The disk refuses. What is not written stays in memory, and this may be tried again.
    pub fn write_out(&self, shard: ShardId) -> Result<(), Error> {
        self.write_buffer(shard, &mut self.memory(shard).lock())
    }

    fn write_out_all(&self) -> Result<(), Error> {
        let shards: Vec<ShardId> = self.memories.lock().keys().copied().collect();
        shards.into_iter().try_for_each(|shard| self.write_out(shard))
    }

    /// Writes the rows of a buffer, the digest and what has been applied, in one batch.
    pub(crate) fn write_buffer(&self, shard: ShardId, memory: &mut Memory) -> Result<(), Error> {
        let buffer = &memory.buffer;
        let Some(applied) = buffer.applied() else { return Ok(()) };
        let incarnation = self.incarnation(shard);
        let prefix = keys::prefix(shard, incarnation);
        let mut batch = WriteBatch::default();
        let mut digest = self.digest_as_written(shard, incarnation)?;
        let mut hashes = Vec::with_capacity(buffer.rows().len());
        let mut full = prefix.to_vec();
        for (key, buffered) in buffer.rows() {
            full.truncate(prefix.len());
            full.extend_from_slice(&keys::encode_key(key));
            match buffered.before {
                Before::Absent => {}
                Before::Stored(hash) => digest.remove(hash),
                Before::Unknown => {
                    if let Some(before) = self.db.get_pinned(&full)? {
                        digest.remove(RowDigest::row(&full[prefix.len()..], &before));
                    }
                }
            }
            let Some(row) = &buffered.row else {
                batch.delete(&full);
                hashes.push(0);
                continue;
            };
            let value = proto::record::encode_row(row);
            let hash = RowDigest::row(&full[prefix.len()..], &value);
            digest.add(hash);
            hashes.push(hash);
            batch.put(&full, value);
        }
        batch.put(digest_key(shard, incarnation), digest.0.to_be_bytes());
        batch.put(applied_key(shard, incarnation), applied);
        self.write(batch)?;
        memory.written(hashes);
        Ok(())
    }

    /// Makes everything applied so far durable.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn flush(&self) -> Result<(), Error> {
        self.write_out_all()?;
        let mut options = FlushOptions::default();
        options.set_wait(true);
        Ok(self.db.flush_opt(&options)?)
    }

    /// About how many bytes a crash would have to apply again, without those of the last rows of each shard.
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
    // A table goes to the disk while it is written, and not all at once in the end: the log waits for the same disk.
    db_options.set_bytes_per_sync(1 << 20);
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

/// What closes it in order finds it whole: there is nothing to apply again.
impl Drop for StateDb {
    fn drop(&mut self) {
        // What the disk refuses is applied again.
        let _ = self.write_out_all();
    }
}
