//! Looks at every node all the time: terms, commits and what is applied only grow, and a term has one leader.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use serde_json::Value;

use super::load::Load;

const INTERVAL: Duration = Duration::from_millis(100);
/// A node that does not answer in this time is looked at later.
const PATIENCE: Duration = Duration::from_millis(500);

/// What was seen of the nodes so far.
#[derive(Default)]
pub(super) struct Seen {
    /// The last look at a shard of a node, and which start of the node that was.
    last: BTreeMap<(u64, String), (u64, Value)>,
    /// Who led a shard in a term.
    leaders: BTreeMap<(String, u64), u64>,
}

impl Seen {
    /// How often a shard was seen with another leader than before.
    fn moves(&self) -> u64 {
        let terms: Vec<(&String, &u64)> =
            self.leaders.iter().map(|((shard, _), leader)| (shard, leader)).collect();
        terms.windows(2).filter(|pair| pair[0].0 == pair[1].0 && pair[0].1 != pair[1].1).count() as u64
    }

    /// Takes a look at a node into account; what must not be.
    pub(super) fn look(&mut self, status: &Value) -> Vec<String> {
        let (Some(node), Some(starts)) = (status["node"].as_u64(), status["starts"].as_u64()) else {
            return Vec::new();
        };
        let mut found = Vec::new();
        for (shard, now) in status["shards"].as_object().into_iter().flatten() {
            if let Some((of_start, before)) = self.last.get(&(node, shard.clone())) {
                for what in ["term", "committed", "applied"] {
                    // A restarted node applies its log again; its term is kept for ever.
                    let comparable = what == "term" || *of_start == starts;
                    if comparable && now[what].as_u64() < before[what].as_u64() {
                        found.push(format!(
                            "{what} of shard {shard} on node {node} went back from {} to {}: {before}, then {now}",
                            before[what], now[what]
                        ));
                    }
                }
            }
            if let Some(term) = now["leads_in_term"].as_u64() {
                let leader = *self.leaders.entry((shard.clone(), term)).or_insert(node);
                if leader != node {
                    found.push(format!("shard {shard} has two leaders in term {term}: {leader} and {node}"));
                }
            }
            self.last.insert((node, shard.clone()), (starts, now.clone()));
        }
        found
    }
}

/// What is counted meanwhile.
#[derive(Debug, Default)]
pub(super) struct Watched {
    /// Looks at nodes that answered.
    pub(super) looks: AtomicU64,
    /// How often a shard had another leader than before.
    pub(super) moves: AtomicU64,
}

/// Looks, until it is dropped.
pub(super) async fn watch(load: &Load, watched: &Watched) {
    let mut seen = Seen::default();
    loop {
        for url in load.urls() {
            let asked = tokio::time::timeout(PATIENCE, load.get(&url, "/v1/cluster")).await;
            let Ok(Ok(status)) = asked else { continue };
            for violation in seen.look(&status) {
                load.violation(violation);
            }
            watched.looks.fetch_add(1, Ordering::Relaxed);
            watched.moves.store(seen.moves(), Ordering::Relaxed);
        }
        tokio::time::sleep(INTERVAL).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn status(node: u64, starts: u64, shard: &Value) -> Value {
        json!({"node": node, "starts": starts, "shards": {"0": shard}})
    }

    #[test]
    fn what_goes_back_and_two_leaders_are_seen() {
        let mut seen = Seen::default();
        let at = |term: u64, applied: u64| json!({"term": term, "committed": 7, "applied": applied});
        assert!(seen.look(&status(1, 1, &at(2, 7))).is_empty());
        assert_eq!(seen.look(&status(1, 1, &at(2, 6))).len(), 1);
        assert!(seen.look(&status(1, 2, &at(2, 3))).is_empty(), "started again");
        assert_eq!(seen.look(&status(1, 3, &at(1, 3))).len(), 1, "a term is kept");
        assert!(
            seen.look(&status(1, 3, &json!({"leads_in_term": 5}))).len() > 1,
            "nothing is less than something"
        );
        assert_eq!(seen.look(&status(2, 1, &json!({"leads_in_term": 5}))).len(), 1, "two leaders");
    }
}
