use std::sync::mpsc;

use bytes::Bytes;
use ids::ShardId;
use storage::{LogDb, LogOptions, ShardLog};

fn options() -> LogOptions {
    LogOptions { tail_bytes: 1000, queue_len: 64, batch_bytes: 1 << 20, sync: true }
}

fn wait(act: impl FnOnce(storage::Done)) {
    let (sender, receiver) = mpsc::channel();
    act(Box::new(move |result| sender.send(result).unwrap()));
    receiver.recv().unwrap().unwrap();
}

fn entry(index: u64) -> (u64, Bytes) {
    (index, Bytes::from(format!("entry {index} {}", "x".repeat(50))))
}

fn append(log: &ShardLog, range: std::ops::Range<u64>) {
    wait(|done| log.append(range.map(entry).collect(), done));
}

fn read(log: &ShardLog, range: std::ops::Range<u64>) -> Vec<Bytes> {
    log.read(range, usize::MAX).unwrap()
}

#[test]
fn entries_votes_and_marks_survive_reopening() {
    let temp = tempfile::tempdir().unwrap();
    {
        let db = LogDb::open(temp.path(), options()).unwrap();
        let (one, two) = (db.shard(ShardId(1)).unwrap(), db.shard(ShardId(2)).unwrap());
        append(&one, 1..101);
        append(&two, 1..6);
        one.save_committed(Bytes::from_static(b"committed 90"));
        wait(|done| one.save_vote(Bytes::from_static(b"vote"), done));
        // The tail holds fewer than 100 entries: these come from disk and from memory.
        assert_eq!(read(&one, 1..101), (1..101).map(|i| entry(i).1).collect::<Vec<_>>());
        assert_eq!(read(&one, 95..97), vec![entry(95).1, entry(96).1]);
        assert_eq!(one.read(1..101, 100).unwrap().len(), 2);
    }
    let db = LogDb::open(temp.path(), options()).unwrap();
    let one = db.shard(ShardId(1)).unwrap();
    assert_eq!(read(&one, 1..101).len(), 100);
    assert_eq!(one.vote().unwrap().unwrap(), "vote");
    assert_eq!(one.committed().unwrap().unwrap(), "committed 90");
    assert_eq!(one.state().unwrap().last, Some(entry(100).1));
    assert_eq!(db.shard(ShardId(2)).unwrap().state().unwrap().last, Some(entry(5).1));
    assert_eq!(db.shard(ShardId(3)).unwrap().state().unwrap().last, None);
}

#[test]
fn truncated_and_purged_entries_are_gone() {
    let temp = tempfile::tempdir().unwrap();
    let db = LogDb::open(temp.path(), options()).unwrap();
    let log = db.shard(ShardId(0)).unwrap();
    append(&log, 1..51);
    wait(|done| log.truncate(41, done));
    assert_eq!(log.state().unwrap().last, Some(entry(40).1));
    append(&log, 41..43);
    wait(|done| log.purge(11, Bytes::from_static(b"id 10"), done).unwrap());
    assert_eq!(log.state().unwrap().purged.unwrap(), "id 10");
    assert_eq!(read(&log, 11..43).len(), 32);
    drop((log, db));
    let db = LogDb::open(temp.path(), options()).unwrap();
    let log = db.shard(ShardId(0)).unwrap();
    assert_eq!(read(&log, 11..43).len(), 32);
    assert_eq!(log.state().unwrap().last, Some(entry(42).1));
}

#[test]
fn a_hole_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    {
        let db = LogDb::open(temp.path(), options()).unwrap();
        let log = db.shard(ShardId(0)).unwrap();
        append(&log, 1..6);
        append(&log, 8..11);
    }
    let db = LogDb::open(temp.path(), options()).unwrap();
    let error = db.shard(ShardId(0)).unwrap_err().to_string();
    assert!(error.contains("missing"), "{error}");
}

#[test]
fn what_is_queued_together_is_synced_together() {
    let temp = tempfile::tempdir().unwrap();
    let db = LogDb::open(temp.path(), options()).unwrap();
    let logs: Vec<_> = (0..16).map(|shard| db.shard(ShardId(shard)).unwrap()).collect();
    let (sender, receiver) = mpsc::channel();
    for index in 1..101 {
        for log in &logs {
            let sender = sender.clone();
            log.append(vec![entry(index)], Box::new(move |result| sender.send(result).unwrap()));
        }
    }
    for _ in 0..1600 {
        receiver.recv().unwrap().unwrap();
    }
    assert!(db.syncs() < 800, "{} syncs for 1600 appends", db.syncs());
}

#[test]
fn a_range_of_old_entries_and_of_some_that_are_not_on_disk_yet_is_read_whole() {
    let temp = tempfile::tempdir().unwrap();
    append(&LogDb::open(temp.path(), options()).unwrap().shard(ShardId(1)).unwrap(), 1..6);
    // Opened again, the tail is empty: the first entries are on disk only.
    let db = LogDb::open(temp.path(), options()).unwrap();
    let log = db.shard(ShardId(1)).unwrap();
    let (held, hold) = mpsc::channel::<()>();
    let (holding, is_held) = mpsc::channel();
    log.save_vote(
        Bytes::from_static(b"vote"),
        Box::new(move |_| {
            holding.send(()).unwrap();
            let _ = hold.recv();
        }),
    );
    is_held.recv().unwrap();
    // The writer is held up: these are in memory only.
    log.append(vec![entry(6), entry(7)], Box::new(|_| {}));
    assert_eq!(read(&log, 1..8), (1..8).map(|i| entry(i).1).collect::<Vec<_>>());
    assert_eq!(read(&log, 3..7), (3..7).map(|i| entry(i).1).collect::<Vec<_>>());
    drop(held);
}

#[test]
fn while_the_disk_is_full_the_log_is_read() {
    let temp = tempfile::tempdir().unwrap();
    let Some(disk) = crate::small_disk::SmallDisk::mount(temp.path(), 16) else { return };
    let path = temp.path().join("log");
    let db = LogDb::open(&path, options()).unwrap();
    let log = db.shard(ShardId(0)).unwrap();
    append(&log, 1..1001);
    disk.fill().unwrap();
    let (sender, receiver) = mpsc::channel();
    // More than what a file of the log has room for.
    let large = (1001..1033).map(|index| (index, Bytes::from(vec![b'y'; 64 << 10]))).collect();
    log.append(large, Box::new(move |result| sender.send(result).unwrap()));
    // Failed to be written, and then to be opened again: several times.
    let mut errors = std::collections::BTreeSet::new();
    for _ in 0..1_000_000 {
        errors.extend(db.failing());
        assert_eq!(read(&log, 1..3), vec![entry(1).1, entry(2).1]);
        assert_eq!(log.state().unwrap().purged, None);
        if errors.len() > 1 {
            break;
        }
    }
    assert!(errors.len() > 1, "the log was written or opened: {errors:?}");
    for _ in 0..10_000 {
        assert_eq!(read(&log, 1..3).len(), 2);
    }
    assert!(receiver.try_recv().is_err(), "nobody was told that it failed");
    disk.free().unwrap();
    receiver.recv().unwrap().unwrap();
    assert_eq!(read(&log, 1001..1033).len(), 32);
    drop((log, db));
    drop(disk);
}
