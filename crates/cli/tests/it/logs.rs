//! Where log lines go, and which.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicUsize, Ordering},
};

use axum::http::HeaderMap;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use testkit::wait_until;

use crate::fixture::{Fixture, PATIENCE};

#[tokio::test(flavor = "multi_thread")]
async fn logs_go_to_files_and_change_their_levels_while_the_node_runs() {
    let directory = tempfile::tempdir().unwrap();
    let lines = format!("format = \"json\"\ndirectory = {:?}\ndays_kept = 2\n", directory.path());
    let node = Fixture::with_table("log", &lines, "", &[]).await;
    let logged = || -> Vec<Value> {
        let files = std::fs::read_dir(directory.path()).unwrap().map(|file| file.unwrap().path());
        let files: Vec<_> = files.filter(|path| path.extension().is_some_and(|of| of == "log")).collect();
        let texts = files.iter().map(|path| std::fs::read_to_string(path).unwrap()).collect::<String>();
        texts.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|_| panic!("{line}"))).collect()
    };
    let (_, before) = node.get("/v1/log").await;
    assert_eq!(before["level"], "warn,consensus::net::service=info");
    let set = async |level: &str| {
        node.send(node.request(Method::PUT, "/v1/log").json(&json!({"level": level}))).await
    };
    // The line that says so is of level `warn` itself.
    for level in ["error", "warn,engine=debug"] {
        assert_eq!(set(level).await, (StatusCode::OK, json!({"level": level})));
    }
    let told = |levels: &str| logged().iter().any(|line| line["levels"] == levels && line["level"] == "WARN");
    wait_until("the line of a level at which it is logged", PATIENCE, async || {
        told("warn,engine=debug").then_some(())
    })
    .await
    .unwrap();
    assert!(!told("error"));
    let (status, refused) = set("engine=loud").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert!(refused["detail"].as_str().unwrap().contains("engine=loud"), "{refused}");
    // What is refused changes nothing.
    assert_eq!(node.get("/v1/log").await.1["level"], "warn,engine=debug");

    // A line about the work of a session says whose it is, and has the id of the trace that its client named.
    assert_eq!(set("warn,providers=info").await.0, StatusCode::OK);
    node.vendor.set_outage(Some(providers::simulated::Outage::Refuses));
    let workflow = json!({"name": "w", "retry": {"max_attempts": 1}, "steps": [
        {"id": "a", "agent": {"role": "r", "prompt": "p"}}]});
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let request = node.request(Method::POST, "/v1/sessions").json(&json!({"workflow": workflow}));
    let request = request.header("traceparent", format!("00-{trace}-00f067aa0ba902b7-01"));
    let (status, started) = node.send(request).await;
    assert_eq!(status, StatusCode::CREATED, "{started}");
    wait_until("the line of the call that failed", PATIENCE, async || {
        let of = |line: &Value| line["message"] == "call failed" && line["span"]["session"] == started["id"];
        logged().iter().find(|line| of(line)).map(|line| {
            assert_eq!(line["span"]["trace_id"], trace, "{line}");
        })
    })
    .await
    .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn logs_go_to_a_collector_that_may_be_away() {
    let taken: Arc<Mutex<Vec<Value>>> = Arc::default();
    let (refusals, heard) = (Arc::new(AtomicUsize::new(2)), Arc::clone(&taken));
    let take = move |headers: HeaderMap, body: String| async move {
        let header = |name: &str| headers[name].to_str().unwrap().to_owned();
        assert_eq!(header("content-type"), "application/x-ndjson");
        if header("authorization") != "Bearer canary-of-the-collector" {
            return StatusCode::UNAUTHORIZED;
        }
        if refusals.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return StatusCode::SERVICE_UNAVAILABLE;
        }
        heard.lock().unwrap().extend(body.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()));
        StatusCode::OK
    };
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/in?key=k", listener.local_addr().unwrap());
    let routes = axum::Router::new().route("/in", axum::routing::post(take));
    tokio::spawn(async move { axum::serve(listener, routes).await });

    let lines = format!("format = \"json\"\nurl = \"{url}\"\ntoken_env = \"COLLECTOR\"\n");
    let env = [("COLLECTOR".to_owned(), "canary-of-the-collector".to_owned())];
    let node = Fixture::with_table("log", &lines, "", &env).await;
    // Sending is not logged, at whichever level, or it would never end.
    for level in ["warn,hyper=trace,hyper_util=trace,reqwest=trace", "info"] {
        let set = node.request(Method::PUT, "/v1/log").json(&json!({"level": level}));
        assert_eq!(node.send(set).await.0, StatusCode::OK);
    }
    let told = || taken.lock().unwrap().iter().filter(|line| line["levels"] == "info").count();
    wait_until("the lines to arrive", PATIENCE, async || (told() > 0).then_some(())).await.unwrap();
    assert_eq!(told(), 1, "lines are taken once");
    // A node that stops sends the rest.
    assert_eq!(node.node.stop(std::time::Duration::from_secs(60)).await.unwrap(), Some(0));
    assert!(taken.lock().unwrap().iter().any(|line| line["message"] == "stopped"));
}
