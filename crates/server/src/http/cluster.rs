//! Routes of the cluster: who belongs to it, and who leads.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use axum::{Json, extract::State};
use consensus::{Change, Comparison, Group, Leadership, Membership, Verdict};
use ids::{NodeId, ShardId};
use machine::Read as _;
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::Instant;

use super::{Admin, Body, Tenant, parse};
use crate::{
    error::{self, ApiError},
    replicas,
    wiring::App,
};

type Result<T> = std::result::Result<T, ApiError>;

/// How long the replicas of a shard are compared again that could not all be asked.
const COMPARE_WITHIN: Duration = Duration::from_secs(15);
const COMPARE_PAUSE: Duration = Duration::from_millis(250);

/// What this node knows of the cluster and of itself.
pub(super) async fn status(State(app): State<Arc<App>>, _tenant: Tenant) -> Json<Value> {
    let (status, node) = (app.sessions.status(), app.sessions.node());
    let identity = node.identity();
    let shards: BTreeMap<String, Value> = status
        .shards
        .iter()
        .map(|(shard, lead)| {
            let (leader, leads_in_term) = match lead {
                Leadership::Here { term } => (Some(identity.node), Some(*term)),
                Leadership::Elsewhere { leader } => (*leader, None),
            };
            let group = &node.groups()[shard];
            let (members, progress) = (group.members(), group.progress());
            let ids = |voter: bool| -> Vec<u64> {
                members.iter().filter(|(_, of)| of.voter == voter).map(|(id, _)| id.0).collect()
            };
            let value = json!({"leader": leader.map(|node| node.0), "leads_in_term": leads_in_term,
                "term": progress.term, "voters": ids(true), "learners": ids(false), "log_from": progress.log_from,
                "committed": progress.committed, "applied": progress.applied,
                "position": group.latest().shard().position.0});
            (shard.to_string(), value)
        })
        .collect();
    let releases = node.releases();
    let nodes: Vec<Value> = members(&app)
        .iter()
        .map(|(id, of)| {
            let release = releases.get(id);
            json!({"id": id.0, "name": of.member.name, "peer": of.member.peer, "http": of.member.http,
                "grpc": of.member.grpc, "this": *id == identity.node,
                "version": release.map(|release| &release.version).filter(|version| !version.is_empty()),
                "feature_level": release.map(|release| release.machine_version)})
        })
        .collect();
    let providers: Vec<Value> = app
        .sessions
        .providers()
        .into_iter()
        .map(|provider| {
            json!({"name": provider.name, "circuit": provider.breaker.name(), "in_flight": provider.in_flight,
                "simulated": provider.simulated})
        })
        .collect();
    Json(json!({
        "cluster": format!("{:032x}", identity.cluster),
        "node": identity.node.0,
        "region": identity.region.0,
        "nodes": nodes,
        "shards": shards,
        "providers": providers,
        "simulated": app.sessions.is_simulated(),
        "broken": status.broken.iter().map(|(shard, why)| (shard.to_string(), why)).collect::<BTreeMap<_, _>>(),
        "writes_stopped": status.writes_stopped,
        "draining": status.draining,
        "starts": status.starts,
        "backup": app.backups.newest().map(|(id, at)| json!({"id": id, "begun_at": at.to_string(),
            "overdue": app.backups.is_overdue()})),
        "refused": status.refused,
        "clock_offset_ms": status.clock_offset_ms,
        "work_running": app.sessions.running_count(),
        "log_syncs": status.log_syncs,
        "version": env!("CARGO_PKG_VERSION"),
        "feature_level": node.machine_version(),
    }))
}

/// How far every replica of every shard is behind, and what came of it when they were last compared.
pub(super) async fn replicas(State(app): State<Arc<App>>, _tenant: Tenant) -> Json<Value> {
    Json(replicas::everywhere(&app).await)
}

/// The nodes of all shards.
fn members(app: &App) -> BTreeMap<NodeId, Membership> {
    app.sessions.node().groups().values().flat_map(Group::members).collect()
}

/// A node by its id or its name.
fn find(app: &App, named: &Value) -> Result<NodeId> {
    let all = members(app);
    let found = match named {
        Value::Number(id) => id.as_u64().map(NodeId).filter(|id| all.contains_key(id)),
        Value::String(name) => {
            let by_id = name.parse().ok().map(NodeId).filter(|id| all.contains_key(id));
            by_id.or_else(|| all.iter().find(|(_, of)| of.member.name == *name).map(|(id, _)| *id))
        }
        _ => return Err(ApiError::invalid("node: expected a node's id or its name")),
    };
    let names = || all.values().map(|of| of.member.name.clone()).collect::<Vec<_>>().join(", ");
    found.ok_or_else(|| ApiError::not_found(format!("node {named}; the nodes are {}", names())))
}

/// A cluster that exists can not be founded again.
pub(super) async fn init(State(app): State<Arc<App>>, _admin: Admin) -> Result<Json<Value>> {
    let cluster = app.sessions.node().identity().cluster;
    Err(ApiError::new(error::CONFLICT, format!("this node belongs to cluster {cluster:032x} already")))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Remove {
    node: Value,
}

/// Takes a node out of every shard. Done again, it changes nothing.
pub(super) async fn remove(State(app): State<Arc<App>>, _admin: Admin, body: Body) -> Result<Json<Value>> {
    let request: Remove = parse(body)?;
    let node = find(&app, &request.node)?;
    let changed = app.sessions.node().change_members(&Change::Remove { node }).await;
    changed.map_err(|error| ApiError::new(error::CONFLICT, error.to_string()))?;
    Ok(Json(json!({"removed": node.0})))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Transfer {
    shard: u16,
    to: Option<Value>,
}

/// Hands over the lead of a shard; to whoever is best where nobody is named.
pub(super) async fn transfer(State(app): State<Arc<App>>, _admin: Admin, body: Body) -> Result<Json<Value>> {
    let request: Transfer = parse(body)?;
    let to = request.to.map(|to| find(&app, &to)).transpose()?;
    let shard = ShardId(request.shard);
    let group = app.sessions.node().groups().get(&shard);
    let group = group.ok_or_else(|| ApiError::not_found(format!("shard {shard}")))?;
    group.hand_over_anywhere(to).await;
    let now = match *group.leadership().borrow() {
        Leadership::Here { .. } => Some(group.node()),
        Leadership::Elsewhere { leader } => leader,
    };
    Ok(Json(json!({"shard": shard.0, "leader": now.map(|node| node.0)})))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Drain {
    #[serde(default)]
    undo: bool,
}

/// Hands over every lead of this node, and takes none from now on; or takes leads again.
pub(super) async fn drain(State(app): State<Arc<App>>, _admin: Admin, body: Body) -> Result<Json<Value>> {
    let request: Drain = parse(body)?;
    let node = app.sessions.node();
    if request.undo {
        node.undrain();
    } else {
        node.drain().await;
    }
    let leads = node.status().shards.values().filter(|lead| matches!(lead, Leadership::Here { .. })).count();
    Ok(Json(json!({"draining": node.status().draining, "leads": leads})))
}

/// Brings the newest feature level into force, once every node knows it. Done again, it changes nothing.
pub(super) async fn finalize(State(app): State<Arc<App>>, _admin: Admin) -> Result<Json<Value>> {
    let finalized = app.sessions.node().finalize().await;
    let level = finalized.map_err(|error| ApiError::new(error::CONFLICT, error.to_string()))?;
    Ok(Json(json!({"feature_level": level})))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Verify {
    #[serde(default)]
    scrub: bool,
}

/// Compares the replicas of a shard, and again while its leader or some replica can not be asked: that may be an
/// election, or a node that comes back.
async fn compare(shard: ShardId, group: &Group, until: Instant) -> Value {
    loop {
        let compared = group.compare().await;
        let verdict = compared.as_ref().map(Comparison::verdict);
        if matches!(verdict, None | Some(Verdict::Incomplete)) && Instant::now() < until {
            tokio::time::sleep(COMPARE_PAUSE).await;
            continue;
        }
        let state = verdict.map_or("unknown", Verdict::name);
        let Some(comparison) = compared else { return json!({"shard": shard.0, "state": state}) };
        let digests: BTreeMap<String, String> =
            comparison.digests.iter().map(|(node, digest)| (node.to_string(), digest.to_string())).collect();
        return json!({"shard": shard.0, "state": state, "position": comparison.position.0, "digests": digests});
    }
}

/// Compares the replicas of every shard at one position; with `scrub`, has every node read all its rows as well.
pub(super) async fn verify(State(app): State<Arc<App>>, _admin: Admin, body: Body) -> Result<Json<Value>> {
    let request: Verify = parse(body)?;
    let node = app.sessions.node();
    let until = Instant::now() + COMPARE_WITHIN;
    let groups = node.groups();
    let compared = groups.iter().map(|(shard, group)| compare(*shard, group, until));
    let shards = futures_util::future::join_all(compared).await;
    let mut equal = shards.iter().all(|of| of["state"] == "equal");
    let mut scrubbed = Vec::new();
    if request.scrub {
        let peers = node.peers();
        let asked = peers.nodes().into_iter().map(|of| {
            let peers = peers.clone();
            async move { (of, peers.scrub(of).await) }
        });
        for (of, reports) in futures_util::future::join_all(asked).await {
            let Ok(reports) = reports else {
                equal = false;
                scrubbed.push(json!({"node": of.0, "problem": "the node was not reached"}));
                continue;
            };
            equal &= reports.iter().all(|report| report.problem.is_none());
            scrubbed.extend(reports.into_iter().map(|report| {
                json!({"node": of.0, "shard": report.shard.0, "rows": report.rows, "problem": report.problem})
            }));
        }
    }
    Ok(Json(json!({"equal": equal, "shards": shards, "scrubbed": scrubbed})))
}
