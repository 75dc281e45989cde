//! A cluster of real node processes on this machine.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, bail};
use serde_json::Value;

use crate::{NodeProcess, NodeSpec, free_address, wait_until};

/// How long a cluster may take for anything: an election, a join, a restart.
const PATIENCE: Duration = Duration::from_secs(60);

/// Where a node lives.
#[derive(Debug, Clone)]
pub struct Place {
    /// Where HTTP listens.
    pub http: SocketAddr,
    /// Where gRPC listens.
    pub grpc: SocketAddr,
    /// Where its peers reach it.
    pub peer: SocketAddr,
    /// A command that runs what follows it there; empty for this machine as it is.
    pub command: Vec<String>,
    /// Variables in its environment.
    pub env: Vec<(String, String)>,
    /// The program, if it is not the one under test.
    pub program: Option<PathBuf>,
}

/// Gives nodes their places.
pub trait Hosts: Send + Sync {
    /// The place of a new node whose configuration, log and data go into a directory.
    ///
    /// # Errors
    ///
    /// There is none.
    fn place(&mut self, number: usize, directory: &Path) -> anyhow::Result<Place>;

    /// The token that the nodes ask of clients.
    fn token(&self) -> Option<String> {
        None
    }
}

/// Every node on loopback, with ports of its own.
#[derive(Debug, Clone, Copy)]
pub struct Loopback;

impl Hosts for Loopback {
    fn place(&mut self, _: usize, _: &Path) -> anyhow::Result<Place> {
        Ok(Place {
            http: free_address()?,
            grpc: free_address()?,
            peer: free_address()?,
            command: Vec::new(),
            env: Vec::new(),
            program: None,
        })
    }
}

/// A cluster. All its nodes are killed when this is dropped.
pub struct Cluster {
    directory: PathBuf,
    config: String,
    http: reqwest::Client,
    token: Option<String>,
    hosts: Box<dyn Hosts>,
    nodes: Vec<Slot>,
}

impl std::fmt::Debug for Cluster {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cluster").field("directory", &self.directory).finish_non_exhaustive()
    }
}

#[derive(Debug)]
struct Slot {
    spec: NodeSpec,
    process: Option<NodeProcess>,
    paused: bool,
    /// Whether it belongs to the cluster.
    member: bool,
}

impl Cluster {
    /// Starts nodes with one configuration, and waits until all are voters of every shard.
    ///
    /// # Errors
    ///
    /// They do not start; the end of a log is part of the error.
    pub async fn start(directory: &Path, count: usize, config: &str) -> anyhow::Result<Self> {
        Self::start_on(Box::new(Loopback), directory, count, config).await
    }

    /// As [`Cluster::start`], with nodes at other places.
    ///
    /// # Errors
    ///
    /// They do not start; the end of a log is part of the error.
    pub async fn start_on(
        hosts: Box<dyn Hosts>,
        directory: &Path,
        count: usize,
        config: &str,
    ) -> anyhow::Result<Self> {
        let token = hosts.token();
        let http = client(token.as_deref())?.timeout(Duration::from_secs(5)).build()?;
        let mut cluster = Self {
            directory: directory.to_owned(),
            config: config.to_owned(),
            http,
            token,
            hosts,
            nodes: Vec::new(),
        };
        let first = cluster.new_slot(&[])?;
        cluster.start_slot(first).await?;
        for _ in 1..count {
            cluster.add().await?;
        }
        cluster.until_whole().await?;
        Ok(cluster)
    }

    fn new_slot(&mut self, join: &[String]) -> anyhow::Result<usize> {
        let number = self.nodes.len();
        let directory = self.directory.join(format!("node-{number}"));
        let Place { http, grpc, peer, command, env, program } = self.hosts.place(number, &directory)?;
        let spec = NodeSpec {
            directory,
            http,
            grpc,
            peer,
            command,
            program,
            name: format!("node-{number}"),
            join: join.to_vec(),
            config: self.config.clone(),
            env,
        };
        self.nodes.push(Slot { spec, process: None, paused: false, member: true });
        Ok(number)
    }

    async fn start_slot(&mut self, number: usize) -> anyhow::Result<()> {
        let spec = self.nodes[number].spec.clone();
        self.nodes[number].process = Some(NodeProcess::start_spec(&spec).await?);
        Ok(())
    }

    /// Starts another node, which joins; its number.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub async fn add(&mut self) -> anyhow::Result<usize> {
        self.add_with_env(&[]).await
    }

    /// Starts another node with variables in its environment, which joins; its number.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub async fn add_with_env(&mut self, env: &[(String, String)]) -> anyhow::Result<usize> {
        let join: Vec<String> =
            self.members().into_iter().map(|number| self.nodes[number].spec.peer.to_string()).collect();
        let number = self.new_slot(&join)?;
        self.nodes[number].spec.env.extend_from_slice(env);
        self.start_slot(number).await?;
        Ok(number)
    }

    /// Makes a node of a copy of the data of another one, which does not run. The copy is not started; its number.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn copy(&mut self, of: usize) -> anyhow::Result<usize> {
        let number = self.new_slot(&[])?;
        self.nodes[number].member = false;
        let (from, to) = (&self.nodes[of].spec.directory, &self.nodes[number].spec.directory);
        std::fs::create_dir_all(to)?;
        copy_directory(&from.join("data"), &to.join("data"))?;
        Ok(number)
    }

    /// Deletes the data of a node that does not run.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn wipe(&self, number: usize) -> anyhow::Result<()> {
        // The directory itself stays: it may be where a disk is mounted.
        for entry in std::fs::read_dir(self.nodes[number].spec.directory.join("data"))? {
            let entry = entry?;
            if entry.file_type()?.is_dir() {
                std::fs::remove_dir_all(entry.path())?;
            } else {
                std::fs::remove_file(entry.path())?;
            }
        }
        Ok(())
    }

    /// The token that its nodes ask of clients.
    #[must_use]
    pub fn token(&self) -> Option<&str> {
        self.token.as_deref()
    }

    /// The nodes that belong to it, running or not.
    #[must_use]
    pub fn members(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|number| self.nodes[*number].member).collect()
    }

    /// The URL of a node.
    #[must_use]
    pub fn url(&self, number: usize) -> String {
        format!("http://{}", self.nodes[number].spec.http)
    }

    /// Where the peers of a node reach it.
    #[must_use]
    pub fn peer(&self, number: usize) -> String {
        self.nodes[number].spec.peer.to_string()
    }

    /// Whom a node asks to be let in, from its next start on.
    pub fn set_join(&mut self, number: usize, join: Vec<String>) {
        self.nodes[number].spec.join = join;
    }

    /// What program a node runs from its next start on; `None` for the one under test.
    pub fn set_program(&mut self, number: usize, program: Option<PathBuf>) {
        self.nodes[number].spec.program = program;
    }

    /// Where a node serves gRPC.
    #[must_use]
    pub fn grpc_url(&self, number: usize) -> String {
        format!("http://{}", self.nodes[number].spec.grpc)
    }

    /// The URLs of all its nodes.
    #[must_use]
    pub fn urls(&self) -> Vec<String> {
        self.members().into_iter().map(|number| self.url(number)).collect()
    }

    /// Kills a node with SIGKILL.
    ///
    /// # Errors
    ///
    /// It does not run.
    pub fn kill(&mut self, number: usize) -> anyhow::Result<()> {
        self.nodes[number].paused = false;
        self.nodes[number].process.take().context("the node does not run")?.kill()
    }

    /// Asks a node to stop, and waits; its exit code.
    ///
    /// # Errors
    ///
    /// It does not stop.
    pub async fn stop(&mut self, number: usize) -> anyhow::Result<Option<i32>> {
        self.nodes[number].process.take().context("the node does not run")?.stop(PATIENCE).await
    }

    /// Starts a node again.
    ///
    /// # Errors
    ///
    /// It does not start.
    pub async fn restart(&mut self, number: usize) -> anyhow::Result<()> {
        self.start_slot(number).await
    }

    /// Starts a node again, without waiting.
    ///
    /// # Errors
    ///
    /// The system refuses.
    pub fn spawn(&mut self, number: usize) -> anyhow::Result<()> {
        let process = NodeProcess::spawn(&self.nodes[number].spec)?;
        self.nodes[number].process = Some(process);
        Ok(())
    }

    /// Stops a node's clock, as it were: it does nothing until [`Cluster::resume`].
    ///
    /// # Errors
    ///
    /// It does not run.
    pub fn pause(&mut self, number: usize) -> anyhow::Result<()> {
        self.nodes[number].paused = true;
        self.nodes[number].process.as_ref().context("the node does not run")?.pause()
    }

    /// Lets a paused node go on.
    ///
    /// # Errors
    ///
    /// It does not run.
    pub fn resume(&mut self, number: usize) -> anyhow::Result<()> {
        self.nodes[number].paused = false;
        self.nodes[number].process.as_ref().context("the node does not run")?.resume()
    }

    /// Takes a node out of the cluster, through another one. It goes on running.
    ///
    /// # Errors
    ///
    /// Refused.
    pub async fn remove(&mut self, number: usize) -> anyhow::Result<()> {
        let through = self.running().into_iter().find(|of| *of != number).context("no other node runs")?;
        self.remove_through(through, number).await?;
        self.nodes[number].member = false;
        Ok(())
    }

    async fn remove_through(&self, through: usize, number: usize) -> anyhow::Result<()> {
        let body = serde_json::json!({"node": self.nodes[number].spec.name});
        let url = format!("{}/v1/cluster/remove", self.url(through));
        let answer = self.http.post(url).timeout(PATIENCE).json(&body).send().await?;
        if !answer.status().is_success() {
            bail!("remove: {}", answer.text().await?);
        }
        Ok(())
    }

    /// Takes out whoever has the name of a node, which stays a member: it comes back under that name.
    ///
    /// # Errors
    ///
    /// It can not be taken out.
    pub async fn remove_by_name(&self, number: usize) -> anyhow::Result<()> {
        let mut reason = String::new();
        let removed = wait_until("the node to be taken out", PATIENCE, async || {
            for through in self.running().into_iter().filter(|of| *of != number) {
                match self.remove_through(through, number).await {
                    Ok(()) => return Some(()),
                    Err(error) => reason = error.to_string(),
                }
            }
            None
        });
        removed.await.with_context(|| reason)
    }

    /// Hands over the lead of a shard, through any node.
    ///
    /// # Errors
    ///
    /// Refused, or no answer.
    pub async fn transfer(&self, shard: u16) -> anyhow::Result<()> {
        let through = *self.running().first().context("no node runs")?;
        let url = format!("{}/v1/cluster/transfer-leader", self.url(through));
        let answer = self.http.post(url).json(&serde_json::json!({"shard": shard})).send().await?;
        if !answer.status().is_success() {
            bail!("transfer: {}", answer.text().await?);
        }
        Ok(())
    }

    fn running(&self) -> Vec<usize> {
        let runs = |number: &usize| {
            let slot = &self.nodes[*number];
            slot.process.is_some() && !slot.paused && slot.member
        };
        (0..self.nodes.len()).filter(runs).collect()
    }

    /// What a node says of the cluster.
    ///
    /// # Errors
    ///
    /// No answer.
    pub async fn status(&self, number: usize) -> anyhow::Result<Value> {
        let answer = self.http.get(format!("{}/v1/cluster", self.url(number))).send().await?;
        Ok(answer.error_for_status()?.json().await?)
    }

    /// The node that leads a shard, as any of them says that does not mean one that is gone.
    pub async fn leader(&self, shard: u16) -> Option<usize> {
        for number in self.running() {
            let Ok(status) = self.status(number).await else { continue };
            let leader = status["shards"][shard.to_string()]["leader"].clone();
            let nodes = status["nodes"].as_array()?;
            let name = nodes.iter().find(|node| node["id"] == leader).map(|node| &node["name"]);
            let Some(name) = name.and_then(Value::as_str) else { continue };
            let is_it = |slot: &Slot| slot.spec.name == name && slot.process.is_some();
            if let Some(leader) = self.nodes.iter().position(is_it) {
                return Some(leader);
            }
        }
        None
    }

    /// Waits until every member runs, is ready, and is a voter of every shard in the eyes of all.
    ///
    /// # Errors
    ///
    /// It does not come to pass; the ends of the logs are part of the error.
    pub async fn until_whole(&self) -> anyhow::Result<()> {
        let members = self.members();
        let whole = wait_until("the cluster to be whole", PATIENCE, async || {
            for number in &members {
                let status = self.status(*number).await.ok()?;
                for (_, shard) in status["shards"].as_object()? {
                    let voters = shard["voters"].as_array()?.len();
                    if shard["leader"].is_null() || voters != members.len() {
                        return None;
                    }
                }
            }
            Some(())
        });
        whole.await.with_context(|| self.log_tails())
    }

    /// Waits until a node says that the clocks of the others are ahead of its own by so much, give or take a second.
    ///
    /// # Errors
    ///
    /// It does not; the ends of the logs are part of the error.
    pub async fn until_clock_is_off(&self, number: usize, ms: i64) -> anyhow::Result<()> {
        let off = wait_until("the clocks to be compared", PATIENCE, async || {
            let offset = self.status(number).await.ok()?["clock_offset_ms"].as_i64()?;
            (offset.abs_diff(ms) < 1_000).then_some(())
        });
        off.await.with_context(|| self.log_tails())
    }

    /// Waits until every lead is where it belongs: that of shard *n* with voter *n* modulo their count, by id. From
    /// then on no lead moves by itself.
    ///
    /// # Errors
    ///
    /// They are not; the ends of the logs are part of the error.
    pub async fn until_spread(&self) -> anyhow::Result<()> {
        let spread = wait_until("leads to be where they belong", PATIENCE, async || {
            let status = self.status(*self.running().first()?).await.ok()?;
            let is_there = |(number, shard): (&String, &Value)| {
                let voters = shard["voters"].as_array()?;
                let place = voters.get(number.parse::<usize>().ok()? % self.members().len())?;
                (voters.len() == self.members().len() && shard["leader"] == *place).then_some(())
            };
            status["shards"].as_object()?.iter().map(is_there).collect::<Option<()>>()
        });
        spread.await.with_context(|| self.log_tails())
    }

    /// Waits until a node writes again.
    ///
    /// # Errors
    ///
    /// It does not; the ends of the logs are part of the error.
    pub async fn until_writable(&self, number: usize) -> anyhow::Result<()> {
        let writes = wait_until("writes to go on", PATIENCE, async || {
            self.status(number).await.ok()?["writes_stopped"].is_null().then_some(())
        });
        writes.await.with_context(|| self.log_tails())
    }

    /// Brings the newest feature level into force, by a node.
    ///
    /// # Errors
    ///
    /// Refused, or no answer.
    pub async fn finalize(&self, through: usize) -> anyhow::Result<u64> {
        let answer = self.http.post(format!("{}/v1/cluster/finalize", self.url(through))).send().await?;
        let (status, text) = (answer.status(), answer.text().await?);
        anyhow::ensure!(status.is_success(), "finalize: {status} {text}");
        serde_json::from_str::<Value>(&text)?["feature_level"].as_u64().context("no level")
    }

    /// How often a text is in the logs of all nodes that there ever were.
    #[must_use]
    pub fn count_in_logs(&self, text: &str) -> usize {
        let count = |slot: &Slot| {
            let log = std::fs::read_to_string(slot.spec.directory.join("log")).unwrap_or_default();
            log.matches(text).count()
        };
        self.nodes.iter().map(count).sum()
    }

    /// The ends of all logs.
    #[must_use]
    pub fn log_tails(&self) -> String {
        let tail = |slot: &Slot| {
            let log = slot.spec.directory.join("log");
            let text = std::fs::read_to_string(log).unwrap_or_default();
            let lines: Vec<&str> = text.lines().collect();
            format!("--- {}\n{}\n", slot.spec.name, lines[lines.len().saturating_sub(15)..].join("\n"))
        };
        self.nodes.iter().map(tail).collect()
    }
}

/// Copies a directory with all that is in it to where nothing is.
///
/// # Errors
///
/// The system refuses.
pub fn copy_directory(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy_directory(&entry.path(), &target)?;
        } else {
            std::fs::copy(entry.path(), target)?;
        }
    }
    Ok(())
}

/// A client that shows a token.
///
/// # Errors
///
/// The token is not one line of text.
pub fn client(token: Option<&str>) -> anyhow::Result<reqwest::ClientBuilder> {
    let mut headers = reqwest::header::HeaderMap::new();
    if let Some(token) = token {
        headers.insert(reqwest::header::AUTHORIZATION, format!("Bearer {token}").parse()?);
    }
    Ok(reqwest::Client::builder().default_headers(headers))
}
