//! The line about a refusal, with policies in the shapes that Kata's genpolicy writes.

use policies::agent::AgentPolicy;
use serde_json::{Value, json};

/// As `rules.rego` of genpolicy: functions over what the policy has (`p_`) and the input (`i_`), which print.
const GENERATED: &str = r#"package agent_policy

import future.keywords.in
import future.keywords.every
import future.keywords.if

default CreateContainerRequest := false
default ExecProcessRequest := false
default WriteStreamRequest := false

S_NAME_KEY = "io.kubernetes.cri.sandbox-name"

CreateContainerRequest := {"ops": ops, "allowed": true} if {
    print("CreateContainerRequest: input =", input)
    i_oci := input.OCI
    is_null(i_oci.Hooks)

    some idx, p_container in policy_data.containers
    print("trying", idx)
    p_oci := p_container.OCI
    i_name := i_oci.Annotations[S_NAME_KEY]
    p_oci.Annotations[S_NAME_KEY] == i_name

    allow_process(p_oci.Process, i_oci.Process)
    allow_mounts(p_oci, i_oci)
    action := state_allows(input.container_id, idx)
    ops := [action]
}

allow_process(p_process, i_process) if {
    p_process.Args == i_process.Args
    i_user := i_process.User
    allow_user(p_process, i_user, "a, { \"b")
}

allow_user(p_process, i_user, mark) if {
    mark == "a, { \"b"
    p_user := p_process.User
    print("allow_user: UID", p_user.UID)
    p_user.UID == i_user.UID
}

allow_mounts(p_oci, i_oci) if {
    every i_mount in i_oci.Mounts {
        print("mount", i_mount)
        allow_mount(p_oci, i_mount)
    }
}

allow_mount(p_oci, i_mount) if {
    some p_mount in p_oci.Mounts
    p_mount.destination == i_mount.destination
    allow_source(p_mount, i_mount)
}

allow_source(p_mount, i_mount) if {
    p_mount.source == i_mount.source
}
allow_source(p_mount, i_mount) if {
    p_mount.kind == "pattern"
    source1 := p_mount.source
    source2 := replace(source1, "$(id)", "[a-z]+")
    regex.match(source2, i_mount.source)
}

state_allows(key, value) = action if {
    not data.pstate[key]
    path := concat("/", ["/pstate", key])
    action := {
        "op": "add",
        "path": path,
        "value": value,
    }
}

ExecProcessRequest if {
    allow_exec_input
    some p_command in policy_data.commands
    p_command == input.process.Args
}
ExecProcessRequest if {
    i_command = concat(" ", input.process.Args)
    "never" == i_command
}

allow_exec_input if {
    is_null(input.string_user)
    count(input.process.SelinuxLabel) == 0
}

WriteStreamRequest if { policy_data.write == true }

CopyFileRequest := {"allowed": false}

UpdateRoutesRequest if {
    every i_route in input.Routes {
        every p_regex in ["^127\\.", "^::1$"] {
            not regex.match(p_regex, i_route.source)
        }
    }
}

StatsContainerRequest if { count(input.count) == 1 }

CloseStdinRequest := false if { input.container_id == "x" }
CloseStdinRequest := true if {
    is_string(input.container_id)
    input.container_id == "y"
}

PauseContainerRequest := true if { input.container_id == "a" } else := false

ResumeContainerRequest if { input.a == 1 with input as {"a": 2} }

policy_data := {
    "containers": [
        {"OCI": {
            "Annotations": {"io.kubernetes.cri.sandbox-name": "other"},
            "Process": {"Args": ["other"], "User": {"UID": 7}},
            "Mounts": [],
        }},
        {"OCI": {
            "Annotations": {"io.kubernetes.cri.sandbox-name": "web"},
            "Process": {"Args": ["serve", "--port", "80"], "User": {"UID": 1000}},
            "Mounts": [
                {"destination": "/data", "source": "/a", "kind": "literal"},
                {"destination": "/logs", "source": "^/b/$(id)$", "kind": "pattern"},
            ],
        }},
    ],
    "commands": [["ls"], ["echo", "hi"]],
    "write": false,
}
"#;

fn container() -> Value {
    json!({
        "container_id": "c1",
        "OCI": {
            "Hooks": null,
            "Annotations": {"io.kubernetes.cri.sandbox-name": "web"},
            "Process": {"Args": ["serve", "--port", "80"], "User": {"UID": 1000}},
            "Mounts": [
                {"destination": "/data", "source": "/a"},
                {"destination": "/logs", "source": "/b/xyz"},
            ],
        },
    })
}

fn policy() -> AgentPolicy {
    AgentPolicy::from_rego(GENERATED).unwrap()
}

/// The number of the line in which a text stands the first time.
fn line(text: &str) -> usize {
    let found = GENERATED.lines().position(|line| line.contains(text));
    found.unwrap() + 1
}

fn told(rule: &str, input: Value) -> String {
    policy().explain(rule, input).unwrap()
}

/// The line about a container that differs at one place.
fn told_of(pointer: &str, value: Value) -> String {
    let mut request = container();
    *request.pointer_mut(pointer).unwrap() = value;
    told("CreateContainerRequest", request)
}

#[test]
fn what_is_allowed_needs_no_line() {
    assert_eq!(
        policy().explain("CreateContainerRequest", container()),
        None
    );
}

#[test]
fn the_innermost_rule_is_told_with_the_place_in_the_request() {
    let at = line("p_user.UID == i_user.UID");
    assert_eq!(
        told_of("/OCI/Process/User/UID", json!(0)),
        format!(
            "allow_user (line {at}): p_user.UID == i_user.UID; input.OCI.Process.User.UID is 0, \
             p_user.UID is 1000"
        )
    );
    let at = line("is_null(i_oci.Hooks)");
    assert_eq!(
        told_of("/OCI/Hooks", json!({})),
        format!(
            "CreateContainerRequest (line {at}): is_null(i_oci.Hooks); input.OCI.Hooks is {{}}"
        )
    );
}

#[test]
fn of_two_lists_the_member_that_differs_is_told() {
    let at = line("p_process.Args == i_process.Args");
    assert_eq!(
        told_of("/OCI/Process/Args/2", json!("8080")),
        format!(
            "allow_process (line {at}): p_process.Args == i_process.Args; \
             input.OCI.Process.Args[2] is \"8080\", p_process.Args[2] is \"80\""
        )
    );
}

#[test]
fn what_no_container_of_the_policy_has_is_told_with_one_of_them() {
    let at = line("p_oci.Annotations[S_NAME_KEY] == i_name");
    assert_eq!(
        told_of(
            "/OCI/Annotations/io.kubernetes.cri.sandbox-name",
            json!("db")
        ),
        format!(
            "CreateContainerRequest (line {at}): p_oci.Annotations[S_NAME_KEY] == i_name; \
             input.OCI.Annotations[\"io.kubernetes.cri.sandbox-name\"] is \"db\", \
             p_oci.Annotations[S_NAME_KEY] is \"other\" (one of 2), \
             S_NAME_KEY is \"io.kubernetes.cri.sandbox-name\""
        )
    );
}

#[test]
fn the_element_of_every_and_the_definition_that_came_furthest_are_told() {
    let at = line("p_mount.source == i_mount.source");
    assert_eq!(
        told_of("/OCI/Mounts/0/source", json!("/c")),
        format!(
            "allow_source (line {at}, one of 2 definitions): p_mount.source == i_mount.source; \
             input.OCI.Mounts[0].source is \"/c\", p_mount.source is \"/a\""
        )
    );
    let at = line("regex.match(source2, i_mount.source)");
    assert_eq!(
        told_of("/OCI/Mounts/1/source", json!("/b/1")),
        format!(
            "allow_source (line {at}, one of 2 definitions): regex.match(source2, i_mount.source); \
             input.OCI.Mounts[1].source is \"/b/1\", source2 is \"^/b/[a-z]+$\""
        )
    );
    let at = line("not regex.match(p_regex");
    assert_eq!(
        told(
            "UpdateRoutesRequest",
            json!({"Routes": [{"source": "10.0.0.1"}, {"source": "::1"}]})
        ),
        format!(
            "UpdateRoutesRequest (line {at}): not regex.match(p_regex, i_route.source); \
             input.Routes[1].source is \"::1\", p_regex is \"^::1$\""
        )
    );
}

#[test]
fn what_the_policy_remembers_counts() {
    let policy = policy();
    let decision = policy.decide("CreateContainerRequest", container());
    assert!(decision.unwrap().allowed);
    let at = line("not data.pstate[key]");
    assert_eq!(
        policy
            .explain("CreateContainerRequest", container())
            .unwrap(),
        format!(
            "state_allows (line {at}): not data.pstate[key]; input.container_id is \"c1\", \
             data.pstate[key] is 1"
        )
    );
}

#[test]
fn a_rule_without_arguments_is_looked_into_and_what_is_absent_is_told() {
    let at = line("count(input.process.SelinuxLabel) == 0");
    let input = json!({"string_user": null, "process": {"Args": ["ls"]}});
    assert_eq!(
        told("ExecProcessRequest", input),
        format!(
            "allow_exec_input (line {at}): count(input.process.SelinuxLabel) == 0; \
             input.process.SelinuxLabel is absent"
        )
    );
    let at = line("p_command == input.process.Args");
    let input = json!({"string_user": null, "process": {"SelinuxLabel": "", "Args": ["rm", "x"]}});
    assert_eq!(
        told("ExecProcessRequest", input),
        format!(
            "ExecProcessRequest (line {at}, one of 2 definitions): p_command == input.process.Args; \
             input.process.Args[0] is \"rm\", p_command[0] is \"echo\" (one of 2)"
        )
    );
}

#[test]
fn rules_that_say_no_by_themselves_are_told() {
    let at = line("policy_data.write == true");
    assert_eq!(
        told("WriteStreamRequest", json!({})),
        format!(
            "WriteStreamRequest (line {at}): policy_data.write == true; policy_data.write is false"
        )
    );
    let at = line("CopyFileRequest :=");
    assert_eq!(
        told("CopyFileRequest", json!({})),
        format!("CopyFileRequest (line {at}) gives {{\"allowed\": false}}")
    );
    let at = line("CloseStdinRequest :=");
    assert_eq!(
        told("CloseStdinRequest", json!({"container_id": "x"})),
        format!("CloseStdinRequest (line {at}, one of 2 definitions) gives false")
    );
    let at = line("else := false");
    assert_eq!(
        told("PauseContainerRequest", json!({"container_id": "b"})),
        format!(
            "PauseContainerRequest (line {at}, one of 2 definitions): input.container_id == \"a\"; \
             input.container_id is \"b\""
        )
    );
    let at = line("ResumeContainerRequest if");
    assert_eq!(
        told("ResumeContainerRequest", json!({"a": 1})),
        format!("ResumeContainerRequest (line {at}): input.a == 1 with input as {{\"a\": 2}}")
    );
    assert_eq!(
        told("RemoveContainerRequest", json!({})),
        "the policy has no rule RemoveContainerRequest"
    );
    let none = "package agent_policy\ndefault ExecProcessRequest := false";
    let none = AgentPolicy::from_rego(none).unwrap();
    assert_eq!(
        none.explain("ExecProcessRequest", json!({})).unwrap(),
        "ExecProcessRequest (line 2): `default ExecProcessRequest := false` is all that the policy says of it"
    );
}

#[test]
fn an_evaluation_that_fails_is_told() {
    let at = line("count(input.count) == 1");
    let line = told("StatsContainerRequest", json!({"count": 1}));
    assert!(
        line.starts_with(&format!("the evaluation fails in line {at}: ")),
        "{line}"
    );
    assert!(!line.contains('\n'), "{line}");
    assert!(told("a.b", json!({})).contains("not the name of a request"));
}

#[test]
fn a_line_is_one_line_and_short_whatever_the_request_has() {
    let long = "x\n".repeat(100_000);
    let line = told_of("/OCI/Process/Args/0", json!(long));
    assert!(line.chars().count() < 700 && !line.contains('\n'), "{line}");
    let line = told_of("/OCI/Process/User", json!({"UID": [long]}));
    assert!(
        line.contains("input.OCI.Process.User.UID is [\"x\\nx"),
        "{line}"
    );
}

#[test]
fn what_cannot_be_asked_again_is_told_by_its_rule() {
    let long = "input.a == 1\n".repeat(100);
    let rego = format!("package agent_policy\nX if {{\n{long}}}\nY if {{\ninput.b\nX\n}}");
    let policy = AgentPolicy::from_rego(&rego).unwrap();
    let line = policy.explain("X", json!({"a": 2})).unwrap();
    assert_eq!(line, "X (line 2) does not hold");
    assert_eq!(policy.explain("X", json!({"a": 1})), None);
    let line = policy.explain("Y", json!({"a": 2, "b": true})).unwrap();
    assert_eq!(line, "Y (line 106): X");
}

#[test]
fn a_long_search_ends() {
    let rego = "package agent_policy
        X if { some a in numbers.range(1, 800); some b in numbers.range(1, 800); a + b == input.x }";
    let policy = AgentPolicy::from_rego(rego).unwrap();
    let before = std::time::Instant::now();
    let line = policy.explain("X", json!({"x": 0})).unwrap();
    assert!(line.starts_with("X (line 2)"), "{line}");
    assert!(before.elapsed().as_secs() < 30, "{:?}", before.elapsed());
}
