//! A node: the databases of a directory, and one group a shard.

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ids::{NodeId, ShardId};
use openraft::{Config, SnapshotPolicy, async_runtime::watch::WatchReceiver as _, impls::BasicNode};
use storage::{Directory, Identity, LogDb, LogOptions, StateDb, StateOptions};
use tokio::{
    runtime::Runtime,
    sync::{mpsc, watch},
};

use crate::{
    Clock, Effects, Group, Leadership,
    batcher::Batcher,
    clock::Anchor,
    raft::{LogStore, NoNetwork, Raft, StateMachine},
};

/// Commands that may wait for a shard. More are told to come back.
const PROPOSALS_LEN: usize = 8_192;
/// What a crash may have to apply again at most: time and bytes since the last flush.
const FLUSH_INTERVAL: Duration = Duration::from_secs(30);
const FLUSH_BYTES: u64 = 64 << 20;
/// How often the disk's free space is looked at, and the clock's anchor written.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
const ANCHOR_FILE: &str = "clock";

/// How a node works.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// The data directory.
    pub path: PathBuf,
    /// Who the node is, if the directory is new.
    pub identity: Identity,
    /// Where other nodes reach it.
    pub address: String,
    /// Writes stop while the disk has fewer free bytes.
    pub free_bytes_min: u64,
    /// Bytes of the state's blocks kept in memory.
    pub block_cache_bytes: usize,
}

/// Why a node can not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its directory or databases.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// Raft.
    #[error("shard {shard}: {reason}")]
    Raft {
        /// The shard.
        shard: ShardId,
        /// What openraft says.
        reason: String,
    },
    /// The system.
    #[error("start the shards' runtime")]
    Runtime(#[from] io::Error),
}

/// What a node says of itself.
#[derive(Debug, Clone)]
pub struct Status {
    /// Who leads each shard.
    pub shards: BTreeMap<ShardId, Leadership>,
    /// Why writes are stopped, if they are.
    pub writes_stopped: Option<String>,
    /// Syncs of the log since the start.
    pub log_syncs: u64,
    /// Bytes that a crash would have to apply again.
    pub unflushed_bytes: u64,
    /// Bytes of the state's table files.
    pub state_bytes: u64,
}

/// A running node.
pub struct Node {
    groups: BTreeMap<ShardId, Group>,
    state: Arc<StateDb>,
    log: Arc<LogDb>,
    directory: Directory,
    stopped: watch::Receiver<Option<String>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    /// Raft has threads of its own, so that no handler delays a heartbeat. Taken out when the node stops.
    runtime: Option<Runtime>,
}

impl Node {
    /// Opens the directory and starts its shards. A new directory becomes a cluster of one.
    ///
    /// # Errors
    ///
    /// The directory is in use, foreign, corrupt or newer; the system refuses.
    pub async fn start(options: NodeOptions, clock: Arc<dyn Clock>) -> Result<Self, Error> {
        let directory = Directory::open(&options.path, &options.identity)?;
        let identity = directory.identity().clone();
        let log_options =
            LogOptions { tail_bytes: 16 << 20, queue_len: 1024, batch_bytes: 8 << 20, sync: true };
        let log = Arc::new(LogDb::open(&options.path.join("log"), log_options)?);
        let state_options =
            StateOptions { block_cache_bytes: options.block_cache_bytes, cached_rows: 32_768 };
        let state = Arc::new(StateDb::open(&options.path.join("state"), state_options)?);
        let anchor = read_anchor(&options.path, clock.as_ref());
        let (stop, stopped) = watch::channel(None);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("raft")
            .enable_all()
            .build()?;
        let mut node = Self {
            groups: BTreeMap::new(),
            state,
            log,
            directory,
            stopped,
            tasks: Vec::new(),
            runtime: Some(runtime),
        };
        for shard in (0..identity.shards).map(ShardId) {
            let group = node.start_group(shard, &options, &clock, anchor.clone()).await?;
            node.groups.insert(shard, group);
        }
        node.tasks.push(tokio::spawn(watch_disk(node.watcher(), options, clock, stop)));
        node.tasks.push(tokio::spawn(flush_loop(node.watcher())));
        Ok(node)
    }

    async fn start_group(
        &mut self,
        shard: ShardId,
        options: &NodeOptions,
        clock: &Arc<dyn Clock>,
        anchor: Option<Anchor>,
    ) -> Result<Group, Error> {
        let node = self.directory.identity().node;
        let fail = |reason: &dyn std::fmt::Display| Error::Raft { shard, reason: reason.to_string() };
        let effects = Effects::new();
        let machine = StateMachine::with_effects(Arc::clone(&self.state), shard, effects.clone())
            .map_err(|error| fail(&error))?;
        let log_store = LogStore::new(self.log.shard(shard)?);
        let (proposals, receiver) = mpsc::channel(PROPOSALS_LEN);
        let (lead, leadership) = watch::channel(Leadership::Elsewhere { leader: None });
        let batcher_state = Arc::clone(&self.state);
        let (clock, address, machine_of_raft) = (Arc::clone(clock), options.address.clone(), machine.clone());
        let follow = leadership.clone();
        let start = async move {
            let config = Arc::new(raft_config().validate().map_err(|error| error.to_string())?);
            let raft = Raft::new(node.0, config, NoNetwork, log_store, machine_of_raft)
                .await
                .map_err(|error| error.to_string())?;
            if !raft.is_initialized().await.map_err(|error| error.to_string())? {
                let members = BTreeMap::from([(node.0, BasicNode { addr: address })]);
                raft.initialize(members).await.map_err(|error| error.to_string())?;
            }
            tokio::spawn(follow_leadership(node, raft.clone(), lead));
            let batcher = Batcher {
                shard,
                raft: raft.clone(),
                state: batcher_state,
                clock,
                anchor,
                leadership: follow,
            };
            tokio::spawn(batcher.run(receiver));
            Ok::<_, String>(raft)
        };
        let Some(runtime) = self.runtime.as_ref() else { return Err(fail(&"the node stops")) };
        let raft = runtime.spawn(start).await.map_err(|error| fail(&error))?.map_err(|error| fail(&error))?;
        Ok(Group {
            shard,
            raft,
            machine,
            proposals,
            leadership,
            effects,
            state: Arc::clone(&self.state),
            stopped: self.stopped.clone(),
        })
    }

    fn watcher(&self) -> Watcher {
        Watcher {
            groups: self.groups.values().cloned().collect(),
            log: Arc::clone(&self.log),
            state: Arc::clone(&self.state),
        }
    }

    /// Its shards.
    #[must_use]
    pub fn groups(&self) -> &BTreeMap<ShardId, Group> {
        &self.groups
    }

    /// Whom its directory belongs to.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        self.directory.identity()
    }

    /// What it says of itself.
    #[must_use]
    pub fn status(&self) -> Status {
        Status {
            shards: self.groups.iter().map(|(shard, group)| (*shard, *group.leadership.borrow())).collect(),
            writes_stopped: self.stopped.borrow().clone(),
            log_syncs: self.log.syncs(),
            unflushed_bytes: self.state.unflushed_bytes(),
            state_bytes: self.state.disk_bytes(),
        }
    }

    /// Stops its shards and makes what they have applied durable.
    pub async fn stop(mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
        }
        for (shard, group) in &self.groups {
            if let Err(error) = group.raft.shutdown().await {
                tracing::warn!(%shard, %error, "the shard did not stop cleanly");
            }
        }
        let state = Arc::clone(&self.state);
        match tokio::task::spawn_blocking(move || state.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the state was not flushed; it is applied again at the next start")
            }
            Err(error) => tracing::error!(%error, "the flush panicked"),
        }
        self.groups.clear();
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
        }
        // A runtime must not be waited for inside another.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// openraft's defaults that are wrong for many shards, or dangerous, are set here.
fn raft_config() -> Config {
    Config {
        cluster_name: "orchestra".into(),
        heartbeat_interval: 100,
        election_timeout_min: 400,
        election_timeout_max: 600,
        install_snapshot_timeout: 10_000,
        max_payload_entries: 256,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: 1_000,
        purge_batch_size: 1_024,
        // A restarted leader may have a stale state: it must win an election, and apply its log, first.
        allow_log_reversion: Some(false),
        enable_pre_vote: Some(true),
        enable_leader_restore: Some(false),
        // At least the lease and an election: an old leader's heartbeats must not block a connected quorum for ever.
        quorum_loss_probe_interval: Some(1_500),
        ..Config::default()
    }
}

/// Tells who leads. This node does only once the first entry of its term is applied.
async fn follow_leadership(node: NodeId, raft: Raft, lead: watch::Sender<Leadership>) {
    let mut metrics = raft.metrics();
    loop {
        let now = {
            let metrics = metrics.borrow_watched();
            let ready = metrics.last_applied.as_ref().is_some_and(|applied| {
                let leader = applied.committed_leader_id();
                leader.term == metrics.current_term && leader.node_id == node.0
            });
            match metrics.current_leader {
                Some(leader) if leader == node.0 && metrics.state.is_leader() && ready => {
                    Leadership::Here { term: metrics.current_term }
                }
                leader => {
                    Leadership::Elsewhere { leader: leader.filter(|leader| *leader != node.0).map(NodeId) }
                }
            }
        };
        lead.send_if_modified(|before| std::mem::replace(before, now) != now);
        if metrics.changed().await.is_err() || lead.is_closed() {
            return;
        }
    }
}

struct Watcher {
    groups: Vec<Group>,
    log: Arc<LogDb>,
    state: Arc<StateDb>,
}

fn read_anchor(path: &Path, clock: &dyn Clock) -> Option<Anchor> {
    let anchor = Anchor::from_line(&std::fs::read_to_string(path.join(ANCHOR_FILE)).ok()?)?;
    let (trusted, wall) = (anchor.trusted(clock), clock.wall());
    if trusted.0.abs_diff(wall.0) > 500_000 {
        let jump_ms = i128::from(wall.as_millis()) - i128::from(trusted.as_millis());
        tracing::warn!(%jump_ms, "the wall clock jumped while the node was down; the shards' time follows it slowly");
    }
    Some(anchor)
}

/// Stops writes, with a clear reason, while the disk is full or refuses; keeps the clock's anchor.
async fn watch_disk(
    watcher: Watcher,
    options: NodeOptions,
    clock: Arc<dyn Clock>,
    stop: watch::Sender<Option<String>>,
) {
    let mut tick = tokio::time::interval(WATCH_INTERVAL);
    loop {
        tick.tick().await;
        let path = options.path.clone();
        let line = Anchor::take(clock.as_ref()).to_line();
        let free = tokio::task::spawn_blocking(move || {
            // Lost or torn, it is as if there were none.
            let _ = std::fs::write(path.join(ANCHOR_FILE), line);
            storage::free_bytes(&path)
        });
        let reason = match free.await {
            Ok(Ok(free)) if free < options.free_bytes_min => Some(format!(
                "the disk of {} has {free} bytes free; writes go on above {}",
                options.path.display(),
                options.free_bytes_min
            )),
            Ok(Err(error)) => Some(format!("{}: {error}", options.path.display())),
            _ => watcher
                .log
                .failing()
                .or_else(|| watcher.groups.iter().find_map(|group| group.machine.failing())),
        };
        stop.send_if_modified(|before| {
            if *before == reason {
                return false;
            }
            match &reason {
                Some(reason) => tracing::error!(%reason, "writes are stopped"),
                None => tracing::info!("writes go on"),
            }
            *before = reason;
            true
        });
    }
}

/// Flushes the state of all shards at once, and lets Raft purge its log up to what every shard had applied before.
async fn flush_loop(watcher: Watcher) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut last = tokio::time::Instant::now();
    loop {
        tick.tick().await;
        if last.elapsed() < FLUSH_INTERVAL && watcher.state.unflushed_bytes() < FLUSH_BYTES {
            continue;
        }
        last = tokio::time::Instant::now();
        let captured: Vec<_> = watcher.groups.iter().map(|group| (group, group.machine.applied())).collect();
        let state = Arc::clone(&watcher.state);
        match tokio::task::spawn_blocking(move || state.flush()).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the state could not be flushed; the log is kept");
                continue;
            }
            Err(_) => continue,
        }
        for (group, applied) in captured {
            if applied.id.is_some() {
                group.machine.flushed(applied);
                // The group may have stopped.
                let _ = group.raft.trigger().snapshot().await;
            }
        }
    }
}
