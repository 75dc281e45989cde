//! Leader-only: turns effects into work, runs it, proposes outcomes.
//!
//! An [`Engine`] watches one shard. When this node leads, it takes the shard's effects from a moment on, sends out
//! again what the tables held at that moment, under a raised fence, and from then on starts a task for each piece
//! of work. A task reads the rows, evaluates, asks a provider, and proposes what came of it.
//!
//! - **Invariant:** work starts only while this node leads; losing the lead ends all tasks.
//! - **Invariant:** an outcome carries the dispatch under which the work was sent out.
//! - **Absent:** HTTP handlers, regions.

mod engine;
mod external;
mod specs;
mod timers;
pub mod values;
mod work;
pub mod workers;

pub use engine::{Engine, Running};
pub use workers::Workers;
