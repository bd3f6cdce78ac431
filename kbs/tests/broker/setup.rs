//! What an operator does before a broker runs: makes its directory, and checks its configuration.

use crate::deployment;

use std::{
    fs,
    process::{Output, Stdio},
    time::Duration,
};

use deployment::{Deployment, SECRET, kbs};
use rcgen::{CertificateParams, KeyPair};

fn config(verb: &str, deployment: &Deployment) -> Output {
    kbs()
        .args(["config", verb, "--config"])
        .arg(deployment.path("kbs.toml"))
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn config_check_names_what_would_not_work_and_changes_nothing() {
    let mut deployment = Deployment::start(&["sample"]);
    let secret = deployment.write("secret", SECRET);
    deployment.own(&["resource", "set", "a/b/c", "--file", &secret]);
    deployment.terminate();
    assert!(deployment.wait().success());
    let good = config("check", &deployment);
    assert!(good.status.success(), "{}", text(&good.stdout));
    assert!(text(&good.stdout).contains("warning  attestation"));

    let key = KeyPair::generate().unwrap();
    let mut old = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    old.not_after = time::OffsetDateTime::now_utc() - time::Duration::days(1);
    let old = old.self_signed(&key).unwrap().pem();
    for (file, content, word) in [
        ("server.key", "nothing".to_owned(), "server.key"),
        ("server.pem", old, "server.pem"),
        ("token.key", "nothing".to_owned(), "token.key"),
        ("admin.pub", "nothing".to_owned(), "admin.pub"),
        (
            "store.key",
            "ab".repeat(32),
            "master keys that are not here",
        ),
        ("store.key", "nothing".to_owned(), "store.key"),
        ("kbs.sqlite", "nothing at all".repeat(100), "kbs.sqlite"),
    ] {
        let path = deployment.path(file);
        let before = fs::read(&path).unwrap();
        fs::write(&path, &content).unwrap();
        let found = config("check", &deployment);
        let told = text(&found.stdout);
        let fault = told.lines().find(|line| line.starts_with("error"));
        assert!(
            fault.is_some_and(|line| line.contains(word)),
            "{file}: {told}"
        );
        assert!(!found.status.success());
        assert_eq!(fs::read(&path).unwrap(), content.as_bytes());
        fs::write(&path, before).unwrap();
    }
}

#[test]
fn config_show_fills_in_defaults_and_prints_no_key() {
    let deployment = Deployment::start(&["sample"]);
    let shown = config("show", &deployment);
    deployment::succeed(&shown);
    let shown = text(&shown.stdout);
    for word in [
        "drain_seconds = 2",
        "requests_per_second = 200",
        "days = 365",
    ] {
        assert!(shown.contains(word), "{word} is not in {shown}");
    }
    for file in ["store.key", "token.key", "server.key", "admin.key"] {
        let secret = fs::read_to_string(deployment.path(file)).unwrap();
        let line = secret.lines().find(|line| !line.starts_with('-')).unwrap();
        assert!(!shown.contains(line), "{file} is in {shown}");
    }
}

/// Files alone tell that these cannot be served; `serve` refuses them too, and says the same.
#[test]
fn config_check_refuses_what_could_not_be_served() {
    let dir = tempfile::tempdir().unwrap();
    let broker = dir.path().join("broker");
    let init = kbs().args(["init", "--dir"]).arg(&broker).output().unwrap();
    deployment::succeed(&init);
    let path = broker.join("kbs.toml");
    let good = fs::read_to_string(&path).unwrap();
    let issuer = |more: &str| format!("[[admin.issuer]]\naudience = \"a\"\n{more}\n[limits]");
    let keys = "bundle_keys = []";
    for (from, to, key) in [
        (
            keys,
            "bundle_keys = [\"absent.pub\"]".to_owned(),
            "absent.pub",
        ),
        (
            keys,
            "bundle_keys = [\"kbs.toml\"]".to_owned(),
            "bundle_keys",
        ),
        (
            "directory = \"collateral\"",
            "directory = \"kbs.toml\"".to_owned(),
            "directory",
        ),
        (
            "[telemetry]",
            "[telemetry]\notlp_endpoint = \"http://\"".to_owned(),
            "otlp_endpoint",
        ),
        ("[limits]", issuer("issuer = \"https://\""), "`issuer`"),
        ("[limits]", issuer("issuer = \"name\""), "`issuer`"),
        (
            "[limits]",
            issuer("issuer = \"http://id.example\""),
            "https://",
        ),
        (
            "[limits]",
            issuer("issuer = \"name\"\njwks_uri = \"https://a..b\""),
            "`jwks_uri`",
        ),
        (
            "[limits]",
            issuer("issuer = \"name\"\njwks_file = \"absent.json\""),
            "absent.json",
        ),
        ("kbs.sqlite", String::new(), "is a directory"),
        ("kbs.sqlite", "absent/kbs.sqlite".to_owned(), "absent"),
    ] {
        assert!(good.contains(from), "{from}");
        fs::write(&path, good.replace(from, &to)).unwrap();
        let run = |args: &[&str]| {
            let output = kbs().args(args).arg(&path).output().unwrap();
            assert!(!output.status.success(), "{to}");
            text(&output.stdout) + &text(&output.stderr)
        };
        for told in [run(&["config", "check", "-c"]), run(&["serve", "-c"])] {
            assert!(told.contains(key), "{to}: {told}");
        }
    }
}

#[test]
fn a_killed_init_leaves_what_the_next_one_makes_whole() {
    let dir = tempfile::tempdir().unwrap();
    for round in 0..16 {
        let broker = dir.path().join(format!("broker{round}"));
        let init = || {
            let mut command = kbs();
            command.args(["init", "--dir"]).arg(&broker);
            command
        };
        let mut killed = init().stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(round));
        killed.kill().unwrap();
        killed.wait().unwrap();
        let whole = broker.join("kbs.toml").exists();
        let again = init().output().unwrap();
        let said = text(&again.stderr);
        assert_eq!(again.status.success(), !whole, "{said}");
        assert!(!whole || said.contains("kbs serve --config"), "{said}");
        let check = kbs()
            .args(["config", "check", "-c"])
            .arg(broker.join("kbs.toml"))
            .output()
            .unwrap();
        deployment::succeed(&check);
    }
}

#[test]
fn a_certificate_is_made_for_names_only() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["", "a b", "https://a", "0.0.0.0"] {
        let broker = dir.path().join("broker");
        let init = kbs()
            .args(["init", "--name", name, "--dir"])
            .arg(&broker)
            .output()
            .unwrap();
        assert!(!init.status.success());
        let said = text(&init.stderr);
        assert!(
            said.contains("--name") && said.contains("DNS name"),
            "{said}"
        );
        assert!(!broker.exists());
    }
}
