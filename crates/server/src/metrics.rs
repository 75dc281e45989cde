//! What `/metrics` answers: OpenMetrics text.

use std::{sync::atomic::AtomicU64, time::Duration};

use ids::ShardId;

use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::{Registry, Unit},
};

/// Labels of a request.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    pub(crate) route: String,
    pub(crate) method: String,
    pub(crate) status: u16,
}

/// What a gRPC call was, and what came of it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct CallLabels {
    pub(crate) method: String,
    pub(crate) code: String,
}

/// A label with one name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Named {
    pub(crate) name: String,
}

/// A shard.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfShard {
    shard: u16,
}

/// How long entries take from proposal to apply, on the node that leads.
#[derive(Debug, Clone)]
pub(crate) struct Commits {
    seconds: Family<OfShard, Histogram, fn() -> Histogram>,
    commands: Family<OfShard, Counter>,
}

impl Commits {
    fn new() -> Self {
        let seconds: fn() -> Histogram =
            || Histogram::new([0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0]);
        Self { seconds: Family::new_with_constructor(seconds), commands: Family::default() }
    }

    pub(crate) fn committed(&self, shard: ShardId, commands: usize, took: Duration) {
        let of = OfShard { shard: shard.0 };
        self.seconds.get_or_create(&of).observe(took.as_secs_f64());
        self.commands.get_or_create(&of).inc_by(commands as u64);
    }
}

/// Edges of the times to answer.
const ANSWER_SECONDS: [f64; 12] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0];

pub(crate) struct Metrics {
    registry: Registry,
    pub(crate) requests: Family<RequestLabels, Counter>,
    pub(crate) request_seconds: Histogram,
    pub(crate) calls: Family<CallLabels, Counter>,
    pub(crate) call_seconds: Histogram,
    pub(crate) sessions_started: Counter,
    pub(crate) sessions_ended: Counter,
    pub(crate) commits: Commits,
    pub(crate) work_running: Gauge,
    pub(crate) shards_led: Gauge,
    pub(crate) log_syncs: Gauge<u64, AtomicU64>,
    pub(crate) state_unflushed_bytes: Gauge<u64, AtomicU64>,
    pub(crate) state_bytes: Gauge<u64, AtomicU64>,
    pub(crate) writes_stopped: Gauge,
    pub(crate) backup_age: Gauge,
    pub(crate) backup_overdue: Gauge,
    pub(crate) provider_in_flight: Family<Named, Gauge>,
    pub(crate) provider_open: Family<Named, Gauge>,
    /// How many nodes did not answer, where this node is the one that looks.
    pub(crate) nodes_down: parking_lot::Mutex<Option<usize>>,
}

impl Metrics {
    pub(crate) fn new() -> Self {
        let mut registry = Registry::with_prefix("orchestra");
        let metrics = Self {
            requests: Family::default(),
            request_seconds: Histogram::new(ANSWER_SECONDS),
            calls: Family::default(),
            call_seconds: Histogram::new(ANSWER_SECONDS),
            sessions_started: Counter::default(),
            sessions_ended: Counter::default(),
            commits: Commits::new(),
            work_running: Gauge::default(),
            shards_led: Gauge::default(),
            log_syncs: Gauge::default(),
            state_unflushed_bytes: Gauge::default(),
            state_bytes: Gauge::default(),
            writes_stopped: Gauge::default(),
            backup_age: Gauge::default(),
            backup_overdue: Gauge::default(),
            provider_in_flight: Family::default(),
            provider_open: Family::default(),
            nodes_down: parking_lot::Mutex::default(),
            registry: Registry::default(),
        };
        let m = &metrics;
        registry.register("http_requests", "HTTP requests by route, method and status", m.requests.clone());
        registry.register_with_unit(
            "http_request_duration",
            "Time to answer an HTTP request, streams not counted",
            Unit::Seconds,
            m.request_seconds.clone(),
        );
        registry.register("grpc_requests", "gRPC calls by method and code", m.calls.clone());
        registry.register_with_unit(
            "grpc_request_duration",
            "Time to answer a gRPC call, streams not counted",
            Unit::Seconds,
            m.call_seconds.clone(),
        );
        registry.register(
            "sessions_started",
            "Sessions created through this node",
            m.sessions_started.clone(),
        );
        registry.register(
            "sessions_ended",
            "Sessions that ended, as this node applied it",
            m.sessions_ended.clone(),
        );
        registry.register_with_unit(
            "entry_commit_duration",
            "From the proposal of an entry to its apply, on the node that leads the shard",
            Unit::Seconds,
            m.commits.seconds.clone(),
        );
        registry.register(
            "commands_committed",
            "Commands of the entries that this node has committed as leader",
            m.commits.commands.clone(),
        );
        registry.register("work_running", "Work under way or waiting for its turn", m.work_running.clone());
        registry.register("shards_led", "Shards that this node leads", m.shards_led.clone());
        registry.register("log_syncs", "Syncs of the log since the node started", m.log_syncs.clone());
        registry.register("state_unflushed_bytes", "State in memory only", m.state_unflushed_bytes.clone());
        registry.register("state_bytes", "Bytes of the state's table files", m.state_bytes.clone());
        registry.register("writes_stopped", "1 while writes are stopped", m.writes_stopped.clone());
        registry.register_with_unit(
            "backup_age",
            "Time since the newest backup of the schedule was begun; -1 without one",
            Unit::Seconds,
            m.backup_age.clone(),
        );
        registry.register("backup_overdue", "1 while the newest backup is too old", m.backup_overdue.clone());
        registry.register("provider_in_flight", "Calls on their way", m.provider_in_flight.clone());
        registry.register("provider_circuit_open", "1 while a provider rests", m.provider_open.clone());
        Self { registry, ..metrics }
    }

    /// `more` comes before the end.
    pub(crate) fn encode(&self, more: &str) -> String {
        let mut text = String::new();
        // Writing to a string does not fail.
        let _ = encode(&mut text, &self.registry);
        let end = text.rfind("# EOF").unwrap_or(text.len());
        text.insert_str(end, more);
        text
    }
}
