//! The transition: one file per command, and what they share in `run` (a session being changed) and `scopes`.

mod alert;
mod approve;
mod catalog;
mod control;
mod failure;
mod finalize;
mod import;
mod redispatch;
mod resolve;
mod run;
mod scopes;
mod signal;
mod start;
mod sweep;
mod timers;

pub(crate) use import::mark_imported;
pub(crate) use timers::{end_pause, fire_one};

use alloc::{string::String, vec::Vec};

use ids::{SessionId, StepId};

use crate::{
    Command, Effect, Input, Key, Outcome, Output, PendingRow, Read, Refusal, Row, Tables, Value, Work, limits,
};

/// Applies a command. Total: every input has an outcome, the same on every replica.
pub fn apply(tables: &mut impl Tables, input: &Input) -> Output {
    let mut effects = Vec::new();
    let now = input.now;
    let result = match &input.command {
        Command::PutDefinition(definition) => catalog::put_definition(tables, definition),
        Command::ApplyWorkflow { tenant, name, definition } => {
            catalog::apply_workflow(tables, now, tenant, name, *definition)
        }
        Command::StartSession(start) => start::start(tables, now, start, &mut effects),
        Command::ResolveStep(resolve) => resolve::resolve(tables, now, resolve, &mut effects),
        Command::Redispatch(steps) => redispatch::redispatch(tables, now, steps, &mut effects),
        Command::Signal { session, name, payload, id } => {
            signal::signal(tables, now, (*session, name, payload, *id), &mut effects)
        }
        Command::Approve { session, step, approval } => {
            approve::approve(tables, now, *session, *step, approval, &mut effects)
        }
        Command::Cancel { session, reason } => control::cancel(tables, now, *session, reason, &mut effects),
        Command::Retry { session } => control::retry(tables, now, *session, &mut effects),
        Command::ImportSession { session, tenant, history } => {
            import::import(tables, now, *session, tenant, history, &mut effects)
        }
        Command::FireTimers => timers::fire(tables, now, &mut effects),
        // Whoever applies the entry looks at the rows; there is nothing to change.
        Command::CheckDigest { .. } => Ok(Outcome::Done),
        Command::Alert { name, change } => alert::alert(tables, now, name, change),
        Command::Finalize { machine_version } => finalize::finalize(tables, *machine_version),
    };
    Output { outcome: result.unwrap_or_else(Outcome::Refused), effects }
}

/// Work that is out: what a new leader sends out again. Reads up to `limit` rows after `after`; where there may be
/// more, also answers the place to go on from.
pub fn pending_effects(
    tables: &impl Read,
    after: Option<(SessionId, StepId)>,
    limit: usize,
) -> (Vec<Work>, Option<(SessionId, StepId)>) {
    let (session, step) = after.unwrap_or_default();
    let from = Key::Pending(session, step);
    let end = Key::Listener(SessionId::default(), String::new(), StepId::default());
    let mut found = Vec::new();
    let mut last = None;
    let rows = tables.scan(&from, &end, limit + 1);
    let more = rows.len() > limit;
    for (key, row) in rows {
        let (Key::Pending(session, step), Row::Pending(PendingRow { attempt, dispatch, work, external })) =
            (key, row)
        else {
            continue;
        };
        last = Some((session, step));
        if work && after != last {
            found.push(Work { session, step, attempt, dispatch, external });
        }
    }
    (found, last.filter(|_| more))
}

type Result = core::result::Result<Outcome, Refusal>;

fn check_value(what: &str, value: &Value) -> core::result::Result<(), Refusal> {
    check_len(what, value.len(), limits::VALUE_BYTES_MAX)
}

fn check_len(what: &str, len: usize, limit: usize) -> core::result::Result<(), Refusal> {
    if len <= limit { Ok(()) } else { Err(Refusal::TooLarge { what: what.into(), limit: limit as u64 }) }
}

fn recall(effects: &mut Vec<Effect>, session: SessionId, step: StepId) {
    effects.push(Effect::Recall { session, step });
}
