//! Nodes that go.

use std::time::Duration;

use serde_json::{Value, json};
use testkit::{Cluster, wait_until};

use crate::fixture::PATIENCE;

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_left_alone_ends_when_it_is_told_to() {
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(temp.path(), 3, "[node]\nshards = 3\n").await.unwrap();
    cluster.until_spread().await.unwrap();
    for gone in 1..3 {
        cluster.kill(gone).unwrap();
    }
    // The shard that it leads can not decide these, and never will: more than are on their way at once.
    let http = reqwest::Client::builder().timeout(Duration::from_millis(300)).build().unwrap();
    let workflow = json!({"name": "w", "steps": [{"id": "a", "value": "1"}]});
    for _ in 0..4 {
        let start = http.post(format!("{}/v1/sessions", cluster.url(0))).json(&json!({"workflow": workflow}));
        assert!(!start.send().await.is_ok_and(|answer| answer.status().is_success()));
    }
    assert_eq!(cluster.stop(0).await.unwrap(), Some(0), "{}", cluster.log_tails());
}

/// A change of members has two steps, and another change may come between them.
#[tokio::test(flavor = "multi_thread")]
async fn nodes_can_be_taken_out_at_once() {
    let temp = tempfile::tempdir().unwrap();
    let cluster = Cluster::start(temp.path(), 5, "").await.unwrap();
    let http = reqwest::Client::builder().timeout(PATIENCE).build().unwrap();
    let remove = async |number: usize, through: usize| {
        let url = format!("{}/v1/cluster/remove", cluster.url(through));
        let answer = http.post(url).json(&json!({"node": format!("node-{number}")})).send().await.unwrap();
        let status = answer.status();
        assert!(status.is_success(), "node {number}: {status}, {}", answer.text().await.unwrap());
    };
    tokio::join!(remove(3, 0), remove(4, 1));
    let left = wait_until("three voters of every shard", PATIENCE, async || {
        let status = cluster.status(0).await.ok()?;
        let shards: Vec<_> = status["shards"].as_object()?.values().cloned().collect();
        let settled = |shard: &Value| shard["voters"].as_array().is_some_and(|voters| voters.len() == 3);
        (!shards.is_empty() && shards.iter().all(settled)).then_some(())
    });
    left.await.unwrap_or_else(|error| panic!("{error}\n{}", cluster.log_tails()));
}
