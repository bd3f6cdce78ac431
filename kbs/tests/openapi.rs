//! The OpenAPI document is what the broker serves: each route and method is in it and the reverse, each
//! permission in it is the one that is asked for, and schemathesis finds no answer that it does not
//! describe.
#![allow(clippy::unwrap_used)]

mod deployment;

use std::{
    collections::{BTreeMap, BTreeSet},
    path::Path,
    process::Command,
};

use deployment::{Deployment, SECRET, kbs};
use http::{Method, header};
use kbs_protocol::{ErrorKind, PREFIX};
use serde_json::Value;

/// Where the routes are made.
const SOURCE: &str = include_str!("../src/route/mod.rs");
/// The operations that need no administrator.
const OPEN: [&str; 7] = [
    "attest",
    "auth",
    "getResource",
    "healthz",
    "jwks",
    "openapi",
    "readyz",
];

/// What operators read.
const MANUAL: &str = include_str!("../../docs/kbs.md");

struct Operation {
    id: String,
    method: Method,
    /// With its parameters filled in.
    path: String,
    permission: Option<String>,
}

async fn document(deployment: &Deployment) -> Value {
    let answer = deployment.ask(Method::GET, "/openapi.json", &[], "").await;
    answer.json()
}

/// The path with something in the place of each parameter.
fn filled(path: &str) -> String {
    let parts = path.split('/');
    let parts = parts.map(|part| if part.starts_with('{') { "x" } else { part });
    parts.collect::<Vec<_>>().join("/")
}

fn operations(document: &Value) -> Vec<Operation> {
    let mut all = Vec::new();
    for (path, item) in document["paths"].as_object().unwrap() {
        for (method, operation) in item.as_object().unwrap() {
            if method == "parameters" {
                continue;
            }
            all.push(Operation {
                id: operation["operationId"].as_str().unwrap().to_owned(),
                method: method.to_uppercase().parse().unwrap(),
                path: filled(path),
                permission: operation["x-permission"].as_str().map(str::to_owned),
            });
        }
    }
    all
}

#[tokio::test]
async fn each_route_and_method_is_in_the_document_and_the_reverse() {
    let deployment = Deployment::start(&["sample"]);
    let document = document(&deployment).await;
    let described: BTreeSet<String> = document["paths"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    let served: BTreeSet<String> = SOURCE
        .split(".route(")
        .skip(1)
        .map(|rest| rest.split('"').nth(1).unwrap().replace("{*", "{"))
        .map(|path| match path.as_str() {
            "/healthz" | "/readyz" | "/openapi.json" | "/.well-known/jwks.json" => path,
            _ => format!("{PREFIX}{path}"),
        })
        .collect();
    assert_eq!(described, served);
    let mut methods: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for operation in operations(&document) {
        let of_path = methods.entry(operation.path).or_default();
        of_path.insert(operation.method.to_string());
    }
    for (path, methods) in methods {
        let answer = deployment.ask(Method::PATCH, &path, &[], "").await;
        assert_eq!(answer.status, 405, "{path}");
        let allow = answer.headers[header::ALLOW].to_str().unwrap();
        let allow = allow.split(',').map(str::trim).filter(|one| *one != "HEAD");
        let allow: BTreeSet<String> = allow.map(str::to_owned).collect();
        assert_eq!(allow, methods, "{path}");
    }
}

#[tokio::test]
async fn each_operation_asks_for_the_permission_in_the_document_and_no_other() {
    let document: Value = {
        let output = kbs().arg("openapi").output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let operations = operations(&document);
    let permissions: BTreeSet<&String> = operations
        .iter()
        .filter_map(|one| one.permission.as_ref())
        .collect();
    let mut roles = "[[admin.role]]\nname = \"nobody\"\nallow = []\n".to_owned();
    for permission in &permissions {
        let role = permission.replace(':', "-");
        roles += &format!("[[admin.role]]\nname = \"{role}\"\nallow = [\"{permission}\"]\n");
    }
    let deployment = Deployment::start_with(&["sample"], |config| format!("{config}\n{roles}"));
    let bearer = |role: &str| {
        let output = kbs()
            .args(["token", "--role", role, "--admin-key"])
            .arg(deployment.path("admin.key"))
            .output()
            .unwrap();
        format!(
            "Bearer {}",
            String::from_utf8(output.stdout).unwrap().trim()
        )
    };
    let mut open = Vec::new();
    for operation in &operations {
        let Some(needs) = &operation.permission else {
            open.push(operation.id.as_str());
            continue;
        };
        for role in permissions
            .iter()
            .map(|one| one.replace(':', "-"))
            .chain(["nobody".to_owned()])
        {
            let bearer = bearer(&role);
            let headers = [("authorization", bearer.as_str())];
            let answer = deployment
                .ask(operation.method.clone(), &operation.path, &headers, "x")
                .await;
            let denied = answer.status == 403;
            let id = &operation.id;
            assert_eq!(denied, role != needs.replace(':', "-"), "{role} at {id}");
            if denied {
                let (kind, error) = answer.refusal();
                assert_eq!(kind, ErrorKind::AdminRoleDenied);
                assert!(error.detail.contains(needs.as_str()), "{}", error.detail);
            }
        }
    }
    open.sort_unstable();
    assert_eq!(open, OPEN);
}

#[test]
fn the_manual_has_each_error_with_its_status_and_each_permission() {
    for kind in ErrorKind::ALL {
        let name = format!("`{}`", kind.name());
        let row = MANUAL
            .lines()
            .find(|line| line.starts_with("| `") && line.contains(&name));
        let row = row.unwrap_or_else(|| panic!("{name} is not in the manual"));
        assert!(row.contains(&format!("| {} |", kind.status())), "{row}");
    }
    let output = kbs().arg("openapi").output().unwrap();
    let document: Value = serde_json::from_slice(&output.stdout).unwrap();
    for operation in operations(&document) {
        if let Some(permission) = operation.permission {
            assert!(MANUAL.contains(&format!("`{permission}`")), "{permission}");
        }
    }
}

#[tokio::test]
async fn schemathesis_finds_no_answer_that_the_document_does_not_describe() {
    let place = Path::new(env!("CARGO_MANIFEST_DIR")).join("../.cache/schemathesis");
    if !place.join("complete").is_file() {
        return support::skip("needs schemathesis; `.ci/setup` installs it");
    }
    let deployment = Deployment::start(&["sample"]);
    let secret = deployment.write("secret", SECRET);
    deployment.own(&["resource", "set", "a/b/c", "--file", &secret]);
    let document = document(&deployment).await;
    let document = deployment.write("openapi.json", document.to_string());
    let output = Command::new(place.join("bin/schemathesis"))
        .args(["run", &document, "--url", &deployment.url])
        .arg("--tls-verify")
        .arg(deployment.path("tls-root.pem"))
        .args([
            "--header",
            &format!("Authorization: Bearer {}", deployment.admin_token()),
        ])
        .args(["--phases", "examples,coverage,fuzzing"])
        // What a document cannot say: that a text is Rego, or evidence.
        .args(["--exclude-checks", "positive_data_acceptance"])
        .args([
            "--max-examples",
            "25",
            "--seed",
            "20301",
            "--generation-database",
            "none",
        ])
        .current_dir(deployment.dir.path())
        .env("HOME", deployment.dir.path())
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{told}");
    let log = deployment.log();
    assert!(!log.contains("panicked"), "{log}");
}
