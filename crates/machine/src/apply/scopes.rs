//! Steps that run blocks: fork, map, loop, branch and recovery.

use alloc::{string::String, vec::Vec};

use ids::{Dispatch, ScopeId, StepId};

use super::run::Run;
use crate::{
    EventData, Failure, FailureClass, Key, NodeKind, OutputRef, Row, ScopeKind, ScopeRow, StepDetail,
    StepRow, StepStatus, Tables, Value,
};

impl<T: Tables> Run<'_, T> {
    /// Numbers for `count` scopes.
    pub(super) fn new_scopes(&mut self, count: u32) -> ScopeId {
        let first = self.row.next_scope;
        self.row.next_scope = ScopeId(first.0 + count);
        first
    }

    pub(super) fn open_scope(&mut self, scope: ScopeId, parent: Option<StepId>, block: u16, kind: ScopeKind) {
        let open = self.definition.blocks[usize::from(block)].nodes.len();
        let row =
            ScopeRow { parent, block, kind, open: u16::try_from(open).unwrap_or(u16::MAX), failed: None };
        let key = Key::Scope(self.id, scope);
        self.tables.expect_none(&key);
        self.tables.put(key, Row::Scope(row));
        self.activate_block(scope, block);
    }

    pub(super) fn enter_fork(&mut self, step: StepId, mut row: StepRow, branches: &[(String, u16)]) {
        let count = u32::try_from(branches.len()).unwrap_or(u32::MAX);
        let first = self.new_scopes(count);
        self.event(Some(step), EventData::Forked);
        self.run_scopes(
            step,
            &mut row,
            StepDetail::Scopes { first, count, started: count, open: count, failed: 0 },
        );
        for (place, (_, block)) in (0u16..).zip(branches) {
            self.open_scope(
                ScopeId(first.0 + u32::from(place)),
                Some(step),
                *block,
                ScopeKind::Branch(place),
            );
        }
        self.put_step(step, row);
    }

    pub(super) fn choose(&mut self, step: StepId, mut row: StepRow, case: Option<u16>, block: Option<u16>) {
        self.event(Some(step), EventData::BranchChosen { case });
        let Some(block) = block else {
            self.complete(step, row, OutputRef::None, None, None);
            return;
        };
        let first = self.new_scopes(1);
        self.run_scopes(
            step,
            &mut row,
            StepDetail::Scopes { first, count: 1, started: 1, open: 1, failed: 0 },
        );
        self.open_scope(first, Some(step), block, ScopeKind::Case);
        self.put_step(step, row);
    }

    pub(super) fn expand(
        &mut self,
        step: StepId,
        mut row: StepRow,
        items: &[Value],
        block: u16,
        parallel: u16,
    ) {
        let count = u32::try_from(items.len()).unwrap_or(u32::MAX);
        self.event(Some(step), EventData::MapExpanded { count });
        let first = self.new_scopes(count);
        if count == 0 {
            self.complete(step, row, OutputRef::Items { first, count }, None, None);
            return;
        }
        for (index, item) in (0u32..).zip(items) {
            self.tables.put(Key::Item(self.id, step, index), Row::Item(item.clone()));
        }
        let started = count.min(u32::from(parallel.max(1)));
        self.run_scopes(
            step,
            &mut row,
            StepDetail::Scopes { first, count, started, open: started, failed: 0 },
        );
        // Reversed, because the list of what follows is worked from its end.
        for index in (0..started).rev() {
            self.open_scope(ScopeId(first.0 + index), Some(step), block, ScopeKind::Item(index));
        }
        self.put_step(step, row);
    }

    /// Starts the n-th iteration of a loop, or fails the loop if it may not run that often.
    pub(super) fn iterate(&mut self, step: StepId, mut row: StepRow, block: u16, iteration: u32) {
        let limit = self.row.limits.iterations;
        if limit > 0 && self.row.spent.iterations >= limit {
            let message = alloc::format!("the session's limit of {limit} loop iterations is reached");
            let failure = Failure::new(FailureClass::Limit, "limit_iterations", message);
            self.fail_step_and_session(step, row, failure);
            return;
        }
        self.row.spent.iterations += 1;
        self.event(Some(step), EventData::IterationStarted { iteration });
        let scope = self.new_scopes(1);
        let previous = match row.detail {
            StepDetail::Iteration { scope, .. } => Some(scope),
            _ => None,
        };
        self.run_scopes(step, &mut row, StepDetail::Iteration { iteration, scope, previous });
        self.open_scope(scope, Some(step), block, ScopeKind::Iteration(iteration));
        self.put_step(step, row);
    }

    pub(super) fn recover(&mut self, step: StepId, mut row: StepRow, block: u16, recovery: u32) {
        self.event(Some(step), EventData::RecoveryStarted { recovery });
        let scope = self.new_scopes(1);
        self.run_scopes(step, &mut row, StepDetail::Recovery { recovery, scope });
        self.open_scope(scope, Some(step), block, ScopeKind::Recovery(recovery));
        self.put_step(step, row);
    }

    fn run_scopes(&mut self, step: StepId, row: &mut StepRow, detail: StepDetail) {
        self.settle(step, row);
        row.status = StepStatus::Running;
        row.started_at = row.started_at.or(Some(self.now));
        row.detail = detail;
    }

    /// All nodes of a scope have ended well.
    pub(super) fn after_scope(&mut self, scope: ScopeId) {
        let Some(ScopeRow { parent, kind, .. }) = self.tables.scope(self.id, scope) else { return };
        let Some(step) = parent else {
            self.complete_session();
            return;
        };
        let Some(mut row) = self.step(step).filter(|row| row.status == StepStatus::Running) else { return };
        match kind {
            ScopeKind::Root => self.complete_session(),
            ScopeKind::Case | ScopeKind::Recovery(_) => {
                self.complete(step, row, OutputRef::Scope(scope), None, None);
            }
            ScopeKind::Branch(_) | ScopeKind::Item(_) => self.child_ended(step, row, false),
            ScopeKind::Iteration(_) => {
                // Whether it runs again is for the leader to evaluate, under a dispatch of its own.
                row.dispatch = Dispatch(row.dispatch.0 + 1);
                self.send_out(step, row);
            }
        }
    }

    /// A branch of a fork or an item of a map has ended: the next item starts, or the step ends.
    pub(super) fn child_ended(&mut self, step: StepId, mut row: StepRow, child_failed: bool) {
        let StepDetail::Scopes { first, count, mut started, mut open, mut failed } = row.detail else {
            return;
        };
        open = open.saturating_sub(1);
        failed += u32::from(child_failed);
        let mut to_open = None;
        if let NodeKind::Map { block, .. } = self.definition.node(step.node).kind
            && started < count
        {
            to_open = Some((ScopeId(first.0 + started), block, ScopeKind::Item(started)));
            started += 1;
            open += 1;
        }
        row.detail = StepDetail::Scopes { first, count, started, open, failed };
        if open == 0 {
            let output = match self.definition.node(step.node).kind {
                NodeKind::Fork { .. } => OutputRef::Branches { first },
                _ => OutputRef::Items { first, count },
            };
            self.complete(step, row, output, None, None);
            return;
        }
        self.put_step(step, row);
        if let Some((scope, block, kind)) = to_open {
            self.open_scope(scope, Some(step), block, kind);
        }
    }

    /// Whether `scope` is `root` or was opened, however deep, by a step in it.
    pub(super) fn is_within(&self, mut scope: ScopeId, root: ScopeId) -> bool {
        loop {
            if scope == root {
                return true;
            }
            match self.tables.scope(self.id, scope).and_then(|row| row.parent) {
                Some(parent) => scope = parent.scope,
                None => return false,
            }
        }
    }

    /// Takes back everything that is coming below the given scopes; `None` for the whole session.
    pub(super) fn withdraw(&mut self, below: Option<&[ScopeId]>) {
        // Most sessions end with nothing to come, and looking for it is a search in what is stored.
        if self.row.active == 0 && self.row.waiting == 0 {
            return;
        }
        let from = Key::Pending(self.id, StepId::default());
        let to = Key::Pending(self.id.successor(), StepId::default());
        let pending: Vec<StepId> = self
            .tables
            .scan(&from, &to, usize::MAX)
            .into_iter()
            .filter_map(|(key, _)| match key {
                Key::Pending(_, step) => Some(step),
                _ => None,
            })
            .collect();
        for step in pending {
            let inside = below.is_none_or(|roots| roots.iter().any(|&root| self.is_within(step.scope, root)));
            if inside {
                self.withdraw_step(step, below);
            }
        }
    }

    fn withdraw_step(&mut self, step: StepId, below: Option<&[ScopeId]>) {
        let Some(mut row) = self.step(step) else { return };
        let had_work = row.status == StepStatus::Ready;
        self.settle(step, &mut row);
        row.status = StepStatus::Canceled;
        row.ended_at = Some(self.now);
        self.put_step(step, row);
        if had_work {
            super::recall(self.effects, self.id, step);
        }
        // The containers between the step and the root of what is taken back.
        let mut scope = step.scope;
        while below.is_none_or(|roots| !roots.contains(&scope)) {
            let Some(parent) = self.tables.scope(self.id, scope).and_then(|row| row.parent) else { break };
            let Some(mut row) = self.step(parent).filter(|row| row.status == StepStatus::Running) else {
                break;
            };
            row.status = StepStatus::Canceled;
            row.ended_at = Some(self.now);
            self.put_step(parent, row);
            scope = parent.scope;
        }
    }
}
