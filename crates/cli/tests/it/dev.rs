//! `dev`, and the `cluster` commands: the surface itself, several nodes on its own ports.

use std::{
    io::Read as _,
    net::TcpListener,
    path::Path,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process, test_kill_process};
use serde_json::{Value, json};
use testkit::{binary, wait_until};

use crate::fixture::PATIENCE;

/// The supervisor. Its nodes end with it.
struct Dev(Child);

impl Drop for Dev {
    fn drop(&mut self) {
        // Gone already, it is gone.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn orchestra(args: &[&str]) -> (bool, String) {
    let output = Command::new(binary().unwrap()).args(args).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    (output.status.success(), format!("{out}{err}"))
}

fn pid(data: &Path, node: u16) -> Option<Pid> {
    let text = std::fs::read_to_string(data.join(format!("region-0/node-{node}/pid"))).ok()?;
    Pid::from_raw(text.trim().parse().ok()?)
}

async fn status(port: u16) -> Option<Value> {
    reqwest::get(format!("http://127.0.0.1:{port}/v1/cluster")).await.ok()?.json().await.ok()
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_with_three_nodes_survives_a_kill_and_ends_with_its_supervisor() {
    // The ports are part of the surface: 7100 + 100 n.
    for port in [7100, 7200, 7300] {
        TcpListener::bind(("127.0.0.1", port)).expect("the ports of dev are free");
    }
    let temp = tempfile::tempdir().unwrap();
    let data = temp.path().to_str().unwrap();
    let dev = Command::new(binary().unwrap())
        .args(["dev", "--nodes", "3", "--data-dir", data])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    let mut dev = Dev(dev.unwrap());
    let whole = wait_until("three voters of every shard", PATIENCE, async || {
        let status = status(7300).await?;
        let whole = |shard: &Value| shard["voters"].as_array().is_some_and(|voters| voters.len() == 3);
        let shards = status["shards"].as_object()?;
        shards.values().all(whole).then_some(())
    });
    whole.await.unwrap();

    let (done, shown) = orchestra(&["cluster", "status", "--url", "http://127.0.0.1:7200"]);
    assert!(done && shown.contains("node-2") && shown.contains("leader"), "{shown}");
    let (done, shown) = orchestra(&["cluster", "add"]);
    assert!(done && shown.contains("--join") && shown.contains("127.0.0.1:7202"), "{shown}");
    let (done, shown) = orchestra(&["cluster", "transfer-leader", "0", "--to", "node-1"]);
    assert!(done, "{shown}");
    let (done, shown) = orchestra(&["cluster", "init"]);
    assert!(!done && shown.contains("belongs to cluster"), "{shown}");
    let (done, shown) = orchestra(&["cluster", "drain", "--url", "http://127.0.0.1:7200"]);
    assert!(done && shown.contains("leads 0"), "{shown}");
    let ready = async || reqwest::get("http://127.0.0.1:7200/health/ready").await.unwrap().status();
    assert_eq!(ready().await, 503);
    let (done, shown) = orchestra(&["cluster", "drain", "--undo", "--url", "http://127.0.0.1:7200"]);
    assert!(done && shown.contains("draining false"), "{shown}");
    assert_eq!(ready().await, 200);

    // One node dies; the others take a session to its end.
    kill_process(pid(temp.path(), 0).unwrap(), Signal::KILL).unwrap();
    let workflow = json!({"name": "w", "steps": [{"id": "a", "agent": {"role": "r", "prompt": "p"}}]});
    let http = reqwest::Client::new();
    let started: Value = http
        .post("http://127.0.0.1:7300/v1/sessions")
        .json(&json!({"workflow": workflow}))
        .send()
        .await
        .unwrap()
        .json()
        .await
        .unwrap();
    let url = format!("http://127.0.0.1:7200/v1/sessions/{}", started["id"].as_str().unwrap());
    let completed = wait_until("the session's end", PATIENCE, async || {
        let session: Value = http.get(&url).send().await.ok()?.json().await.ok()?;
        (session["status"] == "completed").then_some(())
    });
    completed.await.unwrap();
    let (done, shown) = orchestra(&["cluster", "remove", "node-0", "--url", "http://127.0.0.1:7200"]);
    assert!(done && shown.contains("removed"), "{shown}");

    // The supervisor is killed: no node outlives it.
    let left = [pid(temp.path(), 1).unwrap(), pid(temp.path(), 2).unwrap()];
    dev.0.kill().unwrap();
    let gone = wait_until("the nodes' end", PATIENCE, async || {
        left.iter().all(|pid| test_kill_process(*pid).is_err()).then_some(())
    });
    gone.await.unwrap();
    let mut said = String::new();
    dev.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(said.contains("node-0 ended") && said.contains("stays down"), "{said}");
    assert!(said.contains("SIMULATED"), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn dev_says_where_it_is_what_to_do_next_and_that_answers_are_made_up() {
    let temp = tempfile::tempdir().unwrap();
    let replies = temp.path().join("replies.json");
    std::fs::write(&replies, r#"[{"contains": "a riddle", "reply": "an answer of the file"}]"#).unwrap();
    let address = || testkit::free_address().unwrap().to_string();
    let (http, grpc, peer) = (address(), address(), address());
    let dev = Command::new(binary().unwrap())
        .args(["dev", "--data-dir", "data", "--replies", "replies.json"])
        .args(["--http", &http, "--grpc", &grpc, "--peer", &peer])
        .current_dir(temp.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn();
    let mut dev = Dev(dev.unwrap());
    let url = format!("http://{http}");
    let ready = wait_until("the node", PATIENCE, async || {
        reqwest::get(format!("{url}/health/ready")).await.is_ok_and(|of| of.status() == 200).then_some(())
    });
    ready.await.unwrap();
    let step = json!({"id": "a", "agent": {"role": "r", "prompt": "a riddle"}});
    let body = json!({"workflow": {"name": "w", "steps": [step]}});
    let start = reqwest::Client::new().post(format!("{url}/v1/sessions?wait_ms=30000")).json(&body).send();
    let ended: Value = start.await.unwrap().json().await.unwrap();
    assert_eq!(ended["output"], "an answer of the file", "{ended}");
    let session = format!("{url}/v1/sessions/{}", ended["id"].as_str().unwrap());
    let session: Value = reqwest::get(session).await.unwrap().json().await.unwrap();
    assert_eq!(session["steps"][0]["simulated"], true, "{session}");

    kill_process(Pid::from_child(&dev.0), Signal::TERM).unwrap();
    let ended = wait_until("its end", PATIENCE, async || dev.0.try_wait().unwrap());
    assert!(ended.await.unwrap().success());
    let mut said = String::new();
    dev.0.stdout.take().unwrap().read_to_string(&mut said).unwrap();
    let next = ["orchestra start ", "orchestra sessions list", "orchestra sessions describe"];
    for text in [url.as_str(), &grpc, "data/region-0/node-0", "SIMULATED"].into_iter().chain(next) {
        assert!(said.contains(text), "{text} is not in\n{said}");
    }
}
