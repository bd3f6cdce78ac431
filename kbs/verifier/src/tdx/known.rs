//! Signatures that were checked when collateral was prepared, so that they need not be checked again.
//!
//! `dcap-qvl` checks collateral and quote in one go, eight signatures of ten being the collateral's.
//! It asks a [`Config`] for its algorithm, which is a value of the whole program; so the known
//! signatures travel beside the call, in the thread that makes it. A signature that was right once is
//! right for ever: what is remembered changes the time of a verification and never its outcome.

use std::{cell::RefCell, sync::Arc};

use dcap_qvl::{
    config::{Config, CryptoProvider, EcdsaSigEncoder},
    crypto::RingCrypto,
    signature::DerSigEncoder,
    x509::X509CertBackend,
};
use rustls_pki_types::{AlgorithmIdentifier, InvalidSignature, SignatureVerificationAlgorithm};

use super::certificate::{Certificate, Signed};

thread_local! {
    static PRESENT: RefCell<Option<Arc<Known>>> = const { RefCell::new(None) };
}

/// Signatures that were found to be right.
#[derive(Debug, Default)]
pub(super) struct Known(Vec<(Vec<u8>, Signed)>);

impl Known {
    /// Remembers a signature that the certificate's key was found to have made.
    pub(super) fn remember(&mut self, by: &Certificate, signed: &Signed) {
        self.0.push((by.point.to_vec(), signed.clone()));
    }

    fn has(&self, key: &[u8], message: &[u8], signature: &[u8]) -> bool {
        self.0.iter().any(|(by, signed)| {
            signed.signature == signature && by == key && signed.message == message
        })
    }

    /// Does something while these signatures are known to [`Remembering`].
    pub(super) fn during<R>(self: &Arc<Self>, act: impl FnOnce() -> R) -> R {
        struct Restore(Option<Arc<Known>>);
        impl Drop for Restore {
            fn drop(&mut self) {
                PRESENT.set(self.0.take());
            }
        }
        let _restore = Restore(PRESENT.replace(Some(Arc::clone(self))));
        act()
    }
}

/// Both numbers of a signature, as documents and quotes have them, in DER.
pub(super) fn der(signature: &[u8]) -> Option<Vec<u8>> {
    let (r, s) = signature.split_at_checked(32)?;
    DerSigEncoder::encode_ecdsa_sig(r, s).ok()
}

/// `dcap-qvl`'s own parts, but for signatures that are known.
pub(super) struct Remembering;

impl Config for Remembering {
    type X509 = X509CertBackend;
    type SigEncoder = DerSigEncoder;
    type Crypto = Self;
}

impl CryptoProvider for Remembering {
    fn sig_algo() -> &'static dyn SignatureVerificationAlgorithm {
        &EcdsaP256
    }

    fn sha256(data: &[u8]) -> [u8; 32] {
        RingCrypto::sha256(data)
    }

    fn sha384(data: &[u8]) -> [u8; 48] {
        RingCrypto::sha384(data)
    }
}

#[derive(Debug)]
struct EcdsaP256;

impl SignatureVerificationAlgorithm for EcdsaP256 {
    fn verify_signature(
        &self,
        key: &[u8],
        message: &[u8],
        signature: &[u8],
    ) -> Result<(), InvalidSignature> {
        let known = PRESENT.with_borrow(|known| {
            known
                .as_ref()
                .is_some_and(|known| known.has(key, message, signature))
        });
        if known {
            return Ok(());
        }
        RingCrypto::sig_algo().verify_signature(key, message, signature)
    }

    fn public_key_alg_id(&self) -> AlgorithmIdentifier {
        RingCrypto::sig_algo().public_key_alg_id()
    }

    fn signature_alg_id(&self) -> AlgorithmIdentifier {
        RingCrypto::sig_algo().signature_alg_id()
    }
}
