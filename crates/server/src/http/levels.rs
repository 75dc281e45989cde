//! The route of service levels.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Query, State},
    http::header,
    response::{IntoResponse as _, Response},
};
use serde::Deserialize;
use serde_json::Value;
use sla::Window;

use super::{Admin, Caller};
use crate::{alerts, error::ApiError, wiring::App};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Wanted {
    window: Option<String>,
}

/// Prometheus rules of what is promised.
pub(super) async fn rules(State(app): State<Arc<App>>, _caller: Caller) -> Response {
    ([(header::CONTENT_TYPE, "application/yaml")], app.levels.rules()).into_response()
}

/// Every rule, what it says now, and how its alert stands: `value` is what it said when it fired.
pub(super) async fn alerts(State(app): State<Arc<App>>, _admin: Admin) -> Json<Value> {
    Json(alerts::list(&app).await)
}

/// What came of what is promised: of all sessions for who may act for the cluster, else of the tenant's.
pub(super) async fn report(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Query(wanted): Query<Wanted>,
) -> Result<Json<Value>, ApiError> {
    let window = window(wanted.window.as_deref())?;
    let node = app.sessions.node();
    let tenant = (!caller.admin).then_some(caller.tenant.as_str());
    Ok(Json(app.levels.report(&node.peers(), node.clock().wall(), window, tenant).await))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct WantedHistory {
    objective: String,
    window: Option<String>,
}

/// What became of one promise, slot by slot, and how its error budget was spent.
pub(super) async fn history(
    State(app): State<Arc<App>>,
    Caller(caller): Caller,
    Query(wanted): Query<WantedHistory>,
) -> Result<Json<Value>, ApiError> {
    let of = (wanted.objective.as_str(), window(wanted.window.as_deref())?);
    let node = app.sessions.node();
    let tenant = (!caller.admin).then_some(caller.tenant.as_str());
    let history = app.levels.history(&node.peers(), node.clock().wall(), of, tenant).await;
    history.map(Json).ok_or_else(|| ApiError::not_found(format!("objective {:?}", wanted.objective)))
}

fn window(name: Option<&str>) -> Result<Option<Window>, ApiError> {
    let Some(name) = name else { return Ok(None) };
    let known = || Window::ALL.map(Window::name).join(", ");
    let window = Window::named(name);
    window.map(Some).ok_or_else(|| ApiError::invalid(format!("window {name:?} is none of {}", known())))
}
