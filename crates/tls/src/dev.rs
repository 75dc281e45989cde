//! Certificates to try things out with.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose,
};

/// Where [`dev_certificates`] has put what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DevCertificates {
    /// The authority's certificate.
    pub ca: PathBuf,
    /// The node's certificate.
    pub cert: PathBuf,
    /// The node's key.
    pub key: PathBuf,
}

/// Makes an authority and one certificate, which every node may use, for these hosts: names or addresses. The
/// authority's key is thrown away, so that nothing else is ever signed by it.
///
/// # Errors
///
/// A host is neither a name nor an address, or the directory can not be written.
pub fn dev_certificates(
    directory: &Path,
    hosts: &[String],
    valid: Duration,
) -> std::io::Result<DevCertificates> {
    let invalid =
        |error: rcgen::Error| std::io::Error::new(std::io::ErrorKind::InvalidInput, error.to_string());
    #[expect(clippy::disallowed_methods, reason = "a certificate is dated by the wall clock")]
    let until = std::time::SystemTime::now() + valid;
    let key = || KeyPair::generate().map_err(invalid);
    let mut authority = CertificateParams::default();
    authority.distinguished_name.push(DnType::CommonName, "orchestra dev authority");
    authority.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    authority.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    authority.not_after = until.into();
    let authority = CertifiedIssuer::self_signed(authority, key()?).map_err(invalid)?;
    let mut node = CertificateParams::new(hosts.to_vec()).map_err(invalid)?;
    node.distinguished_name.push(DnType::CommonName, "orchestra dev node");
    node.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    node.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    node.not_after = until.into();
    let node_key = key()?;
    let node = node.signed_by(&node_key, &authority).map_err(invalid)?;

    std::fs::create_dir_all(directory)?;
    let files = DevCertificates {
        ca: directory.join("ca.pem"),
        cert: directory.join("node.pem"),
        key: directory.join("node.key"),
    };
    std::fs::write(&files.ca, authority.pem())?;
    std::fs::write(&files.cert, node.pem())?;
    write_secret(&files.key, &node_key.serialize_pem())?;
    Ok(files)
}

/// Writes a file that only its owner may read.
fn write_secret(path: &Path, text: &str) -> std::io::Result<()> {
    use std::{io::Write as _, os::unix::fs::OpenOptionsExt as _};
    // Anew, because the mode is that of the first creation.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut options = std::fs::OpenOptions::new();
    options.write(true).create_new(true).mode(0o600).open(path)?.write_all(text.as_bytes())
}
