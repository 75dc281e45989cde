//! The timers of a shard: sleeps until the next is due, and proposes that they fire.

use std::time::Duration;

use consensus::Group;
use ids::{SessionId, Timestamp};
use machine::{Command, Key, Outcome, Read as _, TimerKind};

/// The longest sleep: news of an earlier timer may have been lost.
const SLEEP_MAX: Duration = Duration::from_secs(10);
/// The rest after timers were not fired, such as while writes are stopped.
const REST: Duration = Duration::from_millis(50);

pub(crate) struct Timers {
    group: Group,
    next: Option<Timestamp>,
    failed: bool,
}

impl Timers {
    pub(crate) fn new(group: Group) -> Self {
        let mut timers = Self { group, next: None, failed: false };
        timers.look();
        timers
    }

    /// A timer was set.
    pub(crate) fn set(&mut self, at: Timestamp) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// How long until the next timer is due, by the shard's clock: the wall clock may be hours from it. Where that
    /// clock does not run yet, firing starts it.
    fn left(&self) -> Option<Duration> {
        let next = self.next?;
        Some(self.group.now().map_or(Duration::ZERO, |now| next.since(now)))
    }

    /// Returns when the next timer is due, or it is time to look again.
    pub(crate) async fn due(&self) {
        let until = self.left().unwrap_or(SLEEP_MAX).min(SLEEP_MAX);
        tokio::time::sleep(if self.failed { until.max(REST) } else { until }).await;
    }

    /// Fires what is due.
    pub(crate) async fn fire(&mut self) {
        self.failed = false;
        if self.left().is_some_and(|left| left.is_zero()) {
            loop {
                match self.group.propose_here(Command::FireTimers).await {
                    Ok((Outcome::Fired { more: true }, _)) => {}
                    Ok((Outcome::Fired { more: false }, _)) => break,
                    Ok((outcome, _)) => {
                        tracing::debug!(?outcome, "timers were not fired; trying again");
                        self.failed = true;
                        break;
                    }
                    Err(error) => {
                        tracing::debug!(%error, "timers were not fired; trying again");
                        self.failed = true;
                        break;
                    }
                }
            }
        }
        self.look();
    }

    fn look(&mut self) {
        let from = Key::Timer(Timestamp(0), SessionId::default(), TimerKind::Deadline);
        let to = Key::Timer(Timestamp(u64::MAX), SessionId::default(), TimerKind::Deadline);
        let first = self.group.latest().scan(&from, &to, 1).into_iter().next();
        self.next = match first {
            Some((Key::Timer(at, ..), _)) => Some(at),
            _ => None,
        };
    }
}
