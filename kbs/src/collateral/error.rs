//! Why a document cannot be had, from whom, and whether waiting helps.

use std::{path::PathBuf, time::SystemTime};

use time::{OffsetDateTime, format_description::well_known::Rfc3339};
use verifier::{Explanation, Failure, snp::SnpFailure};

use super::document::Document;

/// Collateral that is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CollateralError {
    /// The evidence does not lead to any document.
    #[error(transparent)]
    Evidence(#[from] Failure),
    /// The configuration cannot be used.
    #[error("[collateral] {0}")]
    Config(String),
    /// A file cannot be read or written.
    #[error("{path}: {cause}", path = path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// Why.
        cause: String,
    },
    /// Nothing is fetched, and it is not in the cache.
    #[error("{document} is not in the cache, and nobody may be asked for it")]
    Absent {
        /// Which document.
        document: Document,
    },
    /// Nothing is fetched, and the one in the cache is out of its time.
    #[error("{document} is in the cache until {}, and nobody may be asked for a newer one",
        show(*.until))]
    Expired {
        /// Which document.
        document: Document,
        /// When it ended, in seconds since the Unix epoch.
        until: i64,
    },
    /// The service asked to be left alone.
    #[error("{host} limits its rate: {document} can be asked for from {}", at(*.until))]
    RateLimited {
        /// Which document.
        document: Document,
        /// The service.
        host: String,
        /// Until when.
        until: SystemTime,
    },
    /// The service cannot be reached, or fails.
    #[error("{host} does not give {document}: {cause}")]
    Unreachable {
        /// Which document.
        document: Document,
        /// The service.
        host: String,
        /// Why.
        cause: String,
    },
    /// The service is slower than a guest is let wait.
    #[error("{host} did not give {document} within {seconds} s")]
    TooSlow {
        /// Which document.
        document: Document,
        /// The service.
        host: String,
        /// How long was waited.
        seconds: u64,
    },
    /// Too much is asked for at once.
    #[error("too many documents are being fetched: {document} has to wait")]
    Busy {
        /// Which document.
        document: Document,
    },
    /// The service has no such document.
    #[error("{host} has no {document} (HTTP {status})")]
    Unknown {
        /// Which document.
        document: Document,
        /// The service.
        host: String,
        /// What it answered.
        status: u16,
    },
    /// What the service gave is not taken.
    #[error("what {host} gave for {document} is refused: {cause}")]
    Refused {
        /// Which document.
        document: Document,
        /// The service.
        host: String,
        /// Why.
        cause: String,
    },
}

impl CollateralError {
    /// Whether the same request may succeed later, without anybody's doing.
    #[must_use]
    pub fn retry_helps(&self) -> bool {
        match self {
            Self::RateLimited { .. }
            | Self::Unreachable { .. }
            | Self::TooSlow { .. }
            | Self::Busy { .. } => true,
            Self::Evidence(_)
            | Self::Config(_)
            | Self::File { .. }
            | Self::Absent { .. }
            | Self::Expired { .. }
            | Self::Unknown { .. }
            | Self::Refused { .. } => false,
        }
    }

    /// When to try again, where that is known.
    #[must_use]
    pub fn retry_at(&self) -> Option<SystemTime> {
        match self {
            Self::RateLimited { until, .. } => Some(*until),
            _ => None,
        }
    }

    /// For the owner: the claim is what could not be judged without the document.
    #[must_use]
    pub fn explain(&self) -> Explanation {
        let (claim, expected) = match self {
            Self::Evidence(failure) => return failure.explain(),
            Self::Config(_) | Self::File { .. } => ("collateral", "a usable cache".to_owned()),
            Self::Absent { document }
            | Self::Expired { document, .. }
            | Self::RateLimited { document, .. }
            | Self::Unreachable { document, .. }
            | Self::TooSlow { document, .. }
            | Self::Busy { document }
            | Self::Unknown { document, .. }
            | Self::Refused { document, .. } => (document.claim(), format!("a current {document}")),
        };
        Explanation {
            claim,
            expected,
            found: self.to_string(),
            fix: self.fix(),
        }
    }

    fn fix(&self) -> String {
        match self {
            Self::Evidence(failure) => failure.explain().fix,
            Self::Config(_) => "correct the broker's configuration".to_owned(),
            Self::File { .. } => "let the broker read and write its cache".to_owned(),
            Self::Absent { document } | Self::Expired { document, .. } if document.simulated => {
                "give the broker its development root's collateral".to_owned()
            }
            Self::Absent { .. } | Self::Expired { .. } => {
                "import a bundle that has it with `kbs collateral import`, or allow `fetch` in \
                 [collateral]"
                    .to_owned()
            }
            Self::RateLimited { until, .. } => format!(
                "attest again after {}; fetch with `kbs collateral prefetch` before guests need it",
                at(*until)
            ),
            Self::Unreachable { host, .. } | Self::TooSlow { host, .. } => format!(
                "see that the broker reaches {host}, name a mirror in [collateral], or import a \
                 bundle; then attest again"
            ),
            Self::Busy { .. } => "attest again in a moment".to_owned(),
            Self::Unknown { .. } => {
                "the vendor does not know this chip or platform with this firmware: see whether \
                 the report is genuine, and whether the host's firmware was published"
                    .to_owned()
            }
            Self::Refused { host, .. } => format!(
                "see what stands behind {host}: it gives what its vendor did not sign, or an old copy"
            ),
        }
    }
}

impl From<SnpFailure> for CollateralError {
    fn from(failure: SnpFailure) -> Self {
        Self::Evidence(failure.into())
    }
}

fn at(time: SystemTime) -> String {
    let time: OffsetDateTime = time.into();
    let whole = time.replace_nanosecond(0).unwrap_or(time);
    whole.format(&Rfc3339).unwrap_or_default()
}

/// Seconds since the Unix epoch, for people.
pub(crate) fn show(seconds: i64) -> String {
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| format!("{seconds} s since 1970"))
}
