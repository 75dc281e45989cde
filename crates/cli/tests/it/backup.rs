//! A backup of a cluster under writes, of which all nodes are lost, comes back as a cluster of another size.

use std::{path::Path, process::Command};

use chaos::api::Api;
use serde_json::{Value, json};
use testkit::{Cluster, binary, wait_until};

use crate::fixture::PATIENCE;

fn orchestra(args: &[&str]) -> (i32, String) {
    let output = Command::new(binary().unwrap()).args(args).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.code().unwrap(), format!("{out}{err}"))
}

fn backup(cluster: &Cluster, store: &Path, more: &[&str]) -> Value {
    let (url, store) = (cluster.url(1), store.display().to_string());
    let (code, said) =
        orchestra(&[&["backup", "create", "--to", &store, "--url", &url, "--output", "json"], more].concat());
    assert_eq!(code, 0, "{said}");
    serde_json::from_str(&said).unwrap()
}

/// A damaged table is found and named, a lost one is copied again, and a manifest leads nowhere else.
fn damage_is_found(cluster: &Cluster, store: &Path) {
    let table = std::fs::read_dir(store.join("files"))
        .unwrap()
        .flat_map(|of| std::fs::read_dir(of.unwrap().path()).unwrap())
        .map(|file| file.unwrap().path())
        .next()
        .unwrap();
    let mut bytes = std::fs::read(&table).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(&table, bytes).unwrap();
    let (code, said) = orchestra(&["backup", "verify", "--from", store.to_str().unwrap()]);
    assert!(code == 4 && said.contains("is damaged") && said.contains(".sst"), "{code}: {said}");
    std::fs::remove_file(&table).unwrap();
    let (code, said) = orchestra(&["backup", "verify", "--from", store.to_str().unwrap()]);
    assert!(code == 4 && said.contains(".sst"), "{code}: {said}");
    // A table that is gone from the store is copied again, and not only named.
    backup(cluster, store, &[]);
    let (code, said) = orchestra(&["backup", "verify", "--from", store.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    // What is in the tables is not what the manifest says of a shard.
    let newest =
        std::fs::read_dir(store.join("backups")).unwrap().map(|of| of.unwrap().path()).max().unwrap();
    let manifest = newest.join("manifest.json");
    let text = std::fs::read_to_string(&manifest).unwrap();
    let mut other: Value = serde_json::from_str(&text).unwrap();
    let position = other["shards"][0]["position"].as_u64().unwrap();
    other["shards"][0]["position"] = json!(position + 1);
    std::fs::write(&manifest, other.to_string()).unwrap();
    let (code, said) = orchestra(&["backup", "verify", "--from", store.to_str().unwrap()]);
    assert!(code == 4 && said.contains("the manifest says"), "{code}: {said}");
    // A manifest that names a file elsewhere writes nothing there.
    std::fs::write(&manifest, text.replace("\"name\": \"CURRENT\"", "\"name\": \"../../escaped\"")).unwrap();
    let (code, said) = orchestra(&["backup", "verify", "--from", store.to_str().unwrap()]);
    assert!(code != 0 && said.contains("is not the name of a file"), "{said}");
}

/// A step that is done, and one that waits: what is restored goes on.
const WORK: &str = "name: w\nsteps:\n  - {id: first, value: 'input.n'}\n  - {id: gate, wait: {signal: go}}\n  \
     - {id: last, value: 'steps.gate.output'}\n";

#[tokio::test(flavor = "multi_thread")]
async fn a_cluster_that_is_lost_comes_back_from_its_backup_in_another_size() {
    let temp = tempfile::tempdir().unwrap();
    let store = temp.path().join("store");
    let mut cluster = Cluster::start(&temp.path().join("old"), 3, "").await.unwrap();
    let api = Api::new(&cluster.url(0)).unwrap();
    api.apply(WORK).await.unwrap();
    let mut sessions = Vec::new();
    for n in 0..40 {
        sessions.push(
            api.start("w", &format!("k-{n}"), &json!({"n": n, "text": "x".repeat(5_000)})).await.unwrap(),
        );
    }
    let first = backup(&cluster, &store, &[]);
    assert!(first["new_files"].as_u64().unwrap() > 0, "{first}");
    for n in 40..60 {
        sessions.push(api.start("w", &format!("k-{n}"), &json!({"n": n})).await.unwrap());
    }
    // Tables that did not change are not copied again. The database may merge them in between, but not every time.
    let (mut backups, mut second) = (vec![first["id"].clone()], Value::Null);
    for _ in 0..10 {
        second = backup(&cluster, &store, &[]);
        backups.push(second["id"].clone());
        if second["shared_files"].as_u64().unwrap() > 0 {
            break;
        }
    }
    assert!(second["shared_files"].as_u64().unwrap() > 0, "{second}");
    // Not in the backup.
    let after = api.start("w", "after", &json!({"n": 0})).await.unwrap();
    let ids: Vec<Value> = {
        let (code, said) =
            orchestra(&["backup", "list", "--from", store.to_str().unwrap(), "--output", "json"]);
        assert_eq!(code, 0, "{said}");
        let said: Value = serde_json::from_str(&said).unwrap();
        said["backups"].as_array().unwrap().iter().map(|of| of["id"].clone()).collect()
    };
    assert_eq!(ids, backups);
    let (code, said) = orchestra(&["backup", "verify", "--from", store.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    // What is needed to start such nodes again is in it as well, and is a configuration as it is.
    let (code, said) = orchestra(&["backup", "config", "--from", store.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    assert!(said.contains("[node]") && said.contains("node-1"), "{said}");
    let config = temp.path().join("kept.toml");
    std::fs::write(&config, said).unwrap();
    let (code, said) = orchestra(&["config", "check", config.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    let url = cluster.url(0);
    drop(cluster);
    assert!(reqwest::get(format!("{url}/health")).await.is_err(), "all nodes are gone");

    // Into a directory that is a node's already: refused, and nothing is touched.
    let old = temp.path().join("old/node-0/data");
    let (code, said) = orchestra(&[
        "backup",
        "restore",
        "--from",
        store.to_str().unwrap(),
        "--data-dir",
        old.to_str().unwrap(),
    ]);
    assert!(code != 0 && said.contains("is not empty"), "{said}");
    let new = temp.path().join("new");
    let data = new.join("node-0/data");
    let (code, said) = orchestra(&[
        "backup",
        "restore",
        "--from",
        store.to_str().unwrap(),
        "--data-dir",
        data.to_str().unwrap(),
    ]);
    assert_eq!(code, 0, "{said}");
    cluster = Cluster::start(&new, 5, "").await.unwrap();
    assert_eq!(cluster.status(0).await.unwrap()["nodes"].as_array().unwrap().len(), 5);
    // On every node: what was restored is there, goes on, and keeps its keys.
    for (n, id) in sessions.iter().enumerate() {
        let api = Api::new(&cluster.url(n % 5)).unwrap();
        let session = api.get(&format!("/v1/sessions/{id}")).await.unwrap();
        assert_eq!(session["status"], "waiting", "{session}");
        let again = api.start("w", &format!("k-{n}"), &session["input"]).await.unwrap();
        assert_eq!(again, *id);
        api.post(&format!("/v1/sessions/{id}/signal"), &json!({"name": "go", "payload": n})).await.unwrap();
    }
    let api = Api::new(&cluster.url(4)).unwrap();
    for (n, id) in sessions.iter().enumerate() {
        let ended = wait_until("its end", PATIENCE, async || {
            let session = api.get(&format!("/v1/sessions/{id}")).await.ok()?;
            (session["status"] == "completed").then_some(session)
        });
        let session = ended.await.unwrap_or_else(|error| panic!("{error}\n{}", cluster.log_tails()));
        assert_eq!(session["output"], json!(n));
        assert_eq!(api.get(&format!("/v1/sessions/{id}/audit")).await.unwrap()["intact"], true);
    }
    assert!(api.get(&format!("/v1/sessions/{after}")).await.unwrap_err().to_string().contains("404"));
    let verified = api.post("/v1/cluster/verify", &json!({"scrub": true})).await.unwrap();
    assert_eq!(verified["equal"], true, "{verified}");

    // Old ones go, with the files that no other needs; what is left is whole. A damaged file is found, and named.
    let third = backup(&cluster, &store, &["--keep", "1"]);
    assert_eq!(third["deleted"], json!(ids));
    let (code, said) = orchestra(&["backup", "verify", "--from", store.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    damage_is_found(&cluster, &store);
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_are_made_on_a_schedule_by_one_node() {
    let temp = tempfile::tempdir().unwrap();
    let store = temp.path().join("store");
    let config = format!("[backup]\nto = {:?}\nevery_minutes = 1\nkeep = 2\n", store.display().to_string());
    let cluster = Cluster::start(&temp.path().join("nodes"), 3, &config).await.unwrap();
    // The first is due at once; every node knows of it, and one has made it.
    let mut seen = Vec::new();
    for number in 0..3 {
        let backup = wait_until("a backup", PATIENCE, async || {
            let backup = cluster.status(number).await.ok()?["backup"].clone();
            (!backup.is_null()).then_some(backup)
        });
        seen.push(backup.await.unwrap_or_else(|error| panic!("{error}\n{}", cluster.log_tails())));
    }
    assert_eq!(seen[0]["overdue"], false, "{seen:?}");
    assert!(seen.iter().all(|backup| backup["id"] == seen[0]["id"]), "{seen:?}");
    let metrics = reqwest::get(format!("{}/metrics", cluster.url(2))).await.unwrap().text().await.unwrap();
    let age = metrics.lines().find_map(|line| line.strip_prefix("orchestra_backup_age_seconds "));
    assert!((0..60).contains(&age.unwrap().parse::<i64>().unwrap()), "{metrics}");
    assert!(metrics.contains("orchestra_backup_overdue 0"), "{metrics}");
    let (code, said) = orchestra(&["backup", "verify", "--from", store.to_str().unwrap()]);
    assert_eq!(code, 0, "{said}");
    // What the checkpoint held on to is let go.
    for number in 0..3 {
        let checkpoints = temp.path().join(format!("nodes/node-{number}/data/checkpoints"));
        assert!(checkpoints.read_dir().map_or(0, Iterator::count) == 0, "{}", checkpoints.display());
    }
}
