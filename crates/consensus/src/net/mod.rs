//! The network between the nodes of a region.
//!
//! A node has three connections to each of its peers ([`links`]): one for questions that must not wait (heartbeats,
//! votes), one for entries and what is forwarded to leaders, one for snapshots. Questions of all shards share one
//! stream a connection ([`lane`]); the entries of a shard have a stream of their own, so that a slow shard holds up no
//! other. [`service`] is the other end.

mod lane;
mod links;
mod pace;
mod service;
mod starts;
pub(crate) mod wire;

pub(crate) use lane::CallError;
pub(crate) use links::{Identified, Links, connect};
pub use pace::Pace;
pub(crate) use service::{Service, serve};
pub(crate) use starts::{Start, Starts};

/// The names of the metadata with which every call says who asks whom.
pub(crate) mod header {
    pub(crate) const CLUSTER: &str = "orchestra-cluster";
    pub(crate) const FROM: &str = "orchestra-from";
    pub(crate) const START: &str = "orchestra-start";
    pub(crate) const TO: &str = "orchestra-to";
    pub(crate) const MACHINE_VERSION: &str = "orchestra-machine-version";
    /// In a refusal: the directory of whoever asks is an older copy.
    pub(crate) const OUTDATED: &str = "orchestra-outdated";
    pub(crate) const SHARD: &str = "orchestra-shard";
}
