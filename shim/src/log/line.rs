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
/// Where a value goes on.
const CUT: &str = "…";

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

    /// Its line, as logrus writes lines. What is too long is cut inside its quotes, the longest last: time, level
    /// and sandbox are whole, and what has no room is not there.
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
        let named = self.others().find(|(name, _)| *name == SANDBOX);
        let sandbox = named.map_or(sandbox, |(_, named)| named);
        let mut line = format!("time=\"{time}\" level={level}");
        push(&mut line, SANDBOX, sandbox, MAX_LINE / 4);
        push(&mut line, "msg", &self.message, MAX_LINE / 2);
        for (name, value) in self.others().filter(|(name, _)| *name != SANDBOX) {
            push(&mut line, name, value, MAX_LINE);
        }
        line.push('\n');
        line
    }
}

/// Adds a field that has so many bytes at most, if there is room for some of it.
fn push(line: &mut String, name: &str, value: &str, most: usize) {
    // Behind all is a line feed.
    let room = MAX_LINE.saturating_sub(1 + line.len()).min(most);
    let room = room.saturating_sub(" =".len() + name.len());
    if let Some(value) = quote(value, room) {
        // A `String` takes everything.
        let _ = write!(line, " {name}={value}");
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

/// A JSON string of at most `room` bytes: no quote or line feed in a value can end the field or begin another
/// line. One that was cut says so.
fn quote(text: &str, room: usize) -> Option<String> {
    // Quoted it is never shorter.
    let whole = || serde_json::to_string(text).ok();
    if let Some(whole) = (text.len() <= room).then(whole).flatten()
        && whole.len() <= room
    {
        return Some(whole);
    }
    let mut room = room.checked_sub(CUT.len() + "\"\"".len())?;
    let mut end = 0;
    for letter in text.chars() {
        let escaped = serde_json::to_string(letter.encode_utf8(&mut [0; 4])).ok()?;
        match room.checked_sub(escaped.len() - "\"\"".len()) {
            Some(left) => room = left,
            None => break,
        }
        end += letter.len_utf8();
    }
    serde_json::to_string(&format!("{}{CUT}", text.get(..end)?)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_cannot_forge_a_line() {
        let mut fields = Fields::default();
        fields.set(MESSAGE, "a\ntime=\"x\" level=fatal".to_owned());
        fields.set("k", "é\"\n".repeat(4000));
        fields.set("behind", "it".to_owned());
        let line = fields.line(Level::INFO, "pod");
        assert_eq!(line.matches('\n').count(), 1);
        assert!(line.ends_with("…\"\n") && line.len() <= MAX_LINE);
        assert!(line.len() > MAX_LINE - 8 && !line.contains("behind"));
        assert!(
            line.contains(r#" level=info sandbox="pod" msg="a\ntime=\"x\" level=fatal""#),
            "{line}"
        );
    }

    #[test]
    fn a_long_message_leaves_room_for_who_says_it_and_each_quote_is_closed() {
        let mut fields = Fields::default();
        fields.set(MESSAGE, "\u{1}é\\".repeat(5000));
        fields.set("container", "c".to_owned());
        let line = fields.line(Level::WARN, &"p".repeat(5000));
        assert!(line.len() <= MAX_LINE);
        assert!(line.ends_with(" container=\"c\"\n"), "{line}");
        let open = line.replace("\\\\", "").replace("\\\"", "");
        assert_eq!(open.matches('"').count() % 2, 0, "{line}");
        for room in 0..40 {
            let cut = quote("\u{1}é\"\\abc", room);
            assert!(cut.is_none_or(
                |cut| cut.len() <= room && serde_json::from_str::<String>(&cut).is_ok()
            ));
        }
    }

    #[test]
    fn an_event_that_names_a_sandbox_does_so_once() {
        let mut fields = Fields::default();
        fields.set(SANDBOX, "a".to_owned());
        assert_eq!(fields.line(Level::INFO, "b").matches("sandbox=").count(), 1);
    }
}
