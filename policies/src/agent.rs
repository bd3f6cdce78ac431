//! May the host ask this of the guest? Kata's semantics, so that a policy written for Kata decides
//! the same here.
//!
//! The rule `data.agent_policy.<Request>` is `true`, `false`, or `{"allowed", "ops"}`, where `ops`
//! is a JSON patch of `data.pstate`: the policy's memory from one request to the next. A rule that
//! is missing or undefined denies. `AllowRequestsFailingPolicy := true` lets every request pass and
//! marks the decision, which is for finding out what a policy lacks and for nothing else.

use std::sync::{Mutex, MutexGuard, PoisonError};

use regorus::Engine;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::{
    engine::{PolicyError, compile, declares, to_json, value_of},
    refusal,
};

const PACKAGE: &str = "agent_policy";
const ALLOW_FAILURES: &str = "AllowRequestsFailingPolicy";
/// The only part of `data` that a patch may touch.
const STATE: &str = "/pstate";
/// Bytes of the policy's memory as JSON.
const STATE_BYTES: usize = 4 * 1024 * 1024;
/// Characters of a request's name.
const ENDPOINT_CHARS: usize = 64;
/// Lines of `print` that a decision keeps, and characters of each.
const PRINTS: usize = 64;
const PRINT_CHARS: usize = 1024;

/// Allows every request: for a plain VM, where the host owns the guest anyway.
pub const ALLOW_ALL: &str = include_str!("../agent/allow_all.rego");
/// Denies every request: what a guest in a TEE starts with.
pub const DENY_ALL: &str = include_str!("../agent/deny_all.rego");

/// A policy over what the host asks, with its memory.
#[derive(Debug)]
pub struct AgentPolicy {
    engine: Mutex<Generation>,
    allow_failures: bool,
}

/// The engine with the memory as of some count of patches.
#[derive(Debug)]
struct Generation {
    number: u64,
    engine: Engine,
}

/// The answer to one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision {
    /// Whether the request may be carried out.
    pub allowed: bool,
    /// The policy denied, and `AllowRequestsFailingPolicy` let it pass.
    pub forced: bool,
    /// What the policy printed, shortened. It may quote the request: it is for the owner, and must
    /// not reach the host.
    pub prints: Vec<String>,
}

impl AgentPolicy {
    /// See [`ALLOW_ALL`].
    ///
    /// # Errors
    /// Never for the text that ships.
    pub fn allow_all() -> Result<Self, PolicyError> {
        Self::from_rego(ALLOW_ALL)
    }

    /// See [`DENY_ALL`].
    ///
    /// # Errors
    /// Never for the text that ships.
    pub fn deny_all() -> Result<Self, PolicyError> {
        Self::from_rego(DENY_ALL)
    }

    /// Parses the owner's policy.
    ///
    /// # Errors
    /// When it is too large, does not parse, or is of another package.
    pub fn from_rego(rego: &str) -> Result<Self, PolicyError> {
        let engine = compile(PACKAGE, rego, json!({ "pstate": {} }).into())?;
        let mut first = engine.clone();
        first.set_input(json!({}).into());
        let allow_failures = value_of(&mut first, &path(ALLOW_FAILURES))?
            .is_some_and(|value| value == regorus::Value::Bool(true));
        Ok(Self {
            engine: Mutex::new(Generation { number: 0, engine }),
            allow_failures,
        })
    }

    /// Decides about one request.
    ///
    /// `endpoint` is the name of the request's message, for example `CreateContainerRequest`, and
    /// `input` the request as JSON. Decisions run side by side; only one that changes the policy's
    /// memory waits, and is made again if the memory changed meanwhile.
    ///
    /// # Errors
    /// When the policy fails, or gives something that is no decision. The caller denies.
    pub fn decide(&self, endpoint: &str, input: Value) -> Result<Decision, PolicyError> {
        let rule = rule_of(endpoint)?;
        let input = regorus::Value::from(input);
        let (number, engine) = {
            let now = self.lock();
            (now.number, now.engine.clone())
        };
        let verdict = evaluate(engine, &rule, input.clone())?;
        if verdict.ops.is_none() {
            return Ok(self.conclude(verdict));
        }
        let mut now = self.lock();
        let verdict = if now.number == number {
            verdict
        } else {
            evaluate(now.engine.clone(), &rule, input)?
        };
        if let Some(ops) = verdict.ops.as_ref().filter(|_| verdict.allowed) {
            now.apply(&rule, ops)?;
        }
        drop(now);
        Ok(self.conclude(verdict))
    }

    /// Why the rule does not allow a request, with what the policy remembers now, as one line: the innermost
    /// rule that fails, its line in the policy, the statement, and what stands in the request where it looks.
    ///
    /// `None` where it is allowed. The line quotes the policy and the request: it is for the owner. It takes many
    /// times as long as the decision.
    #[must_use]
    pub fn explain(&self, endpoint: &str, input: Value) -> Option<String> {
        let input = regorus::Value::from(input);
        let mut now = {
            let now = self.lock();
            Generation {
                number: now.number,
                engine: now.engine.clone(),
            }
        };
        match now.decide(endpoint, input.clone()) {
            Ok(true) => None,
            Ok(false) => Some(refusal::explain(now.engine, PACKAGE, endpoint, input)),
            Err(error) => Some(refusal::error(&error)),
        }
    }

    /// Whether the policy has a rule of this name, whatever it says. A policy that was generated for Kata has none
    /// for what only Cloister asks.
    ///
    /// # Errors
    /// When it cannot be told. The caller denies.
    pub fn has_rule(&self, endpoint: &str) -> Result<bool, PolicyError> {
        let rule = rule_of(endpoint)?;
        let engine = self.lock().engine.clone();
        declares(&engine, endpoint).map_err(|detail| PolicyError::Evaluate { rule, detail })
    }

    fn conclude(&self, verdict: Verdict) -> Decision {
        Decision {
            allowed: verdict.allowed || self.allow_failures,
            forced: !verdict.allowed && self.allow_failures,
            prints: verdict.prints,
        }
    }

    /// A panic in another thread leaves the engine whole: it is replaced in one step.
    fn lock(&self) -> MutexGuard<'_, Generation> {
        self.engine.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Generation {
    /// Whether the request is allowed, with the memory that it leaves in this copy.
    fn decide(&mut self, endpoint: &str, input: regorus::Value) -> Result<bool, PolicyError> {
        let rule = rule_of(endpoint)?;
        let verdict = evaluate(self.engine.clone(), &rule, input)?;
        if let Some(ops) = verdict.ops.as_ref().filter(|_| verdict.allowed) {
            self.apply(&rule, ops)?;
        }
        Ok(verdict.allowed)
    }

    fn apply(&mut self, rule: &str, ops: &json_patch::Patch) -> Result<(), PolicyError> {
        let refused = |detail: String| PolicyError::Patch {
            rule: rule.to_owned(),
            detail,
        };
        if let Some(other) = ops.0.iter().find(|op| !within_state(op)) {
            return Err(refused(format!(
                "`{}` is not below `{STATE}`",
                other.path()
            )));
        }
        let mut data = to_json(rule, &self.engine.get_data())?;
        json_patch::patch(&mut data, ops).map_err(|error| refused(error.to_string()))?;
        if data.to_string().len() > STATE_BYTES {
            return Err(refused(format!("more than {STATE_BYTES} bytes of state")));
        }
        let mut next = self.engine.clone();
        next.clear_data();
        next.add_data(data.into())
            .map_err(|error| refused(error.to_string()))?;
        value_of(&mut next, "true")?;
        self.engine = next;
        self.number += 1;
        Ok(())
    }
}

/// What the rule said.
struct Verdict {
    allowed: bool,
    ops: Option<json_patch::Patch>,
    prints: Vec<String>,
}

/// The form of a rule with a memory.
#[derive(Deserialize)]
struct Stateful {
    allowed: bool,
    #[serde(default)]
    ops: Option<json_patch::Patch>,
}

fn evaluate(mut engine: Engine, rule: &str, input: regorus::Value) -> Result<Verdict, PolicyError> {
    engine.set_input(input);
    let value = value_of(&mut engine, rule)?;
    let prints = engine.take_prints().unwrap_or_default();
    let prints = prints
        .iter()
        .take(PRINTS)
        .map(|line| line.chars().take(PRINT_CHARS).collect())
        .collect();
    let (allowed, ops) = match value {
        None => (false, None),
        Some(regorus::Value::Bool(allowed)) => (allowed, None),
        Some(other) => {
            let stateful: Stateful =
                serde_json::from_value(to_json(rule, &other)?).map_err(|_| PolicyError::Shape {
                    rule: rule.to_owned(),
                    expected: "a boolean, or an object with `allowed` and a JSON patch `ops`",
                })?;
            (stateful.allowed, stateful.ops)
        }
    };
    Ok(Verdict {
        allowed,
        ops,
        prints,
    })
}

fn within_state(op: &json_patch::PatchOperation) -> bool {
    let below = |pointer: &str| {
        pointer
            .strip_prefix(STATE)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    let source = match op {
        json_patch::PatchOperation::Move(op) => Some(&op.from),
        json_patch::PatchOperation::Copy(op) => Some(&op.from),
        json_patch::PatchOperation::Add(_)
        | json_patch::PatchOperation::Remove(_)
        | json_patch::PatchOperation::Replace(_)
        | json_patch::PatchOperation::Test(_) => None,
    };
    below(op.path().as_str()) && source.is_none_or(|from| below(from.as_str()))
}

/// The rule of a request; only an identifier may become part of a query.
fn rule_of(endpoint: &str) -> Result<String, PolicyError> {
    let word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    if endpoint.is_empty() || endpoint.len() > ENDPOINT_CHARS || !endpoint.bytes().all(word) {
        return Err(PolicyError::Endpoint {
            endpoint: endpoint.escape_default().take(ENDPOINT_CHARS).collect(),
        });
    }
    Ok(path(endpoint))
}

fn path(rule: &str) -> String {
    format!("data.{PACKAGE}.{rule}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(policy: &AgentPolicy, endpoint: &str, input: Value) -> bool {
        policy.decide(endpoint, input).unwrap().allowed
    }

    #[test]
    fn the_built_in_policies_allow_and_deny() {
        let all = AgentPolicy::allow_all().unwrap();
        let none = AgentPolicy::deny_all().unwrap();
        for endpoint in [
            "CreateContainerRequest",
            "ExecProcessRequest",
            "SetPolicyRequest",
        ] {
            assert!(allowed(&all, endpoint, json!({})), "{endpoint}");
            assert!(!allowed(&none, endpoint, json!({})), "{endpoint}");
        }
    }

    #[test]
    fn a_missing_or_undefined_rule_denies() {
        let policy =
            AgentPolicy::from_rego("package agent_policy\nExecProcessRequest if { input.a == 1 }")
                .unwrap();
        assert!(allowed(&policy, "ExecProcessRequest", json!({"a": 1})));
        assert!(!allowed(&policy, "ExecProcessRequest", json!({"a": 2})));
        assert!(!allowed(&policy, "Unknown", json!({})));
    }

    #[test]
    fn a_rule_is_there_also_where_it_says_nothing() {
        for rule in [
            "X if { input.a == 1 }",
            "default X := false",
            "X := {\"allowed\": false}",
            "X contains y if { y := input.a }",
        ] {
            let policy = AgentPolicy::from_rego(&format!("package agent_policy\n{rule}")).unwrap();
            assert!(policy.has_rule("X").unwrap(), "{rule}");
            assert!(!policy.has_rule("Y").unwrap(), "{rule}");
        }
        assert!(AgentPolicy::allow_all().unwrap().has_rule("a.b").is_err());
    }

    #[test]
    fn a_policy_remembers_what_it_allowed() {
        let policy = AgentPolicy::from_rego(
            r#"package agent_policy
            CreateContainerRequest := {"allowed": true, "ops": ops} if {
                not data.pstate[input.container_id]
                ops := [{"op": "add", "path": concat("/", ["/pstate", input.container_id]), "value": 1}]
            }"#,
        )
        .unwrap();
        assert!(allowed(
            &policy,
            "CreateContainerRequest",
            json!({"container_id": "a"})
        ));
        assert!(!allowed(
            &policy,
            "CreateContainerRequest",
            json!({"container_id": "a"})
        ));
        assert!(allowed(
            &policy,
            "CreateContainerRequest",
            json!({"container_id": "b"})
        ));
    }

    #[test]
    fn racing_requests_cannot_both_use_one_memory() {
        let policy = AgentPolicy::from_rego(
            r#"package agent_policy
            CreateContainerRequest := {"allowed": true, "ops": [{"op": "add", "path": "/pstate/used", "value": true}]} if {
                not data.pstate.used
            }"#,
        )
        .unwrap();
        let granted = std::sync::atomic::AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    if allowed(&policy, "CreateContainerRequest", json!({})) {
                        granted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    }
                });
            }
        });
        assert_eq!(granted.into_inner(), 1);
    }

    #[test]
    fn a_patch_cannot_leave_the_state() {
        for op in [
            r#"{"op": "add", "path": "/other", "value": 1}"#,
            r#"{"op": "add", "path": "/pstatement", "value": 1}"#,
            r#"{"op": "move", "path": "/pstate/x", "from": "/agent_policy"}"#,
        ] {
            let rego = format!("package agent_policy\nX := {{\"allowed\": true, \"ops\": [{op}]}}");
            let policy = AgentPolicy::from_rego(&rego).unwrap();
            let error = policy.decide("X", json!({})).unwrap_err();
            assert!(matches!(error, PolicyError::Patch { .. }), "{error}");
        }
    }

    #[test]
    fn failing_requests_pass_only_when_the_policy_says_so_and_are_marked() {
        let rego = "package agent_policy\nAllowRequestsFailingPolicy := true";
        let policy = AgentPolicy::from_rego(rego).unwrap();
        let decision = policy.decide("ExecProcessRequest", json!({})).unwrap();
        assert!(decision.allowed && decision.forced);
    }

    #[test]
    fn bad_policies_and_names_are_named() {
        let error = |rego: &str| AgentPolicy::from_rego(rego).unwrap_err();
        assert!(matches!(
            error("package agent_policy\nX {"),
            PolicyError::Parse { .. }
        ));
        assert!(matches!(
            error("package other\nX := true"),
            PolicyError::Package { .. }
        ));
        let large = "#".repeat(crate::POLICY_BYTES + 1);
        assert!(matches!(error(&large), PolicyError::TooLarge { .. }));
        let policy = AgentPolicy::allow_all().unwrap();
        for name in ["", "a.b", "a with input as {}", "a\nb"] {
            let error = policy.decide(name, json!({})).unwrap_err();
            assert!(matches!(error, PolicyError::Endpoint { .. }));
        }
        let odd = AgentPolicy::from_rego("package agent_policy\nX := 1").unwrap();
        assert!(matches!(
            odd.decide("X", json!({})),
            Err(PolicyError::Shape { .. })
        ));
    }

    #[test]
    fn an_endless_policy_is_cut_off() {
        let rego = "package agent_policy
            X if { some a in numbers.range(1, 3000); some b in numbers.range(1, 3000); some c in numbers.range(1, 3000); a + b + c == 0 }";
        let policy = AgentPolicy::from_rego(rego).unwrap();
        let error = policy.decide("X", json!({})).unwrap_err();
        assert!(matches!(error, PolicyError::Evaluate { .. }));
    }
}
