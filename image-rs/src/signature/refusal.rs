//! Why signatures do not count: a reason for each that was looked at, for each requirement, in a bounded text.

use std::fmt;

use crate::digest::Digest;
use crate::shown::{shown, shown_up_to};

/// Cap on the reasons that are told for one requirement.
const REASONS_MAX: usize = 16;
/// Cap on the text of one reason, in characters: parts of it come from the registry.
const REASON_CHARACTERS_MAX: usize = 400;

/// Why one signature does not meet one requirement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Reason {
    /// It cannot be read.
    #[error("{what} is malformed: {detail}")]
    Format {
        /// Which part.
        what: &'static str,
        /// Why.
        detail: String,
    },
    /// A cap.
    #[error("{what} has {found}, more than {cap}")]
    TooMany {
        /// What has too many of what.
        what: String,
        /// How many.
        found: usize,
        /// The cap.
        cap: usize,
    },
    /// More than are looked at, which are the newest.
    #[error("the oldest {skipped} of {found} signatures were not looked at")]
    NotLookedAt {
        /// How many.
        skipped: usize,
        /// Of how many.
        found: usize,
    },
    /// A kind that is not verified here.
    #[error("{0} is not supported")]
    Unsupported(String),
    /// It could not be fetched.
    #[error("it could not be fetched: {0}")]
    Fetch(String),
    /// The signature itself.
    #[error("it was not made by {0}")]
    Key(&'static str),
    /// Another image.
    #[error("it is for the manifest {signed}, which is not this image's")]
    Digest {
        /// The digest in it.
        signed: Digest,
    },
    /// Another name.
    #[error("it is for {signed:?}, which signedIdentity {rule} does not admit")]
    Identity {
        /// The name in it.
        signed: String,
        /// The rule.
        rule: &'static str,
    },
    /// A name without a tag, as cosign signs it unless it is told otherwise.
    #[error(
        "it is for {signed:?}, without the tag or digest that signedIdentity {rule} asks for; \
         for what cosign signs write matchRepository"
    )]
    NoTag {
        /// The name in it.
        signed: String,
        /// The rule.
        rule: &'static str,
    },
    /// A bundle, which says no name.
    #[error(
        "a sigstore bundle names no repository, so that signedIdentity {rule} cannot hold; \
         if the digest is enough, write matchDigest"
    )]
    NoIdentity {
        /// The rule.
        rule: &'static str,
    },
    /// No certificate where one is needed.
    #[error("it has no certificate")]
    NoCertificate,
    /// The certificate's chain.
    #[error("its certificate does not lead to the policy's roots: {0}")]
    Chain(String),
    /// The certificate's time.
    #[error("its certificate is not valid at {at} (seconds since 1970), when {when}")]
    Time {
        /// When.
        at: u64,
        /// What was then.
        when: &'static str,
    },
    /// Another issuer.
    #[error("its certificate is for the issuer {found:?}, not {wanted:?}")]
    Issuer {
        /// The certificate's.
        found: String,
        /// The policy's.
        wanted: String,
    },
    /// Another subject.
    #[error("its certificate is for {found:?}, not {wanted:?}")]
    Subject {
        /// The certificate's.
        found: Vec<String>,
        /// The policy's.
        wanted: String,
    },
    /// The log of certificates.
    #[error("its certificate is not in the certificate log: {0}")]
    CertificateLog(&'static str),
    /// Not in the log.
    #[error("it has no entry of Rekor ({0})")]
    NoEntry(&'static str),
    /// The log's promise.
    #[error("the signed entry timestamp is not by the policy's Rekor")]
    EntryTimestamp,
    /// The entry is for something else.
    #[error("the entry of Rekor is for another {0}")]
    Entry(&'static str),
    /// The proof.
    #[error("the inclusion proof of Rekor does not hold: {0}")]
    Proof(&'static str),
    /// A statement of another kind, as an attestation is.
    #[error("it is a statement of type {0:?}, which signs nothing about the image")]
    Predicate(String),
    /// The key of a signature by GPG.
    #[error("{0}")]
    Gpg(String),
}

impl Reason {
    pub(super) fn format(what: &'static str, detail: impl std::fmt::Display) -> Self {
        Self::Format {
            what,
            detail: detail.to_string(),
        }
    }
}

/// One requirement that no signature meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unmet {
    /// Its type in the policy.
    pub requirement: &'static str,
    /// For each signature that was looked at: where it stands, and why it does not count.
    pub reasons: Vec<(String, Reason)>,
}

/// Why an image is refused for want of signatures.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub struct Refusal {
    /// Which image.
    pub image: String,
    /// Whose requirements they are.
    pub scope: String,
    /// Each that is not met.
    pub unmet: Vec<Unmet>,
}

impl Refusal {
    /// Whether some signature could not be fetched, so that another attempt may succeed.
    #[must_use]
    pub fn lacks_answers(&self) -> bool {
        let mut reasons = self.unmet.iter().flat_map(|unmet| &unmet.reasons);
        reasons.any(|(_, reason)| matches!(reason, Reason::Fetch(_)))
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            formatter,
            "image {} is refused by the image policy, scope {:?}",
            self.image, self.scope
        )?;
        for unmet in &self.unmet {
            write!(formatter, "; {} is not met: ", unmet.requirement)?;
            if unmet.reasons.is_empty() {
                formatter.write_str("the image has no signature")?;
            }
            for (index, (origin, reason)) in unmet.reasons.iter().take(REASONS_MAX).enumerate() {
                let comma = if index == 0 { "" } else { ", " };
                let reason = shown_up_to(&reason.to_string(), REASON_CHARACTERS_MAX);
                write!(formatter, "{comma}[{}] {reason}", shown(origin))?;
            }
            let more = unmet.reasons.len().saturating_sub(REASONS_MAX);
            if more > 0 {
                write!(formatter, ", and {more} more")?;
            }
        }
        Ok(())
    }
}
