//! What a node does about its disk: stops writes while it is full, flushes the state, keeps the clock's anchor and
//! how far its logs are.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ids::ShardId;
use storage::{Directory, LogDb, StateDb};
use tokio::sync::watch;

use crate::{
    Clock, Group,
    clock::Anchor,
    leadership,
    mutants::{self, Mutant},
    raft::LogStore,
};

const FLUSH_BYTES: u64 = 64 << 20;
/// How often the disk's free space is looked at, and the clock's anchor written.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
const ANCHOR_FILE: &str = "clock";
const ENDS_FILE: &str = "log-ends";

/// What is watched.
#[derive(Clone)]
pub(crate) struct Watcher {
    pub(crate) path: PathBuf,
    pub(crate) free_bytes_min: u64,
    pub(crate) flush_interval: Duration,
    pub(crate) groups: BTreeMap<ShardId, Group>,
    pub(crate) log: Arc<LogDb>,
    pub(crate) state: Arc<StateDb>,
}

impl Watcher {
    /// Why what this directory holds must not count any more, also after a restart, if so.
    fn must_not_count(&self) -> Option<String> {
        self.groups.values().find_map(|group| group.machine.differs().or_else(|| group.links.outdated()))
    }
}

pub(crate) fn read_anchor(path: &Path, clock: &dyn Clock) -> Option<Anchor> {
    let anchor = Anchor::from_line(&std::fs::read_to_string(path.join(ANCHOR_FILE)).ok()?)?;
    let (trusted, wall) = (anchor.trusted(clock), clock.wall());
    if trusted.0.abs_diff(wall.0) > 500_000 {
        let jump_ms = i128::from(wall.as_millis()) - i128::from(trusted.as_millis());
        tracing::warn!(%jump_ms, "the wall clock jumped while the node was down; the shards' time follows it slowly");
    }
    Some(anchor)
}

/// Up to which entry each shard's log was on disk for good, in a text: `shard index` a line, and a checksum.
///
/// `RocksDB` takes a damaged record of its log for the torn end that a power cut leaves, and forgets all that follows
/// it. That this is not what happened can only be known from elsewhere.
struct Ends(BTreeMap<ShardId, u64>);

impl Ends {
    /// Applied and on disk: committed, so that Raft never takes it back.
    fn take(groups: &BTreeMap<ShardId, Group>) -> Self {
        let end = |group: &Group| group.machine.applied().id.map(|id| id.index().min(group.log.durable()));
        Self(groups.iter().filter_map(|(shard, group)| Some((*shard, end(group)?))).collect())
    }

    fn to_text(&self) -> String {
        let lines: String = self.0.iter().map(|(shard, index)| format!("{} {index}\n", shard.0)).collect();
        format!("{lines}{:08x}\n", storage::row_checksum(0, b"", lines.as_bytes()))
    }

    fn from_text(text: &str) -> Option<Self> {
        let (lines, sum) = text.strip_suffix('\n')?.rsplit_once('\n')?;
        let lines = format!("{lines}\n");
        if u32::from_str_radix(sum, 16).ok()? != storage::row_checksum(0, b"", lines.as_bytes()) {
            return None;
        }
        let ends = lines.lines().map(|line| {
            let (shard, index) = line.split_once(' ')?;
            Some((ShardId(shard.parse().ok()?), index.parse().ok()?))
        });
        ends.collect::<Option<_>>().map(Self)
    }
}

/// Refuses a log that ends before an entry that it had.
pub(crate) fn check_end(path: &Path, shard: ShardId, log: &LogStore) -> Result<(), storage::Error> {
    let known = std::fs::read_to_string(path.join(ENDS_FILE)).ok().and_then(|text| Ends::from_text(&text));
    let Some(known) = known.and_then(|ends| ends.0.get(&shard).copied()) else { return Ok(()) };
    let place = format!("log of shard {shard}");
    let last = log
        .last_index()
        .map_err(|error| storage::Error::Corrupt { place: place.clone(), reason: error.to_string() })?;
    if last.is_none_or(|last| last < known) {
        let found = last.map_or_else(|| "is empty".to_owned(), |last| format!("ends with entry {last}"));
        return Err(storage::Error::Corrupt {
            place,
            reason: format!(
                "it {found}, and entry {known} was on disk before: acknowledged data are lost here. Where other nodes \
                 have them, remove this directory and let the node join anew; alone, restore a backup"
            ),
        });
    }
    Ok(())
}

/// Stops writes, with a clear reason, while the disk is full or refuses; keeps the clock's anchor.
pub(crate) async fn watch(watcher: Watcher, clock: Arc<dyn Clock>, stop: watch::Sender<Option<String>>) {
    let mut tick = tokio::time::interval(WATCH_INTERVAL);
    let mut condemned = false;
    loop {
        tick.tick().await;
        if !condemned && let Some(reason) = watcher.must_not_count() {
            match Directory::condemn(&watcher.path, &reason) {
                Ok(()) => condemned = true,
                Err(error) => {
                    tracing::error!(%error, reason, "it can not be remembered that this node must not count")
                }
            }
        }
        let path = watcher.path.clone();
        let line = Anchor::take(clock.as_ref()).to_line();
        let ends = Ends::take(&watcher.groups).to_text();
        let free = tokio::task::spawn_blocking(move || {
            // Lost or torn, it is as if there were none.
            let _ = std::fs::write(path.join(ANCHOR_FILE), line);
            let _ = std::fs::write(path.join(ENDS_FILE), ends);
            storage::free_bytes(&path)
        });
        let reason = match free.await {
            Ok(Ok(free)) if free < watcher.free_bytes_min => Some(format!(
                "the disk of {} has {free} bytes free; writes go on above {}",
                watcher.path.display(),
                watcher.free_bytes_min
            )),
            Ok(Err(error)) => Some(format!("{}: {error}", watcher.path.display())),
            _ => watcher
                .log
                .failing()
                .or_else(|| watcher.groups.values().find_map(|group| group.machine.failing())),
        };
        stop.send_if_modified(|before| {
            if *before == reason {
                return false;
            }
            match &reason {
                Some(reason) => {
                    tracing::error!(%reason, "writes are stopped");
                    // A node that can not write must not lead, where another can.
                    let groups = watcher.groups.clone();
                    tokio::spawn(async move { leadership::hand_over_all(&groups).await });
                }
                None => tracing::info!("writes go on"),
            }
            *before = reason;
            true
        });
    }
}

/// Flushes the state of all shards at once, and lets Raft purge its log up to what every shard had applied before.
pub(crate) async fn flush_loop(watcher: Watcher) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    let mut last = tokio::time::Instant::now();
    loop {
        tick.tick().await;
        if last.elapsed() < watcher.flush_interval && watcher.state.unflushed_bytes() < FLUSH_BYTES {
            continue;
        }
        last = tokio::time::Instant::now();
        let captured: Vec<_> =
            watcher.groups.values().map(|group| (group, group.machine.applied())).collect();
        let state = Arc::clone(&watcher.state);
        let flush = move || if mutants::is_on(Mutant::PurgeTooFar) { Ok(()) } else { state.flush() };
        match tokio::task::spawn_blocking(flush).await {
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
