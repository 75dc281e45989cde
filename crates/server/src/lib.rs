//! HTTP and gRPC handlers, auth, limits, configuration, wiring, shutdown.
//!
//! [`Server::start`] makes a running node out of a [`Config`]. Both APIs are thin: they read a request, call the
//! [`sessions::Sessions`] service, and write its answer.
//!
//! - **Invariant:** every error that leaves has a stable code, and holds no secret.
//! - **Invariant:** a request names its tenant by its token only; without tokens there is one tenant.

mod alerts;
mod backups;
mod capacity;
pub mod config;
mod error;
mod gauges;
mod grpc;
mod http;
mod levels;
mod limits;
mod logs;
mod metrics;
mod questions;
mod replicas;
pub mod sessions;
mod traces;
mod wiring;

pub use config::Config;
pub use error::{ApiError, CODES, Code};
pub use logs::Logs;
pub use providers::{Redactor, Secret};
pub use wiring::{Server, StartError};
