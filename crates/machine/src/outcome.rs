//! Outcomes and effects: what a command answers, and what it asks of the world.

use alloc::{string::String, vec::Vec};

use ids::{Attempt, Digest, Dispatch, Position, Seq, SessionId, StepId, Timestamp};

/// What came of one command.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// The reply.
    pub outcome: Outcome,
    /// Work asked of the world. Only the leader does it, after the batch is written.
    pub effects: Vec<Effect>,
}

/// The reply to a command, the same on every replica.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Done.
    Done,
    /// The session exists now, or did before.
    Started {
        /// The session: an earlier one for a repeated idempotency key.
        session: SessionId,
        /// Whether this command created it.
        created: bool,
    },
    /// Timers fired; `more` are due.
    Fired {
        /// Whether more are due than one command fires.
        more: bool,
    },
    /// Refused. Nothing changed.
    Refused(Refusal),
}

/// Why a command was refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// No such session, or it is past its retention.
    UnknownSession(SessionId),
    /// The definition is not in this shard: put it, then repeat.
    UnknownDefinition(Digest),
    /// The definition can not be run.
    InvalidDefinition,
    /// The idempotency key was used for another request.
    KeyReused(SessionId),
    /// The id was used for another session.
    IdReused(SessionId),
    /// The step's outcome is known, or its work was given to someone else since.
    Stale {
        /// The fence that the outcome carried.
        given: Dispatch,
        /// The fence that counts; 0 if the step is not waiting for an outcome.
        current: Dispatch,
    },
    /// The outcome does not fit the kind of step.
    WrongResolution,
    /// The entry was proposed after entries that were lost: propose it again.
    WrongPosition {
        /// The position that the entry carried.
        given: Position,
        /// The one after the shard's last.
        expected: Position,
    },
    /// The session has ended.
    Ended(SessionId),
    /// The session has not failed, so there is nothing to retry.
    NotFailed(SessionId),
    /// No step waits for an approval, or several do and none was named.
    NotAwaitingApproval {
        /// How many wait.
        waiting: u32,
    },
    /// Something is larger than its limit.
    TooLarge {
        /// What.
        what: String,
        /// The limit.
        limit: u64,
    },
    /// The event of this number is not what comes of those before it.
    NotReplayable(Seq),
    /// Too many signals wait for a step to ask for them.
    SignalsFull,
}

/// Work asked of the world.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Effect {
    /// Do a step's work, and propose what came of it.
    Dispatch(Work),
    /// Stop a step's work: its outcome would be refused.
    Recall {
        /// The session.
        session: SessionId,
        /// The step.
        step: StepId,
    },
    /// A timer is set; it may be the next one due.
    Timer {
        /// When.
        at: Timestamp,
    },
    /// A session has new events.
    Appended {
        /// The session.
        session: SessionId,
        /// The number after the last event's.
        next: Seq,
        /// Whether it has ended.
        ended: bool,
    },
}

/// A step whose work is to be done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Work {
    /// The session.
    pub session: SessionId,
    /// The step.
    pub step: StepId,
    /// The try, part of the idempotency key of what the work does outside.
    pub attempt: Attempt,
    /// The fence.
    pub dispatch: Dispatch,
    /// Whether it is a worker's outside the cluster.
    pub external: bool,
}
