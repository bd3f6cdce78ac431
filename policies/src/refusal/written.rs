//! Statements as Rego text. The parser keeps places for errors, which leave out quotes and brackets.

use regorus::unstable::{ArithOp, AssignOp, BinOp, BoolOp, Expr, Literal, LiteralStmt, Query, Ref};

/// A statement on one line.
pub(super) fn statement(statement: &LiteralStmt) -> String {
    let mut text = match &statement.literal {
        Literal::SomeVars { vars, .. } => {
            let names: Vec<_> = vars.iter().map(|name| name.text()).collect();
            format!("some {}", names.join(", "))
        }
        Literal::SomeIn {
            key,
            value,
            collection,
            ..
        } => format!("some {}", membership(key.as_ref(), value, collection)),
        Literal::Expr { expr, .. } => expression(expr),
        Literal::NotExpr { expr, .. } => format!("not {}", expression(expr)),
        Literal::Every {
            key,
            value,
            domain,
            query,
            ..
        } => {
            let key = key.as_ref().map(|key| format!("{}, ", key.text()));
            let (key, value, domain) = (key.unwrap_or_default(), value.text(), inner(domain));
            format!("every {key}{value} in {domain} {{ {} }}", body(query))
        }
    };
    for with in &statement.with_mods {
        let (place, value) = (expression(&with.refr), inner(&with.r#as));
        text.push_str(&format!(" with {place} as {value}"));
    }
    text
}

fn body(query: &Query) -> String {
    let statements: Vec<_> = query.stmts.iter().map(statement).collect();
    statements.join("; ")
}

/// An expression, with brackets around operators within others.
pub(super) fn expression(of: &Expr) -> String {
    match of {
        Expr::String { value, .. } | Expr::RawString { value, .. } => value.to_string(),
        Expr::Number { span, .. }
        | Expr::Bool { span, .. }
        | Expr::Null { span, .. }
        | Expr::Var { span, .. } => span.text().to_owned(),
        Expr::Array { items, .. } => format!("[{}]", list(items)),
        Expr::Set { items, .. } if items.is_empty() => "set()".to_owned(),
        Expr::Set { items, .. } => format!("{{{}}}", list(items)),
        Expr::Object { fields, .. } => {
            let field = |(_, key, value): &(_, Ref<Expr>, Ref<Expr>)| {
                format!("{}: {}", inner(key), inner(value))
            };
            format!(
                "{{{}}}",
                fields.iter().map(field).collect::<Vec<_>>().join(", ")
            )
        }
        Expr::ArrayCompr { term, query, .. } => format!("[{} | {}]", inner(term), body(query)),
        Expr::SetCompr { term, query, .. } => format!("{{{} | {}}}", inner(term), body(query)),
        Expr::ObjectCompr {
            key, value, query, ..
        } => format!("{{{}: {} | {}}}", inner(key), inner(value), body(query)),
        Expr::Call { fcn, params, .. } => format!("{}({})", expression(fcn), list(params)),
        Expr::UnaryExpr { expr, .. } => format!("-{}", inner(expr)),
        Expr::RefDot { refr, field, .. } => format!("{}.{}", inner(refr), field.0.text()),
        Expr::RefBrack { refr, index, .. } => format!("{}[{}]", inner(refr), expression(index)),
        Expr::BinExpr { op, lhs, rhs, .. } => {
            let op = match op {
                BinOp::Intersection => "&",
                BinOp::Union => "|",
            };
            infix(lhs, op, rhs)
        }
        Expr::BoolExpr { op, lhs, rhs, .. } => infix(lhs, compare(op), rhs),
        Expr::ArithExpr { op, lhs, rhs, .. } => infix(lhs, arithmetic(op), rhs),
        Expr::AssignExpr { op, lhs, rhs, .. } => {
            let op = match op {
                AssignOp::Eq => "=",
                AssignOp::ColEq => ":=",
            };
            format!("{} {op} {}", inner(lhs), expression(rhs))
        }
        Expr::Membership {
            key,
            value,
            collection,
            ..
        } => membership(key.as_ref(), value, collection),
    }
}

fn compare(op: &BoolOp) -> &'static str {
    match op {
        BoolOp::Lt => "<",
        BoolOp::Le => "<=",
        BoolOp::Eq => "==",
        BoolOp::Ge => ">=",
        BoolOp::Gt => ">",
        BoolOp::Ne => "!=",
    }
}

fn arithmetic(op: &ArithOp) -> &'static str {
    match op {
        ArithOp::Add => "+",
        ArithOp::Sub => "-",
        ArithOp::Mul => "*",
        ArithOp::Div => "/",
        ArithOp::Mod => "%",
    }
}

fn infix(left: &Expr, op: &str, right: &Expr) -> String {
    format!("{} {op} {}", inner(left), inner(right))
}

fn membership(key: Option<&Ref<Expr>>, value: &Expr, collection: &Expr) -> String {
    let key = key.map(|key| format!("{}, ", inner(key)));
    let key = key.unwrap_or_default();
    format!("{key}{} in {}", inner(value), inner(collection))
}

fn list(items: &[Ref<Expr>]) -> String {
    let items: Vec<_> = items.iter().map(|item| inner(item)).collect();
    items.join(", ")
}

/// An expression within another.
fn inner(of: &Expr) -> String {
    let text = expression(of);
    match of {
        Expr::BinExpr { .. }
        | Expr::BoolExpr { .. }
        | Expr::ArithExpr { .. }
        | Expr::AssignExpr { .. }
        | Expr::Membership { .. } => format!("({text})"),
        _ => text,
    }
}
