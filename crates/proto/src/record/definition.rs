//! Definitions.

use machine::{Backoff, Block, Case, Definition, Node, NodeKind, OnFailure, Recover, Retry, Wait};

use super::{
    common::{digest, limits, to_digest, to_limits, to_u16},
    missing,
};
use crate::{
    envelope::Error,
    storage::{self, Empty, node::Kind, wait},
};

pub(super) fn encode(definition: &Definition) -> storage::Definition {
    storage::Definition {
        hash: digest(definition.hash),
        name: definition.name.clone(),
        source: definition.source.clone(),
        blocks: definition.blocks.iter().map(|block| storage::Block { nodes: wide(&block.nodes) }).collect(),
        nodes: definition.nodes.iter().map(encode_node).collect(),
        limits: Some(limits(&definition.limits)),
        retention_ms: definition.retention_ms,
    }
}

pub(super) fn decode(definition: storage::Definition) -> Result<Definition, Error> {
    Ok(Definition {
        hash: to_digest(&definition.hash)?,
        name: definition.name,
        source: definition.source,
        blocks: definition
            .blocks
            .iter()
            .map(|block| Ok(Block { nodes: narrow(&block.nodes)? }))
            .collect::<Result<_, Error>>()?,
        nodes: definition.nodes.into_iter().map(decode_node).collect::<Result<_, Error>>()?,
        limits: to_limits(definition.limits),
        retention_ms: definition.retention_ms,
    })
}

fn wide(numbers: &[u16]) -> Vec<u32> {
    numbers.iter().map(|&number| number.into()).collect()
}

fn narrow(numbers: &[u32]) -> Result<Vec<u16>, Error> {
    numbers.iter().map(|&number| to_u16(number)).collect()
}

fn encode_node(node: &Node) -> storage::Node {
    storage::Node {
        name: node.name.clone(),
        block: node.block.into(),
        after: wide(&node.after),
        next: wide(&node.next),
        conditional: node.conditional,
        retry: Some(storage::Retry {
            attempts_max: node.retry.attempts_max,
            backoff: match node.retry.backoff {
                Backoff::Constant => 0,
                Backoff::Linear => 1,
                Backoff::Exponential => 2,
            },
            delay_ms: node.retry.delay_ms,
            delay_max_ms: node.retry.delay_max_ms,
            jitter_permille: node.retry.jitter_permille.into(),
        }),
        recover: node.recover.map(|recover| storage::Recover {
            block: recover.block.into(),
            attempts_max: recover.attempts_max,
        }),
        timeout_ms: node.timeout_ms,
        spec: node.spec.clone(),
        kind: Some(encode_kind(&node.kind)),
    }
}

fn encode_kind(kind: &NodeKind) -> Kind {
    match kind {
        NodeKind::Work => Kind::Work(Empty {}),
        NodeKind::Task { queue } => Kind::Task(storage::Task { queue: queue.clone() }),
        NodeKind::Branch { cases, otherwise } => Kind::Branch(storage::Branch {
            cases: cases.iter().map(|case| case.block.into()).collect(),
            otherwise: otherwise.map(u32::from),
        }),
        NodeKind::Fork { branches } => Kind::Fork(storage::Fork {
            branches: branches
                .iter()
                .map(|(name, block)| storage::fork::NamedBlock { name: name.clone(), block: (*block).into() })
                .collect(),
        }),
        NodeKind::Map { block, parallel, on_failure } => Kind::Map(storage::Map {
            block: (*block).into(),
            parallel: (*parallel).into(),
            continue_on_failure: *on_failure == OnFailure::Continue,
        }),
        NodeKind::Loop { block, iterations_max, fail_when_exhausted } => Kind::Loop(storage::Loop {
            block: (*block).into(),
            iterations_max: *iterations_max,
            fail_when_exhausted: *fail_when_exhausted,
        }),
        NodeKind::Wait(wait) => Kind::Wait(storage::Wait {
            kind: Some(match wait {
                Wait::Timer { for_ms } => wait::Kind::TimerMs(*for_ms),
                Wait::Signal { name, timeout_ms } => {
                    wait::Kind::Signal(wait::Signal { name: name.clone(), timeout_ms: *timeout_ms })
                }
                Wait::Approval { subject, timeout_ms } => wait::Kind::Approval(wait::Approval {
                    subject: subject.map(u32::from),
                    timeout_ms: *timeout_ms,
                }),
            }),
        }),
    }
}

fn decode_node(node: storage::Node) -> Result<Node, Error> {
    let retry = node.retry.ok_or_else(|| missing("a node's retry"))?;
    let recover = node.recover.map(|recover| {
        Ok::<_, Error>(Recover { block: to_u16(recover.block)?, attempts_max: recover.attempts_max })
    });
    Ok(Node {
        name: node.name,
        block: to_u16(node.block)?,
        after: narrow(&node.after)?,
        next: narrow(&node.next)?,
        conditional: node.conditional,
        retry: Retry {
            attempts_max: retry.attempts_max,
            backoff: match retry.backoff {
                0 => Backoff::Constant,
                1 => Backoff::Linear,
                2 => Backoff::Exponential,
                _ => return Err(missing("a backoff")),
            },
            delay_ms: retry.delay_ms,
            delay_max_ms: retry.delay_max_ms,
            jitter_permille: to_u16(retry.jitter_permille)?,
        },
        recover: recover.transpose()?,
        timeout_ms: node.timeout_ms,
        spec: node.spec,
        kind: decode_kind(node.kind.ok_or_else(|| missing("a node's kind"))?)?,
    })
}

fn decode_kind(kind: Kind) -> Result<NodeKind, Error> {
    Ok(match kind {
        Kind::Work(_) => NodeKind::Work,
        Kind::Task(task) => NodeKind::Task { queue: task.queue },
        Kind::Branch(branch) => NodeKind::Branch {
            cases: narrow(&branch.cases)?.into_iter().map(|block| Case { block }).collect(),
            otherwise: branch.otherwise.map(to_u16).transpose()?,
        },
        Kind::Fork(fork) => NodeKind::Fork {
            branches: fork
                .branches
                .into_iter()
                .map(|branch| Ok((branch.name, to_u16(branch.block)?)))
                .collect::<Result<_, Error>>()?,
        },
        Kind::Map(map) => NodeKind::Map {
            block: to_u16(map.block)?,
            parallel: to_u16(map.parallel)?,
            on_failure: if map.continue_on_failure { OnFailure::Continue } else { OnFailure::Fail },
        },
        Kind::Loop(repeat) => NodeKind::Loop {
            block: to_u16(repeat.block)?,
            iterations_max: repeat.iterations_max,
            fail_when_exhausted: repeat.fail_when_exhausted,
        },
        Kind::Wait(wait) => NodeKind::Wait(match wait.kind.ok_or_else(|| missing("a wait's kind"))? {
            wait::Kind::TimerMs(for_ms) => Wait::Timer { for_ms },
            wait::Kind::Signal(signal) => Wait::Signal { name: signal.name, timeout_ms: signal.timeout_ms },
            wait::Kind::Approval(approval) => Wait::Approval {
                subject: approval.subject.map(to_u16).transpose()?,
                timeout_ms: approval.timeout_ms,
            },
        }),
    })
}
