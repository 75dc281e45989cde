//! The dashboard: a page of this node, over the API that everybody else uses. Nothing of it comes from elsewhere.

use axum::{
    extract::Path,
    http::{HeaderName, header},
    response::{IntoResponse as _, Response},
};

use crate::error::ApiError;

/// Nothing but what this node serves is loaded, run or asked, and nobody shows it inside another page.
const POLICY: &str = "default-src 'self'; img-src 'self' data:; \
                      frame-ancestors 'none'; base-uri 'none'; form-action 'self'";
const POLICY_HEADER: HeaderName = HeaderName::from_static("content-security-policy");

const FILES: [(&str, &str, &str); 6] = [
    ("style.css", "text/css; charset=utf-8", include_str!("../../ui/style.css")),
    ("app.js", "text/javascript; charset=utf-8", include_str!("../../ui/app.js")),
    ("api.js", "text/javascript; charset=utf-8", include_str!("../../ui/api.js")),
    ("dom.js", "text/javascript; charset=utf-8", include_str!("../../ui/dom.js")),
    ("pages.js", "text/javascript; charset=utf-8", include_str!("../../ui/pages.js")),
    ("session.js", "text/javascript; charset=utf-8", include_str!("../../ui/session.js")),
];

fn served(kind: &'static str, content: &'static str) -> Response {
    let headers = [
        (header::CONTENT_TYPE, kind),
        (header::CACHE_CONTROL, "no-cache"),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (POLICY_HEADER, POLICY),
    ];
    (headers, content).into_response()
}

pub(super) async fn page() -> Response {
    served("text/html; charset=utf-8", include_str!("../../ui/index.html"))
}

pub(super) async fn file(Path(name): Path<String>) -> Result<Response, ApiError> {
    let found = FILES.iter().find(|(known, _, _)| *known == name);
    found
        .map(|(_, kind, content)| served(kind, content))
        .ok_or_else(|| ApiError::not_found(format!("file {name:?} of the dashboard")))
}
