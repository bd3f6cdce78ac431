//! `sigstoreSigned`: whether a signature is by whom the policy wants, found in a log where the policy wants one.
//!
//! The two ways of storing one, [`super::cosign`] and [`super::bundle`], both end here. Nothing that was signed is
//! read before it is known by whom.

use super::certificate::{CertificateAuthority, Chain, Subject, Verified};
use super::document::Documents;
use super::key::PublicKey;
use super::refusal::Reason;
use super::rekor::{Claim, Content, Entry};
use super::{Found, Kind, bundle, cosign};
use crate::policy::Identity;
use crate::reference::Reference;

/// A requirement of type `sigstoreSigned`.
#[derive(Debug, Clone)]
pub(crate) struct SigstoreSigned {
    pub(crate) author: Author,
    /// Keys of logs; with none, no entry is asked for.
    pub(crate) rekor: Vec<PublicKey>,
    pub(crate) identity: Identity,
}

/// Who must have signed.
#[derive(Debug, Clone)]
pub(crate) enum Author {
    /// The owner of one of these keys.
    Keys(Vec<PublicKey>),
    /// Who logged in as `subject` at `issuer`, by a certificate of minutes.
    Fulcio {
        authority: CertificateAuthority,
        issuer: String,
        subject: Subject,
        /// Keys of certificate logs; with none, no timestamp of one is asked for.
        ct: Vec<PublicKey>,
    },
    /// Whom an authority of the owner's certified.
    Pki {
        authority: CertificateAuthority,
        subjects: Vec<Subject>,
    },
}

/// A signature taken apart.
#[derive(Debug)]
pub(super) struct Material {
    pub(super) signature: Vec<u8>,
    /// The bytes that it is over.
    pub(super) message: Vec<u8>,
    /// Where the message wraps a payload: the payload.
    pub(super) payload: Option<Vec<u8>>,
    pub(super) chain: Option<Chain>,
    pub(super) entries: Vec<Entry>,
}

impl SigstoreSigned {
    /// Whether `found` counts for the image.
    pub(super) fn judge(
        &self,
        found: &Found,
        image: &Reference,
        documents: &Documents,
        now: u64,
    ) -> Result<(), Reason> {
        match &found.kind {
            Kind::Cosign {
                payload,
                annotations,
            } => cosign::judge(self, payload, annotations, image, documents, now),
            Kind::Bundle(json) => bundle::judge(self, json, image, documents, now),
            Kind::Gpg(_) => Err(Reason::Unsupported("a signature by GPG here".to_owned())),
            Kind::Unread(reason) => Err(reason.clone()),
        }
    }

    /// Whether the material is by the author, at `now` in seconds since 1970.
    pub(super) fn authenticate(&self, material: &Material, now: u64) -> Result<(), Reason> {
        let Material {
            signature, message, ..
        } = material;
        match &self.author {
            Author::Keys(keys) => {
                let key = keys.iter().find(|key| key.verifies(message, signature));
                let key = key.ok_or(Reason::Key("any key of the policy"))?;
                self.logged(material, key.spki()).map(|_| ())
            }
            Author::Fulcio {
                authority,
                issuer,
                subject,
                ct,
            } => {
                let chain = material.chain.as_ref().ok_or(Reason::NoCertificate)?;
                let time = self.logged(material, &chain.leaf)?;
                let time = time.ok_or(Reason::NoEntry(
                    "no signed entry timestamp, without which a certificate has no time",
                ))?;
                let certificate = authority.verify(chain, time, "Rekor saw the signature")?;
                certificate.check_issuer(issuer)?;
                certificate.check_subject(subject)?;
                if !ct.is_empty() {
                    certificate.check_log(ct)?;
                }
                by_certificate(&certificate, material)
            }
            Author::Pki {
                authority,
                subjects,
            } => {
                let chain = material.chain.as_ref().ok_or(Reason::NoCertificate)?;
                let certificate = match self.logged(material, &chain.leaf)? {
                    Some(time) => authority.verify(chain, time, "Rekor saw the signature")?,
                    None => authority.verify(chain, now, "the image is pulled")?,
                };
                for subject in subjects {
                    certificate.check_subject(subject)?;
                }
                by_certificate(&certificate, material)
            }
        }
    }

    /// Checks the entry in the log, where the policy asks for one; gives its time, if the log vouches for one.
    fn logged(&self, material: &Material, author: &[u8]) -> Result<Option<u64>, Reason> {
        if self.rekor.is_empty() {
            return Ok(None);
        }
        let claim = Claim {
            signature: &material.signature,
            author,
            content: match &material.payload {
                Some(payload) => Content::Envelope(payload),
                None => Content::Plain(&material.message),
            },
        };
        let mut last = Reason::NoEntry("none came with the signature");
        for entry in &material.entries {
            match entry.verify(&self.rekor, claim) {
                Ok(time) => return Ok(time),
                Err(reason) => last = reason,
            }
        }
        Err(last)
    }
}

fn by_certificate(certificate: &Verified<'_>, material: &Material) -> Result<(), Reason> {
    if certificate
        .key()?
        .verifies(&material.message, &material.signature)
    {
        Ok(())
    } else {
        Err(Reason::Key("the key of its certificate"))
    }
}
