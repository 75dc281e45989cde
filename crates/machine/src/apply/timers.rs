//! `FireTimers`: what is due happens.

use alloc::vec::Vec;

use ids::{SessionId, StepId, Timestamp};

use super::{Result, run::Run, sweep};
use crate::{
    Effect, Failure, FailureClass, Key, NodeKind, Outcome, OutputRef, Pause, StepStatus, Tables, TimerKind,
    Wait, limits,
};

pub(super) fn fire<T: Tables>(tables: &mut T, now: Timestamp, effects: &mut Vec<Effect>) -> Result {
    let from = Key::Timer(Timestamp(0), SessionId::default(), TimerKind::Deadline);
    let to = Key::Timer(Timestamp(now.0.saturating_add(1)), SessionId::default(), TimerKind::Deadline);
    let due = tables.scan(&from, &to, limits::TIMERS_PER_COMMAND);
    let mut more = due.len() == limits::TIMERS_PER_COMMAND;
    for (key, _) in due {
        tables.delete(&key);
        let Key::Timer(_, session, kind) = key else { continue };
        more |= fire_one(tables, now, session, kind, effects);
    }
    Ok(Outcome::Fired { more })
}

/// What comes of one timer; whether it is due once more.
pub(crate) fn fire_one<T: Tables>(
    tables: &mut T,
    now: Timestamp,
    session: SessionId,
    kind: TimerKind,
    effects: &mut Vec<Effect>,
) -> bool {
    if kind == TimerKind::Retention {
        return sweep::sweep(tables, now, session);
    }
    let Ok(mut run) = Run::load(tables, now, session, effects) else { return false };
    match kind {
        TimerKind::Step(step) => fire_step(&mut run, step),
        TimerKind::Deadline | TimerKind::Retention => {
            let ms = run.row.limits.duration_ms;
            let message = alloc::format!("the session did not end within {ms} milliseconds");
            run.fail_session(None, Failure::new(FailureClass::Limit, "limit_duration", message));
        }
    }
    run.finish();
    false
}

/// The pause of a step that is known to have gone on is over.
pub(crate) fn end_pause<T: Tables>(
    tables: &mut T,
    now: Timestamp,
    (session, step): (SessionId, StepId),
    effects: &mut Vec<Effect>,
) {
    let Ok(mut run) = Run::load(tables, now, session, effects) else { return };
    let Some(mut row) = run.step(step).filter(|row| row.status == StepStatus::Backoff) else { return };
    run.settle(step, &mut row);
    run.send_out(step, row);
    run.finish();
}

fn fire_step<T: Tables>(run: &mut Run<'_, T>, step: StepId) {
    let Some(mut row) = run.step(step) else { return };
    match row.status {
        StepStatus::Backoff => {
            if let Some(failure) = run.limit_reached(false) {
                run.fail_session(Some(step), failure);
                return;
            }
            run.settle(step, &mut row);
            run.send_out(step, row);
        }
        StepStatus::Waiting => match &run.node(step).kind {
            NodeKind::Wait(Wait::Timer { .. }) => run.complete(step, row, OutputRef::None, None, None),
            NodeKind::Wait(Wait::Signal { timeout_ms, .. } | Wait::Approval { timeout_ms, .. }) => {
                let message = alloc::format!("nothing came within {timeout_ms} milliseconds");
                let failure = Failure::new(FailureClass::Permanent, "wait_timeout", message);
                run.attempt_failed(step, row, failure, 0, Pause::default(), None);
            }
            _ => {}
        },
        _ => {}
    }
}
