//! The development root of this build directory, by which pods attest without hardware.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};

use crate::product;
use crate::run::within;

/// To make keys of RSA's 4096 bits, three of them, on a busy machine.
const INIT: Duration = Duration::from_secs(180);
/// With it a directory counts as made.
const MADE: &str = "snp-root.key";
const SETTINGS: &str = "platform.toml";

/// The root, which is made when it is first asked for: that takes seconds.
///
/// # Errors
/// When the product's own command fails.
pub fn directory() -> Result<PathBuf> {
    let kept = product::target_dir().join("dev-tee");
    if !kept.join(MADE).exists() {
        let new = kept.with_extension(std::process::id().to_string());
        let mut init = Command::new(product::bin("cloister")?);
        init.args(["dev-tee", "init", "--dir"]).arg(&new);
        within(INIT, &mut init)?.ok()?;
        // Where another was first, that one stays.
        if fs::rename(&new, &kept).is_err() {
            fs::remove_dir_all(&new)?;
        }
        ensure!(kept.join(MADE).exists(), "{} is not made", kept.display());
    }
    Ok(kept)
}

/// The same root below `to`, on a platform whose settings have `new` in place of `old`.
///
/// # Errors
/// When the settings have no such part, or a file cannot be copied.
pub fn with(to: &Path, old: &str, new: &str) -> Result<PathBuf> {
    let from = directory()?;
    copy(&from, to)?;
    let path = to.join(SETTINGS);
    let text = fs::read_to_string(&path)?;
    ensure!(text.contains(old), "{SETTINGS} has no {old}");
    fs::write(&path, text.replacen(old, new, 1))?;
    Ok(to.to_owned())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target).with_context(|| target.display().to_string())?;
        }
    }
    Ok(())
}

/// A broker's configuration that believes the root, from one that accepts samples.
///
/// # Errors
/// When the configuration is another one.
pub(crate) fn believed(config: &str) -> Result<String> {
    let dir = directory()?;
    let accept = "accept = [\"sample\"]";
    ensure!(config.contains(accept), "no {accept} in:\n{config}");
    let [snp, tdx, collateral] =
        ["snp-root.pem", "tdx-root.pem", "collateral.json"].map(|name| dir.join(name));
    let table = format!(
        "accept = [\"sample\", \"sim-snp\", \"sim-tdx\"]\n\
         development = {{ snp_root = {snp:?}, tdx_root = {tdx:?}, collateral = {collateral:?} }}"
    );
    Ok(config.replacen(accept, &table, 1))
}
