//! Sessions as a client has them: started, sent what they wait for, and waited for.

use std::{
    sync::atomic::{AtomicU64, AtomicUsize, Ordering},
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::scenario::{Scenario, Work};

/// A session that takes longer has failed.
const SESSION_TIMEOUT: Duration = Duration::from_secs(120);
/// How long a call waits for the end of a session.
const WAIT_MS: u64 = 20_000;

/// A client of the nodes.
pub(crate) struct Sessions {
    http: reqwest::Client,
    urls: Vec<String>,
    work: Vec<(Work, String)>,
    /// Part of every key: loads of one cluster do not meet.
    unique: u64,
    number: AtomicU64,
    next_url: AtomicUsize,
}

impl Sessions {
    /// Applies the workflows of a scenario.
    pub(crate) async fn begin(urls: &[String], scenario: &Scenario) -> anyhow::Result<Self> {
        let http = reqwest::Client::builder().timeout(SESSION_TIMEOUT).tcp_nodelay(true).build()?;
        let text = |work: &Work| "x".repeat(work.payload_bytes);
        let sessions = Self {
            http,
            urls: urls.to_vec(),
            work: scenario.work.iter().map(|work| (work.clone(), text(work))).collect(),
            unique: rand::random(),
            number: AtomicU64::new(0),
            next_url: AtomicUsize::new(0),
        };
        for work in &scenario.work {
            let request = sessions.http.post(format!("{}/v1/workflows", sessions.urls[0]));
            answer(request.body(work.source()))
                .await
                .with_context(|| format!("apply {}", work.workflow()))?;
        }
        Ok(sessions)
    }

    /// One session, from its start to its end.
    pub(crate) async fn run(&self, work: usize) -> anyhow::Result<()> {
        let (work, text) = &self.work[work];
        let url = &self.urls[self.next_url.fetch_add(1, Ordering::Relaxed) % self.urls.len()];
        let key = format!("load-{:x}-{}", self.unique, self.number.fetch_add(1, Ordering::Relaxed));
        let body = json!({"workflow": work.workflow(), "input": {"text": text}});
        let begun = Instant::now();
        // A repetition under its key finds the session, and waits for it.
        let start = |wait_ms: u64| {
            let request = self.http.post(format!("{url}/v1/sessions?wait_ms={wait_ms}"));
            answer(request.header("idempotency-key", &key).json(&body))
        };
        if work.signals > 0 {
            let started = start(0).await?;
            let id = started["id"].as_str().context("the answer has no id")?;
            for signal in 0..work.signals {
                let request = self.http.post(format!("{url}/v1/sessions/{id}/signal"));
                answer(request.json(&json!({"name": format!("go-{signal}"), "payload": signal}))).await?;
            }
        }
        loop {
            let ended = start(WAIT_MS).await?;
            match ended["status"].as_str() {
                Some("completed") => return Ok(()),
                Some("running" | "waiting") if begun.elapsed() < SESSION_TIMEOUT => {}
                status => bail!("a session is {}", status.unwrap_or("without a status")),
            }
        }
    }

    /// What the cluster says of its objectives, over the last five minutes.
    pub(crate) async fn objectives(&self) -> anyhow::Result<Vec<Value>> {
        let report = answer(self.http.get(format!("{}/v1/sla?window=5m", self.urls[0]))).await?;
        Ok(report["objectives"].as_array().cloned().unwrap_or_default())
    }
}

async fn answer(request: reqwest::RequestBuilder) -> anyhow::Result<Value> {
    let answer = request.send().await?;
    let status = answer.status();
    if !status.is_success() {
        bail!("{status}: {}", answer.text().await.unwrap_or_default());
    }
    Ok(answer.json().await?)
}
