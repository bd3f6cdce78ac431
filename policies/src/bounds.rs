//! What a release or appraisal policy must not do, found before it decides: one administrator's policy
//! must not stop the broker for all others.
//!
//! The parser tries the first member of a bracket in two ways, so nested brackets cost it twice as much
//! for each level. The interpreter follows calls and rules on the thread's stack: it finds rules that
//! depend on themselves, but not functions that call themselves. Both are judged here by the words of
//! the policy. Neither the network nor the broker's environment is within a policy's reach: those
//! functions are not compiled in, and a policy that calls one is refused when it is loaded.

use std::collections::{BTreeMap, BTreeSet};

use regorus::{Engine, Rc};

use crate::{
    engine::PolicyError,
    shape,
    words::{Token, tokens},
};

/// Work of the parser: for each token 2 to the power of the brackets in whose first member it stands.
const PARSE_WORK_PER_TOKEN: u64 = 8;
const PARSE_WORK: u64 = 100_000;
/// Rules that one rule leads to, one below the other, each with the brackets within it.
const CHAIN: usize = 256;
/// Multiplications of numbers that are not in the text, one after the other, each of which may double the
/// digits: the interpreter has no bound for them.
const PRODUCTS: usize = 12;
/// Operators within one another that take as much of the stack as one bracket.
const OPERATORS_PER_BRACKET: usize = 8;
/// Functions of Rego that look out of the policy.
const OUTSIDE: [&str; 5] = [
    "http.send",
    "net.lookup_ip_addr",
    "opa.runtime",
    "rego.metadata.chain",
    "rego.parse_module",
];

/// Refuses what would hold up the parser, and calls of what is not there.
pub(crate) fn before_parsing(rego: &str) -> Result<(), PolicyError> {
    let tokens = tokens(rego);
    shape::within(&tokens)?;
    // Of each open bracket: whether the parser is still in its first member.
    let mut open: Vec<bool> = Vec::new();
    let mut doubled = 0_u32;
    let mut work = 0_u64;
    for token in &tokens {
        match token {
            Token::Open(bracket) => {
                let tried_twice = *bracket != '(';
                doubled += u32::from(tried_twice);
                open.push(tried_twice);
            }
            Token::Close => {
                if open.pop() == Some(true) {
                    doubled -= 1;
                }
            }
            Token::Comma => {
                if let Some(first) = open.last_mut() {
                    doubled -= u32::from(*first);
                    *first = false;
                }
            }
            Token::Name(_)
            | Token::Text(_)
            | Token::Operator
            | Token::Times
            | Token::Semicolon
            | Token::Dot => {}
        }
        work = work.saturating_add(1_u64.checked_shl(doubled).unwrap_or(u64::MAX));
    }
    let allowance = PARSE_WORK + PARSE_WORK_PER_TOKEN * tokens.len() as u64;
    if work > allowance {
        return Err(PolicyError::Nested);
    }
    for pair in tokens.windows(2) {
        if let [Token::Name(name), Token::Open('(')] = pair
            && OUTSIDE.contains(name)
        {
            return Err(PolicyError::Outside {
                function: (*name).to_owned(),
            });
        }
    }
    Ok(())
}

/// Whether a policy names `data` other than by the words after it: `data.a` is no such name, `data[a]`
/// is one, and so is a line that ends after it or its dot. What has a name that is no word is out of
/// reach without.
pub(crate) fn names_data(rego: &str) -> bool {
    let whole = |token: &Token<'_>| match token {
        Token::Name(name) => *name == "data" || *name == "data.",
        _ => false,
    };
    tokens(rego).iter().any(whole)
}

/// Refuses functions that call themselves, and chains of rules that are too long for a stack.
pub(crate) fn after_parsing(
    engine: &Engine,
    rego: &str,
    package: &str,
    rule: &str,
) -> Result<(), PolicyError> {
    let rule: Rc<str> = rule.into();
    let compiled = engine
        .clone()
        .compile_with_entrypoint(&rule)
        .map_err(|error| PolicyError::Parse {
            detail: error.to_string(),
        })?;
    let prefix = format!("data.{package}.");
    let rules = compiled.get_rules();
    let mut texts: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for (path, definitions) in rules {
        if let Some(name) = path.strip_prefix(&prefix) {
            let definitions = definitions.iter().map(|rule| rule.span().text());
            texts.entry(name).or_default().extend(definitions);
        }
    }
    let names = Names {
        prefix: &prefix,
        aliases: aliases(rego),
        rules: texts.keys().copied().collect(),
    };
    let mut graph = Graph::default();
    for (name, definitions) in &texts {
        let node = graph.nodes.entry(name).or_default();
        for definition in definitions {
            node.read(definition, &names);
        }
    }
    graph.check()
}

/// What words of a policy mean.
struct Names<'a> {
    prefix: &'a str,
    aliases: BTreeMap<&'a str, &'a str>,
    rules: BTreeSet<&'a str>,
}

impl<'a> Names<'a> {
    /// The rules that a word may mean: `a.b` the rule `a.b`, or `a` with something in it.
    fn meant(&self, word: &str) -> Vec<&'a str> {
        let first = word.split('.').next().unwrap_or(word);
        let whole = match self.aliases.get(first) {
            Some(imported) => format!("{imported}{}", &word[first.len()..]),
            None => word.to_owned(),
        };
        let path = whole.strip_prefix(self.prefix).unwrap_or(&whole);
        path.match_indices('.')
            .map(|(at, _)| at)
            .chain([path.len()])
            .filter_map(|end| self.rules.get(&path[..end]).copied())
            .collect()
    }
}

/// `import a.b as c` calls `a.b` c, and `import a.b` calls it b.
fn aliases(rego: &str) -> BTreeMap<&str, &str> {
    let tokens = tokens(rego);
    let mut aliases = BTreeMap::new();
    for window in tokens.windows(4) {
        match window {
            [
                Token::Name("import"),
                Token::Name(path),
                Token::Name("as"),
                Token::Name(alias),
            ] => {
                aliases.insert(*alias, *path);
            }
            [Token::Name("import"), Token::Name(path), ..] => {
                aliases.insert(path.rsplit('.').next().unwrap_or(path), *path);
            }
            _ => {}
        }
    }
    aliases
}

#[derive(Default)]
struct Graph<'a> {
    nodes: BTreeMap<&'a str, Node<'a>>,
}

#[derive(Default)]
struct Node<'a> {
    /// Each rule, and how often it is named.
    names: BTreeMap<&'a str, usize>,
    calls: BTreeSet<&'a str>,
    brackets: usize,
    operators: usize,
    products: usize,
}

impl<'a> Node<'a> {
    /// Takes in what one definition names and calls. A local variable with the name of a rule counts
    /// as that rule: a chain may be thought longer than it is, never shorter.
    fn read(&mut self, text: &'a str, names: &Names<'a>) {
        let tokens = tokens(text);
        let mut depth = 0_usize;
        self.operators = self.operators.max(shape::deepest(&tokens));
        self.products += shape::products(&tokens);
        // The head of a definition is no call of it.
        for (index, token) in tokens.iter().enumerate().skip(1) {
            let word = match token {
                Token::Name(word) | Token::Text(word) => word,
                Token::Open(_) => {
                    depth += 1;
                    self.brackets = self.brackets.max(depth);
                    continue;
                }
                Token::Close => {
                    depth = depth.saturating_sub(1);
                    continue;
                }
                Token::Comma | Token::Semicolon | Token::Operator | Token::Times | Token::Dot => {
                    continue;
                }
            };
            // `f(`, `data.policy["f"](`, and `with g as f`.
            let called = matches!(
                tokens.get(index + 1..),
                Some([Token::Open('('), ..] | [Token::Close, Token::Open('('), ..])
            ) || tokens[index - 1] == Token::Name("as");
            for rule in names.meant(word) {
                *self.names.entry(rule).or_default() += 1;
                if called {
                    self.calls.insert(rule);
                }
            }
        }
    }
}

impl<'a> Graph<'a> {
    fn check(&self) -> Result<(), PolicyError> {
        let mut done = BTreeMap::new();
        for name in self.nodes.keys() {
            self.recursion(name, &mut Vec::new(), &mut done)?;
        }
        let mut done = BTreeMap::new();
        for name in self.nodes.keys() {
            self.chain(name, &mut Vec::new(), &mut done)?;
        }
        let mut done = BTreeMap::new();
        for name in self.nodes.keys() {
            if self.products(name, &mut done) > PRODUCTS {
                return Err(PolicyError::Products {
                    rule: (*name).to_owned(),
                    limit: PRODUCTS,
                });
            }
        }
        Ok(())
    }

    /// Multiplications in a rule and in what it leads to, as often as it does. It comes after [`Self::chain`],
    /// which says that there are not many rules below one another.
    fn products(&self, name: &'a str, done: &mut BTreeMap<&'a str, usize>) -> usize {
        if let Some(products) = done.get(name) {
            return *products;
        }
        // A rule that leads back to itself is the interpreter's to refuse.
        done.insert(name, 0);
        let Some(node) = self.nodes.get(name) else {
            return 0;
        };
        let mut all = node.products;
        for (named, times) in &node.names {
            let below = self.products(named, done);
            all = all.saturating_add(below.saturating_mul(*times));
        }
        done.insert(name, all);
        all
    }

    fn recursion(
        &self,
        name: &'a str,
        above: &mut Vec<&'a str>,
        done: &mut BTreeMap<&'a str, ()>,
    ) -> Result<(), PolicyError> {
        if above.contains(&name) {
            return Err(PolicyError::Recursive {
                function: name.to_owned(),
            });
        }
        if above.len() > CHAIN {
            return Err(long(name));
        }
        if done.contains_key(name) {
            return Ok(());
        }
        above.push(name);
        for called in self.nodes.get(name).iter().flat_map(|node| &node.calls) {
            self.recursion(called, above, done)?;
        }
        above.pop();
        done.insert(name, ());
        Ok(())
    }

    /// The length of the longest chain from a rule. One that leads back to itself is the
    /// interpreter's to refuse.
    fn chain(
        &self,
        name: &'a str,
        above: &mut Vec<&'a str>,
        done: &mut BTreeMap<&'a str, usize>,
    ) -> Result<usize, PolicyError> {
        if above.contains(&name) {
            return Ok(0);
        }
        if let Some(length) = done.get(name) {
            return Ok(*length);
        }
        if above.len() > CHAIN {
            return Err(long(name));
        }
        let Some(node) = self.nodes.get(name) else {
            return Ok(0);
        };
        above.push(name);
        let mut below = 0;
        for named in node.names.keys() {
            below = below.max(self.chain(named, above, done)?);
        }
        above.pop();
        let length = below + 1 + node.brackets + node.operators / OPERATORS_PER_BRACKET;
        if length > CHAIN {
            return Err(long(name));
        }
        done.insert(name, length);
        Ok(length)
    }
}

fn long(name: &str) -> PolicyError {
    PolicyError::Chain {
        rule: name.to_owned(),
    }
}
