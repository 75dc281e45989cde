//! The other half: the workers that are connected to this node.

use std::{
    collections::{BTreeSet, HashMap, HashSet, VecDeque},
    sync::{Arc, OnceLock, Weak},
    time::Duration,
};

use consensus::Peers;
use ids::{NodeId, ShardId};
use parking_lot::Mutex;
use proto::peer::{self, answer, question};
use serde_json::{Value, json};
use tokio::{
    sync::{Notify, mpsc},
    time::Instant,
};

use super::{Assignment, Matching, Patience, QueueKey, TaskId, TaskResult, ask, ask_leader};

/// How often a node says which workers it has.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(1);
/// Between two looks for workers that are not heard any more.
const KEEP_INTERVAL: Duration = Duration::from_millis(250);
/// Before a leader that was not reached is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(50);
/// Messages that may wait for a worker besides one a task.
const SPARE_MESSAGES: usize = 64;

/// What a worker is told.
#[derive(Debug, Clone)]
pub enum ToWorker {
    /// Do this.
    Task(Assignment),
    /// What came of it is known.
    Recorded(TaskId),
    /// It is not wanted any more.
    Revoked(TaskId),
    /// Connect to another node.
    Leave,
}

/// Who a worker is.
#[derive(Debug, Clone)]
pub struct Hello {
    /// Whose sessions it works for.
    pub tenant: String,
    /// What people call it.
    pub name: String,
    /// Which run of it.
    pub instance: String,
    /// Its queues.
    pub queues: Vec<String>,
    /// Tasks at once.
    pub capacity: u32,
    /// What it has in hand.
    pub in_hand: Vec<TaskId>,
}

/// The workers that are connected to this node.
pub struct Pool {
    peers: Peers,
    matching: OnceLock<Weak<Matching>>,
    patience: Patience,
    incarnation: u64,
    started: Instant,
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    workers: HashMap<u64, Worker>,
    last_worker: u64,
    queues: HashMap<Arc<QueueKey>, Served>,
    in_hand: HashMap<TaskId, InHand>,
    leaving: bool,
}

struct Worker {
    hello: Hello,
    queues: Vec<Arc<QueueKey>>,
    busy: u32,
    messages: mpsc::Sender<ToWorker>,
    heard: Instant,
}

#[derive(Default)]
struct Served {
    /// In turn.
    workers: VecDeque<u64>,
    /// Leaders that were refused and have more, in turn.
    hungry: VecDeque<NodeId>,
}

struct InHand {
    tenant: String,
    worker: Option<u64>,
    /// Since when no worker is connected that has it.
    orphan_since: Option<Instant>,
    /// Its outcome is on the way to the leader, and the worker is free for another.
    finishing: bool,
    /// Its leader is being told that it is lost.
    reporting: bool,
}

/// A worker's connection. The worker is gone when this is dropped.
#[derive(Debug)]
pub struct Connection {
    pool: Arc<Pool>,
    worker: u64,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("incarnation", &self.incarnation).finish_non_exhaustive()
    }
}

impl State {
    fn tell(&mut self, worker: Option<u64>, message: ToWorker) {
        if let Some(worker) = worker.and_then(|worker| self.workers.get(&worker)) {
            // One that does not read will not be heard either.
            let _ = worker.messages.try_send(message);
        }
    }

    /// Takes a task from whoever has it; leaders that have tasks for the free slot.
    fn drop_task(&mut self, id: TaskId) -> (Option<InHand>, Vec<(NodeId, Arc<QueueKey>)>) {
        let Some(in_hand) = self.in_hand.remove(&id) else { return (None, Vec::new()) };
        let freed = if in_hand.finishing { Vec::new() } else { self.free(in_hand.worker) };
        (Some(in_hand), freed)
    }

    /// A worker has a slot more.
    fn free(&mut self, worker: Option<u64>) -> Vec<(NodeId, Arc<QueueKey>)> {
        let Some(worker) = worker.and_then(|worker| self.workers.get_mut(&worker)) else { return Vec::new() };
        worker.busy = worker.busy.saturating_sub(1);
        let queues = worker.queues.clone();
        // One slot, one leader: the first queue of the worker with a hungry one, each queue in turn.
        for queue in queues {
            if let Some(node) = self.queues.get_mut(&queue).and_then(|of| of.hungry.pop_front()) {
                return vec![(node, queue)];
            }
        }
        Vec::new()
    }

    fn remove_worker(&mut self, id: u64, lost: bool) {
        let Some(worker) = self.workers.remove(&id) else { return };
        for queue in &worker.queues {
            if let Some(served) = self.queues.get_mut(queue) {
                served.workers.retain(|of| *of != id);
            }
        }
        self.queues.retain(|_, served| !served.workers.is_empty());
        let now = Instant::now();
        // A worker that was silent for a whole lease has had its time.
        for of in self.in_hand.values_mut().filter(|of| of.worker == Some(id)) {
            of.worker = None;
            of.orphan_since = Some(now).filter(|_| !lost);
        }
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
            state: Mutex::default(),
            changed: Notify::new(),
        }
    }

    /// How patient the cluster is with workers.
    #[must_use]
    pub fn patience(&self) -> Patience {
        self.patience
    }

    /// A worker has connected. `None` if the node is about to stop.
    pub fn connect(self: &Arc<Self>, hello: Hello) -> Option<(Connection, mpsc::Receiver<ToWorker>)> {
        let mut state = self.state.lock();
        if state.leaving {
            return None;
        }
        // The worker has another connection already: it has not been seen to break yet.
        let same = |of: &Worker| of.hello.instance == hello.instance && of.hello.tenant == hello.tenant;
        let before: Vec<u64> = state.workers.iter().filter(|(_, of)| same(of)).map(|(id, _)| *id).collect();
        for id in before {
            state.remove_worker(id, false);
        }
        state.last_worker += 1;
        let id = state.last_worker;
        let (messages, receiver) =
            mpsc::channel(hello.capacity as usize + hello.in_hand.len() + SPARE_MESSAGES);
        let queues: BTreeSet<&String> = hello.queues.iter().collect();
        let key = |queue: &String| Arc::new(QueueKey { tenant: hello.tenant.clone(), queue: queue.clone() });
        let queues: Vec<Arc<QueueKey>> = queues.into_iter().map(key).collect();
        for queue in &queues {
            state.queues.entry(Arc::clone(queue)).or_default().workers.push_back(id);
        }
        let mut by_shard: HashMap<ShardId, Vec<TaskId>> = HashMap::new();
        let mut busy = 0;
        for task in &hello.in_hand {
            let of = state.in_hand.entry(*task).or_insert_with(|| InHand {
                tenant: hello.tenant.clone(),
                worker: None,
                orphan_since: None,
                finishing: false,
                reporting: false,
            });
            if of.tenant != hello.tenant {
                continue;
            }
            (of.worker, of.orphan_since) = (Some(id), None);
            busy += u32::from(!of.finishing);
            by_shard.entry(task.session.shard()).or_default().push(*task);
        }
        let tenant = hello.tenant.clone();
        state.workers.insert(id, Worker { hello, queues, busy, messages, heard: Instant::now() });
        drop(state);
        for (shard, tasks) in by_shard {
            tokio::spawn(Arc::clone(self).present(shard, tasks, tenant.clone()));
        }
        self.changed.notify_one();
        Some((Connection { pool: Arc::clone(self), worker: id }, receiver))
    }

    /// Tells a shard's leader what workers that came back have in hand, and them what is no longer theirs.
    async fn present(self: Arc<Self>, shard: ShardId, tasks: Vec<TaskId>, tenant: String) {
        loop {
            let body = question::Body::Present(self.tasks(&tasks, &tenant));
            if let Ok(answer::Body::Kept(kept)) = ask_leader(&self.peers, shard, body).await {
                let kept: HashSet<TaskId> = kept.tasks.iter().filter_map(TaskId::from_message).collect();
                for task in tasks.iter().filter(|task| !kept.contains(task)) {
                    // The outcome of one that is finished is told apart.
                    let finishing = self.state.lock().in_hand.get(task).is_none_or(|of| of.finishing);
                    if !finishing {
                        self.withdraw(*task);
                    }
                }
                return;
            }
            tokio::time::sleep(RETRY_PAUSE).await;
            let state = self.state.lock();
            if !tasks.iter().any(|task| state.in_hand.contains_key(task)) {
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
        let mut state = self.state.lock();
        let taken = state.assign(assignment);
        if (taken.is_none() || more)
            && let Some(served) = state.queues.get_mut(&queue)
            && !served.hungry.contains(&from)
        {
            served.hungry.push_back(from);
        }
        taken
    }

    /// What this node's workers have in hand of a shard.
    pub(super) fn in_hand(&self, shard: u32) -> peer::InHand {
        let state = self.state.lock();
        let of_shard = |id: &&TaskId| u32::from(id.session.shard().0) == shard;
        peer::InHand {
            tasks: state.in_hand.keys().filter(of_shard).map(|id| id.message()).collect(),
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
        let mut state = self.state.lock();
        let (in_hand, freed) = state.drop_task(id);
        if let Some(in_hand) = in_hand {
            state.tell(in_hand.worker, ToWorker::Revoked(id));
        }
        drop(state);
        self.tell_freed(freed);
    }

    fn tell_freed(&self, freed: Vec<(NodeId, Arc<QueueKey>)>) {
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
        let mut state = self.state.lock();
        let (in_hand, _) = state.drop_task(id);
        if let Some(in_hand) = in_hand {
            state.tell(in_hand.worker, ToWorker::Recorded(id));
        }
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
        let mut state = self.state.lock();
        state.leaving = true;
        let all: Vec<u64> = state.workers.keys().copied().collect();
        for worker in all {
            state.tell(Some(worker), ToWorker::Leave);
        }
    }

    /// How many workers are connected.
    pub(super) fn len(&self) -> usize {
        self.state.lock().workers.len()
    }

    /// The connected workers, for people.
    pub(super) fn list(&self) -> Vec<Value> {
        let state = self.state.lock();
        let shown = |of: &Worker| {
            json!({"name": of.hello.name, "tenant": of.hello.tenant, "queues": of.hello.queues,
                "capacity": of.hello.capacity, "busy": of.busy,
                "silent_ms": u64::try_from(of.heard.elapsed().as_millis()).unwrap_or(u64::MAX)})
        };
        state.workers.values().map(shown).collect()
    }
}

impl State {
    /// Gives a task to the next worker of its queue that has a slot; its name.
    fn assign(&mut self, assignment: Assignment) -> Option<String> {
        let served = self.queues.get_mut(&assignment.queue)?;
        for _ in 0..served.workers.len() {
            served.workers.rotate_left(1);
            let Some(&id) = served.workers.back() else { break };
            let Some(worker) = self.workers.get_mut(&id) else { continue };
            if worker.busy >= worker.hello.capacity {
                continue;
            }
            let Ok(room) = worker.messages.try_reserve() else { continue };
            let task = assignment.id;
            room.send(ToWorker::Task(assignment));
            worker.busy += 1;
            let in_hand = InHand {
                tenant: worker.hello.tenant.clone(),
                worker: Some(id),
                orphan_since: None,
                finishing: false,
                reporting: false,
            };
            let name = worker.hello.name.clone();
            self.in_hand.insert(task, in_hand);
            return Some(name);
        }
        None
    }
}

impl Connection {
    /// The worker lives.
    pub fn heard(&self) {
        if let Some(worker) = self.pool.state.lock().workers.get_mut(&self.worker) {
            worker.heard = Instant::now();
        }
    }

    /// The worker takes no more tasks.
    pub fn leaving(&self) {
        self.heard();
        if let Some(worker) = self.pool.state.lock().workers.get_mut(&self.worker) {
            worker.hello.capacity = 0;
        }
        self.pool.changed.notify_one();
    }

    /// How far a task is.
    pub fn progress(&self, id: TaskId, text: String) {
        self.heard();
        let theirs = self.pool.state.lock().in_hand.get(&id).is_some_and(|of| of.worker == Some(self.worker));
        if theirs {
            let (peers, body) =
                (self.pool.peers.clone(), peer::TaskProgress { id: Some(id.message()), text });
            tokio::spawn(async move {
                // The next one tells as much.
                let _ = ask_leader(&peers, id.session.shard(), question::Body::Progress(body)).await;
            });
        }
    }

    /// What came of a task.
    pub fn finished(&self, id: TaskId, result: TaskResult) {
        let mut state = self.pool.state.lock();
        if let Some(worker) = state.workers.get_mut(&self.worker) {
            worker.heard = Instant::now();
        }
        let Some(in_hand) = state.in_hand.get_mut(&id).filter(|of| of.worker == Some(self.worker)) else {
            // It was taken from the worker meanwhile, or its outcome is known.
            state.tell(Some(self.worker), ToWorker::Recorded(id));
            return;
        };
        if std::mem::replace(&mut in_hand.finishing, true) {
            return;
        }
        let tenant = in_hand.tenant.clone();
        let freed = state.free(Some(self.worker));
        drop(state);
        tokio::spawn(Arc::clone(&self.pool).deliver(id, tenant, result));
        self.pool.tell_freed(freed);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.pool.state.lock().remove_worker(self.worker, false);
        self.pool.changed.notify_one();
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
            let state = pool.state.lock();
            let capacity = |served: &Served| {
                served.workers.iter().filter_map(|id| state.workers.get(id)).map(|of| of.hello.capacity).sum()
            };
            let queues = state.queues.iter().map(|(key, served)| peer::announce::Queue {
                tenant: key.tenant.clone(),
                queue: key.queue.clone(),
                capacity: capacity(served),
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
        let now = Instant::now();
        let mut state = pool.state.lock();
        let silent = |of: &Worker| now.duration_since(of.heard) > pool.patience.lease;
        let gone: Vec<u64> = state.workers.iter().filter(|(_, of)| silent(of)).map(|(id, _)| *id).collect();
        for id in gone {
            if let Some(worker) = state.workers.get(&id) {
                tracing::warn!(
                    worker = worker.hello.name,
                    "a worker is silent; its tasks are given out again"
                );
            }
            state.remove_worker(id, true);
            pool.changed.notify_one();
        }
        let mut lost: HashMap<(ShardId, String), Vec<TaskId>> = HashMap::new();
        for (id, of) in &mut state.in_hand {
            let waits =
                of.orphan_since.is_some_and(|since| now.duration_since(since) < pool.patience.reconnect);
            if of.worker.is_none() && !waits && !of.finishing && !of.reporting {
                of.reporting = true;
                lost.entry((id.session.shard(), of.tenant.clone())).or_default().push(*id);
            }
        }
        drop(state);
        for ((shard, tenant), tasks) in lost {
            tokio::spawn(Arc::clone(&pool).report_lost(shard, tenant, tasks));
        }
    }
}

impl Pool {
    async fn report_lost(self: Arc<Self>, shard: ShardId, tenant: String, tasks: Vec<TaskId>) {
        let body = question::Body::Lost(self.tasks(&tasks, &tenant));
        let told = matches!(ask_leader(&self.peers, shard, body).await, Ok(answer::Body::Done(_)));
        let mut state = self.state.lock();
        for id in tasks {
            if let Some(of) = state.in_hand.get_mut(&id) {
                of.reporting = false;
                // Its worker may have come back meanwhile; then it is told that the task is not wanted.
                if told {
                    let worker = of.worker;
                    state.drop_task(id);
                    state.tell(worker, ToWorker::Revoked(id));
                }
            }
        }
    }
}
