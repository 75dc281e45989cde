//! How long calls take, and what comes of them.

use std::sync::{
    Arc, OnceLock,
    atomic::{AtomicBool, Ordering},
};

use axum::{
    extract::{Request, State},
    middleware::Next,
    response::Response,
};
use tonic::Code;

use crate::{
    error,
    http::{self, About, Waited},
    metrics::CallLabels,
    wiring::App,
};

const SERVICE: &str = "orchestra.v1.SessionService";
/// Takes as long as somebody listens.
const STREAM: &str = "StreamEvents";

/// What a handler says of the call that it has.
#[derive(Debug, Default)]
pub(super) struct Call {
    /// A handler has it: its method is one that there is.
    pub(super) reached: AtomicBool,
    pub(super) about: OnceLock<About>,
}

pub(super) async fn measure(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let called = request.uri().path().trim_start_matches('/').split_once('/');
    let method = called.filter(|(service, method)| *service == SERVICE && *method != STREAM);
    let Some((_, method)) = method else { return next.run(request).await };
    let method = method.to_owned();
    let call = Arc::new(Call::default());
    request.extensions_mut().insert(Arc::clone(&call));
    let tenant = http::tenant_of(&app, request.headers()).unwrap_or_default();
    let (began, started) = (app.sessions.node().clock().wall(), tokio::time::Instant::now());
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
        app.levels.answered(&tenant, app.sessions.node().clock().wall(), took, failed);
    }
    // Who may not see a session leaves no span in its trace.
    if let Some(traces) =
        app.traces.as_ref().filter(|_| !matches!(code, Code::NotFound | Code::Unauthenticated))
        && let Some(About(session, given)) = call.about.get().copied()
    {
        let ended = app.sessions.node().clock().wall();
        let status = ("rpc.grpc.status_code", code as i64);
        traces.requested(format!("{SERVICE}/{method}"), (session, given), (began, ended), (status, failed));
    }
    // Clients may call what they like: that is no label.
    let method = if call.reached.load(Ordering::Relaxed) { method } else { "none".to_owned() };
    app.metrics.calls.get_or_create(&CallLabels { method, code: format!("{code:?}") }).inc();
    response
}
