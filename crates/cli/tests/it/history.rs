//! Sessions that are taken along: forked at an event, exported, imported.

use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::fixture::Fixture;

/// Asks twice, with a map, a gate and a signal between.
fn workflow() -> Value {
    json!({"name": "taken-along", "steps": [
        {"id": "plan", "agent": {"role": "architect", "prompt": "plan {{ input.x }}"}},
        {"id": "items", "map": {"items": "[1, 2, 3]", "steps": [{"id": "double", "value": "item * 2"}]}},
        {"id": "ok", "wait": {"approval": "plan"}},
        {"id": "go", "wait": {"signal": "go"}},
        {"id": "write", "agent": {"role": "executor", "prompt": "write {{ steps.go.output }} of {{ steps.plan.output }}"}},
    ]})
}

async fn events(node: &Fixture, id: &str) -> Vec<Value> {
    node.get(&format!("/v1/sessions/{id}/events")).await.1["events"].as_array().unwrap().clone()
}

async fn calls(node: &Fixture) -> u64 {
    chaos::crash::counts(&node.vendor).await.unwrap().calls
}

async fn decide(node: &Fixture, id: &str, signal: &str) -> Value {
    node.until(id, &["waiting"]).await;
    assert_eq!(node.post(&format!("/v1/sessions/{id}/approve"), &json!({})).await.0, StatusCode::OK);
    let signal = json!({"name": "go", "payload": signal});
    assert_eq!(node.post(&format!("/v1/sessions/{id}/signal"), &signal).await.0, StatusCode::OK);
    node.until(id, &["completed"]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_forked_at_any_event_and_repeats_nothing() {
    let node = Fixture::start("").await;
    let id = node.start_inline(&workflow(), &json!({"x": 1})).await;
    let first = decide(&node, &id, "one").await;
    assert_eq!(calls(&node).await, 2);
    let told = events(&node, &id).await;

    // Before the decision: it waits for it, and what is done until then is done.
    let waits = told.iter().position(|event| event["type"] == "wait_started").unwrap();
    let fork = async |at: Value| node.post(&format!("/v1/sessions/{id}/fork"), &json!({"at": at})).await;
    let (status, forked) = fork(json!(waits)).await;
    assert_eq!(status, StatusCode::CREATED, "{forked}");
    let other = forked["id"].as_str().unwrap().to_owned();
    assert_ne!(other, id);
    let second = decide(&node, &other, "two").await;
    assert_eq!(calls(&node).await, 3, "only what comes after the fork is asked");
    assert_ne!(second["output"], first["output"]);
    let again = events(&node, &other).await;
    assert_eq!(again[..=waits], told[..=waits], "the same events, under the same hashes");
    let marked = again.iter().find(|event| event["type"] == "session_imported").unwrap();
    assert_eq!(marked["data"], json!({"origin": id, "events": waits + 1}));
    assert_eq!(node.get(&format!("/v1/sessions/{other}/audit")).await.1["intact"], true);
    // The other one is as it was.
    assert_eq!(events(&node, &id).await, told);

    // A fork of a fork, at every event: each goes on, to its end or to what it waits for.
    for at in 0..again.len() {
        let (status, forked) = node.post(&format!("/v1/sessions/{other}/fork"), &json!({"at": at})).await;
        assert_eq!(status, StatusCode::CREATED, "at {at}: {forked}");
        node.until(forked["id"].as_str().unwrap(), &["waiting", "completed"]).await;
    }
    // Without a place it is where the other one is.
    let (_, whole) = fork(Value::Null).await;
    assert_eq!(node.until(whole["id"].as_str().unwrap(), &["completed"]).await["output"], first["output"]);

    let (status, refused) = fork(json!(told.len())).await;
    assert_eq!((status, &refused["code"]), (StatusCode::BAD_REQUEST, &json!("invalid_request")));
    assert!(refused["detail"].as_str().unwrap().contains("has events 0 to"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exported_session_goes_on_in_another_cluster() {
    let (here, there) = (Fixture::start("").await, Fixture::start("").await);
    let id = here.start_inline(&workflow(), &json!({"x": 7})).await;
    here.until(&id, &["waiting"]).await;
    let command = |node: &Fixture, arguments: &[&str]| {
        let mut command = std::process::Command::new(testkit::binary().unwrap());
        let output = command.args(arguments).args(["--url", &node.node.url()]).output().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let exported = command(&here, &["export", &id]);
    let file = here.directory().join("exported.jsonl");
    std::fs::write(&file, &exported).unwrap();
    let imported = command(&there, &["import", file.to_str().unwrap()]);
    let (from, to) = imported.trim().split_once(" -> ").unwrap();
    assert_eq!(from, id);
    decide(&there, to, "elsewhere").await;
    assert_eq!((calls(&here).await, calls(&there).await), (1, 1), "the plan came along");
    assert_eq!(events(&there, to).await[..3], events(&here, &id).await[..3]);

    // What was changed on the way is refused, with the place.
    let line: Value = serde_json::from_str(exported.trim()).unwrap();
    let mut export = line["export"].clone();
    export["workflow"] = "name: other\nsteps:\n  - {id: a, value: '1'}\n".into();
    let (status, refused) = there.post("/v1/sessions/import", &export).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(refused["detail"].as_str().unwrap().contains("pinned to"), "{refused}");
    let mut history = line["export"]["history"].as_str().unwrap().to_owned();
    history.replace_range(60..64, "AAAA");
    let mut export = line["export"].clone();
    export["history"] = history.into();
    let (status, refused) = there.post("/v1/sessions/import", &export).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(refused["detail"].as_str().unwrap().starts_with("history: "), "{refused}");
    let (status, refused) =
        there.post("/v1/sessions/import", &json!({"format": "x/1", "workflow": "", "history": ""})).await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(refused["detail"].as_str().unwrap().contains("orchestra-history/1"), "{refused}");
}
