//! Which rules the nodes of a cluster know, and which are in force: how a cluster is upgraded node by node.
//!
//! A release knows the rules from [`MACHINE_VERSION_OLDEST`] to [`MACHINE_VERSION`], which people know as feature
//! levels. Nodes of two releases run together by rules that both know, and each can go back to the older release, until
//! newer rules are finalized. From then on, who does not know them is not listened to.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures_util::future::join_all;
use ids::{NodeId, Position, ShardId};
use machine::{Command, MACHINE_VERSION, MACHINE_VERSION_OLDEST, Outcome, Read as _};
use parking_lot::Mutex;
use proto::peer::{self, Empty, request, response};

use crate::{Group, Leadership, Node};

/// How long a node is waited for when it is asked what it knows.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long to wait before the first entry of a shard is tried again.
const BEGIN_PAUSE: Duration = Duration::from_millis(50);

/// The program that a node runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release {
    /// Its version; empty for one that does not say.
    pub version: String,
    /// The newest rules that it knows.
    pub machine_version: u32,
}

impl Release {
    /// This program.
    #[must_use]
    pub fn this() -> Self {
        Self { version: env!("CARGO_PKG_VERSION").to_owned(), machine_version: MACHINE_VERSION }
    }

    pub(crate) fn of(greeted: &peer::Greeted) -> Self {
        // Release 0.1 said neither.
        Self { version: greeted.version.clone(), machine_version: greeted.machine_version.max(1) }
    }
}

/// What the peers of a node run, as they said last.
pub(crate) type Releases = Arc<Mutex<BTreeMap<NodeId, Release>>>;

/// Why a node can not take part: it does not know the rules that are in force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "feature level {in_force} is in force, and release {} knows {MACHINE_VERSION_OLDEST} to {MACHINE_VERSION}: start {} one",
    env!("CARGO_PKG_VERSION"),
    if *in_force > MACHINE_VERSION { "a newer" } else { "an older" }
)]
pub struct Unsupported {
    /// The rules in force.
    pub in_force: u32,
}

/// Whether this program knows rules.
pub(crate) fn check(in_force: u32) -> Result<(), Unsupported> {
    let known = (MACHINE_VERSION_OLDEST..=MACHINE_VERSION).contains(&in_force);
    if known { Ok(()) } else { Err(Unsupported { in_force }) }
}

/// The newest rules that are in force in any shard.
pub(crate) fn in_force(groups: &BTreeMap<ShardId, Group>) -> u32 {
    groups.values().map(|group| group.latest().shard().machine_version).max().unwrap_or(0)
}

/// Writes the first entry of shards that begin here, which brings the newest rules into force: before other nodes
/// join, of which nobody would know whether they know them.
pub(crate) async fn begin(groups: BTreeMap<ShardId, Group>) {
    let begun = groups.values().map(|group| async move {
        let mut leadership = group.leadership();
        let leads = |lead: &Leadership| matches!(lead, Leadership::Here { .. });
        // Only who leads knows the members: those of a new shard are not there from the start.
        while leadership.wait_for(leads).await.is_ok() {
            let is_new = group.latest().shard().position == Position::default();
            if !is_new || group.members().len() > 1 {
                return;
            }
            match group.propose(Command::Finalize { machine_version: MACHINE_VERSION }).await {
                Ok(_) => return,
                Err(error) => {
                    tracing::debug!(shard = %group.shard(), %error, "the first entry is tried again")
                }
            }
            tokio::time::sleep(BEGIN_PAUSE).await;
        }
    });
    join_all(begun).await;
}

/// Why newer rules did not come into force.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FinalizeError {
    /// Nodes run an older release. Nothing changed.
    #[error("{} of an older release: upgrade or remove {}", list(.nodes), if .nodes.len() == 1 { "it" } else { "them" })]
    Older {
        /// Which.
        nodes: Vec<NodeId>,
    },
    /// Nodes did not say what they run. Nothing changed.
    #[error("{} did not answer: start or remove {}", list(.nodes), if .nodes.len() == 1 { "it" } else { "them" })]
    Silent {
        /// Which.
        nodes: Vec<NodeId>,
    },
    /// A shard could not be told. The others may be; the request may be repeated.
    #[error("shard {shard}: {reason}")]
    Incomplete {
        /// The shard.
        shard: ShardId,
        /// What came in the way.
        reason: String,
    },
}

fn list(nodes: &[NodeId]) -> String {
    let names: Vec<String> = nodes.iter().map(ToString::to_string).collect();
    format!("{} {}", if nodes.len() == 1 { "node" } else { "nodes" }, names.join(", "))
}

impl Node {
    /// What every node runs, as far as this one was told.
    #[must_use]
    pub fn releases(&self) -> BTreeMap<NodeId, Release> {
        let mut all = self.releases.lock().clone();
        all.insert(self.identity().node, Release::this());
        all
    }

    /// The rules in force: the oldest of any shard.
    #[must_use]
    pub fn machine_version(&self) -> u32 {
        let versions = self.groups().values().map(|group| group.latest().shard().machine_version);
        versions.min().unwrap_or(MACHINE_VERSION)
    }

    /// Brings the newest rules that all nodes know into force, in every shard. There is no way back. May be repeated.
    ///
    /// # Errors
    ///
    /// Not every node knows them, or says so.
    pub async fn finalize(&self) -> Result<u32, FinalizeError> {
        let (me, links) = (self.identity().node, self.links());
        let members = self.groups().values().flat_map(|group| group.members().into_keys());
        let others: std::collections::BTreeSet<NodeId> = members.filter(|node| *node != me).collect();
        let asked = others.into_iter().map(|node| async move {
            match links.control(node, ShardId(0), request::Body::Greet(Empty {}), ASK_TIMEOUT).await {
                Ok(response::Body::Greeted(greeted)) => (node, Some(Release::of(&greeted).machine_version)),
                _ => (node, None),
            }
        });
        let answers = join_all(asked).await;
        let of = |wanted: fn(Option<u32>) -> bool| -> Vec<NodeId> {
            answers.iter().filter(|(_, known)| wanted(*known)).map(|(node, _)| *node).collect()
        };
        let silent = of(|known| known.is_none());
        if !silent.is_empty() {
            return Err(FinalizeError::Silent { nodes: silent });
        }
        let older = of(|known| known.is_some_and(|known| known < MACHINE_VERSION));
        if !older.is_empty() {
            return Err(FinalizeError::Older { nodes: older });
        }
        for (shard, group) in self.groups() {
            let finalize = Command::Finalize { machine_version: MACHINE_VERSION };
            let incomplete = |reason: String| FinalizeError::Incomplete { shard: *shard, reason };
            match group.propose(finalize).await {
                Ok(Outcome::Done) => {}
                Ok(outcome) => return Err(incomplete(format!("{outcome:?}"))),
                Err(error) => return Err(incomplete(error.to_string())),
            }
        }
        Ok(self.machine_version())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_are_not_known_are_told_from_those_that_are() {
        assert!(check(MACHINE_VERSION_OLDEST).is_ok() && check(MACHINE_VERSION).is_ok());
        assert!(
            check(MACHINE_VERSION + 1).is_err_and(|error| error.to_string().ends_with("start a newer one"))
        );
        assert!(
            check(MACHINE_VERSION_OLDEST - 1).is_err_and(|error| error.to_string().ends_with("an older one"))
        );
    }
}
