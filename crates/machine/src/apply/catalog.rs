//! `PutDefinition` and `ApplyWorkflow`.

use alloc::sync::Arc;

use ids::{Digest, Timestamp};

use super::{Result, check_len};
use crate::{Definition, Key, Outcome, Refusal, Row, Tables, WorkflowRow, limits};

pub(super) fn put_definition<T: Tables>(tables: &mut T, definition: &Arc<Definition>) -> Result {
    check_len("workflow", definition.source.len(), limits::VALUE_BYTES_MAX * 4)?;
    definition.check().map_err(|_| Refusal::InvalidDefinition)?;
    if tables.definition(definition.hash).is_none() {
        tables.put(Key::Definition(definition.hash), Row::Definition(Arc::clone(definition)));
    }
    Ok(Outcome::Done)
}

pub(super) fn apply_workflow<T: Tables>(
    tables: &mut T,
    now: Timestamp,
    tenant: &str,
    name: &str,
    definition: Digest,
) -> Result {
    check_len("workflow name", name.len(), limits::NAME_BYTES_MAX)?;
    if tables.definition(definition).is_none() {
        return Err(Refusal::UnknownDefinition(definition));
    }
    let key = Key::Workflow(tenant.into(), name.into());
    let version = match tables.get(&key) {
        Some(Row::Workflow(row)) if row.definition == definition => return Ok(Outcome::Done),
        Some(Row::Workflow(row)) => row.version + 1,
        _ => 1,
    };
    tables.put(key, Row::Workflow(WorkflowRow { definition, version, applied_at: now }));
    Ok(Outcome::Done)
}
