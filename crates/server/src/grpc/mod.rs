//! The gRPC API: the same calls as HTTP, and the connections of workers.

mod measure;
mod workers;

use std::{
    net::IpAddr,
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    extract::{self, State},
    http::Extensions,
    middleware::{Next, from_fn_with_state},
    response,
};
use futures_util::{Stream, stream};
use ids::{Seq, SessionId, TRACE_LABEL, TraceContext};
use machine::{SessionLimits, SessionStatus};
use proto::api::{
    self,
    session_service_server::{SessionService, SessionServiceServer},
    worker_service_server::WorkerServiceServer,
};
use serde_json::Value;
use tonic::{
    Code, Request, Response, Status,
    metadata::MetadataMap,
    server::NamedService,
    service::Routes,
    transport::server::{Router, TcpConnectInfo, TlsConnectInfo},
};
use tonic_health::{ServingStatus, server::HealthReporter};

use self::measure::Call;
use crate::{
    error::ApiError,
    http,
    sessions::{EVENTS_PAGE_MAX, Filter, Start, WorkflowRef},
    wiring::App,
};

/// A connection over which nothing comes back is given up after both.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(5);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(5);

/// How often what the health service tells is looked at.
const HEALTH_INTERVAL: Duration = Duration::from_millis(250);

/// How long a start waits at most for the session's end.
const WAIT_MS_MAX: u32 = 3_600_000;

/// All services: sessions, workers, health, reflection.
pub(crate) fn router(app: Arc<App>) -> Result<Router, String> {
    let (reporter, health) = tonic_health::server::health_reporter();
    tokio::spawn(report_health(Arc::clone(&app), reporter));
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(api::DESCRIPTORS)
        .build_v1()
        .map_err(|error| error.to_string())?;
    let routes = Routes::new(SessionServiceServer::new(Service { app: Arc::clone(&app) }))
        .add_service(WorkerServiceServer::new(Service { app: Arc::clone(&app) }))
        .add_service(health)
        .add_service(reflection);
    let limited = routes.into_axum_router().layer(from_fn_with_state(Arc::clone(&app), limit));
    let measured = limited.layer(from_fn_with_state(app, measure::measure));
    Ok(tonic::transport::Server::builder()
        .http2_keepalive_interval(Some(KEEPALIVE_INTERVAL))
        .http2_keepalive_timeout(Some(KEEPALIVE_TIMEOUT))
        .add_routes(Routes::from(measured)))
}

/// Takes from the buckets of the address and the tenant, and says how they stand.
async fn limit(State(app): State<Arc<App>>, request: extract::Request, next: Next) -> response::Response {
    if !request.uri().path().starts_with("/orchestra.v1.") {
        return next.run(request).await;
    }
    let tenant = http::tenant_of(&app, request.headers());
    let standings = app.limits.take(from(request.extensions()), tenant.as_deref());
    let mut response = match standings.refusal() {
        Some(refusal) => Status::from(refusal).into_http(),
        None => next.run(request).await,
    };
    standings.tell(response.headers_mut());
    response
}

/// Whom a connection is from.
fn from(connection: &Extensions) -> Option<IpAddr> {
    let plain = connection.get::<TcpConnectInfo>();
    let info = plain.or_else(|| connection.get::<TlsConnectInfo<TcpConnectInfo>>().map(|of| of.get_ref()));
    info.and_then(TcpConnectInfo::remote_addr).map(|address| address.ip())
}

/// Tells gRPC's health service what `/health/ready` tells, until the node stops.
async fn report_health(app: Arc<App>, reporter: HealthReporter) {
    let mut stopping = app.stopping.clone();
    let mut tick = tokio::time::interval(HEALTH_INTERVAL);
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            _ = stopping.wait_for(|stopping| *stopping) => return,
        }
        let ready = app.sessions.not_ready().is_empty();
        let status = if ready { ServingStatus::Serving } else { ServingStatus::NotServing };
        // The empty name is the server as a whole.
        let names = [
            "",
            <SessionServiceServer<Service> as NamedService>::NAME,
            <WorkerServiceServer<Service> as NamedService>::NAME,
        ];
        for name in names {
            reporter.set_service_status(name, status).await;
        }
    }
}

pub(crate) struct Service {
    app: Arc<App>,
}

impl From<ApiError> for Status {
    fn from(error: ApiError) -> Self {
        let code = match error.code.status {
            400 | 413 | 422 => Code::InvalidArgument,
            401 => Code::Unauthenticated,
            404 => Code::NotFound,
            409 => Code::FailedPrecondition,
            429 | 507 => Code::ResourceExhausted,
            503 => Code::Unavailable,
            _ => Code::Internal,
        };
        let mut metadata = MetadataMap::new();
        if let Ok(name) = error.code.name.parse() {
            metadata.insert("orchestra-code", name);
        }
        if let Some(Ok(seconds)) = error.retry_after_ms.map(|ms| ms.div_ceil(1000).to_string().parse()) {
            metadata.insert("retry-after", seconds);
        }
        Self::with_metadata(code, error.detail, metadata)
    }
}

type Reply<T> = Result<Response<T>, Status>;

impl Service {
    fn tenant<T>(&self, request: &Request<T>) -> Result<String, Status> {
        if let Some(call) = request.extensions().get::<Arc<Call>>() {
            call.reached.store(true, Ordering::Relaxed);
        }
        let header = request.metadata().get("authorization").and_then(|value| value.to_str().ok());
        Ok(http::tenant(&self.app, header)?)
    }

    /// The session that a call is about, whose trace it is a part of.
    fn session<T>(&self, request: &Request<T>, id: &str) -> Result<SessionId, ApiError> {
        let session = parse_id(id)?;
        tell(request.extensions().get(), session, self.app.sessions.trace_of(session));
        Ok(session)
    }
}

fn tell(call: Option<&Arc<Call>>, session: SessionId, given: Option<TraceContext>) {
    if let Some(call) = call {
        // A call is about one session.
        let _ = call.about.set(http::About(session, given));
    }
}

fn parse_id(id: &str) -> Result<SessionId, ApiError> {
    id.parse().map_err(|error: ids::ParseError| ApiError::invalid(error.to_string()))
}

fn parse_json(what: &str, text: &str) -> Result<Value, ApiError> {
    if text.is_empty() {
        return Ok(Value::Null);
    }
    serde_json::from_str(text).map_err(|error| ApiError::invalid(format!("{what}: {error}")))
}

fn optional(text: String) -> Option<String> {
    Some(text).filter(|text| !text.is_empty())
}

fn to_limits(budget: api::Budget) -> SessionLimits {
    let api::Budget { steps, iterations, tokens, cost_microusd, duration_ms } = budget;
    SessionLimits { steps, tokens, cost_microusd, iterations, duration_ms }
}

fn to_workflow(json: &Value) -> api::Workflow {
    let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
    api::Workflow {
        name: text("name"),
        definition: text("definition"),
        version: json["version"].as_u64().and_then(|version| u32::try_from(version).ok()).unwrap_or(0),
        built_in: json["built_in"].as_bool().unwrap_or(false),
        source: text("source"),
    }
}

fn to_session(json: &Value) -> api::Session {
    let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
    api::Session {
        id: text("id"),
        status: text("status"),
        workflow: text("workflow"),
        created_at: text("created_at"),
        ended_at: text("ended_at"),
        json: json.to_string(),
    }
}

fn to_event(json: &Value) -> api::Event {
    let text = |name: &str| json[name].as_str().unwrap_or_default().to_owned();
    api::Event {
        seq: json["seq"].as_u64().unwrap_or(0),
        at: text("at"),
        r#type: text("type"),
        step: text("step"),
        data_json: json["data"].to_string(),
        hash: text("hash"),
    }
}

#[tonic::async_trait]
impl SessionService for Service {
    async fn start_session(
        &self,
        request: Request<api::StartSessionRequest>,
    ) -> Reply<api::StartSessionResponse> {
        let tenant = self.tenant(&request)?;
        let trace = request.metadata().get(TRACE_LABEL).and_then(|value| value.to_str().ok()?.parse().ok());
        let call = request.extensions().get().cloned();
        let request = request.into_inner();
        let workflow = match (request.workflow.is_empty(), request.workflow_source.is_empty()) {
            (false, true) => WorkflowRef::Name(request.workflow),
            (true, false) => WorkflowRef::Source(request.workflow_source),
            _ => return Err(ApiError::invalid("give one of workflow and workflow_source").into()),
        };
        let wait = Duration::from_millis(request.wait_ms.min(WAIT_MS_MAX).into());
        let start = Start {
            workflow,
            input: parse_json("input_json", &request.input_json)?,
            id: None,
            idempotency_key: optional(request.idempotency_key),
            lock_key: request.lock_key,
            labels: request.labels.into_iter().collect(),
            limits: request.budget.map(to_limits).unwrap_or_default(),
            trace,
        };
        let started = self.app.sessions.start(&tenant, start).await?;
        tell(call.as_ref(), started.id, trace);
        if started.created {
            self.app.metrics.sessions_started.inc();
        }
        let (mut status, mut output_json) = (started.status, String::new());
        if wait > Duration::ZERO {
            status = self.app.sessions.wait_ended(started.id, wait).await?;
            if status == SessionStatus::Completed {
                output_json = self.app.sessions.output(started.id)?.to_string();
            }
        }
        let (id, status) = (started.id.to_string(), status.name().to_owned());
        let created = started.created;
        let mut response = Response::new(api::StartSessionResponse { id, status, created, output_json });
        if wait > Duration::ZERO {
            response.extensions_mut().insert(http::Waited);
        }
        Ok(response)
    }

    async fn get_session(&self, request: Request<api::GetSessionRequest>) -> Reply<api::Session> {
        let tenant = self.tenant(&request)?;
        let request = request.into_inner();
        let id = parse_id(&request.id)?;
        Ok(Response::new(to_session(&self.app.sessions.get(&tenant, id, request.stale).await?)))
    }

    async fn describe_session(
        &self,
        request: Request<api::DescribeSessionRequest>,
    ) -> Reply<api::DescribeSessionResponse> {
        let tenant = self.tenant(&request)?;
        let told = self.app.sessions.describe(&tenant, parse_id(&request.into_inner().id)?).await?;
        Ok(Response::new(api::DescribeSessionResponse { json: told.to_string() }))
    }

    async fn audit_session(
        &self,
        request: Request<api::AuditSessionRequest>,
    ) -> Reply<api::AuditSessionResponse> {
        let tenant = self.tenant(&request)?;
        let found = self.app.sessions.audit(&tenant, parse_id(&request.into_inner().id)?).await?;
        let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
        Ok(Response::new(api::AuditSessionResponse {
            intact: found["intact"].as_bool().unwrap_or(false),
            events: found["events"].as_u64().unwrap_or(0),
            head: text("head"),
            first_broken_seq: found["first_broken_seq"].as_u64(),
            reason: text("reason"),
        }))
    }

    async fn list_sessions(
        &self,
        request: Request<api::ListSessionsRequest>,
    ) -> Reply<api::ListSessionsResponse> {
        let tenant = self.tenant(&request)?;
        let request = request.into_inner();
        let limit = if request.limit == 0 { 50 } else { request.limit as usize };
        let (cursor, status) = (optional(request.cursor), optional(request.status));
        let (workflow, label) = (optional(request.workflow), optional(request.label));
        let filter = Filter::new(status.as_deref(), workflow, label.as_deref())?;
        let page = self.app.sessions.list(&tenant, limit, cursor.as_deref(), &filter).await?;
        let sessions = page["sessions"].as_array().map(|list| list.iter().map(to_session).collect());
        Ok(Response::new(api::ListSessionsResponse {
            sessions: sessions.unwrap_or_default(),
            next_cursor: page["next_cursor"].as_str().unwrap_or_default().to_owned(),
        }))
    }

    type StreamEventsStream = Pin<Box<dyn Stream<Item = Result<api::Event, Status>> + Send>>;

    async fn stream_events(
        &self,
        request: Request<api::StreamEventsRequest>,
    ) -> Reply<Self::StreamEventsStream> {
        let tenant = self.tenant(&request)?;
        let request = request.into_inner();
        let id = parse_id(&request.id)?;
        let follow = request.follow;
        self.app.sessions.events(&tenant, id, Seq(request.from_seq), 1, true).await?;
        let news = self.app.sessions.watch(id)?;
        let state = (Arc::clone(&self.app), tenant, Seq(request.from_seq), Vec::new(), false, news);
        let events =
            stream::unfold(state, move |(app, tenant, mut next, mut ready, mut done, mut news)| async move {
                loop {
                    if let Some(event) = ready.pop() {
                        return Some((Ok(event), (app, tenant, next, ready, done, news)));
                    }
                    if done || *app.stopping.borrow() {
                        return None;
                    }
                    match app.sessions.events(&tenant, id, next, EVENTS_PAGE_MAX, false).await {
                        Err(error) => {
                            return Some((Err(error.into()), (app, tenant, next, ready, true, news)));
                        }
                        Ok(page) => {
                            done = page.ended || (!follow && page.events.is_empty());
                            next = page.next;
                            ready = page.events.iter().rev().map(to_event).collect();
                        }
                    }
                    if ready.is_empty() && !done {
                        // News of any session of the shard, or none for a while: look again.
                        let _ = tokio::time::timeout(Duration::from_secs(5), news.recv()).await;
                    }
                }
            });
        Ok(Response::new(Box::pin(events)))
    }

    async fn signal_session(
        &self,
        request: Request<api::SignalSessionRequest>,
    ) -> Reply<api::SignalSessionResponse> {
        let tenant = self.tenant(&request)?;
        let id = self.session(&request, &request.get_ref().id)?;
        let request = request.into_inner();
        let payload = parse_json("payload_json", &request.payload_json)?;
        let key = optional(request.idempotency_key);
        self.app.sessions.signal(&tenant, id, request.name, &payload, key.as_deref()).await?;
        Ok(Response::new(api::SignalSessionResponse {}))
    }

    async fn approve_step(
        &self,
        request: Request<api::ApproveStepRequest>,
    ) -> Reply<api::ApproveStepResponse> {
        let tenant = self.tenant(&request)?;
        let id = self.session(&request, &request.get_ref().id)?;
        let request = request.into_inner();
        let value = optional(request.value_json).map(|text| parse_json("value_json", &text)).transpose()?;
        let decision = http_decision(&request.decision, value, request.reason)?;
        let step = optional(request.step);
        self.app.sessions.approve(&tenant, id, step.as_deref(), decision).await?;
        Ok(Response::new(api::ApproveStepResponse {}))
    }

    async fn cancel_session(
        &self,
        request: Request<api::CancelSessionRequest>,
    ) -> Reply<api::CancelSessionResponse> {
        let tenant = self.tenant(&request)?;
        let id = self.session(&request, &request.get_ref().id)?;
        self.app.sessions.cancel(&tenant, id, request.into_inner().reason).await?;
        Ok(Response::new(api::CancelSessionResponse {}))
    }

    async fn retry_session(
        &self,
        request: Request<api::RetrySessionRequest>,
    ) -> Reply<api::RetrySessionResponse> {
        let tenant = self.tenant(&request)?;
        let id = self.session(&request, &request.get_ref().id)?;
        self.app.sessions.retry(&tenant, id).await?;
        Ok(Response::new(api::RetrySessionResponse {}))
    }

    async fn apply_workflow(
        &self,
        request: Request<api::ApplyWorkflowRequest>,
    ) -> Reply<api::ApplyWorkflowResponse> {
        let tenant = self.tenant(&request)?;
        let applied = self.app.sessions.apply_workflow(&tenant, &request.into_inner().source).await?;
        let api::Workflow { name, definition, version, .. } = to_workflow(&applied);
        Ok(Response::new(api::ApplyWorkflowResponse { name, definition, version }))
    }

    async fn list_workflows(
        &self,
        request: Request<api::ListWorkflowsRequest>,
    ) -> Reply<api::ListWorkflowsResponse> {
        let tenant = self.tenant(&request)?;
        let list = self.app.sessions.workflows(&tenant).await?;
        let workflows = list["workflows"].as_array().map(|list| list.iter().map(to_workflow).collect());
        Ok(Response::new(api::ListWorkflowsResponse { workflows: workflows.unwrap_or_default() }))
    }

    async fn get_workflow(&self, request: Request<api::GetWorkflowRequest>) -> Reply<api::Workflow> {
        let tenant = self.tenant(&request)?;
        Ok(Response::new(to_workflow(
            &self.app.sessions.workflow(&tenant, &request.into_inner().name).await?,
        )))
    }
}

fn http_decision(
    decision: &str,
    value: Option<Value>,
    reason: String,
) -> Result<machine::Decision, ApiError> {
    http::decision(if decision.is_empty() { "approve" } else { decision }, value, reason)
}
