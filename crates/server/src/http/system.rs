//! Routes of the node itself.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use consensus::Leadership;
use providers::BreakerState;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Admin, Body, parse};

use crate::{CODES, alerts, error::ApiError, gauges, metrics::Named, wiring::App};

pub(super) async fn health() -> Json<Value> {
    Json(json!({"status": "ok"}))
}

pub(super) async fn live() -> Json<Value> {
    Json(json!({"status": "alive"}))
}

pub(super) async fn ready(State(app): State<Arc<App>>) -> Response {
    let errors = app.sessions.not_ready();
    if errors.is_empty() {
        return Json(json!({"status": "ready"})).into_response();
    }
    let body = json!({"status": "not ready", "errors": errors});
    (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
}

pub(super) async fn metrics(State(app): State<Arc<App>>) -> Response {
    let (status, metrics) = (app.sessions.status(), &app.metrics);
    let led = status.shards.values().filter(|lead| matches!(lead, Leadership::Here { .. })).count();
    metrics.shards_led.set(i64::try_from(led).unwrap_or(i64::MAX));
    metrics.work_running.set(i64::try_from(app.sessions.running_count()).unwrap_or(i64::MAX));
    metrics.log_syncs.set(status.log_syncs);
    metrics.state_unflushed_bytes.set(status.unflushed_bytes);
    metrics.state_bytes.set(status.state_bytes);
    let age = app.backups.newest().map(|(_, at)| app.sessions.node().clock().wall().0.saturating_sub(at.0));
    metrics.backup_age.set(age.map_or(-1, |micros| i64::try_from(micros / 1_000_000).unwrap_or(i64::MAX)));
    metrics.backup_overdue.set(i64::from(app.backups.is_overdue()));
    metrics.writes_stopped.set(i64::from(status.writes_stopped.is_some()));
    for provider in app.sessions.providers() {
        let name = Named { name: provider.name };
        let in_flight = i64::try_from(provider.in_flight).unwrap_or(i64::MAX);
        metrics.provider_in_flight.get_or_create(&name).set(in_flight);
        metrics.provider_open.get_or_create(&name).set(i64::from(provider.breaker != BreakerState::Closed));
    }
    let headers = [(header::CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")];
    let down = *metrics.nodes_down.lock();
    let more = [
        app.levels.exposition(),
        gauges::aliases(&app, metrics.work_running.get()),
        gauges::of_process(),
        gauges::of_node(app.sessions.node()),
        gauges::of_capacity(&app),
        alerts::gauges(&gauges::of(&app), down),
        alerts::exposition(&app),
    ]
    .concat();
    (headers, metrics.encode(&more)).into_response()
}

/// The levels at which this node logs.
pub(super) async fn log(State(app): State<Arc<App>>, _admin: Admin) -> Json<Value> {
    Json(json!({"level": app.logs.levels()}))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct LogBody {
    level: String,
}

/// Others, until it ends.
pub(super) async fn set_log(
    State(app): State<Arc<App>>,
    _admin: Admin,
    body: Body,
) -> Result<Json<Value>, ApiError> {
    let body: LogBody = parse(body)?;
    app.logs.set(&body.level).map_err(|error| ApiError::invalid(format!("level: {error}")))?;
    tracing::warn!(levels = body.level, "logs at other levels, until the node ends");
    Ok(Json(json!({"level": app.logs.levels()})))
}

pub(super) async fn openapi() -> Response {
    ([(header::CONTENT_TYPE, "application/json")], include_str!("../../openapi.json")).into_response()
}

/// What a code means, for the link in every problem.
pub(super) async fn error_page(Path(code): Path<String>) -> Result<String, ApiError> {
    let found = CODES.iter().find(|known| known.name == code);
    found
        .map(|code| format!("{} (HTTP {})\n\n{}\n", code.name, code.status, code.meaning))
        .ok_or_else(|| ApiError::not_found(format!("error code {code:?}")))
}

pub(super) async fn not_found(uri: axum::http::Uri) -> ApiError {
    ApiError::not_found(format!("route {}; GET /openapi.json lists them", uri.path()))
}
