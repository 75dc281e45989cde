//! Routes of workers outside the cluster, and of the queues that they serve.

use std::{collections::BTreeMap, sync::Arc};

use axum::{Json, extract::State};
use serde_json::{Value, json};

use super::Tenant;
use crate::wiring::App;

/// The tenant's entries of what every node that answers lists under `what`, with the node.
async fn listed(app: &App, tenant: &str, what: &str) -> Vec<(u64, Value)> {
    let mut found = Vec::new();
    for (node, mut list) in app.sessions.workers().list().await {
        let of_node = list[what].take();
        let entries = of_node.as_array().cloned().unwrap_or_default().into_iter();
        let theirs = entries.filter(|of| of["tenant"] == tenant).map(|mut of| {
            if let Some(of) = of.as_object_mut() {
                of.remove("tenant");
            }
            (node.0, of)
        });
        found.extend(theirs);
    }
    found
}

/// The connected workers.
pub(super) async fn workers(State(app): State<Arc<App>>, Tenant(tenant): Tenant) -> Json<Value> {
    let found = listed(&app, &tenant, "workers").await.into_iter();
    let workers: Vec<Value> = found
        .map(|(node, mut of)| {
            of["node"] = node.into();
            of
        })
        .collect();
    Json(json!({"workers": workers}))
}

/// Every queue with workers or tasks: how many wait, how many run, how many slots there are.
pub(super) async fn queues(State(app): State<Arc<App>>, Tenant(tenant): Tenant) -> Json<Value> {
    #[derive(Default)]
    struct Queue {
        waiting: u64,
        running: u64,
        workers: u64,
        slots: u64,
    }
    let mut queues: BTreeMap<String, Queue> = BTreeMap::new();
    for (_, of) in listed(&app, &tenant, "queues").await {
        let queue = queues.entry(of["queue"].as_str().unwrap_or_default().to_owned()).or_default();
        queue.waiting += of["waiting"].as_u64().unwrap_or(0);
        queue.running += of["running"].as_u64().unwrap_or(0);
    }
    for (_, of) in listed(&app, &tenant, "workers").await {
        for name in of["queues"].as_array().into_iter().flatten().filter_map(Value::as_str) {
            let queue = queues.entry(name.to_owned()).or_default();
            queue.workers += 1;
            queue.slots += of["capacity"].as_u64().unwrap_or(0);
        }
    }
    let shown = |(name, of): (String, Queue)| {
        json!({"queue": name, "waiting": of.waiting, "running": of.running, "workers": of.workers,
            "slots": of.slots})
    };
    Json(json!({"queues": queues.into_iter().map(shown).collect::<Vec<_>>()}))
}
