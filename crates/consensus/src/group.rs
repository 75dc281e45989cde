//! A replicated shard.

use std::sync::Arc;

use ids::{NodeId, ShardId};
use machine::{Command, Outcome};
use openraft::raft::ReadPolicy;
use storage::{StateDb, View};
use tokio::sync::{mpsc, oneshot, watch};

use crate::{
    Effects,
    batcher::Proposal,
    raft::{Raft, StateMachine},
};

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

/// Why a read is not possible.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Another node leads.
    #[error("another node leads this shard")]
    NotLeader {
        /// Who, if known.
        leader: Option<NodeId>,
    },
    /// What is on disk can not be read.
    #[error(transparent)]
    Storage(#[from] storage::Error),
}

/// A replicated shard, on one of its nodes.
#[derive(Clone)]
pub struct Group {
    pub(crate) shard: ShardId,
    pub(crate) raft: Raft,
    pub(crate) machine: StateMachine,
    pub(crate) proposals: mpsc::Sender<Proposal>,
    pub(crate) leadership: watch::Receiver<Leadership>,
    pub(crate) effects: Effects,
    pub(crate) state: Arc<StateDb>,
    pub(crate) stopped: watch::Receiver<Option<String>>,
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

    /// The effects of the shard.
    #[must_use]
    pub fn effects(&self) -> &Effects {
        &self.effects
    }

    /// Proposes a command; its outcome, once it is applied here. Dropping the future does not take the command back.
    ///
    /// # Errors
    ///
    /// No outcome, and whether the command may have been proposed nevertheless.
    pub async fn propose(&self, command: Command) -> Result<Outcome, ProposeError> {
        if let Some(reason) = self.stopped.borrow().clone() {
            return Err(ProposeError::WritesStopped { reason });
        }
        let (reply, outcome) = oneshot::channel();
        let proposal = Proposal { bytes: proto::record::command_len(&command), command, reply };
        self.proposals.try_send(proposal).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ProposeError::Overloaded { retry_after_ms: 100 },
            mpsc::error::TrySendError::Closed(_) => ProposeError::Stopped,
        })?;
        outcome.await.unwrap_or(Err(ProposeError::Unknown))
    }

    /// Returns when a view taken afterwards holds everything that was acknowledged before the call.
    ///
    /// # Errors
    ///
    /// This node does not lead.
    pub async fn linearize(&self) -> Result<(), ReadError> {
        match self.raft.ensure_linearizable(ReadPolicy::ReadIndex).await {
            Ok(_) => Ok(()),
            Err(_) => Err(ReadError::NotLeader { leader: self.raft.current_leader().await.map(NodeId) }),
        }
    }

    /// The shard as this node has applied it.
    #[must_use]
    pub fn view(&self) -> View<'_> {
        self.state.view(self.shard)
    }
}

impl std::fmt::Debug for Group {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Group").field("shard", &self.shard).finish_non_exhaustive()
    }
}
