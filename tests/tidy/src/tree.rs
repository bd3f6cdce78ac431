//! Files of the repository: what is tracked, and what would be with the next commit.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// The workspace's top directory.
#[must_use]
pub fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("../..")
        .canonicalize()
        .unwrap_or_default()
}

/// Paths relative to [`top`] of every file that git tracks or would add.
///
/// # Errors
/// When git is missing or this is no repository: the rules then have nothing to read.
pub fn files() -> Result<Vec<PathBuf>> {
    let listing = Command::new("git")
        .args([
            "ls-files",
            "-z",
            "--cached",
            "--others",
            "--exclude-standard",
        ])
        .current_dir(top())
        .output()
        .context("git ls-files (the tidy tests need git)")?;
    ensure!(
        listing.status.success(),
        "git ls-files: {}",
        String::from_utf8_lossy(&listing.stderr)
    );
    let names = String::from_utf8(listing.stdout).context("a file name that is not UTF-8")?;
    let mut files: Vec<PathBuf> = names
        .split('\0')
        .filter(|n| !n.is_empty())
        .map(PathBuf::from)
        .collect();
    files.retain(|file| top().join(file).is_file());
    files.sort();
    files.dedup();
    Ok(files)
}

/// The `.rs` files among [`files`], with their text.
///
/// # Errors
/// As [`files`], or when one of them cannot be read.
pub fn rust_files() -> Result<Vec<(PathBuf, String)>> {
    files()?
        .into_iter()
        .filter(|file| file.extension().is_some_and(|ext| ext == "rs"))
        .map(|file| {
            let text = read(&file)?;
            Ok((file, text))
        })
        .collect()
}

/// The text of one file, by its path relative to [`top`].
///
/// # Errors
/// When it cannot be read as UTF-8.
pub fn read(file: &Path) -> Result<String> {
    std::fs::read_to_string(top().join(file)).with_context(|| format!("read {}", file.display()))
}
