//! Sessions as the APIs see them: start, read, list, steer.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use consensus::{Group, Leadership, Node, ProposeError, Status, Watch};
use engine::{Engine, Running, Workers};
use ids::{Seq, SessionId, ShardId, StepId, TraceContext};
use machine::{Command, Key, Outcome, Read, SessionLimits, SessionStatus};
use proto::peer::{answer, question};
use providers::{ProviderStatus, Router};
use serde_json::Value;
use tokio::sync::broadcast;

use crate::{
    capacity::{Capacity, Used},
    error::{self, ApiError},
};

/// How long a request is retried while a shard has no leader that answers: some elections long. A node that is cut off
/// must not hold on to a client that could ask another one.
const ELECTION_PATIENCE: Duration = Duration::from_secs(5);
const ELECTION_PAUSE: Duration = Duration::from_millis(20);
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// Events of one page.
pub(crate) const EVENTS_PAGE_MAX: usize = 500;

mod ended;
mod filter;
mod history;
mod read;
mod show;
mod start;
mod workflows;

pub(crate) use filter::Filter;
pub(crate) use history::FORMAT as HISTORY_FORMAT;
pub(crate) use start::budget;

type Result<T> = std::result::Result<T, ApiError>;

/// What a session is started with.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    pub(crate) workflow: WorkflowRef,
    pub(crate) input: Value,
    pub(crate) id: Option<SessionId>,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) lock_key: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) limits: SessionLimits,
    /// The trace that the client named.
    pub(crate) trace: Option<TraceContext>,
}

/// A workflow, by name or in full.
#[derive(Debug, Clone)]
pub(crate) enum WorkflowRef {
    Name(String),
    Source(String),
}

/// What a start answers.
#[derive(Debug, Clone)]
pub(crate) struct Started {
    pub(crate) id: SessionId,
    pub(crate) created: bool,
    pub(crate) status: SessionStatus,
    pub(crate) position: u64,
}

/// A page of events.
#[derive(Debug)]
pub(crate) struct Events {
    pub(crate) events: Vec<Value>,
    pub(crate) next: Seq,
    pub(crate) ended: bool,
}

/// The service behind both APIs.
pub struct Sessions {
    node: Node,
    engines: BTreeMap<ShardId, Engine>,
    workers: Arc<Workers>,
    router: Arc<Router>,
    waiters: Arc<ended::Waiters>,
    capacity: Capacity,
}

impl Sessions {
    pub(crate) fn new(
        node: Node,
        engines: BTreeMap<ShardId, Engine>,
        workers: Arc<Workers>,
        router: Arc<Router>,
        capacity: Capacity,
    ) -> Self {
        Self { node, engines, workers, router, waiters: Arc::default(), capacity }
    }

    /// How much there is of what there may be so much of.
    pub(crate) fn used(&self) -> Vec<Used> {
        self.capacity.used(&self.node)
    }

    pub(crate) fn drain(&self) {
        self.workers.pool().leave();
        for engine in self.engines.values() {
            engine.drain();
        }
    }

    /// Hands over the lead of every shard once no work of it is under way here, so that its sessions wait no longer
    /// than for that.
    pub(crate) async fn hand_over_when_done(&self) {
        let shards = self.engines.iter().map(|(shard, engine)| async move {
            while engine.running_count() > 0 {
                tokio::time::sleep(DRAIN_POLL).await;
            }
            if let Some(group) = self.node.groups().get(shard) {
                group.hand_over(None).await;
            }
        });
        futures_util::future::join_all(shards).await;
    }

    pub(crate) async fn stop(mut self) {
        self.engines.clear();
        self.node.stop().await;
    }

    pub(crate) fn running_count(&self) -> usize {
        self.engines.values().map(Engine::running_count).sum()
    }

    pub(crate) fn status(&self) -> Status {
        self.node.status()
    }

    pub(crate) fn node(&self) -> &Node {
        &self.node
    }

    /// The work of a session that is under way, where it is: on the leader of its shard.
    async fn running(&self, id: SessionId) -> Vec<Running> {
        self.workers.running_at_leader(id).await.unwrap_or_default()
    }

    pub(crate) fn workers(&self) -> &Workers {
        &self.workers
    }

    /// Answers another node, or this one, about work.
    pub(crate) async fn answer(&self, question: question::Body) -> answer::Body {
        let running = |id: SessionId| {
            self.engines.get(&id.shard()).map(|engine| engine.running(id)).unwrap_or_default()
        };
        self.workers.answer(question, running).await
    }

    pub(crate) fn providers(&self) -> Vec<ProviderStatus> {
        self.router.status()
    }

    pub(crate) fn is_simulated(&self) -> bool {
        self.router.is_simulated()
    }

    /// Why the node is not ready, if it is not.
    pub(crate) fn not_ready(&self) -> Vec<String> {
        let status = self.status();
        let mut errors: Vec<String> = status
            .shards
            .iter()
            .filter(|(_, lead)| matches!(lead, Leadership::Elsewhere { leader: None }))
            .map(|(shard, _)| format!("shard {shard}: no leader"))
            .collect();
        errors.extend(status.broken.into_values());
        errors.extend(status.refused);
        errors.extend(status.writes_stopped.map(|reason| format!("writes: {reason}")));
        if status.draining {
            errors.push("draining: the node takes no new work, and may be about to stop".to_owned());
        }
        errors
    }

    /// The trace that a session's client named, as far as this node knows the session.
    pub(crate) fn trace_of(&self, session: SessionId) -> Option<TraceContext> {
        let row = self.group_of(session).ok()?.latest().session(session)?;
        crate::traces::given(&row)
    }

    fn group(&self, shard: ShardId) -> Result<&Group> {
        self.node.groups().get(&shard).ok_or_else(|| ApiError::not_found(format!("shard {shard}")))
    }

    fn group_of(&self, session: SessionId) -> Result<&Group> {
        if session.region() != self.node.identity().region {
            return Err(ApiError::not_found(format!("session {session}")));
        }
        self.group(session.shard()).map_err(|_| ApiError::not_found(format!("session {session}")))
    }

    /// Proposes, through an election if need be. Safe to repeat: the edge has minted every id.
    async fn propose(&self, group: &Group, command: Command) -> Result<Outcome> {
        // Whether an earlier attempt may have been done, so that what a later one is told need not be the answer.
        let mut unknown = false;
        let attempt = async {
            loop {
                match group.propose(command.clone()).await {
                    Err(ProposeError::NotLeader { .. }) => await_leader(group).await,
                    Err(ProposeError::Unknown) => {
                        unknown = true;
                        await_leader(group).await;
                    }
                    Ok(outcome) if !matches!(outcome, Outcome::Refused(_)) => return Ok(outcome),
                    Ok(_) | Err(_) if unknown => {
                        let detail =
                            "a leader changed meanwhile: the request may have been done; look, or repeat it";
                        return Err(ApiError::new(error::UNAVAILABLE, detail));
                    }
                    Ok(Outcome::Refused(refusal)) => return Err(refusal.into()),
                    Ok(outcome) => return Ok(outcome),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        tokio::time::timeout(ELECTION_PATIENCE, attempt).await.unwrap_or_else(|_| {
            Err(ApiError::new(
                error::UNAVAILABLE,
                "the shard has had no leader for too long; repeat the request",
            ))
        })
    }

    async fn read(&self, group: &Group) -> Result<()> {
        let attempt = async {
            loop {
                match group.linearize().await {
                    Ok(()) => return Ok(()),
                    Err(_) => await_leader(group).await,
                }
            }
        };
        tokio::time::timeout(ELECTION_PATIENCE, attempt)
            .await
            .unwrap_or_else(|_| Err(ApiError::new(error::UNAVAILABLE, "the shard has no leader")))
    }

    /// News of a session's shard.
    pub(crate) fn watch(&self, id: SessionId) -> Result<broadcast::Receiver<Watch>> {
        Ok(self.group_of(id)?.effects().watch())
    }
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").field("node", &self.node).finish_non_exhaustive()
    }
}

/// Waits for news of who leads, or a moment: the news may be on its way, or the leader known and just not reached.
async fn await_leader(group: &Group) {
    let mut leadership = group.leadership();
    leadership.mark_unchanged();
    // A shard that has stopped has no news.
    let _ = tokio::time::timeout(ELECTION_PAUSE, leadership.changed()).await;
}

fn pending(view: &impl Read, id: SessionId) -> Vec<StepId> {
    let from = Key::Pending(id, StepId::default());
    let to = Key::Pending(id.successor(), StepId::default());
    let rows = view.scan(&from, &to, read::STEPS_MAX).into_iter();
    rows.filter_map(|(key, _)| match key {
        Key::Pending(_, step) => Some(step),
        _ => None,
    })
    .collect()
}
