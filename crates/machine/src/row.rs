//! Rows: what the tables hold. No row grows with its session.

use alloc::{string::String, vec::Vec};

use ids::{Attempt, Digest, Dispatch, Epoch, Position, ScopeId, Seq, SessionId, StepId, Timestamp};

use crate::{Failure, Idempotency, SessionLimits, Usage};

/// The shard's own row.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ShardRow {
    /// The number of the last entry.
    pub position: Position,
    /// The shard's time at the last entry.
    pub now: Timestamp,
    /// The epoch of the last entry.
    pub epoch: Epoch,
    /// The rules in force.
    pub machine_version: u32,
}

/// A session.
#[derive(Debug, Clone, PartialEq)]
pub struct SessionRow {
    /// Its owner.
    pub tenant: String,
    /// The name of its workflow.
    pub workflow: String,
    /// The definition it is pinned to.
    pub definition: Digest,
    /// Where it stands.
    pub status: SessionStatus,
    /// When it began.
    pub created_at: Timestamp,
    /// When its last event happened.
    pub updated_at: Timestamp,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// The number of the next event.
    pub next_seq: Seq,
    /// The digest of the last event.
    pub head: Digest,
    /// The number of the next scope.
    pub next_scope: ScopeId,
    /// What it has spent.
    pub spent: Spent,
    /// What it may spend.
    pub limits: SessionLimits,
    /// Steps whose work is out, or whose next attempt waits for its time.
    pub active: u32,
    /// Steps that wait for a timer, a signal or a person.
    pub waiting: u32,
    /// Signals that no step has asked for yet.
    pub buffered_signals: u32,
    /// Why it failed or was canceled.
    pub error: Option<SessionError>,
    /// Searchable marks.
    pub labels: Vec<(String, String)>,
    /// Where an acknowledged write is.
    pub durability: Durability,
    /// The key under which it can be found again.
    pub idempotency: Option<Idempotency>,
}

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum SessionStatus {
    /// Work is out.
    Running,
    /// Nothing is out; it waits for a timer, a signal or a person.
    Waiting,
    /// Ended well.
    Completed,
    /// Ended in failure.
    Failed,
    /// Was ended.
    Canceled,
}

impl SessionStatus {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Running, Self::Waiting, Self::Completed, Self::Failed, Self::Canceled];

    /// Whether the session has ended.
    #[must_use]
    pub fn is_ended(self) -> bool {
        matches!(self, Self::Completed | Self::Failed | Self::Canceled)
    }

    /// The name in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Running => "running",
            Self::Waiting => "waiting",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }
}

/// Why a session failed or was canceled.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionError {
    /// The step that failed.
    pub step: Option<StepId>,
    /// Why.
    pub failure: Failure,
}

/// What a session has spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Spent {
    /// Steps made ready, retries not counted.
    pub steps: u32,
    /// Loop iterations.
    pub iterations: u32,
    /// Model calls.
    pub usage: Usage,
}

/// Where an acknowledged write is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Durability {
    /// On a quorum of the region.
    #[default]
    Local,
    /// On a quorum of the target region as well.
    Geo,
}

/// An activation of a block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScopeRow {
    /// The step that runs the block; `None` for the session's own.
    pub parent: Option<StepId>,
    /// The block.
    pub block: u16,
    /// Which activation of the parent it is.
    pub kind: ScopeKind,
    /// Nodes that have not ended.
    pub open: u16,
    /// The event of the failure that its parent tolerates.
    pub failed: Option<Seq>,
}

/// Which activation of its parent a scope is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ScopeKind {
    /// The session's own block.
    Root,
    /// The chosen block of a branch.
    Case,
    /// A branch of a fork, by its place.
    Branch(u16),
    /// An item of a map, 0-based.
    Item(u32),
    /// An iteration of a loop, 1-based.
    Iteration(u32),
    /// A recovery of a failed step, 1-based.
    Recovery(u32),
}

/// A step.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRow {
    /// Where it stands.
    pub status: StepStatus,
    /// The try it is at.
    pub attempt: Attempt,
    /// The fence of the work that is out.
    pub dispatch: Dispatch,
    /// When it became ready, or began to wait.
    pub ready_at: Timestamp,
    /// When the work of its last outcome began.
    pub started_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
    /// Nodes it still waits for.
    pub remaining: u16,
    /// Where its output is.
    pub output: OutputRef,
    /// The event of its last failure.
    pub failed: Option<Seq>,
    /// The timer that is set for it.
    pub timer: Option<Timestamp>,
    /// What its kind needs.
    pub detail: StepDetail,
}

/// Where a step stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum StepStatus {
    /// Other steps have to end first.
    Blocked,
    /// Its work is out.
    Ready,
    /// Its next attempt waits for its time.
    Backoff,
    /// Waits for a timer, a signal or a person.
    Waiting,
    /// Its blocks are at work.
    Running,
    /// Ended with an output.
    Completed,
    /// Its condition did not hold.
    Skipped,
    /// Failed for good.
    Failed,
    /// Its session or the item it belongs to ended before it did.
    Canceled,
}

impl StepStatus {
    /// The name in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Blocked => "blocked",
            Self::Ready => "ready",
            Self::Backoff => "backoff",
            Self::Waiting => "waiting",
            Self::Running => "running",
            Self::Completed => "completed",
            Self::Skipped => "skipped",
            Self::Failed => "failed",
            Self::Canceled => "canceled",
        }
    }

    pub(crate) fn is_pending(self) -> bool {
        matches!(self, Self::Ready | Self::Backoff | Self::Waiting)
    }
}

/// Where an output is. A value is stored once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum OutputRef {
    /// `null`
    #[default]
    None,
    /// The value of an event of the session.
    Event(Seq),
    /// The output of a scope: of its block's last node.
    Scope(ScopeId),
    /// An object: the outputs of the scopes from `first`, by the names of the fork's branches.
    Branches {
        /// The scope of the first branch.
        first: ScopeId,
    },
    /// A list: the outputs of `count` scopes from `first`.
    Items {
        /// The scope of the first item.
        first: ScopeId,
        /// How many.
        count: u32,
    },
}

/// What a kind of step needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum StepDetail {
    /// Nothing.
    #[default]
    None,
    /// Scopes `first..first + count`, of which `open` have not ended.
    Scopes {
        /// The first scope.
        first: ScopeId,
        /// How many there will be.
        count: u32,
        /// How many have been activated.
        started: u32,
        /// How many of those have not ended.
        open: u32,
        /// How many failed, and the step goes on.
        failed: u32,
    },
    /// A loop in its n-th iteration, 1-based.
    Iteration {
        /// The iteration; 0 before the first.
        iteration: u32,
        /// Its scope.
        scope: ScopeId,
        /// The scope of the iteration before.
        previous: Option<ScopeId>,
    },
    /// A failed step in its n-th recovery, 1-based.
    Recovery {
        /// The recovery.
        recovery: u32,
        /// Its scope.
        scope: ScopeId,
    },
}

/// A step that has something coming: work, a timer, a signal, a decision.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PendingRow {
    /// The try.
    pub attempt: Attempt,
    /// The fence.
    pub dispatch: Dispatch,
    /// Whether work is out, and a new leader has to send it out again.
    pub work: bool,
    /// Whether the work is a worker's outside the cluster, who may have it in hand while leaders change.
    pub external: bool,
}

/// A used idempotency key. It lives as long as its session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IdempotencyRow {
    /// The session it started.
    pub session: SessionId,
    /// The request.
    pub fingerprint: Digest,
}

/// How an alert stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AlertState {
    /// Its condition holds, but not for long enough.
    Pending,
    /// Its condition holds.
    Firing,
    /// Its condition held.
    Resolved,
}

/// An alert. A rule whose condition never held has none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AlertRow {
    /// How it stands.
    pub state: AlertState,
    /// When its condition began to hold.
    pub since: Timestamp,
    /// When it fired.
    pub fired_at: Option<Timestamp>,
    /// When its condition ended.
    pub resolved_at: Option<Timestamp>,
    /// What was measured when it began, or fired, for people.
    pub value: String,
    /// Whether who is to be told was told of this state.
    pub notified: bool,
}

/// A name in the catalog.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WorkflowRow {
    /// The definition it stands for.
    pub definition: Digest,
    /// 1 for the first.
    pub version: u32,
    /// When it was applied.
    pub applied_at: Timestamp,
}
