//! Shards on a real file system.

#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod clock;
mod node;
mod suite;
