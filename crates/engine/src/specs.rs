//! Specifications of steps, each parsed once instead of whenever a step of its kind is planned.

use std::{collections::HashMap, sync::Arc};

use ids::Digest;
use machine::Definition;
use parking_lot::Mutex;
use workflow::Spec;

/// Specifications that are remembered. Beyond that all are forgotten, and parsed again when they are needed.
const SPECS_MAX: usize = 4_096;

/// The specifications of a shard's steps, by definition and node.
#[derive(Debug, Default)]
pub(crate) struct Specs(Mutex<HashMap<(Digest, u16), Arc<Spec>>>);

impl Specs {
    /// That of a node of a definition.
    ///
    /// # Errors
    ///
    /// It is not one that this release knows.
    pub(crate) fn of(&self, definition: &Definition, node: u16) -> Result<Arc<Spec>, serde_json::Error> {
        let key = (definition.hash, node);
        if let Some(spec) = self.0.lock().get(&key) {
            return Ok(Arc::clone(spec));
        }
        let spec: Arc<Spec> = Arc::new(serde_json::from_str(&definition.nodes[usize::from(node)].spec)?);
        let mut specs = self.0.lock();
        if specs.len() >= SPECS_MAX {
            specs.clear();
        }
        specs.insert(key, Arc::clone(&spec));
        Ok(spec)
    }
}
