//! Service levels alone: how long it takes to count, and to compare what was counted with what is promised.

use std::{sync::Arc, time::Duration};

use consensus::Observer;
use ids::{NodeId, ShardId, Timestamp};
use machine::{Fact, Observed};
use prost::Message as _;
use sla::{Indicator, Labels, Level, Recorder, facts::Facts, merge, report};
use storage::Note;
use tokio::time::Instant;

const RECORDS: u64 = 1_000_000;
const DAY: u64 = 86_400;
/// What the series differ in.
const ROLES: [&str; 4] = ["architect", "executor", "auditor", "recovery"];
const PROVIDERS: [&str; 5] = ["a", "b", "c", "d", "e"];
const WORKFLOWS: [&str; 5] = ["v", "w", "x", "y", "z"];

#[allow(clippy::cast_precision_loss, reason = "a count far below 2^53")]
fn nanos_each(began: Instant, count: u64) -> f64 {
    began.elapsed().as_nanos() as f64 / count as f64
}

/// Nanoseconds of one.
pub(crate) fn record() -> f64 {
    let recorder = Recorder::with_edges(sla::prometheus::edges(&sla::built_in(3), &sla::alert::built_in()));
    let labels = Labels { tenant: "default", workflow: "build", role: "executor", provider: "p", node: "" };
    let began = Instant::now();
    for number in 0..RECORDS {
        // Three minutes, and durations from 10 ms to 1 s.
        let at = Timestamp(number * 180);
        recorder.took(Indicator::AgentResponse, labels, at, 10_000 + number % 990_000);
    }
    nanos_each(began, RECORDS)
}

/// Milliseconds of one report, with what three nodes answer, over 31 days of 100 series with 1,000 durations a day.
pub(crate) fn report() -> f64 {
    let (recorder, now) = (Recorder::default(), Timestamp(40 * DAY * 1_000_000));
    for day in 0..=30 {
        for (place, workflow) in WORKFLOWS.iter().enumerate() {
            for role in ROLES {
                for provider in PROVIDERS {
                    let labels = Labels { tenant: "default", workflow, role, provider, node: "" };
                    let at = Timestamp(now.0 - day * DAY * 1_000_000);
                    for number in 0..1_000 {
                        let took = 1_000 * (1 + (number * 7_919 + place as u64) % 60_000);
                        recorder.took(Indicator::AgentResponse, labels, at, took);
                    }
                }
            }
        }
    }
    // As a node does it all the time: what is over is packed.
    recorder.changes();
    recorder.tidy(Timestamp(now.0 + 1));
    let answer = |level| vec![recorder.read(level, 0), recorder.read(level, 0), recorder.read(level, 0)];
    let objectives = sla::built_in(3);
    let began = Instant::now();
    let merged = |level| merge(answer(level));
    let measured = report::Measured::new(merged(Level::Minute), merged(Level::Hour), merged(Level::Day));
    let outcomes: Vec<report::Outcome> =
        objectives.iter().map(|objective| report::evaluate(objective, None, &measured, now)).collect();
    let took = began.elapsed().as_secs_f64() * 1_000.0;
    assert_eq!(outcomes[1].n, 31 * 100 * 1_000, "all days are in it");
    took
}

/// Counts what happens to sessions, as a node does.
#[derive(Debug)]
pub(crate) struct Measures(Arc<Recorder>, Facts);

impl Measures {
    pub(crate) fn new() -> Self {
        let edges = sla::prometheus::edges(&sla::built_in(3), &sla::alert::built_in());
        let recorder = Arc::new(Recorder::with_edges(edges));
        Self(Arc::clone(&recorder), Facts::new(recorder))
    }
}

impl Observer for Measures {
    fn observe(&self, session: &Observed<'_>, fact: Fact<'_>) {
        self.1.observe(session, fact);
    }
    fn probed(&self, _: NodeId, _: bool, _: Timestamp) {}
    fn compared(&self, _: NodeId, _: bool, _: Timestamp) {}
    fn applying(&self, _: ShardId) {}
    fn committed(&self, _: ShardId, _: usize, _: Duration) {}
    fn changes(&self, now: Timestamp) -> Vec<Note> {
        self.0.tidy(now);
        let changes = self.0.changes().into_iter();
        changes
            .map(|slot| Note {
                key: [slot.seconds.to_be_bytes().as_slice(), &slot.number.to_be_bytes()].concat().into(),
                value: Some(slot.encode_to_vec().into()),
            })
            .collect()
    }
    fn restore(&self, _: Vec<Note>) {}
}
