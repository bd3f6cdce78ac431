//! The development root and the chips below it.

use std::fmt;

use pem_rfc7468::{LineEnding, decode_vec, encode_string};
use ring::{
    rand::SystemRandom,
    signature::{ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, KeyPair, RsaKeyPair},
};
use rsa::{PrivateKey, pkcs8::EncodePrivateKey};
use zeroize::Zeroizing;

use super::{
    SimError,
    der::{self, Certificate, Key},
};
use crate::{
    sim::x509::Validity,
    snp::{self, CertificateKind, Generation, SigningKey, Tcb},
};

/// Bits of the keys, as AMD's.
const RSA_BITS: usize = 4096;

const NAMES: [&str; 3] = ["ARK-Development", "SEV-Development", "SEV-VLEK-Development"];
const CERTIFICATE: &str = "CERTIFICATE";
const PRIVATE_KEY: &str = "PRIVATE KEY";

/// ARK, ASK and ASVK with their keys. To make one takes seconds: keep its bundle.
pub struct DevelopmentRoot {
    authorities: [Authority; 3],
}

struct Authority {
    pkcs8: Zeroizing<Vec<u8>>,
    pair: RsaKeyPair,
    certificate: Vec<u8>,
}

/// A chip, and what its key is derived for.
#[derive(Debug, Clone)]
pub struct Chip {
    /// Decides the length of the chip's identity and whether there is an FMC.
    pub generation: Generation,
    /// The chip's identity; only its first bytes where the generation's is shorter.
    pub chip_id: [u8; 64],
    /// The firmware that the key is for.
    pub tcb: Tcb,
    /// A chip's key or a loaded one; [`SigningKey::None`] is taken for a chip's.
    pub key: SigningKey,
    /// The certificate's serial number; AMD's is 0.
    pub serial: u64,
    /// When the certificate holds.
    pub validity: Validity,
}

/// A chip's key, VCEK or VLEK, with its certificate.
pub struct ChipKey {
    pkcs8: Zeroizing<Vec<u8>>,
    certificate: Vec<u8>,
    kind: CertificateKind,
}

impl fmt::Debug for DevelopmentRoot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DevelopmentRoot")
    }
}

impl fmt::Debug for ChipKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ChipKey")
    }
}

impl DevelopmentRoot {
    /// Makes a root with new keys.
    ///
    /// # Errors
    /// When a key cannot be made or a date cannot be written.
    pub fn generate(validity: Validity) -> Result<Self, SimError> {
        let keys = [new_key()?, new_key()?, new_key()?];
        let pairs = [pair(&keys[0])?, pair(&keys[1])?, pair(&keys[2])?];
        let certificate = |at: usize, serial| {
            Certificate {
                serial,
                issuer: NAMES[0],
                subject: NAMES[at],
                validity,
                key: Key::Rsa(pairs[at].public().as_ref()),
                extensions: &[],
            }
            .sign(&pairs[0])
        };
        let certificates = [certificate(0, 1)?, certificate(1, 2)?, certificate(2, 3)?];
        let mut parts = keys.into_iter().zip(pairs).zip(certificates);
        let mut next = || {
            let ((pkcs8, pair), certificate) = parts.next().ok_or(SimError::Sign)?;
            Ok::<_, SimError>(Authority {
                pkcs8,
                pair,
                certificate,
            })
        };
        Ok(Self {
            authorities: [next()?, next()?, next()?],
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
            text.push_str(&Zeroizing::new(pem(PRIVATE_KEY, &authority.pkcs8)?));
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
            let pkcs8 = piece(PRIVATE_KEY)?;
            Ok::<_, SimError>(Authority {
                pair: pair(&pkcs8)?,
                pkcs8,
                certificate,
            })
        };
        Ok(Self {
            authorities: [authority()?, authority()?, authority()?],
        })
    }

    /// ARK, ASK and ASVK in PEM, without their keys: what a verifier is given.
    ///
    /// # Errors
    /// Never for certificates of this size.
    pub fn certificates_pem(&self) -> Result<String, SimError> {
        self.authorities
            .iter()
            .map(|authority| pem(CERTIFICATE, &authority.certificate))
            .collect()
    }

    /// ARK, ASK and ASVK in DER.
    #[must_use]
    pub fn certificates(&self) -> [&[u8]; 3] {
        self.authorities
            .each_ref()
            .map(|authority| &*authority.certificate)
    }

    /// The key of a chip, newly made.
    ///
    /// # Errors
    /// When the key cannot be made or a date cannot be written.
    pub fn chip(&self, chip: &Chip) -> Result<ChipKey, SimError> {
        let random = SystemRandom::new();
        let algorithm = &ECDSA_P384_SHA384_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random).map_err(|_| SimError::Sign)?;
        let pkcs8 = Zeroizing::new(pkcs8.as_ref().to_vec());
        let pair = EcdsaKeyPair::from_pkcs8(algorithm, &pkcs8, &random)
            .map_err(|error| SimError::Key(error.to_string()))?;
        let (at, subject, kind) = match chip.key {
            SigningKey::Vlek => (2, "SEV-VLEK", CertificateKind::Vlek),
            SigningKey::Vcek | SigningKey::None => (1, "SEV-VCEK", CertificateKind::Vcek),
        };
        let certificate = Certificate {
            serial: chip.serial,
            issuer: NAMES[at],
            subject,
            validity: chip.validity,
            key: Key::P384(pair.public_key().as_ref()),
            extensions: &chip.extensions(),
        }
        .sign(&self.authorities[at].pair)?;
        Ok(ChipKey {
            pkcs8,
            certificate,
            kind,
        })
    }

    /// A list of revoked certificates, signed by the ARK (0), the ASK (1) or the ASVK (2).
    ///
    /// # Errors
    /// When there is no such authority or a date cannot be written.
    pub fn crl(
        &self,
        authority: usize,
        validity: Validity,
        serials: &[u64],
    ) -> Result<Vec<u8>, SimError> {
        let (signer, name) = self
            .authorities
            .get(authority)
            .zip(NAMES.get(authority))
            .ok_or(SimError::Sign)?;
        der::crl(name, validity, serials, &signer.pair)
    }
}

impl Chip {
    fn extensions(&self) -> Vec<(Vec<u64>, Vec<u8>)> {
        let number = |value| yasna::construct_der(|w| w.write_u8(value));
        let tcb = self.tcb;
        let parts = [
            (1, Some(tcb.bootloader)),
            (2, Some(tcb.tee)),
            (3, Some(tcb.snp)),
            (8, Some(tcb.microcode)),
            (9, tcb.fmc.filter(|_| self.generation.has_fmc())),
        ];
        let mut extensions: Vec<_> = parts
            .into_iter()
            .filter_map(|(id, part)| Some((vec![3, id], number(part?))))
            .collect();
        if self.key != SigningKey::Vlek {
            let id = self.chip_id[..self.generation.chip_id_bytes()].to_vec();
            extensions.push((vec![4], id));
        }
        extensions
    }
}

impl ChipKey {
    /// The certificate in DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The certificate and the key, for [`from_pem`](Self::from_pem).
    ///
    /// # Errors
    /// Never for a key of this size.
    pub fn to_pem(&self) -> Result<Zeroizing<String>, SimError> {
        let mut text = Zeroizing::new(pem(CERTIFICATE, &self.certificate)?);
        text.push_str(&Zeroizing::new(pem(PRIVATE_KEY, &self.pkcs8)?));
        Ok(text)
    }

    /// The key of a chip from what [`to_pem`](Self::to_pem) wrote; it is taken for a VCEK.
    ///
    /// # Errors
    /// When the text is something else.
    pub fn from_pem(text: &str) -> Result<Self, SimError> {
        let end = format!("-----END {CERTIFICATE}-----");
        let missing = || SimError::Bundle("a certificate or key is missing");
        let at = text.find(&end).ok_or_else(missing)? + end.len();
        let (certificate, key) = text.split_at_checked(at).ok_or_else(missing)?;
        let piece = |text: &str, label: &str| match decode_vec(text.trim().as_bytes()) {
            Ok((found, der)) if found == label => Ok(Zeroizing::new(der)),
            _ => Err(SimError::Bundle("a piece of it is not PEM")),
        };
        Ok(Self {
            certificate: piece(certificate, CERTIFICATE)?.to_vec(),
            pkcs8: piece(key, PRIVATE_KEY)?,
            kind: CertificateKind::Vcek,
        })
    }

    /// The certificate as it is beside a report.
    #[must_use]
    pub fn certificate_entry(&self) -> snp::Certificate {
        snp::Certificate {
            kind: self.kind.clone(),
            data: self.certificate.clone(),
        }
    }

    pub(super) fn pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }
}

fn new_key() -> Result<Zeroizing<Vec<u8>>, SimError> {
    let failed = |error: &dyn fmt::Display| SimError::Key(error.to_string());
    let key = PrivateKey::new(&mut rand::rng(), RSA_BITS).map_err(|error| failed(&error))?;
    let pkcs8 = key.to_pkcs8_der().map_err(|error| failed(&error))?;
    Ok(Zeroizing::new(pkcs8.as_bytes().to_vec()))
}

fn pair(pkcs8: &[u8]) -> Result<RsaKeyPair, SimError> {
    RsaKeyPair::from_pkcs8(pkcs8).map_err(|error| SimError::Key(error.to_string()))
}

fn pem(label: &str, der: &[u8]) -> Result<String, SimError> {
    encode_string(label, LineEnding::LF, der).map_err(|_| SimError::Bundle("it cannot be written"))
}
