//! Rows of the state database.

use std::sync::Arc;

use bytes::Bytes;
use ids::{Attempt, Dispatch, Epoch, Position, ScopeId, Seq, Timestamp};
use machine::{
    IdempotencyRow, Key, OutputRef, PendingRow, Row, ScopeKind, ScopeRow, SessionError, SessionRow,
    SessionStatus, ShardRow, Spent, StepDetail, StepRow, StepStatus, WorkflowRow,
};
use prost::Message;

use super::{
    alert,
    common::{
        digest, durability, failure, idempotency, labels, limits, session, step, to_digest, to_durability,
        to_failure, to_idempotency, to_labels, to_limits, to_session, to_step_option, to_u16, to_usage,
        usage,
    },
    definition, event, missing, seal_row,
};
use crate::{
    envelope::{self, Error, Kind},
    storage::{self, Empty, output_ref, step_detail},
};

pub(super) fn encode(row: &Row) -> Bytes {
    match row {
        Row::Shard(row) => seal_row(&storage::ShardRow {
            position: row.position.0,
            now: row.now.0,
            epoch: row.epoch.0,
            machine_version: row.machine_version,
        }),
        Row::Definition(row) => seal_row(&definition::encode(row)),
        Row::Workflow(row) => seal_row(&storage::WorkflowRow {
            definition: digest(row.definition),
            version: row.version,
            applied_at: row.applied_at.0,
        }),
        Row::Session(row) => seal_row(&encode_session(row)),
        Row::Scope(row) => seal_row(&encode_scope(row)),
        Row::Step(row) => seal_row(&encode_step(row)),
        Row::Item(value) => seal_row(&storage::Items { items: vec![value.clone()] }),
        Row::Event(row, hash) => seal_row(&event::encode(row, *hash)),
        Row::Pending(row) => seal_row(&storage::PendingRow {
            attempt: row.attempt.0,
            dispatch: row.dispatch.0,
            work: row.work,
            external: row.external,
        }),
        Row::Idempotency(row) => seal_row(&storage::IdempotencyRow {
            session: session(row.session),
            fingerprint: digest(row.fingerprint),
        }),
        Row::Alert(row) => seal_row(&alert::encode_row(row)),
        Row::Present => seal_row(&Empty {}),
    }
}

pub(super) fn decode(key: &Key, bytes: &[u8]) -> Result<Row, Error> {
    Ok(match key {
        Key::Shard => {
            let row: storage::ShardRow = unseal(bytes)?;
            Row::Shard(ShardRow {
                position: Position(row.position),
                now: Timestamp(row.now),
                epoch: Epoch(row.epoch),
                machine_version: row.machine_version,
            })
        }
        Key::Definition(_) => Row::Definition(Arc::new(definition::decode(unseal(bytes)?)?)),
        Key::Workflow(..) => {
            let row: storage::WorkflowRow = unseal(bytes)?;
            Row::Workflow(WorkflowRow {
                definition: to_digest(&row.definition)?,
                version: row.version,
                applied_at: Timestamp(row.applied_at),
            })
        }
        Key::Session(_) => Row::Session(decode_session(unseal(bytes)?)?),
        Key::Scope(..) => Row::Scope(decode_scope(&unseal(bytes)?)?),
        Key::Step(..) => Row::Step(decode_step(&unseal(bytes)?)?),
        Key::Item(..) => {
            let items: storage::Items = unseal(bytes)?;
            Row::Item(items.items.into_iter().next().ok_or_else(|| missing("an item"))?)
        }
        Key::Event(..) => {
            let (event, hash) = event::decode(unseal(bytes)?)?;
            Row::Event(event, hash)
        }
        Key::Pending(..) => {
            let row: storage::PendingRow = unseal(bytes)?;
            Row::Pending(PendingRow {
                attempt: Attempt(row.attempt),
                dispatch: Dispatch(row.dispatch),
                work: row.work,
                external: row.external,
            })
        }
        Key::Idempotency(..) => {
            let row: storage::IdempotencyRow = unseal(bytes)?;
            Row::Idempotency(IdempotencyRow {
                session: to_session(&row.session)?,
                fingerprint: to_digest(&row.fingerprint)?,
            })
        }
        Key::Alert(_) => Row::Alert(alert::decode_row(unseal(bytes)?)?),
        Key::Listener(..) | Key::Signal(..) | Key::SignalId(..) | Key::Timer(..) | Key::ByTenant(..) => {
            unseal::<Empty>(bytes)?;
            Row::Present
        }
    })
}

fn unseal<M: Message + Default>(bytes: &[u8]) -> Result<M, Error> {
    envelope::unseal(Kind::Row, bytes)
}

fn encode_session(row: &SessionRow) -> storage::SessionRow {
    storage::SessionRow {
        tenant: row.tenant.clone(),
        workflow: row.workflow.clone(),
        definition: digest(row.definition),
        status: match row.status {
            SessionStatus::Running => 0,
            SessionStatus::Waiting => 1,
            SessionStatus::Completed => 2,
            SessionStatus::Failed => 3,
            SessionStatus::Canceled => 4,
        },
        created_at: row.created_at.0,
        updated_at: row.updated_at.0,
        ended_at: row.ended_at.map(|at| at.0),
        next_seq: row.next_seq.0,
        head: digest(row.head),
        next_scope: row.next_scope.0,
        spent_steps: row.spent.steps,
        spent_iterations: row.spent.iterations,
        spent_usage: Some(usage(row.spent.usage)),
        limits: Some(limits(&row.limits)),
        active: row.active,
        waiting: row.waiting,
        buffered_signals: row.buffered_signals,
        error: row.error.as_ref().map(|error| storage::SessionError {
            step: error.step.map(step),
            failure: Some(failure(&error.failure)),
        }),
        labels: labels(&row.labels),
        durability: durability(row.durability),
        idempotency: row.idempotency.as_ref().map(idempotency),
    }
}

fn decode_session(row: storage::SessionRow) -> Result<SessionRow, Error> {
    let error = row.error.map(|error| {
        Ok::<_, Error>(SessionError {
            step: to_step_option(error.step)?,
            failure: to_failure(error.failure)?,
        })
    });
    Ok(SessionRow {
        tenant: row.tenant,
        workflow: row.workflow,
        definition: to_digest(&row.definition)?,
        status: match row.status {
            0 => SessionStatus::Running,
            1 => SessionStatus::Waiting,
            2 => SessionStatus::Completed,
            3 => SessionStatus::Failed,
            4 => SessionStatus::Canceled,
            _ => return Err(missing("a session's status")),
        },
        created_at: Timestamp(row.created_at),
        updated_at: Timestamp(row.updated_at),
        ended_at: row.ended_at.map(Timestamp),
        next_seq: Seq(row.next_seq),
        head: to_digest(&row.head)?,
        next_scope: ScopeId(row.next_scope),
        spent: Spent {
            steps: row.spent_steps,
            iterations: row.spent_iterations,
            usage: to_usage(row.spent_usage),
        },
        limits: to_limits(row.limits),
        active: row.active,
        waiting: row.waiting,
        buffered_signals: row.buffered_signals,
        error: error.transpose()?,
        labels: to_labels(row.labels),
        durability: to_durability(row.durability)?,
        idempotency: to_idempotency(row.idempotency)?,
    })
}

fn encode_scope(row: &ScopeRow) -> storage::ScopeRow {
    let (kind, number) = match row.kind {
        ScopeKind::Root => (0, 0),
        ScopeKind::Case => (1, 0),
        ScopeKind::Branch(number) => (2, number.into()),
        ScopeKind::Item(number) => (3, number),
        ScopeKind::Iteration(number) => (4, number),
        ScopeKind::Recovery(number) => (5, number),
    };
    storage::ScopeRow {
        parent: row.parent.map(step),
        block: row.block.into(),
        kind,
        number,
        open: row.open.into(),
        failed: row.failed.map(|seq| seq.0),
    }
}

fn decode_scope(row: &storage::ScopeRow) -> Result<ScopeRow, Error> {
    Ok(ScopeRow {
        parent: to_step_option(row.parent)?,
        block: to_u16(row.block)?,
        kind: match row.kind {
            0 => ScopeKind::Root,
            1 => ScopeKind::Case,
            2 => ScopeKind::Branch(to_u16(row.number)?),
            3 => ScopeKind::Item(row.number),
            4 => ScopeKind::Iteration(row.number),
            5 => ScopeKind::Recovery(row.number),
            _ => return Err(missing("a scope's kind")),
        },
        open: to_u16(row.open)?,
        failed: row.failed.map(Seq),
    })
}

fn encode_step(row: &StepRow) -> storage::StepRow {
    storage::StepRow {
        status: match row.status {
            StepStatus::Blocked => 0,
            StepStatus::Ready => 1,
            StepStatus::Backoff => 2,
            StepStatus::Waiting => 3,
            StepStatus::Running => 4,
            StepStatus::Completed => 5,
            StepStatus::Skipped => 6,
            StepStatus::Failed => 7,
            StepStatus::Canceled => 8,
        },
        attempt: row.attempt.0,
        dispatch: row.dispatch.0,
        ready_at: row.ready_at.0,
        started_at: row.started_at.map(|at| at.0),
        ended_at: row.ended_at.map(|at| at.0),
        remaining: row.remaining.into(),
        output: encode_output(row.output),
        failed: row.failed.map(|seq| seq.0),
        timer: row.timer.map(|at| at.0),
        detail: encode_detail(row.detail),
    }
}

fn encode_output(output: OutputRef) -> Option<storage::OutputRef> {
    let kind = match output {
        OutputRef::None => return None,
        OutputRef::Event(seq) => output_ref::Kind::Event(seq.0),
        OutputRef::Scope(scope) => output_ref::Kind::Scope(scope.0),
        OutputRef::Branches { first } => output_ref::Kind::BranchesFirst(first.0),
        OutputRef::Items { first, count } => {
            output_ref::Kind::Items(output_ref::Range { first: first.0, count })
        }
    };
    Some(storage::OutputRef { kind: Some(kind) })
}

fn encode_detail(detail: StepDetail) -> Option<storage::StepDetail> {
    let kind = match detail {
        StepDetail::None => return None,
        StepDetail::Scopes { first, count, started, open, failed } => {
            step_detail::Kind::Scopes(step_detail::Scopes { first: first.0, count, started, open, failed })
        }
        StepDetail::Iteration { iteration, scope, previous } => {
            step_detail::Kind::Iteration(step_detail::Nth {
                number: iteration,
                scope: scope.0,
                previous: previous.map(|scope| scope.0),
            })
        }
        StepDetail::Recovery { recovery, scope } => {
            step_detail::Kind::Recovery(step_detail::Nth { number: recovery, scope: scope.0, previous: None })
        }
    };
    Some(storage::StepDetail { kind: Some(kind) })
}

fn decode_step(row: &storage::StepRow) -> Result<StepRow, Error> {
    Ok(StepRow {
        status: match row.status {
            0 => StepStatus::Blocked,
            1 => StepStatus::Ready,
            2 => StepStatus::Backoff,
            3 => StepStatus::Waiting,
            4 => StepStatus::Running,
            5 => StepStatus::Completed,
            6 => StepStatus::Skipped,
            7 => StepStatus::Failed,
            8 => StepStatus::Canceled,
            _ => return Err(missing("a step's status")),
        },
        attempt: Attempt(row.attempt),
        dispatch: Dispatch(row.dispatch),
        ready_at: Timestamp(row.ready_at),
        started_at: row.started_at.map(Timestamp),
        ended_at: row.ended_at.map(Timestamp),
        remaining: to_u16(row.remaining)?,
        output: match row.output.as_ref().and_then(|output| output.kind.as_ref()) {
            None => OutputRef::None,
            Some(output_ref::Kind::Event(seq)) => OutputRef::Event(Seq(*seq)),
            Some(output_ref::Kind::Scope(scope)) => OutputRef::Scope(ScopeId(*scope)),
            Some(output_ref::Kind::BranchesFirst(first)) => OutputRef::Branches { first: ScopeId(*first) },
            Some(output_ref::Kind::Items(range)) => {
                OutputRef::Items { first: ScopeId(range.first), count: range.count }
            }
        },
        failed: row.failed.map(Seq),
        timer: row.timer.map(Timestamp),
        detail: match row.detail.as_ref().and_then(|detail| detail.kind.as_ref()) {
            None => StepDetail::None,
            Some(step_detail::Kind::Scopes(scopes)) => StepDetail::Scopes {
                first: ScopeId(scopes.first),
                count: scopes.count,
                started: scopes.started,
                open: scopes.open,
                failed: scopes.failed,
            },
            Some(step_detail::Kind::Iteration(nth)) => StepDetail::Iteration {
                iteration: nth.number,
                scope: ScopeId(nth.scope),
                previous: nth.previous.map(ScopeId),
            },
            Some(step_detail::Kind::Recovery(nth)) => {
                StepDetail::Recovery { recovery: nth.number, scope: ScopeId(nth.scope) }
            }
        },
    })
}
