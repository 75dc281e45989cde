//! Alerts: rules are looked at once in the cluster, by the leader of shard 0; how an alert stands is part of that
//! shard's state, so that it outlives leaders; and who is to be told is told until it has answered.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use consensus::{Group, Leadership};
use ids::{Digest, ShardId, Timestamp};
use machine::{AlertChange, AlertRow, AlertState, Command, Key, Read as _, Row};
use providers::Secret;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use sla::{
    Window,
    alert::{Condition, Gauge, Gauges, Reading, Rule},
};
use tokio::time::Instant;

use crate::{config, levels::Heard, wiring::App};

/// Whose leader looks.
const OF_SHARD: ShardId = ShardId(0);
/// The rules of the machine with which alerts came.
const SINCE_MACHINE_VERSION: u32 = 2;
/// How long who is told may take to answer.
const TELL_TIMEOUT: Duration = Duration::from_secs(10);
/// How long is waited before who is to be told is tried again: doubled each time.
const RETRY_FIRST: Duration = Duration::from_secs(1);
const RETRY_MAX: Duration = Duration::from_secs(300);
/// More than any number of rules that makes sense.
const ROWS_MAX: usize = 10_000;

/// Looks, and tells, as long as the node runs.
pub(crate) async fn run(app: Arc<App>, of: config::Alerts, teller: Option<Teller>) {
    let mut tick = tokio::time::interval(Duration::from_secs(of.every_seconds));
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut stopping = app.stopping.clone();
    let mut patience = Patience::default();
    loop {
        tokio::select! {
            _ = tick.tick() => {}
            // The sender ends with the node.
            _ = stopping.wait_for(|stop| *stop) => return,
        }
        let turn = async {
            let Some(group) = leads(&app) else {
                app.metrics.nodes_down.lock().take();
                return;
            };
            look(&app, &group).await;
            if let Some(teller) = &teller
                && patience.is_over()
            {
                let told = teller.tell(&app, &group).await;
                patience.after(told);
            }
        };
        tokio::select! {
            () = turn => {}
            _ = stopping.wait_for(|stop| *stop) => return,
        }
    }
}

/// The group whose leader looks, if that is this node, and all nodes know alerts.
fn leads(app: &App) -> Option<Group> {
    let node = app.sessions.node();
    let group = node.groups().get(&OF_SHARD)?;
    let leads = matches!(*group.leadership().borrow(), Leadership::Here { .. });
    let known = group.latest().shard().machine_version >= SINCE_MACHINE_VERSION;
    (leads && known).then(|| group.clone())
}

/// Evaluates every rule, and has it known what has changed.
async fn look(app: &App, group: &Group) {
    let now = app.sessions.node().clock().wall();
    let rules = app.levels.alerts();
    let Heard { measured, gauges, .. } = watch(app, now).await;
    let rows = rows(group);
    let of_rules: BTreeSet<&str> = rules.iter().map(|rule| rule.name.as_str()).collect();
    let readings =
        rules.iter().map(|rule| (rule.name.as_str(), Some(rule), rule.evaluate(&measured, &gauges, now)));
    // Nobody looks any more whether it still holds.
    let orphans =
        rows.keys().filter(|name| !of_rules.contains(name.as_str())).map(|name| (name.as_str(), None, None));
    for (name, rule, reading) in readings.chain(orphans) {
        let change = match (rule, reading) {
            (Some(rule), Some(Reading { holds: true, value })) => {
                AlertChange::Breached { hold_ms: rule.hold_ms, value }
            }
            _ => AlertChange::Fine,
        };
        let before = rows.get(name);
        if AlertRow::after(before, &change, now).as_ref() == before {
            continue;
        }
        propose(group, name, change).await;
    }
}

/// What all nodes have counted, as far back as rules look, and know of themselves; and has it known how many are down.
async fn watch(app: &App, now: Timestamp) -> Heard {
    let heard = hear(app, now).await;
    *app.metrics.nodes_down.lock() = Some(heard.silent.len());
    heard
}

async fn hear(app: &App, now: Timestamp) -> Heard {
    let windows: BTreeSet<Window> =
        app.levels.alerts().iter().flat_map(windows).chain([Window::Minute]).collect();
    let windows: Vec<Window> = windows.into_iter().collect();
    let mut heard = app.levels.hear(&app.sessions.node().peers(), now, &windows).await;
    let down = u32::try_from(heard.silent.len()).map_or(f64::MAX, f64::from);
    heard.gauges.add(Gauge::NodesDown, down);
    heard
}

fn windows(rule: &Rule) -> Vec<Window> {
    match &rule.condition {
        Condition::Threshold { over, .. } => vec![*over],
        Condition::Burn { long, short, .. } => vec![*long, *short],
    }
}

async fn propose(group: &Group, name: &str, change: AlertChange) {
    let command = Command::Alert { name: name.to_owned(), change };
    // Whoever leads next looks again.
    if let Err(error) = group.propose(command).await {
        tracing::debug!(alert = name, %error, "an alert could not be changed now");
    }
}

/// How alerts stand, as this node has applied it.
fn rows(group: &Group) -> BTreeMap<String, AlertRow> {
    let (from, to) = (Key::Alert(String::new()), Key::Alert(char::MAX.to_string()));
    let rows = group.latest().scan(&from, &to, ROWS_MAX).into_iter();
    rows.filter_map(|(key, row)| match (key, row) {
        (Key::Alert(name), Row::Alert(row)) => Some((name, row)),
        _ => None,
    })
    .collect()
}

/// Every rule, what it says at this moment, and how its alert stands, as this node has applied it.
pub(crate) async fn list(app: &App) -> Value {
    let now = app.sessions.node().clock().wall();
    let Heard { measured, gauges, .. } = hear(app, now).await;
    let rows = app.sessions.node().groups().get(&OF_SHARD).map(rows).unwrap_or_default();
    let shown = |rule: &Rule| {
        let row = rows.get(&rule.name);
        let at = |at: Option<Timestamp>| at.map(|at| at.to_string());
        json!({
            "alert": rule.name, "when": rule.text, "for_ms": rule.hold_ms, "severity": rule.severity.name(),
            "action": rule.action, "state": row.map_or("inactive", |row| state(row.state)),
            "value": row.map(|row| row.value.as_str()), "since": at(row.map(|row| row.since)),
            "fired_at": at(row.and_then(|row| row.fired_at)),
            "resolved_at": at(row.and_then(|row| row.resolved_at)),
            "notified": row.is_some_and(|row| row.notified),
            "now": rule.evaluate(&measured, &gauges, now).map(|reading| reading.value),
        })
    };
    json!({"alerts": app.levels.alerts().iter().map(shown).collect::<Vec<_>>()})
}

fn state(of: AlertState) -> &'static str {
    match of {
        AlertState::Pending => "pending",
        AlertState::Firing => "firing",
        AlertState::Resolved => "resolved",
    }
}

/// Alerts that are pending or fire, for `/metrics`: by rule, severity and state.
pub(crate) fn exposition(app: &App) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let Some(group) = app.sessions.node().groups().get(&OF_SHARD) else { return text };
    let rows = rows(group);
    text.push_str(
        "# HELP orchestra_alert Alerts of the cluster that are pending or fire, as this node knows.\n",
    );
    text.push_str("# TYPE orchestra_alert gauge\n");
    for rule in app.levels.alerts() {
        let Some(row) = rows.get(&rule.name).filter(|row| row.state != AlertState::Resolved) else {
            continue;
        };
        // Writing to a string does not fail.
        let _ = writeln!(
            text,
            "orchestra_alert{{rule={},severity=\"{}\",state=\"{}\"}} 1",
            sla::prometheus::quoted(&rule.name),
            rule.severity.name(),
            state(row.state)
        );
    }
    text
}

/// The gauges of this node, for `/metrics`, besides those that it has anyway.
pub(crate) fn gauges(known: &Gauges, nodes_down: Option<usize>) -> String {
    use std::fmt::Write as _;
    let mut text = String::new();
    let shown = [
        (Gauge::QueueDepth, "Tasks that wait for a worker in shards that this node leads"),
        (Gauge::Workers, "Workers connected to this node; absent where no queue is used"),
        (Gauge::ProcessMemoryShare, "Memory of the process, as a share of what it may have"),
    ];
    let down = nodes_down.and_then(|down| Some((Gauge::NodesDown, f64::from(u32::try_from(down).ok()?))));
    let down = down
        .map(|(gauge, value)| (gauge, "Nodes that did not answer the one that looks after alerts", value));
    let values = shown.into_iter().filter_map(|(gauge, help)| Some((gauge, help, known.get(gauge)?)));
    for (gauge, help, value) in values.chain(down) {
        let name = gauge.name();
        // Writing to a string does not fail.
        let _ = write!(
            text,
            "# HELP orchestra_{name} {help}.\n# TYPE orchestra_{name} gauge\norchestra_{name} {value}\n"
        );
    }
    text
}

/// How long is waited between attempts to tell.
#[derive(Default)]
struct Patience {
    next: Option<Instant>,
    pause: Duration,
}

impl Patience {
    fn is_over(&self) -> bool {
        self.next.is_none_or(|next| next <= Instant::now())
    }

    fn after(&mut self, told: bool) {
        if told {
            *self = Self::default();
            return;
        }
        self.pause = (self.pause * 2).clamp(RETRY_FIRST, RETRY_MAX);
        self.next = Some(Instant::now() + self.pause);
    }
}

/// Tells a webhook.
pub(crate) struct Teller {
    http: reqwest::Client,
    url: String,
    key: Option<Vec<u8>>,
}

impl Teller {
    /// # Errors
    ///
    /// The secret is not there.
    pub(crate) fn new(of: &config::Webhook, redactor: &providers::Redactor) -> Result<Self, String> {
        let secret = match &of.secret_env {
            Some(name) => Some(Secret::from_env(name).read().map_err(|error| error.to_string())?),
            None => None,
        };
        if let Some(secret) = &secret {
            redactor.learn(secret);
        }
        let key = secret.map(|secret| key(&secret)).transpose()?;
        let http = reqwest::Client::builder()
            .timeout(TELL_TIMEOUT)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(|error| error.to_string())?;
        Ok(Self { http, url: of.url.clone(), key })
    }

    /// Tells what is not told yet, in one message; whether nothing is left to be told.
    async fn tell(&self, app: &App, group: &Group) -> bool {
        let rows = rows(group);
        let rules = app.levels.alerts();
        let new: Vec<(&str, &AlertRow)> = rows
            .iter()
            .filter(|(_, row)| !row.notified && row.state != AlertState::Pending)
            .map(|(name, row)| (name.as_str(), row))
            .collect();
        if new.is_empty() {
            return true;
        }
        let identity = app.sessions.node().identity();
        let cluster = format!("{:032x}", identity.cluster);
        let body = message(&cluster, rules, &new).to_string();
        // The same message has the same id, so that who got it twice knows.
        let told = new.iter().fold(Sha256::new(), |told, (name, row)| {
            told.chain_update(format!("{name}\0{}\0{}\0", state(row.state), row.since.0))
        });
        let id = format!("alert_{}", &Digest(told.finalize().into()).to_string()[..32]);
        let seconds = app.sessions.node().clock().wall().0 / 1_000_000;
        let mut request = self
            .http
            .post(&self.url)
            .header("content-type", "application/json")
            .header("webhook-id", &id)
            .header("webhook-timestamp", seconds.to_string());
        if let Some(key) = &self.key {
            request = request.header("webhook-signature", signature(key, &id, seconds, &body));
        }
        let outcome = match request.body(body).send().await {
            Ok(answer) if answer.status().is_success() => Ok(()),
            Ok(answer) => Err(format!("it answered {}", answer.status())),
            Err(error) => Err(error.without_url().to_string()),
        };
        if let Err(reason) = outcome {
            tracing::warn!(
                reason,
                alerts = new.len(),
                "who is to be told of alerts was not; it is tried again"
            );
            return false;
        }
        let names: Vec<&str> = new.iter().map(|(name, _)| *name).collect();
        tracing::info!(alerts = ?names, "who is to be told of alerts was");
        for (name, row) in new {
            propose(group, name, AlertChange::Notified { state: row.state, since: row.since }).await;
        }
        true
    }
}

/// The key in a secret: base64 after `whsec_`, as Standard Webhooks writes it, else the secret itself.
fn key(secret: &str) -> Result<Vec<u8>, String> {
    match secret.strip_prefix("whsec_") {
        None => Ok(secret.as_bytes().to_vec()),
        Some(encoded) => BASE64_STANDARD.decode(encoded).map_err(|error| format!("after whsec_: {error}")),
    }
}

/// Standard Webhooks, version 1 (<https://www.standardwebhooks.com>): HMAC-SHA256 over id, time and body.
fn signature(key: &[u8], id: &str, seconds: u64, body: &str) -> String {
    let key = aws_lc_rs::hmac::Key::new(aws_lc_rs::hmac::HMAC_SHA256, key);
    let tag = aws_lc_rs::hmac::sign(&key, format!("{id}.{seconds}.{body}").as_bytes());
    format!("v1,{}", BASE64_STANDARD.encode(tag.as_ref()))
}

/// Alertmanager's webhook, version 4 (<https://prometheus.io/docs/alerting/latest/configuration/#webhook_config>).
fn message(cluster: &str, rules: &[Rule], alerts: &[(&str, &AlertRow)]) -> Value {
    let firing = |row: &AlertRow| row.state == AlertState::Firing;
    let status = |firing: bool| if firing { "firing" } else { "resolved" };
    let shown = |(name, row): &(&str, &AlertRow)| {
        let rule = rules.iter().find(|rule| rule.name == *name);
        let mut labels = json!({"alertname": name, "cluster": cluster});
        if let Some(rule) = rule {
            labels["severity"] = rule.severity.name().into();
            if !rule.action.is_empty() {
                labels["action"] = rule.action.as_str().into();
            }
        }
        let fingerprint = Sha256::digest(format!("{cluster}\0{name}"));
        json!({
            "status": status(firing(row)),
            "labels": labels,
            "annotations": {
                "summary": format!("{name}: {}", row.value),
                "rule": rule.map_or("", |rule| rule.text.as_str()),
            },
            "startsAt": row.fired_at.unwrap_or(row.since).to_string(),
            "endsAt": row.resolved_at.map_or_else(|| "0001-01-01T00:00:00Z".to_owned(), |at| at.to_string()),
            "generatorURL": "",
            "fingerprint": &Digest(fingerprint.into()).to_string()[..16],
        })
    };
    json!({
        "version": "4",
        "groupKey": format!("{{cluster=\"{cluster}\"}}"),
        "truncatedAlerts": 0,
        "status": status(alerts.iter().any(|(_, row)| firing(row))),
        "receiver": "orchestra",
        "groupLabels": {"cluster": cluster},
        "commonLabels": {"cluster": cluster},
        "commonAnnotations": {},
        "externalURL": "",
        "alerts": alerts.iter().map(shown).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_is_signed_as_the_standard_says() {
        // HMAC-SHA256 of "alert_1.1700000000.{}" under "key", by `openssl dgst -sha256 -hmac key -binary | base64`.
        let signed = signature(&key("key").unwrap(), "alert_1", 1_700_000_000, "{}");
        assert_eq!(key("whsec_a2V5").unwrap(), b"key");
        assert!(key("whsec_?").is_err());
        assert_eq!(signed, "v1,vt4mwleQ6KFCnSa9JAae8zXfslzkTx/4WY08a4HK8bk=");
    }

    #[test]
    fn attempts_to_tell_become_rarer() {
        let mut patience = Patience::default();
        assert!(patience.is_over());
        for seconds in [1, 2, 4, 8, 16, 32, 64, 128, 256, 300, 300] {
            patience.after(false);
            assert_eq!(patience.pause, Duration::from_secs(seconds));
            assert!(!patience.is_over());
        }
        patience.after(true);
        assert!(patience.is_over());
    }

    #[test]
    fn what_is_sent_has_alertmanagers_shape() {
        let rules = sla::alert::built_in();
        let row = |state| AlertRow {
            state,
            since: Timestamp(0),
            fired_at: Some(Timestamp(1_000_000)),
            resolved_at: (state == AlertState::Resolved).then_some(Timestamp(2_000_000)),
            value: "1001".into(),
            notified: false,
        };
        let (firing, resolved) = (row(AlertState::Firing), row(AlertState::Resolved));
        let sent = message("c", &rules, &[("queue depth", &firing), ("high latency", &resolved)]);
        assert_eq!((&sent["version"], &sent["status"]), (&"4".into(), &"firing".into()));
        let first = &sent["alerts"][0];
        assert_eq!(first["labels"]["alertname"], "queue depth");
        assert_eq!(first["labels"]["action"], "scale workers");
        assert_eq!(first["startsAt"], "1970-01-01T00:00:01.000000Z");
        assert_eq!(first["endsAt"], "0001-01-01T00:00:00Z");
        assert_eq!(sent["alerts"][1]["status"], "resolved");
        assert_eq!(sent["alerts"][1]["endsAt"], "1970-01-01T00:00:02.000000Z");
        assert_ne!(first["fingerprint"], sent["alerts"][1]["fingerprint"]);
        assert_eq!(message("c", &rules, &[("high latency", &resolved)])["status"], "resolved");
    }
}
