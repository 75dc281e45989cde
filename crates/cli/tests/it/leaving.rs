//! Nodes that go.

use std::{process::Command, time::Duration};

use serde_json::{Value, json};
use testkit::{Cluster, binary, wait_until};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_node_that_is_down_is_replaced_by_name() {
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(temp.path(), 3, "").await.unwrap();
    let url = cluster.url(0);
    let replace = |node: &str, with: &str, timeout: &str| {
        let arguments = ["cluster", "replace", node, "--with", with, "--timeout", timeout, "--url", &url];
        let output = Command::new(binary().unwrap()).args(arguments).output().unwrap();
        let said = [output.stdout, output.stderr].map(|of| String::from_utf8_lossy(&of).into_owned());
        (output.status.success(), said.concat())
    };
    cluster.kill(2).unwrap();
    // Nobody is taken out before the one in its place is there.
    let (done, said) = replace("node-2", "node-3", "1");
    assert!(!done && said.contains("node-3"), "{said}");
    let added = cluster.add().await.unwrap();
    let (done, said) = replace("node-9", &format!("node-{added}"), "60");
    assert!(!done && said.contains("node-9"), "{said}");
    let (done, said) = replace("node-2", &format!("node-{added}"), "60");
    assert!(done, "{said}\n{}", cluster.log_tails());
    let status = cluster.status(0).await.unwrap();
    let names: Vec<&str> =
        status["nodes"].as_array().unwrap().iter().map(|node| node["name"].as_str().unwrap()).collect();
    assert!(names.len() == 3 && names.contains(&"node-3") && !names.contains(&"node-2"), "{status}");
    for shard in status["shards"].as_object().unwrap().values() {
        assert_eq!(shard["voters"].as_array().unwrap().len(), 3, "{status}");
    }
}
