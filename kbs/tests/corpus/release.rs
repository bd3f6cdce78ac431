//! Faults of the request for a resource, and of the policies that judge it.

use super::{Case, Fault, Release, case};

fn release(name: &'static str, fault: Release, claim: &'static str, told: &'static str) -> Case {
    case(name, Fault::Release(fault), claim, told)
}

pub(crate) fn cases() -> Vec<Case> {
    [paths(), tokens(), policies()]
        .into_iter()
        .flatten()
        .collect()
}

fn paths() -> Vec<Case> {
    use Release::Path;
    vec![
        release(
            "a resource that is not there",
            Path("resource/default/key/absent"),
            "resource",
            "no such resource",
        ),
        release(
            "a name of two segments",
            Path("resource/default/key"),
            "InvalidRequestPath",
            "repository",
        ),
        release(
            "a name with a dot in front",
            Path("resource/default/key/.hidden"),
            "InvalidRequestPath",
            "",
        ),
        release(
            "a plugin that is not there",
            Path("pkcs11/default/key/1"),
            "PluginNotFound",
            "plugin",
        ),
    ]
}

fn tokens() -> Vec<Case> {
    use Release::Token;
    fn altered(token: &str) -> Option<String> {
        let (head, signature) = token.rsplit_once('.')?;
        Some(format!("{head}A.{signature}"))
    }
    vec![
        release("no token", Token(|_| None), "TokenNotFound", "attest first"),
        release(
            "an altered token",
            Token(altered),
            "TokenVerifierError",
            "altered",
        ),
        release(
            "half a token",
            Token(|token| Some(token[..token.len() / 2].to_owned())),
            "TokenVerifierError",
            "",
        ),
        release(
            "no token but words",
            Token(|_| Some("open sesame".to_owned())),
            "TokenVerifierError",
            "",
        ),
    ]
}

const NOBODY: &str = "package policy\ndefault allow := false\n";
const OTHER_MEASUREMENT: &str = r#"package policy
default allow := false
wanted := "eeee"
found := input.submods.cpu0["ear.veraison.annotated-evidence"]["sim-snp"].measurement
allow if found == wanted
reasons contains {"claim": "measurement", "expected": wanted, "found": found, "fix": "ask the owner"} if found != wanted
"#;
const NO_BOOLEAN: &str = "package policy\nallow := \"yes\"\n";

fn policies() -> Vec<Case> {
    use Release::{Appraisal, Policy};
    vec![
        release(
            "a policy that allows nobody",
            Policy(NOBODY),
            "data.policy.allow",
            "false",
        ),
        release(
            "a policy for another guest",
            Policy(OTHER_MEASUREMENT),
            "measurement",
            "eeee",
        ),
        release(
            "a policy that gives no boolean",
            Policy(NO_BOOLEAN),
            "data.policy.allow",
            "yes",
        ),
        release(
            "simulated evidence under the default appraisal",
            Appraisal(|_| super::super::DEFAULT_APPRAISAL.to_owned()),
            "sim-snp",
            "simulated",
        ),
        release(
            "an appraisal that gives no claims",
            Appraisal(|_| "package policy\nother := 1\n".to_owned()),
            "data.policy",
            "trust_claims",
        ),
    ]
}
