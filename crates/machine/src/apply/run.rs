//! A session being changed by one command.

use alloc::{sync::Arc, vec::Vec};

use ids::{Attempt, Dispatch, ScopeId, Seq, SessionId, StepId, Timestamp};

use crate::{
    Definition, Effect, Event, EventData, Fact, Failure, FailureClass, Key, Node, NodeKind, Observed,
    OutputRef, PendingRow, Refusal, Row, SessionError, SessionRow, SessionStatus, StepDetail, StepRow,
    StepStatus, Tables, TimerKind, Value, Wait, Work, event_digest,
};

/// A session being changed. Dropped without [`Run::finish`], nothing of the session's own row is written; so every
/// refusal comes before the first write.
pub(super) struct Run<'a, T: Tables> {
    pub(super) tables: &'a mut T,
    pub(super) now: Timestamp,
    pub(super) id: SessionId,
    pub(super) row: SessionRow,
    pub(super) definition: Arc<Definition>,
    pub(super) effects: &'a mut Vec<Effect>,
    todo: Vec<Todo>,
}

/// What follows from what was done. A list, not recursion: a chain of steps that end at once may be long.
enum Todo {
    Activate(StepId),
    Ended(StepId),
    ScopeEnded(ScopeId),
}

impl<'a, T: Tables> Run<'a, T> {
    /// Loads a session that has not ended.
    pub(super) fn load(
        tables: &'a mut T,
        now: Timestamp,
        id: SessionId,
        effects: &'a mut Vec<Effect>,
    ) -> Result<Self, Refusal> {
        let run = Self::load_any(tables, now, id, effects)?;
        if run.row.status.is_ended() { Err(Refusal::Ended(id)) } else { Ok(run) }
    }

    /// Loads a session, ended or not.
    pub(super) fn load_any(
        tables: &'a mut T,
        now: Timestamp,
        id: SessionId,
        effects: &'a mut Vec<Effect>,
    ) -> Result<Self, Refusal> {
        let row = tables.session(id).ok_or(Refusal::UnknownSession(id))?;
        let definition =
            tables.definition(row.definition).ok_or(Refusal::UnknownDefinition(row.definition))?;
        Ok(Self::new(tables, now, id, row, definition, effects))
    }

    pub(super) fn new(
        tables: &'a mut T,
        now: Timestamp,
        id: SessionId,
        row: SessionRow,
        definition: Arc<Definition>,
        effects: &'a mut Vec<Effect>,
    ) -> Self {
        Self { tables, now, id, row, definition, effects, todo: Vec::new() }
    }

    /// Does what follows, and writes the session's row.
    pub(super) fn finish(mut self) {
        while let Some(todo) = self.todo.pop() {
            match todo {
                // The session ended first. The row lets a retry find the step.
                Todo::Activate(step) if self.row.status.is_ended() => {
                    self.put_step(step, StepRow { status: StepStatus::Canceled, ..StepRow::blocked(0) });
                }
                Todo::Activate(step) => self.activate(step),
                Todo::Ended(step) => self.after_step(step),
                Todo::ScopeEnded(scope) => self.after_scope(scope),
            }
        }
        if !self.row.status.is_ended() {
            let idle = self.row.active == 0 && self.row.waiting > 0;
            self.row.status = if idle { SessionStatus::Waiting } else { SessionStatus::Running };
        }
        self.row.updated_at = self.now;
        self.effects.push(Effect::Appended {
            session: self.id,
            next: self.row.next_seq,
            ended: self.row.status.is_ended(),
        });
        self.tables.put(Key::Session(self.id), Row::Session(self.row));
    }

    pub(super) fn event(&mut self, step: Option<StepId>, data: EventData) -> Seq {
        self.event_after(None, step, data)
    }

    /// As [`Run::event`], of work that was sent out at `sent_out`.
    pub(super) fn event_after(
        &mut self,
        sent_out: Option<Timestamp>,
        step: Option<StepId>,
        data: EventData,
    ) -> Seq {
        let seq = self.row.next_seq;
        let event = Event { seq, at: self.now, step, data };
        self.row.head = event_digest(self.row.head, &event);
        self.row.next_seq = Seq(seq.0 + 1);
        self.observe(Fact::Appended { event: &event, sent_out });
        self.tables.put(Key::Event(self.id, seq), Row::Event(event, self.row.head));
        seq
    }

    fn observe(&mut self, fact: Fact<'_>) {
        let session = Observed { session: self.id, row: &self.row, definition: &self.definition };
        self.tables.observe(&session, fact);
    }

    pub(super) fn recovery_ended(&mut self, row: &StepRow, well: bool) {
        if let StepDetail::Recovery { .. } = row.detail {
            let failed = row.failed.and_then(|seq| self.tables.event(self.id, seq));
            self.observe(Fact::RecoveryEnded { failed_at: failed.map(|event| event.at), at: self.now, well });
        }
    }

    pub(super) fn node(&self, step: StepId) -> Node {
        self.definition.node(step.node).clone()
    }

    pub(super) fn step(&self, step: StepId) -> Option<StepRow> {
        self.tables.step(self.id, step)
    }

    pub(super) fn put_step(&mut self, step: StepId, row: StepRow) {
        self.tables.put(Key::Step(self.id, step), Row::Step(row));
    }

    pub(super) fn set_timer(&mut self, at: Timestamp, kind: TimerKind) {
        self.tables.put(Key::Timer(at, self.id, kind), Row::Present);
        self.effects.push(Effect::Timer { at });
    }

    /// Starts a block: its nodes that wait for none are activated.
    pub(super) fn activate_block(&mut self, scope: ScopeId, block: u16) {
        let definition = Arc::clone(&self.definition);
        let nodes = &definition.blocks[usize::from(block)].nodes;
        // Reversed, because the list of what follows is worked from its end.
        for &node in nodes.iter().rev() {
            if definition.node(node).after.is_empty() {
                self.todo.push(Todo::Activate(StepId::new(scope, node)));
            }
        }
    }

    fn activate(&mut self, step: StepId) {
        let row = StepRow { ready_at: self.now, ..StepRow::blocked(0) };
        if let Some(failure) = self.limit_reached(true) {
            self.fail_step_and_session(step, row, failure);
            return;
        }
        self.row.spent.steps += 1;
        self.tables.expect_none(&Key::Pending(self.id, step));
        // Where several steps come before it, the last of them found its row.
        if self.definition.node(step.node).after.len() <= 1 {
            self.tables.expect_none(&Key::Step(self.id, step));
        }
        self.begin(step, row);
    }

    /// Sends a step's work out, or enters it at once where there is nothing to evaluate.
    pub(super) fn begin(&mut self, step: StepId, row: StepRow) {
        let node = self.definition.node(step.node);
        let enters_at_once =
            matches!(node.kind, NodeKind::Fork { .. } | NodeKind::Loop { .. } | NodeKind::Wait(_));
        if node.conditional || !enters_at_once { self.send_out(step, row) } else { self.enter(step, row) }
    }

    /// Sends a step's work out under the dispatch in its row.
    pub(super) fn send_out(&mut self, step: StepId, mut row: StepRow) {
        row.status = StepStatus::Ready;
        row.ready_at = self.now;
        row.timer = None;
        let external = matches!(self.definition.node(step.node).kind, NodeKind::Task { .. });
        let (attempt, dispatch) = (row.attempt, row.dispatch);
        let pending = PendingRow { attempt, dispatch, work: true, external };
        self.tables.put(Key::Pending(self.id, step), Row::Pending(pending));
        self.row.active += 1;
        self.effects.push(Effect::Dispatch(Work { session: self.id, step, attempt, dispatch, external }));
        self.put_step(step, row);
    }

    /// Does what a step does once it is known to run: for kinds that need no (more) evaluation.
    pub(super) fn enter(&mut self, step: StepId, row: StepRow) {
        match self.definition.node(step.node).kind.clone() {
            NodeKind::Wait(wait) => self.enter_wait(step, row, &wait),
            NodeKind::Fork { branches } => self.enter_fork(step, row, &branches),
            NodeKind::Loop { block, .. } => self.iterate(step, row, block, 1),
            // These always need the leader, and never come here.
            NodeKind::Work | NodeKind::Task { .. } | NodeKind::Branch { .. } | NodeKind::Map { .. } => {
                self.send_out(step, row);
            }
        }
    }

    fn enter_wait(&mut self, step: StepId, mut row: StepRow, wait: &Wait) {
        let span = match wait {
            Wait::Timer { for_ms } => Some(*for_ms),
            Wait::Signal { timeout_ms, .. } | Wait::Approval { timeout_ms, .. } => {
                Some(*timeout_ms).filter(|&ms| ms > 0)
            }
        };
        if let Wait::Signal { name, .. } = wait {
            if let Some(seq) = self.take_buffered_signal(name) {
                row.started_at = Some(self.now);
                self.complete(step, row, OutputRef::Event(seq), None, None);
                return;
            }
            self.tables.put(Key::Listener(self.id, name.clone(), step), Row::Present);
        }
        let until = span.map(|ms| self.now.plus_millis(ms));
        if let Some(at) = until {
            self.set_timer(at, TimerKind::Step(step));
        }
        row.status = StepStatus::Waiting;
        row.ready_at = self.now;
        row.started_at = Some(self.now);
        row.timer = until;
        let pending =
            PendingRow { attempt: row.attempt, dispatch: row.dispatch, work: false, external: false };
        self.tables.put(Key::Pending(self.id, step), Row::Pending(pending));
        self.row.waiting += 1;
        self.event(Some(step), EventData::WaitStarted { until });
        self.put_step(step, row);
    }

    /// Takes a step out of the tables of what is coming. The caller gives it its next status and writes its row.
    pub(super) fn settle(&mut self, step: StepId, row: &mut StepRow) {
        if !row.status.is_pending() {
            return;
        }
        self.tables.delete(&Key::Pending(self.id, step));
        if row.status == StepStatus::Waiting {
            self.row.waiting -= 1;
            if let NodeKind::Wait(Wait::Signal { name, .. }) = &self.definition.node(step.node).kind {
                let key = Key::Listener(self.id, name.clone(), step);
                self.tables.delete(&key);
            }
        } else {
            self.row.active -= 1;
        }
        row.status = StepStatus::Blocked;
        if let Some(at) = row.timer.take() {
            self.tables.delete(&Key::Timer(at, self.id, TimerKind::Step(step)));
        }
    }

    /// Ends a step well. `value` is stored in its event; otherwise its output is elsewhere, at `output`.
    pub(super) fn complete(
        &mut self,
        step: StepId,
        mut row: StepRow,
        output: OutputRef,
        value: Option<Value>,
        report: Option<crate::Report>,
    ) {
        self.settle(step, &mut row);
        self.recovery_ended(&row, true);
        let stored_here = value.is_some();
        let seq = self.event_after(
            Some(row.ready_at),
            Some(step),
            EventData::StepCompleted {
                attempt: row.attempt,
                dispatch: row.dispatch,
                started_at: row.started_at.unwrap_or(row.ready_at),
                output: value,
                report,
            },
        );
        row.output = if stored_here { OutputRef::Event(seq) } else { output };
        row.status = StepStatus::Completed;
        row.ended_at = Some(self.now);
        self.put_step(step, row);
        self.todo.push(Todo::Ended(step));
    }

    pub(super) fn skip(&mut self, step: StepId, mut row: StepRow) {
        self.settle(step, &mut row);
        self.event(Some(step), EventData::StepSkipped);
        row.status = StepStatus::Skipped;
        row.ended_at = Some(self.now);
        self.put_step(step, row);
        self.todo.push(Todo::Ended(step));
    }

    /// A step has ended well: its successors may be ready, its scope may be done.
    fn after_step(&mut self, step: StepId) {
        let Some(mut scope) = self.tables.scope(self.id, step.scope) else { return };
        scope.open = scope.open.saturating_sub(1);
        let done = scope.open == 0;
        self.tables.put(Key::Scope(self.id, step.scope), Row::Scope(scope));
        if done {
            self.todo.push(Todo::ScopeEnded(step.scope));
            return;
        }
        let definition = Arc::clone(&self.definition);
        for &next in definition.node(step.node).next.iter().rev() {
            let next_step = StepId::new(step.scope, next);
            let before = definition.node(next).after.len();
            if before <= 1 {
                self.todo.push(Todo::Activate(next_step));
                continue;
            }
            let before = u16::try_from(before).unwrap_or(u16::MAX);
            let mut row = self.step(next_step).unwrap_or_else(|| StepRow::blocked(before));
            row.remaining = row.remaining.saturating_sub(1);
            if row.remaining == 0 {
                self.todo.push(Todo::Activate(next_step));
            } else {
                self.put_step(next_step, row);
            }
        }
    }

    /// The limit that the session has reached, if it has. Checked before each step and each attempt.
    pub(super) fn limit_reached(&self, new_step: bool) -> Option<Failure> {
        let (spent, limits) = (&self.row.spent, &self.row.limits);
        let over = |code: &str, what: &str, limit: u64| {
            let message = alloc::format!("the session's limit of {limit} {what} is reached");
            Some(Failure::new(FailureClass::Limit, code, message))
        };
        let tokens = spent.usage.tokens_in.saturating_add(spent.usage.tokens_out);
        if new_step && limits.steps > 0 && spent.steps >= limits.steps {
            return over("limit_steps", "steps", limits.steps.into());
        }
        if limits.tokens > 0 && tokens >= limits.tokens {
            return over("limit_tokens", "tokens", limits.tokens);
        }
        if limits.cost_microusd > 0 && spent.usage.cost_microusd >= limits.cost_microusd {
            return over("limit_cost", "millionths of a US dollar", limits.cost_microusd);
        }
        if limits.duration_ms > 0 && self.now >= self.row.created_at.plus_millis(limits.duration_ms) {
            return over("limit_duration", "milliseconds", limits.duration_ms);
        }
        None
    }

    pub(super) fn complete_session(&mut self) {
        let usage = self.row.spent.usage;
        self.event(None, EventData::SessionCompleted { usage });
        self.end(SessionStatus::Completed);
    }

    pub(super) fn fail_session(&mut self, step: Option<StepId>, failure: Failure) {
        self.event(step, EventData::SessionFailed { failure: failure.clone() });
        self.row.error = Some(SessionError { step, failure });
        self.end(SessionStatus::Failed);
    }

    /// A limit of the session stops a step that has not begun. The row lets a retry find the step.
    pub(super) fn fail_step_and_session(&mut self, step: StepId, mut row: StepRow, failure: Failure) {
        self.settle(step, &mut row);
        row.status = StepStatus::Failed;
        row.ended_at = Some(self.now);
        self.put_step(step, row);
        self.fail_session(Some(step), failure);
    }

    pub(super) fn end(&mut self, status: SessionStatus) {
        self.withdraw(None);
        if let Some(at) = self.deadline() {
            self.tables.delete(&Key::Timer(at, self.id, TimerKind::Deadline));
        }
        self.row.status = status;
        self.row.ended_at = Some(self.now);
        let at = self.now.plus_millis(self.definition.retention_ms);
        self.tables.expect_none(&Key::Timer(at, self.id, TimerKind::Retention));
        self.set_timer(at, TimerKind::Retention);
    }

    /// When the session's time is up.
    pub(super) fn deadline(&self) -> Option<Timestamp> {
        let ms = self.row.limits.duration_ms;
        (ms > 0).then(|| self.row.created_at.plus_millis(ms))
    }
}

impl StepRow {
    fn blocked(remaining: u16) -> Self {
        Self {
            status: StepStatus::Blocked,
            attempt: Attempt(1),
            dispatch: Dispatch(1),
            ready_at: Timestamp(0),
            started_at: None,
            ended_at: None,
            remaining,
            output: OutputRef::None,
            failed: None,
            timer: None,
            detail: StepDetail::None,
        }
    }
}
