//! `dev`: the whole system on a laptop.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{ExitCode, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    time::Instant,
};

use super::node::{CommonArgs, load, serve, start};
use crate::output::line;

/// The first ports; every node has its own hundred.
const HTTP: u16 = 7100;
const PORTS_A_NODE: u16 = 100;
const NODES_MAX: u16 = 9;
/// How long a node may take to be ready.
const READY_TIMEOUT: Duration = Duration::from_secs(120);
/// Between two looks at the nodes.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// Where data is kept.
    #[arg(long, default_value = "orchestra-dev")]
    data_dir: PathBuf,
    /// Nodes of the cluster. One runs in this process; more are processes of their own, which end with this one.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u16).range(1..=i64::from(NODES_MAX)))]
    nodes: u16,
    /// Starts a node that has ended again. Without it, what was killed stays down.
    #[arg(long)]
    restart: bool,
    #[command(flatten)]
    common: CommonArgs,
}

/// What `dev` lays out below its directory, for a node of the one region.
fn node_directory(data_dir: &Path, number: u16) -> PathBuf {
    data_dir.join("region-0").join(format!("node-{number}"))
}

pub(crate) async fn dev(args: DevArgs) -> anyhow::Result<ExitCode> {
    if args.nodes == 1 { one(args).await } else { several(&args).await }
}

async fn one(args: DevArgs) -> anyhow::Result<ExitCode> {
    if args.restart {
        bail!("--restart is for --nodes 2 and more: one node runs in this process");
    }
    let mut config = load(&args.common)?;
    config.node.data_dir = node_directory(&args.data_dir, 0);
    let simulated = config.providers.is_empty();
    let directory = config.node.data_dir.display().to_string();
    let (server, _lines) = start(&mut config, &args.common).await?;
    let url = format!("http://{}", server.http());
    line(format!(
        "orchestra dev is ready\n\n  HTTP  {url}\n  gRPC  http://{}\n  data  {directory}",
        server.grpc()
    ));
    match server.vendor() {
        Some(vendor) if simulated => line(format!(
            "  vendor  http://{vendor} (SIMULATED: no provider is configured, so answers are made up)"
        )),
        _ => {}
    }
    let flag = if server.http().port() == HTTP { String::new() } else { format!(" --url {url}") };
    what_next(&flag);
    serve(server, &config).await
}

fn what_next(flag: &str) {
    line(format!(
        "\nNext:\n  orchestra start \"Add a health endpoint\" --workdir . --out ./out --wait{flag}\n  \
         orchestra sessions list{flag}\n  orchestra sessions describe <id>{flag}\n"
    ));
}

/// A node of a cluster under this supervisor.
struct Member {
    number: u16,
    directory: PathBuf,
    child: Option<Child>,
}

impl Member {
    fn address(&self, offset: u16) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], HTTP + self.number * PORTS_A_NODE + offset))
    }

    /// Beside its directory, which is the node's alone.
    fn log(&self) -> PathBuf {
        self.directory.with_extension("log")
    }

    fn spawn(&mut self, args: &DevArgs) -> anyhow::Result<()> {
        std::fs::create_dir_all(self.directory.parent().unwrap_or(&self.directory))
            .with_context(|| self.directory.display().to_string())?;
        let output = self.log();
        let out = File::options().create(true).append(true).open(&output);
        let out = out.with_context(|| output.display().to_string())?;
        let mut command = Command::new(std::env::current_exe().context("find this program")?);
        command
            .args(["node", "--until-stdin-closes", "--name", &format!("node-{}", self.number)])
            .args(["--data-dir".as_ref(), self.directory.as_os_str()])
            .args(["--http", &self.address(0).to_string()])
            .args(["--grpc", &self.address(1).to_string()])
            .args(["--peer", &self.address(2).to_string()]);
        if self.number > 0 {
            let first = Self { number: 0, directory: PathBuf::new(), child: None };
            command.args(["--join", &first.address(2).to_string()]);
        }
        if let Some(config) = &args.common.config {
            command.args(["--config".as_ref(), config.as_os_str()]);
        }
        if let Some(replies) = &args.common.replies {
            command.args(["--replies".as_ref(), replies.as_os_str()]);
        }
        let child = command
            // The node ends when this end of the pipe does, however this process ends.
            .stdin(Stdio::piped())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn();
        self.child = Some(child.with_context(|| format!("start node-{}", self.number))?);
        Ok(())
    }

    /// How the node ended, if it has.
    fn ended(&mut self) -> anyhow::Result<Option<std::process::ExitStatus>> {
        let Some(child) = self.child.as_mut() else { return Ok(None) };
        let status = child.try_wait()?;
        if status.is_some() {
            self.child = None;
        }
        Ok(status)
    }

    async fn until_ready(&mut self) -> anyhow::Result<()> {
        let (http, url) = (reqwest::Client::new(), format!("http://{}/health/ready", self.address(0)));
        let until = Instant::now() + READY_TIMEOUT;
        let log = self.log();
        while !http.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
            if let Some(status) = self.ended()? {
                bail!("node-{} ended with {status}; see {}", self.number, log.display());
            }
            if Instant::now() > until {
                bail!("node-{} is not ready after {READY_TIMEOUT:?}; see {}", self.number, log.display());
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }
}

async fn several(args: &DevArgs) -> anyhow::Result<ExitCode> {
    if args.common.names_an_address() {
        bail!("--http, --grpc and --peer are for one node; those of several are fixed");
    }
    // What is wrong is said here, not in a file.
    load(&args.common)?;
    let mut members: Vec<Member> = (0..args.nodes)
        .map(|number| Member { number, directory: node_directory(&args.data_dir, number), child: None })
        .collect();
    for member in &mut members {
        for offset in 0..3 {
            let address = member.address(offset);
            std::net::TcpListener::bind(address).with_context(|| {
                format!("{address}, for node-{}: another process listens there", member.number)
            })?;
        }
        member.spawn(args)?;
    }
    for member in &mut members {
        member.until_ready().await?;
    }
    line(format!("orchestra dev is ready: {} nodes\n", args.nodes));
    for member in &members {
        line(format!(
            "  node-{}  HTTP http://{}  gRPC http://{}  pid {}  {}",
            member.number,
            member.address(0),
            member.address(1),
            member.child.as_ref().and_then(Child::id).unwrap_or(0),
            member.directory.display()
        ));
    }
    if load(&args.common)?.providers.is_empty() {
        line("\nNo provider is configured: a SIMULATED vendor makes up the answers.");
    }
    line(format!(
        "\nTry:\n  orchestra cluster status\n  kill -9 $(cat {}/pid)    # then start a session at any other node\n  \
         orchestra start \"Add a health endpoint\" --workdir . --out ./out --wait --url http://{}",
        members[0].directory.display(),
        members[1].address(0)
    ));
    what_next("");
    supervise(args, &mut members).await
}

/// Watches the nodes until told to stop, then stops them.
async fn supervise(args: &DevArgs, members: &mut [Member]) -> anyhow::Result<ExitCode> {
    let mut terminate = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    let mut tick = tokio::time::interval(LOOK_INTERVAL);
    loop {
        tokio::select! {
            _ = terminate.recv() => break,
            interrupted = tokio::signal::ctrl_c() => {
                interrupted?;
                break;
            }
            _ = tick.tick() => {}
        }
        for member in members.iter_mut() {
            let Some(status) = member.ended()? else { continue };
            if args.restart {
                line(format!("node-{} ended with {status}; it is started again", member.number));
                member.spawn(args)?;
            } else {
                line(format!(
                    "node-{} ended with {status}; it stays down (--restart starts it again)",
                    member.number
                ));
            }
        }
        if members.iter().all(|member| member.child.is_none()) {
            bail!("no node is left");
        }
    }
    line("stopping the nodes");
    for member in members.iter() {
        let pid = member.child.as_ref().and_then(Child::id).and_then(|pid| i32::try_from(pid).ok());
        if let Some(pid) = pid.and_then(Pid::from_raw) {
            // Gone already, it is gone.
            let _ = kill_process(pid, Signal::TERM);
        }
    }
    for member in members.iter_mut() {
        if let Some(child) = member.child.as_mut() {
            child.wait().await?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
