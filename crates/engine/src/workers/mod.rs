//! Workers outside the cluster: how their tasks come to them, and what came of it back.
//!
//! Two halves, on every node. [`Matching`] is the leader's: steps that wait for a worker stand in line by queue, and
//! those that a worker has are leased to the node that the worker is connected to. [`Pool`] is the other: the workers
//! connected to this node, and what they have in hand. The halves of all nodes talk by questions ([`Peers`]).
//!
//! - Nothing of this is in the log. A new leader asks every node what its workers have in hand, leaves those steps as
//!   they are, and raises the fence of the rest before it gives them out again.
//! - **Invariant:** a (session, step, dispatch) is given out at most once, whoever leads. Where it is not known whether
//!   it was, the fence is raised first.
//! - A worker is alive while its node hears it; a node is alive while it announces itself. What is lost is given out
//!   again under a raised fence, and counts as a failed attempt only when workers are lost over it again and again.

mod matching;
mod pool;
mod task;

use std::{sync::Arc, time::Duration};

use consensus::{AskError, Clock, Group, Peers};
use ids::{Dispatch, NodeId, SessionId, ShardId, Timestamp};
use prost::Message as _;
use proto::peer::{self, Answer, Empty, Question, answer, question, running::Piece};
use serde_json::{Value, json};

pub(crate) use matching::{Ended, Handed, How, Lease, Matching, Slot, Start, resolution};
pub use pool::{Connection, Hello, Pool, ToWorker};
pub use task::{Assignment, QueueKey, TaskId, TaskResult};

use crate::engine::Running;

/// How long another node's answer is waited for.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// How patient the cluster is with workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A worker or a node that is not heard for this long has lost its tasks.
    pub lease: Duration,
    /// A worker whose connection broke has this long to come back with its tasks.
    pub reconnect: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self { lease: Duration::from_secs(10), reconnect: Duration::from_secs(3) }
    }
}

/// How much the halves of a node have to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Load {
    /// Tasks that wait for a worker, in shards that the node leads.
    pub waiting: usize,
    /// Workers connected to the node.
    pub workers: usize,
    /// Whether there are workers, or tasks for any.
    pub is_used: bool,
}

/// Both halves of a node.
#[derive(Debug)]
pub struct Workers {
    peers: Peers,
    pub(crate) matching: Arc<Matching>,
    pool: Arc<Pool>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
}

impl Workers {
    /// Starts both halves. It stops when this is dropped.
    #[must_use]
    pub fn start(
        peers: Peers,
        groups: impl IntoIterator<Item = Group>,
        clock: Arc<dyn Clock>,
        patience: Patience,
    ) -> Self {
        let pool = Arc::new(Pool::new(peers.clone(), patience));
        let matching = Arc::new(Matching::new(peers.clone(), Arc::clone(&pool), groups, clock, patience));
        pool.serves(&matching);
        let tasks = vec![
            tokio::spawn(pool::announce(Arc::clone(&pool))),
            tokio::spawn(pool::keep(Arc::clone(&pool))),
            tokio::spawn(matching::keep(Arc::clone(&matching))),
        ];
        Self { peers, matching, pool, tasks }
    }

    /// The workers connected to this node.
    #[must_use]
    pub fn pool(&self) -> &Arc<Pool> {
        &self.pool
    }

    /// Answers another node, or this one. `running` tells what work of a session this node has under way.
    pub async fn answer(
        &self,
        question: question::Body,
        running: impl FnOnce(SessionId) -> Vec<Running>,
    ) -> answer::Body {
        match question {
            question::Body::Running(session) => {
                let pieces = session.parse().map(running).unwrap_or_default().into_iter().map(|of| Piece {
                    step: of.step.to_string(),
                    dispatch: of.dispatch.0,
                    started_at: of.started_at.map(|at| at.0),
                    detail: of.detail,
                });
                answer::Body::Running(peer::Running { pieces: pieces.collect() })
            }
            body => self.answer_body(body).await,
        }
    }

    async fn answer_body(&self, body: question::Body) -> answer::Body {
        let done = answer::Body::Done(Empty {});
        match body {
            question::Body::Announce(announce) => {
                self.matching.announced(announce);
                done
            }
            question::Body::Offer(offer) => answer::Body::Offered(self.pool.offered(offer)),
            question::Body::Finished(finished) => self.matching.finished(finished).await,
            question::Body::Lost(tasks) => self.matching.lost(&tasks),
            question::Body::Present(tasks) => self.matching.present(&tasks),
            question::Body::InHand(shard) => answer::Body::InHand(self.pool.in_hand(shard)),
            question::Body::Revoke(id) => {
                self.pool.revoke(&id);
                done
            }
            question::Body::Free(free) => {
                self.matching.freed(&free);
                done
            }
            question::Body::Progress(progress) => {
                self.matching.progress(progress);
                done
            }
            question::Body::List(_) => {
                let both = json!({"workers": self.pool.list(), "queues": self.matching.list()});
                answer::Body::List(both.to_string().into())
            }
            // Questions to the layers above.
            question::Body::Running(_) | question::Body::Measured(_) | question::Body::Replicas(_) => done,
        }
    }

    /// How much this node's halves have to do.
    #[must_use]
    pub fn load(&self) -> Load {
        let (waiting, tasks) = self.matching.load();
        let workers = self.pool.len();
        Load { waiting, workers, is_used: tasks > 0 || workers > 0 }
    }

    /// Workers and queues of all nodes that can be reached, for people: each node's own list.
    pub async fn list(&self) -> Vec<(NodeId, Value)> {
        let asked = self.peers.nodes().into_iter().map(|node| async move {
            let answer = ask(&self.peers, node, question::Body::List(Empty {})).await;
            let Ok(answer::Body::List(list)) = answer else { return None };
            Some((node, serde_json::from_slice(&list).ok()?))
        });
        futures_util::future::join_all(asked).await.into_iter().flatten().collect()
    }

    /// What work of a session is under way, as the leader of its shard says. `None` if it can not be asked.
    pub async fn running_at_leader(&self, session: SessionId) -> Option<Vec<Running>> {
        let body = question::Body::Running(session.to_string());
        let Ok(answer::Body::Running(running)) = ask_leader(&self.peers, session.shard(), body).await else {
            return None;
        };
        let read = |piece: Piece| {
            Some(Running {
                step: piece.step.parse().ok()?,
                dispatch: Dispatch(piece.dispatch),
                started_at: piece.started_at.map(Timestamp),
                detail: piece.detail,
            })
        };
        Some(running.pieces.into_iter().filter_map(read).collect())
    }

    /// What of a session waits for a worker, or has one, as this node knows it.
    pub(crate) fn running(&self, session: SessionId) -> Vec<Running> {
        self.matching.running(session)
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

/// Asks a node.
pub(crate) async fn ask(peers: &Peers, node: NodeId, body: question::Body) -> Result<answer::Body, AskError> {
    let question = Question { body: Some(body) }.encode_to_vec();
    let answer = peers.ask(node, question.into(), ASK_TIMEOUT).await?;
    Answer::decode(answer).ok().and_then(|answer| answer.body).ok_or(AskError::NoAnswer)
}

/// Asks whoever leads a shard.
async fn ask_leader(peers: &Peers, shard: ShardId, body: question::Body) -> Result<answer::Body, AskError> {
    let leader = peers.leader(shard).ok_or(AskError::NotSent)?;
    ask(peers, leader, body).await
}
