//! Reading Rust source well enough to count lines: a lexer, not a parser.
//!
//! [`masked`] blanks comments, strings and character literals but keeps every newline, so a brace
//! inside a string never ends a function. Raw strings and nested block comments are followed;
//! macros are read as the tokens that they are.

use std::ops::Range;

/// One function: its name and how many lines it spans, signature included.
#[derive(Debug, PartialEq, Eq)]
pub struct Function {
    /// The name as written.
    pub name: String,
    /// Line of the `fn` keyword, from 1.
    pub line: usize,
    /// Lines from `fn` to the closing brace.
    pub lines: usize,
}

/// Every function with a body, in order.
#[must_use]
pub fn functions(text: &str) -> Vec<Function> {
    let code = masked(text);
    let mut found = Vec::new();
    for start in words(&code, "fn") {
        let Some(body) = body_after(&code, start) else {
            continue;
        };
        let name: String = code[start + 2..]
            .trim_start()
            .chars()
            .take_while(|c| c.is_alphanumeric() || *c == '_')
            .collect();
        if name.is_empty() {
            continue;
        }
        let lines = code[start..body.end].matches('\n').count() + 1;
        found.push(Function {
            name,
            line: code[..start].matches('\n').count() + 1,
            lines,
        });
    }
    found
}

/// Every trait with the number of its methods.
#[must_use]
pub fn traits(text: &str) -> Vec<(String, usize)> {
    let code = masked(text);
    let mut found = Vec::new();
    for start in words(&code, "trait") {
        let Some(body) = body_after(&code, start) else {
            continue;
        };
        let name: String = code[start + 5..]
            .trim_start()
            .chars()
            .take_while(|c| c.is_alphanumeric())
            .collect();
        let inside = flat(&code[body.start + 1..body.end - 1]);
        found.push((name, words(&inside, "fn").len()));
    }
    found
}

/// Lines before the inline test module, which is what the size limits speak of.
#[must_use]
pub fn body_lines(text: &str) -> usize {
    body(text).lines().count()
}

/// The text before the inline test module.
#[must_use]
pub fn body(text: &str) -> &str {
    let end = text
        .match_indices("#[cfg(test)]")
        .find(|(at, found)| {
            let rest = text[at + found.len()..].trim_start();
            let line = rest.lines().next().unwrap_or_default();
            line.trim_start_matches("pub ").starts_with("mod ") && line.ends_with('{')
        })
        .map_or(text.len(), |(at, _)| at);
    &text[..end]
}

/// The text with comments, strings and character literals blanked, newlines kept.
#[must_use]
pub fn masked(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = bytes.to_vec();
    let mut at = 0;
    while at < bytes.len() {
        let end = opaque_end(bytes, at);
        if end > at {
            blank(&mut out[at..end]);
            at = end;
        } else {
            at += 1;
        }
    }
    String::from_utf8(out).unwrap_or_default()
}

/// Where the comment or literal that begins at `at` ends; `at` itself when none does.
fn opaque_end(bytes: &[u8], at: usize) -> usize {
    let rest = &bytes[at..];
    match rest[0] {
        b'/' if rest.starts_with(b"//") => {
            at + rest.iter().position(|b| *b == b'\n').unwrap_or(rest.len())
        }
        b'/' if rest.starts_with(b"/*") => at + block_comment(rest),
        b'"' => at + quoted(rest),
        b'r' if !in_word(bytes, at) => at + raw_string(rest).unwrap_or(0),
        b'\'' => at + character(rest).unwrap_or(0),
        _ => at,
    }
}

fn block_comment(rest: &[u8]) -> usize {
    let (mut depth, mut at) = (0_usize, 0);
    while at < rest.len() {
        if rest[at..].starts_with(b"/*") {
            depth += 1;
            at += 2;
        } else if rest[at..].starts_with(b"*/") {
            depth -= 1;
            at += 2;
            if depth == 0 {
                break;
            }
        } else {
            at += 1;
        }
    }
    at.min(rest.len())
}

fn quoted(rest: &[u8]) -> usize {
    let mut at = 1;
    while at < rest.len() {
        match rest[at] {
            b'\\' => at += 2,
            b'"' => return at + 1,
            _ => at += 1,
        }
    }
    rest.len()
}

fn raw_string(rest: &[u8]) -> Option<usize> {
    let hashes = rest[1..].iter().take_while(|b| **b == b'#').count();
    if rest.get(1 + hashes) != Some(&b'"') {
        return None;
    }
    let close: Vec<u8> = std::iter::once(b'"')
        .chain(std::iter::repeat_n(b'#', hashes))
        .collect();
    let open = 2 + hashes;
    let end = rest[open..].windows(close.len()).position(|w| w == close);
    Some(end.map_or(rest.len(), |end| open + end + close.len()))
}

/// A character literal, told from a lifetime by its closing quote.
fn character(rest: &[u8]) -> Option<usize> {
    if rest.get(1) == Some(&b'\\') {
        // The escaped byte itself may be the quote, so the search begins behind it.
        return rest
            .iter()
            .skip(3)
            .position(|b| *b == b'\'')
            .map(|end| end + 4);
    }
    let width = std::str::from_utf8(&rest[1..rest.len().min(5)])
        .map_or_else(
            |error| std::str::from_utf8(&rest[1..1 + error.valid_up_to()]).ok(),
            Some,
        )?
        .chars()
        .next()?
        .len_utf8();
    (rest.get(1 + width) == Some(&b'\'')).then_some(width + 2)
}

fn in_word(bytes: &[u8], at: usize) -> bool {
    at > 0 && (bytes[at - 1].is_ascii_alphanumeric() || bytes[at - 1] == b'_')
}

fn blank(bytes: &mut [u8]) {
    for byte in bytes.iter_mut().filter(|b| **b != b'\n') {
        *byte = b' ';
    }
}

/// Where the whole word `word` stands.
fn words(code: &str, word: &str) -> Vec<usize> {
    code.match_indices(word)
        .map(|(at, _)| at)
        .filter(|at| {
            let after = code.as_bytes().get(at + word.len());
            !in_word(code.as_bytes(), *at) && after.is_some_and(u8::is_ascii_whitespace)
        })
        .collect()
}

/// The `{..}` that follows `start`, or none when a `;` comes first (a declaration).
fn body_after(code: &str, start: usize) -> Option<Range<usize>> {
    let bytes = code.as_bytes();
    let mut at = start;
    let mut square = 0_usize;
    loop {
        match bytes.get(at)? {
            b'{' => break,
            // `[u8; 4]` in a signature is no end of it.
            b'[' => square += 1,
            b']' => square = square.saturating_sub(1),
            b';' if square == 0 => return None,
            _ => {}
        }
        at += 1;
    }
    let open = at;
    let mut depth = 0_usize;
    for (offset, byte) in bytes[open..].iter().enumerate() {
        match byte {
            b'{' => depth += 1,
            b'}' => depth -= 1,
            _ => continue,
        }
        if depth == 0 {
            return Some(open..open + offset + 1);
        }
    }
    None
}

/// The text with everything inside braces removed: what stands at the top level of a block.
fn flat(code: &str) -> String {
    let mut depth = 0_usize;
    code.chars()
        .filter(|c| {
            match c {
                '{' => depth += 1,
                '}' => depth = depth.saturating_sub(1),
                _ => return depth == 0,
            }
            false
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_in_strings_comments_and_characters_do_not_count() {
        let text = "fn a() {\n let s = \"}\"; // }\n let r = r#\"}\"}\"#; let c = '}'; /* } */\n}\nfn b() {}\n";
        let found: Vec<_> = functions(text)
            .into_iter()
            .map(|f| (f.name, f.lines))
            .collect();
        assert_eq!(found, [("a".to_owned(), 4), ("b".to_owned(), 1)]);
    }

    #[test]
    fn a_lifetime_is_not_a_character() {
        assert_eq!(
            functions("fn a<'x>(y: &'x str) -> &'x str { y }\n")[0].lines,
            1
        );
        assert!(masked("let q = '\\''; let z = 1;").contains("let z = 1;"));
    }

    #[test]
    fn declarations_have_no_body() {
        let text = "trait T { fn a(&self); fn b(&self) -> [u8; 4]; fn c(&self) { fn d() {} } }";
        assert_eq!(traits(text), [("T".to_owned(), 3)]);
        assert_eq!(functions(text).len(), 2);
    }

    #[test]
    fn the_body_ends_where_the_tests_begin() {
        assert_eq!(body_lines("a\nb\n#[cfg(test)]\nmod tests {\n}\n"), 2);
        assert_eq!(body_lines("a\n#[cfg(test)]\nuse x;\nb\n"), 4);
    }
}
