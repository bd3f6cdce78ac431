//! Why evidence was refused, in words for the owner.

use evidence::Tee;

/// A refusal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Failure {
    /// No verifier has this name.
    #[error("TEE `{name}` is not configured: this broker has no verifier of that name")]
    UnknownKind {
        /// What the guest said, shortened.
        name: String,
    },
    /// There is a verifier, and the operator did not turn it on.
    #[error("TEE `{kind}` is not configured: this broker does not accept it")]
    NotAccepted {
        /// The kind.
        kind: Tee,
    },
    /// The evidence has another form.
    #[error("the evidence of `{kind}` is malformed: {detail}")]
    Malformed {
        /// The kind.
        kind: Tee,
        /// What is wrong with it.
        detail: String,
    },
    /// The evidence is for another challenge or another key.
    #[error("the evidence binds another challenge or key")]
    ReportData {
        /// Hex of what it must bind.
        expected: String,
        /// Hex of what it binds.
        found: String,
    },
    /// The launch bound other init-data than the guest sent.
    #[error("the launch bound other init-data than the guest sent")]
    InitData {
        /// Hex of the digest that the launch bound.
        bound: String,
        /// Hex of the digest of what the guest sent.
        sent: String,
    },
    /// What only SEV-SNP has.
    #[error(transparent)]
    Snp(#[from] crate::snp::SnpFailure),
    /// What only TDX has.
    #[error(transparent)]
    Tdx(#[from] crate::tdx::TdxFailure),
}

/// What the owner reads: the claim, what it should be, what it is, and the fix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Explanation {
    /// The claim that was judged.
    pub claim: &'static str,
    /// What it has to be.
    pub expected: String,
    /// What it is.
    pub found: String,
    /// What to do.
    pub fix: String,
}

impl Failure {
    /// The refusal for the owner.
    #[must_use]
    pub fn explain(&self) -> Explanation {
        match self {
            Self::UnknownKind { name } => Explanation {
                claim: "tee",
                expected: names(),
                found: name.clone(),
                fix: "run the guest with a kind of TEE that this broker verifies".to_owned(),
            },
            Self::NotAccepted { kind } => Explanation {
                claim: "tee",
                expected: "a kind that `attestation.accept` lists".to_owned(),
                found: kind.to_string(),
                fix: format!(
                    "run the guest in a TEE; for development only, list `{kind}` in \
                     `attestation.accept` of the broker's configuration"
                ),
            },
            Self::Malformed { detail, .. } => Explanation {
                claim: "primary_evidence",
                expected: "evidence in this kind's form".to_owned(),
                found: detail.clone(),
                fix: "let guest and broker be of versions that share a form of evidence".to_owned(),
            },
            Self::Snp(failure) => failure.explain(),
            Self::Tdx(failure) => failure.explain(),
            Self::ReportData { expected, found } => Explanation {
                claim: "report_data",
                expected: expected.clone(),
                found: found.clone(),
                fix: "the evidence is old, or somebody put another key into the request: attest \
                      again, and look at who carries the guest's traffic"
                    .to_owned(),
            },
            Self::InitData { bound, sent } => Explanation {
                claim: "init_data",
                expected: bound.clone(),
                found: sent.clone(),
                fix: "start the pod with the init-data that was measured: what the guest read \
                      differs from what its launch bound"
                    .to_owned(),
            },
        }
    }
}

/// A piece of a hostile text that is safe to print.
pub(crate) fn shorten(text: &str) -> String {
    const SHOWN: usize = 64;
    text.chars()
        .filter(|c| !c.is_control())
        .take(SHOWN)
        .collect()
}

fn names() -> String {
    let names: Vec<_> = crate::VERIFIED.iter().map(|kind| kind.name()).collect();
    names.join(", ")
}
