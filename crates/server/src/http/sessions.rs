//! Routes of sessions and workflows.

use std::{collections::BTreeMap, convert::Infallible, sync::Arc, time::Duration};

use axum::{
    Extension, Json,
    extract::{Path, Query, State, rejection::QueryRejection},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse as _, Response, Sse, sse},
};
use futures_util::{Stream, stream};
use ids::{Seq, SessionId, TRACE_LABEL};
use machine::{Decision, SessionStatus};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::broadcast;

use super::{About, Body, Tenant, Waited, parse};
use crate::{
    error::ApiError,
    sessions::{EVENTS_PAGE_MAX, Filter, Start, WorkflowRef, budget},
    wiring::App,
};

type Reply = Result<Response, ApiError>;

/// How long a start waits at most for the session's end.
const WAIT_MS_MAX: u64 = 3_600_000;
/// How often an idle stream says that it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);
/// How long a stream waits for news before it looks by itself.
const NEWS_PATIENCE: Duration = Duration::from_secs(5);

pub(super) fn parse_id(id: &str) -> Result<SessionId, ApiError> {
    id.parse().map_err(|error: ids::ParseError| ApiError::invalid(error.to_string()))
}

fn ok(value: Value) -> Reply {
    Ok(Json(value).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StartBody {
    workflow: Value,
    #[serde(default)]
    input: Value,
    id: Option<String>,
    durability: Option<String>,
    #[serde(default)]
    lock_key: String,
    #[serde(default)]
    labels: BTreeMap<String, String>,
    deadline: Option<Value>,
    budget: Option<Value>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StartQuery {
    #[serde(default)]
    wait_ms: u64,
}

pub(super) async fn start(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    query: Result<Query<StartQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Reply {
    let Query(query) = query?;
    let body: StartBody = parse(body)?;
    match body.durability.as_deref() {
        None | Some("local") => {}
        Some("geo") => return Err(ApiError::not_supported("durability `geo`")),
        Some(other) => {
            return Err(ApiError::invalid(format!("durability: expected local or geo, found {other:?}")));
        }
    }
    if body.deadline.is_some() {
        return Err(ApiError::not_supported("deadline (use budget.duration_ms)"));
    }
    let workflow = match body.workflow {
        Value::String(name) => WorkflowRef::Name(name),
        // JSON is YAML: an inline workflow is the same language.
        inline @ Value::Object(_) => WorkflowRef::Source(inline.to_string()),
        _ => return Err(ApiError::invalid("workflow: expected a name or a workflow")),
    };
    let key = match headers.get("idempotency-key").map(|value| value.to_str()) {
        None => None,
        Some(Ok(key)) if !key.is_empty() => Some(key.to_owned()),
        Some(_) => {
            return Err(ApiError::invalid("Idempotency-Key: expected 1 to 128 visible ASCII characters"));
        }
    };
    let start = Start {
        workflow,
        input: body.input,
        id: body.id.as_deref().map(parse_id).transpose()?,
        idempotency_key: key,
        lock_key: body.lock_key,
        labels: body.labels,
        limits: budget(body.budget.as_ref())?,
        trace: headers.get(TRACE_LABEL).and_then(|value| value.to_str().ok()?.parse().ok()),
    };
    let trace = start.trace;
    let started = app.sessions.start(&tenant, start).await?;
    if started.created {
        app.metrics.sessions_started.inc();
    }
    let status = if started.created { StatusCode::CREATED } else { StatusCode::OK };
    let mut stands = started.status;
    let mut body = json!({"id": started.id.to_string(), "durability": "local", "position": started.position});
    if query.wait_ms > 0 {
        let wait = Duration::from_millis(query.wait_ms.min(WAIT_MS_MAX));
        stands = app.sessions.wait_ended(started.id, wait).await?;
        if stands == SessionStatus::Completed {
            body["output"] = app.sessions.output(started.id)?;
        }
    }
    body["status"] = stands.name().into();
    let mut response = (status, Extension(About(started.id, trace)), Json(body)).into_response();
    if query.wait_ms > 0 {
        response.extensions_mut().insert(Waited);
    }
    Ok(response)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ListQuery {
    #[serde(default = "default_limit")]
    limit: usize,
    cursor: Option<String>,
    status: Option<String>,
    workflow: Option<String>,
    label: Option<String>,
}

fn default_limit() -> usize {
    50
}

pub(super) async fn list(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    query: Result<Query<ListQuery>, QueryRejection>,
) -> Reply {
    let Query(query) = query?;
    let filter = Filter::new(query.status.as_deref(), query.workflow, query.label.as_deref())?;
    ok(app.sessions.list(&tenant, query.limit, query.cursor.as_deref(), &filter).await?)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadQuery {
    consistency: Option<String>,
}

impl ReadQuery {
    fn is_stale(&self) -> Result<bool, ApiError> {
        match self.consistency.as_deref() {
            None | Some("linearizable") => Ok(false),
            Some("stale") => Ok(true),
            Some(other) => Err(ApiError::invalid(format!(
                "consistency: expected linearizable or stale, found {other:?}"
            ))),
        }
    }
}

pub(super) async fn get(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path(id): Path<String>,
    query: Result<Query<ReadQuery>, QueryRejection>,
) -> Reply {
    let Query(query) = query?;
    ok(app.sessions.get(&tenant, parse_id(&id)?, query.is_stale()?).await?)
}

pub(super) async fn describe(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path(id): Path<String>,
) -> Reply {
    ok(app.sessions.describe(&tenant, parse_id(&id)?).await?)
}

pub(super) async fn audit(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path(id): Path<String>,
) -> Reply {
    ok(app.sessions.audit(&tenant, parse_id(&id)?).await?)
}

/// A result file: an element `{path, content}` of the session's output, or of its field `files`.
pub(super) async fn file(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path((id, path)): Path<(String, String)>,
) -> Reply {
    let session = app.sessions.get(&tenant, parse_id(&id)?, false).await?;
    let output = &session["output"];
    let files = output.get("files").unwrap_or(output).as_array().map(Vec::as_slice).unwrap_or_default();
    let found = files.iter().find(|file| file["path"].as_str() == Some(&path));
    match found.and_then(|file| file["content"].as_str()) {
        Some(content) => {
            let headers = [(header::CONTENT_TYPE, "text/plain; charset=utf-8")];
            Ok((headers, content.to_owned()).into_response())
        }
        None => Err(ApiError::not_found(format!("file {path:?} in the output of session {id}"))),
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EventsQuery {
    #[serde(default)]
    from: u64,
    #[serde(default = "default_events")]
    limit: usize,
}

fn default_events() -> usize {
    EVENTS_PAGE_MAX
}

pub(super) async fn events(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path(id): Path<String>,
    query: Result<Query<EventsQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Reply {
    let Query(query) = query?;
    let id = parse_id(&id)?;
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    if !accept.contains("text/event-stream") {
        let page = app.sessions.events(&tenant, id, Seq(query.from), query.limit, true).await?;
        return ok(json!({"events": page.events, "next": page.next.0, "ended": page.ended}));
    }
    let from = match headers.get("last-event-id").map(|value| value.to_str().map(str::parse::<u64>)) {
        None => query.from,
        Some(Ok(Ok(last))) => last.saturating_add(1),
        Some(_) => return Err(ApiError::invalid("Last-Event-ID: expected the number of an event")),
    };
    // The first page decides whether the session is there at all.
    app.sessions.events(&tenant, id, Seq(from), 1, true).await?;
    let keep_alive = sse::KeepAlive::new().interval(KEEP_ALIVE);
    Ok(Sse::new(follow(app, tenant, id, Seq(from))).keep_alive(keep_alive).into_response())
}

struct Follow {
    app: Arc<App>,
    tenant: String,
    id: SessionId,
    next: Seq,
    news: Option<broadcast::Receiver<consensus::Watch>>,
    ready: Vec<sse::Event>,
    ended: bool,
}

/// The events of a session until it ends, each with its number as id, so that a client can go on where it was.
fn follow(
    app: Arc<App>,
    tenant: String,
    id: SessionId,
    next: Seq,
) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    let news = app.sessions.watch(id).ok();
    let state = Follow { app, tenant, id, next, news, ready: Vec::new(), ended: false };
    stream::unfold(state, |mut state| async move {
        loop {
            if let Some(event) = state.ready.pop() {
                return Some((Ok(event), state));
            }
            if state.ended || *state.app.stopping.borrow() {
                return None;
            }
            let page = state
                .app
                .sessions
                .events(&state.tenant, state.id, state.next, EVENTS_PAGE_MAX, false)
                .await
                .ok()?;
            (state.next, state.ended) = (page.next, page.ended);
            state.ready = page
                .events
                .iter()
                .rev()
                .map(|event| {
                    let (id, kind) = (event["seq"].to_string(), event["type"].as_str().unwrap_or("event"));
                    sse::Event::default().id(id).event(kind).data(event.to_string())
                })
                .collect();
            if state.ready.is_empty() && !state.ended {
                state.wait().await;
            }
        }
    })
}

impl Follow {
    /// Returns when there may be more events.
    async fn wait(&mut self) {
        let Some(news) = &mut self.news else { return tokio::time::sleep(NEWS_PATIENCE).await };
        let mut stopping = self.app.stopping.clone();
        let (id, next) = (self.id, self.next);
        let more = async {
            loop {
                match news.recv().await {
                    Ok(watch) if watch.session == id && watch.next > next => return,
                    Ok(_) => {}
                    // Behind: look for oneself.
                    Err(_) => return,
                }
            }
        };
        tokio::select! {
            () = more => {}
            () = tokio::time::sleep(NEWS_PATIENCE) => {}
            _ = stopping.wait_for(|stopping| *stopping) => {}
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignalBody {
    name: String,
    #[serde(default)]
    payload: Value,
}

pub(super) async fn signal(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: Body,
) -> Reply {
    let body: SignalBody = parse(body)?;
    let key = headers.get("idempotency-key").and_then(|value| value.to_str().ok());
    app.sessions.signal(&tenant, parse_id(&id)?, body.name, &body.payload, key).await?;
    ok(json!({}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ApproveBody {
    #[serde(default = "default_decision")]
    decision: String,
    step: Option<String>,
    value: Option<Value>,
    #[serde(default)]
    reason: String,
}

fn default_decision() -> String {
    "approve".into()
}

/// A decision of a request.
pub(crate) fn decision(decision: &str, value: Option<Value>, reason: String) -> Result<Decision, ApiError> {
    match (decision, value) {
        ("approve", None) => Ok(Decision::Approve),
        ("edit", Some(value)) => Ok(Decision::Edit(value.to_string().into())),
        ("edit", None) => Err(ApiError::invalid("value: `edit` needs the value to go on with")),
        ("reject", None) => Ok(Decision::Reject { reason }),
        ("approve" | "reject", Some(_)) => Err(ApiError::invalid("value: only `edit` takes one")),
        _ => {
            Err(ApiError::invalid(format!("decision: expected approve, edit or reject; found {decision:?}")))
        }
    }
}

pub(super) async fn approve(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path(id): Path<String>,
    body: Body,
) -> Reply {
    let body: ApproveBody = parse(body)?;
    let decision = decision(&body.decision, body.value, body.reason)?;
    app.sessions.approve(&tenant, parse_id(&id)?, body.step.as_deref(), decision).await?;
    ok(json!({}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CancelBody {
    #[serde(default)]
    reason: String,
}

pub(super) async fn cancel(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path(id): Path<String>,
    body: Body,
) -> Reply {
    let body: CancelBody = parse(body)?;
    app.sessions.cancel(&tenant, parse_id(&id)?, body.reason).await?;
    ok(json!({}))
}

pub(super) async fn retry(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path(id): Path<String>,
) -> Reply {
    app.sessions.retry(&tenant, parse_id(&id)?).await?;
    ok(json!({}))
}

pub(super) async fn workflows(State(app): State<Arc<App>>, Tenant(tenant): Tenant) -> Reply {
    ok(app.sessions.workflows(&tenant).await?)
}

pub(super) async fn workflow(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path(name): Path<String>,
) -> Reply {
    ok(app.sessions.workflow(&tenant, &name).await?)
}

/// The body is the workflow's source, YAML or JSON.
pub(super) async fn apply_workflow(State(app): State<Arc<App>>, Tenant(tenant): Tenant, body: Body) -> Reply {
    let body = body?;
    let source = std::str::from_utf8(&body).map_err(|error| {
        ApiError::invalid(format!("the body is not UTF-8 at byte {}", error.valid_up_to()))
    })?;
    ok(app.sessions.apply_workflow(&tenant, source).await?)
}
