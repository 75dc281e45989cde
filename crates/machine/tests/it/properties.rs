//! Random commands against several workflows at once, with one checker an invariant after every command.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use ids::{Digest, RegionId, Seq, SessionId, ShardId, StepId, Timestamp};
use machine::{
    AlertChange, AlertState, Approval, Command, Decision, Definition, Durability, Effect, Event, EventData,
    Failure, FailureClass, History, Idempotency, Input, Key, MemoryTables, NodeKind, Outcome, Pause,
    Read as _, Report, Resolution, ResolveStep, Row, SessionLimits, StartSession, StepStatus, TimerKind,
    Usage, Value, Work, apply, chain, limits_at_start, pending_effects, replay,
};
use proptest::{prelude::*, test_runner::TestRunner};

use crate::invariants::{Change, INVARIANTS};

const WORKFLOWS: [&str; 4] = [
    "name: a\nretention: 1s\nsteps:\n  - {id: x, value: '1'}\n  - {id: y, after: [], value: '1', when: 'true'}\n  \
     - {id: z, after: [x, y], value: '1', retry: {max_attempts: 2, delay: 10ms}}\n",
    "name: b\nsteps:\n  - id: m\n    map:\n      items: '[1]'\n      parallel: 2\n      on_failure: continue\n      steps:\n        \
     - {id: w, value: '1'}\n        - {id: v, value: '1', recover: {max_attempts: 2, steps: [{id: r, value: '1'}]}}\n",
    "name: c\nlimits: {iterations: 4}\nsteps:\n  - id: l\n    loop:\n      until: 'true'\n      max_iterations: 3\n      steps:\n        \
     - {id: s, wait: {signal: go, timeout: 1s}}\n        - {id: t, wait: {for: 10ms}}\n",
    "name: d\nlimits: {steps: 9, duration: 5s}\nsteps:\n  - id: f\n    fork:\n      one: [{id: p, value: '1'}, {id: q, wait: {approval: p}}]\n      \
     two: [{id: b, branch: {cases: [{when: 'true', steps: [{id: i, value: '1'}]}]}}]\n  - {id: e, value: '1'}\n",
];

#[derive(Debug, Clone)]
enum Op {
    /// Session, workflow, and the key, of which 0 is none.
    Start(u8, usize, u8),
    /// Resolves the n-th piece of pending work, with a fence that is `stale` or not.
    Resolve {
        nth: usize,
        how: u8,
        stale: bool,
    },
    Redispatch(usize),
    Signal(u8, u8),
    Approve(u8, u8),
    Cancel(u8),
    Retry(u8),
    Alert(u8, u8),
    Advance(u16),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (0u8..6, 0usize..4, 0u8..4).prop_map(|(id, workflow, key)| Op::Start(id, workflow, key)),
        12 => (0usize..20, any::<u8>(), prop::bool::weighted(0.1))
            .prop_map(|(nth, how, stale)| Op::Resolve { nth, how, stale }),
        1 => (0usize..20).prop_map(Op::Redispatch),
        2 => (0u8..6, 0u8..8).prop_map(|(id, signal)| Op::Signal(id, signal)),
        2 => (0u8..6, 0u8..3).prop_map(|(id, decision)| Op::Approve(id, decision)),
        1 => (0u8..6).prop_map(Op::Cancel),
        1 => (0u8..6).prop_map(Op::Retry),
        1 => (0u8..3, 0u8..3).prop_map(|(alert, change)| Op::Alert(alert, change)),
        3 => (1u16..2000).prop_map(Op::Advance),
    ]
}

fn session(id: u8) -> SessionId {
    SessionId::new(RegionId(0), ShardId(0), id.into())
}

struct World {
    tables: MemoryTables,
    replica: MemoryTables,
    definitions: Vec<Arc<Definition>>,
    now: Timestamp,
    /// Effects emitted and not resolved, by step.
    out: BTreeMap<(SessionId, StepId), Work>,
}

impl World {
    fn new() -> Self {
        let definitions: Vec<_> = WORKFLOWS
            .iter()
            .map(|source| Arc::new(workflow::compile("w", source).unwrap_or_else(|error| panic!("{error}"))))
            .collect();
        let (tables, replica) = (MemoryTables::default(), MemoryTables::default());
        let now = Timestamp::from_millis(1_000_000);
        let mut world = Self { tables, replica, definitions, now, out: BTreeMap::new() };
        for definition in world.definitions.clone() {
            world.apply(Command::PutDefinition(definition));
        }
        world
    }

    fn step(&mut self, op: &Op) {
        if let Op::Advance(ms) = op {
            self.now = self.now.plus_millis(u64::from(*ms));
        }
        if let Some(command) = self.command(op) {
            self.apply(command);
        }
    }

    fn nth_work(&self, nth: usize) -> Option<Work> {
        let (pending, _) = pending_effects(&self.tables, None, 1000);
        pending.get(nth % pending.len().max(1)).copied()
    }

    fn command(&self, op: &Op) -> Option<Command> {
        Some(match op {
            Op::Start(id, workflow, key) => Command::StartSession(StartSession {
                session: session(*id),
                tenant: "t".into(),
                workflow: "w".into(),
                definition: self.definitions[*workflow].hash,
                input: Value::from_static(b"1"),
                labels: vec![],
                limits: SessionLimits { tokens: 60, cost_microusd: 20, ..SessionLimits::default() },
                durability: Durability::Local,
                idempotency: (*key > 0).then(|| Idempotency {
                    lock_key: String::new(),
                    key: key.to_string(),
                    fingerprint: self.definitions[*workflow].hash,
                }),
            }),
            Op::Resolve { nth, how, stale } => self.resolve(self.nth_work(*nth)?, *how, *stale),
            Op::Redispatch(nth) => {
                let work = self.nth_work(*nth)?;
                Command::Redispatch(vec![(work.session, work.step)])
            }
            Op::Alert(alert, change) => Command::Alert {
                name: format!("alert-{alert}"),
                change: match change {
                    0 => AlertChange::Breached { hold_ms: u64::from(*alert) * 100, value: "1".into() },
                    1 => AlertChange::Fine,
                    _ => AlertChange::Notified { state: AlertState::Firing, since: self.now },
                },
            },
            Op::Signal(id, signal) => Command::Signal {
                session: session(*id),
                name: if signal % 2 == 0 { "go" } else { "other" }.into(),
                payload: Value::from_static(b"2"),
                id: u128::from(*signal),
            },
            Op::Approve(id, decision) => {
                let decision = match decision {
                    0 => Decision::Approve,
                    1 => Decision::Edit(Value::from_static(b"3")),
                    _ => Decision::Reject { reason: String::new() },
                };
                Command::Approve {
                    session: session(*id),
                    step: None,
                    approval: Approval { decision, by: "p".into() },
                }
            }
            Op::Cancel(id) => Command::Cancel { session: session(*id), reason: "enough".into() },
            Op::Retry(id) => Command::Retry { session: session(*id) },
            Op::Advance(_) => Command::FireTimers,
        })
    }

    fn resolve(&self, work: Work, how: u8, stale: bool) -> Command {
        let row = self.tables.session(work.session).unwrap();
        let definition = self.tables.definition(row.definition).unwrap();
        let fail = |class| Resolution::Failed {
            failure: Failure::new(class, "x", "x"),
            random: u16::from(how) * 3,
            pause: Pause { wait_ms: u32::from(how % 3) * 500, untried: how.is_multiple_of(5) },
        };
        let node = &definition.nodes[usize::from(work.step.node)];
        let first = self.tables.step(work.session, work.step).unwrap().detail == machine::StepDetail::None;
        let resolution = match how % 8 {
            0 => fail(FailureClass::Transient),
            1 => fail(FailureClass::Permanent),
            // Not always what fits: what does not is refused.
            2 => Resolution::Skipped,
            3 => Resolution::Again(how > 100),
            _ => match node.kind {
                NodeKind::Work | NodeKind::Task { .. } => Resolution::Completed(Value::from_static(b"4")),
                NodeKind::Branch { .. } => Resolution::Chosen((how > 100).then_some(0)),
                NodeKind::Map { .. } => {
                    Resolution::Items(vec![Value::from_static(b"5"); usize::from(how % 5)])
                }
                NodeKind::Loop { .. } if !first => Resolution::Again(how > 60),
                NodeKind::Loop { .. } | NodeKind::Fork { .. } | NodeKind::Wait(_) => Resolution::Entered,
            },
        };
        // Only who was asked reports, and that is in the event of what came of it.
        let reports = matches!(
            resolution,
            Resolution::Completed(_) | Resolution::Failed { pause: Pause { untried: false, .. }, .. }
        );
        Command::ResolveStep(ResolveStep {
            session: work.session,
            step: work.step,
            // One that was out before, or one that never was.
            dispatch: ids::Dispatch(match (stale, how.is_multiple_of(2)) {
                (false, _) => work.dispatch.0,
                (true, true) => work.dispatch.0 - 1,
                (true, false) => work.dispatch.0 + 1,
            }),
            started_at: Timestamp(self.now.0 - u64::from(how)),
            resolution,
            report: (reports && how.is_multiple_of(4)).then(|| Report {
                usage: Usage { tokens_in: 5, tokens_out: 1, cost_microusd: 2 },
                ..Report::default()
            }),
        })
    }

    fn apply(&mut self, command: Command) {
        let resolved = match &command {
            Command::ResolveStep(resolve) => Some((resolve.session, resolve.step)),
            _ => None,
        };
        let before = self.tables.clone();
        let input = Input { now: self.now, command };
        let output = apply(&mut self.tables, &input);
        assert_eq!(output, apply(&mut self.replica, &input), "two replicas differ");
        let change = Change { before: &before, input: &input, output: &output, after: &self.tables };
        for invariant in INVARIANTS {
            invariant(&change);
        }
        if let (Some(step), false) = (resolved, matches!(output.outcome, Outcome::Refused(_))) {
            self.out.remove(&step);
        }
        for effect in output.effects {
            match effect {
                Effect::Dispatch(work) => drop(self.out.insert((work.session, work.step), work)),
                Effect::Recall { session, step } => drop(self.out.remove(&(session, step))),
                Effect::Timer { .. } | Effect::Appended { .. } => {}
            }
        }
        self.check();
    }

    fn check(&self) {
        let (pending, _) = pending_effects(&self.tables, None, usize::MAX - 1);
        let out: Vec<Work> = self.out.values().copied().collect();
        assert_eq!(out, pending, "emitted minus resolved effects are not the pending ones");
        let mut sessions = BTreeSet::new();
        for (key, row) in self.tables.iter() {
            if let (Key::Session(id), Row::Session(row)) = (key, row) {
                sessions.insert(*id);
                self.check_counters(*id, row);
                self.check_chain(*id, row);
            }
        }
        self.check_orphans(&sessions);
    }

    fn steps(&self, id: SessionId) -> Vec<(StepId, machine::StepRow)> {
        let (from, to) = (Key::Step(id, StepId::default()), Key::Step(id.successor(), StepId::default()));
        let rows = self.tables.scan(&from, &to, usize::MAX).into_iter();
        rows.filter_map(|(key, row)| match (key, row) {
            (Key::Step(_, step), Row::Step(row)) => Some((step, row)),
            _ => None,
        })
        .collect()
    }

    /// The counters of a session are what its steps say; a session that is not idle has something coming.
    fn check_counters(&self, id: SessionId, row: &machine::SessionRow) {
        let steps = self.steps(id);
        let count = |of: &[StepStatus]| steps.iter().filter(|(_, row)| of.contains(&row.status)).count();
        assert_eq!(row.active as usize, count(&[StepStatus::Ready, StepStatus::Backoff]), "active of {id}");
        assert_eq!(row.waiting as usize, count(&[StepStatus::Waiting]), "waiting of {id}");
        if row.status.is_ended() {
            assert_eq!((row.active, row.waiting), (0, 0), "{id} has ended");
        } else {
            assert!(row.active + row.waiting > 0, "{id} is stuck: nothing is coming");
        }
    }

    /// Events are numbered without a gap, and each digest covers the one before.
    fn check_chain(&self, id: SessionId, row: &machine::SessionRow) {
        let rows = self.tables.scan(&Key::Event(id, Seq(0)), &Key::Event(id, row.next_seq), usize::MAX);
        // A session that is being swept loses events before its own row.
        if rows.len() as u64 != row.next_seq.0 && row.status.is_ended() {
            return;
        }
        let events: Vec<_> = rows
            .iter()
            .filter_map(|(_, row)| match row {
                Row::Event(event, digest) => Some((event, digest)),
                _ => None,
            })
            .collect();
        assert_eq!(events.len() as u64, row.next_seq.0);
        assert_eq!(chain(Digest::default(), 0, events), Ok(row.head), "the chain of {id}");
    }

    /// A session can be made again of its events, up to any of them.
    fn check_replay(&self, id: SessionId, row: &machine::SessionRow) {
        let rows = self.tables.scan(&Key::Event(id, Seq(0)), &Key::Event(id, row.next_seq), usize::MAX);
        let events: Vec<Event> = rows
            .into_iter()
            .filter_map(|(_, row)| match row {
                Row::Event(event, _) => Some(event),
                _ => None,
            })
            .collect();
        if events.len() as u64 != row.next_seq.0 {
            return;
        }
        let items = self.tables.scan(
            &Key::Item(id, StepId::default(), 0),
            &Key::Item(id.successor(), StepId::default(), 0),
            usize::MAX,
        );
        let mut lists: BTreeMap<StepId, Vec<Value>> = BTreeMap::new();
        for (key, row) in items {
            if let (Key::Item(_, step, _), Row::Item(value)) = (key, row) {
                lists.entry(step).or_default().push(value);
            }
        }
        let start = |id| {
            let EventData::SessionStarted { tenant, workflow, definition, input } = events[0].data.clone()
            else {
                panic!("{id} does not begin with its start");
            };
            StartSession {
                session: id,
                tenant,
                workflow,
                definition,
                input,
                labels: row.labels.clone(),
                limits: limits_at_start(row, &events),
                durability: Durability::Local,
                idempotency: None,
            }
        };
        let definition = self.tables.definition(row.definition).unwrap();
        let again = session(77);
        let shown = || {
            let lines = events.iter().map(|of| format!("{} {:?} {} {:?}", of.seq.0, of.step, of.at, of.data));
            lines.collect::<Vec<_>>().join("\n")
        };
        let made = replay(&definition, start(again), &events, &lists);
        let made = made.unwrap_or_else(|diverged| panic!("{diverged:?} of {id}:\n{}", shown()));
        let new = made.session(again).unwrap();
        assert_eq!(
            (new.status, new.head, new.next_seq, new.next_scope, new.spent, new.limits, new.error),
            (row.status, row.head, row.next_seq, row.next_scope, row.spent, row.limits, row.error.clone()),
            "{id}"
        );
        assert_eq!((new.active, new.waiting), (row.active, row.waiting), "{id}");
        for (step, of) in self.steps(id) {
            let new = made.step(again, step).unwrap_or_else(|| panic!("{id} has no step {step}"));
            // That a pause is over is in no event, nor is how the attempt counts before the next one has come to an
            // end.
            if of.status != StepStatus::Ready || new.status != StepStatus::Backoff {
                assert_eq!(new.status, of.status, "{id} {step}");
            }
            assert_eq!(
                (new.dispatch, new.output, new.failed),
                (of.dispatch, of.output, of.failed),
                "{id} {step}"
            );
            assert_eq!((new.remaining, new.detail), (of.remaining, of.detail), "{id} {step}");
        }
        let kept = |tables: &MemoryTables, of: SessionId| {
            let rows = tables.iter().filter(|(key, _)| match key {
                Key::Scope(id, _) | Key::Listener(id, ..) | Key::Signal(id, ..) | Key::SignalId(id, _) => {
                    *id == of
                }
                Key::Timer(_, id, TimerKind::Deadline | TimerKind::Retention) => *id == of,
                _ => false,
            });
            rows.count()
        };
        assert_eq!(kept(&made, again), kept(&self.tables, id), "{id}");
        for end in 1..events.len() {
            replay(&definition, start(again), &events[..end], &lists).unwrap();
        }
        self.check_import(id, &events, lists, limits_at_start(row, &events));
    }

    /// What is imported is a session like any other, and can be made again itself.
    fn check_import(
        &self,
        origin: SessionId,
        events: &[Event],
        items: BTreeMap<StepId, Vec<Value>>,
        limits: SessionLimits,
    ) {
        let new = session(78);
        let labels = self.tables.session(origin).unwrap().labels;
        let history = History { origin, labels, limits, events: events.to_vec(), items: items.clone() };
        let command =
            Command::ImportSession { session: new, tenant: "other".into(), history: Arc::new(history) };
        let mut world = Self {
            tables: self.tables.clone(),
            replica: self.tables.clone(),
            definitions: self.definitions.clone(),
            now: self.now,
            out: self.out.clone(),
        };
        world.apply(command);
        let retries = events.iter().filter(|event| event.data == EventData::SessionRetried).count();
        assert!(retries < 100, "more than can be imported: {retries}");
        let row = world.tables.session(new).unwrap();
        assert_eq!((row.tenant.as_str(), row.next_seq.0), ("other", events.len() as u64 + 1));
        let events: Vec<Event> =
            (0..row.next_seq.0).map(|seq| world.tables.event(new, Seq(seq)).unwrap()).collect();
        assert_eq!(limits_at_start(&row, &events), limits, "of what was imported from {origin}");
        let again = session(79);
        let history = History { origin: new, labels: vec![], limits, events, items };
        world.apply(Command::ImportSession {
            session: again,
            tenant: "t".into(),
            history: Arc::new(history),
        });
        assert_eq!(world.tables.session(again).map(|of| of.status), Some(row.status));
    }

    /// No row outlives its session, and an ended session has no timer but that of its retention.
    fn check_orphans(&self, sessions: &BTreeSet<SessionId>) {
        for (key, _) in self.tables.iter() {
            let of = match key {
                Key::Scope(id, _)
                | Key::Step(id, _)
                | Key::Item(id, ..)
                | Key::Event(id, _)
                | Key::Pending(id, _)
                | Key::Listener(id, ..)
                | Key::Signal(id, ..)
                | Key::SignalId(id, _)
                | Key::Timer(_, id, _)
                | Key::ByTenant(_, _, id) => id,
                Key::Shard
                | Key::Definition(_)
                | Key::Workflow(..)
                | Key::Session(_)
                | Key::Idempotency(..)
                | Key::Alert(_) => continue,
            };
            assert!(sessions.contains(of), "{key:?} outlives its session");
            let ended = self.tables.session(*of).unwrap().status.is_ended();
            match key {
                Key::Timer(_, _, kind) => {
                    assert_eq!(ended, *kind == TimerKind::Retention, "{key:?}, session ended: {ended}");
                }
                Key::Pending(..) | Key::Listener(..) => assert!(!ended, "{key:?} of an ended session"),
                _ => {}
            }
        }
    }
}

fn body(ops: &[Op]) {
    let mut world = World::new();
    for op in ops {
        world.step(op);
    }
    for (key, row) in world.tables.iter() {
        if let (Key::Session(id), Row::Session(row)) = (key, row) {
            world.check_replay(*id, row);
        }
    }
}

#[test]
fn random_commands_keep_every_invariant() {
    // For a longer run: FUZZ_SECONDS=600 cargo test -p machine random_commands
    let seconds = std::env::var("FUZZ_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(30);
    let until = tokio_free_clock() + std::time::Duration::from_secs(seconds);
    let mut runs = 0u32;
    while tokio_free_clock() < until {
        let mut runner = TestRunner::new(ProptestConfig {
            cases: 50,
            failure_persistence: None,
            ..ProptestConfig::default()
        });
        let result = runner.run(&prop::collection::vec(op(), 1..120), |ops| {
            body(&ops);
            Ok(())
        });
        if let Err(error) = result {
            panic!("{error}");
        }
        runs += 50;
    }
    assert!(runs > 0);
}

#[expect(clippy::disallowed_methods, reason = "bounds how long the test runs, and nothing else")]
fn tokio_free_clock() -> std::time::Instant {
    std::time::Instant::now()
}

/// A command touches as many rows as it makes steps ready, and a long session costs bytes linear in its steps.
#[test]
fn a_long_session_costs_the_same_for_every_step() {
    let steps: String = (0..10_000).map(|i| format!("  - {{id: s{i}, value: '1'}}\n")).collect();
    let definition = Arc::new(workflow::compile("w", &format!("name: long\nsteps:\n{steps}")).unwrap());
    let mut tables = MemoryTables::default();
    let run = |tables: &mut MemoryTables, command| {
        let output = apply(tables, &Input { now: Timestamp::from_millis(1), command });
        assert!(!matches!(output.outcome, Outcome::Refused(_)), "{:?}", output.outcome);
    };
    run(&mut tables, Command::PutDefinition(Arc::clone(&definition)));
    let id = session(1);
    run(
        &mut tables,
        Command::StartSession(StartSession {
            session: id,
            tenant: "t".into(),
            workflow: "w".into(),
            definition: definition.hash,
            input: Value::from_static(b"{}"),
            labels: vec![],
            limits: SessionLimits::default(),
            durability: Durability::Local,
            idempotency: None,
        }),
    );
    let rows_at = |tables: &MemoryTables| tables.iter().count();
    let mut grown = Vec::new();
    for _ in 0..10_000 {
        let before = rows_at_every(&grown, || rows_at(&tables));
        let (pending, _) = pending_effects(&tables, None, 2);
        let work = pending[0];
        run(
            &mut tables,
            Command::ResolveStep(ResolveStep {
                session: id,
                step: work.step,
                dispatch: work.dispatch,
                started_at: Timestamp::from_millis(1),
                resolution: Resolution::Completed(Value::from_static(b"\"x\"")),
                report: None,
            }),
        );
        grown.push(before.map(|before| rows_at(&tables) - before));
    }
    // One event for the outcome and one row for the next step; only the last differs.
    let sampled: BTreeSet<usize> = grown[..9_999].iter().flatten().copied().collect();
    assert_eq!(sampled, BTreeSet::from([2]), "rows a step adds");
    assert_eq!(tables.session(id).unwrap().status, machine::SessionStatus::Completed);
}

/// Counts rows for every thousandth step only.
fn rows_at_every(grown: &[Option<usize>], count: impl Fn() -> usize) -> Option<usize> {
    grown.len().is_multiple_of(1_000).then(count)
}
