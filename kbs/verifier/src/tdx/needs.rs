//! The platform's certificate in a quote, and which collateral it asks for.

use std::fmt;

use dcap_qvl::intel::{PckExtension, parse_pck_extension};
use evidence::tdx::{Quote, TdxEvidence};

use super::{
    TdxFailure,
    certificate::{Certificate, chain, form},
    document::Document,
};

/// Which collateral a verification needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Needs {
    /// The kind of platform.
    pub fmspc: [u8; 6],
    /// Who issued the platform's certificate.
    pub ca: Ca,
}

/// An issuer of platforms' certificates.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ca {
    /// Of platforms with one package.
    Processor,
    /// Of platforms with several.
    Platform,
}

impl Ca {
    /// The name in the addresses of Intel's provisioning service.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Processor => "processor",
            Self::Platform => "platform",
        }
    }

    /// The issuer of this common name.
    pub(super) fn of_name(name: &str) -> Option<Self> {
        match name.rsplit_once("SGX PCK ") {
            Some((_, "Processor CA")) => Some(Self::Processor),
            Some((_, "Platform CA")) => Some(Self::Platform),
            _ => None,
        }
    }
}

impl fmt::Display for Ca {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The kind of the quote's platform and who issued its certificate. Nothing is verified by this.
///
/// # Errors
/// When the quote's chain is not a platform's.
pub fn needs(evidence: &TdxEvidence) -> Result<Needs, TdxFailure> {
    let platform = Platform::of(evidence.quote())?;
    Ok(Needs {
        fmspc: platform.extension.fmspc,
        ca: platform.ca,
    })
}

/// A quote's chain, not verified.
pub(super) struct Platform {
    pub(super) leaf: Certificate,
    pub(super) issuer: Vec<u8>,
    pub(super) root: Vec<u8>,
    pub(super) ca: Ca,
    pub(super) extension: PckExtension,
}

impl Platform {
    pub(super) fn of(quote: &Quote) -> Result<Self, TdxFailure> {
        let chain = chain(Document::Pck, &quote.certificates)?;
        let [leaf, issuer, root] = <[Vec<u8>; 3]>::try_from(chain)
            .map_err(|_| form(Document::Pck, "its chain is not platform, issuer and root"))?;
        let leaf = Certificate::parse(Document::Pck, &leaf)?;
        let ca = Ca::of_name(&leaf.issuer_name).ok_or(form(
            Document::Pck,
            "its issuer is no PCK Platform CA or PCK Processor CA",
        ))?;
        let extension = parse_pck_extension(&leaf.der)
            .map_err(|_| form(Document::Pck, "its SGX extension cannot be read"))?;
        Ok(Self {
            leaf,
            issuer,
            root,
            ca,
            extension,
        })
    }
}
