//! Connections that come in, once their handshake is done. A handshake holds up no other connection.

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::serve::Listener;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::AbortHandle,
    time::timeout,
};
use tokio_rustls::{TlsAcceptor, server::TlsStream};

use crate::Tls;

/// How long a handshake may take.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Handshakes at once. More connections wait in the system's queue.
const HANDSHAKES_MAX: usize = 256;
const QUEUE_LEN: usize = 64;
/// The rest after the system refused a connection: too many open files, most likely.
const REFUSED_PAUSE: Duration = Duration::from_millis(100);

/// Who connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Whom {
    /// Nodes of the cluster: they have to show a certificate of its authority.
    Peers,
    /// Anybody.
    Clients,
}

/// Connections over TLS, as axum and tonic take them.
#[derive(Debug)]
pub struct Incoming {
    address: SocketAddr,
    streams: mpsc::Receiver<(TlsStream<TcpStream>, SocketAddr)>,
    task: AbortHandle,
}

impl Incoming {
    /// Listens for connections. Has to be called inside a runtime.
    ///
    /// # Errors
    ///
    /// The listener has no address.
    pub fn new(listener: TcpListener, tls: Tls, whom: Whom) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let (sender, streams) = mpsc::channel(QUEUE_LEN);
        let task = tokio::spawn(accept(listener, tls, whom, sender)).abort_handle();
        Ok(Self { address, streams, task })
    }

    /// The connections, one after the other, for tonic.
    pub fn into_stream(
        self,
    ) -> impl tokio_stream::Stream<Item = io::Result<TlsStream<TcpStream>>> + Send + 'static {
        let (sender, receiver) = mpsc::channel(1);
        tokio::spawn(async move {
            let mut incoming = self;
            while let Some((stream, _)) = incoming.streams.recv().await {
                if sender.send(Ok(stream)).await.is_err() {
                    return;
                }
            }
        });
        tokio_stream::wrappers::ReceiverStream::new(receiver)
    }
}

impl Drop for Incoming {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Listener for Incoming {
    type Io = TlsStream<TcpStream>;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        match self.streams.recv().await {
            Some(connection) => connection,
            // The task ends only with this.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

async fn accept(
    listener: TcpListener,
    tls: Tls,
    whom: Whom,
    sender: mpsc::Sender<(TlsStream<TcpStream>, SocketAddr)>,
) {
    let permits = Arc::new(Semaphore::new(HANDSHAKES_MAX));
    loop {
        let Ok(permit) = Arc::clone(&permits).acquire_owned().await else { return };
        let (stream, from) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection was not accepted");
                tokio::time::sleep(REFUSED_PAUSE).await;
                continue;
            }
        };
        let material = tls.current();
        let config = match whom {
            Whom::Peers => &material.peers,
            Whom::Clients => &material.clients,
        };
        let (acceptor, sender) = (TlsAcceptor::from(Arc::clone(config)), sender.clone());
        tokio::spawn(async move {
            // Small answers go out at once. A stream that is gone already fails when it is read.
            let _ = stream.set_nodelay(true);
            match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
                Ok(Ok(stream)) => {
                    drop(permit);
                    // Nobody takes connections any more.
                    let _ = sender.send((stream, from)).await;
                }
                Ok(Err(error)) => {
                    tracing::info!(%from, %error, "a connection is refused: no TLS, or not ours")
                }
                Err(_) => tracing::info!(%from, "a connection is refused: its handshake takes too long"),
            }
        });
    }
}
