//! One pure checker an invariant: of the tables before and after a command, and of what it answered.

use ids::{SessionId, StepId};
use machine::{
    Command, Definition, Effect, EventData, Input, Key, MemoryTables, Outcome, Output, Read as _, Refusal,
    Row, SessionRow, SessionStatus, StepDetail, StepRow, StepStatus,
};

/// One command, and what it did.
pub(crate) struct Change<'a> {
    pub(crate) before: &'a MemoryTables,
    pub(crate) input: &'a Input,
    pub(crate) output: &'a Output,
    pub(crate) after: &'a MemoryTables,
}

/// All of them.
pub(crate) const INVARIANTS: [fn(&Change<'_>); 9] = [
    refused_commands_change_nothing,
    a_step_has_one_outcome,
    only_the_dispatch_that_counts_is_heard,
    no_dispatch_is_given_out_twice,
    attempts_are_bounded,
    nothing_begins_above_a_limit,
    a_key_stands_for_one_request,
    an_ended_session_rests,
    what_is_coming_is_counted,
];

impl Change<'_> {
    fn refusal(&self) -> Option<&Refusal> {
        match &self.output.outcome {
            Outcome::Refused(refusal) => Some(refusal),
            _ => None,
        }
    }

    /// Steps that are there now, each with what it was before.
    fn steps(&self) -> impl Iterator<Item = (SessionId, StepId, Option<StepRow>, &StepRow)> {
        self.after.iter().filter_map(|(key, row)| match (key, row) {
            (Key::Step(session, step), Row::Step(row)) => {
                Some((*session, *step, self.before.step(*session, *step), row))
            }
            _ => None,
        })
    }

    /// Sessions that were there before and are now.
    fn sessions(&self) -> impl Iterator<Item = (SessionId, SessionRow, &SessionRow)> {
        self.after.iter().filter_map(|(key, row)| match (key, row) {
            (Key::Session(session), Row::Session(row)) => {
                Some((*session, self.before.session(*session)?, row))
            }
            _ => None,
        })
    }

    fn definition(&self, session: SessionId) -> std::sync::Arc<Definition> {
        self.after.definition(self.after.session(session).unwrap().definition).unwrap()
    }

    /// Whether the session's past came in with this command.
    fn is_imported(&self, session: SessionId) -> bool {
        matches!(&self.input.command, Command::ImportSession { session: new, .. } if *new == session)
    }
}

fn refused_commands_change_nothing(change: &Change<'_>) {
    if change.refusal().is_some() {
        assert!(change.before.iter().eq(change.after.iter()), "{:?} changed a row", change.input);
        assert!(change.output.effects.is_empty(), "{:?} asked for work", change.input);
    }
}

/// What has ended well stays as it is, until its session is swept; and the log tells of its end once.
fn a_step_has_one_outcome(change: &Change<'_>) {
    for (session, step, before, after) in change.steps() {
        let Some(before) = before else { continue };
        if matches!(before.status, StepStatus::Completed | StepStatus::Skipped) {
            assert_eq!(before, *after, "{session} {step} has ended");
        }
    }
    let new = change.after.iter().filter(|(key, _)| change.before.get(key).is_none());
    for (key, row) in new {
        let (Key::Event(session, _), Row::Event(event, _)) = (key, row) else { continue };
        if let (EventData::StepCompleted { .. }, Some(step)) = (&event.data, event.step) {
            let before = change.before.step(*session, step).map(|row| row.status);
            assert_ne!(before, Some(StepStatus::Completed), "{session} {step} completed twice");
        }
    }
}

/// The outcome of work counts if it carries the fence of the work that is out, and is refused as stale if not.
fn only_the_dispatch_that_counts_is_heard(change: &Change<'_>) {
    let Command::ResolveStep(resolve) = &change.input.command else { return };
    let row = change.before.step(resolve.session, resolve.step);
    let current = row.filter(|row| row.status == StepStatus::Ready).map(|row| row.dispatch);
    match change.refusal() {
        None => assert_eq!(current, Some(resolve.dispatch), "{resolve:?} was heard"),
        Some(Refusal::Stale { .. }) => {
            assert_ne!(current, Some(resolve.dispatch), "{resolve:?} was not heard")
        }
        Some(_) => {}
    }
}

/// A fence only grows, and what is sent out has a new one.
fn no_dispatch_is_given_out_twice(change: &Change<'_>) {
    for (session, step, before, after) in change.steps() {
        assert!(before.is_none_or(|before| before.dispatch <= after.dispatch), "{session} {step} went back");
    }
    for effect in &change.output.effects {
        let Effect::Dispatch(work) = effect else { continue };
        // A step that ends with the command that sent it out needs nobody any more.
        let Some(after) = change.after.step(work.session, work.step) else { continue };
        assert!(work.dispatch <= after.dispatch, "{work:?} is out, {after:?}");
        if let Some(before) = change.before.step(work.session, work.step) {
            let out = matches!(before.status, StepStatus::Ready | StepStatus::Failed | StepStatus::Canceled);
            assert!(!out || work.dispatch > before.dispatch, "{work:?} was out before: {before:?}");
        }
    }
}

/// Attempts, recoveries and iterations are counted one by one, up to what the workflow allows.
fn attempts_are_bounded(change: &Change<'_>) {
    for (session, step, before, after) in change.steps() {
        let definition = change.definition(session);
        let node = &definition.nodes[usize::from(step.node)];
        assert!(
            after.attempt.0 >= 1 && after.attempt.0 <= node.retry.attempts_max,
            "{session} {step}: {after:?}"
        );
        if let Some(before) = before {
            let next = after.attempt.0 <= before.attempt.0 + 1;
            assert!(next, "{session} {step} left an attempt out: {before:?} {after:?}");
        }
        match (after.detail, &node.kind) {
            (StepDetail::Recovery { recovery, .. }, _) => {
                let most = node.recover.map_or(0, |recover| recover.attempts_max);
                assert!(recovery <= most, "{session} {step} in recovery {recovery} of {most}");
            }
            (StepDetail::Iteration { iteration, .. }, machine::NodeKind::Loop { iterations_max, .. }) => {
                assert!(iteration <= *iterations_max, "{session} {step} in iteration {iteration}");
            }
            _ => {}
        }
    }
}

/// A session that has spent what it may makes no step ready. (What is out when it does may cost more.)
fn nothing_begins_above_a_limit(change: &Change<'_>) {
    for effect in &change.output.effects {
        let Effect::Dispatch(work) = effect else { continue };
        let row = change.after.session(work.session).unwrap();
        let (spent, limits) = (row.spent, row.limits);
        assert!(limits.steps == 0 || spent.steps <= limits.steps, "{work:?} by {row:?}");
        assert!(limits.iterations == 0 || spent.iterations <= limits.iterations, "{work:?} by {row:?}");
        // Neither work that was out under another leader, nor a retry that a person asks for, is a new step.
        let is_again = matches!(change.input.command, Command::Redispatch(_) | Command::Retry { .. });
        if is_again || change.is_imported(work.session) {
            continue;
        }
        let tokens = spent.usage.tokens_in + spent.usage.tokens_out;
        assert!(limits.tokens == 0 || tokens < limits.tokens, "{work:?} by {row:?}");
        let cost = spent.usage.cost_microusd;
        assert!(limits.cost_microusd == 0 || cost < limits.cost_microusd, "{work:?} by {row:?}");
        let deadline = row.created_at.plus_millis(limits.duration_ms);
        assert!(limits.duration_ms == 0 || change.input.now < deadline, "{work:?} by {row:?}");
    }
}

/// A key that was used answers with its session where the request is the same, and is refused where it is not.
fn a_key_stands_for_one_request(change: &Change<'_>) {
    let Command::StartSession(start) = &change.input.command else { return };
    let Some(idempotency) = &start.idempotency else { return };
    let key = Key::Idempotency(start.tenant.clone(), idempotency.lock_key.clone(), idempotency.key.clone());
    match (change.before.get(&key), &change.output.outcome) {
        (Some(Row::Idempotency(used)), outcome) if used.fingerprint == idempotency.fingerprint => {
            assert_eq!(*outcome, Outcome::Started { session: used.session, created: false });
            assert!(change.before.iter().eq(change.after.iter()), "a repetition changed a row");
        }
        (Some(Row::Idempotency(used)), outcome) => {
            assert_eq!(*outcome, Outcome::Refused(Refusal::KeyReused(used.session)));
        }
        (_, Outcome::Started { session, created: true }) => {
            let used = change.after.get(&key);
            assert!(matches!(&used, Some(Row::Idempotency(used)) if used.session == *session), "{used:?}");
        }
        _ => {}
    }
}

/// What has ended stays so, unless what failed is retried.
fn an_ended_session_rests(change: &Change<'_>) {
    for (session, before, after) in change.sessions() {
        if !before.status.is_ended() || before == *after {
            continue;
        }
        let retried = matches!(&change.input.command, Command::Retry { session: of } if *of == session);
        assert!(retried && before.status == SessionStatus::Failed, "{before:?} became {after:?}");
    }
}

/// A session counts the steps that have something coming: where it counts none, none is looked for.
fn what_is_coming_is_counted(change: &Change<'_>) {
    for (key, row) in change.after.iter() {
        let (Key::Session(id), Row::Session(row)) = (key, row) else { continue };
        let (from, to) = (StepId::default(), StepId::default());
        let coming =
            change.after.scan(&Key::Pending(*id, from), &Key::Pending(id.successor(), to), usize::MAX);
        assert_eq!(coming.len(), (row.active + row.waiting) as usize, "what is coming of {id}");
    }
}
