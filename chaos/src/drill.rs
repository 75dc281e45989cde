//! The loss of a whole cluster, as a drill: under load, between two backups, every node and every disk is gone. How
//! long until the cluster that is restored commits (RTO), and what is lost of what was acknowledged (RPO).

use std::{
    collections::BTreeMap,
    path::Path,
    process::Command,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, bail};
use rand::{Rng as _, SeedableRng as _, rngs::StdRng};
use serde_json::{Value, json};
use testkit::{Cluster, binary, wait_until};
use tokio::time::Instant;

use crate::{
    Verdict,
    api::Api,
    scratch::{self, keep_if_failed},
};

const CLIENTS: usize = 16;
/// How long a restored session may take to its end.
const PATIENCE: Duration = Duration::from_secs(60);
/// A step that is done, and one that waits: what is restored goes on.
const WORK: &str = "name: drill\nsteps:\n  - {id: first, value: 'input.n'}\n  - {id: gate, wait: {signal: go}}\n  \
     - {id: last, value: 'steps.gate.output'}\n";

/// What to do.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Chooses the moments.
    pub seed: u64,
    /// Sessions before the first backup.
    pub sessions: usize,
    /// Backups before everything is lost.
    pub backups: usize,
    /// Nodes that are lost.
    pub nodes: usize,
    /// Nodes of the cluster that takes their place.
    pub nodes_after: usize,
}

/// A session that was acknowledged.
struct Acknowledged {
    at: Instant,
    id: String,
}

#[derive(Default)]
struct Load {
    stop: AtomicBool,
    /// By key: clients start nothing twice.
    acknowledged: Mutex<BTreeMap<String, Acknowledged>>,
}

impl Load {
    fn count(&self) -> usize {
        self.acknowledged.lock().map(|of| of.len()).unwrap_or_default()
    }

    async fn client(self: Arc<Self>, client: usize, api: Api) {
        for n in 0.. {
            if self.stop.load(Ordering::SeqCst) {
                return;
            }
            let key = format!("{client}-{n}");
            if let Ok(id) = api.start("drill", &key, &json!({"n": key})).await
                && let Ok(mut acknowledged) = self.acknowledged.lock()
            {
                acknowledged.insert(key, Acknowledged { at: Instant::now(), id });
            }
        }
    }
}

fn orchestra(arguments: &[&str]) -> anyhow::Result<()> {
    let output = Command::new(binary()?).args(arguments).output()?;
    if !output.status.success() {
        bail!("orchestra {}: {}", arguments.join(" "), String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(())
}

/// Runs the drill, on loopback, with its data below the system's directory for temporary files.
///
/// # Errors
///
/// The drill itself failed: there is no verdict.
pub async fn run(options: &Options) -> anyhow::Result<Verdict> {
    let temp = scratch::directory("drill")?;
    let store = temp.path().join("store").display().to_string();
    let mut random = StdRng::seed_from_u64(options.seed);
    let cluster = Cluster::start(&temp.path().join("lost"), options.nodes, "").await?;
    Api::new(&cluster.url(0))?.apply(WORK).await?;
    let load = Arc::new(Load::default());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|client| {
            Ok(tokio::spawn(
                Arc::clone(&load).client(client, Api::new(&cluster.url(client % options.nodes))?),
            ))
        })
        .collect::<anyhow::Result<_>>()?;
    wait_until("the sessions of the drill", Duration::from_secs(600), async || {
        (load.count() >= options.sessions).then_some(())
    })
    .await?;

    let mut begun = Instant::now();
    for _ in 0..options.backups.max(1) {
        begun = Instant::now();
        let url = cluster.url(random.random_range(0..options.nodes));
        let store = store.clone();
        tokio::task::spawn_blocking(move || orchestra(&["backup", "create", "--to", &store, "--url", &url]))
            .await??;
        tokio::time::sleep(Duration::from_millis(random.random_range(500..2_500))).await;
    }
    // Everything goes at once, in the middle of the load.
    drop(cluster);
    let lost_at = Instant::now();
    load.stop.store(true, Ordering::SeqCst);
    for client in clients {
        client.await?;
    }
    std::fs::remove_dir_all(temp.path().join("lost"))?;

    let at = temp.path().join("restored");
    let restored_at = Instant::now();
    restore(&store, &at)?;
    let copied = restored_at.elapsed();
    let mut cluster = Cluster::start(&at, 1, "").await?;
    let api = Api::new(&cluster.url(0))?;
    api.start("drill", "the first after the loss", &json!({"n": 0})).await.context("the first commit")?;
    let committed = restored_at.elapsed();
    for _ in 1..options.nodes_after {
        cluster.add().await?;
    }
    cluster.until_whole().await?;
    let whole = restored_at.elapsed();

    let acknowledged =
        std::mem::take(&mut *load.acknowledged.lock().map_err(|_| anyhow::anyhow!("a client panicked"))?);
    let (total, mut lost, mut violations) = (acknowledged.len(), 0, Vec::new());
    let mut oldest_lost: Option<Instant> = None;
    for (place, (key, of)) in acknowledged.iter().enumerate() {
        let api = Api::new(&cluster.url(place % options.nodes_after))?;
        let found = api.get(&format!("/v1/sessions/{}", of.id)).await;
        match found {
            Ok(session) if session["input"]["n"] == json!(key) => {}
            Ok(session) => violations.push(format!("{}: another session: {session}", of.id)),
            Err(_) if of.at >= begun => {
                lost += 1;
                oldest_lost = Some(oldest_lost.map_or(of.at, |oldest| oldest.min(of.at)));
            }
            Err(error) => violations.push(format!(
                "{} ({key}) was acknowledged {:?} before the backup was begun, and is not in it: {error:#}",
                of.id,
                begun - of.at
            )),
        }
    }
    violations.extend(goes_on(&cluster, &acknowledged, begun, &mut random).await?);
    let lines = vec![
        format!(
            "seed {}, {} nodes lost, {} in their place",
            options.seed, options.nodes, options.nodes_after
        ),
        format!("sessions acknowledged {total}, of which {lost} after the last backup was begun, and lost"),
        format!(
            "RPO: {:.2} s of acknowledged sessions are lost; the last backup was begun {:.2} s before the loss",
            oldest_lost.map_or(0.0, |oldest| (lost_at - oldest).as_secs_f64()),
            (lost_at - begun).as_secs_f64()
        ),
        format!(
            "RTO: restored in {:.2} s, first commit after {:.2} s, all {} nodes after {:.2} s",
            copied.as_secs_f64(),
            committed.as_secs_f64(),
            options.nodes_after,
            whole.as_secs_f64()
        ),
        format!("repeat with: chaos drill --seed {}", options.seed),
    ];
    drop(cluster);
    Ok(keep_if_failed(Verdict { lines, violations, kept: None }, temp))
}

fn restore(store: &str, at: &Path) -> anyhow::Result<()> {
    let data = at.join("node-0/data").display().to_string();
    orchestra(&["backup", "verify", "--from", store])?;
    orchestra(&["backup", "restore", "--from", store, "--data-dir", &data])
}

/// What was restored goes on to its end, and its key still stands for it: a sample of fifty.
async fn goes_on(
    cluster: &Cluster,
    acknowledged: &BTreeMap<String, Acknowledged>,
    begun: Instant,
    random: &mut StdRng,
) -> anyhow::Result<Vec<String>> {
    let restored: Vec<(&String, &Acknowledged)> =
        acknowledged.iter().filter(|(_, of)| of.at < begun).collect();
    let api = Api::new(&cluster.url(0))?;
    let mut violations = Vec::new();
    for _ in 0..50.min(restored.len()) {
        let (key, of) = restored[random.random_range(0..restored.len())];
        let again = api.start("drill", key, &json!({"n": key})).await?;
        if again != of.id {
            violations.push(format!("key {key} stands for {again}, and stood for {}", of.id));
        }
        api.post(&format!("/v1/sessions/{}/signal", of.id), &json!({"name": "go", "payload": key}))
            .await
            .ok();
        let session = wait_until(&format!("the end of {}", of.id), PATIENCE, async || {
            let session: Value = api.get(&format!("/v1/sessions/{}", of.id)).await.ok()?;
            (session["status"] != "running" && session["status"] != "waiting").then_some(session)
        })
        .await?;
        if session["status"] != "completed" || session["output"] != json!(key) {
            violations.push(format!("{}: {session}", of.id));
        }
    }
    Ok(violations)
}
