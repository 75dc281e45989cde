//! A node as a process of its own.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context as _, bail};
use rustix::process::{Pid, Signal, kill_process};
use tokio::time::Instant;

/// How long a node may take to start.
const START_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks at a condition.
const POLL: Duration = Duration::from_millis(10);

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

/// An address on loopback that was free a moment ago.
///
/// # Errors
///
/// The system has none.
pub fn free_address() -> anyhow::Result<SocketAddr> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?)
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

/// A running node. It is killed when this is dropped.
#[derive(Debug)]
pub struct NodeProcess {
    child: Child,
    http: SocketAddr,
    log: PathBuf,
}

impl NodeProcess {
    /// Starts a node in `directory` with a configuration, to which the addresses and the data directory are added,
    /// and waits until it is ready.
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
        let mut node = Self::spawn(directory, http, grpc, config, env)?;
        let client = reqwest::Client::new();
        let url = format!("http://{http}/health/ready");
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
    pub fn spawn(
        directory: &Path,
        http: SocketAddr,
        grpc: SocketAddr,
        config: &str,
        env: &[(String, String)],
    ) -> anyhow::Result<Self> {
        std::fs::create_dir_all(directory)?;
        let (config_path, log) = (directory.join("config.toml"), directory.join("log"));
        std::fs::write(&config_path, config)?;
        let out = File::options().create(true).append(true).open(&log)?;
        let child = Command::new(binary()?)
            .arg("node")
            .args(["--config".as_ref(), config_path.as_os_str()])
            .args(["--data-dir".as_ref(), directory.join("data").as_os_str()])
            .args(["--http", &http.to_string(), "--grpc", &grpc.to_string()])
            .envs(env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(out.try_clone()?)
            .stderr(out)
            .spawn()
            .context("start the node")?;
        Ok(Self { child, http, log })
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
        let pid =
            i32::try_from(self.child.id()).ok().and_then(Pid::from_raw).context("the node's process id")?;
        kill_process(pid, Signal::TERM)?;
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
