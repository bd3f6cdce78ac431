//! `signedBy`: simple signatures by the real gpg, in a lookaside and at a registry.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use image_rs::policy::PolicyError;
use image_rs::signature::{Reason, SIGNATURES_MAX};
use image_rs::{Digest, Policy};
use serde_json::json;
use tempfile::TempDir;

use crate::maker::{base64, simple_payload};
use crate::room::need_tool;
use crate::store::{IMAGE, Store, check, manifest, policy, reason, refusal};

/// A home of gpg. All of its keys are made in 2025, and what lasts a year is over when the tests look.
struct Home(TempDir);

impl Home {
    fn new() -> Option<Self> {
        need_tool("gpg").then(|| Self(TempDir::new().unwrap()))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn run(&self, args: &[&str]) -> Output {
        let output = Command::new("gpg")
            .args(["--batch", "--quiet", "--yes", "--pinentry-mode", "loopback"])
            .args(["--passphrase", "", "--homedir"])
            .arg(self.0.path())
            .args(args)
            .output()
            .unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "gpg {args:?}: {errors}");
        output
    }

    fn make(&self, user: &str, algorithm: &str, usage: &str, lasts: &str) {
        self.run(&[
            "--faked-system-time",
            "20250601T000000!",
            "--quick-generate-key",
            user,
            algorithm,
            usage,
            lasts,
        ]);
    }

    fn export(&self, user: &str) -> Vec<u8> {
        self.run(&["--export", user]).stdout
    }

    fn sign(&self, user: &str, payload: &[u8], more: &[&str]) -> Vec<u8> {
        let (from, to) = (self.path("payload"), self.path("signed"));
        std::fs::write(&from, payload).unwrap();
        let (from, to) = (from.to_str().unwrap(), to.to_str().unwrap());
        let mut args = vec!["--faked-system-time", "20250701T000000!"];
        args.extend(more);
        args.extend(["--local-user", user, "--output", to, "--sign", from]);
        self.run(&args);
        std::fs::read(Path::new(to)).unwrap()
    }
}

fn signed_by(ring: &[u8]) -> Policy {
    policy(&json!([{"type": "signedBy", "keyType": "GPGKeys", "keyData": base64(ring)}]))
}

fn own_payload() -> Vec<u8> {
    simple_payload("atomic container signature", &manifest().digest, IMAGE)
}

fn aside(blobs: &[Vec<u8>]) -> Store {
    let mut store = Store::default();
    let place = format!(
        "https://sigs.example/team/app@sha256={}",
        manifest().digest.hex()
    );
    for (index, blob) in blobs.iter().enumerate() {
        let url = format!("{place}/signature-{}", index + 1);
        store.aside.insert(url, blob.clone().into());
    }
    store
}

async fn judge(ring: &[u8], blob: &[u8]) -> Result<(), PolicyError> {
    check(&signed_by(ring), &aside(&[blob.to_vec()])).await
}

fn gpg_reason(result: Result<(), PolicyError>) -> String {
    match reason(result) {
        Reason::Gpg(text) => text,
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn keys_of_each_algorithm_sign_with_and_without_compression() {
    let Some(home) = Home::new() else { return };
    for algorithm in ["rsa2048", "ed25519", "nistp256"] {
        let user = format!("{algorithm}@team.example");
        home.make(&user, algorithm, "sign", "never");
        let ring = home.export(&user);
        for compression in ["0", "6"] {
            let blob = home.sign(&user, &own_payload(), &["--compress-level", compression]);
            let result = judge(&ring, &blob).await;
            result.unwrap_or_else(|error| panic!("{algorithm} {compression}: {error}"));
        }
        let armored = home.run(&["--armor", "--export", &user]).stdout;
        let blob = home.sign(&user, &own_payload(), &[]);
        judge(&armored, &blob).await.unwrap();
    }
}

#[tokio::test]
async fn a_subkey_signs_if_it_may() {
    let Some(home) = Home::new() else { return };
    let user = "sub@team.example";
    home.make(user, "ed25519", "cert", "never");
    let listing = home.run(&["--with-colons", "--list-keys", user]).stdout;
    let listing = String::from_utf8(listing).unwrap();
    let print = listing
        .lines()
        .find_map(|line| line.strip_prefix("fpr:::::::::"));
    let print = print.unwrap().trim_end_matches(':').to_owned();
    home.run(&[
        "--faked-system-time",
        "20250601T000000!",
        "--quick-add-key",
        &print,
        "ed25519",
        "sign",
        "never",
    ]);
    let blob = home.sign(user, &own_payload(), &[]);
    judge(&home.export(user), &blob).await.unwrap();
}

#[tokio::test]
async fn another_key_digest_or_name_is_refused() {
    let Some(home) = Home::new() else { return };
    home.make("a@team.example", "ed25519", "sign", "never");
    home.make("b@team.example", "ed25519", "sign", "never");
    let ring = home.export("a@team.example");
    let blob = home.sign("b@team.example", &own_payload(), &[]);
    assert!(matches!(reason(judge(&ring, &blob).await), Reason::Key(_)));
    // A policy may have several keys in one ring, in each form.
    let both = home.run(&["--armor", "--export", "a@team.example"]).stdout;
    let other = home.run(&["--armor", "--export", "b@team.example"]).stdout;
    judge(&[both, other].concat(), &blob).await.unwrap();

    let sign = |payload: &[u8]| home.sign("a@team.example", payload, &[]);
    let kind = "atomic container signature";
    let signed = Digest::of(b"other");
    let blob = sign(&simple_payload(kind, &signed, IMAGE));
    assert_eq!(reason(judge(&ring, &blob).await), Reason::Digest { signed });
    let blob = sign(&simple_payload(
        kind,
        &manifest().digest,
        "quay.io/team/other:v1",
    ));
    assert!(matches!(
        reason(judge(&ring, &blob).await),
        Reason::Identity { .. }
    ));
    let cosign = simple_payload(
        "cosign container image signature",
        &manifest().digest,
        IMAGE,
    );
    assert!(matches!(
        reason(judge(&ring, &sign(&cosign)).await),
        Reason::Format { .. }
    ));
}

#[tokio::test]
async fn a_key_that_has_expired_or_was_revoked_is_refused() {
    let Some(home) = Home::new() else { return };
    home.make("short@team.example", "ed25519", "sign", "20251231T000000");
    let blob = home.sign("short@team.example", &own_payload(), &[]);
    let text = gpg_reason(judge(&home.export("short@team.example"), &blob).await);
    assert!(text.contains("has expired"), "{text}");

    home.make("gone@team.example", "ed25519", "sign", "never");
    let (ring, blob) = (
        home.export("gone@team.example"),
        home.sign("gone@team.example", &own_payload(), &[]),
    );
    judge(&ring, &blob).await.unwrap();
    let revocations = home.path("openpgp-revocs.d");
    let newest = std::fs::read_dir(revocations).unwrap();
    for file in newest {
        // gpg keeps it with a colon before the armor, so that nobody imports it by chance.
        let text = std::fs::read_to_string(file.unwrap().path()).unwrap();
        let (path, armor) = (
            home.path("revoke"),
            text.replace(":-----BEGIN", "-----BEGIN"),
        );
        std::fs::write(&path, armor).unwrap();
        home.run(&["--import", path.to_str().unwrap()]);
    }
    let text = gpg_reason(judge(&home.export("gone@team.example"), &blob).await);
    assert!(text.contains("is revoked"), "{text}");
}

#[tokio::test]
async fn a_signature_that_has_expired_or_can_be_forged_is_refused() {
    let Some(home) = Home::new() else { return };
    home.make("s@team.example", "rsa2048", "sign", "never");
    let ring = home.export("s@team.example");
    let expired = home.sign(
        "s@team.example",
        &own_payload(),
        &["--default-sig-expire", "10d"],
    );
    assert_eq!(gpg_reason(judge(&ring, &expired).await), "it has expired");
    let forgeable = home.sign("s@team.example", &own_payload(), &["--digest-algo", "SHA1"]);
    let text = gpg_reason(judge(&ring, &forgeable).await);
    assert!(text.contains("forged"), "{text}");
    let weak = "weak@team.example";
    home.make(weak, "rsa1024", "sign", "never");
    let blob = home.sign(weak, &own_payload(), &[]);
    let text = gpg_reason(judge(&home.export(weak), &blob).await);
    assert!(text.contains("too weak"), "{text}");
}

#[tokio::test]
async fn a_critical_condition_that_is_not_known_is_refused() {
    let Some(home) = Home::new() else { return };
    home.make("n@team.example", "ed25519", "sign", "never");
    let notation = ["--sig-notation", "!when@team.example=mondays"];
    let blob = home.sign("n@team.example", &own_payload(), &notation);
    let text = gpg_reason(judge(&home.export("n@team.example"), &blob).await);
    assert!(text.contains("condition"), "{text}");
}

#[tokio::test]
async fn what_is_no_signed_message_is_refused() {
    let Some(home) = Home::new() else { return };
    home.make("m@team.example", "ed25519", "sign", "never");
    let ring = home.export("m@team.example");
    let blob = home.sign("m@team.example", &own_payload(), &["--compress-level", "0"]);
    let mut changed = blob.clone();
    let at = changed.windows(8).position(|it| it == b"critical").unwrap();
    changed[at] ^= 1;
    assert!(matches!(
        reason(judge(&ring, &changed).await),
        Reason::Key(_)
    ));
    for bad in [
        &blob[..blob.len() / 2],
        &[][..],
        &b"\0sigstore-json{}"[..],
        &ring[..],
    ] {
        let reason = reason(judge(&ring, bad).await);
        assert!(matches!(reason, Reason::Format { .. }), "{reason}");
    }
    // A bomb: far more than a payload, in few bytes.
    let bomb = home.sign(
        "m@team.example",
        &vec![b' '; 4 << 20],
        &["--compress-level", "9"],
    );
    assert!(matches!(
        reason(judge(&ring, &bomb).await),
        Reason::TooMany { .. }
    ));
}

#[tokio::test]
async fn too_many_signatures_are_named() {
    let Some(home) = Home::new() else { return };
    home.make("t@team.example", "ed25519", "sign", "never");
    home.make("u@team.example", "ed25519", "sign", "never");
    let blob = home.sign("t@team.example", &own_payload(), &[]);
    let policy = signed_by(&home.export("u@team.example"));
    let found = refusal(check(&policy, &aside(&vec![blob; SIGNATURES_MAX + 5])).await);
    let (_, last) = found.unmet[0].reasons.last().unwrap();
    assert!(matches!(last, Reason::TooMany { .. }), "{last}");
}

#[tokio::test]
async fn a_registry_may_keep_simple_signatures_itself() {
    let Some(home) = Home::new() else { return };
    home.make("x@team.example", "ed25519", "sign", "never");
    let blob = home.sign("x@team.example", &own_payload(), &[]);
    let list = |kind: &str| json!({"signatures": [{"schemaVersion": 2, "name": "x", "type": kind, "content": base64(&blob)}]});
    let policy = signed_by(&home.export("x@team.example"));
    let mut store = Store::default();
    let bytes = |kind: &str| serde_json::to_vec(&list(kind)).unwrap().into();
    store.simple.insert(manifest().digest, bytes("atomic"));
    // With a lookaside for the image, the registry is not asked.
    refusal(check(&policy, &store).await);
    crate::store::check_without_lookaside(&policy, &store)
        .await
        .unwrap();
    store.simple.insert(manifest().digest, bytes("new"));
    let result = crate::store::check_without_lookaside(&policy, &store).await;
    assert!(matches!(reason(result), Reason::Unsupported(_)));
}
