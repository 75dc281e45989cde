//! What the nodes of the region ask of each other, beyond what consensus does.

use std::{collections::BTreeMap, time::Duration};

use bytes::Bytes;
use consensus::Peers;
use futures_util::future::join_all;
use ids::NodeId;
use prost::Message as _;
use proto::peer::{Answer, Empty, Question, answer, question};

use crate::{gauges, replicas, wiring::App};

/// How long another node is waited for.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);

/// Asks every node, this one included; what those said that were reached in time.
pub(crate) async fn ask_all(peers: &Peers, body: question::Body) -> BTreeMap<NodeId, answer::Body> {
    let question = Bytes::from(Question { body: Some(body) }.encode_to_vec());
    let asked = peers.nodes().into_iter().map(|node| {
        let question = question.clone();
        async move {
            let answer = peers.ask(node, question, ASK_TIMEOUT).await.ok()?;
            Some((node, Answer::decode(answer).ok()?.body?))
        }
    });
    join_all(asked).await.into_iter().flatten().collect()
}

/// Answers another node, or this one.
pub(crate) async fn answer(app: &App, question: Bytes) -> Bytes {
    let body = match Question::decode(question).ok().and_then(|question| question.body) {
        Some(question::Body::Measured(wanted)) => {
            answer::Body::Measured(app.levels.answer(&wanted, || gauges::of(app)))
        }
        Some(question::Body::Replicas(_)) => answer::Body::Replicas(replicas::here(app)),
        Some(question) => app.sessions.answer(question).await,
        // Of a later release, which takes it for what it is.
        None => answer::Body::Done(Empty {}),
    };
    Answer { body: Some(body) }.encode_to_vec().into()
}
