//! From a document to a definition.

use ids::Digest;
use machine::{
    Backoff, Block, Case, Definition, Invalid, Node, NodeKind, OnFailure, Recover, Retry, SessionLimits,
    Wait, limits,
};
use serde_saphyr::{Location, Spanned};
use sha2::Digest as _;

use crate::{
    Agent, Format, Spec, Task,
    document::{self, Document, Step},
    expression,
    suggestion::unknown,
};

/// Part of every definition's digest: a changed compiler makes other definitions.
const COMPILER: &str = "orchestra.workflow.1\n";
/// Attempts that a workflow may ask for.
const ATTEMPTS_MAX: u32 = 1_000;
/// The time of one attempt of an agent where the workflow says nothing.
const AGENT_TIMEOUT_MS: u64 = 300_000;

/// What is wrong with a workflow, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{file}:{line}:{column}: {message}")]
pub struct Error {
    /// The name of the source.
    pub file: String,
    /// 1-based; 0 where the whole file is meant.
    pub line: u64,
    /// 1-based; 0 where the whole line is meant.
    pub column: u64,
    /// What is wrong, and what was expected.
    pub message: String,
}

/// Compiles a workflow.
///
/// # Errors
///
/// The first error, with its place in the source.
pub fn compile(file: &str, source: &str) -> Result<Definition> {
    let at_start = |message: String| Error { file: file.to_owned(), line: 0, column: 0, message };
    if source.len() > limits::VALUE_BYTES_MAX * 4 {
        return Err(at_start(format!("a workflow has at most {} bytes", limits::VALUE_BYTES_MAX * 4)));
    }
    let document: Document = serde_saphyr::from_str(source).map_err(|error| {
        let location = error.location();
        Error {
            file: file.to_owned(),
            line: location.as_ref().map_or(0, Location::line),
            column: location.as_ref().map_or(0, Location::column),
            message: first_line(&error.without_snippet().to_string()),
        }
    })?;
    let mut compiler = Compiler {
        file,
        default_retry: Retry {
            attempts_max: 3,
            backoff: Backoff::Exponential,
            delay_ms: 1_000,
            delay_max_ms: 60_000,
            jitter_permille: 200,
        },
        blocks: Vec::new(),
        nodes: Vec::new(),
        places: Vec::new(),
    };
    compiler.document(source, &document)
}

fn first_line(text: &str) -> String {
    text.lines().next().unwrap_or_default().to_owned()
}

type Result<T> = std::result::Result<T, Error>;

struct Compiler<'a> {
    file: &'a str,
    default_retry: Retry,
    blocks: Vec<Block>,
    nodes: Vec<Node>,
    /// Where each node's id stands in the source.
    places: Vec<Location>,
}

/// What a text inside a step may refer to.
#[derive(Clone, Copy)]
struct Visible<'a> {
    names: &'a [String],
}

impl Compiler<'_> {
    fn error<T>(&self, at: &Location, message: impl Into<String>) -> Result<T> {
        Err(Error {
            file: self.file.to_owned(),
            line: at.line(),
            column: at.column(),
            message: message.into(),
        })
    }

    fn document(&mut self, source: &str, document: &Document) -> Result<Definition> {
        self.name(&document.name, "the workflow's name")?;
        if let Some(retry) = &document.retry {
            self.default_retry = self.retry(retry, &document.name.referenced)?;
        }
        self.block(&document.steps, &[], 1, &document.name.referenced)?;
        let limits = &document.limits;
        if !(0.0..1e9).contains(&limits.cost_usd) {
            return self
                .error(&document.name.referenced, "limits.cost_usd must be between 0 and 1e9 US dollars");
        }
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "checked to be in 0..1e9"
        )]
        let cost_microusd = (limits.cost_usd * 1e6).ceil() as u64;
        let definition = Definition {
            hash: Digest(sha2::Sha256::new().chain_update(COMPILER).chain_update(source).finalize().into()),
            name: document.name.value.clone(),
            source: source.to_owned(),
            blocks: std::mem::take(&mut self.blocks),
            nodes: std::mem::take(&mut self.nodes),
            limits: SessionLimits {
                steps: limits.steps,
                tokens: limits.tokens,
                cost_microusd,
                iterations: limits.iterations,
                duration_ms: self.duration_or(limits.duration.as_ref(), 0)?,
            },
            retention_ms: self.duration_or(document.retention.as_ref(), limits::RETENTION_MS_DEFAULT)?,
        };
        match definition.check() {
            Ok(()) => Ok(definition),
            Err(invalid) => self.invalid(&definition, &invalid),
        }
    }

    fn invalid<T>(&self, definition: &Definition, invalid: &Invalid) -> Result<T> {
        let place = |node: u16| self.places.get(usize::from(node)).copied().unwrap_or(Location::UNKNOWN);
        let name = |node: &u16| definition.nodes[usize::from(*node)].name.clone();
        match invalid {
            Invalid::Cycle(nodes) => {
                let mut names: Vec<_> = nodes.iter().map(name).collect();
                names.push(names[0].clone());
                let at = place(nodes[0]);
                self.error(&at, format!("steps wait for one another: {}", names.join(" → ")))
            }
            Invalid::TooManyNodes(count) => {
                let at = place(0);
                self.error(&at, format!("{count} steps; a workflow has at most {}", limits::NODES_MAX))
            }
            Invalid::TooDeep(node) => {
                self.error(&place(*node), format!("steps are nested deeper than {}", limits::NESTING_MAX))
            }
            Invalid::EmptyBlock(_) => self.error(&place(0), "a list of steps must not be empty"),
            Invalid::Dangling(node) => self.error(&place(*node), "refers to a step that does not exist"),
        }
    }

    fn name(&self, name: &Spanned<String>, what: &str) -> Result<()> {
        let mut chars = name.value.chars();
        let starts_well = chars.next().is_some_and(|char| char.is_ascii_alphabetic() || char == '_');
        let goes_on_well = chars.all(|char| char.is_ascii_alphanumeric() || char == '_' || char == '-');
        if !starts_well || !goes_on_well || name.value.len() > limits::NAME_BYTES_MAX {
            let message = format!(
                "{what} must be a letter followed by letters, digits, _ or -, at most {} in all; found {:?}",
                limits::NAME_BYTES_MAX,
                name.value.chars().take(40).collect::<String>()
            );
            return self.error(&name.referenced, message);
        }
        Ok(())
    }

    fn step_id(&self, id: &Spanned<String>) -> Result<()> {
        self.name(id, "a step's id")?;
        if id.value.contains('-') {
            return self
                .error(&id.referenced, "a step's id must not contain `-`: expressions would read a minus");
        }
        Ok(())
    }

    /// Compiles a list of steps; its number.
    fn block(&mut self, steps: &[Step], outer: &[String], depth: usize, at: &Location) -> Result<u16> {
        if steps.is_empty() {
            return self.error(at, "a list of steps must not be empty");
        }
        if depth > limits::NESTING_MAX {
            return self
                .error(&steps[0].id.referenced, format!("steps nest at most {} deep", limits::NESTING_MAX));
        }
        if self.nodes.len() + steps.len() > limits::NODES_MAX {
            let message = format!("more than {} steps in the workflow", limits::NODES_MAX);
            return self.error(&steps[0].id.referenced, message);
        }
        let block = to_u16(self.blocks.len());
        self.blocks.push(Block::default());
        let first = to_u16(self.nodes.len());
        let mut numbers = std::collections::HashMap::with_capacity(steps.len());
        for (number, step) in (first..).zip(steps) {
            self.step_id(&step.id)?;
            if numbers.insert(step.id.value.as_str(), number).is_some() {
                return self
                    .error(&step.id.referenced, format!("a second step with the id `{}`", step.id.value));
            }
            self.places.push(step.id.referenced);
            self.nodes.push(placeholder(&step.id.value, block));
        }
        self.blocks[usize::from(block)].nodes = (first..first + to_u16(steps.len())).collect();
        self.edges(steps, first, &numbers)?;

        let mut names = outer.to_vec();
        names.extend(steps.iter().map(|step| step.id.value.clone()));
        for (number, step) in (first..).zip(steps) {
            self.step(number, step, &names, depth, &numbers)?;
        }
        Ok(block)
    }

    /// A step waits for those it names, else for the one before it.
    fn edges(
        &mut self,
        steps: &[Step],
        first: u16,
        numbers: &std::collections::HashMap<&str, u16>,
    ) -> Result<()> {
        for (number, step) in (first..).zip(steps) {
            let after: Vec<u16> = match &step.after {
                None => (number > first).then(|| number - 1).into_iter().collect(),
                Some(names) => {
                    let mut after = Vec::with_capacity(names.len());
                    for name in names {
                        let Some(&before) = numbers.get(name.value.as_str()) else {
                            let known = steps.iter().map(|step| step.id.value.as_str());
                            let message = unknown("step", &name.value, known);
                            return self
                                .error(&name.referenced, format!("after: {message} in the same list"));
                        };
                        if !after.contains(&before) {
                            after.push(before);
                        }
                    }
                    after
                }
            };
            for &before in &after {
                self.nodes[usize::from(before)].next.push(number);
            }
            self.nodes[usize::from(number)].after = after;
        }
        Ok(())
    }

    fn step(
        &mut self,
        number: u16,
        step: &Step,
        names: &[String],
        depth: usize,
        siblings: &std::collections::HashMap<&str, u16>,
    ) -> Result<()> {
        let visible = Visible { names };
        if let Some(when) = &step.when {
            self.expression(when, visible)?;
        }
        let (kind, task) = self.kind(step, visible, depth, siblings)?;
        let retry = match &step.retry {
            Some(retry) => self.retry(retry, &step.id.referenced)?,
            None => self.default_retry,
        };
        let recover = match &step.recover {
            Some(recover) => {
                self.attempts(recover.max_attempts, &step.id.referenced)?;
                let block = self.block(&recover.steps, names, depth + 1, &step.id.referenced)?;
                Some(Recover { block, attempts_max: recover.max_attempts })
            }
            None => None,
        };
        let default_timeout = if matches!(task, Task::Agent(_)) { AGENT_TIMEOUT_MS } else { 0 };
        let timeout_ms = self.duration_or(step.timeout.as_ref(), default_timeout)?;
        if step.timeout.is_some() && !matches!(task, Task::Agent(_) | Task::External(_)) {
            let at = step.timeout.as_ref().map_or(step.id.referenced, |timeout| timeout.referenced);
            return self.error(
                &at,
                "timeout is for agent and task steps; a wait has its own `timeout` inside `wait`",
            );
        }
        let spec = Spec { when: step.when.as_ref().map(|when| when.value.clone()), task };
        let node = &mut self.nodes[usize::from(number)];
        node.conditional = spec.when.is_some();
        node.retry = retry;
        node.recover = recover;
        node.timeout_ms = timeout_ms;
        node.kind = kind;
        node.spec = serde_json::to_string(&spec).unwrap_or_default();
        Ok(())
    }

    fn kind(
        &mut self,
        step: &Step,
        visible: Visible<'_>,
        depth: usize,
        siblings: &std::collections::HashMap<&str, u16>,
    ) -> Result<(NodeKind, Task)> {
        let at = &step.id.referenced;
        let given = [
            ("agent", step.agent.is_some()),
            ("task", step.task.is_some()),
            ("value", step.value.is_some()),
            ("branch", step.branch.is_some()),
            ("fork", step.fork.is_some()),
            ("map", step.map.is_some()),
            ("loop", step.repeat.is_some()),
            ("wait", step.wait.is_some()),
        ];
        let found: Vec<_> = given.iter().filter(|(_, given)| *given).map(|(kind, _)| *kind).collect();
        if found.len() != 1 {
            let found = if found.is_empty() { "none".to_owned() } else { found.join(" and ") };
            let kinds = given.map(|(kind, _)| kind).join(", ");
            return self
                .error(at, format!("step `{}` must have one of {kinds}; found {found}", step.id.value));
        }
        if let Some(agent) = &step.agent {
            let task = self.agent(agent, visible)?;
            return Ok((NodeKind::Work, task));
        }
        if let Some(task) = &step.task {
            self.name(&task.queue, "a queue's name")?;
            if let Some(input) = &task.input {
                self.expression(input, visible)?;
            }
            let input = task.input.as_ref().map_or_else(|| "null".to_owned(), |input| input.value.clone());
            return Ok((NodeKind::Task { queue: task.queue.value.clone() }, Task::External(input)));
        }
        if let Some(value) = &step.value {
            self.expression(value, visible)?;
            return Ok((NodeKind::Work, Task::Value(value.value.clone())));
        }
        if let Some(branch) = &step.branch {
            return self.branch(branch, visible, depth, at);
        }
        if let Some(branches) = &step.fork {
            if branches.is_empty() {
                return self.error(at, "a fork needs at least one branch");
            }
            let mut blocks = Vec::with_capacity(branches.len());
            for (name, steps) in branches {
                blocks.push((name.clone(), self.block(steps, visible.names, depth + 1, at)?));
            }
            return Ok((NodeKind::Fork { branches: blocks }, Task::Nothing));
        }
        if let Some(map) = &step.map {
            self.expression(&map.items, visible)?;
            if map.parallel == 0 || map.parallel > limits::MAP_PARALLEL_MAX {
                let message = format!("map.parallel must be between 1 and {}", limits::MAP_PARALLEL_MAX);
                return self.error(&map.items.referenced, message);
            }
            let block = self.block(&map.steps, visible.names, depth + 1, at)?;
            let on_failure = match map.on_failure {
                document::OnFailure::Fail => OnFailure::Fail,
                document::OnFailure::Continue => OnFailure::Continue,
            };
            let kind = NodeKind::Map { block, parallel: map.parallel, on_failure };
            return Ok((kind, Task::Map(map.items.value.clone())));
        }
        if let Some(repeat) = &step.repeat {
            return self.repeat(repeat, visible, depth, at);
        }
        match &step.wait {
            Some(wait) => Ok((NodeKind::Wait(self.wait(wait, siblings, at)?), Task::Nothing)),
            None => self.error(at, "a step needs a kind"),
        }
    }

    fn agent(&self, agent: &document::Agent, visible: Visible<'_>) -> Result<Task> {
        self.name(&agent.role, "a role")?;
        for template in agent.system.iter().chain([&agent.prompt]) {
            if let Err(reason) = expression::check_template(&template.value) {
                return self.error(&template.referenced, format!("template: {reason}"));
            }
            self.uses(template, visible)?;
        }
        if let Some(temperature) = agent.temperature
            && !(0.0..=2.0).contains(&temperature)
        {
            return self.error(&agent.role.referenced, "temperature must be between 0 and 2");
        }
        let output = match &agent.output {
            document::Output::Text => Format::Text,
            document::Output::Code => Format::Code,
            document::Output::Json => Format::Json,
            document::Output::Schema(schema) => Format::Schema(schema.clone()),
        };
        Ok(Task::Agent(Box::new(Agent {
            role: agent.role.value.clone(),
            system: agent.system.as_ref().map(|text| text.value.clone()).unwrap_or_default(),
            prompt: agent.prompt.value.clone(),
            output,
            max_tokens: agent.max_tokens,
            temperature: agent.temperature,
        })))
    }

    fn branch(
        &mut self,
        branch: &document::Branch,
        visible: Visible<'_>,
        depth: usize,
        at: &Location,
    ) -> Result<(NodeKind, Task)> {
        let (mut cases, mut conditions) = (Vec::new(), Vec::new());
        if branch.cases.is_empty() {
            return self.error(at, "a branch needs at least one case");
        }
        for case in &branch.cases {
            self.expression(&case.when, visible)?;
            conditions.push(case.when.value.clone());
            cases.push(Case { block: self.block(&case.steps, visible.names, depth + 1, at)? });
        }
        let otherwise = match &branch.otherwise {
            Some(steps) => Some(self.block(steps, visible.names, depth + 1, at)?),
            None => None,
        };
        Ok((NodeKind::Branch { cases, otherwise }, Task::Branch(conditions)))
    }

    fn repeat(
        &mut self,
        repeat: &document::Loop,
        visible: Visible<'_>,
        depth: usize,
        at: &Location,
    ) -> Result<(NodeKind, Task)> {
        if repeat.max_iterations == 0 || repeat.max_iterations > limits::LOOP_ITERATIONS_MAX {
            let message =
                format!("loop.max_iterations must be between 1 and {}", limits::LOOP_ITERATIONS_MAX);
            return self.error(&repeat.until.referenced, message);
        }
        let block = self.block(&repeat.steps, visible.names, depth + 1, at)?;
        // The condition sees the steps of the iteration.
        let mut names = visible.names.to_vec();
        names.extend(repeat.steps.iter().map(|step| step.id.value.clone()));
        self.expression(&repeat.until, Visible { names: &names })?;
        let kind = NodeKind::Loop {
            block,
            iterations_max: repeat.max_iterations,
            fail_when_exhausted: matches!(repeat.on_exhausted, document::OnFailure::Fail),
        };
        Ok((kind, Task::Loop(repeat.until.value.clone())))
    }

    fn wait(
        &self,
        wait: &document::Wait,
        siblings: &std::collections::HashMap<&str, u16>,
        at: &Location,
    ) -> Result<Wait> {
        let timeout_ms = self.duration_or(wait.timeout.as_ref(), 0)?;
        match (&wait.span, &wait.signal, &wait.approval) {
            (Some(span), None, None) => {
                if let Some(timeout) = &wait.timeout {
                    return self.error(&timeout.referenced, "a timer needs no timeout");
                }
                Ok(Wait::Timer { for_ms: self.duration_or(Some(span), 0)? })
            }
            (None, Some(signal), None) => {
                self.name(signal, "a signal's name")?;
                Ok(Wait::Signal { name: signal.value.clone(), timeout_ms })
            }
            (None, None, Some(subject)) => {
                let Some(&subject) = siblings.get(subject.value.as_str()) else {
                    let message = unknown("step", &subject.value, siblings.keys().copied());
                    return self.error(&subject.referenced, format!("approval: {message} in the same list"));
                };
                Ok(Wait::Approval { subject: Some(subject), timeout_ms })
            }
            _ => self.error(at, "wait must have one of for, signal, approval"),
        }
    }

    fn expression(&self, text: &Spanned<String>, visible: Visible<'_>) -> Result<()> {
        if let Err(reason) = expression::check_expression(&text.value) {
            return self.error(&text.referenced, format!("expression: {reason}"));
        }
        self.uses(text, visible)
    }

    fn uses(&self, text: &Spanned<String>, visible: Visible<'_>) -> Result<()> {
        for name in expression::steps_used(&text.value) {
            if !visible.names.iter().any(|known| known == name) {
                let message = unknown("step", name, visible.names.iter().map(String::as_str));
                return self.error(&text.referenced, format!("{message} that this step can see"));
            }
        }
        Ok(())
    }

    fn retry(&self, retry: &document::Retry, at: &Location) -> Result<Retry> {
        self.attempts(retry.max_attempts, at)?;
        let jitter = retry.jitter.unwrap_or(0.2);
        if !(0.0..=1.0).contains(&jitter) {
            return self.error(at, "retry.jitter must be between 0 and 1");
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be in 0..=1")]
        let jitter_permille = (jitter * 1000.0).round() as u16;
        Ok(Retry {
            attempts_max: retry.max_attempts,
            backoff: match retry.backoff {
                document::Backoff::Constant => Backoff::Constant,
                document::Backoff::Linear => Backoff::Linear,
                document::Backoff::Exponential => Backoff::Exponential,
            },
            delay_ms: self.duration_or(retry.delay.as_ref(), 1_000)?,
            delay_max_ms: self.duration_or(retry.max_delay.as_ref(), 60_000)?,
            jitter_permille,
        })
    }

    fn attempts(&self, attempts: u32, at: &Location) -> Result<()> {
        if attempts == 0 || attempts > ATTEMPTS_MAX {
            return self.error(at, format!("max_attempts must be between 1 and {ATTEMPTS_MAX}"));
        }
        Ok(())
    }

    fn duration_or(&self, text: Option<&Spanned<String>>, default: u64) -> Result<u64> {
        let Some(text) = text else { return Ok(default) };
        match duration_ms(&text.value) {
            Some(ms) => Ok(ms),
            None => {
                let message =
                    format!("expected a duration such as 500ms, 30s, 5m, 2h or 7d; found {:?}", text.value);
                self.error(&text.referenced, message)
            }
        }
    }
}

fn placeholder(name: &str, block: u16) -> Node {
    Node {
        name: name.to_owned(),
        block,
        after: Vec::new(),
        next: Vec::new(),
        conditional: false,
        retry: Retry {
            attempts_max: 1,
            backoff: Backoff::Constant,
            delay_ms: 0,
            delay_max_ms: 0,
            jitter_permille: 0,
        },
        recover: None,
        timeout_ms: 0,
        kind: NodeKind::Work,
        spec: String::new(),
    }
}

/// Numbers of nodes and blocks: below [`limits::NODES_MAX`] and a few blocks each, checked before.
fn to_u16(number: usize) -> u16 {
    u16::try_from(number).unwrap_or(u16::MAX)
}

/// A whole number and a unit, at most about 100 years.
fn duration_ms(text: &str) -> Option<u64> {
    let split = text.find(|char: char| !char.is_ascii_digit())?;
    let (number, unit) = text.split_at(split);
    let unit_ms = match unit {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        "d" => 86_400_000,
        _ => return None,
    };
    number.parse::<u64>().ok()?.checked_mul(unit_ms).filter(|&ms| ms <= 100 * 366 * 86_400_000)
}
