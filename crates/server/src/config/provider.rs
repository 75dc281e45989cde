//! `[providers]` and `[prices]`: the vendors, and what they cost.

use serde::{Deserialize, Serialize};

/// A vendor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Provider {
    /// Its wire format.
    pub wire: Wire,
    /// The URL before `chat/completions` or `messages`.
    pub base_url: String,
    /// The variable with its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub api_key_env: Option<String>,
    /// Calls at once.
    #[serde(default = "default_concurrency")]
    pub concurrency: usize,
    /// Milliseconds that a connection may take.
    #[serde(default = "default_connect")]
    pub connect_timeout_ms: u64,
    /// Milliseconds from the request to the first token.
    #[serde(default = "default_first_token")]
    pub first_token_timeout_ms: u64,
    /// Milliseconds between tokens.
    #[serde(default = "default_idle")]
    pub idle_timeout_ms: u64,
    /// So many failed calls
    #[serde(default = "default_circuit_failures")]
    pub circuit_failures: usize,
    /// within so many seconds, and it is not called
    #[serde(default = "default_circuit_seconds")]
    pub circuit_window_seconds: u64,
    /// for so many seconds; then one call decides whether it is called again. Steps that have no other provider wait,
    /// which counts as no attempt.
    #[serde(default = "default_circuit_seconds")]
    pub circuit_rest_seconds: u64,
    /// Whether its answers are made up; every result then says so.
    #[serde(default)]
    pub simulated: bool,
}

impl Provider {
    pub(super) fn check(&self, name: &str) -> Result<(), String> {
        if self.concurrency == 0 {
            return Err(format!("providers.{name}.concurrency must be at least 1"));
        }
        if self.circuit_failures == 0 || self.circuit_rest_seconds == 0 {
            let what = "circuit_failures and circuit_rest_seconds";
            return Err(format!("providers.{name}.{what} must be at least 1"));
        }
        Ok(())
    }
}

pub(crate) fn default_circuit_failures() -> usize {
    5
}

pub(crate) fn default_circuit_seconds() -> u64 {
    60
}

fn default_concurrency() -> usize {
    32
}

fn default_connect() -> u64 {
    5_000
}

fn default_first_token() -> u64 {
    60_000
}

fn default_idle() -> u64 {
    30_000
}

/// A wire format.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Wire {
    /// OpenAI-compatible.
    Openai,
    /// Anthropic.
    Anthropic,
}

/// A price.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Price {
    /// US dollars a million tokens sent.
    pub input_usd: f64,
    /// US dollars a million tokens received.
    pub output_usd: f64,
}

impl Price {
    pub(super) fn check(&self, name: &str) -> Result<(), String> {
        if !(self.input_usd >= 0.0 && self.output_usd >= 0.0 && self.input_usd.max(self.output_usd) < 1e6) {
            return Err(format!("prices.{name}: expected US dollars between 0 and 1e6"));
        }
        Ok(())
    }
}
