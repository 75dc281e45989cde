//! What comes in bulk must leave room for what is waited for: bytes that a node takes in a second, over all that send.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::{Instant, sleep_until};

/// A bound on bytes a second.
#[derive(Debug)]
pub struct Pace {
    bytes_per_second: u64,
    free_at: Mutex<Instant>,
}

impl Pace {
    /// So many bytes a second, at least one.
    #[must_use]
    pub fn new(bytes_per_second: u64) -> Self {
        Self { bytes_per_second: bytes_per_second.max(1), free_at: Mutex::new(Instant::now()) }
    }

    /// Waits for the turn of so many bytes: after all that came before.
    pub async fn take(&self, bytes: usize) {
        let nanos = u128::from(bytes as u64) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let turn = {
            let mut free_at = self.free_at.lock();
            let turn = (*free_at).max(Instant::now());
            *free_at = turn + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
            turn
        };
        sleep_until(turn).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn all_that_come_share_it() {
        let (pace, began) = (Pace::new(1_000), Instant::now());
        futures_util::future::join_all((0..4).map(|_| pace.take(500))).await;
        assert_eq!(began.elapsed(), Duration::from_millis(1_500), "the fourth waits for three");
        tokio::time::sleep(Duration::from_secs(9)).await;
        let later = Instant::now();
        pace.take(500).await;
        assert_eq!(
            later.elapsed(),
            Duration::ZERO,
            "what was not used is not saved up, and nobody waits for it"
        );
    }
}
