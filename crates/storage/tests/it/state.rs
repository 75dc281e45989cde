use std::sync::Arc;

use bytes::Bytes;
use ids::{Digest, Position, RegionId, Seq, SessionId, ShardId, Timestamp};
use machine::{Key, PendingRow, Read as _, Row, ShardRow, Tables as _, TimerKind, WorkflowRow};
use proptest::prelude::*;
use storage::{Exported, StateDb, StateOptions};

pub(crate) fn open(path: &std::path::Path) -> StateDb {
    StateDb::open(path, StateOptions { block_cache_bytes: 1 << 20, cached_rows: 8 }).unwrap()
}

pub(crate) fn session(unique: u128) -> SessionId {
    SessionId::new(RegionId(0), ShardId(0), unique)
}

/// A copy of what is on the disk, of a database that is never closed: a clean close would flush.
fn crash(db: StateDb, at: &tempfile::TempDir) -> tempfile::TempDir {
    std::mem::forget(db);
    let copy = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(at.path()).unwrap() {
        let entry = entry.unwrap();
        if entry.file_name() != "LOCK" {
            match std::fs::copy(entry.path(), copy.path().join(entry.file_name())) {
                // The database removes what it does not need any more.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                copied => assert!(copied.is_ok(), "{copied:?}"),
            }
        }
    }
    copy
}

#[test]
fn a_crash_keeps_what_was_flushed_with_what_was_applied() {
    let temp = tempfile::tempdir().unwrap();
    let shard = ShardId(3);
    let db = {
        let db = open(temp.path());
        for position in 1..=2u64 {
            let mut batch = db.batch(shard);
            batch.put(
                Key::Shard,
                Row::Shard(ShardRow { position: Position(position), ..ShardRow::default() }),
            );
            batch.commit(format!("applied {position}").as_bytes()).unwrap();
            if position == 1 {
                db.flush().unwrap();
            }
        }
        assert_eq!(db.view(shard).shard().position, Position(2));
        assert_eq!(db.applied(shard).unwrap().unwrap(), "applied 2");
        db
    };
    let copy = crash(db, &temp);
    let db = open(copy.path());
    assert_eq!(db.view(shard).shard().position, Position(1));
    assert_eq!(db.applied(shard).unwrap().unwrap(), "applied 1");
}

#[test]
fn a_view_stays_as_it_was() {
    let temp = tempfile::tempdir().unwrap();
    let db = open(temp.path());
    let key = Key::Item(session(1), ids::StepId::default(), 0);
    let mut batch = db.batch(ShardId(0));
    batch.put(key.clone(), Row::Item(Bytes::from_static(b"1")));
    batch.commit(b"").unwrap();
    let (view, latest) = (db.view(ShardId(0)), db.latest(ShardId(0)));
    assert!(latest.get(&key).is_some());
    let mut batch = db.batch(ShardId(0));
    batch.delete(&key);
    batch.commit(b"").unwrap();
    assert!(view.get(&key).is_some());
    assert!(db.view(ShardId(0)).get(&key).is_none());
    assert!(latest.get(&key).is_none());
    view.check().unwrap();
    latest.check().unwrap();
}

#[test]
fn a_row_that_was_looked_for_in_vain_is_in_the_digest_as_any_other() {
    let temp = tempfile::tempdir().unwrap();
    let (db, shard) = (open(temp.path()), ShardId(0));
    let before = db.digest(shard).unwrap();
    let keys = [0, 1].map(|item| Key::Item(session(1), ids::StepId::default(), item));
    let put = |row: &Row| {
        let mut batch = db.batch(shard);
        for key in &keys {
            let was = batch.get(key);
            batch.put(key.clone(), row.clone());
            assert_eq!(batch.get(key), Some(row.clone()), "after {was:?}");
        }
        batch.commit(b"").unwrap();
        db.digest(shard).unwrap()
    };
    let (first, second) =
        (put(&Row::Item(Bytes::from_static(b"1"))), put(&Row::Item(Bytes::from_static(b"2"))));
    assert!(first != before && second != first);
    let mut batch = db.batch(shard);
    keys.iter().for_each(|key| batch.delete(key));
    batch.commit(b"").unwrap();
    assert_eq!(db.digest(shard).unwrap(), before);
}

/// Rows in memory are those of the newest batch; a view has rows of one batch, also if it is made while one is written.
#[test]
fn a_view_has_the_rows_of_one_batch() {
    const DIFFERENT: u32 = 300;
    let temp = tempfile::tempdir().unwrap();
    // Some of the rows fit into the cache, some do not.
    let (db, shard) = (open(temp.path()), ShardId(0));
    let key = |number: u128| Key::Pending(session(number), ids::StepId::default());
    let rows = 0..6u128;
    let write = |batch_number: u32| {
        let mut batch = db.batch(shard);
        for number in rows.clone() {
            // Reads fill the cache.
            batch.get(&key(number));
            let row = PendingRow {
                attempt: ids::Attempt(1),
                dispatch: ids::Dispatch(batch_number),
                work: true,
                external: false,
            };
            batch.put(key(number), Row::Pending(row));
        }
        batch.commit(b"").unwrap();
    };
    write(1);
    let written = std::sync::atomic::AtomicU32::new(1);
    std::thread::scope(|scope| {
        let reader = || {
            let (mut different, mut newest) = (0, 0);
            while different < DIFFERENT {
                let at_least = written.load(std::sync::atomic::Ordering::SeqCst);
                let view = db.view(shard);
                let seen: Vec<u32> = rows
                    .clone()
                    .map(|number| match view.get(&key(number)) {
                        Some(Row::Pending(row)) => row.dispatch.0,
                        other => panic!("{other:?}"),
                    })
                    .collect();
                view.check().unwrap();
                assert!(seen.iter().all(|of| *of == seen[0]), "of several batches: {seen:?}");
                assert!(seen[0] >= at_least.max(newest), "{seen:?} is older than {at_least}, {newest}");
                different += u32::from(seen[0] > newest);
                newest = seen[0];
            }
        };
        let readers = [scope.spawn(reader), scope.spawn(reader)];
        for number in 2.. {
            write(number);
            written.store(number, std::sync::atomic::Ordering::SeqCst);
            if readers.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                break;
            }
        }
    });
}

#[test]
fn installing_replaces_all_rows() {
    let temps = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [source, target] = [open(temps[0].path()), open(temps[1].path())];
    for (db, unique, applied) in [(&source, 1, "source"), (&target, 2, "target")] {
        let mut batch = db.batch(ShardId(5));
        batch.put(Key::SignalId(session(unique), 1), Row::Present);
        batch.commit(applied.as_bytes()).unwrap();
    }
    let (target, mut import) = (Arc::new(target), None);
    let copy = |part| match (part, &mut import) {
        (Exported::Applied(applied), slot) => {
            *slot = Some(target.import(ShardId(5), applied)?);
            Ok(())
        }
        (Exported::Rows(rows), Some(import)) => import.put(rows),
        (Exported::Rows(_), None) => panic!("rows came before what was applied"),
    };
    source.export(ShardId(5), copy).unwrap();
    let mut import = import.unwrap();
    assert_eq!(import.sum().0, 1);
    assert!(target.view(ShardId(5)).get(&Key::SignalId(session(2), 1)).is_some(), "not in force yet");
    import.install().unwrap();
    assert!(target.view(ShardId(5)).get(&Key::SignalId(session(1), 1)).is_some());
    assert!(target.view(ShardId(5)).get(&Key::SignalId(session(2), 1)).is_none());
    assert_eq!(target.applied(ShardId(5)).unwrap().unwrap(), "source");
    drop((import, target));
    let target = open(temps[1].path());
    assert!(target.view(ShardId(5)).get(&Key::SignalId(session(1), 1)).is_some());
}

/// The keys of the database that are in no incarnation in force, and those that are.
fn rows(path: &std::path::Path) -> usize {
    let db = rocksdb::DB::open_for_read_only(&rocksdb::Options::default(), path, false).unwrap();
    db.iterator(rocksdb::IteratorMode::Start).filter(|item| item.as_ref().unwrap().0[0] != 0xff).count()
}

fn part(of: u128) -> (Bytes, Bytes) {
    let key = storage::encode_key(&Key::SignalId(session(of), 1));
    (key.into(), proto::record::encode_row(&Row::Present))
}

#[test]
fn imports_of_a_shard_do_not_know_of_each_other() {
    let temp = tempfile::tempdir().unwrap();
    let target = Arc::new(open(temp.path()));
    let shard = ShardId(5);
    let shown = |of: u128| target.view(shard).get(&Key::SignalId(session(of), 1)).is_some();
    let import = |of: u128| {
        let mut import = target.import(shard, Bytes::from(format!("{of}"))).unwrap();
        import.put([part(of), part(of + 100)]).unwrap();
        import
    };
    // A sender gave up when everything was there, and sends again while the first is put into force.
    let (mut first, mut second) = (import(1), import(2));
    first.install().unwrap();
    assert_eq!((shown(1), shown(2), shown(101)), (true, false, true));
    let (third, fourth) = (import(3), import(4));
    second.install().unwrap();
    assert_eq!((shown(1), shown(2), shown(102)), (false, true, true));
    drop(third);
    assert_eq!((shown(2), shown(102)), (true, true));
    // All at once, as often as may show something.
    for round in 5..25u128 {
        let (mut a, mut b) = (import(round), import(round + 30));
        std::thread::scope(|scope| {
            scope.spawn(|| a.install().unwrap());
            scope.spawn(|| drop(import(round + 60)));
        });
        assert_eq!((shown(round), shown(round + 100)), (true, true), "round {round}");
        b.install().unwrap();
        assert_eq!((shown(round), shown(round + 30), shown(round + 130)), (false, true, true));
    }
    assert_eq!(target.applied(shard).unwrap().unwrap(), "54");
    // What one that is cut short has left is swept when the database is opened.
    let temp = tempfile::tempdir().unwrap();
    let copy = temp.path().join("copy");
    target.checkpoint(&copy).unwrap();
    drop(fourth);
    assert_eq!(rows(&copy), 4);
    let after = open(&copy);
    assert!(after.view(shard).get(&Key::SignalId(session(54), 1)).is_some());
    after.flush().unwrap();
    drop(after);
    assert_eq!(rows(&copy), 2);
}

#[test]
fn a_row_that_changed_since_it_was_written_is_an_error() {
    let key = Key::Workflow("t".into(), "w".into());
    let row =
        Row::Workflow(WorkflowRow { definition: Digest([7; 32]), version: 1, applied_at: Timestamp(1) });
    let mut bytes = proto::record::encode_row(&row).to_vec();
    assert_eq!(proto::record::decode_row(&key, &bytes), Ok(row));
    *bytes.last_mut().unwrap() ^= 1;
    assert!(proto::record::decode_row(&key, &bytes).is_err());
}

/// What is done to a shard.
#[derive(Debug, Clone)]
enum Op {
    Put(u8, u8),
    Delete(u8),
    Commit,
    /// Somebody makes a view, or it is time.
    WriteOut,
    Flush,
}

fn ops(len: usize) -> impl Strategy<Value = Vec<Op>> {
    let op = prop_oneof![
        6 => (0u8..40, any::<u8>()).prop_map(|(key, value)| Op::Put(key, value)),
        4 => (0u8..40).prop_map(Op::Delete),
        3 => Just(Op::Commit),
        1 => Just(Op::WriteOut),
        1 => Just(Op::Flush),
    ];
    proptest::collection::vec(op, 1..len)
}

/// Keys of every kind that storage tells apart: cached or not, put once or again and again.
fn key(number: u8) -> Key {
    match number % 4 {
        0 => Key::Timer(Timestamp(u64::from(number)), session(1), TimerKind::Retention),
        1 => Key::Event(session(u128::from(number / 16)), Seq(u64::from(number))),
        2 => Key::Pending(session(3), ids::StepId::new(ids::ScopeId(number.into()), 0)),
        _ => Key::Signal(session(2), format!("s{}", number / 8), Seq(u64::from(number))),
    }
}

fn row(key: &Key, value: u8) -> Row {
    match key {
        Key::Event(_, seq) => {
            let data = machine::EventData::ItemFailed { index: value.into() };
            Row::Event(machine::Event { seq: *seq, at: Timestamp(0), step: None, data }, Digest::default())
        }
        Key::Pending(..) => Row::Pending(PendingRow {
            attempt: ids::Attempt(1),
            dispatch: ids::Dispatch(value.into()),
            work: true,
            external: false,
        }),
        _ => Row::Present,
    }
}

/// Flushes after which nothing goes on in the database: with more, its files are merged in the background, and a copy
/// of it has some of before and some of after.
const FLUSHES: usize = 3;

/// Takes those out that no apply does: nothing is put again under the keys of what has happened.
fn possible(ops: Vec<Op>) -> Vec<Op> {
    let (mut put, mut flushes) = (std::collections::BTreeSet::new(), 0);
    let possible = |op: &Op| match op {
        Op::Put(number, _) if matches!(key(*number), Key::Event(..) | Key::Signal(..)) => put.insert(*number),
        Op::Flush => {
            flushes += 1;
            flushes <= FLUSHES
        }
        _ => true,
    };
    ops.into_iter().filter(possible).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// Batches, views and what is read row by row are like tables in memory, whatever was written before and when.
    #[test]
    fn a_shard_reads_like_memory(ops in ops(80), limit in 1usize..20) {
        let temp = tempfile::tempdir().unwrap();
        let (db, shard) = (open(temp.path()), ShardId(0));
        let (mut memory, mut committed) = (machine::MemoryTables::default(), machine::MemoryTables::default());
        let mut batch = db.batch(shard);
        let all = (Key::Shard, Key::ByTenant(String::new(), 0, session(0)));
        let ranges = [all, (key(1), key(37)), (key(2), key(38))];
        for op in possible(ops) {
            match op {
                Op::Put(number, value) => {
                    let (key, row) = (key(number), row(&key(number), value));
                    if memory.get(&key).is_none() {
                        // As the machine does where it knows.
                        batch.expect_none(&key);
                    }
                    memory.put(key.clone(), row.clone());
                    batch.put(key, row);
                }
                Op::Delete(number) => {
                    memory.delete(&key(number));
                    batch.delete(&key(number));
                }
                Op::Commit => {
                    prop_assert!(batch.commit(b"").is_ok());
                    committed = memory.clone();
                    batch = db.batch(shard);
                }
                Op::WriteOut => db.write_out(shard).unwrap(),
                Op::Flush => db.flush().unwrap(),
            }
            let latest = db.latest(shard);
            for number in [0, 1, 2, 3, 17, 18, 38, 39] {
                prop_assert_eq!(batch.get(&key(number)), memory.get(&key(number)));
                prop_assert_eq!(latest.get(&key(number)), committed.get(&key(number)));
            }
            for (from, to) in &ranges {
                prop_assert_eq!(batch.scan(from, to, limit), memory.scan(from, to, limit));
                prop_assert_eq!(latest.scan(from, to, limit), committed.scan(from, to, limit));
            }
        }
        drop(batch);
        let view = db.view(shard);
        for number in 0..40 {
            prop_assert_eq!(view.get(&key(number)), committed.get(&key(number)));
        }
        for (from, to) in &ranges {
            prop_assert_eq!(view.scan(from, to, limit), committed.scan(from, to, limit));
        }
        view.check().unwrap();
        // The digest that was kept up to date is that of the rows.
        db.scrub(shard).unwrap();
    }

    /// Whatever was in memory only is lost, and what is left is what one commit has made of it.
    #[test]
    fn a_crash_keeps_a_prefix_of_what_was_applied(ops in ops(120)) {
        let temp = tempfile::tempdir().unwrap();
        let (db, shard) = (open(temp.path()), ShardId(0));
        let mut states = vec![machine::MemoryTables::default()];
        let mut memory = machine::MemoryTables::default();
        let mut batch = db.batch(shard);
        let mut flushed = 0;
        for op in possible(ops) {
            match op {
                Op::Put(number, value) => {
                    memory.put(key(number), row(&key(number), value));
                    batch.put(key(number), row(&key(number), value));
                }
                Op::Delete(number) => {
                    memory.delete(&key(number));
                    batch.delete(&key(number));
                }
                Op::Commit => {
                    prop_assert!(batch.commit(states.len().to_string().as_bytes()).is_ok());
                    states.push(memory.clone());
                    batch = db.batch(shard);
                }
                Op::WriteOut => db.write_out(shard).unwrap(),
                Op::Flush => {
                    db.flush().unwrap();
                    flushed = states.len() - 1;
                }
            }
        }
        drop(batch);
        let copy = crash(db, &temp);
        let db = open(copy.path());
        let applied = db.applied(shard).unwrap();
        let applied: usize = applied.map_or(0, |applied| std::str::from_utf8(&applied).unwrap().parse().unwrap());
        prop_assert_eq!(applied, flushed);
        let all = (Key::Shard, Key::ByTenant(String::new(), 0, session(0)));
        prop_assert_eq!(db.view(shard).scan(&all.0, &all.1, 100), states[applied].scan(&all.0, &all.1, 100));
        db.scrub(shard).unwrap();
    }
}

/// Rows are written when there are many, or much is in them: without a flush, and without anybody who looks.
#[test]
fn what_waits_in_memory_is_bounded() {
    let shard = ShardId(0);
    for (rows, bytes) in [(2_000, 10), (20, 100_000)] {
        let temp = tempfile::tempdir().unwrap();
        let db = open(temp.path());
        let stored = |db: &StateDb| {
            let named = |(name, value): (&'static str, u64)| (name == "keys_estimated").then_some(value);
            db.properties().into_iter().find_map(named).unwrap()
        };
        let key = |number| Key::Item(session(1), ids::StepId::default(), number);
        for number in 0..rows {
            let mut batch = db.batch(shard);
            batch.put(key(number), Row::Item(vec![b'x'; bytes].into()));
            batch.commit(b"").unwrap();
            if number == 0 {
                assert_eq!(stored(&db), 0, "one row waits for others");
            }
        }
        assert!(stored(&db) > u64::from(rows) / 3, "{} of {rows} rows", stored(&db));
        // Those that come and go between two writes are never stored.
        db.write_out(shard).unwrap();
        let before = stored(&db);
        for number in rows..rows + 10 {
            let mut batch = db.batch(shard);
            assert!(batch.get(&key(number)).is_none());
            batch.put(key(number), Row::Item(Bytes::new()));
            batch.commit(b"").unwrap();
            let mut batch = db.batch(shard);
            batch.delete(&key(number));
            batch.commit(b"").unwrap();
        }
        db.write_out(shard).unwrap();
        assert!(stored(&db) <= before + 2, "{before} keys, then {}", stored(&db));
        db.scrub(shard).unwrap();
    }
}
