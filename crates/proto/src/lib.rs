//! Generated messages, and the only conversions between the domain and bytes.
//!
//! - [`envelope`] wraps everything that is stored or crosses versions.
//! - [`record`] converts log entries, rows and Raft's own records.
//! - [`api`] is the generated gRPC API, [`peer`] what nodes say to one another.
//! - **Invariant:** an entry's bytes are kept as they came; nothing is decoded and encoded again.
//! - **Absent:** storage, the network.

pub mod envelope;
pub mod record;

/// A module of generated code.
macro_rules! generated {
    ($(#[$doc:meta])* $visibility:vis mod $name:ident = $package:literal $($more:item)*) => {
        $(#[$doc])*
        #[allow(
            missing_docs,
            clippy::all,
            clippy::pedantic,
            unreachable_pub,
            unused_qualifications,
            reason = "generated code"
        )]
        $visibility mod $name {
            tonic::include_proto!($package);
            $($more)*
        }
    };
}

generated! {
    /// The generated gRPC API, and the descriptors for reflection.
    pub mod api = "orchestra.v1"
    /// All descriptors, encoded, for the reflection service.
    pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
}

generated! {
    /// What the nodes of a region say to one another.
    pub mod peer = "orchestra.peer.v1"
}

generated! {
    /// What nodes have measured.
    pub mod sla = "orchestra.sla.v1"
}

generated! {
    pub(crate) mod storage = "orchestra.storage.v1"
}
