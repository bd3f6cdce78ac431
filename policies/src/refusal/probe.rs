//! How far the statements of a body hold, asked of the interpreter by a module beside the policy.
//!
//! For each number of statements it has a set of all ways to satisfy them, with what the locals are then,
//! and with what the rules and functions give that the next statement asks.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Instant;

use regorus::{
    Value,
    unstable::{Expr, Literal, LiteralStmt, Ref, Rule},
};

use super::{
    Search,
    definition::Title,
    reference::Scope,
    walk::{self, mentions, named, prints},
    written,
};
use crate::engine::value_of;

/// Statements of a body that is looked into.
const STATEMENTS: usize = 64;
/// What is asked, in `data`, and the start of the names of the rules that ask.
const ASKED: &str = "cloister_asked";

/// A body with what its names stand for.
pub(super) struct Frame<'a> {
    pub(super) title: Title,
    pub(super) scope: Scope,
    /// Without what only prints.
    pub(super) statements: Vec<&'a LiteralStmt>,
    /// The names that are no rules of the package.
    locals: BTreeSet<&'a str>,
}

/// How far a body holds.
pub(super) struct Solution {
    /// Statements that hold together.
    pub(super) held: usize,
    pub(super) ways: Vec<Way>,
}

/// One way to satisfy the statements that hold.
pub(super) struct Way {
    pub(super) locals: BTreeMap<String, Value>,
    /// Of each [`Use`] in the next statement.
    pub(super) uses: Vec<Asked>,
    /// Keys and elements for which the next statement, an `every`, does not hold.
    pub(super) refused: Vec<(Value, Value)>,
}

/// What became of a [`Use`]; `None` is undefined.
pub(super) struct Asked {
    pub(super) arguments: Vec<Option<Value>>,
    pub(super) result: Option<Value>,
}

/// A rule or function of the package that a statement asks.
pub(super) struct Use<'a> {
    pub(super) name: &'a str,
    pub(super) arguments: Vec<&'a Ref<Expr>>,
    /// It is the whole statement, so that it must not be false.
    pub(super) is_whole: bool,
    expression: &'a Ref<Expr>,
}

impl<'a> Frame<'a> {
    pub(super) fn new(title: Title, scope: Scope, statements: &'a [LiteralStmt]) -> Self {
        let statements: Vec<_> = statements.iter().filter(|one| !prints(one)).collect();
        let locals = statements
            .iter()
            .flat_map(|one| named(&one.literal, &scope))
            .collect();
        Self {
            title,
            scope,
            statements,
            locals,
        }
    }

    /// The rules and functions that a statement asks, the inner ones first.
    pub(super) fn uses<'b>(
        &self,
        literal: &'b Literal,
        rules: &BTreeMap<String, Vec<Ref<Rule>>>,
    ) -> Vec<Use<'b>> {
        let mut uses = Vec::new();
        if matches!(literal, Literal::NotExpr { .. }) {
            return uses;
        }
        let is_rule = |name: &str| {
            rules.contains_key(name)
                && !self.scope.contains_key(name)
                && !self.locals.contains(name)
        };
        for expression in walk::expressions(literal) {
            let is_whole = matches!(literal, Literal::Expr { .. });
            gather(expression, is_whole, &is_rule, &mut uses);
        }
        uses
    }

    /// The rule that tells the ways to satisfy the first `held` statements.
    fn question(&self, index: usize, held: usize, search: &Search, to: &mut String) {
        let (before, after) = self.statements.split_at(held);
        let mut lines = Vec::new();
        for name in self
            .scope
            .keys()
            .filter(|name| !self.locals.contains(name.as_str()))
        {
            lines.push(format!("{name} := data.{ASKED}[{index}][\"{name}\"]"));
        }
        lines.extend(before.iter().map(|one| written::statement(one)));
        let locals = self.locals_of(before, search);
        let locals = locals.iter().map(|name| format!("\"{name}\": {name}"));
        let locals = locals.collect::<Vec<_>>().join(", ");
        let next = after.first().map(|next| &next.literal);
        let uses = next
            .map(|next| self.uses(next, &search.rules))
            .unwrap_or_default();
        let uses = uses
            .iter()
            .map(Use::question)
            .collect::<Vec<_>>()
            .join(", ");
        let refused = next.and_then(refused).unwrap_or_else(|| "[]".to_owned());
        lines.push(format!(
            "{ASKED}_way := [{{{locals}}}, [{uses}], {refused}]"
        ));
        let _ = writeln!(
            to,
            "{ASKED}_{index}_{held} contains {ASKED}_way if {{\n{}\n}}",
            lines.join(";\n")
        );
    }

    /// The names that statements have given a value.
    fn locals_of(&self, statements: &[&'a LiteralStmt], search: &Search) -> BTreeSet<&'a str> {
        let mut names = BTreeSet::new();
        for (index, statement) in statements.iter().enumerate() {
            for name in named(&statement.literal, &self.scope) {
                let is_used = match &statement.literal {
                    // `some x` gives none yet.
                    Literal::SomeVars { .. } => {
                        let later = statements[index + 1..].iter();
                        later
                            .clone()
                            .any(|later| mentions(&written::statement(later), name))
                    }
                    _ => true,
                };
                if is_used && !search.rules.contains_key(name) {
                    names.insert(name);
                }
            }
        }
        names
    }
}

impl Use<'_> {
    fn question(&self) -> String {
        let arguments = self.arguments.iter();
        let arguments = arguments.map(|argument| perhaps(&written::expression(argument)));
        let arguments = arguments.collect::<Vec<_>>().join(", ");
        format!(
            "[[{arguments}], {}]",
            perhaps(&written::expression(self.expression))
        )
    }
}

impl Search {
    /// How far each body holds, `None` where that cannot be told.
    pub(super) fn solve(&self, frames: &[Frame<'_>]) -> Vec<Option<Solution>> {
        if let Some(solutions) = self.ask(frames) {
            return solutions;
        }
        match frames {
            [] | [_] => frames.iter().map(|_| None).collect(),
            // One that cannot be asked does not hide the others.
            _ => {
                let each = frames.chunks(1);
                each.flat_map(|one| self.ask(one).unwrap_or_else(|| vec![None]))
                    .collect()
            }
        }
    }

    fn ask(&self, frames: &[Frame<'_>]) -> Option<Vec<Option<Solution>>> {
        if Instant::now() > self.until {
            return None;
        }
        let mut module = format!("package {}\n{}", self.package, self.imports);
        for (index, frame) in frames.iter().enumerate() {
            if frame.statements.len() <= STATEMENTS {
                for held in 0..=frame.statements.len() {
                    frame.question(index, held, self, &mut module);
                }
            }
        }
        let scopes = frames.iter().map(|frame| {
            let names = frame.scope.iter();
            let names = names.map(|(name, bound)| (name.as_str().into(), bound.value.clone()));
            Value::from(names.collect::<BTreeMap<Value, Value>>())
        });
        let scopes = Value::from(scopes.collect::<Vec<_>>());
        let data = Value::from(BTreeMap::from([(ASKED.into(), scopes)]));
        let mut engine = self.engine.clone();
        engine.add_data(data).ok()?;
        engine.add_policy(format!("{ASKED}.rego"), module).ok()?;
        value_of(&mut engine, "true").ok()?;
        let mut solutions = Vec::new();
        for (index, frame) in frames.iter().enumerate() {
            solutions.push(self.held(&mut engine, index, frame.statements.len()));
        }
        Some(solutions)
    }

    /// The most statements that hold together: with more of them there are never more ways.
    fn held(&self, engine: &mut regorus::Engine, index: usize, all: usize) -> Option<Solution> {
        if all > STATEMENTS {
            return None;
        }
        let mut ask = |held: usize| {
            let path = format!("data.{}.{ASKED}_{index}_{held}", self.package);
            if Instant::now() > self.until {
                return None;
            }
            match value_of(engine, &path).ok()? {
                Some(Value::Set(ways)) => Some(ways.iter().cloned().collect::<Vec<_>>()),
                _ => Some(Vec::new()),
            }
        };
        let (mut held, mut ways) = (0, ask(0)?);
        let mut fails = all + 1;
        while fails - held > 1 {
            let middle = usize::midpoint(held, fails);
            let found = ask(middle)?;
            if found.is_empty() {
                fails = middle;
            } else {
                (held, ways) = (middle, found);
            }
        }
        let ways = ways.iter().map(way).collect::<Option<Vec<_>>>()?;
        Some(Solution { held, ways })
    }
}

fn way(answer: &Value) -> Option<Way> {
    let [locals, uses, refused] = answer.as_array().ok()?.as_slice() else {
        return None;
    };
    let local =
        |(name, value): (&Value, &Value)| Some((name.as_string().ok()?.to_string(), value.clone()));
    let locals = locals
        .as_object()
        .ok()?
        .iter()
        .map(local)
        .collect::<Option<_>>()?;
    let asked = |one: &Value| {
        let [arguments, result] = one.as_array().ok()?.as_slice() else {
            return None;
        };
        let first = |one: &Value| Some(one.as_array().ok()?.first().cloned());
        let arguments = arguments
            .as_array()
            .ok()?
            .iter()
            .map(first)
            .collect::<Option<_>>()?;
        let result = first(result)?;
        Some(Asked { arguments, result })
    };
    let uses = uses
        .as_array()
        .ok()?
        .iter()
        .map(asked)
        .collect::<Option<_>>()?;
    let pair = |one: &Value| match one.as_array().ok()?.as_slice() {
        [key, value] => Some((key.clone(), value.clone())),
        _ => None,
    };
    let refused = refused
        .as_array()
        .ok()?
        .iter()
        .map(pair)
        .collect::<Option<_>>()?;
    Some(Way {
        locals,
        uses,
        refused,
    })
}

/// A list of the value of an expression, empty where it is undefined.
fn perhaps(expression: &str) -> String {
    format!("[{ASKED}_value | {ASKED}_value := {expression}]")
}

/// The elements for which `every` does not hold, with their keys.
fn refused(literal: &Literal) -> Option<String> {
    let Literal::Every {
        key,
        value,
        domain,
        query,
        ..
    } = literal
    else {
        return None;
    };
    let unnamed = format!("{ASKED}_key");
    let key = key.as_ref().map_or(unnamed.as_str(), |key| key.text());
    let (value, domain) = (value.text(), written::expression(domain));
    let statements = query.stmts.iter().filter(|one| !prints(one));
    let statements: Vec<_> = statements.map(written::statement).collect();
    (!statements.is_empty()).then(|| {
        let holds = statements.join(";\n");
        format!("[[{key}, {value}] | some {key}, {value} in {domain};\ncount([1 | {holds}]) == 0]")
    })
}

fn gather<'a>(
    expression: &'a Ref<Expr>,
    is_whole: bool,
    is_rule: &impl Fn(&str) -> bool,
    uses: &mut Vec<Use<'a>>,
) {
    for part in walk::parts(expression, false) {
        gather(part, false, is_rule, uses);
    }
    let (name, arguments) = match expression.as_ref() {
        Expr::Call { fcn, params, .. } => (fcn.span().text(), params.iter().collect()),
        Expr::Var { span, .. } => (span.text(), Vec::new()),
        _ => return,
    };
    if is_rule(name) {
        uses.push(Use {
            name,
            arguments,
            is_whole,
            expression,
        });
    }
}
