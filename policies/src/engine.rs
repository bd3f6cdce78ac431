//! A policy parsed and analysed once, and evaluated often.
//!
//! [`regorus::Engine`] shares the parsed modules between copies, and a [`Pool`] uses the copies again,
//! so a decision costs an evaluation, and decisions do not wait for one another. `print` is gathered,
//! never written to a console that the host reads. Time and sizes are bounded.

use std::{
    collections::BTreeMap,
    num::{NonZeroU32, NonZeroUsize},
    panic::{AssertUnwindSafe, catch_unwind},
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use regorus::{Engine, LimitError, PolicyLengthConfig, Value, utils::limits::ExecutionTimerConfig};

use crate::{bounds, functions, shape};

/// Bytes of a policy; Kata's limit, since generated policies are long.
pub const POLICY_BYTES: usize = 16 * 1024 * 1024;
/// Characters of a line; Kata's limit, environments of containers stand in one line.
const LINE_CHARS: u32 = 64 * 1024;
/// Lines of a policy; Kata's limit.
const LINES: usize = 200_000;
/// A decision about a request in the guest that takes longer is a refusal: a policy must not hold up a
/// pod.
const REQUEST_TIME: Duration = Duration::from_secs(5);
/// The same for an appraisal or a release, while others wait for the broker. A decision takes less than a
/// thousandth of it, and in all of it a policy can fill a few tens of MiB.
const DECISION_TIME: Duration = Duration::from_millis(100);
/// The same for what ships with the broker, which is bounded anyway: a machine that is busy elsewhere
/// refuses nobody.
const SHIPPED_TIME: Duration = Duration::from_secs(10);
/// The name of the policy's own text.
const SOURCE: &str = "policy.rego";
/// Steps of the interpreter between two looks at the clock.
const STEPS_PER_LOOK: u32 = 256;

/// A policy that cannot be used, or a decision that could not be made.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// Larger than the cap.
    #[error("policy of {bytes} bytes is larger than {POLICY_BYTES}")]
    TooLarge {
        /// Its size.
        bytes: usize,
    },
    /// The text is not Rego.
    #[error("policy does not parse: {detail}")]
    Parse {
        /// What regorus says, with the place.
        detail: String,
    },
    /// The rules are in a package where nobody looks for them.
    #[error("policy has no rule in package `{expected}`: start it with `package {expected}`")]
    Package {
        /// The package that is asked.
        expected: &'static str,
    },
    /// The name of a request is not an identifier.
    #[error("`{endpoint}` is not the name of a request")]
    Endpoint {
        /// The name, shortened.
        endpoint: String,
    },
    /// Brackets within brackets, which the parser tries in two ways each.
    #[error("policy has brackets nested too deep: name the inner values in rules of their own")]
    Nested,
    /// Operators, calls and brackets within one another, which are followed on the stack.
    #[error(
        "an expression of the policy is {limit} operators, calls and brackets deep: name the inner \
         values in rules of their own"
    )]
    Deep {
        /// What is too deep.
        limit: usize,
    },
    /// More of one thing than a policy may have.
    #[error("policy has more than {limit} {what}: {fix}")]
    Many {
        /// The things.
        what: &'static str,
        /// How many there may be.
        limit: usize,
        /// What to do about it.
        fix: &'static str,
    },
    /// A number that would take the memory that its text does not show.
    #[error(
        "the number `{number}` of the policy is too long: at most {digits} digits, and an exponent of 3"
    )]
    Number {
        /// The number, shortened.
        number: String,
        /// Digits that it may have.
        digits: usize,
    },
    /// Numbers that may grow without bound.
    #[error(
        "rule `{rule}` of the policy multiplies more than {limit} times, with what it asks: multiply by \
         numbers that stand in the policy, or less often"
    )]
    Products {
        /// The rule.
        rule: String,
        /// How often it may.
        limit: usize,
    },
    /// A function of Rego that looks out of the policy.
    #[error("policy calls `{function}`: it must decide by its input alone")]
    Outside {
        /// The function.
        function: String,
    },
    /// A function that calls itself, as OPA refuses it too.
    #[error("function `{function}` of the policy calls itself, directly or through others")]
    Recursive {
        /// One of the functions.
        function: String,
    },
    /// Rules that lead from one to the next too often.
    #[error("rule `{rule}` of the policy is at the head of too long a chain of rules")]
    Chain {
        /// The first rule.
        rule: String,
    },
    /// Too many other policies are at work, or do not come to an end.
    #[error("too many policies are at work: ask again later")]
    Busy,
    /// The evaluation took too long.
    #[error("evaluation of `{rule}` took longer than {} ms", limit.as_millis())]
    Slow {
        /// The rule that was asked.
        rule: String,
        /// What it may take.
        limit: Duration,
    },
    /// The evaluation failed.
    #[error("evaluation of `{rule}` failed: {detail}")]
    Evaluate {
        /// The rule that was asked.
        rule: String,
        /// What regorus says.
        detail: String,
    },
    /// The rule gave something of another form.
    #[error("`{rule}` must be {expected}")]
    Shape {
        /// The rule that was asked.
        rule: String,
        /// The form that it must have.
        expected: &'static str,
    },
    /// A patch of the policy's state that does not apply, or that leaves the state.
    #[error("state patch of `{rule}` is refused: {detail}")]
    Patch {
        /// The rule that gave it.
        rule: String,
        /// Why.
        detail: String,
    },
}

/// Parses a policy, and checks that it has rules in `package`.
fn parse(package: &'static str, rego: &str, limit: Duration) -> Result<Engine, PolicyError> {
    let (Some(columns), Some(bytes), Some(lines), Some(steps)) = (
        NonZeroU32::new(LINE_CHARS),
        NonZeroUsize::new(POLICY_BYTES),
        NonZeroUsize::new(LINES),
        NonZeroU32::new(STEPS_PER_LOOK),
    ) else {
        unreachable!("the constants are not zero")
    };
    if rego.len() > POLICY_BYTES {
        return Err(PolicyError::TooLarge { bytes: rego.len() });
    }
    bounds::before_parsing(rego)?;
    let mut engine = Engine::new();
    engine.set_gather_prints(true);
    engine.set_policy_length_config(PolicyLengthConfig {
        max_col: columns,
        max_file_bytes: bytes,
        max_lines: lines,
    });
    engine.set_execution_timer_config(ExecutionTimerConfig {
        limit,
        check_interval: steps,
    });
    engine
        .add_policy(SOURCE.to_owned(), rego.to_owned())
        .map_err(|error| unparsed(&error))?;
    let packages = engine.get_packages().map_err(|error| unparsed(&error))?;
    if !packages.contains(&format!("data.{package}")) {
        return Err(PolicyError::Package { expected: package });
    }
    Ok(engine)
}

/// Parses a policy with its first data, and analyses it.
pub(crate) fn compile(
    package: &'static str,
    rego: &str,
    data: Value,
) -> Result<Engine, PolicyError> {
    let mut engine = parse(package, rego, REQUEST_TIME)?;
    engine.add_data(data).map_err(|error| unparsed(&error))?;
    analyse(&mut engine)?;
    Ok(engine)
}

/// Whether the policy's own text has a rule of this name.
pub(crate) fn declares(engine: &Engine, rule: &str) -> Result<bool, String> {
    engine
        .has_declared_rule_rooted_at(SOURCE, rule)
        .map_err(|error| error.to_string())
}

/// The first query analyses the modules, and copies share what it found.
fn analyse(engine: &mut Engine) -> Result<(), PolicyError> {
    engine
        .eval_query("true".to_owned(), false)
        .map_err(|error| unparsed(&error))?;
    Ok(())
}

fn unparsed(error: &dyn std::fmt::Display) -> PolicyError {
    PolicyError::Parse {
        detail: error.to_string(),
    }
}

/// How long a policy of the broker may take.
pub(crate) fn decision_time(built_in: bool) -> Duration {
    if built_in {
        SHIPPED_TIME
    } else {
        DECISION_TIME
    }
}

/// Engines at rest that a policy keeps. A decision takes microseconds and never waits, so more than
/// there are cores are not at work at once; the rest would only hold memory.
const POOL: usize = 4;

/// A compiled policy whose engines are used again. What differs from one decision to the next is
/// the input only, since any change of `data` makes regorus analyse the modules again.
pub(crate) struct Pool<S> {
    template: Engine,
    idle: Mutex<Vec<(Engine, S)>>,
}

impl<S> std::fmt::Debug for Pool<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl<S> Pool<S> {
    /// Compiles `rego`, and beside it `ask`: a module of ours whose rule `answer` puts the question.
    /// `data` is what all decisions have in common.
    pub(crate) fn compile(
        package: &'static str,
        rego: &str,
        (ask, answer): (&'static str, &'static str),
        data: Value,
        limit: Duration,
    ) -> Result<Self, PolicyError> {
        shape::fits_the_broker(rego)?;
        let mut template = parse(package, rego, limit)?;
        template.add_data(data).map_err(|error| unparsed(&error))?;
        template
            .add_policy("ask.rego".to_owned(), ask.to_owned())
            .map_err(|error| unparsed(&error))?;
        analyse(&mut template)?;
        bounds::after_parsing(&template, rego, package, answer)?;
        functions::bound(&mut template).map_err(|error| unparsed(&error))?;
        Ok(Self {
            template,
            idle: Mutex::new(Vec::new()),
        })
    }

    /// Runs `decide` on an engine that nobody else uses; `equip` makes what a new engine needs.
    pub(crate) fn run<T>(
        &self,
        equip: impl FnOnce(&mut Engine) -> Result<S, PolicyError>,
        decide: impl FnOnce(&mut Engine, &mut S) -> Result<T, PolicyError>,
    ) -> Result<T, PolicyError> {
        let idle = self.lock().pop();
        let (mut engine, mut state) = match idle {
            Some(pair) => pair,
            None => {
                let mut engine = self.template.clone();
                let state = equip(&mut engine)?;
                (engine, state)
            }
        };
        let result = decide(&mut engine, &mut state);
        // Nothing of one guest stays for the next; an engine that fails here is not kept.
        engine.set_input(Value::Undefined);
        let printed = engine.take_prints();
        if result.is_ok() && printed.is_ok() {
            let mut idle = self.lock();
            if idle.len() < POOL {
                idle.push((engine, state));
            }
        }
        result
    }

    /// A panic in another thread leaves the list whole.
    fn lock(&self) -> MutexGuard<'_, Vec<(Engine, S)>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The value of a complete rule of a module that was compiled. What is wrong in regorus itself may be
/// a panic, which is that policy's failure and not the broker's.
pub(crate) fn ask(engine: &mut Engine, rule: &str) -> Result<Value, PolicyError> {
    let failed = |detail: String| PolicyError::Evaluate {
        rule: rule.to_owned(),
        detail,
    };
    let result = catch_unwind(AssertUnwindSafe(|| engine.eval_rule(rule.to_owned())));
    match result {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(match error.downcast_ref::<LimitError>() {
            Some(LimitError::TimeLimitExceeded { limit, .. }) => PolicyError::Slow {
                rule: rule.to_owned(),
                limit: *limit,
            },
            Some(_) | None => failed(error.to_string()),
        }),
        Err(_) => Err(failed("the interpreter panicked".to_owned())),
    }
}

/// The only member of a list that is a member of an answer, `None` where the list is empty.
pub(crate) fn answered<'a>(answer: &'a Value, name: &str) -> Option<&'a Value> {
    match &answer[name] {
        Value::Array(values) => values.first(),
        _ => None,
    }
}

/// JSON as a value of the engine.
pub(crate) fn from_json(json: &serde_json::Value) -> Value {
    match json {
        serde_json::Value::Null => Value::Null,
        serde_json::Value::Bool(value) => Value::Bool(*value),
        serde_json::Value::String(text) => text.as_str().into(),
        serde_json::Value::Array(members) => {
            members.iter().map(from_json).collect::<Vec<_>>().into()
        }
        serde_json::Value::Object(members) => {
            let member = |(name, value): (&String, _)| (name.as_str().into(), from_json(value));
            members
                .iter()
                .map(member)
                .collect::<BTreeMap<_, _>>()
                .into()
        }
        serde_json::Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(number), _) => number.into(),
            (None, Some(number)) => number.into(),
            // The engine's own way for what is no integer.
            (None, None) => json.clone().into(),
        },
    }
}

/// The value of a rule, `None` where it is undefined.
pub(crate) fn value_of(engine: &mut Engine, rule: &str) -> Result<Option<Value>, PolicyError> {
    let failed = |detail: String| PolicyError::Evaluate {
        rule: rule.to_owned(),
        detail,
    };
    let results = engine
        .eval_query(rule.to_owned(), false)
        .map_err(|error| failed(error.to_string()))?;
    match results.result.as_slice() {
        [] => Ok(None),
        [one] => match one.expressions.as_slice() {
            [expression] if expression.value == Value::Undefined => Ok(None),
            [expression] => Ok(Some(expression.value.clone())),
            _ => Err(failed("more than one expression".to_owned())),
        },
        _ => Err(failed("more than one result".to_owned())),
    }
}

/// A value as JSON; sets become arrays.
pub(crate) fn to_json(rule: &str, value: &Value) -> Result<serde_json::Value, PolicyError> {
    serde_json::to_value(value).map_err(|_| PolicyError::Shape {
        rule: rule.to_owned(),
        expected: "a JSON value",
    })
}
