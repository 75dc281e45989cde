//! Nodes that go.

use std::time::Duration;

use serde_json::json;
use testkit::Cluster;

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
