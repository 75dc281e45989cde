//! A value of every kind that is stored or sent. A new command or row does not compile until it has its place here.

use std::{collections::BTreeMap, sync::Arc};

use ids::{
    Attempt, Digest, Dispatch, Epoch, Position, RegionId, ScopeId, Seq, SessionId, ShardId, StepId, Timestamp,
};
use machine::{
    AlertChange, AlertRow, AlertState, Approval, Backoff, Block, Call, Case, Command, Decision, Definition,
    Durability, Event, EventData, Failure, FailureClass, History, Idempotency, IdempotencyRow, Key, Node,
    NodeKind, OnFailure, Outcome, OutputRef, Pause, PendingRow, Recover, Refusal, Report, Resolution,
    ResolveStep, Retry, Row, ScopeKind, ScopeRow, SessionError, SessionLimits, SessionRow, SessionStatus,
    ShardRow, Spent, StartSession, StepDetail, StepRow, StepStatus, Usage, Wait, WorkflowRow,
};

fn session() -> SessionId {
    SessionId::new(RegionId(1), ShardId(2), 0x0102_0304_0506)
}

fn step() -> StepId {
    StepId::new(ScopeId(3), 4)
}

fn failure(class: FailureClass) -> Failure {
    Failure::new(class, "code", "message")
}

fn usage() -> Usage {
    Usage { tokens_in: 5, tokens_out: 6, cost_microusd: 7 }
}

fn report() -> Report {
    let call = |failure| Call { provider: "p".into(), model: "m".into(), latency_ms: 8, failure };
    Report {
        provider: "p".into(),
        model: "m".into(),
        usage: usage(),
        calls: vec![call(Some(failure(FailureClass::Limit))), call(None)],
        simulated: true,
    }
}

fn limits() -> SessionLimits {
    SessionLimits { steps: 9, tokens: 10, cost_microusd: 11, iterations: 12, duration_ms: 13 }
}

fn idempotency() -> Idempotency {
    Idempotency { lock_key: "lock".into(), key: "key".into(), fingerprint: Digest([14; 32]) }
}

fn definition() -> Definition {
    let retry =
        |backoff| Retry { attempts_max: 3, backoff, delay_ms: 15, delay_max_ms: 16, jitter_permille: 17 };
    let kinds = [
        (NodeKind::Work, Backoff::Constant),
        (NodeKind::Task { queue: "q".into() }, Backoff::Linear),
        (NodeKind::Branch { cases: vec![Case { block: 1 }], otherwise: Some(2) }, Backoff::Exponential),
        (NodeKind::Fork { branches: vec![("b".into(), 1)] }, Backoff::Constant),
        (NodeKind::Map { block: 1, parallel: 18, on_failure: OnFailure::Continue }, Backoff::Constant),
        (NodeKind::Map { block: 1, parallel: 1, on_failure: OnFailure::Fail }, Backoff::Constant),
        (NodeKind::Loop { block: 1, iterations_max: 19, fail_when_exhausted: true }, Backoff::Constant),
        (NodeKind::Wait(Wait::Timer { for_ms: 20 }), Backoff::Constant),
        (NodeKind::Wait(Wait::Signal { name: "s".into(), timeout_ms: 21 }), Backoff::Constant),
        (NodeKind::Wait(Wait::Approval { subject: Some(1), timeout_ms: 22 }), Backoff::Constant),
    ];
    let node = |(kind, backoff)| Node {
        name: "n".into(),
        block: 0,
        after: vec![1],
        next: vec![2],
        conditional: true,
        retry: retry(backoff),
        recover: Some(Recover { block: 1, attempts_max: 2 }),
        timeout_ms: 23,
        kind,
        spec: "{}".into(),
    };
    Definition {
        hash: Digest([24; 32]),
        name: "w".into(),
        source: "name: w".into(),
        blocks: vec![Block { nodes: vec![0, 1] }],
        nodes: kinds.into_iter().map(node).collect(),
        limits: limits(),
        retention_ms: 25,
    }
}

fn resolve(resolution: Resolution, report: Option<Report>) -> Command {
    Command::ResolveStep(ResolveStep {
        session: session(),
        step: step(),
        dispatch: Dispatch(26),
        started_at: Timestamp(27),
        resolution,
        report,
    })
}

pub(crate) fn commands() -> Vec<(String, Command)> {
    let resolutions = [
        Resolution::Completed("1".into()),
        Resolution::Failed {
            failure: failure(FailureClass::Transient),
            random: 28,
            pause: Pause { wait_ms: 29, untried: true },
        },
        Resolution::Skipped,
        Resolution::Entered,
        Resolution::Chosen(Some(1)),
        Resolution::Chosen(None),
        Resolution::Items(vec!["1".into(), "2".into()]),
        Resolution::Again(true),
    ];
    let decisions = [Decision::Approve, Decision::Edit("2".into()), Decision::Reject { reason: "no".into() }];
    let changes = [
        AlertChange::Breached { hold_ms: 30, value: "31".into() },
        AlertChange::Fine,
        AlertChange::Notified { state: AlertState::Firing, since: Timestamp(32) },
    ];
    let start = StartSession {
        session: session(),
        tenant: "t".into(),
        workflow: "w".into(),
        definition: Digest([24; 32]),
        input: "{}".into(),
        labels: vec![("a".into(), "b".into())],
        limits: limits(),
        durability: Durability::Geo,
        idempotency: Some(idempotency()),
    };
    let mut all = vec![
        Command::PutDefinition(Arc::new(definition())),
        Command::ApplyWorkflow { tenant: "t".into(), name: "w".into(), definition: Digest([24; 32]) },
        Command::StartSession(StartSession {
            durability: Durability::Local,
            idempotency: None,
            ..start.clone()
        }),
        Command::StartSession(start),
        Command::Redispatch(vec![(session(), step())]),
        Command::Signal { session: session(), name: "s".into(), payload: "3".into(), id: 33 },
        Command::Cancel { session: session(), reason: "enough".into() },
        Command::Retry { session: session() },
        Command::ImportSession { session: session(), tenant: "t".into(), history: Arc::new(history()) },
        Command::FireTimers,
        Command::CheckDigest { agreed: Some((Position(34), 35)) },
        Command::CheckDigest { agreed: None },
        Command::Finalize { machine_version: 2 },
    ];
    all.extend(resolutions.into_iter().map(|of| resolve(of, Some(report()))));
    all.push(resolve(Resolution::Skipped, None));
    all.extend(decisions.into_iter().map(|decision| Command::Approve {
        session: session(),
        step: Some(step()),
        approval: Approval { decision, by: "t".into() },
    }));
    all.extend(changes.into_iter().map(|change| Command::Alert { name: "a".into(), change }));
    let named = |command: Command| {
        let name = match &command {
            Command::PutDefinition(_) => "PutDefinition",
            Command::ApplyWorkflow { .. } => "ApplyWorkflow",
            Command::StartSession(_) => "StartSession",
            Command::ResolveStep(_) => "ResolveStep",
            Command::Redispatch(_) => "Redispatch",
            Command::Signal { .. } => "Signal",
            Command::Approve { .. } => "Approve",
            Command::Cancel { .. } => "Cancel",
            Command::Retry { .. } => "Retry",
            Command::ImportSession { .. } => "ImportSession",
            Command::FireTimers => "FireTimers",
            Command::CheckDigest { .. } => "CheckDigest",
            Command::Finalize { .. } => "Finalize",
            Command::Alert { .. } => "Alert",
        };
        (name.to_owned(), command)
    };
    all.into_iter().map(named).collect()
}

pub(crate) fn events() -> Vec<Event> {
    let all = [
        EventData::SessionStarted {
            tenant: "t".into(),
            workflow: "w".into(),
            definition: Digest([24; 32]),
            input: "{}".into(),
        },
        EventData::StepCompleted {
            attempt: Attempt(1),
            dispatch: Dispatch(2),
            started_at: Timestamp(36),
            output: Some("4".into()),
            report: Some(report()),
        },
        EventData::StepFailed {
            attempt: Attempt(1),
            dispatch: Dispatch(2),
            started_at: Timestamp(37),
            failure: failure(FailureClass::Permanent),
            report: None,
            retry_at: Some(Timestamp(38)),
        },
        EventData::StepDeferred {
            attempt: Attempt(1),
            dispatch: Dispatch(2),
            failure: failure(FailureClass::Transient),
            until: Timestamp(39),
        },
        EventData::StepSkipped,
        EventData::BranchChosen { case: Some(1) },
        EventData::Forked,
        EventData::MapExpanded { count: 40 },
        EventData::IterationStarted { iteration: 41 },
        EventData::RecoveryStarted { recovery: 42 },
        EventData::ItemFailed { index: 43 },
        EventData::WaitStarted { until: Some(Timestamp(44)) },
        EventData::SignalReceived { name: "s".into(), payload: "5".into(), id: 45 },
        EventData::ApprovalDecided {
            decision: "edit".into(),
            value: Some("6".into()),
            reason: "why".into(),
            by: "t".into(),
        },
        EventData::StepRedispatched { dispatch: Dispatch(46) },
        EventData::SessionCompleted { usage: usage() },
        EventData::SessionFailed { failure: failure(FailureClass::Limit) },
        EventData::SessionCanceled { reason: "enough".into() },
        EventData::SessionRetried,
        EventData::SessionImported { origin: session(), events: 47 },
    ];
    let event = |(number, data): (u64, EventData)| {
        let step = (number % 2 == 1).then(step);
        Event { seq: Seq(number), at: Timestamp(48 + number), step, data }
    };
    (0..).zip(all).map(event).collect()
}

pub(crate) fn history() -> History {
    History {
        origin: session(),
        labels: vec![("a".into(), "b".into())],
        limits: limits(),
        events: events(),
        items: BTreeMap::from([(step(), vec!["7".into()])]),
    }
}

#[expect(clippy::too_many_lines, reason = "a value of every row")]
pub(crate) fn rows() -> Vec<(String, Key, Row)> {
    let session_row = SessionRow {
        tenant: "t".into(),
        workflow: "w".into(),
        definition: Digest([24; 32]),
        status: SessionStatus::Failed,
        created_at: Timestamp(49),
        updated_at: Timestamp(50),
        ended_at: Some(Timestamp(51)),
        next_seq: Seq(52),
        head: Digest([53; 32]),
        next_scope: ScopeId(54),
        spent: Spent { steps: 55, iterations: 56, usage: usage() },
        limits: limits(),
        active: 57,
        waiting: 58,
        buffered_signals: 59,
        error: Some(SessionError { step: Some(step()), failure: failure(FailureClass::Permanent) }),
        labels: vec![("a".into(), "b".into())],
        durability: Durability::Local,
        idempotency: Some(idempotency()),
    };
    let scope = |kind| ScopeRow { parent: Some(step()), block: 60, kind, open: 61, failed: Some(Seq(62)) };
    let step_row = |status, output, detail| StepRow {
        status,
        attempt: Attempt(63),
        dispatch: Dispatch(64),
        ready_at: Timestamp(65),
        started_at: Some(Timestamp(66)),
        ended_at: Some(Timestamp(67)),
        remaining: 68,
        output,
        failed: Some(Seq(69)),
        timer: Some(Timestamp(70)),
        detail,
    };
    let alert = |state| AlertRow {
        state,
        since: Timestamp(71),
        fired_at: Some(Timestamp(72)),
        resolved_at: Some(Timestamp(73)),
        value: "74".into(),
        notified: true,
    };
    let (id, first) = (session(), ScopeId(75));
    let mut all = vec![
        (
            Key::Shard,
            Row::Shard(ShardRow {
                position: Position(76),
                now: Timestamp(77),
                epoch: Epoch(78),
                machine_version: 2,
            }),
        ),
        (Key::Definition(Digest([24; 32])), Row::Definition(Arc::new(definition()))),
        (
            Key::Workflow("t".into(), "w".into()),
            Row::Workflow(WorkflowRow {
                definition: Digest([24; 32]),
                version: 79,
                applied_at: Timestamp(80),
            }),
        ),
        (Key::Item(id, step(), 81), Row::Item("8".into())),
        (
            Key::Pending(id, step()),
            Row::Pending(PendingRow {
                attempt: Attempt(82),
                dispatch: Dispatch(83),
                work: true,
                external: true,
            }),
        ),
        (
            Key::Idempotency("t".into(), "lock".into(), "key".into()),
            Row::Idempotency(IdempotencyRow { session: id, fingerprint: Digest([14; 32]) }),
        ),
        (Key::ByTenant("t".into(), 84, id), Row::Present),
    ];
    let statuses = [
        SessionStatus::Running,
        SessionStatus::Waiting,
        SessionStatus::Completed,
        SessionStatus::Failed,
        SessionStatus::Canceled,
    ];
    all.extend(
        statuses
            .into_iter()
            .map(|status| (Key::Session(id), Row::Session(SessionRow { status, ..session_row.clone() }))),
    );
    let kinds = [
        ScopeKind::Root,
        ScopeKind::Case,
        ScopeKind::Branch(1),
        ScopeKind::Item(2),
        ScopeKind::Iteration(3),
        ScopeKind::Recovery(4),
    ];
    all.extend(kinds.into_iter().map(|kind| (Key::Scope(id, first), Row::Scope(scope(kind)))));
    let steps = [
        (StepStatus::Blocked, OutputRef::None, StepDetail::None),
        (StepStatus::Ready, OutputRef::Event(Seq(85)), StepDetail::None),
        (StepStatus::Backoff, OutputRef::Scope(first), StepDetail::None),
        (StepStatus::Waiting, OutputRef::Branches { first }, StepDetail::None),
        (
            StepStatus::Running,
            OutputRef::Items { first, count: 86 },
            StepDetail::Scopes { first, count: 87, started: 88, open: 89, failed: 90 },
        ),
        (
            StepStatus::Completed,
            OutputRef::None,
            StepDetail::Iteration { iteration: 91, scope: first, previous: Some(ScopeId(92)) },
        ),
        (StepStatus::Skipped, OutputRef::None, StepDetail::Recovery { recovery: 93, scope: first }),
        (StepStatus::Failed, OutputRef::None, StepDetail::None),
        (StepStatus::Canceled, OutputRef::None, StepDetail::None),
    ];
    all.extend(steps.into_iter().map(|(status, output, detail)| {
        (Key::Step(id, step()), Row::Step(step_row(status, output, detail)))
    }));
    let states = [AlertState::Pending, AlertState::Firing, AlertState::Resolved];
    all.extend(states.into_iter().map(|state| (Key::Alert("a".into()), Row::Alert(alert(state)))));
    all.extend(
        events().into_iter().map(|event| (Key::Event(id, event.seq), Row::Event(event, Digest([94; 32])))),
    );
    let named = |(key, row): (Key, Row)| {
        let name = match &row {
            Row::Shard(_) => "Shard".to_owned(),
            Row::Definition(_) => "Definition".to_owned(),
            Row::Workflow(_) => "Workflow".to_owned(),
            Row::Session(row) => format!("Session {}", row.status.name()),
            Row::Scope(row) => format!("Scope {:?}", row.kind),
            Row::Step(row) => format!("Step {}", row.status.name()),
            Row::Item(_) => "Item".to_owned(),
            Row::Event(event, _) => format!("Event {}", event.data.kind()),
            Row::Pending(_) => "Pending".to_owned(),
            Row::Idempotency(_) => "Idempotency".to_owned(),
            Row::Alert(row) => format!("Alert {:?}", row.state),
            Row::Present => "Present".to_owned(),
        };
        (name, key, row)
    };
    all.into_iter().map(named).collect()
}

pub(crate) fn outcomes() -> Vec<(String, Outcome)> {
    let refusals = [
        Refusal::UnknownSession(session()),
        Refusal::UnknownDefinition(Digest([24; 32])),
        Refusal::InvalidDefinition,
        Refusal::KeyReused(session()),
        Refusal::IdReused(session()),
        Refusal::Stale { given: Dispatch(95), current: Dispatch(96) },
        Refusal::WrongResolution,
        Refusal::WrongPosition { given: Position(97), expected: Position(98) },
        Refusal::Ended(session()),
        Refusal::NotFailed(session()),
        Refusal::NotAwaitingApproval { waiting: 99 },
        Refusal::TooLarge { what: "input".into(), limit: 100 },
        Refusal::NotReplayable(Seq(101)),
        Refusal::SignalsFull,
    ];
    let mut all = vec![
        ("Done".to_owned(), Outcome::Done),
        ("Started".to_owned(), Outcome::Started { session: session(), created: true }),
        ("Fired".to_owned(), Outcome::Fired { more: true }),
    ];
    all.extend(refusals.into_iter().map(|refusal| {
        let debug = format!("{refusal:?}");
        let name = debug.split([' ', '(']).next().unwrap_or_default().to_owned();
        (format!("Refused {name}"), Outcome::Refused(refusal))
    }));
    all
}
