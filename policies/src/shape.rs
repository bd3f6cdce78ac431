//! How deep and how long a policy is, by its words alone.
//!
//! The parser and the interpreter follow an expression on the thread's stack, an overflow of which ends
//! the process and cannot be caught, and they take time by the square of what stands in one block or
//! among the imports. Real policies are far from these limits; a generated one is long by its data and
//! its rules, which cost by their length only.

use crate::{
    engine::PolicyError,
    words::{Token, tokens},
};

/// Operators, calls and brackets within one another.
const DEPTH: usize = 256;
/// Statements of one block; one with as many locals takes a tenth of a second.
const STATEMENTS: usize = 1000;
/// Imports of a policy.
const IMPORTS: usize = 256;
/// Definitions of rules of a policy.
const RULES: usize = 50_000;
/// Words of a policy of the broker, which has many of them in memory: one of so many takes about 25 MiB.
const BROKER_WORDS: usize = 50_000;
/// Characters of a number.
const DIGITS: usize = 64;
/// Digits of a number's exponent.
const EXPONENT: usize = 3;
/// Multiplications that a call of `product` stands for.
const PRODUCT: usize = 8;
/// Words that stand between two parts of one statement, or before its first.
const KEYWORDS: [&str; 11] = [
    "as", "contains", "default", "else", "every", "if", "import", "package", "some", "with", "not",
];

/// Refuses what is deeper or longer than any policy needs.
pub(crate) fn within(tokens: &[Token<'_>]) -> Result<(), PolicyError> {
    let mut walk = Walk::default();
    for (index, token) in tokens.iter().enumerate() {
        walk.step(tokens, index);
        if walk.depth() > DEPTH {
            return Err(PolicyError::Deep { limit: DEPTH });
        }
        if walk.imports > IMPORTS {
            return Err(PolicyError::Many {
                what: "imports",
                limit: IMPORTS,
                fix: "name what is imported where it is used",
            });
        }
        match walk.open.len() {
            0 if walk.statements > RULES => {
                return Err(PolicyError::Many {
                    what: "definitions of rules",
                    limit: RULES,
                    fix: "write what differs from rule to rule as one object, and ask it",
                });
            }
            0 => {}
            _ if walk.statements > STATEMENTS => {
                return Err(PolicyError::Many {
                    what: "statements in one block",
                    limit: STATEMENTS,
                    fix: "name parts of it in rules of their own",
                });
            }
            _ => {}
        }
        if let Token::Name(name) = token {
            number(name, &tokens[index + 1..])?;
        }
    }
    Ok(())
}

/// Refuses what would take much of the broker's memory when it is compiled.
pub(crate) fn fits_the_broker(rego: &str) -> Result<(), PolicyError> {
    if tokens(rego).len() > BROKER_WORDS {
        return Err(PolicyError::Many {
            what: "words and signs",
            limit: BROKER_WORDS,
            fix: "attach policies to more scopes, or register long lists as reference values",
        });
    }
    Ok(())
}

/// The most operators, calls and brackets that are within one another.
pub(crate) fn deepest(tokens: &[Token<'_>]) -> usize {
    let mut walk = Walk::default();
    let depths = (0..tokens.len()).map(|index| {
        walk.step(tokens, index);
        walk.depth()
    });
    depths.max().unwrap_or(0)
}

/// How often numbers that are not in the text are multiplied with one another: what may double the digits.
pub(crate) fn products(tokens: &[Token<'_>]) -> usize {
    let is_number = |index: Option<usize>| match index.and_then(|index| tokens.get(index)) {
        Some(Token::Name(word)) => word.starts_with(|first: char| first.is_ascii_digit()),
        _ => false,
    };
    let product = |(index, token): (usize, &Token<'_>)| match token {
        Token::Times if is_number(index.checked_sub(1)) || is_number(Some(index + 1)) => 0,
        Token::Times => 1,
        Token::Name("product") => PRODUCT,
        _ => 0,
    };
    tokens.iter().enumerate().map(product).sum()
}

/// Whether no number in this text has more digits than a policy's own; texts in quotes are left out.
pub(crate) fn numbers_are_short(text: &str) -> bool {
    let tokens = tokens(text);
    tokens.iter().enumerate().all(|(index, token)| match token {
        // A dot and a sign may stand before it.
        Token::Name(word) => {
            let word = word.trim_start_matches(['.', '_']);
            number(word, &tokens[index + 1..]).is_ok()
        }
        _ => true,
    })
}

/// `1e9` is three characters, and a number of a hundred million digits not many more.
fn number(word: &str, after: &[Token<'_>]) -> Result<(), PolicyError> {
    if !word.starts_with(|first: char| first.is_ascii_digit()) {
        return Ok(());
    }
    let exponent = match (word.split_once(['e', 'E']), after) {
        // `1e+9` is three words.
        (Some((_, "")), [Token::Operator, Token::Name(exponent), ..]) => *exponent,
        (Some((_, exponent)), _) => exponent,
        (None, _) => "",
    };
    if word.len() > DIGITS || exponent.len() > EXPONENT {
        return Err(PolicyError::Number {
            number: word.chars().take(DIGITS).collect(),
            digits: DIGITS,
        });
    }
    Ok(())
}

/// Where a reader of the words is.
#[derive(Default)]
struct Walk {
    /// Of each open bracket, what stands before it: operators of its expression, statements of its
    /// block.
    open: Vec<(usize, usize)>,
    /// The operators of all of them.
    outside: usize,
    /// What is within one another in this expression so far.
    inside: usize,
    /// Statements of this block so far.
    statements: usize,
    imports: usize,
}

impl Walk {
    fn depth(&self) -> usize {
        self.open.len() + self.outside + self.inside
    }

    fn step(&mut self, tokens: &[Token<'_>], index: usize) {
        let before = index.checked_sub(1).map(|index| &tokens[index]);
        let after_value = before.is_some_and(is_value);
        match &tokens[index] {
            Token::Operator | Token::Times | Token::Dot | Token::Name("in") => self.inside += 1,
            Token::Comma => self.inside = 0,
            Token::Semicolon => self.next(),
            Token::Open(_) => {
                // A call, or a member of what stands before.
                self.inside += usize::from(after_value);
                self.open.push((self.inside, self.statements));
                self.outside += self.inside;
                (self.inside, self.statements) = (0, 0);
            }
            Token::Close => {
                if let Some((inside, statements)) = self.open.pop() {
                    self.outside -= inside;
                    (self.inside, self.statements) = (inside, statements);
                }
            }
            Token::Name(word) if KEYWORDS.contains(word) => {
                self.imports += usize::from(*word == "import");
                if after_value {
                    self.inside = 0;
                }
                if *word == "not" {
                    self.inside += 1;
                }
            }
            Token::Name(_) | Token::Text(_) if after_value => self.next(),
            Token::Name(word) => self.inside += word.matches('.').count(),
            Token::Text(_) => {}
        }
    }

    /// Two values with nothing between them are of two statements.
    fn next(&mut self) {
        self.inside = 0;
        self.statements += 1;
    }
}

fn is_value(token: &Token<'_>) -> bool {
    match token {
        Token::Name("in") => false,
        Token::Name(word) => !KEYWORDS.contains(word),
        Token::Text(_) | Token::Close => true,
        Token::Open(_)
        | Token::Comma
        | Token::Semicolon
        | Token::Dot
        | Token::Times
        | Token::Operator => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_deep_is_refused_and_what_is_long_is_not() {
        for deep in [
            "-".repeat(600) + "1",
            "1".to_owned() + &"+1".repeat(300),
            "1".to_owned() + &"\n+1".repeat(300),
            "{1}".to_owned() + &"|{1}".repeat(300),
            "abs(".repeat(300) + "1" + &")".repeat(300),
            "(1+".repeat(200) + "1" + &")".repeat(200),
            "input".to_owned() + &".a".repeat(300),
            "input".to_owned() + &"[0]".repeat(300),
            "not ".repeat(300) + "true",
            "a".to_owned() + &" in a".repeat(300),
        ] {
            let refused = within(&tokens(&format!("package x\nx := {deep}\n")));
            assert!(matches!(refused, Err(PolicyError::Deep { .. })), "{deep}");
        }
        for long in [
            "x := [\n".to_owned() + &"{\"a\": -1, \"b\": [1 + 1]},\n".repeat(10_000) + "]",
            "x := [\n".to_owned() + &"\"a\",\n".repeat(10_000) + "]",
            "x if { a.b.c == -1 }\n".repeat(10_000),
            "default x := -1\n\"a\" in x if not y\n".repeat(10_000),
            "x if {\n".to_owned() + &"some a in b.c\nnot a == 1 + 1\n".repeat(400) + "}",
        ] {
            within(&tokens(&long)).unwrap();
        }
    }

    #[test]
    fn what_is_too_many_is_named() {
        let block = "x if {\n".to_owned() + &"a := 1\n".repeat(1100) + "}";
        for (rego, named) in [
            (block.as_str(), "statements in one block"),
            (&block.replace('\n', ";"), "statements in one block"),
            (&"import input.a\n".repeat(300), "imports"),
            (&"x := 1\n".repeat(60_000), "definitions of rules"),
        ] {
            let error = within(&tokens(rego)).unwrap_err();
            assert!(error.to_string().contains(named), "{error}");
        }
    }

    #[test]
    fn a_number_is_as_long_as_it_looks() {
        let long = "9".repeat(100);
        for number in [
            "1e99999999",
            "1E99999999",
            "1e+99999999",
            "1.5e-12345",
            &long,
        ] {
            let error = within(&tokens(&format!("x := {number}"))).unwrap_err();
            assert!(matches!(error, PolicyError::Number { .. }), "{error}");
        }
        for number in ["1e9", "1.5e-12", "18446744073709551615", "e99999999"] {
            within(&tokens(&format!("x := {number}"))).unwrap();
        }
    }
}
