//! The hash chain over a session's events.
//!
//! `digest(event) = SHA-256(digest(event before) ‖ encoding(event))`, where the digest before the first event is zero
//! and the encoding is this module's own: fields in order, numbers big-endian, texts and values with their length
//! before them, options with a byte 0 or 1. It does not depend on how rows are stored, so storage formats may change
//! and old chains stay valid. It never changes for an existing kind of event.

use ids::{Digest, StepId, Timestamp};
use sha2::{Digest as _, Sha256};

use crate::{Event, EventData, Failure, FailureClass, Report, Usage};

/// The digest of an event that follows an event with digest `before`.
#[must_use]
pub fn event_digest(before: Digest, event: &Event) -> Digest {
    let mut hash = Hash(Sha256::new());
    hash.raw(&before.0);
    hash.number(event.seq.0);
    hash.time(event.at);
    hash.step(event.step);
    hash.text(event.data.kind());
    hash.data(&event.data);
    Digest(hash.0.finalize().into())
}

/// Checks a run of events against the digest before them and the digest stored with each.
///
/// # Errors
///
/// The index in `events` of the first event whose number or digest is not what it must be.
pub fn chain<'a>(
    mut before: Digest,
    first_seq: u64,
    events: impl IntoIterator<Item = (&'a Event, &'a Digest)>,
) -> Result<Digest, u64> {
    for (place, (event, digest)) in (0u64..).zip(events) {
        if event.seq.0 != first_seq + place || event_digest(before, event) != *digest {
            return Err(place);
        }
        before = *digest;
    }
    Ok(before)
}

struct Hash(Sha256);

impl Hash {
    fn raw(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    fn number(&mut self, number: u64) {
        self.raw(&number.to_be_bytes());
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        self.raw(bytes);
    }

    fn text(&mut self, text: &str) {
        self.bytes(text.as_bytes());
    }

    fn option<T>(&mut self, value: Option<T>, some: impl FnOnce(&mut Self, T)) {
        match value {
            None => self.raw(&[0]),
            Some(value) => {
                self.raw(&[1]);
                some(self, value);
            }
        }
    }

    fn time(&mut self, time: Timestamp) {
        self.number(time.0);
    }

    fn step(&mut self, step: Option<StepId>) {
        self.option(step, |hash, step| {
            hash.number(u64::from(step.scope.0));
            hash.number(u64::from(step.node));
        });
    }

    fn failure(&mut self, failure: &Failure) {
        self.raw(&[match failure.class {
            FailureClass::Transient => 0,
            FailureClass::Permanent => 1,
            FailureClass::Limit => 2,
        }]);
        self.text(&failure.code);
        self.text(&failure.message);
    }

    fn usage(&mut self, usage: &Usage) {
        self.number(usage.tokens_in);
        self.number(usage.tokens_out);
        self.number(usage.cost_microusd);
    }

    fn report(&mut self, report: &Report) {
        self.text(&report.provider);
        self.text(&report.model);
        self.usage(&report.usage);
        self.number(report.calls.len() as u64);
        for call in &report.calls {
            self.text(&call.provider);
            self.text(&call.model);
            self.number(call.latency_ms);
            self.option(call.failure.as_ref(), |hash, failure| hash.failure(failure));
        }
        self.raw(&[u8::from(report.simulated)]);
    }

    fn data(&mut self, data: &EventData) {
        match data {
            EventData::SessionStarted { tenant, workflow, definition, input } => {
                self.text(tenant);
                self.text(workflow);
                self.raw(&definition.0);
                self.bytes(input);
            }
            EventData::StepCompleted { attempt, dispatch, started_at, output, report } => {
                self.number(u64::from(attempt.0));
                self.number(u64::from(dispatch.0));
                self.time(*started_at);
                self.option(output.as_ref(), |hash, output| hash.bytes(output));
                self.option(report.as_ref(), |hash, report| hash.report(report));
            }
            EventData::StepFailed { attempt, dispatch, started_at, failure, report, retry_at } => {
                self.number(u64::from(attempt.0));
                self.number(u64::from(dispatch.0));
                self.time(*started_at);
                self.failure(failure);
                self.option(report.as_ref(), |hash, report| hash.report(report));
                self.option(*retry_at, Self::time);
            }
            EventData::StepDeferred { attempt, dispatch, failure, until } => {
                self.number(u64::from(attempt.0));
                self.number(u64::from(dispatch.0));
                self.failure(failure);
                self.time(*until);
            }
            EventData::BranchChosen { case } => self.option(*case, |hash, case| hash.number(u64::from(case))),
            EventData::MapExpanded { count: number }
            | EventData::IterationStarted { iteration: number }
            | EventData::RecoveryStarted { recovery: number }
            | EventData::ItemFailed { index: number } => self.number(u64::from(*number)),
            EventData::WaitStarted { until } => self.option(*until, Self::time),
            EventData::SignalReceived { name, payload, id } => {
                self.text(name);
                self.bytes(payload);
                self.raw(&id.to_be_bytes());
            }
            EventData::ApprovalDecided { decision, value, reason, by } => {
                self.text(decision);
                self.option(value.as_ref(), |hash, value| hash.bytes(value));
                self.text(reason);
                self.text(by);
            }
            EventData::StepRedispatched { dispatch } => self.number(u64::from(dispatch.0)),
            EventData::SessionCompleted { usage } => self.usage(usage),
            EventData::SessionFailed { failure } => self.failure(failure),
            EventData::SessionCanceled { reason } => self.text(reason),
            EventData::SessionImported { origin, events } => {
                self.number(origin.region().0.into());
                self.number(origin.shard().0.into());
                self.raw(&origin.unique().to_be_bytes());
                self.number(*events);
            }
            EventData::StepSkipped | EventData::Forked | EventData::SessionRetried => {}
        }
    }
}
