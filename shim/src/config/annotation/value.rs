//! The text of an annotation as a value of its key: annotations have no types of their own.

use toml::Value;

use crate::config::key::{self, Kind};

/// What a key of this name takes.
///
/// # Errors
/// What the text is not.
pub(super) fn read(key: &str, text: &str) -> Result<Value, String> {
    let Some((kind, _)) = key::find(key) else {
        return Err(format!("there is no key {key}"));
    };
    let text = text.trim();
    let value = match kind {
        Kind::Switch => switch(text).map(Value::from),
        Kind::Number => number(text).map(Value::from),
        Kind::Fraction => text
            .parse::<f64>()
            .ok()
            .filter(|number| number.is_finite() && *number > 0.0)
            .map(Value::from),
        Kind::Text => Some(Value::from(text)),
        Kind::Words | Kind::Tables => None,
    };
    value.ok_or_else(|| {
        let wanted = match kind {
            Kind::Switch => "neither true nor false",
            _ => "not a number above zero",
        };
        format!("{:?} is {wanted}", super::shorten(text))
    })
}

/// The words of a list.
pub(super) fn list(text: &str, separator: char) -> Value {
    let words = text.split(separator).map(str::trim);
    Value::Array(
        words
            .filter(|word| !word.is_empty())
            .map(Value::from)
            .collect(),
    )
}

/// The spellings that Kata's Go runtime takes, and its Rust runtime's among them.
fn switch(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

/// Zero would ask for nothing, which is asked for by no annotation.
fn number(text: &str) -> Option<i64> {
    text.parse().ok().filter(|number| *number > 0)
}
