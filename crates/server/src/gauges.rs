//! What this node knows of itself now.

use sla::alert::{Gauge, Gauges};

use crate::wiring::App;

/// All of it that is known.
pub(crate) fn of(app: &App) -> Gauges {
    let mut gauges = Gauges::default();
    let load = app.sessions.workers().load();
    gauges.add(Gauge::QueueDepth, number(load.waiting));
    if load.is_used {
        gauges.add(Gauge::Workers, number(load.workers));
    }
    if let Some(share) = memory_share() {
        gauges.add(Gauge::ProcessMemoryShare, share);
    }
    gauges.add(Gauge::WritesStopped, number(usize::from(app.sessions.status().writes_stopped.is_some())));
    if app.backups.is_used() {
        gauges.add(Gauge::BackupOverdue, number(usize::from(app.backups.is_overdue())));
    }
    gauges
}

#[expect(clippy::cast_precision_loss, reason = "counts far below 2^53")]
fn number(count: usize) -> f64 {
    count as f64
}

/// Bytes of memory that the process has, where the system says.
pub(crate) fn memory_bytes() -> Option<u64> {
    let statm = procfs::process::Process::myself().ok()?.statm().ok()?;
    Some(statm.resident * procfs::page_size())
}

/// The share of the memory that it may have: of its control group's limit, or the machine's memory.
#[expect(clippy::cast_precision_loss, reason = "bytes of memory, far below 2^53")]
fn memory_share() -> Option<f64> {
    use procfs::Current as _;
    let of_group = std::fs::read_to_string("/sys/fs/cgroup/memory.max").ok();
    let of_group = of_group.and_then(|limit| limit.trim().parse().ok());
    let limit = of_group.unwrap_or(u64::MAX).min(procfs::Meminfo::current().ok()?.mem_total);
    Some(memory_bytes()? as f64 / limit as f64)
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_memory_is_a_share() {
        assert!(super::memory_share().is_some_and(|share| share > 0.0 && share < 1.0));
    }
}
