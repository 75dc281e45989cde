//! Who is connected to this node, and what they have in hand: a table, without the network.

use std::{
    collections::{BTreeSet, HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use ids::{NodeId, ShardId};
use serde_json::{Value, json};
use tokio::{sync::mpsc, time::Instant};

use super::{
    super::{Assignment, QueueKey, TaskId},
    Hello, ToWorker,
};

/// Messages that may wait for a worker besides one a task.
const SPARE_MESSAGES: usize = 64;

/// A leader that has tasks for a slot that is free, and of which queue.
pub(super) type Hungry = (NodeId, Arc<QueueKey>);

#[derive(Default)]
pub(super) struct Roster {
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

impl InHand {
    fn of(tenant: &str, worker: Option<u64>) -> Self {
        Self { tenant: tenant.to_owned(), worker, orphan_since: None, finishing: false, reporting: false }
    }
}

/// A worker that was added.
pub(super) struct Added {
    pub(super) worker: u64,
    pub(super) messages: mpsc::Receiver<ToWorker>,
    /// What it says it has in hand, and may have.
    pub(super) in_hand: HashMap<ShardId, Vec<TaskId>>,
}

impl Roster {
    /// `None` if no more are let in.
    pub(super) fn add(&mut self, hello: Hello) -> Option<Added> {
        if self.leaving {
            return None;
        }
        // The worker has another connection already: it has not been seen to break yet.
        let same = |of: &Worker| of.hello.instance == hello.instance && of.hello.tenant == hello.tenant;
        let before: Vec<u64> = self.workers.iter().filter(|(_, of)| same(of)).map(|(id, _)| *id).collect();
        for id in before {
            self.remove(id, false);
        }
        self.last_worker += 1;
        let worker = self.last_worker;
        let (sender, messages) =
            mpsc::channel(hello.capacity as usize + hello.in_hand.len() + SPARE_MESSAGES);
        let queues: BTreeSet<&String> = hello.queues.iter().collect();
        let key = |queue: &String| Arc::new(QueueKey { tenant: hello.tenant.clone(), queue: queue.clone() });
        let queues: Vec<Arc<QueueKey>> = queues.into_iter().map(key).collect();
        for queue in &queues {
            self.queues.entry(Arc::clone(queue)).or_default().workers.push_back(worker);
        }
        let mut in_hand: HashMap<ShardId, Vec<TaskId>> = HashMap::new();
        let mut busy = 0;
        for task in &hello.in_hand {
            let of = self.in_hand.entry(*task).or_insert_with(|| InHand::of(&hello.tenant, None));
            if of.tenant != hello.tenant {
                continue;
            }
            (of.worker, of.orphan_since) = (Some(worker), None);
            busy += u32::from(!of.finishing);
            in_hand.entry(task.session.shard()).or_default().push(*task);
        }
        self.workers.insert(worker, Worker { hello, queues, busy, messages: sender, heard: Instant::now() });
        Some(Added { worker, messages, in_hand })
    }

    /// The worker is gone. One that was silent for a whole lease is `lost`: it has had its time.
    pub(super) fn remove(&mut self, id: u64, lost: bool) {
        let Some(worker) = self.workers.remove(&id) else { return };
        for queue in &worker.queues {
            if let Some(served) = self.queues.get_mut(queue) {
                served.workers.retain(|of| *of != id);
            }
        }
        self.queues.retain(|_, served| !served.workers.is_empty());
        let now = Instant::now();
        for of in self.in_hand.values_mut().filter(|of| of.worker == Some(id)) {
            of.worker = None;
            of.orphan_since = Some(now).filter(|_| !lost);
        }
    }

    /// Lets no more in, and sends those that are here away.
    pub(super) fn leave(&mut self) {
        self.leaving = true;
        for worker in self.workers.values() {
            worker.tell(ToWorker::Leave);
        }
    }

    pub(super) fn tell(&self, worker: Option<u64>, message: ToWorker) {
        if let Some(worker) = worker.and_then(|worker| self.workers.get(&worker)) {
            worker.tell(message);
        }
    }

    /// The worker lives.
    pub(super) fn heard(&mut self, worker: u64) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.heard = Instant::now();
        }
    }

    /// The worker takes no more tasks.
    pub(super) fn retire(&mut self, worker: u64) {
        if let Some(worker) = self.workers.get_mut(&worker) {
            worker.hello.capacity = 0;
        }
    }

    /// Gives a task to the next worker of its queue that has a slot; its name.
    pub(super) fn assign(&mut self, assignment: Assignment) -> Option<String> {
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
            self.in_hand.insert(task, InHand::of(&worker.hello.tenant, Some(id)));
            return Some(worker.hello.name.clone());
        }
        None
    }

    /// A leader is to hear when a slot of this queue is free.
    pub(super) fn awaits(&mut self, leader: NodeId, queue: &Arc<QueueKey>) {
        if let Some(served) = self.queues.get_mut(queue)
            && !served.hungry.contains(&leader)
        {
            served.hungry.push_back(leader);
        }
    }

    /// A worker has a slot more: the leader that has a task for it.
    fn free(&mut self, worker: Option<u64>) -> Option<Hungry> {
        let worker = self.workers.get_mut(&worker?)?;
        worker.busy = worker.busy.saturating_sub(1);
        // One slot, one leader: the first queue of the worker with a hungry one, each queue in turn.
        let queues = worker.queues.iter();
        let (served, pop) = (&mut self.queues, |of: &mut Served| of.hungry.pop_front());
        queues.filter_map(|queue| Some((served.get_mut(queue).and_then(pop)?, Arc::clone(queue)))).next()
    }

    /// Whether this worker has it.
    pub(super) fn has(&self, worker: u64, task: TaskId) -> bool {
        self.in_hand.get(&task).is_some_and(|of| of.worker == Some(worker))
    }

    /// Whether anybody has one of these, or its outcome is on the way.
    pub(super) fn knows_any(&self, tasks: &[TaskId]) -> bool {
        tasks.iter().any(|task| self.in_hand.contains_key(task))
    }

    /// Whether it is still to be done: nobody has told what came of it.
    pub(super) fn is_open(&self, task: TaskId) -> bool {
        self.in_hand.get(&task).is_some_and(|of| !of.finishing)
    }

    /// What came of a task is known, and on the way to the leader from now on: whose it is, and the leader that has a
    /// task for the free slot. `None` if that is so already; the worker is told if it does not have the task.
    pub(super) fn finish(&mut self, worker: u64, task: TaskId) -> Option<(String, Option<Hungry>)> {
        let Some(in_hand) = self.in_hand.get_mut(&task).filter(|of| of.worker == Some(worker)) else {
            // It was taken from the worker meanwhile, or its outcome is known.
            self.tell(Some(worker), ToWorker::Recorded(task));
            return None;
        };
        if std::mem::replace(&mut in_hand.finishing, true) {
            return None;
        }
        let tenant = in_hand.tenant.clone();
        Some((tenant, self.free(Some(worker))))
    }

    /// Takes a task from whoever has it, and tells them why; the leader that has a task for the free slot.
    pub(super) fn end(&mut self, task: TaskId, why: ToWorker) -> Option<Hungry> {
        let in_hand = self.in_hand.remove(&task)?;
        let freed = if in_hand.finishing { None } else { self.free(in_hand.worker) };
        self.tell(in_hand.worker, why);
        freed
    }

    /// What is in hand of a shard.
    pub(super) fn of_shard(&self, shard: u32) -> impl Iterator<Item = TaskId> {
        self.in_hand.keys().copied().filter(move |id| u32::from(id.session.shard().0) == shard)
    }

    /// The queues that are served, and for how many tasks at once.
    pub(super) fn capacities(&self) -> impl Iterator<Item = (&QueueKey, u32)> {
        self.queues.iter().map(|(key, served)| {
            let workers = served.workers.iter().filter_map(|id| self.workers.get(id));
            (key.as_ref(), workers.map(|of| of.hello.capacity).sum())
        })
    }

    /// Removes those that were not heard for a whole lease: their names.
    pub(super) fn remove_silent(&mut self, lease: Duration) -> Vec<String> {
        let now = Instant::now();
        let silent = self.workers.iter().filter(|(_, of)| now.duration_since(of.heard) > lease);
        let gone: Vec<(u64, String)> = silent.map(|(id, of)| (*id, of.hello.name.clone())).collect();
        gone.into_iter()
            .map(|(id, name)| {
                self.remove(id, true);
                name
            })
            .collect()
    }

    /// What nobody has, and nobody comes back with in time: of each shard and tenant, to be reported from now on.
    pub(super) fn take_lost(&mut self, reconnect: Duration) -> HashMap<(ShardId, String), Vec<TaskId>> {
        let now = Instant::now();
        let mut lost: HashMap<(ShardId, String), Vec<TaskId>> = HashMap::new();
        for (id, of) in &mut self.in_hand {
            let waits = of.orphan_since.is_some_and(|since| now.duration_since(since) < reconnect);
            if of.worker.is_none() && !waits && !of.finishing && !of.reporting {
                of.reporting = true;
                lost.entry((id.session.shard(), of.tenant.clone())).or_default().push(*id);
            }
        }
        lost
    }

    /// What was lost was reported, and the leader knows it; or it does not: leaders that have tasks for free slots.
    pub(super) fn reported(&mut self, tasks: Vec<TaskId>, is_known: bool) -> Vec<Hungry> {
        let mut freed = Vec::new();
        for id in tasks {
            let Some(of) = self.in_hand.get_mut(&id) else { continue };
            of.reporting = false;
            if is_known {
                // Its worker may have come back meanwhile; then it is told that the task is not wanted.
                freed.extend(self.end(id, ToWorker::Revoked(id)));
            }
        }
        freed
    }

    /// How many workers are connected.
    pub(super) fn len(&self) -> usize {
        self.workers.len()
    }

    /// The connected workers, for people.
    pub(super) fn list(&self) -> Vec<Value> {
        let shown = |of: &Worker| {
            json!({"name": of.hello.name, "tenant": of.hello.tenant, "queues": of.hello.queues,
                "capacity": of.hello.capacity, "busy": of.busy,
                "silent_ms": u64::try_from(of.heard.elapsed().as_millis()).unwrap_or(u64::MAX)})
        };
        self.workers.values().map(shown).collect()
    }
}

impl Worker {
    fn tell(&self, message: ToWorker) {
        // One that does not read will not be heard either.
        let _ = self.messages.try_send(message);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use bytes::Bytes;
    use ids::{Dispatch, RegionId, SessionId, StepId};

    use super::*;

    const NEVER: Duration = Duration::from_secs(3_600);

    fn hello(instance: &str, capacity: u32, in_hand: Vec<TaskId>) -> Hello {
        Hello {
            tenant: "t".to_owned(),
            name: instance.to_owned(),
            instance: instance.to_owned(),
            queues: vec!["a".to_owned(), "b".to_owned()],
            capacity,
            in_hand,
        }
    }

    fn queue(name: &str) -> Arc<QueueKey> {
        Arc::new(QueueKey { tenant: "t".to_owned(), queue: name.to_owned() })
    }

    fn task(number: u64) -> TaskId {
        let session = SessionId::new(RegionId(1), ShardId(2), number.into());
        TaskId { session, step: StepId::default(), dispatch: Dispatch(1) }
    }

    fn assignment(number: u64, of: &str) -> Assignment {
        Assignment {
            id: task(number),
            queue: queue(of),
            path: "step".to_owned(),
            attempt: 1,
            input: Bytes::new(),
            timeout_ms: 1_000,
            traceparent: String::new(),
        }
    }

    #[test]
    fn workers_take_turns_and_a_free_slot_goes_to_a_leader_that_waits() {
        let mut roster = Roster::default();
        let Added { worker: first, messages: _kept, .. } = roster.add(hello("first", 1, vec![])).unwrap();
        let _second = roster.add(hello("second", 1, vec![])).unwrap();
        let took = [roster.assign(assignment(1, "a")), roster.assign(assignment(2, "b"))];
        assert_eq!(took, [Some("first".to_owned()), Some("second".to_owned())]);
        assert_eq!(roster.assign(assignment(3, "a")), None, "nobody has a slot");
        roster.awaits(NodeId(7), &queue("b"));
        assert!(roster.has(first, task(1)) && !roster.has(first, task(2)));
        let (tenant, freed) = roster.finish(first, task(1)).unwrap();
        assert_eq!((tenant.as_str(), freed), ("t", Some((NodeId(7), queue("b")))));
        assert!(roster.finish(first, task(1)).is_none(), "said once");
        assert_eq!(roster.assign(assignment(3, "a")).as_deref(), Some("first"));
        assert!(roster.end(task(1), ToWorker::Recorded(task(1))).is_none(), "its slot is free already");
        assert_eq!(roster.assign(assignment(4, "a")), None);
    }

    #[test]
    fn a_worker_that_comes_back_in_time_keeps_what_it_has_and_a_silent_one_does_not() {
        let mut roster = Roster::default();
        let before = roster.add(hello("w", 2, vec![])).unwrap();
        roster.assign(assignment(1, "a"));
        roster.remove(before.worker, false);
        assert!(roster.take_lost(NEVER).is_empty(), "it may come back");
        let again = roster.add(hello("w", 2, vec![task(1), task(9)])).unwrap();
        assert_eq!(again.in_hand[&ShardId(2)], [task(1), task(9)]);
        assert_eq!(roster.assign(assignment(2, "a")), None, "both slots are taken");
        assert!(roster.take_lost(Duration::ZERO).is_empty());

        assert_eq!(roster.remove_silent(NEVER), Vec::<String>::new());
        assert_eq!(roster.remove_silent(Duration::ZERO), ["w"]);
        let mut lost: Vec<TaskId> = roster.take_lost(NEVER).into_values().flatten().collect();
        lost.sort();
        assert_eq!(lost, [task(1), task(9)]);
        assert!(roster.take_lost(NEVER).is_empty(), "they are being reported");
        roster.reported(vec![task(1)], true);
        roster.reported(vec![task(9)], false);
        assert!(!roster.knows_any(&[task(1)]));
        assert_eq!(roster.take_lost(NEVER).into_values().flatten().collect::<Vec<_>>(), [task(9)]);
    }

    #[test]
    fn a_task_that_its_worker_got_back_while_it_was_reported_is_revoked_and_its_slot_goes_on() {
        let mut roster = Roster::default();
        let before = roster.add(hello("w", 1, vec![])).unwrap();
        roster.assign(assignment(1, "a"));
        roster.remove(before.worker, true);
        assert_eq!(roster.take_lost(NEVER).len(), 1);
        let mut again = roster.add(hello("w", 1, vec![task(1)])).unwrap();
        roster.awaits(NodeId(3), &queue("a"));
        assert_eq!(roster.reported(vec![task(1)], true), [(NodeId(3), queue("a"))]);
        assert!(matches!(again.messages.try_recv(), Ok(ToWorker::Revoked(id)) if id == task(1)));
        assert_eq!(roster.assign(assignment(2, "a")).as_deref(), Some("w"));
        roster.leave();
        assert!(roster.add(hello("late", 1, vec![])).is_none());
    }
}
