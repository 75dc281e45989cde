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

    /// A worker says what came of a task.
    pub(in crate::workers) async fn finished(&self, finished: peer::Finished) -> answer::Body {
        let not_leader = answer::Body::NotLeader(Empty {});
        let recorded = |counts| answer::Body::Recorded(peer::Recorded { counts });
        let id = finished.id.as_ref().and_then(TaskId::from_message);
        let (Some(id), Some(result)) = (id, finished.result) else { return recorded(false) };
        let Some(group) = self.groups.get(&id.session.shard()) else { return recorded(false) };
        let result = TaskResult::from_message(result);
        match self.holder(id, &finished.tenant) {
            Holder::NotHere => return not_leader,
            Holder::Foreign => return recorded(false),
            Holder::Job(job) => {
                let (reply, counts) = oneshot::channel();
                if job.send(Ended::Finished(result, reply)).is_err() {
                    return not_leader;
                }
                return counts.await.ok().flatten().map_or(not_leader, recorded);
            }
            Holder::Nobody => {}
        }
        // Nobody waits for it here, but the fence may be the one that counts.
        if group.latest().session(id.session).is_none_or(|session| session.tenant != finished.tenant) {
            return recorded(false);
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
            Ok((Outcome::Refused(Refusal::Stale { .. }), _)) => recorded(false),
            Ok((outcome, _)) => {
                self.state.lock().forget(id);
                recorded(!matches!(outcome, Outcome::Refused(_)))
            }
            Err(_) => not_leader,
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
