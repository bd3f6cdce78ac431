//! Why SEV-SNP evidence was refused.

use evidence::snp::Product;

use super::Role;
use crate::{Explanation, failure::date};

/// A refusal. Times are seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each message tells the members")]
pub enum SnpFailure {
    /// It does not name its processor.
    #[error("the report has version 2, which does not name its processor")]
    Version2,
    /// No such root was prepared.
    #[error("there is no root for {product}")]
    NoRoot { product: Product },
    /// Not PEM.
    #[error("a certificate is not in PEM")]
    Pem,
    /// Not a certificate of this place in the chain.
    #[error("the {role} certificate is not usable: {detail}")]
    Certificate { role: Role, detail: &'static str },
    /// Neither the guest nor the collateral has it.
    #[error("there is no certificate of the key that signed the report")]
    NoKey,
    /// More than one.
    #[error("the evidence has more than one VCEK or VLEK")]
    ManyKeys,
    /// Collateral for another product.
    #[error("the collateral's key is of {found}, the report of {expected}")]
    KeyProduct { expected: Product, found: Product },
    /// Not the vendor's.
    #[error("the evidence brings an {role} that is not the prepared one")]
    ForeignIssuer { role: Role },
    /// Signed by another key.
    #[error("the {what} was not signed by the {issuer}")]
    Chain { what: &'static str, issuer: Role },
    /// Too early.
    #[error("the {role} certificate is valid from {}, and it is {}", date(*from), date(*now))]
    NotYetValid { role: Role, from: i64, now: i64 },
    /// Too late.
    #[error("the {role} certificate was valid until {}, and it is {}", date(*until), date(*now))]
    Expired { role: Role, until: i64, now: i64 },
    /// Required and not there.
    #[error("there is no list of revoked certificates of {product}'s ARK")]
    CrlAbsent { product: Product },
    /// No such list.
    #[error("the list of revoked certificates is not usable: {0}")]
    CrlForm(&'static str),
    /// Out of its time.
    #[error("the list of revoked certificates is valid from {} until {}, and it is {}", date(*from), date(*until), date(*now))]
    CrlStale { from: i64, until: i64, now: i64 },
    /// Revoked.
    #[error("AMD revoked the {role} certificate with the serial number {serial}")]
    Revoked { role: Role, serial: String },
    /// The host masked it.
    #[error("the report is not signed: the host masks the chip's key, or none was chosen")]
    Unsigned,
    /// Not the only algorithm there is.
    #[error("the report's signature algorithm is {found}, not 1")]
    Algorithm { found: u32 },
    /// VCEK against VLEK.
    #[error("the report was signed by another kind of key than the {found} that was brought")]
    SigningKey { found: Role },
    /// The host masked it.
    #[error("the report masks its chip's identity")]
    ChipMasked,
    /// Another chip's.
    #[error("the certificate is of another chip")]
    ChipId { expected: String, found: String },
    /// Another firmware's.
    #[error("the certificate is for {part} {expected}, the report says {found}")]
    Tcb {
        part: &'static str,
        expected: String,
        found: String,
    },
    /// Changed, or signed by another key.
    #[error("the report's signature is wrong")]
    Signature,
    /// Not the most privileged level.
    #[error("the report was asked for at VMPL {found}")]
    Vmpl { found: u32 },
}

impl SnpFailure {
    /// The refusal for the owner.
    #[must_use]
    pub fn explain(&self) -> Explanation {
        let (claim, expected, found) = self.judged();
        Explanation {
            claim,
            expected,
            found,
            fix: self.fix().to_owned(),
        }
    }

    fn judged(&self) -> (&'static str, String, String) {
        let text = self.to_string();
        match self {
            Self::Version2 => ("version", "3 to 5".into(), "2".into()),
            Self::NoKey | Self::ManyKeys => ("vek", "one VCEK or VLEK".into(), text),
            Self::KeyProduct { expected, found } => {
                ("vek", expected.to_string(), found.to_string())
            }
            Self::NoRoot { .. } | Self::Pem | Self::Certificate { .. } => {
                ("certificates", "AMD's certificates".into(), text)
            }
            Self::ForeignIssuer { role } => ("certificates", format!("AMD's {role}"), text),
            Self::Chain { issuer, .. } => ("chain", format!("signed by the {issuer}"), text),
            Self::NotYetValid { from, now, .. } => {
                ("validity", format!("from {}", date(*from)), date(*now))
            }
            Self::Expired { until, now, .. } => {
                ("validity", format!("until {}", date(*until)), date(*now))
            }
            Self::CrlAbsent { .. } | Self::CrlForm(_) => ("crl", "a current list".into(), text),
            Self::CrlStale { from, until, now } => (
                "crl",
                format!("{} to {}", date(*from), date(*until)),
                date(*now),
            ),
            Self::Revoked { .. } => ("crl", "not revoked".into(), text),
            Self::Unsigned | Self::Algorithm { .. } | Self::Signature => {
                ("signature", "ECDSA P-384 by the chip".into(), text)
            }
            Self::SigningKey { found } => ("signing_key", "the report's".into(), found.to_string()),
            Self::ChipMasked => ("chip_id", "the chip's identity".into(), "zeros".into()),
            Self::ChipId { expected, found } => ("chip_id", expected.clone(), found.clone()),
            Self::Tcb {
                expected,
                found,
                part,
            } => (part, expected.clone(), found.clone()),
            Self::Vmpl { found } => ("vmpl", "0".into(), found.to_string()),
        }
    }

    fn fix(&self) -> &'static str {
        match self {
            Self::Version2 => {
                "update the host's SNP firmware, or name the generation for reports of version 2"
            }
            Self::NoRoot { .. } => "use a broker that has this product's root",
            Self::Pem | Self::Certificate { .. } => {
                "have the host load the certificates anew from AMD's key distribution service"
            }
            Self::NoKey => {
                "have the host load the certificate into its table, or let the broker fetch it"
            }
            Self::ManyKeys => "have the host load one VCEK or one VLEK into its table",
            Self::KeyProduct { .. } | Self::SigningKey { .. } => {
                "load the certificate of the key that the report names"
            }
            Self::ForeignIssuer { .. } | Self::Chain { .. } => {
                "load AMD's own chain for this product; a simulated chain is for `sim-snp` only"
            }
            Self::NotYetValid { .. } | Self::Expired { .. } => {
                "correct the broker's clock, or fetch the certificate anew"
            }
            Self::CrlAbsent { .. } | Self::CrlForm(_) | Self::CrlStale { .. } => {
                "fetch the list of revoked certificates anew"
            }
            Self::Revoked { .. } => "take the host out of service and ask AMD for the cause",
            Self::Unsigned => "turn the host's MaskChipKey off",
            Self::Algorithm { .. } | Self::Signature => {
                "the report was changed on its way, or another chip signed it: attest again, and \
                 look at who carries the guest's traffic"
            }
            Self::ChipMasked => "turn the host's MaskChipId off, or use a VLEK",
            Self::ChipId { .. } => "load the certificate of the chip that the guest runs on",
            Self::Tcb { .. } => {
                "load the certificate for the firmware that the host runs: it changes with each \
                 update"
            }
            Self::Vmpl { .. } => "ask for the report at VMPL 0",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_told_as_dates() {
        let failure = SnpFailure::Expired {
            role: Role::Ask,
            until: 1_735_689_600,
            now: 1_735_689_601,
        };
        let text = "the ASK certificate was valid until 2025-01-01T00:00:00Z, and it is 2025-01-01T00:00:01Z";
        assert_eq!(failure.to_string(), text);
    }
}
