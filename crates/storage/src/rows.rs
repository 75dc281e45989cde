//! Rows as they are read from the database.

use std::cell::Cell;

use machine::{Key, Row};
use rocksdb::{DB, Direction, IteratorMode, ReadOptions, Snapshot};

use crate::{Error, buffer::Rows, keys};

pub(crate) fn decode(key: &Key, bytes: &[u8]) -> Result<Row, Error> {
    proto::record::decode_row(key, bytes).map_err(|error| Error::corrupt(format!("state, {key:?}"), error))
}

pub(crate) fn keep_first<T>(slot: &Cell<Option<Error>>, error: Error) -> Option<T> {
    slot.set(Some(slot.take().unwrap_or(error)));
    None
}

/// What can be iterated: the database, or a snapshot of it.
pub(crate) trait Iterate {
    fn iterate(&self, from: &[u8], options: ReadOptions) -> rocksdb::DBIterator<'_>;
}

impl Iterate for DB {
    fn iterate(&self, from: &[u8], options: ReadOptions) -> rocksdb::DBIterator<'_> {
        self.iterator_opt(IteratorMode::From(from, Direction::Forward), options)
    }
}

impl Iterate for Snapshot<'_> {
    fn iterate(&self, from: &[u8], options: ReadOptions) -> rocksdb::DBIterator<'_> {
        self.iterator_opt(IteratorMode::From(from, Direction::Forward), options)
    }
}

/// The rows of a range of keys, as they are stored when this is called.
pub(crate) fn scan_db<'a>(
    source: &'a impl Iterate,
    prefix: &'a [u8; 6],
    from: &Key,
    to: &Key,
) -> impl Iterator<Item = Result<(Key, Row), Error>> + 'a {
    let from = [&prefix[..], &keys::encode_key(from)].concat();
    let to = [&prefix[..], &keys::encode_key(to)].concat();
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(to);
    source.iterate(&from, options).map(move |item| {
        let (bytes, value) = item?;
        let key = keys::decode_key(&bytes[prefix.len()..])
            .ok_or_else(|| Error::corrupt(format!("state, key {bytes:02x?}"), "not a key"))?;
        let row = decode(&key, &value)?;
        Ok((key, row))
    })
}

/// The first rows of both: ours hide those that are stored, also where they are deleted.
pub(crate) fn merge(
    ours: Rows,
    stored: impl Iterator<Item = Result<(Key, Row), Error>>,
    limit: usize,
    error: &Cell<Option<Error>>,
) -> Vec<(Key, Row)> {
    let (mut ours, mut stored) = (ours.into_iter().peekable(), stored.peekable());
    let mut found = Vec::new();
    while found.len() < limit {
        let take_ours = match (ours.peek(), stored.peek()) {
            (None, None) => break,
            (Some(_), None) => true,
            (None, Some(_)) | (Some(_), Some(Err(_))) => false,
            (Some((ours, _)), Some(Ok((stored, _)))) => ours <= stored,
        };
        if take_ours {
            let Some((key, row)) = ours.next() else { break };
            stored.next_if(|row| matches!(row, Ok((stored, _)) if *stored == key));
            found.extend(row.map(|row| (key, *row)));
            continue;
        }
        match stored.next() {
            Some(Ok(row)) => found.push(row),
            Some(Err(failed)) => {
                keep_first::<()>(error, failed);
                break;
            }
            None => break,
        }
    }
    found
}
