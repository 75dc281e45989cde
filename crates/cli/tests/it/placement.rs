//! Where sessions go that may be anywhere.

use std::collections::BTreeSet;

use ids::{SessionId, ShardId};
use serde_json::{Value, json};
use testkit::Cluster;

const SHARDS: u16 = 6;

async fn led(cluster: &Cluster, by: usize) -> BTreeSet<ShardId> {
    let mut led = BTreeSet::new();
    for shard in 0..SHARDS {
        if cluster.leader(shard).await == Some(by) {
            led.insert(ShardId(shard));
        }
    }
    led
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_without_a_key_stays_with_the_node_that_was_asked() {
    let temp = tempfile::tempdir().unwrap();
    let config = format!("[node]\nshards = {SHARDS}\n");
    let cluster = Cluster::start(temp.path(), 3, &config).await.unwrap();
    cluster.until_spread().await.unwrap();
    let http = reqwest::Client::new();
    let start = async |node: usize, key: Option<&str>| {
        let workflow = json!({"name": "w", "steps": [{"id": "a", "value": "1"}]});
        let mut request = http.post(format!("{}/v1/sessions", cluster.url(node)));
        if let Some(key) = key {
            request = request.header("idempotency-key", key);
        }
        let answer = request.json(&json!({"workflow": workflow})).send().await.unwrap();
        assert!(answer.status().is_success(), "{answer:?}\n{}", cluster.log_tails());
        let started: Value = answer.json().await.unwrap();
        started["id"].as_str().unwrap().parse::<SessionId>().unwrap().shard()
    };
    let mut seen = BTreeSet::new();
    for node in cluster.members() {
        let here = led(&cluster, node).await;
        assert_eq!(here.len(), 2, "leads are spread: {here:?}");
        for _ in 0..16 {
            let shard = start(node, None).await;
            assert!(here.contains(&shard), "shard {shard} is not led by node {node}: {here:?}");
            seen.insert(shard);
        }
    }
    assert_eq!(seen.len(), usize::from(SHARDS), "the shards of a node take turns: {seen:?}");
    // A key says where, whoever is asked.
    for key in ["a", "b", "c"] {
        assert_eq!(start(0, Some(key)).await, start(1, Some(key)).await);
    }
}
