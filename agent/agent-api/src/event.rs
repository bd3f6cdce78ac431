//! What the agent tells about its start: one [`Ready`], then an [`Event`] for each finished phase.

use serde::{Deserialize, Serialize};

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

impl Event {
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
    /// The text is not exactly one event as JSON.
    pub fn from_line(line: &str) -> Result<Self, serde_json::Error> {
        serde_json::from_str(line.trim_end_matches('\n'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_back_from_their_line() {
        let event = Event {
            phase: Phase::Pull,
            ms: 17,
            container: Some("c1".into()),
        };
        assert_eq!(
            event.to_line(),
            "{\"phase\":\"pull\",\"ms\":17,\"container\":\"c1\"}\n"
        );
        assert_eq!(Event::from_line(&event.to_line()).unwrap(), event);
        let pod = Event {
            phase: Phase::Attest,
            ms: 1,
            container: None,
        };
        assert_eq!(Event::from_line(&pod.to_line()).unwrap(), pod);
    }

    #[test]
    fn unknown_phases_and_fields_are_refused() {
        assert!(Event::from_line("{\"phase\":\"lunch\",\"ms\":1}").is_err());
        assert!(Event::from_line("{\"phase\":\"pull\",\"ms\":1,\"x\":1}").is_err());
    }

    #[test]
    fn names_are_the_json() {
        for phase in [Phase::Attest, Phase::Pull, Phase::Create, Phase::Start] {
            assert_eq!(serde_json::to_value(phase).unwrap(), phase.name());
        }
    }
}
