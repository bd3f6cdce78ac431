//! Policies per scope, as their owner administers them; Trustee's own calls among it.

use crate::deployment;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use deployment::{
    Deployment, Guest, SECRET, fetch,
    owner::{BY_SVN, Owner, lines},
};
use http::{Method, StatusCode};
use kbs_protocol::ErrorKind;
use serde_json::{Value, json};

const ALLOW_ALL: &str = "package policy\nallow := true\n";
const DENY_ALL: &str = "package policy\nallow := false\n";

fn rego(policy: &str) -> String {
    json!({"policy": BASE64_URL_SAFE_NO_PAD.encode(policy)}).to_string()
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
}

#[tokio::test]
async fn a_policy_that_is_not_there_and_a_scope_that_cannot_be_are_told_apart() {
    let owner = Owner::start();
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
async fn a_selected_appraisal_policy_is_that_one_or_a_refusal_by_name() {
    let owner = Owner::start();
    let asked = async |name: &str| {
        let extra = json!({"attestation_policy_selector": name});
        let body = json!({"version": "0.4.0", "tee": "sample", "extra-params": extra});
        let answer = owner
            .deployment
            .ask(Method::POST, "auth", &[], body.to_string())
            .await;
        let mut guest = Guest::challenged(&owner.deployment, None).await;
        guest.cookie = answer.cookie();
        guest.request.runtime_data.nonce = answer.json()["nonce"].as_str().unwrap().to_owned();
        guest.prove();
        guest.attest(&owner.deployment).await
    };
    let (kind, error) = asked("strict").await.refusal();
    assert_eq!(kind, ErrorKind::InvalidRequest);
    assert!(error.detail.contains("strict_cpu"), "{}", error.detail);
    owner.policy(BY_SVN, &["--appraisal", "strict_cpu"]);
    assert_eq!(asked("strict").await.status, StatusCode::OK);
    assert_eq!(
        owner.own(&["policy", "list"]),
        "resource-policy\ndefault_cpu\nstrict_cpu\n"
    );
    let told = lines(&owner.own(&["record", "list", "--kind", "attest"]));
    let last = &told.last().unwrap()["versions"];
    assert_eq!(
        (&last["policy"], &last["appraisal"]),
        (&json!("strict_cpu"), &json!(1))
    );
    owner.own(&["policy", "delete", "--appraisal", "strict_cpu"]);
    assert_eq!(asked("strict").await.refusal().0, ErrorKind::InvalidRequest);
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

/// MiB that the broker has had at most.
fn peak_mib(deployment: &Deployment) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", deployment.pid())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = peak.unwrap().trim().trim_end_matches(" kB");
    kib.parse::<u64>().unwrap() / 1024
}

/// About 25 MiB without such policies, and 25 to 80 more with them, as fast as the machine is; without a
/// bound it is a GiB in no time.
const PEAK_MIB: u64 = 256;

/// Each takes all that it is given, once there is a guest.
const ENDLESS: [(&str, &str); 2] = [
    (
        "slow",
        "some a in numbers.range(1, 9000); some b in numbers.range(1, 9000); a + b == 0",
    ),
    (
        "large",
        "x := numbers.range(1, 2000); y := [[[a, b, c] | some c in x] | some a in x; some b in x]; count(y) < 0",
    ),
];

#[tokio::test]
async fn a_policy_without_end_holds_up_nobody_else() {
    let owner = Owner::start();
    let secret = owner.deployment.write("secret", SECRET);
    owner.own(&["resource", "set", "good/key/1", "--file", &secret]);
    owner.policy(ALLOW_ALL, &["--scope", "good"]);
    for (scope, body) in ENDLESS {
        let rego = format!("package policy\nallow if {{ input.submods; {body} }}\n");
        owner.policy(&rego, &["--scope", scope]);
    }
    let token = owner.token().await;
    let asked = (0..8).map(async |number: usize| {
        let path = format!("{}/key/{number}", ENDLESS[number % 2].0);
        let refused = fetch(&owner.deployment, &token, &path).await.refusal();
        assert_eq!(refused.0, ErrorKind::PolicyEngineError, "{:?}", refused.1);
    });
    let others = async {
        for _ in 0..10 {
            let health = owner.deployment.ask(Method::GET, "/healthz", &[], "").await;
            assert_eq!(health.status, StatusCode::OK);
            let released = fetch(&owner.deployment, &token, "good/key/1").await;
            assert_eq!(released.status, StatusCode::OK);
        }
    };
    futures_util::future::join(futures_util::future::join_all(asked), others).await;
    let peak = peak_mib(&owner.deployment);
    assert!(peak < PEAK_MIB, "{peak} MiB");
}

#[tokio::test]
async fn a_policy_without_end_is_refused_when_it_is_set() {
    let owner = Owner::start();
    for (_, body) in ENDLESS {
        let rego = format!("package policy\nallow if {{ {body} }}\n");
        let message = json!({"policy": BASE64_URL_SAFE_NO_PAD.encode(rego)}).to_string();
        let answer = owner.ask(Method::POST, "resource-policy/a", message).await;
        let (kind, error) = answer.refusal();
        assert_eq!(kind, ErrorKind::ParsePolicyError);
        assert!(error.detail.contains("took longer"), "{}", error.detail);
    }
    let peak = peak_mib(&owner.deployment);
    assert!(peak < PEAK_MIB, "{peak} MiB");
}
