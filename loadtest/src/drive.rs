//! Clients in a closed loop: each calls again once it is answered.

use std::{future::Future, time::Duration};

use hdrhistogram::Histogram;
use tokio::{task::JoinSet, time::Instant};

/// Calls before the ones that count.
const WARM_UP: Duration = Duration::from_secs(1);

/// What came of a load.
pub(crate) struct Driven {
    /// Calls a second.
    pub(crate) per_second: f64,
    /// How long they took, in microseconds.
    pub(crate) took: Histogram<u64>,
}

impl Driven {
    /// The time that so many of a hundred calls took at most, in milliseconds.
    #[expect(clippy::cast_precision_loss, reason = "microseconds of a call")]
    pub(crate) fn percentile_ms(&self, percentile: f64) -> f64 {
        self.took.value_at_quantile(percentile / 100.0) as f64 / 1_000.0
    }
}

/// So many clients for so long. `call` is told the client's number, and the number of its call.
///
/// # Errors
///
/// The first call that fails: figures of a load in which calls fail say nothing.
pub(crate) async fn closed<F, C>(clients: usize, seconds: u64, call: F) -> anyhow::Result<Driven>
where
    F: Fn(usize, u64) -> C + Clone + Send + 'static,
    C: Future<Output = anyhow::Result<()>> + Send,
{
    let begin = Instant::now() + WARM_UP;
    let end = begin + Duration::from_secs(seconds);
    let mut tasks = JoinSet::new();
    for client in 0..clients {
        let call = call.clone();
        tasks.spawn(async move {
            let mut took = Histogram::<u64>::new(3)?;
            for number in 0u64.. {
                let started = Instant::now();
                if started >= end {
                    break;
                }
                call(client, number).await?;
                let ended = Instant::now();
                if (begin..end).contains(&ended) {
                    took.record(u64::try_from((ended - started).as_micros())?)?;
                }
            }
            anyhow::Ok(took)
        });
    }
    let mut took = Histogram::<u64>::new(3)?;
    while let Some(ended) = tasks.join_next().await {
        took.add(ended??)?;
    }
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let per_second = took.len() as f64 / seconds as f64;
    Ok(Driven { per_second, took })
}
