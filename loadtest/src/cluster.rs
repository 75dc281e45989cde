//! Benches of real node processes: sessions whose steps a worker does over gRPC, single commands, and what happens when
//! leaders go.

use std::{
    convert::Infallible,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use proto::api::{self, session_service_client::SessionServiceClient};
use serde_json::{Value, json};
use testkit::Cluster;
use tokio::{sync::oneshot, time::Instant};
use tonic::transport::{Channel, Endpoint};

use crate::drive::{self, Driven};

/// Three steps, each done by a worker outside.
const TASKS: &str = "name: tasks\nsteps:\n  - {id: a, task: {queue: q, input: input}}\n  \
     - {id: b, task: {queue: q, input: input}}\n  - {id: c, task: {queue: q, input: input}}\n";
/// One command, one commit: the session then waits.
const ONE_COMMIT: &str = "name: one\nsteps:\n  - {id: a, wait: {signal: never}}\n";
pub(crate) const CONFIG: &str = "[log]\nlevel = \"warn\"\n[node]\nshards = 4\ndisk_free_min_mib = 1\n";
pub(crate) const INPUT: &str =
    r#"{"text":"an input of a usual size, a hundred bytes or so, as a client gives it to a session"}"#;
/// A call that takes longer has failed.
const CALL_TIMEOUT: Duration = Duration::from_secs(30);

/// A cluster under load, with a worker on every node.
pub(crate) struct Loaded {
    /// Its nodes end with this.
    pub(crate) cluster: Cluster,
    channels: Vec<Channel>,
    _workers: Vec<oneshot::Sender<()>>,
    _temp: tempfile::TempDir,
}

impl Loaded {
    pub(crate) async fn start(directory: &Path, nodes: usize) -> anyhow::Result<Self> {
        Self::start_with(directory, nodes, CONFIG).await
    }

    async fn start_with(directory: &Path, nodes: usize, config: &str) -> anyhow::Result<Self> {
        let temp = tempfile::tempdir_in(directory)?;
        let cluster = Cluster::start(temp.path(), nodes, config).await?;
        let (mut channels, mut workers) = (Vec::new(), Vec::new());
        for number in cluster.members() {
            let url = cluster.grpc_url(number);
            channels.push(Endpoint::from_shared(url.clone())?.tcp_nodelay(true).connect().await?);
            let options = worker::Options {
                endpoints: vec![url],
                name: format!("bench-{number}"),
                queues: vec!["q".into()],
                capacity: 1024,
                ca: None,
                token: None,
            };
            let (stop, stopped) = oneshot::channel::<()>();
            let answer = |task: worker::Task| async move { Ok(task.input) };
            tokio::spawn(worker::run(options, answer, async {
                // Dropped, it stops as well.
                let _ = stopped.await;
            }));
            workers.push(stop);
        }
        for source in [TASKS, ONE_COMMIT] {
            let request = api::ApplyWorkflowRequest { source: source.into() };
            SessionServiceClient::new(channels[0].clone()).apply_workflow(request).await?;
        }
        Ok(Self { cluster, channels, _workers: workers, _temp: temp })
    }

    async fn call(&self, client: usize, workflow: &str, wait: bool) -> anyhow::Result<()> {
        let channel = self.channels[client % self.channels.len()].clone();
        let request = api::StartSessionRequest {
            workflow: workflow.into(),
            input_json: INPUT.into(),
            wait_ms: if wait { 20_000 } else { 0 },
            ..Default::default()
        };
        let mut client = SessionServiceClient::new(channel);
        let answer = tokio::time::timeout(CALL_TIMEOUT, client.start_session(request)).await??.into_inner();
        if wait && answer.status != "completed" {
            bail!("a session is {}", answer.status);
        }
        Ok(())
    }

    /// Starts so many sessions, which then wait.
    pub(crate) async fn fill(self: &Arc<Self>, clients: usize, sessions: u64) -> anyhow::Result<()> {
        let left = Arc::new(AtomicU64::new(sessions));
        let mut tasks = tokio::task::JoinSet::new();
        for client in 0..clients {
            let (loaded, left) = (Arc::clone(self), Arc::clone(&left));
            tasks.spawn(async move {
                let take = |left: u64| left.checked_sub(1);
                while left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, take).is_ok() {
                    loaded.call(client, "one", false).await?;
                }
                anyhow::Ok(())
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(())
    }

    async fn drive(
        self: &Arc<Self>,
        clients: usize,
        seconds: u64,
        (workflow, wait): (&'static str, bool),
    ) -> anyhow::Result<Driven> {
        let loaded = Arc::clone(self);
        let call = move |client, _| {
            let loaded = Arc::clone(&loaded);
            async move { loaded.call(client, workflow, wait).await }
        };
        drive::closed(clients, seconds, call).await
    }

    /// Sessions of three tasks.
    pub(crate) async fn sessions(self: &Arc<Self>, clients: usize, seconds: u64) -> anyhow::Result<Driven> {
        self.drive(clients, seconds, ("tasks", true)).await
    }

    /// Commits, of one command each as its client sees it.
    pub(crate) async fn commits(self: &Arc<Self>, clients: usize, seconds: u64) -> anyhow::Result<Driven> {
        self.drive(clients, seconds, ("one", false)).await
    }
}

/// Milliseconds from the start of a session to the begin of its first task, which 99 of 100 took at most, at this share
/// of the most that the cluster can do: as it measures it itself.
pub(crate) async fn dispatch_p99(directory: &Path, nodes: usize, share: f64) -> anyhow::Result<f64> {
    let peak = Arc::new(Loaded::start(directory, nodes).await?).sessions(256, 5).await?.per_second;
    // Another one, which has counted nothing yet.
    let loaded = Arc::new(Loaded::start(directory, nodes).await?);
    let calls = Arc::clone(&loaded);
    let call = move |number| {
        let loaded = Arc::clone(&calls);
        async move { loaded.call(number, "tasks", true).await }
    };
    drive::open(peak * share, 10, call).await?;
    let url = format!("{}/v1/sla?window=1m", loaded.cluster.url(0));
    let report: Value = reqwest::get(url).await?.error_for_status()?.json().await?;
    let mut series = report["series"].as_array().into_iter().flatten();
    let begun = series.find(|of| of["indicator"] == "session_init" && of["workflow"] == "tasks");
    begun.and_then(|of| of["p99"].as_f64()).context("the report has no session_init")
}

/// Seconds from the kill of a shard's leader to the next commit in that shard, by a client that has the other nodes.
pub(crate) async fn failovers(directory: &Path, kills: usize) -> anyhow::Result<Vec<f64>> {
    let temp = tempfile::tempdir_in(directory)?;
    let mut cluster = Cluster::start(temp.path(), 3, CONFIG).await?;
    let http = reqwest::Client::builder().timeout(CALL_TIMEOUT).build()?;
    let apply = http.post(format!("{}/v1/workflows", cluster.url(0))).body(ONE_COMMIT).send().await?;
    apply.error_for_status()?;
    let mut came = Vec::new();
    for kill in 0..kills {
        let shard = u16::try_from(kill % 4)?;
        let leader = cluster.leader(shard).await.context("the shard has no leader")?;
        let other = cluster.url((leader + 1) % 3);
        commit(&http, &other, shard).await?;
        cluster.kill(leader)?;
        let killed = Instant::now();
        commit(&http, &other, shard).await?;
        came.push(killed.elapsed().as_secs_f64());
        cluster.restart(leader).await?;
        cluster.until_whole().await?;
    }
    Ok(came)
}

/// The rate of one node that tells all there is, against that of one that tells nothing: this share of sessions traced,
/// JSON logs in a file and at a collector, requests limited, metrics scraped, and a dashboard's questions.
pub(crate) async fn observed(directory: &Path, share: f64) -> anyhow::Result<f64> {
    // It takes spans and lines, and looks at none.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await?;
    let address = listener.local_addr()?;
    let taken = [Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0))];
    let counting = |of: &Arc<AtomicU64>| {
        let of = Arc::clone(of);
        axum::routing::post(move |body: axum::body::Bytes| async move {
            of.fetch_add(body.len() as u64, Ordering::Relaxed);
        })
    };
    let routes = axum::Router::new()
        .route("/v1/traces", counting(&taken[0]))
        .route("/logs", counting(&taken[1]))
        .layer(axum::extract::DefaultBodyLimit::disable());
    let collector = tokio::spawn(async move { axum::serve(listener, routes).await });
    let logs = tempfile::tempdir_in(directory)?;
    let config = format!(
        "[log]\nformat = \"json\"\nurl = \"http://{address}/logs\"\ndirectory = {:?}\n{}\
         [traces]\notlp = \"http://{address}\"\nshare = {share:?}\n\
         [limits]\nper_tenant_per_minute = 100000000\nper_address_per_minute = 100000000\n",
        logs.path(),
        CONFIG.strip_prefix("[log]\nlevel = \"warn\"\n").context("what is logged otherwise")?,
    );
    let quiet = Arc::new(Loaded::start(directory, 1).await?).sessions(256, 5).await?.per_second;
    let loaded = Arc::new(Loaded::start_with(directory, 1, &config).await?);
    let watching = tokio::spawn(watch(loaded.cluster.url(0)));
    let told = loaded.sessions(256, 5).await?.per_second;
    anyhow::ensure!(!watching.is_finished(), "a question was not answered: {:?}", watching.await);
    watching.abort();
    collector.abort();
    for (of, what) in taken.iter().zip(["spans", "log lines"]) {
        anyhow::ensure!(of.load(Ordering::Relaxed) > 0, "no {what} came");
    }
    Ok(told / quiet)
}

/// Asks every five seconds what Prometheus and a dashboard ask, as long as there are answers: the former usually does
/// every 15, the latter every five.
async fn watch(url: String) -> anyhow::Result<Infallible> {
    let mut tick = tokio::time::interval(Duration::from_secs(5));
    loop {
        tick.tick().await;
        for path in ["/metrics", "/v1/sla", "/v1/cluster"] {
            reqwest::get(format!("{url}{path}")).await?.error_for_status()?.bytes().await?;
        }
    }
}

/// Milliseconds that a planned hand-over of a lead keeps the next commit in that shard waiting.
pub(crate) async fn transfers(directory: &Path, count: usize) -> anyhow::Result<Vec<f64>> {
    let temp = tempfile::tempdir_in(directory)?;
    let cluster = Cluster::start(temp.path(), 3, CONFIG).await?;
    let http = reqwest::Client::builder().timeout(CALL_TIMEOUT).build()?;
    let apply = http.post(format!("{}/v1/workflows", cluster.url(0))).body(ONE_COMMIT).send().await?;
    apply.error_for_status()?;
    let mut came = Vec::new();
    for number in 0..count {
        let shard = u16::try_from(number % 4)?;
        commit(&http, &cluster.url(0), shard).await?;
        // The longest of the commits that are under way while the lead moves.
        let (moved, mut moving) = oneshot::channel();
        let longest = async {
            let mut longest = Duration::ZERO;
            loop {
                let started = Instant::now();
                commit(&http, &cluster.url(0), shard).await?;
                longest = longest.max(started.elapsed());
                if moving.try_recv().is_ok() {
                    return anyhow::Ok(longest);
                }
            }
        };
        let transfer = async {
            cluster.transfer(shard).await?;
            // The other half is done.
            let _ = moved.send(());
            anyhow::Ok(())
        };
        let (longest, ()) = tokio::try_join!(longest, transfer)?;
        came.push(longest.as_secs_f64() * 1000.0);
    }
    Ok(came)
}

/// Starts a session in a shard: one commit.
async fn commit(http: &reqwest::Client, url: &str, shard: u16) -> anyhow::Result<()> {
    let unique: u128 = rand::random();
    let id = ids::SessionId::new(ids::RegionId(0), ids::ShardId(shard), unique);
    let body = json!({"workflow": "one", "id": id.to_string()});
    let answer = http.post(format!("{url}/v1/sessions")).json(&body).send().await?;
    let status = answer.status();
    let said: Value = answer.json().await.unwrap_or_default();
    if !status.is_success() {
        bail!("a start was answered {status}: {said}");
    }
    Ok(())
}
