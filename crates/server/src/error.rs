//! Errors of the API: RFC 9457 problem details over HTTP, a status with a code over gRPC.

use consensus::{ProposeError, ReadError};
use machine::Refusal;

/// A stable code with what stands behind it.
#[derive(Debug, PartialEq, Eq)]
pub struct Code {
    /// The code.
    pub name: &'static str,
    /// The HTTP status.
    pub status: u16,
    /// What it means, and what to do.
    pub meaning: &'static str,
}

macro_rules! codes {
    ($($constant:ident = $name:literal, $status:literal, $meaning:literal;)*) => {
        $(pub(crate) const $constant: &Code = &Code { name: $name, status: $status, meaning: $meaning };)*

        /// Every code of the API.
        pub const CODES: &[&Code] = &[$($constant),*];
    };
}

codes! {
    INVALID_REQUEST = "invalid_request", 400, "The request can not be read. The detail names the field and what was expected.";
    INVALID_WORKFLOW = "invalid_workflow", 422, "The workflow does not compile. The detail names file, line and column.";
    NOT_SUPPORTED = "not_supported", 400, "The field or value is known, and has no effect in this version.";
    UNAUTHENTICATED = "unauthenticated", 401, "The request has no valid bearer token.";
    FORBIDDEN = "forbidden", 403, "The token is valid, and does not allow this.";
    NOT_FOUND = "not_found", 404, "There is no such thing, or it belongs to another tenant, or it is past its retention.";
    UNKNOWN_WORKFLOW = "unknown_workflow", 404, "No workflow has this name. `orchestra workflows apply FILE` gives it one.";
    KEY_REUSED = "idempotency_key_reused", 409, "The idempotency key was used for another request.";
    ID_REUSED = "id_reused", 409, "The session id was used for another session.";
    ALREADY_ENDED = "already_ended", 409, "The session has ended.";
    NOT_FAILED = "not_failed", 409, "Only a failed session can be retried.";
    NOT_AWAITING_APPROVAL = "not_awaiting_approval", 409, "No step waits for an approval, or several do and none was named.";
    CONFLICT = "conflict", 409, "The cluster is not in a state in which this can be done. The detail says why.";
    SIGNALS_FULL = "signals_full", 429, "Too many signals wait for a step to ask for them.";
    TOO_LARGE = "too_large", 413, "Something is larger than its limit. The detail names both.";
    OVERLOADED = "overloaded", 429, "Too many requests wait. Come back after `Retry-After` seconds.";
    CAPACITY_EXCEEDED = "capacity_exceeded", 429, "There is as much as there may be, by `[capacity]` of the configuration. The detail says of what. Come back after `Retry-After` seconds, if it is given.";
    RATE_LIMITED = "rate_limited", 429, "The tenant or the address has sent more requests than it may. Come back after `Retry-After` seconds; `RateLimit` says how it stands.";
    WRITES_STOPPED = "writes_stopped", 507, "Writes do not go through, for example because the disk is full. Nothing was lost; they go on by themselves.";
    UNAVAILABLE = "unavailable", 503, "The shard has no leader yet, or the node stops. Repeat the request: with an idempotency key it is safe.";
    INTERNAL = "internal", 500, "Data can not be read. The node's log says more.";
}

/// An error of the API.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", code.name)]
pub struct ApiError {
    /// The stable code.
    pub code: &'static Code,
    /// What is wrong with this very request.
    pub detail: String,
    /// When to come back, in milliseconds.
    pub retry_after_ms: Option<u64>,
}

impl ApiError {
    pub(crate) fn new(code: &'static Code, detail: impl Into<String>) -> Self {
        Self { code, detail: detail.into(), retry_after_ms: None }
    }

    pub(crate) fn invalid(detail: impl Into<String>) -> Self {
        Self::new(INVALID_REQUEST, detail)
    }

    pub(crate) fn not_supported(what: &str) -> Self {
        Self::new(NOT_SUPPORTED, format!("{what} is not supported in this version"))
    }

    pub(crate) fn not_found(what: impl std::fmt::Display) -> Self {
        Self::new(NOT_FOUND, format!("there is no {what}"))
    }
}

impl From<Refusal> for ApiError {
    fn from(refusal: Refusal) -> Self {
        match refusal {
            Refusal::UnknownSession(id) => Self::not_found(format!("session {id}")),
            Refusal::UnknownDefinition(hash) => Self::new(
                UNAVAILABLE,
                format!("definition {hash} is not in the shard yet; repeat the request"),
            ),
            Refusal::InvalidDefinition => Self::new(INVALID_WORKFLOW, "the workflow's graph is not valid"),
            Refusal::KeyReused(id) => {
                Self::new(KEY_REUSED, format!("the key started session {id} with another request"))
            }
            Refusal::IdReused(id) => {
                Self::new(ID_REUSED, format!("session {id} was started by another request"))
            }
            Refusal::Ended(id) => Self::new(ALREADY_ENDED, format!("session {id} has ended")),
            Refusal::NotFailed(id) => Self::new(NOT_FAILED, format!("session {id} has not failed")),
            Refusal::NotAwaitingApproval { waiting } => {
                let detail = format!("{waiting} steps wait for approval; name one with `step`");
                Self::new(NOT_AWAITING_APPROVAL, detail)
            }
            Refusal::TooLarge { what, limit } => {
                Self::new(TOO_LARGE, format!("{what} is over its limit of {limit}"))
            }
            Refusal::NotReplayable(seq) => Self::invalid(format!(
                "history: event {} is not what comes of those before it by the rules of this release",
                seq.0
            )),
            Refusal::SignalsFull => {
                Self::new(SIGNALS_FULL, "too many signals wait for a step to ask for them")
            }
            Refusal::Stale { .. } | Refusal::WrongResolution | Refusal::WrongPosition { .. } => {
                Self::new(UNAVAILABLE, "the request came too late; repeat it")
            }
        }
    }
}

impl From<ProposeError> for ApiError {
    fn from(error: ProposeError) -> Self {
        match error {
            ProposeError::Overloaded { retry_after_ms } => {
                Self { code: OVERLOADED, detail: error.to_string(), retry_after_ms: Some(retry_after_ms) }
            }
            ProposeError::WritesStopped { ref reason } => {
                Self { code: WRITES_STOPPED, detail: reason.clone(), retry_after_ms: Some(1_000) }
            }
            ProposeError::NotLeader { .. } | ProposeError::Unknown | ProposeError::Stopped => {
                Self { code: UNAVAILABLE, detail: error.to_string(), retry_after_ms: Some(200) }
            }
        }
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        Self { code: UNAVAILABLE, detail: error.to_string(), retry_after_ms: Some(200) }
    }
}

impl From<storage::Error> for ApiError {
    fn from(error: storage::Error) -> Self {
        tracing::error!(%error, "stored data can not be read");
        Self::new(INTERNAL, "stored data can not be read")
    }
}
