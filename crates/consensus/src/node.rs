//! A node: the databases of a directory, one group a shard, and the connections to its peers.

use std::{
    collections::BTreeMap,
    io,
    net::TcpListener,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::future::BoxFuture;
use ids::{NodeId, ShardId};
use machine::Read as _;
use openraft::{Config, SnapshotPolicy};
use parking_lot::RwLock;
use storage::{Directory, Identity, LogDb, LogOptions, StateDb, StateOptions};
use tls::Tls;
use tokio::{
    runtime::Runtime,
    sync::{mpsc, watch},
};

use crate::{
    Clock, ClusterClock, Effects, Group, Leadership, Member, Observer, Peers,
    batcher::{Batcher, ShardTime},
    clock::Anchor,
    disk::{self, Watcher},
    equality,
    greeting::{self, Standing},
    leadership,
    members::{self, Change, ChangeError},
    mutants::{self, Mutant},
    net::{self, Identified, Links, Pace, Service, Start, Starts},
    observer,
    raft::{LogStore, Network, Raft, StateMachine},
    versions::{self, Releases, Unsupported},
};

/// Commands that may wait for a shard. More are told to come back.
const PROPOSALS_LEN: usize = 8_192;
const WISHES_LEN: usize = 4;
/// How long what is under way in a shard is waited for when the node ends.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a node looks whether the cluster knows where it is.
const UPDATE_INTERVAL: Duration = Duration::from_secs(2);

/// How a node works.
#[derive(Debug, Clone)]
pub struct NodeOptions {
    /// The data directory.
    pub path: PathBuf,
    /// Who the node is, if the directory is new.
    pub identity: Identity,
    /// What it is called, and where it is reached.
    pub member: Member,
    /// Its certificates; without them, its peers are talked to in the clear.
    pub tls: Option<Tls>,
    /// Where members are asked to make this node one, while it is not.
    pub join: Vec<String>,
    /// Writes stop while the disk has fewer free bytes.
    pub free_bytes_min: u64,
    /// How often the state is made durable and the log shortened; sooner once 64 MiB wait.
    pub flush_interval: Duration,
    /// Entries of a shard's log that are kept, once they are in the flushed state, for nodes that are behind: one
    /// that is further behind takes in the state instead.
    pub log_entries_kept: u64,
    /// Bytes a second of others' states that it takes in.
    pub intake_bytes_per_second: u64,
    /// Bytes of the state's blocks kept in memory.
    pub block_cache_bytes: usize,
    /// Who measures what happens.
    pub observer: Arc<dyn Observer>,
}

/// Why a node can not run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Its directory or databases.
    #[error(transparent)]
    Storage(#[from] storage::Error),
    /// Its data are those of another release.
    #[error(transparent)]
    Unsupported(#[from] Unsupported),
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
    /// Why replicas of this node have stopped for good, by shard.
    pub broken: BTreeMap<ShardId, String>,
    /// Why writes are stopped, if they are.
    pub writes_stopped: Option<String>,
    /// Whether it is about to stop.
    pub draining: bool,
    /// How often it was started, with this time.
    pub starts: u64,
    /// How far the clocks of most nodes are ahead of that of this machine, where they agree.
    pub clock_offset_ms: Option<i64>,
    /// Why the others do not count on this process, if so: it was removed, or another runs with its id.
    pub refused: Option<String>,
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
    directory: Arc<Directory>,
    service: Arc<Service>,
    links: Links,
    standing: Standing,
    observer: Arc<dyn Observer>,
    pub(crate) releases: Releases,
    stopped: watch::Receiver<Option<String>>,
    tasks: Vec<tokio::task::JoinHandle<()>>,
    /// Raft has threads of its own, so that no handler delays a heartbeat. Taken out when the node stops.
    runtime: Option<Runtime>,
}

impl Node {
    /// Opens the directory, starts its shards, and listens for its peers. A new directory becomes a cluster of one,
    /// unless its identity says that it joins another.
    ///
    /// # Errors
    ///
    /// The directory is in use, foreign, corrupt or newer; the system refuses.
    pub async fn start(
        options: NodeOptions,
        listener: TcpListener,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, Error> {
        let clock = Arc::new(ClusterClock::new(clock));
        let directory = Directory::open(&options.path, &options.identity)?;
        let identity = directory.identity().clone();
        let log_options = LogOptions {
            tail_bytes: 16 << 20,
            queue_len: 1024,
            batch_bytes: 8 << 20,
            sync: !mutants::is_on(Mutant::SkipFsync),
        };
        let log = Arc::new(LogDb::open(&options.path.join("log"), log_options)?);
        let state_options =
            StateOptions { block_cache_bytes: options.block_cache_bytes, cached_rows: 32_768 };
        let state = Arc::new(StateDb::open(&options.path.join("state"), state_options)?);
        for shard in (0..identity.shards).map(ShardId) {
            versions::check(state.latest(shard).shard().machine_version)?;
        }
        options.observer.restore(state.notes()?);
        let anchor = disk::read_anchor(&options.path, clock.as_ref());
        let (stop, stopped) = watch::channel(None);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .thread_name("raft")
            .enable_all()
            .build()?;
        let start = Start { count: directory.starts(), mark: rand::random() };
        let me = Identified { cluster: identity.cluster, node: identity.node, start };
        let links = Links::new(me, runtime.handle().clone(), options.tls.clone());
        let service = Arc::new(Service {
            identity: identity.clone(),
            state: Arc::clone(&state),
            groups: RwLock::default(),
            draining: AtomicBool::new(false),
            resigning: AtomicBool::new(false),
            stopped: stopped.clone(),
            asked: RwLock::default(),
            starts: Starts::open(options.path.join("met")),
            intake: Pace::new(options.intake_bytes_per_second),
            clock: Arc::clone(&clock),
            observer: Arc::clone(&options.observer),
        });
        let mut node = Self {
            groups: BTreeMap::new(),
            state,
            log,
            directory: Arc::new(directory),
            service,
            links: links.clone(),
            standing: Standing::default(),
            observer: Arc::clone(&options.observer),
            releases: Releases::default(),
            stopped,
            tasks: Vec::new(),
            runtime: Some(runtime),
        };
        for shard in (0..identity.shards).map(ShardId) {
            let group = node.start_group(shard, &options, &links, &clock, anchor.clone()).await?;
            node.groups.insert(shard, group);
        }
        node.service.groups.write().clone_from(&node.groups);
        if let Some(tls) = &options.tls {
            node.tasks.push(tokio::spawn(tls.clone().watch()));
        }
        node.listen(listener)?;
        let watcher = Watcher {
            path: options.path.clone(),
            free_bytes_min: options.free_bytes_min,
            flush_interval: options.flush_interval,
            groups: node.groups.clone(),
            log: Arc::clone(&node.log),
            state: Arc::clone(&node.state),
        };
        node.tasks.push(tokio::spawn(disk::watch(watcher.clone(), node.clock(), stop)));
        node.tasks.push(tokio::spawn(disk::flush_loop(watcher)));
        let greeting = greeting::greet(
            node.groups.clone(),
            links.clone(),
            Arc::clone(&node.standing),
            Arc::clone(&node.releases),
            (Arc::clone(&clock), Arc::clone(&options.observer)),
        );
        node.tasks.push(tokio::spawn(greeting));
        let saving =
            observer::save(Arc::clone(&options.observer), Arc::clone(&node.state), Arc::clone(&clock));
        node.tasks.push(tokio::spawn(saving));
        node.tasks.push(tokio::spawn(leadership::balance(identity.node, Arc::clone(&node.service))));
        node.tasks.push(tokio::spawn(versions::begin(node.groups.clone())));
        node.tasks.push(tokio::spawn(equality::watch(Arc::clone(&node.service))));
        node.tasks.push(tokio::spawn(node.keep_membership(options)));
        Ok(node)
    }

    async fn start_group(
        &self,
        shard: ShardId,
        options: &NodeOptions,
        links: &Links,
        clock: &Arc<ClusterClock>,
        anchor: Option<Anchor>,
    ) -> Result<Group, Error> {
        let identity = self.directory.identity();
        let (node, founder) = (identity.node, !identity.joined);
        let fail = |reason: &dyn std::fmt::Display| Error::Raft { shard, reason: reason.to_string() };
        let effects = Effects::new();
        let observer = Arc::clone(&self.observer);
        let machine = StateMachine::watched(Arc::clone(&self.state), shard, effects.clone(), observer)
            .map_err(|error| fail(&error))?;
        let log = self.log.shard(shard)?;
        let log_store = LogStore::new(log.clone());
        disk::check_end(&options.path, shard, &log_store)?;
        let (proposals, receiver) = mpsc::channel(PROPOSALS_LEN);
        let (wishes, wished) = mpsc::channel(WISHES_LEN);
        let (lead, leadership) = watch::channel(Leadership::Elsewhere { leader: None });
        let batcher_state = Arc::clone(&self.state);
        let (member, machine_of_raft) = (options.member.clone(), machine.clone());
        let (clock, time) = (Arc::clone(clock), ShardTime::default());
        let (clock_of_batcher, time_of_batcher) = (Arc::clone(&clock), time.clone());
        let observer_of_batcher = Arc::clone(&self.observer);
        let (follow, first) = (leadership.clone(), log_store.first());
        let network = Network { shard, links: links.clone(), state: Arc::clone(&self.state), first };
        let links_of_follow = links.clone();
        let log_entries_kept = options.log_entries_kept;
        let start = async move {
            let config =
                Arc::new(raft_config(log_entries_kept).validate().map_err(|error| error.to_string())?);
            let raft = Raft::new(node.0, config, network, log_store, machine_of_raft)
                .await
                .map_err(|error| error.to_string())?;
            // Once it answers, what it says of itself (its term) is what it has read from its disk.
            let is_initialized = raft.is_initialized().await.map_err(|error| error.to_string())?;
            if founder && !is_initialized {
                let members = BTreeMap::from([(node.0, member)]);
                raft.initialize(members).await.map_err(|error| error.to_string())?;
            }
            tokio::spawn(leadership::follow(node, raft.clone(), links_of_follow, lead));
            let batcher = Batcher {
                shard,
                raft: raft.clone(),
                state: batcher_state,
                clock: clock_of_batcher,
                anchor,
                leadership: follow,
                time: time_of_batcher,
                observer: observer_of_batcher,
            };
            tokio::spawn(batcher.run(receiver, wished));
            Ok::<_, String>(raft)
        };
        let Some(runtime) = self.runtime.as_ref() else { return Err(fail(&"the node stops")) };
        let raft = runtime.spawn(start).await.map_err(|error| fail(&error))?.map_err(|error| fail(&error))?;
        Ok(Group {
            shard,
            raft,
            machine,
            log,
            links: links.clone(),
            proposals,
            wishes,
            leadership,
            rounds: Arc::default(),
            effects,
            state: Arc::clone(&self.state),
            stopped: self.stopped.clone(),
            clock,
            time,
            compared: Arc::default(),
        })
    }

    fn listen(&self, listener: TcpListener) -> Result<(), Error> {
        let Some(runtime) = self.runtime.as_ref() else { return Ok(()) };
        listener.set_nonblocking(true)?;
        let _inside = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener)?;
        let (service, tls) = (Arc::clone(&self.service), self.links.tls().cloned());
        runtime.spawn(async move {
            if let Err(error) = net::serve(listener, service, tls).await {
                tracing::error!(%error, "peers are not listened to any more");
            }
        });
        Ok(())
    }

    /// Becomes a member where the node is none yet, and tells the cluster where it is when that changes.
    fn keep_membership(&self, options: NodeOptions) -> impl Future<Output = ()> + use<> {
        let (directory, groups) = (Arc::clone(&self.directory), self.groups.clone());
        async move {
            let node = directory.identity().node;
            if directory.is_joining() {
                members::be_admitted(&groups, &options.join, node, &options.member).await;
                match directory.joined() {
                    Ok(()) => tracing::info!(%node, "this node is a member of the cluster"),
                    Err(error) => {
                        tracing::error!(%error, "it can not be remembered that the node has joined")
                    }
                }
            }
            let update = Change::Update { node, member: options.member };
            let mut tick = tokio::time::interval(UPDATE_INTERVAL);
            loop {
                tick.tick().await;
                if let Err(error) = members::change_all(&groups, &update).await {
                    tracing::warn!(%error, "the cluster does not know where this node is");
                }
            }
        }
    }

    /// Its shards.
    #[must_use]
    pub fn groups(&self) -> &BTreeMap<ShardId, Group> {
        &self.groups
    }

    /// Its data directory.
    #[must_use]
    pub fn data_directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    pub(crate) fn links(&self) -> &Links {
        &self.links
    }

    pub(crate) fn state(&self) -> Arc<StateDb> {
        Arc::clone(&self.state)
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
            broken: self.groups.iter().filter_map(|(shard, of)| Some((*shard, of.broken()?))).collect(),
            writes_stopped: self.stopped.borrow().clone(),
            draining: self.service.draining.load(Ordering::SeqCst),
            starts: self.directory.starts(),
            clock_offset_ms: self.service.clock.offset_ms(),
            refused: self.links.refused().or_else(|| self.standing.lock().clone()),
            log_syncs: self.log.syncs(),
            unflushed_bytes: self.state.unflushed_bytes(),
            state_bytes: self.state.disk_bytes(),
        }
    }

    /// What its databases say of themselves: of each, by the name of the property.
    #[must_use]
    pub fn databases(&self) -> [(&'static str, Vec<(&'static str, u64)>); 2] {
        [("log", self.log.properties()), ("state", self.state.properties())]
    }

    /// The time: that of this machine, unless most nodes say that it is wrong.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.service.clock) as Arc<dyn Clock>
    }

    /// The nodes of the region, to be asked.
    #[must_use]
    pub fn peers(&self) -> Peers {
        Peers { service: Arc::clone(&self.service), links: self.links.clone() }
    }

    /// Who answers the questions of the layer above, asked by [`Peers::ask`].
    pub fn answer_with(&self, handler: impl Fn(Bytes) -> BoxFuture<'static, Bytes> + Send + Sync + 'static) {
        *self.service.asked.write() = Some(Arc::new(handler));
    }

    /// Changes the members of every shard, each by its leader. May be repeated.
    ///
    /// # Errors
    ///
    /// Refused, or not done in time.
    pub async fn change_members(&self, change: &Change) -> Result<(), ChangeError> {
        members::change_all(&self.groups, change).await
    }

    /// Takes no more leads from others, and says so to who asks; keeps those that it has.
    pub fn begin_draining(&self) {
        self.service.draining.store(true, Ordering::SeqCst);
    }

    /// Hands over every lead, and takes none from now on.
    pub async fn drain(&self) {
        self.begin_draining();
        self.service.resigning.store(true, Ordering::SeqCst);
        leadership::hand_over_all(&self.groups).await;
    }

    /// Takes leads again.
    pub fn undrain(&self) {
        self.service.draining.store(false, Ordering::SeqCst);
        self.service.resigning.store(false, Ordering::SeqCst);
    }

    /// Stops its shards and makes what they have applied durable.
    pub async fn stop(mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
        }
        *self.service.asked.write() = None;
        self.service.groups.write().clear();
        for (shard, group) in &self.groups {
            if let Err(error) = group.raft.shutdown().await {
                tracing::warn!(%shard, %error, "the shard did not stop cleanly");
            }
        }
        let state = Arc::clone(&self.state);
        let notes = self.observer.changes(self.service.clock.wall());
        match tokio::task::spawn_blocking(move || state.put_notes(notes).and_then(|()| state.flush())).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the state was not flushed; it is applied again at the next start")
            }
            Err(error) => tracing::error!(%error, "the flush panicked"),
        }
        self.groups.clear();
        if let Some(runtime) = self.runtime.take()
            && tokio::task::spawn_blocking(move || runtime.shutdown_timeout(SHUTDOWN_TIMEOUT)).await.is_err()
        {
            tracing::error!("the shards' runtime did not stop");
        }
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
        }
        // The service holds groups, and they hold the databases.
        self.service.groups.write().clear();
        // Nothing may use the databases when the process ends: what they share is gone then. A runtime can not be
        // waited for inside another.
        if let Some(runtime) = self.runtime.take() {
            let ended = std::thread::spawn(move || runtime.shutdown_timeout(SHUTDOWN_TIMEOUT)).join();
            if ended.is_err() {
                tracing::error!("the shards' runtime did not stop");
            }
        }
    }
}

impl std::fmt::Debug for Node {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Node").field("directory", &self.directory).finish_non_exhaustive()
    }
}

/// The id of this node among its peers, for who only has the groups.
impl Group {
    /// The node that this replica is on.
    #[must_use]
    pub fn node(&self) -> NodeId {
        self.links.me().node
    }
}

/// openraft's defaults that are wrong for many shards, or dangerous, are set here.
fn raft_config(log_entries_kept: u64) -> Config {
    Config {
        cluster_name: "orchestra".into(),
        heartbeat_interval: 100,
        // A follower waits for the longer one, and then for a time between the two, before it asks for votes.
        election_timeout_min: 300,
        election_timeout_max: 500,
        install_snapshot_timeout: 10_000,
        max_payload_entries: 256,
        snapshot_policy: SnapshotPolicy::Never,
        max_in_snapshot_log_to_keep: log_entries_kept,
        purge_batch_size: log_entries_kept.clamp(1, 1_024),
        // Whoever lost its disk is not listened to under its old id. Should one get by, it is given what it lacks:
        // the leader must not give up over it.
        allow_log_reversion: Some(true),
        enable_pre_vote: Some(true),
        // A restarted leader may have a stale state: it must win an election, and apply its log, first.
        enable_leader_restore: Some(false),
        // At least the lease and an election: an old leader's heartbeats must not block a connected quorum for ever.
        quorum_loss_probe_interval: Some(1_500),
        ..Config::default()
    }
}
