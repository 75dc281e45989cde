//! `node`, and what `dev` shares with it.

use std::{io::IsTerminal as _, net::SocketAddr, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::Context as _;
use clap::Args;
use server::{Config, Logs, Redactor, Server, config::LogFormat};
use tracing_subscriber::{
    EnvFilter, Layer as _, layer::SubscriberExt as _, reload, util::SubscriberInitExt as _,
};

use crate::log::{LogWriter, Waiting};

#[derive(Debug, Args)]
pub(crate) struct NodeArgs {
    /// Where data is kept.
    #[arg(long)]
    data_dir: Option<PathBuf>,
    /// Peer addresses (host:port, comma-separated) of nodes of the cluster that a node with a new data directory joins.
    #[arg(long, value_delimiter = ',')]
    join: Vec<String>,
    /// The host that it tells others to reach it at; by default the one it listens on.
    #[arg(long)]
    advertise: Option<String>,
    /// What people call it; by default where its peers reach it.
    #[arg(long)]
    name: Option<String>,
    /// Ends at once when standard input does: for whoever starts nodes that must not outlive it.
    #[arg(long, hide = true)]
    until_stdin_closes: bool,
    #[command(flatten)]
    common: CommonArgs,
}

#[derive(Debug, Args)]
pub(crate) struct CommonArgs {
    /// The configuration file (TOML).
    #[arg(long, env = "ORCHESTRA_CONFIG")]
    pub(crate) config: Option<PathBuf>,
    /// Where HTTP listens.
    #[arg(long)]
    http: Option<SocketAddr>,
    /// Where gRPC listens.
    #[arg(long)]
    grpc: Option<SocketAddr>,
    /// Where the other nodes of its cluster reach it.
    #[arg(long)]
    peer: Option<SocketAddr>,
    /// Allows to listen beyond loopback without TLS.
    #[arg(long)]
    insecure: bool,
    /// Replies of the simulated vendor: a JSON list of {"contains", "reply"}.
    #[arg(long)]
    pub(crate) replies: Option<PathBuf>,
}

impl CommonArgs {
    pub(crate) fn names_an_address(&self) -> bool {
        self.http.is_some() || self.grpc.is_some() || self.peer.is_some()
    }
}

pub(crate) async fn node(args: NodeArgs) -> anyhow::Result<ExitCode> {
    let mut config = load(&args.common)?;
    if let Some(data_dir) = args.data_dir {
        config.node.data_dir = data_dir;
    }
    if !args.join.is_empty() {
        config.node.join = args.join;
    }
    if let Some(advertise) = args.advertise {
        config.node.advertise = advertise;
    }
    if let Some(name) = args.name {
        config.node.name = name;
    }
    if args.until_stdin_closes {
        std::thread::spawn(|| {
            // Whatever comes, or how it ends: whoever started this node is gone.
            let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
            std::process::exit(1);
        });
    }
    let (server, _lines) = start(&mut config, &args.common).await?;
    tracing::info!(http = %server.http(), grpc = %server.grpc(), "ready");
    serve(server, &config).await
}

pub(crate) fn load(args: &CommonArgs) -> anyhow::Result<Config> {
    let mut config = Config::load(args.config.as_deref())?;
    if let Some(http) = args.http {
        config.node.http = http;
    }
    if let Some(grpc) = args.grpc {
        config.node.grpc = grpc;
    }
    if let Some(peer) = args.peer {
        config.node.peer = peer;
    }
    config.node.insecure |= args.insecure;
    if let Some(replies) = &args.replies {
        if !config.providers.is_empty() {
            anyhow::bail!("--replies is for the simulated vendor, but providers are configured");
        }
        config.simulated.replies = Some(replies.clone());
    }
    Ok(config)
}

/// A node that runs, and the log lines that wait to be written when it has stopped.
pub(crate) async fn start(config: &mut Config, args: &CommonArgs) -> anyhow::Result<(Server, Waiting)> {
    let redactor = Redactor::default();
    let (logs, waiting) = init_logging(&config.log, &redactor)?;
    for variable in Config::unknown_variables() {
        tracing::warn!(%variable, "nothing reads this variable");
    }
    let server = Server::start(config.clone(), redactor, logs).await?;
    let pid_file = config.node.data_dir.join("pid");
    std::fs::write(&pid_file, format!("{}\n", std::process::id()))
        .with_context(|| pid_file.display().to_string())?;
    tracing::debug!(?args, "started");
    Ok((server, waiting))
}

fn init_logging(log: &server::config::Log, redactor: &Redactor) -> anyhow::Result<(Logs, Waiting)> {
    let parse = |level: &str| {
        EnvFilter::try_new(level).map_err(|error| {
            format!("{level:?}: {error}; expected a level, or levels by module: warn,engine=debug")
        })
    };
    let filter = parse(&log.level).map_err(|error| anyhow::anyhow!("log.level: {error}"))?;
    let (filter, handle) = reload::Layer::new(filter);
    let (writer, waiting) = LogWriter::new(redactor.clone(), log)?;
    let only_here = log.directory.is_none() && log.url.is_none();
    let lines = tracing_subscriber::fmt::layer()
        // On a full disk a line is lost; the node must not be.
        .log_internal_errors(false)
        .with_ansi(std::io::stderr().is_terminal() && only_here)
        .with_writer(writer);
    let lines = match log.format {
        LogFormat::Text => lines.boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry().with(filter).with(lines).init();
    let change = move |level: &str| {
        let filter = parse(level)?;
        handle.reload(filter).map_err(|error| error.to_string())
    };
    Ok((Logs::new(&log.level, change), waiting))
}

/// Runs until told to stop, and stops cleanly.
pub(crate) async fn serve(server: Server, config: &Config) -> anyhow::Result<ExitCode> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminate.recv() => {}
        interrupted = tokio::signal::ctrl_c() => interrupted?,
    }
    tracing::info!("stopping: work under way is given time to end");
    server.stop(Duration::from_secs(config.node.drain_seconds)).await;
    // Gone already, it is gone.
    let _ = std::fs::remove_file(config.node.data_dir.join("pid"));
    tracing::info!("stopped");
    Ok(ExitCode::SUCCESS)
}
