//! Sessions as the APIs see them: start, read, list, steer.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use bytes::Bytes;
use consensus::{Group, Leadership, Node, ProposeError, Status, Watch};
use engine::{Engine, values::Values};
use ids::{Digest, Seq, SessionId, ShardId, StepId, Timestamp};
use machine::{
    Approval, Command, Decision, Definition, Durability, Event, EventData, Idempotency, Key, NodeKind,
    Outcome, OutputRef, Read, Row, SessionLimits, SessionRow, SessionStatus, StartSession, StepRow,
    StepStatus, Wait, WorkflowRow, limits,
};
use providers::{ProviderStatus, Router};
use serde_json::{Map, Value, json};
use sha2::Digest as _;
use tokio::sync::{broadcast, mpsc};

use crate::error::{self, ApiError};

/// How long a request is retried while a shard has no leader.
const ELECTION_PATIENCE: Duration = Duration::from_secs(10);
const ELECTION_PAUSE: Duration = Duration::from_millis(50);
/// Steps that one answer shows.
const STEPS_MAX: usize = 1_000;
/// Events of one page.
pub(crate) const EVENTS_PAGE_MAX: usize = 500;
/// Sessions of one page.
const SESSIONS_PAGE_MAX: usize = 500;
/// Rows looked at for one page of a filtered list.
const LIST_ROWS_MAX: usize = 10_000;

type Result<T> = std::result::Result<T, ApiError>;

/// What a session is started with.
#[derive(Debug, Clone)]
pub(crate) struct Start {
    pub(crate) workflow: WorkflowRef,
    pub(crate) input: Value,
    pub(crate) id: Option<SessionId>,
    pub(crate) idempotency_key: Option<String>,
    pub(crate) lock_key: String,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) limits: SessionLimits,
}

/// A workflow, by name or in full.
#[derive(Debug, Clone)]
pub(crate) enum WorkflowRef {
    Name(String),
    Source(String),
}

/// What a start answers.
#[derive(Debug, Clone)]
pub(crate) struct Started {
    pub(crate) id: SessionId,
    pub(crate) created: bool,
    pub(crate) status: SessionStatus,
    pub(crate) position: u64,
}

/// A page of events.
#[derive(Debug)]
pub(crate) struct Events {
    pub(crate) events: Vec<Value>,
    pub(crate) next: Seq,
    pub(crate) ended: bool,
}

/// The service behind both APIs.
pub struct Sessions {
    node: Node,
    engines: BTreeMap<ShardId, Engine>,
    router: Arc<Router>,
}

impl Sessions {
    pub(crate) fn new(node: Node, engines: BTreeMap<ShardId, Engine>, router: Arc<Router>) -> Self {
        Self { node, engines, router }
    }

    pub(crate) fn drain(&self) {
        for engine in self.engines.values() {
            engine.drain();
        }
    }

    pub(crate) async fn stop(mut self) {
        self.engines.clear();
        self.node.stop().await;
    }

    pub(crate) fn running_count(&self) -> usize {
        self.engines.values().map(Engine::running_count).sum()
    }

    pub(crate) fn status(&self) -> Status {
        self.node.status()
    }

    pub(crate) fn providers(&self) -> Vec<ProviderStatus> {
        self.router.status()
    }

    pub(crate) fn is_simulated(&self) -> bool {
        self.router.is_simulated()
    }

    /// Why the node is not ready, if it is not.
    pub(crate) fn not_ready(&self) -> Vec<String> {
        let status = self.status();
        let mut errors: Vec<String> = status
            .shards
            .iter()
            .filter(|(_, lead)| matches!(lead, Leadership::Elsewhere { leader: None }))
            .map(|(shard, _)| format!("shard {shard}: no leader"))
            .collect();
        errors.extend(status.writes_stopped.map(|reason| format!("writes: {reason}")));
        errors
    }

    fn group(&self, shard: ShardId) -> Result<&Group> {
        self.node.groups().get(&shard).ok_or_else(|| ApiError::not_found(format!("shard {shard}")))
    }

    fn group_of(&self, session: SessionId) -> Result<&Group> {
        if session.region() != self.node.identity().region {
            return Err(ApiError::not_found(format!("session {session}")));
        }
        self.group(session.shard()).map_err(|_| ApiError::not_found(format!("session {session}")))
    }

    /// Proposes, through an election if need be. Safe to repeat: the edge has minted every id.
    async fn propose(&self, group: &Group, command: Command) -> Result<Outcome> {
        let attempt = async {
            loop {
                match group.propose(command.clone()).await {
                    Err(ProposeError::NotLeader { .. } | ProposeError::Unknown) => {
                        tokio::time::sleep(ELECTION_PAUSE).await;
                    }
                    Ok(Outcome::Refused(refusal)) => return Err(refusal.into()),
                    Ok(outcome) => return Ok(outcome),
                    Err(error) => return Err(error.into()),
                }
            }
        };
        tokio::time::timeout(ELECTION_PATIENCE, attempt).await.unwrap_or_else(|_| {
            Err(ApiError::new(
                error::UNAVAILABLE,
                "the shard has had no leader for too long; repeat the request",
            ))
        })
    }

    async fn read(&self, group: &Group) -> Result<()> {
        let attempt = async {
            loop {
                match group.linearize().await {
                    Ok(()) => return Ok(()),
                    Err(consensus::ReadError::NotLeader { .. }) => tokio::time::sleep(ELECTION_PAUSE).await,
                    Err(error) => return Err(error.into()),
                }
            }
        };
        tokio::time::timeout(ELECTION_PATIENCE, attempt)
            .await
            .unwrap_or_else(|_| Err(ApiError::new(error::UNAVAILABLE, "the shard has no leader")))
    }

    // ---------------------------------------------------------------- workflows

    /// The definition that a name or source stands for.
    fn definition(&self, tenant: &str, workflow: &WorkflowRef) -> Result<(String, Arc<Definition>)> {
        match workflow {
            WorkflowRef::Source(source) => {
                let definition = compile("workflow", source)?;
                Ok((definition.name.clone(), Arc::new(definition)))
            }
            WorkflowRef::Name(name) => {
                let view = self.group(ShardId(0))?.view();
                if let Some(Row::Workflow(row)) = view.get(&Key::Workflow(tenant.into(), name.clone()))
                    && let Some(definition) = view.definition(row.definition)
                {
                    return Ok((name.clone(), definition));
                }
                view.check()?;
                let source = workflow::builtin(name).ok_or_else(|| {
                    ApiError::new(error::UNKNOWN_WORKFLOW, format!("no workflow is named {name:?}"))
                })?;
                Ok((name.clone(), Arc::new(compile(name, source)?)))
            }
        }
    }

    /// Gives a workflow its name.
    pub(crate) async fn apply_workflow(&self, tenant: &str, source: &str) -> Result<Value> {
        let definition = Arc::new(compile("workflow", source)?);
        let (name, hash) = (definition.name.clone(), definition.hash);
        let group = self.group(ShardId(0))?;
        self.propose(group, Command::PutDefinition(definition)).await?;
        let apply = Command::ApplyWorkflow { tenant: tenant.into(), name: name.clone(), definition: hash };
        self.propose(group, apply).await?;
        let row = group.view().get(&Key::Workflow(tenant.into(), name.clone()));
        let version = if let Some(Row::Workflow(row)) = row { row.version } else { 0 };
        Ok(json!({"name": name, "definition": hash.to_string(), "version": version}))
    }

    /// The tenant's workflows, and those that come with the binary.
    pub(crate) fn workflows(&self, tenant: &str) -> Result<Value> {
        let view = self.group(ShardId(0))?.view();
        let from = Key::Workflow(tenant.into(), String::new());
        let to = Key::Workflow(format!("{tenant}\0"), String::new());
        let mut list: Vec<Value> = view
            .scan(&from, &to, 1_000)
            .into_iter()
            .filter_map(|(key, row)| match (key, row) {
                (Key::Workflow(_, name), Row::Workflow(row)) => Some(workflow_json(&name, &row)),
                _ => None,
            })
            .collect();
        view.check()?;
        for (name, _) in workflow::BUILTIN {
            if !list.iter().any(|workflow| workflow["name"] == name) {
                list.push(json!({"name": name, "built_in": true}));
            }
        }
        Ok(json!({"workflows": list}))
    }

    /// A workflow with its source.
    pub(crate) fn workflow(&self, tenant: &str, name: &str) -> Result<Value> {
        let (name, definition) = self.definition(tenant, &WorkflowRef::Name(name.into()))?;
        Ok(json!({"name": name, "definition": definition.hash.to_string(), "source": definition.source}))
    }

    // ---------------------------------------------------------------- starting and steering

    /// Starts a session, or finds the one that the same request started.
    pub(crate) async fn start(&self, tenant: &str, start: Start) -> Result<Started> {
        let (name, definition) = self.definition(tenant, &start.workflow)?;
        let identity = self.node.identity();
        let id = match start.id {
            Some(id) if id.region() != identity.region || id.shard().0 >= identity.shards => {
                return Err(ApiError::invalid(format!("id: {id} is not of this region and its shards")));
            }
            Some(id) => id,
            None => {
                let (shard, unique) = match (&start.lock_key, &start.idempotency_key) {
                    (lock, _) if !lock.is_empty() => (hash(&[tenant, lock]), rand::random()),
                    (_, Some(key)) => (hash(&[tenant, key]), rand::random()),
                    _ => (rand::random(), rand::random()),
                };
                let shard = u16::try_from(shard % u128::from(identity.shards)).unwrap_or(0);
                SessionId::new(identity.region, ShardId(shard), unique)
            }
        };
        let input = Bytes::from(start.input.to_string());
        let fingerprint = fingerprint(&definition.hash, &input, &start);
        let command = Command::StartSession(StartSession {
            session: id,
            tenant: tenant.into(),
            workflow: name,
            definition: definition.hash,
            input,
            labels: start.labels.into_iter().collect(),
            limits: start.limits,
            durability: Durability::Local,
            idempotency: start.idempotency_key.map(|key| Idempotency {
                lock_key: start.lock_key.clone(),
                key,
                fingerprint,
            }),
        });
        let group = self.group(id.shard())?;
        let outcome = match self.propose_start(group, command.clone()).await? {
            // The shard uses this definition for the first time.
            None => {
                self.propose(group, Command::PutDefinition(definition)).await?;
                self.propose(group, command).await?
            }
            Some(outcome) => outcome,
        };
        let Outcome::Started { session, created } = outcome else {
            return Err(ApiError::new(error::INTERNAL, "a start had another outcome"));
        };
        let view = group.view();
        let status = view.session(session).map_or(SessionStatus::Running, |row| row.status);
        let position = view.shard().position.0;
        view.check()?;
        Ok(Started { id: session, created, status, position })
    }

    async fn propose_start(&self, group: &Group, command: Command) -> Result<Option<Outcome>> {
        if let Command::StartSession(start) = &command
            && group.view().definition(start.definition).is_none()
        {
            return Ok(None);
        }
        self.propose(group, command).await.map(Some)
    }

    /// The session, if it is the tenant's.
    fn owned(&self, view: &impl Read, tenant: &str, id: SessionId) -> Result<(SessionRow, Arc<Definition>)> {
        let row = view.session(id).filter(|row| row.tenant == tenant);
        let row = row.ok_or_else(|| ApiError::not_found(format!("session {id}")))?;
        let definition = view
            .definition(row.definition)
            .ok_or_else(|| ApiError::new(error::INTERNAL, "the session's definition is missing"))?;
        Ok((row, definition))
    }

    fn check_owner(&self, tenant: &str, id: SessionId) -> Result<&Group> {
        let group = self.group_of(id)?;
        let view = group.view();
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
        let group = self.check_owner(tenant, id)?;
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
        let group = self.check_owner(tenant, id)?;
        let step = step.map(|step| self.find_step(group, tenant, id, step)).transpose()?;
        let approval = Approval { decision, by: tenant.into() };
        self.propose(group, Command::Approve { session: id, step, approval }).await.map(|_| ())
    }

    /// Ends a session.
    pub(crate) async fn cancel(&self, tenant: &str, id: SessionId, reason: String) -> Result<()> {
        let group = self.check_owner(tenant, id)?;
        self.propose(group, Command::Cancel { session: id, reason }).await.map(|_| ())
    }

    /// Runs the failed steps of a failed session again.
    pub(crate) async fn retry(&self, tenant: &str, id: SessionId) -> Result<()> {
        let group = self.check_owner(tenant, id)?;
        self.propose(group, Command::Retry { session: id }).await.map(|_| ())
    }

    /// A waiting step by its path (`files[0]/review`) or number (`3.5`).
    fn find_step(&self, group: &Group, tenant: &str, id: SessionId, name: &str) -> Result<StepId> {
        if let Ok(step) = name.parse() {
            return Ok(step);
        }
        let view = group.view();
        let (_, definition) = self.owned(&view, tenant, id)?;
        let values = Values::new(&view, id, &definition);
        let found = pending(&view, id).into_iter().find(|step| values.path(*step) == name);
        found.ok_or_else(|| ApiError::not_found(format!("waiting step {name:?} in session {id}")))
    }

    // ---------------------------------------------------------------- reading

    /// A session with its steps and its output.
    pub(crate) async fn get(&self, tenant: &str, id: SessionId, stale: bool) -> Result<Value> {
        let group = self.group_of(id)?;
        if !stale {
            self.read(group).await?;
        }
        let view = group.view();
        let (row, definition) = self.owned(&view, tenant, id)?;
        let values = Values::new(&view, id, &definition);
        let mut session = summary(id, &row);
        let unavailable = |error: engine::values::Error| json!({"unavailable": error.to_string()});
        session.insert("input".into(), values.input().unwrap_or_else(unavailable));
        let output = match row.status {
            SessionStatus::Completed => values.session_output().unwrap_or_else(unavailable),
            _ => Value::Null,
        };
        session.insert("output".into(), output);
        let (steps, more) = self.steps(&view, id, &definition);
        session.insert("steps".into(), steps.into());
        session.insert("steps_truncated".into(), more.into());
        view.check()?;
        Ok(Value::Object(session))
    }

    fn steps(&self, view: &impl Read, id: SessionId, definition: &Definition) -> (Vec<Value>, bool) {
        let values = Values::new(view, id, definition);
        let from = Key::Step(id, StepId::default());
        let to = Key::Step(id.successor(), StepId::default());
        let rows = view.scan(&from, &to, STEPS_MAX + 1);
        let more = rows.len() > STEPS_MAX;
        let steps = rows.into_iter().take(STEPS_MAX).filter_map(|(key, row)| match (key, row) {
            (Key::Step(_, step), Row::Step(row)) => {
                Some(self.step_json(view, &values, id, definition, step, &row))
            }
            _ => None,
        });
        (steps.collect(), more)
    }

    fn step_json<R: Read>(
        &self,
        view: &R,
        values: &Values<'_, R>,
        id: SessionId,
        definition: &Definition,
        step: StepId,
        row: &StepRow,
    ) -> Value {
        let running = self.engines.get(&id.shard()).map(|engine| engine.running(id)).unwrap_or_default();
        let at_work = running.iter().find(|running| running.step == step && running.dispatch == row.dispatch);
        let started_at = row.started_at.or_else(|| at_work.and_then(|running| running.started_at));
        let mut json = json!({
            "id": values.path(step),
            "ref": step.to_string(),
            "kind": kind(definition, step),
            "status": row.status.name(),
            "attempt": row.attempt.0,
            "dispatch": row.dispatch.0,
            "ready_at": row.ready_at.to_string(),
            "started_at": started_at.map(|at| at.to_string()),
            "ended_at": row.ended_at.map(|at| at.to_string()),
        });
        if let OutputRef::Event(seq) = row.output
            && let Some(Event { data: EventData::StepCompleted { report: Some(report), .. }, .. }) =
                view.event(id, seq)
        {
            json["provider"] = report.provider.into();
            json["model"] = report.model.into();
            json["usage"] =
                json!({"tokens_in": report.usage.tokens_in, "tokens_out": report.usage.tokens_out});
            json["cost_microusd"] = report.usage.cost_microusd.into();
            json["simulated"] = report.simulated.into();
        }
        if let Some(failure) = row.failed.and_then(|seq| failure_of(view, id, seq)) {
            json["error"] = failure;
        }
        json
    }

    /// The tenant's sessions, newest first.
    pub(crate) async fn list(
        &self,
        tenant: &str,
        limit: usize,
        cursor: Option<&str>,
        status: Option<&str>,
    ) -> Result<Value> {
        let limit = limit.clamp(1, SESSIONS_PAGE_MAX);
        let after = cursor.map(parse_cursor).transpose()?;
        let mut found: Vec<(u64, SessionId, Value)> = Vec::new();
        let mut looked_all = true;
        for group in self.node.groups().values() {
            self.read(group).await?;
            let view = group.view();
            let (from_age, from_id) = after.unwrap_or_default();
            let from = Key::ByTenant(tenant.into(), from_age, SessionId::default());
            let to = Key::ByTenant(format!("{tenant}\0"), 0, SessionId::default());
            let keys = view.scan(&from, &to, LIST_ROWS_MAX);
            looked_all &= keys.len() < LIST_ROWS_MAX;
            let mut taken = 0;
            for (key, _) in keys {
                let Key::ByTenant(_, age, id) = key else { continue };
                if after.is_some() && (age, id) <= (from_age, from_id) {
                    continue;
                }
                let Some(row) = view.session(id) else { continue };
                if status.is_none_or(|status| row.status.name() == status) {
                    found.push((age, id, Value::Object(summary(id, &row))));
                    taken += 1;
                }
                if taken > limit {
                    break;
                }
            }
            view.check()?;
        }
        found.sort_by_key(|(age, id, _)| (*age, *id));
        let more = found.len() > limit || !looked_all;
        found.truncate(limit);
        let next = found.last().filter(|_| more).map(|(age, id, _)| format!("{age}.{id}"));
        let sessions: Vec<Value> = found.into_iter().map(|(_, _, json)| json).collect();
        Ok(json!({"sessions": sessions, "next_cursor": next}))
    }

    /// Events from a number on.
    pub(crate) async fn events(
        &self,
        tenant: &str,
        id: SessionId,
        from: Seq,
        limit: usize,
        linearizable: bool,
    ) -> Result<Events> {
        let group = self.group_of(id)?;
        if linearizable {
            self.read(group).await?;
        }
        let view = group.view();
        let (row, definition) = self.owned(&view, tenant, id)?;
        let values = Values::new(&view, id, &definition);
        let to = Key::Event(id, row.next_seq);
        let rows = view.scan(&Key::Event(id, from), &to, limit.clamp(1, EVENTS_PAGE_MAX));
        let mut events = Vec::with_capacity(rows.len());
        let mut next = from;
        for (_, row) in rows {
            let Row::Event(event, digest) = row else { continue };
            next = Seq(event.seq.0 + 1);
            let path = event.step.map(|step| values.path(step));
            events.push(event_json(&event, digest, path));
        }
        view.check()?;
        Ok(Events { events, next, ended: row.status.is_ended() && next == row.next_seq })
    }

    /// Checks the hash chain over a session's events.
    pub(crate) async fn audit(&self, tenant: &str, id: SessionId) -> Result<Value> {
        let group = self.group_of(id)?;
        self.read(group).await?;
        let view = group.view();
        let (row, _) = self.owned(&view, tenant, id)?;
        let (mut at, mut digest) = (0u64, Digest::default());
        let mut broken = None;
        while at < row.next_seq.0 && broken.is_none() {
            let rows = view.scan(&Key::Event(id, Seq(at)), &Key::Event(id, row.next_seq), 1_000);
            let events: Vec<_> = rows
                .iter()
                .filter_map(|(_, row)| match row {
                    Row::Event(event, digest) => Some((event, digest)),
                    _ => None,
                })
                .collect();
            match machine::chain(digest, at, events.iter().copied()) {
                Ok(last) if !events.is_empty() => {
                    digest = last;
                    at += events.len() as u64;
                }
                Ok(_) => broken = Some(at),
                Err(place) => broken = Some(at + place),
            }
        }
        if let Err(error) = view.check() {
            return Ok(json!({"id": id.to_string(), "intact": false, "events": at, "first_broken_seq": at,
                "reason": error.to_string()}));
        }
        let intact = broken.is_none() && digest == row.head;
        let first_broken = broken.or_else(|| (!intact).then_some(at));
        Ok(json!({"id": id.to_string(), "intact": intact, "events": at, "head": row.head.to_string(),
            "first_broken_seq": first_broken}))
    }

    /// Why a session is not moving.
    pub(crate) async fn describe(&self, tenant: &str, id: SessionId) -> Result<Value> {
        let group = self.group_of(id)?;
        self.read(group).await?;
        let view = group.view();
        let (row, definition) = self.owned(&view, tenant, id)?;
        let values = Values::new(&view, id, &definition);
        let running = self.engines.get(&id.shard()).map(|engine| engine.running(id)).unwrap_or_default();
        let mut coming = Vec::new();
        for step in pending(&view, id) {
            let Some(step_row) = view.step(id, step) else { continue };
            let at_work = running.iter().find(|running| running.step == step);
            let waits_for = match step_row.status {
                StepStatus::Ready => match at_work.map(|running| running.started_at) {
                    Some(Some(at)) => format!("its work, under way since {at}"),
                    Some(None) => "its turn: the node is at its limit of work".to_owned(),
                    None => "the leader to start its work".to_owned(),
                },
                StepStatus::Backoff => {
                    format!(
                        "its next attempt, at {}",
                        step_row.timer.map(|at| at.to_string()).unwrap_or_default()
                    )
                }
                _ => waits_for(&definition, step, step_row.timer),
            };
            coming.push(json!({
                "step": values.path(step),
                "ref": step.to_string(),
                "status": step_row.status.name(),
                "attempt": step_row.attempt.0,
                "waits_for": waits_for,
                "last_error": step_row.failed.and_then(|seq| failure_of(&view, id, seq)),
            }));
        }
        let mut json = summary(id, &row);
        json.insert("coming".into(), coming.into());
        let breakers = self.router.status().into_iter().map(|provider| {
            json!({"provider": provider.name, "circuit": provider.breaker.name(), "in_flight": provider.in_flight})
        });
        json.insert("providers".into(), breakers.collect::<Vec<_>>().into());
        json.insert("writes_stopped".into(), self.status().writes_stopped.into());
        view.check()?;
        Ok(Value::Object(json))
    }

    /// News of a session's shard.
    pub(crate) fn watch(&self, id: SessionId) -> Result<broadcast::Receiver<Watch>> {
        Ok(self.group_of(id)?.effects().watch())
    }

    /// News of all sessions of this node.
    pub(crate) fn watch_all(&self) -> mpsc::Receiver<Watch> {
        let (sender, receiver) = mpsc::channel(1024);
        for group in self.node.groups().values() {
            let (mut news, sender) = (group.effects().watch(), sender.clone());
            tokio::spawn(async move {
                loop {
                    match news.recv().await {
                        Ok(watch) => {
                            if sender.send(watch).await.is_err() {
                                return;
                            }
                        }
                        Err(broadcast::error::RecvError::Lagged(_)) => {}
                        Err(broadcast::error::RecvError::Closed) => return,
                    }
                }
            });
        }
        receiver
    }
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions").field("node", &self.node).finish_non_exhaustive()
    }
}

fn compile(file: &str, source: &str) -> Result<Definition> {
    workflow::compile(file, source).map_err(|error| ApiError::new(error::INVALID_WORKFLOW, error.to_string()))
}

fn pending(view: &impl Read, id: SessionId) -> Vec<StepId> {
    let from = Key::Pending(id, StepId::default());
    let to = Key::Pending(id.successor(), StepId::default());
    let rows = view.scan(&from, &to, STEPS_MAX).into_iter();
    rows.filter_map(|(key, _)| match key {
        Key::Pending(_, step) => Some(step),
        _ => None,
    })
    .collect()
}

fn waits_for(definition: &Definition, step: StepId, until: Option<Timestamp>) -> String {
    let what = match definition.nodes.get(usize::from(step.node)).map(|node| &node.kind) {
        Some(NodeKind::Wait(Wait::Signal { name, .. })) => format!("signal `{name}`"),
        Some(NodeKind::Wait(Wait::Approval { .. })) => "an approval".to_owned(),
        _ => "its timer".to_owned(),
    };
    until.map_or_else(|| what.clone(), |until| format!("{what}, until {until}"))
}

fn failure_of(view: &impl Read, id: SessionId, seq: Seq) -> Option<Value> {
    match view.event(id, seq)?.data {
        EventData::StepFailed { failure, .. } => Some(failure_json(&failure)),
        _ => None,
    }
}

fn kind(definition: &Definition, step: StepId) -> &'static str {
    let Some(node) = definition.nodes.get(usize::from(step.node)) else { return "unknown" };
    match &node.kind {
        NodeKind::Work if node.spec.contains("\"agent\"") => "agent",
        NodeKind::Work => "value",
        NodeKind::Branch { .. } => "branch",
        NodeKind::Fork { .. } => "fork",
        NodeKind::Map { .. } => "map",
        NodeKind::Loop { .. } => "loop",
        NodeKind::Wait(_) => "wait",
    }
}

fn workflow_json(name: &str, row: &WorkflowRow) -> Value {
    json!({"name": name, "definition": row.definition.to_string(), "version": row.version,
        "applied_at": row.applied_at.to_string()})
}

fn summary(id: SessionId, row: &SessionRow) -> Map<String, Value> {
    let usage = &row.spent.usage;
    let labels: Map<String, Value> =
        row.labels.iter().map(|(key, value)| (key.clone(), value.clone().into())).collect();
    let json = json!({
        "id": id.to_string(),
        "status": row.status.name(),
        "workflow": row.workflow,
        "definition": row.definition.to_string(),
        "durability": match row.durability { Durability::Local => "local", Durability::Geo => "geo" },
        "created_at": row.created_at.to_string(),
        "updated_at": row.updated_at.to_string(),
        "ended_at": row.ended_at.map(|at| at.to_string()),
        "labels": labels,
        "events": row.next_seq.0,
        "usage": {"steps": row.spent.steps, "tokens_in": usage.tokens_in, "tokens_out": usage.tokens_out,
            "cost_microusd": usage.cost_microusd},
        "error": row.error.as_ref().map(|error| failure_json(&error.failure)),
    });
    match json {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}

fn failure_json(failure: &machine::Failure) -> Value {
    let class = match failure.class {
        machine::FailureClass::Transient => "transient",
        machine::FailureClass::Permanent => "permanent",
        machine::FailureClass::Limit => "limit",
    };
    json!({"class": class, "code": failure.code, "message": failure.message})
}

fn report_json(report: &machine::Report) -> Value {
    let calls: Vec<Value> = report
        .calls
        .iter()
        .map(|call| {
            json!({"provider": call.provider, "model": call.model, "latency_ms": call.latency_ms,
                "error": call.failure.as_ref().map(failure_json)})
        })
        .collect();
    json!({"provider": report.provider, "model": report.model, "simulated": report.simulated,
        "tokens_in": report.usage.tokens_in, "tokens_out": report.usage.tokens_out,
        "cost_microusd": report.usage.cost_microusd, "calls": calls})
}

fn event_json(event: &Event, digest: Digest, path: Option<String>) -> Value {
    let parsed = |value: &Bytes| serde_json::from_slice::<Value>(value).unwrap_or(Value::Null);
    let data = match &event.data {
        EventData::SessionStarted { tenant, workflow, definition, input } => json!({"tenant": tenant,
            "workflow": workflow, "definition": definition.to_string(), "input": parsed(input)}),
        EventData::StepCompleted { attempt, dispatch, started_at, output, report } => json!({
            "attempt": attempt.0, "dispatch": dispatch.0, "started_at": started_at.to_string(),
            "output": output.as_ref().map(parsed), "report": report.as_ref().map(report_json)}),
        EventData::StepFailed { attempt, dispatch, started_at, failure, report, retry_at } => json!({
            "attempt": attempt.0, "dispatch": dispatch.0, "started_at": started_at.to_string(),
            "error": failure_json(failure), "report": report.as_ref().map(report_json),
            "retry_at": retry_at.map(|at| at.to_string())}),
        EventData::BranchChosen { case } => json!({"case": case}),
        EventData::MapExpanded { count } => json!({"count": count}),
        EventData::IterationStarted { iteration } => json!({"iteration": iteration}),
        EventData::RecoveryStarted { recovery } => json!({"recovery": recovery}),
        EventData::ItemFailed { index } => json!({"index": index}),
        EventData::WaitStarted { until } => json!({"until": until.map(|at| at.to_string())}),
        EventData::SignalReceived { name, payload, .. } => json!({"name": name, "payload": parsed(payload)}),
        EventData::ApprovalDecided { decision, value, reason, by } => {
            json!({"decision": decision, "value": value.as_ref().map(parsed), "reason": reason, "by": by})
        }
        EventData::StepRedispatched { dispatch } => json!({"dispatch": dispatch.0}),
        EventData::SessionCompleted { usage } => json!({"tokens_in": usage.tokens_in,
            "tokens_out": usage.tokens_out, "cost_microusd": usage.cost_microusd}),
        EventData::SessionFailed { failure } => json!({"error": failure_json(failure)}),
        EventData::SessionCanceled { reason } => json!({"reason": reason}),
        EventData::StepSkipped | EventData::Forked | EventData::SessionRetried => json!({}),
    };
    json!({"seq": event.seq.0, "at": event.at.to_string(), "type": event.data.kind(), "step": path, "data": data,
        "hash": digest.to_string()})
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

fn parse_cursor(cursor: &str) -> Result<(u64, SessionId)> {
    let parsed = cursor.split_once('.').and_then(|(age, id)| Some((age.parse().ok()?, id.parse().ok()?)));
    parsed.ok_or_else(|| ApiError::invalid("cursor: expected a `next_cursor` of an earlier answer"))
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

const _: () = assert!(STEPS_MAX <= limits::NODES_MAX, "an answer shows a part of the largest session");
