//! The other end: what a node answers to its peers.

use std::{
    collections::BTreeMap,
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, future::BoxFuture, stream};
use ids::{NodeId, ShardId};
use openraft::raft::SnapshotResponse;
use parking_lot::RwLock;
use proto::peer::{
    self, AppendRequest, AppendResponse, Request, Requests, Response, Responses, SnapshotPart,
    peer_service_server::{PeerService, PeerServiceServer},
    problem::Kind,
    request, response,
    snapshot_part::Part,
};
use storage::{Identity, StateDb};
use tls::{Incoming, Tls, Whom};
use tokio::sync::{mpsc, watch};
use tonic::{Status, Streaming, metadata::MetadataMap, transport::server::TcpIncoming};

use super::{
    Pace, Start, Starts, header,
    links::{MESSAGE_BYTES_MAX, problem, propose_problem},
    starts::Met,
    wire,
};
use crate::{
    ClusterClock, Group, Member, Observer, ScrubReport, equality,
    members::{self, Change},
    raft::{SnapshotSource, records},
    versions,
};

/// Answers that may wait to be sent, a stream.
const ANSWERS_LEN: usize = 4_096;
const MESSAGE_LEN: usize = 512;
/// How long a node that wants to become a member is waited for.
const ADMIT_TIMEOUT: Duration = Duration::from_secs(600);

/// Answers questions of the layer above.
pub(crate) type AskHandler = Arc<dyn Fn(Bytes) -> BoxFuture<'static, Bytes> + Send + Sync>;

/// What a node knows when it answers.
pub(crate) struct Service {
    pub(crate) identity: Identity,
    pub(crate) state: Arc<StateDb>,
    /// Empty until the node's shards run.
    pub(crate) groups: RwLock<BTreeMap<ShardId, Group>>,
    /// Whether the node is about to stop: it is given no more leads.
    pub(crate) draining: AtomicBool,
    /// Whether it gives up those that it has, also those that it comes by.
    pub(crate) resigning: AtomicBool,
    /// Why writes are stopped, if they are.
    pub(crate) stopped: watch::Receiver<Option<String>>,
    pub(crate) asked: RwLock<Option<AskHandler>>,
    pub(crate) starts: Starts,
    /// How fast states are taken in.
    pub(crate) intake: Pace,
    pub(crate) clock: Arc<ClusterClock>,
    pub(crate) observer: Arc<dyn Observer>,
}

type Answer<T> = Result<tonic::Response<T>, Status>;
type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

impl Service {
    fn group(&self, shard: u32) -> Option<Group> {
        self.groups.read().get(&ShardId(u16::try_from(shard).ok()?)).cloned()
    }

    /// A node that is still taking in shards has its log and its disk full of them: whoever it led would wait.
    fn must_not_lead(&self) -> bool {
        self.draining.load(Ordering::SeqCst) || self.gives_up_leads()
    }

    /// Whether whatever it leads is to be led by another, at once.
    pub(crate) fn gives_up_leads(&self) -> bool {
        self.resigning.load(Ordering::SeqCst)
            || self.stopped.borrow().is_some()
            || !members::is_member(&self.groups.read(), self.identity.node)
    }

    /// Refuses who is of another cluster, or means another node.
    fn check(&self, metadata: &MetadataMap) -> Result<Met, Status> {
        let text = |name| metadata.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let cluster = format!("{:032x}", self.identity.cluster);
        if text(header::CLUSTER) != cluster {
            let message = format!("this node is of cluster {cluster}, not of {:?}", text(header::CLUSTER));
            return Err(Status::failed_precondition(message));
        }
        if text(header::TO) != self.identity.node.to_string() {
            let message = format!("this is node {}, not {}", self.identity.node, text(header::TO));
            return Err(Status::failed_precondition(message));
        }
        let from = text(header::FROM).parse().map(NodeId);
        let from = from.map_err(|_| Status::invalid_argument("the sender does not say which node it is"))?;
        if from == self.identity.node {
            return Err(Status::failed_precondition(format!(
                "{from} is the id of this node, not of another"
            )));
        }
        let start = text(header::START).parse::<Start>();
        let start =
            start.map_err(|_| Status::invalid_argument("the sender does not say which start it is"))?;
        let in_force = versions::in_force(&self.groups.read());
        // Release 0.1 did not say.
        let knows: u32 = text(header::MACHINE_VERSION).parse().unwrap_or(1);
        if knows < in_force {
            // With the code that release 0.1 tells its operator of.
            return Err(Status::already_exists(format!(
                "node {from} runs an older release, which knows feature level {knows}, and level {in_force} is in \
                 force: start this release ({}) there",
                env!("CARGO_PKG_VERSION")
            )));
        }
        self.starts.meet(from, start)
    }

    async fn answer(self: Arc<Self>, from: NodeId, request: Request) -> Response {
        let id = request.id;
        let body = match (self.group(request.shard), request.body) {
            (_, Some(request::Body::Greet(_))) => response::Body::Greeted(peer::Greeted {
                draining: self.must_not_lead(),
                wall_micros: self.clock.machine_wall().0,
                member: self.groups.read().values().any(|group| group.members().contains_key(&from)),
                machine_version: machine::MACHINE_VERSION,
                version: env!("CARGO_PKG_VERSION").to_owned(),
            }),
            (_, Some(request::Body::Ask(question))) => {
                let handler = self.asked.read().clone();
                match handler {
                    Some(handler) => response::Body::Answer(handler(question).await),
                    None => problem(Kind::Stopping, "the node is starting"),
                }
            }
            (_, Some(request::Body::Scrub(_))) => {
                let shards = self.groups.read().keys().copied().collect();
                let reports = equality::scrub(&self.state, shards).await;
                let shard = |of: ScrubReport| peer::scrubbed::Shard {
                    shard: u32::from(of.shard.0),
                    rows: of.rows,
                    problem: of.problem.unwrap_or_default(),
                };
                response::Body::Scrubbed(peer::Scrubbed { shards: reports.into_iter().map(shard).collect() })
            }
            (None, _) => problem(Kind::NoSuchShard, format!("shard {} does not run here", request.shard)),
            (_, None) => problem(Kind::Refused, "a question that this version does not know"),
            (Some(group), Some(body)) => {
                let answered = self.answer_for(group, body).await;
                answered.unwrap_or_else(|error| problem(Kind::Refused, error.to_string()))
            }
        };
        Response { id, body: Some(body) }
    }

    async fn answer_for(&self, group: Group, body: request::Body) -> io::Result<response::Body> {
        let stopped = || problem(Kind::Stopping, "the shard has stopped");
        Ok(match body {
            request::Body::Heartbeat(heartbeat) => {
                let request = wire::to_heartbeat(heartbeat)?;
                match group.raft.append_entries(request.clone()).await {
                    Ok(answer) => response::Body::Heartbeat(wire::heartbeat_response(answer, &request)),
                    Err(_) => stopped(),
                }
            }
            request::Body::Vote(ballot) => match group.raft.vote(wire::to_ballot(ballot)?).await {
                Ok(answer) => response::Body::Voted(wire::voted(&answer)),
                Err(_) => stopped(),
            },
            request::Body::PreVote(ballot) => match group.raft.pre_vote(wire::to_ballot(ballot)?).await {
                Ok(answer) => response::Body::Voted(wire::voted(&answer)),
                Err(_) => stopped(),
            },
            request::Body::Transfer(_) if self.must_not_lead() => {
                response::Body::Transferred("the node is about to stop, can not write, or still joins".into())
            }
            request::Body::Transfer(transfer) => {
                match group.raft.handle_transfer_leader(wire::to_transfer(transfer)?).await {
                    Ok(Ok(())) => response::Body::Transferred(String::new()),
                    Ok(Err(refusal)) => response::Body::Transferred(refusal.to_string()),
                    Err(_) => stopped(),
                }
            }
            request::Body::Propose(command) => {
                let command = proto::record::decode_command(&command).map_err(records::invalid)?;
                match group.propose_here(command).await {
                    Ok((outcome, index)) => response::Body::Proposed(peer::Proposed {
                        outcome: proto::record::encode_outcome(&outcome),
                        index,
                    }),
                    Err(error) => propose_problem(&error),
                }
            }
            request::Body::ReadIndex(_) => match group.read_index().await {
                Ok(index) => response::Body::ReadIndex(index),
                Err(error) => propose_problem(&error.into()),
            },
            request::Body::Change(change) => match Change::from_message(change) {
                Some(change) => match members::change_here(&group, change).await {
                    Ok(()) => response::Body::Changed(peer::Empty {}),
                    Err(error) => problem(Kind::Refused, error.to_string()),
                },
                None => problem(Kind::Refused, "a change that this version does not know"),
            },
            request::Body::HandOver(to) => {
                group.hand_over((to != 0).then_some(NodeId(to))).await;
                response::Body::HandedOver(peer::Empty {})
            }
            request::Body::DigestBefore(index) => {
                let mark = group.machine.mark(index).await;
                let digest = mark.map(|mark| mark.digest.0.to_be_bytes().to_vec()).unwrap_or_default();
                response::Body::Digest(digest.into())
            }
            request::Body::Compare(_) => match group.compare_here().await {
                Some(comparison) => response::Body::Compared(comparison.message()),
                None => problem(Kind::NotLeader, "the replicas can not be compared now"),
            },
            request::Body::Greet(_) | request::Body::Ask(_) | request::Body::Scrub(_) => {
                problem(Kind::Refused, "not a question about a shard")
            }
        })
    }

    async fn receive_snapshot(
        &self,
        mut parts: Streaming<SnapshotPart>,
    ) -> Result<peer::SnapshotResponse, Status> {
        let internal = |error: &dyn std::fmt::Display| Status::internal(error.to_string());
        let Some(Part::Head(head)) = parts.message().await?.and_then(|part| part.part) else {
            return Err(Status::invalid_argument("a snapshot begins with its head"));
        };
        let group =
            self.group(head.shard).ok_or_else(|| Status::unavailable("the shard does not run here"))?;
        let vote = head.vote.map(records::to_vote);
        let vote = vote.ok_or_else(|| Status::invalid_argument("a snapshot names its leader's vote"))?;
        let (log_id, membership) = records::open_applied(&head.applied).map_err(|error| internal(&error))?;
        tracing::info!(shard = %group.shard(), "a snapshot is coming in");
        let (state, shard, applied) = (Arc::clone(&self.state), group.shard(), head.applied);
        let mut import = blocking(move || state.import(shard, applied)).await?;
        loop {
            match parts.message().await?.and_then(|part| part.part) {
                Some(Part::Rows(rows)) if rows.keys.len() == rows.values.len() => {
                    self.intake.take(rows.keys.iter().chain(&rows.values).map(Bytes::len).sum()).await;
                    import =
                        blocking(move || import.put(rows.keys.into_iter().zip(rows.values)).map(|()| import))
                            .await?;
                }
                Some(Part::End(end)) if (end.rows, end.crc32c) == import.sum() => break,
                Some(Part::End(_)) => {
                    return Err(Status::data_loss("rows are missing, or changed on the way"));
                }
                _ => return Err(Status::data_loss("the snapshot ended before its end")),
            }
        }
        let (rows, _) = import.sum();
        let meta = openraft::type_config::alias::SnapshotMetaOf::<crate::raft::Types> {
            last_log_id: log_id,
            last_membership: membership,
        };
        let snapshot =
            openraft::storage::Snapshot { meta, snapshot: SnapshotSource::Staged(Box::new(import)) };
        let SnapshotResponse { vote, .. } = group
            .raft
            .install_full_snapshot(vote, snapshot)
            .await
            .map_err(|error| Status::unavailable(error.to_string()))?;
        tracing::info!(shard = %group.shard(), rows, "the snapshot is installed");
        Ok(peer::SnapshotResponse { vote: Some(records::vote(&vote)) })
    }
}

/// Runs what waits for the disk where nothing waits for it.
async fn blocking<T: Send + 'static>(
    act: impl FnOnce() -> Result<T, storage::Error> + Send + 'static,
) -> Result<T, Status> {
    match tokio::task::spawn_blocking(act).await {
        Ok(Ok(done)) => Ok(done),
        Ok(Err(error)) => Err(Status::data_loss(error.to_string())),
        Err(error) => Err(Status::internal(error.to_string())),
    }
}

/// The service, as tonic wants it.
#[derive(Clone)]
struct Served(Arc<Service>);

#[tonic::async_trait]
impl PeerService for Served {
    type LaneStream = Answers<Responses>;

    async fn lane(&self, request: tonic::Request<Streaming<Requests>>) -> Answer<Self::LaneStream> {
        let met = self.0.check(request.metadata())?;
        let mut questions = request.into_inner();
        let (answers, receiver) = mpsc::channel::<Response>(ANSWERS_LEN);
        let service = Arc::clone(&self.0);
        tokio::spawn(async move {
            // Held as long as the peer is connected.
            let met = met;
            let from = met.node;
            while let Ok(Some(message)) = questions.message().await {
                for question in message.requests {
                    let (service, answers) = (Arc::clone(&service), answers.clone());
                    tokio::spawn(async move {
                        // The peer may be gone.
                        let _ = answers.send(service.answer(from, question).await).await;
                    });
                }
            }
        });
        let messages = stream::unfold(receiver, |mut receiver| async move {
            let mut responses = Vec::new();
            (receiver.recv_many(&mut responses, MESSAGE_LEN).await > 0)
                .then_some((Ok(Responses { responses }), receiver))
        });
        Ok(tonic::Response::new(messages.boxed()))
    }

    type AppendStream = Answers<AppendResponse>;

    async fn append(&self, request: tonic::Request<Streaming<AppendRequest>>) -> Answer<Self::AppendStream> {
        let met = self.0.check(request.metadata())?;
        let shard = request.metadata().get(header::SHARD).and_then(|shard| shard.to_str().ok());
        let group = shard.and_then(|shard| self.0.group(shard.parse().ok()?));
        let group = group.ok_or_else(|| Status::unavailable("the shard does not run here"))?;
        let (service, of_group) = (Arc::clone(&self.0), group.clone());
        let entries = stream::unfold((request.into_inner(), met), move |(mut requests, met)| {
            let (service, group) = (Arc::clone(&service), of_group.clone());
            async move {
                let message = requests.message().await.ok()??;
                // Nobody waits for a node that only learns: what it catches up with leaves room for the others.
                if !group.has_vote() {
                    service.intake.take(message.entries.iter().map(Bytes::len).sum()).await;
                }
                match wire::to_append_request(message) {
                    Ok(append) => Some((append, (requests, met))),
                    Err(error) => {
                        tracing::error!(from = %met.node, %error, "entries that can not be read");
                        None
                    }
                }
            }
        });
        let answers = group.raft.stream_append(entries).map(|result| match result {
            Ok(result) => Ok(wire::append_response(&result)),
            Err(fatal) => Err(Status::unavailable(fatal.to_string())),
        });
        let mut response = tonic::Response::new(answers.boxed() as Self::AppendStream);
        response.metadata_mut().insert(header::MACHINE_VERSION, machine::MACHINE_VERSION.into());
        Ok(response)
    }

    async fn install_snapshot(
        &self,
        request: tonic::Request<Streaming<SnapshotPart>>,
    ) -> Answer<peer::SnapshotResponse> {
        let _met = self.0.check(request.metadata())?;
        let received = self.0.receive_snapshot(request.into_inner()).await;
        if let Err(status) = &received {
            tracing::warn!(reason = status.message(), "a snapshot was not taken");
        }
        received.map(tonic::Response::new)
    }

    async fn discover(&self, _: tonic::Request<peer::DiscoverRequest>) -> Answer<peer::DiscoverResponse> {
        if !members::is_member(&self.0.groups.read(), self.0.identity.node) {
            return Err(Status::unavailable("this node is not a member of its cluster yet"));
        }
        let identity = &self.0.identity;
        Ok(tonic::Response::new(peer::DiscoverResponse {
            cluster: identity.cluster.to_be_bytes().to_vec().into(),
            region: identity.region.0.into(),
            shards: identity.shards.into(),
            node: identity.node.0,
            machine_version: versions::in_force(&self.0.groups.read()),
        }))
    }

    async fn admit(&self, request: tonic::Request<peer::AdmitRequest>) -> Answer<peer::AdmitResponse> {
        let _met = self.0.check(request.metadata())?;
        let member = request.into_inner().member;
        let member = member.ok_or_else(|| Status::invalid_argument("a member is missing"))?;
        let (node, member) = (NodeId(member.node), Member::from_record(member));
        let groups = self.0.groups.read().clone();
        let add = Change::Add { node, member };
        let admitted = members::change_all(&groups, &add);
        match tokio::time::timeout(ADMIT_TIMEOUT, admitted).await {
            Ok(Ok(())) => Ok(tonic::Response::new(peer::AdmitResponse {})),
            Ok(Err(error)) => Err(Status::aborted(error.to_string())),
            Err(_) => Err(Status::deadline_exceeded("the node did not catch up in time")),
        }
    }
}

/// Serves the peers, as long as the runtime lives.
pub(crate) async fn serve(
    listener: tokio::net::TcpListener,
    service: Arc<Service>,
    tls: Option<Tls>,
) -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let served = PeerServiceServer::new(Served(service))
        .max_decoding_message_size(MESSAGE_BYTES_MAX)
        .max_encoding_message_size(MESSAGE_BYTES_MAX);
    let router = tonic::transport::Server::builder()
        .initial_stream_window_size(Some(8 << 20))
        .initial_connection_window_size(Some(32 << 20))
        .http2_keepalive_interval(Some(Duration::from_secs(1)))
        .http2_keepalive_timeout(Some(Duration::from_secs(3)))
        .add_service(served);
    match tls {
        None => {
            let incoming = TcpIncoming::from(listener).with_nodelay(Some(true));
            router.serve_with_incoming(incoming).await?;
        }
        Some(tls) => {
            let incoming = Incoming::new(listener, tls, Whom::Peers)?;
            router.serve_with_incoming(incoming.into_stream()).await?;
        }
    }
    Ok(())
}
