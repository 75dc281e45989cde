//! The network between nodes. A cluster has one node in this version: there is nobody to reach.

use std::{future::Future, io};

use openraft::{
    OptionalSend,
    errors::{RPCError, ReplicationClosed, StreamingError, Unreachable},
    network::{RPCOption, RaftNetworkFactory, RaftNetworkV2},
    raft::{AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, VoteRequest, VoteResponse},
    type_config::alias::{SnapshotOf, VoteOf},
};

use super::{Types, machine::SnapshotSource};

/// The network of a cluster of one.
#[derive(Debug, Clone, Copy)]
pub(crate) struct NoNetwork;

fn unreachable() -> Unreachable<Types> {
    Unreachable::new(&io::Error::new(io::ErrorKind::Unsupported, "a cluster has one node in this version"))
}

impl RaftNetworkFactory<Types> for NoNetwork {
    type Network = Self;

    async fn new_client(&mut self, _target: u64, _node: &openraft::impls::BasicNode) -> Self {
        Self
    }
}

impl RaftNetworkV2<Types> for NoNetwork {
    type SnapshotData = SnapshotSource;

    async fn append_entries(
        &mut self,
        _rpc: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Result<AppendEntriesResponse<Types>, RPCError<Types>> {
        Err(unreachable().into())
    }

    async fn vote(
        &mut self,
        _rpc: VoteRequest<Types>,
        _option: RPCOption,
    ) -> Result<VoteResponse<Types>, RPCError<Types>> {
        Err(unreachable().into())
    }

    async fn full_snapshot(
        &mut self,
        _vote: VoteOf<Types>,
        _snapshot: SnapshotOf<Types, SnapshotSource>,
        _cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        Err(unreachable().into())
    }
}
