//! Lines and leases, for people.

use std::{collections::BTreeMap, sync::Arc};

use ids::{SessionId, StepId};
use serde_json::{Value, json};

use super::Matching;
use crate::{engine::Running, workers::QueueKey};

impl Matching {
    pub(in crate::workers) fn running(&self, session: SessionId) -> Vec<Running> {
        let (state, range) =
            (self.state.lock(), (session, StepId::default())..(session.successor(), StepId::default()));
        let workers = |queue: &Arc<QueueKey>| {
            state.queues.get(queue).map_or(0, |of| of.places.values().map(|place| place.capacity).sum())
        };
        let waiting = state.waiting.range(range.clone()).map(|(key, of)| {
            let detail = match workers(&of.queue) {
                0 => format!("no worker serves its queue `{}`", of.queue.queue),
                slots => format!("waits in queue `{}` for one of {slots} slots", of.queue.queue),
            };
            Running { step: key.1, dispatch: of.work.dispatch, started_at: None, detail }
        });
        let unclaimed = state.unclaimed.range(range.clone()).map(|(key, of)| Running {
            step: key.1,
            dispatch: of.work.dispatch,
            started_at: None,
            detail: "waits for a worker that may have it in hand to come back".into(),
        });
        let leased = state.leased.range(range).map(|(key, of)| Running {
            step: key.1,
            dispatch: of.dispatch,
            started_at: Some(of.since),
            detail: match (of.worker.as_str(), of.progress.as_str()) {
                ("", _) => format!("a worker connected to node {} has it", of.node),
                (worker, "") => format!("worker {worker} has it"),
                (worker, progress) => format!("worker {worker} has it: {progress}"),
            },
        });
        waiting.chain(unclaimed).chain(leased).collect()
    }

    /// The lines of this leader, for people.
    /// How many tasks wait for a worker, and how many wait or are at work.
    pub(in crate::workers) fn load(&self) -> (usize, usize) {
        let state = self.state.lock();
        (state.waiting.len(), state.waiting.len() + state.leased.len())
    }

    pub(in crate::workers) fn list(&self) -> Vec<Value> {
        let state = self.state.lock();
        let mut counts: BTreeMap<&QueueKey, (usize, usize)> = BTreeMap::new();
        state.waiting.values().for_each(|of| counts.entry(&of.queue).or_default().0 += 1);
        state.leased.values().for_each(|of| counts.entry(&of.queue).or_default().1 += 1);
        let shown = |(key, (waiting, running)): (&QueueKey, (usize, usize))| json!({"tenant": key.tenant, "queue": key.queue, "waiting": waiting, "running": running});
        counts.into_iter().map(shown).collect()
    }
}
