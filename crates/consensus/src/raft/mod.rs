//! openraft's types, and its traits over our storage.

mod log_store;
mod machine;
mod network;
pub(crate) mod records;

use std::fmt;

use ::machine::Outcome;
use bytes::Bytes;

use crate::Member;

pub use log_store::LogStore;
pub(crate) use machine::SnapshotSource;
pub use machine::StateMachine;
#[cfg(feature = "mutants")]
pub(crate) use network::Appended;
pub(crate) use network::Network;

openraft::declare_raft_types!(
    /// openraft's configuration.
    pub Types:
        D = Body,
        R = Reply,
        NodeId = u64,
        Node = Member,
);

pub(crate) type Raft = openraft::Raft<Types, StateMachine>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<Types>;
pub(crate) type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<Types>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;

/// The body of a normal entry: bytes, kept as they came.
#[derive(Clone)]
pub struct Body {
    /// The commands.
    pub bytes: Bytes,
    /// The whole entry in its envelope, once it was stored or received.
    pub sealed: Option<Bytes>,
}

impl Body {
    /// The body of an entry that is not stored yet.
    #[must_use]
    pub fn new(bytes: Bytes) -> Self {
        Self { bytes, sealed: None }
    }
}

impl PartialEq for Body {
    fn eq(&self, other: &Self) -> bool {
        self.bytes == other.bytes
    }
}

impl Eq for Body {}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.bytes.len())
    }
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.bytes.len())
    }
}

/// What came of an entry: one outcome a command.
#[derive(Debug, Default)]
pub struct Reply(pub Vec<Outcome>);
