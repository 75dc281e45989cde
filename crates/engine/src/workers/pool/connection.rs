//! A worker's connection to this node.

use std::sync::Arc;

use proto::peer::{self, question};
use tokio::sync::mpsc;

use super::{
    super::{Assignment, TaskId, TaskResult, ask_leader},
    Pool,
    roster::Added,
};

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

/// A worker's connection. The worker is gone when this is dropped.
#[derive(Debug)]
pub struct Connection {
    pool: Arc<Pool>,
    worker: u64,
}

impl Pool {
    /// A worker has connected. `None` if the node is about to stop.
    pub fn connect(self: &Arc<Self>, hello: Hello) -> Option<(Connection, mpsc::Receiver<ToWorker>)> {
        let tenant = hello.tenant.clone();
        let Added { worker, messages, in_hand } = self.roster.lock().add(hello)?;
        for (shard, tasks) in in_hand {
            tokio::spawn(Arc::clone(self).present(shard, tasks, tenant.clone()));
        }
        self.changed.notify_one();
        Some((Connection { pool: Arc::clone(self), worker }, messages))
    }
}

impl Connection {
    /// The worker lives.
    pub fn heard(&self) {
        self.pool.roster.lock().heard(self.worker);
    }

    /// The worker takes no more tasks.
    pub fn leaving(&self) {
        self.heard();
        self.pool.roster.lock().retire(self.worker);
        self.pool.changed.notify_one();
    }

    /// How far a task is.
    pub fn progress(&self, id: TaskId, text: String) {
        self.heard();
        let theirs = self.pool.roster.lock().has(self.worker, id);
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
        let mut roster = self.pool.roster.lock();
        roster.heard(self.worker);
        let Some((tenant, freed)) = roster.finish(self.worker, id) else { return };
        drop(roster);
        tokio::spawn(Arc::clone(&self.pool).deliver(id, tenant, result));
        self.pool.tell_freed(freed);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.pool.roster.lock().remove(self.worker, false);
        self.pool.changed.notify_one();
    }
}
