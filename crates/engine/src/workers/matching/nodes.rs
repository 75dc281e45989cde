//! News from the nodes that workers are connected to, and its absence.

use std::{collections::HashMap, sync::Arc, time::Duration};

use ids::NodeId;
use proto::peer;
use tokio::time::Instant;

use super::{Ended, Heard, Leased, Matching};
use crate::workers::{QueueKey, TaskId};

/// Between two looks for nodes that are not heard any more.
const KEEP_INTERVAL: Duration = Duration::from_millis(250);

impl Matching {
    /// A node says which workers it has, and that it lives.
    pub(in crate::workers) fn announced(self: &Arc<Self>, announce: peer::Announce) {
        let node = NodeId(announce.node);
        let mut state = self.state.lock();
        let heard = Heard { incarnation: announce.incarnation, at: Instant::now() };
        let before = state.nodes.insert(node, heard);
        if before.is_some_and(|before| before.incarnation != announce.incarnation) {
            let lost_at = Instant::now() + self.patience.reconnect;
            let of_before = |of: &&mut Leased| of.node == node && of.incarnation != announce.incarnation;
            state.leased.values_mut().filter(of_before).for_each(|of| of.lost_at = Some(lost_at));
        }
        let mut capacities: HashMap<Arc<QueueKey>, u32> = HashMap::new();
        for of in announce.queues {
            capacities.insert(Arc::new(QueueKey { tenant: of.tenant, queue: of.queue }), of.capacity);
        }
        for (queue, of) in &mut state.queues {
            if let Some(place) = of.places.get_mut(&node) {
                place.capacity = capacities.get(queue).copied().unwrap_or(0);
            }
            if of.line.is_empty() {
                of.places.retain(|_, place| place.capacity > 0 || place.held > 0);
            }
        }
        state.queues.retain(|_, of| !of.line.is_empty() || !of.places.is_empty());
        for (queue, capacity) in &capacities {
            let of = state.queues.entry(Arc::clone(queue)).or_default();
            let place = of.places.entry(node).or_default();
            // News of free slots may have been lost: it is asked again.
            (place.capacity, place.full, place.credit) = (*capacity, false, 0);
        }
        drop(state);
        for queue in capacities.keys() {
            self.go_on(self.state.lock(), queue);
        }
    }

    /// A node that refused has slots.
    pub(in crate::workers) fn freed(self: &Arc<Self>, free: &peer::Free) {
        let queue = Arc::new(QueueKey { tenant: free.tenant.clone(), queue: free.queue.clone() });
        let mut state = self.state.lock();
        let place = state.queues.get_mut(&queue).and_then(|of| of.places.get_mut(&NodeId(free.node)));
        if let Some(place) = place.filter(|place| place.full) {
            place.credit = place.credit.saturating_add(free.slots);
            self.go_on(state, &queue);
        }
    }

    pub(in crate::workers) fn progress(&self, progress: peer::TaskProgress) {
        let Some(id) = progress.id.as_ref().and_then(TaskId::from_message) else { return };
        let mut state = self.state.lock();
        if let Some(leased) = state.leased.get_mut(&(id.session, id.step))
            && leased.dispatch == id.dispatch
        {
            leased.progress = progress.text;
        }
    }
}

/// Takes leases from nodes that are not heard any more.
pub(crate) async fn keep(matching: Arc<Matching>) {
    let mut tick = tokio::time::interval(KEEP_INTERVAL);
    loop {
        tick.tick().await;
        let now = Instant::now();
        let mut state = matching.state.lock();
        let silent = |heard: &Heard| now.duration_since(heard.at) > matching.patience.lease;
        let gone: Vec<NodeId> =
            state.nodes.iter().filter(|(_, heard)| silent(heard)).map(|(node, _)| *node).collect();
        for node in &gone {
            tracing::warn!(%node, "a node with workers is not heard any more; what they had is given out again");
            state.nodes.remove(node);
            for queue in state.queues.values_mut() {
                queue.places.remove(node);
            }
        }
        for leased in state.leased.values_mut() {
            let lost = gone.contains(&leased.node) || leased.lost_at.is_some_and(|at| at <= now);
            if lost && let Some(ended) = leased.ended.take() {
                // The job has ended: it is no longer wanted.
                let _ = ended.send(Ended::Lost);
            }
        }
    }
}
