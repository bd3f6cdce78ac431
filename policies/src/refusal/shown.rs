//! Parts of the line, short enough to be read.

use std::io::{self, Write};

use regorus::Value;

/// Characters of the line, of a statement, of a value.
const LINE: usize = 600;
const STATEMENT: usize = 160;
const VALUE: usize = 80;
const ABSENT: &str = "absent";

/// One line, whatever it quotes.
pub(super) fn line(text: &str) -> String {
    shortened(text, LINE)
}

/// A statement of the policy without its line breaks.
pub(super) fn statement(text: &str) -> String {
    let words: Vec<_> = text.split_whitespace().collect();
    shortened(&words.join(" "), STATEMENT)
}

/// What the interpreter says: of its drawing of the place, the line and the message.
pub(super) fn error(text: &str) -> String {
    let place = text
        .split_once("policy.rego:")
        .and_then(|(_, rest)| rest.split(':').next());
    let message = text.split_once("error: ").map(|(_, message)| message);
    match (place, message) {
        (Some(line), Some(message)) => {
            format!(
                "the evaluation fails in line {line}: {}",
                statement(message)
            )
        }
        _ => statement(text),
    }
}

/// A value as JSON. What is in objects is not told: an environment may be.
pub(super) fn value(value: Option<&Value>) -> String {
    let Some(value) = value else {
        return ABSENT.to_owned();
    };
    match value {
        Value::Object(members) if !members.is_empty() => return "{…}".to_owned(),
        Value::Array(members) if members.iter().any(is_composed) => return "[…]".to_owned(),
        _ => {}
    }
    let mut start = Start(Vec::new());
    // The end of a long value is not wanted, and its writer stopped.
    let _ = serde_json::to_writer(&mut start, value);
    shortened(&String::from_utf8_lossy(&start.0), VALUE)
}

/// Of a value that must not be told: the name of a variable that has it.
pub(super) fn hidden(value: Option<&Value>) -> String {
    match value {
        None => ABSENT.to_owned(),
        Some(Value::String(text)) => match text.split_once('=') {
            Some((name, _)) => shortened(&format!("\"{name}=…\""), VALUE),
            None => "hidden".to_owned(),
        },
        Some(_) => "hidden".to_owned(),
    }
}

fn is_composed(value: &Value) -> bool {
    matches!(value, Value::Object(_) | Value::Array(_) | Value::Set(_))
}

/// A place in the request, as `input.OCI.Mounts[2]`.
pub(super) fn path(keys: &[Value]) -> String {
    let mut path = "input".to_owned();
    for key in keys {
        match key {
            Value::String(name) if is_word(name) => {
                path.push('.');
                path.push_str(name);
            }
            key => {
                path.push('[');
                path.push_str(&value(Some(key)));
                path.push(']');
            }
        }
    }
    path
}

fn is_word(name: &str) -> bool {
    let mut bytes = name.bytes();
    bytes
        .next()
        .is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
        && bytes.all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

fn shortened(text: &str, limit: usize) -> String {
    let clean = |character: char| {
        if character.is_control() {
            ' '
        } else {
            character
        }
    };
    let mut characters = text.chars().map(clean);
    let mut shown: String = characters.by_ref().take(limit).collect();
    if characters.next().is_some() {
        shown.push('…');
    }
    shown
}

/// Keeps the start of what is written, and stops the writer after it.
struct Start(Vec<u8>);

impl Write for Start {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A character has at most 4 bytes.
        if self.0.len() > 4 * VALUE {
            return Err(io::ErrorKind::WriteZero.into());
        }
        self.0.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
