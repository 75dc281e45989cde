//! LLM vendors behind one trait: fallback chain, circuit breaker, usage and cost; the simulated vendor.
//!
//! A [`Router`] knows the chain of each role. [`Router::ask`] goes down the chain until a provider answers, and
//! reports every call it made, so that the step's outcome can record what it took.
//!
//! - **Invariant:** the class of an error comes from a status code or a structured body, never from a text.
//! - **Invariant:** no message that leaves this crate holds a secret it was configured with.
//! - **Absent:** sessions.

mod breaker;
mod http;
mod prices;
mod router;
mod secret;
pub mod simulated;

use std::{future::Future, pin::Pin, time::Duration};

use machine::FailureClass;

pub use breaker::{Breaker, BreakerOptions, BreakerState};
pub use http::{HttpOptions, HttpProvider, Wire};
pub use prices::{Price, Prices};
pub use router::{Answer, Link, ProviderOptions, ProviderStatus, Router, RouterError, RouterOptions};
pub use secret::{Redactor, Secret};

/// What a provider is asked.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The model, by the provider's name for it.
    pub model: String,
    /// The system message; empty for none.
    pub system: String,
    /// The message.
    pub prompt: String,
    /// A JSON Schema that the answer must satisfy.
    pub schema: Option<serde_json::Value>,
    /// Whether the answer must be JSON.
    pub json: bool,
    /// The most tokens of the answer; 0 for the provider's default.
    pub max_tokens: u32,
    /// The temperature.
    pub temperature: Option<f64>,
    /// The same for every repetition of the same attempt.
    pub idempotency_key: String,
}

/// What a provider answered.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Completion {
    /// The text.
    pub text: String,
    /// Tokens sent, as the provider counts them.
    pub tokens_in: u64,
    /// Tokens received, as the provider counts them.
    pub tokens_out: u64,
}

/// Why a provider did not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct CallError {
    /// Whether it may pass.
    pub class: FailureClass,
    /// A stable code, such as `rate_limited`.
    pub code: &'static str,
    /// For people.
    pub message: String,
    /// When the provider says to come back.
    pub retry_after: Option<Duration>,
    /// Whether it tells against the provider's health, and counts for its breaker.
    pub unhealthy: bool,
}

/// A future of a provider.
pub type CallFuture<'a> = Pin<Box<dyn Future<Output = Result<Completion, CallError>> + Send + 'a>>;

/// A vendor.
pub trait Provider: Send + Sync + 'static {
    /// Asks once. The caller bounds concurrency and time; dropping the future ends the call.
    fn complete<'a>(&'a self, request: &'a Request) -> CallFuture<'a>;

    /// Whether its answers are made up.
    fn is_simulated(&self) -> bool {
        false
    }
}
