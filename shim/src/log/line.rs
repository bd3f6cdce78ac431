//! An event's fields, and the line that containerd's log has for them.

use std::fmt::{Debug, Write as _};

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tracing::Level;
use tracing::field::{Field, Visit};

/// A line is at most this long, so that it is written at once (pipe(7): `PIPE_BUF`).
const MAX_LINE: usize = 4096;
/// The field in which the text is.
const MESSAGE: &str = "message";
const SANDBOX: &str = "sandbox";

/// What an event says.
#[derive(Debug, Default)]
pub(super) struct Fields {
    message: String,
    others: Vec<(&'static str, String)>,
}

impl Fields {
    pub(super) fn set(&mut self, name: &'static str, value: String) {
        match name {
            MESSAGE => self.message = value,
            name => self.others.push((name, value)),
        }
    }

    pub(super) fn message(&self) -> &str {
        &self.message
    }

    pub(super) fn others(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let others = self.others.iter();
        others.map(|(name, value)| (*name, value.as_str()))
    }

    /// Its line, as logrus writes lines.
    pub(super) fn line(&self, level: Level, sandbox: &str) -> String {
        let level = match level {
            Level::ERROR => "error",
            Level::WARN => "warning",
            Level::INFO => "info",
            Level::DEBUG => "debug",
            Level::TRACE => "trace",
        };
        let time = OffsetDateTime::now_utc()
            .format(&Rfc3339)
            .unwrap_or_default();
        let message = quote(&self.message);
        let mut line = format!("time=\"{time}\" level={level} msg={message}");
        let sandbox =
            (!self.others.iter().any(|(name, _)| *name == SANDBOX)).then_some((SANDBOX, sandbox));
        // A `String` takes everything.
        for (name, value) in self.others().chain(sandbox) {
            let _ = write!(line, " {name}={}", quote(value));
        }
        line.truncate(line.floor_char_boundary(MAX_LINE - 1));
        line.push('\n');
        line
    }
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        self.set(field.name(), format!("{value:?}"));
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.set(field.name(), value.to_owned());
    }
}

/// A JSON string: no quote or line feed in a value can end the field or begin another line.
fn quote(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_forge_a_line() {
        let mut fields = Fields::default();
        fields.set(MESSAGE, "a\ntime=\"x\" level=fatal".to_owned());
        fields.set("k", "é\"\n".repeat(4000));
        let line = fields.line(Level::INFO, "pod");
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.ends_with('\n') && line.len() <= MAX_LINE);
        assert!(
            line.contains(r#" level=info msg="a\ntime=\"x\" level=fatal""#),
            "{line}"
        );
    }

    #[test]
    fn an_event_that_names_a_sandbox_does_so_once() {
        let mut fields = Fields::default();
        fields.set(SANDBOX, "a".to_owned());
        assert_eq!(fields.line(Level::INFO, "b").matches("sandbox=").count(), 1);
    }
}
