//! The known word that a misspelt one was meant to be.

/// More edits than this are another word, not a misspelt one.
const MOST_EDITS: usize = 3;

/// From what serde says of a word that it does not know, "unknown field `a`, expected one of `b`,
/// `c`": the nearest of the words that it does know. So no list of keys is kept beside the tables.
pub(super) fn suggestion(message: &str) -> Option<String> {
    let (unknown, known) = message.split_once(", expected ")?;
    if !unknown.starts_with("unknown ") {
        return None;
    }
    let word = quoted(unknown).next()?;
    let (edits, best) = quoted(known)
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .min_by_key(|(edits, _)| *edits)?;
    (edits <= MOST_EDITS && edits < word.len()).then(|| best.to_owned())
}

fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_known_word_is_offered_and_no_other() {
        for (message, nearest) in [
            (
                "unknown field `lisen`, expected one of `listen`, `tls`",
                Some("listen"),
            ),
            (
                "unknown field `tsl`, expected `listen` or `tls`",
                Some("tls"),
            ),
            ("unknown variant `jsno`, expected `json`", Some("json")),
            (
                "unknown field `telemetry`, expected `listen` or `tls`",
                None,
            ),
            ("unknown field `x`, there are no fields", None),
            (
                "invalid type: string \"a\", expected `b`, expected `ab`",
                None,
            ),
        ] {
            assert_eq!(suggestion(message).as_deref(), nearest, "{message}");
        }
    }
}
