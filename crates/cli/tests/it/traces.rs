//! Traces, as an OTLP receiver gets them.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use axum::{body::Bytes, http::StatusCode};
use chaos::api::Api;
use opentelemetry_proto::tonic::{
    collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse},
    common::v1::any_value::Value as Any,
};
use prost::Message as _;
use serde_json::{Value, json};
use testkit::{Cluster, wait_until};

use crate::fixture::PATIENCE;

const WORKFLOW: &str = "\
name: traced
steps:
  - {id: write, agent: {role: executor, prompt: 'write {{ input }}'}}
  - {id: build, task: {queue: q, input: input}}
";
const SESSIONS: usize = 9;
/// That of a client which traces itself.
const CLIENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const CLIENT_OF_GRPC: &str = "00-5bf92f3577b34da6a3ce929d0e0e4737-10f067aa0ba902b8-01";

#[derive(Debug, Clone)]
struct Span {
    trace: String,
    id: String,
    parent: String,
    name: String,
    node: String,
    attributes: BTreeMap<String, String>,
}

/// Hexadecimal digits.
fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn text(value: Option<Any>) -> String {
    match value {
        Some(Any::StringValue(text)) => text,
        Some(Any::IntValue(number)) => number.to_string(),
        other => format!("{other:?}"),
    }
}

/// An OTLP receiver; where it is, and what it got.
async fn receiver() -> (String, Arc<Mutex<Vec<Span>>>) {
    let got: Arc<Mutex<Vec<Span>>> = Arc::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let heard = Arc::clone(&got);
    let answer = move |body: Bytes| async move {
        let request = ExportTraceServiceRequest::decode(body).unwrap();
        let mut got = heard.lock().unwrap();
        for of in request.resource_spans {
            let attributes = of.resource.unwrap().attributes.into_iter();
            let mut named = attributes.filter(|attribute| attribute.key == "service.instance.id");
            let node = text(named.next().unwrap().value.unwrap().value);
            for span in of.scope_spans.into_iter().flat_map(|of| of.spans) {
                assert!(span.start_time_unix_nano <= span.end_time_unix_nano, "{span:?}");
                let attributes = span.attributes.into_iter();
                got.push(Span {
                    trace: hex(&span.trace_id),
                    id: hex(&span.span_id),
                    parent: hex(&span.parent_span_id),
                    name: span.name,
                    node: node.clone(),
                    attributes: attributes.map(|of| (of.key, text(of.value.unwrap().value))).collect(),
                });
            }
        }
        (StatusCode::OK, ExportTraceServiceResponse::default().encode_to_vec())
    };
    let routes = axum::Router::new().route("/v1/traces", axum::routing::post(answer));
    tokio::spawn(async move { axum::serve(listener, routes).await });
    (url, got)
}

/// Starts a session over gRPC with its client's trace, sends it a signal, and tries it again; its id.
async fn start_over_grpc(url: String) -> String {
    let channel = tonic::transport::Channel::from_shared(url).unwrap().connect().await.unwrap();
    let mut client = proto::api::session_service_client::SessionServiceClient::new(channel);
    let start = proto::api::StartSessionRequest {
        workflow: "traced".into(),
        input_json: "2".into(),
        ..Default::default()
    };
    let mut start = tonic::Request::new(start);
    start.metadata_mut().insert("traceparent", CLIENT_OF_GRPC.parse().unwrap());
    let id = client.start_session(start).await.unwrap().into_inner().id;
    let signal = proto::api::SignalSessionRequest { id: id.clone(), name: "s".into(), ..Default::default() };
    client.signal_session(signal).await.unwrap();
    // It is running: there is nothing to be retried.
    let retry = proto::api::RetrySessionRequest { id: id.clone() };
    client.retry_session(retry).await.unwrap_err();
    id
}

/// All calls are told, also one that is refused, with the trace of their client and below its span.
fn check_calls_of_grpc(spans: &[Span]) {
    let calls = [("StartSession", "0"), ("SignalSession", "0"), ("RetrySession", "9")];
    for (method, code) in calls {
        let name = format!("orchestra.v1.SessionService/{method}");
        let found: Vec<&Span> = spans.iter().filter(|span| span.name == name).collect();
        assert_eq!(found.len(), 1, "{name}: {found:?}");
        assert_eq!((&*found[0].trace, &*found[0].parent), (&CLIENT_OF_GRPC[3..35], &CLIENT_OF_GRPC[36..52]));
        assert_eq!(found[0].attributes["rpc.grpc.status_code"], code);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_one_connected_trace_across_nodes() {
    let (otlp, got) = receiver().await;
    let temp = tempfile::tempdir().unwrap();
    let config = format!("[node]\nshards = 4\n[traces]\notlp = \"{otlp}\"\n");
    let mut cluster = Cluster::start(temp.path(), 3, &config).await.unwrap();
    cluster.until_spread().await.unwrap();
    let apis: Vec<Api> = cluster.urls().iter().map(|url| Api::new(url).unwrap()).collect();
    apis[0].apply(WORKFLOW).await.unwrap();
    let given: Arc<Mutex<Vec<String>>> = Arc::default();
    let (told, (stop, stopped)) = (Arc::clone(&given), tokio::sync::oneshot::channel::<()>());
    let options = worker::Options {
        endpoints: cluster.members().into_iter().map(|number| cluster.grpc_url(number)).collect(),
        name: "traced".into(),
        queues: vec!["q".into()],
        capacity: 8,
        ca: None,
        token: None,
    };
    let answer = move |task: worker::Task| {
        told.lock().unwrap().push(task.traceparent.clone());
        async move { Ok(task.input) }
    };
    let working = tokio::spawn(worker::run(options, answer, async {
        let _ = stopped.await;
    }));
    let mut sessions = Vec::new();
    for number in 0..SESSIONS {
        sessions
            .push(apis[number % 3].start("traced", &format!("key-{number}"), &json!(number)).await.unwrap());
    }
    let of_client = reqwest::Client::new()
        .post(apis[1].url("/v1/sessions"))
        .header("traceparent", CLIENT)
        .json(&json!({"workflow": "traced", "input": 1}))
        .send();
    let of_client: Value = of_client.await.unwrap().json().await.unwrap();
    sessions.push(of_client["id"].as_str().unwrap().to_owned());
    let of_grpc = start_over_grpc(cluster.grpc_url(2)).await;
    for id in sessions.iter().chain([&of_grpc]) {
        let ended = wait_until("a session's end", PATIENCE, async || {
            (apis[0].get(&format!("/v1/sessions/{id}")).await.ok()?["status"] == "completed").then_some(())
        });
        ended.await.unwrap_or_else(|error| panic!("{error}\n{}", cluster.log_tails()));
    }
    // What is told last: nodes that stop tell the rest.
    for number in cluster.members() {
        assert_eq!(cluster.stop(number).await.unwrap(), Some(0), "{}", cluster.log_tails());
    }
    // Its nodes are gone.
    let _ = stop.send(());
    working.abort();
    let spans = got.lock().unwrap().clone();
    let mut nodes_of_traces = BTreeSet::new();
    for id in &sessions {
        let is_root = |span: &&Span| {
            span.name == "session traced" && span.attributes.get("orchestra.session") == Some(id)
        };
        let roots: Vec<&Span> = spans.iter().filter(is_root).collect();
        assert_eq!(roots.len(), 1, "{id}: {roots:?}");
        let root = roots[0];
        let trace: Vec<&Span> = spans.iter().filter(|span| span.trace == root.trace).collect();
        let ids: BTreeSet<&str> = trace.iter().map(|span| span.id.as_str()).collect();
        assert_eq!(ids.len(), trace.len(), "{id}: a span was told twice");
        for span in &trace {
            let of_client = *id == sessions[SESSIONS] && span.parent == "00f067aa0ba902b7";
            let is_top = span.id == root.id && span.parent.trim_start_matches('0').is_empty();
            assert!(
                ids.contains(span.parent.as_str()) || is_top || of_client,
                "{id}: {span:?} hangs in the air"
            );
        }
        let count = |name: &str| trace.iter().filter(|span| span.name == name).count();
        for name in ["POST /v1/sessions", "step write", "chat simulated", "task build"] {
            assert_eq!(count(name), 1, "{id}: {name} in {trace:#?}");
        }
        for name in ["quorum", "apply"] {
            // The start, and the end of each step; the session ends with the last.
            assert_eq!(count(name), 3, "{id}: {name} in {trace:#?}");
        }
        assert!(count("dispatch") >= 1, "{id}: {trace:#?}");
        let chat = trace.iter().find(|span| span.name == "chat simulated").unwrap();
        assert_eq!(chat.attributes["gen_ai.agent.name"], "executor");
        assert!(chat.attributes["gen_ai.usage.output_tokens"].parse::<u64>().unwrap() > 0);
        nodes_of_traces.insert(trace.iter().map(|span| span.node.as_str()).collect::<BTreeSet<_>>().len());
        let work = trace.iter().find(|span| span.name == "task build").unwrap();
        let expected = format!("00-{}-{}-01", work.trace, work.id);
        assert!(given.lock().unwrap().contains(&expected), "{expected} was not given to the worker");
    }
    assert!(nodes_of_traces.contains(&2), "no trace has spans of more than one node: {nodes_of_traces:?}");
    let of_client = spans.iter().filter(|span| span.trace == "4bf92f3577b34da6a3ce929d0e0e4736").count();
    assert!(of_client >= 8, "the client's trace goes on: {of_client} spans");
    check_calls_of_grpc(&spans);
}
