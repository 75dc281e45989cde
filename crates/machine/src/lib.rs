//! The deterministic machine of a shard: commands in; events, effects and outcomes out.
//!
//! [`apply`] is total and synchronous. A refused command is an [`Outcome`], computed alike on every replica. Time
//! and random numbers arrive inside the command; values (inputs, outputs, items) are JSON text that the machine
//! stores and refers to, and never looks into. What has to look into them (templates, conditions, a model's answer)
//! is evaluated by the leader and arrives as data.
//!
//! - **A command** is a request in the log, **an event** a stored fact of one session, **an effect** work asked of
//!   the world, **an outcome** the reply.
//! - **Invariant:** the effects emitted minus those resolved equal [`pending_effects`] after every command, so a new
//!   leader finds all its work in the tables.
//! - **Invariant:** a command touches `O(1 + successors made ready)` rows, whatever the size of its session.
//! - **Absent:** I/O, clocks, randomness, serialization formats, hash maps, threads.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod apply;
mod chain;
mod command;
mod definition;
mod event;
pub mod limits;
mod outcome;
mod replay;
mod row;
mod tables;

pub use apply::{apply, pending_effects};
pub use chain::{chain, event_digest};
pub use command::{
    AlertChange, Approval, Call, Command, Decision, History, Idempotency, Input, Pause, Report, Resolution,
    ResolveStep, StartSession, Usage,
};
pub use definition::{
    Backoff, Block, Case, Definition, Invalid, Node, NodeKind, OnFailure, Recover, Retry, SessionLimits, Wait,
};
pub use event::{Event, EventData, Failure, FailureClass};
pub use outcome::{Effect, Outcome, Output, Refusal, Work};
pub use replay::{Diverged, limits_at_start, replay};
pub use row::{
    AlertRow, AlertState, Durability, IdempotencyRow, OutputRef, PendingRow, ScopeKind, ScopeRow,
    SessionError, SessionRow, SessionStatus, ShardRow, Spent, StepDetail, StepRow, StepStatus, WorkflowRow,
};
pub use tables::{Fact, Key, MemoryTables, Observed, Read, Row, Tables, TimerKind};

/// JSON text. The machine stores it and never looks into it.
pub type Value = bytes::Bytes;

/// The newest rules that this crate knows. Which are in force is in the shard's row: a shard begins with the first
/// ([`MACHINE_VERSION_FIRST`]), and [`Command::Finalize`] raises them. What an older version of this crate would apply
/// differently, or could not read, is asked for only once they are.
///
/// - 1: release 0.1.
/// - 2: release 0.2: `Finalize`, `Alert`, `ImportSession`, pauses of failures.
pub const MACHINE_VERSION: u32 = 2;
/// The rules that a new shard begins with.
pub const MACHINE_VERSION_FIRST: u32 = 1;
/// The oldest rules that this crate still applies.
pub const MACHINE_VERSION_OLDEST: u32 = 1;
