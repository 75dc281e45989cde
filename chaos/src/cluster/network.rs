//! What is done to the network between nodes. Clients reach every node all the time.

use std::{sync::atomic::Ordering, time::Duration};

use rand::{Rng as _, rngs::StdRng, seq::SliceRandom as _};

use super::Fault;
use crate::net::{Link, Network};

/// Sets the links for a fault. Whoever leads is `leader`.
pub(super) fn inject(network: &Network, fault: Fault, members: &[usize], leader: usize, random: &mut StdRng) {
    let mut nodes = members.to_vec();
    nodes.shuffle(random);
    let one = nodes.iter().copied().find(|node| *node != leader).unwrap_or(leader);
    let cut = Link { cut: true, ..Link::default() };
    let cut_between = |some: &[usize], others: &[usize]| {
        for a in some {
            for b in others {
                set(network, *a, *b, cut);
                set(network, *b, *a, cut);
            }
        }
    };
    let everywhere = |link: Link| {
        for a in &nodes {
            for b in nodes.iter().filter(|b| *b != a) {
                set(network, *a, *b, link);
            }
        }
    };
    match fault {
        Fault::IsolateLeader => {
            // With as many others as still are no majority.
            let company =
                nodes.iter().copied().filter(|node| *node != leader).take((nodes.len() - 1) / 2 - 1);
            let some: Vec<usize> = company.chain([leader]).collect();
            let others: Vec<usize> = nodes.iter().copied().filter(|node| !some.contains(node)).collect();
            cut_between(&some, &others);
        }
        Fault::Halves => {
            let (some, others) = nodes.split_at(nodes.len() / 2);
            cut_between(some, others);
        }
        Fault::Bridge => {
            // The first of them still reaches all.
            let (some, others) = nodes[1..].split_at((nodes.len() - 1) / 2);
            cut_between(some, others);
        }
        Fault::DeafLeader => {
            nodes.iter().filter(|of| **of != leader).for_each(|of| set(network, *of, leader, cut))
        }
        Fault::MuteLeader => {
            nodes.iter().filter(|of| **of != leader).for_each(|of| set(network, leader, *of, cut))
        }
        Fault::CutPair => cut_between(&[leader], &[one]),
        Fault::SlowNetwork => everywhere(Link {
            delay: Duration::from_millis(random.random_range(20..80)),
            jitter: Duration::from_millis(10),
            loss: 0.005,
            ..Link::default()
        }),
        Fault::LossyNetwork => everywhere(Link {
            delay: Duration::from_millis(1),
            jitter: Duration::from_millis(2),
            loss: 0.05,
            duplicate: 0.02,
            reorder: 0.05,
            rate: 4 << 20,
            ..Link::default()
        }),
        _ => {}
    }
}

fn set(network: &Network, from: usize, to: usize, link: Link) {
    network.switch().set(Network::host(from), Network::host(to), link);
}

/// How many packets faults have hit so far.
pub(super) fn hits(network: &Network) -> u64 {
    let counts = &network.switch().counts;
    [&counts.cut, &counts.lost, &counts.delayed].into_iter().map(|count| count.load(Ordering::Relaxed)).sum()
}
