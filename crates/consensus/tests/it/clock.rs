//! The clock of the machine jumps while a node is down.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use consensus::{Clock, Leadership, Node};
use ids::{RegionId, SessionId, ShardId, Timestamp};
use machine::{Command, Outcome, Read as _, SessionStatus};

use crate::node::{definition_of, listener, options, start_session};

/// A wall clock and a steady one, both set by hand, in one boot of the machine.
#[derive(Clone)]
struct Hands(Arc<Mutex<(u64, u64)>>);

impl Hands {
    fn pass(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap();
        let mut hands = self.0.lock().unwrap();
        hands.0 += micros;
        hands.1 += micros;
    }

    fn jump(&self, hours: i64) {
        let mut hands = self.0.lock().unwrap();
        hands.0 = hands.0.checked_add_signed(hours * 3_600_000_000).unwrap();
    }
}

impl Clock for Hands {
    fn wall(&self) -> Timestamp {
        Timestamp(self.0.lock().unwrap().0)
    }

    fn boot(&self) -> Duration {
        Duration::from_micros(self.0.lock().unwrap().1)
    }

    fn boot_id(&self) -> String {
        "boot".into()
    }
}

async fn start(path: &std::path::Path, hands: &Hands) -> Node {
    let node = Node::start(options(path), listener(), Arc::new(hands.clone())).await.unwrap();
    let mut leadership = node.groups()[&ShardId(1)].leadership();
    let lead = leadership.wait_for(|lead| matches!(lead, Leadership::Here { .. }));
    tokio::time::timeout(Duration::from_secs(30), lead).await.expect("a leader").unwrap();
    node
}

/// Fires what is due; whether the session has ended, and the shard's time.
async fn fire(node: &Node, id: SessionId) -> (bool, Timestamp) {
    let group = &node.groups()[&ShardId(1)];
    assert_eq!(group.propose(Command::FireTimers).await, Ok(Outcome::Fired { more: false }));
    let view = group.view();
    (view.session(id).unwrap().status == SessionStatus::Completed, view.shard().now)
}

/// A session waits ten minutes. The node is down for one; meanwhile the wall clock jumps.
async fn jump(hours: i64) {
    let temp = tempfile::tempdir().unwrap();
    let hands = Hands(Arc::new(Mutex::new((1_700_000_000_000_000, 5_000_000))));
    let id = SessionId::new(RegionId(0), ShardId(1), 1);
    let node = start(temp.path(), &hands).await;
    let group = node.groups()[&ShardId(1)].clone();
    let wait = machine::NodeKind::Wait(machine::Wait::Timer { for_ms: 600_000 });
    group.propose(Command::PutDefinition(definition_of(wait))).await.unwrap();
    group.propose(start_session(1)).await.unwrap();
    let (ended, before) = fire(&node, id).await;
    assert!(!ended);
    drop(group);
    node.stop().await;

    hands.pass(Duration::from_secs(60));
    hands.jump(hours);
    let node = start(temp.path(), &hands).await;
    let (ended, now) = fire(&node, id).await;
    assert!(!ended, "a jump by {hours} h fired a timer that had nine minutes left");
    assert!(now.since(before) < Duration::from_secs(70), "the shard's time jumped with the wall clock");
    hands.pass(Duration::from_secs(300));
    let (ended, half) = fire(&node, id).await;
    assert!(!ended && half > now, "time goes on, and does not run away");
    // At nine tenths of its speed at least, the rest takes less than ten minutes.
    hands.pass(Duration::from_secs(310));
    assert!(fire(&node, id).await.0, "a jump by {hours} h stopped the shard's time");
    node.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_jumps_while_the_node_is_down_neither_fires_nor_stops_timers() {
    jump(5).await;
    jump(-5).await;
}
