//! Work that a worker outside the cluster does: give it to one, wait for what comes of it.

use std::time::Duration;

use ids::Timestamp;
use machine::{Failure, FailureClass, Read as _};

use crate::{
    work::{self, Job},
    workers::{Assignment, Ended, Handed, Lease, Slot, resolution},
};

impl Job {
    /// Gives the work to a worker, if one is free; else it waits in line, and this job ends.
    pub(crate) async fn hand(&self, slot: Option<Slot>, assignment: Assignment) {
        let matching = &self.context.workers.matching;
        let slot = slot.or_else(|| matching.reserve_or_wait(&assignment.queue, self.work));
        let Some(slot) = slot else { return };
        let (started_at, timeout_ms) = (self.context.clock.wall(), assignment.timeout_ms);
        match matching.hand(slot, assignment, self.work).await {
            Handed::Taken(lease) => self.attend(lease, started_at, timeout_ms).await,
            Handed::Full => {}
            Handed::Unknown(_lease) => self.redispatch().await,
        }
    }

    /// Waits for what comes of the work that a worker has.
    pub(crate) async fn attend(&self, mut lease: Lease, started_at: Timestamp, timeout_ms: u64) {
        let ended = match timeout_ms {
            0 => Ok(lease.ended().await),
            _ => tokio::time::timeout(Duration::from_millis(timeout_ms), lease.ended()).await,
        };
        let failed =
            |code: &str, message: String| self.failed(Failure::new(FailureClass::Transient, code, message));
        match ended {
            Ok(Ended::Finished(result, reply)) => {
                let counts = self.propose(started_at, resolution(result), None).await;
                self.context.workers.matching.resolved(&self.work);
                // The node of the worker may be gone.
                let _ = reply.send(counts);
            }
            Ok(Ended::Lost) if self.context.workers.matching.lost_once_more(&self.work) => {
                let message = "its workers were lost again and again".to_owned();
                self.propose(started_at, failed("worker_lost", message), None).await;
            }
            Ok(Ended::Lost) => self.redispatch().await,
            Err(_) => {
                lease.revoke();
                let message = format!("no outcome within {timeout_ms} milliseconds");
                self.propose(started_at, failed("timeout", message), None).await;
            }
        }
    }

    async fn redispatch(&self) {
        while !work::redispatch(&self.context.group, &[self.work]).await {}
    }

    /// How long an attempt of the step may take, in milliseconds; 0 for no limit.
    pub(crate) fn timeout_ms(&self) -> u64 {
        let view = self.context.group.latest();
        let definition = view.session(self.work.session).and_then(|of| view.definition(of.definition));
        definition.map_or(0, |of| of.nodes[usize::from(self.work.step.node)].timeout_ms)
    }
}
