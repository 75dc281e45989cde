//! A node with a simulated vendor, and calls to it.

use std::{net::SocketAddr, path::Path, time::Duration};

use providers::simulated;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};
use testkit::{NodeProcess, free_address, wait_until};

pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Fixture {
    pub(crate) temp: tempfile::TempDir,
    pub(crate) vendor: simulated::Server,
    pub(crate) node: NodeProcess,
    pub(crate) grpc: SocketAddr,
    http: reqwest::Client,
    token: Option<String>,
}

impl Fixture {
    /// A node whose vendor behaves, with `extra` lines of configuration.
    pub(crate) async fn start(extra: &str) -> Self {
        Self::with_vendor(
            simulated::Options { latency_min_ms: 0, latency_max_ms: 2, ..Default::default() },
            vec![],
            extra,
        )
        .await
    }

    pub(crate) async fn with_vendor(
        options: simulated::Options,
        rules: Vec<simulated::Rule>,
        extra: &str,
    ) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let vendor = simulated::serve(free_address().unwrap(), options, rules).await.unwrap();
        let config = format!("{}{extra}", chaos::crash::node_config(&[vendor.base_url()], 30_000));
        let (http, grpc) = (free_address().unwrap(), free_address().unwrap());
        let node = NodeProcess::start(temp.path(), http, grpc, &config).await.unwrap();
        Self { temp, vendor, node, grpc, http: reqwest::Client::new(), token: None }
    }

    /// A node with variables in its environment.
    pub(crate) async fn with_env(extra: &str, env: &[(String, String)]) -> Self {
        Self::with_table("node", "", extra, env).await
    }

    /// A node with more lines in the table of the node.
    pub(crate) async fn with_node(lines: &str) -> Self {
        Self::with_table("node", lines, "", &[]).await
    }

    /// As [`Fixture::with_env`], with more lines in a table.
    pub(crate) async fn with_table(table: &str, lines: &str, extra: &str, env: &[(String, String)]) -> Self {
        let temp = tempfile::tempdir().unwrap();
        let vendor =
            simulated::serve(free_address().unwrap(), simulated::Options::default(), vec![]).await.unwrap();
        let config = chaos::crash::node_config(&[vendor.base_url()], 30_000);
        let config =
            format!("{}{extra}", config.replace(&format!("[{table}]\n"), &format!("[{table}]\n{lines}")));
        let (http, grpc) = (free_address().unwrap(), free_address().unwrap());
        let node = NodeProcess::start_with_env(temp.path(), http, grpc, &config, env).await.unwrap();
        Self { temp, vendor, node, grpc, http: reqwest::Client::new(), token: None }
    }

    /// Kills the node, and starts it again on what it left.
    pub(crate) async fn killed_and_restarted(self) -> Self {
        let Self { temp, vendor, node, http, token, .. } = self;
        node.kill().unwrap();
        let config = std::fs::read_to_string(temp.path().join("config.toml")).unwrap();
        let (address, grpc) = (free_address().unwrap(), free_address().unwrap());
        let node = NodeProcess::start(temp.path(), address, grpc, &config).await.unwrap();
        Self { temp, vendor, node, grpc, http, token }
    }

    pub(crate) fn set_token(&mut self, token: Option<&str>) {
        self.token = token.map(str::to_owned);
    }

    pub(crate) fn directory(&self) -> &Path {
        self.temp.path()
    }

    pub(crate) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let request = self.http.request(method, format!("{}{path}", self.node.url()));
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    pub(crate) async fn send(&self, request: reqwest::RequestBuilder) -> (StatusCode, Value) {
        let answer = request.send().await.unwrap();
        let status = answer.status();
        let text = answer.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    pub(crate) async fn get(&self, path: &str) -> (StatusCode, Value) {
        self.send(self.request(Method::GET, path)).await
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> (StatusCode, Value) {
        self.send(self.request(Method::POST, path).json(body)).await
    }

    /// Starts a session of an inline workflow; its id.
    pub(crate) async fn start_inline(&self, workflow: &Value, input: &Value) -> String {
        let (status, body) = self.post("/v1/sessions", &json!({"workflow": workflow, "input": input})).await;
        assert_eq!(status, StatusCode::CREATED, "{body}");
        body["id"].as_str().unwrap().to_owned()
    }

    /// Waits until a session has one of these statuses; the session.
    pub(crate) async fn until(&self, id: &str, statuses: &[&str]) -> Value {
        let what = format!("{id} to be {statuses:?}");
        let session = wait_until(&what, PATIENCE, async || {
            let (_, session) = self.get(&format!("/v1/sessions/{id}")).await;
            statuses.contains(&session["status"].as_str()?).then_some(session)
        });
        session.await.unwrap_or_else(|error| panic!("{error}\n{}", self.node.log_tail()))
    }
}
