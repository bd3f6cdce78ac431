//! Functions of Rego that make large values out of small ones, with a bound.
//!
//! The interpreter looks at the clock between steps, but one call may ask for all memory there is:
//! `numbers.range(1, 1e12)`, or a text that is joined to itself forty times. An engine's own functions
//! come before the built-in ones, so these here have the same meaning and an end. What is short is
//! written out; the rest asks the built-in one, in an engine of its own, once the arguments are judged.

use regorus::{Engine, Value};

use crate::shape;

/// Members of an array that one call makes.
const ELEMENTS: usize = 10_000;
/// Bytes of what one call takes or makes.
const BYTES: usize = 1024 * 1024;
/// Digits of the width in a verb of `sprintf`.
const WIDTH_DIGITS: usize = 3;
/// What a value costs beside its text, in [`cost`].
const VALUE_BYTES: usize = 8;

/// Bits by which one call shifts a number.
const SHIFT: u64 = 4096;

/// Functions whose result is not much larger than their arguments, and how many they take.
const PROPORTIONAL: [(&str, u8); 18] = [
    ("base64.encode", 1),
    ("base64url.encode", 1),
    ("bits.lsh", 2),
    ("glob.match", 3),
    ("hex.encode", 1),
    ("json.marshal", 1),
    ("json.marshal_with_options", 2),
    ("json.patch", 2),
    ("json.unmarshal", 1),
    ("product", 1),
    ("regex.replace", 3),
    ("regex.split", 2),
    ("split", 2),
    ("sprintf", 2),
    ("strings.replace_n", 2),
    ("to_number", 1),
    ("units.parse", 1),
    ("units.parse_bytes", 1),
];
/// Members of what `product` multiplies.
const FACTORS: usize = 256;

/// A call without a value.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    #[error("`{name}` expects {expected}")]
    Arguments {
        name: &'static str,
        expected: &'static str,
    },
    #[error("`{name}` takes and makes at most {BYTES} bytes")]
    Bytes { name: &'static str },
    #[error("`{name}` makes at most {ELEMENTS} members")]
    Elements { name: &'static str },
    #[error("`{name}` shifts by at most {SHIFT} bits")]
    Shift { name: &'static str },
    #[error("`{name}` multiplies at most {FACTORS} numbers")]
    Factors { name: &'static str },
    #[error("`{name}` is given a number with too many digits, or too large an exponent")]
    Digits { name: &'static str },
    #[error("`sprintf` takes a width of at most {WIDTH_DIGITS} digits")]
    Width,
    #[error("{0}")]
    BuiltIn(String),
}

/// Gives them to an engine.
pub(crate) fn bound(engine: &mut Engine) -> Result<(), CallError> {
    add(engine, "array.concat", 2, |arguments| {
        array_concat(&arguments)
    })?;
    add(engine, "concat", 2, |arguments| concat(&arguments))?;
    add(engine, "numbers.range", 2, |arguments| {
        range("numbers.range", &arguments)
    })?;
    add(engine, "numbers.range_step", 3, |arguments| {
        range("numbers.range_step", &arguments)
    })?;
    add(engine, "replace", 3, |arguments| replace(&arguments))?;
    for (name, count) in PROPORTIONAL {
        // Made when it is called: most policies call none of these.
        let mut known = None;
        add(engine, name, count, move |arguments| {
            let built_in = match &mut known {
                Some(engine) => engine,
                none => none.insert(built_in(name, count)?),
            };
            proportional(built_in, name, arguments)
        })?;
    }
    Ok(())
}

fn add(
    engine: &mut Engine,
    name: &'static str,
    count: u8,
    mut function: impl FnMut(Vec<Value>) -> Result<Value, CallError> + Clone + Send + Sync + 'static,
) -> Result<(), CallError> {
    let function = move |arguments: Vec<Value>| function(arguments).map_err(Into::into);
    engine
        .add_extension(name.to_owned(), count, Box::new(function))
        .map_err(|error| CallError::BuiltIn(error.to_string()))
}

fn array_concat(arguments: &[Value]) -> Result<Value, CallError> {
    let name = "array.concat";
    let [Value::Array(first), Value::Array(second)] = arguments else {
        return Err(CallError::Arguments {
            name,
            expected: "two arrays",
        });
    };
    if first.len() + second.len() > ELEMENTS {
        return Err(CallError::Elements { name });
    }
    let members: Vec<Value> = first.iter().chain(second.iter()).cloned().collect();
    Ok(members.into())
}

fn concat(arguments: &[Value]) -> Result<Value, CallError> {
    let name = "concat";
    let wrong = || CallError::Arguments {
        name,
        expected: "a string, and an array or a set of strings",
    };
    let [Value::String(between), collection] = arguments else {
        return Err(wrong());
    };
    let texts: Option<Vec<&str>> = match collection {
        Value::Array(members) => members.iter().map(text_of).collect(),
        Value::Set(members) => members.iter().map(text_of).collect(),
        _ => None,
    };
    let texts = texts.ok_or_else(wrong)?;
    let bytes = texts.iter().map(|text| text.len() + between.len()).sum();
    within(name, bytes)?;
    Ok(texts.join(between).into())
}

fn replace(arguments: &[Value]) -> Result<Value, CallError> {
    let name = "replace";
    let texts: Option<Vec<&str>> = arguments.iter().map(text_of).collect();
    let Some(&[text, old, new]) = texts.as_deref() else {
        return Err(CallError::Arguments {
            name,
            expected: "three strings",
        });
    };
    let more = text.matches(old).count().saturating_mul(new.len());
    within(name, text.len().saturating_add(more))?;
    Ok(text.replace(old, new).into())
}

/// From the first number to the second, by steps of one or of the third.
fn range(name: &'static str, arguments: &[Value]) -> Result<Value, CallError> {
    let whole = |value: &Value| value.as_i64().ok().map(i128::from);
    let numbers: Option<Vec<i128>> = arguments.iter().map(whole).collect();
    let (from, to, step) = match numbers.as_deref() {
        Some(&[from, to]) => (from, to, 1),
        Some(&[from, to, step]) if step > 0 => (from, to, step),
        Some(_) | None => {
            return Err(CallError::Arguments {
                name,
                expected: "integers of 64 bits, and a positive step",
            });
        }
    };
    let count = usize::try_from((to - from).abs() / step + 1).unwrap_or(usize::MAX);
    if count > ELEMENTS {
        return Err(CallError::Elements { name });
    }
    let step = if to < from { -step } else { step };
    let numbers = std::iter::successors(Some(from), |number| Some(number + step)).take(count);
    let members: Vec<Value> = numbers.map(Value::from).collect();
    Ok(members.into())
}

/// An engine that knows one call.
fn built_in(name: &'static str, count: u8) -> Result<Engine, CallError> {
    let inputs: Vec<String> = (0..count).map(|index| format!("input[{index}]")).collect();
    let rego = format!("package call\nresult := {name}({})", inputs.join(", "));
    let mut engine = Engine::new();
    engine
        .add_policy("call.rego".to_owned(), rego)
        .and_then(|_| engine.eval_query("true".to_owned(), false))
        .map_err(|error| CallError::BuiltIn(error.to_string()))?;
    Ok(engine)
}

/// The built-in function, behind a look at what it is given.
fn proportional(
    engine: &mut Engine,
    name: &'static str,
    arguments: Vec<Value>,
) -> Result<Value, CallError> {
    let bytes = arguments
        .iter()
        .try_fold(0, cost)
        .ok_or(CallError::Bytes { name })?;
    match (name, arguments.first()) {
        ("sprintf", Some(Value::String(format))) => widths(format)?,
        // Each place in the text may become the longest of the new ones.
        ("regex.replace" | "strings.replace_n", Some(_)) => {
            within(name, bytes.saturating_mul(bytes))?;
        }
        ("bits.lsh", Some(_)) => {
            let bits = arguments.get(1).map(Value::as_u64);
            if matches!(bits, Some(Ok(bits)) if bits > SHIFT) {
                return Err(CallError::Shift { name });
            }
        }
        ("product", Some(Value::Array(factors))) if factors.len() > FACTORS => {
            return Err(CallError::Factors { name });
        }
        ("product", Some(Value::Set(factors))) if factors.len() > FACTORS => {
            return Err(CallError::Factors { name });
        }
        (
            "json.unmarshal" | "to_number" | "units.parse" | "units.parse_bytes",
            Some(Value::String(text)),
        ) if !shape::numbers_are_short(text) => return Err(CallError::Digits { name }),
        (_, _) => {}
    }
    engine.set_input(arguments.into());
    let result = engine.eval_rule("data.call.result".to_owned());
    engine.set_input(Value::Undefined);
    result.map_err(|error| CallError::BuiltIn(error.to_string()))
}

/// Bytes of a value as text, `None` where they are more than any call may take. What is in it more
/// than once counts more than once.
fn cost(before: usize, value: &Value) -> Option<usize> {
    let so_far = before + VALUE_BYTES;
    let all = match value {
        Value::String(text) => so_far + text.len(),
        Value::Array(members) => members.iter().try_fold(so_far, cost)?,
        Value::Set(members) => members.iter().try_fold(so_far, cost)?,
        Value::Object(members) => members
            .iter()
            .try_fold(so_far, |sum, (key, value)| cost(cost(sum, key)?, value))?,
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Undefined => so_far,
    };
    (all <= BYTES).then_some(all)
}

/// The built-in `sprintf` fills any width with spaces, and panics on digits that are not ASCII.
fn widths(format: &str) -> Result<(), CallError> {
    let mut rest = format;
    while let Some(at) = rest.find('%') {
        rest = &rest[at + 1..];
        let end = rest
            .find(|next: char| !next.is_numeric() && next != '.')
            .unwrap_or(rest.len());
        let (width, after) = rest.split_at(end);
        if !width.is_ascii() || width.len() > WIDTH_DIGITS {
            return Err(CallError::Width);
        }
        // `%%` is no verb.
        rest = after.strip_prefix('%').unwrap_or(after);
    }
    Ok(())
}

fn text_of(value: &Value) -> Option<&str> {
    match value {
        Value::String(text) => Some(text),
        _ => None,
    }
}

fn within(name: &'static str, bytes: usize) -> Result<(), CallError> {
    if bytes > BYTES {
        return Err(CallError::Bytes { name });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The same question to the built-in function and to ours.
    fn both(expression: &str) -> [Result<Value, String>; 2] {
        [false, true].map(|bounded| {
            let mut engine = Engine::new();
            let rego = format!("package x\nx := {expression}");
            engine.add_policy("x.rego".to_owned(), rego).unwrap();
            if bounded {
                bound(&mut engine).unwrap();
            }
            let value = engine.eval_rule("data.x.x".to_owned());
            value.map_err(|error| error.to_string())
        })
    }

    #[test]
    fn small_calls_give_what_the_built_in_ones_give() {
        for expression in [
            "array.concat([1, 2], [3])",
            "array.concat([], [])",
            "array.concat(1, [3])",
            "concat(\", \", [\"a\", \"b\"])",
            "concat(\"\", {\"b\", \"a\"})",
            "concat(\",\", [1])",
            "concat(\",\", [])",
            "numbers.range(1, 5)",
            "numbers.range(5, 1)",
            "numbers.range(-3, -3)",
            "numbers.range(1.5, 2)",
            "numbers.range_step(1, 10, 4)",
            "numbers.range_step(10, 1, 4)",
            "numbers.range_step(1, 10, 0)",
            "replace(\"banana\", \"an\", \"x\")",
            "replace(\"ab\", \"\", \"-\")",
            "replace(1, \"\", \"-\")",
            "sprintf(\"%s is %d and %v %%\", [\"a\", 7, {\"b\": [true]}])",
            "sprintf(\"%05d|%.2f\", [42, 1.5])",
            "sprintf(\"%d\", [\"x\"])",
            "sprintf(\"%s\", [])",
            "json.marshal({\"a\": [1, {2, 3}]})",
            "hex.encode(\"abc\")",
            "base64.encode(\"abc\")",
            "base64url.encode(\"a?c\")",
            "strings.replace_n({\"a\": \"b\"}, \"banana\")",
            "bits.lsh(5, 12)",
            "bits.lsh(\"5\", 12)",
            "glob.match(\"a/*\", [\"/\"], \"a/b\")",
            "json.patch({\"a\": 1}, [{\"op\": \"remove\", \"path\": \"/a\"}])",
            "json.unmarshal(\"{\\\"3e1234\\\": [1, -2.5e3]}\")",
            "product([2, 3, 4])",
            "product({2, 3})",
            "regex.replace(\"banana\", \"an\", \"x\")",
            "regex.split(\"a+\", \"banana\")",
            "split(\"a,b\", \",\")",
            "to_number(\"12\")",
            "to_number(true)",
            "units.parse(\"10Ki\")",
            "units.parse(\".5K\")",
            "units.parse_bytes(\"1.5GB\")",
        ] {
            let [built_in, ours] = both(expression);
            match (built_in, ours) {
                (Ok(built_in), Ok(ours)) => assert_eq!(built_in, ours, "{expression}"),
                (Err(_), Err(_)) => {}
                (built_in, ours) => panic!("{expression}: {built_in:?}, {ours:?}"),
            }
        }
    }

    #[test]
    fn a_call_that_would_take_all_memory_is_an_error() {
        let shared = |last: &str| {
            let mut rego = "package x\nx := v if {\na0 := [1]\n".to_owned();
            for index in 1..40 {
                let before = index - 1;
                rego += &format!("a{index} := [a{before}, a{before}]\n");
            }
            rego + &format!("v := {last}\n}}")
        };
        let repeated = |call: &str| {
            let mut rego = "package x\nx := t39 if {\nt0 := \"xxxxxxxx\"\n".to_owned();
            for index in 1..40 {
                rego += &format!(
                    "t{index} := {}\n",
                    call.replace('T', &format!("t{}", index - 1))
                );
            }
            rego + "}"
        };
        for rego in [
            "package x\nx := numbers.range(1, 1000000000000)".to_owned(),
            "package x\nx := numbers.range_step(-9223372036854775808, 9223372036854775807, 2)"
                .to_owned(),
            "package x\nx := sprintf(\"%999999999d\", [1])".to_owned(),
            "package x\nx := sprintf(\"%\u{b2}d\", [1])".to_owned(),
            repeated("concat(\"\", [T, T])"),
            repeated("concat(\"\", array.concat([T], [T]))"),
            shared("json.marshal(a39)"),
            shared("sprintf(\"%v\", [a39])"),
            repeated("sprintf(\"%s%s\", [T, T])"),
            repeated("replace(T, \"x\", \"xx\")"),
            repeated("strings.replace_n({\"x\": \"xx\"}, T)"),
            repeated("hex.encode(T)"),
            repeated("json.marshal([T, T])"),
            repeated("regex.replace(T, \"x\", \"xx\")"),
            "package x\nx := bits.lsh(1, 4000000000)".to_owned(),
            "package x\nx := product(numbers.range(1, 9000))".to_owned(),
            "package x\nx := to_number(\"1e99999999\")".to_owned(),
            "package x\nx := units.parse(\"1e99999999\")".to_owned(),
            "package x\nx := units.parse(\"-.1E+99999999\")".to_owned(),
            "package x\nx := units.parse_bytes(\"1e99999999\")".to_owned(),
            "package x\nx := json.unmarshal(\"[1e99999999]\")".to_owned(),
        ] {
            let mut engine = Engine::new();
            engine
                .add_policy("x.rego".to_owned(), rego.clone())
                .unwrap();
            bound(&mut engine).unwrap();
            assert!(engine.eval_rule("data.x.x".to_owned()).is_err(), "{rego}");
        }
    }
}
