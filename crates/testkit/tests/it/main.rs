//! The tree's own rules.

#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod tidy;
