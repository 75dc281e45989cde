//! The clients of a cluster under test.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use anyhow::Context as _;
use ids::Timestamp;
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use testkit::{
    Cluster,
    history::{Action, Fate, History},
    wait_until,
};
use tokio::task::{JoinHandle, JoinSet};

use super::Fault;
use crate::{report::Injected, scenario::Scenario};

/// A read shows all that was ever appended: more of them keep that short.
const REGISTERS: usize = 48;
const WORKERS: u64 = 3;
/// How long all nodes may read their rows.
const VERIFY_TIMEOUT: Duration = Duration::from_secs(60);
/// A call that takes longer has an unknown outcome.
const CALL_TIMEOUT: Duration = Duration::from_secs(8);
/// A client with a key that knows every node must succeed within this time, whatever happens to one of them.
const DEADLINE: Duration = Duration::from_secs(15);

/// How far a shard's time may be from that of this machine: it follows the agreed time at a tenth of real time, which
/// may be half a second from it.
const TIME_TOLERANCE_MS: u64 = 5_000;

const REGISTER: &str = "\
name: chaos-register
steps:
  - id: values
    loop:
      until: 'false'
      max_iterations: 10000
      steps:
        - {id: next, wait: {signal: append}}
";
/// Steps that ask a vendor and a worker outside.
const SESSION: &str = "\
name: chaos-work
retry: {max_attempts: 20, backoff: constant, delay: 50ms}
steps:
  - {id: first, agent: {role: architect, prompt: 'first of {{ input.n }}'}}
  - id: items
    map:
      items: '[1, 2]'
      steps:
        - {id: work, agent: {role: executor, prompt: 'item {{ item }} of {{ input.n }}'}}
  - {id: outside, timeout: 1200ms, task: {queue: q, input: input.n}}
  - {id: last, agent: {role: auditor, prompt: 'last of {{ input.n }}: {{ steps.first.output }}'}}
";

/// Steps that need nobody outside the cluster.
const SESSION_ALONE: &str = "\
name: chaos-work
steps:
  - {id: first, value: input.n}
  - id: items
    map:
      items: '[1, 2, 3]'
      steps:
        - {id: work, value: item}
  - {id: last, value: steps.first.output}
";

/// Where clients go.
pub(super) struct Target {
    pub(super) urls: Vec<String>,
    /// Where workers connect; nowhere if sessions are to need nobody outside.
    pub(super) grpc: Vec<String>,
    pub(super) token: Option<String>,
    /// Certificates to trust besides those of the system, as PEM.
    pub(super) ca: Option<Vec<u8>>,
}

impl Target {
    pub(super) fn of(cluster: &Cluster) -> Self {
        let grpc = cluster.members().into_iter().map(|number| cluster.grpc_url(number)).collect();
        Self { urls: cluster.urls(), grpc, token: cluster.token().map(str::to_owned), ca: None }
    }
}

/// What clients share.
pub(super) struct Load {
    pub(super) history: History,
    pub(super) registers: Vec<String>,
    seed: u64,
    /// Part of every key: runs against one cluster do not meet.
    unique: u64,
    token: Option<String>,
    http: reqwest::Client,
    urls: RwLock<Vec<String>>,
    /// Calls on their way, by the node that was chosen.
    calls: Mutex<BTreeMap<String, usize>>,
    /// Where workers connect.
    grpc: RwLock<Vec<String>>,
    /// Workers that were cut off in the middle of their tasks.
    pub(super) workers_cut_off: AtomicU64,
    stopping: AtomicBool,
    next_value: AtomicU64,
    /// The session that was acknowledged for each key.
    acknowledged: Mutex<BTreeMap<String, String>>,
    violations: Mutex<Vec<String>>,
    notes: Mutex<Vec<Injected>>,
    began: Timestamp,
}

/// The clock of this machine, by which that of its nodes is judged.
fn wall() -> Timestamp {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    Timestamp(u64::try_from(now.tv_sec).unwrap_or_default() * 1_000_000 + now.tv_nsec.unsigned_abs() / 1_000)
}

impl Load {
    pub(super) async fn begin(target: Target, seed: u64) -> anyhow::Result<Self> {
        // A connection a call: one that breaks with its node says nothing about the next call.
        let mut http = testkit::client(target.token.as_deref())?;
        for certificate in reqwest::Certificate::from_pem_bundle(&target.ca.unwrap_or_default())? {
            http = http.add_root_certificate(certificate);
        }
        let http = http.timeout(CALL_TIMEOUT).pool_max_idle_per_host(0).build()?;
        let mut load = Self {
            history: History::default(),
            registers: Vec::new(),
            seed,
            unique: rand::random(),
            token: target.token,
            http,
            urls: RwLock::new(target.urls),
            calls: Mutex::default(),
            grpc: RwLock::new(target.grpc),
            workers_cut_off: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
            next_value: AtomicU64::new(1),
            acknowledged: Mutex::default(),
            violations: Mutex::default(),
            notes: Mutex::default(),
            began: wall(),
        };
        let session =
            if load.grpc.read().is_ok_and(|grpc| grpc.is_empty()) { SESSION_ALONE } else { SESSION };
        for workflow in [REGISTER, session] {
            load.set_up("/v1/workflows", |request| request.body(workflow)).await?;
        }
        for register in 0..REGISTERS {
            let key = format!("register-{register}-{}", load.unique);
            let body = json!({"workflow": "chaos-register"});
            let made =
                load.set_up("/v1/sessions", |request| request.json(&body).header("idempotency-key", &key));
            load.registers.push(made.await?["id"].as_str().context("no id")?.to_owned());
        }
        Ok(load)
    }

    /// Sends what has to be there before clients begin, to one node after another until one has done it.
    async fn set_up(
        &self,
        path: &str,
        with: impl Fn(reqwest::RequestBuilder) -> reqwest::RequestBuilder,
    ) -> anyhow::Result<Value> {
        let (urls, mut last) = (self.urls(), String::new());
        let done = wait_until("the load to be set up", DEADLINE, async || {
            for url in &urls {
                match with(self.http.post(format!("{url}{path}"))).send().await {
                    Ok(answer) if answer.status().is_success() => return answer.json().await.ok(),
                    Ok(answer) => last = format!("{url}: {}", answer.text().await.unwrap_or_default()),
                    Err(error) => last = error.to_string(),
                }
            }
            None
        });
        done.await.with_context(|| last)
    }

    pub(super) fn run(self: Arc<Self>, scenario: &Scenario) -> Vec<JoinHandle<()>> {
        let Scenario { register_clients, session_clients, .. } = *scenario;
        let registers =
            (0..register_clients).map(|client| tokio::spawn(Arc::clone(&self).use_registers(client)));
        let registers: Vec<_> = registers.collect();
        let sessions = (0..session_clients)
            .map(|client| tokio::spawn(Arc::clone(&self).start_sessions(register_clients + client)));
        registers.into_iter().chain(sessions).collect()
    }

    /// Workers, until they are dropped: what was acknowledged needs them to the end.
    pub(super) fn employ(self: Arc<Self>, scenario: &Scenario) -> JoinSet<()> {
        let (from, to) = scenario.slow_task_ms;
        (0..WORKERS).map(|worker| Arc::clone(&self).work(worker, from..to)).collect()
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
    }

    pub(super) fn urls(&self) -> Vec<String> {
        self.urls.read().map(|urls| urls.clone()).unwrap_or_default()
    }

    /// A node is about to leave: clients are told, as a load balancer is, and what is on its way to it is answered.
    pub(super) async fn leave(&self, cluster: &Cluster, number: usize) {
        self.forget(cluster, number);
        let url = cluster.url(number);
        let answered =
            || self.calls.lock().is_ok_and(|calls| calls.get(&url).is_none_or(|count| *count == 0));
        // Whatever is not answered by then has an unknown outcome.
        let _ = wait_until("answers", CALL_TIMEOUT, async || answered().then_some(())).await;
    }

    /// Clients do not choose a node any more.
    pub(super) fn forget(&self, cluster: &Cluster, number: usize) {
        for (known, url) in [(&self.urls, cluster.url(number)), (&self.grpc, cluster.grpc_url(number))] {
            if let Ok(mut known) = known.write() {
                known.retain(|of| *of != url);
            }
        }
    }

    pub(super) fn enter(&self, cluster: &Cluster, number: usize) {
        for (known, url) in [(&self.urls, cluster.url(number)), (&self.grpc, cluster.grpc_url(number))] {
            if let Ok(mut known) = known.write()
                && !known.contains(&url)
            {
                known.push(url);
            }
        }
    }

    /// Writes down what was done to the cluster, from then until now.
    pub(super) fn note(&self, fault: Fault, from: Duration) {
        if let Ok(mut notes) = self.notes.lock() {
            notes.push(Injected {
                fault: format!("{fault:?}"),
                from_s: from.as_secs_f64(),
                to_s: self.history.now().as_secs_f64(),
            });
        }
    }

    pub(super) fn notes(&self) -> Vec<Injected> {
        self.notes.lock().map(|notes| notes.clone()).unwrap_or_default()
    }

    /// From when to when anything may have happened, by this machine's clock. `None` on a cluster that was there: it
    /// may have another.
    pub(super) fn times(&self) -> Option<(String, String)> {
        if self.grpc.read().is_ok_and(|grpc| grpc.is_empty()) {
            return None;
        }
        let to = wall().plus_millis(TIME_TOLERANCE_MS);
        let from = Timestamp(self.began.0.saturating_sub(TIME_TOLERANCE_MS * 1000));
        Some((from.to_string(), to.to_string()))
    }

    pub(super) fn acknowledged(&self) -> BTreeMap<String, String> {
        self.acknowledged.lock().map(|map| map.clone()).unwrap_or_default()
    }

    pub(super) fn violations(&self) -> Vec<String> {
        self.violations.lock().map(|list| list.clone()).unwrap_or_default()
    }

    pub(super) fn violation(&self, violation: String) {
        if let Ok(mut violations) = self.violations.lock() {
            violations.push(violation);
        }
    }

    /// Chooses a node for a call.
    fn choose(&self, random: &mut StdRng) -> Chosen<'_> {
        // Whoever makes a node leave comes before, or sees the call.
        let urls = self.urls.read().unwrap_or_else(PoisonError::into_inner);
        let url = urls[random.random_range(0..urls.len())].clone();
        if let Ok(mut calls) = self.calls.lock() {
            *calls.entry(url.clone()).or_default() += 1;
        }
        Chosen { load: self, url }
    }

    async fn use_registers(self: Arc<Self>, client: u64) {
        let mut random = StdRng::seed_from_u64(self.seed ^ client);
        while !self.stopping.load(Ordering::SeqCst) {
            let register = self.registers[random.random_range(0..self.registers.len())].clone();
            let Chosen { url, .. } = &self.choose(&mut random);
            let called = self.history.now();
            let (action, fate) = if random.random_bool(0.6) {
                let value = self.next_value.fetch_add(1, Ordering::Relaxed);
                (Action::Append(value), self.append(url, &register, value).await)
            } else {
                (Action::Read, self.read(url, &register, "").await)
            };
            self.history.record(client, &register, action, called, fate);
            tokio::time::sleep(Duration::from_millis(random.random_range(0..20))).await;
        }
    }

    /// Does the tasks of sessions, by one worker after another: most are cut off in the middle of what they do.
    async fn work(self: Arc<Self>, number: u64, slow_ms: std::ops::Range<u64>) {
        let mut random = StdRng::seed_from_u64(self.seed ^ (1_000 + number));
        loop {
            let options = worker::Options {
                endpoints: self.grpc.read().map(|urls| urls.clone()).unwrap_or_default(),
                name: format!("worker-{number}"),
                queues: vec!["q".into()],
                capacity: 4,
                ca: None,
                token: self.token.clone(),
            };
            let (quick, slow) = (random.random_range(1..80), random.random_range(slow_ms.clone()));
            let answer = move |task: worker::Task| async move {
                // Every attempt at some tasks takes long, so that answers which come late find the next one at work.
                let is_slow = task.session.bytes().last().is_some_and(|last| last % 4 == 0);
                tokio::time::sleep(Duration::from_millis(if is_slow { slow } else { quick })).await;
                // Who did it: the outcome must be that of the dispatch that counts.
                Ok(json!(task.id))
            };
            let life = Duration::from_millis(random.random_range(500..4_000));
            if tokio::time::timeout(life, worker::run(options, answer, std::future::pending())).await.is_err()
            {
                self.workers_cut_off.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    async fn append(&self, url: &str, register: &str, value: u64) -> Fate {
        let request = self.http.post(format!("{url}/v1/sessions/{register}/signal"));
        match request.json(&json!({"name": "append", "payload": value})).send().await {
            Ok(answer) => match fate_of(answer.status()) {
                None => Fate::Ok(Vec::new()),
                Some(fate) => {
                    fate(format!("{} {}", answer.status(), answer.text().await.unwrap_or_default()))
                }
            },
            Err(error) => fate_of_error(&error),
        }
    }

    /// Reads a register, page by page: it only grows, so what the last page shows is what was there then.
    pub(super) async fn read(&self, url: &str, register: &str, options: &str) -> Fate {
        let (mut values, mut next) = (Vec::new(), 0u64);
        loop {
            let path = format!("{url}/v1/sessions/{register}/events?from={next}{options}");
            let page: Value = match self.http.get(path).send().await {
                Ok(answer) if answer.status().is_success() => match answer.json().await {
                    Ok(page) => page,
                    Err(error) => return Fate::Unknown(error.to_string()),
                },
                Ok(answer) => return Fate::Unknown(answer.status().to_string()),
                Err(error) => return fate_of_error(&error),
            };
            let events = page["events"].as_array().cloned().unwrap_or_default();
            let signals = events.iter().filter(|event| event["type"] == "signal_received");
            values.extend(signals.filter_map(|event| event["data"]["payload"].as_u64()));
            next = page["next"].as_u64().unwrap_or(next);
            if events.len() < 500 {
                return Fate::Ok(values);
            }
        }
    }

    async fn start_sessions(self: Arc<Self>, client: u64) {
        let mut random = StdRng::seed_from_u64(self.seed ^ client);
        let mut n = 0;
        while !self.stopping.load(Ordering::SeqCst) {
            let key = format!("key-{client}-{n}-{}", self.unique);
            n += 1;
            let Some(id) = self.start_session(client, &key, &mut random).await else { continue };
            if let Ok(mut acknowledged) = self.acknowledged.lock() {
                acknowledged.insert(key, id.clone());
            }
            while !self.stopping.load(Ordering::SeqCst)
                && !self.has_ended(&self.choose(&mut random).url, &id).await
            {
                tokio::time::sleep(Duration::from_millis(30)).await;
            }
        }
    }

    /// Starts a session, asking one node after another under the same key until it is acknowledged.
    async fn start_session(&self, client: u64, key: &str, random: &mut StdRng) -> Option<String> {
        let began = self.history.now();
        let body = json!({"workflow": "chaos-work", "input": {"n": key}});
        loop {
            let (chosen, called) = (self.choose(random), self.history.now());
            let url = &chosen.url;
            let request = self.http.post(format!("{url}/v1/sessions")).header("idempotency-key", key);
            let (fate, id) = match request.json(&body).send().await {
                Ok(answer) => match fate_of(answer.status()) {
                    None => {
                        let body: Value = answer.json().await.unwrap_or_default();
                        (Fate::Ok(Vec::new()), body["id"].as_str().map(str::to_owned))
                    }
                    Some(fate) => {
                        let text = answer.text().await.unwrap_or_default();
                        (fate(text), None)
                    }
                },
                Err(error) => (fate_of_error(&error), None),
            };
            self.history.record(client, key, Action::Start(key.to_owned()), called, fate.clone());
            if id.is_some() {
                return id;
            }
            if self.history.now() - began > DEADLINE {
                self.violation(format!(
                    "client {client} did not succeed within {DEADLINE:?}: {key}: {fate:?}"
                ));
                return None;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    pub(super) async fn has_ended(&self, url: &str, id: &str) -> bool {
        let session = self.get(url, &format!("/v1/sessions/{id}?consistency=stale")).await;
        let status = session.map(|session| session["status"].as_str().unwrap_or_default().to_owned());
        status.is_ok_and(|status| ["completed", "failed", "canceled"].contains(&status.as_str()))
    }

    /// Whether all replicas are equal, and every stored row can be read; what the cluster says.
    pub(super) async fn verify(&self, url: &str) -> anyhow::Result<Value> {
        let request = self.http.post(format!("{url}/v1/cluster/verify")).timeout(VERIFY_TIMEOUT);
        let answer = request.json(&json!({"scrub": true})).send().await?;
        Ok(answer.error_for_status()?.json().await?)
    }

    /// Ends the registers, which would wait for ever.
    pub(super) async fn clean_up(&self) -> anyhow::Result<()> {
        for register in &self.registers {
            let url = self.urls().first().cloned().context("no node")?;
            let answer = self.http.post(format!("{url}/v1/sessions/{register}/cancel")).send().await?;
            answer.error_for_status()?;
        }
        Ok(())
    }

    pub(super) async fn get(&self, url: &str, path: &str) -> anyhow::Result<Value> {
        let answer = self.http.get(format!("{url}{path}")).send().await?;
        Ok(answer.error_for_status()?.json().await?)
    }
}

/// A node that was chosen for a call, until it is answered.
struct Chosen<'a> {
    load: &'a Load,
    url: String,
}

impl Drop for Chosen<'_> {
    fn drop(&mut self) {
        if let Ok(mut calls) = self.load.calls.lock()
            && let Some(count) = calls.get_mut(&self.url)
        {
            *count -= 1;
        }
    }
}

/// What a status says of a write; `None` for done.
fn fate_of(status: reqwest::StatusCode) -> Option<fn(String) -> Fate> {
    match status.as_u16() {
        200..300 => None,
        // Not proposed at all.
        400..500 | 507 => Some(Fate::Failed),
        _ => Some(Fate::Unknown),
    }
}

fn fate_of_error(error: &reqwest::Error) -> Fate {
    if error.is_connect() { Fate::Failed(error.to_string()) } else { Fate::Unknown(error.to_string()) }
}
