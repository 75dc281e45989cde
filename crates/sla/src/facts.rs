//! From what happens to sessions to indicators.

use std::{collections::HashMap, sync::Arc};

use ids::{Digest, StepId, Timestamp};
use machine::{Definition, Event, EventData, Fact, NodeKind, Observed, Report};
use parking_lot::Mutex;
use workflow::{Spec, Task};

use crate::{Indicator, Labels, Recorder, Spent};

/// Workflows whose roles are remembered.
const ROLES_LEN: usize = 1_024;

/// The first event after that of the start.
const FIRST: u64 = 1;

/// Counts what happens to sessions.
#[derive(Debug, Default)]
pub struct Facts {
    recorder: Arc<Recorder>,
    spent: Spent,
    /// The roles of a workflow's nodes; empty for those that are no agents.
    roles: Mutex<HashMap<Digest, Arc<[String]>>>,
}

impl Facts {
    /// Counts into a recorder.
    #[must_use]
    pub fn new(recorder: Arc<Recorder>) -> Self {
        Self { recorder, spent: Spent::default(), roles: Mutex::default() }
    }

    /// What model calls used.
    #[must_use]
    pub fn spent(&self) -> &Spent {
        &self.spent
    }

    /// Something happened to a session.
    pub fn observe(&self, session: &Observed<'_>, fact: Fact<'_>) {
        let labels =
            Labels { tenant: &session.row.tenant, workflow: &session.row.workflow, ..Labels::default() };
        match fact {
            Fact::Appended { event, .. } => self.event(session, event, labels),
            Fact::RecoveryEnded { failed_at, at, well: true } => {
                let since = failed_at.unwrap_or(at);
                self.recorder.took(Indicator::Recovery, labels, at, micros(since, at));
            }
            Fact::RecoveryEnded { at, well: false, .. } => {
                self.recorder.happened(Indicator::Recovery, labels, at, false);
            }
        }
    }

    fn event(&self, session: &Observed<'_>, event: &Event, labels: Labels<'_>) {
        let (at, created_at) = (event.at, session.row.created_at);
        if event.seq.0 == FIRST {
            let began = match &event.data {
                EventData::StepCompleted { started_at, .. } | EventData::StepFailed { started_at, .. } => {
                    *started_at
                }
                _ => at,
            };
            self.recorder.took(Indicator::SessionInit, labels, at, micros(created_at, began));
        }
        match &event.data {
            EventData::StepCompleted { started_at, report, .. } => {
                let Some(step) = event.step else { return };
                let took = micros(*started_at, at);
                if let Some(report) = report.as_ref().filter(|report| !report.calls.is_empty()) {
                    let roles = self.roles(session.definition);
                    let role = roles.get(usize::from(step.node)).map_or("", String::as_str);
                    let labels = Labels { role, provider: &report.provider, ..labels };
                    self.recorder.took(Indicator::AgentResponse, labels, at, took);
                    self.spent.add(report, role);
                    if let Some(lost) = lost_to_fallback(report) {
                        self.recorder.took(Indicator::ProviderFallback, labels, at, lost);
                    }
                } else if is_task(session.definition, step) {
                    self.recorder.took(Indicator::TaskDuration, labels, at, took);
                }
            }
            EventData::StepFailed { report, .. } => {
                let Some(step) = event.step else { return };
                let roles = self.roles(session.definition);
                let role = roles.get(usize::from(step.node)).map_or("", String::as_str);
                if !role.is_empty() {
                    let last = report.as_ref().and_then(|report| report.calls.last());
                    let provider = last.map_or("", |call| call.provider.as_str());
                    let labels = Labels { role, provider, ..labels };
                    self.recorder.happened(Indicator::AgentResponse, labels, at, false);
                } else if is_task(session.definition, step) {
                    self.recorder.happened(Indicator::TaskDuration, labels, at, false);
                }
            }
            EventData::SessionCompleted { .. } => {
                self.recorder.took(Indicator::SessionCompletion, labels, at, micros(created_at, at));
            }
            EventData::SessionFailed { .. } => {
                self.recorder.happened(Indicator::SessionCompletion, labels, at, false);
            }
            _ => {}
        }
    }

    fn roles(&self, definition: &Definition) -> Arc<[String]> {
        let mut known = self.roles.lock();
        if let Some(roles) = known.get(&definition.hash) {
            return Arc::clone(roles);
        }
        if known.len() >= ROLES_LEN {
            known.clear();
        }
        let role = |spec: &str| match serde_json::from_str::<Spec>(spec) {
            Ok(Spec { task: Task::Agent(agent), .. }) => agent.role,
            _ => String::new(),
        };
        let roles: Arc<[String]> = definition.nodes.iter().map(|node| role(&node.spec)).collect();
        known.insert(definition.hash, Arc::clone(&roles));
        roles
    }
}

fn is_task(definition: &Definition, step: StepId) -> bool {
    let node = definition.nodes.get(usize::from(step.node));
    node.is_some_and(|node| matches!(node.kind, NodeKind::Task { .. }))
}

/// How long the providers took that did not answer, in microseconds, where another one answered in their place.
fn lost_to_fallback(report: &Report) -> Option<u64> {
    let (last, before) = report.calls.split_last()?;
    let first = before.first()?;
    (first.provider != last.provider).then(|| 1_000 * before.iter().map(|call| call.latency_ms).sum::<u64>())
}

fn micros(from: Timestamp, to: Timestamp) -> u64 {
    to.0.saturating_sub(from.0)
}
