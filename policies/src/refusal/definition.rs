//! The bodies of a rule, and what their arguments are.

use regorus::unstable::{Expr, LiteralStmt, Ref, Rule, RuleAssign, RuleBody, RuleHead};

use super::reference::{Bound, Scope};

/// One body of a rule or function.
pub(super) struct Definition<'a> {
    pub(super) line: u32,
    /// What it gives where it holds; nothing written is `true`.
    pub(super) gives: Option<&'a RuleAssign>,
    pub(super) statements: &'a [LiteralStmt],
    pub(super) is_else: bool,
    arguments: &'a [Ref<Expr>],
}

impl Definition<'_> {
    /// What the arguments' names stand for. `None` where the body is for other arguments, or where it takes
    /// them apart.
    pub(super) fn scope(&self, arguments: &[Bound]) -> Option<Scope> {
        if self.arguments.len() != arguments.len() {
            return None;
        }
        let mut scope = Scope::new();
        for (pattern, argument) in self.arguments.iter().zip(arguments) {
            match pattern.as_ref() {
                Expr::Var { span, .. } => {
                    scope.insert(span.text().to_owned(), argument.clone());
                }
                Expr::String { value, .. }
                | Expr::RawString { value, .. }
                | Expr::Number { value, .. }
                | Expr::Bool { value, .. }
                | Expr::Null { value, .. }
                    if *value == argument.value => {}
                _ => return None,
            }
        }
        scope.remove("_");
        Some(scope)
    }
}

/// Where something is in the policy.
#[derive(Clone)]
pub(super) struct Title {
    name: String,
    of: usize,
}

impl Title {
    pub(super) fn new(name: &str, of: usize) -> Self {
        let name = name.to_owned();
        Self { name, of }
    }

    pub(super) fn at(&self, line: u32) -> String {
        let Self { name, of } = self;
        match of {
            0 | 1 => format!("{name} (line {line})"),
            _ => format!("{name} (line {line}, one of {of} definitions)"),
        }
    }
}

pub(super) fn name(rule: &Rule) -> &str {
    match rule {
        Rule::Default { refr, .. } => refr.span().text(),
        Rule::Spec { head, .. } => match head {
            RuleHead::Compr { refr, .. }
            | RuleHead::Set { refr, .. }
            | RuleHead::Func { refr, .. } => refr.span().text(),
        },
    }
}

/// The bodies of a rule that has one value; a set's members come from anywhere.
pub(super) fn all(rule: &Rule) -> Vec<Definition<'_>> {
    let Rule::Spec { span, head, bodies } = rule else {
        return Vec::new();
    };
    let (arguments, assign) = match head {
        RuleHead::Compr { assign, .. } => ([].as_slice(), assign.as_ref()),
        RuleHead::Func { args, assign, .. } => (args.as_slice(), assign.as_ref()),
        RuleHead::Set { .. } => return Vec::new(),
    };
    if bodies.is_empty() {
        return vec![Definition {
            line: span.line,
            gives: assign,
            statements: &[],
            is_else: false,
            arguments,
        }];
    }
    let definition = |body| of_body(body, arguments, assign);
    bodies.iter().map(definition).collect()
}

fn of_body<'a>(
    body: &'a RuleBody,
    arguments: &'a [Ref<Expr>],
    assign: Option<&'a RuleAssign>,
) -> Definition<'a> {
    Definition {
        line: body.span.line,
        gives: body.assign.as_ref().or(assign.filter(|_| !body.is_else)),
        statements: &body.query.stmts,
        is_else: body.is_else,
        arguments,
    }
}
