//! A skopeo with key providers, which the one of Debian 12 has not, and `cloister keyprovider` as its
//! provider: `.ci/setup` keeps one in `.cache`, unpacked and not installed.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};

use crate::product;
use crate::run::{Finished, within};
use crate::state::State;

const COPY: Duration = Duration::from_secs(60);
const OPERATING: &str = include_str!("../../../docs/operating.md");
/// The place of the program in the documentation's example.
const INSTALLED: &str = "/usr/bin/cloister";

/// The program, which may be absent.
#[must_use]
pub fn program() -> PathBuf {
    product::top().join(".cache/skopeo/skopeo")
}

/// skopeo, with the key provider `attestation-agent` that the documentation has users configure.
#[derive(Debug)]
pub struct Skopeo {
    providers: PathBuf,
}

impl Skopeo {
    /// Writes the configuration of its key providers into `state`.
    ///
    /// # Errors
    /// When `cloister` is not built, or the documentation has no such example.
    pub fn new(state: &State) -> Result<Self> {
        let cloister = product::bin("cloister")?;
        let providers = documented()?.replace(INSTALLED, &cloister.to_string_lossy());
        Ok(Self {
            providers: state.file("providers.json", providers)?,
        })
    }

    /// `skopeo copy` with these arguments. An exit code other than 0 is no error here.
    ///
    /// # Errors
    /// When it cannot be started or does not end in time.
    pub fn copy(&self, arguments: &[&str]) -> Result<Finished> {
        within(
            COPY,
            Command::new(program())
                .args(["copy", "--quiet", "--insecure-policy"])
                .args(arguments)
                .env("OCICRYPT_KEYPROVIDER_CONFIG", &self.providers),
        )
    }
}

/// The value of `--encryption-key` for `key` under the id `kbs:///<id>`.
#[must_use]
pub fn recipient(key: &Path, id: &str) -> String {
    format!("{}::keyid=kbs:///{id}", holder(key))
}

/// The value of `--decryption-key` for `key`.
#[must_use]
pub fn holder(key: &Path) -> String {
    format!("provider:attestation-agent:keypath={}", key.display())
}

/// The configuration that the documentation gives, between quotes for a shell.
fn documented() -> Result<&'static str> {
    let line = OPERATING
        .lines()
        .find(|line| line.contains("key-providers"));
    let json = line.and_then(|line| line.split('\'').nth(1));
    json.filter(|json| json.contains(INSTALLED))
        .context("docs/operating.md has no configuration of key providers")
}
