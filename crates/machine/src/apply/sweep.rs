//! The end of an ended session's retention: its rows are removed, a bounded number at a time.

use alloc::{string::String, vec};

use ids::{ScopeId, Seq, SessionId, StepId, Timestamp};

use crate::{Key, Row, Tables, TimerKind, limits};

/// Removes rows of a session; whether there are more.
pub(super) fn sweep<T: Tables>(tables: &mut T, now: Timestamp, id: SessionId) -> bool {
    let Some(row) = tables.session(id).filter(|row| row.status.is_ended()) else { return false };
    let next = id.successor();
    let ranges = vec![
        (Key::Scope(id, ScopeId(0)), Key::Scope(next, ScopeId(0))),
        (Key::Step(id, StepId::default()), Key::Step(next, StepId::default())),
        (Key::Item(id, StepId::default(), 0), Key::Item(next, StepId::default(), 0)),
        (Key::Event(id, Seq(0)), Key::Event(next, Seq(0))),
        (Key::Signal(id, String::new(), Seq(0)), Key::Signal(next, String::new(), Seq(0))),
        (Key::SignalId(id, 0), Key::SignalId(next, 0)),
    ];
    let mut left = limits::SWEEP_ROWS_PER_COMMAND;
    for (from, to) in ranges {
        let rows = tables.scan(&from, &to, left);
        left -= rows.len();
        for (key, _) in rows {
            tables.delete(&key);
        }
        if left == 0 {
            // The session's own row goes last, so that what is left can be found again.
            tables.put(Key::Timer(now, id, TimerKind::Retention), Row::Present);
            return true;
        }
    }
    if let Some(idempotency) = row.idempotency {
        tables.delete(&Key::Idempotency(row.tenant.clone(), idempotency.lock_key, idempotency.key));
    }
    tables.delete(&Key::ByTenant(row.tenant, u64::MAX - row.created_at.0, id));
    tables.delete(&Key::Session(id));
    false
}
