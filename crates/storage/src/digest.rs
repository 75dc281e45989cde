//! One number for all rows of a shard, kept up to date with every batch.
//!
//! The digest is the sum, modulo 2^128, of the XXH3-128 hashes of the rows (Bellare and Micciancio's AdHash, over a
//! hash that is fast rather than secret: it finds what went wrong by accident). So it does not depend on the order
//! of writes, and a row that changes costs two hashes. Replicas that have applied the same entries have the same
//! digest; rows read back from the disk sum up to it.

use ids::ShardId;
use rocksdb::{Direction, IteratorMode, ReadOptions, Snapshot};
use twox_hash::XxHash3_128;

use crate::{Error, StateDb, keys, state::applied_key};

/// Bytes read between two rests of a scrub.
const SCRUB_BYTES: usize = 1 << 20;
/// How long a scrub rests.
const SCRUB_REST: std::time::Duration = std::time::Duration::from_millis(2);

/// The digest of a set of rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RowDigest(pub u128);

impl RowDigest {
    /// The hash of a row: of its key's length, its key without the shard's prefix, and its value.
    pub(crate) fn row(key: &[u8], value: &[u8]) -> u128 {
        // At once: what is fed in parts is set up for long texts, which costs more than a short one.
        let len = u32::try_from(key.len()).unwrap_or(u32::MAX).to_le_bytes();
        XxHash3_128::oneshot(&[&len[..], key, value].concat())
    }

    /// With a row more.
    pub(crate) fn add(&mut self, hash: u128) {
        self.0 = self.0.wrapping_add(hash);
    }

    /// With a row less.
    pub(crate) fn remove(&mut self, hash: u128) {
        self.0 = self.0.wrapping_sub(hash);
    }
}

impl std::fmt::Display for RowDigest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

pub(crate) fn digest_key(shard: ShardId, incarnation: u32) -> Vec<u8> {
    [b"\xffd".as_slice(), &keys::prefix(shard, incarnation)].concat()
}

fn parse(bytes: &[u8]) -> Result<RowDigest, Error> {
    let bytes = bytes.try_into().map_err(|_| Error::corrupt("state, digest of a shard", "not 16 bytes"))?;
    Ok(RowDigest(u128::from_be_bytes(bytes)))
}

impl StateDb {
    /// The digest of a shard's rows, as of the last batch.
    ///
    /// # Errors
    ///
    /// The disk refuses, or what is there is corrupt.
    pub fn digest(&self, shard: ShardId) -> Result<RowDigest, Error> {
        let memory = self.memory(shard);
        let mut memory = memory.lock();
        self.write_buffer(shard, &mut memory)?;
        self.digest_as_written(shard, self.incarnation(shard))
    }

    /// The digest of the rows that are written. Nothing else is written meanwhile.
    pub(crate) fn digest_as_written(&self, shard: ShardId, incarnation: u32) -> Result<RowDigest, Error> {
        if let Some(bytes) = self.db.get_pinned(digest_key(shard, incarnation))? {
            return parse(&bytes);
        }
        // Written by a version without digests: counted once.
        if self.db.get_pinned(applied_key(shard, incarnation))?.is_none() {
            return Ok(RowDigest::default());
        }
        Ok(sum(shard, &self.db.snapshot(), incarnation, || {})?.digest)
    }

    /// Reads every row of a shard that is stored, slowly, and compares with the digest. Waits: not for a thread that
    /// others wait for.
    ///
    /// # Errors
    ///
    /// [`Error::Corrupt`] names the first row that can not be read, or says that the rows are not those that were
    /// written.
    pub fn scrub(&self, shard: ShardId) -> Result<Scrubbed, Error> {
        // What waits in memory is left there: to write it takes the digest, and where that is damaged, rows may be.
        let (snapshot, incarnation) = self.stored(shard);
        let found = sum(shard, &snapshot, incarnation, || std::thread::park_timeout(SCRUB_REST))?;
        let place = || format!("state of shard {shard}, the digest of its rows");
        let stored = snapshot.get_pinned(digest_key(shard, incarnation));
        match stored.map_err(|error| Error::corrupt(place(), error))? {
            Some(stored) if parse(&stored)? != found.digest => Err(Error::corrupt(
                format!("state of shard {shard}"),
                format!(
                    "its {} rows sum up to {}, but {} was written",
                    found.rows,
                    found.digest,
                    parse(&stored)?
                ),
            )),
            _ => Ok(found),
        }
    }
}

fn sum(
    shard: ShardId,
    snapshot: &Snapshot<'_>,
    incarnation: u32,
    rest: impl Fn(),
) -> Result<Scrubbed, Error> {
    let from = keys::prefix(shard, incarnation);
    let mut options = ReadOptions::default();
    options.set_iterate_upper_bound(keys::prefix(shard, incarnation + 1));
    options.fill_cache(false);
    options.set_verify_checksums(true);
    let (mut digest, mut rows, mut bytes) = (RowDigest::default(), 0, 0);
    let mut last = None;
    for item in snapshot.iterator_opt(IteratorMode::From(&from, Direction::Forward), options) {
        let after = |last: &Option<machine::Key>| match last {
            Some(key) => format!("state of shard {shard}, the row after {key:?}"),
            None => format!("state of shard {shard}, its first row"),
        };
        let (full, value) = item.map_err(|error| Error::corrupt(after(&last), error))?;
        let key =
            keys::decode_key(&full[from.len()..]).ok_or_else(|| Error::corrupt(after(&last), "not a key"))?;
        proto::record::decode_row(&key, &value)
            .map_err(|error| Error::corrupt(format!("state of shard {shard}, {key:?}"), error))?;
        digest.add(RowDigest::row(&full[from.len()..], &value));
        rows += 1;
        bytes += full.len() + value.len();
        if bytes >= SCRUB_BYTES {
            bytes = 0;
            rest();
        }
        last = Some(key);
    }
    Ok(Scrubbed { rows, digest })
}

/// What a scrub has read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scrubbed {
    /// How many rows.
    pub rows: u64,
    /// Their digest.
    pub digest: RowDigest,
}
