//! Tables: typed keys and rows, over RocksDB on a node and over a `BTreeMap` in tests.

use alloc::{collections::BTreeMap, string::String, sync::Arc, vec::Vec};

use ids::{Digest, ScopeId, Seq, SessionId, StepId, Timestamp};

use crate::{
    AlertRow, Definition, Event, IdempotencyRow, PendingRow, ScopeRow, SessionRow, ShardRow, StepRow, Value,
    WorkflowRow,
};

/// A key of a table. The order of keys is the order of their stored bytes.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The shard itself.
    Shard,
    /// A definition by its digest.
    Definition(Digest),
    /// A workflow's name, by tenant.
    Workflow(String, String),
    /// A session.
    Session(SessionId),
    /// An activation of a block.
    Scope(SessionId, ScopeId),
    /// A step.
    Step(SessionId, StepId),
    /// An item of a map's list.
    Item(SessionId, StepId, u32),
    /// An event.
    Event(SessionId, Seq),
    /// A step that has something coming.
    Pending(SessionId, StepId),
    /// A step that waits for a signal of this name.
    Listener(SessionId, String, StepId),
    /// A signal that no step has asked for yet.
    Signal(SessionId, String, Seq),
    /// A signal's id, for deduplication.
    SignalId(SessionId, u128),
    /// A used idempotency key: tenant, lock key, key.
    Idempotency(String, String, String),
    /// A timer.
    Timer(Timestamp, SessionId, TimerKind),
    /// A tenant's sessions, newest first: tenant, `u64::MAX − created_at`, session.
    ByTenant(String, u64, SessionId),
    /// An alert, by its rule's name.
    Alert(String),
}

/// What a timer is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum TimerKind {
    /// The session's time is up.
    Deadline,
    /// A step's next attempt, the end of its wait, or its time-out.
    Step(StepId),
    /// The ended session is past its retention.
    Retention,
}

/// A row of the table that its key names.
#[derive(Debug, Clone, PartialEq)]
pub enum Row {
    /// Of [`Key::Shard`].
    Shard(ShardRow),
    /// Of [`Key::Definition`].
    Definition(Arc<Definition>),
    /// Of [`Key::Workflow`].
    Workflow(WorkflowRow),
    /// Of [`Key::Session`].
    Session(SessionRow),
    /// Of [`Key::Scope`].
    Scope(ScopeRow),
    /// Of [`Key::Step`].
    Step(StepRow),
    /// Of [`Key::Item`].
    Item(Value),
    /// Of [`Key::Event`]: the event and its digest.
    Event(Event, Digest),
    /// Of [`Key::Pending`].
    Pending(PendingRow),
    /// Of [`Key::Idempotency`].
    Idempotency(IdempotencyRow),
    /// Of [`Key::Alert`].
    Alert(AlertRow),
    /// Of the keys that say everything themselves.
    Present,
}

/// What is read. Over a batch, reads see its earlier writes.
///
/// An implementation over a disk keeps the first error and answers `None` from then on; its owner looks for that
/// error before it uses what was read or written.
pub trait Read {
    /// The row of a key.
    fn get(&self, key: &Key) -> Option<Row>;

    /// Up to `limit` rows from `from`, included, to `to`, excluded, in the order of keys.
    fn scan(&self, from: &Key, to: &Key, limit: usize) -> Vec<(Key, Row)>;

    // Typed reads. A row of another table under a key is a bug of the implementation, and reads as absent.

    /// A session.
    fn session(&self, id: SessionId) -> Option<SessionRow> {
        match self.get(&Key::Session(id)) {
            Some(Row::Session(row)) => Some(row),
            _ => None,
        }
    }

    /// A definition.
    fn definition(&self, hash: Digest) -> Option<Arc<Definition>> {
        match self.get(&Key::Definition(hash)) {
            Some(Row::Definition(definition)) => Some(definition),
            _ => None,
        }
    }

    /// An activation of a block.
    fn scope(&self, session: SessionId, scope: ScopeId) -> Option<ScopeRow> {
        match self.get(&Key::Scope(session, scope)) {
            Some(Row::Scope(row)) => Some(row),
            _ => None,
        }
    }

    /// A step.
    fn step(&self, session: SessionId, step: StepId) -> Option<StepRow> {
        match self.get(&Key::Step(session, step)) {
            Some(Row::Step(row)) => Some(row),
            _ => None,
        }
    }

    /// An event.
    fn event(&self, session: SessionId, seq: Seq) -> Option<Event> {
        match self.get(&Key::Event(session, seq)) {
            Some(Row::Event(event, _)) => Some(event),
            _ => None,
        }
    }

    /// The shard's own row.
    fn shard(&self) -> ShardRow {
        match self.get(&Key::Shard) {
            Some(Row::Shard(row)) => row,
            _ => ShardRow { machine_version: crate::MACHINE_VERSION_FIRST, ..ShardRow::default() },
        }
    }
}

/// What the machine reads and writes.
pub trait Tables: Read {
    /// Sets the row of a key.
    fn put(&mut self, key: Key, row: Row);
    /// Removes a key.
    fn delete(&mut self, key: &Key);
    /// Says that a key which is about to be put has no row, so that it need not be looked for.
    fn expect_none(&mut self, key: &Key) {
        let _ = key;
    }
    /// Is told what happens to a session, as it happens: for whoever measures. What comes of it must not change what
    /// is applied.
    fn observe(&mut self, session: &Observed<'_>, fact: Fact<'_>) {
        let _ = (session, fact);
    }
}

/// A session to which something happens.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// Its id.
    pub session: SessionId,
    /// Its row, which does not hold yet what is happening.
    pub row: &'a SessionRow,
    /// Its workflow.
    pub definition: &'a Definition,
}

/// What happens to a session.
#[derive(Debug, Clone, Copy)]
pub enum Fact<'a> {
    /// It has a new event.
    Appended {
        /// The event.
        event: &'a Event,
        /// When the work was sent out whose outcome it is, if it is that of work.
        sent_out: Option<Timestamp>,
    },
    /// The recovery of a step came to an end.
    RecoveryEnded {
        /// When the step's failure was stored, if that is still known.
        failed_at: Option<Timestamp>,
        /// When it ended.
        at: Timestamp,
        /// Whether it was of use.
        well: bool,
    },
}

/// Tables in memory.
#[derive(Debug, Clone, Default)]
pub struct MemoryTables {
    rows: BTreeMap<Key, Row>,
}

impl MemoryTables {
    /// All rows, in the order of keys.
    pub fn iter(&self) -> impl Iterator<Item = (&Key, &Row)> {
        self.rows.iter()
    }
}

impl Read for MemoryTables {
    fn get(&self, key: &Key) -> Option<Row> {
        self.rows.get(key).cloned()
    }

    fn scan(&self, from: &Key, to: &Key, limit: usize) -> Vec<(Key, Row)> {
        if from >= to {
            return Vec::new();
        }
        self.rows
            .range(from.clone()..to.clone())
            .take(limit)
            .map(|(key, row)| (key.clone(), row.clone()))
            .collect()
    }
}

impl Tables for MemoryTables {
    fn put(&mut self, key: Key, row: Row) {
        self.rows.insert(key, row);
    }

    fn delete(&mut self, key: &Key) {
        self.rows.remove(key);
    }

    fn expect_none(&mut self, key: &Key) {
        debug_assert!(!self.rows.contains_key(key), "there is a row of {key:?}");
    }
}
