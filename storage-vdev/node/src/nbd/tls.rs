//! TLS 1.3 for connections over TCP. Both ends prove who they are by certificates of one authority:
//! whoever reaches the port and has none gets nothing.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ServerConfig;
use rustls::crypto::ring::default_provider;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, version};

/// Why TLS can't be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file can't be read or isn't PEM.
    #[error("{}: {reason}", path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The certificates or the key don't fit.
    #[error("the certificates can't be used: {0}")]
    Certificates(String),
}

/// Reads `server-cert.pem`, `server-key.pem` and `ca-cert.pem` in `folder`: the names that QEMU and
/// libnbd use too. Clients need a certificate of that authority.
///
/// # Errors
/// [`TlsError`].
pub fn tls_config(folder: &Path) -> Result<Arc<ServerConfig>, TlsError> {
    let refuse = |error: &dyn std::fmt::Display| TlsError::Certificates(error.to_string());
    let mut roots = RootCertStore::empty();
    for certificate in certificates(&folder.join("ca-cert.pem"))? {
        roots.add(certificate).map_err(|error| refuse(&error))?;
    }
    let provider = Arc::new(default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
        .build()
        .map_err(|error| refuse(&error))?;
    let chain = certificates(&folder.join("server-cert.pem"))?;
    let path = folder.join("server-key.pem");
    let key = PrivateKeyDer::from_pem_file(&path).map_err(|error| file_error(&path, &error))?;
    let config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&version::TLS13])
        .map_err(|error| refuse(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| refuse(&error))?;
    Ok(Arc::new(config))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let all = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match all {
        Ok(all) if all.is_empty() => Err(TlsError::File {
            path: path.to_owned(),
            reason: "there is no certificate in it".to_owned(),
        }),
        Ok(all) => Ok(all),
        Err(error) => Err(file_error(path, &error)),
    }
}

fn file_error(path: &Path, error: &rustls::pki_types::pem::Error) -> TlsError {
    TlsError::File { path: path.to_owned(), reason: error.to_string() }
}
