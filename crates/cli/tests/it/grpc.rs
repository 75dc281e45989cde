//! The gRPC API: sessions, health, reflection.

use std::net::SocketAddr;

use proto::api::{self, session_service_client::SessionServiceClient};
use reqwest::Method;
use serde_json::{Value, json};
use tonic::{Code, transport::Channel};
use tonic_health::pb::{
    HealthCheckRequest, health_check_response::ServingStatus, health_client::HealthClient,
};
use tonic_reflection::pb::v1::{
    ServerReflectionRequest, server_reflection_client::ServerReflectionClient,
    server_reflection_request::MessageRequest, server_reflection_response::MessageResponse,
};

use testkit::wait_until;

use crate::fixture::{Fixture, PATIENCE};

async fn connect(address: SocketAddr) -> Channel {
    Channel::from_shared(format!("http://{address}")).unwrap().connect().await.unwrap()
}

fn workflow() -> String {
    json!({"name": "gate", "steps": [
        {"id": "plan", "agent": {"role": "architect", "prompt": "plan {{ input.x }}"}},
        {"id": "ok", "wait": {"approval": "plan"}},
        {"id": "go", "wait": {"signal": "go"}},
    ]})
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_driven_over_grpc() {
    let node = Fixture::start("").await;
    let mut client = SessionServiceClient::new(connect(node.grpc).await);
    let start = api::StartSessionRequest {
        workflow_source: workflow(),
        input_json: r#"{"x": 1}"#.into(),
        idempotency_key: "k".into(),
        ..Default::default()
    };
    let started = client.start_session(start.clone()).await.unwrap().into_inner();
    assert!(started.created);
    let again = client.start_session(start.clone()).await.unwrap().into_inner();
    assert_eq!((again.id.as_str(), again.created), (started.id.as_str(), false));
    let other = api::StartSessionRequest { input_json: "2".into(), ..start };
    let refused = client.start_session(other).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(refused.metadata().get("orchestra-code").unwrap(), "idempotency_key_reused");

    let id = started.id;
    node.until(&id, &["waiting"]).await;
    let describe = api::DescribeSessionRequest { id: id.clone() };
    let told = client.describe_session(describe).await.unwrap().into_inner().json;
    let told: Value = serde_json::from_str(&told).unwrap();
    assert_eq!((&told["coming"][0]["step"], &told["coming"][1]), (&json!("ok"), &Value::Null), "{told}");
    let approve = api::ApproveStepRequest { id: id.clone(), ..Default::default() };
    client.approve_step(approve).await.unwrap();
    let follow = api::StreamEventsRequest { id: id.clone(), from_seq: 0, follow: true };
    let mut events = client.stream_events(follow).await.unwrap().into_inner();
    let signal = api::SignalSessionRequest {
        id: id.clone(),
        name: "go".into(),
        payload_json: "7".into(),
        idempotency_key: "s".into(),
    };
    client.signal_session(signal.clone()).await.unwrap();
    client.signal_session(signal).await.unwrap();
    let mut kinds = Vec::new();
    while let Some(event) = events.message().await.unwrap() {
        assert_eq!(event.seq, kinds.len() as u64);
        kinds.push(event.r#type);
    }
    assert_eq!(kinds.last().map(String::as_str), Some("session_completed"));
    let signals = kinds.iter().filter(|kind| *kind == "signal_received").count();
    assert_eq!(signals, 1, "a repeated signal counts once: {kinds:?}");

    // Calls are counted and measured as those over HTTP are.
    let metrics = node.request(Method::GET, "/metrics").send().await.unwrap().text().await.unwrap();
    for (method, code, count) in
        [("StartSession", "Ok", 2), ("StartSession", "FailedPrecondition", 1), ("SignalSession", "Ok", 2)]
    {
        let line = format!("orchestra_grpc_requests_total{{method=\"{method}\",code=\"{code}\"}} {count}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
    assert!(metrics.contains("orchestra_grpc_request_duration_seconds_count"), "{metrics}");
    let counted = "orchestra_api_latency_seconds_count{region=\"0\",tenant=\"default\"} ";
    let latencies = metrics.lines().find_map(|of| of.strip_prefix(counted));
    assert!(latencies.is_some_and(|count| count.parse::<u64>().unwrap() >= 7), "{metrics}");

    let audit = api::AuditSessionRequest { id: id.clone() };
    let audit = client.audit_session(audit).await.unwrap().into_inner();
    assert!(audit.intact && audit.first_broken_seq.is_none(), "{audit:?}");
    assert_eq!((audit.events, audit.head.len()), (kinds.len() as u64, 64));

    let get = api::GetSessionRequest { id: id.clone(), stale: false };
    let session = client.get_session(get).await.unwrap().into_inner();
    let seen: Value = serde_json::from_str(&session.json).unwrap();
    assert_eq!((session.status.as_str(), &seen["output"]), ("completed", &json!(7)));
    let list = client.list_sessions(api::ListSessionsRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.sessions.len(), 1);
    let unknown = "ses_00000_00000000000000000000".to_owned();
    let unknown = api::GetSessionRequest { id: unknown, stale: true };
    assert_eq!(client.get_session(unknown).await.unwrap_err().code(), Code::NotFound);
    let bad =
        client.get_session(api::GetSessionRequest { id: "nonsense".into(), stale: false }).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    let ended = client.cancel_session(api::CancelSessionRequest { id, reason: String::new() }).await;
    assert_eq!(ended.unwrap_err().code(), Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn workflows_and_budgets_over_grpc() {
    let node = Fixture::start("").await;
    let mut client = SessionServiceClient::new(connect(node.grpc).await);
    let source = "name: mine\nsteps:\n  - {id: a, value: '1'}\n  - {id: b, value: '2'}\n";
    let apply = api::ApplyWorkflowRequest { source: source.into() };
    let applied = client.apply_workflow(apply).await.unwrap().into_inner();
    let list = client.list_workflows(api::ListWorkflowsRequest {}).await.unwrap().into_inner().workflows;
    let found = |name: &str| list.iter().find(|workflow| workflow.name == name).unwrap();
    let mine = found("mine");
    assert_eq!(
        (mine.definition.as_str(), mine.version, mine.built_in),
        (applied.definition.as_str(), 1, false)
    );
    assert!(found("code").built_in);
    let get = api::GetWorkflowRequest { name: "mine".into() };
    let got = client.get_workflow(get).await.unwrap().into_inner();
    assert_eq!((got.source.as_str(), got.definition.as_str()), (source, applied.definition.as_str()));
    let unknown = client.get_workflow(api::GetWorkflowRequest { name: "theirs".into() }).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);

    let start = api::StartSessionRequest {
        workflow: "mine".into(),
        wait_ms: 30_000,
        budget: Some(api::Budget { steps: 1, ..Default::default() }),
        ..Default::default()
    };
    let ended = client.start_session(start).await.unwrap().into_inner();
    assert_eq!(ended.status, "failed");
    let (_, session) = node.get(&format!("/v1/sessions/{}", ended.id)).await;
    assert_eq!(session["error"]["code"], "limit_steps", "{session}");
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_tells_its_health_and_its_services() {
    let node = Fixture::start("").await;
    let channel = connect(node.grpc).await;
    let service = "orchestra.v1.SessionService";
    let becomes = async |wanted: ServingStatus| {
        for service in [service, "orchestra.v1.WorkerService", ""] {
            let what = format!("{service:?} to be {wanted:?}");
            let told = wait_until(&what, PATIENCE, async || {
                let check = HealthCheckRequest { service: service.into() };
                let answer = HealthClient::new(channel.clone()).check(check).await.ok()?.into_inner();
                (answer.status() == wanted).then_some(())
            });
            told.await.unwrap();
        }
    };
    becomes(ServingStatus::Serving).await;
    node.post("/v1/cluster/drain", &json!({})).await;
    becomes(ServingStatus::NotServing).await;
    node.post("/v1/cluster/drain", &json!({"undo": true})).await;
    becomes(ServingStatus::Serving).await;
    let ask = ServerReflectionRequest {
        message_request: Some(MessageRequest::ListServices(String::new())),
        ..Default::default()
    };
    let mut answers = ServerReflectionClient::new(channel)
        .server_reflection_info(tokio_stream::once(ask))
        .await
        .unwrap()
        .into_inner();
    let answer = answers.message().await.unwrap().unwrap().message_response.unwrap();
    let MessageResponse::ListServicesResponse(services) = answer else { panic!("{answer:?}") };
    let names: Vec<String> = services.service.into_iter().map(|service| service.name).collect();
    assert!(names.iter().any(|name| name == service), "{names:?}");
}
