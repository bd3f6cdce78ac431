//! May this secret go to this guest? Trustee's contract, and an explanation on top of it.
//!
//! `input` is the claims of the guest's token, `data` is `{"plugin", "resource-path", "query"}` and
//! `method`, which is ours, and `data.policy.allow` decides. A policy may also say what it judged and
//! what to do about it, for the owner's eyes, by the rules `judgements` and `reasons`.

use std::collections::BTreeMap;

use regorus::Value as Rego;
use serde_json::Value;

pub use crate::reason::{Judgement, Reason};
use crate::{
    bounds::names_data,
    engine::{PolicyError, Pool, answered, ask, decision_time, from_json},
    reason::{account, text},
};

const PACKAGE: &str = "policy";
const ALLOW: &str = "data.policy.allow";
/// Puts the question: the request comes in the input, and the policy finds it as `data`.
const ASK: &str = include_str!("../release/ask.rego");
const ANSWER: &str = "data.cloister_release.answer";
/// The same for a request that has what [`usual`] has.
const PLAIN: &str = "data.cloister_release.plain";
/// The same to a policy that does not look at the path: its input is the claims alone.
const BARE: &str = "data.cloister_release.asked";
const PLUGIN: &str = "resource";
const METHOD: &str = "GET";
/// How the functions are called that answer otherwise each time, `time.now_ns` and `rand.intn`. A name
/// may be written with an escape, and a policy that has any is taken for one that calls them.
const CHANGING: [&str; 3] = ["now_ns", "intn", "\\u"];

/// What a new broker decides by: only a guest that the appraisal affirms, and no simulated one.
pub const DEFAULT: &str = include_str!("../release/default.rego");
/// Releases nothing.
pub const DENY_ALL: &str = include_str!("../release/deny_all.rego");
/// The text that [`pin_init_data`] fills in.
const PIN_INIT_DATA: &str = include_str!("../release/pin_init_data.rego");

/// A policy over releases.
#[derive(Debug)]
pub struct ReleasePolicy {
    pool: Pool<()>,
    built_in: bool,
    sees_path: bool,
    changes: bool,
}

/// What is asked for; `data` to the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Release<'a> {
    /// `resource` for secrets.
    pub plugin: &'a str,
    /// The segments after the plugin.
    pub resource_path: &'a [&'a str],
    /// The query of the URL.
    pub query: BTreeMap<String, String>,
    /// The method of HTTP, in capitals.
    pub method: &'a str,
}

/// Whether the secret goes, and if not, why.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether the secret goes to the guest.
    pub allowed: bool,
    /// Empty when allowed, never empty when not.
    pub reasons: Vec<Reason>,
    /// What decided: each claim as the policy judged it, by its rule `judgements`; where it has none,
    /// the rule `allow` itself. Never empty.
    pub judgements: Vec<Judgement>,
}

impl ReleasePolicy {
    /// Parses the owner's policy.
    ///
    /// # Errors
    /// When it is too large, does not parse, or is of another package.
    pub fn from_rego(rego: &str) -> Result<Self, PolicyError> {
        let built_in = rego == DEFAULT || rego == DENY_ALL;
        let limit = decision_time(built_in);
        Ok(Self {
            pool: Pool::compile(PACKAGE, rego, (ASK, ANSWER), usual(), limit)?,
            built_in,
            sees_path: names_data(rego),
            changes: CHANGING.iter().any(|name| rego.contains(name)),
        })
    }

    /// Whether it is what we ship, of which it is known that it takes microseconds.
    #[must_use]
    pub fn is_built_in(&self) -> bool {
        self.built_in
    }

    /// Decides about nothing, so that a policy without end is found before a guest asks it.
    ///
    /// # Errors
    /// When it takes too long. What else fails may be for want of an input.
    pub fn try_out(&self) -> Result<(), PolicyError> {
        let asked = Release {
            plugin: PLUGIN,
            resource_path: &["repository", "type", "tag"],
            query: BTreeMap::new(),
            method: METHOD,
        };
        match self.decide(&Value::Object(serde_json::Map::new()), &asked) {
            Err(error @ PolicyError::Slow { .. }) => Err(error),
            Ok(_) | Err(_) => Ok(()),
        }
    }

    /// Whether it may decide otherwise about the same request, because it looks at the clock or throws
    /// a die. Else a decision depends on the claims and the request alone.
    #[must_use]
    pub fn changes_its_mind(&self) -> bool {
        self.changes
    }

    /// Decides about one release.
    ///
    /// # Errors
    /// When the policy fails. The caller denies.
    pub fn decide(&self, claims: &Value, asked: &Release<'_>) -> Result<Decision, PolicyError> {
        let plain = asked.plugin == PLUGIN && asked.method == METHOD && asked.query.is_empty();
        let (rule, input) = match (plain, self.sees_path) {
            (true, false) => (BARE, from_json(claims)),
            (true, true) => (PLAIN, question(claims, asked)),
            (false, _) => (ANSWER, question(claims, asked)),
        };
        self.pool.run(
            |_| Ok(()),
            |engine, ()| {
                engine.set_input(input);
                conclude(&ask(engine, rule)?)
            },
        )
    }
}

fn conclude(answer: &Rego) -> Result<Decision, PolicyError> {
    let value = answered(answer, "allow");
    let allowed = value == Some(&Rego::Bool(true));
    let mut account = account(
        answered(answer, "judgements"),
        answered(answer, "reasons"),
        |rule| match rule {
            Some(rule) => format!("data.{PACKAGE}.{rule}"),
            None => ALLOW.to_owned(),
        },
    )?;
    if account.judgements.is_empty() {
        account.judgements.push(Judgement {
            claim: ALLOW.to_owned(),
            expected: "true".to_owned(),
            found: value.map_or_else(|| "undefined".to_owned(), text),
            holds: allowed,
            rule: ALLOW.to_owned(),
        });
    }
    if allowed {
        account.reasons.clear();
    } else if account.reasons.is_empty() {
        account.reasons.push(unexplained(value));
    }
    Ok(Decision {
        allowed,
        reasons: account.reasons,
        judgements: account.judgements,
    })
}

/// The data that nearly every request has. What else a request brings takes its place, at a price: the
/// interpreter looks at each rule of the policy for each member of `data` that changes.
fn usual() -> Rego {
    Rego::from(BTreeMap::from([
        (Rego::from("plugin"), PLUGIN.into()),
        (Rego::from("query"), Rego::new_object()),
        (Rego::from("method"), METHOD.into()),
    ]))
}

/// The input of [`ASK`].
fn question(claims: &Value, asked: &Release<'_>) -> Rego {
    let path: Vec<Rego> = asked
        .resource_path
        .iter()
        .map(|&part| part.into())
        .collect();
    let query: BTreeMap<Rego, Rego> = asked
        .query
        .iter()
        .map(|(name, value)| (name.as_str().into(), value.as_str().into()))
        .collect();
    Rego::from(BTreeMap::from([
        (Rego::from("claims"), from_json(claims)),
        (Rego::from("plugin"), asked.plugin.into()),
        (Rego::from("path"), path.into()),
        (Rego::from("query"), query.into()),
        (Rego::from("method"), asked.method.into()),
    ]))
}

/// A policy that releases only to guests of this kind whose launch bound this init-data.
///
/// `digest` is the hex of the init-data's digest, `tee` the kind by its name; `sample` must be asked
/// for by name like any other, and is then accepted although its appraisal is contraindicated. Of a
/// real kind the appraisal must also be affirming.
///
/// # Errors
/// When the digest is not hex of 32, 48 or 64 bytes, or the name is none of a TEE.
pub fn pin_init_data(digest: &str, tee: &str) -> Result<String, PolicyError> {
    let hex =
        matches!(digest.len(), 64 | 96 | 128) && digest.bytes().all(|b| b.is_ascii_hexdigit());
    let name = (1..=32).contains(&tee.len())
        && tee
            .bytes()
            .all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
    let shape = |rule: &str, expected| PolicyError::Shape {
        rule: rule.to_owned(),
        expected,
    };
    if !hex {
        return Err(shape("init-data digest", "hex of 32, 48 or 64 bytes"));
    }
    if !name {
        return Err(shape("tee", "the name of a TEE, like `snp`"));
    }
    let filled = PIN_INIT_DATA
        .lines()
        .map(|line| match line.split_once(" := ") {
            Some(("expected_init_data", _)) => {
                format!("expected_init_data := \"{}\"", digest.to_ascii_lowercase())
            }
            Some(("expected_tee", _)) => format!("expected_tee := \"{tee}\""),
            Some(_) | None => line.to_owned(),
        })
        .collect::<Vec<_>>();
    Ok(filled.join("\n") + "\n")
}

/// The one reason of a policy that gives none.
fn unexplained(value: Option<&Rego>) -> Reason {
    Reason {
        claim: ALLOW.to_owned(),
        expected: "true".to_owned(),
        found: value.map_or_else(|| "undefined".to_owned(), text),
        fix: "the release policy gives no reasons: read its `allow` rule, and let it define \
              `judgements` or `reasons` to have them here"
            .to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const PATH: [&str; 3] = ["default", "key", "1"];

    fn asked() -> Release<'static> {
        Release {
            plugin: "resource",
            resource_path: &PATH,
            query: BTreeMap::new(),
            method: "GET",
        }
    }

    #[test]
    fn the_request_is_data_and_the_token_is_input() {
        let policy = ReleasePolicy::from_rego(
            r#"package policy
            default allow := false
            allow if { data.plugin == "resource"; data["resource-path"][1] == "key"; data.method == "GET"; input.ok }"#,
        )
        .unwrap();
        assert!(
            policy
                .decide(&json!({"ok": true}), &asked())
                .unwrap()
                .allowed
        );
        let refused = policy.decide(&json!({}), &asked()).unwrap();
        assert!(!refused.allowed);
        assert_eq!(refused.reasons[0].claim, ALLOW);
    }

    #[test]
    fn every_request_comes_as_it_is_whatever_the_last_one_was() {
        let rego = r#"package policy
            allow := false
            judgements := [{"claim": data["resource-path"], "expected": data.plugin, "found": data.query,
                            "holds": true, "rule": data.method}]"#;
        let policy = ReleasePolicy::from_rego(rego).unwrap();
        let query = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
        let plain = asked();
        let path = ["x"];
        let other = Release {
            plugin: "other",
            resource_path: &path,
            query: query.clone(),
            method: "POST",
        };
        let queried = Release { query, ..asked() };
        for _ in 0..2 {
            for (asked, expected) in [
                (
                    &plain,
                    ["default.key.1", "resource", "{}", "data.policy.GET"],
                ),
                (&other, ["x", "other", r#"{"a":"b"}"#, "data.policy.POST"]),
                (
                    &queried,
                    [
                        "default.key.1",
                        "resource",
                        r#"{"a":"b"}"#,
                        "data.policy.GET",
                    ],
                ),
            ] {
                let decision = policy.decide(&json!({}), asked).unwrap();
                let one = &decision.judgements[0];
                assert_eq!([&one.claim, &one.expected, &one.found, &one.rule], expected);
            }
        }
    }

    #[test]
    fn a_policy_finds_the_path_however_it_looks_for_it() {
        for look in [
            r#"data["resource-path"][2] == "1""#,
            r#"data["resource\u002dpath"][2] == "1""#,
            r#"some part in data; part[2] == "1""#,
            r#"some key, part in data; key == "resource-path"; part[2] == "1""#,
            r#"data[name][2] == "1""#,
            r#"d := data; d["resource-path"][2] == "1""#,
            r#"object.get(data, ["resource-path", 2], "") == "1""#,
            r#"object.get(data,"resource-path", [])[2] == "1""#,
            "data[`resource-path`][2] == \"1\"",
        ] {
            let rego = format!("package policy\nname := \"resource-path\"\nallow if {{ {look} }}");
            let policy = ReleasePolicy::from_rego(&rego).unwrap();
            assert!(policy.sees_path, "{look}");
            let other = Release {
                method: "POST",
                ..asked()
            };
            let plain = policy.decide(&json!({}), &asked()).ok();
            assert_eq!(plain, policy.decide(&json!({}), &other).ok(), "{look}");
        }
        let import = "package policy\nimport data as d\nallow if d[\"resource-path\"][2] == \"1\"";
        if let Ok(policy) = ReleasePolicy::from_rego(import) {
            assert!(policy.sees_path);
        }
        assert!(!ReleasePolicy::from_rego(DEFAULT).unwrap().sees_path);
    }

    #[test]
    fn what_decided_is_told_also_where_it_is_allowed() {
        let policy = ReleasePolicy::from_rego(DEFAULT).unwrap();
        let token = |status: &str| {
            json!({"submods": {"cpu0": {
                "ear.status": status, "ear.appraisal-policy-id": "default",
                "ear.veraison.annotated-evidence": {"snp": {}},
            }}})
        };
        let allowed = policy.decide(&token("affirming"), &asked()).unwrap();
        assert!(allowed.allowed && allowed.judgements.iter().all(|one| one.holds));
        assert_eq!(allowed.judgements.len(), 5);
        let refused = policy.decide(&token("warning"), &asked()).unwrap();
        let failed: Vec<_> = refused.judgements.iter().filter(|one| !one.holds).collect();
        assert_eq!(failed.len(), 1);
        assert_eq!(failed[0].claim, "submods.cpu0.ear.status");
        assert_eq!(failed[0].claim, refused.reasons[0].claim);
        let silent = ReleasePolicy::from_rego("package policy\nallow := true").unwrap();
        let allowed = silent.decide(&json!({}), &asked()).unwrap();
        assert!(allowed.allowed && allowed.judgements[0].holds);
        assert_eq!(allowed.judgements[0].rule, ALLOW);
    }

    #[test]
    fn a_value_that_is_not_true_denies() {
        for value in ["1", "\"true\"", "{\"allow\": true}", "null"] {
            let rego = format!("package policy\nallow := {value}");
            let policy = ReleasePolicy::from_rego(&rego).unwrap();
            assert!(!policy.decide(&json!({}), &asked()).unwrap().allowed);
        }
    }

    #[test]
    fn a_pinned_policy_names_what_differs_and_the_fix() {
        let right = "ab".repeat(32);
        let policy = ReleasePolicy::from_rego(&pin_init_data(&right, "sample").unwrap()).unwrap();
        let token = |init_data: &str| {
            json!({"submods": {"cpu0": {
                "ear.status": "contraindicated", "ear.appraisal-policy-id": "default",
                "ear.veraison.annotated-evidence": {"sample": {"svn": "1"}, "init_data": init_data},
            }}})
        };
        assert!(policy.decide(&token(&right), &asked()).unwrap().allowed);
        let wrong = "cd".repeat(32);
        let refused = policy.decide(&token(&wrong), &asked()).unwrap();
        assert_eq!(refused.reasons.len(), 1, "{:?}", refused.reasons);
        let reason = &refused.reasons[0];
        assert!(reason.claim.ends_with("init_data"));
        assert_eq!((&reason.expected, &reason.found), (&right, &wrong));
        assert!(!reason.fix.is_empty());
    }

    #[test]
    fn a_pin_takes_only_a_digest_and_a_name() {
        assert!(pin_init_data("abc", "snp").is_err());
        assert!(pin_init_data(&"zz".repeat(32), "snp").is_err());
        assert!(pin_init_data(&"aa".repeat(48), "snp\"; x").is_err());
        assert!(pin_init_data(&"aa".repeat(48), "snp").is_ok());
    }

    #[test]
    fn reasons_of_a_wrong_form_are_an_error_not_a_release() {
        let policy =
            ReleasePolicy::from_rego("package policy\nallow := false\nreasons := 1").unwrap();
        assert!(policy.decide(&json!({}), &asked()).is_err());
    }
}
