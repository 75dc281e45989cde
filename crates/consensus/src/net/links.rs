//! The connections of a node to its peers.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Weak},
    time::Duration,
};

use ids::{NodeId, ShardId};
use machine::{Command, Outcome};
use parking_lot::{Mutex, RwLock};
use proto::peer::{Problem, peer_service_client::PeerServiceClient, problem::Kind, request, response};
use tls::{Material, Tls};
use tokio::{runtime::Handle, sync::Notify};
use tonic::transport::{Channel, Endpoint};

use super::{CallError, Start, header, lane::Lane};
use crate::{Member, ProposeError};

pub(crate) type Client = PeerServiceClient<Channel>;

const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection over which nothing comes back for this long is given up.
const KEEPALIVE_INTERVAL: Duration = Duration::from_millis(500);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_millis(1_500);
/// How long a forwarded command is waited for.
const FORWARD_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes of one message: a request holds about 4 MiB of entries, or one larger entry.
pub(crate) const MESSAGE_BYTES_MAX: usize = 32 << 20;

/// Who a node is, as it says in every call.
#[derive(Debug, Clone)]
pub(crate) struct Identified {
    pub(crate) cluster: u128,
    pub(crate) node: NodeId,
    /// Which start of it this is.
    pub(crate) start: Start,
}

impl Identified {
    /// A request that says who asks whom.
    pub(crate) fn request<T>(&self, to: NodeId, message: T) -> tonic::Request<T> {
        let mut request = tonic::Request::new(message);
        let mut put = |name, value: String| {
            if let Ok(value) = value.parse() {
                request.metadata_mut().insert(name, value);
            }
        };
        put(header::CLUSTER, format!("{:032x}", self.cluster));
        put(header::FROM, self.node.to_string());
        put(header::START, self.start.to_string());
        put(header::MACHINE_VERSION, machine::MACHINE_VERSION.to_string());
        put(header::TO, to.to_string());
        request
    }
}

/// A peer, and where it is reached.
pub(crate) struct Peer {
    pub(crate) id: NodeId,
    address: RwLock<String>,
    tls: Option<Tls>,
}

impl Peer {
    fn endpoint(&self) -> Result<Endpoint, tonic::Status> {
        endpoint(&self.address.read(), self.tls.as_ref())
    }

    pub(crate) async fn connect(&self) -> Result<Client, tonic::Status> {
        connect_to(self.endpoint()?).await
    }
}

async fn connect_to(endpoint: Endpoint) -> Result<Client, tonic::Status> {
    let channel = endpoint.connect().await;
    Ok(client(channel.map_err(|error| tonic::Status::unavailable(describe(&error)))?))
}

fn endpoint(address: &str, tls: Option<&Tls>) -> Result<Endpoint, tonic::Status> {
    let invalid = |error| tonic::Status::invalid_argument(format!("{address}: {error}"));
    let scheme = if tls.is_some() { "https" } else { "http" };
    let mut endpoint = Endpoint::from_shared(format!("{scheme}://{address}")).map_err(invalid)?;
    if let Some(tls) = tls {
        endpoint = endpoint.tls_config(tls.current().to_peers()).map_err(invalid)?;
    }
    Ok(endpoint
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .http2_keep_alive_interval(KEEPALIVE_INTERVAL)
        .keep_alive_timeout(KEEPALIVE_TIMEOUT)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(Some(8 << 20))
        .initial_connection_window_size(Some(32 << 20)))
}

fn client(channel: Channel) -> Client {
    PeerServiceClient::new(channel)
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX)
}

/// An error with its causes, the last of which says what happened.
pub(crate) fn describe(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}

/// The connections to one peer.
struct Link {
    peer: Arc<Peer>,
    control: Arc<Lane>,
    forward: Arc<Lane>,
    /// Entries. It connects when used, and again after it broke.
    append: Mutex<Option<Channel>>,
    /// Which certificates that connection was made with.
    made_with: Mutex<Option<Weak<Material>>>,
}

/// The connections of a node to its peers. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Links {
    me: Arc<Identified>,
    runtime: Handle,
    tls: Option<Tls>,
    links: Arc<RwLock<HashMap<NodeId, Arc<Link>>>>,
    /// Why peers do not listen to this process, by peer.
    refused: Refusals,
    /// Told of every peer that is new, or has moved.
    learned: Arc<Notify>,
}

/// Why peers do not listen to a process, by peer.
pub(crate) type Refusals = Arc<Mutex<BTreeMap<NodeId, Refusal>>>;

/// Why a peer does not listen to a process.
#[derive(Debug, Clone)]
pub(crate) struct Refusal {
    /// In its words.
    pub(crate) reason: String,
    /// Whether the process runs on an older copy of its node's directory.
    pub(crate) outdated: bool,
}

impl Links {
    pub(crate) fn new(me: Identified, runtime: Handle, tls: Option<Tls>) -> Self {
        let (links, refused, learned) = (Arc::default(), Arc::default(), Arc::default());
        Self { me: Arc::new(me), runtime, tls, links, refused, learned }
    }

    pub(crate) fn tls(&self) -> Option<&Tls> {
        self.tls.as_ref()
    }

    /// Why a peer does not listen to this process, if one does not.
    pub(crate) fn refused(&self) -> Option<String> {
        self.refused.lock().values().next().map(|refusal| refusal.reason.clone())
    }

    /// Why a peer takes the directory of this process for an older copy, if one does.
    pub(crate) fn outdated(&self) -> Option<String> {
        let refused = self.refused.lock();
        refused.values().find(|refusal| refusal.outdated).map(|refusal| refusal.reason.clone())
    }

    pub(crate) fn me(&self) -> &Identified {
        &self.me
    }

    /// Learns where a node is, or that it has moved.
    pub(crate) fn learn(&self, node: NodeId, member: &Member) {
        if let Some(link) = self.links.read().get(&node)
            && *link.peer.address.read() == member.peer
        {
            return;
        }
        let (address, tls) = (RwLock::new(member.peer.clone()), self.tls.clone());
        let peer = Arc::new(Peer { id: node, address, tls });
        let lane = |what| {
            Arc::new(Lane::new(
                what,
                Arc::clone(&self.me),
                Arc::clone(&peer),
                self.runtime.clone(),
                Arc::clone(&self.refused),
            ))
        };
        let (control, forward) = (lane("control"), lane("forward"));
        let (append, made_with) = (Mutex::default(), Mutex::default());
        let link = Link { peer: Arc::clone(&peer), control, forward, append, made_with };
        self.links.write().insert(node, Arc::new(link));
        self.learned.notify_one();
    }

    /// Waits for a peer that is new, or has moved. One who waits at a time.
    pub(crate) async fn learned(&self) {
        self.learned.notified().await;
    }

    fn link(&self, node: NodeId) -> Result<Arc<Link>, CallError> {
        let found = self.links.read().get(&node).cloned();
        found.ok_or_else(|| CallError::NotSent(format!("the address of node {node} is not known")))
    }

    /// Asks what must not wait behind anything else.
    pub(crate) async fn control(
        &self,
        node: NodeId,
        shard: ShardId,
        body: request::Body,
        timeout: Duration,
    ) -> Result<response::Body, CallError> {
        let lane = Arc::clone(&self.link(node)?.control);
        lane.call(shard.0, body, timeout).await
    }

    /// Asks anything else.
    pub(crate) async fn forward(
        &self,
        node: NodeId,
        shard: ShardId,
        body: request::Body,
        timeout: Duration,
    ) -> Result<response::Body, CallError> {
        let lane = Arc::clone(&self.link(node)?.forward);
        lane.call(shard.0, body, timeout).await
    }

    /// A client for the entries of a shard.
    pub(crate) fn append_client(&self, node: NodeId) -> Result<Client, tonic::Status> {
        let link = self.link(node).map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        let mut slot = link.append.lock();
        let current = self.tls.as_ref().map(|tls| Arc::downgrade(&tls.current()));
        let mut made_with = link.made_with.lock();
        let is_current = match (&*made_with, &current) {
            (Some(before), Some(now)) => before.ptr_eq(now),
            (before, now) => before.is_none() && now.is_none(),
        };
        if slot.is_none() || !is_current {
            let _inside = self.runtime.enter();
            *slot = Some(link.peer.endpoint()?.connect_lazy());
            *made_with = current;
        }
        let channel = slot.clone().ok_or_else(|| tonic::Status::internal("no channel"))?;
        Ok(client(channel))
    }

    /// A connection of its own for a snapshot.
    pub(crate) async fn snapshot_client(&self, node: NodeId) -> Result<Client, tonic::Status> {
        let link = self.link(node).map_err(|error| tonic::Status::unavailable(error.to_string()))?;
        link.peer.connect().await
    }

    /// Proposes to the node that leads a shard: the outcome, and the index that a replica must have applied to show
    /// what came of it.
    pub(crate) async fn propose(
        &self,
        node: NodeId,
        shard: ShardId,
        command: &Command,
    ) -> Result<(Outcome, u64), ProposeError> {
        let body = request::Body::Propose(proto::record::encode_command(command));
        match self.forward(node, shard, body, FORWARD_TIMEOUT).await {
            Ok(response::Body::Proposed(proposed)) => {
                let outcome = proto::record::decode_outcome(&proposed.outcome);
                outcome.map(|outcome| (outcome, proposed.index)).map_err(|_| ProposeError::Unknown)
            }
            Ok(response::Body::Problem(problem)) => Err(to_propose_error(problem)),
            Err(CallError::NotSent(_)) => Err(ProposeError::NotLeader { leader: None }),
            Ok(_) | Err(CallError::Broken | CallError::Timeout) => Err(ProposeError::Unknown),
        }
    }
}

impl std::fmt::Debug for Links {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Links").field("me", &self.me).finish_non_exhaustive()
    }
}

pub(crate) fn problem(kind: Kind, message: impl Into<String>) -> response::Body {
    response::Body::Problem(Problem {
        kind: kind.into(),
        leader: None,
        retry_after_ms: 0,
        message: message.into(),
    })
}

pub(crate) fn propose_problem(error: &ProposeError) -> response::Body {
    let (kind, leader, retry_after_ms) = match error {
        ProposeError::NotLeader { leader } => (Kind::NotLeader, leader.map(|leader| leader.0), 0),
        ProposeError::Overloaded { retry_after_ms } => (Kind::Overloaded, None, *retry_after_ms),
        ProposeError::WritesStopped { .. } => (Kind::WritesStopped, None, 0),
        ProposeError::Unknown => (Kind::Unknown, None, 0),
        ProposeError::Stopped => (Kind::Stopping, None, 0),
    };
    let message = match error {
        ProposeError::WritesStopped { reason } => reason.clone(),
        _ => String::new(),
    };
    response::Body::Problem(Problem { kind: kind.into(), leader, retry_after_ms, message })
}

fn to_propose_error(problem: Problem) -> ProposeError {
    match problem.kind() {
        Kind::NotLeader => ProposeError::NotLeader { leader: problem.leader.map(NodeId) },
        Kind::Overloaded => ProposeError::Overloaded { retry_after_ms: problem.retry_after_ms },
        Kind::WritesStopped => ProposeError::WritesStopped { reason: problem.message },
        // It stops, and with it its lead: another will take it up.
        Kind::Stopping | Kind::NoSuchShard => ProposeError::NotLeader { leader: None },
        Kind::Unknown | Kind::Refused => ProposeError::Unknown,
    }
}

/// A client for a node of which only an address is known.
pub(crate) async fn connect(address: &str, tls: Option<&Tls>) -> Result<Client, tonic::Status> {
    connect_to(endpoint(address, tls)?).await
}
