//! What this node knows of itself now.

use std::fmt::Write as _;

use consensus::{Leadership, Node};
use sla::alert::{Gauge, Gauges};

use crate::{capacity::Used, wiring::App};

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

/// Writes a family of metrics with one label, in `OpenMetrics`.
fn family(text: &mut String, (name, help): (&str, &str), label: &str, samples: Vec<(String, u64)>) {
    // Writing to a string does not fail.
    let _ = write!(text, "# HELP {name} {help}.\n# TYPE {name} gauge\n");
    for (of, value) in samples {
        let _ = writeln!(text, "{name}{{{label}=\"{of}\"}} {value}");
    }
}

/// What there is, and may be, of what `[capacity]` limits.
pub(crate) fn of_capacity(app: &App) -> String {
    let (mut text, used) = (String::new(), app.sessions.used());
    if !used.is_empty() {
        let samples =
            |value: fn(&Used) -> u64| used.iter().map(|of| (of.name.to_owned(), value(of))).collect();
        let help = "What there is of what there may be so much of";
        family(&mut text, ("orchestra_capacity_used", help), "of", samples(|of| of.used));
        family(
            &mut text,
            ("orchestra_capacity_limit", "How much there may be"),
            "of",
            samples(|of| of.limit),
        );
    }
    text
}

/// What is known of the replicas of this node and of its databases.
pub(crate) fn of_node(node: &Node) -> String {
    let mut text = String::new();
    let of_shards = |value: &dyn Fn(&consensus::Group) -> Option<u64>| {
        let groups = node.groups().iter();
        groups.filter_map(|(shard, group)| Some((shard.0.to_string(), value(group)?))).collect::<Vec<_>>()
    };
    let mut shards = |name: &str, help: &str, value: &dyn Fn(&consensus::Group) -> Option<u64>| {
        family(&mut text, (&format!("orchestra_shard_{name}"), help), "shard", of_shards(value));
    };
    shards("led", "1 if this node leads the shard", &|group| {
        Some(u64::from(matches!(*group.leadership().borrow(), Leadership::Here { .. })))
    });
    shards("term", "The term that the replica is in", &|group| Some(group.progress().term));
    shards("log_from", "The first entry that the replica's log still holds", &|group| {
        Some(group.progress().log_from)
    });
    shards("committed", "The last entry that the replica knows to be committed", &|group| {
        group.progress().committed
    });
    shards("applied", "The last entry that the replica has applied", &|group| group.progress().applied);
    shards("commands_waiting", "Commands that wait to be proposed by this node", &|group| {
        u64::try_from(group.waiting()).ok()
    });
    let databases = node.databases();
    for (name, _) in &databases[0].1 {
        let value = |of: &[(&str, u64)]| of.iter().find(|(known, _)| known == name).map(|(_, value)| *value);
        let samples =
            databases.iter().filter_map(|(db, all)| Some(((*db).to_owned(), value(all)?))).collect();
        let help = "What RocksDB says of the database";
        family(&mut text, (&format!("orchestra_rocksdb_{name}"), help), "db", samples);
    }
    text
}

/// What waits and works, under the names of the systems whose work this one takes over.
pub(crate) fn aliases(app: &App, running: i64) -> String {
    let load = app.sessions.workers().load();
    let (waiting, workers) = (load.waiting.to_string(), load.workers.to_string());
    let mut text = String::new();
    for (name, help, value) in [
        ("agentexec_queue_depth", "Alias: tasks that wait for a worker, of the shards led here", &waiting),
        ("agentexec_active_workers", "Alias: workers connected to this node", &workers),
        ("oao_queue_size", "Alias: tasks that wait for a worker, of the shards led here", &waiting),
        (
            "oao_active_agents",
            "Alias: work of this node under way or waiting for its turn",
            &running.to_string(),
        ),
    ] {
        // Writing to a string does not fail.
        let _ = write!(text, "# HELP {name} {help}.\n# TYPE {name} gauge\n{name} {value}\n");
    }
    text
}

/// What the system says of the process, under the names that Prometheus' own clients use; empty where it says nothing.
pub(crate) fn of_process() -> String {
    let mut text = String::new();
    let Ok(process) = procfs::process::Process::myself() else { return text };
    let mut add = |name: &str, kind: &str, help: &str, value: String| {
        let suffix = if kind == "counter" { "_total" } else { "" };
        text.push_str(&format!("# HELP {name} {help}.\n# TYPE {name} {kind}\n{name}{suffix} {value}\n"));
    };
    if let Ok(stat) = process.stat() {
        let ticks = procfs::ticks_per_second();
        let cpu = number(usize::try_from(stat.utime + stat.stime).unwrap_or(0))
            / number(usize::try_from(ticks).unwrap_or(100));
        add("process_cpu_seconds", "counter", "Time on processors", format!("{cpu:.2}"));
        let resident = stat.rss * procfs::page_size();
        add("process_resident_memory_bytes", "gauge", "Memory that it has", resident.to_string());
        add("process_virtual_memory_bytes", "gauge", "Addresses that it has", stat.vsize.to_string());
        add("process_threads", "gauge", "Threads", stat.num_threads.to_string());
    }
    if let Ok(open) = process.fd_count() {
        add("process_open_fds", "gauge", "Open files and connections", open.to_string());
    }
    if let Ok(procfs::process::LimitValue::Value(most)) =
        process.limits().map(|limits| limits.max_open_files.soft_limit)
    {
        add("process_max_fds", "gauge", "The most that it may open", most.to_string());
    }
    if let Ok(io) = process.io() {
        add("process_read_bytes", "counter", "Bytes read from disks", io.read_bytes.to_string());
        add("process_written_bytes", "counter", "Bytes written to disks", io.write_bytes.to_string());
    }
    text
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
