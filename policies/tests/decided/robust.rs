//! Policies that would hold up the broker or take its memory: refused when they are loaded, or cut off.

use std::{collections::BTreeMap, fmt::Write, sync::Arc, thread};

use policies::{
    PolicyError,
    appraisal::AppraisalPolicy,
    release::{Decision, Release, ReleasePolicy},
};
use serde_json::{Value, json};

/// Bytes of the stack on which the broker decides.
const STACK: usize = 2 * 1024 * 1024;

fn decide(rego: &str) -> Result<Decision, PolicyError> {
    decide_on(rego, &json!({}))
}

fn decide_on(rego: &str, claims: &Value) -> Result<Decision, PolicyError> {
    let path = ["default", "key", "1"];
    let asked = Release {
        plugin: "resource",
        resource_path: &path,
        query: BTreeMap::new(),
        method: "GET",
    };
    ReleasePolicy::from_rego(&format!("package policy\n{rego}"))?.decide(claims, &asked)
}

#[test]
fn a_loop_is_cut_off() {
    let error = decide(
        "allow if { some a in numbers.range(1, 9000); some b in numbers.range(1, 9000); a + b == 0 }",
    )
    .unwrap_err();
    assert!(matches!(error, PolicyError::Slow { .. }), "{error}");
}

#[test]
fn a_set_without_end_is_cut_off() {
    let error = decide(
        "allow if count({[a, b] | some a in numbers.range(1, 9000); some b in numbers.range(1, 9000)}) > 0",
    )
    .unwrap_err();
    assert!(matches!(error, PolicyError::Slow { .. }), "{error}");
}

#[test]
fn functions_that_call_themselves_are_refused_when_loaded() {
    for rego in [
        "f(x) := f(x)\nallow := f(1)",
        "f(x) := x if x > 9\nf(x) := f(x + 1) if x <= 9\nallow := f(1)",
        "f(x) := g(x)\ng(x) := h(x)\nh(x) := f(x)\nallow := f(1)",
        "f(x) := data.policy.f(x)\nallow := f(1)",
        "f(x) := data.policy[\"f\"](x)\nallow := f(1)",
        "f(x) := y if { y := g(x) with g as f }\ng(x) := x\nallow := f(1)",
        "f(x) := [y | y := f(x)]\nallow := f(1)",
        "f(x) := 1 if { x == 1 } else := f(x)\nallow := f(2)",
    ] {
        let error = decide(rego).unwrap_err();
        let named = matches!(
            error,
            PolicyError::Recursive { .. } | PolicyError::Parse { .. }
        );
        assert!(named, "{rego}: {error}");
    }
    for import in [
        "import data.policy as p",
        "import data.policy.f as p",
        "import data.policy",
    ] {
        for call in ["p.f(x)", "p(x)", "policy.f(x)"] {
            let rego = format!("package policy\n{import}\nf(x) := {call}\nallow := f(1)");
            if let Ok(policy) = ReleasePolicy::from_rego(&rego) {
                let asked = Release {
                    plugin: "resource",
                    resource_path: &[],
                    query: BTreeMap::new(),
                    method: "GET",
                };
                assert!(policy.decide(&json!({}), &asked).is_err(), "{rego}");
            }
        }
    }
}

#[test]
fn rules_that_depend_on_themselves_are_an_error() {
    for rego in [
        "a := b\nb := a\nallow := a",
        "f(x) := r\nr := f(1)\nallow := r",
    ] {
        let error = decide(rego).unwrap_err();
        assert!(error.to_string().contains("recursion"), "{error}");
    }
}

/// `length` rules or functions, each asking the next within so many brackets.
fn chain(length: usize, brackets: usize, functions: bool) -> String {
    let (parameter, argument) = if functions { ("(x)", "(1)") } else { ("", "") };
    let mut rego = format!("r0{parameter} := 1\n");
    for index in 1..length {
        let before = format!("r{}{argument}", index - 1);
        let (open, close) = ("[".repeat(brackets), "]".repeat(brackets));
        writeln!(rego, "r{index}{parameter} := {open}{before}{close}").unwrap();
    }
    write!(rego, "allow if r{}{argument}", length - 1).unwrap();
    rego
}

#[test]
fn a_chain_of_rules_fits_the_stack_or_is_refused() {
    let decided = |length, brackets, functions| {
        let run = move || decide(&chain(length, brackets, functions));
        let thread = thread::Builder::new().stack_size(STACK).spawn(run);
        thread.unwrap().join().unwrap()
    };
    for functions in [false, true] {
        for (length, brackets) in [(84, 0), (84, 1), (60, 2), (26, 6)] {
            let decision = decided(length, brackets, functions).unwrap();
            assert!(decision.allowed, "{length} {brackets} {functions}");
        }
        for (length, brackets) in [(3000, 0), (300, 1), (100, 4)] {
            let error = decided(length, brackets, functions).unwrap_err();
            assert!(matches!(error, PolicyError::Chain { .. }), "{error}");
        }
    }
}

#[test]
fn brackets_that_the_parser_would_try_for_ever_are_refused() {
    for (open, close) in [("[", "]"), ("{", "}"), ("[1|", "]"), ("{1:", "}")] {
        for depth in [20, 1000, 100_000] {
            let rego = format!("allow := {}1{}", open.repeat(depth), close.repeat(depth));
            let error = decide(&rego).unwrap_err();
            let named = matches!(
                error,
                PolicyError::Nested
                    | PolicyError::Deep { .. }
                    | PolicyError::Many { .. }
                    | PolicyError::Parse { .. }
            );
            assert!(named, "{open} {depth}: {error}");
        }
    }
    assert!(decide("allow := [[[[[[[[1]]]]]]]]").is_ok());
}

#[test]
fn what_looks_out_of_the_policy_is_refused_when_loaded() {
    for call in [
        "http.send({\"method\": \"get\", \"url\": \"http://127.0.0.1\"})",
        "opa.runtime()",
        "net.lookup_ip_addr(\"localhost\")",
    ] {
        let error = decide(&format!("allow if not {call}")).unwrap_err();
        assert!(matches!(error, PolicyError::Outside { .. }), "{error}");
    }
    // A word in a comment or a text is no call.
    assert!(decide("# http.send({})\nallow if \"opa.runtime()\" == \"x\"").is_ok());
    assert!(decide("allow if not unknown.function(1)").is_err());
}

#[test]
fn a_text_that_doubles_is_cut_off() {
    let mut rego = "allow if { t0 := \"x\"\n".to_owned();
    for index in 1..60 {
        let before = index - 1;
        writeln!(
            rego,
            "t{index} := sprintf(\"%s%s\", [t{before}, t{before}])"
        )
        .unwrap();
    }
    let error = decide(&(rego + "t59 == \"\" }")).unwrap_err();
    assert!(error.to_string().contains("at most"), "{error}");
    let error = decide("allow if count(numbers.range(1, 1000000000000)) > 1").unwrap_err();
    assert!(error.to_string().contains("at most"), "{error}");
}

/// What a reviewer stopped a broker with: each is refused when it is loaded, or fails in its time.
#[test]
fn what_would_take_the_stack_the_time_or_the_memory_is_refused() {
    let blocks = |line: &str, count: usize| format!("allow if {{\n{}}}", line.repeat(count));
    for rego in [
        format!("allow if {{ x := {}1; x == 1 }}", "-".repeat(600)),
        format!("allow if {{ 1{} > 0 }}", "\n+1".repeat(3600)),
        format!("allow if {{ x := {{1}}{}; count(x) > 0 }}", "\n|{1}".repeat(4000)),
        format!("allow if {}1{} == 1", "abs(".repeat(20_000), ")".repeat(20_000)),
        blocks("x := 1\n", 10_000),
        "allow if input.x\n".repeat(20_000),
        "import input.a\n".repeat(30_000) + "default allow := false",
        "allow if { x := 1e99999999; x > 1 }".to_owned(),
        "allow if { x := units.parse(\"1e99999999\"); x > 1 }".to_owned(),
        "m(x) := ((x*x)*(x*x))*((x*x)*(x*x))\nallow if { b := m(m(m(m(m(m(m(99999999999999999999999999999))))))); b > 1 }".to_owned(),
        "allow if { x := bits.lsh(1, 4000000000); x < 5 }".to_owned(),
        "x := [a | some a in numbers.range(1, 2000)]\nallow if { y := [[[a, b, c] | some c in x] | some a in x; some b in x]; count(y) < 0 }".to_owned(),
    ] {
        let run = move || {
            let error = decide(&rego).unwrap_err();
            assert!(!error.to_string().is_empty());
        };
        let thread = thread::Builder::new().stack_size(STACK).spawn(run);
        thread.unwrap().join().unwrap();
    }
}

#[test]
fn numbers_that_square_themselves_are_refused_when_loaded() {
    let mut squares = "allow if {\nx0 := 9\n".to_owned();
    for index in 1..30 {
        let before = index - 1;
        writeln!(squares, "x{index} := x{before} * x{before}").unwrap();
    }
    for rego in [
        squares + "x29 > 1 }",
        "f(x) := x * x\ng(x) := f(f(f(f(x))))\nallow if g(g(g(g(g(9))))) > 1".to_owned(),
        "allow if { x := [9, 9]; product([product(x), product(x)]) > 1 }".to_owned(),
    ] {
        let error = decide(&rego).unwrap_err();
        assert!(matches!(error, PolicyError::Products { .. }), "{error}");
    }
    let scaled = "allow if { x := 3; y := x * 256 + 2 * x; z := y * x; z * 3 > 1 }\n";
    assert!(decide(&scaled.repeat(9)).unwrap().allowed);
}

#[test]
fn what_is_just_within_the_bounds_fits_the_stack() {
    for rego in [
        format!("allow if {{ 1{} > 0 }}", "+1".repeat(240)),
        format!(
            "allow if {{ x := {{1}}{}; count(x) > 0 }}",
            "|{1}".repeat(240)
        ),
        (0..990).fold("allow if {\n".to_owned(), |rego, index| {
            format!("{rego}x{index} := {index}\n")
        }) + "}",
    ] {
        let run = move || decide(&rego).unwrap().allowed;
        let thread = thread::Builder::new().stack_size(STACK).spawn(run);
        assert!(thread.unwrap().join().unwrap());
    }
}

#[test]
fn appraisal_policies_are_bounded_alike() {
    let refused = |rego: &str| AppraisalPolicy::from_rego(&format!("package policy\n{rego}"));
    let error = refused("f(x) := f(x)\ntrust_claims := {\"hardware\": f(1)}").unwrap_err();
    assert!(matches!(error, PolicyError::Recursive { .. }), "{error}");
    let policy = refused(
        "trust_claims := {\"hardware\": n} if n := count([1 | some a in numbers.range(1, 9000); some b in numbers.range(1, 9000)])",
    )
    .unwrap();
    let error = policy.appraise(&json!({}), &Arc::default()).unwrap_err();
    assert!(matches!(error, PolicyError::Slow { .. }), "{error}");
}
