//! What several records are made of.

use ids::{Digest, ScopeId, SessionId, StepId};
use machine::{Call, Durability, Failure, FailureClass, Idempotency, Report, SessionLimits, Usage};

use super::missing;
use crate::{envelope::Error, storage};
use bytes::Bytes;

pub(super) const SESSION_LEN: usize = 20;

pub(super) fn session_bytes(id: SessionId) -> [u8; SESSION_LEN] {
    let mut bytes = [0; SESSION_LEN];
    bytes[..2].copy_from_slice(&id.region().0.to_be_bytes());
    bytes[2..4].copy_from_slice(&id.shard().0.to_be_bytes());
    bytes[4..].copy_from_slice(&id.unique().to_be_bytes());
    bytes
}

pub(super) fn session(id: SessionId) -> Bytes {
    Bytes::copy_from_slice(&session_bytes(id))
}

pub(super) fn to_session(bytes: &[u8]) -> Result<SessionId, Error> {
    let bytes: &[u8; SESSION_LEN] = bytes.try_into().map_err(|_| missing("a session id"))?;
    let [r0, r1, s0, s1, unique @ ..] = *bytes;
    let (region, shard) = (u16::from_be_bytes([r0, r1]), u16::from_be_bytes([s0, s1]));
    SessionId::from_parts(region, shard, u128::from_be_bytes(unique)).ok_or_else(|| missing("a session id"))
}

pub(super) fn digest(digest: Digest) -> Bytes {
    Bytes::copy_from_slice(&digest.0)
}

pub(super) fn to_digest(bytes: &[u8]) -> Result<Digest, Error> {
    bytes.try_into().map(Digest).map_err(|_| missing("a digest"))
}

pub(super) fn to_u128(bytes: &[u8]) -> Result<u128, Error> {
    bytes.try_into().map(u128::from_be_bytes).map_err(|_| missing("a 16-byte id"))
}

pub(super) fn to_u16(number: u32) -> Result<u16, Error> {
    u16::try_from(number).map_err(|_| Error::Body(format!("{number} does not fit 16 bits")))
}

pub(super) fn step(step: StepId) -> storage::StepId {
    storage::StepId { scope: step.scope.0, node: step.node.into() }
}

pub(super) fn to_step(step: storage::StepId) -> Result<StepId, Error> {
    Ok(StepId::new(ScopeId(step.scope), to_u16(step.node)?))
}

pub(super) fn to_step_option(step: Option<storage::StepId>) -> Result<Option<StepId>, Error> {
    step.map(to_step).transpose()
}

pub(super) fn failure(failure: &Failure) -> storage::Failure {
    let class = match failure.class {
        FailureClass::Transient => 0,
        FailureClass::Permanent => 1,
        FailureClass::Limit => 2,
    };
    storage::Failure { class, code: failure.code.clone(), message: failure.message.clone() }
}

pub(super) fn to_failure(failure: Option<storage::Failure>) -> Result<Failure, Error> {
    let failure = failure.ok_or_else(|| missing("a failure"))?;
    let class = match failure.class {
        0 => FailureClass::Transient,
        1 => FailureClass::Permanent,
        2 => FailureClass::Limit,
        _ => return Err(missing("a failure's class")),
    };
    Ok(Failure { class, code: failure.code, message: failure.message })
}

pub(super) fn usage(usage: Usage) -> storage::Usage {
    storage::Usage {
        tokens_in: usage.tokens_in,
        tokens_out: usage.tokens_out,
        cost_microusd: usage.cost_microusd,
    }
}

pub(super) fn to_usage(usage: Option<storage::Usage>) -> Usage {
    let usage = usage.unwrap_or_default();
    Usage { tokens_in: usage.tokens_in, tokens_out: usage.tokens_out, cost_microusd: usage.cost_microusd }
}

pub(super) fn report(report: &Report) -> storage::Report {
    storage::Report {
        provider: report.provider.clone(),
        model: report.model.clone(),
        usage: Some(usage(report.usage)),
        calls: report
            .calls
            .iter()
            .map(|call| storage::Call {
                provider: call.provider.clone(),
                model: call.model.clone(),
                latency_ms: call.latency_ms,
                failure: call.failure.as_ref().map(failure),
            })
            .collect(),
        simulated: report.simulated,
    }
}

pub(super) fn to_report(report: Option<storage::Report>) -> Result<Option<Report>, Error> {
    let Some(report) = report else { return Ok(None) };
    let calls = report.calls.into_iter().map(|call| {
        let failure = call.failure.map(|failure| to_failure(Some(failure))).transpose()?;
        Ok(Call { provider: call.provider, model: call.model, latency_ms: call.latency_ms, failure })
    });
    Ok(Some(Report {
        provider: report.provider,
        model: report.model,
        usage: to_usage(report.usage),
        calls: calls.collect::<Result<_, Error>>()?,
        simulated: report.simulated,
    }))
}

pub(super) fn limits(limits: &SessionLimits) -> storage::Limits {
    storage::Limits {
        steps: limits.steps,
        tokens: limits.tokens,
        cost_microusd: limits.cost_microusd,
        iterations: limits.iterations,
        duration_ms: limits.duration_ms,
    }
}

pub(super) fn to_limits(limits: Option<storage::Limits>) -> SessionLimits {
    let limits = limits.unwrap_or_default();
    SessionLimits {
        steps: limits.steps,
        tokens: limits.tokens,
        cost_microusd: limits.cost_microusd,
        iterations: limits.iterations,
        duration_ms: limits.duration_ms,
    }
}

pub(super) fn labels(labels: &[(String, String)]) -> Vec<storage::Label> {
    labels.iter().map(|(key, value)| storage::Label { key: key.clone(), value: value.clone() }).collect()
}

pub(super) fn to_labels(labels: Vec<storage::Label>) -> Vec<(String, String)> {
    labels.into_iter().map(|label| (label.key, label.value)).collect()
}

pub(super) fn durability(durability: Durability) -> u32 {
    match durability {
        Durability::Local => 0,
        Durability::Geo => 1,
    }
}

pub(super) fn to_durability(durability: u32) -> Result<Durability, Error> {
    match durability {
        0 => Ok(Durability::Local),
        1 => Ok(Durability::Geo),
        _ => Err(missing("a durability")),
    }
}

pub(super) fn idempotency(idempotency: &Idempotency) -> storage::Idempotency {
    storage::Idempotency {
        lock_key: idempotency.lock_key.clone(),
        key: idempotency.key.clone(),
        fingerprint: digest(idempotency.fingerprint),
    }
}

pub(super) fn to_idempotency(
    idempotency: Option<storage::Idempotency>,
) -> Result<Option<Idempotency>, Error> {
    let Some(idempotency) = idempotency else { return Ok(None) };
    Ok(Some(Idempotency {
        lock_key: idempotency.lock_key,
        key: idempotency.key,
        fingerprint: to_digest(&idempotency.fingerprint)?,
    }))
}
