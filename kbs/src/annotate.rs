//! What was verified of a guest, in the form that appraisal and release policies read: Trustee's, so
//! that its policies find what they look for.

use evidence::init_data::InitData;
use kbs_protocol::RuntimeData;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha384};

/// Bytes of an init-data entry that goes into the token whole. A longer one goes in as its digest,
/// so that the token still fits into a header.
const CLAIM_BYTES: usize = 8 * 1024;
/// The entry with the agent's policy.
const AGENT_POLICY: &str = "policy.rego";
/// Where Trustee gives what the agent's policy says of the workload.
const AGENT_POLICY_CLAIMS: &str = "agent_policy_claims";
/// What comes before it in a policy that Kata's `genpolicy` wrote, at the start of a line.
const POLICY_DATA: &str = "policy_data := ";
/// Bytes of it as it stands in the policy, where it is indented, and as it goes into the token.
const POLICY_DATA_BYTES: usize = 64 * 1024;
const AGENT_POLICY_CLAIM_BYTES: usize = 16 * 1024;

/// The claims of one part. Init-data is in them only if the launch bound it.
pub(crate) fn annotate(
    claims: verifier::Claims,
    runtime: &RuntimeData,
    additional_evidence: &str,
    init_data: Option<&InitData>,
) -> Value {
    let mut annotated = json!({
        "report_data": claims.report_data,
        "runtime_data_claims": {
            "nonce": runtime.nonce,
            "tee-pubkey": runtime.tee_pubkey,
            "additional-evidence": additional_evidence,
        },
    });
    annotated[claims.kind.name()] = claims.evidence;
    if let Some(bound) = claims.init_data {
        annotated["init_data"] = Value::String(bound);
        if let Some(init_data) = init_data {
            annotated["init_data_claims"] = init_data_claims(init_data);
        }
    }
    annotated
}

/// The entries of init-data; those in TOML as objects, and of the agent's policy what it says of the
/// workload, as Trustee has them.
fn init_data_claims(init_data: &InitData) -> Value {
    let mut claims = Map::new();
    for (name, text) in init_data.data() {
        let workload = (name == AGENT_POLICY).then(|| policy_data(text)).flatten();
        let value = if text.len() > CLAIM_BYTES || workload.is_some() {
            json!({ "sha384": hex::encode(Sha384::digest(text)) })
        } else if name.ends_with(".toml") {
            toml::from_str(text).unwrap_or_else(|_| Value::String(text.clone()))
        } else {
            Value::String(text.clone())
        };
        claims.insert(name.clone(), value);
        if let Some(workload) = workload {
            claims.insert(AGENT_POLICY_CLAIMS.to_owned(), workload);
        }
    }
    Value::Object(claims)
}

/// What a policy says of its workload, where that is its last rule, in JSON. It must be a line of its
/// own and the only one, so that no comment or text can pass for it.
fn policy_data(policy: &str) -> Option<Value> {
    let mut places = policy.match_indices(POLICY_DATA);
    let (place, _) = places.next()?;
    let own_line = policy[..place].is_empty() || policy[..place].ends_with('\n');
    let text = policy.get(place + POLICY_DATA.len()..)?;
    if !own_line || places.next().is_some() || text.len() > POLICY_DATA_BYTES {
        return None;
    }
    let data: Map<String, Value> = serde_json::from_str(text).ok()?;
    let data = Value::Object(data);
    (data.to_string().len() <= AGENT_POLICY_CLAIM_BYTES).then_some(data)
}

#[cfg(test)]
mod tests {
    use evidence::init_data::Algorithm;

    use super::*;

    fn claims(entries: &[(&str, &str)]) -> Value {
        let owned = |(name, text): &(&str, &str)| ((*name).to_owned(), (*text).to_owned());
        let data = entries.iter().map(owned).collect();
        init_data_claims(&InitData::build(Algorithm::Sha384, data).unwrap())
    }

    #[test]
    fn entries_in_toml_are_objects_and_long_ones_digests() {
        let long = "x".repeat(CLAIM_BYTES + 1);
        let claims = claims(&[
            ("aa.toml", "[token_configs.kbs]\nurl = 'https://broker'"),
            ("policy.rego", "package agent_policy"),
            ("long", &long),
        ]);
        assert_eq!(
            claims["aa.toml"]["token_configs"]["kbs"]["url"],
            "https://broker"
        );
        assert_eq!(claims["policy.rego"], "package agent_policy");
        assert_eq!(claims["long"]["sha384"], hex::encode(Sha384::digest(&long)));
    }

    #[test]
    fn what_a_policy_says_of_its_workload_is_a_claim_where_trustee_has_it() {
        let policy =
            "package agent_policy\n\npolicy_data := {\n  \"containers\": [{\"OCI\": {}}]\n}\n";
        let claims = claims(&[("policy.rego", policy)]);
        let expected = json!({"containers": [{"OCI": {}}]});
        assert_eq!(claims["agent_policy_claims"], expected);
        assert_eq!(
            claims["policy.rego"]["sha384"],
            hex::encode(Sha384::digest(policy))
        );
    }

    #[test]
    fn a_text_that_is_not_the_last_rule_says_nothing() {
        let large = format!(
            "policy_data := {{\"a\":\"{}\"}}",
            "x".repeat(AGENT_POLICY_CLAIM_BYTES)
        );
        let padded = format!("policy_data := {{{}}}", " ".repeat(POLICY_DATA_BYTES));
        for policy in [
            "# policy_data := {\"a\": 1}",
            "policy_data := {\"a\": 1}\nallow := true",
            "policy_data := {\"a\": 1}\npolicy_data := {\"a\": 2}",
            "policy_data := [1]",
            "policy_data := {\"a\": x}",
            "policy_data := ",
            "",
            &large,
            &padded,
        ] {
            assert_eq!(policy_data(policy), None, "{policy:.60}");
        }
    }
}
