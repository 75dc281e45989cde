//! How far the replicas of every shard are behind, and whether they are equal.

use std::collections::{BTreeMap, BTreeSet};

use consensus::{Comparison, Group, Leadership, Verdict};
use ids::{NodeId, ShardId, Timestamp};
use proto::peer::{Empty, Replicas, answer, question, replicas::Replica};
use serde_json::{Value, json};

use crate::{questions::ask_all, wiring::App};

/// What this node knows of its own replicas.
pub(crate) fn here(app: &App) -> Replicas {
    let of = |group: &Group| {
        let progress = group.progress();
        let last = group.last_comparison();
        Replica {
            shard: u32::from(group.shard().0),
            leads: matches!(*group.leadership().borrow(), Leadership::Here { .. }),
            committed: progress.committed,
            applied: progress.applied,
            compared_at: last.as_ref().map_or(0, |(_, at)| at.0),
            compared: last.map(|(comparison, _)| comparison.message()),
        }
    };
    Replicas { replicas: app.sessions.node().groups().values().map(of).collect() }
}

/// The replicas of all shards, on every node that answers.
pub(crate) async fn everywhere(app: &App) -> Value {
    let node = app.sessions.node();
    let peers = node.peers();
    let answers = ask_all(&peers, question::Body::Replicas(Empty {})).await;
    let missing: Vec<u64> =
        peers.nodes().into_iter().filter(|node| !answers.contains_key(node)).map(|node| node.0).collect();
    let (mut older, mut shards) = (Vec::new(), BTreeMap::<ShardId, Vec<(NodeId, Replica)>>::new());
    for (node, answer) in answers {
        // Release 0.1 does not know the question.
        let answer::Body::Replicas(of) = answer else {
            older.push(node.0);
            continue;
        };
        for replica in of.replicas {
            let shard = ShardId(u16::try_from(replica.shard).unwrap_or(u16::MAX));
            shards.entry(shard).or_default().push((node, replica));
        }
    }
    let voters = |shard: &ShardId| {
        let members = node.groups().get(shard).map(Group::members).unwrap_or_default();
        members.values().filter(|of| of.voter).count()
    };
    let shards: Vec<Value> =
        shards.into_iter().map(|(shard, replicas)| described(shard, replicas, voters(&shard))).collect();
    json!({"shards": shards, "nodes_missing": missing, "nodes_older": older})
}

/// Nodes answer one after the other: what is committed is what any of them says.
fn described(shard: ShardId, replicas: Vec<(NodeId, Replica)>, voters: usize) -> Value {
    let committed = replicas.iter().filter_map(|(_, of)| of.committed).max();
    let mut last: Option<(Comparison, u64)> = None;
    let mut list = Vec::new();
    for (node, of) in replicas {
        list.push((node, of.leads, of.applied));
        // A lead that has moved leaves older comparisons behind.
        if let Some(compared) = of.compared.map(|compared| Comparison::from_message(compared, voters))
            && last.as_ref().is_none_or(|(last, _)| last.position < compared.position)
        {
            last = Some((compared, of.compared_at));
        }
    }
    let last = last.as_ref();
    let replicas: Vec<Value> = list
        .into_iter()
        .map(|(node, leads, applied)| {
            let behind = committed.zip(applied).map(|(committed, applied)| committed.saturating_sub(applied));
            let digest = last.and_then(|(comparison, _)| comparison.digests.get(&node));
            json!({"node": node.0, "leads": leads, "applied": applied, "behind": behind,
                "digest": digest.map(ToString::to_string),
                "state": last.and_then(|(comparison, _)| state(comparison, node))})
        })
        .collect();
    let compared = last.map(|(of, at)| {
        json!({"at": Timestamp(*at).to_string(), "position": of.position.0, "state": of.verdict().name()})
    });
    json!({"shard": shard.0, "committed": committed, "replicas": replicas, "compared": compared})
}

/// What a comparison says of one replica; nothing where it was not asked, or did not answer.
fn state(comparison: &Comparison, node: NodeId) -> Option<&'static str> {
    let digest = comparison.digests.get(&node)?;
    let distinct: BTreeSet<u128> = comparison.digests.values().map(|digest| digest.0).collect();
    let verdict = match comparison.agreed {
        Some(agreed) if agreed == *digest => Verdict::Equal,
        Some(_) => Verdict::Differs,
        // No majority has the same: nobody can be told to be right.
        None if distinct.len() > 1 => Verdict::Differs,
        None => Verdict::Incomplete,
    };
    Some(verdict.name())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use bytes::Bytes;
    use proto::peer::Compared;

    use super::*;

    fn compared(position: u64, voters: u32, digests: &[(u64, u128)]) -> Compared {
        let bytes = |digest: &u128| Bytes::copy_from_slice(&digest.to_be_bytes());
        Compared { position, voters, digests: digests.iter().map(|(node, of)| (*node, bytes(of))).collect() }
    }

    fn replica(applied: u64, compared: Option<Compared>) -> Replica {
        Replica { committed: Some(10), applied: Some(applied), compared, ..Replica::default() }
    }

    fn states(of: &Value) -> Vec<Option<&str>> {
        of["replicas"].as_array().unwrap().iter().map(|of| of["state"].as_str()).collect()
    }

    #[test]
    fn the_newest_comparison_counts_and_each_replica_has_a_verdict_of_its_own() {
        let old = compared(4, 3, &[(1, 7), (2, 7), (3, 7)]);
        let new = compared(9, 3, &[(1, 7), (2, 7), (3, 8)]);
        let of = |last: Compared| {
            let list = vec![
                (NodeId(1), replica(10, Some(old.clone()))),
                (NodeId(2), replica(6, Some(last))),
                (NodeId(3), replica(10, None)),
            ];
            described(ShardId(2), list, 3)
        };
        let shown = of(new);
        assert_eq!(shown["compared"]["position"], 9, "{shown}");
        assert_eq!(shown["compared"]["state"], "differs");
        assert_eq!(states(&shown), [Some("equal"), Some("equal"), Some("differs")]);
        assert_eq!(shown["replicas"][1]["behind"], 4);
        // Two of three had the same; the third was not asked, or did not answer.
        let shown = of(compared(9, 3, &[(1, 7), (2, 7)]));
        assert_eq!(shown["compared"]["state"], "incomplete", "{shown}");
        assert_eq!(states(&shown), [Some("equal"), Some("equal"), None]);
        // One of three proves nothing, and of two that differ nobody is right.
        assert_eq!(states(&of(compared(9, 3, &[(1, 7)]))), [Some("incomplete"), None, None]);
        assert_eq!(states(&of(compared(9, 3, &[(1, 7), (2, 8)])))[..2], [Some("differs"), Some("differs")]);
    }
}
