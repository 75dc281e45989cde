//! Who measures what happens, and how what was measured outlives the process.

use std::{fmt::Debug, sync::Arc, time::Duration};

use ids::{NodeId, ShardId, Timestamp};
use machine::{Fact, Key, Observed, Read, Row, Tables};
use storage::{Batch, Note, StateDb};

use crate::{Clock, ClusterClock};

/// How often what was measured is written.
const SAVE_INTERVAL: Duration = Duration::from_secs(10);

/// Measures. It is told while entries are applied: it must not block, and what it does changes nothing that is applied.
pub trait Observer: Debug + Send + Sync {
    /// Something happened to a session, as this replica applies it.
    fn observe(&self, session: &Observed<'_>, fact: Fact<'_>);
    /// This node asked another one whether it is there.
    fn probed(&self, node: NodeId, answered: bool, at: Timestamp);
    /// The replicas of a shard were compared: whether a node had what most had.
    fn compared(&self, node: NodeId, equal: bool, at: Timestamp);
    /// Entries of a shard are committed, and about to be applied.
    fn applying(&self, shard: ShardId);
    /// An entry of so many commands was committed and applied by this node, which leads the shard, so long after it was
    /// proposed.
    fn committed(&self, shard: ShardId, commands: usize, took: Duration);
    /// What has changed since the last call of what is to outlive the process; without a value, what is to be
    /// forgotten.
    fn changes(&self, now: Timestamp) -> Vec<Note>;
    /// What an earlier process left.
    fn restore(&self, notes: Vec<Note>);
}

/// Measures nothing.
impl Observer for () {
    fn observe(&self, _: &Observed<'_>, _: Fact<'_>) {}
    fn probed(&self, _: NodeId, _: bool, _: Timestamp) {}
    fn compared(&self, _: NodeId, _: bool, _: Timestamp) {}
    fn applying(&self, _: ShardId) {}
    fn committed(&self, _: ShardId, _: usize, _: Duration) {}
    fn changes(&self, _: Timestamp) -> Vec<Note> {
        Vec::new()
    }
    fn restore(&self, _: Vec<Note>) {}
}

/// Writes what was measured beside the state, which is flushed as a whole: what a crash undoes of one, it undoes of
/// the other, and what is applied again is counted again.
pub(crate) async fn save(observer: Arc<dyn Observer>, state: Arc<StateDb>, clock: Arc<ClusterClock>) {
    let mut tick = tokio::time::interval(SAVE_INTERVAL);
    let mut waiting = Vec::new();
    loop {
        tick.tick().await;
        // Written a turn later: then the entries whose facts are in it are written as well.
        if let Err(error) = state.put_notes(std::mem::take(&mut waiting)) {
            tracing::warn!(%error, "what was measured is not kept");
        }
        waiting = observer.changes(clock.wall());
    }
}

/// A batch whose facts are told.
pub(crate) struct Told<'a, 'b> {
    pub(crate) batch: &'a mut Batch<'b>,
    pub(crate) observer: &'a dyn Observer,
}

impl Read for Told<'_, '_> {
    fn get(&self, key: &Key) -> Option<Row> {
        self.batch.get(key)
    }

    fn scan(&self, from: &Key, to: &Key, limit: usize) -> Vec<(Key, Row)> {
        self.batch.scan(from, to, limit)
    }
}

impl Tables for Told<'_, '_> {
    fn put(&mut self, key: Key, row: Row) {
        self.batch.put(key, row);
    }

    fn delete(&mut self, key: &Key) {
        self.batch.delete(key);
    }

    fn expect_none(&mut self, key: &Key) {
        self.batch.expect_none(key);
    }

    fn observe(&mut self, session: &Observed<'_>, fact: Fact<'_>) {
        self.observer.observe(session, fact);
    }
}
