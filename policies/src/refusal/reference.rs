//! What the names of a statement stand for: values, and places in the request.

use std::collections::{BTreeMap, BTreeSet};

use regorus::{
    Value,
    unstable::{AssignOp, BoolOp, Expr, Literal, LiteralStmt, Ref},
};

use super::{
    Search,
    probe::{Frame, Way},
    shown,
    walk::{expressions, mentions, references_of, root},
    written,
};
use crate::engine::value_of;

/// Values that a line tells.
const TOLD: usize = 4;
/// The member of a process with its environment, and that of a request with what a process is to read.
const ENVIRONMENT: &str = "Env";
const INPUT: &str = "data";
/// Places that a computed value is told to come from.
const SOURCES: usize = 3;

/// The keys from `input` to a place.
pub(super) type Path = Vec<Value>;
/// What local names stand for.
pub(super) type Scope = BTreeMap<String, Bound>;

/// A value of a local name.
#[derive(Clone)]
pub(super) struct Bound {
    pub(super) value: Value,
    /// Where it stands in the request.
    path: Option<Path>,
    /// What it was made of.
    from: Vec<Path>,
}

impl Bound {
    pub(super) fn new(value: Value, path: Option<Path>, from: Vec<Path>) -> Self {
        Self { value, path, from }
    }
}

impl Search {
    /// A value that an expression has.
    pub(super) fn bound(&mut self, expression: &Ref<Expr>, value: Value, scope: &Scope) -> Bound {
        let path = self.path(expression, scope);
        let from = self.sources(expression, scope);
        Bound { value, path, from }
    }

    /// The names in a body after its first statements.
    pub(super) fn scope_after(&mut self, frame: &Frame<'_>, passed: usize, way: &Way) -> Scope {
        let mut scope = frame.scope.clone();
        for (name, value) in &way.locals {
            scope.insert(name.clone(), Bound::new(value.clone(), None, Vec::new()));
        }
        for statement in frame.statements.iter().take(passed) {
            self.follow(statement, &mut scope);
        }
        scope
    }

    /// Where the names come from that a statement gives.
    fn follow(&mut self, statement: &LiteralStmt, scope: &mut Scope) {
        let (target, path, from) = match &statement.literal {
            Literal::Expr { expr, .. } => match expr.as_ref() {
                Expr::AssignExpr { lhs, rhs, .. } => {
                    (lhs, self.path(rhs, scope), self.sources(rhs, scope))
                }
                _ => return,
            },
            Literal::SomeIn {
                key,
                value,
                collection,
                ..
            } => {
                let path = self.element(key.as_ref(), value, collection, scope);
                (value, path, self.sources(collection, scope))
            }
            _ => return,
        };
        if let Expr::Var { span, .. } = target.as_ref()
            && let Some(bound) = scope.get_mut(span.text())
        {
            bound.path = bound.path.take().or(path);
            if bound.from.is_empty() {
                bound.from = from;
            }
        }
    }

    /// Where the element of `some key, value in collection` stands.
    fn element(
        &mut self,
        key: Option<&Ref<Expr>>,
        value: &Ref<Expr>,
        collection: &Ref<Expr>,
        scope: &Scope,
    ) -> Option<Path> {
        let mut path = self.path(collection, scope)?;
        let named = key.and_then(|key| self.value(key, scope));
        let index = match named {
            Some(index) => index,
            None => {
                let (all, one) = (self.value(collection, scope)?, self.value(value, scope)?);
                match all {
                    Value::Array(members) => {
                        members.iter().position(|member| *member == one)?.into()
                    }
                    Value::Object(members) => {
                        let mut members = members.iter();
                        members.find(|(_, member)| **member == one)?.0.clone()
                    }
                    _ => return None,
                }
            }
        };
        path.push(index);
        Some(path)
    }

    /// The place in the request that an expression names.
    pub(super) fn path(&mut self, expression: &Ref<Expr>, scope: &Scope) -> Option<Path> {
        match expression.as_ref() {
            Expr::Var { span, .. } => match scope.get(span.text()) {
                Some(bound) => bound.path.clone(),
                None => (span.text() == "input").then(Vec::new),
            },
            Expr::RefDot { refr, field, .. } => {
                let mut path = self.path(refr, scope)?;
                path.push(field.0.text().into());
                Some(path)
            }
            Expr::RefBrack { refr, index, .. } => {
                let mut path = self.path(refr, scope)?;
                path.push(self.value(index, scope)?);
                Some(path)
            }
            _ => None,
        }
    }

    /// The value of a name or of a member; what must be computed is not known here.
    fn value(&mut self, expression: &Ref<Expr>, scope: &Scope) -> Option<Value> {
        let (whole, key) = match expression.as_ref() {
            Expr::String { value, .. }
            | Expr::RawString { value, .. }
            | Expr::Number { value, .. }
            | Expr::Bool { value, .. }
            | Expr::Null { value, .. } => return Some(value.clone()),
            Expr::Var { span, .. } => return self.named(span.text(), scope),
            Expr::RefDot { refr, field, .. } => (self.value(refr, scope)?, field.0.text().into()),
            Expr::RefBrack { refr, index, .. } => {
                (self.value(refr, scope)?, self.value(index, scope)?)
            }
            _ => return None,
        };
        member(&whole, &key)
    }

    fn named(&mut self, name: &str, scope: &Scope) -> Option<Value> {
        if let Some(bound) = scope.get(name) {
            return Some(bound.value.clone());
        }
        match name {
            "input" => Some(self.input.clone()),
            "data" => Some(self.engine.get_data()),
            _ if self.rules.contains_key(name) => {
                let path = format!("data.{}.{name}", self.package);
                value_of(&mut self.engine, &path).ok().flatten()
            }
            _ => None,
        }
    }

    /// The places in the request that an expression is made of.
    pub(super) fn sources(&mut self, expression: &Ref<Expr>, scope: &Scope) -> Vec<Path> {
        let mut references = Vec::new();
        references_of(expression, true, &mut references);
        let mut sources = Vec::new();
        for reference in references {
            let found = match self.nearest(reference, scope) {
                Some(path) => vec![path],
                None => match scope.get(root(reference)) {
                    Some(bound) => bound.from.clone(),
                    None => Vec::new(),
                },
            };
            for path in found {
                if sources.len() < SOURCES && !sources.contains(&path) {
                    sources.push(path);
                }
            }
        }
        sources
    }

    /// The place of an expression, or the one above it where a key is not known.
    fn nearest(&mut self, expression: &Ref<Expr>, scope: &Scope) -> Option<Path> {
        self.path(expression, scope)
            .or_else(|| match expression.as_ref() {
                Expr::RefDot { refr, .. } | Expr::RefBrack { refr, .. } => {
                    self.nearest(refr, scope)
                }
                _ => None,
            })
    }

    /// What a statement looks at: first in the request, then in the policy. Of environments, and of what comes from
    /// one, names are told alone: the line is logged.
    pub(super) fn values(&mut self, literal: &Literal, scope: &Scope, ways: &[Way]) -> String {
        let mut references = Vec::new();
        for expression in expressions(literal) {
            references_of(expression, false, &mut references);
        }
        let difference = self.difference(literal, scope);
        let keys = difference.as_ref().map_or(&[][..], |(_, keys)| keys);
        let is_secret = is_secret(keys) || references.iter().any(|one| self.is_secret(one, scope));
        let (mut own, mut other) = (Vec::new(), Vec::new());
        for reference in references {
            let is_compared = matches!(&difference, Some((sides, _)) if sides.contains(&reference));
            let suffix = match &difference {
                Some((_, keys)) if is_compared => keys.as_slice(),
                _ => &[],
            };
            let mut value = self.value(reference, scope);
            // Of a rule that is asked, the statement says all.
            if value.is_none() && matches!(reference.as_ref(), Expr::Var { .. }) {
                continue;
            }
            for key in suffix {
                value = value.and_then(|value| member(&value, key));
            }
            let value = match is_secret {
                true => shown::hidden(value.as_ref()),
                false => shown::value(value.as_ref()),
            };
            if let Some(mut path) = self.path(reference, scope) {
                path.extend_from_slice(suffix);
                own.push(format!("{} is {value}", shown::path(&path)));
            } else if self.is_known(root(reference), scope) {
                let name = shown::statement(&written::expression(reference));
                let suffix = shown::path(suffix);
                let suffix = suffix.trim_start_matches("input");
                let from = sources_of(root(reference), scope);
                let others = others(root(reference), ways);
                other.push(format!("{name}{suffix} is {value}{from}{others}"));
            }
        }
        own.append(&mut other);
        let mut told = Vec::new();
        for text in own {
            if told.len() < TOLD && !told.contains(&text) {
                told.push(text);
            }
        }
        match told.is_empty() {
            true => String::new(),
            false => format!("; {}", told.join(", ")),
        }
    }

    fn is_secret(&mut self, reference: &Ref<Expr>, scope: &Scope) -> bool {
        let path = self.path(reference, scope);
        let from = scope.get(root(reference)).map(|bound| bound.from.clone());
        let mut places = path.into_iter().chain(from.unwrap_or_default());
        // The policy's own have no place in the request.
        places.any(|place| is_secret(&place)) || mentions(reference.span().text(), ENVIRONMENT)
    }

    fn is_known(&self, name: &str, scope: &Scope) -> bool {
        name == "data" || scope.contains_key(name) || self.rules.contains_key(name)
    }

    /// Of two values that must be equal, where they first differ.
    fn difference<'a>(
        &mut self,
        literal: &'a Literal,
        scope: &Scope,
    ) -> Option<([&'a Ref<Expr>; 2], Path)> {
        let Literal::Expr { expr, .. } = literal else {
            return None;
        };
        let sides = match expr.as_ref() {
            Expr::BoolExpr {
                op: BoolOp::Eq,
                lhs,
                rhs,
                ..
            }
            | Expr::AssignExpr {
                op: AssignOp::Eq,
                lhs,
                rhs,
                ..
            } => [lhs, rhs],
            _ => return None,
        };
        let (left, right) = (self.value(sides[0], scope)?, self.value(sides[1], scope)?);
        let mut keys = Vec::new();
        differ(&left, &right, &mut keys);
        Some((sides, keys))
    }
}

/// Follows two values to where they first differ; two of another form differ as a whole.
fn differ(left: &Value, right: &Value, keys: &mut Path) {
    let key = match (left, right) {
        (Value::Array(a), Value::Array(b)) => {
            let differs = |index: &usize| a.get(*index) != b.get(*index);
            (0..a.len().max(b.len())).find(differs).map(Value::from)
        }
        (Value::Object(a), Value::Object(b)) => {
            let mut all = a.iter().chain(b.iter()).map(|(key, _)| key);
            all.find(|key| member(left, key) != member(right, key))
                .cloned()
        }
        _ => None,
    };
    let Some(key) = key else {
        return;
    };
    let (below_left, below_right) = (member(left, &key), member(right, &key));
    keys.push(key);
    if let (Some(left), Some(right)) = (below_left, below_right) {
        differ(&left, &right, keys);
    }
}

/// Whether a place in a request is in an environment, or is what a process is sent.
fn is_secret(keys: &[Value]) -> bool {
    let is = |key: &Value, name: &str| matches!(key, Value::String(key) if **key == *name);
    keys.iter().any(|key| is(key, ENVIRONMENT)) || keys.first().is_some_and(|key| is(key, INPUT))
}

fn member(value: &Value, key: &Value) -> Option<Value> {
    let found = match value {
        Value::Array(_) | Value::Object(_) => &value[key],
        _ => return None,
    };
    (*found != Value::Undefined).then(|| found.clone())
}

fn sources_of(name: &str, scope: &Scope) -> String {
    let from = scope.get(name).map_or(&[][..], |bound| &bound.from);
    let from: Vec<_> = from.iter().map(|path| shown::path(path)).collect();
    match from.is_empty() {
        true => String::new(),
        false => format!(" (of {})", from.join(" and ")),
    }
}

/// How many values a local name has had, where there is more than one.
fn others(name: &str, ways: &[Way]) -> String {
    let values: BTreeSet<_> = ways.iter().filter_map(|way| way.locals.get(name)).collect();
    match values.len() {
        0 | 1 => String::new(),
        count => format!(" (one of {count})"),
    }
}
