//! The first line of each connection to the host port, and the relay's answer to it.
//!
//! ```text
//! READY <key> {"version":"0.1.0","kernel_ms":900,"agent_ms":40}
//! FAIL {"code":"init-data-mismatch","phase":"init-data","message":"..."}
//! DIAL <key> registry.example:443  ->  OK
//!                                  ->  ERR host-not-allowed registry.example is not in relay.allow
//! MIRROR <key>                     ->  OK, or ERR as above
//! TEE <key> LOG                    ->  OK and what was asked for (see [`TeeCall`]), or ERR as above
//! ```
//!
//! Containers reach the port too. So the first key that is said, with `TEE` or with `READY`, is the agent's
//! ([`HostKey`]): there is no container yet. The host believes no other, and after `READY` nobody's `FAIL`.
//!
//! Lines are at most [`limit::MAX_HOST_LINE`] bytes with their line feed. Whoever reads one must
//! read no byte beyond it: after `DIAL` the next byte belongs to the relayed connection, and after
//! `MIRROR` to HTTP.

use std::fmt;
use std::str::FromStr;

use crate::limit;
use crate::{ErrorCode, GuestError, HostKey, Ready, TeeCall};

/// Room in a line for what is not the message of an error.
const MAX_LINE_MESSAGE: usize = 400;

/// Why a line is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// The line exceeds the cap.
    #[error("line has more than {} bytes", limit::MAX_HOST_LINE)]
    TooLong,
    /// There is no line feed at the end, or one before it.
    #[error("line does not end with its only line feed")]
    NotALine,
    /// The bytes are not UTF-8, or hold control characters.
    #[error("line is not plain text")]
    NotText,
    /// The first word is none of ours.
    #[error("line opens with {0:?}, which is no word of this contract")]
    UnknownVerb(String),
    /// An id of `STDIN`, `STDOUT` or `STDERR` is missing or none, or there is one too many.
    #[error("line names a process by {0:?}: a container's id and, for a further process, its own")]
    Id(String),
    /// The JSON of `READY` or `FAIL` is not what it should be.
    #[error("{verb}: {cause}")]
    Json {
        /// `READY` or `FAIL`.
        verb: &'static str,
        /// What is wrong with it.
        cause: String,
    },
    /// The word behind the first is no key.
    #[error("line has no key of {} hexadecimal digits", 2 * crate::HOST_KEY_BYTES)]
    Key,
    /// What is asked behind `TEE` has another form.
    #[error("line asks nothing that a TEE answers: REPORT, READ, EXTEND and LOG are known")]
    TeeCall,
    /// The target of `DIAL` is not `host:port`.
    #[error("{0:?} is not <host>:<port>")]
    Target(String),
    /// The code of `ERR` is unknown.
    #[error(transparent)]
    Code(#[from] crate::ParseErrorCodeError),
}

/// Where `DIAL` leads: a name or address that was checked for form, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Target {
    host: String,
    port: u16,
}

impl Target {
    /// A target of a host (a DNS name, an IPv4 address, or an IPv6 address without brackets) and
    /// a port that is not zero. Names become lower case, so that equal hosts compare equal.
    ///
    /// # Errors
    ///
    /// [`LineError::Target`] where the host has another character, no length or too much.
    pub fn new(host: &str, port: u16) -> Result<Self, LineError> {
        let refused = || LineError::Target(shorten(host));
        let is_name = host
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
        let is_v6 = host.parse::<std::net::Ipv6Addr>().is_ok();
        if host.is_empty() || host.len() > limit::MAX_HOST_NAME || port == 0 || !(is_name || is_v6)
        {
            return Err(refused());
        }
        Ok(Self {
            host: host.to_ascii_lowercase(),
            port,
        })
    }

    /// The name or address, without brackets.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

impl FromStr for Target {
    type Err = LineError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || LineError::Target(shorten(text));
        let (host, port) = text.rsplit_once(':').ok_or_else(refused)?;
        let port_is_plain = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
        let port = port
            .parse()
            .ok()
            .filter(|_| port_is_plain)
            .ok_or_else(refused)?;
        match host.strip_prefix('[') {
            Some(rest) => {
                let host = rest
                    .strip_suffix(']')
                    .filter(|h| h.contains(':'))
                    .ok_or_else(refused)?;
                Self::new(host, port)
            }
            None if host.contains(':') => Err(refused()),
            None => Self::new(host, port),
        }
        .map_err(|_| refused())
    }
}

/// What a guest opens a connection to the host port with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HostLine {
    /// The agent listens; the connection stays open for [`crate::Event`] lines.
    Ready(HostKey, Ready),
    /// The agent cannot go on; the VM powers off.
    Fail(GuestError),
    /// Relay this connection.
    Dial(HostKey, Target),
    /// Speak to the node's mirror of blobs.
    Mirror(HostKey),
    /// Ask what stands for the firmware of a simulated TEE.
    Tee(HostKey, TeeCall),
}

impl HostLine {
    /// Reads one line with its line feed.
    ///
    /// # Errors
    ///
    /// Each [`LineError`] says what is wrong; the connection is then closed.
    pub fn parse(line: &[u8]) -> Result<Self, LineError> {
        let text = plain(line)?;
        let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
        match verb {
            "READY" => {
                let (key, rest) = keyed(rest)?;
                Ok(Self::Ready(key, json("READY", rest)?))
            }
            "FAIL" => Ok(Self::Fail(json("FAIL", rest)?)),
            "DIAL" => {
                let (key, rest) = keyed(rest)?;
                Ok(Self::Dial(key, rest.parse()?))
            }
            "MIRROR" => Ok(Self::Mirror(rest.parse()?)),
            "TEE" => {
                let (key, rest) = keyed(rest)?;
                Ok(Self::Tee(key, rest.parse()?))
            }
            other => Err(LineError::UnknownVerb(shorten(other))),
        }
    }
}

impl fmt::Display for HostLine {
    /// The line without its line feed. The message of `FAIL` is cut so that the line fits.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ready(key, ready) => write!(f, "READY {key} {}", to_json(ready)?),
            Self::Fail(error) => {
                let mut error = error.clone();
                error.message = printable(&error.message, MAX_LINE_MESSAGE);
                write!(f, "FAIL {}", to_json(&error)?)
            }
            Self::Dial(key, target) => write!(f, "DIAL {key} {target}"),
            Self::Mirror(key) => write!(f, "MIRROR {key}"),
            Self::Tee(key, call) => write!(f, "TEE {key} {call}"),
        }
    }
}

/// What the host answers to `DIAL`, `MIRROR` and `TEE`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DialAnswer {
    /// Connected: every further byte is the peer's, or the mirror's.
    Ok,
    /// Not connected, and why; the connection is closed.
    Err(ErrorCode, String),
}

impl DialAnswer {
    /// Reads one line with its line feed.
    ///
    /// # Errors
    ///
    /// Each [`LineError`] says what is wrong.
    pub fn parse(line: &[u8]) -> Result<Self, LineError> {
        let text = plain(line)?;
        let (verb, rest) = text.split_once(' ').unwrap_or((text, ""));
        match verb {
            "OK" if rest.is_empty() => Ok(Self::Ok),
            "ERR" => {
                let (code, message) = rest.split_once(' ').unwrap_or((rest, ""));
                Ok(Self::Err(code.parse()?, message.to_owned()))
            }
            other => Err(LineError::UnknownVerb(shorten(other))),
        }
    }
}

impl fmt::Display for DialAnswer {
    /// The line without its line feed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ok => f.write_str("OK"),
            Self::Err(code, message) => {
                write!(f, "ERR {code} {}", printable(message, MAX_LINE_MESSAGE))
            }
        }
    }
}

pub(crate) fn plain(line: &[u8]) -> Result<&str, LineError> {
    if line.len() > limit::MAX_HOST_LINE {
        return Err(LineError::TooLong);
    }
    let body = line.strip_suffix(b"\n").ok_or(LineError::NotALine)?;
    if body.contains(&b'\n') {
        return Err(LineError::NotALine);
    }
    let text = std::str::from_utf8(body).map_err(|_| LineError::NotText)?;
    if text.chars().any(char::is_control) {
        return Err(LineError::NotText);
    }
    Ok(text)
}

fn keyed(rest: &str) -> Result<(HostKey, &str), LineError> {
    let (key, rest) = rest.split_once(' ').ok_or(LineError::Key)?;
    Ok((key.parse()?, rest))
}

fn json<T: serde::de::DeserializeOwned>(verb: &'static str, text: &str) -> Result<T, LineError> {
    serde_json::from_str(text).map_err(|e| LineError::Json {
        verb,
        cause: e.to_string(),
    })
}

fn to_json<T: serde::Serialize>(value: &T) -> Result<String, fmt::Error> {
    serde_json::to_string(value).map_err(|_| fmt::Error)
}

/// One line of text whose JSON has at most `max` bytes: control characters become spaces, and
/// the two that JSON escapes become ones that it does not.
fn printable(text: &str, max: usize) -> String {
    let line: String = text
        .chars()
        .map(|c| match c {
            '"' => '\'',
            '\\' => '/',
            c if c.is_control() => ' ',
            c => c,
        })
        .collect();
    line[..line.floor_char_boundary(max)].to_owned()
}

pub(crate) fn shorten(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: HostKey = HostKey::from_bytes([7; crate::HOST_KEY_BYTES]);

    fn line(text: &impl fmt::Display) -> Vec<u8> {
        format!("{text}\n").into_bytes()
    }

    #[test]
    fn lines_come_back() {
        let ready = Ready {
            version: "0.1.0".into(),
            kernel_ms: 900,
            agent_ms: 40,
        };
        let fail = GuestError::new(
            ErrorCode::InitDataMismatch,
            "init-data",
            "not the measured one",
        );
        for expected in [
            HostLine::Ready(KEY, ready),
            HostLine::Fail(fail),
            HostLine::Dial(KEY, Target::new("registry.example", 443).unwrap()),
            HostLine::Dial(KEY, Target::new("fd00::1", 5000).unwrap()),
            HostLine::Mirror(KEY),
        ] {
            assert_eq!(HostLine::parse(&line(&expected)).unwrap(), expected);
        }
        let refused = DialAnswer::Err(ErrorCode::HostNotAllowed, "no such entry".into());
        for expected in [DialAnswer::Ok, refused] {
            assert_eq!(DialAnswer::parse(&line(&expected)).unwrap(), expected);
        }
    }

    #[test]
    fn a_long_failure_still_fits_a_line() {
        let error = GuestError::new(ErrorCode::Internal, &"p".repeat(64), "\"ä\\\n".repeat(2000))
            .with_ticket(&"t".repeat(128));
        let line = line(&HostLine::Fail(error));
        assert!(line.len() <= limit::MAX_HOST_LINE, "{}", line.len());
        assert!(HostLine::parse(&line).is_ok());
    }

    #[test]
    fn malformed_lines_are_refused() {
        assert_eq!(HostLine::parse(b"DIAL a:1"), Err(LineError::NotALine));
        assert_eq!(HostLine::parse(b"DIAL a:1\n\n"), Err(LineError::NotALine));
        assert_eq!(HostLine::parse(b"DIAL a:1\r\n"), Err(LineError::NotText));
        assert_eq!(HostLine::parse(b"DIAL \xff:1\n"), Err(LineError::NotText));
        assert_eq!(HostLine::parse(&[b'x'; 1025]), Err(LineError::TooLong));
        assert_eq!(
            HostLine::parse(b"PING\n"),
            Err(LineError::UnknownVerb("PING".into()))
        );
        for keyless in ["MIRROR", "MIRROR a", "READY {}", "DIAL a:1", "DIAL a a:1"] {
            assert_eq!(
                HostLine::parse(&line(&keyless)),
                Err(LineError::Key),
                "{keyless}"
            );
        }
        assert!(matches!(
            HostLine::parse(&line(&format!("READY {KEY} {{}}"))),
            Err(LineError::Json { .. })
        ));
        assert!(DialAnswer::parse(b"OK then\n").is_err());
        assert!(matches!(
            DialAnswer::parse(b"ERR nonsense x\n"),
            Err(LineError::Code(_))
        ));
    }

    #[test]
    fn targets_are_a_host_and_a_port() {
        for good in ["a:1", "a-b.c_d:65535", "10.0.0.1:80", "[fd00::1]:443"] {
            assert_eq!(good.parse::<Target>().unwrap().to_string(), good);
        }
        assert_eq!("A.Example:1".parse::<Target>().unwrap().host(), "a.example");
        for bad in [
            "",
            "a",
            "a:",
            ":1",
            "a:0",
            "a:65536",
            "a:+1",
            "a b:1",
            "a/b:1",
            "fd00::1:443",
            "[a]:1",
            "[fd00::1:1",
            "a@b:1",
        ] {
            assert!(bad.parse::<Target>().is_err(), "{bad}");
        }
        assert!(Target::new(&"a".repeat(254), 1).is_err());
    }
}
