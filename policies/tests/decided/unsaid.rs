//! What the line about a refusal does not tell: it is logged, by whoever asked.

use policies::agent::AgentPolicy;
use serde_json::json;

#[test]
fn of_environments_names_are_told_and_no_values() {
    let environment = json!({"process": {"Env": ["PATH=/bin", "PASSWORD=hunter2"], "Args": ["a"]}});
    for (rule, told) in [
        (
            "every i_var in input.process.Env { i_var == \"PATH=/bin\" }",
            "input.process.Env[1] is \"PASSWORD=…\"",
        ),
        (
            "some i_var in input.process.Env\nparts := split(i_var, \"=\")\nparts[1] == \"x\"",
            "parts[1] is hidden",
        ),
        (
            "input.process == p",
            "input.process.Env[1] is \"PASSWORD=…\"",
        ),
        (
            "p.Env[1] == input.process.Args[0]",
            "p.Env[1] is \"PASSWORD=…\"",
        ),
        ("is_null(input.process)", "input.process is {…}"),
        (
            "is_null([input.process.Env])",
            "input.process.Env is hidden",
        ),
        ("[one] := [input]\nis_null([one])", "one is {…}"),
    ] {
        let p = "p := {\"Args\": [\"a\"], \"Env\": [\"PATH=/bin\", \"PASSWORD=hunter3\"]}";
        let head = "package agent_policy\nimport rego.v1";
        let rego = format!("{head}\nExecProcessRequest if {{\n{rule}\n}}\n{p}");
        let policy = AgentPolicy::from_rego(&rego).unwrap();
        let line = policy
            .explain("ExecProcessRequest", environment.clone())
            .unwrap();
        assert!(line.contains(told), "{rule}: {line}");
        assert!(!line.contains("hunter"), "{rule}: {line}");
    }
    let sent = "package agent_policy\nWriteStreamRequest if input.data == \"\"";
    let policy = AgentPolicy::from_rego(sent).unwrap();
    let line = policy
        .explain("WriteStreamRequest", json!({"data": "hunter2"}))
        .unwrap();
    assert!(line.ends_with("input.data is hidden"), "{line}");
}
