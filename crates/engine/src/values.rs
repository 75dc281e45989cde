//! The values of a session: outputs followed to where they are stored, and the variables of a step.

use std::collections::BTreeMap;

use bytes::Bytes;
use ids::{ScopeId, Seq, SessionId, StepId};
use machine::{Definition, Key, NodeKind, OutputRef, Read, Row, ScopeKind, ScopeRow, StepRow, StepStatus};
use serde_json::{Map, Value, json};

/// Bytes of JSON text that one output may be made of. More reads as an error.
pub const OUTPUT_BYTES_MAX: usize = 8 << 20;

/// Why a value can not be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// It is made of too much.
    #[error("the value is larger than {OUTPUT_BYTES_MAX} bytes")]
    TooLarge,
    /// What should be stored is not there, or is not JSON.
    #[error("the value of event {0} is missing or is not JSON")]
    Missing(Seq),
}

/// The values of one session.
#[derive(Debug, Clone, Copy)]
pub struct Values<'a, R> {
    view: &'a R,
    session: SessionId,
    definition: &'a Definition,
}

impl<'a, R: Read> Values<'a, R> {
    /// Of a session with its definition.
    pub fn new(view: &'a R, session: SessionId, definition: &'a Definition) -> Self {
        Self { view, session, definition }
    }

    /// The session's input.
    ///
    /// # Errors
    ///
    /// It is missing.
    pub fn input(&self) -> Result<Value, Error> {
        self.event(Seq(0), &mut OUTPUT_BYTES_MAX.clone())
    }

    /// An output, made of what it refers to.
    ///
    /// # Errors
    ///
    /// Too large, or something is missing.
    pub fn output(&self, output: OutputRef) -> Result<Value, Error> {
        self.resolve(output, &mut OUTPUT_BYTES_MAX.clone())
    }

    /// The output of the session: of its last step.
    ///
    /// # Errors
    ///
    /// Too large, or something is missing.
    pub fn session_output(&self) -> Result<Value, Error> {
        self.output(OutputRef::Scope(ScopeId(0)))
    }

    fn event(&self, seq: Seq, budget: &mut usize) -> Result<Value, Error> {
        let event = self.view.event(self.session, seq).ok_or(Error::Missing(seq))?;
        let bytes = event.data.value().ok_or(Error::Missing(seq))?;
        *budget = budget.checked_sub(bytes.len()).ok_or(Error::TooLarge)?;
        serde_json::from_slice(bytes).map_err(|_| Error::Missing(seq))
    }

    fn resolve(&self, output: OutputRef, budget: &mut usize) -> Result<Value, Error> {
        match output {
            OutputRef::None => Ok(Value::Null),
            OutputRef::Event(seq) => self.event(seq, budget),
            OutputRef::Scope(scope) => self.scope_output(scope, budget),
            OutputRef::Branches { first } => self.branches(first, budget),
            OutputRef::Items { first, count } => {
                let items = (0..count).map(|index| self.scope_output(ScopeId(first.0 + index), budget));
                Ok(Value::Array(items.collect::<Result<_, _>>()?))
            }
        }
    }

    /// The output of the last node of a scope's block; of a failed item, its error.
    fn scope_output(&self, scope: ScopeId, budget: &mut usize) -> Result<Value, Error> {
        let Some(row) = self.view.scope(self.session, scope) else { return Ok(Value::Null) };
        if let Some(seq) = row.failed {
            return Ok(self.failure(seq));
        }
        let last = self.definition.blocks.get(usize::from(row.block)).and_then(|block| block.nodes.last());
        match last.and_then(|&node| self.view.step(self.session, StepId::new(scope, node))) {
            Some(step) => self.resolve(step.output, budget),
            None => Ok(Value::Null),
        }
    }

    fn failure(&self, seq: Seq) -> Value {
        match self.view.event(self.session, seq).map(|event| event.data) {
            Some(machine::EventData::StepFailed { failure, .. }) => {
                json!({"error": {"code": failure.code, "message": failure.message}})
            }
            _ => json!({"error": {"code": "failed", "message": ""}}),
        }
    }

    fn branches(&self, first: ScopeId, budget: &mut usize) -> Result<Value, Error> {
        let parent = self.view.scope(self.session, first).and_then(|row| row.parent);
        let node = parent.and_then(|step| self.definition.nodes.get(usize::from(step.node)));
        let Some(NodeKind::Fork { branches }) = node.map(|node| &node.kind) else { return Ok(Value::Null) };
        let mut outputs = Map::new();
        for (place, (name, _)) in (0u32..).zip(branches) {
            outputs.insert(name.clone(), self.scope_output(ScopeId(first.0 + place), budget)?);
        }
        Ok(Value::Object(outputs))
    }

    /// What an expression in `scope` can refer to, with the outputs of the steps it names.
    ///
    /// # Errors
    ///
    /// Too large, or something is missing.
    pub fn variables<'t>(
        &self,
        scope: ScopeId,
        texts: impl IntoIterator<Item = &'t str>,
    ) -> Result<Value, Error> {
        let texts: Vec<&str> = texts.into_iter().collect();
        let mut variables = Map::new();
        let mut budget = OUTPUT_BYTES_MAX;
        // A text that does not contain a name does not ask for it.
        let is_named = |name: &str| texts.iter().any(|text| text.contains(name));
        if is_named("input") {
            variables.insert("input".into(), self.event(Seq(0), &mut budget)?);
        }
        for name in ["item", "index", "iteration", "last"].into_iter().filter(|name| is_named(name)) {
            variables.insert(name.into(), Value::Null);
        }
        if is_named("session") {
            let session = json!({"id": self.session.to_string(), "workflow": self.definition.name});
            variables.insert("session".into(), session);
        }

        let wanted: Vec<&str> = texts.iter().flat_map(|text| workflow::steps_used(text)).collect();
        let mut steps = BTreeMap::new();
        let (mut item_found, mut iteration_found) = (false, false);
        let mut next = Some(scope);
        while let Some(scope) = next {
            let Some(row) = self.view.scope(self.session, scope) else { break };
            for &name in &wanted {
                if !steps.contains_key(name)
                    && let Some(value) = self.named(scope, &row, name, &mut budget)?
                {
                    steps.insert(name, value);
                }
            }
            match (row.kind, row.parent) {
                (ScopeKind::Item(index), Some(parent)) if !item_found => {
                    item_found = true;
                    variables.insert("index".into(), index.into());
                    variables.insert("item".into(), self.item(parent, index, &mut budget)?);
                }
                (ScopeKind::Iteration(iteration), Some(parent)) if !iteration_found => {
                    iteration_found = true;
                    variables.insert("iteration".into(), iteration.into());
                    if let Some(machine::StepDetail::Iteration { previous: Some(previous), .. }) =
                        self.view.step(self.session, parent).map(|row| row.detail)
                    {
                        variables.insert("last".into(), self.scope_output(previous, &mut budget)?);
                    }
                }
                _ => {}
            }
            next = row.parent.map(|parent| parent.scope);
        }
        let steps = steps.into_iter().map(|(name, value)| (name.to_owned(), value)).collect();
        variables.insert("steps".into(), Value::Object(steps));
        Ok(Value::Object(variables))
    }

    /// A step of a scope by name, as expressions see it.
    fn named(
        &self,
        scope: ScopeId,
        row: &ScopeRow,
        name: &str,
        budget: &mut usize,
    ) -> Result<Option<Value>, Error> {
        let Some(node) = self.node_named(row, name) else { return Ok(None) };
        let step = self.view.step(self.session, StepId::new(scope, node));
        let status = step.as_ref().map_or(StepStatus::Blocked, |step| step.status);
        let output = match &step {
            Some(StepRow { status: StepStatus::Completed, output, .. }) => self.resolve(*output, budget)?,
            _ => Value::Null,
        };
        Ok(Some(json!({"output": output, "status": status.name()})))
    }

    fn node_named(&self, row: &ScopeRow, name: &str) -> Option<u16> {
        let block = self.definition.blocks.get(usize::from(row.block))?;
        block.nodes.iter().copied().find(|&node| self.definition.nodes[usize::from(node)].name == name)
    }

    /// The bytes of what an expression in `scope` names, where it names the whole of something that is stored: they
    /// need not be parsed to be written again. `None` does not say that there is no such value.
    #[must_use]
    pub fn stored(&self, scope: ScopeId, text: &str) -> Option<Bytes> {
        let seq = match workflow::evaluate::path(text)?[..] {
            ["input"] => Seq(0),
            ["steps", name, "output"] => self.event_of_output(scope, name)?,
            _ => return None,
        };
        self.view.event(self.session, seq)?.data.value().cloned()
    }

    /// The event that holds the output of the step of this name that is nearest around a scope.
    fn event_of_output(&self, mut scope: ScopeId, name: &str) -> Option<Seq> {
        loop {
            let row = self.view.scope(self.session, scope)?;
            if let Some(node) = self.node_named(&row, name) {
                let step = self.view.step(self.session, StepId::new(scope, node))?;
                return match (step.status, step.output) {
                    (StepStatus::Completed, OutputRef::Event(seq)) => Some(seq),
                    _ => None,
                };
            }
            scope = row.parent?.scope;
        }
    }

    fn item(&self, map: StepId, index: u32, budget: &mut usize) -> Result<Value, Error> {
        let Some(Row::Item(bytes)) = self.view.get(&Key::Item(self.session, map, index)) else {
            return Ok(Value::Null);
        };
        *budget = budget.checked_sub(bytes.len()).ok_or(Error::TooLarge)?;
        Ok(serde_json::from_slice(&bytes).unwrap_or(Value::Null))
    }

    /// A step's name for people: the names of the steps around it and its own, such as `files[2]/write`.
    #[must_use]
    pub fn path(&self, step: StepId) -> String {
        let name = |step: StepId| {
            self.definition
                .nodes
                .get(usize::from(step.node))
                .map_or("?", |node| node.name.as_str())
                .to_owned()
        };
        let mut path = name(step);
        let mut scope = step.scope;
        while let Some(ScopeRow { parent: Some(parent), kind, .. }) = self.view.scope(self.session, scope) {
            let place = match kind {
                ScopeKind::Root | ScopeKind::Case => String::new(),
                ScopeKind::Branch(branch) => match &self.definition.nodes[usize::from(parent.node)].kind {
                    NodeKind::Fork { branches } => branches
                        .get(usize::from(branch))
                        .map(|(name, _)| format!(".{name}"))
                        .unwrap_or_default(),
                    _ => String::new(),
                },
                ScopeKind::Item(index) => format!("[{index}]"),
                ScopeKind::Iteration(iteration) => format!("#{iteration}"),
                ScopeKind::Recovery(recovery) => format!("!{recovery}"),
            };
            path = format!("{}{place}/{path}", name(parent));
            scope = parent.scope;
        }
        path
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that can not go on fails")]

    use std::sync::Arc;

    use ids::{RegionId, ShardId, Timestamp};
    use machine::{
        Command, Durability, Effect, Input, MemoryTables, Resolution, ResolveStep, SessionLimits,
        StartSession,
    };

    use super::*;

    #[test]
    fn what_is_stored_as_a_whole_is_what_an_evaluation_gives() {
        let source = "name: w\nsteps:\n  - {id: a, task: {queue: q, input: input}}\n  \
             - {id: b, task: {queue: q, input: steps.a.output}}\n";
        let definition = Arc::new(workflow::compile("w", source).unwrap());
        let session = SessionId::new(RegionId(0), ShardId(0), 1);
        let mut tables = MemoryTables::default();
        let mut apply = |command| {
            let now = Timestamp::from_millis(1_000);
            machine::apply(&mut tables, &Input { now, command }).effects
        };
        apply(Command::PutDefinition(Arc::clone(&definition)));
        let started = apply(Command::StartSession(StartSession {
            session,
            tenant: "t".into(),
            workflow: "w".into(),
            definition: definition.hash,
            input: Bytes::from_static(br#"{"n":1.50,"text":"a b"}"#),
            labels: Vec::new(),
            limits: SessionLimits::default(),
            durability: Durability::Local,
            idempotency: None,
        }));
        let work = started.iter().find_map(|effect| match effect {
            Effect::Dispatch(work) => Some(*work),
            _ => None,
        });
        let work = work.unwrap();
        apply(Command::ResolveStep(ResolveStep {
            session,
            step: work.step,
            dispatch: work.dispatch,
            started_at: Timestamp::from_millis(900),
            resolution: Resolution::Completed(Bytes::from_static(b"[1,{\"of\":null}]")),
            report: None,
        }));
        let values = Values::new(&tables, session, &definition);
        let scope = ScopeId(0);
        for text in ["input", " steps.a.output "] {
            let evaluated =
                workflow::evaluate::value(text, &values.variables(scope, [text]).unwrap()).unwrap();
            let stored = values.stored(scope, text).unwrap();
            assert_eq!(serde_json::from_slice::<Value>(&stored).unwrap(), evaluated, "{text}");
        }
        // A part, an expression, a step without an output yet, and none at all: those are evaluated.
        for text in ["input.n", "input == null", "steps.b.output", "steps.c.output", "steps.a.status"] {
            assert_eq!(values.stored(scope, text), None, "{text}");
        }
    }
}
