//! How the process logs, as far as that can be changed while it runs.

use parking_lot::Mutex;

type Change = Box<dyn Fn(&str) -> Result<(), String> + Send + Sync>;

/// The levels at which the process logs.
pub struct Logs {
    levels: Mutex<String>,
    change: Change,
}

impl Logs {
    /// Levels that `change` puts into force, or says why not.
    pub fn new(
        levels: impl Into<String>,
        change: impl Fn(&str) -> Result<(), String> + Send + Sync + 'static,
    ) -> Self {
        Self { levels: Mutex::new(levels.into()), change: Box::new(change) }
    }

    /// Those in force.
    pub(crate) fn levels(&self) -> String {
        self.levels.lock().clone()
    }

    pub(crate) fn set(&self, levels: &str) -> Result<(), String> {
        let mut in_force = self.levels.lock();
        (self.change)(levels)?;
        levels.clone_into(&mut in_force);
        Ok(())
    }
}

impl std::fmt::Debug for Logs {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Logs").field("levels", &self.levels).finish_non_exhaustive()
    }
}
