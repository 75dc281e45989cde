//! `Signal`: a session is given a named value.

use alloc::{string::String, vec::Vec};

use ids::{Seq, SessionId, StepId, Timestamp};

use super::{Result, check_len, check_value, run::Run};
use crate::{Effect, EventData, Key, Outcome, OutputRef, Refusal, Row, Tables, Value, limits};

pub(super) fn signal<T: Tables>(
    tables: &mut T,
    now: Timestamp,
    (session, name, payload, id): (SessionId, &String, &Value, u128),
    effects: &mut Vec<Effect>,
) -> Result {
    check_value("payload", payload)?;
    check_len("signal name", name.len(), limits::NAME_BYTES_MAX)?;
    if tables.get(&Key::SignalId(session, id)).is_some() {
        return Ok(Outcome::Done);
    }
    let mut run = Run::load(tables, now, session, effects)?;
    let from = Key::Listener(session, name.clone(), StepId::default());
    let to = Key::Listener(session, alloc::format!("{name}\0"), StepId::default());
    let listener = run.tables.scan(&from, &to, 1).into_iter().find_map(|(key, _)| match key {
        Key::Listener(_, _, step) => Some(step),
        _ => None,
    });
    if listener.is_none() && run.row.buffered_signals >= limits::BUFFERED_SIGNALS_MAX {
        return Err(Refusal::SignalsFull);
    }
    run.tables.put(Key::SignalId(session, id), Row::Present);
    let data = EventData::SignalReceived { name: name.clone(), payload: payload.clone(), id };
    let seq = run.event(listener, data);
    match listener.and_then(|step| run.step(step).map(|row| (step, row))) {
        Some((step, row)) => run.complete(step, row, OutputRef::Event(seq), None, None),
        None => {
            run.row.buffered_signals += 1;
            run.tables.put(Key::Signal(session, name.clone(), seq), Row::Present);
        }
    }
    run.finish();
    Ok(Outcome::Done)
}

impl<T: Tables> Run<'_, T> {
    /// The oldest signal of that name that no step has asked for.
    pub(super) fn take_buffered_signal(&mut self, name: &str) -> Option<Seq> {
        if self.row.buffered_signals == 0 {
            return None;
        }
        let from = Key::Signal(self.id, name.into(), Seq(0));
        let to = Key::Signal(self.id, name.into(), Seq(u64::MAX));
        let (key, _) = self.tables.scan(&from, &to, 1).into_iter().next()?;
        self.tables.delete(&key);
        self.row.buffered_signals -= 1;
        match key {
            Key::Signal(_, _, seq) => Some(seq),
            _ => None,
        }
    }
}
