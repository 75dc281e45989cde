//! The circuit breaker of a provider.

use std::{collections::VecDeque, time::Duration};

use tokio::time::Instant;

/// How long a call is to wait while another one decides.
const PROBE_PAUSE: Duration = Duration::from_secs(5);

/// When a breaker opens, and for how long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BreakerOptions {
    /// So many failures
    pub threshold: usize,
    /// within this time open it,
    pub window: Duration,
    /// and for this time it refuses calls.
    pub rest: Duration,
}

impl Default for BreakerOptions {
    /// Five failures in a minute; a minute's rest.
    fn default() -> Self {
        let minute = Duration::from_secs(60);
        Self { threshold: 5, window: minute, rest: minute }
    }
}

/// After some failures within a window of time, calls are refused for a while; then one call is let through, and
/// decides.
#[derive(Debug)]
pub struct Breaker {
    options: BreakerOptions,
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
    pub fn new(options: BreakerOptions) -> Self {
        Self { options, state: State::Closed { failures: VecDeque::new() } }
    }

    /// Whether a call may go through now. A call that was let through reports how it went.
    ///
    /// # Errors
    ///
    /// It may not: after so long it may be worth asking again.
    pub fn admit(&mut self, now: Instant) -> Result<(), Duration> {
        match self.state {
            State::Closed { .. } => Ok(()),
            State::Open { until } if now < until => Err(until - now),
            // A probe that never reports back must not keep the breaker open for ever.
            State::HalfOpen { probe_until } if now < probe_until => Err((probe_until - now).min(PROBE_PAUSE)),
            State::Open { .. } | State::HalfOpen { .. } => {
                self.state = State::HalfOpen { probe_until: now + self.options.rest };
                Ok(())
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
                while failures.front().is_some_and(|first| now - *first > self.options.window) {
                    failures.pop_front();
                }
                if failures.len() >= self.options.threshold {
                    self.state = State::Open { until: now + self.options.rest };
                }
            }
            State::HalfOpen { .. } => self.state = State::Open { until: now + self.options.rest },
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
        let mut breaker = Breaker::new(BreakerOptions::default());
        for second in 0..4 {
            breaker.failed(start + second * SECOND);
        }
        assert!(breaker.admit(start + 4 * SECOND).is_ok());
        // The first failure has left the window.
        breaker.failed(start + 61 * SECOND);
        assert!(breaker.admit(start + 61 * SECOND).is_ok());
        breaker.failed(start + 61 * SECOND);
        assert_eq!(breaker.admit(start + 61 * SECOND), Err(60 * SECOND));
        assert_eq!(breaker.state(start + 62 * SECOND), BreakerState::Open);
        let later = start + 122 * SECOND;
        assert!(breaker.admit(later).is_ok(), "one probe");
        assert_eq!(breaker.admit(later), Err(PROBE_PAUSE), "only one probe");
        breaker.failed(later);
        assert!(breaker.admit(later + SECOND).is_err());
        assert!(breaker.admit(later + 61 * SECOND).is_ok());
        breaker.succeeded();
        assert_eq!(breaker.state(later + 61 * SECOND), BreakerState::Closed);
    }
}
