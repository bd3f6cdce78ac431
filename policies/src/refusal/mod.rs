//! Why a rule does not allow a request, as one line for the policy's owner.
//!
//! The rule's bodies are asked again, statement by statement, with what the policy remembers: the first
//! statement that nothing satisfies is the one to tell. Where it asks another rule or function of the
//! package, that one is looked into with the values that it was given, so that the line names the innermost
//! rule. Of several definitions the one that came furthest is told. What cannot be told is left out.
//!
//! `regorus::unstable` has the parsed policy; whatever changes in it shows when this is compiled.

mod definition;
mod probe;
mod reference;
mod shown;
mod walk;
mod written;

use std::{
    collections::BTreeMap,
    panic::{AssertUnwindSafe, catch_unwind},
    time::{Duration, Instant},
};

use regorus::{
    Engine, Value,
    unstable::{Literal, LiteralStmt, Ref, Rule},
    utils::limits::ExecutionTimerConfig,
};

use self::{
    definition::{Definition, Title},
    probe::{Frame, Solution, Way},
    reference::{Bound, Scope},
};
use crate::engine::PolicyError;

/// The time that one line may take; what is not found by then is not told.
const TIME: Duration = Duration::from_secs(3);
/// The time that one question to the interpreter may take, in which it fills tens of MiB at most.
const QUESTION_TIME: Duration = Duration::from_millis(500);
/// Rules within one another that are looked into.
const DEPTH: usize = 24;
/// Definitions of one rule that are looked into.
const DEFINITIONS: usize = 16;
/// Ways to satisfy the statements before the one that fails, which are looked into.
const WAYS: usize = 4;
/// More statements than any way through a policy has.
const HOLDS: usize = usize::MAX / 2;
/// Steps of the interpreter between two looks at the clock.
const STEPS_PER_LOOK: std::num::NonZeroU32 = std::num::NonZeroU32::MIN.saturating_add(255);

/// The line about `endpoint` of `package`. The engine is a copy that decides nothing.
pub(crate) fn explain(engine: Engine, package: &str, endpoint: &str, input: Value) -> String {
    let told = catch_unwind(AssertUnwindSafe(|| {
        let mut search = Search::new(engine, package, input);
        let line = search.why_not(endpoint);
        shown::line(&line)
    }));
    told.unwrap_or_else(|_| format!("{endpoint}: the interpreter panicked"))
}

/// The line about a rule that gives no decision.
pub(crate) fn error(error: &PolicyError) -> String {
    shown::line(&shown::error(&error.to_string()))
}

/// What was found of one rule.
struct Finding {
    /// Statements that held on the way.
    passed: usize,
    /// It fails by something that is there and should not be, which says less than a comparison.
    is_absence: bool,
    text: String,
}

impl Finding {
    fn rank(&self) -> (usize, bool) {
        (self.passed, !self.is_absence)
    }
}

/// The first of those that came furthest.
fn furthest(findings: impl IntoIterator<Item = Finding>) -> Option<Finding> {
    findings.into_iter().reduce(|best, next| {
        if next.rank() > best.rank() {
            next
        } else {
            best
        }
    })
}

struct Search {
    engine: Engine,
    package: String,
    input: Value,
    rules: BTreeMap<String, Vec<Ref<Rule>>>,
    /// The policy's imports, for the questions that are asked beside it.
    imports: String,
    until: Instant,
}

impl Search {
    fn new(mut engine: Engine, package: &str, input: Value) -> Self {
        engine.set_input(input.clone());
        engine.set_execution_timer_config(ExecutionTimerConfig {
            limit: QUESTION_TIME,
            check_interval: STEPS_PER_LOOK,
        });
        let mut rules = BTreeMap::<String, Vec<_>>::new();
        let mut imports = String::new();
        for module in engine.get_modules() {
            for import in &module.imports {
                imports.push_str(import.span.text());
                imports.push('\n');
            }
            for rule in &module.policy {
                let name = definition::name(rule).to_owned();
                rules.entry(name).or_default().push(rule.clone());
            }
        }
        Self {
            engine,
            package: package.to_owned(),
            input,
            rules,
            imports,
            until: Instant::now() + TIME,
        }
    }

    fn why_not(&mut self, endpoint: &str) -> String {
        let Some(rules) = self.rules.get(endpoint).cloned() else {
            return format!("the policy has no rule {endpoint}");
        };
        if let Some(finding) = self.rule(endpoint, &[], DEPTH) {
            return finding.text;
        }
        let line = rules.first().map_or(0, |rule| rule.span().line);
        match rules.as_slice() {
            [only] if matches!(only.as_ref(), Rule::Default { .. }) => {
                let text = shown::statement(only.span().text());
                format!("{endpoint} (line {line}): `{text}` is all that the policy says of it")
            }
            _ => format!("{endpoint} (line {line}) does not hold"),
        }
    }

    /// Why no definition of a rule or function holds, given its arguments.
    fn rule(&mut self, name: &str, arguments: &[Bound], depth: usize) -> Option<Finding> {
        let depth = depth.checked_sub(1)?;
        let rules = self.rules.get(name).cloned()?;
        let definitions: Vec<_> = rules
            .iter()
            .flat_map(|rule| definition::all(rule))
            .collect();
        let title = Title::new(name, definitions.len());
        let mut entered = Vec::new();
        let mut frames = Vec::new();
        for definition in definitions.iter().take(DEFINITIONS) {
            if let Some(scope) = definition.scope(arguments) {
                entered.push(definition);
                frames.push(Frame::new(title.clone(), scope, definition.statements));
            }
        }
        let solutions = self.solve(&frames);
        let mut findings = Vec::new();
        for ((definition, frame), solution) in entered.iter().zip(&frames).zip(solutions) {
            findings.extend(self.definition(definition, frame, solution, depth));
        }
        furthest(findings)
    }

    fn definition(
        &mut self,
        definition: &Definition<'_>,
        frame: &Frame<'_>,
        solution: Option<Solution>,
        depth: usize,
    ) -> Option<Finding> {
        let solution = solution?;
        if solution.held < frame.statements.len() {
            return self.body(frame, &solution, depth);
        }
        // It holds, and gives what refuses; an `else` does so because what is before it does not hold.
        let value = shown::statement(&written::expression(&definition.gives?.value));
        Some(Finding {
            passed: if definition.is_else { 0 } else { HOLDS },
            is_absence: true,
            text: format!("{} gives {value}", frame.title.at(definition.line)),
        })
    }

    /// Why a body does not hold; `None` where it does.
    fn body(&mut self, frame: &Frame<'_>, solution: &Solution, depth: usize) -> Option<Finding> {
        let failing = *frame.statements.get(solution.held)?;
        let passed = solution.held;
        let ways: Vec<_> = solution
            .ways
            .iter()
            .take(WAYS)
            .map(|way| (way, self.scope_after(frame, passed, way)))
            .collect();
        let mut inner = Vec::new();
        for (way, scope) in &ways {
            inner.extend(self.inside(frame, failing, way, scope, depth));
        }
        if let Some(mut finding) = furthest(inner) {
            finding.passed = finding.passed.saturating_add(passed);
            return Some(finding);
        }
        let (_, scope) = ways.first()?;
        let text = shown::statement(&written::statement(failing));
        let title = frame.title.at(failing.span.line);
        // Under `with` the names stand for something else.
        let values = match failing.with_mods.as_slice() {
            [] => self.values(&failing.literal, scope, &solution.ways),
            _ => String::new(),
        };
        Some(Finding {
            passed,
            is_absence: matches!(failing.literal, Literal::NotExpr { .. }),
            text: format!("{title}: {text}{values}"),
        })
    }

    /// The rule, function or element by which a statement fails.
    fn inside(
        &mut self,
        frame: &Frame<'_>,
        failing: &LiteralStmt,
        way: &Way,
        scope: &Scope,
        depth: usize,
    ) -> Option<Finding> {
        if !failing.with_mods.is_empty() {
            return None;
        }
        let uses = frame.uses(&failing.literal, &self.rules);
        for (used, asked) in uses.iter().zip(&way.uses) {
            let arguments = used.arguments.iter().zip(&asked.arguments);
            let arguments = arguments
                .map(|(expression, value)| Some(self.bound(expression, value.clone()?, scope)))
                .collect::<Option<Vec<_>>>();
            let is_why = match &asked.result {
                None => true,
                Some(result) => used.is_whole && *result == Value::Bool(false),
            };
            if is_why {
                return self.rule(used.name, &arguments?, depth);
            }
        }
        let Literal::Every {
            key,
            value,
            domain,
            query,
            ..
        } = &failing.literal
        else {
            return None;
        };
        let (index, element) = way.refused.first()?;
        let mut path = self.path(domain, scope);
        if let Some(path) = &mut path {
            path.push(index.clone());
        }
        let from = self.sources(domain, scope);
        let mut scope = scope.clone();
        if let Some(key) = key {
            let bound = Bound::new(index.clone(), None, Vec::new());
            scope.insert(key.text().to_owned(), bound);
        }
        let bound = Bound::new(element.clone(), path, from);
        scope.insert(value.text().to_owned(), bound);
        let depth = depth.checked_sub(1)?;
        let frame = Frame::new(frame.title.clone(), scope, &query.stmts);
        let solution = self.solve(std::slice::from_ref(&frame)).pop()??;
        self.body(&frame, &solution, depth)
    }
}
