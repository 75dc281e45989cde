//! Service levels, measured by the system itself.
//!
//! - [`Recorder`] counts: an [`Indicator`] with [`Labels`], by the minute, the hour and the day. Durations go into
//!   HdrHistograms of three significant digits, so that what is merged is as exact as what was recorded.
//! - [`facts`] turns what happens to sessions, as a replica applies it, into indicators. Their times are those of the
//!   log, so that every replica counts the same; [`merge`] takes of each the one that has counted most, as whoever was
//!   away has counted less. What only one node can see (the latency of its API) is added up.
//! - [`Objective`] says what is promised, [`report`] what came of it in a window.
//! - [`alert`] says when somebody is to be told.
//! - **Absent:** the network, the disk, the clock: who owns a recorder has them.

pub mod alert;
mod aliases;
mod cell;
pub mod facts;
mod indicator;
pub mod maintenance;
mod merge;
mod objective;
mod packed;
pub mod prometheus;
mod recorder;
pub mod report;
mod spent;

pub use cell::Cell;
pub use indicator::{Indicator, Kind, Labels, Scope, Series};
pub use maintenance::Maintenance;
pub use merge::{Merged, merge};
pub use objective::{Comparator, Error, Objective, Statistic, built_in, parse};
pub use recorder::{Level, Recorder, Window};
pub use spent::Spent;

/// What nodes tell one another.
pub use proto::sla as message;
