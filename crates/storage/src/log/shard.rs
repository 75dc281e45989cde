//! The log of one shard, as Raft uses it.

use std::{
    fmt, io,
    ops::Range,
    sync::{Arc, mpsc},
};

use bytes::Bytes;
use ids::ShardId;
use parking_lot::Mutex;
use rocksdb::{IteratorMode, ReadOptions};

use super::{
    COMMITTED, Done, Inner, LogState, Op, PURGED, VOTE, entry_index, entry_key, meta_key, tail::Tail,
};
use crate::Error;

/// The log of one shard. Cheap to clone.
#[derive(Clone)]
pub struct ShardLog {
    pub(super) inner: Arc<Inner>,
    pub(super) queue: mpsc::SyncSender<Op>,
    pub(super) tail: Arc<Mutex<Tail>>,
    pub(super) shard: ShardId,
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

    /// The last entry that is on disk, as far as is known since the log was opened; 0 for none.
    #[must_use]
    pub fn durable(&self) -> u64 {
        self.tail.lock().durable
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
    pub(super) fn check(&self) -> Result<(), Error> {
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
