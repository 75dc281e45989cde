//! The route that says when to look again.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    extract::State,
    response::{IntoResponse as _, Response, Sse, sse},
};
use futures_util::{Stream, stream};

use super::Caller;
use crate::wiring::App;

/// How often it is looked whether there is something new: no message comes sooner after another.
const LOOK: Duration = Duration::from_millis(500);
/// How often an idle stream says that it is there.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A message whenever this node has applied something: what a page shows may be old. It does not say what has changed,
/// so that it tells nobody of what is not theirs.
pub(super) async fn changes(State(app): State<Arc<App>>, _caller: Caller) -> Response {
    Sse::new(follow(app)).keep_alive(sse::KeepAlive::new().interval(KEEP_ALIVE)).into_response()
}

fn applied(app: &App) -> u64 {
    let groups = app.sessions.node().groups();
    groups.values().map(|group| group.progress().applied.unwrap_or(0)).fold(0, u64::wrapping_add)
}

fn follow(app: Arc<App>) -> impl Stream<Item = Result<sse::Event, Infallible>> {
    let seen = applied(&app);
    stream::unfold((app, seen), |(app, seen)| async move {
        let mut stopping = app.stopping.clone();
        loop {
            tokio::select! {
                () = tokio::time::sleep(LOOK) => {}
                // The sender ends with the node.
                _ = stopping.wait_for(|stopping| *stopping) => return None,
            }
            let now = applied(&app);
            if now != seen {
                let event = sse::Event::default().event("changed").data(now.to_string());
                return Some((Ok(event), (app, now)));
            }
        }
    })
}
