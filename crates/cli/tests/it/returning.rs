//! Nodes that come back as they must not: removed meanwhile, in two copies, with a wrong clock. None does harm.

use std::{path::PathBuf, time::Duration};

use chaos::api::Api;
use serde_json::{Value, json};
use testkit::{Cluster, NodeProcess, free_address, wait_until};

use crate::fixture::PATIENCE;

/// What a node says of itself when the others do not count on it.
async fn refusal(cluster: &Cluster, number: usize, part: &str) -> Value {
    let what = format!("{part:?}");
    let refused = wait_until(&what, PATIENCE, async || {
        let status = cluster.status(number).await.ok()?;
        status["refused"].as_str().is_some_and(|reason| reason.contains(part)).then_some(status)
    });
    let status = refused.await.unwrap_or_else(|error| panic!("{error}\n{}", cluster.log_tails()));
    let ready = reqwest::get(format!("{}/health/ready", cluster.url(number))).await.unwrap();
    assert_eq!(ready.status(), 503);
    assert!(ready.text().await.unwrap().contains(part));
    status
}

fn terms(status: &Value) -> Vec<u64> {
    status["shards"].as_object().unwrap().values().map(|shard| shard["term"].as_u64().unwrap()).collect()
}

async fn completes(api: &Api, key: &str) {
    let id = api.start("w", key, &json!(1)).await.unwrap();
    let ended = wait_until("its end", PATIENCE, async || {
        (api.get(&format!("/v1/sessions/{id}")).await.ok()?["status"] == "completed").then_some(())
    });
    ended.await.unwrap();
}

const QUICK: &str = "name: w\nsteps:\n  - {id: a, value: 'input'}\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_node_with_its_old_disk_disturbs_nobody() {
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(temp.path(), 3, "").await.unwrap();
    let api = Api::new(&cluster.url(0)).unwrap();
    api.apply(QUICK).await.unwrap();
    // It has no chance to learn of its removal.
    cluster.kill(2).unwrap();
    cluster.remove(2).await.unwrap();
    cluster.until_whole().await.unwrap();
    cluster.spawn(2).unwrap();
    let before = terms(&refusal(&cluster, 2, "was removed from the cluster").await);
    // Several election timeouts later, nobody has had to answer its votes.
    for number in 0..20 {
        completes(&api, &format!("k-{number}")).await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // It never came to be a candidate. (Members may have voted among themselves: leads are spread, and machines stall.)
    assert_eq!(terms(&cluster.status(2).await.unwrap()), before, "{}", cluster.log_tails());
    assert_eq!(cluster.status(1).await.unwrap()["nodes"].as_array().unwrap().len(), 2);
    // With an empty directory it is a new node, and may have its old name.
    cluster.kill(2).unwrap();
    cluster.wipe(2).unwrap();
    cluster.restart(2).await.unwrap();
    let back = wait_until("three members", PATIENCE, async || {
        (cluster.status(0).await.ok()?["nodes"].as_array()?.len() == 3).then_some(())
    });
    back.await.unwrap_or_else(|error| panic!("{error}\n{}", cluster.log_tails()));
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_copies_of_a_node_one_is_listened_to() {
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(temp.path(), 3, "").await.unwrap();
    let api = Api::new(&cluster.url(0)).unwrap();
    api.apply(QUICK).await.unwrap();
    assert_eq!(cluster.stop(2).await.unwrap(), Some(0));
    let copy = cluster.copy(2).unwrap();
    cluster.restart(2).await.unwrap();
    cluster.until_whole().await.unwrap();
    // Who is where: which release a node runs is known once it has said so.
    let known = |status: Value| -> Vec<Value> {
        let nodes = status["nodes"].as_array().unwrap().iter();
        nodes
            .map(|node| json!([node["id"], node["name"], node["peer"], node["http"], node["grpc"]]))
            .collect()
    };
    let before = known(cluster.status(0).await.unwrap());
    cluster.spawn(copy).unwrap();
    refusal(&cluster, copy, "another process runs as node").await;
    completes(&api, "beside-a-copy").await;
    // The addresses are still those of the node itself.
    assert_eq!(known(cluster.status(0).await.unwrap()), before);
    // Gone, it may come back under its own start, not under that of the copy.
    cluster.kill(copy).unwrap();
    cluster.kill(2).unwrap();
    cluster.restart(2).await.unwrap();
    cluster.until_whole().await.unwrap();
    // Once it has compared clocks with the others, they have met this start of it.
    cluster.until_clock_is_off(2, 0).await.unwrap();
    cluster.kill(2).unwrap();
    // The others are started again, and remember.
    for number in 0..2 {
        cluster.kill(number).unwrap();
    }
    for number in 0..2 {
        cluster.spawn(number).unwrap();
    }
    cluster.spawn(copy).unwrap();
    refusal(&cluster, copy, "was here with start").await;
    completes(&api, "after-a-copy").await;
    let condemned = temp.path().join(format!("node-{copy}/data/condemned"));
    let remembered =
        wait_until("the copy to be condemned", PATIENCE, async || condemned.exists().then_some(()));
    remembered.await.unwrap();
    cluster.kill(copy).unwrap();
    // Started often enough, its start would be later than any that the others have met.
    assert!(cluster.restart(copy).await.is_err());
    assert_eq!(cluster.count_in_logs("must not be used any more"), 1, "{}", cluster.log_tails());
    cluster.restart(2).await.unwrap();
    cluster.until_whole().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn no_voter_is_removed_without_whom_nothing_could_be_decided() {
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(temp.path(), 3, "").await.unwrap();
    let api = Api::new(&cluster.url(0)).unwrap();
    api.apply(QUICK).await.unwrap();
    cluster.kill(1).unwrap();
    let refused = cluster.remove(2).await.unwrap_err().to_string();
    assert!(refused.contains("of the 2 voters that would be left, 1 answer"), "{refused}");
    completes(&api, "nobody-was-removed").await;
    cluster.restart(1).await.unwrap();
    cluster.until_whole().await.unwrap();
    cluster.remove(2).await.unwrap();
    completes(&api, "one-was-removed").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_voter_that_is_slow_is_not_away() {
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(temp.path(), 3, "").await.unwrap();
    cluster.pause(1).unwrap();
    let url = format!("{}/v1/cluster/remove", cluster.url(0));
    let removal = reqwest::Client::new().post(url).json(&json!({"node": "node-2"})).send();
    let removal = tokio::spawn(removal);
    // Longer than one answer is waited for.
    tokio::time::sleep(Duration::from_secs(4)).await;
    assert!(!removal.is_finished(), "{:?}", removal.await.unwrap().unwrap().text().await);
    cluster.resume(1).unwrap();
    let answer = removal.await.unwrap().unwrap();
    assert!(answer.status().is_success(), "{:?}\n{}", answer.text().await, cluster.log_tails());
}

/// With one of three away, a fourth that counted before it has caught up would hold up every write.
#[tokio::test(flavor = "multi_thread")]
async fn a_new_node_counts_once_it_has_caught_up() {
    let temp = tempfile::tempdir().unwrap();
    let config = "[node]\nshards = 1\nintake_mib_per_second = 1\n";
    let mut cluster = Cluster::start(temp.path(), 3, config).await.unwrap();
    let api = Api::new(&cluster.url(0)).unwrap();
    api.apply("name: w\nsteps:\n  - {id: a, wait: {signal: s}}\n").await.unwrap();
    // Few entries, of many bytes.
    for number in 0..40 {
        api.start("w", &format!("large-{number}"), &json!("x".repeat(200_000))).await.unwrap();
    }
    cluster.kill(1).unwrap();
    let (stop, mut stopped) = tokio::sync::oneshot::channel::<()>();
    let writes = tokio::spawn(async move {
        let (mut slowest, mut number) = (Duration::ZERO, 0);
        while stopped.try_recv().is_err() {
            let began = tokio::time::Instant::now();
            api.start("w", &format!("small-{number}"), &json!(1)).await.unwrap();
            (slowest, number) = (slowest.max(began.elapsed()), number + 1);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        (slowest, number)
    });
    cluster.add().await.unwrap();
    let whole = wait_until("four voters", PATIENCE, async || {
        let status = cluster.status(0).await.ok()?;
        (status["shards"]["0"]["voters"].as_array()?.len() == 4).then_some(())
    });
    whole.await.unwrap_or_else(|error| panic!("{error}\n{}", cluster.log_tails()));
    stop.send(()).unwrap();
    let (slowest, number) = writes.await.unwrap();
    assert!(number > 20 && slowest < Duration::from_secs(4), "{number} writes, the slowest took {slowest:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_clock_fires_nothing_too_early() {
    let Some(env) = testkit::wrong_clock("+3600s") else { return };
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(temp.path(), 2, "").await.unwrap();
    let wrong = cluster.add_with_env(&env).await.unwrap();
    cluster.until_whole().await.unwrap();
    let compared = wait_until("the clocks to be compared", PATIENCE, async || {
        let offset = cluster.status(wrong).await.ok()?["clock_offset_ms"].as_i64()?;
        (offset.abs_diff(-3_600_000) < 1_000).then_some(())
    });
    compared.await.unwrap_or_else(|error| panic!("{error}\n{}", cluster.log_tails()));
    let (http, api) = (reqwest::Client::new(), Api::new(&cluster.url(wrong)).unwrap());
    let start = async |shard: u16, unique: u128, span: &str| {
        let id = ids::SessionId::new(ids::RegionId(0), ids::ShardId(shard), unique).to_string();
        let waits = json!({"name": "waits", "steps": [{"id": "a", "wait": {"for": span}}]});
        let body = json!({"workflow": waits, "id": id});
        let answer = http.post(format!("{}/v1/sessions", cluster.url(0))).json(&body).send().await.unwrap();
        assert!(answer.status().is_success(), "{}", answer.text().await.unwrap());
        id
    };
    for shard in 0..4u16 {
        let lead = async |to: usize| {
            let done = wait_until("the lead to move", PATIENCE, async || {
                let body = json!({"shard": shard, "to": format!("node-{to}")});
                let url = format!("{}/v1/cluster/transfer-leader", cluster.url(0));
                http.post(url).json(&body).send().await.ok()?;
                (cluster.leader(shard).await == Some(to)).then_some(())
            });
            done.await.unwrap();
        };
        lead(0).await;
        let long = start(shard, 1, "10m").await;
        lead(wrong).await;
        let short = start(shard, 2, "300ms").await;
        let fired = wait_until("the short timer to fire", PATIENCE, async || {
            (api.get(&format!("/v1/sessions/{short}")).await.ok()?["status"] == "completed").then_some(())
        });
        fired.await.unwrap_or_else(|error| panic!("{error}\n{}", cluster.log_tails()));
        let session = api.get(&format!("/v1/sessions/{long}")).await.unwrap();
        assert_eq!(session["status"], "waiting", "{session}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn timers_fire_though_the_shards_clock_is_far_from_the_wall_clock() {
    let Some(env) = testkit::wrong_clock("+3600s") else { return };
    let temp = tempfile::tempdir().unwrap();
    let (http, grpc) = (free_address().unwrap(), free_address().unwrap());
    let run = async |env: &[(String, String)]| {
        let node =
            NodeProcess::start_with_env(temp.path(), http, grpc, "[node]\nshards = 1\n", env).await.unwrap();
        let api = Api::new(&node.url()).unwrap();
        api.apply("name: w\nsteps:\n  - {id: a, wait: {for: 200ms}}\n").await.unwrap();
        let id = api.start("w", &format!("{}-variables", env.len()), &json!(1)).await.unwrap();
        let ended = wait_until("the timer to fire", PATIENCE, async || {
            let session = api.get(&format!("/v1/sessions/{id}")).await.ok()?;
            (session["status"] == "completed").then_some(session)
        });
        let session = ended.await.unwrap_or_else(|error| panic!("{error}\n{}", node.log_tail()));
        node.kill().unwrap();
        session["created_at"].as_str().unwrap().to_owned()
    };
    // Alone, a node knows of no other time than its own; it remembers it when the clock is put right.
    let ahead = run(&env).await;
    let later = run(&[]).await;
    assert!(later > ahead, "{later}: the shard's clock went back, so that this shows nothing");
}

/// The program of the release before. `None` where there is none, which is said; in CI there must be one.
fn previous() -> Option<PathBuf> {
    let previous = testkit::previous_binary();
    if previous.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI must have the release before: `deploy/dev/previous.sh`"
        );
        let text = "NOT RUN: nodes of the release before; `deploy/dev/previous.sh` builds it\n";
        let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
    }
    previous
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_the_release_before_does_not_tell_of_its_replicas_and_is_there() {
    let Some(previous) = previous() else { return };
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(temp.path(), 1, "").await.unwrap();
    cluster.kill(0).unwrap();
    cluster.wipe(0).unwrap();
    cluster.set_program(0, Some(previous));
    cluster.restart(0).await.unwrap();
    let newer = cluster.add().await.unwrap();
    cluster.until_whole().await.unwrap();
    let answer = reqwest::get(format!("{}/v1/cluster/replicas", cluster.url(newer))).await.unwrap();
    let told: Value = answer.json().await.unwrap();
    let nodes = |field: &str| told[field].as_array().map(Vec::len);
    assert_eq!((nodes("nodes_older"), nodes("nodes_missing")), (Some(1), Some(0)), "{told}");
    assert_eq!(told["shards"][0]["replicas"].as_array().map(Vec::len), Some(1), "{told}");
}

/// What it would apply by its own rules would not be what the others have.
#[tokio::test(flavor = "multi_thread")]
async fn a_node_of_an_older_release_is_not_let_in_once_an_upgrade_is_final() {
    let Some(previous) = previous() else { return };
    let temp = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::start(temp.path(), 3, "").await.unwrap();
    cluster.finalize(0).await.unwrap();
    let old = cluster.add().await.unwrap();
    cluster.kill(old).unwrap();
    cluster.remove_by_name(old).await.unwrap();
    cluster.wipe(old).unwrap();
    cluster.set_program(old, Some(previous));
    cluster.spawn(old).unwrap();
    let told = wait_until("the old node to be told why", PATIENCE, async || {
        (cluster.count_in_logs("runs an older release") > 0).then_some(())
    });
    told.await.unwrap_or_else(|error| panic!("{error}\n{}", cluster.log_tails()));
    assert_eq!(cluster.status(0).await.unwrap()["nodes"].as_array().unwrap().len(), 3);
    // The same directory, with this release: it is let in.
    cluster.kill(old).unwrap();
    cluster.set_program(old, None);
    cluster.spawn(old).unwrap();
    let joined = wait_until("four members", PATIENCE, async || {
        (cluster.status(0).await.ok()?["shards"]["0"]["voters"].as_array()?.len() == 4).then_some(())
    });
    joined.await.unwrap_or_else(|error| panic!("{error}\n{}", cluster.log_tails()));
}
