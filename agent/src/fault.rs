//! From the error of a step to a [`GuestError`] that says which step it was.

use std::error::Error;
use std::fmt::Display;
use std::io;

use agent_api::{ErrorCode, GuestError};

use crate::causes::chain;

/// Names the step that failed.
pub trait OrFail<T> {
    /// The error as a [`GuestError`] whose message is `<what>: <error>: <its causes>`.
    ///
    /// # Errors
    ///
    /// Exactly when `self` is one.
    fn or_fail(self, code: ErrorCode, phase: &str, what: impl Display) -> Result<T, GuestError>;

    /// [`OrFail::or_fail`] with [`ErrorCode::Internal`], or [`ErrorCode::GuestDiskFull`] where that
    /// is the cause: any step that writes can meet it, and it is nothing that should not happen.
    ///
    /// # Errors
    ///
    /// Exactly when `self` is one.
    fn or_internal(self, phase: &str, what: impl Display) -> Result<T, GuestError>;
}

impl<T, E: Error + 'static> OrFail<T> for Result<T, E> {
    fn or_fail(self, code: ErrorCode, phase: &str, what: impl Display) -> Result<T, GuestError> {
        self.map_err(|error| {
            let message = format!("{what}: {}", chain(&error));
            GuestError::new(code, phase, message)
        })
    }

    fn or_internal(self, phase: &str, what: impl Display) -> Result<T, GuestError> {
        let code = match &self {
            Err(error) if is_disk_full(error) => ErrorCode::GuestDiskFull,
            _ => ErrorCode::Internal,
        };
        self.or_fail(code, phase, what)
    }
}

/// Whether an error, or one of its causes, is a file system without room.
#[must_use]
pub fn is_disk_full(error: &(dyn Error + 'static)) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    use rustix::io::Errno;
    let mut next = Some(error);
    while let Some(error) = next {
        let io = error.downcast_ref::<io::Error>();
        let errno = error.downcast_ref::<Errno>();
        if io.is_some_and(|error| matches!(error.kind(), StorageFull | QuotaExceeded))
            || errno.is_some_and(|errno| matches!(*errno, Errno::NOSPC | Errno::DQUOT))
        {
            return true;
        }
        // What `io::Error::new` wraps is not a source of the error, but its own value.
        next = match io.and_then(io::Error::get_ref) {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    false
}

/// A request that is malformed.
#[must_use]
pub fn invalid(phase: &str, message: impl Display) -> GuestError {
    GuestError::new(ErrorCode::InvalidArgument, phase, message)
}

/// A request for what this agent does not do.
#[must_use]
pub fn unimplemented(phase: &str, message: impl Display) -> GuestError {
    GuestError::new(ErrorCode::Unimplemented, phase, message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("save")]
    struct Save(#[source] io::Error);

    fn full() -> io::Error {
        io::Error::from(rustix::io::Errno::NOSPC)
    }

    #[test]
    fn a_full_disk_has_its_name_however_deep_it_lies() {
        let code = |error| Err::<(), _>(error).or_internal("create", "/x").unwrap_err();
        let error = code(full());
        assert_eq!(error.code, ErrorCode::GuestDiskFull);
        assert!(error.message.starts_with("/x: No space left"), "{error}");
        let deep = Err::<(), _>(Save(io::Error::other(Save(full()))));
        let error = deep.or_internal("create", "/x").unwrap_err();
        assert_eq!(error.code, ErrorCode::GuestDiskFull);
        let errno = Err::<(), _>(rustix::io::Errno::NOSPC).or_internal("create", "/x");
        assert_eq!(errno.unwrap_err().code, ErrorCode::GuestDiskFull);
        let other = code(io::Error::from(io::ErrorKind::NotFound));
        assert_eq!(other.code, ErrorCode::Internal);
    }
}
