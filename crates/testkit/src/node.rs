//! A node as a process of its own.

use std::{
    ffi::OsString,
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU16, Ordering},
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

/// How long a node may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(10);

/// The program of the release before this one, where `deploy/dev/previous.sh` has built it: nodes of both run in one
/// cluster.
#[must_use]
pub fn previous_binary() -> Option<PathBuf> {
    let here = std::env::current_exe().ok()?;
    let mut directories = here.ancestors().skip(1).take(3).map(|directory| directory.join("previous"));
    let mut found = std::fs::read_dir(directories.find(|directory| directory.is_dir())?).ok()?;
    found.find_map(|entry| {
        let path = entry.ok()?.path();
        (path.is_file() && path.extension().is_none_or(|extension| extension != "new")).then_some(path)
    })
}

/// The binary under test: `BINARY_UNDER_TEST`, else the one built beside the running program.
///
/// # Errors
///
/// It is not there.
pub fn binary() -> anyhow::Result<PathBuf> {
    if let Some(path) = std::env::var_os("BINARY_UNDER_TEST") {
        return Ok(path.into());
    }
    let here = std::env::current_exe().context("find the running program")?;
    let found = here
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("orchestra"))
        .find(|path| path.is_file());
    found.context(
        "the orchestra binary is not built: run `cargo build -p cli` first, or set BINARY_UNDER_TEST",
    )
}

/// An address on loopback that was free a moment ago. Its port is below those that the system gives to connections, so
/// that it stays free while a node is down.
///
/// # Errors
///
/// The system has none.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    const PORTS: std::ops::Range<u16> = 10_000..32_000;
    let span = u32::from(PORTS.end - PORTS.start);
    // Each process begins elsewhere.
    let begin = std::process::id().wrapping_mul(7_919) % span;
    for _ in 0..span {
        let place = (begin + u32::from(NEXT.fetch_add(1, Ordering::Relaxed))) % span;
        let port = PORTS.start + u16::try_from(place)?;
        let address = SocketAddr::from(([127, 0, 0, 1], port));
        if std::net::TcpListener::bind(address).is_ok() {
            return Ok(address);
        }
    }
    bail!("no port of {PORTS:?} is free")
}

/// Waits for a condition; its value.
///
/// # Errors
///
/// `what` did not happen in time.
pub async fn wait_until<T>(
    what: &str,
    timeout: Duration,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let until = Instant::now() + timeout;
    loop {
        if let Some(value) = condition().await {
            return Ok(value);
        }
        if Instant::now() >= until {
            bail!("{what} did not happen within {timeout:?}");
        }
        tokio::time::sleep(POLL).await;
    }
}

/// How a node is started.
#[derive(Debug, Clone)]
pub struct NodeSpec {
    /// Where its configuration, log and data are.
    pub directory: PathBuf,
    /// Where HTTP listens.
    pub http: SocketAddr,
    /// Where gRPC listens.
    pub grpc: SocketAddr,
    /// Where its peers reach it.
    pub peer: SocketAddr,
    /// A command that runs what follows it; empty for none.
    pub command: Vec<String>,
    /// The program, if it is not the one under test.
    pub program: Option<PathBuf>,
    /// What it is called; empty for no name.
    pub name: String,
    /// Whom it asks to be let in.
    pub join: Vec<String>,
    /// Its configuration.
    pub config: String,
    /// Variables in its environment.
    pub env: Vec<(String, String)>,
}

/// A running node. It is killed when this is dropped.
#[derive(Debug)]
pub struct NodeProcess {
    child: Child,
    http: SocketAddr,
    log: PathBuf,
}

impl NodeProcess {
    /// Starts a node of its own in `directory` with a configuration, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// It does not start; the end of its log is part of the error.
    pub async fn start(
        directory: &Path,
        http: SocketAddr,
        grpc: SocketAddr,
        config: &str,
    ) -> anyhow::Result<Self> {
        Self::start_with_env(directory, http, grpc, config, &[]).await
    }

    /// As [`NodeProcess::start`], with variables in its environment.
    ///
    /// # Errors
    ///
    /// It does not start; the end of its log is part of the error.
    pub async fn start_with_env(
        directory: &Path,
        http: SocketAddr,
        grpc: SocketAddr,
        config: &str,
        env: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let spec = NodeSpec {
            directory: directory.to_owned(),
            http,
            grpc,
            peer: SocketAddr::from(([127, 0, 0, 1], 0)),
            command: Vec::new(),
            program: None,
            name: String::new(),
            join: Vec::new(),
            config: config.to_owned(),
            env: env.to_vec(),
        };
        Self::start_spec(&spec).await
    }

    /// Starts a node, and waits until it is ready.
    ///
    /// # Errors
    ///
    /// It does not start; the end of its log is part of the error.
    pub async fn start_spec(spec: &NodeSpec) -> anyhow::Result<Self> {
        let mut node = Self::spawn(spec)?;
        let client = reqwest::Client::new();
        let url = format!("http://{}/health/ready", spec.http);
        let until = Instant::now() + START_TIMEOUT;
        loop {
            if let Some(status) = node.child.try_wait()? {
                bail!("the node ended with {status}:\n{}", node.log_tail());
            }
            if client.get(&url).send().await.is_ok_and(|answer| answer.status().is_success()) {
                return Ok(node);
            }
            if Instant::now() >= until {
                bail!("the node was not ready within {START_TIMEOUT:?}:\n{}", node.log_tail());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Starts a node without waiting.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn spawn(spec: &NodeSpec) -> anyhow::Result<Self> {
        std::fs::create_dir_all(&spec.directory)?;
        let (config, log) = (spec.directory.join("config.toml"), spec.directory.join("log"));
        std::fs::write(&config, &spec.config)?;
        let out = File::options().create(true).append(true).open(&log)?;
        let program = match &spec.program {
            Some(program) => program.clone(),
            None => binary()?,
        };
        let program = [program.into_os_string()];
        let mut words = spec.command.iter().map(OsString::from).chain(program);
        let mut command = Command::new(words.next().context("no program")?);
        command
            .args(words)
            .args(["node", "--until-stdin-closes"])
            .args(["--config".as_ref(), config.as_os_str()])
            .args(["--data-dir".as_ref(), spec.directory.join("data").as_os_str()])
            .args(["--http", &spec.http.to_string()])
            .args(["--grpc", &spec.grpc.to_string()])
            .args(["--peer", &spec.peer.to_string()]);
        if !spec.name.is_empty() {
            command.args(["--name", &spec.name]);
        }
        if !spec.join.is_empty() {
            command.args(["--join", &spec.join.join(",")]);
        }
        let child = command
            .envs(spec.env.iter().map(|(name, value)| (name, value)))
            // It ends with this process, however that ends.
            .stdin(Stdio::piped())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .context("start the node")?;
        Ok(Self { child, http: spec.http, log })
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        let pid = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw);
        Ok(kill_process(pid.context("the node's process id")?, signal)?)
    }

    /// Stops it with SIGSTOP: it does nothing until [`NodeProcess::resume`].
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.signal(Signal::STOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn resume(&self) -> anyhow::Result<()> {
        self.signal(Signal::CONT)
    }

    /// Its URL.
    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.http)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The end of its log.
    #[must_use]
    pub fn log_tail(&self) -> String {
        let text = std::fs::read_to_string(&self.log).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Kills it with SIGKILL and waits until it is gone.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn kill(mut self) -> anyhow::Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Asks it to stop (SIGTERM) and waits; its exit code.
    ///
    /// # Errors
    ///
    /// It does not stop in time.
    pub async fn stop(mut self, timeout: Duration) -> anyhow::Result<Option<i32>> {
        self.signal(Signal::TERM)?;
        let child = &mut self.child;
        let ended = wait_until("the node's end", timeout, async || child.try_wait().ok().flatten()).await;
        match ended {
            Ok(status) => Ok(status.code()),
            Err(error) => Err(error.context(self.log_tail())),
        }
    }
}

impl Drop for NodeProcess {
    fn drop(&mut self) {
        // Gone already, it is gone.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
