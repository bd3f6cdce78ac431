//! The parts of statements and expressions.

use regorus::unstable::{AssignOp, Expr, Literal, LiteralStmt, Ref};

use super::reference::Scope;

/// The expressions of a statement.
pub(super) fn expressions(literal: &Literal) -> Vec<&Ref<Expr>> {
    match literal {
        Literal::SomeVars { .. } => Vec::new(),
        Literal::SomeIn { collection, .. } => vec![collection],
        Literal::Expr { expr, .. } | Literal::NotExpr { expr, .. } => vec![expr],
        Literal::Every { domain, .. } => vec![domain],
    }
}

/// The parts of an expression that have values of their own; those of a comprehension only with `within`.
pub(super) fn parts(expression: &Expr, within: bool) -> Vec<&Ref<Expr>> {
    match expression {
        Expr::Array { items, .. } | Expr::Set { items, .. } => items.iter().collect(),
        Expr::Object { fields, .. } => fields
            .iter()
            .flat_map(|(_, key, value)| [key, value])
            .collect(),
        Expr::ArrayCompr { term, query, .. } | Expr::SetCompr { term, query, .. } if within => {
            let statements = query.stmts.iter();
            let inner = statements.flat_map(|statement| expressions(&statement.literal));
            std::iter::once(term).chain(inner).collect()
        }
        Expr::ObjectCompr {
            key, value, query, ..
        } if within => {
            let statements = query.stmts.iter();
            let inner = statements.flat_map(|statement| expressions(&statement.literal));
            [key, value].into_iter().chain(inner).collect()
        }
        Expr::Call { params, .. } => params.iter().collect(),
        Expr::UnaryExpr { expr, .. } => vec![expr],
        Expr::RefDot { refr, .. } => vec![refr],
        Expr::RefBrack { refr, index, .. } => vec![refr, index],
        Expr::BinExpr { lhs, rhs, .. }
        | Expr::BoolExpr { lhs, rhs, .. }
        | Expr::ArithExpr { lhs, rhs, .. }
        | Expr::AssignExpr { lhs, rhs, .. } => vec![lhs, rhs],
        Expr::Membership {
            key,
            value,
            collection,
            ..
        } => key.iter().chain([value, collection]).collect(),
        _ => Vec::new(),
    }
}

/// The names and members that an expression looks at, and what its members are named by.
pub(super) fn references_of<'a>(
    expression: &'a Ref<Expr>,
    within: bool,
    found: &mut Vec<&'a Ref<Expr>>,
) {
    let is_reference = match expression.as_ref() {
        Expr::Var { .. } => true,
        // A member of what must be computed is none.
        Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } => is_named(refr),
        _ => false,
    };
    if is_reference {
        found.push(expression);
        keys_of(expression, found);
        return;
    }
    for part in parts(expression, within) {
        references_of(part, within, found);
    }
}

fn is_named(expression: &Ref<Expr>) -> bool {
    match expression.as_ref() {
        Expr::Var { .. } => true,
        Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } => is_named(refr),
        _ => false,
    }
}

fn keys_of<'a>(expression: &'a Ref<Expr>, found: &mut Vec<&'a Ref<Expr>>) {
    match expression.as_ref() {
        Expr::RefDot { refr, .. } => keys_of(refr, found),
        Expr::RefBrack { refr, index, .. } => {
            keys_of(refr, found);
            if is_named(index) {
                found.push(index);
            }
        }
        _ => {}
    }
}

/// The name at which a reference begins.
pub(super) fn root(expression: &Ref<Expr>) -> &str {
    match expression.as_ref() {
        Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } => root(refr),
        other => other.span().text(),
    }
}

pub(super) fn prints(statement: &LiteralStmt) -> bool {
    match &statement.literal {
        Literal::Expr { expr, .. } => match expr.as_ref() {
            Expr::Call { fcn, .. } => fcn.span().text() == "print",
            _ => false,
        },
        _ => false,
    }
}

/// The names that a statement gives a value, or may. `=` gives none to one that has a value already.
pub(super) fn named<'a>(literal: &'a Literal, scope: &Scope) -> Vec<&'a str> {
    let mut names = Vec::new();
    match literal {
        Literal::SomeVars { vars, .. } => names.extend(vars.iter().map(|name| name.text())),
        Literal::SomeIn { key, value, .. } => {
            for pattern in key.iter().chain([value]) {
                names_in(pattern, &mut names);
            }
        }
        Literal::Expr { expr, .. } => {
            if let Expr::AssignExpr { op, lhs, .. } = expr.as_ref() {
                names_in(lhs, &mut names);
                names.retain(|name| *op == AssignOp::ColEq || !scope.contains_key(*name));
            }
        }
        Literal::NotExpr { .. } | Literal::Every { .. } => {}
    }
    names.retain(|name| *name != "_");
    names
}

fn names_in<'a>(pattern: &'a Ref<Expr>, names: &mut Vec<&'a str>) {
    match pattern.as_ref() {
        Expr::Var { span, .. } => names.push(span.text()),
        Expr::Array { items, .. } => {
            for item in items {
                names_in(item, names);
            }
        }
        _ => {}
    }
}

pub(super) fn mentions(text: &str, name: &str) -> bool {
    text.split(|character: char| !character.is_alphanumeric() && character != '_')
        .any(|word| word == name)
}
