//! Commands.

use std::sync::Arc;

use ids::{Dispatch, Position, Timestamp};
use machine::{Approval, Command, Decision, Pause, Resolution, ResolveStep, StartSession};

use super::{
    alert,
    common::{
        digest, durability, failure, idempotency, labels, limits, report, session, step, to_digest,
        to_durability, to_failure, to_idempotency, to_labels, to_limits, to_report, to_session, to_step,
        to_step_option, to_u16, to_u128,
    },
    definition, history, missing,
};
use crate::{
    envelope::Error,
    storage::{self, Empty, approve, command::Kind, resolve_step},
};

pub(super) fn encode(command: &Command) -> storage::Command {
    let kind = match command {
        Command::PutDefinition(put) => Kind::PutDefinition(definition::encode(put)),
        Command::ApplyWorkflow { tenant, name, definition } => Kind::ApplyWorkflow(storage::ApplyWorkflow {
            tenant: tenant.clone(),
            name: name.clone(),
            definition: digest(*definition),
        }),
        Command::StartSession(start) => Kind::StartSession(encode_start(start)),
        Command::ResolveStep(resolve) => Kind::ResolveStep(encode_resolve(resolve)),
        Command::Redispatch(steps) => Kind::Redispatch(storage::Redispatch {
            steps: steps
                .iter()
                .map(|(id, of)| storage::redispatch::Step { session: session(*id), step: Some(step(*of)) })
                .collect(),
        }),
        Command::Signal { session: id, name, payload, id: signal } => Kind::Signal(storage::Signal {
            session: session(*id),
            name: name.clone(),
            payload: payload.clone(),
            id: signal.to_be_bytes().to_vec().into(),
        }),
        Command::Approve { session: id, step: of, approval } => Kind::Approve(storage::Approve {
            session: session(*id),
            step: of.map(step),
            by: approval.by.clone(),
            decision: Some(match &approval.decision {
                Decision::Approve => approve::Decision::Approve(Empty {}),
                Decision::Edit(value) => approve::Decision::Edit(value.clone()),
                Decision::Reject { reason } => approve::Decision::Reject(reason.clone()),
            }),
        }),
        Command::Cancel { session: id, reason } => {
            Kind::Cancel(storage::Cancel { session: session(*id), reason: reason.clone() })
        }
        Command::Retry { session: id } => Kind::Retry(session(*id)),
        Command::ImportSession { session: id, tenant, history: of } => {
            Kind::ImportSession(storage::ImportSession {
                session: session(*id),
                tenant: tenant.clone(),
                history: Some(history::encode(of)),
            })
        }
        Command::FireTimers => Kind::FireTimers(Empty {}),
        Command::CheckDigest { agreed } => Kind::CheckDigest(storage::CheckDigest {
            position: agreed.map(|(position, _)| position.0),
            digest: agreed.map(|(_, digest)| digest.to_be_bytes().to_vec().into()).unwrap_or_default(),
        }),
        Command::Finalize { machine_version } => Kind::Finalize(*machine_version),
        Command::Alert { name, change } => {
            Kind::Alert(storage::Alert { name: name.clone(), change: Some(alert::encode_change(change)) })
        }
    };
    storage::Command { kind: Some(kind) }
}

fn encode_start(start: &StartSession) -> storage::StartSession {
    storage::StartSession {
        session: session(start.session),
        tenant: start.tenant.clone(),
        workflow: start.workflow.clone(),
        definition: digest(start.definition),
        input: start.input.clone(),
        labels: labels(&start.labels),
        limits: Some(limits(&start.limits)),
        durability: durability(start.durability),
        idempotency: start.idempotency.as_ref().map(idempotency),
    }
}

fn encode_resolve(resolve: &ResolveStep) -> storage::ResolveStep {
    use resolve_step::Resolution as Message;
    storage::ResolveStep {
        session: session(resolve.session),
        step: Some(step(resolve.step)),
        dispatch: resolve.dispatch.0,
        started_at: resolve.started_at.0,
        report: resolve.report.as_ref().map(report),
        resolution: Some(match &resolve.resolution {
            Resolution::Completed(value) => Message::Completed(value.clone()),
            Resolution::Failed { failure: why, random, pause } => Message::Failed(storage::FailedAttempt {
                failure: Some(failure(why)),
                random: u32::from(*random),
                wait_ms: pause.wait_ms,
                untried: pause.untried,
            }),
            Resolution::Skipped => Message::Skipped(Empty {}),
            Resolution::Entered => Message::Entered(Empty {}),
            Resolution::Chosen(case) => {
                Message::Chosen(storage::OptionalNumber { value: case.map(u32::from) })
            }
            Resolution::Items(items) => Message::Items(storage::Items { items: items.clone() }),
            Resolution::Again(again) => Message::Again(*again),
        }),
    }
}

pub(super) fn decode(command: storage::Command) -> Result<Command, Error> {
    Ok(match command.kind.ok_or_else(|| missing("a command"))? {
        Kind::PutDefinition(put) => Command::PutDefinition(Arc::new(definition::decode(put)?)),
        Kind::ApplyWorkflow(apply) => Command::ApplyWorkflow {
            tenant: apply.tenant,
            name: apply.name,
            definition: to_digest(&apply.definition)?,
        },
        Kind::StartSession(start) => Command::StartSession(StartSession {
            session: to_session(&start.session)?,
            tenant: start.tenant,
            workflow: start.workflow,
            definition: to_digest(&start.definition)?,
            input: start.input,
            labels: to_labels(start.labels),
            limits: to_limits(start.limits),
            durability: to_durability(start.durability)?,
            idempotency: to_idempotency(start.idempotency)?,
        }),
        Kind::ResolveStep(resolve) => Command::ResolveStep(decode_resolve(resolve)?),
        Kind::Redispatch(redispatch) => {
            let steps = redispatch.steps.into_iter().map(|of| {
                Ok((to_session(&of.session)?, to_step(of.step.ok_or_else(|| missing("a step"))?)?))
            });
            Command::Redispatch(steps.collect::<Result<_, Error>>()?)
        }
        Kind::Signal(signal) => Command::Signal {
            session: to_session(&signal.session)?,
            name: signal.name,
            payload: signal.payload,
            id: to_u128(&signal.id)?,
        },
        Kind::Approve(approve) => Command::Approve {
            session: to_session(&approve.session)?,
            step: to_step_option(approve.step)?,
            approval: Approval {
                by: approve.by,
                decision: match approve.decision.ok_or_else(|| missing("a decision"))? {
                    approve::Decision::Approve(_) => Decision::Approve,
                    approve::Decision::Edit(value) => Decision::Edit(value),
                    approve::Decision::Reject(reason) => Decision::Reject { reason },
                },
            },
        },
        Kind::Cancel(cancel) => {
            Command::Cancel { session: to_session(&cancel.session)?, reason: cancel.reason }
        }
        Kind::Retry(session) => Command::Retry { session: to_session(&session)? },
        Kind::ImportSession(import) => Command::ImportSession {
            session: to_session(&import.session)?,
            tenant: import.tenant,
            history: Arc::new(history::decode(import.history.ok_or_else(|| missing("a history"))?)?),
        },
        Kind::FireTimers(_) => Command::FireTimers,
        Kind::CheckDigest(of) => Command::CheckDigest {
            agreed: match of.position {
                Some(position) => Some((Position(position), to_u128(&of.digest)?)),
                None => None,
            },
        },
        Kind::Finalize(machine_version) => Command::Finalize { machine_version },
        Kind::Alert(of) => Command::Alert {
            name: of.name,
            change: alert::decode_change(of.change.ok_or_else(|| missing("a change of an alert"))?)?,
        },
    })
}

fn decode_resolve(resolve: storage::ResolveStep) -> Result<ResolveStep, Error> {
    use resolve_step::Resolution as Message;
    Ok(ResolveStep {
        session: to_session(&resolve.session)?,
        step: to_step(resolve.step.ok_or_else(|| missing("a step"))?)?,
        dispatch: Dispatch(resolve.dispatch),
        started_at: Timestamp(resolve.started_at),
        report: to_report(resolve.report)?,
        resolution: match resolve.resolution.ok_or_else(|| missing("a resolution"))? {
            Message::Completed(value) => Resolution::Completed(value),
            Message::Failed(failed) => Resolution::Failed {
                failure: to_failure(failed.failure)?,
                random: to_u16(failed.random)?,
                pause: Pause { wait_ms: failed.wait_ms, untried: failed.untried },
            },
            Message::Skipped(_) => Resolution::Skipped,
            Message::Entered(_) => Resolution::Entered,
            Message::Chosen(case) => Resolution::Chosen(case.value.map(to_u16).transpose()?),
            Message::Items(items) => Resolution::Items(items.items),
            Message::Again(again) => Resolution::Again(again),
        },
    })
}
