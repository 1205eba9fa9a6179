//! TLS 1.3, both sides verified against the cluster's own certificate authority.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use biha_core::{ClusterId, NodeId};
use rustls::client::Resumption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::{NoServerSessionStorage, WebPkiClientVerifier};
use rustls::version::TLS13;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be read.
    #[error("could not read file \"{}\": {error}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        error: io::Error,
    },
    /// A text is not PEM, or holds something else.
    #[error("{what}: {why}")]
    Pem {
        /// Which of the three.
        what: &'static str,
        /// Why.
        why: String,
    },
    /// The certificates do not fit together.
    #[error("certificate cannot be used: {0}")]
    Tls(#[from] rustls::Error),
    /// The authority's certificate cannot be used.
    #[error("certificate of the authority cannot be used: {0}")]
    Authority(String),
    /// The certificate is another node's.
    #[error("certificate is not made for \"{0}\"")]
    Name(String),
}

/// Certificates ready for use. Cheap to clone.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    own: CertificateDer<'static>,
}

/// The subject alternative name (DNS) that the certificate of a node must have.
pub fn certificate_name(cluster: ClusterId, node: NodeId) -> String {
    format!("node-{node}.{cluster}.biha")
}

/// Is this certificate made for that node? The chain is verified elsewhere, in the handshake.
pub(super) fn is_certificate_of(certificate: &CertificateDer<'_>, cluster: ClusterId, node: NodeId) -> bool {
    let Ok(name) = ServerName::try_from(certificate_name(cluster, node)) else { return false };
    webpki::EndEntityCert::try_from(certificate)
        .is_ok_and(|certificate| certificate.verify_is_valid_for_subject_name(&name).is_ok())
}

impl TlsConfig {
    /// From the PEM texts of the cluster's authority, the node's certificate (with the chain up to the
    /// authority, if any) and its private key.
    pub fn from_pem(authority: &[u8], certificate: &[u8], key: &[u8]) -> Result<TlsConfig, TlsError> {
        let mut roots = RootCertStore::empty();
        for root in certificates("certificate of the authority", authority)? {
            roots.add(root).map_err(|e| TlsError::Authority(e.to_string()))?;
        }
        let roots = Arc::new(roots);
        let chain = certificates("certificate", certificate)?;
        let own = chain[0].clone();
        let key = PrivateKeyDer::from_pem_slice(key)
            .map_err(|e| TlsError::Pem { what: "private key", why: e.to_string() })?;
        let provider = Arc::new(ring::default_provider());
        let verifier = WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(&provider))
            .build()
            .map_err(|e| TlsError::Authority(e.to_string()))?;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&TLS13])?
            .with_client_cert_verifier(verifier)
            .with_single_cert(chain.clone(), key.clone_key())?;
        let mut client = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(&[&TLS13])?
            .with_root_certificates(roots)
            .with_client_auth_cert(chain, key)?;
        // No resumption: every connection proves its certificate, a reloaded one counts at once, and the
        // accepting side has nothing to send that nobody waits for.
        server.send_tls13_tickets = 0;
        server.session_storage = Arc::new(NoServerSessionStorage {});
        client.resumption = Resumption::disabled();
        Ok(TlsConfig { server: Arc::new(server), client: Arc::new(client), own })
    }

    /// As [`TlsConfig::from_pem`], from files.
    pub fn load(authority: &Path, certificate: &Path, key: &Path) -> Result<TlsConfig, TlsError> {
        let read = |path: &Path| {
            std::fs::read(path).map_err(|error| TlsError::Read { path: path.to_owned(), error })
        };
        TlsConfig::from_pem(&read(authority)?, &read(certificate)?, &read(key)?)
    }

    /// Fails unless the certificate is this node's.
    pub fn check_name(&self, cluster: ClusterId, node: NodeId) -> Result<(), TlsError> {
        match is_certificate_of(&self.own, cluster, node) {
            true => Ok(()),
            false => Err(TlsError::Name(certificate_name(cluster, node))),
        }
    }

    pub(super) fn accept(&self) -> Result<rustls::Connection, rustls::Error> {
        Ok(ServerConnection::new(Arc::clone(&self.server))?.into())
    }

    pub(super) fn connect(
        &self,
        cluster: ClusterId,
        node: NodeId,
    ) -> Result<rustls::Connection, rustls::Error> {
        let name = ServerName::try_from(certificate_name(cluster, node))
            .map_err(|e| rustls::Error::General(e.to_string()))?;
        Ok(ClientConnection::new(Arc::clone(&self.client), name)?.into())
    }
}

/// At least one.
fn certificates(what: &'static str, pem: &[u8]) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let wrong = |why: String| TlsError::Pem { what, why };
    let list: Vec<_> =
        CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>().map_err(|e| wrong(e.to_string()))?;
    match list.is_empty() {
        true => Err(wrong("no certificate in it".to_owned())),
        false => Ok(list),
    }
}
