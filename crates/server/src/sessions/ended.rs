//! Waiting for sessions to end: one listener a shard, however many wait.

use std::{collections::HashMap, sync::Arc, time::Duration};

use consensus::Group;
use ids::SessionId;
use machine::{Read as _, SessionStatus};
use parking_lot::Mutex;
use prometheus_client::metrics::counter::Counter;
use tokio::{
    sync::{broadcast::error::RecvError, oneshot},
    task::JoinHandle,
};

use super::{Result, Sessions};

/// Who waits for which session.
#[derive(Debug, Default)]
pub(super) struct Waiters {
    waiting: Mutex<HashMap<SessionId, Vec<oneshot::Sender<()>>>>,
}

impl Waiters {
    fn wake(&self, session: SessionId) {
        for waiter in self.waiting.lock().remove(&session).into_iter().flatten() {
            // Whoever waited may have given up.
            let _ = waiter.send(());
        }
    }

    /// News were missed: all look again.
    fn wake_all(&self) {
        self.waiting.lock().clear();
    }

    fn wait(&self, session: SessionId) -> oneshot::Receiver<()> {
        let (sender, receiver) = oneshot::channel();
        let mut waiting = self.waiting.lock();
        let of_session = waiting.entry(session).or_default();
        of_session.retain(|waiter| !waiter.is_closed());
        of_session.push(sender);
        receiver
    }

    fn forget(&self, session: SessionId) {
        let mut waiting = self.waiting.lock();
        if let Some(of_session) = waiting.get_mut(&session) {
            of_session.retain(|waiter| !waiter.is_closed());
            if of_session.is_empty() {
                waiting.remove(&session);
            }
        }
    }
}

impl Sessions {
    /// Counts the sessions that end, and wakes who waits for them.
    pub(crate) fn watch_ended(&self, ended: &Counter) -> Vec<JoinHandle<()>> {
        let groups = self.node().groups().values();
        groups.map(|group| tokio::spawn(listen(group, Arc::clone(&self.waiters), ended.clone()))).collect()
    }

    /// Waits until a session has ended, at most so long; how it stands then. It has to exist.
    pub(crate) async fn wait_ended(&self, id: SessionId, timeout: Duration) -> Result<SessionStatus> {
        let group = self.group_of(id)?;
        let status = || group.latest().session(id).map_or(SessionStatus::Running, |row| row.status);
        let ended = async {
            loop {
                // Asked for news first, so that none is missed after the look.
                let news = self.waiters.wait(id);
                if status().is_ended() {
                    return;
                }
                // Woken by nobody in particular, it looks again.
                let _ = news.await;
            }
        };
        // Late is no error: the status says how it stands.
        let _ = tokio::time::timeout(timeout, ended).await;
        self.waiters.forget(id);
        Ok(status())
    }
}

fn listen(group: &Group, waiters: Arc<Waiters>, ended: Counter) -> impl Future<Output = ()> + use<> {
    let mut news = group.effects().watch();
    async move {
        loop {
            match news.recv().await {
                Ok(watch) if watch.ended => {
                    ended.inc();
                    waiters.wake(watch.session);
                }
                Ok(_) => {}
                Err(RecvError::Lagged(_)) => waiters.wake_all(),
                Err(RecvError::Closed) => return,
            }
        }
    }
}
