//! Why TDX evidence or its collateral was refused.

use evidence::{eventlog::EventLogError, tdx::QuoteError};

use super::{document::Document, needs::Ca};
use crate::{Explanation, failure::date};

/// A refusal. Times are seconds since the Unix epoch.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[allow(missing_docs, reason = "each message tells the members")]
pub enum TdxFailure {
    /// Not a quote of version 4 or 5.
    #[error(transparent)]
    Quote(#[from] QuoteError),
    /// Another vendor's quoting enclave.
    #[error("the quote was made by a quoting enclave of vendor {found}, not Intel's")]
    Vendor { found: String },
    /// Not a piece of this kind.
    #[error("the {document} is not usable: {detail}")]
    Form {
        document: Document,
        detail: &'static str,
    },
    /// Under another root.
    #[error("the chain of the {document} does not end in the prepared root")]
    ForeignRoot { document: Document },
    /// Signed by another key.
    #[error("the {document} was not signed by the key of the {issuer}")]
    Chain {
        document: Document,
        issuer: Document,
    },
    /// Too early.
    #[error("the {document} is valid from {}, and it is {}", date(*from), date(*now))]
    NotYetValid {
        document: Document,
        from: i64,
        now: i64,
    },
    /// Too late.
    #[error("the {document} was valid until {}, and it is {}", date(*until), date(*now))]
    Expired {
        document: Document,
        until: i64,
        now: i64,
    },
    /// Revoked.
    #[error("the {document} with the serial number {serial} is revoked")]
    Revoked { document: Document, serial: String },
    /// Prepared with other roots.
    #[error("the collateral was prepared with another root")]
    OtherRoots,
    /// Collateral for another kind of platform.
    #[error("the collateral is for FMSPC {found}, the platform has {expected}")]
    Fmspc { expected: String, found: String },
    /// Collateral for another issuer.
    #[error("the collateral is for platforms of the {found} CA, this one is of the {expected} CA")]
    OtherCa { expected: Ca, found: Ca },
    /// Changed, or signed by another key.
    #[error("the platform's key did not sign the quoting enclave's report")]
    QeSignature,
    /// Another key.
    #[error("the quoting enclave's report does not bind the key that signed the quote")]
    QeBinding,
    /// Another enclave.
    #[error("the quoting enclave is not Intel's: {part} is {found}, not {expected}")]
    QeIdentity {
        part: &'static str,
        expected: String,
        found: String,
    },
    /// Changed, or signed by another key.
    #[error("the quote's signature is wrong")]
    Signature,
    /// Another module.
    #[error("the TDX module is not Intel's: {part} is {found}, not {expected}")]
    Module {
        part: &'static str,
        expected: String,
        found: String,
    },
    /// Too old to be in any list.
    #[error("the TCB info has no level for the {part}: it is older than the oldest")]
    NoLevel { part: &'static str },
    /// Intel no longer vouches for it.
    #[error("the TCB status of the {part} is Revoked")]
    TcbRevoked { part: &'static str },
    /// A TD that nobody can answer for.
    #[error("the TD's attributes are {found}: {detail}")]
    Attributes { found: String, detail: &'static str },
    /// Not a log.
    #[error(transparent)]
    EventLog(#[from] EventLogError),
    /// Another boot's log, or a changed one.
    #[error("the event log replays to another {register} than the quote has")]
    Replay {
        register: &'static str,
        expected: String,
        found: String,
    },
    /// What `dcap-qvl` refuses beyond all of these.
    #[error("the quote or its collateral was refused: {0}")]
    Refused(String),
}

impl TdxFailure {
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
            Self::Quote(_) => ("quote", "a TDX quote of version 4 or 5".into(), text),
            Self::Vendor { found } => (
                "quote.header.vendor_id",
                hex::encode(evidence::tdx::INTEL_QE),
                found.clone(),
            ),
            Self::Form { document, .. } => ("collateral", format!("a usable {document}"), text),
            Self::ForeignRoot { .. } => ("chain", "a chain to the prepared root".into(), text),
            Self::Chain { issuer, .. } => ("chain", format!("signed by the {issuer}"), text),
            Self::NotYetValid { from, now, .. } => {
                ("validity", format!("from {}", date(*from)), date(*now))
            }
            Self::Expired { until, now, .. } => {
                ("validity", format!("until {}", date(*until)), date(*now))
            }
            Self::Revoked { .. } => ("crl", "not revoked".into(), text),
            Self::OtherRoots => ("collateral", "prepared with the same root".into(), text),
            Self::Fmspc { expected, found } => ("fmspc", expected.clone(), found.clone()),
            Self::OtherCa { expected, found } => {
                ("pck_ca", expected.to_string(), found.to_string())
            }
            Self::QeSignature | Self::QeBinding => {
                ("qe_report", "vouched for by the platform".into(), text)
            }
            Self::QeIdentity {
                part,
                expected,
                found,
            }
            | Self::Module {
                part,
                expected,
                found,
            }
            | Self::Replay {
                register: part,
                expected,
                found,
            } => (part, expected.clone(), found.clone()),
            Self::Signature => ("signature", "by the quoting enclave's key".into(), text),
            Self::NoLevel { .. } => ("tcb_status", "a level in the TCB info".into(), text),
            Self::TcbRevoked { .. } => ("tcb_status", "not Revoked".into(), "Revoked".into()),
            Self::Attributes { found, .. } => (
                "quote.body.td_attributes",
                "a TD that only its owner can look into".into(),
                found.clone(),
            ),
            Self::EventLog(_) => ("cc_eventlog", "a log of a TD".into(), text),
            Self::Refused(detail) => ("quote", "a quote that holds".into(), detail.clone()),
        }
    }

    fn fix(&self) -> &'static str {
        match self {
            Self::Quote(_) => "let the host's quote service make TDX quotes of version 4 or 5",
            Self::Vendor { .. } | Self::QeIdentity { .. } => {
                "run Intel's own quoting enclave on the host, and keep it up to date"
            }
            Self::Form {
                document: Document::Pck,
                ..
            } => "register the platform anew and give its host's quote service the new certificate",
            Self::Form { .. } => "fetch the collateral anew from Intel's provisioning service",
            Self::ForeignRoot { .. } | Self::Chain { .. } => {
                "use Intel's own chain and collateral; a simulated chain is for `sim-tdx` only"
            }
            Self::NotYetValid { .. } | Self::Expired { .. } => {
                "correct the broker's clock, or fetch the document anew"
            }
            Self::Revoked { .. } | Self::TcbRevoked { .. } => {
                "take the host out of service until its firmware is updated and its platform \
                 registered anew"
            }
            Self::OtherRoots | Self::Fmspc { .. } | Self::OtherCa { .. } => {
                "fetch the collateral of the kind of platform that the guest runs on"
            }
            Self::QeSignature | Self::QeBinding | Self::Signature => {
                "the quote was changed on its way, or another platform signed it: attest again, and \
                 look at who carries the guest's traffic"
            }
            Self::Module { .. } => "load Intel's TDX module on the host",
            Self::NoLevel { .. } => {
                "update the host's firmware and TDX module; if they are new, fetch the collateral anew"
            }
            Self::Attributes { .. } => {
                "launch the TD with SEPT_VE_DISABLE, without migration and without service TDs"
            }
            Self::EventLog(_) => {
                "send the CCEL table as the firmware left it, with the agent's events"
            }
            Self::Replay { .. } => {
                "something extended the register without an event, or the log was changed: send the \
                 log of this boot, whole"
            }
            Self::Refused(_) => "read what is found; if host and collateral are current, ask us",
        }
    }
}
