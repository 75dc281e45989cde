//! The binary from outside: the API over HTTP, the command line, bad input, secrets, full disks.

#![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

mod api;
mod backup;
mod bad_input;
mod command_line;
mod dev;
mod disk;
mod equality;
mod fixture;
mod fixtures;
mod grpc;
mod history;
mod leaving;
mod logs;
mod placement;
mod returning;
mod s3;
mod secrets;
mod sla;
mod snapshot;
mod tls;
mod traces;
mod workers;
