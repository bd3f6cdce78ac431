//! What an error shows of a console: its last lines, as plain text. The guest and its firmware choose
//! what is in them, so nothing of it may move a terminal's cursor or clear its screen.

use anstream::adapter::strip_str;

/// Lines and bytes that an error shows.
const LINES: usize = 15;
const BYTES: usize = 2000;

/// The last lines that say something.
pub(super) fn tail(text: &str) -> String {
    let plain = plain(text);
    let lines: Vec<&str> = plain
        .lines()
        .filter(|line| !line.trim().is_empty())
        .collect();
    let last = lines[lines.len().saturating_sub(LINES)..].join("\n");
    let start = last.ceil_char_boundary(last.len().saturating_sub(BYTES));
    last[start..].to_owned()
}

/// The text without escape sequences (ECMA-48) and without control characters but line feeds. Each
/// line is taken on its own, so that a sequence without an end does not swallow the next.
pub(super) fn plain(text: &str) -> String {
    let lines: Vec<String> = text
        .split('\n')
        .map(|line| {
            // The form of a sequence's start in one character (C1) is text to most parsers.
            let line = line.replace('\u{9b}', "\x1b[");
            let stripped = strip_str(&line).to_string();
            stripped.chars().filter(|c| !c.is_control()).collect()
        })
        .collect();
    lines.join("\n")
}

/// The text with a titled tail, unless there is none or the text has it already.
pub(super) fn with_tail(text: String, title: &str, tail: &str) -> String {
    if tail.is_empty() || text.contains(tail) {
        return text;
    }
    format!("{text}; {title}:\n{tail}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What SeaBIOS 1.16.2 writes to a serial console before Linux does.
    const SEABIOS: &[u8] = b"\x1bc\x1b[?7l\x1b[2J\x1b[0mSeaBIOS (version 1.16.2-debian-1.16.2-1)\
        \r\nBooting from Hard Disk...\r\nBoot failed: could not read the boot disk\r\n\n\
        No bootable device.\r\n";

    #[test]
    fn the_firmwares_escapes_are_gone_and_its_words_stay() {
        let text = String::from_utf8_lossy(SEABIOS);
        assert_eq!(
            tail(&text),
            "SeaBIOS (version 1.16.2-debian-1.16.2-1)\nBooting from Hard Disk...\n\
             Boot failed: could not read the boot disk\nNo bootable device."
        );
    }

    #[test]
    fn every_kind_of_sequence_is_gone() {
        for (raw, left) in [
            ("a\x1b[1;31mred\x1b[0mb", "aredb"),
            ("\x1b[=3h\x1b[?25lx\x1b[10;5Hy", "xy"),
            ("\x1b]0;title\x07x", "x"),
            ("\x1b]8;;http://a\x1b\\link\x1b]8;;\x1b\\", "link"),
            ("\x1bPq#0\x1b\\x", "x"),
            ("\x1b(Bx\x1b7y\x1bM", "xy"),
            ("\u{9b}2Jx", "x"),
            ("a\x08\x08b\x7f\x00c\td", "abcd"),
            ("é\u{85}ü", "éü"),
        ] {
            assert_eq!(plain(raw), left, "{raw:?}");
        }
    }

    #[test]
    fn a_sequence_without_an_end_does_not_swallow_the_next_line() {
        for open in ["\x1b[", "\x1b]0;", "\x1bP", "\x1b"] {
            assert!(plain(&format!("{open}x\nnext")).ends_with("\nnext"));
        }
    }

    #[test]
    fn a_tail_is_short_and_plain() {
        let text = (0..100)
            .map(|n| format!("line {n}\r\n\x1b[0m"))
            .collect::<String>();
        let shown = tail(&text);
        assert_eq!(shown.lines().count(), LINES);
        assert!(shown.ends_with("line 99") && !shown.contains("[0m"));
        assert!(tail(&"ä".repeat(5000)).len() <= BYTES);
    }

    #[test]
    fn a_tail_is_added_once() {
        assert_eq!(with_tail("a".into(), "t", ""), "a");
        assert_eq!(with_tail("a: b".into(), "t", "b"), "a: b");
        assert_eq!(with_tail("a".into(), "t", "b"), "a; t:\nb\n");
    }
}
