//! Generated messages, and the only conversions between the domain and bytes.
//!
//! - [`envelope`] wraps everything that is stored or crosses versions.
//! - [`record`] converts log entries, rows and Raft's own records.
//! - [`api`] is the generated gRPC API, [`peer`] what nodes say to one another.
//! - **Invariant:** an entry's bytes are kept as they came; nothing is decoded and encoded again.
//! - **Absent:** storage, the network.

pub mod envelope;
pub mod record;

/// The generated gRPC API, and the descriptors for reflection.
#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code"
)]
pub mod api {
    tonic::include_proto!("orchestra.v1");

    /// All descriptors, encoded, for the reflection service.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code"
)]
pub mod peer {
    tonic::include_proto!("orchestra.peer.v1");
}

#[allow(
    missing_docs,
    clippy::all,
    clippy::pedantic,
    unreachable_pub,
    unused_qualifications,
    reason = "generated code"
)]
pub(crate) mod storage {
    tonic::include_proto!("orchestra.storage.v1");
}
