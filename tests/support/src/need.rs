//! What a test needs from the machine, and saying so when it is not there.

use std::path::{Path, PathBuf};

/// Where `tool` is in `PATH`, or in the system directories that a user's `PATH` may lack.
#[must_use]
pub fn find(tool: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin", "/usr/libexec", "/usr/lib/qemu"].map(PathBuf::from))
        .map(|dir| dir.join(tool))
        .find(|file| file.is_file())
}

/// Whether all of `tools` are here and the user is root. When not, says which is missing.
///
/// # Panics
/// When something is missing and `CLOISTER_NO_SKIP=1` forbids skipping.
#[must_use]
pub fn need(tools: &[&str]) -> bool {
    if !nix::unistd::geteuid().is_root() {
        skip("needs root (containerd, mounts)");
        return false;
    }
    for tool in tools {
        let found = if tool.starts_with('/') {
            Path::new(tool).is_file()
        } else {
            find(tool).is_some()
        };
        if !found {
            skip(&format!("needs `{tool}`; `.ci/setup` installs it"));
            return false;
        }
    }
    true
}

/// Says why a test does not run here.
///
/// # Panics
/// When `CLOISTER_NO_SKIP=1` forbids skipping.
pub fn skip(why: &str) {
    assert!(
        std::env::var_os("CLOISTER_NO_SKIP").is_none_or(|v| v != "1"),
        "CLOISTER_NO_SKIP=1, but this test {why}"
    );
    eprintln!("SKIPPED: {why}");
}
