//! Runs the tests that lie beside each shipped policy: every rule `test_*` must be true.

use std::{fs, path::Path};

use regorus::{Engine, Value};

/// The broker's functions over `data.references`, where a test puts lists by their names.
const REFERENCES: &str = r#"package policy
query_reference_values(name) := object.get(data.references, name, [])
query_reference_value(name) := object.get(data.references, name, null)
"#;

#[test]
fn every_rego_test_holds_and_every_policy_has_some() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut run = 0;
    for folder in ["agent", "release", "appraisal"] {
        for entry in fs::read_dir(root.join(folder)).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            // `ask.rego` is half of a question; the unit tests of the crate ask it.
            if name.ends_with("_test.rego") || name == "ask.rego" {
                continue;
            }
            let tests = path.with_file_name(name.replace(".rego", "_test.rego"));
            run += run_tests(&path, &tests);
        }
    }
    assert!(run > 20, "only {run} tests were found");
}

fn run_tests(policy: &Path, tests: &Path) -> usize {
    let text =
        fs::read_to_string(tests).unwrap_or_else(|_| panic!("{} has no tests", policy.display()));
    let mut engine = Engine::new();
    engine.add_policy_from_file(policy).unwrap();
    let package = engine.add_policy_from_file(tests).unwrap();
    let query = REFERENCES.to_owned();
    engine.add_policy("references".to_owned(), query).unwrap();
    let none = Value::from_json_str(r#"{"references": {}}"#).unwrap();
    engine.add_data(none).unwrap();
    let names: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("test_"))
        .filter_map(|line| line.split([' ', ':']).next())
        .collect();
    assert!(!names.is_empty(), "{} has no tests", tests.display());
    for name in &names {
        let rule = format!("{package}.{name}");
        let value = engine.eval_rule(rule.clone()).unwrap();
        assert_eq!(value, Value::from(true), "{}: {rule}", tests.display());
    }
    names.len()
}

/// The zones are in the program, a mebibyte of them if it were all: `.cargo/config.toml` names those that are.
#[test]
fn policies_know_utc_by_name_and_an_unknown_zone_decides_nothing() {
    let eval = |query: &str| Engine::new().eval_query(query.to_owned(), false);
    let noon = eval(r#"x := time.clock([43200000000000, "UTC"])"#).unwrap();
    assert_eq!(
        noon.result[0].bindings["x"],
        Value::from_json_str("[12, 0, 0]").unwrap()
    );
    let elsewhere = eval(r#"x := time.clock([0, "Europe/Berlin"])"#).unwrap_err();
    assert!(elsewhere.to_string().contains("timezone"), "{elsewhere}");
}
