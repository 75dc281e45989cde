//! The shape of a workflow: what the machine needs in order to decide which step is next.
//!
//! A definition is a tree of blocks; inside a block, nodes depend on one another (`after`). What a step says to a
//! model, and every condition, is text in `spec` that only the leader reads.

use alloc::{string::String, vec, vec::Vec};

use ids::Digest;

use crate::limits;

/// A compiled workflow, addressed by the digest of its source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Definition {
    /// SHA-256 over the source and the compiler's version.
    pub hash: Digest,
    /// The name that the source gives itself.
    pub name: String,
    /// The source, as it was applied.
    pub source: String,
    /// All blocks; block 0 is the session's.
    pub blocks: Vec<Block>,
    /// All nodes of all blocks.
    pub nodes: Vec<Node>,
    /// What a session of this workflow may spend.
    pub limits: SessionLimits,
    /// How long an ended session is kept, in milliseconds.
    pub retention_ms: u64,
}

/// Steps that are activated together and end together.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Block {
    /// Its nodes in the order of the source. The output of the last is the output of the block.
    pub nodes: Vec<u16>,
}

/// A step as the workflow describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Unique in its block.
    pub name: String,
    /// The block it belongs to.
    pub block: u16,
    /// The nodes of its block that it waits for.
    pub after: Vec<u16>,
    /// The nodes of its block that wait for it: `after`, reversed.
    pub next: Vec<u16>,
    /// Whether the leader has to decide first whether the step runs at all.
    pub conditional: bool,
    /// What happens when it fails.
    pub retry: Retry,
    /// What happens when it has failed for good.
    pub recover: Option<Recover>,
    /// How long one attempt may take, in milliseconds; 0 for no limit.
    pub timeout_ms: u64,
    /// What it does.
    pub kind: NodeKind,
    /// What only the leader reads: prompts, conditions, expressions (JSON).
    pub spec: String,
}

/// What a step does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NodeKind {
    /// Work whose outcome is a value: a model's answer, an evaluated expression.
    Work,
    /// Work of a worker outside the cluster, whose outcome is a value.
    Task {
        /// The queue that its workers serve.
        queue: String,
    },
    /// Runs the block of the first case whose condition holds.
    Branch {
        /// The cases in the order of the source.
        cases: Vec<Case>,
        /// The block for when no case holds.
        otherwise: Option<u16>,
    },
    /// Runs several blocks at once, and ends when all have ended.
    Fork {
        /// Name and block of each branch.
        branches: Vec<(String, u16)>,
    },
    /// Runs a block for every item of a list.
    Map {
        /// The block.
        block: u16,
        /// Items in flight at once.
        parallel: u16,
        /// What a failed item does to the map.
        on_failure: OnFailure,
    },
    /// Runs a block again until a condition holds.
    Loop {
        /// The block.
        block: u16,
        /// How often at most.
        iterations_max: u32,
        /// Whether running out of iterations is a failure.
        fail_when_exhausted: bool,
    },
    /// Waits for the clock, a signal or a person.
    Wait(Wait),
}

/// A case of a branch. Its condition is in the node's `spec`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Case {
    /// The block to run.
    pub block: u16,
}

/// What a wait waits for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Wait {
    /// A span of time.
    Timer {
        /// Milliseconds.
        for_ms: u64,
    },
    /// A signal by name.
    Signal {
        /// The name.
        name: String,
        /// Milliseconds until the step fails; 0 for never.
        timeout_ms: u64,
    },
    /// A person's decision.
    Approval {
        /// The node of the same block whose output is to be approved, and becomes this step's output.
        subject: Option<u16>,
        /// Milliseconds until the step fails; 0 for never.
        timeout_ms: u64,
    },
}

/// What a failed item does to its map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnFailure {
    /// The map fails.
    Fail,
    /// The other items go on; the item's output is its error.
    Continue,
}

/// When a failed step is tried again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Retry {
    /// Attempts, counting the first.
    pub attempts_max: u32,
    /// How the delay grows.
    pub backoff: Backoff,
    /// The first delay, in milliseconds.
    pub delay_ms: u64,
    /// The longest delay, in milliseconds.
    pub delay_max_ms: u64,
    /// The share of the delay, in 1/1000, by which the leader's random number moves it up or down.
    pub jitter_permille: u16,
}

/// How the delay between attempts grows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Backoff {
    /// `delay`
    Constant,
    /// `delay × n`
    Linear,
    /// `delay × 2^(n−1)`
    Exponential,
}

/// A block that repairs what a step could not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recover {
    /// The block. Its output becomes the step's.
    pub block: u16,
    /// How often the block is tried.
    pub attempts_max: u32,
}

/// What a session may spend. 0 is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct SessionLimits {
    /// Steps started, retries not counted.
    pub steps: u32,
    /// Tokens of all model calls, in and out.
    pub tokens: u64,
    /// Millionths of a US dollar.
    pub cost_microusd: u64,
    /// Loop iterations, of all loops together.
    pub iterations: u32,
    /// Milliseconds from start to end.
    pub duration_ms: u64,
}

impl Retry {
    /// The delay before attempt `failed + 1`, where `failed` attempts have failed. `random` is in `0..=1000`.
    #[must_use]
    pub fn delay_ms(&self, failed: u32, random: u16) -> u64 {
        let grown = match self.backoff {
            Backoff::Constant => self.delay_ms,
            Backoff::Linear => self.delay_ms.saturating_mul(u64::from(failed)),
            Backoff::Exponential => {
                let doublings = failed.saturating_sub(1).min(62);
                self.delay_ms.saturating_mul(1u64 << doublings)
            }
        };
        let delay = grown.min(self.delay_max_ms);
        let spread = delay / 1000 * u64::from(self.jitter_permille)
            + delay % 1000 * u64::from(self.jitter_permille) / 1000;
        // From delay − spread (random 0) to delay + spread (random 1000).
        (delay - spread.min(delay))
            .saturating_add(spread.saturating_mul(2) * u64::from(random.min(1000)) / 1000)
    }
}

/// Why a definition is not a definition.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Invalid {
    /// More nodes than [`limits::NODES_MAX`].
    TooManyNodes(usize),
    /// A node or block number that does not exist, named by the node that holds it.
    Dangling(u16),
    /// Nodes that wait for one another, in order.
    Cycle(Vec<u16>),
    /// A block without nodes.
    EmptyBlock(u16),
    /// Blocks nested deeper than [`limits::NESTING_MAX`].
    TooDeep(u16),
}

impl Definition {
    /// The blocks that a node runs.
    #[must_use]
    pub fn blocks_of(&self, node: u16) -> Vec<u16> {
        let Some(node) = self.nodes.get(usize::from(node)) else { return Vec::new() };
        let mut blocks = match &node.kind {
            NodeKind::Work | NodeKind::Task { .. } | NodeKind::Wait(_) => Vec::new(),
            NodeKind::Branch { cases, otherwise } => {
                cases.iter().map(|case| case.block).chain(*otherwise).collect()
            }
            NodeKind::Fork { branches } => branches.iter().map(|(_, block)| *block).collect(),
            NodeKind::Map { block, .. } | NodeKind::Loop { block, .. } => vec![*block],
        };
        blocks.extend(node.recover.map(|recover| recover.block));
        blocks
    }

    /// Checks the shape: every number exists, no node waits for itself, depth and size are within limits.
    ///
    /// # Errors
    ///
    /// What is wrong, and with which node.
    pub fn check(&self) -> Result<(), Invalid> {
        if self.nodes.len() > limits::NODES_MAX {
            return Err(Invalid::TooManyNodes(self.nodes.len()));
        }
        for (number, block) in (0u16..).zip(&self.blocks) {
            if block.nodes.is_empty() {
                return Err(Invalid::EmptyBlock(number));
            }
            if let Some(&node) = block.nodes.iter().find(|&&node| usize::from(node) >= self.nodes.len()) {
                return Err(Invalid::Dangling(node));
            }
        }
        for (number, node) in (0u16..).zip(&self.nodes) {
            let in_block = |other: &u16| {
                self.nodes.get(usize::from(*other)).is_some_and(|other| other.block == node.block)
            };
            let blocks_exist =
                self.blocks_of(number).iter().all(|&block| usize::from(block) < self.blocks.len());
            if !node.after.iter().chain(&node.next).all(in_block) || !blocks_exist {
                return Err(Invalid::Dangling(number));
            }
        }
        for block in &self.blocks {
            self.check_acyclic(block)?;
        }
        self.check_depth()
    }

    /// Kahn's algorithm; what is left over when no node is free holds a cycle.
    fn check_acyclic(&self, block: &Block) -> Result<(), Invalid> {
        let mut waits: alloc::collections::BTreeMap<u16, usize> =
            block.nodes.iter().map(|&node| (node, self.nodes[usize::from(node)].after.len())).collect();
        let mut free: Vec<u16> =
            waits.iter().filter(|(_, waits)| **waits == 0).map(|(node, _)| *node).collect();
        while let Some(node) = free.pop() {
            waits.remove(&node);
            for next in &self.nodes[usize::from(node)].next {
                if let Some(count) = waits.get_mut(next) {
                    *count = count.saturating_sub(1);
                    if *count == 0 {
                        free.push(*next);
                    }
                }
            }
        }
        let Some((&start, _)) = waits.first_key_value() else { return Ok(()) };
        // Every node that is left waits for another that is left: following one such edge from each must repeat.
        let mut path = vec![start];
        loop {
            let last = path[path.len() - 1];
            let Some(&before) =
                self.nodes[usize::from(last)].after.iter().find(|node| waits.contains_key(node))
            else {
                return Err(Invalid::Cycle(path));
            };
            if let Some(at) = path.iter().position(|&node| node == before) {
                path.drain(..at);
                path.reverse();
                return Err(Invalid::Cycle(path));
            }
            path.push(before);
        }
    }

    fn check_depth(&self) -> Result<(), Invalid> {
        let mut level = vec![0u16];
        for _ in 0..limits::NESTING_MAX {
            level = level
                .iter()
                .flat_map(|&block| self.blocks.get(usize::from(block)).map(|block| block.nodes.as_slice()))
                .flatten()
                .flat_map(|&node| self.blocks_of(node))
                .collect();
            if level.is_empty() {
                return Ok(());
            }
        }
        let owner = (0u16..).zip(&self.nodes).find(|(number, _)| self.blocks_of(*number).contains(&level[0]));
        Err(Invalid::TooDeep(owner.map_or(0, |(number, _)| number)))
    }

    pub(crate) fn node(&self, node: u16) -> &Node {
        &self.nodes[usize::from(node)]
    }
}
