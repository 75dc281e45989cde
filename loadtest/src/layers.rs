//! Benches of single layers.

use std::{
    path::Path,
    sync::{Arc, mpsc},
};

use bytes::Bytes;
use ids::{RegionId, SessionId, ShardId, Timestamp};
use machine::{
    Command, Definition, Durability, Effect, Input, Key, MemoryTables, Outcome, Read as _, Resolution,
    ResolveStep, Row, SessionLimits, StartSession, Tables as _, Work, apply as machine_apply,
};
use storage::{LogDb, LogOptions};
use tokio::time::Instant;

pub(crate) const THREE_STEPS: &str = "name: three\nsteps:\n  - {id: a, agent: {role: x, prompt: 'one'}}\n  \
     - {id: b, agent: {role: x, prompt: 'two'}}\n  - {id: c, agent: {role: x, prompt: 'three'}}\n";

pub(crate) fn definition(source: &str) -> Arc<Definition> {
    match workflow::compile("bench", source) {
        Ok(definition) => Arc::new(definition),
        Err(error) => panic!("{error}"),
    }
}

pub(crate) fn start_command(id: SessionId, definition: &Definition) -> Command {
    Command::StartSession(StartSession {
        session: id,
        tenant: "bench".into(),
        workflow: definition.name.clone(),
        definition: definition.hash,
        input: Bytes::from_static(
            br#"{"text": "an input of a usual size, a hundred bytes or so, as a request has it"}"#,
        ),
        labels: vec![],
        limits: SessionLimits::default(),
        durability: Durability::Local,
        idempotency: None,
    })
}

fn resolve(work: &Work) -> Command {
    Command::ResolveStep(ResolveStep {
        session: work.session,
        step: work.step,
        dispatch: work.dispatch,
        started_at: Timestamp(0),
        resolution: Resolution::Completed(Bytes::from_static(
            br#""an answer of a usual size, a hundred bytes or so, as a model gives it""#,
        )),
        report: None,
    })
}

/// Commands a second that the machine applies over tables in memory: starts and outcomes of 3-step sessions.
pub(crate) fn apply() -> f64 {
    let definition = definition(THREE_STEPS);
    let mut tables = MemoryTables::default();
    tables.put(Key::Definition(definition.hash), Row::Definition(Arc::clone(&definition)));
    let (mut count, mut now) = (0u32, 1_000_000u64);
    let started = Instant::now();
    for unique in 0..50_000u128 {
        let id = SessionId::new(RegionId(0), ShardId(0), unique);
        let mut next = Some(start_command(id, &definition));
        while let Some(command) = next.take() {
            now += 10;
            let output = machine_apply(&mut tables, &Input { now: Timestamp(now), command });
            assert!(!matches!(output.outcome, Outcome::Refused(_)), "{:?}", output.outcome);
            count += 1;
            next = output.effects.iter().find_map(|effect| match effect {
                Effect::Dispatch(work) => Some(resolve(work)),
                _ => None,
            });
        }
    }
    f64::from(count) / started.elapsed().as_secs_f64()
}

/// Entries a second that the log writer syncs: 16 shards, each with some appends on their way.
pub(crate) fn log_writer(directory: &Path) -> anyhow::Result<f64> {
    const SHARDS: u16 = 16;
    const EACH: u64 = 20_000;
    const BATCH: u64 = 16;
    const IN_FLIGHT: usize = 16;
    let temp = tempfile::tempdir_in(directory)?;
    let options = LogOptions { tail_bytes: 4 << 20, queue_len: 1024, batch_bytes: 8 << 20, sync: true };
    let db = LogDb::open(temp.path(), options)?;
    let body = Bytes::from(vec![b'x'; 512]);
    let started = Instant::now();
    let threads: Vec<_> = (0..SHARDS)
        .map(|shard| {
            let (log, body) = (db.shard(ShardId(shard)), body.clone());
            std::thread::spawn(move || -> anyhow::Result<()> {
                let log = log?;
                let (sender, receiver) = mpsc::channel();
                let mut out = 0;
                for first in (1..=EACH).step_by(usize::try_from(BATCH)?) {
                    let entries = (first..first + BATCH).map(|index| (index, body.clone())).collect();
                    let sender = sender.clone();
                    log.append(
                        entries,
                        Box::new(move |result| {
                            // The other end waits for every one.
                            let _ = sender.send(result);
                        }),
                    );
                    out += 1;
                    if out > IN_FLIGHT {
                        receiver.recv()??;
                        out -= 1;
                    }
                }
                for _ in 0..out {
                    receiver.recv()??;
                }
                Ok(())
            })
        })
        .collect();
    for thread in threads {
        thread.join().map_err(|_| anyhow::anyhow!("a thread of the bench panicked"))??;
    }
    #[expect(clippy::cast_precision_loss, reason = "a count far below 2^52")]
    let entries = (u64::from(SHARDS) * EACH) as f64;
    Ok(entries / started.elapsed().as_secs_f64())
}

/// Bytes of rows that a step of a session of `steps` steps leaves, as they are stored.
pub(crate) fn bytes_a_step(steps: usize) -> f64 {
    let list: String = (0..steps).map(|step| format!("  - {{id: s{step}, value: '1'}}\n")).collect();
    let definition = definition(&format!("name: long\nsteps:\n{list}"));
    let mut tables = MemoryTables::default();
    tables.put(Key::Definition(definition.hash), Row::Definition(Arc::clone(&definition)));
    let id = SessionId::new(RegionId(0), ShardId(0), 1);
    let mut next = Some(start_command(id, &definition));
    while let Some(command) = next.take() {
        let output = machine_apply(&mut tables, &Input { now: Timestamp(1), command });
        next = output.effects.iter().find_map(|effect| match effect {
            Effect::Dispatch(work) => Some(resolve(work)),
            _ => None,
        });
    }
    assert!(tables.session(id).is_some_and(|row| row.status.is_ended()));
    let rows = tables.iter().filter(|(key, _)| !matches!(key, Key::Definition(_)));
    let bytes: usize =
        rows.map(|(key, row)| storage::encode_key(key).len() + 6 + storage::row_len(row)).sum();
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let each = bytes as f64 / steps as f64;
    each
}
