//! skopeo with `cloister keyprovider`, against `cloister image`, without a VM: what one encrypts the
//! other decrypts, to the same bytes.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use serde_json::Value;
use support::image::{BUSYBOX, Recipe};
use support::run::{Finished, Service, within};
use support::skopeo::{self, Skopeo};
use support::stage::KEY_ID;
use support::{State, need, product};

const SHORT: Duration = Duration::from_secs(60);
const PACKETS: &str = "org.opencontainers.image.enc.keys.provider.attestation-agent";

/// An image in a layout of the state directory, and two keys of which one is not its.
struct Case {
    state: State,
    skopeo: Skopeo,
    plain: String,
}

impl Case {
    fn open() -> Option<Self> {
        if !need(&["skopeo", BUSYBOX, &skopeo::program().to_string_lossy()]) {
            return None;
        }
        let state = State::new().unwrap();
        let recipe = Recipe::busybox("the same bytes").unwrap();
        let plain = recipe.write(&state.path().join("plain")).unwrap();
        state.file("key", [7; 32]).unwrap();
        state.file("other.key", [8; 32]).unwrap();
        let skopeo = Skopeo::new(&state).unwrap();
        Some(Self {
            state,
            skopeo,
            plain,
        })
    }

    fn layout(&self, name: &str) -> String {
        format!("oci:{}:latest", self.state.path().join(name).display())
    }

    /// skopeo with a key provider; `option` is for or from `key`.
    fn skopeo(&self, option: &str, key: &str, from: &str, to: &str) -> Finished {
        let key = self.state.path().join(key);
        let words = match option {
            "--encryption-key" => skopeo::recipient(&key, KEY_ID),
            _ => skopeo::holder(&key),
        };
        self.skopeo.copy(&[option, &words, from, to]).unwrap()
    }

    /// `cloister image <verb>` with a key file.
    fn cloister(&self, verb: &[&str], key: &str, from: &str, to: &str) -> Finished {
        let mut cloister = Command::new(product::bin("cloister").unwrap());
        cloister.arg("image").args(verb).arg("--key-file");
        let key = self.state.path().join(key);
        within(SHORT, cloister.arg(key).args([from, to])).unwrap()
    }

    fn layers(&self, name: &str) -> Vec<Value> {
        let layout = self.state.path().join(name);
        let index: Value =
            serde_json::from_slice(&std::fs::read(layout.join("index.json")).unwrap()).unwrap();
        let manifest: Value =
            serde_json::from_slice(&blob(&layout, &index["manifests"][0])).unwrap();
        manifest["layers"].as_array().unwrap().clone()
    }

    fn assert_sealed(&self, name: &str) {
        let layers = self.layers(name);
        assert_eq!(layers.len(), self.layers("plain").len());
        for layer in layers {
            let media_type = layer["mediaType"].as_str().unwrap();
            assert!(media_type.ends_with("tar+gzip+encrypted"), "{layer}");
            assert!(layer["annotations"][PACKETS].is_string(), "{layer}");
        }
    }

    /// The layers are the plain image's, in their bytes and in what is said of them.
    fn assert_plain(&self, name: &str) {
        let (found, expected) = (self.layers(name), self.layers("plain"));
        assert_eq!(found, expected);
        for layer in &found {
            let [found, expected] =
                [name, "plain"].map(|name| blob(&self.state.path().join(name), layer));
            assert!(found == expected, "{name}: the bytes of {layer} differ");
        }
    }
}

fn blob(layout: &Path, descriptor: &Value) -> Vec<u8> {
    let digest = descriptor["digest"].as_str().unwrap();
    let hex = digest.strip_prefix("sha256:").unwrap();
    std::fs::read(layout.join("blobs/sha256").join(hex)).unwrap()
}

#[test]
fn what_skopeo_encrypts_through_the_provider_cloister_decrypts() {
    let Some(case) = Case::open() else { return };
    let (sealed, opened) = (case.layout("sealed"), case.layout("opened"));
    case.skopeo("--encryption-key", "key", &case.plain, &sealed)
        .ok()
        .unwrap();
    case.assert_sealed("sealed");
    case.cloister(&["decrypt"], "key", &sealed, &opened)
        .ok()
        .unwrap();
    case.assert_plain("opened");

    let never = case.layout("never");
    let refused = case.cloister(&["decrypt"], "other.key", &sealed, &never);
    assert!(
        refused.code != 0 && refused.stderr.contains(KEY_ID),
        "{}",
        refused.report()
    );
}

#[test]
fn what_cloister_encrypts_skopeo_decrypts_through_the_provider() {
    let Some(case) = Case::open() else { return };
    let (sealed, opened) = (case.layout("sealed"), case.layout("opened"));
    let kid = format!("kbs:///{KEY_ID}");
    case.cloister(&["encrypt", "--key-id", &kid], "key", &case.plain, &sealed)
        .ok()
        .unwrap();
    case.assert_sealed("sealed");
    case.skopeo("--decryption-key", "key", &sealed, &opened)
        .ok()
        .unwrap();
    case.assert_plain("opened");

    let never = case.layout("never");
    let refused = case.skopeo("--decryption-key", "other.key", &sealed, &never);
    assert!(
        refused.code != 0 && refused.stderr.contains(KEY_ID),
        "{}",
        refused.report()
    );

    // A skopeo without keys or providers copies the layers and their packets as they are.
    let copy = case.layout("copy");
    let mut skopeo = Command::new("skopeo");
    skopeo.args(["copy", "--quiet", "--insecure-policy", &sealed, &copy]);
    within(SHORT, &mut skopeo).unwrap().ok().unwrap();
    assert_eq!(case.layers("copy"), case.layers("sealed"));
}

/// The provider as a server, on a socket of the state directory.
fn served(case: &Case) -> (Service, PathBuf) {
    let socket = case.state.path().join("provider.sock");
    let mut provider = Command::new(product::bin("cloister").unwrap());
    provider
        .args([
            "keyprovider",
            "--key-id",
            &format!("kbs:///{KEY_ID}"),
            "--key-file",
        ])
        .arg(case.state.path().join("key"))
        .arg("--grpc")
        .arg(format!("unix://{}", socket.display()));
    let log = case.state.path().join("provider.log");
    let mut service = Service::start(&mut provider, &log).unwrap();
    service.wait_until(SHORT, || socket.exists()).unwrap();
    let config = format!(
        r#"{{"key-providers":{{"attestation-agent":{{"grpc":"unix://{}"}}}}}}"#,
        socket.display()
    );
    let config = case.state.file("grpc.json", config).unwrap();
    (service, config)
}

#[test]
fn skopeo_and_cloister_ask_the_provider_over_grpc_both_ways() {
    let Some(case) = Case::open() else { return };
    let (_service, config) = served(&case);
    let words = "provider:attestation-agent:any";
    let skopeo = |option: &str, from: &str, to: &str| {
        let mut skopeo = Command::new(skopeo::program());
        skopeo.args([
            "copy",
            "--quiet",
            "--insecure-policy",
            option,
            words,
            from,
            to,
        ]);
        skopeo.env("OCICRYPT_KEYPROVIDER_CONFIG", &config);
        within(SHORT, &mut skopeo).unwrap().ok().unwrap();
    };
    let cloister = |args: &[&str]| {
        let mut cloister = Command::new(product::bin("cloister").unwrap());
        cloister.arg("image").args(args);
        cloister.env("OCICRYPT_KEYPROVIDER_CONFIG", &config);
        within(SHORT, &mut cloister).unwrap().ok().unwrap();
    };
    let (theirs, ours) = (case.layout("theirs"), case.layout("ours"));
    skopeo("--encryption-key", &case.plain, &theirs);
    cloister(&["encrypt", "--recipient", words, &case.plain, &ours]);
    for (name, sealed) in [("theirs", &theirs), ("ours", &ours)] {
        case.assert_sealed(name);
        let (by_skopeo, by_cloister) = (format!("{name}-skopeo"), format!("{name}-cloister"));
        skopeo("--decryption-key", sealed, &case.layout(&by_skopeo));
        let opened = case.layout(&by_cloister);
        cloister(&[
            "decrypt",
            "--provider",
            "attestation-agent",
            sealed,
            &opened,
        ]);
        case.assert_plain(&by_skopeo);
        case.assert_plain(&by_cloister);
    }
}
