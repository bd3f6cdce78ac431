//! The closed list of errors that cross the host-guest line, and their text.
//!
//! ```text
//! <phase>: <message> [<code>]
//! <phase>: <message> [<code>] (ticket <ticket>)
//! ```
//!
//! The text is what a user reads and what travels in a ttRPC status; it parses back. A message
//! never carries a secret: a cause that only the owner may know stays at the broker, and the
//! ticket leads there.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use ttrpc::Code;

use crate::limit;

/// The phase of an error whose text has no phase.
const UNKNOWN_PHASE: &str = "agent";

macro_rules! codes {
    ($($(#[$doc:meta])* $variant:ident = $name:literal => $code:ident,)*) => {
        /// A stable name for why something failed. Users, tests and documentation rely on it.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        pub enum ErrorCode {
            $($(#[$doc])* #[serde(rename = $name)] $variant,)*
        }

        impl ErrorCode {
            /// Every code.
            pub const ALL: &[Self] = &[$(Self::$variant,)*];

            /// The name in kebab case.
            #[must_use]
            pub fn name(self) -> &'static str {
                match self { $(Self::$variant => $name,)* }
            }

            /// The gRPC code that carries it.
            #[must_use]
            pub fn grpc(self) -> Code {
                match self { $(Self::$variant => Code::$code,)* }
            }
        }
    };
}

codes! {
    // The VM and the way to it: the shim finds these.
    /// The hypervisor's process ended.
    VmmExited = "vmm-exited" => UNAVAILABLE,
    /// The guest's kernel or its first process panicked.
    GuestPanicked = "guest-panicked" => UNAVAILABLE,
    /// The agent did not answer, or its connection broke.
    AgentUnreachable = "agent-unreachable" => UNAVAILABLE,
    /// A step did not end in its time.
    DeadlineExceeded = "deadline-exceeded" => DEADLINE_EXCEEDED,
    /// The caller gave up.
    Cancelled = "cancelled" => CANCELLED,

    // Attestation and the broker.
    /// No connection to the key broker.
    BrokerUnreachable = "broker-unreachable" => UNAVAILABLE,
    /// The broker's identity is not the one that init-data names.
    BrokerUntrusted = "broker-untrusted" => PERMISSION_DENIED,
    /// The broker refuses; its ticket tells the owner why.
    BrokerDenied = "broker-denied" => PERMISSION_DENIED,
    /// The broker does not have what was asked for.
    ResourceNotFound = "resource-not-found" => NOT_FOUND,
    /// No evidence could be made, or the broker does not believe it.
    AttestationFailed = "attestation-failed" => PERMISSION_DENIED,
    /// A sealed secret is malformed, not signed by the owner, or bound to something else.
    SecretNotOpened = "secret-not-opened" => PERMISSION_DENIED,
    /// The init-data disk or document is malformed, or there is none where one is needed.
    InitDataInvalid = "init-data-invalid" => INVALID_ARGUMENT,
    /// The init-data's digest is not the measured one.
    InitDataMismatch = "init-data-mismatch" => PERMISSION_DENIED,
    /// The owner's policy does not allow the request.
    PolicyDenied = "policy-denied" => PERMISSION_DENIED,
    /// The owner's policy cannot be evaluated.
    PolicyInvalid = "policy-invalid" => INVALID_ARGUMENT,

    // Images.
    /// The reference does not parse.
    ReferenceInvalid = "reference-invalid" => INVALID_ARGUMENT,
    /// The registry does not have the image.
    ImageNotFound = "image-not-found" => NOT_FOUND,
    /// The image's signature policy refuses it.
    ImageDenied = "image-denied" => PERMISSION_DENIED,
    /// No connection to the registry.
    RegistryUnreachable = "registry-unreachable" => UNAVAILABLE,
    /// The registry refuses these credentials, or asks for some.
    RegistryDenied = "registry-denied" => PERMISSION_DENIED,
    /// Somebody else answers in the registry's place.
    RegistryUntrusted = "registry-untrusted" => PERMISSION_DENIED,
    /// The relay may not dial this host.
    HostNotAllowed = "host-not-allowed" => PERMISSION_DENIED,
    /// Bytes do not have the digest that names them.
    DigestMismatch = "digest-mismatch" => DATA_LOSS,
    /// No key opens an encrypted layer.
    KeyUnwrapFailed = "key-unwrap-failed" => PERMISSION_DENIED,
    /// A manifest, configuration or layer is malformed.
    ImageMalformed = "image-malformed" => DATA_LOSS,
    /// An image is larger than the caps.
    ImageTooLarge = "image-too-large" => RESOURCE_EXHAUSTED,
    /// The image needs something that is not supported, such as another architecture.
    ImageUnsupported = "image-unsupported" => UNIMPLEMENTED,
    /// The guest has no room left.
    GuestDiskFull = "guest-disk-full" => RESOURCE_EXHAUSTED,

    // Requests.
    /// There is no such container, process or file.
    NotFound = "not-found" => NOT_FOUND,
    /// The name is taken.
    AlreadyExists = "already-exists" => ALREADY_EXISTS,
    /// The request is malformed.
    InvalidArgument = "invalid-argument" => INVALID_ARGUMENT,
    /// The object is not in the state that the request needs.
    FailedPrecondition = "failed-precondition" => FAILED_PRECONDITION,
    /// A limit is reached.
    ResourceExhausted = "resource-exhausted" => RESOURCE_EXHAUSTED,
    /// The stream has ended.
    EndOfStream = "end-of-stream" => OUT_OF_RANGE,
    /// This method or option is not supported.
    Unimplemented = "unimplemented" => UNIMPLEMENTED,
    /// A step failed that should not.
    Internal = "internal" => INTERNAL,
}

/// There is no code of this name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown error code {0:?}")]
pub struct ParseErrorCodeError(String);

impl FromStr for ErrorCode {
    type Err = ParseErrorCodeError;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        let code = Self::ALL.iter().find(|code| code.name() == name);
        code.copied()
            .ok_or_else(|| ParseErrorCodeError(name.chars().take(64).collect()))
    }
}

impl fmt::Display for ErrorCode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why the guest did not do something.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GuestError {
    /// The stable code.
    pub code: ErrorCode,
    /// The step that failed, in one word, such as `pull` or `create`.
    pub phase: String,
    /// What happened, which object, and the fix where there is one.
    pub message: String,
    /// Names the full cause at the broker, where there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ticket: Option<String>,
}

impl GuestError {
    /// An error without a ticket. Phase and message are cut to [`limit::MAX_PHASE`] and
    /// [`limit::MAX_ERROR_MESSAGE`], and the phase loses its colons.
    #[must_use]
    pub fn new(code: ErrorCode, phase: &str, message: impl fmt::Display) -> Self {
        let message = message.to_string();
        Self {
            code,
            phase: cut(phase, limit::MAX_PHASE).replace(':', "-"),
            message: cut(&message, limit::MAX_ERROR_MESSAGE).to_owned(),
            ticket: None,
        }
    }

    /// The same error with the ticket that the broker gave: one word, without what would end it here.
    #[must_use]
    pub fn with_ticket(mut self, ticket: &str) -> Self {
        let of_a_word = |letter: &char| letter.is_ascii_graphic() && *letter != ')';
        let word = cut(ticket, limit::MAX_TICKET).chars().filter(of_a_word);
        self.ticket = Some(word.collect());
        self
    }

    /// Reads the text that [`fmt::Display`] writes. `None` where it is some other text.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let text = text.trim_end();
        let (body, ticket) = match text
            .strip_suffix(')')
            .and_then(|t| t.rsplit_once(" (ticket "))
        {
            Some((body, ticket)) => (body, Some(ticket)),
            None => (text, None),
        };
        let (body, code) = body.strip_suffix(']')?.rsplit_once(" [")?;
        let (phase, message) = body.split_once(": ")?;
        let error = Self::new(code.parse().ok()?, phase, message);
        Some(match ticket {
            Some(ticket) => error.with_ticket(ticket),
            None => error,
        })
    }
}

impl fmt::Display for GuestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {} [{}]", self.phase, self.message, self.code)?;
        match &self.ticket {
            Some(ticket) => write!(f, " (ticket {ticket})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for GuestError {}

impl From<GuestError> for ttrpc::Error {
    fn from(error: GuestError) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code.grpc(), &error))
    }
}

impl From<&ttrpc::Error> for GuestError {
    /// A status of our agent gives back its error; any other status keeps its meaning as well as
    /// the code can say it; a broken connection is [`ErrorCode::AgentUnreachable`].
    fn from(error: &ttrpc::Error) -> Self {
        match error {
            ttrpc::Error::RpcStatus(status) => Self::parse(&status.message).unwrap_or_else(|| {
                let code = code_of(status.code.enum_value_or_default());
                Self::new(code, UNKNOWN_PHASE, &status.message)
            }),
            ttrpc::Error::Others(_)
            | ttrpc::Error::Socket(_)
            | ttrpc::Error::Nix(_)
            | ttrpc::Error::LocalClosed
            | ttrpc::Error::RemoteClosed
            | ttrpc::Error::Eof => Self::new(ErrorCode::AgentUnreachable, UNKNOWN_PHASE, error),
        }
    }
}

/// The closest code for a status that is not ours: ttRPC itself answers some requests.
fn code_of(code: Code) -> ErrorCode {
    match code {
        Code::CANCELLED => ErrorCode::Cancelled,
        Code::INVALID_ARGUMENT => ErrorCode::InvalidArgument,
        Code::DEADLINE_EXCEEDED => ErrorCode::DeadlineExceeded,
        Code::NOT_FOUND => ErrorCode::NotFound,
        Code::ALREADY_EXISTS => ErrorCode::AlreadyExists,
        Code::PERMISSION_DENIED | Code::UNAUTHENTICATED => ErrorCode::PolicyDenied,
        Code::RESOURCE_EXHAUSTED => ErrorCode::ResourceExhausted,
        Code::FAILED_PRECONDITION | Code::ABORTED => ErrorCode::FailedPrecondition,
        Code::OUT_OF_RANGE => ErrorCode::EndOfStream,
        Code::UNIMPLEMENTED => ErrorCode::Unimplemented,
        Code::UNAVAILABLE => ErrorCode::AgentUnreachable,
        Code::OK | Code::UNKNOWN | Code::INTERNAL | Code::DATA_LOSS => ErrorCode::Internal,
    }
}

/// The longest start of `text` that has at most `max` bytes and ends at a character.
fn cut(text: &str, max: usize) -> &str {
    &text[..text.floor_char_boundary(max)]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_comes_back_from_its_name_and_its_json() {
        for code in ErrorCode::ALL {
            assert_eq!(code.name().parse::<ErrorCode>().unwrap(), *code);
            assert_eq!(serde_json::to_value(code).unwrap(), code.name());
        }
        assert!("no-such-code".parse::<ErrorCode>().is_err());
    }

    #[test]
    fn the_text_parses_back() {
        let error = GuestError::new(ErrorCode::ImageNotFound, "pull", "no tag: x [y] (z)");
        assert_eq!(
            error.to_string(),
            "pull: no tag: x [y] (z) [image-not-found]"
        );
        assert_eq!(GuestError::parse(&error.to_string()).unwrap(), error);
        // A ticket is one word, whatever a broker sends.
        for ticket in ["t-1", "t)-1\n", " t -\u{e4}1"] {
            let error = error.clone().with_ticket(ticket);
            assert_eq!(
                error.to_string(),
                "pull: no tag: x [y] (z) [image-not-found] (ticket t-1)"
            );
            assert_eq!(GuestError::parse(&error.to_string()).unwrap(), error);
        }
        let odd = GuestError::parse("p: m [internal] (ticket a (tic)ket b)").unwrap();
        assert_eq!(GuestError::parse(&odd.to_string()), Some(odd));
    }

    #[test]
    fn other_text_does_not_parse() {
        for text in ["", "plain", "a: b", "a: b [no-such-code]", "a b [internal]"] {
            assert_eq!(GuestError::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_status_carries_the_error_both_ways() {
        let error = GuestError::new(ErrorCode::PolicyDenied, "gate", "blocked").with_ticket("t");
        let status = ttrpc::Error::from(error.clone());
        match &status {
            ttrpc::Error::RpcStatus(status) => {
                assert_eq!(status.code.enum_value().unwrap(), Code::PERMISSION_DENIED);
            }
            other => panic!("{other}"),
        }
        assert_eq!(GuestError::from(&status), error);
    }

    #[test]
    fn foreign_statuses_and_broken_connections_get_a_code() {
        let foreign = ttrpc::Error::RpcStatus(ttrpc::get_status(Code::NOT_FOUND, "nothing"));
        assert_eq!(GuestError::from(&foreign).code, ErrorCode::NotFound);
        let broken = ttrpc::Error::Socket("gone".into());
        assert_eq!(GuestError::from(&broken).code, ErrorCode::AgentUnreachable);
    }

    #[test]
    fn long_messages_are_cut_at_a_character() {
        let error = GuestError::new(ErrorCode::Internal, "a:b", "ä".repeat(4000));
        assert!(error.message.len() <= limit::MAX_ERROR_MESSAGE);
        assert_eq!(error.phase, "a-b");
        assert_eq!(GuestError::parse(&error.to_string()).unwrap(), error);
    }
}
