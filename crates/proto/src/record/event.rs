//! Events.

use ids::{Attempt, Digest, Dispatch, Seq, Timestamp};
use machine::{Event, EventData};

use super::{
    common::{
        digest, failure, report, session, step, to_digest, to_failure, to_report, to_session, to_step_option,
        to_u16, to_u128, to_usage, usage,
    },
    missing,
};
use crate::{
    envelope::Error,
    storage::{self, Empty, event::Data},
};

pub(super) fn encode(event: &Event, hash: Digest) -> storage::Event {
    storage::Event {
        seq: event.seq.0,
        at: event.at.0,
        step: event.step.map(step),
        digest: digest(hash),
        data: Some(encode_data(&event.data)),
    }
}

fn encode_data(data: &EventData) -> Data {
    match data {
        EventData::SessionStarted { tenant, workflow, definition, input } => {
            Data::SessionStarted(storage::SessionStarted {
                tenant: tenant.clone(),
                workflow: workflow.clone(),
                definition: digest(*definition),
                input: input.clone(),
            })
        }
        EventData::StepCompleted { attempt, dispatch, started_at, output, report: took } => {
            Data::StepCompleted(storage::StepCompleted {
                attempt: attempt.0,
                dispatch: dispatch.0,
                started_at: started_at.0,
                output: output.clone(),
                report: took.as_ref().map(report),
            })
        }
        EventData::StepFailed { attempt, dispatch, started_at, failure: why, report: took, retry_at } => {
            Data::StepFailed(storage::StepFailed {
                attempt: attempt.0,
                dispatch: dispatch.0,
                started_at: started_at.0,
                failure: Some(failure(why)),
                report: took.as_ref().map(report),
                retry_at: retry_at.map(|at| at.0),
            })
        }
        EventData::StepDeferred { attempt, dispatch, failure: why, until } => {
            Data::StepDeferred(storage::StepDeferred {
                attempt: attempt.0,
                dispatch: dispatch.0,
                failure: Some(failure(why)),
                until: until.0,
            })
        }
        EventData::StepSkipped => Data::StepSkipped(Empty {}),
        EventData::BranchChosen { case } => {
            Data::BranchChosen(storage::OptionalNumber { value: case.map(u32::from) })
        }
        EventData::Forked => Data::Forked(Empty {}),
        EventData::MapExpanded { count } => Data::MapExpanded(*count),
        EventData::IterationStarted { iteration } => Data::IterationStarted(*iteration),
        EventData::RecoveryStarted { recovery } => Data::RecoveryStarted(*recovery),
        EventData::ItemFailed { index } => Data::ItemFailed(*index),
        EventData::WaitStarted { until } => {
            Data::WaitStarted(storage::WaitStarted { until: until.map(|at| at.0) })
        }
        EventData::SignalReceived { name, payload, id } => Data::SignalReceived(storage::SignalReceived {
            name: name.clone(),
            payload: payload.clone(),
            id: id.to_be_bytes().to_vec().into(),
        }),
        EventData::ApprovalDecided { decision, value, reason, by } => {
            Data::ApprovalDecided(storage::ApprovalDecided {
                decision: decision.clone(),
                value: value.clone(),
                reason: reason.clone(),
                by: by.clone(),
            })
        }
        EventData::StepRedispatched { dispatch } => Data::StepRedispatched(dispatch.0),
        EventData::SessionCompleted { usage: used } => Data::SessionCompleted(usage(*used)),
        EventData::SessionFailed { failure: why } => Data::SessionFailed(failure(why)),
        EventData::SessionCanceled { reason } => Data::SessionCanceled(reason.clone()),
        EventData::SessionRetried => Data::SessionRetried(Empty {}),
        EventData::SessionImported { origin, events } => {
            Data::SessionImported(storage::SessionImported { origin: session(*origin), events: *events })
        }
    }
}

pub(super) fn decode(event: storage::Event) -> Result<(Event, Digest), Error> {
    let hash = to_digest(&event.digest)?;
    let data = decode_data(event.data.ok_or_else(|| missing("an event's data"))?)?;
    let step = to_step_option(event.step)?;
    Ok((Event { seq: Seq(event.seq), at: Timestamp(event.at), step, data }, hash))
}

fn decode_data(data: Data) -> Result<EventData, Error> {
    Ok(match data {
        Data::SessionStarted(started) => EventData::SessionStarted {
            tenant: started.tenant,
            workflow: started.workflow,
            definition: to_digest(&started.definition)?,
            input: started.input,
        },
        Data::StepCompleted(completed) => EventData::StepCompleted {
            attempt: Attempt(completed.attempt),
            dispatch: Dispatch(completed.dispatch),
            started_at: Timestamp(completed.started_at),
            output: completed.output,
            report: to_report(completed.report)?,
        },
        Data::StepFailed(failed) => EventData::StepFailed {
            attempt: Attempt(failed.attempt),
            dispatch: Dispatch(failed.dispatch),
            started_at: Timestamp(failed.started_at),
            failure: to_failure(failed.failure)?,
            report: to_report(failed.report)?,
            retry_at: failed.retry_at.map(Timestamp),
        },
        Data::StepDeferred(deferred) => EventData::StepDeferred {
            attempt: Attempt(deferred.attempt),
            dispatch: Dispatch(deferred.dispatch),
            failure: to_failure(deferred.failure)?,
            until: Timestamp(deferred.until),
        },
        Data::StepSkipped(_) => EventData::StepSkipped,
        Data::BranchChosen(case) => EventData::BranchChosen { case: case.value.map(to_u16).transpose()? },
        Data::Forked(_) => EventData::Forked,
        Data::MapExpanded(count) => EventData::MapExpanded { count },
        Data::IterationStarted(iteration) => EventData::IterationStarted { iteration },
        Data::RecoveryStarted(recovery) => EventData::RecoveryStarted { recovery },
        Data::ItemFailed(index) => EventData::ItemFailed { index },
        Data::WaitStarted(wait) => EventData::WaitStarted { until: wait.until.map(Timestamp) },
        Data::SignalReceived(signal) => {
            EventData::SignalReceived { name: signal.name, payload: signal.payload, id: to_u128(&signal.id)? }
        }
        Data::ApprovalDecided(decided) => EventData::ApprovalDecided {
            decision: decided.decision,
            value: decided.value,
            reason: decided.reason,
            by: decided.by,
        },
        Data::StepRedispatched(dispatch) => EventData::StepRedispatched { dispatch: Dispatch(dispatch) },
        Data::SessionCompleted(used) => EventData::SessionCompleted { usage: to_usage(Some(used)) },
        Data::SessionFailed(why) => EventData::SessionFailed { failure: to_failure(Some(why))? },
        Data::SessionCanceled(reason) => EventData::SessionCanceled { reason },
        Data::SessionRetried(_) => EventData::SessionRetried,
        Data::SessionImported(of) => {
            EventData::SessionImported { origin: to_session(&of.origin)?, events: of.events }
        }
    })
}
