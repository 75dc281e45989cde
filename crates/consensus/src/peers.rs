//! Questions of the layers above to the nodes of the region, this one included.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use bytes::Bytes;
use ids::{NodeId, ShardId};
use proto::peer::{request, response};

use crate::{
    Leadership,
    net::{Links, Service},
};

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
