//! What workers had in hand before this node led, or came back with.

use std::{sync::Arc, time::Duration};

use consensus::Group;
use ids::{NodeId, ShardId};
use machine::{NodeKind, Read as _, Work};
use proto::peer::{self, Empty, answer, question};
use tokio::time::Instant;

use super::{Ended, How, Key, Matching, Start, Unclaimed};
use crate::workers::{QueueKey, TaskId, ask};

impl Matching {
    /// Steps that an earlier leader may have given out.
    pub(crate) fn expect(&self, group: &Group, pending: &[Work]) {
        let view = group.view();
        let queue_of = |work: &Work| {
            let session = view.session(work.session)?;
            let definition = view.definition(session.definition)?;
            match &definition.nodes.get(usize::from(work.step.node))?.kind {
                NodeKind::Task { queue } => {
                    Some(Arc::new(QueueKey { tenant: session.tenant, queue: queue.clone() }))
                }
                _ => None,
            }
        };
        let queues: Vec<_> = pending.iter().map(|work| (*work, queue_of(work).unwrap_or_default())).collect();
        let mut state = self.state.lock();
        for (work, queue) in queues {
            let id = TaskId { session: work.session, step: work.step, dispatch: work.dispatch };
            if !state.has_lease(id) {
                state.unclaimed.insert((work.session, work.step), Unclaimed { work, queue });
            }
        }
    }

    /// Asks every node what its workers have in hand of a shard, and waits for those that may still come back; what is
    /// left has to be given out again, under a raised fence.
    pub(crate) async fn adopt(self: &Arc<Self>, shard: ShardId) -> Vec<Work> {
        let began = Instant::now();
        let of_shard = |(session, _): &Key| session.shard() == shard;
        if !self.state.lock().unclaimed.keys().any(of_shard) {
            return Vec::new();
        }
        let asked = self.peers.nodes().into_iter().map(|node| async move {
            let answer = ask(&self.peers, node, question::Body::InHand(shard.0.into())).await;
            let Ok(answer::Body::InHand(in_hand)) = answer else { return self.patience.reconnect };
            let ids = in_hand.tasks.iter().filter_map(TaskId::from_message);
            self.claim(ids, None, node, in_hand.incarnation);
            self.patience.reconnect.saturating_sub(Duration::from_millis(in_hand.uptime_ms))
        });
        let patience = futures_util::future::join_all(asked).await.into_iter().max().unwrap_or_default();
        tokio::time::sleep_until(began + patience).await;
        let mut state = self.state.lock();
        let left: Vec<Key> = state.unclaimed.keys().filter(|key| of_shard(key)).copied().collect();
        left.iter().filter_map(|key| state.unclaimed.remove(key)).map(|of| of.work).collect()
    }

    /// Leases tasks to the node whose workers have them. Those that are theirs still.
    fn claim(
        self: &Arc<Self>,
        ids: impl Iterator<Item = TaskId>,
        tenant: Option<&str>,
        node: NodeId,
        incarnation: u64,
    ) -> Vec<TaskId> {
        let (mut kept, mut starts) = (Vec::new(), Vec::new());
        let mut state = self.state.lock();
        for id in ids {
            let key = (id.session, id.step);
            let theirs = |queue: &QueueKey| tenant.is_none_or(|tenant| tenant == queue.tenant);
            if let Some(of) = state.unclaimed.get(&key)
                && of.work.dispatch == id.dispatch
                && theirs(&of.queue)
                && let Some(engine) = state.engines.get(&id.session.shard()).cloned()
                && let Some(Unclaimed { work, queue }) = state.unclaimed.remove(&key)
            {
                let lease = self.lease(&mut state, id, &queue, node);
                starts.push((engine, Start { work, how: How::Adopted(lease) }));
                state.queues.entry(queue).or_default().places.entry(node).or_default().held += 1;
            }
            let Some(leased) = state.leased.get_mut(&key) else { continue };
            if leased.dispatch != id.dispatch || !theirs(&leased.queue) {
                continue;
            }
            let (before, queue) = (leased.node, Arc::clone(&leased.queue));
            (leased.node, leased.incarnation, leased.lost_at) = (node, incarnation, None);
            if before != node {
                let places = &mut state.queues.entry(queue).or_default().places;
                let from = places.entry(before).or_default();
                from.held = from.held.saturating_sub(1);
                places.entry(node).or_default().held += 1;
            }
            kept.push(id);
        }
        drop(state);
        for (engine, start) in starts {
            // The engine has stopped: whoever leads next asks again.
            let _ = engine.send(start);
        }
        kept
    }

    fn leads(&self, tasks: &peer::Tasks) -> bool {
        let state = self.state.lock();
        let mut ids = tasks.tasks.iter().filter_map(TaskId::from_message);
        ids.all(|id| state.engines.contains_key(&id.session.shard()))
    }

    /// Workers that came back have these in hand.
    pub(in crate::workers) fn present(self: &Arc<Self>, tasks: &peer::Tasks) -> answer::Body {
        if !self.leads(tasks) {
            return answer::Body::NotLeader(Empty {});
        }
        let ids = tasks.tasks.iter().filter_map(TaskId::from_message);
        let kept = self.claim(ids, Some(&tasks.tenant), NodeId(tasks.node), tasks.incarnation);
        let tasks = kept.into_iter().map(TaskId::message).collect();
        answer::Body::Kept(peer::Tasks { tasks, ..peer::Tasks::default() })
    }

    /// The workers of a node have lost these.
    pub(in crate::workers) fn lost(&self, tasks: &peer::Tasks) -> answer::Body {
        if !self.leads(tasks) {
            return answer::Body::NotLeader(Empty {});
        }
        let mut state = self.state.lock();
        for id in tasks.tasks.iter().filter_map(TaskId::from_message) {
            let leased = state.leased.get_mut(&(id.session, id.step));
            let leased = leased.filter(|of| of.dispatch == id.dispatch && of.node.0 == tasks.node);
            if let Some(ended) = leased.and_then(|of| of.ended.take()) {
                // The job has ended: it is no longer wanted.
                let _ = ended.send(Ended::Lost);
            }
        }
        answer::Body::Done(Empty {})
    }
}
