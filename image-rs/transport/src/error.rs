//! Why a request has no answer, by the step that failed.

use std::{error::Error as StdError, fmt, io, time::Duration};

/// Cap on the head of an answer, and on what is read of a body at once.
pub(crate) const HEAD_BYTES: usize = 256 * 1024;

/// A request that failed. An answer with an error status is not one of these.
#[derive(Debug, Clone, thiserror::Error)]
pub enum Error {
    /// The request cannot be sent as it is.
    #[error("request `{url}`: {cause}")]
    Request {
        /// What was asked for.
        url: String,
        /// What is wrong with it.
        cause: String,
    },
    /// The URL is plain HTTP, and nobody allowed that.
    #[error("`{host}` is asked for over plain http, which is not allowed: use https")]
    PlainHttp {
        /// Host and port.
        host: String,
    },
    /// The dialler could not open a stream.
    #[error("dial {host}: {cause}")]
    Dial {
        /// Host and port.
        host: String,
        /// The dialler's kind of error.
        kind: io::ErrorKind,
        /// The dialler's text.
        cause: String,
    },
    /// The peer's certificate does not chain to the roots that were chosen, or is for another host.
    #[error("{host} is not trusted: {cause}; trusted are {roots}")]
    Untrusted {
        /// Host and port.
        host: String,
        /// What is wrong with the certificate, and its fingerprint.
        cause: String,
        /// What was pinned.
        roots: String,
    },
    /// The TLS handshake failed for another reason.
    #[error("tls with {host}: {cause}")]
    Tls {
        /// Host and port.
        host: String,
        /// What the TLS stack says.
        cause: String,
    },
    /// The proxy does not carry the connection.
    #[error("the proxy {proxy}: {cause}")]
    Proxy {
        /// Its host and port.
        proxy: String,
        /// What it did.
        cause: String,
    },
    /// A phase took longer than it may.
    #[error("{host}: no {phase} within {} ms", after.as_millis())]
    Timeout {
        /// Host and port.
        host: String,
        /// The phase.
        phase: Phase,
        /// How long it was waited for.
        after: Duration,
    },
    /// A body is larger than the caller takes.
    #[error("{host}: the answer has more than {cap} bytes")]
    TooLarge {
        /// Host and port.
        host: String,
        /// The cap, in bytes.
        cap: usize,
    },
    /// The head of an answer is larger than any honest one.
    #[error("{host}: the head of the answer has more than {cap} bytes")]
    HeadTooLarge {
        /// Host and port.
        host: String,
        /// The cap, in bytes.
        cap: usize,
    },
    /// A redirect that is not followed.
    #[error("{host}: redirect {cause}")]
    Redirect {
        /// The host that answered with it.
        host: String,
        /// Why it is not followed.
        cause: String,
    },
    /// The connection broke, or what came over it is not HTTP.
    #[error("{host}: {cause}")]
    Protocol {
        /// Host and port.
        host: String,
        /// What the HTTP stack says.
        cause: String,
    },
}

/// A phase with a deadline of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// Opening the stream.
    Dial,
    /// The TLS handshake.
    Tls,
    /// From the request to the head of the answer.
    Head,
    /// Between two pieces of the body.
    Body,
    /// The least that a body must bring.
    Pace {
        /// So many bytes.
        bytes: u64,
    },
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Dial => f.write_str("connection"),
            Self::Tls => f.write_str("tls handshake"),
            Self::Head => f.write_str("answer"),
            Self::Body => f.write_str("more of the answer"),
            Self::Pace { bytes } => write!(f, "{bytes} bytes of the answer"),
        }
    }
}

impl Error {
    /// Whether another attempt may succeed where this one did not.
    #[must_use]
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Dial { kind, .. } => *kind != io::ErrorKind::PermissionDenied,
            Self::Tls { .. }
            | Self::Proxy { .. }
            | Self::Timeout { .. }
            | Self::Protocol { .. } => true,
            Self::Request { .. }
            | Self::PlainHttp { .. }
            | Self::Untrusted { .. }
            | Self::TooLarge { .. }
            | Self::HeadTooLarge { .. }
            | Self::Redirect { .. } => false,
        }
    }

    /// Finds our own error in what the HTTP stack wrapped around it.
    pub(crate) fn unwrap_from(host: &str, error: &(dyn StdError + 'static)) -> Self {
        let mut causes = Vec::new();
        let mut next = Some(error);
        while let Some(error) = next {
            if let Some(ours) = error.downcast_ref::<Self>() {
                return ours.clone();
            }
            let http = error.downcast_ref::<hyper::Error>();
            if http.is_some_and(hyper::Error::is_parse_too_large) {
                return Self::HeadTooLarge {
                    host: host.to_owned(),
                    cap: HEAD_BYTES,
                };
            }
            causes.push(error.to_string());
            next = error.source();
        }
        Self::Protocol {
            host: host.to_owned(),
            cause: causes.join(": "),
        }
    }
}
