//! The other half: the workers that are connected to this node.
//!
//! A [`Connection`] is a worker's; the roster says who is connected and what they have in hand; what is here talks to
//! the leaders of shards.

mod connection;
mod roster;

use std::{
    collections::HashSet,
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use consensus::Peers;
use ids::{NodeId, ShardId};
use parking_lot::Mutex;
use proto::peer::{self, answer, question};
use serde_json::Value;
use tokio::{sync::Notify, time::Instant};

pub use self::connection::{Connection, Hello, ToWorker};
use self::roster::{Hungry, Roster};
use super::{Assignment, Matching, Patience, QueueKey, TaskId, TaskResult, ask, ask_leader};

/// How often a node says which workers it has.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks for workers that are not heard any more.
const KEEP_INTERVAL: Duration = Duration::from_millis(250);
/// Before a leader that was not reached is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);

/// The workers that are connected to this node.
pub struct Pool {
    peers: Peers,
    matching: OnceLock<Weak<Matching>>,
    patience: Patience,
    incarnation: u64,
    started: Instant,
    roster: Mutex<Roster>,
    changed: Notify,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("incarnation", &self.incarnation).finish_non_exhaustive()
    }
}

impl Pool {
    pub(super) fn new(peers: Peers, patience: Patience) -> Self {
        Self {
            peers,
            matching: OnceLock::new(),
            patience,
            incarnation: rand::random_range(1..=u64::MAX),
            started: Instant::now(),
            roster: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// How patient the cluster is with workers.
    #[must_use]
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// Tells a shard's leader what workers that came back have in hand, and them what is no longer theirs.
    async fn present(self: Arc<Self>, shard: ShardId, tasks: Vec<TaskId>, tenant: String) {
        loop {
            let body = question::Body::Present(self.tasks(&tasks, &tenant));
            if let Ok(answer::Body::Kept(kept)) = ask_leader(&self.peers, shard, body).await {
                let kept: HashSet<TaskId> = kept.tasks.iter().filter_map(TaskId::from_message).collect();
                for task in tasks.iter().filter(|task| !kept.contains(task)) {
                    // The outcome of one that is finished is told apart.
                    let is_open = self.roster.lock().is_open(*task);
                    if is_open {
                        self.withdraw(*task);
                    }
                }
                return;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
            if !self.roster.lock().knows_any(&tasks) {
                return;
            }
        }
    }

    fn tasks(&self, tasks: &[TaskId], tenant: &str) -> peer::Tasks {
        peer::Tasks {
            tasks: tasks.iter().map(|task| task.message()).collect(),
            node: self.peers.me().0,
            incarnation: self.incarnation,
            tenant: tenant.to_owned(),
        }
    }

    /// The leader of a shard on another node offers a task.
    pub(super) fn offered(&self, offer: peer::Offer) -> peer::Offered {
        let Some(id) = offer.id.as_ref().and_then(TaskId::from_message) else {
            return peer::Offered::default();
        };
        let assignment = Assignment {
            id,
            queue: Arc::new(QueueKey { tenant: offer.tenant, queue: offer.queue }),
            path: offer.path,
            attempt: offer.attempt,
            input: offer.input,
            timeout_ms: offer.timeout_ms,
            traceparent: offer.traceparent,
        };
        peer::Offered { worker: self.take(assignment, NodeId(offer.from), offer.more).unwrap_or_default() }
    }

    /// Gives a leader's task to a worker: its name, if one has it from now on. If not, or if the leader has `more`, it
    /// hears when there is a slot.
    pub(super) fn take(&self, assignment: Assignment, from: NodeId, more: bool) -> Option<String> {
        let queue = Arc::clone(&assignment.queue);
        let mut roster = self.roster.lock();
        let taken = roster.assign(assignment);
        if taken.is_none() || more {
            roster.awaits(from, &queue);
        }
        taken
    }

    /// What this node's workers have in hand of a shard.
    pub(super) fn in_hand(&self, shard: u32) -> peer::InHand {
        peer::InHand {
            tasks: self.roster.lock().of_shard(shard).map(|id| id.message()).collect(),
            incarnation: self.incarnation,
            uptime_ms: u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX),
        }
    }

    pub(super) fn revoke(self: &Arc<Self>, id: &peer::TaskId) {
        if let Some(id) = TaskId::from_message(id) {
            self.withdraw(id);
        }
    }

    /// Takes a task from its worker.
    fn withdraw(self: &Arc<Self>, id: TaskId) {
        let freed = self.roster.lock().end(id, ToWorker::Revoked(id));
        self.tell_freed(freed);
    }

    fn tell_freed(&self, freed: impl IntoIterator<Item = Hungry>) {
        for (node, queue) in freed {
            let free = peer::Free {
                tenant: queue.tenant.clone(),
                queue: queue.queue.clone(),
                slots: 1,
                node: self.peers.me().0,
            };
            let peers = self.peers.clone();
            tokio::spawn(async move {
                // The next announcement says it again.
                let _ = ask(&peers, node, question::Body::Free(free)).await;
            });
        }
    }

    /// Brings an outcome to the shard's leader, whoever that becomes.
    async fn deliver(self: Arc<Self>, id: TaskId, tenant: String, result: TaskResult) {
        let counts = loop {
            match self.finish(id, &tenant, result.clone()).await {
                Some(counts) => break counts,
                None => tokio::time::sleep(RETRY_PAUSE).await,
            }
        };
        if !counts {
            tracing::info!(task = %id, "an outcome that came too late was refused");
        }
        let freed = self.roster.lock().end(id, ToWorker::Recorded(id));
        self.tell_freed(freed);
    }

    /// Tells a shard's leader that nobody has these any more.
    async fn report_lost(self: Arc<Self>, shard: ShardId, tenant: String, tasks: Vec<TaskId>) {
        let body = question::Body::Lost(self.tasks(&tasks, &tenant));
        let told = matches!(ask_leader(&self.peers, shard, body).await, Ok(answer::Body::Done(_)));
        let freed = self.roster.lock().reported(tasks, told);
        self.tell_freed(freed);
    }

    /// Tells the shard's leader an outcome: whether it counts; `None` if it was not told.
    async fn finish(&self, id: TaskId, tenant: &str, result: TaskResult) -> Option<bool> {
        let leader = self.peers.leader(id.session.shard())?;
        if leader == self.peers.me() {
            return self.matching.get()?.upgrade()?.finish(id, tenant, result).await;
        }
        let body = question::Body::Finished(result.message(id, tenant));
        match ask(&self.peers, leader, body).await {
            Ok(answer::Body::Recorded(recorded)) => Some(recorded.counts),
            _ => None,
        }
    }

    /// This is the other half of the node.
    pub(super) fn serves(&self, matching: &Arc<Matching>) {
        // Once, by whoever makes both.
        let _ = self.matching.set(Arc::downgrade(matching));
    }

    /// Sends the workers to other nodes, and lets none in.
    pub fn leave(&self) {
        self.roster.lock().leave();
    }

    /// How many workers are connected.
    pub(super) fn len(&self) -> usize {
        self.roster.lock().len()
    }

    /// The connected workers, for people.
    pub(super) fn list(&self) -> Vec<Value> {
        self.roster.lock().list()
    }
}

/// Tells every node which workers this one has, at once when that changes.
pub(super) async fn announce(pool: Arc<Pool>) {
    let mut tick = tokio::time::interval(ANNOUNCE_INTERVAL);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            () = pool.changed.notified() => {}
        }
        let announce = {
            let roster = pool.roster.lock();
            let queues = roster.capacities().map(|(key, capacity)| peer::announce::Queue {
                tenant: key.tenant.clone(),
                queue: key.queue.clone(),
                capacity,
            });
            let queues = queues.collect();
            peer::Announce { node: pool.peers.me().0, incarnation: pool.incarnation, queues }
        };
        for node in pool.peers.nodes() {
            let (peers, body) = (pool.peers.clone(), question::Body::Announce(announce.clone()));
            tokio::spawn(async move {
                // Said again in a second.
                let _ = ask(&peers, node, body).await;
            });
        }
    }
}

/// Lets go of workers that are not heard any more, and tells leaders what nobody has.
pub(super) async fn keep(pool: Arc<Pool>) {
    let mut tick = tokio::time::interval(KEEP_INTERVAL);
    loop {
        tick.tick().await;
        let mut roster = pool.roster.lock();
        for worker in roster.remove_silent(pool.patience.lease) {
            tracing::warn!(worker, "a worker is silent; its tasks are given out again");
            pool.changed.notify_one();
        }
        let lost = roster.take_lost(pool.patience.reconnect);
        drop(roster);
        for ((shard, tenant), tasks) in lost {
            tokio::spawn(Arc::clone(&pool).report_lost(shard, tenant, tasks));
        }
    }
}
