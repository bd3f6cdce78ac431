//! What does not leave the host in a bug report.
//!
//! Three rules, each of which is enough: a value that a run's specification holds (its environment, its
//! arguments) is hidden wherever it stands; so is what is written behind a name that says that it is secret;
//! and so are forms that only secrets have: keys in PEM, bearer tokens, passwords in URLs.

use regex_lite::{Captures, Regex};

/// What stands in the place of what is hidden.
pub(super) const HIDDEN: &str = "[redacted]";
/// Values that are shorter are in every text.
const MIN_VALUE: usize = 4;
/// Parts of names that say that a value is secret.
const SECRET_NAMES: [&str; 8] = [
    "password",
    "passwd",
    "secret",
    "token",
    "credential",
    "private",
    "apikey",
    "api_key",
];

/// The rules of one report.
#[derive(Debug)]
pub(crate) struct Redact {
    values: Vec<String>,
    forms: Vec<(Regex, &'static str)>,
}

impl Redact {
    /// Rules that hide these values, and all that looks like a secret.
    pub(crate) fn new(mut values: Vec<String>) -> Self {
        values.retain(|value| value.len() >= MIN_VALUE);
        // The longest first: another may be a part of it.
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        values.dedup();
        let forms = [
            (
                r"(?s)-----BEGIN [A-Z ]*-----.*?(-----END [A-Z ]*-----|$)",
                HIDDEN,
            ),
            (
                r"(?i)\b(bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}",
                "$1 [redacted]",
            ),
            (r"://[^/\s:@]+:[^/\s@]+@", "://[redacted]@"),
            (
                r"eyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]*)?",
                HIDDEN,
            ),
        ];
        let forms = forms
            .into_iter()
            .filter_map(|(form, by)| Some((Regex::new(form).ok()?, by)));
        Self {
            values,
            forms: forms.collect(),
        }
    }

    /// The text without what is to be hidden.
    pub(crate) fn text(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for value in &self.values {
            if text.contains(value.as_str()) {
                text = text.replace(value.as_str(), HIDDEN);
            }
        }
        for (form, by) in &self.forms {
            text = form.replace_all(&text, *by).into_owned();
        }
        assignments(&text)
    }
}

/// Whether a name says that its value is secret.
pub(super) fn is_secret_key(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    SECRET_NAMES.iter().any(|part| name.contains(part))
}

/// Hides what is assigned to a name that says so: `NAME=value`, `name: value`, `"name": "value"`.
fn assignments(text: &str) -> String {
    let Ok(form) = Regex::new(r#"([A-Za-z0-9_.-]+)("?\s*[=:]\s*)("(?:[^"\\]|\\.)*"|[^\s,;]+)"#)
    else {
        return HIDDEN.to_owned();
    };
    let replace = |captures: &Captures<'_>| {
        let part = |number| captures.get(number).map_or("", |it| it.as_str());
        match is_secret_key(part(1)) {
            true => format!("{}{}{HIDDEN}", part(1), part(2)),
            false => part(0).to_owned(),
        }
    };
    form.replace_all(text, replace).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn values_names_and_forms_are_hidden_and_the_rest_stays() {
        let redact = Redact::new(
            ["planted", "planted-longer", "abc"]
                .map(str::to_owned)
                .to_vec(),
        );
        for (text, shown) in [
            ("x planted-longer y planted", "x [redacted] y [redacted]"),
            ("abc", "abc"),
            ("DB_PASSWORD=hunter2 next", "DB_PASSWORD=[redacted] next"),
            (
                "\"token\": \"a b\", \"x\": 1",
                "\"token\": [redacted], \"x\": 1",
            ),
            (
                "authorization: Bearer abcdefgh.ijk",
                "authorization: Bearer [redacted]",
            ),
            ("https://me:pw@host/x", "https://[redacted]@host/x"),
            (
                "a -----BEGIN PRIVATE KEY-----\nMIIB\n-----END PRIVATE KEY----- b",
                "a [redacted] b",
            ),
            ("cut -----BEGIN PRIVATE KEY-----\nMIIB", "cut [redacted]"),
            (
                "jwt eyJhbGciOiJub25lIn0.eyJzdWIiOiJ4In0.sig",
                "jwt [redacted]",
            ),
            (
                "kernel = \"/usr/share/cloister/vmlinux\"",
                "kernel = \"/usr/share/cloister/vmlinux\"",
            ),
        ] {
            assert_eq!(redact.text(text), shown);
        }
    }
}
