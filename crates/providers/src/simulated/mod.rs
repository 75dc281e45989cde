//! A simulated vendor: real HTTP in the OpenAI-compatible and the Anthropic wire format, streaming too, with seeded
//! latency, errors, 429s, hangs and truncated streams, and a counter of calls.
//!
//! It knows nothing but the request: a reply to a request with a JSON Schema is built from the schema and the words
//! of the request, any other reply quotes the request. The same request and seed give the same reply; faults are
//! drawn from the seed, the request and how often it was made.

mod reply;
mod wire;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use axum::serve::ListenerExt as _;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use tokio::net::TcpListener;

/// How the vendor behaves. Rates are shares of calls between 0 and 1.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Options {
    /// Chooses replies and faults.
    pub seed: u64,
    /// The shortest time to the first token, in milliseconds.
    pub latency_min_ms: u64,
    /// The longest time to the first token, in milliseconds.
    pub latency_max_ms: u64,
    /// Calls answered with 500.
    pub error_rate: f64,
    /// Calls answered with 429.
    pub rate_limit_rate: f64,
    /// Calls never answered.
    pub hang_rate: f64,
    /// Streams cut off in the middle.
    pub truncate_rate: f64,
    /// Replies to a request with a schema that are not JSON.
    pub malformed_rate: f64,
    /// Booleans of made-up JSON that are true.
    pub true_rate: f64,
    /// Each kind of fault whose rate is not 0 comes at least once within so many calls, at least 5; 0 leaves it to
    /// chance.
    pub each_within: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            seed: 1,
            latency_min_ms: 5,
            latency_max_ms: 40,
            error_rate: 0.0,
            rate_limit_rate: 0.0,
            hang_rate: 0.0,
            truncate_rate: 0.0,
            malformed_rate: 0.0,
            true_rate: 0.8,
            each_within: 0,
        }
    }
}

/// A reply that is given, instead of one that is made up: the first rule whose text is part of the request decides.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Rule {
    /// What the last message must contain.
    pub contains: String,
    /// The reply.
    pub reply: String,
}

/// What the vendor has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counts {
    /// Requests.
    pub calls: u64,
    /// Of those, answered in full.
    pub completed: u64,
    /// Answered with 500 or 503.
    pub errors: u64,
    /// Answered with 429.
    pub rate_limits: u64,
    /// Never answered.
    pub hangs: u64,
    /// Cut off.
    pub truncated: u64,
}

#[derive(Default)]
struct Counters {
    calls: AtomicU64,
    completed: AtomicU64,
    errors: AtomicU64,
    rate_limits: AtomicU64,
    hangs: AtomicU64,
    truncated: AtomicU64,
}

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    Error,
    RateLimit,
    Hang,
    Truncate,
    Malformed,
}

/// How a vendor is out of order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outage {
    /// Every call is answered with 503.
    Refuses,
    /// No call is answered.
    Hangs,
}

struct Vendor {
    options: Options,
    outage: Arc<Mutex<Option<Outage>>>,
    rules: Vec<Rule>,
    counters: Counters,
    /// How often each request was made, by its hash: a repetition may fare otherwise.
    seen: Mutex<HashMap<u64, u64>>,
    /// Calls whose fate was drawn.
    fates: AtomicU64,
}

/// A running vendor. It stops when this is dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    outage: Arc<Mutex<Option<Outage>>>,
    task: tokio::task::JoinHandle<()>,
}

impl Server {
    /// The URL before `chat/completions` or `messages`.
    #[must_use]
    pub fn base_url(&self) -> String {
        format!("http://{}/v1/", self.address)
    }

    /// Where it listens. `GET /counts` answers what it has counted.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes it out of order, or puts it back. Counted as errors and hangs.
    pub fn set_outage(&self, outage: Option<Outage>) {
        *self.outage.lock() = outage;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Starts a vendor.
///
/// # Errors
///
/// The address can not be bound.
pub async fn serve(address: SocketAddr, options: Options, rules: Vec<Rule>) -> std::io::Result<Server> {
    let listener = TcpListener::bind(address).await?;
    let address = listener.local_addr()?;
    let outage = Arc::new(Mutex::new(None));
    let vendor = Arc::new(Vendor {
        options,
        outage: Arc::clone(&outage),
        rules,
        counters: Counters::default(),
        seen: Mutex::new(HashMap::new()),
        fates: AtomicU64::new(0),
    });
    let listener = listener.tap_io(|stream| {
        // A stream that is gone already fails when it is read.
        let _ = stream.set_nodelay(true);
    });
    let task = tokio::spawn(async move {
        if let Err(error) = axum::serve(listener, wire::routes(vendor)).await {
            tracing::error!(%error, "the simulated vendor stopped");
        }
    });
    Ok(Server { address, outage, task })
}

impl Vendor {
    fn counts(&self) -> Counts {
        let read = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            calls: read(&self.counters.calls),
            completed: read(&self.counters.completed),
            errors: read(&self.counters.errors),
            rate_limits: read(&self.counters.rate_limits),
            hangs: read(&self.counters.hangs),
            truncated: read(&self.counters.truncated),
        }
    }

    /// Draws the fate of a call: how long it takes, and what goes wrong.
    fn fate(&self, request_hash: u64) -> (Duration, Fault) {
        let times = {
            let mut seen = self.seen.lock();
            // Bounded: what is forgotten starts over.
            if seen.len() > 100_000 {
                seen.clear();
            }
            let times = seen.entry(request_hash).or_insert(0);
            *times += 1;
            *times
        };
        let mut random = reply::Random::new(self.options.seed ^ request_hash.rotate_left(17) ^ times);
        let span = self.options.latency_max_ms.saturating_sub(self.options.latency_min_ms);
        let latency = self.options.latency_min_ms + if span == 0 { 0 } else { random.below(span + 1) };
        let rates = [
            (self.options.error_rate, Fault::Error),
            (self.options.rate_limit_rate, Fault::RateLimit),
            (self.options.hang_rate, Fault::Hang),
            (self.options.truncate_rate, Fault::Truncate),
            (self.options.malformed_rate, Fault::Malformed),
        ];
        let number = self.fates.fetch_add(1, Ordering::Relaxed);
        for (place, (rate, fault)) in (0u64..).zip(rates) {
            // Kinds have places of their own, which the seed chooses.
            let kinds = rates.len() as u64;
            let turns = self.options.each_within / kinds;
            let turn = reply::Random::new(self.options.seed ^ place).below(turns.max(1));
            if turns > 0 && rate > 0.0 && number == turn * kinds + place {
                return (Duration::from_millis(latency), fault);
            }
        }
        let mut draw = random.share();
        for (rate, fault) in rates {
            if draw < rate {
                return (Duration::from_millis(latency), fault);
            }
            draw -= rate;
        }
        (Duration::from_millis(latency), Fault::None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_fault_comes_within_so_many_calls() {
        for seed in 0..200 {
            let rate = 1e-9;
            let options = Options {
                seed,
                error_rate: rate,
                rate_limit_rate: rate,
                hang_rate: rate,
                truncate_rate: rate,
                each_within: 50,
                ..Options::default()
            };
            let vendor = Vendor {
                options,
                outage: Arc::default(),
                rules: Vec::new(),
                counters: Counters::default(),
                seen: Mutex::default(),
                fates: AtomicU64::new(0),
            };
            let fates: Vec<Fault> = (0..50).map(|request| vendor.fate(request).1).collect();
            for fault in [Fault::Error, Fault::RateLimit, Fault::Hang, Fault::Truncate] {
                let count = fates.iter().filter(|of| **of == fault).count();
                assert_eq!(count, 1, "seed {seed}: {fault:?}: {fates:?}");
            }
            assert!(!fates.contains(&Fault::Malformed), "its rate is 0");
        }
    }
}
