//! The calls that scenarios make. One HTTP call an operation, no hidden retry.

use std::time::Duration;

use anyhow::{Context as _, bail};
use serde_json::{Value, json};

/// A call that takes longer has an unknown outcome.
const CALL_TIMEOUT: Duration = Duration::from_secs(10);

/// A client of one node.
#[derive(Debug, Clone)]
pub struct Api {
    http: reqwest::Client,
    url: String,
}

impl Api {
    /// Of the node at `url`.
    ///
    /// # Errors
    ///
    /// The system refuses a client.
    pub fn new(url: &str) -> anyhow::Result<Self> {
        Ok(Self { http: reqwest::Client::builder().timeout(CALL_TIMEOUT).build()?, url: url.to_owned() })
    }

    /// Where a path is.
    #[must_use]
    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.url)
    }

    /// Applies a workflow.
    ///
    /// # Errors
    ///
    /// Refused, or no answer.
    pub async fn apply(&self, source: &str) -> anyhow::Result<()> {
        let answer =
            self.http.post(format!("{}/v1/workflows", self.url)).body(source.to_owned()).send().await?;
        if !answer.status().is_success() {
            bail!("apply: {}", answer.text().await?);
        }
        Ok(())
    }

    /// Starts a session under a key; its id.
    ///
    /// # Errors
    ///
    /// Refused, or the outcome is unknown: repeat with the same key.
    pub async fn start(&self, workflow: &str, key: &str, input: &Value) -> anyhow::Result<String> {
        let request = self.http.post(format!("{}/v1/sessions", self.url)).header("idempotency-key", key);
        let answer = request.json(&json!({"workflow": workflow, "input": input})).send().await?;
        if !answer.status().is_success() {
            bail!("start: {} {}", answer.status(), answer.text().await?);
        }
        let body: Value = answer.json().await?;
        body["id"].as_str().map(str::to_owned).context("the answer has no id")
    }

    /// Reads a path.
    ///
    /// # Errors
    ///
    /// Refused, or no answer.
    pub async fn get(&self, path: &str) -> anyhow::Result<Value> {
        let answer = self.http.get(format!("{}{path}", self.url)).send().await?;
        if !answer.status().is_success() {
            bail!("{path}: {} {}", answer.status(), answer.text().await?);
        }
        Ok(answer.json().await?)
    }

    /// Sends JSON to a path.
    ///
    /// # Errors
    ///
    /// Refused, or no answer.
    pub async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        let answer = self.http.post(format!("{}{path}", self.url)).json(body).send().await?;
        if !answer.status().is_success() {
            bail!("{path}: {} {}", answer.status(), answer.text().await?);
        }
        Ok(answer.json().await?)
    }

    /// All events of a session.
    ///
    /// # Errors
    ///
    /// Refused, or no answer.
    pub async fn events(&self, id: &str) -> anyhow::Result<Vec<Value>> {
        let (mut events, mut next) = (Vec::new(), 0);
        loop {
            let page = self.get(&format!("/v1/sessions/{id}/events?from={next}")).await?;
            let found = page["events"].as_array().cloned().unwrap_or_default();
            if found.is_empty() {
                return Ok(events);
            }
            next = page["next"].as_u64().context("the answer has no `next`")?;
            events.extend(found);
        }
    }
}
