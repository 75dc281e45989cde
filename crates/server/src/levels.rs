//! Service levels of the cluster: what this node measures, what all of them have measured, and what came of what is
//! promised.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::Duration,
};

use bytes::Bytes;
use consensus::{Observer, Peers};
use ids::{NodeId, RegionId, ShardId, Timestamp};
use machine::{Fact, Observed};
use prost::Message as _;
use proto::{
    envelope::{self, Kind},
    peer::{answer, question},
};
use serde_json::{Value, json};
use sla::{
    Indicator, Labels, Level, Maintenance, Objective, Recorder, Series, Window,
    alert::{Gauges, Rule},
    facts::Facts,
    merge, message, report,
};
use storage::Note;

use crate::questions::ask_all;

/// What this node measures.
#[derive(Debug)]
pub(crate) struct Levels {
    region: String,
    recorder: Arc<Recorder>,
    facts: Facts,
    objectives: Vec<Objective>,
    alerts: Vec<Rule>,
    maintenance: Vec<Maintenance>,
}

/// What all nodes have said.
pub(crate) struct Heard {
    pub(crate) measured: report::Measured,
    pub(crate) gauges: Gauges,
    /// Those that did not say all of it.
    pub(crate) silent: BTreeSet<NodeId>,
}

impl Levels {
    /// What is measured in a region, and promised there.
    pub(crate) fn new(
        region: RegionId,
        objectives: Vec<Objective>,
        alerts: Vec<Rule>,
        maintenance: Vec<Maintenance>,
    ) -> Self {
        let region = region.0.to_string();
        let recorder = Recorder::with_edges(sla::prometheus::edges(&objectives, &alerts));
        let recorder = Arc::new(recorder.in_region(&region));
        Self { region, facts: Facts::new(Arc::clone(&recorder)), recorder, objectives, alerts, maintenance }
    }

    /// The rules that say when somebody is to be told.
    pub(crate) fn alerts(&self) -> &[Rule] {
        &self.alerts
    }

    /// An answer of the API to a tenant.
    pub(crate) fn answered(&self, tenant: &str, at: Timestamp, took: Duration, failed: bool) {
        let labels = Labels { tenant, ..Labels::default() };
        if failed {
            self.recorder.happened(Indicator::ApiLatency, labels, at, false);
        } else {
            let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
            self.recorder.took(Indicator::ApiLatency, labels, at, micros);
        }
    }

    /// What this node has counted since it began, for Prometheus.
    pub(crate) fn exposition(&self) -> String {
        let spent = self.facts.spent();
        [self.recorder.exposition(), spent.exposition(&self.region), self.recorder.aliases(spent.tokens())]
            .concat()
    }

    /// The rules of what is promised, for Prometheus.
    pub(crate) fn rules(&self) -> String {
        sla::prometheus::rules(&self.objectives, &self.alerts)
    }

    /// Answers another node that asks what this one has counted.
    pub(crate) fn answer(&self, wanted: &[u8], known: impl FnOnce() -> Gauges) -> Bytes {
        let Ok(wanted) = message::Wanted::decode(wanted) else { return Bytes::new() };
        let slots = Level::of_seconds(wanted.seconds).map(|level| self.recorder.read(level, wanted.from));
        let gauges = if wanted.gauges { known().encode() } else { HashMap::new() };
        message::Slots { slots: slots.unwrap_or_default(), gauges }.encode_to_vec().into()
    }

    /// What all nodes have counted in these windows, and know of themselves.
    pub(crate) async fn hear(&self, peers: &Peers, now: Timestamp, windows: &[Window]) -> Heard {
        let (mut silent, mut gauges) = (BTreeSet::new(), Gauges::default());
        let mut merged = Vec::new();
        for level in Level::ALL {
            let longest = windows.iter().map(|window| window.slots(now)).filter(|(of, _)| *of == level);
            let Some(count) = longest.map(|(_, count)| count).max() else {
                merged.push(sla::Merged::default());
                continue;
            };
            let from = level.slot(now).saturating_sub(count);
            let wanted = message::Wanted { seconds: level.seconds(), from, gauges: level == Level::Minute };
            let body = question::Body::Measured(wanted.encode_to_vec().into());
            let read = |(node, answer)| match answer {
                answer::Body::Measured(slots) => Some((node, message::Slots::decode(slots).ok()?)),
                _ => None,
            };
            let answers: Vec<_> = ask_all(peers, body).await.into_iter().filter_map(read).collect();
            let heard: BTreeSet<NodeId> = answers.iter().map(|(node, _)| *node).collect();
            silent.extend(peers.nodes().difference(&heard));
            answers.iter().for_each(|(_, of)| gauges.add_encoded(&of.gauges));
            let slots = answers.into_iter().map(|(_, of)| of.slots).collect();
            // A month of many series takes a tenth of a second: others go on meanwhile.
            merged.push(tokio::task::block_in_place(|| merge(slots)));
        }
        let mut merged = merged.into_iter();
        let mut next = || merged.next().unwrap_or_default();
        let measured = report::Measured::new(next(), next(), next());
        Heard { measured, gauges, silent }
    }

    /// What came of every promise, over its window or another one, as a tenant may see it: of the sessions of others,
    /// nothing.
    pub(crate) async fn report(
        &self,
        peers: &Peers,
        now: Timestamp,
        window: Option<Window>,
        tenant: Option<&str>,
    ) -> Value {
        let heard = self.hear(peers, now, &Window::ALL).await;
        tokio::task::block_in_place(|| self.report_of(heard, now, window, tenant))
    }

    fn report_of(&self, heard: Heard, now: Timestamp, window: Option<Window>, tenant: Option<&str>) -> Value {
        let Heard { measured, silent, .. } = heard;
        let visible = |series: &Series| match tenant {
            Some(tenant) => !series.indicator.is_of_tenants() || series.tenant == tenant,
            None => true,
        };
        let outcomes: Vec<report::Outcome> = self
            .objectives
            .iter()
            .filter_map(|objective| of_tenant(objective, tenant))
            .map(|objective| report::evaluate(&objective, window, &measured, now))
            .collect();
        let shown = window.unwrap_or(Window::Hour);
        let every: BTreeSet<&Series> =
            measured.days.series().chain(measured.minutes.series()).filter(|of| visible(of)).collect();
        let series: Vec<Value> = every
            .into_iter()
            .filter_map(|series| {
                let cell = measured.of(|of| of == series, shown, now);
                let ms = |micros: Option<u64>| {
                    micros.map(|micros| Duration::from_micros(micros).as_secs_f64() * 1e3)
                };
                (cell.count() > 0).then(|| {
                    json!({"indicator": series.indicator.name(), "region": self.region, "tenant": series.tenant,
                        "workflow": series.workflow, "role": series.role, "provider": series.provider,
                        "node": series.node, "n": cell.good, "failed": cell.bad,
                        "p50": ms(cell.percentile(50.0)), "p95": ms(cell.percentile(95.0)),
                        "p99": ms(cell.percentile(99.0)), "max": ms(cell.max()),
                        "mean": cell.mean().filter(|_| cell.max().is_some()).map(|micros| micros / 1e3)})
                })
            })
            .collect();
        json!({
            "at": now.to_string(),
            "region": self.region,
            "objectives": outcomes,
            "series_window": shown.name(),
            "series": series,
            "maintenance": self.maintenance.iter().map(|of| {
                json!({"when": of.to_string(), "now": of.covers(now)})
            }).collect::<Vec<_>>(),
            "nodes_missing": silent.iter().map(|node| node.0).collect::<Vec<_>>(),
        })
    }
}

impl Levels {
    /// What became of a promise slot by slot; `None` for one that there is not, or that is another tenant's.
    pub(crate) async fn history(
        &self,
        peers: &Peers,
        now: Timestamp,
        (name, window): (&str, Option<Window>),
        tenant: Option<&str>,
    ) -> Option<Value> {
        let objective = self.objectives.iter().find(|objective| objective.name == name)?;
        let objective = of_tenant(objective, tenant)?;
        let window = window.unwrap_or(objective.window);
        let Heard { measured, silent, .. } = self.hear(peers, now, &[window]).await;
        let (seconds, points) = report::history(&objective, window, &measured, now);
        let cell = measured.about(&objective, window, now);
        let bucket = |(edge, count): (u64, u64)| json!({"up_to_ms": Duration::from_micros(edge).as_secs_f64() * 1e3, "n": count});
        let histogram: Vec<Value> = cell.buckets().into_iter().map(bucket).collect();
        Some(json!({
            "objective": name, "window": window.name(), "slot_seconds": seconds, "points": points,
            "histogram": histogram,
            "nodes_missing": silent.iter().map(|node| node.0).collect::<Vec<_>>(),
        }))
    }
}

/// An objective as it is of a tenant's sessions and requests; `None` if it is of another's.
fn of_tenant(objective: &Objective, tenant: Option<&str>) -> Option<Objective> {
    let mut objective = objective.clone();
    if let Some(tenant) = tenant.filter(|_| objective.indicator.is_of_tenants()) {
        if !objective.tenant.is_empty() && objective.tenant != tenant {
            return None;
        }
        tenant.clone_into(&mut objective.tenant);
    }
    Some(objective)
}

/// What a slot is called among the node's notes.
fn key(seconds: u32, number: u64) -> Bytes {
    [&b"s"[..], &seconds.to_be_bytes(), &number.to_be_bytes()].concat().into()
}

impl Observer for Levels {
    fn observe(&self, session: &Observed<'_>, fact: Fact<'_>) {
        self.facts.observe(session, fact);
    }

    fn probed(&self, node: NodeId, answered: bool, at: Timestamp) {
        if !answered && self.maintenance.iter().any(|of| of.covers(at)) {
            return;
        }
        let node = node.to_string();
        self.recorder.happened(Indicator::Uptime, Labels { node: &node, ..Labels::default() }, at, answered);
    }

    fn compared(&self, node: NodeId, equal: bool, at: Timestamp) {
        let node = node.to_string();
        self.recorder.happened(
            Indicator::DataPersistence,
            Labels { node: &node, ..Labels::default() },
            at,
            equal,
        );
    }

    fn applying(&self, _: ShardId) {}

    fn committed(&self, _: ShardId, _: usize, _: Duration) {}

    fn changes(&self, now: Timestamp) -> Vec<Note> {
        let gone = self.recorder.tidy(now);
        let gone =
            gone.into_iter().map(|(level, number)| Note { key: key(level.seconds(), number), value: None });
        let changed = self.recorder.changes().into_iter().map(|slot| {
            let value = Some(envelope::seal(Kind::Measured, &slot));
            Note { key: key(slot.seconds, slot.number), value }
        });
        gone.chain(changed).collect()
    }

    fn restore(&self, notes: Vec<Note>) {
        let slots = notes.into_iter().filter_map(|note| {
            match envelope::unseal::<message::Slot>(Kind::Measured, note.value.as_deref()?) {
                Ok(slot) => Some(slot),
                Err(error) => {
                    tracing::warn!(%error, key = ?note.key, "a measurement can not be read, and is left out");
                    None
                }
            }
        });
        self.recorder.restore(slots);
    }
}
