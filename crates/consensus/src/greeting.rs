//! Every node greets every other one all the time. So each keeps a connection to each, which is how a second process
//! with the same id is told from the first ([`crate::net`]); a node that was taken out while it was away learns it; and
//! clocks are compared, and what each runs is known.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::Duration,
};

use futures_util::future::join_all;
use ids::{NodeId, ShardId, Timestamp};
use parking_lot::Mutex;
use proto::peer::{Empty, request, response};

use crate::{
    Clock as _, ClusterClock, Group, Observer, Release, clock::ahead_of_boot, net::Links, versions::Releases,
};

const INTERVAL: Duration = Duration::from_millis(500);
const TIMEOUT: Duration = Duration::from_secs(1);

/// Why nobody counts on this node any more, if so.
pub(crate) type Standing = Arc<Mutex<Option<String>>>;

/// Greets, as long as the node runs. Of a node that is still joining, nobody says that it was taken out.
pub(crate) async fn greet(
    groups: BTreeMap<ShardId, Group>,
    links: Links,
    standing: Standing,
    releases: Releases,
    (clock, observer): (Arc<ClusterClock>, Arc<dyn Observer>),
) {
    let me = links.me().node;
    let mut was_member = false;
    let mut tick = tokio::time::interval(INTERVAL);
    loop {
        // A node that is new is greeted at once: whoever leads for the first time since its start waits until clocks
        // are compared.
        tokio::select! {
            _ = tick.tick() => {}
            () = links.learned() => {}
        }
        let nodes: BTreeSet<NodeId> = groups.values().flat_map(|group| group.members().into_keys()).collect();
        was_member = was_member || nodes.contains(&me);
        let count = nodes.len();
        let greetings = nodes.into_iter().filter(|node| *node != me).map(|node| {
            let (links, clock, releases, observer) = (links.clone(), &clock, &releases, &observer);
            async move {
                let asked = clock.boot();
                let answer = links.control(node, ShardId(0), request::Body::Greet(Empty {}), TIMEOUT).await;
                observer.probed(node, answer.is_ok(), clock.wall());
                match answer {
                    Ok(response::Body::Greeted(greeted)) => {
                        releases.lock().insert(node, Release::of(&greeted));
                        // The answer was given between question and now: in the middle, as far as one can tell. By
                        // the steady clock, for the wall clock may have jumped; and where this process was stopped
                        // meanwhile, one can not tell.
                        let took = clock.boot().saturating_sub(asked);
                        let theirs = ahead_of_boot(Timestamp(greeted.wall_micros), asked + took / 2);
                        Some((greeted.member, (took <= TIMEOUT).then_some(theirs)))
                    }
                    _ => None,
                }
            }
        });
        let answers: Vec<(bool, Option<i64>)> = join_all(greetings).await.into_iter().flatten().collect();
        if count > 0 {
            let others: Vec<i64> = answers.iter().filter_map(|(_, theirs)| *theirs).collect();
            clock.compare(&others, count);
        }
        let is_out = was_member && !answers.is_empty() && answers.iter().all(|(member, _)| !member);
        let mut standing = standing.lock();
        if is_out && standing.is_none() {
            let reason =
                "this node was removed from the cluster: stop it, and delete its directory".to_owned();
            tracing::error!(reason, "nobody counts on this node");
            *standing = Some(reason);
        } else if !is_out && !answers.is_empty() {
            *standing = None;
        }
    }
}
