//! etcd beside us: three nodes of it on this machine, and puts over its own gRPC protocol, so that both are measured in
//! one run on one machine.

use std::{
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::Context as _;
use testkit::{free_address, wait_until};
use tonic::{
    Request,
    client::Grpc,
    codegen::http::uri::PathAndQuery,
    transport::{Channel, Endpoint},
};
use tonic_prost::ProstCodec;

use crate::drive::{self, Driven};

const NODES: usize = 3;
const START_TIMEOUT: Duration = Duration::from_secs(30);

/// `etcdserverpb.PutRequest`, as far as it is used.
#[derive(Clone, PartialEq, prost::Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `etcdserverpb.PutResponse`: that it came is what counts.
#[derive(Clone, Copy, PartialEq, prost::Message)]
struct PutResponse {}

/// Three running nodes. They are killed when this is dropped.
pub(crate) struct Etcd {
    children: Vec<Child>,
    channels: Vec<Channel>,
    temp: tempfile::TempDir,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for child in &mut self.children {
            // Gone already, it is gone.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Etcd {
    /// Starts three nodes. `None` where etcd is not installed.
    pub(crate) async fn start(directory: &Path) -> anyhow::Result<Option<Self>> {
        if Command::new("etcd").arg("--version").stdout(Stdio::null()).status().is_err() {
            return Ok(None);
        }
        let temp = tempfile::tempdir_in(directory)?;
        let mut places = Vec::new();
        for number in 0..NODES {
            places.push((format!("n{number}"), free_address()?, free_address()?));
        }
        let all: Vec<String> = places.iter().map(|(name, _, peer)| format!("{name}=http://{peer}")).collect();
        let mut etcd = Self { children: Vec::new(), channels: Vec::new(), temp };
        for (name, client, peer) in &places {
            let (client, peer) = (format!("http://{client}"), format!("http://{peer}"));
            let child = Command::new("etcd")
                .args(["--name", name, "--data-dir"])
                .arg(etcd.temp.path().join(name))
                .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
                .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
                .args(["--initial-cluster", &all.join(","), "--initial-cluster-state", "new"])
                .args(["--log-level", "error"])
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .context("start etcd")?;
            etcd.children.push(child);
        }
        for (_, client, _) in &places {
            let endpoint = Endpoint::from_shared(format!("http://{client}"))?.tcp_nodelay(true);
            let channel = wait_until("etcd to answer", START_TIMEOUT, async || {
                let channel = endpoint.connect().await.ok()?;
                put(channel.clone(), b"begin".to_vec(), Vec::new()).await.ok()?;
                Some(channel)
            });
            etcd.channels.push(channel.await?);
        }
        Ok(Some(etcd))
    }

    /// Puts of new keys by so many clients.
    pub(crate) async fn puts(
        &self,
        clients: usize,
        seconds: u64,
        value: &'static str,
    ) -> anyhow::Result<Driven> {
        let channels = self.channels.clone();
        let call = move |client: usize, number| {
            let channel = channels[client % NODES].clone();
            async move {
                let key = format!("client-{client}-{number}").into_bytes();
                put(channel, key, value.as_bytes().to_vec()).await
            }
        };
        drive::closed(clients, seconds, call).await
    }
}

async fn put(channel: Channel, key: Vec<u8>, value: Vec<u8>) -> anyhow::Result<()> {
    let mut grpc = Grpc::new(channel);
    grpc.ready().await?;
    let path = PathAndQuery::from_static("/etcdserverpb.KV/Put");
    let codec: ProstCodec<PutRequest, PutResponse> = ProstCodec::default();
    grpc.unary(Request::new(PutRequest { key, value }), path, codec).await?;
    Ok(())
}
