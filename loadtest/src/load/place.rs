//! Where a load goes: nodes that are there, on this machine, or a cluster of its own.

use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use providers::simulated;
use testkit::{Cluster, free_address};
use tokio::sync::oneshot;

use super::scenario::{DoneBy, QUEUE, Scenario};

/// Tasks at once of the worker.
const CAPACITY: u32 = 1_024;

/// Nodes, and who works for them.
pub(crate) struct Place {
    /// HTTP URLs of nodes.
    pub(crate) urls: Vec<String>,
    /// How many nodes there are, and whose they are.
    pub(crate) about: String,
    _cluster: Option<Own>,
    /// Dropped, it stops.
    _worker: Option<oneshot::Sender<()>>,
}

/// A cluster that ends with the load.
struct Own {
    _cluster: Cluster,
    _vendor: simulated::Server,
    _temp: tempfile::TempDir,
}

impl Place {
    /// Nodes that are there. Load is only put on this machine.
    pub(crate) fn there(urls: &[String], grpc: &[String], scenario: &Scenario) -> anyhow::Result<Self> {
        for url in urls.iter().chain(grpc) {
            let parsed = reqwest::Url::parse(url).with_context(|| format!("{url} is not a URL"))?;
            let local =
                parsed.host_str().is_some_and(|host| ["127.0.0.1", "localhost", "[::1]"].contains(&host));
            ensure!(local, "{url}: load is only put on this machine");
        }
        let needs_worker = scenario.work.iter().any(|work| work.done_by == DoneBy::Task);
        if needs_worker && grpc.is_empty() {
            bail!("scenario {} has tasks: name the gRPC address of a node with --grpc", scenario.name);
        }
        let urls: Vec<String> = urls.iter().map(|url| url.trim_end_matches('/').to_owned()).collect();
        let about = format!("{} nodes that were there", urls.len());
        Ok(Self { urls, about, _cluster: None, _worker: needs_worker.then(|| work_for(grpc.to_vec())) })
    }

    /// A cluster of its own, with data below a directory, and a simulated vendor.
    pub(crate) async fn start(directory: &Path, nodes: usize) -> anyhow::Result<Self> {
        let temp = tempfile::tempdir_in(directory)?;
        let vendor = simulated::serve(free_address()?, simulated::Options::default(), Vec::new()).await?;
        let config = format!(
            "{}[roles]\ndefault = [\"v/m\"]\n[providers.v]\nwire = \"openai\"\nbase_url = \"{}\"\nconcurrency = 256\n\
             simulated = true\n",
            crate::cluster::CONFIG,
            vendor.base_url()
        );
        let cluster = Cluster::start(temp.path(), nodes, &config).await?;
        let grpc = cluster.members().into_iter().map(|number| cluster.grpc_url(number)).collect();
        Ok(Self {
            urls: cluster.urls(),
            about: format!("{nodes} nodes of its own, with fsync"),
            _cluster: Some(Own { _cluster: cluster, _vendor: vendor, _temp: temp }),
            _worker: Some(work_for(grpc)),
        })
    }
}

/// A worker whose answer to a task is its input.
fn work_for(endpoints: Vec<String>) -> oneshot::Sender<()> {
    let options = worker::Options {
        endpoints,
        name: "loadtest".into(),
        queues: vec![QUEUE.into()],
        capacity: CAPACITY,
        ca: None,
        token: None,
    };
    let (stop, stopped) = oneshot::channel::<()>();
    let answer = |task: worker::Task| async move { Ok(task.input) };
    tokio::spawn(worker::run(options, answer, async {
        // Dropped, it stops as well.
        let _ = stopped.await;
    }));
    stop
}
