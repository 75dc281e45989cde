//! Certificates of a node: loaded, watched, and what they make of connections.
//!
//! A node has one certificate, its key, and the certificate of the authority that signs its cluster's nodes. Between
//! nodes both ends show a certificate of that authority (mutual TLS); clients see the node's, and say who they are by a
//! token. Files that change are read again; connections that stand go on as they are, new ones use what is new.
//!
//! - **Invariant:** what can not be loaded never takes the place of what was.
//! - One crypto provider: aws-lc-rs. TLS 1.3 and 1.2.
//! - **Absent:** who may do what.

mod dev;
mod incoming;

use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use bytes::Bytes;
pub use dev::{DevCertificates, dev_certificates};
pub use incoming::{Incoming, Whom};
use tokio::sync::watch;
use tokio_rustls::rustls::{
    RootCertStore, ServerConfig,
    crypto::{CryptoProvider, aws_lc_rs},
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    server::WebPkiClientVerifier,
};
use tonic::transport::{Certificate, ClientTlsConfig, Identity};

/// Between two looks at the files.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);

/// Where a node's certificates are. All are PEM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Files {
    /// The node's certificate, followed by those between it and the authority's.
    pub cert: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authority's certificate, or several, while one takes over from another.
    pub ca: PathBuf,
}

/// Why certificates are not used.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file can not be read.
    #[error("{path}: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A file holds something else.
    #[error("{path}: {reason}")]
    Invalid {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
}

/// What was loaded from the files at one time.
pub struct Material {
    cert: Bytes,
    key: Bytes,
    ca: Bytes,
    /// For peers, which have to show a certificate.
    peers: Arc<ServerConfig>,
    /// For clients.
    clients: Arc<ServerConfig>,
}

impl Material {
    /// How this node connects to its peers.
    #[must_use]
    pub fn to_peers(&self) -> ClientTlsConfig {
        ClientTlsConfig::new()
            .ca_certificate(Certificate::from_pem(&self.ca))
            .identity(Identity::from_pem(&self.cert, &self.key))
    }

    fn load(files: &Files) -> Result<Self, Error> {
        let (cert, key, ca) = (read(&files.cert)?, read(&files.key)?, read(&files.ca)?);
        let invalid = |path: &Path, reason: &dyn std::fmt::Display| Error::Invalid {
            path: path.to_owned(),
            reason: reason.to_string(),
        };
        let chain = certificates(&files.cert, &cert)?;
        let private = PrivateKeyDer::from_pem_slice(&key)
            .map_err(|error| invalid(&files.key, &format!("not a private key in PEM: {error}")))?;
        let mut roots = RootCertStore::empty();
        for root in certificates(&files.ca, &ca)? {
            roots.add(root).map_err(|error| invalid(&files.ca, &error))?;
        }
        let provider: Arc<CryptoProvider> = Arc::new(aws_lc_rs::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), Arc::clone(&provider))
            .build()
            .map_err(|error| invalid(&files.ca, &error))?;
        let versions = || {
            let builder = ServerConfig::builder_with_provider(Arc::clone(&provider));
            builder.with_safe_default_protocol_versions().map_err(|error| invalid(&files.cert, &error))
        };
        let mut peers = versions()?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), private.clone_key())
            .map_err(|error| invalid(&files.cert, &error))?;
        let mut clients = versions()?
            .with_no_client_auth()
            .with_single_cert(chain, private)
            .map_err(|error| invalid(&files.cert, &error))?;
        peers.alpn_protocols = vec![b"h2".to_vec()];
        clients.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self { cert, key, ca, peers: Arc::new(peers), clients: Arc::new(clients) })
    }
}

impl std::fmt::Debug for Material {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Material").finish_non_exhaustive()
    }
}

fn read(path: &Path) -> Result<Bytes, Error> {
    let read = std::fs::read(path);
    Ok(read.map_err(|source| Error::Read { path: path.to_owned(), source })?.into())
}

fn certificates(path: &Path, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, Error> {
    let invalid = |reason: String| Error::Invalid { path: path.to_owned(), reason };
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem).collect();
    let all = all.map_err(|error| invalid(format!("not certificates in PEM: {error}")))?;
    if all.is_empty() { Err(invalid("it holds no certificate in PEM".into())) } else { Ok(all) }
}

/// The certificates of a node, as they are now. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Tls {
    files: Files,
    material: Arc<watch::Sender<Arc<Material>>>,
}

impl Tls {
    /// Loads the files.
    ///
    /// # Errors
    ///
    /// One can not be read, or holds something else.
    pub fn load(files: Files) -> Result<Self, Error> {
        let material = watch::Sender::new(Arc::new(Material::load(&files)?));
        Ok(Self { files, material: Arc::new(material) })
    }

    /// What is in force.
    #[must_use]
    pub fn current(&self) -> Arc<Material> {
        Arc::clone(&self.material.borrow())
    }

    /// What is in force, as it changes.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<Arc<Material>> {
        self.material.subscribe()
    }

    /// Reads the files again whenever one of them has changed.
    pub async fn watch(self) {
        let mut known = self.modified();
        let mut tick = tokio::time::interval(LOOK_INTERVAL);
        loop {
            tick.tick().await;
            let now = self.modified();
            if now == known {
                continue;
            }
            match Material::load(&self.files) {
                Ok(material) => {
                    known = now;
                    self.material.send_replace(Arc::new(material));
                    tracing::info!(cert = %self.files.cert.display(), "certificates are loaded again");
                }
                // Perhaps only the first of the files has been replaced so far.
                Err(error) => tracing::warn!(%error, "changed certificates are not used yet"),
            }
        }
    }

    fn modified(&self) -> [Option<(SystemTime, u64)>; 3] {
        [&self.files.cert, &self.files.key, &self.files.ca].map(|path| {
            let metadata = std::fs::metadata(path).ok()?;
            Some((metadata.modified().ok()?, metadata.len()))
        })
    }
}
