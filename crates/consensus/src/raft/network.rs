//! openraft's network over our connections.

use std::{
    future::Future,
    io, iter,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{Stream, StreamExt as _, future::BoxFuture, stream, stream::BoxStream};
use ids::{NodeId, ShardId};
use machine::Read as _;
use openraft::{
    OptionalSend,
    errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{
        Backoff, NetBackoff, NetSnapshot, NetStreamAppend, NetTransferLeader, NetVote, RPCOption,
        RaftNetworkFactory,
    },
    raft::{
        AppendEntriesRequest, SnapshotResponse, StreamAppendResult, TransferLeaderRequest,
        TransferLeaderResponse, VoteRequest, VoteResponse,
    },
    type_config::alias::{SnapshotOf, VoteOf},
};
use proto::peer::{SnapshotEnd, SnapshotHead, SnapshotPart, request, response, snapshot_part::Part};
use storage::{Exported, StateDb};
use tokio::sync::mpsc;

use super::{Member, Types, machine::SnapshotSource, records};
use crate::net::{CallError, Links, wire};

/// How long to rest before a peer that was away is tried again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// How long a stream of entries may take to open.
const OPEN_TIMEOUT: Duration = Duration::from_secs(2);
/// Parts of a snapshot that may wait to be sent.
const PARTS_LEN: usize = 2;

/// The network of one shard on one node.
#[derive(Debug, Clone)]
pub(crate) struct Network {
    pub(crate) shard: ShardId,
    pub(crate) links: Links,
    pub(crate) state: Arc<StateDb>,
    /// The index of the log's first entry that is not purged.
    pub(crate) first: Arc<AtomicU64>,
}

/// The way from one shard's leader, or candidate, to one peer.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    shard: ShardId,
    target: NodeId,
    links: Links,
    state: Arc<StateDb>,
    first: Arc<AtomicU64>,
    /// Whether it is for heartbeats, which go over the connection on which nothing waits.
    heartbeat: bool,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Client;

    async fn new_client(&mut self, target: u64, node: &Member) -> Client {
        let target = NodeId(target);
        self.links.learn(target, node);
        let (links, state, first) = (self.links.clone(), Arc::clone(&self.state), Arc::clone(&self.first));
        Client { shard: self.shard, target, links, state, first, heartbeat: false }
    }

    async fn new_heartbeat_client(&mut self, target: u64, node: &Member) -> Client {
        Client { heartbeat: true, ..self.new_client(target, node).await }
    }
}

fn unreachable(error: &impl ToString) -> RPCError<Types> {
    RPCError::Unreachable(Unreachable::from_string(error.to_string()))
}

fn call_failed(error: &CallError) -> RPCError<Types> {
    match error {
        CallError::NotSent(_) => unreachable(error),
        CallError::Broken | CallError::Timeout => {
            RPCError::Network(NetworkError::from_string(error.to_string()))
        }
    }
}

/// An answer of another kind than asked for: what the peer has to say instead.
fn unexpected(body: response::Body) -> RPCError<Types> {
    match body {
        response::Body::Problem(problem) => unreachable(&format!("{:?} {}", problem.kind(), problem.message)),
        _ => RPCError::Network(NetworkError::from_string("an answer of another kind than asked for")),
    }
}

fn malformed(error: &io::Error) -> RPCError<Types> {
    RPCError::Network(NetworkError::from_string(error.to_string()))
}

impl Client {
    async fn control(
        &self,
        body: request::Body,
        timeout: Duration,
    ) -> Result<response::Body, RPCError<Types>> {
        let answer = self.links.control(self.target, self.shard, body, timeout).await;
        answer.map_err(|error| call_failed(&error))
    }

    async fn heartbeat(
        &self,
        request: &AppendEntriesRequest<Types>,
        timeout: Duration,
    ) -> Result<StreamAppendResult<Types>, RPCError<Types>> {
        match self.control(request::Body::Heartbeat(wire::heartbeat(request)), timeout).await? {
            response::Body::Heartbeat(response) => {
                wire::to_append_response(response).map_err(|error| malformed(&error))
            }
            other => Err(unexpected(other)),
        }
    }

    async fn ballot(
        &self,
        body: request::Body,
        option: &RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        match self.control(body, option.soft_ttl()).await? {
            response::Body::Voted(voted) => wire::to_voted(voted).map_err(|error| malformed(&error)),
            other => Err(unexpected(other)),
        }
    }
}

impl NetBackoff<Types> for Client {
    fn backoff(&self) -> Option<Backoff> {
        Some(Backoff::new(iter::repeat(RETRY_PAUSE)))
    }
}

pub(crate) type Appended = Result<StreamAppendResult<Types>, RPCError<Types>>;

impl NetStreamAppend<Types> for Client {
    fn stream_append<'s, S>(
        &'s mut self,
        input: S,
        option: RPCOption,
    ) -> BoxFuture<'s, Result<BoxStream<'s, Appended>, RPCError<Types>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        if self.heartbeat {
            let this = &*self;
            let answers = input.then(move |request| {
                let timeout = option.soft_ttl();
                async move { this.heartbeat(&request, timeout).await }
            });
            return Box::pin(async move { Ok(answers.boxed()) });
        }
        Box::pin(async move {
            let opened = self.open(input).await;
            if opened.is_err() {
                // openraft rests before it makes a request, and of a stream that does not open it makes none: it
                // would try again at once, as long as the peer is away.
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            opened
        })
    }
}

impl Client {
    /// Opens a stream of entries.
    async fn open<S>(&self, input: S) -> Result<BoxStream<'static, Appended>, RPCError<Types>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        let mut client =
            self.links.append_client(self.target).map_err(|status| unreachable(&status.message()))?;
        let hole = Arc::new(AtomicBool::new(false));
        let whole = up_to_a_hole(input, Arc::clone(&self.first), Arc::clone(&hole));
        #[cfg(feature = "mutants")]
        let (whole, early) = crate::mutants::answered_when_sent(whole);
        let mut request = self.links.me().request(self.target, whole.map(wire::append_request));
        request.metadata_mut().insert(crate::net::header::SHARD, self.shard.0.into());
        let opened = tokio::time::timeout(OPEN_TIMEOUT, client.append(request));
        let answers = opened
            .await
            .map_err(|_| unreachable(&"the stream of entries did not open in time"))?
            .map_err(|status| unreachable(&status.message()))?;
        let known = answers.metadata().get(crate::net::header::MACHINE_VERSION);
        // Release 0.1 did not say.
        let known = known.and_then(|known| known.to_str().ok()?.parse().ok()).unwrap_or(1);
        if self.state.latest(self.shard).shard().machine_version > known {
            return Err(unreachable(&"its release is too old to apply entries of this shard"));
        }
        let answers = answers.into_inner();
        let answers = answers.map(|answer| match answer {
            Ok(answer) => wire::to_append_response(answer).map_err(|error| malformed(&error)),
            Err(status) => Err(unreachable(&status.message())),
        });
        let ended = stream::once(async move {
            let purged = "the entries that it lacks are purged: it needs the state";
            hole.load(Ordering::Acquire).then(|| Err(unreachable(&purged)))
        });
        let answers = answers.chain(ended.filter_map(std::future::ready)).boxed();
        #[cfg(feature = "mutants")]
        let answers = stream::select(answers, early).boxed();
        Ok(answers)
    }
}

/// The requests before the first that lacks its entries, as they were purged meanwhile: one without any, about a place
/// before the `first` entry of the log. With it the stream ends, and Raft is told so that it sends the state instead.
/// (openraft 0.10.0-alpha.37 forgets that a stream is under way to a peer when something else that it sends there
/// fails, and purges what the stream has yet to send.)
fn up_to_a_hole<S>(
    input: S,
    first: Arc<AtomicU64>,
    hole: Arc<AtomicBool>,
) -> impl Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static
where
    S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
{
    input.take_while(move |request| {
        let next = request.prev_log_id.map_or(0, |previous| previous.index() + 1);
        let lacks = request.entries.is_empty() && next < first.load(Ordering::Acquire);
        if lacks {
            hole.store(true, Ordering::Release);
        }
        std::future::ready(!lacks)
    })
}

impl NetVote<Types> for Client {
    async fn vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ballot(request::Body::Vote(wire::ballot(&rpc)), &option).await
    }

    async fn pre_vote(
        &mut self,
        rpc: VoteRequest<Types>,
        option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        self.ballot(request::Body::PreVote(wire::ballot(&rpc)), &option).await
    }
}

impl NetTransferLeader<Types> for Client {
    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        option: RPCOption,
    ) -> Result<TransferLeaderResponse<Types>, RPCError<Types>> {
        let body = request::Body::Transfer(wire::transfer(&request));
        match self.control(body, option.soft_ttl()).await? {
            response::Body::Transferred(refusal) if refusal.is_empty() => Ok(Ok(())),
            response::Body::Transferred(refusal) => Err(unreachable(&refusal)),
            other => Err(unexpected(other)),
        }
    }
}

impl NetSnapshot<Types> for Client {
    type SnapshotData = SnapshotSource;

    /// Sends the shard as it is now, which is at least what `snapshot` says: the peer may only gain by it.
    async fn full_snapshot(
        &mut self,
        vote: VoteOf<Types>,
        snapshot: SnapshotOf<Types, SnapshotSource>,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        let SnapshotSource::Live { db, shard } = snapshot.snapshot else {
            return Err(unreachable(&"a snapshot that is being installed is not sent on").into());
        };
        let (parts, receiver) = mpsc::channel(PARTS_LEN);
        let own_vote = records::vote(&vote);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = export(&db, shard, own_vote, &parts)
                && error.kind() != io::ErrorKind::BrokenPipe
            {
                tracing::error!(%shard, %error, "the shard's state can not be read for a peer");
            }
        });
        let send = async {
            let mut client = self
                .links
                .snapshot_client(self.target)
                .await
                .map_err(|status| unreachable(&status.message()))?;
            let parts = stream::unfold(receiver, |mut parts| async move {
                parts.recv().await.map(|part: SnapshotPart| (part, parts))
            });
            let request = self.links.me().request(self.target, parts);
            client.install_snapshot(request).await.map_err(|status| unreachable(&status.message()))
        };
        let answer = tokio::select! {
            answer = send => answer?.into_inner(),
            closed = cancel => return Err(closed.into()),
        };
        let vote = wire::required("a vote", answer.vote).map_err(|error| malformed(&error))?;
        Ok(SnapshotResponse::new(records::to_vote(vote)))
    }
}

/// Reads a shard and hands it over part by part.
fn export(
    db: &StateDb,
    shard: ShardId,
    vote: proto::record::raft::Vote,
    parts: &mpsc::Sender<SnapshotPart>,
) -> io::Result<()> {
    let send = |part| {
        let gone = |_| io::Error::new(io::ErrorKind::BrokenPipe, "the peer went away");
        parts.blocking_send(SnapshotPart { part: Some(part) }).map_err(gone)
    };
    let (mut count, mut sum) = (0u64, 0u32);
    db.export(shard, |exported| match exported {
        Exported::Applied(applied) => {
            send(Part::Head(SnapshotHead { shard: shard.0.into(), vote: Some(vote), applied }))
        }
        Exported::Rows(rows) => {
            for (key, value) in &rows {
                count += 1;
                sum = storage::row_checksum(sum, key, value);
            }
            let (keys, values) = rows.into_iter().unzip();
            send(Part::Rows(proto::peer::Rows { keys, values }))
        }
    })?;
    send(Part::End(SnapshotEnd { rows: count, crc32c: sum }))
}

#[cfg(test)]
mod tests {
    use storage::StateOptions;

    use super::*;
    use crate::net::{Identified, Start};

    /// openraft tries again as soon as it is told that a stream did not open.
    #[tokio::test]
    async fn a_peer_that_is_away_is_asked_ten_times_a_second_at_most() {
        let temp = tempfile::tempdir().unwrap();
        let options = StateOptions { block_cache_bytes: 1 << 20, cached_rows: 8 };
        let me = Identified { cluster: 1, node: NodeId(1), start: Start { count: 1, mark: 1 } };
        let mut network = Network {
            shard: ShardId(0),
            links: Links::new(me, tokio::runtime::Handle::current(), None),
            state: Arc::new(StateDb::open(temp.path(), options).unwrap()),
            first: Arc::default(),
        };
        // Nobody listens on a port that was free a moment ago.
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let member = Member { peer: free.to_string(), ..Member::default() };
        let mut client = network.new_client(2, &member).await;
        let began = tokio::time::Instant::now();
        let option = RPCOption::new(Duration::from_millis(50));
        let opened = client.stream_append(stream::pending::<AppendEntriesRequest<Types>>(), option).await;
        assert!(matches!(opened.err(), Some(RPCError::Unreachable(_))));
        assert!(began.elapsed() >= RETRY_PAUSE);
    }
}
