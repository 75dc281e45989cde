//! The log database: the Raft logs of all shards, one writer, one fsync for everything that is queued.
//!
//! Keys: `01 ‖ shard u16 ‖ tag u8` for what Raft has to remember besides entries, `02 ‖ shard u16 ‖ index u64` for
//! entries. One column family, so that no idle one keeps old write-ahead files alive.

use std::{
    collections::{HashMap, VecDeque},
    fmt, io,
    ops::Range,
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
use rocksdb::{DB, DBCompressionType, IteratorMode, Options, ReadOptions, WriteBatch, WriteOptions};

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
    /// Taken out while the writer opens the database again after the disk refused.
    db: RwLock<Option<DB>>,
    tails: RwLock<HashMap<ShardId, Arc<Mutex<Tail>>>>,
    /// Set while the disk refuses.
    failing: Mutex<Option<String>>,
    stopping: AtomicBool,
    stop_signal: (Mutex<()>, Condvar),
    syncs: AtomicU64,
}

/// The recent entries of a shard. Entries that are not on disk yet are never dropped.
#[derive(Default)]
struct Tail {
    entries: VecDeque<(u64, Bytes)>,
    bytes: usize,
    durable: u64,
    /// What was last reported as committed, and rides with the next batch.
    committed: Option<Bytes>,
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
    let mut options = Options::default();
    options.create_if_missing(true);
    // Entries are purged long before this much is written again, so most die without reaching a table file.
    options.set_write_buffer_size(64 << 20);
    options.set_max_write_buffer_number(4);
    options.set_recycle_log_file_num(4);
    options.set_max_manifest_file_size(32 << 20);
    options.set_compression_type(DBCompressionType::Lz4);
    options.set_max_background_jobs(2);
    options.set_keep_log_file_num(4);
    Ok(DB::open(&options, path)?)
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
            if self.stopping.load(Ordering::SeqCst) {
                return Err(error.into());
            }
            let mut guard = self.stop_signal.0.lock();
            self.stop_signal.1.wait_for(&mut guard, RETRY_PAUSE);
            // A database that failed to write its log refuses everything until it is opened again.
            let mut db = self.db.write();
            *db = None;
            match open_db(&self.path) {
                Ok(opened) => *db = Some(opened),
                Err(error) => *self.failing.lock() = Some(error.to_string()),
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

impl Tail {
    fn push(&mut self, index: u64, bytes: Bytes) {
        // An index that is there already is being replaced, with all that follow it.
        while self.entries.back().is_some_and(|(last, _)| *last >= index) {
            if let Some((_, dropped)) = self.entries.pop_back() {
                self.bytes -= dropped.len();
            }
        }
        if self.entries.back().is_some_and(|(last, _)| last + 1 != index) {
            self.entries.clear();
            self.bytes = 0;
        }
        self.bytes += bytes.len();
        self.entries.push_back((index, bytes));
    }

    fn shrink(&mut self, limit: usize) {
        while self.bytes > limit && self.entries.front().is_some_and(|(first, _)| *first <= self.durable) {
            if let Some((_, dropped)) = self.entries.pop_front() {
                self.bytes -= dropped.len();
            }
        }
    }

    fn truncate(&mut self, from: u64) {
        while self.entries.back().is_some_and(|(last, _)| *last >= from) {
            if let Some((_, dropped)) = self.entries.pop_back() {
                self.bytes -= dropped.len();
            }
        }
        self.durable = self.durable.min(from.saturating_sub(1));
    }

    fn purge(&mut self, to: u64) {
        while self.entries.front().is_some_and(|(first, _)| *first < to) {
            if let Some((_, dropped)) = self.entries.pop_front() {
                self.bytes -= dropped.len();
            }
        }
    }
}

/// The log of one shard. Cheap to clone.
#[derive(Clone)]
pub struct ShardLog {
    inner: Arc<Inner>,
    queue: mpsc::SyncSender<Op>,
    tail: Arc<Mutex<Tail>>,
    shard: ShardId,
}

impl ShardLog {
    /// Entries are readable when this returns, and on disk when `done` runs.
    pub fn append(&self, entries: Vec<(u64, Bytes)>, done: Done) {
        if entries.is_empty() {
            done(Ok(()));
            return;
        }
        {
            let mut tail = self.tail.lock();
            for (index, bytes) in &entries {
                tail.push(*index, bytes.clone());
            }
        }
        self.send(Op::Append { shard: self.shard, entries, done });
    }

    /// Remembers a vote. On disk when `done` runs.
    pub fn save_vote(&self, vote: Bytes, done: Done) {
        self.send(Op::Vote { shard: self.shard, vote, done });
    }

    /// Remembers what is committed. It rides with the next batch.
    pub fn save_committed(&self, committed: Bytes) {
        self.tail.lock().committed = Some(committed);
    }

    /// Removes all entries from `from` on.
    pub fn truncate(&self, from: u64, done: Done) {
        self.tail.lock().truncate(from);
        self.send(Op::Truncate { shard: self.shard, from, done });
    }

    /// Removes all entries before `to`, and remembers `purged` as the id of the last of them.
    pub fn purge(&self, to: u64, purged: Bytes, done: Done) -> Result<(), Error> {
        let from = self.first_index()?.unwrap_or(to);
        self.tail.lock().purge(to);
        self.send(Op::Purge { shard: self.shard, from: from.min(to), to, purged, done });
        Ok(())
    }

    fn send(&self, op: Op) {
        if let Err(mpsc::SendError(op)) = self.queue.send(op) {
            let (Op::Append { done, .. }
            | Op::Vote { done, .. }
            | Op::Truncate { done, .. }
            | Op::Purge { done, .. }
            | Op::Stop { done }) = op;
            done(Err(io::Error::other("the log writer has stopped")));
        }
    }

    /// The vote, if there is one.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn vote(&self) -> Result<Option<Bytes>, Error> {
        self.inner.get(&meta_key(self.shard, VOTE))
    }

    /// What was last remembered as committed.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn committed(&self) -> Result<Option<Bytes>, Error> {
        if let Some(committed) = self.tail.lock().committed.clone() {
            return Ok(Some(committed));
        }
        self.inner.get(&meta_key(self.shard, COMMITTED))
    }

    /// What the log holds.
    ///
    /// # Errors
    ///
    /// The disk refuses.
    pub fn state(&self) -> Result<LogState, Error> {
        let purged = self.inner.get(&meta_key(self.shard, PURGED))?;
        if let Some((_, bytes)) = self.tail.lock().entries.back() {
            return Ok(LogState { purged, last: Some(bytes.clone()) });
        }
        Ok(LogState { purged, last: self.edge(true)?.map(|(_, bytes)| bytes) })
    }

    /// The entries of a range, from the first on, up to about `bytes_max` but at least one.
    ///
    /// # Errors
    ///
    /// The disk refuses, or an entry is missing.
    pub fn read(&self, range: Range<u64>, bytes_max: usize) -> Result<Vec<Bytes>, Error> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        // What is older than the tail is on disk; what is in the tail may not be there yet. A range may span both.
        let (mut entries, mut bytes, mut at) = (Vec::new(), 0, range.start);
        while at < range.end && (entries.is_empty() || bytes < bytes_max) {
            if let Some(recent) = self.read_tail(&(at..range.end), bytes_max - bytes) {
                entries.extend(recent);
                break;
            }
            let first = self.tail.lock().entries.front().map(|(first, _)| *first);
            let upto = first.map_or(range.end, |first| first.clamp(at + 1, range.end));
            let older = self.read_db(&(at..upto), bytes_max - bytes)?;
            if older.is_empty() {
                // Nothing is before the first entry of the log.
                match first {
                    Some(first) if first > at => at = first,
                    _ => break,
                }
                continue;
            }
            at += older.len() as u64;
            bytes = bytes.saturating_add(older.iter().map(Bytes::len).sum()).min(bytes_max);
            entries.extend(older);
        }
        Ok(entries)
    }

    fn read_tail(&self, range: &Range<u64>, bytes_max: usize) -> Option<Vec<Bytes>> {
        let tail = self.tail.lock();
        let (first, _) = tail.entries.front()?;
        let skip = usize::try_from(range.start.checked_sub(*first)?).ok()?;
        let (mut entries, mut bytes) = (Vec::new(), 0);
        for (_, entry) in tail.entries.iter().skip(skip).take_while(|(index, _)| *index < range.end) {
            if bytes > bytes_max {
                break;
            }
            bytes += entry.len();
            entries.push(entry.clone());
        }
        Some(entries)
    }

    fn read_db(&self, range: &Range<u64>, bytes_max: usize) -> Result<Vec<Bytes>, Error> {
        let db = self.inner.db.read();
        let db = db.as_ref().ok_or_else(|| Error::corrupt("log", "the database is closed"))?;
        let (from, to) = (entry_key(self.shard, range.start), entry_key(self.shard, range.end));
        let mut options = ReadOptions::default();
        options.set_iterate_upper_bound(to);
        let (mut entries, mut bytes, mut next) = (Vec::new(), 0, None);
        for item in db.iterator_opt(IteratorMode::From(&from, rocksdb::Direction::Forward), options) {
            let (key, value) = item?;
            let index = entry_index(&key);
            if next.is_some() && index != next {
                let place = format!("log of shard {}, entry {next:?}", self.shard);
                return Err(Error::corrupt(place, "entry is missing"));
            }
            next = index.map(|index| index + 1);
            if bytes > bytes_max {
                break;
            }
            bytes += value.len();
            entries.push(Bytes::from(value));
        }
        Ok(entries)
    }

    /// The first or last entry on disk.
    fn edge(&self, last: bool) -> Result<Option<(u64, Bytes)>, Error> {
        let db = self.inner.db.read();
        let db = db.as_ref().ok_or_else(|| Error::corrupt("log", "the database is closed"))?;
        let (low, high) = (entry_key(self.shard, 0), entry_key(self.shard, u64::MAX));
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(low);
        options.set_iterate_upper_bound(high);
        let mode = if last { IteratorMode::End } else { IteratorMode::Start };
        match db.iterator_opt(mode, options).next().transpose()? {
            Some((key, value)) => Ok(entry_index(&key).map(|index| (index, Bytes::from(value)))),
            None => Ok(None),
        }
    }

    fn first_index(&self) -> Result<Option<u64>, Error> {
        let in_tail = self.tail.lock().entries.front().map(|(first, _)| *first);
        let on_disk = self.edge(false)?.map(|(index, _)| index);
        Ok(match (in_tail, on_disk) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        })
    }

    /// Counts the entries on disk: they must follow one another.
    fn check(&self) -> Result<(), Error> {
        let (Some((first, _)), Some((last, _))) = (self.edge(false)?, self.edge(true)?) else {
            return Ok(());
        };
        self.tail.lock().durable = last;
        let mut at = first;
        while at <= last {
            let entries = self.read_db(&(at..last + 1), 8 << 20)?;
            if entries.is_empty() {
                return Err(Error::corrupt(
                    format!("log of shard {}, entry {at}", self.shard),
                    "entry is missing",
                ));
            }
            at += entries.len() as u64;
        }
        Ok(())
    }
}

impl fmt::Debug for ShardLog {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ShardLog").field("shard", &self.shard).finish_non_exhaustive()
    }
}
