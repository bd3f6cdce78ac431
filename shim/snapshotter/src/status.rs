//! How a call ends that does not succeed: a code that containerd tells apart, and a sentence for people.

use std::fmt;
use std::io;
use std::path::Path;

/// gRPC's codes, as far as snapshotters use them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Code {
    /// The request contradicts itself or a rule.
    InvalidArgument = 3,
    /// There is no such snapshot.
    NotFound = 5,
    /// There is one already. The answer of a remote snapshotter that a layer need not be fetched.
    AlreadyExists = 6,
    /// A bound is reached.
    ResourceExhausted = 8,
    /// The snapshot is not in the state for it.
    FailedPrecondition = 9,
    /// There is no such method.
    Unimplemented = 12,
    /// The disk, or a bug.
    Internal = 13,
    /// Somebody who is needed does not answer.
    Unavailable = 14,
}

/// The refusal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Status {
    pub(crate) code: Code,
    pub(crate) reason: String,
}

impl Status {
    pub(crate) fn new(code: Code, reason: impl Into<String>) -> Self {
        Self {
            code,
            reason: reason.into(),
        }
    }

    pub(crate) fn not_found(key: &str) -> Self {
        Self::new(Code::NotFound, format!("snapshot {key:?} does not exist"))
    }

    pub(crate) fn exists(key: &str) -> Self {
        Self::new(Code::AlreadyExists, format!("snapshot {key:?} exists"))
    }

    pub(crate) fn invalid(reason: impl Into<String>) -> Self {
        Self::new(Code::InvalidArgument, reason)
    }

    pub(crate) fn state(reason: impl Into<String>) -> Self {
        Self::new(Code::FailedPrecondition, reason)
    }

    /// The disk's error, with what was done to which path.
    pub(crate) fn disk(doing: &str, path: &Path, error: &io::Error) -> Self {
        Self::new(Code::Internal, format!("{doing} {path:?}: {error}"))
    }
}

impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.reason)
    }
}

impl std::error::Error for Status {}
