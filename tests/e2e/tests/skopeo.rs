//! Encrypted images and skopeo in a VM: what it encrypts through our key provider and copies on opens
//! for an attested guest, what it encrypts for a key that nobody gave to the broker is refused by name.
#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::process::Command;
use std::time::Duration;

use support::image::Recipe;
use support::need;
use support::pod::Pod;
use support::run::{Finished, within};
use support::skopeo::{self, Skopeo};
use support::stage::{KEY_ID, Stage, TOOLS};

const SHORT: Duration = Duration::from_secs(30);
const MARKER: &str = "encrypted by skopeo";

#[test]
fn what_skopeo_encrypts_runs_attested_and_without_a_key_it_is_refused() {
    let keyed = skopeo::program();
    if !need(&TOOLS) || !need(&["openssl", &keyed.to_string_lossy()]) {
        return;
    }
    let stage = Stage::confidential().unwrap();
    let key = stage.key("image.key").unwrap();
    let recipe = Recipe::busybox(MARKER).unwrap();
    let plain = recipe
        .write(&stage.state.path().join("layout-plain"))
        .unwrap();
    let first = format!("docker://{}/first:latest", stage.registry.address());
    let recipient = skopeo::recipient(&key, KEY_ID);
    Skopeo::new(&stage.state)
        .and_then(|skopeo| {
            let tls = "--dest-tls-verify=false";
            skopeo.copy(&[tls, "--encryption-key", &recipient, &plain, &first])
        })
        .and_then(Finished::ok)
        .unwrap();
    let init_data = stage.init_data();
    let broker = stage.broker().unwrap();
    broker.put(KEY_ID, &key).unwrap();
    broker.release_only_to(&init_data.digest()).unwrap();
    let config = stage.settings().write(&stage.state, "c.toml").unwrap();
    let empty = stage.empty();
    let pod = |id, image| {
        Pod::new(id, &config, &empty, &["/bin/cat", "/marker"])
            .from_image(image)
            .with_init_data(&init_data)
            .flag(&["--rm"])
    };

    // A copy keeps the layers as they are, key packets included, even by a skopeo that knows none.
    let copy = stage
        .registry
        .push(&first, "copy:latest", &["--src-tls-verify=false"])
        .unwrap();
    for layer in stage.registry.manifest(&copy).unwrap()["layers"]
        .as_array()
        .unwrap()
    {
        assert!(layer["mediaType"].as_str().unwrap().ends_with("+encrypted"));
    }
    let run = stage.run(&pod("copy", &copy)).unwrap();
    assert_eq!(
        run.stdout,
        format!("{MARKER}\n"),
        "{}\n{}",
        run.report(),
        stage.log_tail()
    );

    // skopeo's own encryption is for whoever has the private key, which no broker was given.
    let private = stage.state.path().join("owner.pem");
    let public = stage.state.path().join("owner.pub");
    openssl(&["genrsa", "-out", &private.to_string_lossy(), "2048"]);
    openssl(&[
        "rsa",
        "-in",
        &private.to_string_lossy(),
        "-pubout",
        "-out",
        &public.to_string_lossy(),
    ]);
    let recipient = format!("--encryption-key=jwe:{}", public.display());
    let sealed = stage
        .registry
        .push(&plain, "sealed:latest", &[&recipient])
        .unwrap();
    let error = stage
        .refuse(&pod("sealed", &sealed), "key-unwrap-failed", SHORT)
        .unwrap();
    assert!(
        error.contains("RSA-OAEP"),
        "whose key does it want? {error}"
    );
}

fn openssl(words: &[&str]) {
    within(SHORT, Command::new("openssl").args(words))
        .unwrap()
        .ok()
        .unwrap();
}
