//! A decision explained: what was decided, by what, and what failed first.
//!
//! A guest is often refused a resource because its token is not affirmed, which was decided when it
//! attested. The record ties the two decisions together, so that the owner reads the cause and not its
//! consequence.

use serde::{Deserialize, Serialize};

use crate::record::{Entry, Judged, Outcome};

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
            Outcome::Allowed | Outcome::Absent | Outcome::Set | Outcome::Deleted => Vec::new(),
        };
        Self {
            decision,
            attestation,
            causes,
        }
    }
}

fn causes(decision: &Entry, attestation: Option<&Entry>) -> Vec<Judged> {
    let (consequences, mut causes): (Vec<_>, Vec<_>) =
        failed(decision).partition(|one| follows_from_appraisal(&one.claim));
    if consequences.is_empty() {
        return causes;
    }
    let earlier: Vec<_> = attestation.into_iter().flat_map(failed).collect();
    if earlier.is_empty() {
        return [consequences, causes].concat();
    }
    // The same fact may be told by both policies.
    causes.retain(|one| !earlier.iter().any(|first| first.found == one.found));
    [earlier, causes].concat()
}

fn failed(entry: &Entry) -> impl Iterator<Item = Judged> {
    entry.claims.iter().filter(|one| !one.holds).cloned()
}

/// Whether a claim of a release policy is what the appraisal made of others.
fn follows_from_appraisal(claim: &str) -> bool {
    claim.ends_with(".ear.status") || claim.contains(".ear.trustworthiness-vector")
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
    fn what_was_allowed_has_no_cause() {
        let decision = entry(
            Kind::Attest,
            Outcome::Allowed,
            &[("snp.measurement", false)],
        );
        assert!(Explained::new(decision, None).causes.is_empty());
    }
}
