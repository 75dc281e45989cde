//! Sessions driven by short texts, for golden scripts.

use std::{fmt::Write as _, sync::Arc};

use ids::{Digest, Dispatch, RegionId, Seq, SessionId, ShardId, StepId, Timestamp};
use machine::{
    Approval, Command, Decision, Definition, Durability, Effect, Event, EventData, Failure, FailureClass,
    Idempotency, Input, Key, MemoryTables, Outcome, Pause, Read as _, Report, Resolution, ResolveStep, Row,
    SessionLimits, StartSession, Usage, Value, apply,
};

/// A shard in memory, and what happened in it.
pub(crate) struct Script {
    pub(crate) tables: MemoryTables,
    now: Timestamp,
    definition: Option<Arc<Definition>>,
}

impl Script {
    pub(crate) fn new() -> Self {
        Self { tables: MemoryTables::default(), now: Timestamp::from_millis(1_000_000), definition: None }
    }

    /// Runs one command of a script; what came of it, as text.
    pub(crate) fn run(&mut self, line: &str, body: &str) -> String {
        let mut words = line.split_whitespace();
        let name = words.next().unwrap();
        let rest: Vec<&str> = words.collect();
        match name {
            "define" => {
                let definition =
                    Arc::new(workflow::compile("script", body).unwrap_or_else(|error| panic!("{error}")));
                self.definition = Some(Arc::clone(&definition));
                self.apply(Command::PutDefinition(definition))
            }
            "advance" => {
                self.now = self.now.plus_millis(rest[0].parse().unwrap());
                self.apply(Command::FireTimers)
            }
            "show" => self.show(session(rest[0])),
            _ => {
                let command = self.command(name, &rest);
                self.apply(command)
            }
        }
    }

    fn command(&self, name: &str, rest: &[&str]) -> Command {
        let id = session(rest[0]);
        let option = |key: &str| rest.iter().find_map(|word| word.strip_prefix(key));
        let number = |key: &str| option(key).map_or(0, |value| value.parse().unwrap());
        let resolve = |resolution: Resolution| {
            let step: StepId = rest[1].parse().unwrap();
            let current = self.tables.step(id, step).map_or(Dispatch(0), |row| row.dispatch);
            let tokens = number("tokens=");
            let usage = Usage { tokens_in: tokens, tokens_out: 0, cost_microusd: number("cost=") };
            Command::ResolveStep(ResolveStep {
                session: id,
                step,
                dispatch: option("dispatch=").map_or(current, |value| Dispatch(value.parse().unwrap())),
                started_at: self.now,
                resolution,
                report: (tokens > 0 || usage.cost_microusd > 0)
                    .then(|| Report { usage, ..Report::default() }),
            })
        };
        match name {
            "start" => Command::StartSession(StartSession {
                session: id,
                tenant: "acme".into(),
                workflow: "script".into(),
                definition: self
                    .definition
                    .as_ref()
                    .map_or_else(Digest::default, |definition| definition.hash),
                input: json(rest.get(1).copied().filter(|word| !word.contains('=')).unwrap_or("null")),
                labels: vec![],
                limits: SessionLimits {
                    steps: u32::try_from(number("steps=")).unwrap(),
                    tokens: number("tokens="),
                    iterations: u32::try_from(number("iterations=")).unwrap(),
                    duration_ms: number("duration="),
                    cost_microusd: number("cost="),
                },
                durability: Durability::Local,
                idempotency: option("key=").map(|key| Idempotency {
                    lock_key: String::new(),
                    key: key.into(),
                    fingerprint: Digest([u8::try_from(number("print=")).unwrap(); 32]),
                }),
            }),
            "complete" => resolve(Resolution::Completed(json(rest[2]))),
            "fail" => {
                let class = match rest[2] {
                    "transient" => FailureClass::Transient,
                    "permanent" => FailureClass::Permanent,
                    _ => FailureClass::Limit,
                };
                let random =
                    u16::try_from(option("random=").map_or(500, |value| value.parse().unwrap())).unwrap();
                let pause = Pause {
                    wait_ms: u32::try_from(number("wait=")).unwrap(),
                    untried: rest.contains(&"untried"),
                };
                resolve(Resolution::Failed {
                    failure: Failure::new(class, "broken", "it broke"),
                    random,
                    pause,
                })
            }
            "items" => resolve(Resolution::Items(rest[2].split(',').map(json).collect())),
            "empty" => resolve(Resolution::Items(vec![])),
            "again" => resolve(Resolution::Again(rest[2] == "true")),
            "choose" => resolve(Resolution::Chosen(rest[2].parse().ok())),
            "skip" => resolve(Resolution::Skipped),
            "enter" => resolve(Resolution::Entered),
            "redispatch" => Command::Redispatch(vec![(id, rest[1].parse().unwrap())]),
            "signal" => Command::Signal {
                session: id,
                name: rest[1].into(),
                payload: json(rest[2]),
                id: rest[3].parse().unwrap(),
            },
            "approve" => approve(id, Decision::Approve),
            "edit" => approve(id, Decision::Edit(json(rest[1]))),
            "reject" => approve(id, Decision::Reject { reason: rest[1].into() }),
            "cancel" => Command::Cancel { session: id, reason: rest[1].into() },
            "retry" => Command::Retry { session: id },
            _ => panic!("unknown command {name}"),
        }
    }

    fn apply(&mut self, command: Command) -> String {
        let before = self.events();
        let output = apply(&mut self.tables, &Input { now: self.now, command });
        let mut text = String::new();
        match output.outcome {
            Outcome::Done => writeln!(text, "done"),
            Outcome::Started { session, created } => {
                writeln!(text, "{} {}", if created { "created" } else { "exists" }, session.unique())
            }
            Outcome::Fired { more } => writeln!(text, "fired{}", if more { ", more are due" } else { "" }),
            Outcome::Refused(refusal) => writeln!(text, "refused: {refusal:?}"),
        }
        .unwrap();
        for event in self.events().into_iter().filter(|event| !before.contains(event)).map(|(_, event)| event)
        {
            writeln!(text, "  {}", describe(&event)).unwrap();
        }
        for effect in output.effects {
            match effect {
                Effect::Dispatch(work) => {
                    writeln!(
                        text,
                        "  > {} {} attempt {} dispatch {}",
                        if work.external { "task" } else { "work" },
                        work.step,
                        work.attempt,
                        work.dispatch
                    )
                    .unwrap();
                }
                Effect::Recall { step, .. } => writeln!(text, "  > recall {step}").unwrap(),
                Effect::Timer { at } => {
                    writeln!(text, "  > timer in {} ms", at.as_millis() - self.now.as_millis()).unwrap();
                }
                Effect::Appended { ended: true, .. } => writeln!(text, "  > ended").unwrap(),
                Effect::Appended { .. } => {}
            }
        }
        text
    }

    fn events(&self) -> Vec<(Key, Event)> {
        let rows = self.tables.iter().filter_map(|(key, row)| match row {
            Row::Event(event, _) => Some((key.clone(), event.clone())),
            _ => None,
        });
        rows.collect()
    }

    fn show(&self, id: SessionId) -> String {
        let Some(row) = self.tables.session(id) else { return "no such session\n".into() };
        let mut text = format!(
            "{}: steps {}, tokens {}, active {}, waiting {}\n",
            row.status.name(),
            row.spent.steps,
            row.spent.usage.tokens_in,
            row.active,
            row.waiting
        );
        let (from, to) = (Key::Step(id, StepId::default()), Key::Step(id.successor(), StepId::default()));
        for (key, row) in self.tables.scan(&from, &to, usize::MAX) {
            if let (Key::Step(_, step), Row::Step(row)) = (key, row) {
                let name = &self.definition.as_ref().unwrap().nodes[usize::from(step.node)].name;
                writeln!(text, "  {step} {name} {} output {:?}", row.status.name(), row.output).unwrap();
            }
        }
        text
    }
}

fn approve(session: SessionId, decision: Decision) -> Command {
    Command::Approve { session, step: None, approval: Approval { decision, by: "ann".into() } }
}

fn session(number: &str) -> SessionId {
    SessionId::new(RegionId(0), ShardId(0), number.parse().unwrap())
}

fn json(text: &str) -> Value {
    Value::from(text.to_owned())
}

fn describe(event: &Event) -> String {
    let step = event.step.map(|step| format!(" {step}")).unwrap_or_default();
    let detail = match &event.data {
        EventData::StepFailed { attempt, retry_at, .. } => {
            format!(" attempt {attempt}{}", if retry_at.is_some() { ", again" } else { ", for good" })
        }
        EventData::SessionFailed { failure } => format!(" {}", failure.code),
        EventData::IterationStarted { iteration: number }
        | EventData::RecoveryStarted { recovery: number } => {
            format!(" {number}")
        }
        EventData::ItemFailed { index } => format!(" {index}"),
        _ => String::new(),
    };
    let Seq(seq) = event.seq;
    format!("{seq} {}{step}{detail}", event.data.kind())
}
