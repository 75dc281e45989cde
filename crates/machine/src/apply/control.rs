//! `Cancel` and `Retry`.

use alloc::vec::Vec;

use ids::{Attempt, Dispatch, SessionId, StepId, Timestamp};

use super::{Result, check_len, run::Run};
use crate::{
    Effect, EventData, Failure, FailureClass, Key, Outcome, Refusal, Row, ScopeKind, SessionError,
    SessionStatus, StepDetail, StepRow, StepStatus, Tables, TimerKind, limits,
};

pub(super) fn cancel<T: Tables>(
    tables: &mut T,
    now: Timestamp,
    session: SessionId,
    reason: &str,
    effects: &mut Vec<Effect>,
) -> Result {
    check_len("reason", reason.len(), limits::MESSAGE_BYTES_MAX)?;
    // Cancelling twice is cancelling once.
    if tables.session(session).is_some_and(|row| row.status == SessionStatus::Canceled) {
        return Ok(Outcome::Done);
    }
    let mut run = Run::load(tables, now, session, effects)?;
    run.event(None, EventData::SessionCanceled { reason: reason.into() });
    let failure = Failure::new(FailureClass::Permanent, "canceled", reason);
    run.row.error = Some(SessionError { step: None, failure });
    run.end(SessionStatus::Canceled);
    run.finish();
    Ok(Outcome::Done)
}

/// Runs what failed, and what was taken back because of it, again. Touches every step of the session once.
pub(super) fn retry<T: Tables>(
    tables: &mut T,
    now: Timestamp,
    session: SessionId,
    effects: &mut Vec<Effect>,
) -> Result {
    let mut run = Run::load_any(tables, now, session, effects)?;
    if run.row.status != SessionStatus::Failed {
        return Err(Refusal::NotFailed(session));
    }
    if let Some(at) = run.row.ended_at.take() {
        let at = at.plus_millis(run.definition.retention_ms);
        run.tables.delete(&Key::Timer(at, session, TimerKind::Retention));
    }
    run.row.error = None;
    run.row.status = SessionStatus::Running;
    // Its time begins again; what it has spent stays spent.
    if run.row.limits.duration_ms > 0 {
        let spent = now.since(run.row.created_at).as_millis();
        run.row.limits.duration_ms =
            run.row.limits.duration_ms.saturating_add(u64::try_from(spent).unwrap_or(0));
    }
    if let Some(at) = run.deadline() {
        run.set_timer(at, TimerKind::Deadline);
    }
    run.event(None, EventData::SessionRetried);

    let from = Key::Step(session, StepId::default());
    let to = Key::Step(session.successor(), StepId::default());
    for (key, row) in run.tables.scan(&from, &to, usize::MAX) {
        let (Key::Step(_, step), Row::Step(row)) = (key, row) else { continue };
        if matches!(row.status, StepStatus::Failed | StepStatus::Canceled) && run.counts(step) {
            revive(&mut run, step, row);
        }
    }
    run.finish();
    Ok(Outcome::Done)
}

fn revive<T: Tables>(run: &mut Run<'_, T>, step: StepId, mut row: StepRow) {
    row.ended_at = None;
    let children_at_work = match row.detail {
        StepDetail::None | StepDetail::Recovery { .. } => false,
        StepDetail::Scopes { open, .. } => open > 0,
        StepDetail::Iteration { scope, .. } => {
            run.tables.scope(run.id, scope).is_some_and(|row| row.open > 0)
        }
    };
    if children_at_work {
        row.status = StepStatus::Running;
        run.put_step(step, row);
        return;
    }
    row.attempt = Attempt(1);
    row.dispatch = Dispatch(row.dispatch.0 + 1);
    if matches!(row.detail, StepDetail::Iteration { .. }) {
        run.send_out(step, row);
    } else {
        row.detail = StepDetail::None;
        run.begin(step, row);
    }
}

impl<T: Tables> Run<'_, T> {
    /// Whether a step's outcome still matters: it is not part of a tolerated failure or of a recovery.
    fn counts(&self, step: StepId) -> bool {
        let mut scope = step.scope;
        while let Some(row) = self.tables.scope(self.id, scope) {
            if row.failed.is_some() || matches!(row.kind, ScopeKind::Recovery(_)) {
                return false;
            }
            match row.parent {
                Some(parent) => scope = parent.scope,
                None => return true,
            }
        }
        false
    }
}
