//! How far is a guest to be trusted? `data.policy.trust_claims` maps names of the AR4SI trust vector
//! to numbers, and the worst of them is the status of the token.
//!
//! Trustee's contract: `input` is `{"<tee>": {...}, "init_data", "report_data", ...}`, and the function
//! `query_reference_value` gives what the owner registered (`query_reference_values` the same as a list,
//! which is ours). A name that is not of the vector is an
//! error here, and no panic.
//!
//! AR4SI: <https://datatracker.ietf.org/doc/draft-ietf-rats-ar4si/>.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

use regorus::{Engine, Value as Rego};
use serde::{Deserialize, Serialize};
use serde_json::Value;

pub use crate::reason::{Judgement, Reason};
use crate::{
    engine::{PolicyError, Pool, answered, ask, decision_time, from_json, to_json},
    reason::account,
};

const PACKAGE: &str = "policy";
const TRUST_CLAIMS: &str = "data.policy.trust_claims";
const EXTENSIONS: &str = "data.policy.extensions";
/// Puts the question, all of it at once.
const ASK: &str = include_str!("../appraisal/ask.rego");
const ANSWER: &str = "data.cloister_appraisal.answer";
/// Extensions of one appraisal.
const EXTENSION_COUNT: usize = 16;
/// Trustee's function: what is registered, as it is, or null.
const QUERY: &str = "query_reference_value";
/// The same as a list: its members, one alone as the only member, none where nothing is registered.
const QUERY_LIST: &str = "query_reference_values";

/// What a new broker appraises by.
pub const DEFAULT: &str = include_str!("../appraisal/default.rego");

/// The names of the trust vector.
const CLAIMS: [&str; 8] = [
    "instance-identity",
    "configuration",
    "executables",
    "file-system",
    "hardware",
    "runtime-opaque",
    "storage-opaque",
    "sourced-data",
];

/// What the owner registered, by name.
pub type ReferenceValues = Arc<BTreeMap<String, Value>>;

/// Where an engine's [`QUERY`] finds the reference values of the decision that it is making.
type Slot = Arc<Mutex<ReferenceValues>>;

/// A policy over evidence.
#[derive(Debug)]
pub struct AppraisalPolicy {
    pool: Pool<Slot>,
    built_in: bool,
}

/// The result for one piece of evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Appraisal {
    /// The worst of the vector.
    pub status: Status,
    /// Claim to value.
    pub vector: BTreeMap<String, i8>,
    /// Why the status is not affirming: by the policy's rule `reasons`, by its judgements that do not
    /// hold, or by the vector where it has neither. Empty when it is.
    pub reasons: Vec<Reason>,
    /// Each claim as the policy judged it, by its rule `judgements`; where it has none, the members of
    /// the vector.
    pub judgements: Vec<Judgement>,
    /// What the policy adds to the token; at most 16.
    pub extensions: Vec<Extension>,
}

/// A member that a policy adds to its part of the token, as Trustee's do.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extension {
    /// The name in JSON.
    pub name: String,
    /// The key in CBOR.
    pub key: i32,
    /// The value.
    pub value: Value,
}

/// A tier of trust, from best to worst in the order of AR4SI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing was appraised.
    None,
    /// Recognised and not compromised.
    Affirming,
    /// Recognised, with something to look at.
    Warning,
    /// Not to be trusted.
    Contraindicated,
}

impl Status {
    /// The word in a token.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::Affirming => "affirming",
            Self::Warning => "warning",
            Self::Contraindicated => "contraindicated",
        }
    }
}

impl From<i8> for Status {
    fn from(value: i8) -> Self {
        match value {
            -1..=1 => Self::None,
            -32..=31 => Self::Affirming,
            -96..=95 => Self::Warning,
            i8::MIN..=i8::MAX => Self::Contraindicated,
        }
    }
}

impl AppraisalPolicy {
    /// Parses the owner's policy.
    ///
    /// # Errors
    /// When it is too large, does not parse, or is of another package.
    pub fn from_rego(rego: &str) -> Result<Self, PolicyError> {
        let built_in = rego == DEFAULT;
        let limit = decision_time(built_in);
        Ok(Self {
            pool: Pool::compile(PACKAGE, rego, (ASK, ANSWER), Rego::new_object(), limit)?,
            built_in,
        })
    }

    /// Whether it is what we ship, of which it is known that it takes microseconds.
    #[must_use]
    pub fn is_built_in(&self) -> bool {
        self.built_in
    }

    /// Appraises nothing, so that a policy without end is found before a guest asks it.
    ///
    /// # Errors
    /// When it takes too long. What else fails may be for want of an input.
    pub fn try_out(&self) -> Result<(), PolicyError> {
        let nothing = Value::Object(serde_json::Map::new());
        match self.appraise(&nothing, &ReferenceValues::default()) {
            Err(error @ PolicyError::Slow { .. }) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Appraises verified claims.
    ///
    /// # Errors
    /// When the policy fails, gives no claim, one that is not of the vector, or a number that is
    /// none of AR4SI. The caller refuses the evidence.
    pub fn appraise(
        &self,
        input: &Value,
        references: &ReferenceValues,
    ) -> Result<Appraisal, PolicyError> {
        let input = from_json(input);
        self.pool.run(equip, |engine, slot| {
            *slot.lock().unwrap_or_else(PoisonError::into_inner) = Arc::clone(references);
            engine.set_input(input);
            conclude(&ask(engine, ANSWER)?)
        })
    }
}

fn conclude(answer: &Rego) -> Result<Appraisal, PolicyError> {
    let vector = vector(answered(answer, "trust_claims"))?;
    let status = vector.values().copied().map(Status::from).max();
    let status = status.unwrap_or(Status::Contraindicated);
    let mut account = account(
        answered(answer, "judgements"),
        answered(answer, "reasons"),
        |rule| match rule {
            Some(rule) => format!("{TRUST_CLAIMS}.{rule}"),
            None => TRUST_CLAIMS.to_owned(),
        },
    )?;
    if account.judgements.is_empty() {
        account.judgements = judged(&vector);
    }
    if status == Status::Affirming {
        account.reasons.clear();
    } else if account.reasons.is_empty() {
        account.reasons = unexplained(&account.judgements);
    }
    Ok(Appraisal {
        status,
        reasons: account.reasons,
        judgements: account.judgements,
        extensions: extensions(answered(answer, "extensions"))?,
        vector,
    })
}

/// Gives a new engine the functions that ask for reference values.
fn equip(engine: &mut Engine) -> Result<Slot, PolicyError> {
    let slot = Slot::default();
    for (name, as_list) in [(QUERY, false), (QUERY_LIST, true)] {
        let references = Arc::clone(&slot);
        let query = move |parameters: Vec<Rego>| {
            let references = references.lock().unwrap_or_else(PoisonError::into_inner);
            let found = match parameters.first() {
                Some(Rego::String(name)) => references.get(&**name),
                Some(_) | None => None,
            };
            Ok(match (found, as_list) {
                (None, false) => Rego::Null,
                (None | Some(Value::Null), true) => Rego::new_array(),
                (Some(value @ Value::Array(_)), true) | (Some(value), false) => from_json(value),
                (Some(value), true) => vec![from_json(value)].into(),
            })
        };
        engine
            .add_extension(name.to_owned(), 1, Box::new(query))
            .map_err(|error| PolicyError::Evaluate {
                rule: TRUST_CLAIMS.to_owned(),
                detail: error.to_string(),
            })?;
    }
    Ok(slot)
}

fn vector(value: Option<&Rego>) -> Result<BTreeMap<String, i8>, PolicyError> {
    let Some(Rego::Object(claims)) = value else {
        return Err(shape());
    };
    let claim = |(name, value): (&Rego, &Rego)| {
        let name = match name {
            Rego::String(name) if CLAIMS.contains(&&**name) => (**name).to_owned(),
            _ => return None,
        };
        let value = value.as_i64().ok()?;
        Some((name, i8::try_from(value).ok()?))
    };
    let vector: Option<BTreeMap<_, _>> = claims.iter().map(claim).collect();
    vector.filter(|vector| !vector.is_empty()).ok_or_else(shape)
}

fn extensions(value: Option<&Rego>) -> Result<Vec<Extension>, PolicyError> {
    let Some(value) = value else {
        return Ok(Vec::new());
    };
    let parsed = serde_json::from_value(to_json(EXTENSIONS, value)?).ok();
    parsed
        .filter(|list: &Vec<Extension>| list.len() <= EXTENSION_COUNT)
        .ok_or_else(|| PolicyError::Shape {
            rule: EXTENSIONS.to_owned(),
            expected: "a list of at most 16 objects with `name`, `key` (32-bit integer) and `value`",
        })
}

/// The judgements of a policy that gives none: a claim of the vector holds where it is affirming, and
/// where others are asserted, one that asserts nothing is not held against the guest.
fn judged(vector: &BTreeMap<String, i8>) -> Vec<Judgement> {
    let worst = vector.values().copied().map(Status::from).max();
    let judgement = |(name, value): (&String, &i8)| Judgement {
        claim: format!("{TRUST_CLAIMS}.{name}"),
        expected: "an affirming value, 2 to 31".to_owned(),
        found: value.to_string(),
        holds: worst != Some(Status::None) && Status::from(*value) <= Status::Affirming,
        rule: format!("{TRUST_CLAIMS}.{name}"),
    };
    vector.iter().map(judgement).collect()
}

/// The reasons of a policy that gives none.
fn unexplained(judgements: &[Judgement]) -> Vec<Reason> {
    judgements
        .iter()
        .filter(|judgement| !judgement.holds)
        .map(|judgement| Reason {
            claim: judgement.claim.clone(),
            expected: judgement.expected.clone(),
            found: judgement.found.clone(),
            fix: "the appraisal policy gives no reasons: register the reference values that its \
                  rules for this claim ask for, or let it define `judgements` or `reasons` to have \
                  them here"
                .to_owned(),
        })
        .collect()
}

fn shape() -> PolicyError {
    PolicyError::Shape {
        rule: TRUST_CLAIMS.to_owned(),
        expected: "an object from at least one claim of the AR4SI trust vector to a number from -128 to 127",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn appraise(rego: &str) -> Result<Appraisal, PolicyError> {
        let references = Arc::new(BTreeMap::from([("svn".to_owned(), json!(["1"]))]));
        let input = json!({"sample": {"svn": "1"}});
        AppraisalPolicy::from_rego(rego)?.appraise(&input, &references)
    }

    #[test]
    fn the_worst_claim_is_the_status() {
        let result = appraise(
            r#"package policy
            trust_claims := {"executables": 3, "hardware": 97, "configuration": 36}"#,
        )
        .unwrap();
        assert_eq!(result.status, Status::Contraindicated);
        assert_eq!(result.vector["configuration"], 36);
        for (value, status) in [
            (0, Status::None),
            (3, Status::Affirming),
            (36, Status::Warning),
        ] {
            let rego = format!("package policy\ntrust_claims := {{\"executables\": {value}}}");
            assert_eq!(appraise(&rego).unwrap().status, status);
        }
    }

    #[test]
    fn reference_values_are_asked_for_by_name() {
        let rego = r#"package policy
            default executables := 33
            executables := 3 if { input.sample.svn in query_reference_value("svn") }
            default hardware := 97
            hardware := 2 if { query_reference_value("absent") != null }
            trust_claims := {"executables": executables, "hardware": hardware}"#;
        let result = appraise(rego).unwrap();
        assert_eq!(
            (result.vector["executables"], result.vector["hardware"]),
            (3, 97)
        );
    }

    #[test]
    fn claims_that_are_not_of_the_vector_are_refused() {
        for claims in [
            "{}",
            "{\"hardwear\": 2}",
            "{\"hardware\": 300}",
            "{\"hardware\": \"2\"}",
            "2",
        ] {
            let rego = format!("package policy\ntrust_claims := {claims}");
            assert!(
                matches!(appraise(&rego), Err(PolicyError::Shape { .. })),
                "{claims}"
            );
        }
        assert!(appraise("package policy\nother := 1").is_err());
    }

    #[test]
    fn the_default_never_affirms_a_sample() {
        let result = appraise(DEFAULT).unwrap();
        assert_eq!(result.status, Status::Contraindicated);
        assert!(result.vector["hardware"] > 95);
    }
}
