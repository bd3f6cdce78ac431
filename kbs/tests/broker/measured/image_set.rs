//! A guest image is signed, compared with the one before it, and announced to a broker: guests of both are
//! affirmed until the old one's end, and then the new one's alone.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
};

use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use support::product;

use super::{Deployment, Files, broker, executables, lines, openssl};

const PAST: &str = "2020-01-01T00:00:00Z";
const SOONER: &str = "2099-01-01T00:00:00Z";
const FUTURE: &str = "2100-01-01T00:00:00Z";

impl Files {
    /// An image of a kernel, with its manifest.
    pub(super) fn image(&self, name: &str, release: &str, kernel: &[u8]) -> PathBuf {
        let dir = self.path(name);
        fs::create_dir(&dir).unwrap();
        let put = |name: &str, content: &[u8]| {
            fs::write(dir.join(name), content).unwrap();
            json!({ "name": name, "sha256": sha256(content), "size": content.len() })
        };
        let agent = json!({ "name": "cloister-agent", "sha256": "00", "size": 1 });
        let package = json!({ "name": "linux-image", "version": release, "sha256": "00" });
        let manifest = json!({
            "version": 1,
            "kernel": { "flavour": "debian", "release": release, "packages": [package] },
            "agent": agent,
            "modules": [],
            "outputs": [put("vmlinuz", kernel), put("initramfs.cpio", b"070701, an initramfs")],
        });
        fs::write(dir.join("manifest.json"), manifest.to_string()).unwrap();
        dir
    }

    pub(super) fn image_set(&self, words: &[&str]) -> Output {
        let mut command = Command::new(product::bin("cloister").unwrap());
        command
            .current_dir(self.path(""))
            .arg("image-set")
            .args(words);
        command.output().unwrap()
    }

    pub(super) fn key(&self, name: &str) {
        let (private, public) = (self.path(name), self.path(&format!("{name}.pub")));
        let (private, public) = (private.to_str().unwrap(), public.to_str().unwrap());
        let curve = "ec_paramgen_curve:P-384";
        openssl(&[
            "genpkey",
            "-algorithm",
            "EC",
            "-pkeyopt",
            curve,
            "-out",
            private,
        ]);
        openssl(&["pkey", "-in", private, "-pubout", "-out", public]);
    }

    /// The digest of a launch of an image with one vCPU.
    fn digest_of(&self, image: &str) -> [u8; 48] {
        let words = "measure --firmware OVMF.fd --append quiet --format launch --image";
        let mut command = Command::new(product::bin("cloister").unwrap());
        command
            .current_dir(self.path(""))
            .args(words.split(' '))
            .arg(image);
        let listed: Value = serde_json::from_slice(&command.output().unwrap().stdout).unwrap();
        let mut digest = [0; 48];
        hex::decode_to_slice(listed[0]["measurement"].as_str().unwrap(), &mut digest).unwrap();
        digest
    }

    fn publish(&self, deployment: &Deployment, image: &str, more: &[&str]) -> Output {
        let launch = ["--firmware", "OVMF.fd", "--append", "quiet"];
        self.publish_set(deployment, image, &[&launch, more].concat())
    }

    /// The same of an image that says itself how it is launched.
    pub(super) fn publish_set(
        &self,
        deployment: &Deployment,
        image: &str,
        more: &[&str],
    ) -> Output {
        let words = "publish --manifest-key owner.pem.pub --image";
        let token = deployment.write("admin.token", deployment.admin_token());
        let root = deployment.path("tls-root.pem");
        let broker = ["--kbs", &deployment.url, "--admin-token-file", &token];
        let root = ["--kbs-cert", root.to_str().unwrap()];
        let words: Vec<&str> = words.split(' ').chain([image]).collect();
        self.image_set(&[&words, &broker[..], &root, more].concat())
    }
}

pub(super) fn sha256(content: &[u8]) -> String {
    hex::encode(Sha256::digest(content))
}

pub(super) fn told(output: &Output) -> String {
    String::from_utf8_lossy(&[output.stdout.as_slice(), &output.stderr].concat()).into_owned()
}

#[track_caller]
pub(super) fn done(output: &Output) {
    assert!(output.status.success(), "{}", told(output));
}

#[test]
fn a_signed_image_is_verified_and_one_that_was_changed_or_is_anothers_is_not() {
    let files = Files::new();
    let dir = files.image("one", "6.12.1", b"MZ, a kernel");
    files.key("owner.pem");
    files.key("other.pem");
    let verify = |key: &str| files.image_set(&["verify", "one", "--key", key]);
    assert!(told(&verify("owner.pem.pub")).contains("not signed"));
    done(&files.image_set(&["sign", "one", "--key", "owner.pem"]));
    done(&verify("owner.pem.pub"));
    assert!(told(&verify("other.pem.pub")).contains("and not by"));

    let manifest = dir.join("manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("6.12.1", "6.12.2")).unwrap();
    assert!(told(&verify("owner.pem.pub")).contains("not of this manifest"));
    fs::write(&manifest, text).unwrap();
    fs::write(dir.join("vmlinuz"), b"MZ, another").unwrap();
    assert!(told(&verify("owner.pem.pub")).contains("its manifest says"));
    assert!(
        told(&files.image_set(&["sign", "one", "--key", "owner.pem"])).contains("manifest says")
    );
}

#[test]
fn a_diff_names_files_packages_and_launch_digests() {
    let files = Files::new();
    files.image("old", "6.12.1", b"MZ, a kernel");
    files.image("new", "6.12.2", b"MZ, a newer kernel");
    let launch = "--firmware OVMF.fd --append quiet --vcpus 1-2 --json";
    let launch: Vec<&str> = launch.split(' ').collect();
    let diff = |new: &str| files.image_set(&[&["diff", "old", new], launch.as_slice()].concat());
    assert_eq!(diff("old").status.code(), Some(0));
    let output = diff("new");
    assert_eq!(output.status.code(), Some(1), "{}", told(&output));
    let changes: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let names: Vec<&str> = changes
        .iter()
        .map(|it| it["what"].as_str().unwrap())
        .collect();
    assert_eq!(
        names,
        [
            "file vmlinuz",
            "kernel release",
            "package linux-image",
            "SNP launch digest, EPYC-v4 vcpus=1",
            "SNP launch digest, EPYC-v4 vcpus=2"
        ]
    );
    assert_eq!(changes[3]["old"], hex::encode(files.digest_of("old")));
    assert_eq!(changes[3]["new"], hex::encode(files.digest_of("new")));
    for (at, because) in [(0, Value::Null), (3, json!(["kernel"]))] {
        assert_eq!(changes[at]["because"], because, "{changes:?}");
    }
}

#[test]
fn a_configuration_says_what_is_launched_and_a_flag_says_otherwise() {
    let files = Files::new();
    files.image("old", "6.12.1", b"MZ, a kernel");
    files.image("new", "6.12.1", b"MZ, a newer kernel");
    let config = |text: &str| files.put("configuration.toml", text.as_bytes());
    config(
        "[hypervisor.qemu]\nfirmware = \"OVMF.fd\"\ndefault_vcpus = 2\n[cloister]\ntee = \"snp\"\n\
         snp_cpu_model = \"EPYC-Genoa\"\n",
    );
    let diff = |more: &str| {
        let words = format!("diff old new --config configuration.toml {more}");
        files.image_set(&words.split_whitespace().collect::<Vec<_>>())
    };
    let named = |output: &Output| {
        let said = told(output);
        let digests = said
            .lines()
            .filter_map(|line| line.strip_prefix("SNP launch digest, "));
        digests.map(str::to_owned).collect::<Vec<_>>()
    };
    let own = diff("");
    assert_eq!(own.status.code(), Some(1));
    assert_eq!(named(&own), ["EPYC-Genoa vcpus=2"], "{}", told(&own));
    assert!(told(&own).contains("because of: kernel"), "{}", told(&own));
    let flags = diff("--vcpus 1,4 --cpu-model EPYC-v4");
    assert_eq!(named(&flags), ["EPYC-v4 vcpus=1", "EPYC-v4 vcpus=4"]);
    files.put("other.fd", &support::firmware::direct_boot(4));
    let other = diff("--new-firmware other.fd");
    assert!(
        told(&other).contains("because of: firmware, kernel"),
        "{}",
        told(&other)
    );
    for (tee, more, fix) in [
        ("snp", "--dialect edk2-202508", "leave one out"),
        ("snp", "--append quiet", "cannot be used with"),
        ("tdx", "", "--dialect and --acpi"),
        ("none", "", "cloister.tee"),
    ] {
        let machine = "[hypervisor.qemu]\nfirmware = \"OVMF.fd\"\n";
        config(&format!("{machine}[cloister]\ntee = \"{tee}\"\n"));
        let refused = diff(more);
        let said = told(&refused);
        assert!(
            refused.status.code() > Some(1) || !refused.status.success(),
            "{said}"
        );
        assert!(said.contains(fix), "{tee} {more}: {said}");
    }
}

#[tokio::test]
async fn an_image_that_is_no_newer_is_published_as_a_rollback_alone() {
    let files = Files::new();
    let deployment = broker(&[]);
    files.key("owner.pem");
    let numbers = [
        ("one", Some("1")),
        ("two", Some("2")),
        ("twin", Some("2")),
        ("none", None),
    ];
    for (name, number) in numbers {
        files.image(name, name, format!("MZ, {name}").as_bytes());
        let sign = ["sign", name, "--key", "owner.pem"];
        let number: Vec<&str> = number
            .iter()
            .flat_map(|number| ["--number", number])
            .collect();
        done(&files.image_set(&[&sign, number.as_slice()].concat()));
    }
    let verify = |least: &str| {
        files.image_set(&["verify", "one", "--key", "owner.pem.pub", "--least", least])
    };
    done(&verify("1"));
    assert!(told(&verify("1")).contains("number         1"));
    let refused = verify("2");
    assert!(!refused.status.success() && told(&refused).contains("has number 1"));

    done(&files.publish(&deployment, "none", &[]));
    done(&files.publish(&deployment, "two", &[]));
    // It again, with another window.
    done(&files.publish(&deployment, "two", &["--old-until", FUTURE]));
    for (name, number) in [("one", "1"), ("twin", "2"), ("none", "0")] {
        let refused = files.publish(&deployment, name, &[]);
        let said = told(&refused);
        assert!(!refused.status.success(), "{name}: {said}");
        for part in [
            "2 was published as \"guest\"",
            "--rollback",
            &format!("number {number}"),
        ] {
            assert!(said.contains(part), "{name}: {said}");
        }
    }
    let one = files.digest_of("one");
    assert_eq!(executables(&deployment, one).await, 33);
    done(&files.publish(&deployment, "one", &["--image-name", "other"]));
    done(&files.publish(&deployment, "one", &["--rollback"]));
    assert_eq!(executables(&deployment, one).await, 3);
    // A rollback is one each time: what was published stays so.
    assert!(!files.publish(&deployment, "one", &[]).status.success());
    let listed = deployment.own(&[
        "reference",
        "list",
        "--prefix",
        "cloister_image_number/guest",
    ]);
    let listed = lines(&listed);
    assert_eq!(listed.len(), 1, "{listed:?}");
    assert_eq!(listed[0]["value"]["number"], 2);

    let manifest = files.path("one/manifest.json");
    let text = fs::read_to_string(&manifest).unwrap();
    fs::write(&manifest, text.replace("\"number\": 1", "\"number\": 9")).unwrap();
    let said = told(&files.publish(&deployment, "one", &[]));
    assert!(said.contains("not of this manifest"), "{said}");
}

#[tokio::test]
async fn an_upgrade_overlaps_with_what_it_replaces_until_its_end() {
    let files = Files::new();
    let deployment = broker(&[]);
    files.key("owner.pem");
    for (name, kernel) in [
        ("old", &b"MZ, a kernel"[..]),
        ("new", b"MZ, a newer kernel"),
    ] {
        files.image(name, name, kernel);
    }
    let (old, new) = (files.digest_of("old"), files.digest_of("new"));
    assert!(told(&files.publish(&deployment, "old", &[])).contains("not signed"));
    for name in ["old", "new"] {
        done(&files.image_set(&["sign", name, "--key", "owner.pem"]));
    }
    done(&files.publish(&deployment, "old", &[]));
    assert_eq!(executables(&deployment, old).await, 3);
    assert_eq!(executables(&deployment, new).await, 33);

    let overlap = files.publish(&deployment, "new", &["--old-until", FUTURE]);
    done(&overlap);
    for digest in [old, new] {
        assert_eq!(executables(&deployment, digest).await, 3);
    }
    let listed = lines(&deployment.own(&["reference", "list"]));
    let ends = listed.iter().map(|it| it["not_after"].as_str());
    let ends: Vec<_> = ends.flatten().collect();
    assert_eq!((listed.len(), ends.len()), (2, 1), "{listed:?}");
    assert!(ends[0].starts_with("2100-01-01"), "{listed:?}");

    // What has an end may have an earlier one.
    done(&files.publish(&deployment, "new", &["--old-until", SOONER]));
    let listed = lines(&deployment.own(&["reference", "list"]));
    let ends = listed.iter().filter_map(|it| it["not_after"].as_str());
    let ends: Vec<_> = ends.collect();
    assert!(
        ends.len() == 1 && ends[0].starts_with("2099-01-01"),
        "{listed:?}"
    );
    let gap = ["--from", FUTURE, "--old-until", SOONER];
    let refused = files.publish(&deployment, "new", &gap);
    assert!(told(&refused).contains("--old-until"), "{}", told(&refused));

    // Rolled back at once: the new one's end is long past.
    done(&files.publish(&deployment, "old", &["--old-until", PAST]));
    assert_eq!(executables(&deployment, old).await, 3);
    assert_eq!(executables(&deployment, new).await, 33);
}
