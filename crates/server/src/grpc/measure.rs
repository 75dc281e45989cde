//! How long calls take, and what comes of them.

use std::sync::Arc;

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use tonic::Code;

use crate::{error, http::Waited, metrics::CallLabels, wiring::App};

const SESSIONS: &str = "/orchestra.v1.SessionService/";
/// Takes as long as somebody listens.
const STREAM: &str = "StreamEvents";

pub(super) async fn measure(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let method = request.uri().path().strip_prefix(SESSIONS).filter(|method| *method != STREAM);
    let Some(method) = method.map(str::to_owned) else { return next.run(request).await };
    let started = tokio::time::Instant::now();
    let response = next.run(request).await;
    let took = started.elapsed();
    // The head of an answer has a status where there is no body, which is where the call has failed.
    let header = |name: &str| response.headers().get(name).and_then(|value| value.to_str().ok());
    let code = header("grpc-status").and_then(|code| code.parse().ok()).map_or(Code::Ok, Code::from_i32);
    // As over HTTP, where these have a status of 500 and above.
    let failed = matches!(code, Code::Unknown | Code::Internal | Code::Unavailable | Code::DataLoss)
        || header("orchestra-code") == Some(error::WRITES_STOPPED.name);
    if response.extensions().get::<Waited>().is_none() {
        app.metrics.call_seconds.observe(took.as_secs_f64());
        app.levels.answered(app.sessions.node().clock().wall(), took, failed);
    }
    app.metrics.calls.get_or_create(&CallLabels { method, code: format!("{code:?}") }).inc();
    response
}
