//! The envelope of everything that is stored or crosses versions: `magic u16 | format version u8 | kind u8 | crc32c
//! u32 | body`, numbers big-endian. The checksum covers version, kind and body, so that a body of one kind is never
//! read as another.

use bytes::{BufMut as _, Bytes, BytesMut};

/// The first two bytes.
pub const MAGIC: u16 = 0x6f72;
/// The newest format that this build writes and the newest that it reads.
pub const FORMAT_VERSION: u8 = 1;
/// Bytes before the body.
pub const HEADER_LEN: usize = 8;

/// What a body is. Numbers are never reused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// An entry of the Raft log.
    RaftEntry = 1,
    /// A vote.
    Vote = 2,
    /// A log id: committed, purged.
    LogId = 3,
    /// A row of the state database.
    Row = 4,
    /// What a state database knows of the log.
    Applied = 5,
    /// What a directory says of itself.
    NodeIdentity = 6,
    /// A command, on its way to the leader of its shard.
    Command = 7,
    /// An outcome, on its way to who asked.
    Outcome = 8,
    /// What a node has measured in a stretch of time.
    Measured = 9,
    /// What a session went through, as it is exported.
    History = 10,
}

/// Why bytes are not a record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Shorter than a header, or does not begin with the magic number.
    #[error("not a record of this system ({0} bytes)")]
    Foreign(usize),
    /// Written by a newer version.
    #[error(
        "record format {found} is newer than {FORMAT_VERSION}, the newest this version reads: upgrade this node"
    )]
    Newer {
        /// The format found.
        found: u8,
    },
    /// The checksum does not match: the bytes changed since they were written.
    #[error("checksum mismatch: stored {stored:08x}, computed {computed:08x}")]
    Corrupt {
        /// The checksum in the header.
        stored: u32,
        /// The checksum of what is there.
        computed: u32,
    },
    /// Another kind of record.
    #[error("record of kind {found} where kind {expected} belongs")]
    Kind {
        /// The kind found.
        found: u8,
        /// The kind expected.
        expected: u8,
    },
    /// The body does not decode.
    #[error("record body: {0}")]
    Body(String),
}

fn checksum(version: u8, kind: u8, body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&[version, kind]), body)
}

/// Wraps a message.
pub fn seal(kind: Kind, body: &impl prost::Message) -> Bytes {
    let mut bytes = BytesMut::with_capacity(HEADER_LEN + body.encoded_len());
    bytes.put_slice(&[0; HEADER_LEN]);
    // A `BytesMut` grows as needed: encoding into it does not fail.
    let _ = body.encode(&mut bytes);
    let crc = checksum(FORMAT_VERSION, kind as u8, &bytes[HEADER_LEN..]);
    bytes[..2].copy_from_slice(&MAGIC.to_be_bytes());
    bytes[2] = FORMAT_VERSION;
    bytes[3] = kind as u8;
    bytes[4..HEADER_LEN].copy_from_slice(&crc.to_be_bytes());
    bytes.freeze()
}

/// Checks an envelope; its body.
///
/// # Errors
///
/// Foreign, newer, corrupt or of another kind.
pub fn open(kind: Kind, bytes: &[u8]) -> Result<&[u8], Error> {
    let Some((header, body)) = bytes.split_first_chunk::<HEADER_LEN>() else {
        return Err(Error::Foreign(bytes.len()));
    };
    let [m0, m1, version, found, c0, c1, c2, c3] = *header;
    if u16::from_be_bytes([m0, m1]) != MAGIC {
        return Err(Error::Foreign(bytes.len()));
    }
    if version > FORMAT_VERSION {
        return Err(Error::Newer { found: version });
    }
    let (stored, computed) = (u32::from_be_bytes([c0, c1, c2, c3]), checksum(version, found, body));
    if stored != computed {
        return Err(Error::Corrupt { stored, computed });
    }
    if found != kind as u8 {
        return Err(Error::Kind { found, expected: kind as u8 });
    }
    Ok(body)
}

/// Checks an envelope and decodes its body.
///
/// # Errors
///
/// As [`open`], and a body that does not decode.
pub fn unseal<M: prost::Message + Default>(kind: Kind, bytes: &[u8]) -> Result<M, Error> {
    M::decode(open(kind, bytes)?).map_err(|error| Error::Body(error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage;

    #[test]
    fn the_bytes_are_what_they_were() {
        let vote = storage::Vote { term: 3, node: 1, committed: true };
        let bytes = seal(Kind::Vote, &vote);
        assert_eq!(&bytes[..], b"\x6f\x72\x01\x02\x21\xb8\xac\xaf\x08\x03\x10\x01\x18\x01", "{bytes:02x?}");
        assert_eq!(unseal::<storage::Vote>(Kind::Vote, &bytes), Ok(vote));
    }

    #[test]
    fn what_is_not_a_record_is_refused() {
        let bytes = seal(Kind::Vote, &storage::Vote::default()).to_vec();
        assert_eq!(open(Kind::Vote, b"short"), Err(Error::Foreign(5)));
        assert_eq!(open(Kind::Vote, b"something else"), Err(Error::Foreign(14)));
        assert_eq!(open(Kind::LogId, &bytes), Err(Error::Kind { found: 2, expected: 3 }));
        let mut newer = bytes.clone();
        newer[2] = 9;
        assert_eq!(open(Kind::Vote, &newer), Err(Error::Newer { found: 9 }));
        let vote = seal(Kind::Vote, &storage::Vote { term: 3, node: 1, committed: true }).to_vec();
        for byte in 3..vote.len() {
            let mut flipped = vote.clone();
            flipped[byte] ^= 1;
            assert!(matches!(open(Kind::Vote, &flipped), Err(Error::Corrupt { .. })), "byte {byte}");
        }
    }
}
