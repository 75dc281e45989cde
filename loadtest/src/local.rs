//! Benches of a whole node in this process: real Raft, real log with fsync, real engine; the provider answers
//! at once.

use std::{
    collections::{BTreeMap, HashMap},
    net::TcpListener,
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::bail;
use consensus::{Clock, Leadership, Member, Node, NodeOptions, Observer, SystemClock};
use engine::{Engine, Workers, workers::Patience};
use ids::{NodeId, RegionId, SessionId, ShardId};
use machine::{Command, Definition, Outcome};
use providers::{
    BreakerOptions, CallFuture, Completion, Link, Prices, Provider, ProviderOptions, Redactor, Request,
    Router, RouterOptions,
};
use storage::Identity;
use tokio::{
    sync::{Mutex, oneshot},
    time::Instant,
};

use crate::{
    drive,
    layers::{THREE_STEPS, definition, start_command},
};

const SHARDS: u16 = 4;

/// A vendor that answers at once, in process.
struct AtOnce;

impl Provider for AtOnce {
    fn complete<'a>(&'a self, _request: &'a Request) -> CallFuture<'a> {
        Box::pin(async {
            Ok(Completion {
                text: "an answer of a usual size, a hundred bytes or so, as a model gives it".into(),
                tokens_in: 20,
                tokens_out: 20,
            })
        })
    }

    fn is_simulated(&self) -> bool {
        true
    }
}

type Waiting = Arc<Mutex<HashMap<SessionId, oneshot::Sender<()>>>>;

struct Local {
    node: Node,
    engines: Vec<Engine>,
    definition: Arc<Definition>,
    waiting: Waiting,
    next: AtomicU64,
}

impl Local {
    async fn start(path: &Path, source: &str, observer: Arc<dyn Observer>) -> anyhow::Result<Self> {
        let options = NodeOptions {
            path: path.to_owned(),
            identity: Identity {
                cluster: 1,
                node: NodeId(1),
                region: RegionId(0),
                shards: SHARDS,
                joined: false,
            },
            member: Member::default(),
            tls: None,
            join: vec![],
            flush_interval: Duration::from_secs(30),
            log_entries_kept: 1_000,
            intake_bytes_per_second: 1 << 30,
            free_bytes_min: 0,
            block_cache_bytes: 64 << 20,
            observer,
        };
        let clock: Arc<dyn Clock> = Arc::new(SystemClock);
        let node = Node::start(options, TcpListener::bind(("127.0.0.1", 0))?, Arc::clone(&clock)).await?;
        let provider = ProviderOptions {
            provider: Arc::new(AtOnce),
            concurrency: 4096,
            breaker: BreakerOptions::default(),
        };
        let link = Link { provider: "at-once".into(), model: "m".into() };
        let router = Arc::new(Router::new(
            BTreeMap::from([("at-once".to_owned(), provider)]),
            RouterOptions {
                roles: BTreeMap::from([("default".to_owned(), vec![link])]),
                prices: Prices::default(),
                redactor: Redactor::default(),
            },
        )?);
        let (definition, waiting) = (definition(source), Waiting::default());
        let mut engines = Vec::new();
        let groups = node.groups().values().cloned();
        let workers = Workers::start(node.peers(), groups, Arc::clone(&clock), Patience::default());
        let workers = Arc::new(workers);
        for group in node.groups().values() {
            let mut leadership = group.leadership();
            leadership.wait_for(|lead| matches!(lead, Leadership::Here { .. })).await?;
            let (router, clock, workers) = (Arc::clone(&router), Arc::clone(&clock), Arc::clone(&workers));
            engines.push(Engine::start(group.clone(), router, clock, workers));
            let mut news = group.effects().watch();
            let waiting = Arc::clone(&waiting);
            tokio::spawn(async move {
                loop {
                    match news.recv().await {
                        Ok(watch) if watch.ended => {
                            if let Some(done) = waiting.lock().await.remove(&watch.session) {
                                // Whoever waited may have given up.
                                let _ = done.send(());
                            }
                        }
                        Ok(_) | Err(tokio::sync::broadcast::error::RecvError::Lagged(_)) => {}
                        Err(tokio::sync::broadcast::error::RecvError::Closed) => return,
                    }
                }
            });
            group.propose(Command::PutDefinition(Arc::clone(&definition))).await?;
        }
        Ok(Self { node, engines, definition, waiting, next: AtomicU64::new(0) })
    }

    /// Runs a session to its end.
    async fn session(&self) -> anyhow::Result<()> {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let shard = ShardId(u16::try_from(number % u64::from(SHARDS))?);
        let id = SessionId::new(RegionId(0), shard, rand::random());
        let (done, ended) = oneshot::channel();
        self.waiting.lock().await.insert(id, done);
        match self.node.groups()[&shard].propose(start_command(id, &self.definition)).await? {
            Outcome::Started { created: true, .. } => {}
            other => bail!("a start had the outcome {other:?}"),
        }
        ended.await?;
        Ok(())
    }

    async fn stop(self) {
        drop(self.engines);
        self.node.stop().await;
    }
}

/// Steps a second with so many sessions under way, over so many seconds after a warm-up, while somebody observes.
pub(crate) async fn throughput(
    directory: &Path,
    (clients, seconds): (usize, u64),
    observer: Arc<dyn Observer>,
) -> anyhow::Result<f64> {
    let temp = tempfile::tempdir_in(directory)?;
    let local = Arc::new(Local::start(temp.path(), THREE_STEPS, observer).await?);
    let of_clients = Arc::clone(&local);
    let call = move |_, _| {
        let local = Arc::clone(&of_clients);
        async move { local.session().await }
    };
    let driven = drive::closed(clients, seconds, call).await?;
    if let Some(local) = Arc::into_inner(local) {
        local.stop().await;
    }
    Ok(3.0 * driven.per_second)
}

/// The median time of a session, in milliseconds, with one client.
pub(crate) async fn one_client_p50(directory: &Path, sessions: u32) -> anyhow::Result<f64> {
    let temp = tempfile::tempdir_in(directory)?;
    let local = Local::start(temp.path(), THREE_STEPS, Arc::new(())).await?;
    for _ in 0..50 {
        local.session().await?;
    }
    let mut took = hdrhistogram::Histogram::<u64>::new(3)?;
    for _ in 0..sessions {
        let started = Instant::now();
        local.session().await?;
        took.record(u64::try_from(started.elapsed().as_micros())?)?;
    }
    local.stop().await;
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a session")]
    let p50 = took.value_at_quantile(0.5) as f64 / 1000.0;
    Ok(p50)
}

/// Seconds from opening a directory with that many waiting sessions to leading all its shards.
pub(crate) async fn restarts(directory: &Path, sessions: u64, runs: usize) -> anyhow::Result<Vec<f64>> {
    const WAITS: &str = "name: waits\nsteps:\n  - {id: a, wait: {signal: never}}\n";
    let temp = tempfile::tempdir_in(directory)?;
    let local = Arc::new(Local::start(temp.path(), WAITS, Arc::new(())).await?);
    let starters: Vec<_> = (0..256u64)
        .map(|starter| {
            let local = Arc::clone(&local);
            tokio::spawn(async move {
                for number in (starter..sessions).step_by(256) {
                    let shard = ShardId(u16::try_from(number % u64::from(SHARDS))?);
                    let id = SessionId::new(RegionId(0), shard, number.into());
                    local.node.groups()[&shard].propose(start_command(id, &local.definition)).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    for starter in starters {
        starter.await??;
    }
    match Arc::into_inner(local) {
        Some(local) => local.stop().await,
        None => bail!("the node is still in use"),
    }
    let mut came = Vec::new();
    for _ in 0..runs {
        let started = Instant::now();
        let local = Local::start(temp.path(), WAITS, Arc::new(())).await?;
        came.push(started.elapsed().as_secs_f64());
        local.stop().await;
    }
    Ok(came)
}
