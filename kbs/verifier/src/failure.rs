//! Why evidence was refused, in words for the owner.

use evidence::{Device, Tee};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

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
    /// A device that no verifier knows.
    #[error("there is no verifier for the device `{name}`")]
    UnknownDevice {
        /// What the guest said, shortened.
        name: String,
    },
    /// A device that the operator did not turn on.
    #[error("this broker does not accept the device `{device}`")]
    DeviceNotAccepted {
        /// The device.
        device: Device,
    },
    /// A device's evidence, or the list of them, has another form.
    #[error("the evidence of `{device}` is malformed: {detail}")]
    DeviceMalformed {
        /// The device, or `additional_evidence`.
        device: &'static str,
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
        let told = |claim, expected: &str, found: &str, fix: &str| Explanation {
            claim,
            expected: expected.to_owned(),
            found: found.to_owned(),
            fix: fix.to_owned(),
        };
        match self {
            Self::Snp(failure) => failure.explain(),
            Self::Tdx(failure) => failure.explain(),
            Self::UnknownKind { name } => told(
                "tee",
                &Tee::ALL.map(Tee::name).join(", "),
                name,
                "run the guest with a kind of TEE that this broker verifies",
            ),
            Self::NotAccepted { kind } => told(
                "tee",
                "a kind that `attestation.accept` lists",
                kind.name(),
                &accepting(*kind),
            ),
            Self::Malformed { detail, .. } => told(
                "primary_evidence",
                "evidence in this kind's form",
                detail,
                FORM,
            ),
            Self::UnknownDevice { name } => told(
                DEVICES,
                &Device::ALL.map(Device::name).join(", "),
                name,
                "send no evidence of devices that this broker cannot verify",
            ),
            Self::DeviceNotAccepted { device } => told(
                DEVICES,
                "a device that `attestation.accept_devices` lists",
                device.name(),
                &format!("for development only, list `{device}` in `attestation.accept_devices`"),
            ),
            Self::DeviceMalformed { detail, .. } => told(
                DEVICES,
                "a map from devices to evidence in their forms",
                detail,
                FORM,
            ),
            Self::ReportData { expected, found } => told(
                "report_data",
                expected,
                found,
                "the evidence is old, or somebody put another key into the request: attest again, \
                 and look at who carries the guest's traffic",
            ),
            Self::InitData { bound, sent } => told(
                "init_data",
                bound,
                sent,
                "start the pod with the init-data that was measured: what the guest read differs \
                 from what its launch bound",
            ),
        }
    }
}

const DEVICES: &str = "additional_evidence";
const FORM: &str = "let guest and broker be of versions that share a form of evidence";

fn accepting(kind: Tee) -> String {
    if kind.is_hardware() {
        return format!("list `{kind}` in `attestation.accept` of the broker's configuration");
    }
    format!(
        "run the guest in a TEE; for development only, list `{kind}` in `attestation.accept` of \
         the broker's configuration"
    )
}

/// Seconds since the Unix epoch as a date of RFC 3339.
pub(crate) fn date(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|date| date.format(&Rfc3339).ok())
        .unwrap_or_else(|| seconds.to_string())
}

/// A piece of a hostile text that is safe to print.
pub(crate) fn shorten(text: &str) -> String {
    const SHOWN: usize = 64;
    text.chars()
        .filter(|c| !c.is_control())
        .take(SHOWN)
        .collect()
}
