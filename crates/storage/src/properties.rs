//! What `RocksDB` says of a database, for those who watch it.

use rocksdb::DB;

/// Names as metrics have them, and as `RocksDB` does.
const PROPERTIES: [(&str, &str); 10] = [
    ("block_cache_bytes", "rocksdb.block-cache-usage"),
    ("compaction_pending_bytes", "rocksdb.estimate-pending-compaction-bytes"),
    ("compactions_running", "rocksdb.num-running-compactions"),
    ("files_at_level_0", "rocksdb.num-files-at-level0"),
    ("flushes_running", "rocksdb.num-running-flushes"),
    ("keys_estimated", "rocksdb.estimate-num-keys"),
    ("memtable_bytes", "rocksdb.cur-size-all-mem-tables"),
    ("table_bytes", "rocksdb.total-sst-files-size"),
    ("write_delayed_bytes_per_second", "rocksdb.actual-delayed-write-rate"),
    ("write_stopped", "rocksdb.is-write-stopped"),
];

/// Those that it knows.
pub(crate) fn of(db: &DB) -> Vec<(&'static str, u64)> {
    let value = |property: &str| db.property_int_value(property).ok().flatten();
    PROPERTIES.iter().filter_map(|(name, property)| Some((*name, value(property)?))).collect()
}
