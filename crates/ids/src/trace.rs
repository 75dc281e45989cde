//! Where a session's spans belong: the same on every node, without anything said between them.
//!
//! The trace of a session has the session's unique part as its id, or is the one that its client named; the ids of its
//! spans are computed from what they are about. Format: W3C Trace Context, `traceparent` version 00
//! (<https://www.w3.org/TR/trace-context/>).

use core::fmt;

use crate::{Dispatch, ParseError, SessionId, StepId};

/// The label of a session under which the context that its client gave is kept.
pub const TRACE_LABEL: &str = "traceparent";

/// The kind of a step's span.
const STEP: u64 = 0;

/// A span, as other spans refer to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct TraceContext {
    /// The trace. Not zero.
    pub trace: u128,
    /// The span. Not zero.
    pub span: u64,
    /// Whether the trace is wanted.
    pub sampled: bool,
}

impl TraceContext {
    /// A session's own span. `given` is what its client named.
    #[must_use]
    pub fn of_session(session: SessionId, given: Option<Self>) -> Self {
        let trace = given.map_or_else(|| session.unique().max(1), |given| given.trace);
        let [high, low] = halves(session.unique());
        let sampled = given.is_none_or(|given| given.sampled);
        Self { trace, span: mix(&[high, low]), sampled }
    }

    /// The span of a step's work, given out under a fence, in the trace of its session's span.
    #[must_use]
    pub fn of_step(self, step: StepId, dispatch: Dispatch) -> Self {
        let place = u64::from(step.scope.0) << 16 | u64::from(step.node);
        self.child(STEP, &[place, u64::from(dispatch.0)])
    }

    /// The span of something of a kind that belongs to this one, told apart by numbers. Kind 0 is that of steps.
    #[must_use]
    pub fn child(self, kind: u64, numbers: &[u64]) -> Self {
        let span = numbers.iter().fold(mix(&[self.span, kind]), |span, number| mix(&[span, *number]));
        Self { span, ..self }
    }
}

fn halves(number: u128) -> [u64; 2] {
    #[allow(clippy::cast_possible_truncation, reason = "the halves")]
    [(number >> 64) as u64, number as u64]
}

/// SplitMix64's finalizer over each number in turn (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
/// Generators", 2014). Never zero.
fn mix(numbers: &[u64]) -> u64 {
    let mut state = 0u64;
    for number in numbers {
        let mut z = (state ^ number).wrapping_add(0x9e37_79b9_7f4a_7c15);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        state = z ^ (z >> 31);
    }
    state.max(1)
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace, self.span, u8::from(self.sampled))
    }
}

impl core::str::FromStr for TraceContext {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let parse = || {
            let mut parts = text.split('-');
            let (version, trace, span, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
            let is_hex = |part: &str, len: usize| {
                part.len() == len
                    && part.bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
            };
            // Later versions may have more parts, and keep these.
            let known = version != "00" || parts.next().is_none();
            if !(is_hex(version, 2)
                && version != "ff"
                && known
                && is_hex(trace, 32)
                && is_hex(span, 16)
                && is_hex(flags, 2))
            {
                return None;
            }
            let context = Self {
                trace: u128::from_str_radix(trace, 16).ok()?,
                span: u64::from_str_radix(span, 16).ok()?,
                sampled: u8::from_str_radix(flags, 16).ok()? & 1 == 1,
            };
            (context.trace != 0 && context.span != 0).then_some(context)
        };
        parse().ok_or_else(|| ParseError::new("a traceparent", "as W3C Trace Context says", text))
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString as _;

    use super::*;
    use crate::{RegionId, ScopeId, ShardId};

    #[test]
    fn contexts_are_written_and_read_as_the_standard_says() {
        let text = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context: TraceContext = text.parse().unwrap();
        assert_eq!((context.span, context.sampled), (0x00f0_67aa_0ba9_02b7, true));
        assert_eq!(context.to_string(), text);
        assert!(
            "01-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00-more".parse::<TraceContext>().is_ok()
        );
        for other in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert!(other.parse::<TraceContext>().is_err(), "{other}");
        }
    }

    #[test]
    fn spans_of_a_session_have_ids_of_their_own() {
        let session = SessionId::new(RegionId(0), ShardId(3), 77);
        let root = TraceContext::of_session(session, None);
        assert_eq!((root.trace, root.sampled), (77, true));
        let mut spans = alloc::collections::BTreeSet::from([root.span]);
        for node in 0..100 {
            for scope in 0..10 {
                for dispatch in 0..3 {
                    let step = StepId { scope: ScopeId(scope), node };
                    let of = root.of_step(step, Dispatch(dispatch));
                    assert!(spans.insert(of.span) && spans.insert(of.child(1, &[0]).span));
                }
            }
        }
        let given: TraceContext = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00".parse().unwrap();
        let of_client = TraceContext::of_session(session, Some(given));
        assert_eq!((of_client.trace, of_client.span, of_client.sampled), (given.trace, root.span, false));
    }
}
