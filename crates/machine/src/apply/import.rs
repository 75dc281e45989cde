//! `ImportSession`: a session is made again of another one's events, and goes on from there.

use alloc::vec::Vec;

use ids::{Seq, SessionId, Timestamp};

use super::{Result, check_len, check_value, run::Run};
use crate::{
    Durability, Effect, EventData, History, Key, Outcome, PendingRow, Refusal, Row, SessionLimits,
    SessionRow, StartSession, Tables, TimerKind, Work,
    limits::{IMPORT_EVENTS_MAX, IMPORT_RETRIES_MAX},
    replay,
};

pub(super) fn import<T: Tables>(
    tables: &mut T,
    now: Timestamp,
    id: SessionId,
    owner: &str,
    history: &History,
    effects: &mut Vec<Effect>,
) -> Result {
    if let Some(row) = tables.session(id) {
        // Its id was minted for this very history.
        return if row.tenant == owner {
            Ok(Outcome::Started { session: id, created: false })
        } else {
            Err(Refusal::IdReused(id))
        };
    }
    check_len("events", history.events.len(), IMPORT_EVENTS_MAX)?;
    // Each looks at every step, and all of it is one command.
    let retries = history.events.iter().filter(|event| event.data == EventData::SessionRetried).count();
    check_len("retries", retries, IMPORT_RETRIES_MAX)?;
    for value in history.events.iter().filter_map(|event| event.data.value()) {
        check_value("value", value)?;
    }
    let mut events = history.events.clone();
    let Some(EventData::SessionStarted { tenant, workflow, definition, input }) =
        events.first_mut().map(|event| &mut event.data)
    else {
        return Err(Refusal::NotReplayable(Seq(0)));
    };
    // It belongs to who imports it.
    *tenant = owner.into();
    let start = StartSession {
        session: id,
        tenant: owner.into(),
        workflow: workflow.clone(),
        definition: *definition,
        input: input.clone(),
        labels: history.labels.clone(),
        limits: history.limits,
        durability: Durability::Local,
        idempotency: None,
    };
    let definition =
        tables.definition(start.definition).ok_or(Refusal::UnknownDefinition(start.definition))?;
    let limits = definition.limits.tightened(&start.limits);
    let made = replay(&definition, start, &events, &history.items);
    let mut made = made.map_err(|diverged| Refusal::NotReplayable(diverged.0))?;

    // What came of its commands was done once; what is still to be done is in its rows.
    let from = (history.origin, history.events.len() as u64);
    mark_imported(&mut made, now, id, from, &limits, effects)?;
    for (key, row) in made.iter() {
        match (key, row) {
            (Key::Shard | Key::Definition(_), _) => continue,
            (Key::Pending(_, step), Row::Pending(PendingRow { attempt, dispatch, work: true, external })) => {
                let (step, attempt, dispatch, external) = (*step, *attempt, *dispatch, *external);
                effects.push(Effect::Dispatch(Work { session: id, step, attempt, dispatch, external }));
            }
            (Key::Timer(at, ..), _) => effects.push(Effect::Timer { at: *at }),
            _ => {}
        }
        tables.put(key.clone(), row.clone());
    }
    Ok(Outcome::Started { session: id, created: true })
}

/// From here on it is a session of its own: unless it has ended, it begins now, with the limits of its start.
pub(crate) fn mark_imported<T: Tables>(
    tables: &mut T,
    now: Timestamp,
    id: SessionId,
    (origin, events): (SessionId, u64),
    limits: &SessionLimits,
    effects: &mut Vec<Effect>,
) -> core::result::Result<(), Refusal> {
    let mut run = Run::load_any(tables, now, id, effects)?;
    run.event(None, EventData::SessionImported { origin, events });
    if !run.row.status.is_ended() {
        let listed = |row: &SessionRow| Key::ByTenant(row.tenant.clone(), u64::MAX - row.created_at.0, id);
        run.tables.delete(&listed(&run.row));
        if let Some(at) = run.deadline() {
            run.tables.delete(&Key::Timer(at, id, TimerKind::Deadline));
        }
        run.row.created_at = now;
        run.row.limits = *limits;
        run.tables.put(listed(&run.row), Row::Present);
        if let Some(at) = run.deadline() {
            run.set_timer(at, TimerKind::Deadline);
        }
    }
    run.finish();
    Ok(())
}
