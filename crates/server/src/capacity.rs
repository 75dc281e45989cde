//! Whether there is room for another session, where `[capacity]` says how much there may be.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use consensus::Node;
use ids::{SessionId, StepId};
use machine::{Key, Read as _, SessionLimits};
use parking_lot::Mutex;
use tokio::time::Instant;

use crate::{
    config,
    error::{self, ApiError},
    gauges,
};

/// How old a count of sessions, and a size on the disk, may be. What is admitted meanwhile is added.
const COUNT_FOR: Duration = Duration::from_secs(1);
const MEASURE_FOR: Duration = Duration::from_secs(10);
/// Whoever is refused comes back after this.
const RETRY_AFTER_MS: u64 = 1_000;
/// Rows that are read at once.
const PAGE: usize = 1_024;
const MIB: u64 = 1 << 20;
const MINUTE_MS: u64 = 60_000;

/// How much there may be, and how much there is.
#[derive(Debug)]
pub(crate) struct Capacity {
    limits: config::Capacity,
    data: PathBuf,
    live: Mutex<Option<(Instant, u64)>>,
    disk: Mutex<Option<(Instant, u64)>>,
}

/// How much there is of something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Used {
    /// What.
    pub(crate) name: &'static str,
    pub(crate) used: u64,
    pub(crate) limit: u64,
}

impl Capacity {
    pub(crate) fn new(limits: &config::Capacity, data: &Path) -> Self {
        Self { limits: limits.clone(), data: data.to_owned(), live: Mutex::default(), disk: Mutex::default() }
    }

    /// Takes the place of another session.
    ///
    /// # Errors
    ///
    /// There is none.
    pub(crate) fn admit(&self, node: &Node) -> Result<(), ApiError> {
        if let Some(full) = self.used(node).into_iter().find(|of| of.used >= of.limit) {
            let Used { name, used, limit } = full;
            let detail = format!("{used} {name}, of {limit} that there may be ([capacity])");
            let retry_after_ms = Some(RETRY_AFTER_MS);
            return Err(ApiError { code: error::CAPACITY_EXCEEDED, detail, retry_after_ms });
        }
        if let Some((_, live)) = self.live.lock().as_mut() {
            *live += 1;
        }
        Ok(())
    }

    /// The limits of a session that goes on where another one was, which may have had more.
    pub(crate) fn at_most(&self, mut limits: SessionLimits) -> SessionLimits {
        if let Some(minutes) = self.limits.minutes {
            let longest = u64::from(minutes.get()) * MINUTE_MS;
            let had = Some(limits.duration_ms).filter(|had| *had > 0);
            limits.duration_ms = had.map_or(longest, |had| had.min(longest));
        }
        limits
    }

    /// The limits of a session, which may ask for less than the longest time.
    ///
    /// # Errors
    ///
    /// It asks for more.
    pub(crate) fn bounded(&self, mut limits: SessionLimits) -> Result<SessionLimits, ApiError> {
        let Some(minutes) = self.limits.minutes else { return Ok(limits) };
        let longest = u64::from(minutes.get()) * MINUTE_MS;
        match limits.duration_ms {
            0 => limits.duration_ms = longest,
            asked if asked > longest => {
                let detail = format!(
                    "{asked} ms are asked for, of {minutes} minutes that a session may take ([capacity])"
                );
                return Err(ApiError::new(error::CAPACITY_EXCEEDED, detail));
            }
            _ => {}
        }
        Ok(limits)
    }

    /// What there is of everything that has a limit.
    pub(crate) fn used(&self, node: &Node) -> Vec<Used> {
        let config::Capacity { sessions, memory_mib, disk_mib, .. } = &self.limits;
        let sessions = sessions.map(|limit| {
            let limit = u64::from(limit.get());
            let used = fresh(&self.live, COUNT_FOR, || live(node, limit));
            Used { name: "sessions that have not ended", used, limit }
        });
        let memory = memory_mib.and_then(|limit| {
            let used = gauges::memory_bytes()? / MIB;
            Some(Used { name: "MiB of memory", used, limit: limit.get() })
        });
        let disk = disk_mib.map(|limit| {
            let used = fresh(&self.disk, MEASURE_FOR, || bytes_below(&self.data)) / MIB;
            Used { name: "MiB on the disk", used, limit: limit.get() }
        });
        sessions.into_iter().chain(memory).chain(disk).collect()
    }
}

/// What is known, if it is not too old; otherwise it is looked for again.
fn fresh(known: &Mutex<Option<(Instant, u64)>>, lasts: Duration, look: impl FnOnce() -> u64) -> u64 {
    let mut known = known.lock();
    match *known {
        Some((at, value)) if at.elapsed() < lasts => value,
        _ => {
            let value = look();
            *known = Some((Instant::now(), value));
            value
        }
    }
}

/// Sessions that have not ended, counted up to the limit: those that have steps on their way. This node has a replica
/// of every shard.
fn live(node: &Node, limit: u64) -> u64 {
    let mut count = 0;
    for group in node.groups().values() {
        let view = group.view();
        let end = Key::Listener(SessionId::default(), String::new(), StepId::default());
        let mut next = SessionId::default();
        while count < limit {
            let rows = view.scan(&Key::Pending(next, StepId::default()), &end, PAGE);
            let is_last = rows.len() < PAGE;
            for (key, _) in rows {
                let Key::Pending(session, _) = key else { continue };
                if session >= next {
                    count += 1;
                    next = session.successor();
                }
            }
            if is_last {
                break;
            }
        }
    }
    count.min(limit)
}

/// Bytes of all files below a directory. What is removed meanwhile is not counted.
fn bytes_below(directory: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(directory) else { return 0 };
    let bytes = |entry: std::fs::DirEntry| match entry.metadata() {
        Ok(of) if of.is_dir() => bytes_below(&entry.path()),
        Ok(of) => of.len(),
        Err(_) => 0,
    };
    entries.flatten().map(bytes).sum()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use std::num::NonZeroU32;

    use super::*;

    #[test]
    fn a_session_has_the_time_that_there_may_be() {
        let limits = config::Capacity { minutes: NonZeroU32::new(2), ..config::Capacity::default() };
        let capacity = Capacity::new(&limits, Path::new("."));
        let of = |duration_ms| capacity.bounded(SessionLimits { duration_ms, ..SessionLimits::default() });
        assert_eq!(of(0).unwrap().duration_ms, 120_000);
        assert_eq!(of(5_000).unwrap().duration_ms, 5_000);
        let refused = of(120_001).unwrap_err();
        assert_eq!((refused.code.name, refused.retry_after_ms), ("capacity_exceeded", None));
        let goes_on = |capacity: &Capacity, duration_ms| {
            capacity.at_most(SessionLimits { duration_ms, ..SessionLimits::default() }).duration_ms
        };
        assert_eq!([0, 5_000, 120_001].map(|had| goes_on(&capacity, had)), [120_000, 5_000, 120_000]);
        let free = Capacity::new(&config::Capacity::default(), Path::new("."));
        assert_eq!([0, 120_001].map(|had| goes_on(&free, had)), [0, 120_001]);
        assert_eq!(free.bounded(SessionLimits::default()).unwrap().duration_ms, 0);
    }

    #[test]
    fn files_are_counted_where_they_are() {
        let temp = tempfile::tempdir().unwrap();
        std::fs::create_dir(temp.path().join("below")).unwrap();
        std::fs::write(temp.path().join("a"), [0; 1_000]).unwrap();
        std::fs::write(temp.path().join("below/b"), [0; 500]).unwrap();
        assert_eq!(bytes_below(temp.path()), 1_500);
    }
}
