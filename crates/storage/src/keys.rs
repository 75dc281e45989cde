//! Keys as bytes. Each table has a tag that is never used again; byte order is the order of [`Key`].
//!
//! A key of a shard's state is `shard u16 ‖ incarnation u32 ‖ tag u8 ‖ fields`, numbers big-endian, texts with
//! every zero byte doubled as `00 ff` and ended by `00 00`, so that no text is a prefix of another's bytes. Keys of
//! the node itself begin with `ff`, above every shard.

use ids::{Digest, ScopeId, Seq, SessionId, ShardId, StepId, Timestamp};
use machine::{Key, TimerKind};

use crate::Error;

/// The tag of each table, in the order of the variants of [`Key`].
#[derive(Clone, Copy)]
#[repr(u8)]
enum Tag {
    Shard = 1,
    Definition = 2,
    Workflow = 3,
    Session = 4,
    Scope = 5,
    Step = 6,
    Item = 7,
    Event = 8,
    Pending = 9,
    Listener = 10,
    Signal = 11,
    SignalId = 12,
    Idempotency = 13,
    Timer = 14,
    ByTenant = 15,
    Alert = 16,
}

/// What stands before every key of one life of a shard.
pub(crate) fn prefix(shard: ShardId, incarnation: u32) -> [u8; 6] {
    let mut prefix = [0; 6];
    prefix[..2].copy_from_slice(&shard.0.to_be_bytes());
    prefix[2..].copy_from_slice(&incarnation.to_be_bytes());
    prefix
}

/// The first bytes after every key of one life of a shard.
pub(crate) fn after(shard: ShardId, incarnation: u32) -> [u8; 6] {
    match incarnation.checked_add(1) {
        Some(next) => prefix(shard, next),
        None => prefix(ShardId(shard.0.saturating_add(1)), 0),
    }
}

/// Which life of which shard a key of a shard is of.
pub(crate) fn read_prefix(key: &[u8]) -> Result<(ShardId, u32), Error> {
    let (Some(shard), Some(incarnation)) =
        (key.first_chunk(), key.get(2..).and_then(|rest| rest.first_chunk()))
    else {
        return Err(Error::corrupt(format!("state, key {key:02x?}"), "not a key of a shard"));
    };
    Ok((ShardId(u16::from_be_bytes(*shard)), u32::from_be_bytes(*incarnation)))
}

/// The key's bytes after the shard's prefix.
#[must_use]
pub fn encode_key(key: &Key) -> Vec<u8> {
    let mut out = Writer(Vec::with_capacity(48));
    match key {
        Key::Shard => out.tag(Tag::Shard),
        Key::Definition(digest) => {
            out.tag(Tag::Definition);
            out.0.extend_from_slice(&digest.0);
        }
        Key::Workflow(tenant, name) => {
            out.tag(Tag::Workflow);
            out.text(tenant);
            out.text(name);
        }
        Key::Session(id) => {
            out.tag(Tag::Session);
            out.session(*id);
        }
        Key::Scope(id, scope) => {
            out.tag(Tag::Scope);
            out.session(*id);
            out.0.extend_from_slice(&scope.0.to_be_bytes());
        }
        Key::Step(id, step) => {
            out.tag(Tag::Step);
            out.session(*id);
            out.step(*step);
        }
        Key::Item(id, step, index) => {
            out.tag(Tag::Item);
            out.session(*id);
            out.step(*step);
            out.0.extend_from_slice(&index.to_be_bytes());
        }
        Key::Event(id, seq) => {
            out.tag(Tag::Event);
            out.session(*id);
            out.number(seq.0);
        }
        Key::Pending(id, step) => {
            out.tag(Tag::Pending);
            out.session(*id);
            out.step(*step);
        }
        Key::Listener(id, name, step) => {
            out.tag(Tag::Listener);
            out.session(*id);
            out.text(name);
            out.step(*step);
        }
        Key::Signal(id, name, seq) => {
            out.tag(Tag::Signal);
            out.session(*id);
            out.text(name);
            out.number(seq.0);
        }
        Key::SignalId(id, signal) => {
            out.tag(Tag::SignalId);
            out.session(*id);
            out.0.extend_from_slice(&signal.to_be_bytes());
        }
        Key::Idempotency(tenant, lock_key, key) => {
            out.tag(Tag::Idempotency);
            out.text(tenant);
            out.text(lock_key);
            out.text(key);
        }
        Key::Timer(at, id, kind) => {
            out.tag(Tag::Timer);
            out.number(at.0);
            out.session(*id);
            match kind {
                TimerKind::Deadline => out.0.push(0),
                TimerKind::Step(step) => {
                    out.0.push(1);
                    out.step(*step);
                }
                TimerKind::Retention => out.0.push(2),
            }
        }
        Key::ByTenant(tenant, age, id) => {
            out.tag(Tag::ByTenant);
            out.text(tenant);
            out.number(*age);
            out.session(*id);
        }
        Key::Alert(name) => {
            out.tag(Tag::Alert);
            out.text(name);
        }
    }
    out.0
}

/// Reads a key's bytes after the shard's prefix; `None` for bytes that are no key.
#[must_use]
pub fn decode_key(bytes: &[u8]) -> Option<Key> {
    let (&tag, rest) = bytes.split_first()?;
    let mut read = Reader(rest);
    let key = match tag {
        1 => Key::Shard,
        2 => Key::Definition(Digest(read.take()?)),
        3 => Key::Workflow(read.text()?, read.text()?),
        4 => Key::Session(read.session()?),
        5 => Key::Scope(read.session()?, ScopeId(u32::from_be_bytes(read.take()?))),
        6 => Key::Step(read.session()?, read.step()?),
        7 => Key::Item(read.session()?, read.step()?, u32::from_be_bytes(read.take()?)),
        8 => Key::Event(read.session()?, Seq(read.number()?)),
        9 => Key::Pending(read.session()?, read.step()?),
        10 => Key::Listener(read.session()?, read.text()?, read.step()?),
        11 => Key::Signal(read.session()?, read.text()?, Seq(read.number()?)),
        12 => Key::SignalId(read.session()?, u128::from_be_bytes(read.take()?)),
        13 => Key::Idempotency(read.text()?, read.text()?, read.text()?),
        14 => {
            let (at, id) = (Timestamp(read.number()?), read.session()?);
            let kind = match read.take::<1>()? {
                [0] => TimerKind::Deadline,
                [1] => TimerKind::Step(read.step()?),
                [2] => TimerKind::Retention,
                _ => return None,
            };
            Key::Timer(at, id, kind)
        }
        15 => Key::ByTenant(read.text()?, read.number()?, read.session()?),
        16 => Key::Alert(read.text()?),
        _ => return None,
    };
    read.0.is_empty().then_some(key)
}

struct Writer(Vec<u8>);

impl Writer {
    fn tag(&mut self, tag: Tag) {
        self.0.push(tag as u8);
    }

    fn number(&mut self, number: u64) {
        self.0.extend_from_slice(&number.to_be_bytes());
    }

    fn session(&mut self, id: SessionId) {
        self.0.extend_from_slice(&id.region().0.to_be_bytes());
        self.0.extend_from_slice(&id.shard().0.to_be_bytes());
        self.0.extend_from_slice(&id.unique().to_be_bytes());
    }

    fn step(&mut self, step: StepId) {
        self.0.extend_from_slice(&step.scope.0.to_be_bytes());
        self.0.extend_from_slice(&step.node.to_be_bytes());
    }

    fn text(&mut self, text: &str) {
        for &byte in text.as_bytes() {
            self.0.push(byte);
            if byte == 0 {
                self.0.push(0xff);
            }
        }
        self.0.extend_from_slice(&[0, 0]);
    }
}

struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn number(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn session(&mut self) -> Option<SessionId> {
        let region = u16::from_be_bytes(self.take()?);
        let shard = u16::from_be_bytes(self.take()?);
        SessionId::from_parts(region, shard, u128::from_be_bytes(self.take()?))
    }

    fn step(&mut self) -> Option<StepId> {
        let scope = ScopeId(u32::from_be_bytes(self.take()?));
        Some(StepId::new(scope, u16::from_be_bytes(self.take()?)))
    }

    fn text(&mut self) -> Option<String> {
        let mut text = Vec::new();
        loop {
            match self.take::<1>()? {
                [0] => match self.take::<1>()? {
                    [0] => return String::from_utf8(text).ok(),
                    [0xff] => text.push(0),
                    _ => return None,
                },
                [byte] => text.push(byte),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ids::RegionId;
    use proptest::prelude::*;

    fn session() -> impl Strategy<Value = SessionId> {
        (0u16..4, 0u16..4, prop_oneof![0u128..4, any::<u128>()])
            .prop_map(|(region, shard, unique)| SessionId::new(RegionId(region), ShardId(shard), unique))
    }

    fn step() -> impl Strategy<Value = StepId> {
        (0u32..4, 0u16..300).prop_map(|(scope, node)| StepId::new(ScopeId(scope), node))
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof!["[a-c\u{0}]{0,3}", "\\PC{0,4}"]
    }

    fn timer() -> impl Strategy<Value = TimerKind> {
        prop_oneof![Just(TimerKind::Deadline), step().prop_map(TimerKind::Step), Just(TimerKind::Retention)]
    }

    fn key() -> impl Strategy<Value = Key> {
        prop_oneof![
            Just(Key::Shard),
            any::<[u8; 32]>().prop_map(|bytes| Key::Definition(Digest(bytes))),
            (text(), text()).prop_map(|(tenant, name)| Key::Workflow(tenant, name)),
            session().prop_map(Key::Session),
            (session(), 0u32..9).prop_map(|(id, scope)| Key::Scope(id, ScopeId(scope))),
            (session(), step()).prop_map(|(id, step)| Key::Step(id, step)),
            (session(), step(), any::<u32>()).prop_map(|(id, step, index)| Key::Item(id, step, index)),
            (session(), any::<u64>()).prop_map(|(id, seq)| Key::Event(id, Seq(seq))),
            (session(), step()).prop_map(|(id, step)| Key::Pending(id, step)),
            (session(), text(), step()).prop_map(|(id, name, step)| Key::Listener(id, name, step)),
            (session(), text(), any::<u64>()).prop_map(|(id, name, seq)| Key::Signal(id, name, Seq(seq))),
            (session(), any::<u128>()).prop_map(|(id, signal)| Key::SignalId(id, signal)),
            (text(), text(), text()).prop_map(|(tenant, lock, key)| Key::Idempotency(tenant, lock, key)),
            (0u64..3, session(), timer()).prop_map(|(at, id, kind)| Key::Timer(Timestamp(at), id, kind)),
            (text(), any::<u64>(), session()).prop_map(|(tenant, age, id)| Key::ByTenant(tenant, age, id)),
        ]
    }

    proptest! {
        #[test]
        fn keys_round_trip(key in key()) {
            prop_assert_eq!(decode_key(&encode_key(&key)), Some(key));
        }

        #[test]
        fn byte_order_is_key_order(a in key(), b in key()) {
            prop_assert_eq!(encode_key(&a).cmp(&encode_key(&b)), a.cmp(&b));
        }

        #[test]
        fn other_bytes_are_no_key(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Some(key) = decode_key(&bytes) {
                prop_assert_eq!(encode_key(&key), bytes);
            }
        }
    }
}
