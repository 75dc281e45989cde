//! Dev only: real node processes, and pure checkers over what clients saw.

pub mod checks;
mod node;

pub use node::{NodeProcess, binary, free_address, wait_until};
