//! The two databases and the directory, on a real file system.

#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod directory;
mod log;
mod state;
