//! What is there in the end, against what clients were told.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use providers::simulated;
use testkit::{
    Cluster, checks,
    history::{Action, Fate, Operation, appends_are_linearizable},
    wait_until,
};

use super::{Fault, Options, load::Load};
use crate::{Verdict, crash::counts};

/// How long everything that was acknowledged may take to end.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);

pub(super) async fn judge(
    cluster: &Cluster,
    load: &Load,
    vendor: &simulated::Server,
    options: &Options,
    fired: &BTreeMap<Fault, usize>,
) -> anyhow::Result<Verdict> {
    let operations = load.history.operations();
    let mut violations = load.violations();
    violations.extend(check_registers(cluster, load, &operations).await?);
    let acknowledged = load.acknowledged();
    let mut finished = 0;
    for (key, id) in &acknowledged {
        match check_session(cluster, load, id).await {
            Ok(found) if found.is_empty() => finished += 1,
            Ok(found) => violations.extend(found),
            Err(error) => violations.push(format!("{id} ({key}): {error:#}")),
        }
    }
    for kind in &options.kinds {
        if options.faults >= options.kinds.len() && !fired.contains_key(kind) {
            violations.push(format!("{kind:?} never happened"));
        }
    }
    let verified = load.verify(&cluster.urls()[0]).await?;
    if verified["equal"] != true {
        violations.push(format!("replicas differ: {verified}"));
    }
    let cut_off = load.workers_cut_off.load(Ordering::Relaxed);
    if cut_off == 0 {
        violations.push("no worker was cut off".into());
    }
    let count = |fate: fn(&Fate) -> bool| operations.iter().filter(|of| fate(&of.fate)).count();
    let ok = count(|fate| matches!(fate, Fate::Ok(_)));
    if ok < 100 || acknowledged.is_empty() {
        violations.push(format!("the load had no effect: {ok} operations, {} sessions", acknowledged.len()));
    }
    let slowest = operations.iter().map(|of| of.returned - of.called).max().unwrap_or_default();
    let faults: Vec<String> = fired.iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
    let mut lines = vec![
        format!("seed {}, {} nodes, faults: {}", options.seed, options.nodes, faults.join(", ")),
        format!(
            "operations {} ({ok} ok, {} failed, {} unknown), the slowest took {slowest:?}",
            operations.len(),
            count(|fate| matches!(fate, Fate::Failed(_))),
            count(|fate| matches!(fate, Fate::Unknown(_))),
        ),
        format!("registers {}, each linearizable and the same on every node", load.registers.len()),
        format!("sessions acknowledged {}, finished {finished}", acknowledged.len()),
        format!("workers cut off {cut_off}; all replicas equal, every row read"),
        format!("vendor calls {}", counts(vendor).await?.calls),
    ];
    lines
        .extend(load.notes().into_iter().map(|(at, what)| format!("  at {:.1} s: {what}", at.as_secs_f64())));
    Ok(Verdict { lines, violations, kept: None })
}

async fn check_registers(
    cluster: &Cluster,
    load: &Load,
    operations: &[Operation],
) -> anyhow::Result<Vec<String>> {
    let mut violations = Vec::new();
    for register in &load.registers {
        let mut last: Option<Vec<u64>> = None;
        for url in cluster.urls() {
            let Fate::Ok(values) = load.read(&url, register, "").await else {
                anyhow::bail!("{register} can not be read at {url}");
            };
            match &last {
                Some(last) if *last != values => {
                    violations.push(format!("{register}: {url} shows {values:?}, another node {last:?}"));
                }
                Some(_) => {}
                None => last = Some(values),
            }
        }
        let of: Vec<Operation> = operations
            .iter()
            .filter(|of| of.on == *register && !matches!(of.action, Action::Start(_)))
            .cloned()
            .collect();
        violations.extend(appends_are_linearizable(register, &of, &last.unwrap_or_default()));
    }
    Ok(violations)
}

/// A session that was acknowledged has ended well, once, and is the same on every node.
async fn check_session(cluster: &Cluster, load: &Load, id: &str) -> anyhow::Result<Vec<String>> {
    let urls = cluster.urls();
    wait_until(&format!("the end of {id}"), SETTLE_TIMEOUT, async || {
        load.has_ended(&urls[0], id).await.then_some(())
    })
    .await?;
    let session = load.get(&urls[0], &format!("/v1/sessions/{id}")).await?;
    let mut violations = Vec::new();
    if session["status"] != "completed" {
        violations.push(format!("{id}: {session}"));
    }
    let mut first = None;
    for url in &urls {
        let page = load.get(url, &format!("/v1/sessions/{id}/events?limit=500")).await?;
        let events = page["events"].as_array().cloned().unwrap_or_default();
        match &first {
            Some(first) if *first != events => violations.push(format!("{id}: {url} shows other events")),
            Some(_) => {}
            None => first = Some(events),
        }
    }
    let events = first.unwrap_or_default();
    violations.extend(checks::events_follow_one_another(id, &events));
    violations.extend(checks::one_outcome_a_step(id, &events));
    violations.extend(checks::dispatches_rise(id, &events));
    violations.extend(checks::ends_once(id, &events));
    let audit = load.get(&urls[0], &format!("/v1/sessions/{id}/audit")).await?;
    if audit["intact"] != true {
        violations.push(format!("{id}: broken hash chain: {audit}"));
    }
    Ok(violations)
}
