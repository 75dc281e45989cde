//! `Approve`: a person decides a step that waits.

use alloc::{string::String, vec::Vec};

use ids::{SessionId, StepId, Timestamp};

use super::{Result, check_value, run::Run};
use crate::{
    Approval, Decision, Effect, EventData, Failure, FailureClass, Key, NodeKind, Outcome, OutputRef, Pause,
    Refusal, StepStatus, Tables, Wait,
};

pub(super) fn approve<T: Tables>(
    tables: &mut T,
    now: Timestamp,
    session: SessionId,
    step: Option<StepId>,
    approval: &Approval,
    effects: &mut Vec<Effect>,
) -> Result {
    if let Decision::Edit(value) = &approval.decision {
        check_value("value", value)?;
    }
    let mut run = Run::load(tables, now, session, effects)?;
    let waiting = waiting_steps(&run);
    let step = match step {
        Some(step) if waiting.contains(&step) => step,
        None if waiting.len() == 1 => waiting[0],
        _ => {
            let waiting = u32::try_from(waiting.len()).unwrap_or(u32::MAX);
            return Err(Refusal::NotAwaitingApproval { waiting });
        }
    };
    let NodeKind::Wait(Wait::Approval { subject, .. }) = run.node(step).kind else {
        return Err(Refusal::NotAwaitingApproval { waiting: 0 });
    };
    let Some(row) = run.step(step) else { return Err(Refusal::NotAwaitingApproval { waiting: 0 }) };

    let by = approval.by.clone();
    let decided = |decision: &str, value, reason: &str| EventData::ApprovalDecided {
        decision: decision.into(),
        value,
        reason: reason.into(),
        by,
    };
    match &approval.decision {
        Decision::Approve => {
            run.event(Some(step), decided("approve", None, ""));
            let shown = subject.and_then(|node| run.step(StepId::new(step.scope, node)));
            let output = shown.map_or(OutputRef::None, |shown| shown.output);
            run.complete(step, row, output, None, None);
        }
        Decision::Edit(value) => {
            let seq = run.event(Some(step), decided("edit", Some(value.clone()), ""));
            run.complete(step, row, OutputRef::Event(seq), None, None);
        }
        Decision::Reject { reason } => {
            run.event(Some(step), decided("reject", None, reason));
            let message = if reason.is_empty() { String::from("rejected") } else { reason.clone() };
            run.attempt_failed(
                step,
                row,
                Failure::new(FailureClass::Permanent, "rejected", message),
                0,
                Pause::default(),
                None,
            );
        }
    }
    run.finish();
    Ok(Outcome::Done)
}

fn waiting_steps<T: Tables>(run: &Run<'_, T>) -> Vec<StepId> {
    let from = Key::Pending(run.id, StepId::default());
    let to = Key::Pending(run.id.successor(), StepId::default());
    let rows = run.tables.scan(&from, &to, usize::MAX).into_iter();
    rows.filter_map(|(key, _)| match key {
        Key::Pending(_, step) => Some(step),
        _ => None,
    })
    .filter(|&step| matches!(run.definition.node(step.node).kind, NodeKind::Wait(Wait::Approval { .. })))
    .filter(|&step| run.step(step).is_some_and(|row| row.status == StepStatus::Waiting))
    .collect()
}
