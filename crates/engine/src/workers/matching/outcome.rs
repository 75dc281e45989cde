//! What workers say came of their tasks.

use bytes::Bytes;
use machine::{
    Command, Failure, FailureClass, Outcome, Pause, Read as _, Refusal, Resolution, ResolveStep, limits,
};
use proto::peer::{self, Empty, answer};
use serde_json::Value;
use tokio::sync::oneshot;

use super::{Ended, Matching};
use crate::workers::{TaskId, TaskResult};

/// Who waits for the end of a task.
enum Holder {
    NotHere,
    Foreign,
    Nobody,
    Job(oneshot::Sender<Ended>),
}

impl Matching {
    fn holder(&self, id: TaskId, tenant: &str) -> Holder {
        let mut state = self.state.lock();
        if !state.engines.contains_key(&id.session.shard()) {
            return Holder::NotHere;
        }
        let leased = state.leased.get_mut(&(id.session, id.step));
        match leased.filter(|of| of.dispatch == id.dispatch) {
            Some(leased) if leased.queue.tenant != tenant => Holder::Foreign,
            // Said twice, or lost: what was first is under way, and who says it again learns what came of it.
            Some(leased) => leased.ended.take().map_or(Holder::NotHere, Holder::Job),
            None => Holder::Nobody,
        }
    }

    /// A worker of another node says what came of a task.
    pub(in crate::workers) async fn finished(&self, finished: peer::Finished) -> answer::Body {
        let id = finished.id.as_ref().and_then(TaskId::from_message);
        let counts = match (id, finished.result) {
            (Some(id), Some(result)) => {
                self.finish(id, &finished.tenant, TaskResult::from_message(result)).await
            }
            _ => Some(false),
        };
        let recorded = |counts| answer::Body::Recorded(peer::Recorded { counts });
        counts.map_or(answer::Body::NotLeader(Empty {}), recorded)
    }

    /// A worker says what came of a task: whether that counts; `None` if another node is to be told.
    pub(in crate::workers) async fn finish(
        &self,
        id: TaskId,
        tenant: &str,
        result: TaskResult,
    ) -> Option<bool> {
        let Some(group) = self.groups.get(&id.session.shard()) else { return Some(false) };
        match self.holder(id, tenant) {
            Holder::NotHere => return None,
            Holder::Foreign => return Some(false),
            Holder::Job(job) => {
                let (reply, counts) = oneshot::channel();
                job.send(Ended::Finished(result, reply)).ok()?;
                return counts.await.ok().flatten();
            }
            Holder::Nobody => {}
        }
        // Nobody waits for it here, but the fence may be the one that counts.
        if group.latest().session(id.session).is_none_or(|session| session.tenant != tenant) {
            return Some(false);
        }
        let resolve = ResolveStep {
            session: id.session,
            step: id.step,
            dispatch: id.dispatch,
            started_at: self.clock.wall(),
            resolution: resolution(result),
            report: None,
        };
        match group.propose_here(Command::ResolveStep(resolve)).await {
            Ok((Outcome::Refused(Refusal::Stale { .. }), _)) => Some(false),
            Ok((outcome, _)) => {
                self.state.lock().forget(id);
                Some(!matches!(outcome, Outcome::Refused(_)))
            }
            Err(_) => None,
        }
    }
}

/// What a worker's word means for its step.
pub(crate) fn resolution(result: TaskResult) -> Resolution {
    let failed = |class, code: &str, message: String| Resolution::Failed {
        failure: Failure::new(class, code, message),
        random: rand::random_range(0..=1000),
        pause: Pause::default(),
    };
    match result {
        TaskResult::Output(output) if output.len() > limits::VALUE_BYTES_MAX => {
            let message =
                format!("the output has {} bytes, the limit is {}", output.len(), limits::VALUE_BYTES_MAX);
            failed(FailureClass::Permanent, "output_too_large", message)
        }
        TaskResult::Output(output) => match serde_json::from_slice::<Value>(&output) {
            // As everywhere: without the spaces of whoever wrote it.
            Ok(value) => Resolution::Completed(Bytes::from(value.to_string())),
            Err(error) => failed(
                FailureClass::Permanent,
                "malformed_output",
                format!("the output is not JSON: {error}"),
            ),
        },
        TaskResult::Failed { code, message, permanent } => {
            let class = if permanent { FailureClass::Permanent } else { FailureClass::Transient };
            let code: String = code.chars().take(limits::NAME_BYTES_MAX / 4).collect();
            failed(class, if code.is_empty() { "worker_failed" } else { &code }, message)
        }
    }
}
