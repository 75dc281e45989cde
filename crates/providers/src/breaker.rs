//! The circuit breaker of a provider.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// After `threshold` failures within `window`, calls are refused for `rest`; then one call is let through, and
/// decides.
#[derive(Debug)]
pub struct Breaker {
    threshold: usize,
    window: Duration,
    rest: Duration,
    state: State,
}

#[derive(Debug)]
enum State {
    Closed { failures: VecDeque<Instant> },
    Open { until: Instant },
    HalfOpen { probe_until: Instant },
}

/// Where a breaker stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Calls go through.
    Closed,
    /// Calls are refused.
    Open,
    /// One call decides.
    HalfOpen,
}

impl BreakerState {
    /// The name in the API.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

impl Breaker {
    /// A closed breaker.
    #[must_use]
    pub fn new(threshold: usize, window: Duration, rest: Duration) -> Self {
        Self { threshold, window, rest, state: State::Closed { failures: VecDeque::new() } }
    }

    /// Whether a call may go through now. A call that was let through reports how it went.
    pub fn admit(&mut self, now: Instant) -> bool {
        match self.state {
            State::Closed { .. } => true,
            State::Open { until } if now < until => false,
            // A probe that never reports back must not keep the breaker open for ever.
            State::HalfOpen { probe_until } if now < probe_until => false,
            State::Open { .. } | State::HalfOpen { .. } => {
                self.state = State::HalfOpen { probe_until: now + self.rest };
                true
            }
        }
    }

    /// A call went well.
    pub fn succeeded(&mut self) {
        self.state = State::Closed { failures: VecDeque::new() };
    }

    /// A call failed in a way that tells against the provider.
    pub fn failed(&mut self, now: Instant) {
        match &mut self.state {
            State::Closed { failures } => {
                failures.push_back(now);
                while failures.front().is_some_and(|first| now - *first > self.window) {
                    failures.pop_front();
                }
                if failures.len() >= self.threshold {
                    self.state = State::Open { until: now + self.rest };
                }
            }
            State::HalfOpen { .. } => self.state = State::Open { until: now + self.rest },
            State::Open { .. } => {}
        }
    }

    /// Where it stands.
    #[must_use]
    pub fn state(&self, now: Instant) -> BreakerState {
        match self.state {
            State::Closed { .. } => BreakerState::Closed,
            State::Open { until } if now < until => BreakerState::Open,
            State::Open { .. } | State::HalfOpen { .. } => BreakerState::HalfOpen,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn it_opens_probes_and_closes() {
        let start = Instant::now();
        let mut breaker = Breaker::new(5, 60 * SECOND, 60 * SECOND);
        for second in 0..4 {
            breaker.failed(start + second * SECOND);
        }
        assert!(breaker.admit(start + 4 * SECOND));
        // The first failure has left the window.
        breaker.failed(start + 61 * SECOND);
        assert!(breaker.admit(start + 61 * SECOND));
        breaker.failed(start + 61 * SECOND);
        assert!(!breaker.admit(start + 61 * SECOND));
        assert_eq!(breaker.state(start + 62 * SECOND), BreakerState::Open);
        let later = start + 122 * SECOND;
        assert!(breaker.admit(later), "one probe");
        assert!(!breaker.admit(later), "only one probe");
        breaker.failed(later);
        assert!(!breaker.admit(later + SECOND));
        assert!(breaker.admit(later + 61 * SECOND));
        breaker.succeeded();
        assert_eq!(breaker.state(later + 61 * SECOND), BreakerState::Closed);
    }
}
