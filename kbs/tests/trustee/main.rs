//! What Trustee's clients send, and what they need of the answers: `kbs-client` of trustee 78962cd and
//! `kbs_protocol` of guest-components 8246e5e, whose requests were recorded against this broker and are
//! written out here member for member, so that a change of ours that would break them fails here.
#![allow(clippy::unwrap_used)]

#[path = "../deployment/mod.rs"]
mod deployment;
mod peer;

use http::{Method, StatusCode};
use kbs_protocol::{ErrorKind, KeyKind};
use peer::{ANY, Client, GUEST, OWNER, Owner, Sent, now};
use serde_json::json;

const SECRET: &str = "shhhhhhh";
const PATH: &str = "default/test/secret";
const ALLOW_ALL: &str = "package policy\nallow = true\n";
const IF_AFFIRMING: &str = r#"package policy
import rego.v1
default allow = false
allow if {
	every _, part in input.submods { part["ear.status"] == "affirming" }
	count(input.submods) > 0
}
"#;
/// An appraisal of samples by all of the claims that Trustee's own policy compares.
const APPRAISAL: &str = r#"package policy
import rego.v1
default executables := 33
default hardware := 97
default configuration := 36
trust_claims := {"executables": executables, "hardware": hardware, "configuration": configuration}
executables := 3 if input.sample.launch_digest in query_reference_value("launch_digest")
hardware := 2 if {
	input.sample.svn in query_reference_value("svn")
	input.sample.platform_version.major == query_reference_value("major_version")
	input.sample.platform_version.minor >= query_reference_value("minimum_minor_version")
}
configuration := 2 if input.sample.debug == false
"#;
const DEVICE_APPRAISAL: &str = r#"package policy
import rego.v1
default hardware := 97
trust_claims := {"hardware": hardware}
hardware := 2 if input.sampledevice.svn in query_reference_value("device_svn")
"#;

#[tokio::test]
async fn each_kind_of_key_gets_a_secret_by_cookie_and_by_token() {
    let owner = Owner::start();
    owner.set_resource(PATH).await;
    owner.set_resource_policy(ALLOW_ALL).await;
    let broker = &owner.deployment;
    // They ask first, and attest because of a 401 with this body.
    let path = format!("resource/{PATH}");
    let answer = broker.ask(Method::GET, &path, &[ANY, GUEST], "").await;
    assert_eq!(answer.refusal().0, ErrorKind::TokenNotFound);
    assert_eq!(answer.status, StatusCode::UNAUTHORIZED);
    for kind in [KeyKind::P256, KeyKind::P521, KeyKind::Rsa2048] {
        let client = Client::attest(broker, kind, None, false).await;
        let answer = client.get(broker, PATH).await;
        assert_eq!(client.open(&answer), SECRET.as_bytes());
        // A query, and what `trustee-attester` makes of a path without a scheme.
        for path in ["default/test/secret?a=b", "/default/test/secret"] {
            let answer = client.get(broker, path).await;
            assert_eq!(client.open(&answer), SECRET.as_bytes());
        }
    }
}

#[tokio::test]
async fn an_owner_sets_reads_and_deletes() {
    let owner = Owner::start();
    for (payload, name, value) in [
        (r#"{"svn":["1"]}"#, "svn", json!(["1"])),
        (r#"{"major":1}"#, "major", json!(1)),
        (r#"{"debug":[true]}"#, "debug", json!([true])),
        (
            r#"{"rvps:///ns/a:1.0":"ab"}"#,
            "rvps:///ns/a:1.0",
            json!("ab"),
        ),
    ] {
        owner.set_sample_reference_value(payload).await;
        let path = format!("reference-value/{name}");
        let kind = Some("application/json");
        let answer = owner.ask(Method::GET, &path, kind, "").await;
        assert_eq!((answer.status, answer.json()), (StatusCode::OK, value));
    }
    for id in ["default", "default_cpu", "default_gpu"] {
        owner.set_attestation_policy(id, APPRAISAL).await;
    }
    owner.set_resource(PATH).await;
    let path = format!("resource/{PATH}");
    let deleted = owner.ask(Method::DELETE, &path, None, "").await;
    assert_eq!(deleted.status, StatusCode::OK, "{:?}", deleted.body);
    let again = owner.ask(Method::DELETE, &path, None, "").await;
    assert_eq!(again.refusal().0, ErrorKind::ResourceNotFound);
}

#[tokio::test]
async fn policies_on_a_sample_and_its_device_find_trustees_claims() {
    let owner = Owner::start();
    owner.set_resource(PATH).await;
    owner.set_resource_policy(IF_AFFIRMING).await;
    owner.set_attestation_policy("default_cpu", APPRAISAL).await;
    owner
        .set_attestation_policy("default_gpu", DEVICE_APPRAISAL)
        .await;
    let broker = &owner.deployment;
    let fetch = async |device| {
        let client = Client::attest(broker, KeyKind::P256, None, device).await;
        client.get(broker, PATH).await.status
    };
    assert_eq!(fetch(false).await, StatusCode::FORBIDDEN);
    for payload in [
        r#"{"launch_digest":["abcde"]}"#,
        r#"{"svn":["1"]}"#,
        r#"{"major_version":1}"#,
        r#"{"minimum_minor_version":1}"#,
    ] {
        owner.set_sample_reference_value(payload).await;
    }
    assert_eq!(fetch(false).await, StatusCode::OK);
    assert_eq!(fetch(true).await, StatusCode::FORBIDDEN);
    owner
        .set_sample_reference_value(r#"{"device_svn":["2"]}"#)
        .await;
    assert_eq!(fetch(true).await, StatusCode::OK);
}

#[tokio::test]
async fn policies_find_what_init_data_says_and_its_token_still_fits_the_cookie() {
    let owner = Owner::start();
    owner.set_resource(PATH).await;
    owner
        .set_resource_policy(
            r#"package policy
import rego.v1
default allow = false
allow if {
	said := input.submods.cpu0["ear.veraison.annotated-evidence"].init_data_claims
	said["cdh.toml"].kbc.name == "cc_kbc"
	said.agent_policy_claims.containers[1].OCI.Process.Args[0] == "/entrypoint.sh"
}
"#,
        )
        .await;
    let said = json!({"containers": [{}, {"OCI": {"Process": {"Args": ["/entrypoint.sh"]}}}]});
    let certificate = "x".repeat(7000);
    let text = format!(
        "version = \"0.1.0\"\nalgorithm = \"sha256\"\n[data]\n\"policy.rego\" = '''\npackage agent_policy\n\n\
         policy_data := {said}'''\n\"cdh.toml\" = '''\n[kbc]\nname = \"cc_kbc\"\n\
         url = \"http://1.2.3.4:8080\"\n'''\n\"one.pem\" = '{certificate}'\n\"two.pem\" = '{certificate}'\n"
    );
    let broker = &owner.deployment;
    let sent = |text, bound| Some(Sent { text, bound });
    let client = Client::attest(broker, KeyKind::P256, sent(&text, true), false).await;
    assert!(client.token.len() > 16 * 1024, "{}", client.token.len());
    let answer = client.get(broker, PATH).await;
    assert_eq!(client.open(&answer), SECRET.as_bytes());
    let other = text.replace("/entrypoint.sh", "/other.sh");
    // What no launch bound is attested, and is no claim.
    for sent in [sent(&other, true), sent(&text, false)] {
        let client = Client::attest(broker, KeyKind::P256, sent, false).await;
        let answer = client.get(broker, PATH).await;
        assert_eq!(answer.refusal().0, ErrorKind::PolicyDeny);
    }
}

#[tokio::test]
async fn what_their_clients_show_of_an_error_leads_to_its_cause() {
    let owner = Owner::start();
    owner.set_resource(PATH).await;
    owner
        .set_resource_policy("package policy\nallow = false\n")
        .await;
    let broker = &owner.deployment;
    // They know `type` and `detail`, and show both.
    let client = Client::attest(broker, KeyKind::P256, None, false).await;
    let (_, denied) = client.get(broker, PATH).await.refusal();
    let ticket = denied.ticket.unwrap();
    let command = format!("`kbs explain {ticket}`");
    assert!(denied.detail.contains(&command), "{}", denied.detail);
    let broken = Some(Sent {
        text: "version = 1",
        bound: false,
    });
    let (_, answer) = Client::attempt(broker, KeyKind::P256, broken, false).await;
    let (kind, error) = answer.refusal();
    assert_eq!(kind, ErrorKind::InvalidRequest);
    let ticket = format!("(ticket {})", error.ticket.unwrap());
    assert!(error.detail.contains("init-data"), "{}", error.detail);
    assert!(error.detail.contains(&ticket), "{}", error.detail);

    let (now, exp) = (now(), now() + 3600);
    let anonymous = broker
        .ask(Method::POST, "resource/a/b/c", &[ANY], "x")
        .await;
    let (kind, error) = anonymous.refusal();
    assert_eq!(kind, ErrorKind::AdminAuthAccess);
    assert!(error.detail.contains("no administrator's token"));
    for (claims, word) in [
        // Of `docker-compose`, of the day before, of `trustee run`, and of another role.
        (
            format!(
                r#"{{"iss":"i","sub":"admin","aud":["KBS"],"role":"admin","iat":{now},"exp":{exp}}}"#
            ),
            "`admin.audiences` takes kbs",
        ),
        (
            format!(
                r#"{{"iss":"i","role":"admin","aud":["kbs"],"iat":1,"exp":{}}}"#,
                now - 86_400
            ),
            "has ended",
        ),
        (
            format!(r#"{{"issuer":"i","subject":"admin","audiences":["kbs"],"exp":{exp}}}"#),
            "no role",
        ),
        (
            format!(r#"{{"iss":"i","role":"tester","aud":["kbs"],"iat":{now},"exp":{exp}}}"#),
            "role `tester`",
        ),
    ] {
        let bearer = format!("Bearer {}", owner.token(&claims));
        let headers = [("authorization", bearer.as_str()), ANY, OWNER];
        let answer = broker
            .ask(Method::POST, "resource/a/b/c", &headers, "x")
            .await;
        let (_, error) = answer.refusal();
        assert!(error.detail.contains(word), "{}", error.detail);
    }
}
