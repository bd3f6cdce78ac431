//! A policy's text as words, which is all that is needed to see how long and how deep it is.

/// Characters of which comparisons and assignments are made.
const COMPARING: [char; 5] = ['=', '!', '<', '>', ':'];

/// A word of a policy.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Token<'a> {
    /// Words and the dots between them.
    Name(&'a str),
    /// What stands between quotes.
    Text(&'a str),
    Open(char),
    Close,
    Comma,
    Semicolon,
    /// A dot that is not between two words.
    Dot,
    Times,
    /// Another one of arithmetic, or a comparison or assignment as a whole.
    Operator,
}

/// The words of a text; comments are left out.
pub(crate) fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let length = match first {
            '#' => rest.find('\n').unwrap_or(rest.len()),
            '"' => {
                let end = quoted(&rest[1..]);
                tokens.push(Token::Text(&rest[1..=end]));
                (end + 2).min(rest.len())
            }
            '`' => {
                let end = rest[1..].find('`').map_or(rest.len() - 1, |at| at);
                tokens.push(Token::Text(&rest[1..=end]));
                (end + 2).min(rest.len())
            }
            _ if word(first) => {
                let end = rest
                    .find(|next| !word(next) && next != '.')
                    .unwrap_or(rest.len());
                tokens.push(Token::Name(&rest[..end]));
                end
            }
            '(' | '[' | '{' => {
                tokens.push(Token::Open(first));
                1
            }
            ')' | ']' | '}' => {
                tokens.push(Token::Close);
                1
            }
            ',' => {
                tokens.push(Token::Comma);
                1
            }
            ';' | '.' => {
                tokens.push(if first == '.' {
                    Token::Dot
                } else {
                    Token::Semicolon
                });
                1
            }
            '*' => {
                tokens.push(Token::Times);
                1
            }
            _ if COMPARING.contains(&first) => {
                tokens.push(Token::Operator);
                rest.find(|next| !COMPARING.contains(&next))
                    .unwrap_or(rest.len())
            }
            _ => {
                if !first.is_whitespace() {
                    tokens.push(Token::Operator);
                }
                first.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    tokens
}

fn word(character: char) -> bool {
    character.is_alphanumeric() || character == '_'
}

/// Bytes up to the closing quote, or all where there is none.
fn quoted(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            b'\\' if !escaped => escaped = true,
            b'"' if !escaped => return at,
            _ => escaped = false,
        }
    }
    text.len()
}
