//! One node: a real Raft member with real shards.

use std::{sync::Arc, time::Duration};

use consensus::{Leadership, Member, Node, NodeOptions, SystemClock};
use ids::{Digest, NodeId, RegionId, SessionId, ShardId};
use machine::{
    Backoff, Block, Command, Definition, Durability, Node as Step, NodeKind, Outcome, Read as _, Retry,
    SessionLimits, StartSession,
};
use storage::Identity;

pub(crate) fn options(path: &std::path::Path) -> NodeOptions {
    NodeOptions {
        path: path.to_owned(),
        identity: Identity { cluster: 1, node: NodeId(1), region: RegionId(0), shards: 2, joined: false },
        member: Member::default(),
        tls: None,
        join: vec![],
        flush_interval: Duration::from_secs(30),
        log_entries_kept: 1_000,
        intake_bytes_per_second: 1 << 30,
        free_bytes_min: 0,
        block_cache_bytes: 1 << 20,
        observer: Arc::new(()),
    }
}

pub(crate) fn listener() -> std::net::TcpListener {
    std::net::TcpListener::bind(("127.0.0.1", 0)).unwrap()
}

async fn start(path: &std::path::Path) -> Node {
    let node = Node::start(options(path), listener(), Arc::new(SystemClock)).await.unwrap();
    for group in node.groups().values() {
        let mut leadership = group.leadership();
        let lead = leadership.wait_for(|lead| matches!(lead, Leadership::Here { .. }));
        tokio::time::timeout(Duration::from_secs(30), lead).await.expect("a leader").unwrap();
    }
    node
}

fn definition() -> Arc<Definition> {
    definition_of(NodeKind::Work)
}

/// A workflow of one step.
pub(crate) fn definition_of(kind: NodeKind) -> Arc<Definition> {
    let retry = Retry {
        attempts_max: 1,
        backoff: Backoff::Constant,
        delay_ms: 0,
        delay_max_ms: 0,
        jitter_permille: 0,
    };
    let step = Step {
        name: "a".into(),
        block: 0,
        after: vec![],
        next: vec![],
        conditional: false,
        retry,
        recover: None,
        timeout_ms: 0,
        kind,
        spec: String::new(),
    };
    Arc::new(Definition {
        hash: Digest([1; 32]),
        name: "w".into(),
        source: String::new(),
        blocks: vec![Block { nodes: vec![0] }],
        nodes: vec![step],
        limits: SessionLimits::default(),
        retention_ms: 1000,
    })
}

pub(crate) fn start_session(unique: u128) -> Command {
    Command::StartSession(StartSession {
        session: SessionId::new(RegionId(0), ShardId(1), unique),
        tenant: "t".into(),
        workflow: "w".into(),
        definition: Digest([1; 32]),
        input: "null".into(),
        labels: vec![],
        limits: SessionLimits::default(),
        durability: Durability::Local,
        idempotency: None,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_is_there_after_a_restart() {
    let temp = tempfile::tempdir().unwrap();
    let node = start(temp.path()).await;
    let group = node.groups()[&ShardId(1)].clone();
    assert_eq!(group.propose(Command::PutDefinition(definition())).await, Ok(Outcome::Done));
    let many = (0..500u128).map(|unique| {
        let group = group.clone();
        tokio::spawn(async move { group.propose(start_session(unique)).await })
    });
    for started in many.collect::<Vec<_>>() {
        assert!(matches!(started.await.unwrap(), Ok(Outcome::Started { created: true, .. })));
    }
    group.linearize().await.unwrap();
    let position = group.view().shard().position;
    assert!(position.0 < 450, "500 commands made {position} entries");
    drop(group);
    node.stop().await;

    let node = start(temp.path()).await;
    let group = &node.groups()[&ShardId(1)];
    group.linearize().await.unwrap();
    for unique in 0..500u128 {
        let id = SessionId::new(RegionId(0), ShardId(1), unique);
        assert!(group.view().session(id).is_some(), "session {unique} is lost");
    }
    let again = group.propose(start_session(3)).await.unwrap();
    assert!(matches!(again, Outcome::Started { created: false, .. }));
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_directory_in_use_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let node = start(temp.path()).await;
    let error =
        Node::start(options(temp.path()), listener(), Arc::new(SystemClock)).await.unwrap_err().to_string();
    assert!(error.contains("in use by another process"), "{error}");
    node.stop().await;
}

/// `RocksDB` takes a damaged record for the end of its log: what follows it would be forgotten in silence.
#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_has_lost_its_end_is_refused() {
    let temp = tempfile::tempdir().unwrap();
    let node = start(temp.path()).await;
    let group = node.groups()[&ShardId(1)].clone();
    assert_eq!(group.propose(Command::PutDefinition(definition())).await, Ok(Outcome::Done));
    for unique in 0..300u128 {
        assert!(matches!(group.propose(start_session(unique)).await, Ok(Outcome::Started { .. })));
    }
    // What is known of its progress comes a moment after the answers.
    let noted = async {
        loop {
            let applied = group.progress().applied.unwrap();
            let ends = std::fs::read_to_string(temp.path().join("log-ends")).unwrap_or_default();
            if applied > 300 && ends.contains(&format!("1 {applied}\n")) {
                return applied;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let applied = tokio::time::timeout(Duration::from_secs(30), noted).await.unwrap();
    drop(group);
    node.stop().await;
    let logs = std::fs::read_dir(temp.path().join("log")).unwrap().map(|entry| entry.unwrap().path());
    let logs = logs.filter(|path| path.extension().is_some_and(|of| of == "log"));
    let largest = logs.max_by_key(|path| path.metadata().unwrap().len()).unwrap();
    let mut bytes = std::fs::read(&largest).unwrap();
    let used = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    bytes[used / 2] ^= 1;
    std::fs::write(&largest, &bytes).unwrap();
    let refused = Node::start(options(temp.path()), listener(), Arc::new(SystemClock)).await;
    let error = refused.unwrap_err().to_string();
    assert!(
        error.contains("log of shard 1") && error.contains(&format!("entry {applied} was on disk")),
        "{error}"
    );
}
