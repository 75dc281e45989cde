//! Commands: requests in the log.

use alloc::{collections::BTreeMap, string::String, sync::Arc, vec::Vec};

use ids::{Digest, Dispatch, Position, SessionId, StepId, Timestamp};

use crate::{AlertState, Definition, Durability, Event, Failure, SessionLimits, Value};

/// A command and the shard's time at which it happens.
#[derive(Debug, Clone, PartialEq)]
pub struct Input {
    /// Stamped by the proposer from the shard's clock, never below the time of the entry before.
    pub now: Timestamp,
    /// What is asked.
    pub command: Command,
}

/// What is asked of a shard.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Stores a definition, so that sessions of this shard can use it.
    PutDefinition(Arc<Definition>),
    /// Gives a definition a name. Names live in the catalog of shard 0.
    ApplyWorkflow {
        /// The tenant that the name belongs to.
        tenant: String,
        /// The name.
        name: String,
        /// The definition, stored already.
        definition: Digest,
    },
    /// Starts a session.
    StartSession(StartSession),
    /// Records what came of a step.
    ResolveStep(ResolveStep),
    /// Raises the dispatch of steps whose work may have been lost with an earlier leader.
    Redispatch(Vec<(SessionId, StepId)>),
    /// Gives a session a named value.
    Signal {
        /// The session.
        session: SessionId,
        /// The signal's name.
        name: String,
        /// Its value.
        payload: Value,
        /// Minted at the edge: a repeated id is accepted and has no further effect.
        id: u128,
    },
    /// Decides a step that waits for approval.
    Approve {
        /// The session.
        session: SessionId,
        /// The step; where it is not given, the only one that waits.
        step: Option<StepId>,
        /// The decision.
        approval: Approval,
    },
    /// Ends a session.
    Cancel {
        /// The session.
        session: SessionId,
        /// Why.
        reason: String,
    },
    /// Runs the failed steps of a failed session again.
    Retry {
        /// The session.
        session: SessionId,
    },
    /// Makes a session of another one's events, which goes on where they end; since feature level 2.
    ImportSession {
        /// Minted at the edge, so that a repeated import is the same import.
        session: SessionId,
        /// Who it belongs to.
        tenant: String,
        /// What the other one went through.
        history: Arc<History>,
    },
    /// Fires the timers that are due.
    FireTimers,
    /// Marks a position at which every replica notes the digest of its rows, and says what most had at an earlier one:
    /// a replica that had another stops. It changes no row of a session.
    CheckDigest {
        /// The position of an earlier mark, and the digest of most replicas before it.
        agreed: Option<(Position, u128)>,
    },
    /// Raises the rules in force; never lowers them.
    Finalize {
        /// What every node of the cluster knows.
        machine_version: u32,
    },
    /// Something is to be known of an alert. Alerts live in shard 0.
    Alert {
        /// The rule's name.
        name: String,
        /// What.
        change: AlertChange,
    },
}

/// What is to be known of an alert.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AlertChange {
    /// The rule's condition holds.
    Breached {
        /// How long it must before the alert fires, in milliseconds.
        hold_ms: u64,
        /// What was measured, for people.
        value: String,
    },
    /// It does not.
    Fine,
    /// Who is to be told of this state of it was told.
    Notified {
        /// The state.
        state: AlertState,
        /// Of which alert: when its condition began to hold.
        since: Timestamp,
    },
}

/// Starts a session.
#[derive(Debug, Clone, PartialEq)]
pub struct StartSession {
    /// Minted at the edge, so that a repeated start is the same start.
    pub session: SessionId,
    /// Who it belongs to.
    pub tenant: String,
    /// The name by which the workflow was asked for.
    pub workflow: String,
    /// The definition that the session is pinned to.
    pub definition: Digest,
    /// Its input.
    pub input: Value,
    /// Searchable marks.
    pub labels: Vec<(String, String)>,
    /// Tightens the limits of the definition.
    pub limits: SessionLimits,
    /// Where an acknowledged write is.
    pub durability: Durability,
    /// What makes a repeated request the same request.
    pub idempotency: Option<Idempotency>,
}

/// What makes a repeated request the same request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Idempotency {
    /// The scope of the key, besides the tenant.
    pub lock_key: String,
    /// The key.
    pub key: String,
    /// SHA-256 over the request: the same key with another request is refused.
    pub fingerprint: Digest,
}

/// What a session went through, from which it can be made again.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    /// The session.
    pub origin: SessionId,
    /// Searchable marks.
    pub labels: Vec<(String, String)>,
    /// What it might spend when it began.
    pub limits: SessionLimits,
    /// Its events, from the first on.
    pub events: Vec<Event>,
    /// The lists of its maps.
    pub items: BTreeMap<StepId, Vec<Value>>,
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq)]
pub struct ResolveStep {
    /// The session.
    pub session: SessionId,
    /// The step.
    pub step: StepId,
    /// The fence: must be the step's.
    pub dispatch: Dispatch,
    /// When the leader started the work.
    pub started_at: Timestamp,
    /// What came of it.
    pub resolution: Resolution,
    /// What it took, for agents.
    pub report: Option<Report>,
}

/// What came of a step.
#[derive(Debug, Clone, PartialEq)]
pub enum Resolution {
    /// It ended with an output.
    Completed(Value),
    /// It failed. `random` in `0..=1000` was drawn by the leader, for jitter.
    Failed {
        /// The failure.
        failure: Failure,
        /// The random number.
        random: u16,
        /// What whoever was asked said of when to come back; since feature level 2.
        pause: Pause,
    },
    /// Its condition does not hold: it does not run.
    Skipped,
    /// Its condition holds, or it has none; what it does needs no evaluation.
    Entered,
    /// The chosen case of a branch; `None` for the block of `otherwise`.
    Chosen(Option<u16>),
    /// The items of a map.
    Items(Vec<Value>),
    /// Whether a loop runs (again).
    Again(bool),
}

/// When a failed attempt may be followed by the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Pause {
    /// Milliseconds until then, at least; at most [`crate::limits::PAUSE_MS_MAX`] count.
    pub wait_ms: u32,
    /// Nobody was asked: it does not count as an attempt.
    pub untried: bool,
}

/// What an agent's step took.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Report {
    /// The provider that answered; empty if none did.
    pub provider: String,
    /// The model that answered.
    pub model: String,
    /// What it used, all calls together.
    pub usage: Usage,
    /// Every call, in order: the last is the one that counted.
    pub calls: Vec<Call>,
    /// Whether the answer came from the simulated vendor.
    pub simulated: bool,
}

/// What model calls used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Tokens sent.
    pub tokens_in: u64,
    /// Tokens received.
    pub tokens_out: u64,
    /// Millionths of a US dollar.
    pub cost_microusd: u64,
}

/// One call of a provider.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// The provider.
    pub provider: String,
    /// The model.
    pub model: String,
    /// How long it took, in milliseconds.
    pub latency_ms: u64,
    /// Why it did not count; `None` for the one that did.
    pub failure: Option<Failure>,
}

/// A person's decision, and who made it.
#[derive(Debug, Clone, PartialEq)]
pub struct Approval {
    /// What was decided.
    pub decision: Decision,
    /// Who decided, as the edge knows it.
    pub by: String,
}

/// What was decided.
#[derive(Debug, Clone, PartialEq)]
pub enum Decision {
    /// Go on with what was shown.
    Approve,
    /// Go on with this instead.
    Edit(Value),
    /// Do not go on.
    Reject {
        /// Why not.
        reason: String,
    },
}
