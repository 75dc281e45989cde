//! Traces: one per session, over OTLP, made of what the log says.
//!
//! The leader of a session's shard tells what it applies: a span for the session, one for each piece of work and for
//! how long it waited to be taken up, one for each call of a provider, and two for each commit: from the proposal until
//! a majority had it (`quorum`), and from then until it was in the state (`apply`). The node that a client talks to
//! tells of the request. The ids of spans are computed ([`ids::TraceContext`]), so that what different nodes tell is
//! one trace, whoever leads.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};

use consensus::{Clock, Leadership, Observer};
use ids::{Digest, NodeId, SessionId, ShardId, StepId, TRACE_LABEL, Timestamp, TraceContext};
use machine::{Definition, Event, EventData, Fact, Failure, Observed, Report, SessionRow};
use opentelemetry::{
    InstrumentationScope, KeyValue,
    trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState},
};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{BatchConfigBuilder, BatchSpanProcessor, SpanData, SpanEvents, SpanLinks, SpanProcessor as _},
};
use parking_lot::Mutex;
use storage::Note;
use tokio::sync::watch;
use workflow::{Spec, Task};

use crate::{config, levels::Levels, metrics::Commits};

/// The kinds of spans, besides those of steps.
const REQUEST: u64 = 1;
const QUORUM: u64 = 2;
const CALL: u64 = 3;
const APPLY: u64 = 4;
const DISPATCH: u64 = 5;
/// Spans that may wait for the receiver, and that are sent at once: a node that does thousands of sessions a second
/// makes tens of thousands of spans, and each request costs as much as a hundred of them.
const WAITING_MAX: usize = 16_384;
const BATCH_LEN: usize = 4_096;
/// How long fewer of them wait.
const SEND_INTERVAL: Duration = Duration::from_secs(1);
/// Workflows whose agents are remembered.
const AGENTS_LEN: usize = 1_024;

/// Tells an OTLP receiver.
pub(crate) struct Traces {
    processor: BatchSpanProcessor,
    scope: InstrumentationScope,
    names: config::SpanNames,
    /// The part of all traces that is told, by the last 56 bits of their ids.
    wanted: u64,
    agents: Mutex<HashMap<Digest, Arc<[Kind]>>>,
    started: OnceLock<Started>,
}

/// What is there once the node runs.
struct Started {
    shards: BTreeMap<ShardId, Replica>,
    clock: Arc<dyn Clock>,
}

/// A shard on this node.
struct Replica {
    lead: watch::Receiver<Leadership>,
    /// When it began to apply what it applies, in microseconds since 1970.
    applying: AtomicU64,
    /// Of which commit was told last: whose it was, and when it was proposed.
    told: Mutex<Option<(SessionId, Timestamp)>>,
}

/// What a node of a workflow does.
#[derive(Debug, Clone)]
enum Kind {
    Agent(String),
    Task(String),
    Other,
}

/// A span, before it is told.
struct Span {
    name: Cow<'static, str>,
    kind: SpanKind,
    context: TraceContext,
    parent: u64,
    from: Timestamp,
    to: Timestamp,
    attributes: Vec<KeyValue>,
    failed: Option<String>,
}

impl Span {
    /// Something inside this node, as a part of something else.
    fn within(
        parent: TraceContext,
        context: TraceContext,
        name: &'static str,
        (from, to): (Timestamp, Timestamp),
    ) -> Self {
        let (kind, parent) = (SpanKind::Internal, parent.span);
        Self { name: name.into(), kind, context, parent, from, to, attributes: Vec::new(), failed: None }
    }
}

impl std::fmt::Debug for Traces {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Traces").finish_non_exhaustive()
    }
}

impl Traces {
    /// # Errors
    ///
    /// The receiver's URL is none.
    pub(crate) fn new(of: &config::Traces, node: &str) -> Result<Self, String> {
        let endpoint = of.endpoint()?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_protocol(Protocol::HttpBinary)
            .with_endpoint(endpoint)
            .build()
            .map_err(|error| error.to_string())?;
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(WAITING_MAX)
            .with_max_export_batch_size(BATCH_LEN)
            .with_scheduled_delay(SEND_INTERVAL)
            .build();
        let mut processor = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        let resource = Resource::builder()
            .with_service_name("orchestra")
            .with_attribute(KeyValue::new("service.version", env!("CARGO_PKG_VERSION")))
            .with_attribute(KeyValue::new("service.instance.id", node.to_owned()))
            .build();
        processor.set_resource(&resource);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked to be a share")]
        let wanted = (of.share * (1u64 << 56) as f64) as u64;
        Ok(Self {
            processor,
            scope: InstrumentationScope::builder("orchestra").with_version(env!("CARGO_PKG_VERSION")).build(),
            names: of.span_names,
            wanted,
            agents: Mutex::default(),
            started: OnceLock::new(),
        })
    }

    /// The node runs: from now on what it applies as a leader is told.
    pub(crate) fn start(&self, node: &consensus::Node) {
        let replica = |lead| Replica { lead, applying: AtomicU64::new(0), told: Mutex::default() };
        let shards =
            node.groups().iter().map(|(shard, group)| (*shard, replica(group.leadership()))).collect();
        // There is one start.
        let _ = self.started.set(Started { shards, clock: node.clock() });
    }

    /// Tells what is not told yet.
    pub(crate) fn stop(&self) {
        if let Err(error) = self.processor.shutdown_with_timeout(Duration::from_secs(2)) {
            tracing::warn!(%error, "the last spans may be lost");
        }
    }

    /// A request about a session was answered; with which status, and whether that is a failure of the node.
    pub(crate) fn requested(
        &self,
        name: String,
        (session, given): (SessionId, Option<TraceContext>),
        (from, to): (Timestamp, Timestamp),
        ((attribute, status), failed): ((&'static str, i64), bool),
    ) {
        let root = TraceContext::of_session(session, given);
        let parent = given.map_or(root.span, |given| given.span);
        // Many requests may be about one session.
        let context = root.child(REQUEST, &[from.0, rand::random()]);
        let attributes =
            vec![KeyValue::new("orchestra.session", session.to_string()), KeyValue::new(attribute, status)];
        let failed = failed.then(|| status.to_string());
        self.tell(Span {
            name: name.into(),
            kind: SpanKind::Server,
            context,
            parent,
            from,
            to,
            attributes,
            failed,
        });
    }

    fn tell(&self, span: Span) {
        let Span { name, kind, context, parent, from, to, attributes, failed } = span;
        #[allow(clippy::cast_possible_truncation, reason = "the last bits")]
        let place = context.trace as u64 & ((1 << 56) - 1);
        if !context.sampled || place >= self.wanted {
            return;
        }
        self.processor.on_end(SpanData {
            span_context: SpanContext::new(
                TraceId::from(context.trace),
                SpanId::from(context.span),
                TraceFlags::SAMPLED,
                false,
                TraceState::default(),
            ),
            parent_span_id: SpanId::from(parent),
            parent_span_is_remote: true,
            span_kind: kind,
            name,
            start_time: time(from),
            end_time: time(to.max(from)),
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: failed.map_or(Status::Unset, Status::error),
            instrumentation_scope: self.scope.clone(),
        });
    }

    /// What is applied next was committed before now.
    fn applying(&self, shard: ShardId) {
        let Some(started) = self.started.get() else { return };
        if let Some(replica) = started.shards.get(&shard) {
            replica.applying.store(started.clock.wall().0, Ordering::Relaxed);
        }
    }

    /// Something was applied: if this node leads, it is told.
    fn applied(&self, session: &Observed<'_>, event: &Event, sent_out: Option<Timestamp>) {
        let Some(started) = self.started.get() else { return };
        let Some(replica) = started.shards.get(&session.session.shard()) else { return };
        if !matches!(*replica.lead.borrow(), Leadership::Here { .. }) {
            return;
        }
        let given = given(session.row);
        let root = TraceContext::of_session(session.session, given);
        let of_work = match (&event.data, event.step) {
            (EventData::StepCompleted { dispatch, started_at, report, attempt, .. }, Some(step)) => {
                Some((step, *dispatch, *started_at, (attempt.0, report.as_ref(), None)))
            }
            (EventData::StepFailed { dispatch, started_at, report, attempt, failure, .. }, Some(step)) => {
                Some((step, *dispatch, *started_at, (attempt.0, report.as_ref(), Some(failure))))
            }
            _ => None,
        };
        let mut parent = root;
        if let Some((step, dispatch, started_at, what)) = of_work {
            parent = root.of_step(step, dispatch);
            if let Some(sent_out) = sent_out.filter(|sent_out| *sent_out < started_at) {
                self.tell(Span::within(
                    root,
                    parent.child(DISPATCH, &[]),
                    "dispatch",
                    (sent_out, started_at),
                ));
            }
            self.work(session, (step, parent, root.span), (started_at, event.at), what);
        }
        self.commit(started, replica, (session.session, event), parent);
        if event.data.ends_session() {
            self.ended(session, event, (root, given));
        }
    }

    /// A commit, which may have several events of a session: it is told with the first, as a part of what that is
    /// about.
    fn commit(
        &self,
        started: &Started,
        replica: &Replica,
        (session, event): (SessionId, &Event),
        parent: TraceContext,
    ) {
        let commit = Some((session, event.at));
        if std::mem::replace(&mut *replica.told.lock(), commit) == commit {
            return;
        }
        let committed = Timestamp(replica.applying.load(Ordering::Relaxed)).max(event.at);
        let stages =
            [("quorum", QUORUM, (event.at, committed)), ("apply", APPLY, (committed, started.clock.wall()))];
        for (name, kind, time) in stages {
            let mut span = Span::within(parent, parent.child(kind, &[event.seq.0]), name, time);
            span.attributes.push(KeyValue::new("orchestra.event", event.data.kind()));
            self.tell(span);
        }
    }

    /// The session as a whole.
    fn ended(
        &self,
        session: &Observed<'_>,
        event: &Event,
        (root, given): (TraceContext, Option<TraceContext>),
    ) {
        let failed = match &event.data {
            EventData::SessionFailed { failure } => Some(failure.code.clone()),
            _ => None,
        };
        let attributes = vec![
            KeyValue::new("orchestra.session", session.session.to_string()),
            KeyValue::new("orchestra.workflow", session.row.workflow.clone()),
            KeyValue::new("orchestra.tenant", session.row.tenant.clone()),
            KeyValue::new("orchestra.outcome", event.data.kind()),
        ];
        self.tell(Span {
            name: format!("session {}", session.row.workflow).into(),
            kind: SpanKind::Internal,
            context: root,
            parent: given.map_or(0, |given| given.span),
            from: session.row.created_at,
            to: event.at,
            attributes,
            failed,
        });
    }

    /// A piece of work, and the calls of providers that it took.
    fn work(
        &self,
        session: &Observed<'_>,
        (step, context, parent): (StepId, TraceContext, u64),
        (from, to): (Timestamp, Timestamp),
        (attempt, report, failure): (u32, Option<&Report>, Option<&Failure>),
    ) {
        let name = session.definition.nodes.get(usize::from(step.node)).map_or("", |node| node.name.as_str());
        let kind = self.kind(session.definition, step);
        let mut attributes = vec![
            KeyValue::new("orchestra.step", step.to_string()),
            KeyValue::new("orchestra.step.name", name.to_owned()),
            KeyValue::new("orchestra.attempt", i64::from(attempt)),
        ];
        let title = match (&kind, self.names) {
            (Kind::Task(queue), config::SpanNames::Oao) => {
                attributes.push(KeyValue::new("messaging.destination.name", queue.clone()));
                format!("oao.tool.{name}")
            }
            (_, config::SpanNames::Oao) => format!("oao.step.{}", step.node),
            (Kind::Task(queue), config::SpanNames::Orchestra) => {
                attributes.push(KeyValue::new("messaging.destination.name", queue.clone()));
                format!("task {name}")
            }
            (_, config::SpanNames::Orchestra) => format!("step {name}"),
        };
        let failed = failure.map(|failure| failure.code.clone());
        self.tell(Span {
            name: title.into(),
            kind: SpanKind::Internal,
            context,
            parent,
            from,
            to,
            attributes,
            failed,
        });
        let Some(report) = report else { return };
        let role = if let Kind::Agent(role) = kind { role } else { String::new() };
        let mut begun = from;
        for (number, call) in (0..).zip(&report.calls) {
            let ended = begun.plus_millis(call.latency_ms);
            let last = call.failure.is_none();
            self.tell(Span {
                name: format!("chat {}", call.model).into(),
                kind: SpanKind::Client,
                context: context.child(CALL, &[number]),
                parent: context.span,
                from: begun,
                to: ended,
                attributes: gen_ai::attributes(call, report, &role, last),
                failed: call.failure.as_ref().map(|failure| failure.code.clone()),
            });
            begun = ended;
        }
    }

    fn kind(&self, definition: &Definition, step: StepId) -> Kind {
        let mut known = self.agents.lock();
        if !known.contains_key(&definition.hash) {
            if known.len() >= AGENTS_LEN {
                known.clear();
            }
            let kind = |node: &machine::Node| match (&node.kind, serde_json::from_str::<Spec>(&node.spec)) {
                (machine::NodeKind::Task { queue }, _) => Kind::Task(queue.clone()),
                (_, Ok(Spec { task: Task::Agent(agent), .. })) => Kind::Agent(agent.role),
                _ => Kind::Other,
            };
            known.insert(definition.hash, definition.nodes.iter().map(kind).collect());
        }
        let kinds = known.get(&definition.hash);
        kinds.and_then(|kinds| kinds.get(usize::from(step.node))).cloned().unwrap_or(Kind::Other)
    }
}

/// What a session's client named.
pub(crate) fn given(row: &SessionRow) -> Option<TraceContext> {
    row.labels.iter().find(|(key, _)| key == TRACE_LABEL)?.1.parse().ok()
}

fn time(at: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_micros(at.0)
}

/// Attributes of a model's call: OpenTelemetry's semantic conventions for generative AI, version 1.37
/// (<https://opentelemetry.io/docs/specs/semconv/gen-ai/gen-ai-spans/>). They are not stable: this is the one place.
mod gen_ai {
    use machine::{Call, Report};
    use opentelemetry::KeyValue;

    pub(super) fn attributes(call: &Call, report: &Report, role: &str, counts: bool) -> Vec<KeyValue> {
        let mut attributes = vec![
            KeyValue::new("gen_ai.operation.name", "chat"),
            KeyValue::new("gen_ai.provider.name", call.provider.clone()),
            KeyValue::new("gen_ai.request.model", call.model.clone()),
        ];
        if !role.is_empty() {
            attributes.push(KeyValue::new("gen_ai.agent.name", role.to_owned()));
        }
        // What was used is known of all calls together, and told with the one that counted.
        let number =
            |name: &'static str, value: u64| KeyValue::new(name, i64::try_from(value).unwrap_or(i64::MAX));
        if counts {
            attributes.push(number("gen_ai.usage.input_tokens", report.usage.tokens_in));
            attributes.push(number("gen_ai.usage.output_tokens", report.usage.tokens_out));
            attributes.push(number("orchestra.cost_microusd", report.usage.cost_microusd));
        }
        if let Some(failure) = &call.failure {
            attributes.push(KeyValue::new("error.type", failure.code.clone()));
        }
        attributes
    }
}

/// Who is told what is applied: who measures, and who traces.
#[derive(Debug)]
pub(crate) struct Told {
    pub(crate) levels: Arc<Levels>,
    pub(crate) traces: Option<Arc<Traces>>,
    pub(crate) commits: Commits,
}

impl Observer for Told {
    fn observe(&self, session: &Observed<'_>, fact: Fact<'_>) {
        self.levels.observe(session, fact);
        if let (Some(traces), Fact::Appended { event, sent_out }) = (&self.traces, fact) {
            traces.applied(session, event, sent_out);
        }
    }

    fn applying(&self, shard: ShardId) {
        if let Some(traces) = &self.traces {
            traces.applying(shard);
        }
    }

    fn probed(&self, node: NodeId, answered: bool, at: Timestamp) {
        self.levels.probed(node, answered, at);
    }

    fn compared(&self, node: NodeId, equal: bool, at: Timestamp) {
        self.levels.compared(node, equal, at);
    }

    fn committed(&self, shard: ShardId, commands: usize, took: Duration) {
        self.commits.committed(shard, commands, took);
    }

    fn changes(&self, now: Timestamp) -> Vec<Note> {
        self.levels.changes(now)
    }

    fn restore(&self, notes: Vec<Note>) {
        self.levels.restore(notes);
    }
}
