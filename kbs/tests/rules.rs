//! By what is decided, as its owner administers it: policies per scope, and reference values in their
//! time. Trustee's own calls among it.
#![allow(clippy::unwrap_used)]

mod deployment;

use base64::{
    Engine,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use deployment::{Answer, Deployment, Guest, SECRET, fetch};
use http::{Method, StatusCode};
use kbs_protocol::ErrorKind;
use serde_json::{Value, json};

const ALLOW_ALL: &str = "package policy\nallow := true\n";
const DENY_ALL: &str = "package policy\nallow := false\n";
const BY_SVN: &str = "package policy\ndefault hardware := 97\nhardware := 2 if { input.sample.svn in query_reference_value(\"svn\") }\ntrust_claims := {\"hardware\": hardware}\n";

/// A broker whose API is asked as an administrator.
struct Owner {
    deployment: Deployment,
    bearer: String,
}

impl Owner {
    fn start() -> Self {
        let deployment = Deployment::start(&["sample"]);
        let bearer = format!("Bearer {}", deployment.admin_token());
        Self { deployment, bearer }
    }

    async fn ask(&self, method: Method, path: &str, body: impl Into<bytes::Bytes>) -> Answer {
        let headers = [("authorization", self.bearer.as_str())];
        self.deployment.ask(method, path, &headers, body).await
    }

    async fn get(&self, path: &str) -> Value {
        let answer = self.ask(Method::GET, path, "").await;
        assert_eq!(answer.status, StatusCode::OK, "{path}: {:?}", answer.body);
        answer.json()
    }

    async fn register(&self, values: &Value, more: Value) -> Answer {
        let mut message = json!({
            "version": "0.1.0", "type": "sample",
            "payload": BASE64_STANDARD.encode(values.to_string()),
        });
        message
            .as_object_mut()
            .unwrap()
            .append(more.clone().as_object_mut().unwrap());
        self.ask(Method::POST, "reference-value", message.to_string())
            .await
    }

    fn own(&self, args: &[&str]) -> String {
        self.deployment.own(args)
    }

    fn policy(&self, rego: &str, args: &[&str]) {
        let file = self.deployment.write("policy.rego", rego);
        self.own(&[&["policy", "set", "--file", &file], args].concat());
    }

    async fn token(&self) -> String {
        let guest = Guest::challenged(&self.deployment, None).await;
        guest.token(&self.deployment).await
    }

    /// The status that a fresh guest's token has.
    async fn status(&self) -> String {
        let token = self.token().await;
        let claims = token.split('.').nth(1).unwrap();
        let claims: Value =
            serde_json::from_slice(&BASE64_URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        let status = claims["submods"]["cpu0"]["ear.status"].as_str();
        status.unwrap().to_owned()
    }
}

fn rego(policy: &str) -> String {
    json!({"policy": BASE64_URL_SAFE_NO_PAD.encode(policy)}).to_string()
}

fn lines(text: &str) -> Vec<Value> {
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect()
}

#[tokio::test]
async fn the_most_specific_scope_decides_and_the_record_names_it() {
    let owner = Owner::start();
    let secret = owner.deployment.write("secret", SECRET);
    for path in ["a/key/1", "a/key/2", "b/key/1"] {
        owner.own(&["resource", "set", path, "--file", &secret]);
    }
    let token = owner.token().await;
    let released = async |path: &str| {
        let answer = fetch(&owner.deployment, &token, path).await;
        answer.status.is_success()
    };
    assert!(
        !released("a/key/1").await,
        "the built-in policy released to a sample"
    );
    owner.policy(ALLOW_ALL, &["--scope", "a"]);
    owner.policy(DENY_ALL, &["--scope", "a/key/2"]);
    assert!(released("a/key/1").await);
    assert!(!released("a/key/2").await);
    assert!(!released("b/key/1").await);
    owner.policy(ALLOW_ALL, &[]);
    assert!(released("b/key/1").await);
    assert!(!released("a/key/2").await);
    owner.own(&["policy", "delete", "--scope", "a/key/2"]);
    assert!(released("a/key/2").await);
    owner.own(&["policy", "delete"]);
    assert!(!released("b/key/1").await);
    assert!(released("a/key/2").await);
    let entries = lines(&owner.own(&["record", "export", "--kind", "release"]));
    let by: Vec<_> = entries
        .iter()
        .map(|one| {
            (
                one["versions"]["policy"].as_str().unwrap(),
                one["versions"]["release"].as_i64(),
            )
        })
        .collect();
    let (root, a, two) = (
        "resource-policy",
        "resource-policy/a",
        "resource-policy/a/key/2",
    );
    assert_eq!(
        by,
        [
            (root, Some(0)),
            (a, Some(1)),
            (two, Some(1)),
            (root, Some(0)),
            (root, Some(1)),
            (two, Some(1)),
            (a, Some(1)),
            (root, Some(0)),
            (a, Some(1))
        ]
    );
    let changes = lines(&owner.own(&["record", "list", "--resource", two]));
    let told: Vec<_> = changes
        .iter()
        .map(|one| (&one["result"], &one["versions"]["release"]))
        .collect();
    assert_eq!(
        told,
        [(&json!("set"), &json!(1)), (&json!("deleted"), &json!(2))]
    );
}

#[tokio::test]
async fn policies_are_listed_read_by_version_and_deleted() {
    let owner = Owner::start();
    for text in [DENY_ALL, ALLOW_ALL] {
        let set = owner
            .ask(Method::POST, "resource-policy/a/b", rego(text))
            .await;
        assert_eq!((set.status, set.body.len()), (StatusCode::OK, 0));
    }
    assert_eq!(
        owner.get("resource-policy").await,
        json!(["resource-policy", "resource-policy/a/b"])
    );
    assert_eq!(
        owner.get("attestation-policy").await,
        json!(["default_cpu"])
    );
    let text = async |path: &str| {
        let message = owner.get(path).await;
        let text = BASE64_URL_SAFE_NO_PAD.decode(message["policy"].as_str().unwrap());
        String::from_utf8(text.unwrap()).unwrap()
    };
    assert_eq!(text("resource-policy/a/b").await, ALLOW_ALL);
    assert_eq!(text("resource-policy/a/b?version=1").await, DENY_ALL);
    let built_in = text("resource-policy/resource-policy").await;
    assert_eq!(owner.own(&["policy", "get"]), built_in);
    owner.policy(ALLOW_ALL, &[]);
    assert_eq!(owner.own(&["policy", "get", "--version", "0"]), built_in);
    assert_eq!(
        owner.own(&["policy", "get", "--scope", "a/b", "--version", "1"]),
        DENY_ALL
    );
    owner.own(&["policy", "delete", "--scope", "a/b"]);
    let history = lines(&owner.own(&["policy", "history", "--scope", "a/b"]));
    let versions: Vec<_> = history
        .iter()
        .map(|one| (&one["version"], &one["deleted"]))
        .collect();
    let (no, yes) = (json!(false), json!(true));
    assert_eq!(
        versions,
        [(&json!(1), &no), (&json!(2), &no), (&json!(3), &yes)]
    );
    assert_eq!(
        owner.own(&["policy", "list"]),
        "resource-policy\ndefault_cpu\n"
    );
    for (method, path, kind) in [
        (
            Method::GET,
            "resource-policy/a/b",
            ErrorKind::ResourceNotFound,
        ),
        (
            Method::DELETE,
            "resource-policy/a/b",
            ErrorKind::ResourceNotFound,
        ),
        (
            Method::DELETE,
            "attestation-policy/default_cpu",
            ErrorKind::ResourceNotFound,
        ),
        (
            Method::GET,
            "attestation-policy/strict_cpu",
            ErrorKind::ResourceNotFound,
        ),
        (
            Method::GET,
            "attestation-policy/default",
            ErrorKind::InvalidRequest,
        ),
        (
            Method::GET,
            "resource-policy/a/b/c/d",
            ErrorKind::InvalidRequest,
        ),
        (
            Method::GET,
            "resource-policy/a?vresion=1",
            ErrorKind::InvalidRequest,
        ),
        (
            Method::DELETE,
            "resource-policy/resource-policy",
            ErrorKind::InvalidRequest,
        ),
    ] {
        assert_eq!(
            owner.ask(method, path, "").await.refusal().0,
            kind,
            "{path}"
        );
    }
    let climbing = owner
        .ask(
            Method::POST,
            "resource-policy/resource-policy",
            rego(ALLOW_ALL),
        )
        .await;
    assert_eq!(climbing.refusal().0, ErrorKind::InvalidRequest);
    let other = json!({"policy": "", "policy_id": "resource-policy/b"}).to_string();
    let other = owner.ask(Method::POST, "resource-policy/a", other).await;
    assert_eq!(other.refusal().0, ErrorKind::InvalidRequest);
}

#[tokio::test]
async fn trustees_calls_are_answered_as_trustee_answers_them() {
    let owner = Owner::start();
    let post =
        async |path: &str, body: Value| owner.ask(Method::POST, path, body.to_string()).await;
    let appraisal = BASE64_URL_SAFE_NO_PAD.encode(BY_SVN);
    for id in ["default_cpu", "default"] {
        let body = json!({"type": "rego", "policy_id": id, "policy": appraisal});
        let set = post("attestation-policy", body).await;
        assert_eq!((set.status, set.body.len()), (StatusCode::OK, 0));
    }
    let wrong = json!({"type": "rego", "policy_id": "default_cpuu", "policy": appraisal});
    let (kind, error) = post("attestation-policy", wrong).await.refusal();
    assert_eq!(kind, ErrorKind::InvalidRequest);
    assert!(error.detail.contains("nvidia-dpu"), "{}", error.detail);
    assert_eq!(
        post(
            "resource-policy",
            json!({"policy": BASE64_URL_SAFE_NO_PAD.encode(ALLOW_ALL)})
        )
        .await
        .status,
        StatusCode::OK
    );
    assert_eq!(
        owner.get("resource-policy").await,
        json!(["resource-policy"])
    );
    assert_eq!(owner.status().await, "contraindicated");
    let set = owner
        .register(&json!({"svn": ["1"], "rvps:///ns/x:1.0": true}), json!({}))
        .await;
    assert_eq!((set.status, set.body.len()), (StatusCode::OK, 0));
    assert_eq!(owner.status().await, "affirming");
    assert_eq!(owner.get("reference-value/svn").await, json!(["1"]));
    assert_eq!(
        owner.get("reference-value/rvps:///ns/x:1.0").await,
        json!(true)
    );
    // The last write wins.
    owner.register(&json!({"svn": ["2"]}), json!({})).await;
    assert_eq!(owner.get("reference-value/svn").await, json!(["2"]));
    assert_eq!(owner.status().await, "contraindicated");
    let absent = owner.ask(Method::GET, "reference-value/absent", "").await;
    assert_eq!(absent.refusal().0, ErrorKind::ResourceNotFound);
}

#[tokio::test]
async fn reference_values_are_added_timed_listed_and_withdrawn() {
    let owner = Owner::start();
    owner.policy(BY_SVN, &["--appraisal"]);
    owner.own(&["reference", "set", "svn", "0"]);
    assert_eq!(owner.status().await, "contraindicated");
    owner.own(&[
        "reference",
        "add",
        "svn",
        "1",
        "--until",
        "2031-01-02T03:04:05Z",
    ]);
    assert_eq!(owner.status().await, "affirming");
    assert_eq!(owner.get("reference-value/svn").await, json!(["0", "1"]));
    let list = lines(&owner.own(&["reference", "list"]));
    assert_eq!(list.len(), 2);
    assert_eq!(list[1]["not_after"], "2031-01-02T03:04:05Z");
    assert_eq!(
        list[1]["provenance"],
        json!({"by": "administrator", "who": "admin"})
    );
    // What is not yet, or no longer, is as good as none.
    for window in [
        ["--from", "2031-01-02T03:04:05Z"],
        ["--until", "2021-01-02T03:04:05Z"],
    ] {
        owner.own(&[&["reference", "set", "svn", "1"], &window[..]].concat());
        assert_eq!(owner.status().await, "contraindicated");
        assert_eq!(lines(&owner.own(&["reference", "list"]))[0]["holds"], false);
    }
    owner.own(&[
        "reference",
        "set",
        "a b/ü:1.0",
        "7",
        "--as",
        "integer",
        "--single",
    ]);
    assert_eq!(
        owner.get("reference-value/a%20b/%C3%BC:1.0").await,
        json!(7)
    );
    owner.own(&["reference", "delete", "a b/ü:1.0"]);
    assert!(
        !owner
            .deployment
            .owner(&["reference", "delete", "a b/ü:1.0"])
            .status
            .success()
    );
    let history = lines(&owner.own(&["reference", "history", "a b/ü:1.0"]));
    assert_eq!(
        (&history[0]["state"], history.len()),
        (&json!("withdrawn"), 1)
    );
    let document = json!({"m": ["ab", "cd"], "svn": ["1"]}).to_string();
    let document = owner.deployment.write("values.json", document);
    owner.own(&["reference", "import", &document, "--add"]);
    assert_eq!(owner.get("reference-value/m").await, json!(["ab", "cd"]));
    assert_eq!(owner.status().await, "affirming");
    let told = lines(&owner.own(&["record", "list", "--resource", "reference-value/svn"]));
    assert_eq!(told.len(), 5);
    assert_eq!(told[4]["versions"]["references"], 7);
}

#[tokio::test]
async fn what_a_reference_message_must_not_be_is_named() {
    let owner = Owner::start();
    for (more, word) in [
        (json!({"not_befor": "2031-01-02T03:04:05Z"}), "members"),
        (json!({"not_before": "tomorrow"}), "not_before"),
        (json!({"not_after": "1931-01-02T03:04:05Z"}), "not_after"),
        (
            json!({"not_before": "2031-01-02T03:04:05Z", "not_after": "2031-01-02T03:04:05Z"}),
            "`svn`",
        ),
        (json!({"mode": "merge"}), "members"),
        (json!({"version": "0.2.0"}), "0.1.0"),
        (json!({"type": "corim"}), "accept_unsigned"),
        (json!({"payload": "x"}), "base64"),
        (json!({"payload": "W10="}), "map"),
        (json!({"payload": "e30="}), "1 to"),
    ] {
        let (kind, error) = owner
            .register(&json!({"svn": ["1"]}), more.clone())
            .await
            .refusal();
        assert_eq!(kind, ErrorKind::InvalidRequest, "{more}");
        assert!(error.detail.contains(word), "{more}: {}", error.detail);
    }
    assert_eq!(owner.get("reference-value").await, json!([]));
}

#[tokio::test]
async fn a_stored_policy_that_is_no_policy_refuses_its_scope_alone() {
    let mut owner = Owner::start();
    let secret = owner.deployment.write("secret", SECRET);
    for (path, scope) in [("a/key/1", "a"), ("b/key/1", "b")] {
        owner.own(&["resource", "set", path, "--file", &secret]);
        owner.policy(ALLOW_ALL, &["--scope", scope]);
    }
    let broken = "UPDATE policy SET rego = 'package policy allow {' WHERE id = 'resource-policy/a'";
    tamper(&owner.deployment, broken).await;
    owner.deployment.crash_and_restart();
    let token = owner.token().await;
    for _ in 0..2 {
        let (kind, _) = fetch(&owner.deployment, &token, "a/key/1").await.refusal();
        assert_eq!(kind, ErrorKind::PolicyEngineError);
    }
    assert_eq!(
        fetch(&owner.deployment, &token, "b/key/1").await.status,
        StatusCode::OK
    );
    let told = owner
        .deployment
        .log()
        .matches("a stored policy cannot be used")
        .count();
    assert_eq!(told, 1, "the cause is told once");
    owner.policy(ALLOW_ALL, &["--scope", "a"]);
    assert_eq!(
        fetch(&owner.deployment, &token, "a/key/1").await.status,
        StatusCode::OK
    );
}

/// Changes the database behind the broker's back.
async fn tamper(deployment: &Deployment, sql: &'static str) {
    sqlx::any::install_default_drivers();
    let file = url::Url::from_file_path(deployment.path("kbs.sqlite")).unwrap();
    let address = format!("sqlite://{}", file.path());
    let pool = sqlx::AnyPool::connect(&address).await.unwrap();
    sqlx::raw_sql(sql).execute(&pool).await.unwrap();
    pool.close().await;
}
