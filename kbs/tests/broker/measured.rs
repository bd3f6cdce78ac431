//! A guest that is predicted by the real `cloister measure` is affirmed by the real broker, and one of
//! another kernel is not. The launch itself is simulated: its report has the digest that hardware would
//! have put there.

mod igvm;
mod image_set;
mod launches;

use crate::deployment;
use crate::platform;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use deployment::{Deployment, owner::lines};
use platform::{Platform, broker};
use serde_json::Value;
use support::{firmware, product};

/// A guest's files.
struct Files(tempfile::TempDir);

impl Files {
    fn new() -> Self {
        let files = Self(tempfile::tempdir().unwrap());
        files.put("OVMF.fd", &firmware::direct_boot(2));
        files.put("vmlinuz", b"MZ, a kernel");
        files.put("initramfs.cpio", b"070701, an initramfs");
        files
    }

    fn put(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.path(name);
        fs::write(&path, content).unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// `cloister measure` of these files.
    fn measure(&self, more: &[&str]) -> Output {
        let mut command = Command::new(product::bin("cloister").unwrap());
        command.current_dir(self.0.path()).args([
            "measure",
            "--firmware",
            "OVMF.fd",
            "--kernel",
            "vmlinuz",
            "--initrd",
            "initramfs.cpio",
            "--append",
            "quiet",
        ]);
        command.args(more).output().unwrap()
    }

    /// The same, which has to succeed.
    fn measured(&self, more: &[&str]) -> Vec<u8> {
        let output = self.measure(more);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{told}");
        output.stdout
    }

    /// The digest of a launch with two vCPUs.
    fn digest(&self) -> [u8; 48] {
        let listed = self.measured(&["--vcpus", "2", "--format", "launch"]);
        let listed: Value = serde_json::from_slice(&listed).unwrap();
        let mut digest = [0; 48];
        let text = listed[0]["measurement"].as_str().unwrap();
        hex::decode_to_slice(text, &mut digest).unwrap();
        digest
    }
}

/// What the broker says of the executables of a launch with this digest: 3 is affirming, 33 is not.
async fn executables(deployment: &Deployment, measurement: [u8; 48]) -> i64 {
    let mut platform = Platform::new();
    platform.report.measurement = measurement;
    let guest = platform.guest(deployment, None).await;
    let token = guest.token(deployment).await;
    let claims = jsonwebtoken::dangerous::insecure_decode::<Value>(&token)
        .unwrap()
        .claims;
    let vector = &claims["submods"]["cpu0"]["ear.trustworthiness-vector"];
    vector["executables"].as_i64().unwrap()
}

fn import(deployment: &Deployment, name: &str, document: &[u8], more: &[&str]) -> Output {
    let path = deployment.write(name, document);
    deployment.owner(&[&["reference", "import", &path], more].concat())
}

/// The broker of [`broker`], which also takes what this key signs.
fn broker_with_signer(public: &Path) -> Deployment {
    let mut deployment = broker(&[]);
    let config = deployment.path("kbs.toml");
    let text = fs::read_to_string(&config).unwrap();
    let table = "[reference]\n";
    assert!(text.contains(table), "{text}");
    fs::write(
        &config,
        text.replace(table, &format!("{table}signers = [{public:?}]\n")),
    )
    .unwrap();
    deployment.crash_and_restart();
    deployment
}

fn openssl(args: &[&str]) {
    let status = Command::new("openssl").args(args).status().unwrap();
    assert!(status.success(), "openssl {args:?}");
}

#[tokio::test]
async fn the_predicted_guest_is_affirmed_and_one_bit_of_the_kernel_makes_another() {
    let files = Files::new();
    let deployment = broker(&[]);
    let good = files.digest();
    assert_eq!(executables(&deployment, good).await, 33);
    let values = files.measured(&["--vcpus", "1-4", "--format", "json"]);
    let imported = import(&deployment, "values.json", &values, &[]);
    assert!(imported.status.success(), "{imported:?}");
    assert_eq!(executables(&deployment, good).await, 3);

    let mut kernel = b"MZ, a kernel".to_vec();
    kernel[5] ^= 1;
    files.put("vmlinuz", &kernel);
    let changed = files.digest();
    assert_ne!(changed, good);
    assert_eq!(executables(&deployment, changed).await, 33);
}

#[tokio::test]
async fn a_signed_corim_is_taken_from_a_known_key_and_an_unsigned_one_by_word() {
    let files = Files::new();
    let key = |name: &str, curve: &str| {
        let private = files.path(name).to_str().unwrap().to_owned();
        let public = format!("{private}.pub");
        let curve = format!("ec_paramgen_curve:{curve}");
        openssl(&[
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            &curve,
            "-out",
            &private,
        ]);
        openssl(&["pkey", "-in", &private, "-pubout", "-out", &public]);
        PathBuf::from(public)
    };
    for (name, curve) in [("p384.pem", "P-384"), ("p256.pem", "P-256")] {
        let deployment = broker_with_signer(&key(name, curve));
        let good = files.digest();
        let unsigned = files.measured(&["--vcpus", "2", "--format", "corim"]);
        let refused = import(&deployment, "unsigned.corim", &unsigned, &[]);
        assert!(!refused.status.success());
        let signed = ["--vcpus", "2", "--format", "corim", "--sign-key", name];
        let signed = files.measured(&signed);
        let mut altered = signed.clone();
        let at = signed.windows(48).position(|part| part == good).unwrap();
        altered[at] ^= 1;
        assert!(
            !import(&deployment, "altered.corim", &altered, &[])
                .status
                .success()
        );
        assert_eq!(executables(&deployment, good).await, 33);
        let imported = import(&deployment, "signed.corim", &signed, &[]);
        assert!(imported.status.success(), "{imported:?}");
        assert_eq!(executables(&deployment, good).await, 3);
        let listed = lines(&deployment.own(&["reference", "list"]));
        assert_eq!(listed[0]["name"], "snp_launch_measurement");
        assert_eq!(listed[0]["provenance"]["by"], "signer");
        let taken = import(
            &deployment,
            "unsigned.corim",
            &unsigned,
            &["--accept-unsigned"],
        );
        assert!(taken.status.success(), "{taken:?}");
    }
}

#[test]
fn what_cannot_be_predicted_is_refused_with_the_fix() {
    let files = Files::new();
    files.put("vmlinux", b"\x7fELF\x02");
    for (more, told) in [
        (&["--tee", "tdx"][..], "--dialect"),
        (&["--cpu-model", "host"], "named model"),
        (&["--cpu-model", "Skylake"], "EPYC-Genoa"),
        (&["--vcpus", "0"], "1-4,8"),
        (&["--guest-features", "0x20"], "SNPActive"),
        (&["--vmm", "cloud-hypervisor"], "add --igvm"),
        (
            &["--tee", "tdx", "--vmm", "cloud-hypervisor"],
            "launch TDs with QEMU",
        ),
        (&["--image", "."], "cannot be used with"),
        (&["--no-kernel"], "cannot be used with"),
        (&["--policy", "0x30000"], "--id-key"),
        (&["--sign-key", "vmlinuz"], "--format corim"),
        (
            &["--format", "corim", "--sign-key", "vmlinuz"],
            "openssl genpkey",
        ),
        (&["--id-key", "vmlinuz"], "openssl genpkey"),
        (
            &["--format", "json", "--id-key", "vmlinuz"],
            "--format text or launch",
        ),
    ] {
        let output = files.measure(more);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(told),
            "{more:?}: {said}"
        );
    }
    let cloister = product::bin("cloister").unwrap();
    let firmware = files.path("OVMF.fd");
    let alone = |more: &[&str]| {
        let mut command = Command::new(&cloister);
        command
            .args(["measure", "--firmware"])
            .arg(&firmware)
            .args(more)
            .output()
            .unwrap()
    };
    let said = String::from_utf8(alone(&[]).stderr).unwrap();
    assert!(said.contains("--no-kernel"), "{said}");
    let said = String::from_utf8(alone(&["--no-kernel"]).stdout).unwrap();
    assert!(said.contains("say nothing of what is booted"), "{said}");
    for (name, content, told) in [
        ("vmlinuz", &b"\x7fELF\x02"[..], "bzImage"),
        ("OVMF.fd", &[0; 8192], "no OVMF table"),
    ] {
        let kept = fs::read(files.path(name)).unwrap();
        files.put(name, content);
        let output = files.measure(&[]);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && said.contains(told),
            "{name}: {said}"
        );
        files.put(name, &kept);
    }
}

#[test]
fn a_measurement_that_differs_is_explained_by_the_input_that_does() {
    let files = Files::new();
    let text = |more: &[&str]| {
        let listed: Value =
            serde_json::from_slice(&files.measured(&[&["--format", "launch"], more].concat()))
                .unwrap();
        listed[0]["measurement"].as_str().unwrap().to_owned()
    };
    let explain = |measurement: &str, more: &[&str]| {
        let output = files.measure(&[&["--explain", measurement], more].concat());
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8(said).unwrap())
    };
    assert!(explain(&text(&[]), &[]).0);
    let debug = ["--guest-features", "0x21", "--vcpus", "3"];
    for (measurement, more, told) in [
        (text(&["--vcpus", "700"]), &[][..], &["vCPUs 700"][..]),
        (
            text(&["--cpu-model", "EPYC-Turin-v1"]),
            &[],
            &["CPU model EPYC-Turin"],
        ),
        (text(&debug), &[], &["guest features 0x21", "vCPUs 3"]),
        ("00".repeat(48), &[], &["--try-append"]),
        (
            text(&["--vcpus", "2"]),
            &["--try-append", "debug"],
            &["vCPUs 2"],
        ),
    ] {
        let (same, said) = explain(&measurement, more);
        assert!(
            !same && told.iter().all(|told| said.contains(told)),
            "{said}"
        );
    }
    let before = text(&["--vcpus", "2"]);
    let other = files.measure(&["--explain", &before, "--vcpus", "1-4"]);
    assert!(other.status.success(), "{other:?}");
    // The launch had the command line `quiet`, and the owner thinks of another one.
    let mut command = Command::new(product::bin("cloister").unwrap());
    let command = command.current_dir(files.0.path()).args([
        "measure",
        "--firmware",
        "OVMF.fd",
        "--kernel",
        "vmlinuz",
        "--initrd",
        "initramfs.cpio",
        "--append",
        "quiet debug",
        "--try-append",
        "quiet",
        "--explain",
        &before,
    ]);
    let said = String::from_utf8(command.output().unwrap().stderr).unwrap();
    assert!(
        said.contains("command line `quiet`") && said.contains("vCPUs 2"),
        "{said}"
    );

    let mut report = Platform::new().report;
    report.measurement = files.digest();
    files.put("report", &report.to_bytes().unwrap());
    assert!(explain("report", &["--vcpus", "2"]).0);
    let (same, said) = explain("report", &[]);
    assert!(!same && said.contains("vCPUs 2"), "{said}");
}

#[test]
fn a_guest_image_is_measured_as_its_manifest_has_it_and_not_otherwise() {
    let files = Files::new();
    let firmware = files.path("OVMF.fd");
    let dir = tempfile::tempdir().unwrap();
    for name in ["vmlinuz", "initramfs.cpio", "manifest.json"] {
        let Ok(from) = product::guest(name) else {
            eprintln!("skipped: the guest image is not built");
            return;
        };
        fs::copy(from, dir.path().join(name)).unwrap();
    }
    let measure = || {
        Command::new(product::bin("cloister").unwrap())
            .args([
                "measure",
                "--append",
                "quiet",
                "--format",
                "json",
                "--firmware",
            ])
            .arg(&firmware)
            .arg("--image")
            .arg(dir.path())
            .output()
            .unwrap()
    };
    let whole = measure();
    assert!(whole.status.success(), "{whole:?}");
    let initramfs = dir.path().join("initramfs.cpio");
    let mut content = fs::read(&initramfs).unwrap();
    let last = content.len() - 1;
    content[last] ^= 1;
    fs::write(&initramfs, content).unwrap();
    let refused = measure();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(
        !refused.status.success() && said.contains("its manifest says"),
        "{said}"
    );
}
