//! A new node takes in a shard whose log begins too late for it; a node of another cluster is let in nowhere.

use bytes::Bytes;
use ids::ShardId;
use proto::peer::{
    Rows, SnapshotEnd, SnapshotHead, SnapshotPart, peer_service_client::PeerServiceClient,
    snapshot_part::Part,
};
use serde_json::{Value, json};
use storage::{StateDb, StateOptions};
use testkit::{Cluster, wait_until};

use crate::fixture::PATIENCE;

/// More entries than a leader keeps for those that are behind.
const ENTRIES: usize = 1_300;

#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_takes_in_the_state_where_the_log_is_gone() {
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(temp.path(), 1, "[node]\nflush_seconds = 1\n").await.unwrap();
    let http = reqwest::Client::new();
    let url = cluster.url(0);
    let register = json!({"name": "register", "steps": [{"id": "values", "loop": {"until": "false",
        "max_iterations": 10_000, "steps": [{"id": "next", "wait": {"signal": "append"}}]}}]});
    let answer =
        http.post(format!("{url}/v1/sessions")).json(&json!({"workflow": register})).send().await.unwrap();
    let started: Value = answer.json().await.unwrap();
    let id = started["id"].as_str().unwrap();
    let shard = id.parse::<ids::SessionId>().unwrap().shard().0.to_string();
    for value in 0..ENTRIES {
        let signal = http.post(format!("{url}/v1/sessions/{id}/signal"));
        let answer = signal.json(&json!({"name": "append", "payload": value})).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
    }
    let shortened = wait_until("the log to be shortened", PATIENCE, async || {
        let status = cluster.status(0).await.ok()?;
        (status["shards"][&shard]["log_from"].as_u64()? > 1).then_some(())
    });
    shortened.await.unwrap();
    cluster.add().await.unwrap();
    cluster.until_whole().await.unwrap();
    let log = std::fs::read_to_string(temp.path().join("node-1/log")).unwrap();
    assert!(log.contains("the snapshot is installed"), "{log}");
    // What the new node shows of its own, without asking the other.
    let events = format!("{}/v1/sessions/{id}?consistency=stale", cluster.url(1));
    let session: Value = http.get(events).send().await.unwrap().json().await.unwrap();
    assert!(session["events"].as_u64().unwrap() > ENTRIES as u64, "{session}");
    let verified =
        http.post(format!("{url}/v1/cluster/verify")).json(&json!({"scrub": true})).send().await.unwrap();
    let verified: Value = verified.json().await.unwrap();
    assert_eq!(verified["equal"], true, "{verified}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_peer_of_another_cluster_is_refused() {
    let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let mut ours = Cluster::start(one.path(), 1, "").await.unwrap();
    let theirs = Cluster::start(two.path(), 1, "").await.unwrap();
    let cluster = ours.status(0).await.unwrap()["cluster"].as_str().unwrap().to_owned();
    assert_ne!(theirs.status(0).await.unwrap()["cluster"], cluster.as_str());
    // A node that belongs to one cluster, and is told to join another, stays where it belongs.
    ours.kill(0).unwrap();
    ours.set_join(0, vec![theirs.peer(0)]);
    ours.restart(0).await.unwrap();
    assert_eq!(ours.status(0).await.unwrap()["cluster"], cluster.as_str());
    assert_eq!(theirs.status(0).await.unwrap()["nodes"].as_array().unwrap().len(), 1);
    // Who calls as a node of another cluster is told so.
    let mut client = PeerServiceClient::connect(format!("http://{}", theirs.peer(0))).await.unwrap();
    let mut request = tonic::Request::new(proto::peer::AdmitRequest { member: None });
    let node = theirs.status(0).await.unwrap()["node"].to_string();
    for (name, value) in
        [("orchestra-cluster", &cluster), ("orchestra-from", &"1".into()), ("orchestra-to", &node)]
    {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    let refused = client.admit(request).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::FailedPrecondition);
    assert!(refused.message().contains("this node is of cluster"), "{}", refused.message());
}

/// Sends a node what is to be the state of its shard, as a peer of its cluster: what it says to that.
async fn send_state(cluster: &Cluster, parts: Vec<Part>) -> tonic::Status {
    let mut peer = PeerServiceClient::connect(format!("http://{}", cluster.peer(0))).await.unwrap();
    let parts = parts.into_iter().map(|part| SnapshotPart { part: Some(part) });
    let mut request = tonic::Request::new(tokio_stream::iter(parts));
    let status = cluster.status(0).await.unwrap();
    let headers = [
        ("orchestra-cluster", status["cluster"].as_str().unwrap().to_owned()),
        ("orchestra-from", "1".to_owned()),
        ("orchestra-to", status["node"].to_string()),
        ("orchestra-start", "1-1".to_owned()),
        ("orchestra-machine-version", status["feature_level"].to_string()),
    ];
    for (name, value) in headers {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    peer.install_snapshot(request).await.unwrap_err()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_state_that_changed_on_the_way_is_not_taken() {
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(temp.path(), 1, "").await.unwrap();
    let http = reqwest::Client::new();
    let waits = json!({"name": "waits", "steps": [{"id": "a", "wait": {"signal": "s"}}]});
    let body = json!({"workflow": waits, "id": "ses_00001_00000000000000000007"});
    let answer = http.post(format!("{}/v1/sessions", cluster.url(0))).json(&body).send().await.unwrap();
    assert!(answer.status().is_success());
    // The shard as it is, for a peer.
    assert_eq!(cluster.stop(0).await.unwrap(), Some(0));
    let shard = ShardId(1);
    let (mut applied, mut rows) = (Bytes::new(), Vec::new());
    {
        let options = StateOptions { block_cache_bytes: 1 << 20, cached_rows: 16 };
        let db = StateDb::open(&temp.path().join("node-0/data/state"), options).unwrap();
        db.export(shard, |part| {
            match part {
                storage::Exported::Applied(of) => applied = of,
                storage::Exported::Rows(of) => rows.extend(of),
            }
            Ok::<_, storage::Error>(())
        })
        .unwrap();
    }
    cluster.restart(0).await.unwrap();
    let sum = rows.iter().fold(0, |sum, (key, value)| storage::row_checksum(sum, key, value));
    let whole = Part::End(SnapshotEnd { rows: rows.len() as u64, crc32c: sum });
    let other = Part::End(SnapshotEnd { rows: rows.len() as u64, crc32c: sum ^ 1 });
    let head =
        Part::Head(SnapshotHead { shard: 1, vote: Some(proto::record::raft::Vote::default()), applied });
    let of = |rows: &[(Bytes, Bytes)]| {
        let (keys, values) = rows.iter().cloned().unzip();
        Part::Rows(Rows { keys, values })
    };
    let mut changed = rows.clone();
    let mut value = changed[0].1.to_vec();
    *value.last_mut().unwrap() ^= 1;
    changed[0].1 = value.into();
    for (parts, reason) in [
        (vec![head.clone(), of(&changed), whole.clone()], "checksum mismatch"),
        (vec![head.clone(), of(&rows[1..]), whole.clone()], "rows are missing"),
        (vec![head.clone(), of(&rows), other], "changed on the way"),
        (vec![head.clone(), of(&rows)], "ended before its end"),
        (vec![of(&rows), whole], "begins with its head"),
    ] {
        let refused = send_state(&cluster, parts).await;
        assert!(refused.message().contains(reason), "{refused:?}");
    }
    // What the node has is what it had, also after what was staged is swept away.
    for _ in 0..2 {
        let session = format!("{}/v1/sessions/ses_00001_00000000000000000007", cluster.url(0));
        let session: Value = http.get(session).send().await.unwrap().json().await.unwrap();
        assert_eq!(session["status"], "waiting", "{session}");
        let verified =
            http.post(format!("{}/v1/cluster/verify", cluster.url(0))).json(&json!({"scrub": true}));
        let verified: Value = verified.send().await.unwrap().json().await.unwrap();
        assert!(
            verified["scrubbed"].as_array().unwrap().iter().all(|of| of["problem"].is_null()),
            "{verified}"
        );
        cluster.kill(0).unwrap();
        cluster.restart(0).await.unwrap();
    }
}
