//! Replicated shards: openraft glue, leadership, the clock of a shard, authority to act.
//!
//! A [`Node`] opens the two databases of a directory and runs one [`Group`] a shard. A group takes commands
//! ([`Group::propose`]), puts those that arrive together into one entry, and answers each when its entry is applied;
//! what the entry asks of the world goes to the [`Effects`] of the shard.
//!
//! - **Invariant:** a reply is sent, and an effect handed out, after the batch that they belong to is written.
//! - **Invariant:** the position in an entry is the number after the last; an entry proposed under a wrong one is
//!   refused as a whole by every replica.
//! - **Absent:** HTTP, providers. This is the only crate that names openraft.

pub mod backup;
mod batcher;
pub mod clock;
mod disk;
mod effects;
mod equality;
mod greeting;
mod group;
mod leadership;
mod members;
mod mutants;
mod net;
mod node;
mod observer;
mod peers;
mod raft;
mod reads;
mod versions;

pub use clock::{Clock, ClusterClock, SystemClock};
pub use effects::{Effects, Watch};
pub use equality::{Comparison, ScrubReport, Verdict};
pub use group::{Group, Leadership, Progress, ProposeError, ReadError};
pub use members::{Change, ChangeError, Member, Membership, discover, new_node_id};
pub use net::Pace;
pub use node::{Error, Node, NodeOptions, Status};
pub use observer::Observer;
pub use peers::{AskError, Peers};
pub use versions::{FinalizeError, Release, Unsupported};

/// What the storage conformance suite needs. Not for use.
#[doc(hidden)]
pub mod conformance {
    pub use crate::raft::{LogStore, StateMachine, Types};
}
