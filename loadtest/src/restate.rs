//! Restate beside us: one node of it on this machine, and a service in this process whose handler runs three steps, so
//! that both are measured in one run on one machine.

use std::{
    net::SocketAddr,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use restate_sdk::prelude::{
    Context, ContextSideEffects as _, Endpoint, HandlerError, HttpServer, RunFuture as _, service,
};
use serde_json::json;
use testkit::{free_address, wait_until};
use tokio::{net::TcpListener, sync::oneshot};

use crate::{
    cluster::INPUT,
    drive::{self, Driven},
};

const START_TIMEOUT: Duration = Duration::from_secs(60);
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// The work of the bench: three steps, each of which is durable before the next begins.
struct Bench;

#[service]
impl Bench {
    #[handler]
    async fn tasks(&self, context: Context<'_>, input: String) -> Result<String, HandlerError> {
        let mut output = input;
        for name in ["a", "b", "c"] {
            let given = output.clone();
            output = context.run(|| async move { Ok(given) }).name(name).await?;
        }
        Ok(output)
    }
}

/// A running node. It is killed when this is dropped.
pub(crate) struct Restate {
    child: Child,
    http: reqwest::Client,
    url: String,
    _service: oneshot::Sender<()>,
    _temp: tempfile::TempDir,
}

impl Drop for Restate {
    fn drop(&mut self) {
        // Gone already, it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Restate {
    /// Starts a node of the program, with its defaults but for addresses.
    pub(crate) async fn start(program: &Path, directory: &Path) -> anyhow::Result<Self> {
        let temp = tempfile::tempdir_in(directory)?;
        let [ingress, admin, node]: [SocketAddr; 3] = [free_address()?, free_address()?, free_address()?];
        let child = Command::new(program)
            .args(["--no-logo", "--node-name", "bench", "--listen-mode", "tcp", "--base-dir"])
            .arg(temp.path())
            .args(["--bind-address", &node.to_string()])
            .env("RESTATE_INGRESS__BIND_ADDRESS", ingress.to_string())
            .env("RESTATE_ADMIN__BIND_ADDRESS", admin.to_string())
            .env("RESTATE_LOG_FILTER", "warn")
            .env("DO_NOT_TRACK", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("start {}", program.display()))?;
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let service = listener.local_addr()?;
        let (stop, stopped) = oneshot::channel::<()>();
        let server = HttpServer::new(Endpoint::builder().bind(Bench).build());
        tokio::spawn(server.serve_with_cancel(listener, async {
            // Dropped, it stops as well.
            let _ = stopped.await;
        }));
        let http = reqwest::Client::builder().timeout(CALL_TIMEOUT).tcp_nodelay(true).build()?;
        let restate = Self { child, http, url: format!("http://{ingress}"), _service: stop, _temp: temp };
        let deployments = format!("http://{admin}/deployments");
        let body = json!({"uri": format!("http://{service}")});
        let registered = wait_until("Restate to take the service", START_TIMEOUT, async || {
            let answer = restate.http.post(&deployments).json(&body).send().await.ok()?;
            answer.status().is_success().then_some(())
        });
        registered.await?;
        wait_until("Restate to answer", START_TIMEOUT, async || restate.call().await.ok()).await?;
        Ok(restate)
    }

    async fn call(&self) -> anyhow::Result<()> {
        call(&self.http, &self.url).await
    }

    /// Sessions of three steps by so many clients.
    pub(crate) async fn sessions(&self, clients: usize, seconds: u64) -> anyhow::Result<Driven> {
        let (http, url) = (self.http.clone(), self.url.clone());
        let call = move |_, _| {
            let (http, url) = (http.clone(), url.clone());
            async move { call(&http, &url).await }
        };
        drive::closed(clients, seconds, call).await
    }
}

async fn call(http: &reqwest::Client, url: &str) -> anyhow::Result<()> {
    let answer = http.post(format!("{url}/Bench/tasks")).json(&INPUT).send().await?;
    if !answer.status().is_success() {
        bail!("Restate answered {}: {}", answer.status(), answer.text().await?);
    }
    let output: String = answer.json().await?;
    if output != INPUT {
        bail!("Restate answered {output}");
    }
    Ok(())
}
