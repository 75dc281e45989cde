//! What is there in the end, against what clients were told.

use std::{collections::BTreeMap, sync::atomic::Ordering, time::Duration};

use futures_util::{StreamExt as _, stream};
use providers::simulated;
use testkit::{
    Cluster, checks,
    history::{Action, Fate, Operation, appends_are_linearizable},
    wait_until,
};

use super::{Fault, Options, load::Load, watch::Watched};
use crate::{
    Verdict,
    crash::counts,
    report::{self, Injected, Report},
};

/// How long everything that was acknowledged may take to end.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(120);
/// Reasons that are told.
const REASONS: usize = 4;
/// Sessions that are looked at together.
const CHECKS_AT_ONCE: usize = 8;
/// A run of this many seconds or more has so many operations, or proves little.
const LONG_RUN: u64 = 120;
const OPERATIONS_MIN: u64 = 10_000;

/// Whether a run has the operations that it has to have.
pub(super) fn has_enough(load: &Load, options: &Options) -> bool {
    options.seconds < LONG_RUN || load.history.count() as u64 >= OPERATIONS_MIN
}

/// The share of operations that faults must have overlapped with, in such a run.
const DURING_FAULTS_MIN: f64 = 0.2;

/// The run in numbers. A run whose faults had no effect, or hit nobody, proves nothing: that is a violation as well.
pub(super) fn report(
    cluster: &Cluster,
    load: &Load,
    options: &Options,
    watched: &Watched,
    verdict: &mut Verdict,
) -> Report {
    let (operations, faults) = (load.history.operations(), load.notes());
    let during_faults = report::share_during(&operations, &faults);
    let count = operations.len() as u64;
    let leaders_moved = watched.moves.load(Ordering::Relaxed);
    let looks = watched.looks.load(Ordering::Relaxed);
    let mut proves_little = Vec::new();
    if looks <= 10 {
        proves_little.push(format!("the nodes were looked at {looks} times only"));
    }
    if leaders_moved == 0 {
        proves_little.push("no leader moved".to_owned());
    }
    let snapshots = cluster.count_in_logs("the snapshot is installed") as u64;
    if options.seconds >= LONG_RUN && snapshots == 0 {
        proves_little.push("no node took in a state".to_owned());
    }
    // The share of a short run is that of its pauses.
    let share_min = if options.seconds >= LONG_RUN { DURING_FAULTS_MIN } else { f64::MIN_POSITIVE };
    if during_faults < share_min {
        proves_little.push(format!("{:.0} % of the operations were during faults", 100.0 * during_faults));
    }
    if !has_enough(load, options) {
        proves_little.push(format!("{count} operations; {OPERATIONS_MIN} are needed"));
    }
    verdict.lines.push(format!(
        "leaders moved {leaders_moved}, states taken in {snapshots}, {:.0} % of the operations during faults",
        100.0 * during_faults
    ));
    let violations = verdict.violations.clone();
    verdict.violations.extend(proves_little.iter().cloned());
    if !verdict.passed() {
        verdict.lines.push(format!("again: {}", options.again()));
    }
    Report {
        scenario: options.scenario.name.clone(),
        seed: options.seed,
        nodes: options.nodes,
        mutant: options.mutant.as_ref().map(|mutant| mutant.name.clone()),
        program: String::new(),
        seconds_asked: options.seconds,
        again: options.again(),
        passed: verdict.passed(),
        violations,
        proves_little,
        not_run: Vec::new(),
        kept: None,
        seconds: load.history.now().as_secs_f64(),
        operations: count,
        during_faults,
        leaders_moved,
        snapshots,
        faults,
        series: report::series(&operations),
    }
}

pub(super) async fn judge(
    cluster: &Cluster,
    load: &Load,
    vendor: &simulated::Server,
    options: &Options,
    fired: &BTreeMap<Fault, usize>,
) -> anyhow::Result<Verdict> {
    let mut verdict = judge_clients(&cluster.urls(), load).await?;
    let kinds = &options.scenario.faults;
    for kind in kinds {
        if options.faults >= kinds.len() && !fired.contains_key(kind) {
            verdict.violations.push(format!("{kind:?} never happened"));
        }
    }
    let came_to_nothing =
        load.history.operations().iter().filter(|of| !matches!(of.fate, Fate::Ok(_))).count();
    if kinds.iter().all(|kind| kind.is_planned()) && came_to_nothing > 0 {
        verdict.violations.push(format!("planned changes cost clients {came_to_nothing} calls"));
    }
    let cut_off = load.workers_cut_off.load(Ordering::Relaxed);
    if cut_off == 0 {
        verdict.violations.push("no worker was cut off".into());
    }
    let faults: Vec<String> = fired.iter().map(|(fault, count)| format!("{fault:?} {count}")).collect();
    let begun = format!("seed {}, {} nodes, faults: {}", options.seed, options.nodes, faults.join(", "));
    verdict.lines.insert(0, begun);
    verdict.lines.push(format!("workers cut off {cut_off}, vendor calls {}", counts(vendor).await?.calls));
    let noted = |of: Injected| format!("  {:.1} s to {:.1} s: {}", of.from_s, of.to_s, of.fault);
    verdict.lines.extend(load.notes().into_iter().map(noted));
    Ok(verdict)
}

/// What is there in the end, at every node, against what clients were told.
pub(super) async fn judge_clients(urls: &[String], load: &Load) -> anyhow::Result<Verdict> {
    let operations = load.history.operations();
    let mut violations = load.violations();
    violations.extend(check_registers(urls, load, &operations).await?);
    let acknowledged = load.acknowledged();
    let mut finished = 0;
    let checks =
        acknowledged.iter().map(|(key, id)| async move { (key, id, check_session(urls, load, id).await) });
    let mut checks = stream::iter(checks).buffer_unordered(CHECKS_AT_ONCE);
    while let Some((key, id, checked)) = checks.next().await {
        match checked {
            Ok(found) if found.is_empty() => finished += 1,
            Ok(found) => violations.extend(found),
            Err(error) => violations.push(format!("{id} ({key}): {error:#}")),
        }
    }
    let count = |fate: fn(&Fate) -> bool| operations.iter().filter(|of| fate(&of.fate)).count();
    let ok = count(|fate| matches!(fate, Fate::Ok(_)));
    if ok < 100 || acknowledged.is_empty() {
        violations.push(format!("the load had no effect: {ok} operations, {} sessions", acknowledged.len()));
    }
    let slowest = operations.iter().map(|of| of.returned - of.called).max().unwrap_or_default();
    let mut lines = vec![
        format!(
            "operations {} ({ok} ok, {} failed, {} unknown), the slowest took {slowest:?}",
            operations.len(),
            count(|fate| matches!(fate, Fate::Failed(_))),
            count(|fate| matches!(fate, Fate::Unknown(_))),
        ),
        format!("registers {}, each linearizable and the same on every node", load.registers.len()),
        format!("sessions acknowledged {}, finished {finished}", acknowledged.len()),
    ];
    lines.extend(most_frequent_refusals(&operations));
    match load.verify(&urls[0]).await {
        Ok(verified) if verified["equal"] == true => {
            lines.push("all replicas equal, every row read".to_owned());
        }
        Ok(verified) => violations.push(format!("replicas differ: {verified}")),
        Err(error) => violations.push(format!("the replicas could not be compared: {error:#}")),
    }
    Ok(Verdict { lines, violations, kept: None })
}

/// Why operations did not come to pass, the most frequent first.
fn most_frequent_refusals(operations: &[Operation]) -> Vec<String> {
    let mut counts: BTreeMap<(&str, &str), usize> = BTreeMap::new();
    for of in operations {
        match &of.fate {
            Fate::Ok(_) => {}
            Fate::Failed(why) => *counts.entry(("failed", why.as_str())).or_default() += 1,
            Fate::Unknown(why) => *counts.entry(("unknown", why.as_str())).or_default() += 1,
        }
    }
    let mut counts: Vec<_> = counts.into_iter().collect();
    counts.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let line = |((fate, why), count): &((&str, &str), usize)| {
        let why: String = why.chars().take(160).collect();
        format!("  {fate} {count} times: {why}")
    };
    counts.iter().take(REASONS).map(line).collect()
}

async fn check_registers(
    urls: &[String],
    load: &Load,
    operations: &[Operation],
) -> anyhow::Result<Vec<String>> {
    let mut violations = Vec::new();
    for register in &load.registers {
        let mut last: Option<Vec<u64>> = None;
        for url in urls {
            let Fate::Ok(values) = load.read(url, register, "").await else {
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
async fn check_session(urls: &[String], load: &Load, id: &str) -> anyhow::Result<Vec<String>> {
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
    for url in urls {
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
    violations.extend(checks::outcomes_are_of_their_dispatch(id, &events));
    violations.extend(checks::ends_once(id, &events));
    if let Some((from, to)) = load.times() {
        violations.extend(checks::times_are_within(id, &events, &from, &to));
    }
    let audit = load.get(&urls[0], &format!("/v1/sessions/{id}/audit")).await?;
    if audit["intact"] != true {
        violations.push(format!("{id}: broken hash chain: {audit}"));
    }
    Ok(violations)
}
