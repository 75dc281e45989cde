//! Events: the stored facts of a session.

use alloc::string::String;

use ids::{Attempt, Digest, Dispatch, Seq, SessionId, StepId, Timestamp};

use crate::{Report, Usage, Value};

/// A stored fact. Its digest covers the digest of the event before (`chain`).
#[derive(Debug, Clone, PartialEq)]
pub struct Event {
    /// Its number in the session.
    pub seq: Seq,
    /// The shard's time.
    pub at: Timestamp,
    /// The step it is about.
    pub step: Option<StepId>,
    /// What happened.
    pub data: EventData,
}

/// What happened.
#[derive(Debug, Clone, PartialEq)]
pub enum EventData {
    /// The session began.
    SessionStarted {
        /// Its owner.
        tenant: String,
        /// The name of its workflow.
        workflow: String,
        /// The definition it is pinned to.
        definition: Digest,
        /// Its input.
        input: Value,
    },
    /// A step ended with an output.
    StepCompleted {
        /// The attempt that did it.
        attempt: Attempt,
        /// The dispatch that did it.
        dispatch: Dispatch,
        /// When the work began.
        started_at: Timestamp,
        /// Its output; `None` where the output is that of other steps.
        output: Option<Value>,
        /// What it took.
        report: Option<Report>,
    },
    /// An attempt failed.
    StepFailed {
        /// The attempt.
        attempt: Attempt,
        /// The dispatch.
        dispatch: Dispatch,
        /// When the work began.
        started_at: Timestamp,
        /// Why.
        failure: Failure,
        /// What it took.
        report: Option<Report>,
        /// When it is tried again; `None` if it is not.
        retry_at: Option<Timestamp>,
    },
    /// An attempt was put off: whoever is to be asked rests. It does not count.
    StepDeferred {
        /// The attempt.
        attempt: Attempt,
        /// The dispatch.
        dispatch: Dispatch,
        /// Why.
        failure: Failure,
        /// Until when.
        until: Timestamp,
    },
    /// A step's condition did not hold.
    StepSkipped,
    /// A branch chose.
    BranchChosen {
        /// The case; `None` for `otherwise`.
        case: Option<u16>,
    },
    /// A fork started its branches.
    Forked,
    /// A map has its items.
    MapExpanded {
        /// How many.
        count: u32,
    },
    /// A loop starts an iteration.
    IterationStarted {
        /// 1-based.
        iteration: u32,
    },
    /// A failed step's recovery starts.
    RecoveryStarted {
        /// 1-based.
        recovery: u32,
    },
    /// An item of a map failed, and the map goes on.
    ItemFailed {
        /// The item, 0-based.
        index: u32,
    },
    /// A step waits.
    WaitStarted {
        /// Until when; `None` without limit.
        until: Option<Timestamp>,
    },
    /// The session was given a value.
    SignalReceived {
        /// The signal's name.
        name: String,
        /// The value.
        payload: Value,
        /// Minted at the edge.
        id: u128,
    },
    /// A person decided.
    ApprovalDecided {
        /// `approve`, `edit` or `reject`.
        decision: String,
        /// What goes on instead, after an edit.
        value: Option<Value>,
        /// Why not, after a rejection.
        reason: String,
        /// Who.
        by: String,
    },
    /// New leaders sent the work out again.
    StepRedispatched {
        /// The new fence.
        dispatch: Dispatch,
    },
    /// The session ended well.
    SessionCompleted {
        /// What it used.
        usage: Usage,
    },
    /// The session ended in failure.
    SessionFailed {
        /// Why.
        failure: Failure,
    },
    /// The session was ended.
    SessionCanceled {
        /// Why.
        reason: String,
    },
    /// A failed session goes on.
    SessionRetried,
    /// What is before this happened in another session; what comes after it, in this one.
    SessionImported {
        /// The other one.
        origin: SessionId,
        /// How many of its events were taken over; what the command of the last one did besides was done again.
        events: u64,
    },
}

/// Why an attempt, a step or a session failed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// What kind of failure.
    pub class: FailureClass,
    /// A stable code, such as `rate_limited`.
    pub code: String,
    /// For people, at most [`crate::limits::MESSAGE_BYTES_MAX`] bytes.
    pub message: String,
}

/// What kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum FailureClass {
    /// May pass: tried again.
    Transient,
    /// Will not pass by itself: not tried again.
    Permanent,
    /// A limit of the session is reached: ends the session.
    Limit,
}

impl Failure {
    /// A failure with its message cut to the limit, at a character's boundary.
    #[must_use]
    pub fn new(class: FailureClass, code: &str, message: impl Into<String>) -> Self {
        let mut message = message.into();
        if message.len() > crate::limits::MESSAGE_BYTES_MAX {
            let mut end = crate::limits::MESSAGE_BYTES_MAX;
            while !message.is_char_boundary(end) {
                end -= 1;
            }
            message.truncate(end);
        }
        Self { class, code: code.into(), message }
    }
}

impl EventData {
    /// The name of the event in the API.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::SessionStarted { .. } => "session_started",
            Self::StepCompleted { .. } => "step_completed",
            Self::StepFailed { .. } => "step_failed",
            Self::StepDeferred { .. } => "step_deferred",
            Self::StepSkipped => "step_skipped",
            Self::BranchChosen { .. } => "branch_chosen",
            Self::Forked => "forked",
            Self::MapExpanded { .. } => "map_expanded",
            Self::IterationStarted { .. } => "iteration_started",
            Self::RecoveryStarted { .. } => "recovery_started",
            Self::ItemFailed { .. } => "item_failed",
            Self::WaitStarted { .. } => "wait_started",
            Self::SignalReceived { .. } => "signal_received",
            Self::ApprovalDecided { .. } => "approval_decided",
            Self::StepRedispatched { .. } => "step_redispatched",
            Self::SessionCompleted { .. } => "session_completed",
            Self::SessionFailed { .. } => "session_failed",
            Self::SessionCanceled { .. } => "session_canceled",
            Self::SessionRetried => "session_retried",
            Self::SessionImported { .. } => "session_imported",
        }
    }

    /// Whether the session has ended with this event.
    #[must_use]
    pub fn ends_session(&self) -> bool {
        matches!(
            self,
            Self::SessionCompleted { .. } | Self::SessionFailed { .. } | Self::SessionCanceled { .. }
        )
    }

    /// The value that the event stores and that steps refer to.
    #[must_use]
    pub fn value(&self) -> Option<&Value> {
        match self {
            Self::SessionStarted { input, .. } => Some(input),
            Self::StepCompleted { output, .. } => output.as_ref(),
            Self::SignalReceived { payload, .. } => Some(payload),
            Self::ApprovalDecided { value, .. } => value.as_ref(),
            _ => None,
        }
    }
}
