//! The HTTP API, from the other side.

use std::{path::Path, time::Duration};

use anyhow::{Context as _, anyhow, bail};
use futures_util::StreamExt as _;
use reqwest::{Method, RequestBuilder, Response, StatusCode, Url};
use serde_json::Value;

/// How long a lost connection is tried again.
const RECONNECT_PATIENCE: Duration = Duration::from_secs(30);
const RECONNECT_PAUSE: Duration = Duration::from_millis(200);

pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
    token: Option<String>,
}

impl Client {
    /// `ca`: the authority of the nodes' certificates; without it, those of the system.
    pub(crate) fn new(url: &str, token: Option<String>, ca: Option<&Path>) -> anyhow::Result<Self> {
        let base = Url::parse(url)
            .with_context(|| format!("--url {url}: expected a URL such as http://127.0.0.1:7100"))?;
        let mut http = reqwest::Client::builder().connect_timeout(Duration::from_secs(5));
        if let Some(path) = ca {
            let pem = std::fs::read(path).with_context(|| path.display().to_string())?;
            let authorities = reqwest::Certificate::from_pem_bundle(&pem);
            http = http.tls_certs_only(authorities.with_context(|| path.display().to_string())?);
        }
        let http = http.build()?;
        Ok(Self { http, base, token })
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> anyhow::Result<RequestBuilder> {
        let mut request = self.http.request(method, self.base.join(path)?);
        if let Some(token) = &self.token {
            request = request.bearer_auth(token);
        }
        Ok(request)
    }

    /// Sends a request; the JSON of its answer.
    pub(crate) async fn send(&self, request: RequestBuilder) -> anyhow::Result<Value> {
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        checked(response).await?.json().await.context("read the answer")
    }

    pub(crate) async fn get(&self, path: &str) -> anyhow::Result<Value> {
        self.send(self.request(Method::GET, path)?).await
    }

    /// As [`Client::get`], with parameters.
    pub(crate) async fn find(&self, path: &str, parameters: &[(&str, String)]) -> anyhow::Result<Value> {
        let mut url = self.base.join(path)?;
        url.query_pairs_mut().extend_pairs(parameters);
        self.get(url.as_str()).await
    }

    /// An answer that is text.
    pub(crate) async fn get_text(&self, path: &str) -> anyhow::Result<String> {
        let request = self.request(Method::GET, path)?;
        let response = request.send().await.map_err(|error| self.unreachable(&error))?;
        checked(response).await?.text().await.context("read the answer")
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> anyhow::Result<Value> {
        self.send(self.request(Method::POST, path)?.json(body)).await
    }

    /// Sends a request until the node answers: only for requests that are safe to repeat.
    pub(crate) async fn send_patiently(
        &self,
        make: impl Fn() -> anyhow::Result<RequestBuilder>,
    ) -> anyhow::Result<Value> {
        let until = tokio::time::Instant::now() + RECONNECT_PATIENCE;
        loop {
            let error = match make()?.send().await {
                Ok(response) if response.status() == StatusCode::SERVICE_UNAVAILABLE => {
                    anyhow!("the node is not ready")
                }
                Ok(response) => return checked(response).await?.json().await.context("read the answer"),
                Err(error) => self.unreachable(&error),
            };
            if tokio::time::Instant::now() >= until {
                return Err(error);
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    /// Follows a session's events from a number on, over lost connections, until it ends.
    pub(crate) async fn follow(
        &self,
        id: &str,
        mut next: u64,
        mut event: impl FnMut(&Value) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let mut until = tokio::time::Instant::now() + RECONNECT_PATIENCE;
        loop {
            match self.follow_once(id, &mut next, &mut event).await {
                Ok(true) => return Ok(()),
                Ok(false) => until = tokio::time::Instant::now() + RECONNECT_PATIENCE,
                Err(error) if tokio::time::Instant::now() >= until => return Err(error),
                Err(error) if error.is::<Problem>() => return Err(error),
                Err(_) => {}
            }
            tokio::time::sleep(RECONNECT_PAUSE).await;
        }
    }

    /// Whether the session has ended; `false` when the connection was lost after news.
    async fn follow_once(
        &self,
        id: &str,
        next: &mut u64,
        event: &mut impl FnMut(&Value) -> anyhow::Result<()>,
    ) -> anyhow::Result<bool> {
        let request = self.request(Method::GET, &format!("/v1/sessions/{id}/events?from={next}"))?;
        let request = request.header("accept", "text/event-stream");
        let response = checked(request.send().await.map_err(|error| self.unreachable(&error))?).await?;
        let (mut stream, mut buffer, mut news) = (response.bytes_stream(), Vec::new(), false);
        while let Some(piece) = stream.next().await {
            let Ok(piece) = piece else { break };
            buffer.extend_from_slice(&piece);
            while let Some(end) = buffer.windows(2).position(|pair| pair == b"\n\n") {
                let block: Vec<u8> = buffer.drain(..end + 2).collect();
                let block = String::from_utf8_lossy(&block);
                let Some(data) = block.lines().find_map(|line| line.strip_prefix("data:")) else { continue };
                let value: Value = serde_json::from_str(data.trim()).context("read an event")?;
                event(&value)?;
                news = true;
                *next = value["seq"].as_u64().unwrap_or(*next) + 1;
                let kind = value["type"].as_str().unwrap_or_default();
                if ["session_completed", "session_failed", "session_canceled"].contains(&kind) {
                    return Ok(true);
                }
            }
        }
        if news { Ok(false) } else { bail!("the connection to {} was lost", self.base) }
    }

    fn unreachable(&self, error: &reqwest::Error) -> anyhow::Error {
        if error.is_connect() {
            anyhow!(
                "no node answers at {}: start one with `orchestra dev`, or name another with --url",
                self.base
            )
        } else {
            anyhow!("{}: {error}", self.base)
        }
    }
}

/// An error that the node answered.
#[derive(Debug)]
pub(crate) struct Problem {
    pub(crate) code: String,
    detail: String,
}

impl std::fmt::Display for Problem {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({})", self.detail, self.code)
    }
}

impl std::error::Error for Problem {}

pub(crate) async fn checked(response: Response) -> anyhow::Result<Response> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let body: Value = response.json().await.unwrap_or_default();
    let field = |name: &str| body[name].as_str().map(str::to_owned);
    Err(Problem {
        code: field("code").unwrap_or_else(|| status.as_u16().to_string()),
        detail: field("detail").unwrap_or_else(|| status.to_string()),
    }
    .into())
}
