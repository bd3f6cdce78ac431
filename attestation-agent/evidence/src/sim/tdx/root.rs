//! The development root and the authorities below it.

use std::fmt;

use pem_rfc7468::{LineEnding, decode_vec, encode_string};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair},
};
use zeroize::Zeroizing;

use super::{
    SimError,
    der::{self, Certificate},
};
use crate::{sim::x509::Validity, tdx::SIGNATURE_BYTES};

/// The root, both PCK CAs, and the signer of documents.
pub(super) const NAMES: [&str; 4] = [
    "Development SGX Root CA",
    "Development SGX PCK Platform CA",
    "Development SGX PCK Processor CA",
    "Development SGX TCB Signing",
];
const ROOT: usize = 0;
const TCB_SIGNING: usize = 3;
const CERTIFICATE: &str = "CERTIFICATE";
const PRIVATE_KEY: &str = "PRIVATE KEY";

/// Which authority issues a platform's certificate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ca {
    /// Platforms of several packages, as all with TDX are.
    Platform,
    /// Platforms of one package.
    Processor,
}

impl Ca {
    pub(super) const fn at(self) -> usize {
        match self {
            Self::Platform => 1,
            Self::Processor => 2,
        }
    }
}

/// The root and the authorities below it, with their keys.
pub struct DevelopmentRoot {
    pub(super) authorities: [Authority; 4],
}

pub(super) struct Authority {
    pub(super) key: Key,
    pub(super) certificate: Vec<u8>,
}

/// A key on P-256.
pub(super) struct Key {
    pub(super) pkcs8: Zeroizing<Vec<u8>>,
    pub(super) pair: EcdsaKeyPair,
}

impl fmt::Debug for DevelopmentRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DevelopmentRoot")
    }
}

impl DevelopmentRoot {
    /// Makes a root with new keys.
    ///
    /// # Errors
    /// When a key cannot be made or a date cannot be written.
    pub fn generate(validity: Validity) -> Result<Self, SimError> {
        Self::with_authorities(validity, validity)
    }

    /// The same, with other dates for the authorities below the root.
    ///
    /// # Errors
    /// As [`generate`](Self::generate).
    pub fn with_authorities(root: Validity, below: Validity) -> Result<Self, SimError> {
        let keys = [Key::new()?, Key::new()?, Key::new()?, Key::new()?];
        let certificate = |at: usize| {
            Certificate {
                serial: u64::try_from(at).map_or(0, |at| at + 1),
                issuer: NAMES[ROOT],
                subject: NAMES[at],
                validity: if at == ROOT { root } else { below },
                key: keys[at].point(),
                authority: at != TCB_SIGNING,
                platform: None,
            }
            .sign(&keys[ROOT].pkcs8)
        };
        let certificates = [
            certificate(0)?,
            certificate(1)?,
            certificate(2)?,
            certificate(3)?,
        ];
        let mut parts = keys.into_iter().zip(certificates);
        let mut next = || {
            let (key, certificate) = parts.next().ok_or(SimError::Sign)?;
            Ok::<_, SimError>(Authority { key, certificate })
        };
        Ok(Self {
            authorities: [next()?, next()?, next()?, next()?],
        })
    }

    /// The certificates and the keys, for [`from_pem`](Self::from_pem).
    ///
    /// # Errors
    /// Never for keys of this size.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, SimError> {
        let mut text = Zeroizing::new(String::new());
        for authority in &self.authorities {
            text.push_str(&pem(CERTIFICATE, &authority.certificate)?);
            text.push_str(&Zeroizing::new(pem(PRIVATE_KEY, &authority.key.pkcs8)?));
        }
        Ok(text)
    }

    /// A root from what [`to_pem`](Self::to_pem) wrote.
    ///
    /// # Errors
    /// When the text is something else.
    pub fn from_pem(text: &str) -> Result<Self, SimError> {
        let mut rest = text;
        let mut piece = |label: &str| {
            let end = format!("-----END {label}-----");
            let at = rest
                .find(&end)
                .ok_or(SimError::Bundle("a certificate or key is missing"))?;
            let (one, after) = rest.split_at(at + end.len());
            rest = after;
            match decode_vec(one.trim().as_bytes()) {
                Ok((found, der)) if found == label => Ok(Zeroizing::new(der)),
                _ => Err(SimError::Bundle("a piece of it is not PEM")),
            }
        };
        let mut authority = || {
            let certificate = piece(CERTIFICATE)?.to_vec();
            let key = Key::read(piece(PRIVATE_KEY)?)?;
            Ok::<_, SimError>(Authority { key, certificate })
        };
        Ok(Self {
            authorities: [authority()?, authority()?, authority()?, authority()?],
        })
    }

    /// The root's certificate in PEM, without its key: what a verifier is given.
    ///
    /// # Errors
    /// Never for a certificate of this size.
    pub fn certificates_pem(&self) -> Result<String, SimError> {
        pem(CERTIFICATE, &self.authorities[ROOT].certificate)
    }

    /// A list of revoked certificates, signed by the root (nothing given) or by a PCK CA.
    ///
    /// # Errors
    /// When a date cannot be written.
    pub fn crl(
        &self,
        ca: Option<Ca>,
        validity: Validity,
        serials: &[u64],
    ) -> Result<Vec<u8>, SimError> {
        let at = ca.map_or(ROOT, Ca::at);
        der::crl(
            NAMES[at],
            validity,
            serials,
            &self.authorities[at].key.pkcs8,
        )
    }

    /// The chain of a PCK CA, it first.
    pub(super) fn ca_chain(&self, ca: Ca) -> Result<String, SimError> {
        self.chain(ca.at())
    }

    /// The chain of the signer of documents, it first.
    pub(super) fn signing_chain(&self) -> Result<String, SimError> {
        self.chain(TCB_SIGNING)
    }

    fn chain(&self, at: usize) -> Result<String, SimError> {
        let authority = pem(CERTIFICATE, &self.authorities[at].certificate)?;
        Ok(authority + &self.certificates_pem()?)
    }

    /// Signs a document.
    pub(super) fn sign(&self, document: &str) -> Result<[u8; SIGNATURE_BYTES], SimError> {
        self.authorities[TCB_SIGNING].key.sign(document.as_bytes())
    }
}

impl Key {
    pub(super) fn new() -> Result<Self, SimError> {
        let pkcs8 =
            EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new())
                .map_err(|_| SimError::Sign)?;
        Self::read(Zeroizing::new(pkcs8.as_ref().to_vec()))
    }

    fn read(pkcs8: Zeroizing<Vec<u8>>) -> Result<Self, SimError> {
        let pair = EcdsaKeyPair::from_pkcs8(
            &ECDSA_P256_SHA256_FIXED_SIGNING,
            &pkcs8,
            &SystemRandom::new(),
        )
        .map_err(|error| SimError::Key(error.to_string()))?;
        Ok(Self { pkcs8, pair })
    }

    pub(super) fn point(&self) -> &[u8] {
        self.pair.public_key().as_ref()
    }

    /// Both numbers of the point, as quotes have them.
    pub(super) fn numbers(&self) -> Result<[u8; SIGNATURE_BYTES], SimError> {
        let numbers = self.point().get(1..).unwrap_or_default();
        numbers.try_into().map_err(|_| SimError::Sign)
    }

    pub(super) fn sign(&self, bytes: &[u8]) -> Result<[u8; SIGNATURE_BYTES], SimError> {
        let signature = self
            .pair
            .sign(&SystemRandom::new(), bytes)
            .map_err(|_| SimError::Sign)?;
        signature.as_ref().try_into().map_err(|_| SimError::Sign)
    }
}

pub(super) fn pem(label: &str, der: &[u8]) -> Result<String, SimError> {
    encode_string(label, LineEnding::LF, der).map_err(|_| SimError::Bundle("it cannot be written"))
}
