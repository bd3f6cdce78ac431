//! Why a policy refused, in the policy's own words: `data.policy.reasons`, a set of objects
//! `{claim, expected, found, fix}` that release and appraisal policies may define alike.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::engine::{PolicyError, to_json};

const REASONS: &str = "data.policy.reasons";
/// Reasons that a decision keeps, and characters of each text in them.
const REASON_COUNT: usize = 32;
pub(crate) const REASON_CHARS: usize = 1024;

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

/// The reasons in a rule's value, none where it is undefined.
pub(crate) fn read(value: Option<regorus::Value>) -> Result<Vec<Reason>, PolicyError> {
    let Some(value) = value else {
        return Ok(Vec::new());
    };
    let shape = || PolicyError::Shape {
        rule: REASONS.to_owned(),
        expected: "a set of objects with `claim`, `expected`, `found` and `fix`",
    };
    let Value::Array(items) = to_json(REASONS, &value)? else {
        return Err(shape());
    };
    items
        .iter()
        .take(REASON_COUNT)
        .map(|item| {
            let member = |name: &str| item.get(name).map(text).ok_or_else(shape);
            Ok(Reason {
                claim: member("claim")?,
                expected: member("expected")?,
                found: member("found")?,
                fix: member("fix")?,
            })
        })
        .collect()
}

fn text(value: &Value) -> String {
    let text = match value {
        Value::String(text) => text.clone(),
        other => other.to_string(),
    };
    text.chars().take(REASON_CHARS).collect()
}
