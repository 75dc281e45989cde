//! `crash`: kills a node with SIGKILL at seeded moments under load, and checks that nothing acknowledged is lost, no
//! outcome is doubled, and nothing that was committed is paid for again.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use providers::simulated::{self, Counts};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::json;
use testkit::{NodeProcess, checks, free_address, wait_until};

use crate::{
    Verdict,
    api::Api,
    scratch::{self, keep_if_failed},
};

const WORKFLOW: &str = "\
name: crash
retry: {max_attempts: 20, backoff: constant, delay: 50ms}
steps:
  - {id: first, agent: {role: architect, prompt: 'first of {{ input.n }}'}}
  - id: items
    map:
      items: '[1, 2]'
      steps:
        - {id: work, agent: {role: executor, prompt: 'item {{ item }} of {{ input.n }}'}}
  - {id: last, agent: {role: auditor, prompt: 'last of {{ input.n }}: {{ steps.first.output }}'}}
";
/// Sessions under way at once: a client starts the next when its last has ended.
const CLIENTS: u64 = 24;
/// How long everything that was acknowledged may take to end after the last kill.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);

/// What to do.
#[derive(Debug, Clone)]
pub struct Options {
    /// Chooses the moments.
    pub seed: u64,
    /// How often to kill.
    pub kills: u32,
}

/// The configuration of a node that asks vendors at these URLs, in this order.
#[must_use]
pub fn node_config(vendors: &[String], first_token_timeout_ms: u64) -> String {
    let mut config = String::from(
        "[log]\nlevel = \"warn,consensus::net::service=info\"\n[node]\nshards = 4\ndisk_free_min_mib = 1\nflush_seconds = 1\nlog_entries_kept = 20\n",
    );
    let links: Vec<String> = (0..vendors.len()).map(|vendor| format!("\"v{vendor}/m\"")).collect();
    config.push_str(&format!("[roles]\ndefault = [{}]\n", links.join(", ")));
    for (vendor, url) in vendors.iter().enumerate() {
        config.push_str(&format!(
            "[providers.v{vendor}]\nwire = \"openai\"\nbase_url = \"{url}\"\nconcurrency = 64\nsimulated = true\n\
             first_token_timeout_ms = {first_token_timeout_ms}\nidle_timeout_ms = {first_token_timeout_ms}\n"
        ));
    }
    config
}

/// What a vendor has counted.
///
/// # Errors
///
/// It does not answer.
pub async fn counts(vendor: &simulated::Server) -> anyhow::Result<Counts> {
    Ok(reqwest::get(format!("http://{}/counts", vendor.address())).await?.json().await?)
}

/// Runs the scenario.
///
/// # Errors
///
/// The scenario itself failed: there is no verdict.
pub async fn run(options: &Options) -> anyhow::Result<Verdict> {
    let temp = scratch::directory("crash")?;
    let vendor = simulated::serve(
        free_address()?,
        simulated::Options {
            seed: options.seed,
            latency_min_ms: 2,
            latency_max_ms: 60,
            ..Default::default()
        },
        Vec::new(),
    )
    .await?;
    let config = node_config(&[vendor.base_url()], 5_000);
    let (http, grpc) = (free_address()?, free_address()?);
    let mut node = NodeProcess::start(temp.path(), http, grpc, &config).await?;
    let api = Api::new(&node.url())?;
    api.apply(WORKFLOW).await?;

    let load = Arc::new(Load::default());
    let clients: Vec<_> =
        (0..CLIENTS).map(|client| tokio::spawn(Arc::clone(&load).client(client, api.clone()))).collect();
    let mut random = StdRng::seed_from_u64(options.seed);
    for _ in 0..options.kills {
        tokio::time::sleep(Duration::from_millis(random.random_range(20..400))).await;
        node.kill()?;
        node = NodeProcess::start(temp.path(), http, grpc, &config).await?;
    }
    load.stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await?;
    }
    let verdict = judge(&api, &load, &vendor, options).await;
    let verdict = verdict.with_context(|| node.log_tail())?;
    Ok(keep_if_failed(verdict, temp))
}

#[derive(Default)]
struct Load {
    stop: AtomicBool,
    unknown: AtomicU64,
    /// The session that was acknowledged for each key.
    acknowledged: Mutex<BTreeMap<String, String>>,
    violations: Mutex<Vec<String>>,
}

impl Load {
    async fn client(self: Arc<Self>, client: u64, api: Api) {
        let mut n = 0;
        while !self.stop.load(Ordering::SeqCst) {
            let key = format!("key-{client}-{n}");
            let input = json!({"n": format!("{client}.{n}")});
            n += 1;
            // The outcome of a call that failed is unknown: the same key is asked again until it is known.
            let id = loop {
                match api.start("crash", &key, &input).await {
                    Ok(id) => break id,
                    Err(_) => {
                        self.unknown.fetch_add(1, Ordering::Relaxed);
                        tokio::time::sleep(Duration::from_millis(20)).await;
                    }
                }
            };
            // Every fourth acknowledged start is repeated: it must be the same session.
            if n % 4 == 0
                && let Ok(again) = api.start("crash", &key, &input).await
                && again != id
            {
                self.note(format!("{key}: started {id}, then {again}"));
            }
            if let Ok(mut acknowledged) = self.acknowledged.lock() {
                acknowledged.insert(key, id.clone());
            }
            while !self.stop.load(Ordering::SeqCst) && !has_ended(&api, &id).await {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }

    fn note(&self, violation: String) {
        if let Ok(mut violations) = self.violations.lock() {
            violations.push(violation);
        }
    }
}

async fn has_ended(api: &Api, id: &str) -> bool {
    let session = api.get(&format!("/v1/sessions/{id}?consistency=stale")).await.unwrap_or_default();
    ["completed", "failed", "canceled"].contains(&session["status"].as_str().unwrap_or_default())
}

async fn judge(
    api: &Api,
    load: &Load,
    vendor: &simulated::Server,
    options: &Options,
) -> anyhow::Result<Verdict> {
    let acknowledged = load.acknowledged.lock().map(|map| map.clone()).unwrap_or_default();
    let mut violations = load.violations.lock().map(|list| list.clone()).unwrap_or_default();
    let (mut lost, mut finished, mut double) = (0u64, 0u64, 0u64);
    let (mut calls, mut redispatched) = (0, 0);
    for (key, id) in &acknowledged {
        let path = format!("/v1/sessions/{id}?consistency=stale");
        let ended = wait_until(&format!("the end of {id} ({key})"), SETTLE_TIMEOUT, async || {
            if !has_ended(api, id).await {
                return None;
            }
            api.get(&path).await.ok()?["status"].as_str().map(str::to_owned)
        })
        .await;
        match ended {
            Ok(status) if status == "completed" => finished += 1,
            Ok(status) => violations.push(format!("{id}: {status}")),
            Err(error) => {
                lost += 1;
                violations.push(format!("{error}"));
                continue;
            }
        }
        let events = api.events(id).await?;
        violations.extend(checks::events_follow_one_another(id, &events));
        violations.extend(checks::dispatches_rise(id, &events));
        violations.extend(checks::ends_once(id, &events));
        let doubled = checks::one_outcome_a_step(id, &events);
        double += doubled.len() as u64;
        violations.extend(doubled);
        let (of_calls, of_redispatches) = checks::calls_and_redispatches(&events);
        calls += of_calls;
        redispatched += of_redispatches;
        let audit = api.get(&format!("/v1/sessions/{id}/audit")).await?;
        if audit["intact"] != true {
            violations.push(format!("{id}: broken hash chain: {audit}"));
        }
    }
    // Sessions whose start was never acknowledged may exist as well: their calls count too.
    let (mut cursor, mut unacknowledged) = (String::new(), 0u64);
    let known: std::collections::BTreeSet<&String> = acknowledged.values().collect();
    loop {
        let page = api.get(&format!("/v1/sessions?limit=500{cursor}")).await?;
        for session in page["sessions"].as_array().into_iter().flatten() {
            let id = session["id"].as_str().unwrap_or_default().to_owned();
            if !known.contains(&id) {
                unacknowledged += 1;
                let (of_calls, of_redispatches) = checks::calls_and_redispatches(&api.events(&id).await?);
                calls += of_calls;
                redispatched += of_redispatches;
            }
        }
        match page["next_cursor"].as_str() {
            Some(next) => cursor = format!("&cursor={next}"),
            None => break,
        }
    }
    let vendor_calls = counts(vendor).await?.calls;
    if vendor_calls > calls + redispatched {
        violations.push(format!(
            "{vendor_calls} calls of the vendor, but only {calls} committed and {redispatched} in flight at kills"
        ));
    }
    if acknowledged.is_empty() || (options.kills > 5 && redispatched == 0) {
        violations
            .push("the faults had no effect: nothing acknowledged, or nothing in flight at any kill".into());
    }
    let lines = vec![
        format!("seed {}, kills {}", options.seed, options.kills),
        format!("acknowledged {}", acknowledged.len()),
        format!("unknown calls {} (repeated until known)", load.unknown.load(Ordering::Relaxed)),
        format!("sessions of unacknowledged starts {unacknowledged}"),
        format!("finished {finished}"),
        format!("lost {lost}"),
        format!("double outcomes {double}"),
        format!("vendor calls {vendor_calls} <= {calls} committed + {redispatched} in flight at kills"),
        format!("repeat with: make crash SEED={} KILLS={}", options.seed, options.kills),
    ];
    Ok(Verdict { lines, violations, kept: None })
}
