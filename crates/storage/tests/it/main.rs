//! The two databases and the directory, on a real file system.

mod directory;
mod log;
mod state;
