//! A decision explained: what was decided, by what, and what failed first.
//!
//! A guest is often refused a resource because its token is not affirmed, which was decided when it
//! attested. The record ties the two decisions together, so that the owner reads the cause and not its
//! consequence.

use serde::{Deserialize, Serialize};

use crate::{
    attest::CPU,
    record::{Entry, Judged, Outcome},
};

/// A decision with its causes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explained {
    /// The decision that the ticket is of.
    pub decision: Entry,
    /// The attestation whose token was judged, where the decision was about a resource and the record
    /// still has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub attestation: Option<Entry>,
    /// What failed, the first cause first; empty where nothing did.
    pub causes: Vec<Judged>,
}

impl Explained {
    pub(crate) fn new(decision: Entry, attestation: Option<Entry>) -> Self {
        let causes = match decision.result {
            Outcome::Denied => causes(&decision, attestation.as_ref()),
            Outcome::Absent => vec![absent(&decision)],
            Outcome::Allowed | Outcome::Set | Outcome::Deleted => Vec::new(),
        };
        Self {
            decision,
            attestation,
            causes,
        }
    }
}

/// Of a guest that might have what is not there.
fn absent(decision: &Entry) -> Judged {
    let path = &decision.resource;
    Judged {
        claim: "resource".to_owned(),
        expected: path.clone(),
        found: "no such resource".to_owned(),
        holds: false,
        rule: String::new(),
        fix: format!("`kbs resource set {path}`, or ask for one of `kbs resource list`"),
        submod: String::new(),
    }
}

fn causes(decision: &Entry, attestation: Option<&Entry>) -> Vec<Judged> {
    let (consequences, mut causes): (Vec<_>, Vec<_>) =
        failed(decision).partition(|one| submod_of(&one.claim).is_some());
    if consequences.is_empty() {
        return causes;
    }
    let mut earlier: Vec<_> = attestation.into_iter().flat_map(failed).collect();
    let explains = |first: &Judged, one: &Judged| submod_of(&one.claim) == Some(part_of(first));
    let unexplained = |one: &Judged| !earlier.iter().any(|first| explains(first, one));
    let left: Vec<_> = consequences
        .iter()
        .filter(|one| unexplained(one))
        .cloned()
        .collect();
    earlier.retain(|first| consequences.iter().any(|one| explains(first, one)));
    causes.retain(|one| !earlier.iter().any(|first| is_same(first, one)));
    [earlier, left, causes].concat()
}

/// Whether both policies tell the same fact, each in its own place.
fn is_same(one: &Judged, other: &Judged) -> bool {
    let member = |judged: &Judged| judged.claim.rsplit('.').next().map(str::to_owned);
    one.found == other.found && member(one) == member(other)
}

fn failed(entry: &Entry) -> impl Iterator<Item = Judged> {
    entry.claims.iter().filter(|one| !one.holds).cloned()
}

/// The part of the guest whose appraisal a claim of a release policy is about: what the appraisal made of
/// other claims.
fn submod_of(claim: &str) -> Option<&str> {
    let appraised = claim.ends_with(".ear.status") || claim.contains(".ear.trustworthiness-vector");
    let (before, _) = claim.split_once(".ear.").filter(|_| appraised)?;
    Some(before.rsplit('.').next().unwrap_or(before))
}

/// The part that a judged claim of an attestation is about.
fn part_of(judged: &Judged) -> &str {
    match judged.submod.as_str() {
        "" => CPU,
        submod => submod,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::record::Kind;

    fn judged(claim: &str, holds: bool) -> Judged {
        Judged {
            claim: claim.to_owned(),
            expected: String::new(),
            found: claim.to_owned(),
            holds,
            rule: String::new(),
            fix: String::new(),
            submod: String::new(),
        }
    }

    fn entry(kind: Kind, result: Outcome, claims: &[(&str, bool)]) -> Entry {
        let mut entry = Entry::new(kind, result, String::new(), String::new());
        entry.claims = claims
            .iter()
            .map(|(claim, holds)| judged(claim, *holds))
            .collect();
        entry
    }

    fn told(decision: &[(&str, bool)], attestation: &[(&str, bool)]) -> Vec<String> {
        let decision = entry(Kind::Release, Outcome::Denied, decision);
        let attestation = entry(Kind::Attest, Outcome::Allowed, attestation);
        let explained = Explained::new(decision, Some(attestation));
        explained.causes.into_iter().map(|one| one.claim).collect()
    }

    #[test]
    fn a_status_is_explained_by_the_claims_that_made_it() {
        let status = ("submods.cpu0.ear.status", false);
        assert_eq!(
            told(
                &[status, ("data.plugin", true)],
                &[("snp.measurement", false), ("snp.vmpl", true)]
            ),
            ["snp.measurement"]
        );
        assert_eq!(told(&[status], &[("snp.vmpl", true)]), [status.0]);
        assert_eq!(
            told(&[("path", false)], &[("snp.measurement", false)]),
            ["path"]
        );
    }

    #[test]
    fn a_part_is_explained_by_its_own_claims_and_told_where_it_has_none() {
        let gpu = ("submods.gpu0.ear.status", false);
        let cpu = ("submods.cpu0.ear.status", false);
        let snp = ("snp.measurement", false);
        assert_eq!(told(&[gpu, cpu], &[snp]), [snp.0, gpu.0]);
        // What failed and brought nothing about is no cause.
        assert_eq!(told(&[gpu], &[snp]), [gpu.0]);
        let mut attestation = entry(
            Kind::Attest,
            Outcome::Allowed,
            &[snp, ("sampledevice.svn", false)],
        );
        attestation.claims[1].submod = "gpu0".to_owned();
        let decision = entry(Kind::Release, Outcome::Denied, &[gpu]);
        let causes = Explained::new(decision, Some(attestation)).causes;
        assert_eq!(causes.len(), 1);
        assert_eq!(
            (causes[0].claim.as_str(), causes[0].submod.as_str()),
            ("sampledevice.svn", "gpu0")
        );
    }

    #[test]
    fn two_claims_that_look_alike_are_both_told() {
        let status = judged("submods.cpu0.ear.status", false);
        let of = |claim: &str| Judged {
            found: "true".to_owned(),
            ..judged(claim, false)
        };
        let mut decision = entry(Kind::Release, Outcome::Denied, &[]);
        decision.claims = vec![status, of("input.claim.other"), of("evidence.sample.debug")];
        let mut attestation = entry(Kind::Attest, Outcome::Allowed, &[]);
        attestation.claims = vec![of("sample.debug")];
        let causes = Explained::new(decision, Some(attestation)).causes;
        let told: Vec<_> = causes.iter().map(|one| one.claim.as_str()).collect();
        assert_eq!(told, ["sample.debug", "input.claim.other"]);
    }

    #[test]
    fn what_was_allowed_has_no_cause() {
        let decision = entry(
            Kind::Attest,
            Outcome::Allowed,
            &[("snp.measurement", false)],
        );
        assert!(Explained::new(decision, None).causes.is_empty());
    }
}
