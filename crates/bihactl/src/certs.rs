//! The cluster's certificate authority and the nodes' certificates for the control channel.

use biha_core::{ClusterId, NodeId};
use biha_io::certificate_name;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, date_time_ymd,
};

/// A certificate with its private key, both in PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certificate {
    /// The certificate.
    pub certificate: String,
    /// Its private key.
    pub key: String,
}

/// Validity is wide on purpose: the cluster must not stop on a forgotten date, nor on a wrong clock. Members
/// are removed by the configuration, not by expiry.
fn params(name: String) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = date_time_ymd(2000, 1, 1);
    params.not_after = date_time_ymd(2200, 1, 1);
    params
}

/// Makes a new authority for a cluster.
pub fn authority(cluster: ClusterId) -> Result<Certificate, rcgen::Error> {
    let key = KeyPair::generate()?;
    let mut params = params(format!("biha cluster {cluster}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let certificate = params.self_signed(&key)?;
    Ok(Certificate { certificate: certificate.pem(), key: key.serialize_pem() })
}

/// Makes a node's certificate, signed by the cluster's authority.
pub fn node(authority: &Certificate, cluster: ClusterId, node: NodeId) -> Result<Certificate, rcgen::Error> {
    let issuer = Issuer::from_ca_cert_pem(&authority.certificate, KeyPair::from_pem(&authority.key)?)?;
    let key = KeyPair::generate()?;
    let name = certificate_name(cluster, node);
    let mut params = params(name.clone());
    params.subject_alt_names = vec![rcgen::SanType::DnsName(name.try_into()?)];
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let certificate = params.signed_by(&key, &issuer)?;
    Ok(Certificate { certificate: certificate.pem(), key: key.serialize_pem() })
}

#[cfg(test)]
mod tests {
    use biha_io::TlsConfig;

    use super::*;

    #[test]
    fn a_node_certificate_is_made_from_the_authority_in_pem() {
        let cluster = ClusterId(0xabc);
        let ca = authority(cluster).expect("authority");
        let one = node(&ca, cluster, NodeId(1)).expect("node");
        assert!(one.certificate.starts_with("-----BEGIN CERTIFICATE-----"));
        assert!(one.key.starts_with("-----BEGIN PRIVATE KEY-----"));
        assert_ne!(one.key, ca.key);
        let tls =
            TlsConfig::from_pem(ca.certificate.as_bytes(), one.certificate.as_bytes(), one.key.as_bytes());
        let tls = tls.expect("the control channel takes them");
        assert!(tls.check_name(cluster, NodeId(1)).is_ok());
        assert!(tls.check_name(cluster, NodeId(2)).is_err());
        assert!(tls.check_name(ClusterId(1), NodeId(1)).is_err());
    }

    #[test]
    fn a_key_that_is_not_one_is_refused() {
        let mut ca = authority(ClusterId(1)).expect("authority");
        ca.key = "nonsense".to_owned();
        assert!(node(&ca, ClusterId(1), NodeId(1)).is_err());
    }
}
