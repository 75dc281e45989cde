//! The timers of a shard: sleeps until the next is due, and proposes that they fire.

use std::{sync::Arc, time::Duration};

use consensus::{Clock, Group};
use ids::{SessionId, Timestamp};
use machine::{Command, Key, Outcome, Read as _, TimerKind};

/// The longest sleep: news of an earlier timer may have been lost.
const SLEEP_MAX: Duration = Duration::from_secs(10);
/// The rest after timers that are due by the wall clock did not fire, because the shard's clock is behind it.
const REST: Duration = Duration::from_millis(50);

pub(crate) struct Timers {
    group: Group,
    clock: Arc<dyn Clock>,
    next: Option<Timestamp>,
    rest: bool,
}

impl Timers {
    pub(crate) fn new(group: Group, clock: Arc<dyn Clock>) -> Self {
        let mut timers = Self { group, clock, next: None, rest: false };
        timers.look();
        timers
    }

    /// A timer was set.
    pub(crate) fn set(&mut self, at: Timestamp) {
        self.next = Some(self.next.map_or(at, |next| next.min(at)));
    }

    /// Returns when the next timer is due, or it is time to look again.
    pub(crate) async fn due(&self) {
        let now = self.clock.wall();
        let until = self.next.map_or(SLEEP_MAX, |next| next.since(now)).min(SLEEP_MAX);
        tokio::time::sleep(if self.rest { until.max(REST) } else { until }).await;
    }

    /// Fires what is due.
    pub(crate) async fn fire(&mut self) {
        let before = self.next;
        if self.next.is_some_and(|next| next <= self.clock.wall()) {
            loop {
                match self.group.propose_here(Command::FireTimers).await {
                    Ok((Outcome::Fired { more: true }, _)) => {}
                    Ok(_) => break,
                    Err(error) => {
                        tracing::debug!(%error, "timers were not fired; trying again");
                        break;
                    }
                }
            }
        }
        self.look();
        self.rest = self.next.is_some() && self.next == before;
    }

    fn look(&mut self) {
        let from = Key::Timer(Timestamp(0), SessionId::default(), TimerKind::Deadline);
        let to = Key::Timer(Timestamp(u64::MAX), SessionId::default(), TimerKind::Deadline);
        let first = self.group.view().scan(&from, &to, 1).into_iter().next();
        self.next = match first {
            Some((Key::Timer(at, ..), _)) => Some(at),
            _ => None,
        };
    }
}
