//! One piece of work: read, evaluate, ask, propose.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use consensus::{Clock, Group, ProposeError};
use ids::{ScopeId, TRACE_LABEL, Timestamp, TraceContext};
use machine::{
    Command, EventData, Failure, FailureClass, Node, NodeKind, Outcome, Pause, Read as _, Refusal, Report,
    Resolution, ResolveStep, StepDetail, StepRow, StepStatus, Work, limits,
};
use providers::{Request, Router};
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tracing::Instrument as _;
use workflow::{Agent, Format, Task, evaluate};

use crate::{
    Workers,
    specs::Specs,
    values::Values,
    workers::{Assignment, How, QueueKey, TaskId},
};

/// How long to wait before an outcome is proposed again.
const REPROPOSE_PAUSE: Duration = Duration::from_millis(50);
/// The feature level at which a failure may say when to come back.
const PAUSES_SINCE_MACHINE_VERSION: u32 = 2;
const REDISPATCH_PAUSE: Duration = Duration::from_millis(100);

/// What all work of a shard is done with.
pub(crate) struct Context {
    pub(crate) group: Group,
    pub(crate) router: Arc<Router>,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) workers: Arc<Workers>,
    pub(crate) specs: Specs,
}

pub(crate) struct Job {
    pub(crate) context: Arc<Context>,
    pub(crate) work: Work,
}

/// What is to be done, read from one view.
enum Plan {
    /// The outcome is known.
    Resolved(Resolution),
    /// A model has to be asked.
    Ask { agent: Box<Agent>, request: Request, timeout_ms: u64, trace: TraceContext },
    /// A worker has to do it.
    Hand(Assignment),
    /// The work is no longer wanted.
    Gone,
}

impl Job {
    pub(crate) async fn run(self, started_at: Timestamp, how: Option<How>, permit: OwnedSemaphorePermit) {
        let slot = match how {
            Some(How::Adopted(lease)) => {
                drop(permit);
                return self.attend(lease, started_at, self.timeout_ms()).await;
            }
            Some(How::Slot(slot)) => Some(slot),
            None => None,
        };
        let plan = match self.plan() {
            Ok(plan) => plan,
            Err(failure) => Plan::Resolved(self.failed(failure)),
        };
        let (resolution, report) = match plan {
            Plan::Gone => return,
            Plan::Resolved(resolution) => (resolution, None),
            Plan::Ask { agent, request, timeout_ms, trace } => {
                self.ask(&agent, request, timeout_ms).instrument(self.span(trace)).await
            }
            Plan::Hand(assignment) => {
                // What waits for a worker, or for what the worker does, keeps no other work from its turn.
                drop(permit);
                return self.hand(slot, assignment).await;
            }
        };
        self.propose(started_at, resolution, report).await;
    }

    pub(crate) fn failed(&self, failure: Failure) -> Resolution {
        self.failed_for_now(failure, Pause::default())
    }

    fn failed_for_now(&self, failure: Failure, pause: Pause) -> Resolution {
        // Replicas of an older release would not wait.
        let known = self.context.group.latest().shard().machine_version >= PAUSES_SINCE_MACHINE_VERSION;
        let pause = if known { pause } else { Pause::default() };
        Resolution::Failed { failure, random: rand::random_range(0..=1000), pause }
    }

    fn plan(&self) -> Result<Plan, Failure> {
        let permanent =
            |code: &str, error: &dyn ToString| Failure::new(FailureClass::Permanent, code, error.to_string());
        // Rows as they are: once one of them has changed under a plan, the outcome of that plan is refused.
        let view = self.context.group.latest();
        let Some(session) = view.session(self.work.session).filter(|session| !session.status.is_ended())
        else {
            return Ok(Plan::Gone);
        };
        let given = session.labels.iter().find(|(key, _)| key == TRACE_LABEL);
        let given = given.and_then(|(_, trace)| trace.parse().ok());
        let trace = TraceContext::of_session(self.work.session, given);
        let (Some(definition), Some(row)) =
            (view.definition(session.definition), view.step(self.work.session, self.work.step))
        else {
            return Ok(Plan::Gone);
        };
        if row.status != StepStatus::Ready || row.dispatch != self.work.dispatch {
            return Ok(Plan::Gone);
        }
        let node = &definition.nodes[usize::from(self.work.step.node)];
        let spec = self.context.specs.of(&definition, self.work.step.node);
        let spec = spec.map_err(|error| permanent("invalid_spec", &error))?;
        let values = Values::new(&view, self.work.session, &definition);
        let variables = |scope: ScopeId, texts: &[&str]| {
            let variables = values.variables(scope, texts.iter().copied());
            variables.map_err(|error| permanent("value_unavailable", &error))
        };
        let evaluated = |error: evaluate::Error| permanent("evaluation_failed", &error);
        let value = |scope: ScopeId, text: &str| match values.stored(scope, text) {
            Some(bytes) => Ok(bytes),
            None => evaluate::value(text, &variables(scope, &[text])?)
                .map(|value| Bytes::from(value.to_string()))
                .map_err(evaluated),
        };
        let scope = self.work.step.scope;

        if let (Some(when), StepDetail::None) = (&spec.when, row.detail) {
            if !evaluate::condition(when, &variables(scope, &[when])?).map_err(evaluated)? {
                return Ok(Plan::Resolved(Resolution::Skipped));
            }
            if matches!(node.kind, NodeKind::Fork { .. } | NodeKind::Wait(_) | NodeKind::Loop { .. }) {
                return Ok(Plan::Resolved(Resolution::Entered));
            }
        }
        let plan = match &spec.task {
            Task::Agent(agent) => {
                let variables = variables(scope, &[&agent.system, &agent.prompt])?;
                let request = self.request(agent, &variables, &view, &row).map_err(evaluated)?;
                Plan::Ask { agent: agent.clone(), request, timeout_ms: node.timeout_ms, trace }
            }
            Task::Value(text) => Plan::Resolved(completed(value(scope, text)?)?),
            Task::External(text) => {
                let input = value(scope, text)?;
                check_len("the input", input.len(), limits::VALUE_BYTES_MAX)?;
                let NodeKind::Task { queue } = &node.kind else { return Ok(Plan::Gone) };
                let queue = Arc::new(QueueKey { tenant: session.tenant.clone(), queue: queue.clone() });
                let Work { session: of, step, attempt, dispatch, .. } = self.work;
                let id = TaskId { session: of, step, dispatch };
                let (timeout_ms, traceparent) = (node.timeout_ms, trace.of_step(step, dispatch).to_string());
                let path = values.path(step);
                Plan::Hand(Assignment { id, queue, path, attempt: attempt.0, input, timeout_ms, traceparent })
            }
            Task::Branch(conditions) => {
                let texts: Vec<&str> = conditions.iter().map(String::as_str).collect();
                let variables = variables(scope, &texts)?;
                Plan::Resolved(Resolution::Chosen(choose(conditions, node, &variables).map_err(evaluated)?))
            }
            Task::Map(text) => {
                let items = evaluate::list(text, &variables(scope, &[text])?).map_err(evaluated)?;
                Plan::Resolved(expanded(&items)?)
            }
            Task::Loop(until) => {
                let StepDetail::Iteration { scope, .. } = row.detail else {
                    return Ok(Plan::Resolved(Resolution::Entered));
                };
                let ends = evaluate::condition(until, &variables(scope, &[until])?).map_err(evaluated)?;
                Plan::Resolved(Resolution::Again(!ends))
            }
            Task::Nothing => Plan::Resolved(Resolution::Entered),
        };
        // A disk that can not be read is no reason to fail a step: the work is given up, and sent out again later.
        if let Err(error) = view.check() {
            tracing::error!(session = %self.work.session, %error, "the work's values can not be read");
            return Ok(Plan::Gone);
        }
        Ok(plan)
    }

    fn request(
        &self,
        agent: &Agent,
        variables: &Value,
        view: &storage::Latest<'_>,
        row: &StepRow,
    ) -> Result<Request, evaluate::Error> {
        let mut prompt = evaluate::render(&agent.prompt, variables)?;
        // After an answer that could not be used, the model is told why.
        if let Some(seq) = row.failed
            && let Some(EventData::StepFailed { failure, .. }) =
                view.event(self.work.session, seq).map(|event| event.data)
            && failure.code == "malformed_output"
        {
            prompt.push_str("\n\nYour last answer could not be used: ");
            prompt.push_str(&failure.message);
        }
        let schema = match &agent.output {
            Format::Schema(schema) => Some(schema.clone()),
            Format::Text | Format::Code | Format::Json => None,
        };
        Ok(Request {
            model: String::new(),
            system: evaluate::render(&agent.system, variables)?,
            prompt,
            json: matches!(agent.output, Format::Json | Format::Schema(_)),
            schema,
            max_tokens: agent.max_tokens,
            temperature: agent.temperature,
            idempotency_key: format!("{}/{}/{}", self.work.session, self.work.step, self.work.attempt),
        })
    }

    /// What is logged about the work says whose it is.
    fn span(&self, trace: TraceContext) -> tracing::Span {
        let (session, step) = (self.work.session, self.work.step);
        tracing::error_span!("work", %session, %step, trace_id = format_args!("{:032x}", trace.trace))
    }

    async fn ask(&self, agent: &Agent, request: Request, timeout_ms: u64) -> (Resolution, Option<Report>) {
        let deadline =
            (timeout_ms > 0).then(|| tokio::time::Instant::now() + Duration::from_millis(timeout_ms));
        let answer = self.context.router.ask(&agent.role, request, deadline).await;
        let resolution = match answer.result {
            Ok(completion) => {
                match output(&agent.output, &completion.text)
                    .and_then(|value| completed(value.to_string().into()))
                {
                    Ok(resolution) => resolution,
                    Err(failure) => self.failed(failure),
                }
            }
            Err(failure) => {
                let wait_ms = u32::try_from(answer.retry_after.as_millis()).unwrap_or(u32::MAX);
                self.failed_for_now(failure, Pause { wait_ms, untried: !answer.asked })
            }
        };
        (resolution, Some(answer.report))
    }

    /// The outcome goes to this node's own shard: where another leads, the work has been sent out again.
    async fn propose_here(&self, resolve: ResolveStep) -> Result<Outcome, ProposeError> {
        self.context.group.propose_here(Command::ResolveStep(resolve)).await.map(|(outcome, _)| outcome)
    }

    /// Proposes until the outcome is known, or somebody else's counts: whether this one does, `None` if the node stops.
    /// Losing the lead ends the task.
    pub(crate) async fn propose(
        &self,
        started_at: Timestamp,
        resolution: Resolution,
        report: Option<Report>,
    ) -> Option<bool> {
        let resolve = ResolveStep {
            session: self.work.session,
            step: self.work.step,
            dispatch: self.work.dispatch,
            started_at,
            resolution,
            report,
        };
        loop {
            match self.propose_here(resolve.clone()).await {
                Ok(Outcome::Refused(Refusal::TooLarge { what, limit })) => {
                    let message = format!("{what} is larger than {limit}");
                    let failure = Failure::new(FailureClass::Permanent, "output_too_large", message);
                    let failed = ResolveStep { resolution: self.failed(failure), ..resolve.clone() };
                    return self.propose_here(failed).await.ok().map(|_| true);
                }
                Ok(Outcome::Refused(refusal)) => {
                    tracing::debug!(session = %self.work.session, step = %self.work.step, ?refusal, "outcome refused");
                    return Some(false);
                }
                Ok(_) => return Some(true),
                Err(ProposeError::Stopped) => return None,
                Err(error) => {
                    tracing::debug!(session = %self.work.session, %error, "proposing the outcome again");
                    tokio::time::sleep(REPROPOSE_PAUSE).await;
                }
            }
        }
    }
}

/// Raises the fence of work that may be lost with an earlier leader or a worker. The raised work comes back as effects.
pub(crate) async fn redispatch(group: &Group, lost: &[Work]) -> bool {
    for page in lost.chunks(limits::REDISPATCH_PER_COMMAND) {
        let steps = page.iter().map(|work| (work.session, work.step)).collect();
        if let Err(error) = group.propose_here(Command::Redispatch(steps)).await {
            tracing::warn!(shard = %group.shard(), %error, "work could not be sent out again; trying again");
            tokio::time::sleep(REDISPATCH_PAUSE).await;
            return false;
        }
    }
    true
}

fn choose(conditions: &[String], node: &Node, variables: &Value) -> Result<Option<u16>, evaluate::Error> {
    debug_assert!(matches!(node.kind, NodeKind::Branch { .. }));
    for (case, condition) in (0u16..).zip(conditions) {
        if evaluate::condition(condition, variables)? {
            return Ok(Some(case));
        }
    }
    Ok(None)
}

fn completed(bytes: Bytes) -> Result<Resolution, Failure> {
    check_len("the output", bytes.len(), limits::VALUE_BYTES_MAX)?;
    Ok(Resolution::Completed(bytes))
}

fn expanded(items: &[Value]) -> Result<Resolution, Failure> {
    check_len("the list of items", items.len(), limits::MAP_ITEMS_MAX)?;
    let items: Vec<Bytes> = items.iter().map(|item| Bytes::from(item.to_string())).collect();
    check_len("the list of items", items.iter().map(Bytes::len).sum(), limits::VALUE_BYTES_MAX)?;
    Ok(Resolution::Items(items))
}

fn check_len(what: &str, len: usize, limit: usize) -> Result<(), Failure> {
    if len <= limit {
        return Ok(());
    }
    let message = format!("{what} has {len}, the limit is {limit}");
    Err(Failure::new(FailureClass::Permanent, "output_too_large", message))
}

/// What a model's text stands for. A text that is not what was asked for is tried again, with the reason.
fn output(format: &Format, text: &str) -> Result<Value, Failure> {
    let malformed = |reason: String| Failure::new(FailureClass::Transient, "malformed_output", reason);
    match format {
        Format::Text => Ok(Value::String(text.to_owned())),
        Format::Code => Ok(Value::String(without_fence(text).to_owned())),
        Format::Json => parse(text).map_err(malformed),
        Format::Schema(schema) => {
            let value = parse(text).map_err(malformed)?;
            let validator = jsonschema::validator_for(schema).map_err(|error| {
                Failure::new(FailureClass::Permanent, "invalid_schema", error.to_string())
            })?;
            if let Some(error) = validator.iter_errors(&value).next() {
                return Err(malformed(format!("at {}: {error}", error.instance_path())));
            }
            Ok(value)
        }
    }
}

fn parse(text: &str) -> Result<Value, String> {
    serde_json::from_str(without_fence(text)).map_err(|error| format!("it is not JSON: {error}"))
}

/// The text inside one Markdown code fence around all of it, or the text.
fn without_fence(text: &str) -> &str {
    let trimmed = text.trim();
    let inside = trimmed
        .strip_prefix("```")
        .and_then(|rest| rest.strip_suffix("```"))
        .and_then(|rest| rest.split_once('\n'))
        .map(|(_language, inside)| inside);
    match inside {
        Some(inside) if !inside.contains("\n```") => inside,
        _ => text,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn fences_come_off_whole_texts_only() {
        assert_eq!(without_fence("```rust\nfn main() {}\n```"), "fn main() {}\n");
        assert_eq!(without_fence("  ```\nx\n```\n"), "x\n");
        assert_eq!(without_fence("see ```x```"), "see ```x```");
        let two = "```\na\n```\ntext\n```\nb\n```";
        assert_eq!(without_fence(two), two);
    }

    #[test]
    fn a_malformed_answer_is_tried_again_with_the_reason() {
        let schema = Format::Schema(json!({"type": "object", "required": ["files"]}));
        for (text, reason) in [("I am sorry", "not JSON"), ("{}", "files"), ("[1", "not JSON")] {
            let failure = output(&schema, text).unwrap_err();
            assert_eq!((failure.class, failure.code.as_str()), (FailureClass::Transient, "malformed_output"));
            assert!(failure.message.contains(reason), "{}", failure.message);
        }
        assert_eq!(output(&schema, "```json\n{\"files\": []}\n```").unwrap(), json!({"files": []}));
        assert_eq!(output(&Format::Text, "x").unwrap(), json!("x"));
    }
}
