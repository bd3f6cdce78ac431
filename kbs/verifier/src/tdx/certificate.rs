//! Certificates and lists of revoked ones, as Intel signs them: ECDSA over P-256 with SHA-256.

use std::collections::HashSet;

use ring::signature::{ECDSA_P256_SHA256_ASN1, UnparsedPublicKey};
use x509_parser::{certificate::X509Certificate, x509::X509Name};

use super::{
    TdxFailure,
    document::{Document, Period},
};

/// The most bytes of a certificate.
const CERTIFICATE_BYTES: usize = 8 * 1024;
/// The most certificates of a chain that are looked at.
const CERTIFICATES: usize = 4;
/// An uncompressed point on P-256 (SEC 1).
const POINT_BYTES: usize = 65;

/// A certificate, by what is looked at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Certificate {
    pub(super) der: Vec<u8>,
    pub(super) period: Period,
    pub(super) serial: Vec<u8>,
    pub(super) point: [u8; POINT_BYTES],
    pub(super) subject: Vec<u8>,
    issuer: Vec<u8>,
    /// The common names.
    pub(super) subject_name: String,
    pub(super) issuer_name: String,
    signed: Signed,
}

/// A list of revoked certificates.
#[derive(Debug, Clone)]
pub(super) struct Crl {
    pub(super) period: Period,
    issuer: Vec<u8>,
    serials: HashSet<Vec<u8>>,
    signed: Signed,
}

/// Bytes and the signature over them, in DER.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Signed {
    pub(super) message: Vec<u8>,
    pub(super) signature: Vec<u8>,
}

impl Certificate {
    pub(super) fn parse(document: Document, der: &[u8]) -> Result<Self, TdxFailure> {
        if der.len() > CERTIFICATE_BYTES {
            return Err(form(document, "it is too long"));
        }
        let certificate = parse(document, der)?;
        let key = &certificate.public_key().subject_public_key.data;
        let point = <[u8; POINT_BYTES]>::try_from(&**key)
            .map_err(|_| form(document, "its key is not on P-256"))?;
        Ok(Self {
            period: Period {
                document,
                from: certificate.validity().not_before.timestamp(),
                until: certificate.validity().not_after.timestamp(),
            },
            serial: certificate.raw_serial().to_vec(),
            point,
            subject: certificate.subject().as_raw().to_vec(),
            issuer: certificate.issuer().as_raw().to_vec(),
            subject_name: common_name(document, certificate.subject())?,
            issuer_name: common_name(document, certificate.issuer())?,
            signed: Signed {
                message: certificate.tbs_certificate.as_ref().to_vec(),
                signature: certificate.signature_value.data.to_vec(),
            },
            der: der.to_vec(),
        })
    }

    pub(super) fn document(&self) -> Document {
        self.period.document
    }

    /// That it was issued by that one, and the signature that says so.
    pub(super) fn issued_by(&self, issuer: &Self) -> Result<&Signed, TdxFailure> {
        issuer.signed(self.document(), &self.issuer, &self.signed)
    }

    /// That this key signed something in this certificate's name.
    fn signed<'a>(
        &self,
        document: Document,
        issuer: &[u8],
        signed: &'a Signed,
    ) -> Result<&'a Signed, TdxFailure> {
        if issuer != self.subject || !self.verifies(&signed.message, &signed.signature) {
            let issuer = self.document();
            return Err(TdxFailure::Chain { document, issuer });
        }
        Ok(signed)
    }

    /// Whether this key made the signature, which is in DER.
    pub(super) fn verifies(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, &self.point)
            .verify(message, signature)
            .is_ok()
    }
}

impl Crl {
    pub(super) fn parse(document: Document, der: &[u8]) -> Result<Self, TdxFailure> {
        let Ok(([], list)) = x509_parser::parse_x509_crl(der) else {
            return Err(form(document, "it is not a list in DER"));
        };
        let until = list
            .next_update()
            .ok_or(form(document, "it names no next update"))?;
        Ok(Self {
            period: Period {
                document,
                from: list.last_update().timestamp(),
                until: until.timestamp(),
            },
            issuer: list.tbs_cert_list.issuer.as_raw().to_vec(),
            serials: list
                .iter_revoked_certificates()
                .map(|revoked| revoked.raw_serial().to_vec())
                .collect(),
            signed: Signed {
                message: list.tbs_cert_list.as_ref().to_vec(),
                signature: list.signature_value.data.to_vec(),
            },
        })
    }

    /// That it was issued by that one, and the signature that says so.
    pub(super) fn issued_by(&self, issuer: &Certificate) -> Result<&Signed, TdxFailure> {
        issuer.signed(self.period.document, &self.issuer, &self.signed)
    }

    /// That the certificate is not in the list.
    pub(super) fn clears(&self, certificate: &Certificate) -> Result<(), TdxFailure> {
        if self.serials.contains(&certificate.serial) {
            return Err(TdxFailure::Revoked {
                document: certificate.document(),
                serial: hex::encode(&certificate.serial),
            });
        }
        Ok(())
    }
}

fn common_name(document: Document, name: &X509Name<'_>) -> Result<String, TdxFailure> {
    let mut names = name.iter_common_name();
    match (names.next(), names.next()) {
        (Some(name), None) => Ok(name.as_str().unwrap_or_default().to_owned()),
        _ => Err(form(document, "it has no common name, or several")),
    }
}

/// The certificates of a chain in PEM, in DER. A last zero, as C strings have it, is no part of it.
pub(super) fn chain(document: Document, pem: &[u8]) -> Result<Vec<Vec<u8>>, TdxFailure> {
    const END: &str = "-----END CERTIFICATE-----";
    let wrong = || form(document, "its chain is not certificates in PEM");
    let text = std::str::from_utf8(pem.strip_suffix(&[0]).unwrap_or(pem)).map_err(|_| wrong())?;
    let mut chain = Vec::new();
    for piece in text.trim_end().split_inclusive(END) {
        if chain.len() == CERTIFICATES {
            return Err(form(document, "its chain is too long"));
        }
        match pem_rfc7468::decode_vec(piece.trim().as_bytes()) {
            Ok(("CERTIFICATE", der)) => chain.push(der),
            _ => return Err(wrong()),
        }
    }
    Ok(chain)
}

fn parse(document: Document, der: &[u8]) -> Result<X509Certificate<'_>, TdxFailure> {
    match x509_parser::parse_x509_certificate(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(form(document, "something follows it")),
        Err(_) => Err(form(document, "it is not X.509 in DER")),
    }
}

pub(super) fn form(document: Document, detail: &'static str) -> TdxFailure {
    TdxFailure::Form { document, detail }
}
