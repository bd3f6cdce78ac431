//! The places in AMD's chain, and what all certificates there share.

use std::fmt;

use evidence::snp::{CERTIFICATE_BYTES, SigningKey};
use ring::signature::{RSA_PSS_2048_8192_SHA384, UnparsedPublicKey};
use x509_parser::certificate::X509Certificate;

use super::SnpFailure;

/// A place in the chain.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// AMD's root.
    Ark,
    /// The signer of chips' keys.
    Ask,
    /// The signer of loaded keys.
    Asvk,
    /// A chip's key.
    Vcek,
    /// A loaded key.
    Vlek,
}

impl Role {
    /// AMD's name for it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ark => "ARK",
            Self::Ask => "ASK",
            Self::Asvk => "ASVK",
            Self::Vcek => "VCEK",
            Self::Vlek => "VLEK",
        }
    }

    /// Whether a report names this kind of key.
    pub(super) fn signs_as(self, key: SigningKey) -> bool {
        matches!(
            (self, key),
            (Self::Vcek, SigningKey::Vcek) | (Self::Vlek, SigningKey::Vlek)
        )
    }
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What has to hold of a certificate at the time of a verification.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) role: Role,
    pub(super) serial: Vec<u8>,
    /// Seconds since the Unix epoch, as the next one.
    pub(super) from: i64,
    pub(super) until: i64,
}

impl Standing {
    pub(super) fn of(role: Role, certificate: &X509Certificate<'_>) -> Self {
        Self {
            role,
            serial: certificate.raw_serial().to_vec(),
            from: certificate.validity().not_before.timestamp(),
            until: certificate.validity().not_after.timestamp(),
        }
    }

    pub(super) fn at(&self, now: i64) -> Result<(), SnpFailure> {
        let role = self.role;
        if now < self.from {
            let from = self.from;
            return Err(SnpFailure::NotYetValid { role, from, now });
        }
        if now > self.until {
            let until = self.until;
            return Err(SnpFailure::Expired { role, until, now });
        }
        Ok(())
    }
}

/// A certificate that signs others: its name and its key.
#[derive(Debug, Clone)]
pub(super) struct Issuer {
    pub(super) standing: Standing,
    pub(super) der: Vec<u8>,
    pub(super) name: Vec<u8>,
    key: Vec<u8>,
}

/// Bytes under RSASSA-PSS with SHA-384, and who is said to have signed them.
pub(super) struct Signed<'a> {
    pub(super) what: &'static str,
    pub(super) issuer: &'a [u8],
    pub(super) bytes: &'a [u8],
    /// The bytes, the algorithm and the signature, as one sequence.
    pub(super) whole: &'a [u8],
    pub(super) signature: &'a [u8],
}

/// RSASSA-PSS with SHA-384, MGF1 with SHA-384 and a salt of 48 bytes, as AMD writes it (RFC 4055), and
/// the tag of the signature behind it. No signature covers these bytes, so no others will do.
const RSASSA_PSS: &[u8] = b"\x30\x46\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x0a\x30\x39\
    \xa0\x0f\x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
    \xa1\x1c\x30\x1a\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x01\x08\
    \x30\x0d\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x02\x05\x00\
    \xa2\x03\x02\x01\x30\xa3\x03\x02\x01\x01\x03\x82\x02\x01\x00";
/// 1.2.840.113549.1.1.1, RSA keys (RFC 4055).
const RSA_KEY: &[u8] = &[0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];

impl Issuer {
    pub(super) fn parse(role: Role, der: &[u8]) -> Result<Self, SnpFailure> {
        let certificate = parse(role, der)?;
        let authority = certificate
            .basic_constraints()
            .ok()
            .flatten()
            .is_some_and(|constraints| constraints.value.ca);
        if !authority {
            return Err(form(role, "it is not an authority's"));
        }
        let key = certificate.public_key();
        if key.algorithm.algorithm.as_bytes() != RSA_KEY {
            return Err(form(role, "its key is not RSA"));
        }
        Ok(Self {
            standing: Standing::of(role, &certificate),
            der: der.to_vec(),
            name: certificate.subject().as_raw().to_vec(),
            key: key.subject_public_key.data.to_vec(),
        })
    }

    /// That this issuer signed it.
    pub(super) fn check(&self, signed: &Signed<'_>) -> Result<(), SnpFailure> {
        let broken = || SnpFailure::Chain {
            what: signed.what,
            issuer: self.standing.role,
        };
        if signed.issuer != self.name || !names_algorithm(signed) {
            return Err(broken());
        }
        UnparsedPublicKey::new(&RSA_PSS_2048_8192_SHA384, &self.key)
            .verify(signed.bytes, signed.signature)
            .map_err(|_| broken())
    }

    /// That this issuer signed the certificate.
    pub(super) fn check_certificate(
        &self,
        role: Role,
        der: &[u8],
        certificate: &X509Certificate<'_>,
    ) -> Result<(), SnpFailure> {
        self.check(&Signed {
            what: role.name(),
            issuer: certificate.issuer().as_raw(),
            bytes: certificate.tbs_certificate.as_ref(),
            whole: der,
            signature: &certificate.signature_value.data,
        })
    }
}

/// That the algorithm follows the signed bytes, behind the header of a sequence of 256 to 65535 bytes.
fn names_algorithm(signed: &Signed<'_>) -> bool {
    let Some(([0x30, 0x82, _, _], body)) = signed.whole.split_first_chunk() else {
        return false;
    };
    body.strip_prefix(signed.bytes)
        .is_some_and(|rest| rest.starts_with(RSASSA_PSS))
}

pub(super) fn parse(role: Role, der: &[u8]) -> Result<X509Certificate<'_>, SnpFailure> {
    if der.len() > CERTIFICATE_BYTES {
        return Err(form(role, "it is too long"));
    }
    match x509_parser::parse_x509_certificate(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(form(role, "something follows it")),
        Err(_) => Err(form(role, "it is not X.509 in DER")),
    }
}

pub(super) fn form(role: Role, detail: &'static str) -> SnpFailure {
    SnpFailure::Certificate { role, detail }
}
