//! The first line of each connection to the stream port, by which the host asks for one of a process's
//! three streams. The agent answers as the host does on its own port ([`crate::DialAnswer`]).
//!
//! ```text
//! STDOUT web              ->  OK, and then what the container's first process writes
//! STDERR web probe        ->  OK, of its further process `probe`
//! STDIN web               ->  OK, and then the host writes; the end of that is the end of the input
//!                         ->  ERR not-found there is no container web
//! ```
//!
//! The end of a stream is the end of the connection's direction, so nothing is framed. As with
//! [`crate::HostLine`], who reads a line must read no byte beyond it.

use std::fmt;

use crate::host_line::{plain, shorten};
use crate::{LineError, limit};

/// One of a process's streams.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum StreamKind {
    /// What it reads.
    Stdin,
    /// What it writes; all of it on a terminal.
    Stdout,
    /// What it writes beside that.
    Stderr,
}

impl StreamKind {
    /// The word that a line opens with.
    #[must_use]
    pub fn verb(self) -> &'static str {
        match self {
            Self::Stdin => "STDIN",
            Self::Stdout => "STDOUT",
            Self::Stderr => "STDERR",
        }
    }
}

/// What a host opens a connection to the stream port with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StreamLine {
    kind: StreamKind,
    container: String,
    exec: String,
}

impl StreamLine {
    /// A line for a stream of a container's further process, or of its first, where `exec` is empty.
    ///
    /// # Errors
    /// [`LineError::Id`] where an id cannot stand in a line.
    pub fn new(kind: StreamKind, container: &str, exec: &str) -> Result<Self, LineError> {
        let fits = |id: &str| {
            let shows = |byte: u8| byte.is_ascii_graphic();
            id.len() <= limit::MAX_ID && id.bytes().all(shows)
        };
        if container.is_empty() || !fits(container) {
            return Err(LineError::Id(shorten(container)));
        }
        if !fits(exec) {
            return Err(LineError::Id(shorten(exec)));
        }
        Ok(Self {
            kind,
            container: container.to_owned(),
            exec: exec.to_owned(),
        })
    }

    /// Reads one line with its line feed.
    ///
    /// # Errors
    /// Each [`LineError`] says what is wrong; the connection is then closed.
    pub fn parse(line: &[u8]) -> Result<Self, LineError> {
        let text = plain(line)?;
        let (verb, ids) = text.split_once(' ').unwrap_or((text, ""));
        let kind = match verb {
            "STDIN" => StreamKind::Stdin,
            "STDOUT" => StreamKind::Stdout,
            "STDERR" => StreamKind::Stderr,
            other => return Err(LineError::UnknownVerb(shorten(other))),
        };
        match ids.split_once(' ') {
            // One form for each meaning: the first process has no id of its own here.
            Some((_, "")) => Err(LineError::Id(String::new())),
            Some((container, exec)) => Self::new(kind, container, exec),
            None => Self::new(kind, ids, ""),
        }
    }

    /// Which stream.
    #[must_use]
    pub fn kind(&self) -> StreamKind {
        self.kind
    }

    /// The container.
    #[must_use]
    pub fn container(&self) -> &str {
        &self.container
    }

    /// The further process; empty for the container's first.
    #[must_use]
    pub fn exec(&self) -> &str {
        &self.exec
    }
}

impl fmt::Display for StreamLine {
    /// The line without its line feed.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.kind.verb(), self.container)?;
        match self.exec.as_str() {
            "" => Ok(()),
            exec => write!(f, " {exec}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_back() {
        for kind in [StreamKind::Stdin, StreamKind::Stdout, StreamKind::Stderr] {
            for (container, exec) in [("web", ""), ("web", "probe"), (&"c".repeat(128), "_.-")] {
                let line = StreamLine::new(kind, container, exec).unwrap();
                let text = format!("{line}\n");
                assert!(text.len() <= limit::MAX_HOST_LINE);
                assert_eq!(StreamLine::parse(text.as_bytes()).unwrap(), line);
            }
        }
    }

    #[test]
    fn malformed_lines_are_refused() {
        let parse = |text: &str| StreamLine::parse(text.as_bytes());
        assert_eq!(parse("STDIN c"), Err(LineError::NotALine));
        assert_eq!(
            parse("READ c\n"),
            Err(LineError::UnknownVerb("READ".into()))
        );
        for text in [
            "STDIN\n",
            "STDIN \n",
            "STDIN c \n",
            "STDIN  e\n",
            "STDIN c e f\n",
        ] {
            assert!(matches!(parse(text), Err(LineError::Id(_))), "{text:?}");
        }
        let long = "c".repeat(limit::MAX_ID + 1);
        assert!(StreamLine::new(StreamKind::Stdin, &long, "").is_err());
        assert!(StreamLine::new(StreamKind::Stdin, "c", &long).is_err());
        assert!(StreamLine::new(StreamKind::Stdin, "", "").is_err());
    }
}
