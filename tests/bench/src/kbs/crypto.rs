//! The cryptography that an attestation and a release cannot do without, by itself.
//!
//! The same library as the broker's does it, on the broker's core, between two measurements of the
//! broker.

use std::time::Duration;

use aes_kw::{KeyInit, KwAes256};
use anyhow::{Result, anyhow};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey};
use ring::agreement::{
    ECDH_P256, EphemeralPrivateKey, PublicKey, UnparsedPublicKey, agree_ephemeral,
};
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED,
    ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, EcdsaSigningAlgorithm, KeyPair, Signature,
    UnparsedPublicKey as UnparsedKey,
};
use rustix::time::{ClockId, clock_gettime};

use crate::figure::median;

/// Bytes of a report that its signature covers.
const REPORT_BYTES: usize = 0x2a0;
/// About the bytes of a token's header and claims.
const TOKEN_BYTES: usize = 1536;
/// Bytes of a secret: a key.
const SECRET_BYTES: usize = 32;
/// Microseconds for which one operation is repeated, and how often it is.
const BATCH: f64 = 8000.0;
const BATCHES: usize = 9;

/// Microseconds of each operation.
#[derive(Debug, Clone, Copy)]
pub struct Crypto {
    /// The signature of one SEV-SNP report: ECDSA over P-384 with SHA-384.
    pub report_verify: f64,
    /// The token's signature: ECDSA over P-256 with SHA-256.
    pub token_sign: f64,
    /// The token's verification.
    pub token_verify: f64,
    /// An ephemeral key pair on P-256.
    pub key_pair: f64,
    /// The agreement with the guest's key.
    pub agreement: f64,
    /// The content key wrapped by AES-KW, and a key of 32 bytes encrypted by AES-GCM.
    pub wraps: f64,
}

impl Crypto {
    /// Of a `snp` attestation: the report and the token. The chip's certificate is verified once and
    /// kept, so that its RSA signature is none of it.
    #[must_use]
    pub fn attestation(&self) -> f64 {
        self.report_verify + self.token_sign
    }

    /// Of a release.
    #[must_use]
    pub fn release(&self) -> f64 {
        self.token_verify + self.key_pair + self.agreement + self.wraps
    }

    /// Measures all of them.
    ///
    /// # Errors
    /// When the library fails.
    pub fn measure() -> Result<Self> {
        let work = Work::new()?;
        let both = micros(|| work.agree())?;
        let key_pair = micros(|| work.key_pair())?;
        // A private key serves once, so the agreement is what remains of both.
        let private = micros(|| work.pair().map(drop))?;
        Ok(Self {
            report_verify: micros(|| work.report_verify())?,
            token_sign: micros(|| work.token_sign())?,
            token_verify: micros(|| work.token_verify())?,
            key_pair,
            agreement: both - private,
            wraps: micros(wraps)?,
        })
    }

    /// The middle of several measurements.
    #[must_use]
    pub fn median(all: &[Self]) -> Self {
        let of = |part: fn(&Self) -> f64| median(&all.iter().map(part).collect::<Vec<_>>());
        Self {
            report_verify: of(|one| one.report_verify),
            token_sign: of(|one| one.token_sign),
            token_verify: of(|one| one.token_verify),
            key_pair: of(|one| one.key_pair),
            agreement: of(|one| one.agreement),
            wraps: of(|one| one.wraps),
        }
    }
}

/// The operations, each as often as it is asked for.
#[expect(missing_debug_implementations, reason = "the library's keys have none")]
pub struct Work {
    random: SystemRandom,
    report: Vec<u8>,
    report_signature: Signature,
    chip: UnparsedKey<Vec<u8>>,
    token: Vec<u8>,
    token_signature: Signature,
    signer: EcdsaKeyPair,
    other_end: PublicKey,
}

impl Work {
    /// With keys of its own.
    ///
    /// # Errors
    /// When the library fails.
    pub fn new() -> Result<Self> {
        let random = SystemRandom::new();
        let report = vec![7; REPORT_BYTES];
        let chip = key(&ECDSA_P384_SHA384_FIXED_SIGNING, &random)?;
        let token = vec![b'x'; TOKEN_BYTES];
        let signer = key(&ECDSA_P256_SHA256_FIXED_SIGNING, &random)?;
        let other_end = EphemeralPrivateKey::generate(&ECDH_P256, &random)
            .and_then(|key| key.compute_public_key())
            .map_err(failed)?;
        let public = chip.public_key().as_ref().to_vec();
        Ok(Self {
            report_signature: chip.sign(&random, &report).map_err(failed)?,
            chip: UnparsedKey::new(&ECDSA_P384_SHA384_FIXED, public),
            token_signature: signer.sign(&random, &token).map_err(failed)?,
            random,
            report,
            token,
            signer,
            other_end,
        })
    }

    /// The broker's part of an attestation.
    ///
    /// # Errors
    /// When the library fails.
    pub fn attestation(&self) -> Result<()> {
        self.report_verify()?;
        self.token_sign()
    }

    /// The broker's part of a release.
    ///
    /// # Errors
    /// When the library fails.
    pub fn release(&self) -> Result<()> {
        self.token_verify()?;
        self.exchange()
    }

    /// A key pair, its agreement with the other end's key and a content key wrapped: the broker's part for one
    /// secret, and as long as the guest's.
    ///
    /// # Errors
    /// When the library fails.
    pub fn exchange(&self) -> Result<()> {
        let pair = self.pair()?;
        pair.compute_public_key().map_err(failed)?;
        self.agree_by(pair)?;
        wraps()
    }

    fn key_pair(&self) -> Result<()> {
        let public = self.pair()?.compute_public_key();
        public.map(drop).map_err(failed)
    }

    fn report_verify(&self) -> Result<()> {
        let verified = self
            .chip
            .verify(&self.report, self.report_signature.as_ref());
        verified.map_err(failed)
    }

    fn token_sign(&self) -> Result<()> {
        let signed = self.signer.sign(&self.random, &self.token);
        signed.map(drop).map_err(failed)
    }

    fn token_verify(&self) -> Result<()> {
        let public = UnparsedKey::new(&ECDSA_P256_SHA256_FIXED, self.signer.public_key().as_ref());
        let verified = public.verify(&self.token, self.token_signature.as_ref());
        verified.map_err(failed)
    }

    fn pair(&self) -> Result<EphemeralPrivateKey> {
        EphemeralPrivateKey::generate(&ECDH_P256, &self.random).map_err(failed)
    }

    fn agree(&self) -> Result<()> {
        self.agree_by(self.pair()?)
    }

    fn agree_by(&self, pair: EphemeralPrivateKey) -> Result<()> {
        let other_end = UnparsedPublicKey::new(&ECDH_P256, self.other_end.as_ref());
        let agreed = agree_ephemeral(pair, &other_end, |secret| secret[0]);
        agreed.map(drop).map_err(failed)
    }
}

fn wraps() -> Result<()> {
    let mut wrapped = [0; SECRET_BYTES + 8];
    KwAes256::new(&[1; 32].into())
        .wrap_key(&[2; 32], &mut wrapped)
        .map_err(|error| anyhow!("AES-KW: {error:?}"))?;
    let key = UnboundKey::new(&AES_256_GCM, &[2; 32]).map_err(failed)?;
    let mut secret = vec![3; SECRET_BYTES];
    LessSafeKey::new(key)
        .seal_in_place_append_tag(
            Nonce::assume_unique_for_key([4; 12]),
            Aad::from(&wrapped),
            &mut secret,
        )
        .map_err(failed)
}

fn key(algorithm: &'static EcdsaSigningAlgorithm, random: &SystemRandom) -> Result<EcdsaKeyPair> {
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, random).map_err(failed)?;
    EcdsaKeyPair::from_pkcs8(algorithm, pkcs8.as_ref(), random)
        .map_err(|error| anyhow!("read the key: {error}"))
}

fn failed(_: ring::error::Unspecified) -> anyhow::Error {
    anyhow!("the cryptographic library failed")
}

/// Microseconds on the processor of one run, as the middle of several batches.
fn micros(mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let mut batches = Vec::with_capacity(BATCHES);
    for _ in 0..BATCHES {
        let since = cpu();
        let mut runs = 0_u32;
        let took = loop {
            run()?;
            runs += 1;
            let took = cpu() - since;
            if took >= BATCH {
                break took;
            }
        };
        batches.push(took / f64::from(runs));
    }
    Ok(median(&batches))
}

/// Microseconds of this thread on the processor, as the broker is measured too.
fn cpu() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    let whole = Duration::new(
        u64::try_from(time.tv_sec).unwrap_or(0),
        u32::try_from(time.tv_nsec).unwrap_or(0),
    );
    whole.as_secs_f64() * 1e6
}
