//! The HTTP and gRPC APIs.

use std::time::Duration;

use providers::simulated::Options;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use testkit::wait_until;

use crate::fixture::{Fixture, PATIENCE};

fn approval_workflow() -> Value {
    json!({"name": "gate", "steps": [
        {"id": "plan", "agent": {"role": "architect", "prompt": "plan {{ input.x }}"}},
        {"id": "ok", "wait": {"approval": "plan"}},
        {"id": "go", "wait": {"signal": "go"}},
        {"id": "result", "value": "{'files': [{'path': 'a/b.txt', 'content': steps.go.output}], 'was': steps.ok.output}"},
    ]})
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_answers_as_documented() {
    let node = Fixture::start("").await;
    for (path, body) in [
        ("/health", json!({"status": "ok"})),
        ("/health/live", json!({"status": "alive"})),
        ("/health/ready", json!({"status": "ready"})),
    ] {
        assert_eq!(node.get(path).await, (StatusCode::OK, body));
    }
    let (_, openapi) = node.get("/openapi.json").await;
    assert_eq!(openapi["openapi"], "3.1.0");

    // A start, its repetition, and another request under the same key.
    let body = json!({"workflow": approval_workflow(), "input": {"x": 1}, "labels": {"team": "a"}});
    let start =
        |body: &Value| node.request(Method::POST, "/v1/sessions").header("idempotency-key", "k1").json(body);
    let (status, started) = node.send(start(&body)).await;
    assert_eq!(status, StatusCode::CREATED, "{started}");
    assert_eq!((&started["durability"], started["position"].as_u64() > Some(0)), (&json!("local"), true));
    let id = started["id"].as_str().unwrap().to_owned();
    let (status, again) = node.send(start(&body)).await;
    assert_eq!((status, &again["id"]), (StatusCode::OK, &started["id"]));
    let (status, other) =
        node.send(start(&json!({"workflow": approval_workflow(), "input": {"x": 2}}))).await;
    assert_eq!((status, &other["code"]), (StatusCode::CONFLICT, &json!("idempotency_key_reused")));

    // Approval, edited; then a signal.
    node.until(&id, &["waiting"]).await;
    let (_, described) = node.get(&format!("/v1/sessions/{id}/describe")).await;
    assert_eq!(described["coming"][0]["waits_for"], "an approval", "{described}");
    let edit = json!({"decision": "edit", "step": "ok", "value": {"plan": "better"}});
    assert_eq!(node.post(&format!("/v1/sessions/{id}/approve"), &edit).await.0, StatusCode::OK);
    let signal = json!({"name": "go", "payload": "content"});
    assert_eq!(node.post(&format!("/v1/sessions/{id}/signal"), &signal).await.0, StatusCode::OK);
    let session = node.until(&id, &["completed"]).await;
    assert_eq!(session["output"]["was"], json!({"plan": "better"}), "{session}");
    assert_eq!(session["steps"][0]["simulated"], true);
    let (_, file) = node.get(&format!("/v1/sessions/{id}/files/a/b.txt")).await;
    assert_eq!(file, json!("content"));

    // Events as pages and as a stream from a number on.
    let (_, page) = node.get(&format!("/v1/sessions/{id}/events?limit=3")).await;
    assert_eq!((page["events"].as_array().unwrap().len(), &page["next"]), (3, &json!(3)));
    let stream = node.request(Method::GET, &format!("/v1/sessions/{id}/events"));
    let stream = stream.header("accept", "text/event-stream").header("last-event-id", "2");
    let text = stream.send().await.unwrap().text().await.unwrap();
    assert!(text.starts_with("id: 3\n") || text.contains("\nid: 3\n"), "{text}");
    assert!(!text.contains("id: 2\n") && text.contains("event: session_completed"), "{text}");
    // From beyond the end on there is nothing, and nothing is waited for.
    for last in ["1000", "18446744073709551615"] {
        let stream = node.request(Method::GET, &format!("/v1/sessions/{id}/events"));
        let stream = stream.header("accept", "text/event-stream").header("last-event-id", last);
        assert_eq!(stream.send().await.unwrap().text().await.unwrap(), "");
    }
    let (_, audit) = node.get(&format!("/v1/sessions/{id}/audit")).await;
    assert_eq!(audit["intact"], true, "{audit}");

    let (_, list) = node.get("/v1/sessions?status=completed&limit=1").await;
    assert_eq!(list["sessions"][0]["id"], json!(id));
    let metrics = node.request(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
    for name in [
        "orchestra_shard_led{shard=\"0\"} 1\n",
        "orchestra_shard_commands_waiting{shard=\"0\"} 0\n",
        "orchestra_rocksdb_table_bytes{db=\"log\"} ",
        "orchestra_rocksdb_write_stopped{db=\"state\"} 0\n",
        "orchestra_entry_commit_duration_seconds_count{shard=\"",
        "orchestra_commands_committed_total{shard=\"",
    ] {
        assert!(metrics.contains(name), "{name} is not in:\n{metrics}");
    }
    assert!(
        metrics.contains("orchestra_sessions_started_total 1") && metrics.ends_with("# EOF\n"),
        "{metrics}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repetition_is_one_whatever_was_applied_in_between() {
    let node = Fixture::start("").await;
    let apply = async |value: &str| {
        let source = format!("name: named\nsteps:\n  - {{id: a, value: '{value}'}}\n");
        let request = node.request(Method::POST, "/v1/workflows").body(source);
        assert!(node.send(request).await.0.is_success());
    };
    let start = |key: &str, body: &Value| {
        node.request(Method::POST, "/v1/sessions").header("idempotency-key", key).json(body)
    };
    let by_key = json!({"workflow": "named", "input": {"n": 1}});
    let minted = "ses_00001_00000000000000000007";
    let by_id = json!({"workflow": "named", "input": {"n": 1}, "id": minted});
    apply("1").await;
    let (_, first) = node.send(start("k", &by_key)).await;
    let (status, _) = node.post("/v1/sessions", &by_id).await;
    assert_eq!(status, StatusCode::CREATED);
    apply("2").await;
    let (status, again) = node.send(start("k", &by_key)).await;
    assert_eq!((status, &again["id"]), (StatusCode::OK, &first["id"]), "{again}");
    let (status, again) = node.post("/v1/sessions", &by_id).await;
    assert_eq!((status, &again["id"]), (StatusCode::OK, &json!(minted)), "{again}");
    // Another request is another request.
    let (status, other) = node.send(start("k", &json!({"workflow": "named", "input": {"n": 2}}))).await;
    assert_eq!((status, &other["code"]), (StatusCode::CONFLICT, &json!("idempotency_key_reused")));
    let (status, other) = node.post("/v1/sessions", &json!({"workflow": "code", "id": minted})).await;
    assert_eq!((status, &other["code"]), (StatusCode::CONFLICT, &json!("id_reused")), "{other}");
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_are_cancelled_and_retried() {
    let node = Fixture::start("").await;
    let waits = json!({"name": "w", "steps": [{"id": "a", "wait": {"signal": "never"}}]});
    let id = node.start_inline(&waits, &json!(null)).await;
    node.until(&id, &["waiting"]).await;
    assert_eq!(
        node.post(&format!("/v1/sessions/{id}/cancel"), &json!({"reason": "enough"})).await.0,
        StatusCode::OK
    );
    let session = node.until(&id, &["canceled"]).await;
    assert_eq!(session["error"]["message"], "enough");
    let (status, refused) = node.post(&format!("/v1/sessions/{id}/signal"), &json!({"name": "never"})).await;
    assert_eq!((status, &refused["code"]), (StatusCode::CONFLICT, &json!("already_ended")));

    let fails = json!({"name": "f", "steps": [{"id": "a", "value": "input.missing.field"}]});
    let id = node.start_inline(&fails, &json!({})).await;
    let session = node.until(&id, &["failed"]).await;
    assert_eq!(session["error"]["code"], "evaluation_failed", "{session}");
    assert_eq!(node.post(&format!("/v1/sessions/{id}/retry"), &json!({})).await.0, StatusCode::OK);
    node.until(&id, &["failed"]).await;
    let (_, page) = node.get(&format!("/v1/sessions/{id}/events")).await;
    assert!(
        page["events"].as_array().unwrap().iter().any(|event| event["type"] == "session_retried"),
        "{page}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn the_time_of_the_next_attempt_survives_a_kill() {
    let broken = Options { error_rate: 1.0, latency_min_ms: 0, latency_max_ms: 0, ..Default::default() };
    let node = Fixture::with_vendor(broken, vec![], "").await;
    let workflow = |delay: &str| {
        let retry = json!({"max_attempts": 2, "backoff": "constant", "delay": delay, "jitter": 0.5});
        json!({"name": "w", "retry": retry, "steps": [{"id": "a", "agent": {"role": "r", "prompt": "p"}}]})
    };
    let far = node.start_inline(&workflow("1h"), &json!(null)).await;
    let near = node.start_inline(&workflow("2s"), &json!(null)).await;
    let waits_for = async |node: &Fixture| {
        let told = wait_until("the pause", PATIENCE, async || {
            let (_, told) = node.get(&format!("/v1/sessions/{far}/describe")).await;
            let waits_for = told["coming"][0]["waits_for"].as_str()?.to_owned();
            waits_for.starts_with("its next attempt, at ").then_some(waits_for)
        });
        told.await.unwrap()
    };
    let before = waits_for(&node).await;
    let node = node.killed_and_restarted().await;
    assert_eq!(waits_for(&node).await, before);
    let ended = node.until(&near, &["failed"]).await;
    assert_eq!(ended["error"]["code"], "unavailable", "{ended}");
    let (_, page) = node.get(&format!("/v1/sessions/{near}/events")).await;
    let events = page["events"].as_array().unwrap();
    let failed: Vec<&Value> = events.iter().filter(|event| event["type"] == "step_failed").collect();
    let times = |index: usize, name: &str| failed[index]["data"][name].as_str().unwrap().to_owned();
    assert_eq!(failed.len(), 2, "{page}");
    assert!(times(1, "started_at") >= times(0, "retry_at"), "{page}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_of_ten_thousand_steps_runs_through() {
    let node = Fixture::start("").await;
    let steps: String = (0..10_000).map(|step| format!("  - {{id: s{step}, value: '{step}'}}\n")).collect();
    let source = format!("name: long\nsteps:\n{steps}");
    let apply = node.request(Method::POST, "/v1/workflows").body(source);
    let (status, applied) = node.send(apply).await;
    assert_eq!(status, StatusCode::OK, "{applied}");
    let (status, started) = node.post("/v1/sessions", &json!({"workflow": "long"})).await;
    assert_eq!(status, StatusCode::CREATED, "{started}");
    let id = started["id"].as_str().unwrap();
    let session = node.until(id, &["completed", "failed"]).await;
    assert_eq!((&session["status"], &session["output"]), (&json!("completed"), &json!(9_999)));
    let (_, audit) = node.get(&format!("/v1/sessions/{id}/audit")).await;
    assert_eq!((&audit["intact"], &audit["events"]), (&json!(true), &json!(10_002)), "{audit}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_hold_every_session_once() {
    let node = Fixture::start("").await;
    let quick = json!({"name": "q", "steps": [{"id": "a", "value": "1"}]});
    let mut started = std::collections::BTreeSet::new();
    for _ in 0..25 {
        started.insert(node.start_inline(&quick, &json!(null)).await);
    }
    let (mut listed, mut cursor) = (Vec::new(), String::new());
    loop {
        let (_, page) = node.get(&format!("/v1/sessions?limit=7{cursor}")).await;
        listed.extend(
            page["sessions"].as_array().unwrap().iter().map(|of| of["id"].as_str().unwrap().to_owned()),
        );
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    assert_eq!(listed.len(), 25);
    assert_eq!(listed.into_iter().collect::<std::collections::BTreeSet<_>>(), started);
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_name_tenants() {
    let secrets = tempfile::tempdir().unwrap();
    let (mut extra, mut env) = (String::new(), Vec::new());
    for tenant in ["acme", "other"] {
        let file = secrets.path().join(tenant);
        std::fs::write(&file, format!("token-of-{tenant}-0123456789\n")).unwrap();
        extra.push_str(&format!("[[tokens]]\ntenant = \"{tenant}\"\ntoken_env = \"TEST_TOKEN_{tenant}\"\n"));
        env.push((format!("TEST_TOKEN_{tenant}_FILE"), file.display().to_string()));
    }
    let mut node = Fixture::with_env(&extra, &env).await;
    assert_eq!(node.get("/v1/sessions").await.0, StatusCode::UNAUTHORIZED);
    node.set_token(Some("token-of-nobody-0123456789"));
    assert_eq!(node.get("/v1/sessions").await.1["code"], "unauthenticated");
    node.set_token(Some("token-of-acme-0123456789"));
    let quick = json!({"name": "q", "steps": [{"id": "a", "value": "1"}]});
    let id = node.start_inline(&quick, &json!(null)).await;
    node.until(&id, &["completed"]).await;
    node.set_token(Some("token-of-other-0123456789"));
    assert_eq!(node.get(&format!("/v1/sessions/{id}")).await.0, StatusCode::NOT_FOUND);
    assert_eq!(node.get("/v1/sessions").await.1["sessions"], json!([]));
    // Nor how often others have asked, or what their sessions took. These two were its own requests.
    let (_, report) = node.get("/v1/sla?window=1h").await;
    let series = report["series"].as_array().unwrap();
    assert!(series.iter().all(|of| of["tenant"] == "other" || of["tenant"] == ""), "{report}");
    let own = |of: &Value| of["indicator"] == "api_latency" && of["tenant"] == "other";
    assert_eq!(series.iter().find(|of| own(of)).unwrap()["n"], 2, "{report}");
    let latency = report["objectives"].as_array().unwrap().iter().find(|of| of["indicator"] == "api_latency");
    assert_eq!(latency.unwrap()["n"], 2, "{report}");
    assert_eq!(node.get("/health").await.0, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn sigterm_drains_and_exits_cleanly() {
    let options = Options { latency_min_ms: 1_500, latency_max_ms: 1_500, ..Default::default() };
    let node = Fixture::with_vendor(options, vec![], "").await;
    let one = json!({"name": "one", "steps": [{"id": "a", "agent": {"role": "r", "prompt": "p"}}]});
    node.start_inline(&one, &json!(null)).await;
    let Fixture { node, vendor, temp, .. } = node;
    // What was not begun is not begun any more: the work has to be under way.
    let begun = wait_until("the call to be under way", PATIENCE, async || {
        (chaos::crash::counts(&vendor).await.ok()?.calls == 1).then_some(())
    });
    begun.await.unwrap();
    let ready = format!("{}/health/ready", node.url());
    // While the call is under way, nobody is to send more.
    let meanwhile = async {
        let not_ready = wait_until("the node not to be ready", PATIENCE, async || {
            let answer = reqwest::get(&ready).await.ok()?;
            let status = answer.status();
            let body: Value = answer.json().await.ok()?;
            (status == StatusCode::SERVICE_UNAVAILABLE).then_some(body)
        });
        let draining = "draining: the node takes no new work, and may be about to stop";
        assert_eq!(not_ready.await.unwrap(), json!({"status": "not ready", "errors": [draining]}));
        assert_eq!(chaos::crash::counts(&vendor).await.unwrap().completed, 0);
    };
    let (code, ()) = tokio::join!(node.stop(Duration::from_secs(60)), meanwhile);
    assert_eq!(code.unwrap(), Some(0));
    // The work under way was finished, not thrown away: the vendor answered in full.
    let counts = chaos::crash::counts(&vendor).await.unwrap();
    assert_eq!((counts.calls, counts.completed), (1, 1));
    drop(temp);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_more_sessions_are_started_than_there_may_be() {
    let node =
        Fixture::start("[capacity]\nsessions = 2\nminutes = 10\nmemory_mib = 100000\ndisk_mib = 100000\n")
            .await;
    let waits = json!({"name": "w", "steps": [{"id": "a", "wait": {"signal": "go"}}]});
    let start = async |key: &str, duration_ms: Option<u64>| {
        let request = node.request(Method::POST, "/v1/sessions").header("idempotency-key", key);
        let answer = request
            .json(&json!({"workflow": waits, "budget": duration_ms.map(|ms| json!({"duration_ms": ms}))}))
            .send()
            .await
            .unwrap();
        let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
        (status, headers.contains_key("retry-after"), answer.json::<Value>().await.unwrap())
    };
    let first = start("1", None).await;
    assert_eq!(first.0, 201, "{first:?}");
    let too_long = start("2", Some(660_000)).await;
    assert_eq!((too_long.0, &too_long.2["code"]), (429, &json!("capacity_exceeded")), "{too_long:?}");
    assert_eq!(start("2", Some(300_000)).await.0, 201);
    let refused = start("3", None).await;
    assert_eq!(
        (refused.0, refused.1, &refused.2["code"]),
        (429, true, &json!("capacity_exceeded")),
        "{refused:?}"
    );
    // What is there already is there.
    assert_eq!(start("1", None).await.2["id"], first.2["id"]);
    let metrics = node.request(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
    for line in ["used{of=\"sessions that have not ended\"} 2", "limit{of=\"MiB on the disk\"} 100000"] {
        assert!(metrics.contains(&format!("orchestra_capacity_{line}")), "{metrics}");
    }
    // One that ends makes room.
    let id = first.2["id"].as_str().unwrap();
    let cancel = node.request(Method::POST, &format!("/v1/sessions/{id}/cancel")).send().await.unwrap();
    assert!(cancel.status().is_success());
    let made =
        wait_until("room for another", PATIENCE, async || (start("3", None).await.0 == 201).then_some(()));
    made.await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_node_with_no_memory_or_disk_left_starts_no_session() {
    for (limit, what) in [("memory_mib", "MiB of memory"), ("disk_mib", "MiB on the disk")] {
        let node = Fixture::start(&format!("[capacity]\n{limit} = 1\n")).await;
        std::fs::write(node.directory().join("data/ballast"), vec![0; 2 << 20]).unwrap();
        let body = json!({"workflow": {"name": "w", "steps": [{"id": "a", "value": "1"}]}});
        // What is on the disk is measured now and then.
        let refused = wait_until("a start to be refused", PATIENCE, async || {
            let (status, said) = node.post("/v1/sessions", &body).await;
            (status == StatusCode::TOO_MANY_REQUESTS).then_some(said)
        });
        let refused = refused.await.unwrap();
        assert_eq!(refused["code"], "capacity_exceeded", "{refused}");
        assert!(
            refused["detail"].as_str().unwrap().contains(&format!("{what}, of 1 that there may be")),
            "{refused}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_says_that_something_has_changed() {
    let node = Fixture::start("").await;
    let mut answer = node.request(Method::GET, "/v1/changes").send().await.unwrap();
    assert_eq!(answer.headers()["content-type"], "text/event-stream");
    let mut last = 0;
    for _ in 0..2 {
        node.start_inline(&json!({"name": "w", "steps": [{"id": "a", "value": "1"}]}), &json!(1)).await;
        let message = tokio::time::timeout(PATIENCE, answer.chunk()).await.unwrap().unwrap().unwrap();
        let message = std::str::from_utf8(&message).unwrap();
        let applied =
            message.strip_prefix("event: changed\ndata: ").and_then(|rest| rest.strip_suffix("\n\n"));
        let applied: u64 = applied.unwrap_or_else(|| panic!("{message:?}")).parse().unwrap();
        assert!(applied > last, "{applied} after {last}");
        last = applied;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_asks_too_often_is_told_when_to_come_back() {
    let (mut extra, mut env) = (String::from("[limits]\nper_tenant_per_minute = 4\n"), Vec::new());
    for tenant in ["busy", "quiet"] {
        extra.push_str(&format!("[[tokens]]\ntenant = \"{tenant}\"\ntoken_env = \"TEST_TOKEN_{tenant}\"\n"));
        env.push((format!("TEST_TOKEN_{tenant}"), format!("{tenant}-0123456789abcdef")));
    }
    let mut node = Fixture::with_env(&extra, &env).await;
    node.set_token(Some("busy-0123456789abcdef"));
    for left in [3, 2, 1, 0] {
        let answer = node.request(Method::GET, "/v1/workflows").send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["ratelimit-policy"], "\"tenant\";q=4;w=60");
        let standing = answer.headers()["ratelimit"].to_str().unwrap().to_owned();
        assert!(standing.starts_with(&format!("\"tenant\";r={left};")), "{standing}");
    }
    let refused = node.request(Method::GET, "/v1/workflows").send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    let seconds: u64 = refused.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=15).contains(&seconds), "{seconds}");
    let problem: Value = refused.json().await.unwrap();
    assert_eq!(problem["code"], "rate_limited", "{problem}");
    // The same bucket over gRPC; none for health, and others have theirs.
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", node.grpc)).unwrap();
    let mut client =
        proto::api::session_service_client::SessionServiceClient::new(channel.connect().await.unwrap());
    let mut request = tonic::Request::new(proto::api::GetSessionRequest { id: "ses_".into(), stale: false });
    request.metadata_mut().insert("authorization", "Bearer busy-0123456789abcdef".parse().unwrap());
    let refused = client.get_session(request).await.unwrap_err();
    assert_eq!(refused.metadata().get("orchestra-code").unwrap(), "rate_limited", "{refused:?}");
    let standing = refused.metadata().get("ratelimit").unwrap().to_str().unwrap();
    assert!(standing.starts_with("\"tenant\";r=0;"), "{standing}");
    assert_eq!(node.request(Method::GET, "/health/ready").send().await.unwrap().status(), StatusCode::OK);
    node.set_token(Some("quiet-0123456789abcdef"));
    assert_eq!(node.request(Method::GET, "/v1/workflows").send().await.unwrap().status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_has_a_limit_of_its_own() {
    let node = Fixture::start("[limits]\nper_address_per_minute = 2\n").await;
    for status in [StatusCode::OK, StatusCode::OK, StatusCode::TOO_MANY_REQUESTS] {
        let answer = node.request(Method::GET, "/v1/workflows").send().await.unwrap();
        assert_eq!((answer.status(), answer.headers().contains_key("ratelimit")), (status, true));
    }
    // The same bucket over gRPC, whose health has none.
    let channel = tonic::transport::Channel::from_shared(format!("http://{}", node.grpc)).unwrap();
    let channel = channel.connect().await.unwrap();
    let mut client = proto::api::session_service_client::SessionServiceClient::new(channel.clone());
    let refused = client.list_workflows(proto::api::ListWorkflowsRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), tonic::Code::ResourceExhausted, "{refused:?}");
    assert_eq!(refused.metadata().get("ratelimit-policy").unwrap(), "\"address\";q=2;w=60");
    let seconds: u64 = refused.metadata().get("retry-after").unwrap().to_str().unwrap().parse().unwrap();
    assert!((1..=30).contains(&seconds), "{seconds}");
    let mut health = tonic_health::pb::health_client::HealthClient::new(channel);
    assert!(health.check(tonic_health::pb::HealthCheckRequest::default()).await.is_ok());
}
