//! TLS by rustls with ring, chosen here and nowhere else: certificates and keys from PEM files, and what a client's certificate says.

use std::fmt::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use sha2::{Digest as _, Sha256};

use crate::domain::id::Digest;

/// How a node's certificate names it: a URI among its subject's alternative names.
pub const NODE_URI: &str = "urn:meterd:node:";
/// How a person's or program's certificate names its role: `admin`, `operator` or `reader`, and after a colon whose it is.
pub const ROLE_URI: &str = "urn:meterd:role:";

/// Why a certificate, a key or a secret cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct Unusable {
    /// Which file.
    pub path: PathBuf,
    /// Why not.
    pub why: String,
}

impl Unusable {
    /// This file, for this reason.
    pub fn new(path: &Path, why: impl Into<String>) -> Unusable {
        Unusable { path: path.to_owned(), why: why.into() }
    }
}

/// A client's certificate, as far as anything here depends on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Presented {
    /// SHA-256 of the whole certificate.
    pub fingerprint: Digest,
    /// Its serial number, in lower-case hexadecimal digits without leading zeros.
    pub serial: String,
    /// Its URIs that begin with `urn:meterd:`.
    pub uris: Vec<String>,
}

impl Presented {
    /// Reads a certificate that was verified already; none if it is none.
    #[must_use]
    pub fn read(certificate: &CertificateDer<'_>) -> Option<Presented> {
        let read = rustls_webpki::EndEntityCert::try_from(certificate).ok()?;
        let mut serial = String::new();
        for byte in read.serial() {
            let _ = write!(serial, "{byte:02x}"); // writing into memory does not fail
        }
        let uris = read.valid_uri_names().filter(|uri| uri.starts_with("urn:meterd:")).map(str::to_owned).collect();
        let fingerprint = Digest(Sha256::digest(certificate.as_ref()).into());
        Some(Presented { fingerprint, serial: serial.trim_start_matches('0').to_owned(), uris })
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// The certificates in a file, the end's own first.
///
/// # Errors
/// See [`Unusable`].
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Unusable> {
    let text = std::fs::read(path).map_err(|error| Unusable::new(path, error.to_string()))?;
    let read: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let read = read.map_err(|error| Unusable::new(path, error.to_string()))?;
    if read.is_empty() { Err(Unusable::new(path, "there is no certificate in it")) } else { Ok(read) }
}

fn roots(path: &Path) -> Result<RootCertStore, Unusable> {
    let mut store = RootCertStore::empty();
    for certificate in certificates(path)? {
        store.add(certificate).map_err(|error| Unusable::new(path, error.to_string()))?;
    }
    Ok(store)
}

fn key(path: &Path) -> Result<PrivateKeyDer<'static>, Unusable> {
    PrivateKeyDer::from_pem_slice(&secret(path)?).map_err(|error| Unusable::new(path, error.to_string()))
}

/// The content of a file that nobody else may read.
///
/// # Errors
/// It cannot be read, or others can read it.
pub fn secret(path: &Path) -> Result<Vec<u8>, Unusable> {
    let found = std::fs::metadata(path).map_err(|error| Unusable::new(path, error.to_string()))?;
    if found.permissions().mode() & 0o007 != 0 {
        return Err(Unusable::new(path, "others may read it: chmod o= it"));
    }
    std::fs::read(path).map_err(|error| Unusable::new(path, error.to_string()))
}

/// What a client needs to speak to a server whose certificate comes from `ca`; `own` is its certificate and key, where it has them.
///
/// # Errors
/// See [`Unusable`].
pub fn client(ca: &Path, own: Option<(&Path, &Path)>) -> Result<ClientConfig, Unusable> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Unusable::new(ca, error.to_string()))?.with_root_certificates(roots(ca)?);
    match own {
        None => Ok(builder.with_no_client_auth()),
        Some((certificate, private)) => builder
            .with_client_auth_cert(certificates(certificate)?, key(private)?)
            .map_err(|error| Unusable::new(certificate, error.to_string())),
    }
}

/// For a client that speaks over a Unix socket alone: it trusts nobody, and reads no file.
///
/// # Errors
/// In words; ring has every protocol version, so there is none.
pub fn without_peers() -> Result<ClientConfig, String> {
    let builder = ClientConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    Ok(builder.with_root_certificates(RootCertStore::empty()).with_no_client_auth())
}

/// What a server needs. A client shows a certificate of `ca`, or none: then it needs a token.
///
/// # Errors
/// See [`Unusable`].
pub fn server(ca: &Path, certificate: &Path, private: &Path) -> Result<ServerConfig, Unusable> {
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(ca)?), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| Unusable::new(ca, error.to_string()))?;
    let builder = ServerConfig::builder_with_provider(provider()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| Unusable::new(certificate, error.to_string()))?.with_client_cert_verifier(verifier);
    let config = builder.with_single_cert(certificates(certificate)?, key(private)?);
    let mut config = config.map_err(|error| Unusable::new(certificate, error.to_string()))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}
