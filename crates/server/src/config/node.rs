//! `[node]`: the node itself.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};

/// The node itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Node {
    /// Where it keeps its data.
    pub data_dir: PathBuf,
    /// Where HTTP listens.
    pub http: SocketAddr,
    /// Where gRPC listens.
    pub grpc: SocketAddr,
    /// Where the other nodes of its cluster reach it.
    pub peer: SocketAddr,
    /// The host that it tells others to reach it at, a DNS name or an address; empty for the one it listens on.
    pub advertise: String,
    /// What people call it; empty for where its peers reach it.
    pub name: String,
    /// Peer addresses (`host:port`) of nodes of the cluster that a node with a new data directory joins. Empty for a
    /// cluster of its own.
    pub join: Vec<String>,
    /// Its region's number, for a new data directory.
    pub region: u16,
    /// How many shards, for a new data directory; 0 for 4 on at most 4 cores, else 16.
    pub shards: u16,
    /// Allows to listen beyond loopback without TLS.
    pub insecure: bool,
    /// Writes stop while the disk has fewer free MiB.
    pub disk_free_min_mib: u64,
    /// Seconds between two times that the state is made durable and the log shortened; sooner once 64 MiB wait.
    pub flush_seconds: u64,
    /// Entries of a shard's log that are kept for nodes that are behind. One that is further behind takes in the state.
    pub log_entries_kept: u64,
    /// MiB a second that the node takes in while others bring it up to date, so that they have time for their clients.
    pub intake_mib_per_second: u64,
    /// MiB of stored blocks kept in memory.
    pub block_cache_mib: usize,
    /// Seconds that work under way is given to end when the node stops.
    pub drain_seconds: u64,
    /// Milliseconds after which a worker, or a node with workers, that is not heard has lost its tasks.
    pub worker_lease_ms: u64,
    /// Milliseconds in which a worker whose connection broke may come back with its tasks.
    pub worker_reconnect_ms: u64,
}

impl Default for Node {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::from("orchestra-data"),
            http: SocketAddr::from(([127, 0, 0, 1], 7100)),
            grpc: SocketAddr::from(([127, 0, 0, 1], 7101)),
            peer: SocketAddr::from(([127, 0, 0, 1], 7102)),
            advertise: String::new(),
            name: String::new(),
            join: Vec::new(),
            region: 0,
            shards: 0,
            insecure: false,
            disk_free_min_mib: 64,
            flush_seconds: 30,
            log_entries_kept: 1_000,
            intake_mib_per_second: 32,
            block_cache_mib: 64,
            drain_seconds: 300,
            worker_lease_ms: 10_000,
            worker_reconnect_ms: 3_000,
        }
    }
}

impl Node {
    /// What is wrong with it, where the node has certificates, and knows who may call, or does not.
    pub(super) fn check(&self, has_tls: bool, no_tokens: bool) -> Result<(), String> {
        for (what, address) in [("node.http", self.http), ("node.grpc", self.grpc)] {
            let in_the_clear = !has_tls && !self.insecure;
            if !address.ip().is_loopback() && (no_tokens || in_the_clear) {
                return Err(format!(
                    "{what} = {address} is not loopback: it needs [[tokens]], and [tls] or, in the clear, node.insecure = \
                     true (--insecure)"
                ));
            }
        }
        let peer = self.peer.ip();
        if !peer.is_loopback() && !has_tls && !self.insecure {
            return Err(format!(
                "node.peer = {} is not loopback: it needs [tls] or, in the clear, node.insecure = true (--insecure)",
                self.peer
            ));
        }
        if self.advertise.is_empty()
            && [peer, self.http.ip(), self.grpc.ip()].iter().any(std::net::IpAddr::is_unspecified)
        {
            return Err(
                "a node that listens on every address needs node.advertise, the host to reach it at".into()
            );
        }
        for seed in &self.join {
            if !seed
                .rsplit_once(':')
                .is_some_and(|(host, port)| !host.is_empty() && port.parse::<u16>().is_ok())
            {
                return Err(format!("node.join: expected host:port, found {seed:?}"));
            }
        }
        let (lease, reconnect) = (self.worker_lease_ms, self.worker_reconnect_ms);
        if !(1_000..=600_000).contains(&lease) || !(100..=lease).contains(&reconnect) {
            return Err(format!(
                "node.worker_lease_ms must be 1000 to 600000 and node.worker_reconnect_ms 100 to the lease; found \
                 {lease} and {reconnect}"
            ));
        }
        if !(1..=100_000).contains(&self.intake_mib_per_second) {
            return Err(format!(
                "node.intake_mib_per_second must be 1 to 100000; found {}",
                self.intake_mib_per_second
            ));
        }
        if !(1..=3_600).contains(&self.flush_seconds) {
            return Err(format!("node.flush_seconds must be 1 to 3600; found {}", self.flush_seconds));
        }
        if self.shards > 4096 {
            return Err("node.shards must be at most 4096".into());
        }
        Ok(())
    }
}
