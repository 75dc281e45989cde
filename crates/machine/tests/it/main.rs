//! The machine from outside: golden scripts, and properties over random commands.

#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod golden;
mod invariants;
mod properties;
mod script;
