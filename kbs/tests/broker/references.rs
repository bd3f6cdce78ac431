//! Reference values in their time and with their provenance, as their owner administers them.

use crate::deployment;

use deployment::{
    Deployment,
    owner::{BY_SVN, Owner, lines},
};
use http::Method;
use kbs_protocol::ErrorKind;
use serde_json::json;

/// The vector of `kbs/src/signer/tests.rs`, which is valid from second 150 to second 300 after 1970, and
/// the key that signed it.
const SIGNED: &str = "d284582fa3012703746170706c69636174696f6e2f72696d2b63626f720854a200a1006441\
    434d4501a200c1186401c119012ca0585fd901f5a30061630181d901fa5846a201a10062696404a1008182a100a2\
    016441434d4502614d81a20062667701a1028182015820abababababababababababababababababababababababab\
    abababababababab04a200c1189601c1190190584022eeaeccd4000e0774f21a333b93e91f0879e0e9c4ff25cfd106\
    3abd1b3246c91774410eb7809eba6c363f164a1042a1d0d8ae09f48fe4752da4ad68966a280a";
const SIGNER: &str = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=\n-----END PUBLIC KEY-----\n";

#[tokio::test]
async fn a_number_that_stands_for_nothing_is_refused_by_name_and_changes_nothing() {
    let deployment = Deployment::start(&["sample"]);
    deployment.own(&["reference", "set", "svn", "1"]);
    let bearer = format!("Bearer {}", deployment.admin_token());
    let admin = [("authorization", bearer.as_str())];
    for (method, path) in [
        (Method::DELETE, "reference-value/svn?version=0"),
        (Method::DELETE, "reference-value/svn?version=-1"),
        (Method::GET, "resource-policy/resource-policy?version=-1"),
        (Method::GET, "attestation-policy/default_cpu?version=-1"),
        (Method::GET, "record?limit=0"),
        (Method::GET, "record?limit=-1"),
    ] {
        let answer = deployment.ask(method, path, &admin, "").await;
        let (kind, error) = answer.refusal();
        assert_eq!(kind, ErrorKind::InvalidRequest, "{path}");
        let (_, query) = path.split_once('?').unwrap();
        let (member, _) = query.split_once('=').unwrap();
        assert!(error.detail.contains(member), "{path}: {}", error.detail);
    }
    let listed = lines(&deployment.own(&["reference", "list"]));
    assert_eq!(listed[0]["holds"], json!(true));
}

#[test]
fn a_signed_corim_is_its_signers_word_and_an_unsigned_one_its_holders() {
    let dir = tempfile::tempdir().unwrap();
    let signer = dir.path().join("vendor.pem");
    std::fs::write(&signer, SIGNER).unwrap();
    let deployment = Deployment::start_with(&["sample"], |config| {
        format!("{config}\n[reference]\nsigners = [{signer:?}]\n")
            .replace("[reference]\naccept_unsigned_corim = false\n\n", "")
    });
    let signed = hex::decode(SIGNED).unwrap();
    let document = deployment.write("vendor.corim", &signed);
    deployment.own(&["reference", "import", &document]);
    let listed = lines(&deployment.own(&["reference", "list", "--prefix", "ACME/"]));
    assert_eq!(listed[0]["name"], "ACME/M/fw/digests");
    assert_eq!(listed[0]["provenance"]["by"], "signer");
    assert_eq!(
        (
            &listed[0]["not_before"],
            &listed[0]["not_after"],
            &listed[0]["holds"]
        ),
        (
            &json!("1970-01-01T00:02:30Z"),
            &json!("1970-01-01T00:05:00Z"),
            &json!(false)
        )
    );
    let mut altered = signed.clone();
    altered[120] ^= 1;
    let altered = deployment.write("altered.corim", altered);
    let refused = deployment.owner(&["reference", "import", &altered, "--accept-unsigned"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("signature"), "{told}");
    // The manifest alone, as tag 501 has it.
    let start = signed
        .windows(3)
        .position(|three| three == [0xd9, 0x01, 0xf5])
        .unwrap();
    let unsigned = deployment.write("unsigned.corim", &signed[start..start + 0x5f]);
    let refused = deployment.owner(&["reference", "import", &unsigned]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("accept-unsigned"), "{told}");
    deployment.own(&[
        "reference",
        "import",
        &unsigned,
        "--accept-unsigned",
        "--add",
    ]);
    let listed = lines(&deployment.own(&["reference", "list"]));
    assert_eq!(
        listed[1]["provenance"],
        json!({"by": "unsigned", "who": "admin"})
    );
    assert_eq!(listed[1]["not_after"], "1970-01-01T00:06:40Z");
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
        (json!({"type": "corim"}), "CBOR"),
        (json!({"payload": "x"}), "base64"),
        (json!({"payload": "W10="}), "map"),
        // {"a":1,"b":2,"a":3}
        (
            json!({"payload": "eyJhIjoxLCJiIjoyLCJhIjozfQ=="}),
            "\"a\" is there twice",
        ),
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
