//! The workflow language: YAML is parsed, validated and compiled to the graph that the machine runs; templates and
//! conditions are evaluated against the values of a session.
//!
//! - [`compile`] is the only way from text to a [`machine::Definition`]. Unknown keys, unknown steps in expressions,
//!   cycles and sizes are errors with file, line and column.
//! - [`evaluate`] runs on the leader only: its results are logged as data, so a replica never evaluates anything.
//! - **Absent:** network, storage, time.

mod builtin;
mod compile;
mod document;
pub mod evaluate;
mod expression;
mod spec;
mod suggestion;

pub use builtin::{BUILTIN, builtin};
pub use compile::{Error, compile};
pub use expression::steps_used;
pub use spec::{Agent, Format, Spec, Task};
