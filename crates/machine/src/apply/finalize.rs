//! Newer rules come into force.

use crate::{Key, Outcome, Row, ShardRow, Tables};

pub(super) fn finalize(tables: &mut impl Tables, machine_version: u32) -> super::Result {
    let row = tables.shard();
    if machine_version > row.machine_version {
        tables.put(Key::Shard, Row::Shard(ShardRow { machine_version, ..row }));
    }
    Ok(Outcome::Done)
}
