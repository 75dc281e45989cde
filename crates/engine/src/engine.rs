//! The engine of a shard: from effects to tasks.

use std::{
    collections::HashMap,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use consensus::{Clock, Group, Leadership};
use ids::{Dispatch, SessionId, StepId, Timestamp};
use machine::{Effect, Work, pending_effects};
use parking_lot::Mutex;
use providers::Router;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::{AbortHandle, JoinHandle},
};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    Workers,
    specs::Specs,
    timers::Timers,
    work::{self, Context},
    workers::{How, Start},
};

/// Pieces of work of one shard at once. More wait; providers have their own, tighter bounds.
const CONCURRENCY: usize = 512;

/// Work under way: what the tables do not know, because starting costs no commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Running {
    /// The step.
    pub step: StepId,
    /// Its fence.
    pub dispatch: Dispatch,
    /// When the leader started it; `None` while it waits for its turn.
    pub started_at: Option<Timestamp>,
    /// What it waits for or who has it, for people; empty for a task of the node itself.
    pub detail: String,
}

#[derive(Debug)]
struct Task {
    /// Tells it from another task for the same step.
    serial: u64,
    dispatch: Dispatch,
    started_at: Option<Timestamp>,
    external: bool,
    abort: AbortHandle,
}

type Tasks = Arc<Mutex<HashMap<(SessionId, StepId), Task>>>;

/// The engine of a shard. It stops when this is dropped.
#[derive(Debug)]
pub struct Engine {
    tasks: Tasks,
    workers: Arc<Workers>,
    runner: JoinHandle<()>,
    draining: watch::Sender<bool>,
}

impl Engine {
    /// Starts to watch a shard.
    #[must_use]
    pub fn start(group: Group, router: Arc<Router>, clock: Arc<dyn Clock>, workers: Arc<Workers>) -> Self {
        let tasks = Tasks::default();
        let (draining, drain) = watch::channel(false);
        let context =
            Context { group, router, clock, workers: Arc::clone(&workers), specs: Specs::default() };
        let runner = Runner {
            context: Arc::new(context),
            tasks: Arc::clone(&tasks),
            serial: AtomicU64::new(0),
            permits: Arc::new(Semaphore::new(CONCURRENCY)),
            drain,
        };
        let runner = tokio::spawn(runner.run());
        Self { tasks, workers, runner, draining }
    }

    /// The work of a session that is under way on this node.
    #[must_use]
    pub fn running(&self, session: SessionId) -> Vec<Running> {
        let mut running = self.workers.running(session);
        let tasks = self.tasks.lock();
        let own = tasks.iter().filter(|((of, _), task)| *of == session && !task.external);
        running.extend(own.map(|((_, step), task)| Running {
            step: *step,
            dispatch: task.dispatch,
            started_at: task.started_at,
            detail: String::new(),
        }));
        running
    }

    /// How much work this node itself has under way: what workers have outlives it.
    #[must_use]
    pub fn running_count(&self) -> usize {
        self.tasks.lock().values().filter(|task| !task.external).count()
    }

    /// Starts no more work. What is under way goes on; what is not done when the node stops is sent out again later.
    pub fn drain(&self) {
        self.draining.send_replace(true);
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.runner.abort();
        stop_all(&self.tasks);
    }
}

fn stop_all(tasks: &Tasks) {
    for (_, task) in tasks.lock().drain() {
        task.abort.abort();
    }
}

struct Runner {
    context: Arc<Context>,
    tasks: Tasks,
    serial: AtomicU64,
    permits: Arc<Semaphore>,
    drain: watch::Receiver<bool>,
}

impl Runner {
    async fn run(self) {
        let mut leadership = self.context.group.leadership();
        loop {
            let led =
                leadership.wait_for(|lead| matches!(lead, Leadership::Here { .. })).await.map(|lead| *lead);
            let Ok(Leadership::Here { term }) = led else { return };
            let (engine, starts) = mpsc::unbounded_channel();
            let mut term_work = Term { number: term, engine, starts, adoption: None };
            // Round again when effects were lost: what is under way goes on, the rest is in the tables.
            while matches!(*leadership.borrow(), Leadership::Here { term: now } if now == term) {
                let lost = async {
                    let changed =
                        |lead: &Leadership| !matches!(lead, Leadership::Here { term: now } if *now == term);
                    leadership.wait_for(changed).await.is_ok()
                };
                tokio::select! {
                    () = self.lead(&mut term_work) => {}
                    _ = lost => break,
                }
            }
            self.context.workers.matching.resign(self.context.group.shard());
            stop_all(&self.tasks);
            if leadership.has_changed().is_err() {
                return;
            }
        }
    }

    /// Does the work of the shard until effects are lost.
    async fn lead(&self, term: &mut Term) {
        let (pending, mut effects) = self.context.group.effects().take(term.number, || self.pending());
        let Ok(pending) = pending else {
            tracing::error!(shard = %self.context.group.shard(), "the shard's work can not be read; trying again");
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            return;
        };
        let mut timers = Timers::new(self.context.group.clone());
        if term.adoption.is_some() {
            let under_way = |work: &Work| self.tasks.lock().contains_key(&(work.session, work.step));
            for work in pending.into_iter().filter(|work| !under_way(work)) {
                if !self.context.workers.matching.knows(&work) {
                    self.start_work(work, None);
                }
            }
        } else {
            let (external, own): (Vec<Work>, Vec<Work>) = pending.into_iter().partition(|work| work.external);
            self.context.workers.matching.expect(&self.context.group, &external);
            // Only now: a worker that presents what it has must find that it is expected.
            self.context.workers.matching.lead(self.context.group.shard(), term.engine.clone());
            if !work::redispatch(&self.context.group, &own).await {
                return;
            }
            let (workers, group) = (Arc::clone(&self.context.workers), self.context.group.clone());
            let adoption = tokio::spawn(async move {
                let left = workers.matching.adopt(group.shard()).await;
                while !work::redispatch(&group, &left).await {}
            });
            term.adoption = Some(AbortOnDropHandle::new(adoption));
        }
        let overflowed = self.context.group.effects().clone();
        loop {
            tokio::select! {
                effect = effects.recv() => match effect {
                    Some(effect) => self.act(effect, &mut timers, &mut effects),
                    None => return,
                },
                Some(start) = term.starts.recv() => self.start_work(start.work, Some(start.how)),
                () = timers.due() => timers.fire().await,
                () = overflowed.overflowed() => return,
            }
        }
    }

    fn pending(&self) -> Result<Vec<Work>, storage::Error> {
        let view = self.context.group.view();
        let (mut all, mut after) = (Vec::new(), None);
        loop {
            let (page, next) = pending_effects(&view, after, 4096);
            all.extend(page);
            after = next;
            if after.is_none() {
                view.check()?;
                return Ok(all);
            }
        }
    }

    fn act(&self, effect: Effect, timers: &mut Timers, effects: &mut mpsc::Receiver<Effect>) {
        let mut next = Some(effect);
        while let Some(effect) = next {
            match effect {
                Effect::Dispatch(work) => self.start_work(work, None),
                Effect::Recall { session, step } => {
                    self.context.workers.matching.recall(session, step);
                    if let Some(task) = self.tasks.lock().remove(&(session, step)) {
                        task.abort.abort();
                    }
                }
                Effect::Timer { at } => timers.set(at),
                Effect::Appended { .. } => {}
            }
            next = effects.try_recv().ok();
        }
    }

    fn start_work(&self, work: Work, how: Option<How>) {
        if *self.drain.borrow() {
            return;
        }
        let (key, serial) = ((work.session, work.step), self.serial.fetch_add(1, Ordering::Relaxed));
        let job = work::Job { context: Arc::clone(&self.context), work };
        let (permits, tasks) = (Arc::clone(&self.permits), Arc::clone(&self.tasks));
        let mut slot = self.tasks.lock();
        let run = async move {
            let Ok(permit) = permits.acquire_owned().await else { return };
            let started_at = job.context.clock.wall();
            if let Some(task) = tasks.lock().get_mut(&key).filter(|task| task.serial == serial) {
                task.started_at = Some(started_at);
            }
            job.run(started_at, how, permit).await;
            let mut tasks = tasks.lock();
            if tasks.get(&key).is_some_and(|task| task.serial == serial) {
                tasks.remove(&key);
            }
        };
        let task = tokio::spawn(run);
        let (dispatch, external, abort) = (work.dispatch, work.external, task.abort_handle());
        let task = Task { serial, dispatch, started_at: None, external, abort };
        if let Some(before) = slot.insert(key, task) {
            // The same step under an older fence: its outcome would be refused.
            before.abort.abort();
        }
    }
}

/// What lasts as long as this node leads in one term.
struct Term {
    number: u64,
    engine: mpsc::UnboundedSender<Start>,
    /// As many as there are free slots, at most.
    starts: mpsc::UnboundedReceiver<Start>,
    /// Finds out what workers have had in hand since before. Its being there tells that the fence of all other work
    /// of earlier leaders is raised.
    adoption: Option<AbortOnDropHandle<()>>,
}
