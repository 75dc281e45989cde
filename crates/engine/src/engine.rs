//! The engine of a shard: from effects to tasks.

use std::{collections::HashMap, sync::Arc};

use consensus::{Clock, Group, Leadership};
use ids::{Dispatch, SessionId, StepId, Timestamp};
use machine::{Command, Effect, Work, limits, pending_effects};
use parking_lot::Mutex;
use providers::Router;
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::{AbortHandle, JoinHandle},
};

use crate::{timers::Timers, work};

/// Pieces of work of one shard at once. More wait; providers have their own, tighter bounds.
const CONCURRENCY: usize = 512;

/// Work under way: what the tables do not know, because starting costs no commit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Running {
    /// The step.
    pub step: StepId,
    /// Its fence.
    pub dispatch: Dispatch,
    /// When the leader started it; `None` while it waits for its turn.
    pub started_at: Option<Timestamp>,
}

#[derive(Debug)]
struct Task {
    running: Running,
    abort: AbortHandle,
}

type Tasks = Arc<Mutex<HashMap<(SessionId, StepId), Task>>>;

/// The engine of a shard. It stops when this is dropped.
#[derive(Debug)]
pub struct Engine {
    tasks: Tasks,
    runner: JoinHandle<()>,
    draining: watch::Sender<bool>,
}

impl Engine {
    /// Starts to watch a shard.
    #[must_use]
    pub fn start(group: Group, router: Arc<Router>, clock: Arc<dyn Clock>) -> Self {
        let tasks = Tasks::default();
        let (draining, drain) = watch::channel(false);
        let runner = Runner {
            group,
            router,
            clock,
            tasks: Arc::clone(&tasks),
            permits: Arc::new(Semaphore::new(CONCURRENCY)),
            drain,
        };
        let runner = tokio::spawn(runner.run());
        Self { tasks, runner, draining }
    }

    /// The work of a session that is under way on this node.
    #[must_use]
    pub fn running(&self, session: SessionId) -> Vec<Running> {
        let tasks = self.tasks.lock();
        tasks.iter().filter(|((of, _), _)| *of == session).map(|(_, task)| task.running).collect()
    }

    /// How much work is under way.
    #[must_use]
    pub fn running_count(&self) -> usize {
        self.tasks.lock().len()
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
    group: Group,
    router: Arc<Router>,
    clock: Arc<dyn Clock>,
    tasks: Tasks,
    permits: Arc<Semaphore>,
    drain: watch::Receiver<bool>,
}

impl Runner {
    async fn run(self) {
        let mut leadership = self.group.leadership();
        loop {
            let led =
                leadership.wait_for(|lead| matches!(lead, Leadership::Here { .. })).await.map(|lead| *lead);
            let Ok(Leadership::Here { term }) = led else { return };
            let mut first = true;
            // Round again when effects were lost: what is under way goes on, the rest is in the tables.
            while matches!(*leadership.borrow(), Leadership::Here { term: now } if now == term) {
                let round = self.lead(first);
                let lost = async {
                    let changed =
                        |lead: &Leadership| !matches!(lead, Leadership::Here { term: now } if *now == term);
                    leadership.wait_for(changed).await.is_ok()
                };
                tokio::select! {
                    () = round => first = false,
                    _ = lost => break,
                }
            }
            stop_all(&self.tasks);
            if leadership.has_changed().is_err() {
                return;
            }
        }
    }

    /// Does the work of the shard until effects are lost.
    async fn lead(&self, new_term: bool) {
        let (pending, mut effects) = self.group.effects().take(|| self.pending());
        let Ok(pending) = pending else {
            tracing::error!(shard = %self.group.shard(), "the shard's work can not be read; trying again");
            tokio::time::sleep(std::time::Duration::from_secs(1)).await;
            return;
        };
        let mut timers = Timers::new(self.group.clone(), Arc::clone(&self.clock));
        if new_term {
            if !self.redispatch(&pending).await {
                return;
            }
        } else {
            let under_way = |work: &Work| self.tasks.lock().contains_key(&(work.session, work.step));
            for work in pending.into_iter().filter(|work| !under_way(work)) {
                self.start_work(work);
            }
        }
        let overflowed = self.group.effects().clone();
        loop {
            tokio::select! {
                effect = effects.recv() => match effect {
                    Some(effect) => self.act(effect, &mut timers, &mut effects),
                    None => return,
                },
                () = timers.due() => timers.fire().await,
                () = overflowed.overflowed() => return,
            }
        }
    }

    fn pending(&self) -> Result<Vec<Work>, storage::Error> {
        let view = self.group.view();
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

    /// Raises the fence of work that may be lost with an earlier leader. The raised work comes back as effects.
    async fn redispatch(&self, pending: &[Work]) -> bool {
        for page in pending.chunks(limits::REDISPATCH_PER_COMMAND) {
            let steps = page.iter().map(|work| (work.session, work.step)).collect();
            if let Err(error) = self.group.propose_here(Command::Redispatch(steps)).await {
                tracing::warn!(shard = %self.group.shard(), %error, "work could not be sent out again; trying again");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                return false;
            }
        }
        true
    }

    fn act(&self, effect: Effect, timers: &mut Timers, effects: &mut mpsc::Receiver<Effect>) {
        let mut next = Some(effect);
        while let Some(effect) = next {
            match effect {
                Effect::Dispatch(work) => self.start_work(work),
                Effect::Recall { session, step } => {
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

    fn start_work(&self, work: Work) {
        if *self.drain.borrow() {
            return;
        }
        let key = (work.session, work.step);
        let job = work::Job {
            group: self.group.clone(),
            router: Arc::clone(&self.router),
            clock: Arc::clone(&self.clock),
            work,
        };
        let (permits, tasks) = (Arc::clone(&self.permits), Arc::clone(&self.tasks));
        let mut slot = self.tasks.lock();
        let task = tokio::spawn(async move {
            let Ok(_permit) = permits.acquire_owned().await else { return };
            let started_at = job.clock.wall();
            if let Some(task) =
                tasks.lock().get_mut(&key).filter(|task| task.running.dispatch == work.dispatch)
            {
                task.running.started_at = Some(started_at);
            }
            job.run(started_at).await;
            let mut tasks = tasks.lock();
            if tasks.get(&key).is_some_and(|task| task.running.dispatch == work.dispatch) {
                tasks.remove(&key);
            }
        });
        let running = Running { step: work.step, dispatch: work.dispatch, started_at: None };
        if let Some(before) = slot.insert(key, Task { running, abort: task.abort_handle() }) {
            // The same step under an older fence: its outcome would be refused.
            before.abort.abort();
        }
    }
}
