//! Changes that break what this crate promises, for the test of the tests: whatever claims to find lost or doubled work
//! has to find each of them. They exist only in builds with the feature `mutants`, which no release has; the variable
//! `ORCHESTRA_MUTANT` names the one that is on.

#[cfg(feature = "mutants")]
use openraft::raft::AppendEntriesRequest;

#[cfg(feature = "mutants")]
use crate::raft::{Appended, Types};

/// A change that breaks something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mutant {
    /// The log is written, and not synced.
    SkipFsync,
    /// A write is acknowledged when it is proposed, before any other node has it.
    AcknowledgeEarly,
    /// The leader counts a peer as having entries when they are sent, so that it applies what no majority has.
    #[cfg_attr(
        not(feature = "mutants"),
        expect(dead_code, reason = "what it changes is in builds with it only")
    )]
    ApplyBeforeCommit,
    /// Outcomes are told, and what reads wait for is there, before the rows are written.
    ReplyBeforeApply,
    /// What came of a step counts, whoever it was given to since.
    StaleDispatch,
    /// A node with an empty directory takes the id that it had before, and peers listen to it.
    ReuseNodeId,
    /// The log is shortened up to what is applied, though the state is not on the disk.
    PurgeTooFar,
    /// A read does not wait until this node has applied what the leader had.
    ReadBeforeApply,
    /// The leader answers reads without asking whether it still leads.
    ReadWithoutQuorum,
}

#[cfg(feature = "mutants")]
pub(crate) fn is_on(mutant: Mutant) -> bool {
    use std::sync::OnceLock;
    static ON: OnceLock<Option<Mutant>> = OnceLock::new();
    let on = ON.get_or_init(|| {
        Some(match std::env::var("ORCHESTRA_MUTANT").ok()?.as_str() {
            "skip-fsync" => Mutant::SkipFsync,
            "acknowledge-early" => Mutant::AcknowledgeEarly,
            "apply-before-commit" => Mutant::ApplyBeforeCommit,
            "reply-before-apply" => Mutant::ReplyBeforeApply,
            "stale-dispatch" => Mutant::StaleDispatch,
            "reuse-node-id" => Mutant::ReuseNodeId,
            "purge-too-far" => Mutant::PurgeTooFar,
            "read-before-apply" => Mutant::ReadBeforeApply,
            "read-without-quorum" => Mutant::ReadWithoutQuorum,
            _ => return None,
        })
    });
    *on == Some(mutant)
}

#[cfg(not(feature = "mutants"))]
pub(crate) const fn is_on(_: Mutant) -> bool {
    false
}

/// Of the requests on their way to a peer, as if it had answered them.
#[cfg(feature = "mutants")]
pub(crate) fn answered_when_sent<S>(
    requests: S,
) -> (
    impl futures_util::Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
    impl futures_util::Stream<Item = Appended> + Send + 'static,
)
where
    S: futures_util::Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
{
    let (tell, told) = tokio::sync::mpsc::unbounded_channel();
    let requests = futures_util::StreamExt::inspect(requests, move |request| {
        if let (true, Some(last)) = (is_on(Mutant::ApplyBeforeCommit), request.entries.last()) {
            // The connection is gone: nobody listens.
            let _ = tell.send(last.log_id);
        }
    });
    let answers = futures_util::stream::unfold(told, |mut told| async move {
        told.recv().await.map(|last| (Ok(Ok(Some(last))), told))
    });
    (requests, answers)
}
