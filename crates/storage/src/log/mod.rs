//! The log database: the Raft logs of all shards, one writer, one fsync for everything that is queued.
//!
//! Keys: `01 ‖ shard u16 ‖ tag u8` for what Raft has to remember besides entries, `02 ‖ shard u16 ‖ index u64` for
//! entries. One column family, so that no idle one keeps old write-ahead files alive.

mod shard;
mod tail;

use std::{
    collections::HashMap,
    fmt, io,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use bytes::Bytes;
use ids::ShardId;
use parking_lot::{Condvar, Mutex, RwLock};
use rocksdb::{DB, DBCompressionType, Options, WriteBatch, WriteOptions};
pub use shard::ShardLog;
use tail::Tail;

use crate::Error;

const META: u8 = 1;
const ENTRY: u8 = 2;
const VOTE: u8 = 1;
const COMMITTED: u8 = 2;
const PURGED: u8 = 3;

/// How long the writer rests between attempts while the disk refuses.
const RETRY_PAUSE: Duration = Duration::from_millis(100);

/// Runs when what was asked is on disk, or can not be.
pub type Done = Box<dyn FnOnce(io::Result<()>) + Send>;

/// How the log database works.
#[derive(Debug, Clone)]
pub struct LogOptions {
    /// Bytes of recent entries kept in memory, a shard.
    pub tail_bytes: usize,
    /// Operations that may wait for the writer. More wait at the door.
    pub queue_len: usize,
    /// The most bytes merged into one batch.
    pub batch_bytes: usize,
    /// Whether a batch is synced before its callbacks run. Off only to show that tests notice.
    pub sync: bool,
}

/// What a shard's log holds.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct LogState {
    /// The id of the last purged entry, as it was given.
    pub purged: Option<Bytes>,
    /// The last entry.
    pub last: Option<Bytes>,
}

/// The log database of a node.
pub struct LogDb {
    inner: Arc<Inner>,
    queue: Option<mpsc::SyncSender<Op>>,
    writer: Option<JoinHandle<()>>,
}

struct Inner {
    path: PathBuf,
    options: LogOptions,
    /// Only to be read while the disk refuses to have it opened again.
    db: RwLock<Option<DB>>,
    tails: RwLock<HashMap<ShardId, Arc<Mutex<Tail>>>>,
    /// Set while the disk refuses.
    failing: Mutex<Option<String>>,
    stopping: AtomicBool,
    stop_signal: (Mutex<()>, Condvar),
    syncs: AtomicU64,
}

enum Op {
    Append {
        shard: ShardId,
        entries: Vec<(u64, Bytes)>,
        done: Done,
    },
    Vote {
        shard: ShardId,
        vote: Bytes,
        done: Done,
    },
    Truncate {
        shard: ShardId,
        from: u64,
        done: Done,
    },
    Purge {
        shard: ShardId,
        from: u64,
        to: u64,
        purged: Bytes,
        done: Done,
    },
    /// The database is being closed. What comes after is told so.
    Stop {
        done: Done,
    },
}

impl LogDb {
    /// Opens the database and starts its writer.
    ///
    /// # Errors
    ///
    /// Corrupt, or refused by the system.
    pub fn open(path: &Path, options: LogOptions) -> Result<Self, Error> {
        let db = open_db(path)?;
        let inner = Arc::new(Inner {
            path: path.to_owned(),
            options: options.clone(),
            db: RwLock::new(Some(db)),
            tails: RwLock::default(),
            failing: Mutex::default(),
            stopping: AtomicBool::new(false),
            stop_signal: Default::default(),
            syncs: AtomicU64::new(0),
        });
        let (queue, operations) = mpsc::sync_channel(options.queue_len);
        let writer = thread::Builder::new()
            .name("log-writer".into())
            .spawn({
                let inner = Arc::clone(&inner);
                move || inner.write_loop(&operations)
            })
            .map_err(Error::io(path))?;
        Ok(Self { inner, queue: Some(queue), writer: Some(writer) })
    }

    /// The log of one shard, checked for holes.
    ///
    /// # Errors
    ///
    /// Entries are missing between the purged ones and the first.
    pub fn shard(&self, shard: ShardId) -> Result<ShardLog, Error> {
        let queue = self.queue.clone().ok_or_else(|| Error::corrupt("log", "the database is closed"))?;
        let tail = Arc::clone(self.inner.tails.write().entry(shard).or_default());
        let log = ShardLog { inner: Arc::clone(&self.inner), queue, tail, shard };
        log.check()?;
        Ok(log)
    }

    /// Why writes are not going through, if they are not.
    #[must_use]
    pub fn failing(&self) -> Option<String> {
        self.inner.failing.lock().clone()
    }

    /// What `RocksDB` says of the database; nothing while it is opened again.
    #[must_use]
    pub fn properties(&self) -> Vec<(&'static str, u64)> {
        self.inner.db.read().as_ref().map(crate::properties::of).unwrap_or_default()
    }

    /// How often the log was synced since it was opened.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.inner.syncs.load(Ordering::Relaxed)
    }
}

impl Drop for LogDb {
    fn drop(&mut self) {
        self.inner.stopping.store(true, Ordering::SeqCst);
        self.inner.stop_signal.1.notify_all();
        if let Some(queue) = self.queue.take() {
            // The writer may have stopped already.
            let _ = queue.send(Op::Stop { done: Box::new(|_| {}) });
        }
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("the log writer panicked");
        }
    }
}

impl fmt::Debug for LogDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LogDb").field("path", &self.inner.path).finish_non_exhaustive()
    }
}

fn open_db(path: &Path) -> Result<DB, Error> {
    Ok(DB::open(&options(), path)?)
}

fn options() -> Options {
    let mut options = Options::default();
    options.create_if_missing(true);
    // Entries are purged long before this much is written again, so most die without reaching a table file.
    options.set_write_buffer_size(64 << 20);
    options.set_max_write_buffer_number(4);
    options.set_recycle_log_file_num(4);
    options.set_max_manifest_file_size(32 << 20);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_max_background_jobs(2);
    // Tables go to the disk while they are written, and not all at once in the end, when the log waits behind them.
    options.set_bytes_per_sync(1 << 20);
    options.set_keep_log_file_num(4);
    options
}

fn meta_key(shard: ShardId, tag: u8) -> [u8; 4] {
    let [s0, s1] = shard.0.to_be_bytes();
    [META, s0, s1, tag]
}

fn entry_key(shard: ShardId, index: u64) -> [u8; 11] {
    let mut key = [ENTRY; 11];
    key[1..3].copy_from_slice(&shard.0.to_be_bytes());
    key[3..].copy_from_slice(&index.to_be_bytes());
    key
}

fn entry_index(key: &[u8]) -> Option<u64> {
    key.get(3..11).and_then(|index| index.try_into().ok()).map(u64::from_be_bytes)
}

impl Inner {
    fn write_loop(&self, operations: &mpsc::Receiver<Op>) {
        while let Ok(first) = operations.recv() {
            let mut batch = vec![first];
            let mut bytes = batch[0].len();
            while bytes < self.options.batch_bytes
                && let Ok(op) = operations.try_recv()
            {
                bytes += op.len();
                batch.push(op);
            }
            let result = self.write_until_done(&batch);
            let stops = batch.iter().any(|op| matches!(op, Op::Stop { .. }));
            self.complete(batch, result);
            if stops {
                break;
            }
        }
        *self.db.write() = None;
    }

    /// Writes a batch. While the disk refuses, opens the database again and repeats: an entry written twice is the
    /// same entry. Nobody is told that it failed, so nothing is lost and nothing is acknowledged.
    fn write_until_done(&self, operations: &[Op]) -> io::Result<()> {
        loop {
            let error = match self.write(operations) {
                Ok(()) => {
                    if self.failing.lock().take().is_some() {
                        tracing::info!(path = %self.path.display(), "the log is written again");
                    }
                    return Ok(());
                }
                Err(error) => error,
            };
            {
                let mut failing = self.failing.lock();
                if failing.is_none() {
                    tracing::error!(path = %self.path.display(), %error, "the log can not be written; writes wait");
                }
                *failing = Some(error.to_string());
            }
            // A database that failed to write its log refuses everything until it is opened again.
            loop {
                if self.stopping.load(Ordering::SeqCst) {
                    return Err(error.into());
                }
                let mut guard = self.stop_signal.0.lock();
                self.stop_signal.1.wait_for(&mut guard, RETRY_PAUSE);
                let mut db = self.db.write();
                *db = None;
                match open_db(&self.path) {
                    Ok(opened) => {
                        *db = Some(opened);
                        break;
                    }
                    Err(error) => {
                        *self.failing.lock() = Some(error.to_string());
                        // What is there can be read meanwhile: Raft gives a shard up whose log it can not read.
                        *db = DB::open_for_read_only(&options(), &self.path, false).ok();
                    }
                }
            }
        }
    }

    fn write(&self, operations: &[Op]) -> Result<(), Error> {
        let mut batch = WriteBatch::default();
        for op in operations {
            match op {
                Op::Append { shard, entries, .. } => {
                    for (index, bytes) in entries {
                        batch.put(entry_key(*shard, *index), bytes);
                    }
                }
                Op::Vote { shard, vote, .. } => batch.put(meta_key(*shard, VOTE), vote),
                Op::Truncate { shard, from, .. } => {
                    batch.delete_range(entry_key(*shard, *from), entry_key(*shard, u64::MAX));
                }
                Op::Purge { shard, from, to, purged, .. } => {
                    batch.delete_range(entry_key(*shard, *from), entry_key(*shard, *to));
                    batch.put(meta_key(*shard, PURGED), purged);
                }
                Op::Stop { .. } => {}
            }
        }
        for (shard, tail) in self.tails.read().iter() {
            if let Some(committed) = &tail.lock().committed {
                batch.put(meta_key(*shard, COMMITTED), committed);
            }
        }
        let mut options = WriteOptions::default();
        options.set_sync(self.options.sync);
        // Entries of a shard come in order.
        options.set_memtable_insert_hint_per_batch(true);
        let db = self.db.read();
        let db = db.as_ref().ok_or_else(|| Error::corrupt("log", "the database is closed"))?;
        db.write_opt(batch, &options)?;
        self.syncs.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    fn complete(&self, operations: Vec<Op>, result: io::Result<()>) {
        for op in operations {
            if let Op::Append { shard, entries, .. } = &op
                && let (Ok(()), Some((last, _))) = (&result, entries.last())
                && let Some(tail) = self.tails.read().get(shard)
            {
                let mut tail = tail.lock();
                tail.durable = *last;
                tail.shrink(self.options.tail_bytes);
            }
            let (Op::Append { done, .. }
            | Op::Vote { done, .. }
            | Op::Truncate { done, .. }
            | Op::Purge { done, .. }
            | Op::Stop { done }) = op;
            done(match &result {
                Ok(()) => Ok(()),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            });
        }
    }

    fn get(&self, key: &[u8]) -> Result<Option<Bytes>, Error> {
        let db = self.db.read();
        let db = db.as_ref().ok_or_else(|| Error::corrupt("log", "the database is closed"))?;
        Ok(db.get(key)?.map(Bytes::from))
    }
}

impl Op {
    fn len(&self) -> usize {
        match self {
            Self::Append { entries, .. } => entries.iter().map(|(_, bytes)| bytes.len() + 32).sum(),
            Self::Vote { .. } | Self::Truncate { .. } | Self::Purge { .. } | Self::Stop { .. } => 64,
        }
    }
}
