//! Shards on a real file system.

mod node;
mod suite;
