//! The leader's half: who waits in line, and who has what.

mod adoption;
mod nodes;
mod outcome;
mod show;

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    sync::Arc,
};

use consensus::{AskError, Clock, Group, Peers};
use ids::{Dispatch, NodeId, SessionId, ShardId, StepId};
use machine::Work;
use parking_lot::Mutex;
use proto::peer::{self, answer, question};
use tokio::{
    sync::{mpsc, oneshot},
    time::Instant,
};

use super::{Assignment, Patience, Pool, QueueKey, TaskId, TaskResult, ask};

/// How often an attempt may lose its worker before that counts as a failure of the step.
const LOSSES_MAX: u32 = 3;

pub(in crate::workers) use nodes::keep;
pub(crate) use outcome::resolution;

type Key = (SessionId, StepId);

/// Steps that wait for workers, and those that workers have, of the shards that this node leads.
pub(crate) struct Matching {
    peers: Peers,
    pool: Arc<Pool>,
    groups: BTreeMap<ShardId, Group>,
    clock: Arc<dyn Clock>,
    patience: Patience,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    /// The engines of the shards that this node leads. Nothing is known of any other shard.
    engines: HashMap<ShardId, mpsc::UnboundedSender<Start>>,
    queues: HashMap<Arc<QueueKey>, Queue>,
    waiting: BTreeMap<Key, Waiting>,
    leased: BTreeMap<Key, Leased>,
    /// Steps that an earlier leader may have given out: whoever has them may come yet.
    unclaimed: BTreeMap<Key, Unclaimed>,
    /// How often the current attempt lost its worker.
    losses: HashMap<Key, u32>,
    nodes: HashMap<NodeId, Heard>,
}

/// A piece of work for the engine of its shard, now that there is a worker for it.
#[derive(Debug)]
pub(crate) struct Start {
    pub(crate) work: Work,
    pub(crate) how: How,
}

#[derive(Debug)]
pub(crate) enum How {
    /// A worker is free.
    Slot(Slot),
    /// A worker has it in hand since before this node led.
    Adopted(Lease),
}

struct Waiting {
    work: Work,
    queue: Arc<QueueKey>,
}

struct Unclaimed {
    work: Work,
    queue: Arc<QueueKey>,
}

struct Leased {
    dispatch: Dispatch,
    queue: Arc<QueueKey>,
    node: NodeId,
    /// The run of that node; 0 until it is known to have taken the task.
    incarnation: u64,
    worker: String,
    progress: String,
    since: ids::Timestamp,
    /// When it is lost, unless it is presented before: its node has been started anew.
    lost_at: Option<Instant>,
    ended: Option<oneshot::Sender<Ended>>,
}

/// How a lease ends.
#[derive(Debug)]
pub(crate) enum Ended {
    /// The worker says what came of it, and is told whether that counts.
    Finished(TaskResult, oneshot::Sender<Option<bool>>),
    /// Nobody has it any more.
    Lost,
}

#[derive(Default)]
struct Queue {
    /// In the order of their coming. A step that is not (any more) in `waiting` under this dispatch is passed over.
    line: VecDeque<(Key, Dispatch)>,
    places: BTreeMap<NodeId, Place>,
}

/// The workers of a queue on one node, as this leader knows them.
#[derive(Default)]
struct Place {
    capacity: u32,
    /// Tasks that this leader has there.
    held: u32,
    /// It refused, because other leaders' tasks fill it: then it says itself when it has slots.
    full: bool,
    credit: u32,
}

impl Place {
    fn has_room(&self) -> bool {
        self.held < self.capacity && (!self.full || self.credit > 0)
    }
}

struct Heard {
    incarnation: u64,
    at: Instant,
}

/// The right to give one task to a node.
#[derive(Debug)]
pub(crate) struct Slot {
    matching: Arc<Matching>,
    queue: Arc<QueueKey>,
    node: NodeId,
    /// Whether a lease has taken over the place.
    used: bool,
}

impl Drop for Slot {
    fn drop(&mut self) {
        if !self.used {
            self.matching.release(&self.queue, self.node);
        }
    }
}

/// A task that a worker has, or may have.
#[derive(Debug)]
pub(crate) struct Lease {
    matching: Arc<Matching>,
    id: TaskId,
    ended: oneshot::Receiver<Ended>,
}

impl Lease {
    /// Waits for its end.
    pub(crate) async fn ended(&mut self) -> Ended {
        (&mut self.ended).await.unwrap_or(Ended::Lost)
    }

    /// Tells the worker that the task is not wanted any more.
    pub(crate) fn revoke(&self) {
        self.matching.revoke((self.id.session, self.id.step), Some(self.id.dispatch));
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.matching.end_lease(self.id);
    }
}

/// What came of an offer.
pub(crate) enum Handed {
    /// A worker has it.
    Taken(Lease),
    /// No worker of that node takes it now: it waits again.
    Full,
    /// Not known: the fence has to be raised before it is given to another. Until then the lease stands in its way.
    Unknown(Lease),
}

impl std::fmt::Debug for Matching {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Matching").finish_non_exhaustive()
    }
}

impl State {
    fn reserve(&mut self, queue: &Arc<QueueKey>, me: NodeId) -> Option<NodeId> {
        let places = &mut self.queues.get_mut(queue)?.places;
        // This node's own workers are nearest; else the node with the smallest share in use.
        let node = if places.get(&me).is_some_and(Place::has_room) {
            me
        } else {
            let free = places.iter().filter(|(_, place)| place.has_room());
            *free.min_by_key(|(_, place)| u64::from(place.held) * 1000 / u64::from(place.capacity))?.0
        };
        let place = places.get_mut(&node)?;
        place.held += 1;
        place.credit = place.credit.saturating_sub(1);
        Some(node)
    }

    /// Takes steps from the front of a line, as long as there are slots.
    fn take_from_line(&mut self, queue: &Arc<QueueKey>, me: NodeId) -> Vec<(Work, NodeId)> {
        let mut taken = Vec::new();
        loop {
            let front = self.queues.get(queue).and_then(|of| of.line.front().copied());
            let Some((key, dispatch)) = front else { break };
            let waits = self.waiting.get(&key).is_some_and(|of| of.work.dispatch == dispatch);
            let node = if waits { self.reserve(queue, me) } else { None };
            if waits && node.is_none() {
                break;
            }
            if let Some(of) = self.queues.get_mut(queue) {
                of.line.pop_front();
            }
            if let (Some(node), Some(waiting)) = (node, waits.then(|| self.waiting.remove(&key)).flatten()) {
                taken.push((waiting.work, node));
            }
        }
        if let Some(of) = self.queues.get_mut(queue)
            && of.line.is_empty()
        {
            // Who comes next may ask again.
            of.places.values_mut().for_each(|place| (place.full, place.credit) = (false, 0));
        }
        taken
    }

    fn has_lease(&self, id: TaskId) -> bool {
        self.leased.get(&(id.session, id.step)).is_some_and(|of| of.dispatch == id.dispatch)
    }

    /// Forgets what is known of a step under a dispatch.
    fn forget(&mut self, id: TaskId) {
        let key = (id.session, id.step);
        if self.waiting.get(&key).is_some_and(|of| of.work.dispatch == id.dispatch) {
            self.waiting.remove(&key);
        }
        self.losses.remove(&key);
    }
}

impl Matching {
    pub(in crate::workers) fn new(
        peers: Peers,
        pool: Arc<Pool>,
        groups: impl IntoIterator<Item = Group>,
        clock: Arc<dyn Clock>,
        patience: Patience,
    ) -> Self {
        let groups = groups.into_iter().map(|group| (group.shard(), group)).collect();
        Self { peers, pool, groups, clock, patience, state: Mutex::default() }
    }

    /// This node leads a shard, and gives out its tasks from now on.
    pub(crate) fn lead(&self, shard: ShardId, engine: mpsc::UnboundedSender<Start>) {
        self.state.lock().engines.insert(shard, engine);
    }

    /// This node leads a shard no more.
    pub(crate) fn resign(&self, shard: ShardId) {
        let mut state = self.state.lock();
        state.engines.remove(&shard);
        state.waiting.retain(|(session, _), _| session.shard() != shard);
        state.unclaimed.retain(|(session, _), _| session.shard() != shard);
        state.losses.retain(|(session, _), _| session.shard() != shard);
        let ended: Vec<Key> =
            state.leased.keys().filter(|(session, _)| session.shard() == shard).copied().collect();
        for key in ended {
            if let Some(leased) = state.leased.remove(&key) {
                give_back(&mut state, &leased);
            }
        }
    }

    /// Whether a step waits for a worker, or one has it.
    pub(crate) fn knows(&self, work: &Work) -> bool {
        let (state, key) = (self.state.lock(), (work.session, work.step));
        state.waiting.get(&key).is_some_and(|of| of.work.dispatch == work.dispatch)
            || state.leased.get(&key).is_some_and(|of| of.dispatch == work.dispatch)
            || state.unclaimed.get(&key).is_some_and(|of| of.work.dispatch == work.dispatch)
    }

    /// A free worker's slot; without one, the step waits in line, and its engine is told when there is one.
    pub(crate) fn reserve_or_wait(self: &Arc<Self>, queue: &Arc<QueueKey>, work: Work) -> Option<Slot> {
        let mut state = self.state.lock();
        let key = (work.session, work.step);
        state.unclaimed.remove(&key);
        if let Some(node) = state.reserve(queue, self.peers.me()) {
            return Some(Slot { matching: Arc::clone(self), queue: Arc::clone(queue), node, used: false });
        }
        state.waiting.insert(key, Waiting { work, queue: Arc::clone(queue) });
        state.queues.entry(Arc::clone(queue)).or_default().line.push_back((key, work.dispatch));
        None
    }

    /// Gives a task to a worker of the slot's node.
    pub(crate) async fn hand(self: &Arc<Self>, mut slot: Slot, assignment: Assignment, work: Work) -> Handed {
        let (id, key) = (assignment.id, (work.session, work.step));
        let (lease, more) = {
            let mut state = self.state.lock();
            let lease = self.lease(&mut state, id, &slot.queue, slot.node);
            slot.used = true;
            (lease, state.queues.get(&slot.queue).is_some_and(|of| !of.line.is_empty()))
        };
        match self.offer(slot.node, assignment, more).await {
            Ok(Some(worker)) => {
                let mut state = self.state.lock();
                let incarnation = state.nodes.get(&slot.node).map_or(0, |heard| heard.incarnation);
                if let Some(leased) = state.leased.get_mut(&key).filter(|of| of.dispatch == id.dispatch) {
                    (leased.worker, leased.incarnation) = (worker, incarnation);
                    leased.lost_at = None;
                }
                Handed::Taken(lease)
            }
            answered @ (Ok(None) | Err(AskError::NotSent)) => {
                let mut state = self.state.lock();
                let queue = state.queues.entry(Arc::clone(&slot.queue)).or_default();
                let place = queue.places.entry(slot.node).or_default();
                (place.full, place.credit) = (true, 0);
                if answered.is_err() {
                    // Until it announces itself again.
                    place.capacity = 0;
                }
                queue.line.push_front((key, work.dispatch));
                state.waiting.insert(key, Waiting { work, queue: Arc::clone(&slot.queue) });
                drop(state);
                drop(lease);
                Handed::Full
            }
            Err(AskError::NoAnswer) => Handed::Unknown(lease),
        }
    }

    /// Offers a task to the workers of a node: who has it, if one of them does.
    async fn offer(
        &self,
        node: NodeId,
        assignment: Assignment,
        more: bool,
    ) -> Result<Option<String>, AskError> {
        let me = self.peers.me();
        if node == me {
            return Ok(self.pool.take(assignment, me, more));
        }
        let offer = peer::Offer {
            id: Some(assignment.id.message()),
            tenant: assignment.queue.tenant.clone(),
            queue: assignment.queue.queue.clone(),
            path: assignment.path,
            attempt: assignment.attempt,
            input: assignment.input,
            timeout_ms: assignment.timeout_ms,
            traceparent: assignment.traceparent,
            from: me.0,
            more,
        };
        match ask(&self.peers, node, question::Body::Offer(offer)).await? {
            answer::Body::Offered(offered) => Ok(Some(offered.worker).filter(|worker| !worker.is_empty())),
            _ => Err(AskError::NoAnswer),
        }
    }

    fn lease(self: &Arc<Self>, state: &mut State, id: TaskId, queue: &Arc<QueueKey>, node: NodeId) -> Lease {
        let (sender, ended) = oneshot::channel();
        let leased = Leased {
            dispatch: id.dispatch,
            queue: Arc::clone(queue),
            node,
            incarnation: 0,
            worker: String::new(),
            progress: String::new(),
            since: self.clock.wall(),
            lost_at: None,
            ended: Some(sender),
        };
        if let Some(before) = state.leased.insert((id.session, id.step), leased) {
            give_back(state, &before);
        }
        Lease { matching: Arc::clone(self), id, ended }
    }

    fn end_lease(self: &Arc<Self>, id: TaskId) {
        let (key, mut state) = ((id.session, id.step), self.state.lock());
        if state.has_lease(id)
            && let Some(leased) = state.leased.remove(&key)
        {
            give_back(&mut state, &leased);
            self.go_on(state, &leased.queue);
        }
    }

    fn release(self: &Arc<Self>, queue: &Arc<QueueKey>, node: NodeId) {
        let mut state = self.state.lock();
        if let Some(place) = state.queues.get_mut(queue).and_then(|of| of.places.get_mut(&node)) {
            place.held = place.held.saturating_sub(1);
        }
        self.go_on(state, queue);
    }

    /// Starts who is first in line, as long as there are slots.
    fn go_on(self: &Arc<Self>, mut state: parking_lot::MutexGuard<'_, State>, queue: &Arc<QueueKey>) {
        let taken = state.take_from_line(queue, self.peers.me());
        let starts: Vec<_> = taken
            .into_iter()
            .map(|(work, node)| (state.engines.get(&work.session.shard()).cloned(), work, node))
            .collect();
        // A slot that nobody takes comes back through its drop, which locks.
        drop(state);
        for (engine, work, node) in starts {
            let slot = Slot { matching: Arc::clone(self), queue: Arc::clone(queue), node, used: false };
            if let Some(engine) = engine {
                // The engine has stopped: whoever leads next finds the step in its tables.
                let _ = engine.send(Start { work, how: How::Slot(slot) });
            }
        }
    }

    /// A step is not wanted any more.
    pub(crate) fn recall(&self, session: SessionId, step: StepId) {
        let key = (session, step);
        {
            let mut state = self.state.lock();
            state.waiting.remove(&key);
            state.unclaimed.remove(&key);
            state.losses.remove(&key);
        }
        self.revoke(key, None);
    }

    fn revoke(&self, key: Key, dispatch: Option<Dispatch>) {
        let state = self.state.lock();
        let leased = state.leased.get(&key).filter(|of| dispatch.is_none_or(|of_it| of_it == of.dispatch));
        let Some((node, dispatch)) = leased.map(|of| (of.node, of.dispatch)) else { return };
        drop(state);
        let id = TaskId { session: key.0, step: key.1, dispatch };
        self.tell(node, question::Body::Revoke(id.message()));
    }

    /// Tells a node what it may also miss.
    fn tell(&self, node: NodeId, body: question::Body) {
        let peers = self.peers.clone();
        tokio::spawn(async move {
            // What is missed costs a worker's time, nothing else.
            let _ = ask(&peers, node, body).await;
        });
    }

    /// Counts a lost worker; whether that was one too many.
    pub(crate) fn lost_once_more(&self, work: &Work) -> bool {
        let mut state = self.state.lock();
        let losses = state.losses.entry((work.session, work.step)).or_default();
        *losses += 1;
        let too_many = *losses >= LOSSES_MAX;
        if too_many {
            state.losses.remove(&(work.session, work.step));
        }
        too_many
    }

    /// The step has an outcome.
    pub(crate) fn resolved(&self, work: &Work) {
        self.state.lock().losses.remove(&(work.session, work.step));
    }
}

fn give_back(state: &mut State, leased: &Leased) {
    let place = state.queues.get_mut(&leased.queue).and_then(|of| of.places.get_mut(&leased.node));
    if let Some(place) = place {
        place.held = place.held.saturating_sub(1);
    }
}
