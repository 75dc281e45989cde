//! From a configuration to a running node, and back to a stopped one.

use std::{
    collections::BTreeMap,
    net::{SocketAddr, TcpListener as StdListener},
    sync::Arc,
    time::Duration,
};

use axum::serve::{Listener, ListenerExt as _};
use bytes::Bytes;
use consensus::{Leadership, Member, Node, NodeOptions, Observer, SystemClock};
use engine::{Engine, Workers, workers::Patience};
use futures_util::future::Either;
use ids::{RegionId, ShardId};
use providers::{
    BreakerOptions, HttpOptions, HttpProvider, Link, Price, Prices, ProviderOptions, Redactor, Router,
    RouterOptions, Secret, Wire, simulated,
};
use storage::{Directory, Identity};
use tls::{Incoming, Tls, Whom};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tonic::transport::server::TcpIncoming;

use crate::{
    Config, Logs,
    alerts::{self, Teller},
    backups::{self, Schedule},
    capacity::Capacity,
    config, grpc, http,
    levels::Levels,
    limits::Limits,
    metrics::Metrics,
    questions,
    sessions::Sessions,
    traces::{Told, Traces},
};

/// How long connections are given to end after work has.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(5);
/// The name of the vendor that runs where none is configured.
const SIMULATED: &str = "simulated";

/// Why a node does not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Its configuration.
    #[error(transparent)]
    Config(#[from] config::Error),
    /// Its data.
    #[error(transparent)]
    Node(#[from] consensus::Error),
    /// An address.
    #[error("{what} {address}: {source}{}", if source.kind() == std::io::ErrorKind::AddrInUse { "; another process listens there: stop it, or choose another with --{what}" } else { "" })]
    Listen {
        /// Which.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why not.
        source: std::io::Error,
    },
    /// A provider or a token.
    #[error("{0}")]
    Secret(String),
    /// Its certificates.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// What it is to promise.
    #[error("configuration: [sla]: {0}")]
    Objectives(sla::Error),
    /// When somebody is to be told.
    #[error("configuration: [alerts]: {0}")]
    Alerts(sla::Error),
    /// Where traces go.
    #[error("configuration: {0}")]
    Traces(String),
}

/// A running node.
pub struct Server {
    app: Arc<App>,
    stop: watch::Sender<bool>,
    tasks: Vec<JoinHandle<()>>,
    /// They end with the shards.
    watching: Vec<JoinHandle<()>>,
    vendor: Option<simulated::Server>,
    http: SocketAddr,
    grpc: SocketAddr,
}

/// What handlers share.
pub(crate) struct App {
    pub(crate) sessions: Sessions,
    pub(crate) metrics: Metrics,
    /// Who a token is; empty where everybody is tenant `default`, and may do everything.
    pub(crate) tokens: BTreeMap<String, Principal>,
    /// What the node was configured with, without secrets.
    pub(crate) config: serde_json::Value,
    pub(crate) stopping: watch::Receiver<bool>,
    /// What is known of the backups on a schedule.
    pub(crate) backups: Schedule,
    /// What is measured of what is promised.
    pub(crate) levels: Arc<Levels>,
    /// How many requests are answered.
    pub(crate) limits: Limits,
    /// How the process logs.
    pub(crate) logs: Logs,
    /// Who tells traces, if they are wanted.
    pub(crate) traces: Option<Arc<Traces>>,
}

/// Who sent a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Principal {
    pub(crate) tenant: String,
    /// Whether it may change and copy the cluster as a whole.
    pub(crate) admin: bool,
}

impl Server {
    /// Starts a node, and waits until its shards have leaders. `redactor` learns every secret that the node comes
    /// to know.
    ///
    /// # Errors
    ///
    /// What does not work, and what to do.
    pub async fn start(config: Config, redactor: Redactor, logs: Logs) -> Result<Self, StartError> {
        config.check()?;
        // Listening first: a port in use is said before any data is touched.
        let (http_listener, http) = listen("http", config.node.http)?;
        let (grpc_listener, grpc) = listen("grpc", config.node.grpc)?;
        let (peer_listener, peer) = listen("peer", config.node.peer)?;
        let tokens = read_tokens(&config, &redactor)?;
        let tls = load_tls(&config)?;
        let vendor = start_vendor(&config).await?;
        let teller =
            config.alerts.webhook.as_ref().map(|webhook| Teller::new(webhook, &redactor)).transpose();
        let teller = teller.map_err(|error| StartError::Secret(format!("alerts.webhook: {error}")))?;
        let router = Arc::new(make_router(&config, vendor.as_ref(), redactor)?);
        let identity = identify(&config, &http_listener, &tokens, tls.as_ref()).await?;
        let objectives = config.sla.objectives().map_err(StartError::Objectives)?;
        let alerts = config.alerts.rules(&objectives).map_err(StartError::Alerts)?;
        let maintenance = config.sla.maintenance().map_err(StartError::Objectives)?;
        let levels = Arc::new(Levels::new(identity.region, objectives, alerts, maintenance));
        let mut options = node_options(&config, identity, [http, grpc, peer], tls.clone());
        let traces = config.traces.as_ref().map(|of| Traces::new(of, &options.member.name)).transpose();
        let traces = traces.map_err(|error| StartError::Traces(format!("[traces]: {error}")))?.map(Arc::new);
        let metrics = Metrics::new();
        let commits = metrics.commits.clone();
        let told = Told { levels: Arc::clone(&levels), traces: traces.clone(), commits };
        options.observer = Arc::new(told) as Arc<dyn Observer>;
        let node = Node::start(options, peer_listener, Arc::new(SystemClock)).await?;
        if let Some(traces) = &traces {
            traces.start(&node);
        }
        let clock = node.clock();
        let patience = Patience {
            lease: Duration::from_millis(config.node.worker_lease_ms),
            reconnect: Duration::from_millis(config.node.worker_reconnect_ms),
        };
        let groups = node.groups().values().cloned();
        let workers = Arc::new(Workers::start(node.peers(), groups, Arc::clone(&clock), patience));
        let engines = node.groups().iter().map(|(shard, group)| {
            let (router, clock, workers) = (Arc::clone(&router), Arc::clone(&clock), Arc::clone(&workers));
            (*shard, Engine::start(group.clone(), router, clock, workers))
        });
        let engines: BTreeMap<ShardId, Engine> = engines.collect();
        let capacity = Capacity::new(&config.capacity, &config.node.data_dir);
        let (stop, stopping) = watch::channel(false);
        let app = Arc::new(App {
            sessions: Sessions::new(node, engines, workers, router, capacity),
            metrics,
            tokens,
            config: serde_json::to_value(config.shown()).unwrap_or_default(),
            stopping: stopping.clone(),
            backups: Schedule::default(),
            levels,
            limits: Limits::new(&config.limits),
            logs,
            traces,
        });
        let weak = Arc::downgrade(&app);
        app.sessions.node().answer_with(move |question| {
            let app = weak.upgrade();
            Box::pin(async move {
                match app {
                    Some(app) => questions::answer(&app, question).await,
                    None => Bytes::new(),
                }
            })
        });
        let (http_listener, grpc_listener) = (asynchronous(http_listener)?, asynchronous(grpc_listener)?);
        let mut tasks = vec![serve_http(http_listener, tls.clone(), Arc::clone(&app), stopping.clone())?];
        if let Some(backup) = config.backup.clone() {
            let every = Duration::from_secs(60 * backup.minutes(config.sla.tier));
            tasks.push(tokio::spawn(backups::run(Arc::clone(&app), backup, every)));
        }
        tasks.push(tokio::spawn(alerts::run(Arc::clone(&app), config.alerts.clone(), teller)));
        tasks.push(serve_grpc(grpc_listener, tls, Arc::clone(&app), stopping)?);
        let watching = app.sessions.watch_ended(&app.metrics.sessions_ended);
        for group in app.sessions.node().groups().values() {
            let mut leadership = group.leadership();
            // The node may be stopped before anybody leads.
            let led = |lead: &Leadership| *lead != Leadership::Elsewhere { leader: None };
            let _ = leadership.wait_for(led).await;
        }
        Ok(Self { app, stop, tasks, watching, vendor, http, grpc })
    }

    /// Where HTTP listens.
    #[must_use]
    pub fn http(&self) -> SocketAddr {
        self.http
    }

    /// Where gRPC listens.
    #[must_use]
    pub fn grpc(&self) -> SocketAddr {
        self.grpc
    }

    /// Where the simulated vendor listens, if it runs.
    #[must_use]
    pub fn vendor(&self) -> Option<SocketAddr> {
        self.vendor.as_ref().map(simulated::Server::address)
    }

    /// Stops: no more work is started, what is under way is given `drain` to end, and each shard is led by another node
    /// as soon as nothing of it is under way here; then connections are closed, and the state is made durable.
    pub async fn stop(self, drain: Duration) {
        self.app.sessions.node().begin_draining();
        self.app.sessions.drain();
        if tokio::time::timeout(drain, self.app.sessions.hand_over_when_done()).await.is_err() {
            let left = self.app.sessions.running_count();
            tracing::warn!(left, "work did not end in time; it is sent out again at the next start");
        }
        self.app.sessions.node().drain().await;
        self.stop.send_replace(true);
        for task in self.tasks {
            let abort = task.abort_handle();
            if tokio::time::timeout(CLOSE_TIMEOUT, task).await.is_err() {
                abort.abort();
            }
        }
        self.watching.iter().for_each(JoinHandle::abort);
        if let Some(traces) = self.app.traces.clone() {
            // It waits for the receiver.
            let _ = tokio::task::spawn_blocking(move || traces.stop()).await;
        }
        let mut app = self.app;
        for _ in 0..100 {
            app = match Arc::try_unwrap(app) {
                Ok(app) => return app.sessions.stop().await,
                Err(shared) => shared,
            };
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        tracing::warn!("a request is still under way; the state is applied again at the next start");
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").field("http", &self.http).field("grpc", &self.grpc).finish_non_exhaustive()
    }
}

/// Listens; with the address, where the system chose the port.
fn listen(what: &'static str, address: SocketAddr) -> Result<(StdListener, SocketAddr), StartError> {
    let failed = |source| StartError::Listen { what, address, source };
    let listener = StdListener::bind(address).map_err(failed)?;
    listener.set_nonblocking(true).map_err(failed)?;
    let address = listener.local_addr().map_err(failed)?;
    Ok((listener, address))
}

fn asynchronous(listener: StdListener) -> Result<TcpListener, StartError> {
    Ok(TcpListener::from_std(listener).map_err(consensus::Error::from)?)
}

/// Who a node with a new directory is: found out from the cluster that it joins, or the first of a cluster of its own.
async fn identify(
    config: &Config,
    http: &StdListener,
    tokens: &BTreeMap<String, Principal>,
    tls: Option<&Tls>,
) -> Result<Identity, StartError> {
    let cores = std::thread::available_parallelism().map_or(4, std::num::NonZero::get);
    let shards = match config.node.shards {
        0 if cores <= 4 => 4,
        0 => 16,
        shards => shards,
    };
    let founder = Identity {
        cluster: rand::random(),
        node: consensus::new_node_id(),
        region: RegionId(config.node.region),
        shards,
        joined: false,
    };
    let is_new = Directory::is_new(&config.node.data_dir).map_err(consensus::Error::from)?;
    if !is_new || config.node.join.is_empty() {
        return Ok(founder);
    }
    let seeds = config.node.join.clone();
    let waiting = asynchronous(http.try_clone().map_err(consensus::Error::from)?)?;
    let found = match tls {
        None => {
            let found = consensus::discover(&seeds, None);
            http::waiting::serve(waiting, seeds.clone(), tokens.clone(), found).await
        }
        Some(tls) => {
            let waiting = incoming(waiting, tls.clone())?;
            let found = consensus::discover(&seeds, Some(tls));
            http::waiting::serve(waiting, seeds.clone(), tokens.clone(), found).await
        }
    };
    let found = found.map_err(consensus::Error::from)?;
    Ok(found.transpose().map_err(consensus::Error::from)?.unwrap_or(founder))
}

fn serve_http(
    listener: TcpListener,
    tls: Option<Tls>,
    app: Arc<App>,
    stopping: watch::Receiver<bool>,
) -> Result<JoinHandle<()>, StartError> {
    if let Some(tls) = tls {
        return Ok(tokio::spawn(serve_routes(incoming(listener, tls)?, app, stopping)));
    }
    // Small answers go out at once: waiting to fill a packet would cost each 40 ms.
    let listener = listener.tap_io(|stream| {
        // A stream that is gone already fails when it is read.
        let _ = stream.set_nodelay(true);
    });
    Ok(tokio::spawn(serve_routes(listener, app, stopping)))
}

async fn serve_routes<L: Listener<Addr = SocketAddr>>(
    listener: L,
    app: Arc<App>,
    mut stopping: watch::Receiver<bool>,
) {
    let stopped = async move {
        let _ = stopping.wait_for(|stopping| *stopping).await;
    };
    let service = http::routes(app).into_make_service_with_connect_info::<http::From>();
    if let Err(error) = axum::serve(http::Known(listener), service).with_graceful_shutdown(stopped).await {
        tracing::error!(%error, "http stopped");
    }
}

fn serve_grpc(
    listener: TcpListener,
    tls: Option<Tls>,
    app: Arc<App>,
    mut stopping: watch::Receiver<bool>,
) -> Result<JoinHandle<()>, StartError> {
    let incoming = match tls {
        None => Either::Left(TcpIncoming::from(listener).with_nodelay(Some(true))),
        Some(tls) => Either::Right(incoming(listener, tls)?.into_stream()),
    };
    Ok(tokio::spawn(async move {
        let stopped = async move {
            let _ = stopping.wait_for(|stopping| *stopping).await;
        };
        let served = match (grpc::router(app), incoming) {
            (Ok(router), Either::Left(incoming)) => router
                .serve_with_incoming_shutdown(incoming, stopped)
                .await
                .map_err(|error| error.to_string()),
            (Ok(router), Either::Right(incoming)) => router
                .serve_with_incoming_shutdown(incoming, stopped)
                .await
                .map_err(|error| error.to_string()),
            (Err(error), _) => Err(error),
        };
        if let Err(error) = served {
            tracing::error!(%error, "grpc stopped");
        }
    }))
}

fn load_tls(config: &Config) -> Result<Option<Tls>, StartError> {
    let Some(tls) = config.tls.clone() else { return Ok(None) };
    let files = tls::Files { cert: tls.cert, key: tls.key, ca: tls.ca };
    Ok(Some(Tls::load(files)?))
}

fn incoming(listener: TcpListener, tls: Tls) -> Result<Incoming, StartError> {
    Ok(Incoming::new(listener, tls, Whom::Clients).map_err(consensus::Error::from)?)
}

fn node_options(
    config: &Config,
    identity: Identity,
    [http, grpc, peer]: [SocketAddr; 3],
    tls: Option<Tls>,
) -> NodeOptions {
    let reached_at = |address: SocketAddr| match config.node.advertise.as_str() {
        "" => address.to_string(),
        host => format!("{host}:{}", address.port()),
    };
    let peer = reached_at(peer);
    let name = if config.node.name.is_empty() { peer.clone() } else { config.node.name.clone() };
    NodeOptions {
        path: config.node.data_dir.clone(),
        identity,
        member: Member { name, peer, http: reached_at(http), grpc: reached_at(grpc) },
        tls,
        join: config.node.join.clone(),
        free_bytes_min: config.node.disk_free_min_mib << 20,
        flush_interval: Duration::from_secs(config.node.flush_seconds),
        log_entries_kept: config.node.log_entries_kept,
        intake_bytes_per_second: config.node.intake_mib_per_second << 20,
        block_cache_bytes: config.node.block_cache_mib << 20,
        observer: Arc::new(()),
    }
}

fn read_tokens(config: &Config, redactor: &Redactor) -> Result<BTreeMap<String, Principal>, StartError> {
    let mut tokens = BTreeMap::new();
    for token in &config.tokens {
        let value = Secret::from_env(&token.token_env)
            .read()
            .map_err(|error| StartError::Secret(format!("token of tenant {}: {error}", token.tenant)))?;
        if value.len() < 16 {
            let message = format!("token of tenant {}: it must have at least 16 characters", token.tenant);
            return Err(StartError::Secret(message));
        }
        redactor.learn(&value);
        tokens.insert(value, Principal { tenant: token.tenant.clone(), admin: token.admin });
    }
    Ok(tokens)
}

async fn start_vendor(config: &Config) -> Result<Option<simulated::Server>, StartError> {
    if !config.providers.is_empty() {
        return Ok(None);
    }
    let rules = match &config.simulated.replies {
        None => Vec::new(),
        Some(path) => {
            let text = std::fs::read_to_string(path)
                .map_err(|source| config::Error::Read { path: path.clone(), source })?;
            serde_json::from_str(&text)
                .map_err(|error| config::Error::Parse { path: path.clone(), message: error.to_string() })?
        }
    };
    let address = SocketAddr::from(([127, 0, 0, 1], 0));
    let vendor = simulated::serve(address, config.simulated.behaviour.clone(), rules)
        .await
        .map_err(|source| StartError::Listen { what: "simulated vendor", address, source })?;
    Ok(Some(vendor))
}

fn make_router(
    config: &Config,
    vendor: Option<&simulated::Server>,
    redactor: Redactor,
) -> Result<Router, StartError> {
    let mut configured = config.providers.clone();
    let mut roles = config.roles.clone();
    if let Some(vendor) = vendor {
        configured.insert(
            SIMULATED.into(),
            config::Provider {
                wire: config::Wire::Openai,
                base_url: vendor.base_url(),
                api_key_env: None,
                concurrency: 64,
                connect_timeout_ms: 2_000,
                first_token_timeout_ms: 10_000,
                idle_timeout_ms: 5_000,
                circuit_failures: config::default_circuit_failures(),
                circuit_window_seconds: config::default_circuit_seconds(),
                circuit_rest_seconds: config::default_circuit_seconds(),
                simulated: true,
            },
        );
        roles = BTreeMap::from([("default".to_owned(), vec![format!("{SIMULATED}/simulated")])]);
    }
    let mut made = BTreeMap::new();
    for (name, provider) in configured {
        let options = HttpOptions {
            wire: match provider.wire {
                config::Wire::Openai => Wire::OpenAi,
                config::Wire::Anthropic => Wire::Anthropic,
            },
            base_url: provider.base_url,
            api_key: provider.api_key_env.as_deref().map(Secret::from_env),
            connect_timeout: Duration::from_millis(provider.connect_timeout_ms),
            first_token_timeout: Duration::from_millis(provider.first_token_timeout_ms),
            idle_timeout: Duration::from_millis(provider.idle_timeout_ms),
            simulated: provider.simulated,
        };
        let http = HttpProvider::new(options, redactor.clone())
            .map_err(|error| StartError::Secret(format!("providers.{name}: {error}")))?;
        let breaker = BreakerOptions {
            threshold: provider.circuit_failures,
            window: Duration::from_secs(provider.circuit_window_seconds),
            rest: Duration::from_secs(provider.circuit_rest_seconds),
        };
        let (provider, concurrency) = (Arc::new(http), provider.concurrency);
        made.insert(name, ProviderOptions { provider, concurrency, breaker });
    }
    let chains = roles.into_iter().map(|(role, chain)| {
        let links = chain.iter().filter_map(|link| link.split_once('/'));
        let links = links.map(|(provider, model)| Link { provider: provider.into(), model: model.into() });
        (role, links.collect())
    });
    let options = RouterOptions {
        roles: chains.collect(),
        prices: Prices(config.prices.iter().map(|(name, price)| (name.clone(), to_price(*price))).collect()),
        redactor,
    };
    Router::new(made, options).map_err(|error| StartError::Config(config::Error::Invalid(error.to_string())))
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in 0..1e6")]
fn to_price(price: config::Price) -> Price {
    Price { input: (price.input_usd * 1e6).round() as u64, output: (price.output_usd * 1e6).round() as u64 }
}
