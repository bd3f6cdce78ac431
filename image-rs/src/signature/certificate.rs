//! Certificates of signers: the chain to the policy's roots, valid at a time that somebody trusted vouches for, and
//! whom the certificate is for.
//!
//! Chains are built and checked by rustls-webpki, as those of TLS are. What Fulcio adds (the issuer, an address, the
//! place in a certificate log) is read from the verified certificate alone.

use std::time::Duration;

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage, anchor_from_trusted_cert};
use x509_parser::extensions::GeneralName;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::key::{PublicKey, all_pem, one_pem};
use super::refusal::Reason;
use super::sct;

/// Cap on the certificates of a chain, and on those of a policy's authority.
const CHAIN_MAX: usize = 8;
/// Cap on the certificates of an authority.
const AUTHORITY_MAX: usize = 32;
/// `id-kp-codeSigning`.
const CODE_SIGNING: &[u8] = &[0x2b, 6, 1, 5, 5, 7, 3, 3];
/// Fulcio's issuer, as bare text; old, and still written.
const ISSUER_V1: &str = "1.3.6.1.4.1.57264.1.1";
/// Fulcio's issuer, as a DER `UTF8String`.
const ISSUER_V2: &str = "1.3.6.1.4.1.57264.1.8";
/// The list of signed certificate timestamps.
const TIMESTAMPS: &str = "1.3.6.1.4.1.11129.2.4.2";
const UTF8_STRING: u8 = 0x0c;
const LABEL: &str = "CERTIFICATE";

const ALGORITHMS: &[&dyn rustls_pki_types::SignatureVerificationAlgorithm] = &[
    webpki::ring::ECDSA_P256_SHA256,
    webpki::ring::ECDSA_P256_SHA384,
    webpki::ring::ECDSA_P384_SHA256,
    webpki::ring::ECDSA_P384_SHA384,
    webpki::ring::ED25519,
    webpki::ring::RSA_PKCS1_2048_8192_SHA256,
    webpki::ring::RSA_PKCS1_2048_8192_SHA384,
    webpki::ring::RSA_PKCS1_2048_8192_SHA512,
];

/// Whom a certificate must be for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject {
    /// An address of mail.
    Email(String),
    /// A URI, as a workflow of GitHub or a workload of SPIFFE has.
    Uri(String),
    /// A host.
    Host(String),
}

/// Roots that a policy trusts, and certificates that may stand between.
#[derive(Debug, Clone)]
pub(crate) struct CertificateAuthority {
    roots: Vec<CertificateDer<'static>>,
    intermediates: Vec<CertificateDer<'static>>,
}

/// The certificate that came with a signature, and what came with it to reach a root.
#[derive(Debug)]
pub(super) struct Chain {
    pub(super) leaf: Vec<u8>,
    pub(super) others: Vec<Vec<u8>>,
}

impl Chain {
    /// Reads a certificate and its chain as cosign annotates them.
    pub(super) fn from_pem(leaf: &str, others: Option<&str>) -> Result<Self, Reason> {
        let bad = |detail| Reason::format("its certificate", detail);
        let others = others.map_or_else(
            || Ok(Vec::new()),
            |pem| all_pem(pem.as_bytes(), LABEL, CHAIN_MAX).map_err(bad),
        )?;
        Ok(Self {
            leaf: one_pem(leaf.as_bytes(), LABEL).map_err(bad)?,
            others,
        })
    }
}

/// A certificate whose chain holds.
#[derive(Debug)]
pub(super) struct Verified<'a> {
    leaf: X509Certificate<'a>,
    issuer_key: Vec<u8>,
}

impl CertificateAuthority {
    /// Reads certificates in PEM.
    ///
    /// # Errors
    /// What they are instead.
    pub(crate) fn new(roots: &[u8], intermediates: Option<&[u8]>) -> Result<Self, String> {
        let read = |pem: &[u8]| -> Result<Vec<CertificateDer<'static>>, String> {
            let ders = all_pem(pem, LABEL, AUTHORITY_MAX)?;
            let certificates: Vec<_> = ders.into_iter().map(CertificateDer::from).collect();
            for certificate in &certificates {
                anchor_from_trusted_cert(certificate)
                    .map_err(|error| format!("a certificate of it is malformed: {error:?}"))?;
            }
            Ok(certificates)
        };
        let roots = read(roots)?;
        if roots.is_empty() {
            return Err("it has no certificate".to_owned());
        }
        Ok(Self {
            roots,
            intermediates: intermediates.map_or_else(|| Ok(Vec::new()), read)?,
        })
    }

    /// Checks the chain as it was at `at`, in seconds since 1970, when `when` was.
    pub(super) fn verify<'a>(
        &self,
        chain: &'a Chain,
        at: u64,
        when: &'static str,
    ) -> Result<Verified<'a>, Reason> {
        if chain.others.len() > CHAIN_MAX {
            return Err(Reason::TooMany {
                what: "its certificate chain".to_owned(),
                found: chain.others.len(),
                cap: CHAIN_MAX,
            });
        }
        let der = CertificateDer::from(chain.leaf.as_slice());
        let leaf = EndEntityCert::try_from(&der).map_err(|error| broken(&error, at, when))?;
        let anchors: Vec<TrustAnchor<'_>> = self
            .roots
            .iter()
            .filter_map(|root| anchor_from_trusted_cert(root).ok())
            .collect();
        let others: Vec<CertificateDer<'_>> = chain
            .others
            .iter()
            .map(|der| CertificateDer::from(der.as_slice()))
            .chain(self.intermediates.iter().cloned())
            .collect();
        let path = leaf
            .verify_for_usage(
                ALGORITHMS,
                &anchors,
                &others,
                UnixTime::since_unix_epoch(Duration::from_secs(at)),
                KeyUsage::required_if_present(CODE_SIGNING),
                None,
                None,
            )
            .map_err(|error| broken(&error, at, when))?;
        let issuer_key = path.issuer_spki().as_ref().to_vec();
        Verified::new(&chain.leaf, issuer_key)
    }
}

fn broken(error: &webpki::Error, at: u64, when: &'static str) -> Reason {
    match error {
        webpki::Error::CertExpired { .. } | webpki::Error::CertNotValidYet { .. } => {
            Reason::Time { at, when }
        }
        other => Reason::Chain(format!("{other:?}")),
    }
}

impl<'a> Verified<'a> {
    fn new(der: &'a [u8], issuer_key: Vec<u8>) -> Result<Self, Reason> {
        let (_, leaf) = X509Certificate::from_der(der)
            .map_err(|_| Reason::format("its certificate", "it is not X.509"))?;
        let usage = leaf.extended_key_usage().ok().flatten();
        if !usage.is_some_and(|usage| usage.value.code_signing) {
            return Err(Reason::Chain("it is not for signing code".to_owned()));
        }
        Ok(Self { leaf, issuer_key })
    }

    /// The key that it is for.
    pub(super) fn key(&self) -> Result<PublicKey, Reason> {
        PublicKey::from_spki(self.leaf.public_key().raw)
            .map_err(|detail| Reason::format("the key of its certificate", detail))
    }

    /// Whether Fulcio wrote it for a login at `wanted`.
    pub(super) fn check_issuer(&self, wanted: &str) -> Result<(), Reason> {
        let mut found: Vec<String> = Vec::new();
        for extension in self.leaf.extensions() {
            let text = match extension.oid.to_id_string().as_str() {
                ISSUER_V1 => extension.value,
                ISSUER_V2 => utf8_string(extension.value)?,
                _ => continue,
            };
            let text = std::str::from_utf8(text)
                .map_err(|_| Reason::format("its certificate", "the issuer is not text"))?;
            found.push(text.to_owned());
        }
        // Both forms may be there, and must say the same.
        if !found.is_empty() && found.iter().all(|issuer| issuer == wanted) {
            return Ok(());
        }
        Err(Reason::Issuer {
            found: found.join(" and "),
            wanted: wanted.to_owned(),
        })
    }

    /// Whether one of its names is `wanted`, to the letter.
    pub(super) fn check_subject(&self, wanted: &Subject) -> Result<(), Reason> {
        let names = self.leaf.subject_alternative_name().ok().flatten();
        let names = names.map_or(&[][..], |names| names.value.general_names.as_slice());
        let is_wanted = |name: &GeneralName<'_>| match (name, wanted) {
            (GeneralName::RFC822Name(found), Subject::Email(wanted))
            | (GeneralName::URI(found), Subject::Uri(wanted)) => found == wanted,
            (GeneralName::DNSName(found), Subject::Host(wanted)) => is_host(found, wanted),
            _ => false,
        };
        if names.iter().any(is_wanted) {
            return Ok(());
        }
        let (Subject::Email(wanted) | Subject::Uri(wanted) | Subject::Host(wanted)) = wanted;
        Err(Reason::Subject {
            found: names.iter().take(CHAIN_MAX).filter_map(shown).collect(),
            wanted: wanted.clone(),
        })
    }

    /// Whether one of `keys` vouches that the certificate is in its log.
    pub(super) fn check_log(&self, keys: &[PublicKey]) -> Result<(), Reason> {
        let mut extensions = self.leaf.extensions().iter();
        let list = extensions.find(|extension| extension.oid.to_id_string() == TIMESTAMPS);
        let list = list.ok_or(Reason::CertificateLog("it has no timestamp of one"))?;
        let tbs = self.leaf.tbs_certificate.as_ref();
        sct::verify(list.value, tbs, &self.issuer_key, keys)
    }
}

fn utf8_string(der: &[u8]) -> Result<&[u8], Reason> {
    match der {
        // An issuer is a URL; one of more than 127 bytes has its length in two.
        [UTF8_STRING, length, text @ ..]
            if usize::from(*length) == text.len() && *length < 0x80 =>
        {
            Ok(text)
        }
        [UTF8_STRING, 0x81, length, text @ ..] if usize::from(*length) == text.len() => Ok(text),
        _ => Err(Reason::format(
            "its certificate",
            "the issuer is not a UTF8String",
        )),
    }
}

/// One label may be `*`, as in TLS.
fn is_host(found: &str, wanted: &str) -> bool {
    let (found, wanted) = (found.to_ascii_lowercase(), wanted.to_ascii_lowercase());
    match found.strip_prefix("*.") {
        Some(domain) => wanted
            .split_once('.')
            .is_some_and(|(_, rest)| rest == domain),
        None => found == wanted,
    }
}

fn shown(name: &GeneralName<'_>) -> Option<String> {
    match name {
        GeneralName::RFC822Name(name) | GeneralName::URI(name) | GeneralName::DNSName(name) => {
            Some((*name).to_owned())
        }
        _ => None,
    }
}
