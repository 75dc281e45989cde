//! The two databases and the directory, on a real file system.

#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod directory;
mod full_disk;
mod log;
#[path = "../../../testkit/src/small_disk.rs"]
#[allow(unreachable_pub, reason = "it is part of testkit, which stands above this crate")]
mod small_disk;
mod state;
