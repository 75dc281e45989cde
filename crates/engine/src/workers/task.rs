//! What a task is called and made of, in memory and between nodes.

use std::{fmt, str::FromStr, sync::Arc};

use bytes::Bytes;
use ids::{Dispatch, SessionId, StepId};
use proto::peer;

/// A queue of a tenant.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct QueueKey {
    /// Whose.
    pub tenant: String,
    /// Its name.
    pub queue: String,
}

/// One giving out of a step's work. No two workers ever have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TaskId {
    /// The session.
    pub session: SessionId,
    /// The step.
    pub step: StepId,
    /// The fence.
    pub dispatch: Dispatch,
}

impl fmt::Display for TaskId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.session, self.step, self.dispatch.0)
    }
}

impl FromStr for TaskId {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        let mut parts = text.splitn(3, '/');
        let mut part = || parts.next().ok_or(());
        let (session, step, dispatch) = (part()?, part()?, part()?);
        Ok(Self {
            session: session.parse().map_err(|_| ())?,
            step: step.parse().map_err(|_| ())?,
            dispatch: Dispatch(dispatch.parse().map_err(|_| ())?),
        })
    }
}

impl TaskId {
    pub(super) fn message(self) -> peer::TaskId {
        peer::TaskId {
            session: self.session.to_string(),
            step: self.step.to_string(),
            dispatch: self.dispatch.0,
        }
    }

    pub(super) fn from_message(id: &peer::TaskId) -> Option<Self> {
        Some(Self {
            session: id.session.parse().ok()?,
            step: id.step.parse().ok()?,
            dispatch: Dispatch(id.dispatch),
        })
    }
}

/// A task as a worker gets it.
#[derive(Debug, Clone)]
pub struct Assignment {
    /// Names this giving out.
    pub id: TaskId,
    /// The queue it waited in.
    pub queue: Arc<QueueKey>,
    /// The step, for people.
    pub path: String,
    /// The try, 1 for the first.
    pub attempt: u32,
    /// JSON.
    pub input: Bytes,
    /// Milliseconds that the attempt may take; 0 for no limit.
    pub timeout_ms: u64,
    /// Where the spans of the work belong.
    pub traceparent: String,
}

impl Assignment {
    /// What the effects of the work outside are to carry: the same however often the attempt is given out.
    #[must_use]
    pub fn idempotency_key(&self) -> String {
        format!("{}/{}/{}", self.id.session, self.id.step, self.attempt)
    }
}

/// What a worker says came of a task.
#[derive(Debug, Clone)]
pub enum TaskResult {
    /// JSON.
    Output(Bytes),
    /// It failed.
    Failed {
        /// For programs.
        code: String,
        /// For people.
        message: String,
        /// Whether the same again would fail again.
        permanent: bool,
    },
}

impl TaskResult {
    pub(super) fn message(&self, id: TaskId, tenant: &str) -> peer::Finished {
        let result = match self {
            Self::Output(output) => peer::finished::Result::Output(output.clone()),
            Self::Failed { code, message, permanent } => {
                peer::finished::Result::Failed(peer::finished::Failed {
                    code: code.clone(),
                    message: message.clone(),
                    permanent: *permanent,
                })
            }
        };
        peer::Finished { id: Some(id.message()), tenant: tenant.to_owned(), result: Some(result) }
    }

    pub(super) fn from_message(result: peer::finished::Result) -> Self {
        match result {
            peer::finished::Result::Output(output) => Self::Output(output),
            peer::finished::Result::Failed(of) => {
                Self::Failed { code: of.code, message: of.message, permanent: of.permanent }
            }
        }
    }
}
