//! Clients in a closed loop, of whom each calls again once it is answered; and calls by a schedule, whatever becomes of
//! those before.

use std::{future::Future, time::Duration};

use hdrhistogram::Histogram;
use tokio::{task::JoinSet, time::Instant};

/// Calls of a schedule that may wait for their answers. More, and the schedule is beyond what is measured.
const WAITING_MAX: usize = 20_000;

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

/// So many calls a second for so long; each takes from the moment at which it was due. `call` is told its number.
///
/// # Errors
///
/// The first call that fails, or more wait than the schedule is good for.
pub(crate) async fn open<F, C>(per_second: f64, seconds: u64, call: F) -> anyhow::Result<Driven>
where
    F: Fn(usize) -> C + Clone + Send + 'static,
    C: Future<Output = anyhow::Result<()>> + Send + 'static,
{
    let begin = Instant::now();
    let count = (0..)
        .take_while(|number| f64::from(*number) / per_second < Duration::from_secs(seconds).as_secs_f64());
    let (mut tasks, mut took) = (JoinSet::new(), Histogram::<u64>::new(3)?);
    for number in count {
        let due = begin + Duration::from_secs_f64(f64::from(number) / per_second);
        tokio::time::sleep_until(due).await;
        anyhow::ensure!(
            tasks.len() < WAITING_MAX,
            "{WAITING_MAX} calls wait: {per_second:.0} a second are too many"
        );
        let answered = call(usize::try_from(number)?);
        tasks.spawn(async move {
            answered.await?;
            anyhow::Ok(u64::try_from(due.elapsed().as_micros())?)
        });
        while let Some(ended) = tasks.try_join_next() {
            took.record(ended??)?;
        }
    }
    while let Some(ended) = tasks.join_next().await {
        took.record(ended??)?;
    }
    Ok(Driven { per_second, took })
}
