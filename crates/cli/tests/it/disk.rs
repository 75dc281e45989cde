//! A full disk: writes stop with a clear error, and go on by themselves when there is room, without restart or loss.

use std::{fs, time::Duration};

use chaos::api::Api;
use serde_json::json;
use testkit::{Cluster, NodeProcess, SmallDisk, free_address, wait_until};

/// The size of the disk.
const MIB: u32 = 48;

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_writes_and_loses_nothing() {
    let temp = tempfile::tempdir().unwrap();
    // Everything is on the small disk: the data, and the file that the node logs to.
    let disk = temp.path().join("disk");
    fs::create_dir(&disk).unwrap();
    let Some(mount) = SmallDisk::mount(&disk, MIB) else { return };
    let config = "[node]\nshards = 2\ndisk_free_min_mib = 1\nblock_cache_mib = 4\n[log]\nlevel = \"warn\"\n";
    let node =
        NodeProcess::start(&disk, free_address().unwrap(), free_address().unwrap(), config).await.unwrap();
    let pid = node.pid();
    let api = Api::new(&node.url()).unwrap();
    api.apply("name: w\nsteps:\n  - {id: a, value: 'input.n'}\n  - {id: b, value: 'steps.a.output'}\n")
        .await
        .unwrap();
    let mut acknowledged = Vec::new();
    for n in 0..50 {
        acknowledged.push(api.start("w", &format!("before-{n}"), &json!({"n": n})).await.unwrap());
    }
    mount.fill().unwrap();
    // Under load until it is told; what is acknowledged meanwhile counts.
    let (mut n, mut last) = (0, String::new());
    let told = wait_until("a clear error", Duration::from_secs(60), async || {
        n += 1;
        match tokio::time::timeout(
            Duration::from_secs(2),
            api.start("w", &format!("full-{n}"), &json!({"n": n})),
        )
        .await
        {
            Ok(Ok(id)) => {
                acknowledged.push(id);
                None
            }
            Ok(Err(error)) if error.to_string().contains("writes_stopped") => Some(error.to_string()),
            other => {
                last = format!("{other:?}");
                None
            }
        }
    });
    let told =
        told.await.unwrap_or_else(|error| panic!("{error}; the last call: {last}\n{}", node.log_tail()));
    assert!(told.contains("507"), "{told}");
    assert!(api.get("/health/ready").await.unwrap_err().to_string().contains("writes:"));

    mount.free().unwrap();
    let after = wait_until("writes to go on", Duration::from_secs(60), async || {
        api.start("w", "after", &json!({"n": "after"})).await.ok()
    });
    acknowledged.push(after.await.unwrap_or_else(|error| panic!("{error}\n{}", node.log_tail())));
    assert_eq!(node.pid(), pid, "no restart");
    for id in &acknowledged {
        let ended = wait_until("its end", Duration::from_secs(60), async || {
            (api.get(&format!("/v1/sessions/{id}")).await.ok()?["status"] == "completed").then_some(())
        });
        ended.await.unwrap_or_else(|error| panic!("{id}: {error}\n{}", node.log_tail()));
    }
    // And it is all there after a restart.
    node.stop(Duration::from_secs(60)).await.unwrap();
    let node =
        NodeProcess::start(&disk, free_address().unwrap(), free_address().unwrap(), config).await.unwrap();
    let api = Api::new(&node.url()).unwrap();
    for id in &acknowledged {
        assert_eq!(api.get(&format!("/v1/sessions/{id}")).await.unwrap()["status"], "completed", "{id}");
    }
    drop(node);
    drop(mount);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_of_one_node_stops_nobody_else() {
    let temp = tempfile::tempdir().unwrap();
    let disk = temp.path().join("node-1");
    fs::create_dir(&disk).unwrap();
    // The database goes on once there is room for one of its buffers in memory, 64 MiB.
    let Some(mount) = SmallDisk::mount(&disk, 200) else { return };
    let node = "shards = 2\ndisk_free_min_mib = 1\nblock_cache_mib = 4\nflush_seconds = 1\n";
    let config = format!("[node]\n{node}[log]\nlevel = \"warn\"\n");
    let cluster = Cluster::start(temp.path(), 3, &config).await.unwrap();
    let http = reqwest::Client::new();
    let patience = Duration::from_secs(60);
    // The node leads both shards, so that its disk matters.
    for shard in 0..2u16 {
        let lead = wait_until("the node to lead", patience, async || {
            let body = json!({"shard": shard, "to": "node-1"});
            let url = format!("{}/v1/cluster/transfer-leader", cluster.url(0));
            http.post(url).json(&body).send().await.ok()?;
            (cluster.leader(shard).await == Some(1)).then_some(())
        });
        lead.await.unwrap();
    }
    let api = Api::new(&cluster.url(0)).unwrap();
    api.apply("name: w\nsteps:\n  - {id: a, value: 'input.n'}\n").await.unwrap();
    let there = Api::new(&cluster.url(1)).unwrap();
    let before = there.start("w", "before", &json!({"n": 0})).await.unwrap();
    let ended = wait_until("its end", patience, async || {
        (there.get(&format!("/v1/sessions/{before}")).await.ok()?["status"] == "completed").then_some(())
    });
    ended.await.unwrap();
    mount.fill().unwrap();
    // A client of another node repeats its calls under their keys, and none takes longer than it may.
    let mut acknowledged = Vec::new();
    let handed_over = wait_until("the node to give its leads up", patience, async || {
        let n = acknowledged.len();
        let started = wait_until("a session to be acknowledged", patience, async || {
            api.start("w", &format!("k-{n}"), &json!({"n": n})).await.ok()
        });
        acknowledged.push(started.await.unwrap_or_else(|error| panic!("{error}\n{}", cluster.log_tails())));
        let stopped = cluster.status(1).await.ok()?["writes_stopped"].is_string();
        let leads = [cluster.leader(0).await, cluster.leader(1).await];
        (stopped && leads.iter().all(|lead| lead.is_some_and(|lead| lead != 1))).then_some(())
    });
    handed_over.await.unwrap_or_else(|error| panic!("{error}\n{}", cluster.log_tails()));
    // Its replicas are asked for their digest meanwhile, which has to wait as everything that is applied does.
    let url = format!("{}/v1/cluster/verify", cluster.url(2));
    let verified: serde_json::Value =
        http.post(url).json(&json!({})).send().await.unwrap().json().await.unwrap();
    assert!(verified["shards"].as_array().unwrap().iter().all(|of| of["state"] != "differs"), "{verified}");
    // What the node has, it still tells.
    let told = there.get(&format!("/v1/sessions/{before}?consistency=stale")).await;
    let told = told.unwrap_or_else(|error| panic!("{error}\n{}", cluster.log_tails()));
    assert_eq!(told["output"], json!(0));
    mount.free().unwrap();
    let whole = wait_until("the node to have everything", patience, async || {
        let url = format!("{}/v1/cluster/verify", cluster.url(2));
        let verified: serde_json::Value =
            http.post(url).json(&json!({"scrub": true})).send().await.ok()?.json().await.ok()?;
        (verified["equal"] == true).then_some(())
    });
    whole.await.unwrap_or_else(|error| panic!("{error}\n{}", cluster.log_tails()));
    for id in &acknowledged {
        let ended = wait_until("its end", patience, async || {
            (there.get(&format!("/v1/sessions/{id}")).await.ok()?["status"] == "completed").then_some(())
        });
        ended.await.unwrap_or_else(|error| panic!("{id}: {error}\n{}", cluster.log_tails()));
    }
    drop(cluster);
    drop(mount);
}
