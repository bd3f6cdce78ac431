//! `kbs collateral` as an operator uses it, with the certificate of a real machine.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use evidence::snp::Report;

use crate::service::Service;

fn vector(name: &str) -> Option<Vec<u8>> {
    let vectors = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/vectors/snp");
    if !vectors.exists() {
        eprintln!("skipped: no vectors beside the workspace");
        return None;
    }
    Some(fs::read(vectors.join(name)).unwrap())
}

fn kbs(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_kbs"))
        .args(args)
        .output()
        .unwrap()
}

fn said(output: &Output) -> String {
    let both = [&output.stdout[..], &output.stderr].concat();
    String::from_utf8(both).unwrap()
}

/// A broker's directory with a changed configuration.
fn broker(dir: &Path, changes: &[(&str, &str)]) -> PathBuf {
    let output = kbs(&["init", "--dir", dir.to_str().unwrap()]);
    assert!(output.status.success(), "{}", said(&output));
    let file = dir.join("kbs.toml");
    let mut text = fs::read_to_string(&file).unwrap();
    for (from, to) in changes {
        assert!(text.contains(from), "{text}");
        text = text.replace(from, to);
    }
    fs::write(&file, text).unwrap();
    file
}

#[tokio::test(flavor = "multi_thread")]
async fn an_operator_fills_a_cache_and_carries_it_to_a_broker_that_may_ask_nobody() {
    let (Some(report), Some(vcek)) = (
        vector("milan-v2-test-report.bin"),
        vector("milan-v2-test-vcek.der"),
    ) else {
        return;
    };
    let report = Report::parse(&report).unwrap();
    let (chip, tcb) = (hex::encode(report.chip_id), report.reported_tcb);
    let service = Service::start().await;
    service.give(
        &format!(
            "/vcek/v1/Milan/{chip}?blSPL={:02}&teeSPL={:02}&snpSPL={:02}&ucodeSPL={:02}",
            tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode
        ),
        vcek,
    );
    let dir = tempfile::tempdir().unwrap();
    let first = broker(
        &dir.path().join("first"),
        &[("https://kdsintf.amd.com", &service.url)],
    );
    let first = first.to_str().unwrap();
    let levels = format!(
        "bootloader={},tee={},snp={},microcode={}",
        tcb.bootloader, tcb.tee, tcb.snp, tcb.microcode
    );
    let chip_args = ["--snp-chip", &chip, "--product", "milan", "--tcb", &levels];
    let fetched = kbs(&[
        &["collateral", "prefetch", "--config", first][..],
        &chip_args,
    ]
    .concat());
    // This service has no list, and the command says so; the certificate is kept.
    assert!(!fetched.status.success());
    assert!(
        said(&fetched).contains("snp.crl.Milan"),
        "{}",
        said(&fetched)
    );
    let name = format!("snp.vcek.Milan.{chip}");
    let listed = kbs(&["collateral", "list", "--config", first]);
    assert!(said(&listed).contains(&name), "{}", said(&listed));

    let bundle = dir.path().join("bundle.json");
    let bundle = bundle.to_str().unwrap();
    let key = dir.path().join("first/admin.key");
    let key = ["--key", key.to_str().unwrap(), "--output", bundle];
    let export = ["collateral", "export", "--config", first];
    let exported = kbs(&[&export[..], &key].concat());
    assert!(exported.status.success(), "{}", said(&exported));

    let second = broker(
        &dir.path().join("second"),
        &[
            ("fetch = true", "fetch = false"),
            ("bundle_keys = []", "bundle_keys = [\"../first/admin.pub\"]"),
        ],
    );
    let second = second.to_str().unwrap();
    let imported = kbs(&["collateral", "import", "--config", second, bundle]);
    assert!(imported.status.success(), "{}", said(&imported));
    assert!(
        said(&imported).contains(&format!("took {name}")),
        "{}",
        said(&imported)
    );
    let listed = kbs(&["collateral", "list", "--config", second]);
    assert!(said(&listed).contains(&name), "{}", said(&listed));
    // The first broker names no key that may sign bundles.
    let refused = kbs(&["collateral", "import", "--config", first, bundle]);
    assert!(said(&refused).contains("bundle_keys"), "{}", said(&refused));
}

#[test]
fn mistakes_on_the_command_line_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let config = broker(&dir.path().join("kbs"), &[]);
    let prefetch = [
        "collateral",
        "prefetch",
        "--config",
        config.to_str().unwrap(),
    ];
    for (args, word) in [
        (&[][..], "--snp-chip"),
        (&["--snp-chip", "00"], "--product"),
        (&["--fmspc", "00A06D080000"], "--ca"),
        (&["--fmspc", "00", "--ca", "platform"], "six bytes"),
        (
            &["--fmspc", "00A06D080000", "--ca", "Platform"],
            "processor or platform",
        ),
    ] {
        let output = kbs(&[&prefetch[..], args].concat());
        assert!(!output.status.success(), "{args:?}");
        assert!(said(&output).contains(word), "{args:?}: {}", said(&output));
    }
}
