//! From the error of a step to a [`GuestError`] that says which step it was.

use std::fmt::Display;

use agent_api::{ErrorCode, GuestError};

/// Names the step that failed.
pub trait OrFail<T> {
    /// The error as a [`GuestError`] whose message is `<what>: <error>`.
    ///
    /// # Errors
    ///
    /// Exactly when `self` is one.
    fn or_fail(self, code: ErrorCode, phase: &str, what: impl Display) -> Result<T, GuestError>;

    /// [`OrFail::or_fail`] with [`ErrorCode::Internal`].
    ///
    /// # Errors
    ///
    /// Exactly when `self` is one.
    fn or_internal(self, phase: &str, what: impl Display) -> Result<T, GuestError>
    where
        Self: Sized,
    {
        self.or_fail(ErrorCode::Internal, phase, what)
    }
}

impl<T, E: Display> OrFail<T> for Result<T, E> {
    fn or_fail(self, code: ErrorCode, phase: &str, what: impl Display) -> Result<T, GuestError> {
        self.map_err(|error| GuestError::new(code, phase, format!("{what}: {error}")))
    }
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

/// An error and its causes in one line.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        let next_text = next.to_string();
        // Transparent wrappers print their cause: once is enough.
        if !text.ends_with(&next_text) {
            text.push_str(": ");
            text.push_str(&next_text);
        }
        cause = next.source();
    }
    text
}
