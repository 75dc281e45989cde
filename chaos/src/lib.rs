//! Faults on purpose, with a verdict: real node processes and a simulated vendor on this machine only, bounded in
//! count and time.

pub mod api;
pub mod cluster;
pub mod crash;
mod disk;
pub mod drill;
pub mod mutants;
mod net;
pub use net::packets_a_second;
pub mod report;
pub mod scenario;
mod scratch;
mod site;
pub use site::Mutant;
pub mod suite;
pub mod vendor;

use std::path::PathBuf;

/// What a run found.
#[derive(Debug)]
pub struct Verdict {
    /// What was counted, one line each.
    pub lines: Vec<String>,
    /// What must not be.
    pub violations: Vec<String>,
    /// Where the node's data and log are kept, after a violation.
    pub kept: Option<PathBuf>,
}

impl Verdict {
    /// One thing that must not be, and nothing counted.
    pub(crate) fn of_violation(violation: String) -> Self {
        Self { lines: Vec::new(), violations: vec![violation], kept: None }
    }

    /// Whether nothing was found that must not be.
    #[must_use]
    pub fn passed(&self) -> bool {
        self.violations.is_empty()
    }
}

impl std::fmt::Display for Verdict {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for line in &self.lines {
            writeln!(f, "{line}")?;
        }
        for violation in self.violations.iter().take(20) {
            writeln!(f, "VIOLATION: {violation}")?;
        }
        if let Some(kept) = &self.kept {
            writeln!(f, "kept: {}", kept.display())?;
        }
        write!(f, "{}", if self.passed() { "PASSED" } else { "FAILED" })
    }
}
