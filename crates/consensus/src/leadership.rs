//! Who leads a shard: how a node learns it, hands it over, and how the leads of all shards spread over the nodes.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ids::{NodeId, ShardId};
use openraft::async_runtime::watch::WatchReceiver as _;
use proto::peer::{Empty, request, response};
use tokio::{sync::watch, time::Instant};

use crate::{
    Group, Leadership,
    net::{Links, Service},
    raft::Raft,
};

/// How long a hand-over may take before the lead is kept.
const HAND_OVER_TIMEOUT: Duration = Duration::from_millis(1_500);
const POLL: Duration = Duration::from_millis(2);
/// How long everything must have been quiet before a lead moves to where it belongs.
const BALANCE_REST: Duration = Duration::from_secs(5);
const BALANCE_INTERVAL: Duration = Duration::from_secs(1);
const ASK_TIMEOUT: Duration = Duration::from_millis(500);

/// Tells who leads, and learns where the other nodes are. This node leads only once the first entry of its term is
/// applied.
pub(crate) async fn follow(node: NodeId, raft: Raft, links: Links, lead: watch::Sender<Leadership>) {
    let mut metrics = raft.metrics();
    let mut known = None;
    loop {
        let now = {
            let metrics = metrics.borrow_watched();
            let membership = &metrics.membership_config;
            if known != Some(*membership.log_id()) {
                known = Some(*membership.log_id());
                for (id, member) in membership.membership().nodes().filter(|(id, _)| **id != node.0) {
                    links.learn(NodeId(*id), member);
                }
            }
            let ready = metrics.last_applied.as_ref().is_some_and(|applied| {
                let leader = applied.committed_leader_id();
                leader.term == metrics.current_term && leader.node_id == node.0
            });
            match metrics.current_leader {
                Some(leader) if leader == node.0 && metrics.state.is_leader() && ready => {
                    Leadership::Here { term: metrics.current_term }
                }
                leader => {
                    Leadership::Elsewhere { leader: leader.filter(|leader| *leader != node.0).map(NodeId) }
                }
            }
        };
        lead.send_if_modified(|before| std::mem::replace(before, now) != now);
        if metrics.changed().await.is_err() || lead.is_closed() {
            return;
        }
    }
}

/// Hands over the lead, to that of some voters that has most. The caller proposes nothing meanwhile.
pub(crate) async fn hand_over(raft: &Raft, mut leadership: watch::Receiver<Leadership>, to: &[NodeId]) {
    let until = Instant::now() + HAND_OVER_TIMEOUT;
    while matches!(*leadership.borrow(), Leadership::Here { .. }) && Instant::now() < until {
        let target = {
            let metrics = raft.metrics();
            let metrics = metrics.borrow_watched();
            let voters = metrics.membership_config.membership().voter_ids();
            let replication = metrics.replication.as_ref();
            let matched = |node: u64| Some(replication?.get(&node)?.as_ref()?.index());
            voters
                .filter(|node| *node != metrics.id && to.contains(&NodeId(*node)))
                .max_by_key(|node| matched(*node))
                .filter(|node| matched(*node) == metrics.last_log_index)
        };
        if let Some(target) = target {
            if raft.trigger().transfer_leader(target).await.is_err() {
                return;
            }
            let gone = leadership.wait_for(|lead| !matches!(lead, Leadership::Here { .. }));
            // Not taken: tried again, with whoever is best then.
            let _ = tokio::time::timeout(HAND_OVER_TIMEOUT / 3, gone).await;
        } else {
            tokio::time::sleep(POLL).await;
        }
    }
}

impl Group {
    /// Whether a node is there and takes a lead. One that is away, about to leave or full would refuse, and Raft, which
    /// has stopped to lead by then, waits for an election.
    pub(crate) async fn would_lead(&self, node: NodeId) -> bool {
        let asked = self.links.control(node, self.shard, request::Body::Greet(Empty {}), ASK_TIMEOUT).await;
        matches!(asked, Ok(response::Body::Greeted(greeted)) if !greeted.draining)
    }

    /// The other voters that would take the lead.
    pub(crate) async fn successors(&self) -> Vec<NodeId> {
        let others = self.members().into_iter().filter(|(node, of)| of.voter && *node != self.node());
        let asked = others.map(|(node, _)| async move { self.would_lead(node).await.then_some(node) });
        futures_util::future::join_all(asked).await.into_iter().flatten().collect()
    }
}

/// Hands every lead of this node over.
pub(crate) async fn hand_over_all(groups: &BTreeMap<ShardId, Group>) {
    let all = groups.values().map(|group| group.hand_over(None));
    futures_util::future::join_all(all).await;
}

/// Moves leads to where they belong: shard *n* to voter number *n* modulo their count, by id. Every node knows the same
/// place for a shard, so leads never wander to and fro; a place is taken up only after things have been quiet.
pub(crate) async fn balance(node: NodeId, service: Arc<Service>) {
    let mut quiet: BTreeMap<ShardId, (Leadership, Instant)> = BTreeMap::new();
    let mut tick = tokio::time::interval(BALANCE_INTERVAL);
    loop {
        tick.tick().await;
        let groups = service.groups.read().clone();
        for (shard, group) in &groups {
            let now = *group.leadership.borrow();
            let since = quiet.entry(*shard).or_insert_with(|| (now, Instant::now()));
            if since.0 != now {
                *since = (now, Instant::now());
            }
            if !matches!(now, Leadership::Here { .. }) {
                continue;
            }
            if service.gives_up_leads() {
                // It stands for election all the same, and may have won one.
                group.hand_over(None).await;
                continue;
            }
            if since.1.elapsed() < BALANCE_REST {
                continue;
            }
            let members = group.members();
            let voters: Vec<NodeId> = members.iter().filter(|(_, of)| of.voter).map(|(id, _)| *id).collect();
            let Some(place) = voters.get(usize::from(shard.0) % voters.len().max(1)) else { continue };
            if *place == node {
                continue;
            }
            group.hand_over(Some(*place)).await;
            if !matches!(*group.leadership.borrow(), Leadership::Here { .. }) {
                tracing::info!(%shard, to = %place, "the lead was handed over to where it belongs");
            }
            quiet.remove(shard);
        }
    }
}
