//! The pieces of Intel's collateral and chains, and when each holds.

use std::fmt;

use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use super::TdxFailure;

/// A piece that is signed and dated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Document {
    /// Intel's root.
    Root,
    /// The issuer of platforms' certificates.
    PckCa,
    /// A platform's certificate.
    Pck,
    /// The certificate of who signs TCB infos.
    TcbSigner,
    /// The certificate of who signs QE identities; Intel has one for both.
    QeSigner,
    /// What each level of a kind of platform is worth.
    TcbInfo,
    /// What quoting enclaves have to be.
    QeIdentity,
    /// The list of revoked platforms.
    PckCrl,
    /// The root's list of revoked authorities.
    RootCrl,
}

impl Document {
    /// What operators call it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Root => "SGX root certificate",
            Self::PckCa => "PCK CA certificate",
            Self::Pck => "PCK certificate",
            Self::TcbSigner => "TCB signing certificate",
            Self::QeSigner => "QE identity signing certificate",
            Self::TcbInfo => "TCB info",
            Self::QeIdentity => "QE identity",
            Self::PckCrl => "PCK CRL",
            Self::RootCrl => "root CA CRL",
        }
    }
}

impl fmt::Display for Document {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// From when on a piece holds and from when on no longer, in seconds since the Unix epoch. Lists of
/// revoked certificates are not current at their next update, so nothing is at its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Period {
    pub(super) document: Document,
    pub(super) from: i64,
    pub(super) until: i64,
}

impl Period {
    pub(super) fn at(self, now: i64) -> Result<(), TdxFailure> {
        let Self {
            document,
            from,
            until,
        } = self;
        if now < from {
            return Err(TdxFailure::NotYetValid {
                document,
                from,
                now,
            });
        }
        if now >= until {
            return Err(TdxFailure::Expired {
                document,
                until,
                now,
            });
        }
        Ok(())
    }
}

/// The reverse of [`crate::failure::date`].
pub(super) fn seconds(date: &str) -> Option<i64> {
    OffsetDateTime::parse(date, &Rfc3339)
        .ok()
        .map(OffsetDateTime::unix_timestamp)
}
