//! A replicated shard.

use std::{sync::Arc, time::Duration};

use ids::{NodeId, ShardId, Timestamp};
use machine::{Command, Outcome};
use openraft::async_runtime::watch::WatchReceiver as _;
use parking_lot::Mutex;
use proto::peer::request;
use storage::{Latest, ShardLog, StateDb, View};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    ClusterClock, Comparison, Effects,
    batcher::{HandOver, Proposal, ShardTime},
    mutants::{self, Mutant},
    net::Links,
    raft::{Raft, StateMachine},
    reads::Rounds,
};

/// How long the leader is waited for when it is asked to hand over its lead.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// How long a lead may take to be handed over, with what is on its way before.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(5);

/// Who leads a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leadership {
    /// Another node, or nobody that is known.
    Elsewhere {
        /// Who, if known.
        leader: Option<NodeId>,
    },
    /// This node, and the first entry of its term is applied: it may act.
    Here {
        /// Its term.
        term: u64,
    },
}

/// How far a replica is. Indexes are those of its log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// The term that it is in.
    pub term: u64,
    /// The first entry that the log still holds: a node that is behind it gets the state instead.
    pub log_from: u64,
    /// The last entry that it has and knows to be committed.
    pub committed: Option<u64>,
    /// The last entry that it has applied.
    pub applied: Option<u64>,
}

/// Why a command has no outcome.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// Another node leads; the command was not proposed.
    #[error("another node leads this shard")]
    NotLeader {
        /// Who, if known.
        leader: Option<NodeId>,
    },
    /// Too many commands wait; this one was not proposed.
    #[error("too many commands wait for this shard")]
    Overloaded {
        /// When to try again, in milliseconds.
        retry_after_ms: u64,
    },
    /// Writes are not going through; the command was not proposed.
    #[error("writes are stopped: {reason}")]
    WritesStopped {
        /// Why, such as a full disk.
        reason: String,
    },
    /// The command may or may not have been committed: ask again with the same ids.
    #[error("the outcome is not known: the leader changed, or the node stops")]
    Unknown,
    /// The node stops.
    #[error("the node stops")]
    Stopped,
}

/// Why a read is not possible: another node leads, and it can not be asked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the shard's leader can not be asked")]
pub struct ReadError {
    /// Who leads, if known.
    pub leader: Option<NodeId>,
}

impl From<ReadError> for ProposeError {
    fn from(error: ReadError) -> Self {
        Self::NotLeader { leader: error.leader }
    }
}

/// A replicated shard, on one of its nodes.
#[derive(Clone)]
pub struct Group {
    pub(crate) shard: ShardId,
    pub(crate) raft: Raft,
    pub(crate) machine: StateMachine,
    pub(crate) log: ShardLog,
    pub(crate) links: Links,
    pub(crate) proposals: mpsc::Sender<Proposal>,
    pub(crate) wishes: mpsc::Sender<HandOver>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) rounds: Arc<Rounds>,
    pub(crate) effects: Effects,
    pub(crate) state: Arc<StateDb>,
    pub(crate) stopped: watch::Receiver<Option<String>>,
    pub(crate) clock: Arc<ClusterClock>,
    pub(crate) time: ShardTime,
    pub(crate) compared: Arc<Mutex<Option<(Comparison, Timestamp)>>>,
}

impl Group {
    /// The shard.
    #[must_use]
    pub fn shard(&self) -> ShardId {
        self.shard
    }

    /// Who leads, as it changes.
    #[must_use]
    pub fn leadership(&self) -> watch::Receiver<Leadership> {
        self.leadership.clone()
    }

    /// The shard's time, by which its timers are due. It may be far from the wall clock. `None` if another node leads,
    /// or nothing was proposed yet since this one does.
    #[must_use]
    pub fn now(&self) -> Option<Timestamp> {
        let Leadership::Here { term } = *self.leadership.borrow() else { return None };
        self.time.now(term, self.clock.as_ref())
    }

    /// The effects of the shard.
    #[must_use]
    pub fn effects(&self) -> &Effects {
        &self.effects
    }

    /// Proposes a command, here or on the node that leads; its outcome, once it is applied here. Dropping the future
    /// does not take the command back.
    ///
    /// # Errors
    ///
    /// No outcome, and whether the command may have been proposed nevertheless.
    pub async fn propose(&self, command: Command) -> Result<Outcome, ProposeError> {
        let leadership = *self.leadership.borrow();
        let leader = match leadership {
            Leadership::Here { .. } => {
                return self.propose_here(command).await.map(|(outcome, _)| outcome);
            }
            Leadership::Elsewhere { leader } => leader.ok_or(ProposeError::NotLeader { leader })?,
        };
        let (outcome, index) = self.links.propose(leader, self.shard, &command).await?;
        // So that whoever reads here next sees what came of it.
        self.machine.applied_until(index).await;
        Ok(outcome)
    }

    /// Proposes a command if this node leads; its outcome, and the index of its entry.
    ///
    /// # Errors
    ///
    /// As [`Group::propose`].
    pub async fn propose_here(&self, command: Command) -> Result<(Outcome, u64), ProposeError> {
        if let Some(reason) = self.stopped.borrow().clone() {
            return Err(ProposeError::WritesStopped { reason });
        }
        if mutants::is_on(Mutant::AcknowledgeEarly)
            && let Some(outcome) = self.acknowledge_early(&command)
        {
            return Ok((outcome, 0));
        }
        let (reply, outcome) = oneshot::channel();
        let proposal = Proposal { bytes: proto::record::command_len(&command), command, reply };
        self.proposals.try_send(proposal).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Overloaded { retry_after_ms: 100 },
            mpsc::error::TrySendError::Closed(_) => ProposeError::Stopped,
        })?;
        outcome.await.unwrap_or(Err(ProposeError::Unknown))
    }

    /// Proposes, and does not wait for what comes of it.
    fn acknowledge_early(&self, command: &Command) -> Option<Outcome> {
        let outcome = match command {
            Command::Signal { .. } => Outcome::Done,
            _ => return None,
        };
        let (reply, _) = oneshot::channel();
        let proposal =
            Proposal { bytes: proto::record::command_len(command), command: command.clone(), reply };
        self.proposals.try_send(proposal).ok().map(|()| outcome)
    }

    /// As [`Group::hand_over`], by whichever node leads; returns when the news has arrived here.
    pub async fn hand_over_anywhere(&self, to: Option<NodeId>) {
        let mut leadership = self.leadership.clone();
        let before = *leadership.borrow_and_update();
        match before {
            Leadership::Here { .. } => self.hand_over(to).await,
            Leadership::Elsewhere { leader: Some(leader) } => {
                let body = request::Body::HandOver(to.map_or(0, |to| to.0));
                if self.links.forward(leader, self.shard, body, ASK_TIMEOUT).await.is_err() {
                    return;
                }
            }
            Leadership::Elsewhere { leader: None } => return,
        }
        let known = |lead: &Leadership| *lead != before && *lead != Leadership::Elsewhere { leader: None };
        // The lead may have stayed where it was.
        let _ = tokio::time::timeout(ASK_TIMEOUT, leadership.wait_for(known)).await;
    }

    /// Gives up the lead of the shard, to a node or to whoever is best. Returns when it is done, or can not be.
    pub async fn hand_over(&self, to: Option<NodeId>) {
        if !matches!(*self.leadership.borrow(), Leadership::Here { .. }) {
            return;
        }
        let to = match to {
            Some(node) => self.would_lead(node).await.then_some(node).into_iter().collect(),
            None => self.successors().await,
        };
        if to.is_empty() {
            // Nobody would take it.
            return;
        }
        let (done, wait) = oneshot::channel();
        // A full queue, or a shard that has stopped: there is nothing to hand over, or it is under way.
        if self.wishes.try_send(HandOver { to, done }).is_ok() {
            // Entries that are on their way come first, and where most nodes are gone they never arrive.
            let _ = tokio::time::timeout(HAND_OVER_TIMEOUT, wait).await;
        }
    }

    /// How far this replica is.
    #[must_use]
    pub fn progress(&self) -> Progress {
        let metrics = self.raft.metrics();
        let metrics = metrics.borrow_watched();
        Progress {
            term: metrics.current_term,
            log_from: metrics.purged.as_ref().map_or(0, |id| id.index() + 1),
            committed: metrics.local_committed.as_ref().map(openraft::LogId::index),
            applied: metrics.last_applied.as_ref().map(openraft::LogId::index),
        }
    }

    /// How many commands wait to be proposed here.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.proposals.max_capacity() - self.proposals.capacity()
    }

    /// Whether this replica counts in the quorum.
    pub(crate) fn has_vote(&self) -> bool {
        let me = self.links.me().node.0;
        self.raft.metrics().borrow_watched().membership_config.membership().voter_ids().any(|id| id == me)
    }

    /// The shard as this node has applied it.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        self.state.view(self.shard)
    }

    /// The shard as this node has applied it, each row as it is when it is read.
    #[must_use]
    pub fn latest(&self) -> Latest<'_> {
        self.state.latest(self.shard)
    }
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("shard", &self.shard).finish_non_exhaustive()
    }
}
