//! The Raft log over the log database.

use std::{
    fmt::Debug,
    io,
    ops::{Bound, RangeBounds},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use openraft::{
    OptionalSend, RaftLogReader,
    storage::{IOFlushed, LogState, RaftLogStorage},
};
use storage::{Done, ShardLog};
use tokio::sync::oneshot;

use super::{Entry, LogId, Types, Vote, records};

/// Bytes of one read. Bounds what replication holds in memory.
const READ_BYTES_MAX: usize = 4 << 20;

/// The log of a shard.
#[derive(Debug, Clone)]
pub struct LogStore {
    log: ShardLog,
    first: Arc<AtomicU64>,
}

impl LogStore {
    /// Over a shard's log.
    #[must_use]
    pub fn new(log: ShardLog) -> Self {
        Self { log, first: Arc::default() }
    }

    /// The index of the first entry that is not purged.
    pub(crate) fn first(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.first)
    }

    /// The last entry that was purged, and the last that there is.
    fn ends(&self) -> io::Result<(Option<LogId>, Option<LogId>)> {
        let state = self.log.state()?;
        let purged = state.purged.map(|bytes| records::open_log_id(&bytes)).transpose()?;
        let last = state.last.map(|bytes| records::open_entry(&bytes)).transpose()?;
        Ok((purged, last.map(|entry| entry.log_id).max(purged)))
    }

    /// The index of the last entry, purged or not.
    pub(crate) fn last_index(&self) -> io::Result<Option<u64>> {
        Ok(self.ends()?.1.map(|last| last.index()))
    }

    fn read(&self, range: impl RangeBounds<u64>, bytes_max: usize) -> io::Result<Vec<Entry>> {
        let start = match range.start_bound() {
            Bound::Included(start) => *start,
            Bound::Excluded(start) => start + 1,
            Bound::Unbounded => 0,
        };
        let end = match range.end_bound() {
            Bound::Included(end) => end + 1,
            Bound::Excluded(end) => *end,
            Bound::Unbounded => u64::MAX,
        };
        self.log.read(start..end, bytes_max)?.iter().map(records::open_entry).collect()
    }
}

/// Waits until an operation of the writer is on disk.
async fn wait(act: impl FnOnce(Done) -> io::Result<()>) -> io::Result<()> {
    let (sender, receiver) = oneshot::channel();
    act(Box::new(move |result| {
        // Whoever asked may be gone.
        let _ = sender.send(result);
    }))?;
    receiver.await.unwrap_or_else(|_| Err(io::Error::other("the log writer has stopped")))
}

impl RaftLogReader<Types> for LogStore {
    async fn try_get_log_entries<RB: RangeBounds<u64> + Clone + Debug + OptionalSend>(
        &mut self,
        range: RB,
    ) -> io::Result<Vec<Entry>> {
        self.read(range, usize::MAX)
    }

    /// Nothing if the first of them is purged: replication asks for that when its peer's need of a snapshot crosses
    /// a stream of entries to it, and would send what comes after the hole. Whoever sends sees that nothing came, and
    /// ends the stream ([`super::network`]).
    async fn limited_get_log_entries(&mut self, start: u64, end: u64) -> io::Result<Vec<Entry>> {
        let entries = self.read(start..end, READ_BYTES_MAX)?;
        let is_whole = entries.first().is_none_or(|entry| entry.log_id.index() == start);
        Ok(if is_whole { entries } else { Vec::new() })
    }

    async fn read_vote(&mut self) -> io::Result<Option<Vote>> {
        self.log.vote()?.map(|bytes| records::open_vote(&bytes)).transpose()
    }
}

impl RaftLogStorage<Types> for LogStore {
    type LogReader = Self;

    async fn get_log_state(&mut self) -> io::Result<LogState<Types>> {
        let (purged, last) = self.ends()?;
        self.first.fetch_max(purged.map_or(0, |purged| purged.index() + 1), Ordering::AcqRel);
        Ok(LogState { last_purged_log_id: purged, last_log_id: last })
    }

    async fn get_log_reader(&mut self) -> Self {
        self.clone()
    }

    async fn save_vote(&mut self, vote: &Vote) -> io::Result<()> {
        let vote = records::seal_vote(vote);
        wait(|done| {
            self.log.save_vote(vote, done);
            Ok(())
        })
        .await
    }

    async fn save_committed(&mut self, committed: Option<LogId>) -> io::Result<()> {
        if let Some(committed) = committed {
            self.log.save_committed(records::seal_log_id(&committed));
        }
        Ok(())
    }

    /// What the log holds of it: it is remembered as soon as the entries are asked for, and a crash may come before
    /// they are written.
    async fn read_committed(&mut self) -> io::Result<Option<LogId>> {
        let committed = self.log.committed()?.map(|bytes| records::open_log_id(&bytes)).transpose()?;
        let (_, last) = self.ends()?;
        Ok(committed.min(last))
    }

    async fn append<I>(&mut self, entries: I, callback: IOFlushed<Types>) -> io::Result<()>
    where
        I: IntoIterator<Item = Entry> + OptionalSend,
        I::IntoIter: OptionalSend,
    {
        let entries =
            entries.into_iter().map(|entry| (entry.log_id.index(), records::seal_entry(&entry))).collect();
        self.log.append(entries, Box::new(|result| callback.io_completed(result)));
        Ok(())
    }

    async fn truncate_after(&mut self, last: Option<LogId>) -> io::Result<()> {
        let from = last.map_or(0, |last| last.index() + 1);
        wait(|done| {
            self.log.truncate(from, done);
            Ok(())
        })
        .await
    }

    async fn purge(&mut self, upto: LogId) -> io::Result<()> {
        self.first.fetch_max(upto.index() + 1, Ordering::AcqRel);
        wait(|done| Ok(self.log.purge(upto.index() + 1, records::seal_log_id(&upto), done)?)).await
    }
}

#[cfg(test)]
mod tests {
    use ids::ShardId;
    use openraft::{EntryPayload, entry::RaftEntry as _};
    use storage::{LogDb, LogOptions};

    use super::*;

    fn id(index: u64) -> LogId {
        LogId::new(openraft::vote::leader_id_adv::LeaderId { term: 1, node_id: 7 }, index)
    }

    fn open(path: &std::path::Path) -> (LogDb, LogStore) {
        let options = LogOptions { tail_bytes: 1 << 20, queue_len: 16, batch_bytes: 1 << 20, sync: true };
        let db = LogDb::open(path, options).unwrap();
        let store = LogStore::new(db.shard(ShardId(0)).unwrap());
        (db, store)
    }

    async fn append(store: &LogStore, indexes: std::ops::Range<u64>) {
        let entry = |index| (index, records::seal_entry(&Entry::new(id(index), EntryPayload::Blank)));
        let entries = indexes.map(entry).collect();
        wait(|done| {
            store.log.append(entries, done);
            Ok(())
        })
        .await
        .unwrap();
    }

    #[tokio::test]
    async fn what_is_committed_ends_where_the_log_ends() {
        let temp = tempfile::tempdir().unwrap();
        let (db, mut store) = open(temp.path());
        append(&store, 0..5).await;
        // As when the entries up to it are queued behind a batch, and the node is killed after that batch.
        store.save_committed(Some(id(10))).await.unwrap();
        append(&store, 5..8).await;
        drop((store, db));
        let (_db, mut store) = open(temp.path());
        assert_eq!(store.read_committed().await.unwrap(), Some(id(7)));
        append(&store, 8..20).await;
        assert_eq!(store.read_committed().await.unwrap(), Some(id(10)));
    }

    #[tokio::test]
    async fn what_is_purged_leaves_no_hole_in_what_is_read() {
        let temp = tempfile::tempdir().unwrap();
        let (_db, mut store) = open(temp.path());
        append(&store, 0..100).await;
        assert_eq!(store.limited_get_log_entries(40, 50).await.unwrap().len(), 10);
        store.purge(id(44)).await.unwrap();
        assert_eq!(store.limited_get_log_entries(45, 50).await.unwrap().len(), 5);
        assert!(store.limited_get_log_entries(40, 50).await.unwrap().is_empty(), "not 45 to 49");
        assert_eq!(store.first().load(Ordering::Acquire), 45);
    }
}
