//! Words of others where a person reads them: one line, of bounded length, that cannot steer a terminal.
//!
//! What an image, a registry or a layout says is written by whoever made it. A control character could move the
//! cursor or set the window's title, and one that turns the direction of writing could make a line say something else.

/// Cap on what is shown of one text, in characters.
const SHOWN_MAX: usize = 200;

/// A text as it may be shown: what is not printed as itself is escaped, as `{:?}` does it, and a long text is cut.
#[must_use]
pub fn shown(text: &str) -> String {
    shown_up_to(text, SHOWN_MAX)
}

/// The same for what may be longer, up to `cap` characters of the text.
#[must_use]
pub fn shown_up_to(text: &str, cap: usize) -> String {
    let mut shown = String::with_capacity(text.len().min(4 * cap));
    for (count, letter) in text.chars().enumerate() {
        if count == cap {
            shown.push('…');
            break;
        }
        match letter {
            '"' | '\'' | '\\' => shown.push(letter),
            letter => shown.extend(letter.escape_debug()),
        }
    }
    shown
}

/// Several texts, each as it may be shown, with commas between.
#[must_use]
pub fn shown_list<'a>(texts: impl IntoIterator<Item = &'a str>) -> String {
    const TEXTS_MAX: usize = 32;
    let mut texts = texts.into_iter();
    let mut list: Vec<_> = texts.by_ref().take(TEXTS_MAX).map(shown).collect();
    let left = texts.count();
    if left > 0 {
        list.push(format!("{left} more"));
    }
    list.join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_steers_a_terminal_is_escaped() {
        assert_eq!(
            shown("\u{1b}]0;x\u{7}\u{9b}\n\r\t\u{202e}\u{2066}\u{200b}\u{2028}"),
            "\\u{1b}]0;x\\u{7}\\u{9b}\\n\\r\\t\\u{202e}\\u{2066}\\u{200b}\\u{2028}"
        );
        assert_eq!(shown("größe \"a\\b\" 'c' 画像"), "größe \"a\\b\" 'c' 画像");
    }

    #[test]
    fn a_long_text_and_a_long_list_are_cut() {
        assert_eq!(shown(&"x".repeat(1000)).chars().count(), SHOWN_MAX + 1);
        let many = vec!["a\n"; 40];
        let list = shown_list(many.iter().copied());
        assert!(
            list.starts_with("a\\n, a\\n") && list.ends_with(", 8 more"),
            "{list}"
        );
    }
}
