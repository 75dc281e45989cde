//! Replicas that differ are found and stopped; damaged rows are found and named.

use std::{path::Path, process::Command};

use ids::ShardId;
use machine::{Key, Read as _, Row, Tables as _, TimerKind};
use serde_json::{Value, json};
use storage::{StateDb, StateOptions};
use testkit::{Cluster, binary, wait_until};

use crate::fixture::PATIENCE;

/// Bytes that no compression shortens much, so that the rows make up nearly all of a table file.
fn noise(number: usize) -> String {
    let words = (0..125_u64).map(|at| (number as u64 * 1_000 + at + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    words.map(|word| format!("{:016x}", (word ^ (word >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9))).collect()
}

/// Sessions that wait, so that every shard has rows.
async fn fill(http: &reqwest::Client, cluster: &Cluster, count: usize) {
    let waits = json!({"name": "waits", "steps": [{"id": "a", "wait": {"signal": "s"}}]});
    for number in 0..count {
        let body = json!({"workflow": waits, "input": noise(number)});
        let answer = http.post(format!("{}/v1/sessions", cluster.url(0))).json(&body).send().await.unwrap();
        assert!(answer.status().is_success());
    }
}

fn verify(cluster: &Cluster, through: usize, scrub: bool) -> (i32, Value) {
    let mut command = Command::new(binary().unwrap());
    command.args(["cluster", "verify", "--output", "json", "--url", &cluster.url(through)]);
    if scrub {
        command.arg("--scrub");
    }
    let output = command.output().unwrap();
    let shown = serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    (output.status.code().unwrap(), shown)
}

async fn replicas(http: &reqwest::Client, cluster: &Cluster, asked: usize) -> Value {
    let answer = http.get(format!("{}/v1/cluster/replicas", cluster.url(asked))).send().await.unwrap();
    answer.json().await.unwrap()
}

fn shards(shown: &Value) -> &Vec<Value> {
    shown["shards"].as_array().unwrap()
}

fn open(directory: &Path) -> StateDb {
    let options = StateOptions { block_cache_bytes: 1 << 20, cached_rows: 16 };
    StateDb::open(&directory.join("data/state"), options).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_that_differs_is_stopped_and_the_others_go_on() {
    let temp = tempfile::tempdir().unwrap();
    let http = reqwest::Client::new();
    let mut cluster = Cluster::start(temp.path(), 3, "").await.unwrap();
    fill(&http, &cluster, 20).await;
    let (code, shown) = verify(&cluster, 1, true);
    assert_eq!((code, &shown["equal"]), (0, &json!(true)), "{shown}");
    assert_eq!(shown["scrubbed"].as_array().unwrap().len(), 12, "4 shards on 3 nodes");
    // Every node knows what came of it, and how far all are.
    let replicas = replicas(&http, &cluster, 2).await;
    assert_eq!(replicas["nodes_missing"], json!([]), "{replicas}");
    for (of, verified) in shards(&replicas).iter().zip(shards(&shown)) {
        assert_eq!(of["shard"], verified["shard"], "{replicas}");
        assert_eq!(of["compared"]["state"], "equal", "{replicas}");
        assert!(of["compared"]["position"].as_u64() >= verified["position"].as_u64(), "{replicas}");
        let list = of["replicas"].as_array().unwrap();
        let is_told = |replica: &Value| replica["behind"].is_u64() && replica["state"] == "equal";
        assert!(list.len() == 3 && list.iter().all(is_told), "{replicas}");
    }

    // A row of one node becomes another, in a way that no checksum shows.
    assert_eq!(cluster.stop(2).await.unwrap(), Some(0));
    let shard = ShardId(1);
    {
        let db = open(&temp.path().join("node-2"));
        let applied = db.applied(shard).unwrap().unwrap();
        let view = db.view(shard);
        let from = Key::Session("ses_00001_00000000000000000000".parse().unwrap());
        let to = Key::Timer(ids::Timestamp(0), Default::default(), TimerKind::Deadline);
        let rows = view.scan(&from, &to, 1);
        let Some((key, Row::Session(mut row))) = rows.into_iter().next() else {
            panic!("no session in shard 1")
        };
        row.workflow = "another".into();
        let mut batch = db.batch(shard);
        batch.put(key, Row::Session(row));
        batch.commit(&applied).unwrap();
        db.flush().unwrap();
    }
    cluster.restart(2).await.unwrap();
    let (code, shown) = verify(&cluster, 0, false);
    assert_eq!(code, 4, "{shown}");
    let of_shard = shards(&shown).iter().find(|of| of["shard"] == 1).unwrap();
    assert_eq!(of_shard["state"], "differs", "{shown}");

    let url = cluster.url(2);
    let stopped = wait_until("the replica to say why it has stopped", PATIENCE, async || {
        let answer: Value = http.get(format!("{url}/health/ready")).send().await.ok()?.json().await.ok()?;
        answer.to_string().contains("differ from those of most replicas").then_some(())
    });
    stopped.await.unwrap_or_else(|error| panic!("{error}\n{}", cluster.log_tails()));
    fill(&http, &cluster, 8).await;
    // Nor does it count after a restart, when nothing in its memory says so.
    let condemned = temp.path().join("node-2/data/condemned");
    let remembered =
        wait_until("the node to be condemned", PATIENCE, async || condemned.exists().then_some(()));
    remembered.await.unwrap();
    cluster.kill(2).unwrap();
    assert!(cluster.restart(2).await.is_err());
    assert_eq!(cluster.count_in_logs("must not be used any more"), 1, "{}", cluster.log_tails());
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_compared_across_an_election_and_the_return_of_a_node() {
    let temp = tempfile::tempdir().unwrap();
    let http = reqwest::Client::new();
    let mut cluster = Cluster::start(temp.path(), 3, "").await.unwrap();
    fill(&http, &cluster, 8).await;
    let led = cluster.leader(0).await.unwrap();
    let asked = cluster.members().into_iter().find(|node| *node != led).unwrap();
    cluster.kill(led).unwrap();
    let verified = http.post(format!("{}/v1/cluster/verify", cluster.url(asked))).json(&json!({})).send();
    let verified = tokio::spawn(verified);
    let told = replicas(&http, &cluster, asked).await;
    assert_eq!(told["nodes_missing"].as_array().unwrap().len(), 1, "{told}");
    cluster.restart(led).await.unwrap();
    let verified: Value = verified.await.unwrap().unwrap().json().await.unwrap();
    assert_eq!(verified["equal"], true, "{verified}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_event_that_was_changed_is_found() {
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(temp.path(), 1, "").await.unwrap();
    let http = reqwest::Client::new();
    let id: ids::SessionId = "ses_00001_00000000000000000009".parse().unwrap();
    let quick = json!({"name": "q", "steps": [{"id": "a", "value": "1"}, {"id": "b", "value": "2"}]});
    let body = json!({"workflow": quick, "id": id.to_string()});
    let answer = http.post(format!("{}/v1/sessions", cluster.url(0))).json(&body).send().await.unwrap();
    assert!(answer.status().is_success());
    let verify = |cluster: &Cluster| {
        let arguments = ["audit", "verify", &id.to_string(), "--output", "json", "--url", &cluster.url(0)];
        let output = Command::new(binary().unwrap()).args(arguments).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
    };
    let ended = wait_until("its end", PATIENCE, async || {
        let answer = http.get(format!("{}/v1/sessions/{id}", cluster.url(0))).send().await.ok()?;
        (answer.json::<Value>().await.ok()?["status"] == "completed").then_some(())
    });
    ended.await.unwrap();
    let (code, shown) = verify(&cluster);
    assert_eq!(code, Some(0), "{shown}");
    assert_eq!(cluster.stop(0).await.unwrap(), Some(0));
    {
        let db = open(&temp.path().join("node-0"));
        let applied = db.applied(id.shard()).unwrap().unwrap();
        let key = Key::Event(id, ids::Seq(1));
        let Some(Row::Event(mut event, digest)) = db.view(id.shard()).get(&key) else { panic!("no event 1") };
        event.at.0 += 1;
        let mut batch = db.batch(id.shard());
        batch.put(key, Row::Event(event, digest));
        batch.commit(&applied).unwrap();
        db.flush().unwrap();
    }
    cluster.restart(0).await.unwrap();
    let (code, shown) = verify(&cluster);
    assert_eq!(code, Some(4), "{shown}");
    assert!(shown.contains("\"first_broken_seq\": 1") || shown.contains("\"first_broken_seq\":1"), "{shown}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_of_a_stopped_nodes_rows_is_found() {
    let temp = tempfile::tempdir().unwrap();
    let http = reqwest::Client::new();
    let mut cluster = Cluster::start(temp.path(), 3, "").await.unwrap();
    fill(&http, &cluster, 60).await;
    assert_eq!(cluster.stop(2).await.unwrap(), Some(0));
    let tables = std::fs::read_dir(temp.path().join("node-2/data/state")).unwrap();
    let tables = tables.map(|entry| entry.unwrap().path());
    let tables = tables.filter(|path| path.extension().is_some_and(|of| of == "sst"));
    let largest = tables.max_by_key(|path| path.metadata().unwrap().len()).expect("a table file");
    let mut bytes = std::fs::read(&largest).unwrap();
    let place = bytes.len() / 3;
    bytes[place] ^= 1;
    std::fs::write(&largest, bytes).unwrap();
    // What was flipped may also be needed to start: then the node says so, and does not run.
    if cluster.restart(2).await.is_ok() {
        let (code, shown) = verify(&cluster, 0, true);
        assert_eq!(code, 4, "{shown}");
        let problems: Vec<&Value> =
            shown["scrubbed"].as_array().unwrap().iter().filter(|of| !of["problem"].is_null()).collect();
        assert!(!problems.is_empty(), "{shown}");
        let problem = problems[0]["problem"].as_str().unwrap();
        assert!(problem.contains("row after") && problem.contains("shard"), "{problem}");
    } else {
        assert!(cluster.log_tails().to_lowercase().contains("corrupt"), "{}", cluster.log_tails());
    }
}
