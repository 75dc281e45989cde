//! Dev only: real node processes, and pure checkers over what clients saw.

pub mod checks;
mod cluster;
pub mod history;
mod node;
pub mod plot;
mod small_disk;
mod wrong_clock;

pub use cluster::{Cluster, Hosts, Loopback, Place, client, copy_directory};
pub use node::{NodeProcess, NodeSpec, binary, free_address, previous_binary, wait_until};
pub use small_disk::SmallDisk;
pub use wrong_clock::wrong_clock;
