//! What a node answers before it belongs to a cluster: its health, and `POST /v1/cluster/init`.

use std::{collections::BTreeMap, sync::Arc};

use axum::{
    Json, Router,
    http::{HeaderMap, StatusCode},
    response::{IntoResponse as _, Response},
    routing::{get, post},
    serve::Listener,
};
use serde_json::json;
use tokio::sync::watch;

use super::{check_admin, system};
use crate::{
    error::{self, ApiError},
    wiring::Principal,
};

/// Serves until the cluster is to be founded by this node, or `joined` completes.
pub(crate) async fn serve<T, L: Listener>(
    listener: L,
    seeds: Vec<String>,
    tokens: BTreeMap<String, Principal>,
    joined: impl Future<Output = T>,
) -> std::io::Result<Option<T>>
where
    L::Addr: std::fmt::Debug,
{
    let founding = Arc::new(watch::Sender::new(false));
    let mut wish = founding.subscribe();
    let init = move |headers: HeaderMap| async move {
        check_admin(&tokens, &headers)?;
        founding.send_replace(true);
        Ok::<_, ApiError>(Json(json!({"status": "founding"})))
    };
    let ready = move || async move {
        let error = format!("the node waits to join a cluster by {}, or to found one", seeds.join(", "));
        let body = json!({"status": "not ready", "errors": [error]});
        (StatusCode::SERVICE_UNAVAILABLE, Json(body)).into_response()
    };
    let routes = Router::new()
        .route("/health", get(system::health))
        .route("/health/live", get(system::live))
        .route("/health/ready", get(ready))
        .route("/v1/cluster/init", post(init))
        .fallback(not_yet);
    let (stop, mut stopping) = watch::channel(false);
    let stopped = async move {
        let _ = stopping.wait_for(|stopping| *stopping).await;
    };
    let served = tokio::spawn(axum::serve(listener, routes).with_graceful_shutdown(stopped).into_future());
    let joined = tokio::select! {
        joined = joined => Some(joined),
        _ = wish.wait_for(|founding| *founding) => None,
    };
    stop.send_replace(true);
    served.await.map_err(std::io::Error::other)??;
    Ok(joined)
}

async fn not_yet() -> Response {
    ApiError::new(error::UNAVAILABLE, "the node does not belong to a cluster yet").into_response()
}
