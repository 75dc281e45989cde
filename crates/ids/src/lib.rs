//! Newtypes of the cluster and their text form.
//!
//! Every identifier is a type of its own, so that a shard can not be passed where a region is meant. Identifiers that
//! users see carry a text prefix (`ses_`) and are of fixed width, so that their text order is their byte order.

#![cfg_attr(not(test), no_std)]

extern crate alloc;

mod base36;
mod session;
mod time;
mod trace;

pub use session::SessionId;
pub use time::{Date, Timestamp};
pub use trace::{TRACE_LABEL, TraceContext};

use alloc::string::String;
use core::fmt;

/// Why a text is not the identifier that it should be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what} must be {expected}, not {found:?}")]
pub struct ParseError {
    /// The kind of identifier.
    pub what: &'static str,
    /// The form that is accepted.
    pub expected: &'static str,
    /// The text that was given, cut to 64 characters.
    pub found: String,
}

impl ParseError {
    pub(crate) fn new(what: &'static str, expected: &'static str, found: &str) -> Self {
        Self { what, expected, found: found.chars().take(64).collect() }
    }
}

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(&self.0, f)
            }
        }
    };
}

number! {
    /// A shard: one Raft group that owns a fixed share of a region's sessions. `0..=46655`.
    ShardId(u16)
}
number! {
    /// A region, geography only. Numbers are never reused. `0..=1295`.
    RegionId(u16)
}
number! {
    /// An orchestrator process, identified by a number kept in its data directory. Never reused.
    NodeId(u64)
}
number! {
    /// How often the ownership of a shard moved between regions.
    Epoch(u64)
}
number! {
    /// The number of a machine entry in its shard, 1-based. Raft indexes differ between replica groups;
    /// positions do not.
    Position(u64)
}
number! {
    /// The number of an event in its session, 0-based.
    Seq(u64)
}
number! {
    /// A try of a step, 1-based. It rises only when the step fails.
    Attempt(u32)
}
number! {
    /// The fence of a step: an outcome that carries another number than the step's is refused.
    Dispatch(u32)
}
number! {
    /// One activation of a block of steps: the whole session, an item of a map, an iteration of a loop.
    ScopeId(u32)
}

/// A step of a session: a node of its graph, in one activation of the node's block.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StepId {
    /// The activation.
    pub scope: ScopeId,
    /// The node of the session's definition.
    pub node: u16,
}

impl StepId {
    /// The step of `node` in `scope`.
    #[must_use]
    pub fn new(scope: ScopeId, node: u16) -> Self {
        Self { scope, node }
    }
}

impl fmt::Display for StepId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.scope, self.node)
    }
}

impl core::str::FromStr for StepId {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = || ParseError::new("a step", "<scope>.<node>, such as 0.3", text);
        let (scope, node) = text.split_once('.').ok_or_else(error)?;
        Ok(Self {
            scope: ScopeId(scope.parse().map_err(|_| error())?),
            node: node.parse().map_err(|_| error())?,
        })
    }
}

/// A SHA-256 digest.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub [u8; 32]);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..4].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl core::str::FromStr for Digest {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let error = || ParseError::new("a digest", "64 hexadecimal digits", text);
        let mut digest = [0u8; 32];
        if text.len() != 64 || !text.is_ascii() {
            return Err(error());
        }
        for (i, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[i * 2..i * 2 + 2], 16).map_err(|_| error())?;
        }
        Ok(Self(digest))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn step_ids_round_trip() {
        let step = StepId::new(ScopeId(12), 3);
        assert_eq!(step.to_string().parse(), Ok(step));
        assert!("12".parse::<StepId>().is_err());
        assert!("12.x".parse::<StepId>().is_err());
    }

    #[test]
    fn digests_round_trip_and_refuse_other_text() {
        let digest = Digest([0xab; 32]);
        assert_eq!(digest.to_string().parse(), Ok(digest));
        assert!("zz".parse::<Digest>().is_err());
        assert!("é".repeat(32).parse::<Digest>().is_err());
    }
}
