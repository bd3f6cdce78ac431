//! The certificates that a peer must chain to, chosen by the caller.
//!
//! A pinned certificate is a root. It may also be the peer's own: people pin the one self-signed
//! certificate that their server shows. Where such a certificate calls itself a CA, which is what
//! common tools write, webpki refuses it as an end entity; here it is taken if the peer shows exactly
//! the pinned bytes, is the host that was asked for, and holds the key.

use std::{fmt, sync::Arc};

use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, OtherError, RootCertStore,
    SignatureScheme,
    client::{
        WebPkiServerVerifier,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
        verify_server_name,
    },
    crypto::{CryptoProvider, ring, verify_tls12_signature, verify_tls13_signature},
    pki_types::{CertificateDer, ServerName, UnixTime, pem::PemObject},
    server::ParsedCertificate,
};
use sha2::{Digest, Sha256};

/// Certificates in all the PEM texts of one set of roots.
const CERTIFICATES: usize = 256;

/// Takes every certificate, for hosts that were named so; the peer must still hold the key of the one that it shows.
pub(crate) fn unverified() -> Result<ClientConfig, RootsError> {
    let provider = Arc::new(ring::default_provider());
    let mut config = with_provider(provider.clone())?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Anything(provider)))
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(config)
}

/// Which certificates are trusted.
#[derive(Clone, Default)]
pub struct Roots {
    pinned: Vec<CertificateDer<'static>>,
    web: bool,
}

impl Roots {
    /// The public roots of the web, as compiled in.
    #[must_use]
    pub fn web() -> Self {
        Self {
            pinned: Vec::new(),
            web: true,
        }
    }

    /// Only the certificates of a PEM text.
    ///
    /// # Errors
    /// When the text has no certificate, a broken one, or too many.
    pub fn pinned(pem: &str) -> Result<Self, RootsError> {
        Self::default().and(pem)
    }

    /// These, and the certificates of a PEM text.
    ///
    /// # Errors
    /// When the text has no certificate, a broken one, or too many.
    pub fn and(mut self, pem: &str) -> Result<Self, RootsError> {
        let before = self.pinned.len();
        for certificate in CertificateDer::pem_slice_iter(pem.as_bytes()) {
            let certificate = certificate.map_err(|error| RootsError::Pem(error.to_string()))?;
            if self.pinned.len() == CERTIFICATES {
                return Err(RootsError::TooMany);
            }
            self.pinned.push(certificate);
        }
        if self.pinned.len() == before {
            return Err(RootsError::Empty);
        }
        self.store()?;
        Ok(self)
    }

    fn store(&self) -> Result<RootCertStore, RootsError> {
        let mut store = RootCertStore::empty();
        if self.web {
            store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        }
        for certificate in &self.pinned {
            store
                .add(certificate.clone())
                .map_err(|error| RootsError::Certificate(error.to_string()))?;
        }
        Ok(store)
    }

    pub(crate) fn client_config(&self) -> Result<ClientConfig, RootsError> {
        let provider = Arc::new(ring::default_provider());
        let store = Arc::new(self.store()?);
        let webpki = WebPkiServerVerifier::builder_with_provider(store, provider.clone())
            .build()
            .map_err(|_| RootsError::Empty)?;
        let verifier = Verifier {
            webpki,
            pinned: self.pinned.clone(),
        };
        let mut config = with_provider(provider)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier))
            .with_no_client_auth();
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn with_provider(
    provider: Arc<CryptoProvider>,
) -> Result<rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier>, RootsError> {
    ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| RootsError::Provider(error.to_string()))
}

impl fmt::Display for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const SHOWN: usize = 2;
        let shown = self.pinned.iter().take(SHOWN).map(|c| fingerprint(c));
        let mut parts: Vec<String> = shown.collect();
        if self.pinned.len() > SHOWN {
            parts.push(format!("{} more", self.pinned.len() - SHOWN));
        }
        if self.web {
            parts.push("the public web roots".to_owned());
        }
        f.write_str(&parts.join(", "))
    }
}

impl fmt::Debug for Roots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Roots({self})")
    }
}

/// Roots that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootsError {
    /// No certificate at all.
    #[error("no certificate in the PEM text: write `-----BEGIN CERTIFICATE-----`")]
    Empty,
    /// More than anyone means.
    #[error("more than {CERTIFICATES} certificates")]
    TooMany,
    /// Not PEM.
    #[error("PEM text: {0}")]
    Pem(String),
    /// Not an X.509 certificate.
    #[error("certificate: {0}")]
    Certificate(String),
    /// The TLS stack has no usable protocol version.
    #[error("tls stack: {0}")]
    Provider(String),
}

fn fingerprint(certificate: &CertificateDer<'_>) -> String {
    format!("sha256:{}", hex::encode(Sha256::digest(certificate)))
}

#[derive(Debug)]
struct Verifier {
    webpki: Arc<WebPkiServerVerifier>,
    pinned: Vec<CertificateDer<'static>>,
}

/// What was wrong with a certificate, and which one it was.
#[derive(Debug, thiserror::Error)]
#[error("its certificate {presented} is refused: {cause}")]
struct Refused {
    presented: String,
    cause: String,
}

impl Verifier {
    /// Webpki checks the validity before the kind of use, so a pinned certificate that is past its
    /// time does not come here.
    fn is_pinned_ca(&self, end_entity: &CertificateDer<'_>, error: &rustls::Error) -> bool {
        let rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(other))) = error
        else {
            return false;
        };
        matches!(
            other.downcast_ref::<webpki::Error>(),
            Some(webpki::Error::CaUsedAsEndEntity)
        ) && self.pinned.iter().any(|pinned| pinned == end_entity)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.webpki
            .verify_server_cert(end_entity, intermediates, server_name, ocsp, now)
            .or_else(|error| {
                if !self.is_pinned_ca(end_entity, &error) {
                    return Err(error);
                }
                verify_server_name(&ParsedCertificate::try_from(end_entity)?, server_name)?;
                Ok(ServerCertVerified::assertion())
            })
            .map_err(|error| refused(end_entity, &error))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki
            .verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.webpki
            .verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.webpki.supported_verify_schemes()
    }
}

#[derive(Debug)]
struct Anything(Arc<CryptoProvider>);

impl ServerCertVerifier for Anything {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signature, known)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let known = &self.0.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

fn refused(certificate: &CertificateDer<'_>, error: &rustls::Error) -> rustls::Error {
    let cause = match error {
        rustls::Error::InvalidCertificate(CertificateError::UnknownIssuer) => {
            "no trusted root issued it".to_owned()
        }
        rustls::Error::InvalidCertificate(certificate) => certificate.to_string(),
        other => other.to_string(),
    };
    let refused = Refused {
        presented: fingerprint(certificate),
        cause,
    };
    CertificateError::Other(OtherError(Arc::new(refused))).into()
}

/// The text of a handshake's refusal of the certificate, if it is one.
pub(crate) fn refusal(error: &rustls::Error) -> Option<String> {
    match error {
        rustls::Error::InvalidCertificate(CertificateError::Other(OtherError(other))) => {
            Some(other.to_string())
        }
        rustls::Error::InvalidCertificate(other) => Some(other.to_string()),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_without_a_certificate_are_refused() {
        assert_eq!(Roots::pinned("").unwrap_err(), RootsError::Empty);
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        assert!(matches!(
            Roots::pinned(broken),
            Err(RootsError::Certificate(_))
        ));
        let open = "-----BEGIN CERTIFICATE-----\nAAAA\n";
        assert!(matches!(Roots::pinned(open), Err(RootsError::Pem(_))));
    }

    #[test]
    fn roots_say_what_they_are() {
        assert_eq!(Roots::web().to_string(), "the public web roots");
        let key = rcgen::generate_simple_self_signed(vec!["a".to_owned()]).unwrap();
        let roots = Roots::pinned(&key.cert.pem()).unwrap().to_string();
        assert!(roots.starts_with("sha256:"), "{roots}");
    }
}
