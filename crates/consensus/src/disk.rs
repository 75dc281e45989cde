//! What a node does about its disk: stops writes while it is full, flushes the state, keeps the clock's anchor.

use std::{
    collections::BTreeMap,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use ids::ShardId;
use storage::{LogDb, StateDb};
use tokio::sync::watch;

use crate::{
    Clock, Group,
    clock::Anchor,
    leadership,
    mutants::{self, Mutant},
};

const FLUSH_BYTES: u64 = 64 << 20;
/// How often the disk's free space is looked at, and the clock's anchor written.
const WATCH_INTERVAL: Duration = Duration::from_millis(500);
const ANCHOR_FILE: &str = "clock";

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

pub(crate) fn read_anchor(path: &Path, clock: &dyn Clock) -> Option<Anchor> {
    let anchor = Anchor::from_line(&std::fs::read_to_string(path.join(ANCHOR_FILE)).ok()?)?;
    let (trusted, wall) = (anchor.trusted(clock), clock.wall());
    if trusted.0.abs_diff(wall.0) > 500_000 {
        let jump_ms = i128::from(wall.as_millis()) - i128::from(trusted.as_millis());
        tracing::warn!(%jump_ms, "the wall clock jumped while the node was down; the shards' time follows it slowly");
    }
    Some(anchor)
}

/// Stops writes, with a clear reason, while the disk is full or refuses; keeps the clock's anchor.
pub(crate) async fn watch(watcher: Watcher, clock: Arc<dyn Clock>, stop: watch::Sender<Option<String>>) {
    let mut tick = tokio::time::interval(WATCH_INTERVAL);
    loop {
        tick.tick().await;
        let path = watcher.path.clone();
        let line = Anchor::take(clock.as_ref()).to_line();
        let free = tokio::task::spawn_blocking(move || {
            // Lost or torn, it is as if there were none.
            let _ = std::fs::write(path.join(ANCHOR_FILE), line);
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
