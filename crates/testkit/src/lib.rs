//! Dev only: real node processes, and pure checkers over what clients saw.

pub mod checks;
mod cluster;
pub mod history;
mod node;

pub use cluster::Cluster;
pub use node::{NodeProcess, NodeSpec, binary, free_address, wait_until};
