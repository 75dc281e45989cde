//! What a failure does: another attempt, a recovery, a tolerated item, or the end of the session.

use alloc::vec::Vec;

use ids::{Attempt, Dispatch, ScopeId, Seq, StepId, Timestamp};

use super::run::Run;
use crate::{
    EventData, Failure, FailureClass, Key, NodeKind, OnFailure, Pause, PendingRow, Report, Row, ScopeKind,
    StepDetail, StepRow, StepStatus, Tables, TimerKind, limits,
};

impl<T: Tables> Run<'_, T> {
    /// An attempt has failed.
    pub(super) fn attempt_failed(
        &mut self,
        step: StepId,
        mut row: StepRow,
        failure: Failure,
        random: u16,
        pause: Pause,
        report: Option<Report>,
    ) {
        self.settle(step, &mut row);
        let retry = self.definition.node(step.node).retry;
        let wait_ms = u64::from(pause.wait_ms.min(limits::PAUSE_MS_MAX));
        let next_at = self.now.plus_millis(retry.delay_ms(row.attempt.0, random).max(wait_ms));
        if failure.class == FailureClass::Transient && pause.untried {
            let (attempt, dispatch) = (row.attempt, row.dispatch);
            let deferred = EventData::StepDeferred { attempt, dispatch, failure, until: next_at };
            row.failed = Some(self.event(Some(step), deferred));
            self.back_off(step, row, attempt, next_at);
            return;
        }
        let again = failure.class == FailureClass::Transient && row.attempt.0 < retry.attempts_max;
        let retry_at = again.then_some(next_at);
        let seq = self.event_after(
            Some(row.ready_at),
            Some(step),
            EventData::StepFailed {
                attempt: row.attempt,
                dispatch: row.dispatch,
                started_at: row.started_at.unwrap_or(row.ready_at),
                failure: failure.clone(),
                report,
                retry_at,
            },
        );
        row.failed = Some(seq);
        match retry_at {
            Some(at) => {
                let next = Attempt(row.attempt.0 + 1);
                self.back_off(step, row, next, at);
            }
            None if failure.class == FailureClass::Limit => {
                row.status = StepStatus::Failed;
                row.ended_at = Some(self.now);
                self.put_step(step, row);
                self.fail_session(Some(step), failure);
            }
            None => self.step_failed(step, row, seq, failure),
        }
    }

    fn back_off(&mut self, step: StepId, mut row: StepRow, next: Attempt, at: Timestamp) {
        row.attempt = next;
        row.dispatch = Dispatch(row.dispatch.0 + 1);
        row.status = StepStatus::Backoff;
        row.timer = Some(at);
        self.set_timer(at, TimerKind::Step(step));
        let pending =
            PendingRow { attempt: row.attempt, dispatch: row.dispatch, work: false, external: false };
        self.tables.put(Key::Pending(self.id, step), Row::Pending(pending));
        self.row.active += 1;
        self.put_step(step, row);
    }

    /// A step has failed for good: the nearest that can bear it does; else the session fails.
    pub(super) fn step_failed(&mut self, step: StepId, row: StepRow, seq: Seq, failure: Failure) {
        let (mut current, mut row) = (step, row);
        loop {
            if let Some(recover) = self.definition.node(current.node).recover {
                let done = match row.detail {
                    StepDetail::Recovery { recovery, .. } => recovery,
                    _ => 0,
                };
                if done < recover.attempts_max {
                    self.recover(current, row, recover.block, done + 1);
                    return;
                }
                self.recovery_ended(&row, false);
            }
            row.status = StepStatus::Failed;
            row.ended_at = Some(self.now);
            row.failed = Some(seq);
            self.put_step(current, row);
            let scope_id = current.scope;
            let Some(mut scope) = self.tables.scope(self.id, scope_id) else { return };
            let Some(parent) = scope.parent else {
                self.fail_session(Some(step), failure);
                return;
            };
            let Some(parent_row) = self.step(parent) else { return };
            let tolerated = matches!(
                self.definition.node(parent.node).kind,
                NodeKind::Map { on_failure: OnFailure::Continue, .. }
            );
            if let (ScopeKind::Item(index), true) = (scope.kind, tolerated) {
                self.withdraw(Some(&[scope_id]));
                scope.failed = Some(seq);
                self.tables.put(Key::Scope(self.id, scope_id), Row::Scope(scope));
                self.event(Some(parent), EventData::ItemFailed { index });
                self.child_ended(parent, parent_row, true);
                return;
            }
            self.withdraw_children(&parent_row);
            (current, row) = (parent, parent_row);
        }
    }

    fn withdraw_children(&mut self, row: &StepRow) {
        match row.detail {
            StepDetail::None => {}
            StepDetail::Scopes { first, started, .. } => {
                let scopes: Vec<ScopeId> = (0..started).map(|place| ScopeId(first.0 + place)).collect();
                self.withdraw(Some(&scopes));
            }
            StepDetail::Iteration { scope, .. } | StepDetail::Recovery { scope, .. } => {
                self.withdraw(Some(&[scope]));
            }
        }
    }
}
