//! Starting and steering sessions.

use std::sync::Arc;

use bytes::Bytes;
use consensus::{Group, Leadership};
use engine::values::Values;
use ids::{Digest, Seq, SessionId, ShardId, StepId, TRACE_LABEL};
use machine::{
    Approval, Command, Decision, Definition, Durability, Idempotency, Key, Outcome, Read, Row, SessionLimits,
    SessionRow, SessionStatus, StartSession, limits,
};
use serde_json::Value;
use sha2::Digest as _;

use super::{Result, Sessions, Start, Started, WorkflowRef, pending};
use crate::error::{self, ApiError};

/// Commands that may wait for a shard that is led here before sessions go elsewhere.
const NEAR_WAITING_MAX: usize = 256;

impl Sessions {
    /// Starts a session, or finds the one that the same request started.
    pub(crate) async fn start(&self, tenant: &str, start: Start) -> Result<Started> {
        let (workflow, definition) = self.definition(tenant, &start.workflow).await?;
        let identity = self.node.identity();
        let id = match start.id {
            Some(id) if id.region() != identity.region || id.shard().0 >= identity.shards => {
                return Err(ApiError::invalid(format!("id: {id} is not of this region and its shards")));
            }
            Some(id) => id,
            None => {
                let shard = match (&start.lock_key, &start.idempotency_key) {
                    (lock, _) if !lock.is_empty() => self.shard_of(hash(&[tenant, lock])),
                    (_, Some(key)) => self.shard_of(hash(&[tenant, key])),
                    _ => self.near_shard(),
                };
                SessionId::mint(identity.region, shard, self.node.clock().wall(), rand::random())
            }
        };
        let input = Bytes::from(start.input.to_string());
        // Not a part of what makes two requests the same.
        let mut labels: Vec<(String, String)> = start.labels.clone().into_iter().collect();
        if let Some(trace) = start.trace
            && labels.len() < limits::LABELS_MAX
            && !labels.iter().any(|(key, _)| key == TRACE_LABEL)
        {
            labels.push((TRACE_LABEL.to_owned(), trace.to_string()));
        }
        let group = self.group(id.shard())?;
        let bounded = self.capacity.bounded(start.limits)?;
        match self.capacity.admit(&self.node) {
            Err(full) if !is_repetition(group, tenant, id, &start) => return Err(full),
            _ => {}
        }
        let command = Command::StartSession(StartSession {
            session: id,
            tenant: tenant.into(),
            workflow,
            definition: definition.hash,
            input: input.clone(),
            labels,
            limits: bounded,
            durability: Durability::Local,
            idempotency: start.idempotency_key.clone().map(|key| Idempotency {
                lock_key: start.lock_key.clone(),
                key,
                fingerprint: fingerprint(&definition.hash, &input, &start),
            }),
        });
        let (session, created) = match self.propose_start(group, definition, command).await {
            Ok(Outcome::Started { session, created }) => (session, created),
            Ok(_) => return Err(ApiError::new(error::INTERNAL, "a start had another outcome")),
            Err(refused) if [error::KEY_REUSED.name, error::ID_REUSED.name].contains(&refused.code.name) => {
                let before = self.started_before(group, tenant, id, &start, &input);
                (before.ok_or(refused)?, false)
            }
            Err(error) => return Err(error),
        };
        let view = group.latest();
        let status = view.session(session).map_or(SessionStatus::Running, |row| row.status);
        let position = view.shard().position.0;
        view.check()?;
        Ok(Started { id: session, created, status, position })
    }

    fn shard_of(&self, hash: u128) -> ShardId {
        ShardId(u16::try_from(hash % u128::from(self.node.identity().shards)).unwrap_or(0))
    }

    /// A shard for a session that may be anywhere: one that this node leads, so that the start and all that follows on
    /// it are not forwarded; any of the region, if much waits there.
    fn near_shard(&self) -> ShardId {
        let groups = self.node.groups().iter();
        let near = groups.filter(|(_, group)| {
            matches!(*group.leadership().borrow(), Leadership::Here { .. })
                && group.waiting() < NEAR_WAITING_MAX
        });
        let near: Vec<ShardId> = near.map(|(shard, _)| *shard).collect();
        match near.len() {
            0 => self.shard_of(rand::random()),
            count => near[rand::random_range(0..count)],
        }
    }

    async fn propose_start(
        &self,
        group: &Group,
        definition: Arc<Definition>,
        command: Command,
    ) -> Result<Outcome> {
        if group.latest().definition(definition.hash).is_none() {
            // The shard uses it for the first time.
            self.propose(group, Command::PutDefinition(definition)).await?;
        }
        self.propose(group, command).await
    }

    /// The session that the same request started when the name of its workflow stood for another definition: a
    /// repetition is one, whatever was applied in between.
    fn started_before(
        &self,
        group: &Group,
        tenant: &str,
        id: SessionId,
        start: &Start,
        input: &Bytes,
    ) -> Option<SessionId> {
        let WorkflowRef::Name(workflow) = &start.workflow else { return None };
        let view = group.latest();
        let is_of = |row: &SessionRow| row.tenant == tenant && row.workflow == *workflow;
        if let Some(key) = &start.idempotency_key {
            let key = Key::Idempotency(tenant.into(), start.lock_key.clone(), key.clone());
            let Some(Row::Idempotency(used)) = view.get(&key) else { return None };
            let row = view.session(used.session).filter(is_of)?;
            return (fingerprint(&row.definition, input, start) == used.fingerprint).then_some(used.session);
        }
        let first = view.session(id).filter(is_of).and_then(|_| view.event(id, Seq(0)))?;
        (first.data.value() == Some(input)).then_some(id)
    }

    /// The session, if it is the tenant's.
    pub(super) fn owned(
        &self,
        view: &impl Read,
        tenant: &str,
        id: SessionId,
    ) -> Result<(SessionRow, Arc<Definition>)> {
        let row = view.session(id).filter(|row| row.tenant == tenant);
        let row = row.ok_or_else(|| ApiError::not_found(format!("session {id}")))?;
        let definition = view
            .definition(row.definition)
            .ok_or_else(|| ApiError::new(error::INTERNAL, "the session's definition is missing"))?;
        Ok((row, definition))
    }

    async fn check_owner(&self, tenant: &str, id: SessionId) -> Result<&Group> {
        let group = self.group_of(id)?;
        if self.owned(&group.latest(), tenant, id).is_err() {
            // This replica may be behind: what it does not have may be there.
            self.read(group).await?;
        }
        let view = group.latest();
        let found = self.owned(&view, tenant, id);
        view.check()?;
        found.map(|_| group)
    }

    /// Gives a session a named value.
    pub(crate) async fn signal(
        &self,
        tenant: &str,
        id: SessionId,
        name: String,
        payload: &Value,
        key: Option<&str>,
    ) -> Result<()> {
        let group = self.check_owner(tenant, id).await?;
        let signal = key.map_or_else(rand::random, |key| hash(&[tenant, "signal", key]));
        let payload = Bytes::from(payload.to_string());
        self.propose(group, Command::Signal { session: id, name, payload, id: signal }).await.map(|_| ())
    }

    /// Decides a step that waits for approval.
    pub(crate) async fn approve(
        &self,
        tenant: &str,
        id: SessionId,
        step: Option<&str>,
        decision: Decision,
    ) -> Result<()> {
        let group = self.check_owner(tenant, id).await?;
        let step = match step {
            Some(step) => Some(self.find_step(group, tenant, id, step).await?),
            None => None,
        };
        let approval = Approval { decision, by: tenant.into() };
        self.propose(group, Command::Approve { session: id, step, approval }).await.map(|_| ())
    }

    /// Ends a session.
    pub(crate) async fn cancel(&self, tenant: &str, id: SessionId, reason: String) -> Result<()> {
        let group = self.check_owner(tenant, id).await?;
        self.propose(group, Command::Cancel { session: id, reason }).await.map(|_| ())
    }

    /// Runs the failed steps of a failed session again.
    pub(crate) async fn retry(&self, tenant: &str, id: SessionId) -> Result<()> {
        let group = self.check_owner(tenant, id).await?;
        self.propose(group, Command::Retry { session: id }).await.map(|_| ())
    }

    /// A waiting step by its path (`files[0]/review`) or number (`3.5`).
    async fn find_step(&self, group: &Group, tenant: &str, id: SessionId, name: &str) -> Result<StepId> {
        if let Ok(step) = name.parse() {
            return Ok(step);
        }
        self.read(group).await?;
        let view = group.view();
        let (_, definition) = self.owned(&view, tenant, id)?;
        let values = Values::new(&view, id, &definition);
        let found = pending(&view, id).into_iter().find(|step| values.path(*step) == name);
        found.ok_or_else(|| ApiError::not_found(format!("waiting step {name:?} in session {id}")))
    }
}

/// The first 128 bits of SHA-256 over the parts, each with its length.
fn hash(parts: &[&str]) -> u128 {
    let mut hash = sha2::Sha256::new();
    for part in parts {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part.as_bytes());
    }
    let digest: [u8; 32] = hash.finalize().into();
    let mut first = [0; 16];
    first.copy_from_slice(&digest[..16]);
    u128::from_be_bytes(first)
}

/// What makes two requests the same request.
/// Whether a request has started a session before, as far as this replica knows: that is there, however much there is.
fn is_repetition(group: &Group, tenant: &str, id: SessionId, start: &Start) -> bool {
    let view = group.latest();
    match &start.idempotency_key {
        Some(key) => {
            view.get(&Key::Idempotency(tenant.into(), start.lock_key.clone(), key.clone())).is_some()
        }
        None => start.id.is_some() && view.session(id).is_some(),
    }
}

fn fingerprint(definition: &Digest, input: &Bytes, start: &Start) -> Digest {
    let mut hash = sha2::Sha256::new();
    hash.update(definition.0);
    let id = start.id.map(|id| id.to_string()).unwrap_or_default();
    let labels = serde_json::to_vec(&start.labels).unwrap_or_default();
    let limits = format!("{:?}", start.limits);
    for part in [input, id.as_bytes(), start.lock_key.as_bytes(), labels.as_slice(), limits.as_bytes()] {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    Digest(hash.finalize().into())
}

/// Reads the limits of a request's `budget`.
pub(crate) fn budget(budget: Option<&Value>) -> Result<SessionLimits> {
    let mut parsed = SessionLimits::default();
    let Some(budget) = budget else { return Ok(parsed) };
    let Value::Object(fields) = budget else {
        return Err(ApiError::invalid("budget: expected an object"));
    };
    for (name, value) in fields {
        let whole = || {
            value.as_u64().ok_or_else(|| ApiError::invalid(format!("budget.{name}: expected a whole number")))
        };
        match name.as_str() {
            "steps" => parsed.steps = u32::try_from(whole()?).unwrap_or(u32::MAX),
            "iterations" => parsed.iterations = u32::try_from(whole()?).unwrap_or(u32::MAX),
            "tokens" => parsed.tokens = whole()?,
            "cost_microusd" => parsed.cost_microusd = whole()?,
            "duration_ms" => parsed.duration_ms = whole()?,
            _ => {
                let known = "steps, iterations, tokens, cost_microusd, duration_ms";
                return Err(ApiError::invalid(format!("budget: unknown field {name:?}; known are {known}")));
            }
        }
    }
    Ok(parsed)
}
