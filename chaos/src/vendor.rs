//! `vendor`: a map of 100 items against vendors that answer 429, hang and cut streams off. Everything finishes, and
//! every fault is in the events.

use std::time::Duration;

use anyhow::Context as _;
use providers::simulated;
use serde_json::json;
use testkit::{NodeProcess, checks, free_address, wait_until};

use crate::{
    Verdict,
    api::Api,
    crash::{counts, node_config},
    scratch::{self, keep_if_failed},
};

const ITEMS: usize = 100;
const FINISH_TIMEOUT: Duration = Duration::from_secs(180);
/// A hang is told after this long.
const FIRST_TOKEN_MS: u64 = 400;

fn workflow() -> String {
    let items: Vec<String> = (0..ITEMS).map(|item| item.to_string()).collect();
    format!(
        "name: vendor\nretry: {{max_attempts: 30, backoff: constant, delay: 100ms}}\nsteps:\n  - id: items\n    map:\n      \
         items: '[{}]'\n      parallel: 32\n      steps:\n        - {{id: work, agent: {{role: executor, prompt: \
         'write item {{{{ item }}}} at length: {}'}}}}\n",
        items.join(", "),
        "some words to answer with, ".repeat(40)
    )
}

/// Runs the scenario.
///
/// # Errors
///
/// The scenario itself failed: there is no verdict.
pub async fn run(seed: u64) -> anyhow::Result<Verdict> {
    let temp = scratch::directory("vendor")?;
    let faulty = |seed| simulated::Options {
        seed,
        latency_min_ms: 1,
        latency_max_ms: 20,
        rate_limit_rate: 0.15,
        hang_rate: 0.03,
        truncate_rate: 0.08,
        // So that any seed has all of them.
        each_within: 40,
        ..Default::default()
    };
    let first = simulated::serve(free_address()?, faulty(seed), Vec::new()).await?;
    let second = simulated::serve(free_address()?, faulty(seed ^ 0xabcd), Vec::new()).await?;
    let config = node_config(&[first.base_url(), second.base_url()], FIRST_TOKEN_MS);
    let node = NodeProcess::start(temp.path(), free_address()?, free_address()?, &config).await?;
    let api = Api::new(&node.url())?;
    api.apply(&workflow()).await?;
    let id = api.start("vendor", "only", &json!({})).await?;
    let status = wait_until("the end of the session", FINISH_TIMEOUT, async || {
        let session = api.get(&format!("/v1/sessions/{id}/describe")).await.ok()?;
        let status = session["status"].as_str()?.to_owned();
        (status != "running" && status != "waiting").then_some(status)
    })
    .await
    .with_context(|| node.log_tail())?;

    let events = api.events(&id).await?;
    let errors = checks::call_errors(&events);
    let (a, b) = (counts(&first).await?, counts(&second).await?);
    let mut violations = checks::one_outcome_a_step(&id, &events);
    violations.extend(checks::events_follow_one_another(&id, &events));
    if status != "completed" {
        violations.push(format!("the session is {status}"));
    }
    let done = events.iter().filter(|event| {
        event["type"] == "step_completed"
            && event["step"].as_str().is_some_and(|step| step.ends_with("/work"))
    });
    if done.count() != ITEMS {
        violations.push(format!("not all {ITEMS} items completed"));
    }
    // Each injected fault, and nothing else, is recorded as the failure of a call.
    let injected = [
        ("rate_limited", a.rate_limits + b.rate_limits),
        ("first_token_timeout", a.hangs + b.hangs),
        ("truncated", a.truncated + b.truncated),
    ];
    let mut lines = vec![format!("seed {seed}, session {id}: {status}")];
    for (code, count) in injected {
        let recorded = errors.get(code).copied().unwrap_or(0);
        lines.push(format!("{code}: injected {count}, recorded {recorded}"));
        if count == 0 || recorded != count {
            violations.push(format!("{code}: injected {count}, recorded {recorded}"));
        }
    }
    lines.push(format!("vendor calls {}", a.calls + b.calls));
    lines.push(format!("repeat with: make vendor-chaos SEED={seed}"));
    Ok(keep_if_failed(Verdict { lines, violations, kept: None }, temp))
}
