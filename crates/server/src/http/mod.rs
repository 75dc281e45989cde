//! The HTTP API.

mod backups;
mod changes;
mod cluster;
mod history;
mod levels;
mod problem;
mod sessions;
mod system;
mod ui;
pub(crate) mod waiting;
mod workers;

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{
        ConnectInfo, DefaultBodyLimit, FromRequestParts, MatchedPath, Request, State,
        connect_info::Connected, rejection::BytesRejection,
    },
    http::{HeaderMap, StatusCode, header, request::Parts},
    middleware::{self, Next},
    response::{IntoResponse as _, Response},
    routing::{delete, get, post},
    serve::{IncomingStream, Listener},
};
use bytes::Bytes;
use ids::{SessionId, TraceContext};
use machine::limits;
use serde::Deserialize;

pub(crate) use sessions::decision;

use crate::{
    error::{self, ApiError},
    metrics::RequestLabels,
    wiring::{App, Principal},
};

/// Bytes of a request's body: a value at its limit with room for escapes.
const BODY_BYTES_MAX: usize = limits::VALUE_BYTES_MAX * 4;

/// Every route of the API with its methods, for `/openapi.json` and its test.
pub(crate) fn routes(app: Arc<App>) -> Router {
    Router::new()
        .route("/v1/sessions", post(sessions::start).get(sessions::list))
        .route("/v1/sessions/{id}", get(sessions::get))
        .route("/v1/sessions/{id}/events", get(sessions::events))
        .route("/v1/sessions/{id}/describe", get(sessions::describe))
        .route("/v1/sessions/{id}/audit", get(sessions::audit))
        .route("/v1/sessions/{id}/files/{*path}", get(sessions::file))
        .route("/v1/sessions/{id}/signal", post(sessions::signal))
        .route("/v1/sessions/{id}/approve", post(sessions::approve))
        .route("/v1/sessions/{id}/cancel", post(sessions::cancel))
        .route("/v1/sessions/{id}/retry", post(sessions::retry))
        .route("/v1/sessions/{id}/fork", post(history::fork))
        .route("/v1/sessions/{id}/history", get(history::export))
        .route(
            "/v1/sessions/import",
            post(history::import).layer(DefaultBodyLimit::max(history::BODY_BYTES_MAX)),
        )
        .route("/v1/workflows", get(sessions::workflows).post(sessions::apply_workflow))
        .route("/v1/workflows/{name}", get(sessions::workflow))
        .route("/v1/workers", get(workers::workers))
        .route("/v1/queues", get(workers::queues))
        .route("/v1/cluster", get(cluster::status))
        .route("/v1/cluster/replicas", get(cluster::replicas))
        .route("/v1/cluster/init", post(cluster::init))
        .route("/v1/cluster/remove", post(cluster::remove))
        .route("/v1/cluster/verify", post(cluster::verify))
        .route("/v1/cluster/drain", post(cluster::drain))
        .route("/v1/cluster/finalize", post(cluster::finalize))
        .route("/v1/cluster/transfer-leader", post(cluster::transfer))
        .route("/v1/log", get(system::log).put(system::set_log))
        .route("/", get(ui::page))
        .route("/ui/{file}", get(ui::file))
        .route("/v1/sla", get(levels::report))
        .route("/v1/sla/history", get(levels::history))
        .route("/v1/sla/rules", get(levels::rules))
        .route("/v1/alerts", get(levels::alerts))
        .route("/v1/changes", get(changes::changes))
        .route("/v1/backups", post(backups::begin))
        .route("/v1/backups/{id}", delete(backups::end))
        .route("/v1/backups/{id}/files/{name}", get(backups::file))
        .route("/metrics", get(system::metrics))
        .route("/health", get(system::health))
        .route("/health/live", get(system::live))
        .route("/health/ready", get(system::ready))
        .route("/openapi.json", get(system::openapi))
        .route("/errors/{code}", get(system::error_page))
        .fallback(system::not_found)
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), limit))
        .layer(middleware::from_fn_with_state(Arc::clone(&app), measure))
        .with_state(app)
}

/// The body of a request.
pub(crate) type Body = Result<Bytes, BytesRejection>;

/// Reads a body; an empty one is `{}`. Unknown fields are errors, with their place.
fn parse<T: for<'de> Deserialize<'de>>(body: Body) -> Result<T, ApiError> {
    let body = body?;
    let text = std::str::from_utf8(&body).map_err(|error| {
        ApiError::invalid(format!("the body is not UTF-8 at byte {}", error.valid_up_to()))
    })?;
    let text = if text.trim().is_empty() { "{}" } else { text };
    serde_json::from_str(text).map_err(|error| ApiError::invalid(format!("body: {error}")))
}

/// Whom a connection is from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct From(SocketAddr);

/// A listener whose connections say whom they are from.
pub(crate) struct Known<L>(pub(crate) L);

impl<L: Listener> Listener for Known<L> {
    type Io = L::Io;
    type Addr = L::Addr;

    fn accept(&mut self) -> impl Future<Output = (Self::Io, Self::Addr)> + Send {
        self.0.accept()
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        self.0.local_addr()
    }
}

impl<L: Listener<Addr = SocketAddr>> Connected<IncomingStream<'_, Known<L>>> for From {
    fn connect_info(stream: IncomingStream<'_, Known<L>>) -> Self {
        Self(*stream.remote_addr())
    }
}

/// Takes from the buckets of the address and the tenant, and says how they stand.
async fn limit(
    State(app): State<Arc<App>>,
    ConnectInfo(From(from)): ConnectInfo<From>,
    request: Request,
    next: Next,
) -> Response {
    if !request.uri().path().starts_with("/v1/") {
        return next.run(request).await;
    }
    let tenant = tenant_of(&app, request.headers());
    let standings = app.limits.take(Some(from.ip()), tenant.as_deref());
    let mut response = match standings.refusal() {
        Some(refusal) => refusal.into_response(),
        None => next.run(request).await,
    };
    standings.tell(response.headers_mut());
    response
}

async fn measure(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let route = request.extensions().get::<MatchedPath>().map_or("none", MatchedPath::as_str).to_owned();
    let method = request.method().to_string();
    let (path, began) = (request.uri().path().to_owned(), app.sessions.node().clock().wall());
    let tenant = tenant_of(&app, request.headers()).unwrap_or_default();
    let started = tokio::time::Instant::now();
    let response = next.run(request).await;
    let took: Duration = started.elapsed();
    app.metrics.request_seconds.observe(took.as_secs_f64());
    let status = response.status().as_u16();
    // What streams, or waits for a session, takes as long as that does; health and metrics are for nobody's session.
    if is_measured(&route, &method) && response.extensions().get::<Waited>().is_none() {
        app.levels.answered(&tenant, app.sessions.node().clock().wall(), took, status >= 500);
    }
    if let Some(traces) = app.traces.as_ref().filter(|_| method == "POST")
        && let Some(About(session, given)) = about(&app, &response, &path)
    {
        let ended = app.sessions.node().clock().wall();
        let answered = (("http.response.status_code", i64::from(status)), status >= 500);
        traces.requested(format!("{method} {route}"), (session, given), (began, ended), answered);
    }
    app.metrics.requests.get_or_create(&RequestLabels { route, method, status }).inc();
    response
}

/// The session that a request was about, and the trace that its client named.
#[derive(Debug, Clone, Copy)]
pub(crate) struct About(pub(crate) SessionId, pub(crate) Option<TraceContext>);

/// The answer waited for a session's end: how long that took says nothing of the API.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Waited;

/// What the answer says, or else the path.
fn about(app: &App, response: &Response, path: &str) -> Option<About> {
    if let Some(about) = response.extensions().get::<About>() {
        return Some(*about);
    }
    // Who may not see a session leaves no span in its trace.
    if matches!(response.status(), StatusCode::NOT_FOUND | StatusCode::UNAUTHORIZED) {
        return None;
    }
    let session = path.strip_prefix("/v1/sessions/")?.split('/').next()?.parse().ok()?;
    Some(About(session, app.sessions.trace_of(session)))
}

/// Whether a request counts for the latency that is promised.
fn is_measured(route: &str, method: &str) -> bool {
    let reads_a_stream = route.ends_with("/events");
    (route.starts_with("/v1/sessions") || route.starts_with("/v1/workflows"))
        && !(reads_a_stream && method == "GET")
}

/// Whoever sent a request.
pub(crate) struct Caller(pub(crate) Principal);

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let header = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        principal(&app.tokens, header).map(Self)
    }
}

/// The tenant of a request, by its bearer token.
pub(crate) struct Tenant(pub(crate) String);

impl FromRequestParts<Arc<App>> for Tenant {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        let header = parts.headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        tenant(app, header).map(Self)
    }
}

/// Whose request these headers have. Who has no valid token is refused where the token is asked for.
pub(crate) fn tenant_of(app: &App, headers: &HeaderMap) -> Option<String> {
    let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    tenant(app, header).ok()
}

/// The tenant of an `Authorization` header.
pub(crate) fn tenant(app: &App, authorization: Option<&str>) -> Result<String, ApiError> {
    Ok(principal(&app.tokens, authorization)?.tenant)
}

/// A request about the cluster as a whole, of all tenants: its token has to allow that.
pub(crate) struct Admin;

impl FromRequestParts<Arc<App>> for Admin {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, ApiError> {
        check_admin(&app.tokens, &parts.headers).map(|()| Self)
    }
}

fn check_admin(tokens: &BTreeMap<String, Principal>, headers: &HeaderMap) -> Result<(), ApiError> {
    let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if principal(tokens, header)?.admin {
        return Ok(());
    }
    let message = "this is about all tenants: it needs a token with `admin = true` in [[tokens]]";
    Err(ApiError::new(error::FORBIDDEN, message))
}

fn principal(
    tokens: &BTreeMap<String, Principal>,
    authorization: Option<&str>,
) -> Result<Principal, ApiError> {
    if tokens.is_empty() {
        return Ok(Principal { tenant: "default".to_owned(), admin: true });
    }
    let token = authorization.and_then(|value| value.strip_prefix("Bearer ")).map(str::trim);
    let principal = token.and_then(|token| tokens.get(token));
    principal.cloned().ok_or_else(|| {
        ApiError::new(
            error::UNAUTHENTICATED,
            "expected the header `Authorization: Bearer <token>` with a valid token",
        )
    })
}
