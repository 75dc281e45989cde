//! Questions of the layers above to the nodes of the region, this one included.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use ids::{NodeId, ShardId};
use proto::peer::{Empty, request, response};

use crate::{
    Leadership, ScrubReport, equality,
    net::{Links, Service},
};

/// How long another node may read its rows.
const SCRUB_TIMEOUT: Duration = Duration::from_secs(3_600);

/// Why a question has no answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// It did not reach the node.
    #[error("the node was not reached")]
    NotSent,
    /// It may have reached the node.
    #[error("no answer came")]
    NoAnswer,
}

/// The nodes of the region, as a layer above asks them. Cheap to clone.
#[derive(Clone)]
pub struct Peers {
    pub(crate) service: Arc<Service>,
    pub(crate) links: Links,
}

impl Peers {
    /// This node.
    #[must_use]
    pub fn me(&self) -> NodeId {
        self.service.identity.node
    }

    /// All nodes, this one included.
    #[must_use]
    pub fn nodes(&self) -> BTreeSet<NodeId> {
        let groups = self.service.groups.read();
        let members = groups.values().flat_map(|group| group.members().into_keys());
        members.chain([self.me()]).collect()
    }

    /// Who leads a shard, if known.
    #[must_use]
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        let groups = self.service.groups.read();
        match *groups.get(&shard)?.leadership.borrow() {
            Leadership::Here { .. } => Some(self.me()),
            Leadership::Elsewhere { leader } => leader,
        }
    }

    /// Has a node read every row of every shard it has. Takes as long as that takes.
    ///
    /// # Errors
    ///
    /// The node was not reached.
    pub async fn scrub(&self, node: NodeId) -> Result<Vec<ScrubReport>, AskError> {
        if node == self.me() {
            let shards = self.service.groups.read().keys().copied().collect();
            return Ok(equality::scrub(&self.service.state, shards).await);
        }
        let body = request::Body::Scrub(Empty {});
        match self.links.forward(node, ShardId(0), body, SCRUB_TIMEOUT).await {
            Ok(response::Body::Scrubbed(scrubbed)) => {
                let report = |of: proto::peer::scrubbed::Shard| ScrubReport {
                    shard: ShardId(u16::try_from(of.shard).unwrap_or(u16::MAX)),
                    rows: of.rows,
                    problem: Some(of.problem).filter(|problem| !problem.is_empty()),
                };
                Ok(scrubbed.shards.into_iter().map(report).collect())
            }
            Ok(_) | Err(_) => Err(AskError::NoAnswer),
        }
    }

    /// Asks a node, which may be this one.
    ///
    /// # Errors
    ///
    /// No answer, and whether the node may have got the question nevertheless.
    pub async fn ask(&self, node: NodeId, question: Bytes, timeout: Duration) -> Result<Bytes, AskError> {
        if node == self.me() {
            let handler = self.service.asked.read().clone().ok_or(AskError::NotSent)?;
            return tokio::time::timeout(timeout, handler(question)).await.map_err(|_| AskError::NoAnswer);
        }
        match self.links.forward(node, ShardId(0), request::Body::Ask(question), timeout).await {
            Ok(response::Body::Answer(answer)) => Ok(answer),
            Err(crate::net::CallError::NotSent(_)) => Err(AskError::NotSent),
            Ok(response::Body::Problem(_)) => Err(AskError::NotSent),
            Ok(_) | Err(_) => Err(AskError::NoAnswer),
        }
    }
}

impl std::fmt::Debug for Peers {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Peers").field("me", &self.me()).finish_non_exhaustive()
    }
}
