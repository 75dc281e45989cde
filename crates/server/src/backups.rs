//! Checkpoints of this node, and backups on a schedule: the leader of shard 0 makes them, every node watches their age.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ::backup::{File, Manifest, Shard, Source, Store};
use bytes::Bytes;
use consensus::{Leadership, Node, Pace, backup::Error};
use futures_util::Stream;
use ids::{ShardId, Timestamp};
use tokio_util::io::ReaderStream;

use crate::{config, wiring::App};

/// Checkpoints that are kept, until they are ended or newer ones are made: each holds on to table files.
const CHECKPOINTS_MAX: usize = 2;
/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;
/// The shard whose leader makes the backups.
const OF_SHARD: ShardId = ShardId(0);

/// Where checkpoints are.
pub(crate) fn directory(node: &Node) -> PathBuf {
    node.data_directory().join("checkpoints")
}

/// Makes a checkpoint of every shard, with all that was acknowledged before.
pub(crate) async fn checkpoint(node: &Node, config: &serde_json::Value) -> Result<Manifest, Error> {
    let (all, now) = (directory(node), node.clock().wall());
    std::fs::create_dir_all(&all)?;
    let entries: Result<Vec<_>, _> = all.read_dir()?.collect();
    let mut others: Vec<PathBuf> = entries?.into_iter().map(|entry| entry.path()).collect();
    others.sort();
    for old in others.iter().take((others.len() + 1).saturating_sub(CHECKPOINTS_MAX)) {
        std::fs::remove_dir_all(old)?;
    }
    // Ids in the order of time.
    let id = format!("{:020}-{:08}", now.0, rand::random::<u32>() % 100_000_000);
    let made = node.checkpoint(&all.join(&id)).await?;
    let identity = node.identity();
    let shard = |of: consensus::backup::ShardAt| Shard {
        shard: of.shard.0,
        position: of.position.0,
        digest: of.digest.to_string(),
    };
    let file = |of: storage::CheckpointFile| File {
        name: of.name,
        bytes: of.bytes,
        shared: of.immutable,
        path: String::new(),
        sha256: String::new(),
    };
    Ok(Manifest {
        format: ::backup::FORMAT,
        id,
        created_at: now.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        cluster: format!("{:032x}", identity.cluster),
        region: identity.region.0,
        database: made.database,
        shards: made.shards.into_iter().map(shard).collect(),
        files: made.files.into_iter().map(file).collect(),
        config: config.clone(),
    })
}

/// A checkpoint on the disk of this node.
struct OnDisk(PathBuf);

impl Source for OnDisk {
    async fn open(
        &self,
        name: &str,
    ) -> Result<impl Stream<Item = Result<Bytes, String>> + Send + Unpin, String> {
        use futures_util::StreamExt as _;
        let opened = tokio::fs::File::open(self.0.join(name)).await.map_err(|error| error.to_string())?;
        let parts = ReaderStream::with_capacity(opened, READ_BYTES);
        Ok(parts.map(|part| part.map_err(|error| error.to_string())))
    }
}

/// What is known of the backups on a schedule.
#[derive(Debug, Default)]
pub(crate) struct Schedule {
    newest: Mutex<Option<(String, Timestamp)>>,
    overdue: AtomicBool,
    /// Whether there is a schedule.
    used: AtomicBool,
}

impl Schedule {
    /// The newest backup, and when it was begun.
    pub(crate) fn newest(&self) -> Option<(String, Timestamp)> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Whether there is a schedule.
    pub(crate) fn is_used(&self) -> bool {
        self.used.load(Ordering::Relaxed)
    }

    fn learn(&self, newest: Option<(String, Timestamp)>) {
        *self.newest.lock().unwrap_or_else(PoisonError::into_inner) = newest;
    }

    /// Looks whether the newest backup that is known of, or else the time that none has been known of, is too old;
    /// whether that is news.
    fn judge(&self, watched_since: Timestamp, now: Timestamp, every: Duration) -> bool {
        let at = self.newest().map_or(watched_since, |(_, at)| at);
        let is_overdue = age(at, now) >= 2 * every;
        !self.overdue.swap(is_overdue, Ordering::Relaxed) && is_overdue
    }

    /// Whether there should have been another by now.
    pub(crate) fn is_overdue(&self) -> bool {
        self.overdue.load(Ordering::Relaxed)
    }
}

/// Makes backups on a schedule while this node leads shard 0, and watches their age in any case, as long as it runs.
pub(crate) async fn run(app: Arc<App>, of: config::Backup, every: Duration) {
    app.backups.used.store(true, Ordering::Relaxed);
    let begun = app.sessions.node().clock().wall();
    let mut tick = tokio::time::interval((every / 10).clamp(Duration::from_secs(1), Duration::from_secs(60)));
    let mut stopping = app.stopping.clone();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            // The sender ends with the node.
            _ = stopping.wait_for(|stop| *stop) => return,
        }
        // Whatever comes of this turn: also where the store can not be reached, backups grow old.
        let now = app.sessions.node().clock().wall();
        if app.backups.judge(begun, now, every) {
            tracing::error!(to = of.to, ?every, "the newest backup is too old");
        }
        tokio::select! {
            made = turn(&app, &of, every) => if let Err(error) = made {
                tracing::error!(%error, to = of.to, "no backup was made");
            },
            // One that was begun is no backup, and the next one uses what it has written.
            _ = stopping.wait_for(|stop| *stop) => return,
        }
    }
}

async fn turn(app: &App, of: &config::Backup, every: Duration) -> Result<(), ::backup::Error> {
    let (store, node, schedule) = (Store::open(&of.to)?, app.sessions.node(), &app.backups);
    let newest = store.newest().await?;
    let begun = newest.as_ref().and_then(|manifest| Some((manifest.id.clone(), time_of(&manifest.id)?)));
    let is_due = begun.as_ref().is_none_or(|(_, at)| age(*at, node.clock().wall()) >= every);
    schedule.learn(begun);
    let leads = node
        .groups()
        .get(&OF_SHARD)
        .is_some_and(|group| matches!(*group.leadership().borrow(), Leadership::Here { .. }));
    if !is_due || !leads {
        return Ok(());
    }
    let manifest = checkpoint(node, &app.config).await?;
    let at = directory(node).join(&manifest.id);
    let pace = Pace::new(of.mib_per_second << 20);
    let made = ::backup::create(&store, &OnDisk(at.clone()), manifest, &pace).await;
    remove(&at);
    let (manifest, written) = made?;
    tracing::info!(
        id = manifest.id,
        bytes = manifest.bytes(),
        new_bytes = written.new_bytes,
        "a backup was made"
    );
    for id in ::backup::keep_newest(&store, of.keep).await? {
        tracing::info!(id, "an old backup was deleted");
    }
    schedule.learn(time_of(&manifest.id).map(|at| (manifest.id, at)));
    schedule.overdue.store(false, Ordering::Relaxed);
    Ok(())
}

fn remove(checkpoint: &Path) {
    if let Err(error) = std::fs::remove_dir_all(checkpoint) {
        tracing::warn!(%error, path = %checkpoint.display(), "a checkpoint could not be removed; the next one does it");
    }
}

fn age(at: Timestamp, now: Timestamp) -> Duration {
    Duration::from_micros(now.0.saturating_sub(at.0))
}

/// When a backup was begun, by its id.
fn time_of(id: &str) -> Option<Timestamp> {
    id.split('-').next()?.parse().ok().map(Timestamp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backups_grow_old_also_where_the_store_can_not_be_reached() {
        let (schedule, every) = (Schedule::default(), Duration::from_secs(60));
        let at = |seconds: u64| Timestamp(seconds * 1_000_000);
        // None is known of, as the store has never answered.
        assert!(!schedule.judge(at(1_000), at(1_119), every) && !schedule.is_overdue());
        assert!(schedule.judge(at(1_000), at(1_120), every) && schedule.is_overdue());
        assert!(!schedule.judge(at(1_000), at(1_130), every) && schedule.is_overdue(), "said once");
        schedule.learn(Some(("b".to_owned(), at(1_125))));
        assert!(!schedule.judge(at(1_000), at(1_200), every) && !schedule.is_overdue());
        // And again, once it answers no more.
        assert!(schedule.judge(at(1_000), at(1_245), every) && schedule.is_overdue());
    }
}
