//! openraft's types, and its traits over our storage.

mod log_store;
mod machine;
mod network;
mod records;

use std::fmt;

use ::machine::Outcome;
use bytes::Bytes;

pub use log_store::LogStore;
pub use machine::StateMachine;
pub(crate) use network::NoNetwork;

openraft::declare_raft_types!(
    /// openraft's configuration.
    pub Types:
        D = Body,
        R = Reply,
        NodeId = u64,
        Node = openraft::impls::BasicNode,
);

pub(crate) type Raft = openraft::Raft<Types, StateMachine>;
pub(crate) type Entry = openraft::type_config::alias::EntryOf<Types>;
pub(crate) type LogId = openraft::type_config::alias::LogIdOf<Types>;
pub(crate) type Vote = openraft::type_config::alias::VoteOf<Types>;
pub(crate) type StoredMembership = openraft::type_config::alias::StoredMembershipOf<Types>;

/// The body of a normal entry: bytes, kept as they came.
#[derive(Clone, PartialEq, Eq)]
pub struct Body(pub Bytes);

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Body({} bytes)", self.0.len())
    }
}

impl fmt::Display for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// What came of an entry: one outcome a command.
#[derive(Debug, Default)]
pub struct Reply(pub Vec<Outcome>);
