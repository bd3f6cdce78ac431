//! What the agent tells about its start: one [`Ready`], then an [`Event`] for each finished phase, and between
//! them the lines of its log ([`LogLine`]).

use serde::{Deserialize, Serialize};

use crate::{SpanId, limit};

/// The agent listens. It is the JSON of a `READY` line.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ready {
    /// The agent's version.
    pub version: String,
    /// Milliseconds from the kernel's start to the agent's first instruction.
    pub kernel_ms: u64,
    /// Milliseconds from the agent's first instruction to this line.
    pub agent_ms: u64,
}

/// One phase has ended well. It is one line of JSON on the connection that opened with `READY`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Event {
    /// Which phase.
    pub phase: Phase,
    /// How long it took, in milliseconds.
    pub ms: u64,
    /// The container it was for; `None` where it was for the pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container: Option<String>,
    /// The phase's span, where others in the trace name it as their parent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub span: Option<SpanId>,
}

/// A line of the agent's log: what its console has too.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct LogLine {
    /// How much it matters.
    pub level: LogLevel,
    /// What it says.
    pub text: String,
}

/// How much a line matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LogLevel {
    /// Something does not work.
    Error,
    /// Something is odd.
    Warn,
    /// Something happened.
    Info,
    /// For developers.
    Debug,
    /// For developers who have time.
    Trace,
}

/// A line of JSON on the connection that opened with `READY`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum AgentLine {
    /// A phase is over.
    Event(Event),
    /// The agent's log.
    Log(LogLine),
}

impl LogLine {
    /// A line; a text that is longer than a line takes is cut, and control characters become blanks.
    #[must_use]
    pub fn new(level: LogLevel, text: &str) -> Self {
        let text = text.trim_end();
        let text = &text[..text.floor_char_boundary(limit::MAX_LOG_TEXT)];
        let plain = |letter: char| if letter.is_control() { ' ' } else { letter };
        Self {
            level,
            text: text.chars().map(plain).collect(),
        }
    }
}

impl AgentLine {
    /// One line for the host port, with its line feed.
    #[must_use]
    pub fn to_line(&self) -> String {
        // Strings and numbers always serialize.
        let mut line = serde_json::to_string(self).unwrap_or_default();
        line.push('\n');
        line
    }

    /// Reads a line, with or without its line feed.
    ///
    /// # Errors
    ///
    /// The text is not exactly one of them as JSON.
    pub fn from_line(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line.trim_end_matches('\n'))
    }
}

/// A phase of a start that the guest measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Phase {
    /// Evidence, handshake with the broker and token. Once for a pod.
    Attest,
    /// Image from reference to a root file system.
    Pull,
    /// Container made, its process waiting.
    Create,
    /// Container's process running.
    Start,
}

impl Phase {
    /// The name, as it stands in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Attest => "attest",
            Self::Pull => "pull",
            Self::Create => "create",
            Self::Start => "start",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_back_from_their_line() {
        let event = AgentLine::Event(Event {
            phase: Phase::Pull,
            ms: 17,
            container: Some("c1".into()),
            span: None,
        });
        assert_eq!(
            event.to_line(),
            "{\"phase\":\"pull\",\"ms\":17,\"container\":\"c1\"}\n"
        );
        assert_eq!(AgentLine::from_line(&event.to_line()).unwrap(), event);
        let pod = AgentLine::Event(Event {
            phase: Phase::Attest,
            ms: 1,
            container: None,
            span: SpanId::new([1; 8]),
        });
        assert_eq!(AgentLine::from_line(&pod.to_line()).unwrap(), pod);
    }

    #[test]
    fn unknown_phases_and_fields_are_refused() {
        assert!(AgentLine::from_line("{\"phase\":\"lunch\",\"ms\":1}").is_err());
        assert!(AgentLine::from_line("{\"phase\":\"pull\",\"ms\":1,\"x\":1}").is_err());
        assert!(AgentLine::from_line("{\"phase\":\"pull\",\"ms\":1,\"span\":\"x\"}").is_err());
    }

    #[test]
    fn a_log_line_fits_whatever_it_says_and_is_told_from_an_event() {
        for text in ["plain", &"\"\\\n".repeat(1000), &"\u{1f980}".repeat(1000)] {
            let line = AgentLine::Log(LogLine::new(LogLevel::Warn, text));
            let text = line.to_line();
            assert!(text.len() <= limit::MAX_HOST_LINE, "{}", text.len());
            assert_eq!(text.matches('\n').count(), 1);
            assert_eq!(AgentLine::from_line(&text).unwrap(), line);
        }
        let event = "{\"phase\":\"pull\",\"ms\":1}";
        assert!(matches!(
            AgentLine::from_line(event),
            Ok(AgentLine::Event(_))
        ));
        assert!(AgentLine::from_line("{\"level\":\"fatal\",\"text\":\"\"}").is_err());
        assert!(AgentLine::from_line("{\"level\":\"info\",\"text\":\"\",\"x\":1}").is_err());
    }

    #[test]
    fn names_are_the_json() {
        for phase in [Phase::Attest, Phase::Pull, Phase::Create, Phase::Start] {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.name());
        }
    }
}
