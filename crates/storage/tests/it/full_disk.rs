//! What a full disk does not take.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use ids::{ShardId, StepId};
use machine::{Key, Read as _, Row, Tables as _};

use crate::{
    small_disk::SmallDisk,
    state::{open, session},
};

/// Room for one of the database's buffers in memory, 64 MiB: only then does it go on.
const DISK_MIB: u32 = 200;

/// Values of bytes that no compression makes fewer.
fn noise() -> impl FnMut() -> Bytes {
    let mut noise = 1u32;
    move || {
        let next = || {
            noise = noise.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            noise.to_be_bytes()[0]
        };
        std::iter::repeat_with(next).take(10_000).collect()
    }
}

/// Tries until there is room: the database finds that out by itself.
fn until_done(mut act: impl FnMut() -> Result<(), storage::Error>) {
    let mut tries = 0;
    while let Err(error) = act() {
        tries += 1;
        assert!(error.is_no_space() && tries < 600, "{tries} tries: {error}");
        std::thread::park_timeout(Duration::from_millis(100));
    }
}

#[test]
fn a_view_has_what_a_full_disk_does_not_take() {
    let temp = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(temp.path(), DISK_MIB) else { return };
    let db = open(&temp.path().join("state"));
    let (shard, mut noise) = (ShardId(5), noise());
    let item = |number| Key::Item(session(1), StepId::default(), number);
    let mut batch = db.batch(shard);
    (0..200).for_each(|number| batch.put(item(number), Row::Item(noise())));
    batch.commit(b"before").unwrap();
    db.write_out(shard).unwrap();
    disk.fill().unwrap();
    assert!(db.flush().unwrap_err().is_no_space());

    let mut batch = db.batch(shard);
    batch.delete(&item(0));
    batch.put(item(1), Row::Item(Bytes::from_static(b"other")));
    batch.put(item(200), Row::Item(Bytes::from_static(b"new")));
    batch.commit(b"after").unwrap();
    assert!(db.write_out(shard).unwrap_err().is_no_space(), "the disk takes nothing");
    let is_whole = || {
        let view = db.view(shard);
        assert_eq!(view.get(&item(0)), None);
        assert_eq!(view.get(&item(1)), Some(Row::Item(Bytes::from_static(b"other"))));
        let rows = view.scan(&item(0), &item(u32::MAX), usize::MAX);
        let keys: Vec<Key> = rows.into_iter().map(|(key, _)| key).collect();
        assert_eq!(keys, (1..=200).map(item).collect::<Vec<_>>());
        view.check().unwrap();
    };
    is_whole();
    // A view is of its moment, whatever is written after it.
    let before = db.view(shard);
    disk.free().unwrap();
    until_done(|| db.write_out(shard));
    let mut batch = db.batch(shard);
    batch.put(item(0), Row::Item(Bytes::from_static(b"again")));
    batch.commit(b"later").unwrap();
    db.write_out(shard).unwrap();
    assert_eq!(before.get(&item(0)), None);
    assert_eq!(before.scan(&item(0), &item(2), 9).len(), 1);
    before.check().unwrap();
    drop(before);
    drop(db);
    drop(disk);
}

/// Raft gives a shard up whose state can not be put into force.
#[test]
fn a_state_that_does_not_fit_on_the_disk_is_put_into_force_once_it_does() {
    let temp = tempfile::tempdir().unwrap();
    let Some(disk) = SmallDisk::mount(temp.path(), DISK_MIB) else { return };
    let target = Arc::new(open(&temp.path().join("state")));
    let shard = ShardId(5);
    let mut import = target.import(shard, Bytes::from_static(b"applied")).unwrap();
    let mut noise = noise();
    let rows = (0..200u32).map(|number| {
        let key = Key::Item(session(1), StepId::default(), number);
        (storage::encode_key(&key).into(), proto::record::encode_row(&Row::Item(noise())))
    });
    import.put(rows.collect::<Vec<_>>()).unwrap();
    disk.fill().unwrap();
    let error = import.install().unwrap_err();
    assert!(error.is_no_space(), "{error}");
    assert!(target.applied(shard).unwrap().is_none(), "nothing else is in force");
    disk.free().unwrap();
    until_done(|| import.install());
    assert_eq!(target.applied(shard).unwrap().unwrap(), "applied");
    let last = Key::Item(session(1), StepId::default(), 199);
    assert!(target.view(shard).get(&last).is_some());
    drop((import, target));
    drop(disk);
}
