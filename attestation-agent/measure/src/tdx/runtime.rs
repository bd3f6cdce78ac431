//! RTMR3: events that the attestation agent records while a guest runs.
//!
//! An event is a text of three words, `<domain> <operation> <content>`, with a tag and its length before
//! it, and its digest is of all that.

use evidence::eventlog::{AAEL_TAG, EventKind};

use super::event::{Event, Origin};

/// The most bytes of an event's text.
const TEXT_BYTES: usize = 64 * 1024;

/// An event, as it was given to the attestation agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RuntimeEvent<'a> {
    /// Whose event it is.
    pub domain: &'a str,
    /// What happened.
    pub operation: &'a str,
    /// And with what.
    pub content: &'a str,
}

/// A text that could be read as another event.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RuntimeError {
    /// No word.
    #[error(
        "a runtime event's domain and operation are words, without a space or a control character"
    )]
    Word,
    /// No line.
    #[error("a runtime event's content is one line")]
    Line,
    /// Too long.
    #[error("a runtime event of {0} bytes: at most {TEXT_BYTES} are recorded")]
    Length(usize),
}

impl RuntimeEvent<'_> {
    /// The event in RTMR3.
    ///
    /// # Errors
    /// When the three could not be told apart in it.
    pub fn event(&self) -> Result<Event, RuntimeError> {
        let word = |text: &str| {
            !text.is_empty() && !text.chars().any(|c| c.is_whitespace() || c.is_control())
        };
        if !word(self.domain) || !word(self.operation) {
            return Err(RuntimeError::Word);
        }
        if self.content.contains(['\n', '\0']) {
            return Err(RuntimeError::Line);
        }
        let text = format!("{} {} {}", self.domain, self.operation, self.content);
        let length = u32::try_from(text.len()).ok();
        let length = length.filter(|_| text.len() <= TEXT_BYTES);
        let length = length.ok_or(RuntimeError::Length(text.len()))?;
        let mut data = AAEL_TAG.to_le_bytes().to_vec();
        data.extend(length.to_le_bytes());
        data.extend(text.as_bytes());
        let origin = Origin::Runtime(format!("{} {}", self.domain, self.operation));
        Ok(Event::of(4, EventKind::EventTag, origin, &data))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_could_be_another_event_is_refused() {
        let event = |domain, operation, content| {
            RuntimeEvent {
                domain,
                operation,
                content,
            }
            .event()
        };
        assert_eq!(event("a b", "c", "d"), Err(RuntimeError::Word));
        assert_eq!(event("a", "", "d"), Err(RuntimeError::Word));
        assert_eq!(event("a", "b", "c\nd"), Err(RuntimeError::Line));
        assert!(event("a", "b", "").is_ok());
        let long = "x".repeat(TEXT_BYTES);
        let said = event("a", "b", &long);
        assert_eq!(said, Err(RuntimeError::Length(TEXT_BYTES + 4)));
    }
}
