//! Why a policy decided as it did, in its own words.
//!
//! `data.policy.judgements` is a list of objects `{claim, expected, found, holds, rule}`, or of such
//! lists: everything that the policy looked at, whether it held or not. `data.policy.reasons` is a set of objects
//! `{claim, expected, found, fix}`: what to do about a refusal. A policy may define either, both or
//! none: judgements that do not hold are reasons where it has no others.

use regorus::Value;
use serde::{Deserialize, Serialize};

use crate::engine::PolicyError;

const REASONS: &str = "data.policy.reasons";
const JUDGEMENTS: &str = "data.policy.judgements";
/// Reasons and judgements that a decision keeps, and characters of each text in them.
const REASON_COUNT: usize = 32;
const JUDGEMENT_COUNT: usize = 128;
pub(crate) const REASON_CHARS: usize = 1024;
/// Members of a list that a text shows.
const SHOWN: usize = 16;
const FIXED: &str =
    "the policy fixes this value: change the platform or the guest, or set another policy";

/// One cause of a refusal.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Reason {
    /// The claim that was judged, as a path into the token or the request.
    pub claim: String,
    /// What the policy wants.
    pub expected: String,
    /// What the guest has.
    pub found: String,
    /// What the owner can do.
    pub fix: String,
}

/// One claim as a policy judged it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Judgement {
    /// The claim that was judged, as a path into the evidence, the token or the request.
    pub claim: String,
    /// What the policy wants.
    pub expected: String,
    /// What the guest has.
    pub found: String,
    /// Whether that is as it should be.
    pub holds: bool,
    /// The rule of the policy that decides by it, like `data.policy.trust_claims.hardware`.
    pub rule: String,
}

/// What a policy says of its decision.
#[derive(Debug, Default)]
pub(crate) struct Account {
    pub(crate) judgements: Vec<Judgement>,
    /// The policy's own reasons; those of its judgements where it has none.
    pub(crate) reasons: Vec<Reason>,
}

/// Reads both rules; `rule_of` makes a judgement's rule from the name that the policy gives it, or from
/// none.
pub(crate) fn account(
    judgements: Option<&Value>,
    reasons: Option<&Value>,
    rule_of: impl Fn(Option<&str>) -> String,
) -> Result<Account, PolicyError> {
    let mut account = Account::default();
    for item in members(judgements, JUDGEMENTS, JUDGEMENT_EXPECTED)? {
        let judgement = judgement(item, &rule_of)?;
        if !judgement.holds && account.reasons.len() < REASON_COUNT {
            account.reasons.push(Reason {
                claim: judgement.claim.clone(),
                expected: judgement.expected.clone(),
                found: judgement.found.clone(),
                fix: fix(item),
            });
        }
        account.judgements.push(judgement);
    }
    let own = members(reasons, REASONS, REASON_EXPECTED)?;
    if !own.is_empty() {
        let own = own.into_iter().take(REASON_COUNT).map(reason);
        account.reasons = own.collect::<Result<_, _>>()?;
    }
    Ok(account)
}

const JUDGEMENT_EXPECTED: &str = "a list of objects with `claim`, `expected`, `found`, `holds` (a boolean), and if need be `rule`, `fix`";
const REASON_EXPECTED: &str = "a set of objects with `claim`, `expected`, `found` and `fix`";

/// The members of a list or a set; lists in it stand for their members.
fn members<'a>(
    value: Option<&'a Value>,
    rule: &str,
    expected: &'static str,
) -> Result<Vec<&'a Value>, PolicyError> {
    let mut all = Vec::new();
    let mut open: Vec<&Value> = match value {
        None => return Ok(all),
        Some(Value::Array(_) | Value::Set(_)) => value.into_iter().collect(),
        Some(_) => return Err(shape(rule, expected)),
    };
    while let Some(next) = open.pop()
        && all.len() < JUDGEMENT_COUNT
    {
        match next {
            Value::Array(items) => open.extend(items.iter().rev()),
            Value::Set(items) => open.extend(items.iter().rev()),
            item => all.push(item),
        }
    }
    Ok(all)
}

fn judgement(
    item: &Value,
    rule_of: &impl Fn(Option<&str>) -> String,
) -> Result<Judgement, PolicyError> {
    let member = |name: &str| member(item, name, JUDGEMENTS, JUDGEMENT_EXPECTED);
    let Value::Bool(holds) = member("holds")? else {
        return Err(shape(JUDGEMENTS, JUDGEMENT_EXPECTED));
    };
    let expected = member("expected")?;
    let none = is_empty(expected);
    let expected = match reference(item) {
        Some(name) if none && *holds => format!("anything: no `{name}` is registered"),
        Some(name) if none => format!("a registered `{name}`"),
        Some(_) | None => alternatives(expected),
    };
    Ok(Judgement {
        claim: path(member("claim")?),
        expected: shorten(&expected),
        found: listed(member("found")?),
        holds: *holds,
        rule: shorten(&match &item["rule"] {
            Value::Undefined => rule_of(None),
            rule => rule_of(Some(&text(rule))),
        }),
    })
}

/// What to do about a judgement that does not hold.
fn fix(item: &Value) -> String {
    let name = match (&item["fix"], reference(item)) {
        (Value::Undefined, None) => return FIXED.to_owned(),
        (Value::Undefined, Some(name)) => name,
        (fix, _) => return text(fix),
    };
    if is_empty(&item["expected"]) {
        return format!("register what the guest should have as reference value `{name}`");
    }
    format!(
        "start the guest with what is registered, or register the found value as reference value `{name}`"
    )
}

/// The reference value that a claim was compared with.
fn reference(item: &Value) -> Option<&str> {
    match &item["reference"] {
        Value::String(name) => Some(name),
        _ => None,
    }
}

fn is_empty(expected: &Value) -> bool {
    matches!(expected, Value::Array(list) if list.is_empty())
}

fn reason(item: &Value) -> Result<Reason, PolicyError> {
    let member = |name: &str| member(item, name, REASONS, REASON_EXPECTED).map(text);
    Ok(Reason {
        claim: member("claim")?,
        expected: member("expected")?,
        found: member("found")?,
        fix: member("fix")?,
    })
}

fn member<'a>(
    item: &'a Value,
    name: &str,
    rule: &str,
    expected: &'static str,
) -> Result<&'a Value, PolicyError> {
    match &item[name] {
        Value::Undefined => Err(shape(rule, expected)),
        value => Ok(value),
    }
}

fn shape(rule: &str, expected: &'static str) -> PolicyError {
    PolicyError::Shape {
        rule: rule.to_owned(),
        expected,
    }
}

/// A path of names, which are joined by dots.
fn path(value: &Value) -> String {
    match value {
        Value::Array(names) => join(names.iter(), "."),
        other => text(other),
    }
}

/// A list stands for any of its members.
fn alternatives(value: &Value) -> String {
    match value {
        Value::Array(values) if values.is_empty() => "nothing".to_owned(),
        Value::Array(values) => join(values.iter(), " or "),
        other => text(other),
    }
}

fn listed(value: &Value) -> String {
    match value {
        Value::Null => "absent".to_owned(),
        Value::Array(values) if values.is_empty() => "absent".to_owned(),
        Value::Set(values) if values.is_empty() => "none".to_owned(),
        Value::Array(values) => join(values.iter(), " "),
        Value::Set(values) => join(values.iter(), " "),
        other => text(other),
    }
}

fn join<'a>(values: impl ExactSizeIterator<Item = &'a Value>, between: &str) -> String {
    let more = values.len() > SHOWN;
    let mut all = String::new();
    for (index, value) in values.take(SHOWN).enumerate() {
        if index > 0 {
            all.push_str(between);
        }
        all.push_str(&text(value));
    }
    if more {
        all.push_str(between);
        all.push_str("more");
    }
    shorten(&all)
}

/// A value in one line.
pub(crate) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => shorten(text),
        other => shorten(&other.to_string()),
    }
}

fn shorten(text: &str) -> String {
    match text.char_indices().nth(REASON_CHARS) {
        Some((end, _)) => text[..end].to_owned(),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::engine::from_json;

    fn one(judgement: &serde_json::Value) -> Account {
        let list = from_json(&json!([judgement]));
        account(Some(&list), None, |rule| {
            rule.unwrap_or_default().to_owned()
        })
        .unwrap()
    }

    #[test]
    fn a_value_that_is_not_registered_is_told_apart_from_one_that_differs() {
        let judged = |expected: serde_json::Value, holds: bool| {
            one(
                &json!({"claim": ["snp", "measurement"], "expected": expected, "found": "cc",
                       "holds": holds, "rule": "executables", "reference": "m"}),
            )
        };
        let missing = &judged(json!([]), false).reasons[0];
        let differing = &judged(json!(["aa", "bb"]), false).reasons[0];
        assert_eq!(missing.claim, "snp.measurement");
        assert_eq!(missing.expected, "a registered `m`");
        assert_eq!(differing.expected, "aa or bb");
        assert_ne!(missing.fix, differing.fix);
        let optional = judged(json!([]), true);
        assert!(optional.reasons.is_empty());
        assert_eq!(
            optional.judgements[0].expected,
            "anything: no `m` is registered"
        );
    }

    #[test]
    fn texts_and_lists_have_an_end() {
        let long = vec!["ä".repeat(REASON_CHARS); 2 * SHOWN];
        let account = one(&json!({"claim": long, "expected": long, "found": long,
                                 "holds": false, "rule": "x"}));
        let judgement = &account.judgements[0];
        for text in [&judgement.claim, &judgement.expected, &judgement.found] {
            assert_eq!(text.chars().count(), REASON_CHARS);
        }
        let item = json!({"claim": "a", "expected": 1, "found": null, "holds": true, "rule": "x"});
        let many = from_json(&json!(vec![item; 2 * JUDGEMENT_COUNT]));
        let account = super::account(Some(&many), None, |rule| {
            rule.unwrap_or_default().to_owned()
        })
        .unwrap();
        assert_eq!(account.judgements.len(), JUDGEMENT_COUNT);
        assert_eq!(account.judgements[0].found, "absent");
    }

    #[test]
    fn a_judgement_of_another_form_is_an_error() {
        for wrong in [
            json!([{"claim": "a"}]),
            json!([{"claim": "a", "expected": 1, "found": 1, "holds": "yes", "rule": "x"}]),
            json!([1]),
            json!({"a": 1}),
        ] {
            let value = from_json(&wrong);
            assert!(
                account(Some(&value), None, |rule| rule
                    .unwrap_or_default()
                    .to_owned())
                .is_err(),
                "{wrong}"
            );
        }
    }
}
