//! The record: each decision and each administration, as one entry that is never changed.

use std::collections::BTreeMap;

use kbs_protocol::TeePubKey;
use policies::{
    PolicyError,
    release::{Judgement, Reason},
};
use rand::Rng;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use sha2::{Digest, Sha256};
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

/// Letters and digits that nobody takes for one another.
const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
/// Of a ticket: characters that tell the time, and random ones behind them.
const TIME_CHARS: usize = 7;
const RANDOM_CHARS: usize = 10;
/// Nanoseconds of one step of a ticket's time.
const TIME_STEP: i128 = 16_000_000;
/// Characters of what was found: a digest of any kind is shorter.
const FOUND_CHARS: usize = 256;
/// Bytes of a guest's key's digest.
const SUBJECT_BYTES: usize = 16;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Evidence was judged.
    Attest,
    /// A guest asked for a resource.
    Release,
    /// A resource was set or deleted.
    Resource,
    /// A policy was set.
    Policy,
    /// Reference values were set.
    Reference,
}

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// The guest got what it asked for.
    Allowed,
    /// It did not, for the reasons in the entry.
    Denied,
    /// It may have it, and there is none.
    Absent,
    /// An administrator set it.
    Set,
    /// An administrator deleted it.
    Deleted,
}

/// By which versions was decided; 0 is what is built in, or was not asked.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Versions {
    /// The id of the policy that decided; empty where none did.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub policy: String,
    /// Of the release policy.
    pub release: i64,
    /// Of the appraisal policy.
    pub appraisal: i64,
    /// Of the reference values.
    pub references: i64,
    /// Of the appraisal policies of devices, by their class.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub devices: BTreeMap<String, i64>,
    /// Of the resource that was released, set or deleted.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub resource: i64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "as serde calls it")]
fn is_zero(number: &i64) -> bool {
    *number == 0
}

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Its number in the store, from 1; entries are numbered in the order in which they were kept.
    pub id: i64,
    /// When, in RFC 3339.
    pub time: String,
    /// What happened.
    pub kind: Kind,
    /// Who: `key` and a guest's key as 32 hex digits of its SHA-256, or `role` and an administrator's.
    pub subject: String,
    /// What it was about: a kind of TEE, a resource, a policy.
    pub resource: String,
    /// How it ended.
    pub result: Outcome,
    /// By what a decision is asked for later; empty where there was none to make.
    pub ticket: String,
    /// SHA-256 in hex of `tee-evidence` as it was sent, without blanks; empty where there is none.
    pub evidence: String,
    /// By which policies and reference values.
    pub versions: Versions,
    /// What was judged, one claim after the other.
    pub claims: Vec<Judged>,
    /// The ticket of the attestation whose token asked; empty where none did.
    pub attestation: String,
    /// An attestation whose token says that the guest is not to be trusted: anybody gets one, as often as
    /// they ask. It is kept as a refusal is.
    #[serde(skip)]
    pub(crate) affirms_nothing: bool,
}

/// One claim that was judged.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Judged {
    /// The claim, as a path into the evidence, the token or the request.
    pub claim: String,
    /// What it has to be.
    pub expected: String,
    /// What it is.
    pub found: String,
    /// Whether that will do.
    #[serde(default)]
    pub holds: bool,
    /// Who judged: a verifier, or a rule of a policy.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub rule: String,
    /// What the owner can do, where it will not do.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub fix: String,
    /// Of which part of the guest it is, as `gpu0`; empty where it is the CPU's or no part's.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub submod: String,
}

impl Judged {
    /// A policy that could not decide.
    pub(crate) fn failing(error: &PolicyError) -> Self {
        tracing::error!(%error, "a policy failed");
        Self {
            claim: "data.policy".to_owned(),
            expected: "a decision".to_owned(),
            found: error.to_string(),
            holds: false,
            rule: "engine".to_owned(),
            fix: "correct the policy and set it again".to_owned(),
            submod: String::new(),
        }
    }

    /// What a policy judged, with its advice on what does not hold. That it refuses as a whole is no
    /// cause beside the causes that it names.
    pub(crate) fn by_policy(judgements: Vec<Judgement>, reasons: &[Reason]) -> Vec<Self> {
        let known = |claim: &str| reasons.iter().find(|reason| reason.claim == claim);
        let mut judged = Vec::with_capacity(judgements.len());
        for one in judgements {
            let advice = known(&one.claim).filter(|_| !one.holds);
            let whole = !one.holds && one.claim == one.rule;
            if whole && advice.is_none() && !reasons.is_empty() {
                continue;
            }
            judged.push(Self {
                fix: advice.map_or(String::new(), |reason| reason.fix.clone()),
                claim: one.claim,
                expected: one.expected,
                found: one.found,
                holds: one.holds,
                rule: one.rule,
                submod: String::new(),
            });
        }
        for reason in reasons {
            if !judged.iter().any(|one| one.claim == reason.claim) {
                judged.push(reason.clone().into());
            }
        }
        judged
    }
}

impl From<Reason> for Judged {
    fn from(reason: Reason) -> Self {
        Self {
            claim: reason.claim,
            expected: reason.expected,
            found: reason.found,
            holds: false,
            rule: String::new(),
            fix: reason.fix,
            submod: String::new(),
        }
    }
}

impl Entry {
    pub(crate) fn new(kind: Kind, result: Outcome, subject: String, resource: String) -> Self {
        Self {
            id: 0,
            time: rfc3339(OffsetDateTime::now_utc()),
            kind,
            subject,
            resource,
            result,
            ticket: match kind {
                Kind::Attest | Kind::Release => ticket(),
                Kind::Resource | Kind::Policy | Kind::Reference => String::new(),
            },
            evidence: String::new(),
            versions: Versions::default(),
            claims: Vec::new(),
            attestation: String::new(),
            affirms_nothing: false,
        }
    }

    /// Whether strangers can bring it about at will.
    pub(crate) fn is_minor(&self) -> bool {
        self.result == Outcome::Denied || self.affirms_nothing
    }

    /// The same as a refusal.
    pub(crate) fn denied(mut self) -> Self {
        self.result = Outcome::Denied;
        self
    }

    /// The same with what was judged.
    pub(crate) fn judging<T: Into<Judged>>(mut self, claims: impl IntoIterator<Item = T>) -> Self {
        self.claims = claims.into_iter().map(Into::into).collect();
        self
    }

    /// The same without more of what a stranger sent than one needs to see.
    pub(crate) fn cut(mut self) -> Self {
        for claim in &mut self.claims {
            let found = &mut claim.found;
            if let Some((end, _)) = found.char_indices().nth(FOUND_CHARS) {
                found.truncate(end);
                found.push('…');
            }
        }
        self
    }

    pub(crate) fn by(mut self, versions: Versions) -> Self {
        self.versions = versions;
        self
    }

    pub(crate) fn on(mut self, evidence: String) -> Self {
        self.evidence = evidence;
        self
    }
}

/// A text that nobody guesses. It begins with the time, so that the store's index of tickets grows at
/// one end: at random places, each entry would write a page of its own.
pub(crate) fn ticket() -> String {
    let steps = OffsetDateTime::now_utc().unix_timestamp_nanos() / TIME_STEP;
    let mut random = [0; RANDOM_CHARS];
    rand::rng().fill_bytes(&mut random);
    let letter = |bits: usize| char::from(ALPHABET[bits % ALPHABET.len()]);
    let time = (0..TIME_CHARS).rev().map(|at| {
        let bits = steps >> (5 * at) & 31;
        letter(usize::try_from(bits).unwrap_or(0))
    });
    let random = random.iter().map(|byte| letter(usize::from(*byte)));
    time.chain(random).collect()
}

/// What is looked for; an absent member is not looked at.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Search {
    /// Not before this, in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// Before this, in RFC 3339.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub until: Option<String>,
    /// What happened.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<Kind>,
    /// What the subject begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<String>,
    /// What the resource begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// How it ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Outcome>,
    /// Entries after the one of this number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub after: Option<i64>,
    /// How many at most; the broker has a limit of its own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
}

/// The word of a kind or a result.
pub(crate) fn word<T: Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

/// The kind or result of a word.
pub(crate) fn from_word<T: DeserializeOwned>(word: &str) -> Option<T> {
    serde_json::from_value(serde_json::Value::String(word.to_owned())).ok()
}

/// How the record names a guest: by its key, which ties its releases to its attestation.
pub(crate) fn guest(key: &TeePubKey) -> String {
    let text = serde_json::to_vec(key).unwrap_or_default();
    format!(
        "key {}",
        hex::encode(&Sha256::digest(text)[..SUBJECT_BYTES])
    )
}

pub(crate) fn rfc3339(time: OffsetDateTime) -> String {
    time.format(&Rfc3339).unwrap_or_default()
}

/// Milliseconds since 1970 of a time in RFC 3339.
pub(crate) fn millis(text: &str) -> Option<i64> {
    let time = OffsetDateTime::parse(text, &Rfc3339).ok()?;
    i64::try_from(time.unix_timestamp_nanos() / 1_000_000).ok()
}

/// The reverse of [`millis`].
pub(crate) fn from_millis(millis: i64) -> Option<String> {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(millis) * 1_000_000)
        .ok()
        .map(rfc3339)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_found_is_kept_as_far_as_one_needs_to_see_it() {
        let found = |text: &str| {
            let reason = Reason {
                claim: String::new(),
                expected: String::new(),
                found: text.to_owned(),
                fix: String::new(),
            };
            let entry = Entry::new(Kind::Attest, Outcome::Denied, String::new(), String::new());
            entry.judging([reason]).cut().claims[0].found.clone()
        };
        assert_eq!(found(&"é".repeat(256)), "é".repeat(256));
        assert_eq!(found(&"é".repeat(70_000)), "é".repeat(256) + "…");
    }

    #[test]
    fn tickets_are_told_apart_and_later_ones_come_later() {
        let first = ticket();
        std::thread::sleep(std::time::Duration::from_millis(40));
        let second = ticket();
        assert!(first < second, "{first} {second}");
        assert_eq!(first.len(), TIME_CHARS + RANDOM_CHARS);
        let many: std::collections::BTreeSet<_> = (0..10_000).map(|_| ticket()).collect();
        assert_eq!(many.len(), 10_000);
    }
}
