//! Routes of sessions that are taken along.

use std::sync::Arc;

use axum::{
    Json,
    extract::{Path, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
};
use ids::Seq;
use machine::limits;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Body, Tenant, parse, sessions::parse_id};
use crate::{
    error::{self, ApiError},
    sessions::Started,
    wiring::App,
};

type Reply = Result<Response, ApiError>;

/// Bytes of an import: base64 of a history at its limit, and its workflow.
pub(super) const BODY_BYTES_MAX: usize = limits::IMPORT_BYTES_MAX * 2;

pub(super) async fn export(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path(id): Path<String>,
) -> Reply {
    Ok(Json(app.sessions.export(&tenant, parse_id(&id)?).await?).into_response())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ImportBody {
    format: String,
    workflow: String,
    history: String,
    /// What else is exported, for people.
    #[serde(default, rename = "session")]
    _session: Value,
}

pub(super) async fn import(State(app): State<Arc<App>>, Tenant(tenant): Tenant, body: Body) -> Reply {
    let over = body.as_ref().is_err_and(|rejection| rejection.status() == StatusCode::PAYLOAD_TOO_LARGE);
    if over {
        return Err(ApiError::new(
            error::TOO_LARGE,
            format!("the body has more than {BODY_BYTES_MAX} bytes"),
        ));
    }
    let body: ImportBody = parse(body)?;
    if body.format != crate::sessions::HISTORY_FORMAT {
        let known = crate::sessions::HISTORY_FORMAT;
        return Err(ApiError::invalid(format!("format: expected {known:?}, found {:?}", body.format)));
    }
    Ok(created(&app, &app.sessions.import(&tenant, &body.workflow, &body.history).await?))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ForkBody {
    at: Option<u64>,
}

pub(super) async fn fork(
    State(app): State<Arc<App>>,
    Tenant(tenant): Tenant,
    Path(id): Path<String>,
    body: Body,
) -> Reply {
    let body: ForkBody = parse(body)?;
    Ok(created(&app, &app.sessions.fork(&tenant, parse_id(&id)?, body.at.map(Seq)).await?))
}

fn created(app: &App, started: &Started) -> Response {
    app.metrics.sessions_started.inc();
    let body = json!({"id": started.id.to_string(), "status": started.status.name(), "durability": "local",
        "position": started.position});
    (StatusCode::CREATED, Json(body)).into_response()
}
