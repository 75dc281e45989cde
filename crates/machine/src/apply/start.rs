//! `StartSession`.

use alloc::vec::Vec;

use ids::{Digest, ScopeId, Seq, Timestamp};

use super::{Result, check_len, check_value, run::Run};
use crate::{
    Effect, EventData, IdempotencyRow, Key, Outcome, Refusal, Row, ScopeKind, SessionLimits, SessionRow,
    SessionStatus, Spent, StartSession, Tables, TimerKind, limits,
};

pub(super) fn start<T: Tables>(
    tables: &mut T,
    now: Timestamp,
    start: &StartSession,
    effects: &mut Vec<Effect>,
) -> Result {
    check(start)?;
    let id = start.session;
    let key = start.idempotency.as_ref().map(|idempotency| {
        Key::Idempotency(start.tenant.clone(), idempotency.lock_key.clone(), idempotency.key.clone())
    });
    if let (Some(key), Some(idempotency)) = (&key, &start.idempotency)
        && let Some(Row::Idempotency(used)) = tables.get(key)
    {
        return if used.fingerprint == idempotency.fingerprint {
            Ok(Outcome::Started { session: used.session, created: false })
        } else {
            Err(Refusal::KeyReused(used.session))
        };
    }
    if let Some(row) = tables.session(id) {
        return if is_same(tables, &row, start) {
            Ok(Outcome::Started { session: id, created: false })
        } else {
            Err(Refusal::IdReused(id))
        };
    }
    let definition =
        tables.definition(start.definition).ok_or(Refusal::UnknownDefinition(start.definition))?;

    let row = SessionRow {
        tenant: start.tenant.clone(),
        workflow: start.workflow.clone(),
        definition: start.definition,
        status: SessionStatus::Running,
        created_at: now,
        updated_at: now,
        ended_at: None,
        next_seq: Seq(0),
        head: Digest::default(),
        next_scope: ScopeId(0),
        spent: Spent::default(),
        limits: definition.limits.tightened(&start.limits),
        active: 0,
        waiting: 0,
        buffered_signals: 0,
        error: None,
        labels: start.labels.clone(),
        durability: start.durability,
        idempotency: start.idempotency.clone(),
    };
    if let (Some(key), Some(idempotency)) = (key, &start.idempotency) {
        let used = IdempotencyRow { session: id, fingerprint: idempotency.fingerprint };
        tables.put(key, Row::Idempotency(used));
    }
    let listed = Key::ByTenant(start.tenant.clone(), u64::MAX - now.0, id);
    tables.expect_none(&listed);
    tables.put(listed, Row::Present);
    let mut run = Run::new(tables, now, id, row, definition, effects);
    run.event(
        None,
        EventData::SessionStarted {
            tenant: start.tenant.clone(),
            workflow: start.workflow.clone(),
            definition: start.definition,
            input: start.input.clone(),
        },
    );
    if let Some(at) = run.deadline() {
        run.set_timer(at, TimerKind::Deadline);
    }
    let root = run.new_scopes(1);
    run.open_scope(root, None, 0, ScopeKind::Root);
    run.finish();
    Ok(Outcome::Started { session: id, created: true })
}

fn check(start: &StartSession) -> core::result::Result<(), Refusal> {
    check_value("input", &start.input)?;
    check_len("tenant", start.tenant.len(), limits::NAME_BYTES_MAX)?;
    check_len("workflow", start.workflow.len(), limits::NAME_BYTES_MAX)?;
    check_len("labels", start.labels.len(), limits::LABELS_MAX)?;
    for (key, value) in &start.labels {
        check_len("label", key.len().max(value.len()), limits::NAME_BYTES_MAX)?;
    }
    if let Some(idempotency) = &start.idempotency {
        check_len("idempotency key", idempotency.key.len(), limits::NAME_BYTES_MAX)?;
        check_len("lock key", idempotency.lock_key.len(), limits::NAME_BYTES_MAX)?;
    }
    Ok(())
}

/// Whether a session under this id was started by this very request, repeated.
fn is_same(tables: &impl Tables, row: &SessionRow, start: &StartSession) -> bool {
    let Some(Row::Event(first, _)) = tables.get(&Key::Event(start.session, Seq(0))) else { return false };
    row.tenant == start.tenant
        && row.definition == start.definition
        && first.data.value() == Some(&start.input)
}

impl SessionLimits {
    /// The tighter of each limit; 0 is no limit.
    pub(crate) fn tightened(&self, other: &Self) -> Self {
        fn tighter<N: Ord + Default>(a: N, b: N) -> N {
            if a == N::default() || (b != N::default() && b < a) { b } else { a }
        }
        Self {
            steps: tighter(self.steps, other.steps),
            tokens: tighter(self.tokens, other.tokens),
            cost_microusd: tighter(self.cost_microusd, other.cost_microusd),
            iterations: tighter(self.iterations, other.iterations),
            duration_ms: tighter(self.duration_ms, other.duration_ms),
        }
    }
}
