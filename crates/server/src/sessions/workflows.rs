//! Workflows: what a name or a source stands for.

use std::sync::Arc;

use consensus::Group;
use ids::ShardId;
use machine::{Command, Definition, Key, Read as _, Row};
use serde_json::{Value, json};

use super::{Result, Sessions, WorkflowRef, show::workflow_json};
use crate::error::{self, ApiError};

impl Sessions {
    /// The definition that a name or source stands for.
    pub(super) async fn definition(
        &self,
        tenant: &str,
        workflow: &WorkflowRef,
    ) -> Result<(String, Arc<Definition>)> {
        match workflow {
            WorkflowRef::Source(source) => {
                let definition = compile("workflow", source)?;
                Ok((definition.name.clone(), Arc::new(definition)))
            }
            WorkflowRef::Name(name) => {
                let group = self.group(ShardId(0))?;
                if let Some(definition) = named(group, tenant, name)? {
                    return Ok((name.clone(), definition));
                }
                // This replica may be behind: what it does not have may be there.
                self.read(group).await?;
                if let Some(definition) = named(group, tenant, name)? {
                    return Ok((name.clone(), definition));
                }
                let source = workflow::builtin(name).ok_or_else(|| {
                    ApiError::new(error::UNKNOWN_WORKFLOW, format!("no workflow is named {name:?}"))
                })?;
                Ok((name.clone(), Arc::new(compile(name, source)?)))
            }
        }
    }

    /// Gives a workflow its name.
    pub(crate) async fn apply_workflow(&self, tenant: &str, source: &str) -> Result<Value> {
        let definition = Arc::new(compile("workflow", source)?);
        let (name, hash) = (definition.name.clone(), definition.hash);
        let group = self.group(ShardId(0))?;
        self.propose(group, Command::PutDefinition(definition)).await?;
        let apply = Command::ApplyWorkflow { tenant: tenant.into(), name: name.clone(), definition: hash };
        self.propose(group, apply).await?;
        let row = group.latest().get(&Key::Workflow(tenant.into(), name.clone()));
        let version = if let Some(Row::Workflow(row)) = row { row.version } else { 0 };
        Ok(json!({"name": name, "definition": hash.to_string(), "version": version}))
    }

    /// The tenant's workflows, and those that come with the binary.
    pub(crate) async fn workflows(&self, tenant: &str) -> Result<Value> {
        let group = self.group(ShardId(0))?;
        self.read(group).await?;
        let view = group.view();
        let from = Key::Workflow(tenant.into(), String::new());
        let to = Key::Workflow(format!("{tenant}\0"), String::new());
        let mut list: Vec<Value> = view
            .scan(&from, &to, 1_000)
            .into_iter()
            .filter_map(|(key, row)| match (key, row) {
                (Key::Workflow(_, name), Row::Workflow(row)) => Some(workflow_json(&name, &row)),
                _ => None,
            })
            .collect();
        view.check()?;
        for (name, _) in workflow::BUILTIN {
            if !list.iter().any(|workflow| workflow["name"] == name) {
                list.push(json!({"name": name, "built_in": true}));
            }
        }
        Ok(json!({"workflows": list}))
    }

    /// A workflow with its source.
    pub(crate) async fn workflow(&self, tenant: &str, name: &str) -> Result<Value> {
        let (name, definition) = self.definition(tenant, &WorkflowRef::Name(name.into())).await?;
        Ok(json!({"name": name, "definition": definition.hash.to_string(), "source": definition.source}))
    }
}

/// What a name stands for on this replica.
fn named(group: &Group, tenant: &str, name: &str) -> Result<Option<Arc<Definition>>> {
    // Every start comes here. A definition does not change: the name's row is all that does.
    let view = group.latest();
    let row = view.get(&Key::Workflow(tenant.into(), name.into()));
    let definition = match row {
        Some(Row::Workflow(row)) => view.definition(row.definition),
        _ => None,
    };
    view.check()?;
    Ok(definition)
}

fn compile(file: &str, source: &str) -> Result<Definition> {
    workflow::compile(file, source).map_err(|error| ApiError::new(error::INVALID_WORKFLOW, error.to_string()))
}
