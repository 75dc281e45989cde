//! The gRPC API: sessions, health, reflection.

use std::net::SocketAddr;

use proto::api::{self, session_service_client::SessionServiceClient};
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

    let session = client.get_session(api::GetSessionRequest { id: id.clone() }).await.unwrap().into_inner();
    let seen: Value = serde_json::from_str(&session.json).unwrap();
    assert_eq!((session.status.as_str(), &seen["output"]), ("completed", &json!(7)));
    let list = client.list_sessions(api::ListSessionsRequest::default()).await.unwrap().into_inner();
    assert_eq!(list.sessions.len(), 1);
    let unknown = api::GetSessionRequest { id: "ses_00000_00000000000000000000".into() };
    assert_eq!(client.get_session(unknown).await.unwrap_err().code(), Code::NotFound);
    let bad = client.get_session(api::GetSessionRequest { id: "nonsense".into() }).await.unwrap_err();
    assert_eq!(bad.code(), Code::InvalidArgument);
    let ended = client.cancel_session(api::CancelSessionRequest { id, reason: String::new() }).await;
    assert_eq!(ended.unwrap_err().code(), Code::FailedPrecondition);
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
