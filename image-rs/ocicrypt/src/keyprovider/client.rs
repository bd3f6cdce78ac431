//! The client: one face for the three ways to a key provider.

use std::path::PathBuf;

use zeroize::Zeroizing;

use super::address::Address;
use super::command::{Command, CommandError};
use super::wire::{DecryptConfig, EncryptConfig, Input, Operation, Output, WireBytes};
use super::{DEADLINE, DOCUMENT_BYTES_MAX, grpc, ttrpc};

/// Why a provider gave no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProviderError {
    /// Its program.
    #[error(transparent)]
    Command(#[from] CommandError),
    /// Nobody listens.
    #[error("key provider {at} cannot be reached")]
    Connect {
        /// Where.
        at: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The connection, or the protocol over it.
    #[error("key provider {at} cannot be talked to: {reason}")]
    Talk {
        /// Where.
        at: String,
        /// Why.
        reason: String,
    },
    /// It refused.
    #[error("key provider {at} refuses: {reason} [{code}]")]
    Refused {
        /// Where.
        at: String,
        /// Its words.
        reason: String,
        /// Its code, gRPC's.
        code: i32,
    },
    /// Its answer is not of the protocol; it is not quoted, because it may hold a key.
    #[error(
        "key provider {at} did not answer with {expected} in at most {DOCUMENT_BYTES_MAX} bytes of JSON"
    )]
    Answer {
        /// Where.
        at: String,
        /// What was asked for.
        expected: &'static str,
    },
    /// It said nothing.
    #[error("key provider {at} did not answer within {} s", DEADLINE.as_secs())]
    Deadline {
        /// Where.
        at: String,
    },
}

/// How a provider is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Endpoint {
    /// A program, started for each question.
    Command(Command),
    /// gRPC.
    Grpc(Address),
    /// ttRPC over a socket in the file system.
    Ttrpc(PathBuf),
}

impl Endpoint {
    /// Has `options` wrapped; the answer is what goes into the annotation.
    ///
    /// # Errors
    /// See [`ProviderError`].
    pub async fn wrap(
        &self,
        options: &[u8],
        config: EncryptConfig,
    ) -> Result<Vec<u8>, ProviderError> {
        let output = self.ask(&Input::wrap(options, config)).await?;
        let annotation = output.wrap.and_then(|wrap| wrap.annotation);
        annotation
            .map(|bytes| bytes.expose().to_vec())
            .ok_or_else(|| self.bad_answer("keywrapresults"))
    }

    /// Has an annotation unwrapped; the answer is the private options.
    ///
    /// # Errors
    /// See [`ProviderError`].
    pub async fn unwrap(
        &self,
        annotation: &[u8],
        config: DecryptConfig,
    ) -> Result<WireBytes, ProviderError> {
        let output = self.ask(&Input::unwrap(annotation, config)).await?;
        let options = output.unwrap.and_then(|unwrap| unwrap.options);
        options.ok_or_else(|| self.bad_answer("keyunwrapresults"))
    }

    async fn ask(&self, input: &Input) -> Result<Output, ProviderError> {
        let answer = tokio::time::timeout(DEADLINE, self.send(input.op, input.to_json())).await;
        let answer = answer.map_err(|_| ProviderError::Deadline {
            at: self.to_string(),
        })??;
        serde_json::from_slice(&answer).map_err(|_| self.bad_answer("a document"))
    }

    async fn send(
        &self,
        operation: Operation,
        question: Zeroizing<Vec<u8>>,
    ) -> Result<Zeroizing<Vec<u8>>, ProviderError> {
        match self {
            Self::Command(command) => Ok(command.ask(&question).await?),
            Self::Grpc(address) => grpc::ask(address, operation, &question).await,
            Self::Ttrpc(path) => ttrpc::ask(path, operation, &question).await,
        }
    }

    fn bad_answer(&self, expected: &'static str) -> ProviderError {
        ProviderError::Answer {
            at: self.to_string(),
            expected,
        }
    }
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Command(command) => write!(formatter, "{}", command.path.display()),
            Self::Grpc(address) => address.fmt(formatter),
            Self::Ttrpc(path) => write!(formatter, "unix://{}", path.display()),
        }
    }
}
