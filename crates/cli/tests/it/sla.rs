//! What the system says of its service levels, against what its event logs say.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
};

use axum::http::{HeaderMap, StatusCode};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use chaos::api::Api;
use providers::simulated;
use serde_json::{Value, json};
use testkit::{Cluster, Hosts, Loopback, Place, binary, free_address, wait_until};

use crate::fixture::PATIENCE;

const WORKFLOW: &str = "\
name: measured
steps:
  - {id: write, agent: {role: executor, prompt: 'write {{ input }}'}}
  - {id: check, agent: {role: auditor, prompt: 'check {{ steps.write.output }}'}}
";
/// Promises: one that the slow vendor breaks, and one that holds.
const OBJECTIVES: &str = "\
[[objectives]]
name = \"audit\"
indicator = \"agent_response\"
role = \"auditor\"
statistic = \"p95\"
target = \"60ms\"

[[objectives]]
name = \"writing\"
indicator = \"agent_response\"
role = \"executor\"
statistic = \"p50\"
target = \"20s\"
";
/// When somebody is told: of the promise that is broken, and of a node that is down.
const ALERTS: &str = "\
[[alerts]]
name = \"slow audits\"
when = \"agent_response{role=auditor}.p95 > 60ms over 5m for 1s\"
severity = \"warning\"
action = \"ask the vendor\"

[[alerts]]
name = \"node down\"
when = \"nodes_down > 0\"
severity = \"critical\"
";
/// That of the objective, as it is spent.
const BURN: &str = "audit: budget burns 14.4 times over 1h";
const SECRET: &str = "a secret of the test";
const SESSIONS: usize = 40;

/// Microseconds of the day.
fn micros(time: &Value) -> i64 {
    let text = time.as_str().unwrap();
    let clock = text.split_once('T').unwrap().1.trim_end_matches('Z');
    let mut parts = clock.splitn(3, ':');
    let (hours, minutes) = (parts.next().unwrap(), parts.next().unwrap());
    let (seconds, fraction) = parts.next().unwrap().split_once('.').unwrap();
    let number = |text: &str| text.parse::<i64>().unwrap();
    let whole = (number(hours) * 60 + number(minutes)) * 60 + number(seconds);
    whole * 1_000_000 + number(&format!("{fraction:0<6}")[..6])
}

fn took(from: &Value, to: &Value) -> u64 {
    u64::try_from((micros(to) - micros(from)).rem_euclid(86_400_000_000)).unwrap()
}

/// What the event logs say: durations in microseconds, by role, and of whole sessions.
async fn from_events(api: &Api, sessions: &[String]) -> BTreeMap<&'static str, Vec<u64>> {
    let mut durations: BTreeMap<&'static str, Vec<u64>> = BTreeMap::new();
    for id in sessions {
        let page = api.get(&format!("/v1/sessions/{id}/events?limit=500")).await.unwrap();
        let events = page["events"].as_array().unwrap();
        for event in events {
            let name = match (event["type"].as_str().unwrap(), event["data"]["report"]["provider"].as_str()) {
                ("step_completed", Some("v0")) => "executor",
                ("step_completed", Some("v1")) => "auditor",
                _ => continue,
            };
            durations.entry(name).or_default().push(took(&event["data"]["started_at"], &event["at"]));
        }
        durations.entry("sessions").or_default().push(took(&events[0]["at"], &events.last().unwrap()["at"]));
    }
    durations.values_mut().for_each(|of| of.sort_unstable());
    durations
}

fn percentile(sorted: &[u64], percent: usize) -> f64 {
    let rank = (sorted.len() * percent).div_ceil(100);
    u32::try_from(sorted[rank - 1]).map(f64::from).unwrap() / 1_000.0
}

fn is_close(said: &Value, computed: f64) -> bool {
    let said = said.as_f64().unwrap();
    (said - computed).abs() <= computed / 1_000.0
}

fn find<'a>(list: &'a Value, field: &str, value: &str) -> &'a Value {
    list.as_array().unwrap().iter().find(|of| of[field] == value).unwrap_or_else(|| panic!("{value}: {list}"))
}

/// A node says that the alert fires and was told, and what it says now is what the event logs say; its metrics have as
/// many late audits as there are.
async fn breach_is_known(api: &Api, audits: &[u64]) {
    let late = audits.iter().filter(|took| **took > 60_000).count();
    let alert = wait_until("the alert to be known", PATIENCE, async || {
        let list = api.get("/v1/alerts").await.ok()?;
        let alert = find(&list["alerts"], "alert", "slow audits").clone();
        (alert["notified"] == true).then_some(alert)
    });
    let alert = alert.await.unwrap();
    assert_eq!((&alert["state"], &alert["severity"]), (&json!("firing"), &json!("warning")), "{alert}");
    let said = alert["now"].as_str().and_then(|now| now.strip_suffix(" ms")?.parse::<f64>().ok());
    assert!(is_close(&json!(said), percentile(audits, 95)), "{} in {alert}", percentile(audits, 95));
    let list = api.get("/v1/alerts").await.unwrap();
    let burn = find(&list["alerts"], "alert", BURN);
    let share = burn["now"].as_str().and_then(|now| {
        let (share, of) = now.split_once(" % of ")?;
        Some((share.parse::<f64>().ok()?, of.split_once(' ')?.0.parse::<usize>().ok()?))
    });
    let percent =
        100.0 * f64::from(u32::try_from(late).unwrap()) / f64::from(u32::try_from(SESSIONS).unwrap());
    assert!(share.is_some_and(|(share, of)| of == SESSIONS && (share - percent).abs() < 1e-3), "{burn}");
    let metrics = reqwest::get(api.url("/metrics")).await.unwrap().text().await.unwrap();
    let counted = |le: &str| {
        let ends = format!("role=\"auditor\",provider=\"v1\",le=\"{le}\"}} ");
        let line =
            metrics.lines().find(|line| line.starts_with("orchestra_agent_response") && line.contains(&ends));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<usize>().ok())
            .unwrap_or_else(|| panic!("{metrics}"))
    };
    assert_eq!((counted("0.06"), counted("+Inf")), (SESSIONS - late, SESSIONS));
    let firing = "orchestra_alert{rule=\"slow audits\",severity=\"warning\",state=\"firing\"} 1";
    assert!(metrics.lines().any(|line| line == firing), "{metrics}");
}

/// As many audits are scraped from every node.
async fn scraped(prometheus: &Prometheus, nodes: usize, audits: usize) {
    let query = "query?query=orchestra_agent_response_seconds_count{role=%22auditor%22}";
    let scraped = async || {
        let counted = prometheus.ask(query).await?["result"].as_array()?.clone();
        let is_all = |of: &Value| of["value"][1] == *audits.to_string();
        (counted.len() == nodes && counted.iter().all(is_all)).then_some(())
    };
    prometheus.until(&format!("{audits} audits to be scraped from every node"), scraped).await;
}

/// A Prometheus has scraped as many audits from every node as there are, and the exported rule fires in it, once.
async fn prometheus_knows(prometheus: &Prometheus, nodes: usize) {
    scraped(prometheus, nodes, SESSIONS).await;
    let fires = async || {
        let alerts = prometheus.ask("alerts").await?["alerts"].as_array()?.clone();
        let of_rule = |of: &&Value| of["labels"]["rule"] == "slow audits" && of["state"] == "firing";
        Some(alerts.iter().filter(of_rule).count()).filter(|count| *count > 0)
    };
    assert_eq!(prometheus.until("the rule to fire in it", fires).await, 1);
}

/// The command line says the same, in each of its formats, and by its exit code.
fn command_line_knows(url: &str) {
    let sla = |args: &[&str]| {
        let output =
            Command::new(binary().unwrap()).arg("sla").args(args).args(["--url", url]).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let line_of = |said: &str, start: &str| {
        let line = said.lines().map(str::trim_start).find(|line| line.starts_with(start));
        line.unwrap_or_else(|| panic!("{start:?}: {said}")).to_owned()
    };
    let (code, said, _) = sla(&["report"]);
    assert_eq!(code, Some(4), "a promise is broken: {said}");
    assert!(line_of(&said, "audit ").contains("breached"), "{said}");
    assert!(line_of(&said, "writing ").contains("met"), "{said}");
    let (code, said, _) = sla(&["report", "--window", "1h", "--output", "json"]);
    let report: Value = serde_json::from_str(&said).unwrap();
    let audit = find(&report["objectives"], "name", "audit");
    assert_eq!((code, &audit["window"], &audit["n"]), (Some(4), &json!("1h"), &json!(SESSIONS)), "{audit}");
    let (code, said, _) = sla(&["report", "--output", "markdown"]);
    assert_eq!(code, Some(4));
    assert!(line_of(&said, "| audit ").contains("| breached "), "{said}");
    let (code, _, said) = sla(&["report", "--window", "2h"]);
    assert!(code != Some(0) && code != Some(4) && said.contains("24h"), "{code:?}: {said}");
    let (code, said, _) = sla(&["alerts", "--active"]);
    assert_eq!(code, Some(4), "an alert fires: {said}");
    assert!(line_of(&said, "slow audits ").contains("firing"), "{said}");
    assert!(!said.contains("node down"), "it is not active: {said}");
    assert!(sla(&["alerts"]).1.contains("node down"));
    let (code, said, _) = sla(&["rules"]);
    assert!(code == Some(0) && said.starts_with("groups:") && said.contains("audit"), "{code:?}: {said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn service_levels_are_those_of_the_event_logs_on_every_node() {
    let temp = tempfile::tempdir().unwrap();
    let vendor = async |latency_min_ms, latency_max_ms| {
        let options = simulated::Options { latency_min_ms, latency_max_ms, ..Default::default() };
        simulated::serve(free_address().unwrap(), options, vec![]).await.unwrap()
    };
    let (quick, slow) = (vendor(1, 20).await, vendor(80, 200).await);
    let objectives = temp.path().join("objectives.toml");
    std::fs::write(&objectives, OBJECTIVES).unwrap();
    let (alerts, secret) = (temp.path().join("alerts.toml"), temp.path().join("secret"));
    std::fs::write(&alerts, ALERTS).unwrap();
    let pager = Pager::start().await;
    let config = chaos::crash::node_config(&[quick.base_url(), slow.base_url()], 30_000)
        .replace("[roles]\n", "[roles]\nexecutor = [\"v0/m\"]\nauditor = [\"v1/m\"]\n")
        + &format!("[sla]\nobjectives = {:?}\n", objectives.display().to_string())
        + &format!("[alerts]\nrules = {:?}\nevery_seconds = 1\n", alerts.display().to_string())
        + &format!("webhook = {{url = \"http://{}\", secret_env = \"TEST_WEBHOOK\"}}\n", pager.address);
    std::fs::write(&secret, SECRET).unwrap();
    let places = Box::new(WithSecret(secret.display().to_string()));
    let mut cluster = Cluster::start_on(places, &temp.path().join("nodes"), 3, &config).await.unwrap();
    let apis: Vec<Api> = cluster.urls().iter().map(|url| Api::new(url).unwrap()).collect();
    apis[0].apply(WORKFLOW).await.unwrap();
    let prometheus = Prometheus::start(temp.path().join("prometheus"), &cluster.urls()).await;
    let mut sessions = Vec::new();
    for number in 0..SESSIONS {
        let api = &apis[number % apis.len()];
        sessions.push(api.start("measured", &format!("key-{number}"), &json!(number)).await.unwrap());
        // What it has not seen grow, it does not count.
        if let (0, Some(prometheus)) = (number, &prometheus) {
            scraped(prometheus, apis.len(), 1).await;
        }
    }
    for id in &sessions {
        let ended = wait_until("a session's end", PATIENCE, async || {
            (apis[0].get(&format!("/v1/sessions/{id}")).await.ok()?["status"] == "completed").then_some(())
        });
        ended.await.unwrap_or_else(|error| panic!("{error}\n{}", cluster.log_tails()));
    }
    let computed = from_events(&apis[0], &sessions).await;
    let agrees = |report: &Value| {
        let audit = find(&report["objectives"], "name", "audit");
        let writing = find(&report["objectives"], "name", "writing");
        let whole = find(&report["objectives"], "name", "session completion");
        for (outcome, durations) in
            [(audit, &computed["auditor"]), (writing, &computed["executor"]), (whole, &computed["sessions"])]
        {
            assert_eq!(outcome["n"], durations.len(), "{outcome}");
            assert_eq!(durations.len(), SESSIONS);
            for (name, percent) in [("p50", 50), ("p95", 95), ("p99", 99)] {
                let expected = percentile(durations, percent);
                assert!(is_close(&outcome[name], expected), "{name}: {expected} in {outcome}");
            }
        }
        let late = computed["auditor"].iter().filter(|took| **took > 60_000).count();
        let within =
            f64::from(u32::try_from(SESSIONS - late).unwrap()) / f64::from(u32::try_from(SESSIONS).unwrap());
        assert_eq!((audit["state"].as_str(), audit["compliance"].as_f64()), (Some("breached"), Some(within)));
        assert_eq!(writing["state"], "met", "{writing}");
        assert_eq!(find(&report["objectives"], "name", "cache hits")["state"], "insufficient_data");
    };
    for api in &apis {
        let report = api.get("/v1/sla").await.unwrap();
        agrees(&report);
        assert_eq!(report["nodes_missing"], json!([]));
        let uptime = find(&report["objectives"], "name", "uptime");
        assert!(uptime["n"].as_u64().unwrap() > 0, "{uptime}");
    }
    // Every node says so in its metrics, and that somebody was told; who does not answer well is told again.
    pager.until_told(&cluster, "slow audits", "firing").await;
    pager.until_told(&cluster, BURN, "firing").await;
    for api in &apis {
        breach_is_known(api, &computed["auditor"]).await;
    }
    if let Some(prometheus) = &prometheus {
        prometheus_knows(prometheus, apis.len()).await;
    }
    command_line_knows(&cluster.url(1));
    // A node that is killed is said to be missing, and takes nothing with it; it comes back with less, and is not
    // believed. Who leads next knows what was told, and goes on.
    let leader = cluster.leader(0).await.unwrap();
    let other = &apis[(leader + 1) % apis.len()];
    cluster.kill(leader).unwrap();
    pager.until_told(&cluster, "node down", "firing").await;
    let report = other.get("/v1/sla").await.unwrap();
    agrees(&report);
    assert_eq!(report["nodes_missing"].as_array().unwrap().len(), 1);
    cluster.restart(leader).await.unwrap();
    cluster.until_whole().await.unwrap();
    agrees(&apis[leader].get("/v1/sla").await.unwrap());
    pager.until_told(&cluster, "node down", "resolved").await;
    pager.assert_told_once("slow audits");
    // All stop cleanly, and nothing is forgotten.
    for number in cluster.members() {
        assert_eq!(cluster.stop(number).await.unwrap(), Some(0), "{}", cluster.log_tails());
    }
    for number in cluster.members() {
        cluster.spawn(number).unwrap();
    }
    cluster.until_whole().await.unwrap();
    agrees(&apis[2].get("/v1/sla?window=1h").await.unwrap());
    let refused = apis[2].get("/v1/sla?window=2h").await.unwrap_err();
    assert!(format!("{refused:#}").contains("24h"), "{refused:#}");
}

/// Nodes that find the secret of the webhook in a file.
struct WithSecret(String);

impl Hosts for WithSecret {
    fn place(&mut self, number: usize, directory: &std::path::Path) -> anyhow::Result<Place> {
        let place = Loopback.place(number, directory)?;
        Ok(Place { env: vec![("TEST_WEBHOOK_FILE".into(), self.0.clone())], ..place })
    }
}

/// Who is told of alerts: it does not understand what it is told first.
struct Pager {
    address: std::net::SocketAddr,
    told: Arc<Mutex<Vec<Value>>>,
}

impl Pager {
    async fn start() -> Self {
        let told = Arc::new(Mutex::new(Vec::new()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (heard, asked) = (Arc::clone(&told), Arc::new(AtomicUsize::new(0)));
        let answer = move |headers: HeaderMap, body: String| async move {
            let header = |name: &str| headers[name].to_str().unwrap().to_owned();
            let signed = format!("{}.{}.{body}", header("webhook-id"), header("webhook-timestamp"));
            let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, SECRET.as_bytes());
            let signature = BASE64_STANDARD.decode(&header("webhook-signature")["v1,".len()..]).unwrap();
            aws_lc_rs::hmac::verify(&key, signed.as_bytes(), &signature).unwrap();
            if asked.fetch_add(1, Ordering::Relaxed) == 0 {
                return StatusCode::INTERNAL_SERVER_ERROR;
            }
            let message: Value = serde_json::from_str(&body).unwrap();
            heard.lock().unwrap().extend(message["alerts"].as_array().unwrap().clone());
            StatusCode::OK
        };
        let routes = axum::Router::new().fallback(answer);
        tokio::spawn(async move { axum::serve(listener, routes).await });
        Self { address, told }
    }

    fn times(&self, alert: &str, status: &str) -> usize {
        let told = self.told.lock().unwrap();
        told.iter().filter(|of| of["labels"]["alertname"] == alert && of["status"] == status).count()
    }

    async fn until_told(&self, cluster: &Cluster, alert: &str, status: &str) {
        let what = format!("{alert:?} to be told as {status}");
        let told = wait_until(&what, PATIENCE, async || (self.times(alert, status) > 0).then_some(()));
        if let Err(error) = told.await {
            let mut known = Vec::new();
            for number in cluster.members() {
                let api = Api::new(&cluster.url(number)).unwrap();
                let alerts = api.get("/v1/alerts").await.map(|mut list| list["alerts"].take());
                let mut alerts = alerts.unwrap_or_default().as_array().cloned().unwrap_or_default();
                alerts.retain(|alert| alert["state"] != "inactive");
                known.push((number, alerts, cluster.status(number).await.ok()));
            }
            panic!("{error}: {:?}\n{known:#?}\n{}", self.told.lock().unwrap(), cluster.log_tails());
        }
    }

    fn assert_told_once(&self, alert: &str) {
        assert_eq!((self.times(alert, "firing"), self.times(alert, "resolved")), (1, 0), "{alert}");
    }
}

/// A Prometheus of the test's own, killed with it.
struct Prometheus {
    process: std::process::Child,
    directory: PathBuf,
    address: std::net::SocketAddr,
}

impl Prometheus {
    /// One that scrapes these nodes, and evaluates the rules that the first exports. Where there is none, nothing, and
    /// that is said.
    async fn start(directory: PathBuf, urls: &[String]) -> Option<Self> {
        if Command::new("prometheus").arg("--version").output().is_err() {
            assert!(
                std::env::var_os("CI").is_none(),
                "CI must have prometheus: `deploy/dev/setup.sh testing`"
            );
            let text = "NOT RUN: prometheus is missing; `deploy/dev/setup.sh testing` installs it\n";
            let _ = std::io::Write::write_all(&mut std::io::stderr(), text.as_bytes());
            return None;
        }
        let rules = reqwest::get(format!("{}/v1/sla/rules", urls[0])).await.unwrap();
        std::fs::create_dir(&directory).unwrap();
        std::fs::write(directory.join("rules.yml"), rules.text().await.unwrap()).unwrap();
        let targets: Vec<String> = urls.iter().map(|url| url.replace("http://", "")).collect();
        let config = format!(
            "global: {{scrape_interval: 200ms, scrape_timeout: 200ms, evaluation_interval: 200ms}}\nrule_files: [rules.yml]\n\
             scrape_configs:\n  - {{job_name: orchestra, static_configs: [{{targets: {targets:?}}}]}}\n"
        );
        std::fs::write(directory.join("prometheus.yml"), config).unwrap();
        let address = free_address().unwrap();
        let process = Command::new("prometheus")
            .arg(format!("--config.file={}", directory.join("prometheus.yml").display()))
            .arg(format!("--storage.tsdb.path={}", directory.join("data").display()))
            .arg(format!("--web.listen-address={address}"))
            .stderr(std::fs::File::create(directory.join("log")).unwrap())
            .spawn();
        Some(Self { process: process.unwrap(), directory, address })
    }

    async fn ask(&self, path: &str) -> Option<Value> {
        let answer = reqwest::get(format!("http://{}/api/v1/{path}", self.address)).await.ok()?;
        Some(answer.json::<Value>().await.ok()?["data"].clone())
    }

    /// Waits for an answer that it must give.
    async fn until<T>(&self, what: &str, answer: impl AsyncFnMut() -> Option<T>) -> T {
        let log = || std::fs::read_to_string(self.directory.join("log")).unwrap_or_default();
        wait_until(what, PATIENCE, answer).await.unwrap_or_else(|error| panic!("{error}\n{}", log()))
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        // Gone already, it is gone.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prometheus_scrapes_a_node_and_evaluates_the_rules() {
    let fixture = crate::fixture::Fixture::start("").await;
    let api = Api::new(&fixture.node.url()).unwrap();
    api.apply(WORKFLOW).await.unwrap();
    let directory = fixture.temp.path().join("prometheus");
    let Some(prometheus) = Prometheus::start(directory, &[fixture.node.url()]).await else { return };
    // A start that waits for the end takes as long as the session: nothing of the API's.
    let metrics = async || reqwest::get(api.url("/metrics")).await.unwrap().text().await.unwrap();
    let counted = |metrics: &str| {
        let line = metrics.lines().find(|line| line.starts_with("orchestra_api_latency_seconds_count"));
        line.and_then(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).unwrap_or(0)
    };
    let before = counted(&metrics().await);
    let waiting = json!({"workflow": "measured", "input": 2});
    let waited = api.post("/v1/sessions?wait_ms=60000", &waiting).await.unwrap();
    assert_eq!(waited["status"], "completed", "{waited}");
    assert_eq!(counted(&metrics().await), before);
    let id = api.start("measured", "scraped", &json!(1)).await.unwrap();
    assert_eq!(counted(&metrics().await), before + 1);
    let ended = wait_until("the session's end", PATIENCE, async || {
        (api.get(&format!("/v1/sessions/{id}")).await.ok()?["status"] == "completed").then_some(())
    });
    ended.await.unwrap();
    let query = "query?query=sum(orchestra_agent_response_seconds_bucket{le=%22120.0%22})";
    let scraped = async || (prometheus.ask(query).await?["result"][0]["value"][1] == "4").then_some(());
    prometheus.until("four answers to be scraped", scraped).await;
    let evaluated = async || {
        let groups = prometheus.ask("rules").await?["groups"].as_array()?.clone();
        let rules: Vec<Value> =
            groups.iter().flat_map(|of| of["rules"].as_array().unwrap().clone()).collect();
        (rules.len() > 50 && rules.iter().all(|rule| rule["health"] == "ok")).then_some(())
    };
    prometheus.until("every rule to be evaluated", evaluated).await;

    // Every panel of the dashboard asks for something that is there.
    let dashboard =
        concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/observability/grafana/dashboards/orchestra.json");
    let dashboard: Value = serde_json::from_str(&std::fs::read_to_string(dashboard).unwrap()).unwrap();
    let targets =
        dashboard["panels"].as_array().unwrap().iter().filter_map(|panel| panel["targets"].as_array());
    let asked: Vec<&str> = targets.flatten().map(|target| target["expr"].as_str().unwrap()).collect();
    assert!(asked.len() > 30);
    let known = metrics().await;
    for expr in asked {
        let query = expr.replace("$__rate_interval", "1m");
        let url = reqwest::Url::parse_with_params(
            &format!("http://{}/api/v1/query", prometheus.address),
            [("query", &query)],
        );
        let answer: Value = reqwest::get(url.unwrap()).await.unwrap().json().await.unwrap();
        assert_eq!(answer["status"], "success", "{expr}: {answer}");
        for name in expr.split(|of: char| !of.is_ascii_alphanumeric() && of != '_') {
            let is_metric = name.starts_with("process_") || name.starts_with("orchestra_");
            // Nobody has fallen back, recovered, failed or fired here, and no worker was asked for.
            let quiet = ["fallback", "recovery", "failures", "alert", "workers", "uptime"];
            if is_metric && !quiet.iter().any(|of| name.contains(of)) {
                let there = known.lines().any(|line| line.starts_with(name));
                assert!(there, "{expr} asks for {name}, which is not in /metrics");
            }
        }
    }
}
