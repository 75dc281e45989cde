//! One file a group of commands.

pub(crate) mod audit;
pub(crate) mod backup;
pub(crate) mod certs;
pub(crate) mod cluster;
pub(crate) mod config;
pub(crate) mod dev;
pub(crate) mod export;
pub(crate) mod node;
pub(crate) mod sessions;
pub(crate) mod sla;
pub(crate) mod start;
pub(crate) mod workers;
pub(crate) mod workflows;
